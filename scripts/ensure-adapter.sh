#!/usr/bin/env bash
# Makes sure that wgpu finds an adapter here: a Vulkan driver for the tests, the demo and the checks,
# and EGL for the GL backend. With both in place it prints nothing. Where something is missing it
# installs Mesa's software drivers with apt-get, if it may, or says what to install and exits 1.
# A missing EGL alone is only reported: Vulkan is enough for everything but `make matrix`.
set -euo pipefail
shopt -s nullglob

packages=(libvulkan1 mesa-vulkan-drivers libegl1 libgles2 libgl1-mesa-dri)

. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"

# macOS has Metal and Windows has DX12: nothing to install.
case "$(uname -s)" in
    Darwin | MINGW* | MSYS* | CYGWIN*) exit 0 ;;
esac

# ldconfig is in /sbin, which is not on every user's PATH.
PATH="$PATH:/usr/sbin:/sbin"

# What the dynamic loader's cache holds; read again after an installation.
cache=""
read_cache() { cache="$(ldconfig -p 2>/dev/null || true)"; }

# The parts of a colon-separated list, one a line.
parts() { printf '%s\n' "${1//:/$'\n'}"; }

# Whether the dynamic loader can find the shared library of this name.
loadable() {
    local dir
    case "$1" in
        */*) [[ -e "$1" ]]; return ;;
    esac
    [[ "$cache" == *"$1"* ]] && return
    while IFS= read -r dir; do
        [[ -n "$dir" && -e "$dir/$1" ]] && return
    done < <(parts "${LD_LIBRARY_PATH:-}:/run/opengl-driver/lib:/usr/local/lib:/usr/lib64:/usr/lib:/lib")
    return 1
}

# The Vulkan driver manifests that the Vulkan loader would read, one a line. VK_DRIVER_FILES, or its
# older name, replaces the search of the folders; VK_ADD_DRIVER_FILES adds to it.
manifests() {
    local only="${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}" entry
    if [[ -n "$only" ]]; then
        parts "$only"
        return
    fi
    parts "${VK_ADD_DRIVER_FILES:-}"
    while IFS= read -r entry; do
        [[ -n "$entry" ]] && printf '%s\n' "$entry/vulkan/icd.d"
    done < <(
        parts "${XDG_CONFIG_HOME:-${HOME:-}/.config}:${XDG_CONFIG_DIRS:-/etc/xdg}:/usr/local/etc:/etc"
        parts "${XDG_DATA_HOME:-${HOME:-}/.local/share}:${XDG_DATA_DIRS:-/usr/local/share:/usr/share}"
        echo /run/opengl-driver/share
    )
}

# Whether there is a GPU that this user may open.
gpu_present() {
    local node
    for node in /dev/dri/renderD* /dev/nvidia[0-9]* /dev/dxg /dev/kgsl-3d0 /dev/mali*; do
        [[ -r "$node" && -w "$node" ]] && return
    done
    return 1
}

# Whether the driver of this manifest can give an adapter. Mesa ships manifests for GPUs that are not
# there, so a hardware driver counts only beside a device; a software one always does.
drives() {
    local library
    [[ -f "$1" && -r "$1" ]] || return 1
    library="$(sed -n 's/.*"library_path"[[:space:]]*:[[:space:]]*"\([^"]*\)".*/\1/p' "$1" | head -n 1)"
    [[ -n "$library" ]] || return 1
    case "$library" in
        /*) ;;
        */*) library="$(dirname "$1")/$library" ;;
    esac
    loadable "$library" || return 1
    case "$(basename "$1")" in
        lvp_icd* | *swiftshader*) return 0 ;;
    esac
    gpu_present
}

have_vulkan() {
    local entry manifest
    loadable libvulkan.so.1 || return 1
    while IFS= read -r entry; do
        if [[ -d "$entry" ]]; then
            for manifest in "$entry"/*.json; do
                drives "$manifest" && return
            done
        elif [[ -n "$entry" ]]; then
            drives "$entry" && return
        fi
    done < <(manifests)
    return 1
}

# EGL, and something behind it: a Mesa driver (in a file of its own, or in libgallium since Mesa
# 24.2), or a GPU, whose vendor brings one.
have_gl() {
    local driver
    loadable libEGL.so.1 || return 1
    [[ "$cache" == *libgallium-* ]] && return
    for driver in /usr/lib/*/dri/swrast_dri.so /usr/lib{,64}/dri/swrast_dri.so /run/opengl-driver/lib/dri/swrast_dri.so; do
        [[ -e "$driver" ]] && return
    done
    gpu_present
}

say_what_to_install() {
    say "install a Vulkan driver for your GPU, or Mesa's software drivers:"
    say "  Debian, Ubuntu:  sudo apt-get install --no-install-recommends ${packages[*]}"
    say "  Fedora:          sudo dnf install vulkan-loader mesa-vulkan-drivers mesa-libEGL mesa-dri-drivers"
    say "  Arch:            sudo pacman -S vulkan-icd-loader vulkan-swrast libglvnd mesa"
}

read_cache
if have_vulkan && have_gl; then
    exit 0
fi

if may_install; then
    say "no adapter for Vulkan or GL yet: installing ${packages[*]}"
    install_packages "${packages[@]}" || say "the installation failed"
    read_cache
fi

if ! have_vulkan; then
    say "there is no Vulkan adapter here."
    if [[ -n "${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}" ]]; then
        say "VK_DRIVER_FILES or VK_ICD_FILENAMES is set, and names no driver that works here: correct or unset it."
    fi
    say_what_to_install
    exit 1
fi
if ! have_gl; then
    say "Vulkan is here, but EGL is not, so the GL backend will find no adapter (only \`make matrix\` needs it)."
    say_what_to_install
fi
