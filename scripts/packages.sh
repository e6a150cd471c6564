# Sourced by the other scripts: saying things, and installing Debian's packages where that is allowed.

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }

# A path that stays right in another folder.
absolute() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

as_root() {
    if [[ "$(id -u)" == 0 ]]; then "$@"; else sudo -n "$@"; fi
}

# Whether packages can be installed without asking anybody.
may_install() {
    command -v apt-get >/dev/null || return 1
    [[ "$(id -u)" == 0 ]] && return
    command -v sudo >/dev/null && sudo -n true 2>/dev/null
}

install_packages() {
    # A package list that is stale in part is good enough; the installation tells.
    as_root apt-get -qq -o DPkg::Lock::Timeout=300 update >&2 || say "apt-get update failed; going on"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" >&2
}
