#!/usr/bin/env bash
# Prints where the DirectX shader compiler's library is. DXC_LIBRARY names one that is there already; otherwise it is
# taken out of a Python package for Linux on x86-64, which is downloaded into the target folder once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

package=compushady-lrtu==0.18.0
member=compushady/backends/libdxcompiler_x86_64.so

if [[ -n "${DXC_LIBRARY:-}" ]]; then
    [[ -f "$DXC_LIBRARY" ]] || { say "DXC_LIBRARY is $DXC_LIBRARY, which is no file"; exit 1; }
    printf '%s\n' "$DXC_LIBRARY"
    exit
fi

folder="${CARGO_TARGET_DIR:-target}/dxc"
library="$folder/$(basename "$member")"
if [[ ! -f "$library" ]]; then
    if [[ "$(uname -sm)" != "Linux x86_64" ]] || ! command -v python3 >/dev/null; then
        say "set DXC_LIBRARY to a libdxcompiler (github.com/microsoft/DirectXShaderCompiler/releases)."
        say "The one that this script downloads is for Linux on x86-64, and needs python3 with pip."
        exit 1
    fi
    mkdir -p "$folder"
    # For one version of Python whatever the one here: only the compiler is taken out.
    python3 -m pip --quiet --disable-pip-version-check download --no-deps --only-binary :all: --dest "$folder" \
        --python-version 3.11 --implementation cp --abi cp311 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 "$package" >&2 || {
        say "downloading $package failed: is there pip (apt-get install python3-pip) and a network?"
        say "Or set DXC_LIBRARY to a libdxcompiler (github.com/microsoft/DirectXShaderCompiler/releases)."
        exit 1
    }
    # Unpacked under another name first, so that half a file is never taken for the compiler.
    python3 - "$folder"/compushady*.whl "$member" "$library" <<'PYTHON'
import os, sys, zipfile
wheel, member, library = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive, open(library + ".part", "wb") as out:
    out.write(archive.read(member))
os.replace(library + ".part", library)
os.remove(wheel)
PYTHON
fi
printf '%s\n' "$library"
