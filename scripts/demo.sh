#!/usr/bin/env bash
# Builds the command and runs its demonstration.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

say "This builds the sealflow command (the first time some minutes: librdkafka, the AWS client and the"
say "cryptography are compiled, nothing is installed outside this folder), then seals and opens 100,000 log"
say "records with an embedded Kafka and an embedded KMS (less than a minute). No account, no server."
"$ROOT/scripts/deps.sh" build
cd "$ROOT"

step "build"
started=$SECONDS
# The whole workspace is named so that dependencies get the same features as in `make test`, which then has
# nothing to compile again; only what this one binary needs is built.
cargo build --workspace --bin sealflow
# The worker of the enclave, static, as the tests build it.
if scripts/build_enclave_worker.sh --tests; then
    set -- --enclave-worker "$ROOT/target/enclave/$(uname -m)-unknown-linux-gnu/debug/sealflow-enclave-worker" "$@"
else
    say "The enclave's worker does not build here, so the demo leaves it out."
fi
say "built in $((SECONDS - started)) s"

step "demo"
exec "$ROOT/target/debug/sealflow" demo "$@"
