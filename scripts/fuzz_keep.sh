#!/usr/bin/env bash
# Keeps what fuzzing has found: adds to fuzz/corpus/TARGET the small inputs that reach code which the inputs there do
# not reach. Run after a long session, and check the result in.
# usage: fuzz_keep.sh [TARGET…]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

LARGEST=512
HOST="$(rustc -vV | sed -n 's/^host: //p')"

targets=("$@")
[ "${#targets[@]}" -gt 0 ] || mapfile -t targets < <(find fuzz/fuzz_targets -name '*.rs' -printf '%f\n' | sed 's/\.rs$//' | sort)
for name in "${targets[@]}"; do
    binary="target/fuzz/$HOST/debug/$name"
    [ -x "$binary" ] || fail "$name is not built" "scripts/fuzz.sh 1 $name"
    [ -d "target/fuzz-corpus/$name" ] || continue
    mkdir -p "fuzz/corpus/$name"
    before="$(find "fuzz/corpus/$name" -type f | wc -l)"
    "$binary" -set_cover_merge=1 -max_len="$LARGEST" "fuzz/corpus/$name" "target/fuzz-corpus/$name" \
        >"$LOGS/fuzz-keep-$name.log" 2>&1 || fail "$name: the merge failed" "see $LOGS/fuzz-keep-$name.log"
    after="$(find "fuzz/corpus/$name" -type f | wc -l)"
    say "$name: $before inputs, now $after"
done
