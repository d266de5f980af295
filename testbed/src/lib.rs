//! Real servers for the tests: Apache Kafka, moto, the local KMS.
