#!/usr/bin/env bash
# Installs what is missing, and nothing else. "build" is what a build needs (an error if it cannot be had);
# "test" are the real servers of the tests (named in the skip ledger if they cannot be had); "lint" are linters; "all" is all
# of these; "bench" are valgrind and the peers of the benchmarks (named in the same ledger).
# Says nothing and takes no time when all is there.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

KAFKA_POM="$ROOT/testbed/kafka/pom.xml"
REQUIREMENTS="$ROOT/testbed/requirements.txt"
PEERS="$ROOT/benchmarks/peers"
MINISTACK="$ROOT/testbed/ministack.txt"
SCHEMATHESIS="$ROOT/testbed/schemathesis.txt"
LAKE="$ROOT/testbed/lake/requirements.txt"
CLIENTS="$ROOT/samples/clients"
SECURE_FORM="$ROOT/samples/secure-form/requirements.txt"
# A download that hangs costs minutes, not the whole run.
APT_OPTIONS=(-q -y -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 -o Dpkg::Use-Pty=0)

main() {
    case "${1:-all}" in
        build) build_deps ;;
        test) test_deps ;;
        lint) lint_deps ;;
        bench) bench_deps ;;
        all) build_deps && test_deps && lint_deps && say "All dependencies are there." ;;
        *) fail "unknown tier: $1" "one of: build, test, lint, bench, all" ;;
    esac
}

# ---- what a build needs

build_deps() {
    have cargo || fail "cargo is missing" "install Rust from https://rustup.rs, then open a new shell"
    local packages
    packages="$(missing_build_packages)"
    [ -z "$packages" ] && return
    # shellcheck disable=SC2086 # a list of names
    install $packages || fail "the build needs these Debian packages: $packages" \
        "as root: apt-get install $packages" "or with sudo: sudo make deps" \
        "on other systems: a C and C++ compiler, make, pkg-config, OpenSSL and zlib headers, Python 3"
    packages="$(missing_build_packages)"
    [ -z "$packages" ] || fail "still missing after the installation: $packages"
}

# librdkafka is compiled with ./configure && make (its C++ wrapper too), and libFuzzer with a C++ compiler.
missing_build_packages() {
    local names=()
    have cc || names+=(gcc libc6-dev)
    have c++ || names+=(g++)
    have make || names+=(make)
    have python3 || names+=(python3)
    if have pkg-config; then
        pkg-config --exists openssl || names+=(libssl-dev)
        pkg-config --exists libcurl || names+=(libcurl4-openssl-dev)
        pkg-config --exists zlib || names+=(zlib1g-dev)
    else
        names+=(pkg-config libssl-dev libcurl4-openssl-dev zlib1g-dev)
    fi
    printf '%s' "${names[*]-}"
}

# ---- what the tests need beyond it

test_deps() {
    kafka_libs
    moto_venv
    python_venv ministack "$DEPS/ministack" "$MINISTACK" "MiniStack, an independent KMS with real RSA keys, from PyPI"
    python_venv schemathesis "$DEPS/schemathesis" "$SCHEMATHESIS" "schemathesis, a client by OpenAPI documents, from PyPI"
    python_venv lake "$DEPS/lake" "$LAKE" "PyArrow, Spark and DuckDB, other readers of encrypted Parquet, from PyPI (about 500 MB)"
    python_venv client-python "$DEPS/client-python" "$CLIENTS/python/requirements.txt" "joserfc, a JOSE library for Python, from PyPI"
    python_venv secure-form "$DEPS/secure-form" "$SECURE_FORM" "confluent-kafka, the Kafka client of the form's server, from PyPI"
    node_jose
    if ! { have chromium && have chromedriver; } && ! install chromium chromium-driver; then
        skip chromium "no Chromium with its driver on this machine: install chromium and chromium-driver"
    fi
    if ! have javac && ! install openjdk-17-jdk-headless && ! install default-jdk-headless; then
        skip javac "no Java compiler for Spark's KMS client: install openjdk-17-jdk-headless"
    fi
    if ! have kcat && ! install kcat; then
        skip kcat "no kcat on this machine: install the package kcat"
    fi
    arm
    miri
}

kafka_libs() {
    if ! java_17 && ! { install openjdk-17-jre-headless || install default-jre-headless; }; then
        skip apache-kafka "no Java 17 or newer: install openjdk-17-jre-headless"
        return
    fi
    java_17 || { skip apache-kafka "the Java on the path is older than 17"; return; }
    maven_libs apache-kafka "$DEPS/kafka" "$KAFKA_POM" "Apache Kafka from Maven Central (about 45 MB)"
}

# maven_libs NAME FOLDER POM WHAT: the jars that POM names, in FOLDER/libs.
maven_libs() {
    local name="$1" folder="$2" pom="$3"
    stamped "$folder" "$pom" && return
    if ! have mvn && ! install maven; then
        skip "$name" "no Maven to fetch it with: install the package maven"
        return
    fi
    say "Fetching $4…"
    rm -rf "$folder" && mkdir -p "$folder"
    if timeout 600 mvn -q -B -Dstyle.color=never -f "$pom" dependency:copy-dependencies \
        -DoutputDirectory="$folder/libs" -DincludeScope=runtime \
        -Daether.connector.connectTimeout=15000 -Daether.connector.requestTimeout=60000 \
        -Dmaven.wagon.http.connectionTimeout=15000 -Dmaven.wagon.rto=60000 </dev/null; then
        stamp "$folder" "$pom"
    else
        skip "$name" "Maven could not fetch it"
    fi
}

java_17() {
    local java="java" version
    if [ -n "${JAVA_HOME:-}" ]; then
        java="$JAVA_HOME/bin/java"
    fi
    version="$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)" || return 1
    [ -n "$version" ] && [ "$version" -ge 17 ]
}

moto_venv() { python_venv moto "$DEPS/venv" "$REQUIREMENTS" "moto, an independent KMS, from PyPI"; }

# python_venv NAME FOLDER REQUIREMENTS WHAT: a virtual environment with what REQUIREMENTS names.
python_venv() {
    local name="$1" folder="$2" requirements="$3"
    stamped "$folder" "$requirements" && return
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null && ! install python3-venv; then
        skip "$name" "Python cannot make a virtual environment: install python3-venv"
        return
    fi
    say "Fetching $4…"
    rm -rf "$folder"
    mkdir -p "$DEPS"
    if python3 -m venv "$folder" \
        && timeout 600 "$folder/bin/pip" install -q --disable-pip-version-check --timeout 30 --retries 2 \
            -r "$requirements" </dev/null; then
        stamp "$folder" "$requirements"
    else
        skip "$name" "pip could not fetch it"
    fi
}

# The sample's library, beside the other servers: the sample's own folder stays clean.
node_jose() {
    local folder="$DEPS/node-jose" lock="$CLIENTS/node/package-lock.json"
    stamped "$folder" "$lock" && return
    if ! have npm && ! install nodejs npm; then
        skip client-node "no Node with npm on this machine: install nodejs and npm"
        return
    fi
    node_20 || { skip client-node "the Node on the path is older than 20"; return; }
    say "Fetching jose, a JOSE library for Node, from npm…"
    rm -rf "$folder" && mkdir -p "$folder" && cp "$CLIENTS/node/package.json" "$lock" "$folder"
    if (cd "$folder" && timeout 300 npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null); then
        stamp "$folder" "$lock"
    else
        skip client-node "npm could not fetch it"
    fi
}

node_20() {
    local version
    version="$(node --version 2>/dev/null | sed -n 's/^v\([0-9]*\).*/\1/p')" || return 1
    [ -n "$version" ] && [ "$version" -ge 20 ]
}

# Compiler, C library and emulator for 64-bit Arm; nothing where the machine is one.
arm() {
    [ "$(uname -sm)" = "Linux x86_64" ] || return 0
    local names=()
    have aarch64-linux-gnu-gcc || names+=(gcc-aarch64-linux-gnu)
    [ -e /usr/aarch64-linux-gnu/lib/libc.so.6 ] || names+=(libc6-dev-arm64-cross)
    have qemu-aarch64 || names+=(qemu-user)
    [ "${#names[@]}" -eq 0 ] || install "${names[@]}" || say "not installed: ${names[*]}; the kernel is not tested for Arm"
    local target=aarch64-unknown-linux-gnu
    if have rustup && [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
        say "Fetching Rust's libraries for 64-bit Arm…"
        timeout 300 rustup target add "$target" </dev/null || say "not fetched: the kernel is not tested for Arm"
    fi
}

# Miri is part of nightly Rust alone; no other program here is built by it.
miri() {
    local nightly="${SEALFLOW_NIGHTLY:-nightly-2026-05-20}"
    have rustup || return 0
    RUSTUP_AUTO_INSTALL=0 cargo "+$nightly" miri --version >/dev/null 2>&1 && return
    say "Fetching a nightly Rust with Miri (about 150 MB)…"
    timeout 600 rustup toolchain install "$nightly" --profile minimal --component miri,rust-src </dev/null \
        || say "not fetched: the kernel is not looked at in Miri"
}

# ---- what the benchmarks compare with and count by

bench_deps() {
    if ! have valgrind && ! install valgrind; then
        skip instructions "no valgrind on this machine: install the package valgrind"
    fi
    python_venv tink-python "$DEPS/tink-python" "$PEERS/tink/requirements.txt" "Tink for Python from PyPI"
    if java_17; then
        maven_libs tink-java "$DEPS/tink-java" "$PEERS/tink/pom.xml" "Tink for Java from Maven Central"
        maven_libs kroxylicious "$DEPS/kroxylicious" "$PEERS/kroxylicious/pom.xml" "Kroxylicious from Maven Central (about 30 MB)"
    else
        skip tink-java "no Java 17 or newer: install openjdk-17-jdk-headless"
    fi
}

# ---- what lint needs beyond it: checks are skipped by name without it

lint_deps() {
    local requirements="$ROOT/docker/requirements.txt"
    if ! stamped "$DEPS/lint" "$requirements"; then
        say "Fetching linters for docker/ from PyPI…"
        rm -rf "$DEPS/lint"
        mkdir -p "$DEPS"
        if python3 -m venv "$DEPS/lint" >/dev/null 2>&1 \
            && timeout 300 "$DEPS/lint/bin/pip" install -q --disable-pip-version-check --only-binary :all: --timeout 30 \
                --retries 2 -r "$requirements" </dev/null; then
            stamp "$DEPS/lint" "$requirements"
        else
            rm -rf "$DEPS/lint"
        fi
    fi
    # Debian's Prometheus holds promtool; unpacked, since installing it would start a server.
    if ! have promtool && [ ! -x "$DEPS/promtool/usr/bin/promtool" ] && have apt-get && have dpkg-deb; then
        mkdir -p "$DEPS/promtool"
        (cd "$DEPS/promtool" && timeout 120 apt-get -qq download prometheus && dpkg-deb -x prometheus_*.deb .) \
            >/dev/null 2>&1 </dev/null || true
        rm -f "$DEPS"/promtool/*.deb
    fi
}

# ---- apt, and how we know that a folder is up to date

install() {
    if ! have apt-get; then
        return 1
    fi
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        # Without a password or a terminal to ask for it on, sudo cannot help.
        have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; } || return 1
        as_root=(sudo)
    fi
    say "Installing: $*"
    mkdir -p "$DEPS"
    # Package lists older than half a day may name files that the mirror no longer has.
    if [ -z "$(find "$DEPS/apt-updated" -mmin -720 2>/dev/null)" ]; then
        ${as_root[@]+"${as_root[@]}"} timeout 300 apt-get "${APT_OPTIONS[@]}" update >"$DEPS/apt.log" 2>&1 || { apt_failed; return 1; }
        touch "$DEPS/apt-updated"
    fi
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive timeout 600 \
        apt-get "${APT_OPTIONS[@]}" install --no-install-recommends "$@" </dev/null >"$DEPS/apt.log" 2>&1 || apt_failed
}

apt_failed() {
    tail -n 5 "$DEPS/apt.log" >&2
    return 1
}

digest() { python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }
stamp() { digest "$2" >"$1/.stamp"; }
stamped() { [ -e "$1/.stamp" ] && [ "$(cat "$1/.stamp")" = "$(digest "$2")" ]; }

main "$@"
