//! Kafka: exactly-once topic transforms on rdkafka.
