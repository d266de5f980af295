#!/usr/bin/env bash
# The kernel's tests for 64-bit Arm, on x86-64: compiled for it, and run by QEMU's user mode, which has AES and PMULL. The other side,
# AWS-LC, is compiled for Arm too. Where something of this cannot be had, the check is named as skipped.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

NAME=kernel-on-arm
TARGET=aarch64-unknown-linux-gnu
GNU=aarch64-linux-gnu
# Where Debian puts the C library of that machine.
LIBRARIES="/usr/$GNU"

main() {
    cd "$ROOT"
    mkdir -p "$LOGS"
    # One of the tests fails if this kernel is not there and taken.
    export SEALFLOW_KERNEL=neon
    if [ "$(uname -sm)" = "Linux aarch64" ]; then
        grep -qw aes /proc/cpuinfo && grep -qw pmull /proc/cpuinfo || stop "this processor has neither AES nor PMULL"
        check cargo test -p sealflow-kernel --lib
        return
    fi
    [ "$(uname -sm)" = "Linux x86_64" ] || stop "it needs Linux on 64-bit Arm, or on x86-64 with an emulator"
    [ -d "$(rustc --print sysroot)/lib/rustlib/$TARGET/lib" ] || stop "Rust has no libraries for it here: rustup target add $TARGET"
    have "$GNU-gcc" || stop "no C compiler for it on this machine: install gcc-aarch64-linux-gnu"
    [ -e "$LIBRARIES/lib/libc.so.6" ] || stop "no C library for it on this machine: install libc6-dev-arm64-cross"
    have qemu-aarch64 || stop "no emulator on this machine: install qemu-user"

    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER="$GNU-gcc"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L $LIBRARIES"
    check cargo test -p sealflow-kernel --lib --target "$TARGET"
}

check() {
    if supervised "$@"; then
        note ok ""
    else
        note failed "scripts/test_arm.sh"
        return 1
    fi
}

stop() {
    skip "$NAME" "$1"
    exit 0
}

# note VERDICT DETAIL: for the summary of `make test`.
note() { printf '%s\t%s\t%s\n' "$1" "$NAME" "$2" >>"$LOGS/checks.tsv"; }

main "$@"
