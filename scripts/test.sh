#!/usr/bin/env bash
# Every test: unit, property, golden, command line, real servers; then ten seconds of each fuzz target.
# The last lines say how long each stage took, what was skipped, and the sum.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

SEALFLOW_SKIPPED="$ROOT/target/skipped.txt" # a ledger of this run alone
STAGES="$LOGS/stages.tsv"
FUZZ_SECONDS="${FUZZ_SECONDS:-10}"

main() {
    mkdir -p "$LOGS"
    : >"$SEALFLOW_SKIPPED"
    : >"$STAGES"
    rm -f "$LOGS"/tests.json "$LOGS"/fuzz.tsv "$LOGS"/checks.tsv
    cd "$ROOT"

    stage deps prepare
    start_moto
    stage build cargo test "${CARGO_ALL[@]}" --no-run
    stage worker scripts/build_enclave_worker.sh --tests
    # One broken test must not hide the others, nor the fuzz targets.
    stage tests python3 -u scripts/run_tests.py "$LOGS/tests.json" -- cargo test "${CARGO_ALL[@]}" --no-fail-fast
    stage arm scripts/test_arm.sh
    stage miri scripts/test_miri.sh
    stage fuzz scripts/fuzz.sh "$FUZZ_SECONDS"
    stage documents documents

    end_children
    python3 scripts/summary.py "$STAGES" "$LOGS/tests.json" "$SEALFLOW_SKIPPED" "$LOGS/fuzz.tsv" "$LOGS/checks.tsv"
}

prepare() { scripts/deps.sh build && scripts/deps.sh test; }

# The specification's example, opened by a reader that shares no code with ours.
documents() {
    local name=format-opened-independently python="$DEPS/venv/bin/python"
    [ -x "$python" ] || python=python3
    if ! "$python" -c 'import cryptography' 2>/dev/null; then
        skip "$name" "Python has no package cryptography here"
    elif "$python" docs/examples/open.py; then
        printf 'ok\t%s\t\n' "$name" >>"$LOGS/checks.tsv"
    else
        printf 'failed\t%s\tdocs/examples/open.py\n' "$name" >>"$LOGS/checks.tsv"
        return 1
    fi
}

# Runs one stage, and notes its name, seconds and exit code. Only a build that fails ends the run at once.
stage() {
    local name="$1" started=$SECONDS status=0
    shift
    step "$name"
    if [ "$(type -t "$1")" = function ]; then
        "$@" || status=$?
    else
        supervised "$@" || status=$?
    fi
    printf '%s\t%s\t%s\n' "$name" "$((SECONDS - started))" "$status" >>"$STAGES"
    if [ "$status" -ne 0 ] && { [ "$name" = deps ] || [ "$name" = build ]; }; then
        fail "the stage '$name' failed; nothing was tested"
    fi
}

# An independent KMS for the tests that want one: SEALFLOW_MOTO_ENDPOINT.
start_moto() {
    local server="$DEPS/venv/bin/moto_server" port
    unset SEALFLOW_MOTO_ENDPOINT
    [ -x "$server" ] || return 0 # deps has put it into the ledger
    port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    setsid "$server" -H 127.0.0.1 -p "$port" >"$LOGS/moto.log" 2>&1 &
    CHILDREN+=("$!")
    for _ in $(seq 1 120); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            export SEALFLOW_MOTO_ENDPOINT="http://127.0.0.1:$port"
            say "moto answers at $SEALFLOW_MOTO_ENDPOINT"
            return 0
        fi
        sleep 0.5
    done
    skip moto "it did not answer within a minute (see target/logs/moto.log)"
}

main "$@"
