#!/usr/bin/env bash
# Licences, sources, bans and known vulnerabilities of what Cargo.lock names (deny.toml), by cargo-deny.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

cargo deny --log-level warn check licenses bans sources
# The advisories are fetched from GitHub, which a build machine may not reach.
if ! timeout 120 cargo deny --log-level warn fetch db >/dev/null 2>&1; then
    say "skipped: advisories (their database cannot be fetched)"
    exit 0
fi
cargo deny --log-level warn check advisories
