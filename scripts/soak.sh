#!/usr/bin/env bash
# The long tests. Writes benchmarks/results/soak-DATE.json.
# usage: soak.sh [PART…]      parts, all of them without arguments:
#
#   exactly-once  one broker: SOAK_RECORDS (a million) sealed and opened under SOAK_KILLS (20) kills
#   landing       one broker and a bucket that fails: SOAK_RECORDS landed in encrypted Parquet under SOAK_KILLS kills
#   faults        three brokers behind fault proxies: SOAK_FAULT_RECORDS (a million), SOAK_FAULT_KILLS (100), broker
#                 restarts, moved leaders, frozen instances, a KMS outage of SOAK_OUTAGE_SECS (120), a full disk;
#                 SEALFLOW_FAULT_SEED draws it all
#   hostile       messages of SOAK_MESSAGE_MIB (100)
#   tables        a table of SOAK_TABLE_MIB (10240) of records written and read in bounded memory
#   enclave       the enclave's programs built twice, in two folders: the same bytes; and SOAK_ENCLAVE_RECORDS (200,000) through
#                 a worker that is killed SOAK_KILLS times
#   fuzz          SOAK_FUZZ_SECONDS (300) of each target that is short of its goal, added up over sessions and commits
#                 in benchmarks/results/fuzz-tally.json
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

FUZZ_SECONDS="${SOAK_FUZZ_SECONDS:-300}"
TALLY="benchmarks/results/fuzz-tally.json"
# Each long test may write its own numbers, one JSON object per line: {"name": …, …}.
export SEALFLOW_REPORT="$LOGS/soak-numbers.jsonl"

FAILED=0

main() {
    local parts=("$@") part
    [ "${#parts[@]}" -gt 0 ] || parts=(exactly-once landing faults hostile tables enclave fuzz)
    for part in "${parts[@]}"; do
        case "$part" in
            exactly-once | landing | faults | hostile | tables | enclave | fuzz) ;;
            *) fail "no such part: $part" "scripts/soak.sh names them" ;;
        esac
    done
    mkdir -p "$LOGS"
    rm -f "$LOGS/fuzz.tsv"
    : >"$SEALFLOW_REPORT"
    : >"$SEALFLOW_SKIPPED"
    "$ROOT/scripts/deps.sh" build
    "$ROOT/scripts/deps.sh" test
    cd "$ROOT"
    local started=$SECONDS

    step "build"
    supervised cargo test "${CARGO_ALL[@]}" --test topic --test landing --test faults --test table_memory --test enclave --no-run
    for part in "${parts[@]}"; do
        "part_${part//-/_}"
    done

    python3 scripts/report.py soak "$SEALFLOW_REPORT" --seconds "$((SECONDS - started))" --failed "$FAILED" \
        --fuzz "$LOGS/fuzz.tsv" --skipped "$SEALFLOW_SKIPPED" --command "scripts/soak.sh ${parts[*]}"
    return "$FAILED"
}

part_exactly_once() {
    # The test that `make test` runs with 100,000 records and three kills.
    export SEALFLOW_E2E_RECORDS="${SOAK_RECORDS:-1000000}" SEALFLOW_E2E_KILLS="${SOAK_KILLS:-20}"
    step "$SEALFLOW_E2E_RECORDS records, $SEALFLOW_E2E_KILLS kills, one broker"
    supervised cargo test "${CARGO_ALL[@]}" --test topic -- exactly_once --nocapture || FAILED=1
}

part_landing() {
    export SEALFLOW_LANDING_RECORDS="${SOAK_RECORDS:-1000000}" SEALFLOW_LANDING_KILLS="${SOAK_KILLS:-20}"
    step "$SEALFLOW_LANDING_RECORDS records into a bucket that fails, $SEALFLOW_LANDING_KILLS kills"
    supervised cargo test "${CARGO_ALL[@]}" --test landing -- every_record_lands_once_in_a_bucket --nocapture || FAILED=1
}

part_faults() {
    export SEALFLOW_FAULT_RECORDS="${SOAK_FAULT_RECORDS:-1000000}" SEALFLOW_FAULT_KILLS="${SOAK_FAULT_KILLS:-100}"
    export SEALFLOW_FAULT_OUTAGE_SECS="${SOAK_OUTAGE_SECS:-120}"
    step "$SEALFLOW_FAULT_RECORDS records, $SEALFLOW_FAULT_KILLS kills, every fault, three brokers"
    supervised cargo test "${CARGO_ALL[@]}" --test faults -- --ignored --nocapture || FAILED=1
}

part_hostile() {
    # Brokers hold a message several times over, too.
    export SEALFLOW_FAULT_MESSAGE_MIB="${SOAK_MESSAGE_MIB:-100}" SEALFLOW_FAULT_HEAP_MIB=1536
    step "messages of $SEALFLOW_FAULT_MESSAGE_MIB MiB"
    supervised cargo test "${CARGO_ALL[@]}" --test faults -- hostile --nocapture || FAILED=1
    unset SEALFLOW_FAULT_HEAP_MIB
}

part_tables() {
    # The test that `make test` runs with 2 GiB.
    export SEALFLOW_TABLE_MIB="${SOAK_TABLE_MIB:-10240}"
    step "a table of $SEALFLOW_TABLE_MIB MiB of records"
    supervised cargo test "${CARGO_ALL[@]}" --test table_memory -- --nocapture || FAILED=1
}

part_enclave() {
    step "the enclave's programs, built twice"
    supervised scripts/build_enclave_worker.sh --twice || FAILED=1
    # The test that `make test` runs with 20,000 records and three kills.
    export SEALFLOW_ENCLAVE_RECORDS="${SOAK_ENCLAVE_RECORDS:-200000}" SEALFLOW_ENCLAVE_KILLS="${SOAK_KILLS:-20}"
    step "$SEALFLOW_ENCLAVE_RECORDS records, $SEALFLOW_ENCLAVE_KILLS kills of the enclave's worker"
    supervised cargo test "${CARGO_ALL[@]}" --test enclave -- a_worker_that_is_killed --nocapture || FAILED=1
}

part_fuzz() {
    local targets
    mapfile -t targets < <(python3 scripts/fuzz_tally.py left "$TALLY")
    if [ "${#targets[@]}" -eq 0 ]; then
        say "every fuzz target has reached its goal"
        return
    fi
    step "fuzz, $FUZZ_SECONDS s each: ${targets[*]}"
    supervised scripts/fuzz.sh "$FUZZ_SECONDS" "${targets[@]}" || FAILED=1
    # What ran counts, also beside a target that failed.
    python3 scripts/fuzz_tally.py add "$TALLY" "$LOGS/fuzz-runs.jsonl"
}

main "$@"
