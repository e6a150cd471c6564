#!/usr/bin/env bash
# Holds every lock file to deny.toml: licences, versions that are there twice, sources, and known vulnerabilities.
# cargo-deny is installed where it is missing. Advisories are in a database on the net; where that cannot be fetched, this
# says so, and checks the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

cargo="${CARGO:-cargo}"
command -v cargo-deny >/dev/null || "$cargo" install cargo-deny --locked

checks=(licenses bans sources)
if "$cargo" deny --log-level off fetch db; then
    checks+=(advisories)
else
    say "the database of advisories cannot be fetched: known vulnerabilities are NOT checked"
fi
for manifest in Cargo.toml */Cargo.toml tools/*/Cargo.toml; do
    # Members of a workspace have no lock file of their own.
    [[ -e "${manifest%.toml}.lock" ]] || continue
    say "$manifest: ${checks[*]}"
    # Not every exception in deny.toml is for every lock file.
    "$cargo" deny --manifest-path "$manifest" --locked --config deny.toml \
        check --allow unmatched-skip --allow license-exception-not-encountered "${checks[@]}"
done
