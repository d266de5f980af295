# syntax=docker/dockerfile:1
# An enclave image (EIF) for AWS Nitro: the worker built alone and static, with AWS's kernel and init. What comes out is one file.
#
#   docker build -f docker/enclave.Dockerfile --build-context configuration=FOLDER --output type=local,dest=. .
#
# FOLDER holds worker.yaml, the measured configuration. Writes worker.eif and measurements.json. Same sources, same configuration,
# same base images, same package of AWS: same measurements. Pin the bases by digest, and the package by version, for releases.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BLOBS_IMAGE=public.ecr.aws/amazonlinux/amazonlinux:2023

FROM ${BLOBS_IMAGE} AS blobs
# The version is what the base image's release has; it is measured as PCR1.
# hadolint ignore=DL3041
RUN dnf install --assumeyes aws-nitro-enclaves-cli-devel \
    && dnf clean all

FROM ${RUST_IMAGE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake libcurl4-openssl-dev libssl-dev pkg-config python3 zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ENV CARGO_INCREMENTAL=0 \
    CARGO_TERM_COLOR=never \
    SOURCE_DATE_EPOCH=0
RUN scripts/build_enclave_worker.sh \
    && cargo build --release --locked --package sealflow-cli
COPY --from=blobs /usr/share/nitro_enclaves/blobs /blobs
# A build context, not a stage.
# hadolint ignore=DL3022
COPY --from=configuration worker.yaml /configuration/worker.yaml
RUN mkdir /out \
    && target/release/sealflow enclave build /configuration/worker.yaml --tier nitro --blobs /blobs \
        --worker "target/enclave/$(uname -m)-unknown-linux-gnu/release/sealflow-enclave-worker" \
        --out /out/worker.eif --output json > /out/measurements.json

FROM scratch
COPY --from=build /out/ /
