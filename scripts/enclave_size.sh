#!/usr/bin/env bash
# What an enclave worker consists of: crates, our own lines, bytes. docs/threat-model.md ("What is in the worker") quotes it.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TARGET="$(uname -m)-unknown-linux-gnu"
cd "$ROOT"

# crates EDGES: packages that are linked (normal) or only build it (build), each version once.
crates() {
    cargo tree --locked -p sealflow-enclave-worker --features nitro --target "$TARGET" --edges "$1" --prefix none --format '{p}' 2>/dev/null \
        | sed 's/ (.*//' | sort -u
}

# lines FOLDER…: neither blank nor a comment, up to the tests of a file; files of tests are left out.
lines() {
    find "$@" -name '*.rs' ! -path '*/tests/*' ! -path '*/testing/*' ! -path '*/bin/*' ! -name '*test*.rs' -print0 \
        | xargs -0 awk 'FNR == 1 { tests = 0 } /^#\[cfg\(test\)\]/ { tests = 1 } !tests && !/^[[:space:]]*(\/\/|$)/ { n++ } END { print n + 0 }'
}

linked="$(crates normal | wc -l)"
say "crates that are linked: $linked (of them ours: $(crates normal | grep -c '^sealflow'))"
say "crates that only build it: $(comm -13 <(crates normal) <(crates normal,build) | wc -l)"
say "direct dependencies: $(cargo tree --locked -p sealflow-enclave-worker --features nitro --target "$TARGET" --edges normal --depth 1 --prefix none --format '{p}' \
    | sed 's/ .*//' | sort -u | grep -vc '^sealflow-enclave-worker$')"
say "our lines, enclave/worker: $(lines enclave/worker/src)"
say "our lines, enclave/protocol: $(lines enclave/protocol/src)"
say "our lines, connectors/kms: $(lines connectors/kms/src)"
say "our lines, kernel: $(lines kernel/src)"
# Without what no feature of the worker compiles.
say "our lines, the core: $(($(lines src) - $(lines src/table src/columns/arrow src/columns/indexed.rs src/keys/conformance)))"
for program in sealflow-enclave-worker sealflow-enclave-init; do
    file="target/enclave/$TARGET/release/$program"
    [ -e "$file" ] && say "$program, optimised and static: $(stat -c %s "$file") bytes"
done
exit 0
