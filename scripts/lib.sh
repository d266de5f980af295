# shellcheck shell=bash disable=SC2034
# Shared by the scripts beside it: where we are, how we speak, what was skipped.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export ROOT
DEPS="$ROOT/.deps"
LOGS="$ROOT/target/logs"

# One selection of packages and features for every build, lint and test, so that no dependency is compiled
# twice because another command asked for other features of it.
CARGO_ALL=(--workspace --all-features)

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$1" >&2; shift; for line in "$@"; do printf ' help: %s\n' "$line" >&2; done; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# The skip ledger: one line "name: reason" per check that could not be made on this machine. Tests append to
# it too, through SEALFLOW_SKIPPED.
SEALFLOW_SKIPPED="${SEALFLOW_SKIPPED:-$ROOT/target/skipped.txt}"
export SEALFLOW_SKIPPED
skip() {
    mkdir -p "$(dirname "$SEALFLOW_SKIPPED")"
    printf '%s: %s\n' "$1" "$2" >>"$SEALFLOW_SKIPPED"
    printf 'skipped: %s: %s\n' "$1" "$2"
}

# Runs a command in a process group of its own and waits for it, so that an interrupt takes its children along.
CHILDREN=()
supervised() {
    setsid "$@" &
    local pid=$! status=0
    CHILDREN+=("$pid")
    wait "$pid" || status=$?
    return "$status"
}

# Ends every process group that this script started.
end_children() {
    local pid
    for pid in ${CHILDREN[@]+"${CHILDREN[@]}"}; do
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
    CHILDREN=()
}

end_on_exit() {
    trap end_children EXIT
    trap 'end_children; exit 130' INT
    trap 'end_children; exit 143' TERM
}
