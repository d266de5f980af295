#!/usr/bin/env bash
# Measures, and writes benchmarks/results/bench-DATE.json. Arguments go to the benchmark program.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

export SEALFLOW_REPORT="$LOGS/bench-numbers.jsonl"

main() {
    mkdir -p "$LOGS"
    : >"$SEALFLOW_REPORT"
    : >"$SEALFLOW_SKIPPED"
    "$ROOT/scripts/deps.sh" build
    "$ROOT/scripts/deps.sh" test
    cd "$ROOT"
    local started=$SECONDS failed=0

    step "build (optimised, some minutes the first time)"
    supervised cargo build --release -p sealflow-benchmarks -p sealflow-cli
    step "measure"
    supervised target/release/sealflow-benchmarks "$@" || failed=1

    python3 scripts/report.py bench "$SEALFLOW_REPORT" --seconds "$((SECONDS - started))" --failed "$failed" \
        --skipped "$SEALFLOW_SKIPPED" --command "make bench"
    return "$failed"
}

main "$@"
