#!/bin/sh
# Makes the source topic once, with the sample records in it.
set -eu

bin=/opt/kafka/bin
if "$bin/kafka-topics.sh" --bootstrap-server kafka:9092 --list | grep -qx payments; then
    echo "the topic is there already"
    exit 0
fi
"$bin/kafka-topics.sh" --bootstrap-server kafka:9092 --create --topic payments --partitions 6 --replication-factor 1
"$bin/kafka-console-producer.sh" --bootstrap-server kafka:9092 --topic payments </samples/records.ndjson
