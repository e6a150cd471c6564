#!/usr/bin/env bash
# Drives the built page in a real, headless Chromium: `make web-test`. It needs Node and a Chromium (CHROMIUM names one
# that is not on the PATH), and installs them with apt-get where they are missing, if it may, or says what to install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

target="$(absolute "${CARGO_TARGET_DIR:-target}")"

find_chromium() {
    local name
    for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
        [[ -n "$name" ]] && command -v "$name" && return
    done
    return 1
}
have_node() {
    command -v npm >/dev/null && command -v node >/dev/null && node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)'
}

missing=()
have_node || missing+=(nodejs npm)
find_chromium >/dev/null || missing+=(chromium)
if ((${#missing[@]})); then
    if may_install; then
        say "installing ${missing[*]}"
        install_packages "${missing[@]}" || say "the installation failed"
    fi
    if ! have_node || ! find_chromium >/dev/null; then
        say "this needs Node 18 or later with npm, and Chromium or Chrome; install them, on Debian and Ubuntu with"
        say "  sudo apt-get install --no-install-recommends ${missing[*]}"
        exit 1
    fi
fi

(cd web && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
CHROMIUM="$(find_chromium)" exec node web/test/page.mjs "$target/web" "$target/web-test"
