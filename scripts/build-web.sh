#!/usr/bin/env bash
# Builds the browser page: `make web`. The page comes to web/ in the folder for what is built (CARGO_TARGET_DIR, or target).
#
# It needs Rust for wasm32-unknown-unknown: the toolchain's own target where that is installed, otherwise Debian's
# rustc-web, with a standard library that is built here. Where neither is there it installs the latter with apt-get, if
# it may, or says what to install and exits 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

CARGO="${CARGO:-cargo}"
target="$(absolute "${CARGO_TARGET_DIR:-target}")"
built="$target/web-build" # a folder of its own: another workspace, and perhaps another compiler

have_own_target() {
    [[ -d "$("${RUSTC:-rustc}" --print sysroot 2>/dev/null)/lib/rustlib/wasm32-unknown-unknown" ]]
}
have_debian() {
    [[ -x /usr/bin/cargo && -x /usr/bin/rustc && -d /usr/lib/rustlib/src/rust/library ]] && command -v wasm-ld >/dev/null
}

if ! have_own_target && ! have_debian; then
    if may_install; then
        say "no Rust for wasm32 yet: installing Debian's"
        install_packages rustc-web cargo-web rust-web-src lld || say "the installation failed"
    fi
    if ! have_debian; then
        say "there is no Rust for wasm32-unknown-unknown here; install it:"
        say "  with rustup:  rustup target add wasm32-unknown-unknown"
        say "  Debian:       sudo apt-get install --no-install-recommends rustc-web cargo-web rust-web-src lld"
        exit 1
    fi
fi

arguments=(build --release --locked --package wgpu-batchnorm-web --target wasm32-unknown-unknown --target-dir "$built")
if have_own_target; then
    (cd web && "$CARGO" "${arguments[@]}")
else
    # Building the standard library is switched on in this way only, outside of nightly compilers.
    (cd web && env -u RUSTFLAGS RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
        CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld \
        /usr/bin/cargo "${arguments[@]}" -Zbuild-std=std,panic_abort)
fi
(cd web && "$CARGO" build --release --locked --package wgpu-batchnorm-bindgen --target-dir "$built")

page="$target/web"
rm -rf "$page"
mkdir -p "$page"
cp web/page/* "$page"
"$built/release/wgpu-batchnorm-bindgen" "$built/wasm32-unknown-unknown/release/wgpu_batchnorm_web.wasm" "$page"
echo "The page is in $page ($(du -sh "$page" | cut -f1)). Browsers load it from a server: python3 -m http.server -d $page"
