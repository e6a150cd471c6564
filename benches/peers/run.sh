#!/usr/bin/env bash
# Times ours, Burn and PyTorch (on the CPU) on this machine, one after the other, and puts them side by side.
#
# Environment: BENCH, BURN and PYTORCH, options of each (BENCH="--rounds 3"); OURS, a built wgpu-batchnorm; PYTHON, one
# that has torch. Where it has none, a virtual environment in the target folder gets it.
set -eo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cargo="${CARGO:-cargo}"
target="${CARGO_TARGET_DIR:-target}"
out="$target/peers"
mkdir -p "$out"
read -ra bench <<<"${BENCH:-}"
read -ra burn <<<"${BURN:-}"
read -ra pytorch <<<"${PYTORCH:-}"

python="${PYTHON:-python3}"
if ! "$python" -c 'import torch' 2>/dev/null; then
    venv="$out/python"
    if [[ ! -x "$venv/bin/python" ]]; then
        "$python" -m venv "$venv"
    fi
    python="$venv/bin/python"
    if ! "$python" -c 'import torch' 2>/dev/null; then
        echo "installing torch in $venv" >&2
        # The build for CPUs is a tenth of the size.
        "$python" -m pip install --quiet torch --index-url https://download.pytorch.org/whl/cpu ||
            "$python" -m pip install --quiet torch
    fi
fi

ours="${OURS:-}"
if [[ -z "$ours" ]]; then
    "$cargo" build --release --locked --package wgpu-batchnorm-cli --target-dir "$target"
    ours="$target/release/wgpu-batchnorm"
fi
# The first build takes minutes: Burn is large.
"$cargo" build --release --locked --manifest-path benches/peers/burn/Cargo.toml --target-dir "$out/burn"

"$ours" bench --json "$out/ours.json" "${bench[@]}" >/dev/null
# It fails where a result of Burn's is wrong, and writes what is right; without a report the comparison fails.
rm -f "$out/burn.json"
"$out/burn/release/burn-peer" --json "$out/burn.json" "${burn[@]}" || echo "Burn's report lacks what is named above" >&2
"$python" benches/peers/pytorch.py --device cpu --json "$out/pytorch.json" "${pytorch[@]}"
"$ours" bench --compare "$out"/{ours,burn,pytorch}.json --html "$out/report.html"
echo "The page is $out/report.html"
