#!/usr/bin/env bash
# fuzz.sh MINUTES: every fuzz target for a share of that time, guided by coverage and then from a seed, which is faster.
# Installs what is missing, and ends in a line for each target; a finding is a failure that says how to repeat it.
# SEED repeats a series. Logs and what the fuzzer learned stay in the target folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

minutes="${1:-12}"
if ! [[ "$minutes" =~ ^[1-9][0-9]*$ ]]; then
    echo "MINUTES is $minutes; give a whole number of 1 or more" >&2
    exit 2
fi
seed="${SEED:-$(date +%s)}"
cargo="${CARGO:-cargo}"
target="$(absolute "${CARGO_TARGET_DIR:-target}")/fuzz"
targets=(files plan differential)
# Megabytes that a target may take: a file as much as is in it, and compilers what they need.
declare -A memory=([files]=512 [plan]=2048 [differential]=4096)
# Seconds that one case may take, compiling included.
declare -A slowest=([files]=1 [plan]=30 [differential]=120)
share=$((minutes * 60 / (2 * ${#targets[@]})))

bash scripts/apt-install.sh /usr/bin/c++ g++
command -v cargo-fuzz >/dev/null || "$cargo" install cargo-fuzz --locked
"$cargo" fmt --manifest-path fuzz/Cargo.toml --check
# No sanitizer: nothing here is unsafe, and a stable compiler will do.
options=(--sanitizer none --target-dir "$target/guided")
for name in "${targets[@]}"; do
    "$cargo" fuzz build "${options[@]}" "$name"
done
RUSTFLAGS="${RUSTFLAGS:-} --cfg fuzzing" "$cargo" build --release --locked --manifest-path fuzz/Cargo.toml \
    --target-dir "$target/seeded" --example cases

lines=()
for name in "${targets[@]}"; do
    log="$target/$name.log"
    corpus="$target/corpus/$name"
    mkdir -p "$corpus"
    say "$name, guided, $share s"
    "$cargo" fuzz run "${options[@]}" "$name" "$corpus" "fuzz/seeds/$name" -- \
        -max_total_time="$share" -rss_limit_mb="${memory[$name]}" -timeout="${slowest[$name]}" \
        -print_final_stats=1 -verbosity=0 >"$log" 2>&1 || { tail -n 60 "$log"; exit 1; }
    lines+=("$name, guided: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") cases in $share s")
    say "$name, from seed $seed, $share s"
    lines+=("$("$target/seeded/release/examples/cases" --target "$name" --seconds "$share" --seed "$seed")")
done
printf '%s\n' "${lines[@]}"
