#!/bin/sh
# First start: looks at the topic, makes the local KMS's key, an owner key, a signed policy and a pipeline. Later starts do
# nothing. What is in these volumes is for development; nothing of it belongs in production.
set -eu

[ -e /work/pipeline.yaml ] && { echo "the pipeline is there already"; exit 0; }
sealflow init --brokers kafka:9092 --topic payments --folder /work --local-kms /work/local-kms
# The admin port is reached from outside the container; compose.yaml publishes it on the host's loopback only.
sed 's/^admin: .*/admin: { listen: 0.0.0.0:9464 }/' /work/pipeline.yaml >/work/pipeline.new
mv /work/pipeline.new /work/pipeline.yaml
