#!/usr/bin/env bash
# public-api.sh check|write: the library's public items, all features, against docs/public-api.txt, or into it.
# The listing is made from rustdoc's JSON, whose format changes between compilers and of which the tool reads one version:
# so both are pinned, the compiler to the oldest that Cargo.toml promises. What is missing is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

# Reads what the compiler of Cargo.toml's `rust-version` writes.
tool=0.52.0
rust="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -1)"
recorded=docs/public-api.txt
target="$(absolute "${CARGO_TARGET_DIR:-target}")/public-api"

cargo() { command "${CARGO:-cargo}" "$@"; }
if rustc --version | grep -qF "rustc $rust."; then
    toolchain=()
else
    command -v rustup >/dev/null || { say "Rust $rust is needed, and there is no rustup"; exit 1; }
    rustup toolchain install "$rust" --profile minimal >&2
    toolchain=(rustup run "$rust")
    CARGO=cargo
fi
if ! "$target/bin/cargo-public-api" --version 2>/dev/null | grep -qF "$tool"; then
    cargo install cargo-public-api --version "=$tool" --locked --root "$target"
fi
# JSON is not stable: RUSTC_BOOTSTRAP lets a released compiler write it, for this listing alone.
RUSTC_BOOTSTRAP=1 "${toolchain[@]}" "${CARGO:-cargo}" rustdoc --quiet --locked --package wgpu-batchnorm --lib --all-features \
    --target-dir "$target" -- -Z unstable-options --output-format json --cap-lints allow
listing="$target/public-api.txt"
"$target/bin/cargo-public-api" public-api --rustdoc-json "$target/doc/wgpu_batchnorm.json" -sss >"$listing"

case "${1:-check}" in
write)
    cp "$listing" "$recorded"
    say "$recorded: $(wc -l <"$recorded") items"
    ;;
check)
    if ! diff -u "$recorded" "$listing"; then
        say "the public API is not the recorded one: if that is meant, \`make api\` and an entry in CHANGELOG.md"
        exit 1
    fi
    say "the public API is the recorded one: $(wc -l <"$recorded") items"
    ;;
esac
