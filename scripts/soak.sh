#!/usr/bin/env bash
# The long tests: a million records and twenty kills through a real broker, and minutes of each fuzz target.
# Writes benchmarks/results/soak-DATE.json. SOAK_RECORDS, SOAK_KILLS and SOAK_FUZZ_SECONDS change the numbers.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

FUZZ_SECONDS="${SOAK_FUZZ_SECONDS:-300}"
# The test that `make test` runs with 100,000 records and three kills.
export SEALFLOW_E2E_RECORDS="${SOAK_RECORDS:-1000000}"
export SEALFLOW_E2E_KILLS="${SOAK_KILLS:-20}"
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
    supervised cargo test "${CARGO_ALL[@]}" --test topic --no-run
    step "$SEALFLOW_E2E_RECORDS records, $SEALFLOW_E2E_KILLS kills"
    supervised cargo test "${CARGO_ALL[@]}" --test topic -- exactly_once --nocapture || failed=1
    step "fuzz, $FUZZ_SECONDS s each"
    supervised scripts/fuzz.sh "$FUZZ_SECONDS" || failed=1

    python3 scripts/report.py soak "$SEALFLOW_REPORT" --seconds "$((SECONDS - started))" --failed "$failed" \
        --fuzz "$LOGS/fuzz.tsv" --skipped "$SEALFLOW_SKIPPED"
    return "$failed"
}

main "$@"
