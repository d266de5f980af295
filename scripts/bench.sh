#!/usr/bin/env bash
# Measures, writes benchmarks/results/bench-DATE.json and draws benchmarks/plots/ from it.
#   ONLY=values,topic   these sections alone (the plots of the others stay as they are)
#   UPDATE=1            takes the counted instructions as the new benchmarks/instructions.json
#   PERCENT=5 PAIRS=2   tries the harness out: less work, fewer pairs; nothing is written outside target/
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

export SEALFLOW_REPORT="$LOGS/bench-numbers.jsonl"

main() {
    mkdir -p "$LOGS"
    : >"$SEALFLOW_REPORT"
    : >"$SEALFLOW_SKIPPED"
    "$ROOT/scripts/deps.sh" build
    "$ROOT/scripts/deps.sh" test
    "$ROOT/scripts/deps.sh" bench
    cd "$ROOT"
    local started failed=0 load sections=() command="make bench" folder=benchmarks
    IFS=',' read -r -a sections <<<"${ONLY:-}"
    [ "${#sections[@]}" -gt 0 ] && command+=" ONLY=$ONLY"
    [ -n "${UPDATE:-}" ] && export SEALFLOW_BENCH_UPDATE=1 && command+=" UPDATE=1"
    if [ -n "${PERCENT:-}${PAIRS:-}" ]; then
        export SEALFLOW_BENCH_PERCENT="${PERCENT:-100}" SEALFLOW_BENCH_PAIRS="${PAIRS:-100}"
        command+=" PERCENT=$SEALFLOW_BENCH_PERCENT PAIRS=$SEALFLOW_BENCH_PAIRS"
        folder=target/benchmarks
    fi

    step "build (optimised, some minutes the first time)"
    supervised cargo build --release -p sealflow-benchmarks
    # On its own, so that it has the features that it ships with and none of those that benchmarks ask for.
    supervised cargo build --release -p sealflow-cli
    # The enclave's worker, static, as it ships.
    scripts/build_enclave_worker.sh
    # After the build, which is load of its own.
    load="$(cut -d' ' -f1-3 /proc/loadavg 2>/dev/null || true)"
    started=$SECONDS
    step "measure"
    supervised target/release/sealflow-benchmarks ${sections[@]+"${sections[@]}"} || failed=1

    mkdir -p "$folder"
    python3 scripts/report.py bench "$SEALFLOW_REPORT" --seconds "$((SECONDS - started))" --failed "$failed" \
        --skipped "$SEALFLOW_SKIPPED" --command "$command" --load "$load" --folder "$folder/results"
    python3 benchmarks/plots.py "$folder/results" "$folder/plots"
    return "$failed"
}

main "$@"
