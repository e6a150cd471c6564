#!/usr/bin/env bash
# apt-install.sh FILE PACKAGE...: makes sure that FILE is there. Where it is not, installs the Debian packages that bring
# it, if that may be done without asking anybody, or says what to install and exits 1.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"

file="$1"
shift
[[ -e "$file" ]] && exit 0

if may_install; then
    say "installing $* for $file"
    install_packages "$@" || say "the installation failed"
fi
if [[ ! -e "$file" ]]; then
    say "$file is not here: on Debian, sudo apt-get install --no-install-recommends $*"
    exit 1
fi
