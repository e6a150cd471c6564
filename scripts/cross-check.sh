#!/usr/bin/env bash
# Type-checks the library for Windows and macOS, so that wgpu's DX12 and Metal backends compile with it. Nothing is
# linked, so no system's SDK is needed: only a standard library for the target. Where the toolchain has none and rustup
# cannot add it, Debian's Rust builds one from its sources; its packages are installed, if that may be done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

targets=(x86_64-pc-windows-gnu aarch64-apple-darwin)
features=ndarray,device,state

# Whether the toolchain has a standard library for this target, now or after rustup has added it.
has_std() {
    local folder
    folder="$(rustc --print target-libdir --target "$1" 2>/dev/null)" || return 1
    [[ -d "$folder" ]] && return
    command -v rustup >/dev/null && rustup target add "$1" >/dev/null 2>&1 && [[ -d "$folder" ]]
}

# Whether Debian's Rust is here, with the sources of its standard library, or can be.
has_debian() {
    bash scripts/apt-install.sh /usr/lib/rustlib/src/rust/library/std rustc-web cargo-web rust-web-src
}

for target in "${targets[@]}"; do
    if has_std "$target"; then
        "${CARGO:-cargo}" check --locked --package wgpu-batchnorm --lib --features "$features" --target "$target"
    elif has_debian; then
        # A folder of its own: the other compiler's artefacts are of no use to it. -Z is for building the standard
        # library alone.
        RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 /usr/bin/cargo check --locked --package wgpu-batchnorm --lib \
            --features "$features" --target "$target" -Zbuild-std=std,panic_abort --target-dir "${CARGO_TARGET_DIR:-target}/cross"
    else
        say "there is no standard library for $target: rustup target add ${targets[*]}, or Debian's packages, as above"
        exit 1
    fi
    say "$target: the library compiles with wgpu's backends"
done
