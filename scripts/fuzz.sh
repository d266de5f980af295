#!/usr/bin/env bash
# Builds every fuzz target with coverage instrumentation on stable Rust, and runs each for some seconds.
# usage: fuzz.sh SECONDS [TARGET…]
#
# A crash fails the run and names the input. Seeds are in fuzz/corpus/TARGET; what a run finds goes to
# target/fuzz-corpus/TARGET and is used again by the next.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

SECONDS_EACH="${1:-10}"
shift || true
HOST="$(rustc -vV | sed -n 's/^host: //p')"
REPORT="$LOGS/fuzz.tsv"
export CARGO_TARGET_DIR="$ROOT/target/fuzz"

# What cargo-fuzz passes, without its sanitizer, which only nightly has: edge counters, the table that names
# them, and compared values, so that libFuzzer learns magic bytes. Checks that release builds leave out are on.
# The flags apply to --target only, so that build scripts stay as they are.
INSTRUMENTED=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Ccodegen-units=1
    -Cdebug-assertions=on
    -Coverflow-checks=on
    --cfg fuzzing
)

main() {
    mkdir -p "$LOGS"
    : >"$REPORT"
    : >"$LOGS/fuzz-runs.jsonl"
    cd "$ROOT"
    local targets=("$@")
    if [ "${#targets[@]}" -eq 0 ]; then
        mapfile -t targets < <(find fuzz/fuzz_targets -name '*.rs' -printf '%f\n' 2>/dev/null | sed 's/\.rs$//' | sort)
    fi
    if [ "${#targets[@]}" -eq 0 ]; then
        skip fuzz "there are no targets in fuzz/fuzz_targets"
        return
    fi

    RUSTFLAGS="${INSTRUMENTED[*]}" supervised cargo build --manifest-path fuzz/Cargo.toml --bins --target "$HOST"

    local failed=0 width=0 name
    # As many at once as there are processors.
    local free
    free="$(nproc)"
    for name in "${targets[@]}"; do
        if [ "$width" -ge "$free" ]; then
            wait -n || failed=1
            width=$((width - 1))
        fi
        setsid "$ROOT/scripts/fuzz_one.sh" "$name" "$SECONDS_EACH" "$CARGO_TARGET_DIR/$HOST/debug/$name" "$REPORT" &
        CHILDREN+=("$!")
        width=$((width + 1))
    done
    while [ "$width" -gt 0 ]; do
        wait -n || failed=1
        width=$((width - 1))
    done
    return "$failed"
}

main "$@"
