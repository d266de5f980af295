#!/usr/bin/env bash
# Draws where the time of a section of the benchmarks goes, as a flame graph.
# usage: flame.sh SECTION OUT.svg [BELOW]
#   BELOW        only what a function whose name contains this calls; "SealTransform::apply": our side of `transform`, without its peers
#   TITLE=…      heading of the picture, SECTION by default
#   BINARY=…     another build than that of this tree, to compare with
#   PAIRS=3      pairs of each comparison
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

SECTION="${1:?usage: flame.sh SECTION OUT.svg [BELOW]}" OUT="${2:?usage: flame.sh SECTION OUT.svg [BELOW]}" BELOW="${3:-}"
TMP="$ROOT/target/tmp"

have perf || fail "flame.sh needs perf" "install linux-perf, or what your system calls it"
cd "$ROOT"
if [ -z "${BINARY:-}" ]; then
    supervised cargo build --release -p sealflow-benchmarks --bin sealflow-benchmarks
    BINARY=target/release/sealflow-benchmarks
fi
mkdir -p "$TMP"
# The clock of the kernel, which virtual machines have too. Release builds have no frame pointers: stacks are unwound by the
# tables that panics need.
SEALFLOW_BENCH_PAIRS="${PAIRS:-3}" supervised perf record --event cpu-clock:u --freq 499 --call-graph dwarf,16384 \
    --output "$TMP/perf.data" "$BINARY" "$SECTION" >/dev/null
perf script --input "$TMP/perf.data" --no-inline --fields ip,sym 2>/dev/null |
    python3 benchmarks/flame.py "$OUT" "${TITLE:-$SECTION}" "$BELOW"
rm -f "$TMP/perf.data"
