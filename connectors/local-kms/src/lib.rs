//! The development KMS: an endpoint that speaks the AWS KMS JSON protocol.
