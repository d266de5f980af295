#!/usr/bin/env bash
# Runs one fuzz target and appends its verdict to a report: "ok|failed, name, detail", tabs between; and what it ran to
# target/logs/fuzz-runs.jsonl, for the tally.
# usage: fuzz_one.sh NAME SECONDS BINARY REPORT
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
NAME="$1" SECONDS_EACH="$2" BINARY="$3" REPORT="$4"

LOG="$LOGS/fuzz-$NAME.log"
FOUND="$ROOT/target/fuzz-corpus/$NAME"
SEEDS="$ROOT/fuzz/corpus/$NAME"
CRASHES="$ROOT/target/fuzz-crashes/$NAME/"
DICTIONARY="$ROOT/fuzz/dictionaries/$NAME.dict"

verdict() {
    printf '%s\t%s\t%s\n' "$1" "fuzz $NAME" "$2" >>"$REPORT"
    printf "%-6s fuzz %s: %s\n" "$1" "$NAME" "$2"
}

mkdir -p "$FOUND" "$CRASHES" "$LOGS"
options=(-max_total_time="$SECONDS_EACH" -timeout=10 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1
    -artifact_prefix="$CRASHES")
corpora=("$FOUND")
[ -d "$SEEDS" ] && corpora+=("$SEEDS")
[ -e "$DICTIONARY" ] && options+=(-dict="$DICTIONARY")

status=0
TIMEFORMAT='%U %S'
cpu="$({ time "$BINARY" "${options[@]}" "${corpora[@]}" >"$LOG" 2>&1; } 2>&1)" || status=$?

runs="$(sed -n 's/^stat::number_of_executed_units: *//p' "$LOG")"
printf '{"target": "%s", "executions": %d, "cpu_seconds": %.2f}\n' "$NAME" "${runs:-0}" "$(awk '{ print $1 + $2 }' <<<"$cpu")" \
    >>"$LOGS/fuzz-runs.jsonl"
counters="$(sed -n 's/.*Loaded [0-9]* modules *(\([0-9]*\) inline 8-bit counters).*/\1/p' "$LOG" | head -n 1)"
covered="$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$LOG" | tail -n 1)"
if [ "$status" -ne 0 ]; then
    grep -avE '^#[0-9]+|^INFO|^stat::' "$LOG" | tail -n 60
    input="$(sed -n 's/.*Test unit written to //p' "$LOG" | tail -n 1)"
    verdict failed "exit code $status, input ${input:-none}, log target/logs/fuzz-$NAME.log"
    exit 1
fi
# Without counters libFuzzer only throws random bytes: that would look like success.
if [ "${counters:-0}" -lt 100 ] || [ "${covered:-0}" -lt 10 ]; then
    verdict failed "not instrumented (${counters:-0} counters, ${covered:-0} covered)"
    exit 1
fi
verdict ok "${runs:-?} runs, $covered of $counters edges covered"
