#!/usr/bin/env bash
# Everything to measure on a new GPU, within ten minutes:
#
#     benches/on_gpu.sh target/release/wgpu-batchnorm results
#
# The constants of the planner's cost model first, then the check against the reference, the benchmark, ResNet-50 as a
# whole, and PyTorch on the same GPU where `python3` has torch and finds CUDA. Each part has a limit of time, and the rest
# goes on where one fails. JSON files are named by adapter, driver and date; a line per part ends it.
#
# Environment: PARTS, which parts (all without); TOTAL, seconds for everything; PYTHON; OURS, options of every part of ours
# (OURS="--backend vulkan"); CONSTANTS, CHECK, BENCH and PEER, options of these parts (BENCH="--rounds 1", PEER="--device
# cpu"); SHAPES, TYPES and COMPILED, shapes of the parts bench, types and pytorch-compiled; BATCH, of ResNet-50.
set -o pipefail

if [[ $# -ne 2 || ! -x "$1" ]]; then
    echo "usage: $0 BINARY FOLDER, where BINARY is a built wgpu-batchnorm" >&2
    exit 2
fi
binary="$(realpath "$1")"
mkdir -p "$2"
out="$(realpath "$2")"
peers="$(realpath "$(dirname "${BASH_SOURCE[0]}")/peers")"
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/tmp}"

read -ra ours <<<"${OURS:-}"
read -ra constants <<<"${CONSTANTS:-}"
read -ra check <<<"${CHECK:-}"
read -ra bench <<<"${BENCH:-}"
read -ra peer <<<"${PEER:-}"
parts="${PARTS:-info constants check bench types pytorch resnet50 pytorch-resnet50 pytorch-compiled}"
python="${PYTHON:-python3}"
total="${TOTAL:-570}"
summary=()
failed=0

# part NAME SECONDS FILE COMMAND...: runs it, within its limit and what is left of all. Its output goes to NAME.log, and
# what it writes to FILE stays there, whatever came of it.
part() {
    local name="$1" limit="$2" file="$3" began=$SECONDS status
    shift 3
    [[ " $parts " == *" $name "* ]] || return 0
    local left=$((total - SECONDS))
    if ((left < 10)); then
        summary+=("$name: no time left")
        failed=1
        return 1
    fi
    echo "== $name"
    # INT first: PyTorch's script then writes what it has.
    local timed=(timeout --signal=INT --kill-after=5 $((limit < left ? limit : left)))
    command -v timeout >/dev/null || timed=()
    "${timed[@]}" "$@" >"$out/$name.log" 2>&1
    status=$?
    local took="$((SECONDS - began)) s" made="nothing"
    if [[ -s "$file" ]]; then
        made="$(basename "$file"), $(grep -c '"median_ms"\|"passed": true\|"copy_us"' "$file") figures"
        made="${made/, 0 figures/}"
    else
        rm -f "$file"
    fi
    if ((status == 0)); then
        summary+=("$name: done in $took: $made")
    else
        ((status == 124 || status == 137)) && status="no end in sight"
        summary+=("$name: FAILED ($status) after $took: $made; $(tail -n 1 "$out/$name.log" | cut -c -160)")
        failed=1
        return 1
    fi
}

# Prints what `check --json` and `info --json` write to stdout into a file.
into() {
    local file="$1"
    shift
    "$@" >"$file"
}
export -f into

part info 20 "$out/info.json" bash -c 'into "$@"' into "$out/info.json" "$binary" info --json
part constants 90 "$out/constants.json" \
    "$binary" bench --constants --json "$out/constants.json" "${ours[@]}" "${constants[@]}"

# The adapter that all parts take, as the first of them says.
field() { sed -n "s/^ *\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p" "$out/constants.json" 2>/dev/null | head -n 1; }
name="$(field name) $(field backend) $(field driver_info | cut -d ' ' -f -2) $(date +%F)"
name="$(tr -cs 'A-Za-z0-9.\n' '-' <<<"$name" | tr 'A-Z' 'a-z' | sed 's/^-*//; s/-*$//')"
for file in info constants; do
    [[ -e "$out/$file.json" ]] && mv "$out/$file.json" "$out/$name-$file.json"
    summary=("${summary[@]/: $file.json/: $name-$file.json}")
done

result="$out/$name-check.json"
part check 100 "$result" bash -c 'into "$@"' into "$result" "$binary" check --json "${ours[@]}" "${check[@]}"
result="$out/$name-bench.json"
shapes=(${SHAPES:+--shapes "$SHAPES"})
part bench 170 "$result" "$binary" bench --json "$result" "${shapes[@]}" "${ours[@]}" "${bench[@]}"
# The headline set has f32 foremost: the other types on two of its shapes.
result="$out/$name-types.json"
part types 60 "$result" "$binary" bench --json "$result" \
    --shapes "${TYPES:-256x64x56x56,256x56x56x64:last}" --dtype f16,bf16 "${ours[@]}" "${bench[@]}"

torch=1
"$python" -c 'import torch' 2>/dev/null || torch=0
((torch)) || summary+=("pytorch: $python has no torch")
# pytorch NAME SECONDS OPTIONS...
pytorch() {
    local name_of_part="$1" limit="$2" file="$out/$name-$1.json"
    shift 2
    ((torch)) || return 0
    part "$name_of_part" "$limit" "$file" "$python" "$peers/pytorch.py" --json "$file" "$@" "${peer[@]}"
}
pytorch pytorch 90 --cudnn both "${shapes[@]}"
result="$out/$name-resnet50.json"
resnet50="$("$python" "$peers/shapes.py" resnet50 --batch "${BATCH:-32}")"
if [[ -n "$resnet50" ]]; then
    part resnet50 60 "$result" "$binary" bench --json "$result" --shapes "$resnet50" "${ours[@]}" "${bench[@]}"
else
    summary+=("resnet50: FAILED: $python could not list its shapes")
    failed=1
fi
pytorch pytorch-resnet50 60 --set resnet50 --batch "${BATCH:-32}" --layout nchw --cudnn both
# Compiling takes longer than measuring: the shapes beyond the cache alone, after everything else.
pytorch pytorch-compiled 90 --compile --cudnn on --shapes "${COMPILED:-256x64x56x56,256x256x56x56,256x56x56x64:last}"

# compare NAME PART...: puts what these parts wrote side by side.
compare() {
    local page="$name-$1" reports=() file
    shift
    for file in "$@"; do
        [[ -s "$out/$name-$file.json" ]] && reports+=("$out/$name-$file.json")
    done
    ((${#reports[@]})) || return 0
    "$binary" bench --compare "${reports[@]}" --html "$out/$page.html" >"$out/$page.txt" &&
        summary+=("side by side: $page.html, $page.txt")
}
compare headline bench pytorch pytorch-compiled
compare other-types types
compare network resnet50 pytorch-resnet50
"$python" "$peers/shapes.py" sum "$out/$name"-*resnet50.json 2>/dev/null
echo
printf '%s\n' "${summary[@]}"
exit "$failed"
