#!/usr/bin/env bash
# The kernels `avx2-vaes`, `avx2` and `portable` in Miri, an interpreter that sees every access to memory: one test of them, as it takes a
# second for what a processor does in a millisecond. It knows neither AVX-512 beyond some instructions nor the AES of Arm, whose kernel
# is the same code but for its lanes. Needs a nightly Rust; where there is none with Miri, the check is named as skipped.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

NAME=kernel-in-miri
NIGHTLY="${SEALFLOW_NIGHTLY:-nightly-2026-05-20}"
TEST=one_value_of_each_kind_is_sealed_and_opened_or_not
# Interpreted, whatever this machine is. Features that are compiled for are those that are detected.
TARGET=x86_64-unknown-linux-gnu
FEATURES="+avx2,+aes,+pclmulqdq,+vaes,+vpclmulqdq"
# The crate `aes` prepares keys by an instruction that Miri does not know.
FLAGS="-C target-feature=$FEATURES --cfg aes_backend=\"soft\""

# A toolchain that is missing is for scripts/deps.sh to install.
export RUSTUP_AUTO_INSTALL=0

main() {
    cd "$ROOT"
    mkdir -p "$LOGS"
    local log="$LOGS/miri.log"
    if ! { have rustup && cargo "+$NIGHTLY" miri --version >/dev/null 2>&1; }; then
        skip "$NAME" "no Miri on this machine: rustup toolchain install $NIGHTLY --profile minimal --component miri,rust-src"
        return
    fi
    # The test has to be there: a filter that nothing fits passes.
    if RUSTFLAGS="$FLAGS" supervised cargo "+$NIGHTLY" miri test -p sealflow-kernel --lib --target "$TARGET" -- "$TEST" >"$log" 2>&1 \
        && grep '^test result: ok\. 1 passed' "$log"; then
        note ok ""
    else
        tail -n 60 "$log" >&2
        note failed "scripts/test_miri.sh (see target/logs/miri.log)"
        return 1
    fi
}

# note VERDICT DETAIL: for the summary of `make test`.
note() { printf '%s\t%s\t%s\n' "$1" "$NAME" "$2" >>"$LOGS/checks.tsv"; }

main "$@"
