#!/usr/bin/env bash
# Builds the programs of the enclave, static and alone: the worker, and the init that starts it on Nitro. The same sources and the
# same Rust are the same bytes, in whatever folder.
# usage: build_enclave_worker.sh [--twice | --tests [FEATURES]]
#
# --twice   builds everything a second time from a copy of the sources in another folder, and compares
# --tests   builds the worker that tests put into images, quickly: lightly optimised, and with paths of this machine in it. Other
#           features than nitro are for emulators
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

# On x86-64 Linux or on 64-bit Arm: glibc links statically on both.
TARGET="$(uname -m)-unknown-linux-gnu"
PROGRAMS=(sealflow-enclave-worker sealflow-enclave-init)
# One worker for both tiers: it takes a Nitro enclave's own NSM wherever there is one.
FEATURES=(nitro "")
OUT="$ROOT/target/enclave"

main() {
    case "${1:-}" in
        "") build "$ROOT" "$OUT" ;;
        --twice) twice ;;
        --tests)
            for_tests "${2:-nitro}"
            return
            ;;
        *) fail "unknown argument: $1" "scripts/build_enclave_worker.sh, or with --twice or --tests" ;;
    esac
    local program file
    for program in "${PROGRAMS[@]}"; do
        file="$OUT/$TARGET/release/$program"
        # The worker was only a library at first.
        [ -e "$file" ] || continue
        static "$file"
        say "$(sha256sum "$file" | cut -d' ' -f1)  ${file#"$ROOT"/}  $(stat -c %s "$file") bytes"
    done
}

# build SOURCES OUT: alone (-p), so that no other crate's features change what is linked.
build() {
    local sources="$1" out="$2" rust home
    rust="$(rustc --print sysroot)"
    home="${CARGO_HOME:-$HOME/.cargo}"
    # No path of this machine is in the programs: not that of the sources, of Cargo's home, nor of Rust.
    # Random numbers come from the system call itself: a static program cannot look it up by name.
    local flags="-C target-feature=+crt-static -C strip=symbols -C codegen-units=1 --cfg getrandom_backend=\"linux_getrandom\""
    flags+=" --remap-path-prefix=$out=target --remap-path-prefix=$sources=. --remap-path-prefix=$home=cargo --remap-path-prefix=$rust=rust"
    # C in dependencies writes its paths too.
    (
        cd "$sources"
        unset CARGO_BUILD_RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_DIR
        export RUSTFLAGS="$flags" CARGO_INCREMENTAL=0 SOURCE_DATE_EPOCH=0 LC_ALL=C TZ=UTC
        export CFLAGS="-ffile-prefix-map=$out=target -ffile-prefix-map=$sources=. -ffile-prefix-map=$home=cargo"
        # Separately: together, what one of them asks of a dependency the other would get too.
        for number in "${!PROGRAMS[@]}"; do
            supervised cargo build --quiet --release --locked -p "${PROGRAMS[number]}" --features "${FEATURES[number]}" \
                --target "$TARGET" --target-dir "$out"
        done
    )
}

# for_tests FEATURES: into target/enclave/TARGET/debug.
for_tests() {
    (
        cd "$ROOT"
        unset CARGO_BUILD_RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_DIR
        export RUSTFLAGS="-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\""
        supervised cargo build --quiet --locked -p sealflow-enclave-worker --bin sealflow-enclave-worker --features "$1" \
            --target "$TARGET" --target-dir "$OUT"
    )
}

static() {
    if LC_ALL=C readelf --program-headers --wide "$1" | grep -q INTERP; then
        fail "$1 is not static"
    fi
    if grep -q -F -e "$ROOT" -e "${CARGO_HOME:-$HOME/.cargo}" "$1"; then
        fail "$1 has a path of this machine in it"
    fi
}

twice() {
    local elsewhere program
    elsewhere="$(mktemp -d)"
    # shellcheck disable=SC2064 # now, not later
    trap "rm -rf '$elsewhere'; end_children" EXIT
    build "$ROOT" "$OUT"
    # What Git knows of, as it is now.
    (cd "$ROOT" && git ls-files -z -co --exclude-standard | xargs -0 cp --parents -t "$elsewhere" 2>/dev/null) || true
    build "$elsewhere" "$elsewhere/target/enclave"
    for program in "${PROGRAMS[@]}"; do
        [ -e "$OUT/$TARGET/release/$program" ] || continue
        cmp "$OUT/$TARGET/release/$program" "$elsewhere/target/enclave/$TARGET/release/$program" \
            || fail "$program differs when it is built in another folder"
        say "the same in two folders: $program"
    done
}

main "$@"
