#!/usr/bin/env bash
# The long tests: a million records and twenty kills through a real broker, and minutes of each fuzz target.
# Writes benchmarks/results/soak-DATE.json. SOAK_FUZZ_SECONDS sets the time of each fuzz target.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

FUZZ_SECONDS="${SOAK_FUZZ_SECONDS:-300}"
# Each long test may write its own numbers, one JSON object per line: {"name": …, …}.
export SEALFLOW_REPORT="$LOGS/soak-numbers.jsonl"

main() {
    mkdir -p "$LOGS"
    : >"$SEALFLOW_REPORT"
    : >"$SEALFLOW_SKIPPED"
    "$ROOT/scripts/deps.sh" build
    "$ROOT/scripts/deps.sh" test
    cd "$ROOT"
    local started=$SECONDS failed=0

    step "build"
    supervised cargo test "${CARGO_ALL[@]}" --test soak --no-run
    step "soak"
    supervised cargo test "${CARGO_ALL[@]}" --test soak -- --ignored --nocapture --test-threads 1 || failed=1
    step "fuzz, $FUZZ_SECONDS s each"
    supervised scripts/fuzz.sh "$FUZZ_SECONDS" || failed=1

    python3 scripts/report.py soak "$SEALFLOW_REPORT" --seconds "$((SECONDS - started))" --failed "$failed" \
        --fuzz "$LOGS/fuzz.tsv" --skipped "$SEALFLOW_SKIPPED"
    return "$failed"
}

main "$@"
