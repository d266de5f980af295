#!/usr/bin/env bash
# Everything that can be judged without running a test. All checks run; the last lines name those that failed.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

SEALFLOW_SKIPPED="$ROOT/target/skipped-lint.txt" # a ledger of this run alone
FAILED=()
NOT_RUN=()

main() {
    "$ROOT/scripts/deps.sh" build
    cd "$ROOT"
    mkdir -p "$(dirname "$SEALFLOW_SKIPPED")"
    : >"$SEALFLOW_SKIPPED"
    local started=$SECONDS

    check format cargo fmt --all --check
    check format-of-fuzz-targets cargo fmt --manifest-path fuzz/Cargo.toml --check
    check clippy cargo clippy --keep-going "${CARGO_ALL[@]}" --all-targets -- -D warnings
    # The core alone, as clients and the enclave worker will link it.
    check core-alone cargo check -p sealflow
    check trees scripts/check_trees.sh
    RUSTDOCFLAGS="-Dwarnings" check documentation cargo doc "${CARGO_ALL[@]}" --no-deps --lib
    check files python3 scripts/check_files.py
    check docker scripts/check_docker.sh
    optional shell shellcheck -x -S warning scripts/*.sh docker/compose/*.sh .ci/run
    optional licences-and-advisories scripts/check_deny.sh

    step "lint: $((SECONDS - started)) s"
    local name
    for name in ${NOT_RUN[@]+"${NOT_RUN[@]}"}; do say "skipped: $name"; done
    while read -r name; do say "skipped: $name"; done <"$SEALFLOW_SKIPPED"
    for name in ${FAILED[@]+"${FAILED[@]}"}; do say "failed: $name"; done
    [ "${#FAILED[@]}" -eq 0 ] || exit 1
    say "ok"
}

check() {
    local name="$1"
    shift
    step "$name"
    supervised "$@" || FAILED+=("$name")
}

# A check by a tool that is not part of Rust: skipped by name where the tool is missing.
optional() {
    local name="$1" tool="$2"
    [ "$tool" = scripts/check_deny.sh ] && tool=cargo-deny
    if have "$tool"; then
        check "$@"
    else
        NOT_RUN+=("$name (no $tool on this machine)")
    fi
}

main "$@"
