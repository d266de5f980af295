#!/usr/bin/env bash
# Proves by `cargo tree` what may be linked into what (DESIGN section 3).
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

BROKEN=0

# forbid TITLE PATTERN CARGO-TREE-ARGUMENTS…: no crate of the tree may match.
forbid() {
    local title="$1" pattern="$2" tree hits
    shift 2
    # Not in a pipe: a `cargo tree` that fails must not look like an empty tree.
    tree="$(cargo tree --prefix none --format '{p}' "$@")"
    hits="$(printf '%s\n' "$tree" | cut -d' ' -f1 | sort -u | grep -E "^($pattern)\$" || true)"
    if [ -n "$hits" ]; then
        printf 'broken: %s, but there is: %s\n' "$title" "$(tr '\n' ' ' <<<"$hits")"
        BROKEN=1
    else
        say "ok: $title"
    fi
}

NETWORK='rdkafka.*|aws-(config|credential|runtime|sdk|sig|smithy|types).*|object_store|hyper|reqwest|axum|rustls|openssl.*|native-tls'
# All but the enclave's protocol, which does no I/O either.
CONNECTORS='sealflow-(audit|benchmarks|cli|client|enclave-host|enclave-worker|kafka|kms|local-kms|samples|serve|storage|testbed)'

forbid "the core, as it is linked by default, has no Arrow, no network and no files" \
    "arrow.*|parquet|aws-.*|$NETWORK|$CONNECTORS|sealflow-enclave-protocol" -p sealflow -e normal,build
forbid "the core with every feature has no network and no connector" \
    "$NETWORK|$CONNECTORS" -p sealflow -e normal,build --all-features
forbid "what seals topics links no Parquet: only tables do" \
    "parquet" -p sealflow -e normal,build --features pipeline,identity
forbid "the core's own tests need no connector" "$CONNECTORS" -p sealflow -e all --all-features
forbid "the key service client has no Arrow and no Kafka" "arrow.*|rdkafka.*" -p sealflow-kms -e normal,build
forbid "what a worker in a TEE asks KMS with has no sockets, no chain of credentials, no STS and no roots of the machine" \
    "aws-config|aws-sdk-s.*|aws-smithy-http-client|rustls-(native-certs|platform-verifier)|openssl-probe|hyper-(util|rustls)|mio|socket2|arrow.*|rdkafka.*" \
    -p sealflow-kms --no-default-features -e normal,build
forbid "places and the catalogue in them need no Arrow, no Parquet and no Kafka" \
    "arrow.*|parquet|rdkafka.*" -p sealflow-storage -e normal,build
forbid "storage of tables has no Kafka" "rdkafka.*" -p sealflow-storage -e normal,build --all-features
forbid "what clients link has no Kafka, no Arrow and no server" \
    "rdkafka.*|arrow.*|parquet|hyper.*|aws-(sdk|config|smithy).*" -p sealflow-client -e normal,build
forbid "the development KMS is no part of the client" "aws-(sdk|config|smithy|sig|runtime|types|credential).*|rdkafka.*|arrow.*" -p sealflow-local-kms -e normal,build
forbid "what only parses requests of the development KMS has no keys and no server" \
    "aws-.*|argon2|hyper.*|tokio-.*" -p sealflow-local-kms --no-default-features -e normal,build
forbid "the reading service has no Kafka and no AWS client" "rdkafka.*|aws-sdk.*|aws-config" -p sealflow-serve -e normal,build
forbid "what only reads requests of the reading service has no server and no TLS" \
    "hyper.*|.*rustls|aws-.*|tokio-rustls" -p sealflow-serve --no-default-features -e normal,build
forbid "the first program of an enclave links little more than the kernel's interface" \
    "sealflow|sealflow-enclave-(host|protocol|worker)|serde.*|tokio.*|aws-.*|vsock" -p sealflow-enclave-init -e normal,build

forbid "the enclave worker has no Arrow, no Parquet, no Kafka, no storage, no server and nothing that asks its machine for roots or credentials" \
    "arrow.*|parquet|rdkafka.*|object_store|axum|reqwest|hyper-(util|rustls)|openssl.*|native-tls|rcgen|aws-config|aws-sdk-s.*|aws-smithy-http-client|rustls-(native-certs|platform-verifier)|sealflow-(audit|cli|client|enclave-host|kafka|local-kms|serve|storage|testbed)" \
    -p sealflow-enclave-worker --features nitro -e normal
forbid "the enclave worker walks records byte by byte" "sealflow-json-index" -p sealflow-enclave-worker --features nitro -e normal
forbid "what host and worker say to each other needs no cryptography, no CBOR and no certificates unless asked for" \
    "aws-.*|.*webpki.*|rcgen|minicbor|serde|$NETWORK" -p sealflow-enclave-protocol -e normal,build
forbid "what opens released keys has no certificates" "rcgen|.*webpki.*|minicbor|serde" -p sealflow-enclave-protocol --features cms -e normal,build
forbid "what verifies evidence makes none" "rcgen" -p sealflow-enclave-protocol --features attestation,cms -e normal,build

# RUSTSEC-2023-0071: the rsa crate may verify and seal, and never sign or decrypt; those go through aws-lc-rs. The in-memory
# KMS and the contract of key services are for tests, and what is released has neither.
users="$(cargo tree --workspace --all-features --prefix depth --format '{p}' -e normal,build -i rsa | sed -n 's/^1\([^ ]*\).*/\1/p' | sort -u | tr '\n' ' ')"
rooms="$(grep -rlP '(?<!::)\brsa::' --include='*.rs' src connectors samples testbed benchmarks | sort | tr '\n' ' ')"
private="$(grep -rnP '(?<!::)\brsa::.*(PrivateKey|SigningKey|DecryptingKey|hazmat|\*)|RsaPrivateKey' --include='*.rs' src connectors samples testbed | grep -vE "^src/keys/(conformance|testing)/client_keys.rs:" || true)"
released="$(cargo tree -p sealflow-cli --prefix none --format '{p} {f}' -e normal,build | grep -E '^sealflow v.*[ ,]testing(,|$| )' || true)"
if [ "$users" != "sealflow " ] || [ "$rooms" != "src/jose/jwks.rs src/jose/rsa.rs src/keys/conformance/client_keys.rs src/keys/testing/client_keys.rs " ] \
    || [ -n "$private" ] || [ -n "$released" ]; then
    printf 'broken: private-key operations never use the rsa crate, but it is used by %s, in %s %s %s\n' "$users" "$rooms" "$private" "$released"
    BROKEN=1
else
    say "ok: private-key operations never use the rsa crate (RUSTSEC-2023-0071): only src/jose/{jwks,rsa}.rs use it, to verify and to seal, and tests"
fi
forbid "what has no tokens to check links no RSA" "rsa|p256|roxmltree" -p sealflow -e normal,build

forbid "what is released has no failpoints" "fail" -p sealflow-cli -e normal,build

# A release for real enclaves is built without default features: nothing in it may believe a development root.
believing="$(cargo tree -p sealflow-cli --no-default-features --prefix none --format '{p} {f}' -e normal,build | grep -E 'dev-software-nsm' | sort -u | tr '\n' ' ' || true)"
if [ -n "$believing" ]; then
    printf 'broken: without default features there is what believes a development root: %s\n' "$believing"
    BROKEN=1
else
    say "ok: without default features nothing believes a development root"
fi

versions="$(cargo tree --workspace --all-features --prefix none --format '{p}' -e normal | grep -oE '^arrow-array v[^ ]+' | sort -u | wc -l)"
if [ "$versions" -gt 1 ]; then
    say "broken: more than one version of Arrow"
    BROKEN=1
else
    say "ok: one version of Arrow"
fi
exit "$BROKEN"
