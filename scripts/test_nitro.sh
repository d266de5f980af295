#!/usr/bin/env bash
# Boots enclave images in QEMU's nitro-enclave machine, compares what its NSM reports with what the build computed, and sends a column
# through its vsock to the worker and back. Writes benchmarks/results/nitro-DATE.json. A part that cannot be had on this machine is
# named as skipped.
#
# No package has a QEMU with this machine (it needs libcbor), so a minimal one is built from Debian's sources once: three minutes on
# two idle cores, kept in .deps/qemu-nitro. It translates (TCG), so no KVM is needed.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
end_on_exit

NITRO="$DEPS/qemu-nitro"
# What the kernel of Debian has as modules and the enclave needs, in this order; the NSM's driver comes last by itself.
MODULES=(drivers/virtio/virtio_mmio net/vmw_vsock/vsock net/vmw_vsock/vmw_vsock_virtio_transport_common
    net/vmw_vsock/vmw_vsock_virtio_transport)
DEBIAN=http://deb.debian.org/debian
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# Version 0.3 of the Rust registry, with its own lock file.
VSOCK_DEVICE=0.3.0
# What boots in the machine.
PROGRAMS="$ROOT/target/enclave/nitro"

main() {
    cd "$ROOT"
    [ "$(uname -sm)" = "Linux x86_64" ] || stop "QEMU's nitro-enclave machine is built on x86-64 Linux only"
    kernel || stop "no kernel of Debian's backports: it needs apt-get, dpkg-deb, xz and the Debian archive's keyring"
    qemu || stop "no QEMU with the machine nitro-enclave could be built (see .deps/qemu-nitro/*.log)"
    vsock_device || stop "vhost-device-vsock could not be built (see .deps/qemu-nitro/vsock.log)"
    step "build"
    programs
    supervised cargo test "${CARGO_ALL[@]}" --test nitro --no-run
    step "boot"
    local started=$SECONDS failed=0
    export SEALFLOW_NITRO="$NITRO" SEALFLOW_NITRO_PROGRAMS="$PROGRAMS" SEALFLOW_REPORT="$LOGS/nitro-numbers.jsonl"
    mkdir -p "$LOGS"
    machine >"$SEALFLOW_REPORT"
    : >"$SEALFLOW_SKIPPED"
    supervised cargo test "${CARGO_ALL[@]}" --test nitro -- --nocapture --test-threads=1 || failed=1
    python3 scripts/report.py nitro "$SEALFLOW_REPORT" --seconds "$((SECONDS - started))" --failed "$failed" \
        --skipped "$SEALFLOW_SKIPPED" --command "make test-nitro"
    return "$failed"
}

# What runs beside our own code, as a line of the report.
machine() {
    local qemu
    qemu="$("$NITRO/qemu-system-x86_64" --version | sed -n '1s/^QEMU emulator version //p')"
    printf '{"name": "machine", "qemu": "%s", "accelerator": "tcg", "vhost_device_vsock": "%s", "kernel": "%s"}\n' \
        "$qemu" "$VSOCK_DEVICE" "$(cat "$NITRO/boot/release")"
}

stop() {
    skip nitro-enclave "$1"
    exit 0
}

# apt with lists and sources of its own: nothing of the system changes.
own_apt() {
    mkdir -p "$NITRO"/apt/{lists,cache,etc}/partial
    apt-get -q -y -o "Dir::State::lists=$NITRO/apt/lists" -o "Dir::Cache=$NITRO/apt/cache" \
        -o "Dir::Etc::sourcelist=$NITRO/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o APT::Sandbox::User=root -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@"
}

own_apt_update() {
    [ -e "$NITRO/apt/updated" ] && return
    have apt-get && have dpkg-deb && have xz && [ -e "$KEYRING" ] || return 1
    say "Reading the lists of Debian…"
    mkdir -p "$NITRO/apt"
    cat >"$NITRO/apt/sources.list" <<LIST
deb-src [signed-by=$KEYRING] $DEBIAN trixie main
deb-src [signed-by=$KEYRING] $DEBIAN trixie-updates main
deb [signed-by=$KEYRING] $DEBIAN bookworm main
deb [signed-by=$KEYRING] $DEBIAN bookworm-backports main
LIST
    own_apt update >"$NITRO/apt.log" 2>&1 && touch "$NITRO/apt/updated"
}

# The kernel, its modules uncompressed, and the firmware that QEMU's microvm starts with.
kernel() {
    [ -e "$NITRO/boot/.complete" ] && return
    own_apt_update || return 1
    local release unpacked="$NITRO/unpacked" module
    release="$(apt-cache -o "Dir::State::lists=$NITRO/apt/lists" -o "Dir::Etc::sourcelist=$NITRO/apt/sources.list" \
        -o "Dir::Cache=$NITRO/apt/cache" -o Dir::Etc::sourceparts=/dev/null search --names-only '^linux-image-6\.[0-9.]*\+deb12[.0-9]*-cloud-amd64$' \
        | cut -d' ' -f1 | sort -V | tail -n 1)"
    [ -n "$release" ] || return 1
    say "Fetching $release…"
    rm -rf "$unpacked" "$NITRO/boot"
    mkdir -p "$unpacked" "$NITRO/boot/firmware"
    (cd "$unpacked" && own_apt download "$release" seabios qemu-system-data >>"$NITRO/apt.log" 2>&1) || return 1
    for module in "$unpacked"/*.deb; do dpkg-deb -x "$module" "$unpacked" || return 1; done
    cp "$unpacked"/boot/vmlinuz-* "$NITRO/boot/bzImage"
    cp "$unpacked/usr/share/seabios/bios-microvm.bin" "$unpacked/usr/share/qemu/"{linuxboot_dma.bin,kvmvapic.bin} "$NITRO/boot/firmware/"
    for module in "${MODULES[@]}" drivers/misc/nsm; do
        xz --decompress --stdout "$unpacked"/lib/modules/*/kernel/"$module".ko.xz >"$NITRO/boot/${module##*/}.ko" || return 1
    done
    (for module in "${MODULES[@]}"; do printf '%s\n' "${module##*/}.ko"; done) >"$NITRO/boot/modules"
    printf '%s\n' "${release#linux-image-}" >"$NITRO/boot/release"
    rm -rf "$unpacked"
    touch "$NITRO/boot/.complete"
}

qemu() {
    if [ -x "$NITRO/qemu-system-x86_64" ] && "$NITRO/qemu-system-x86_64" -M help 2>/dev/null | grep -q nitro-enclave; then
        return
    fi
    own_apt_update || return 1
    local header
    for header in libcbor glib-2.0 gnutls libfdt; do
        if ! have pkg-config || ! { pkg-config --exists "$header" || [ -e "/usr/include/$header.h" ]; }; then
            say "missing for QEMU: $header (apt-get install libcbor-dev libglib2.0-dev libgnutls28-dev libfdt-dev pkg-config ninja-build dpkg-dev)"
            return 1
        fi
    done
    have ninja && have dpkg-source || { say "missing for QEMU: ninja-build, dpkg-dev"; return 1; }
    say "Building a minimal QEMU…"
    rm -rf "$NITRO/source" "$NITRO/build" "$NITRO"/qemu_*
    (cd "$NITRO" && own_apt source --download-only qemu) >"$NITRO/apt-source.log" 2>&1 || return 1
    dpkg-source --no-check -x "$NITRO"/qemu_*.dsc "$NITRO/source" >"$NITRO/unpack.log" 2>&1 || return 1
    # Its build system is no longer in Debian's archive of it, and that of Debian 12 is too old.
    python3 -m venv "$NITRO/meson" && "$NITRO/meson/bin/pip" install -q --disable-pip-version-check 'meson==1.8.2' setuptools wheel \
        >"$NITRO/meson.log" 2>&1 || return 1
    printf '%s=%s\n' CONFIG_PCI_DEVICES n CONFIG_NITRO_ENCLAVE y CONFIG_VIRTIO_RNG y \
        >"$NITRO/source/configs/devices/x86_64-softmmu/nitro.mak"
    mkdir "$NITRO/build"
    (cd "$NITRO/build" && ../source/configure --python="$NITRO/meson/bin/python" --target-list=x86_64-softmmu \
        --without-default-features --without-default-devices --with-devices-x86_64=nitro \
        --enable-system --enable-tcg --enable-kvm --enable-gnutls --enable-fdt=system --enable-vhost-user --enable-libcbor \
        --disable-docs --disable-install-blobs) >"$NITRO/configure.log" 2>&1 || return 1
    supervised nice -n 10 ninja -C "$NITRO/build" qemu-system-x86_64 >"$NITRO/build.log" 2>&1 || return 1
    cp "$NITRO/build/qemu-system-x86_64" "$NITRO/"
    rm -rf "$NITRO/source" "$NITRO/build" "$NITRO/meson" "$NITRO"/qemu_*
    "$NITRO/qemu-system-x86_64" -M help | grep -q nitro-enclave
}

vsock_device() {
    [ -x "$NITRO/bin/vhost-device-vsock" ] && return
    say "Building vhost-device-vsock $VSOCK_DEVICE…"
    supervised nice -n 10 cargo install --locked --version "=$VSOCK_DEVICE" --root "$NITRO" --target-dir "$NITRO/vsock-target" \
        vhost-device-vsock >"$NITRO/vsock.log" 2>&1 || return 1
    rm -rf "$NITRO/vsock-target"
}

# Static: the init; the guest that stands in for the worker; the worker, and the worker for emulators, which takes a software NSM from
# outside. No image for real enclaves has the latter.
programs() {
    local target=target/enclave/x86_64-unknown-linux-gnu
    mkdir -p "$PROGRAMS"
    RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols" supervised cargo build --quiet --release --locked \
        -p sealflow-enclave-init --bin sealflow-enclave-init --example guest --target x86_64-unknown-linux-gnu --target-dir target/enclave
    cp "$target/release/sealflow-enclave-init" "$target/release/examples/guest" "$PROGRAMS/"
    supervised scripts/build_enclave_worker.sh --tests nitro,dev-software-nsm
    cp "$target/debug/sealflow-enclave-worker" "$PROGRAMS/sealflow-enclave-worker-dev"
    # Last, so that the tests of every day find theirs as it was.
    supervised scripts/build_enclave_worker.sh --tests
    cp "$target/debug/sealflow-enclave-worker" "$PROGRAMS/sealflow-enclave-worker"
}

main "$@"
