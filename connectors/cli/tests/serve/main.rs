//! The reading service: real TLS, real KMS and STS protocols, tokens of an issuer that rotates its keys.
#![allow(clippy::unwrap_used, clippy::panic)]

mod auditing;
mod bench;
#[path = "../common/certificate.rs"]
mod certificate;
mod client;
mod hostile;
mod https;
#[path = "../common/issuer.rs"]
mod issuer;
mod opening;
mod refusals;
mod revocation;
mod schemathesis;
