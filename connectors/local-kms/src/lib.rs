//! The development KMS: an endpoint that speaks the AWS KMS JSON protocol, checks signatures, key policies and key
//! states, and keeps its keys in memory or wrapped in a folder.
//!
//! It is for development, demos and tests. It has no audit log and no hardware: whoever can read its memory has its keys.
//! Clients are stock AWS clients with another endpoint. It speaks TLS if it is given a certificate.
//!
//! It rotates keys by schedule and on demand, keeping old material for decryption, and re-encrypts from one key to another.
//!
//! It makes symmetric keys, RSA keys for encryption (RSAES-OAEP with SHA-256) and HMAC keys (SHA-256), and data keys and RSA
//! data key pairs under symmetric ones. RSA private keys are used by aws-lc-rs alone (RUSTSEC-2023-0071).
//!
//! It takes `Recipient` as AWS KMS does: the attestation document is verified in full, key policies see its measurements
//! (`kms:RecipientAttestation:ImageSha384`, `kms:RecipientAttestation:PCR<n>`), and plaintext is given only sealed to the key
//! in it. AWS's root is believed; one for development only by the feature `dev-software-nsm` and a file that names it.
//!
//! It signs nothing, has no IAM policies (a key policy's root principal speaks for everybody in the account) and no grants;
//! members of a request that it does not know are refused, never ignored.
//!
//! Without the feature `server` there are only the parsers of what callers send: no keys, no HTTP, no runtime.

// What only the server calls is there for nobody then.
#![cfg_attr(not(feature = "server"), allow(dead_code))]

pub mod blob;
#[cfg(feature = "server")]
mod config;
#[cfg(feature = "server")]
mod error;
#[cfg(feature = "server")]
mod faults;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod keys;
pub mod policy;
pub mod presigned;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod service;
pub mod sigv4;
#[cfg(feature = "server")]
mod vault;

#[cfg(feature = "server")]
pub use config::{ConfigError, Principal, ServerConfig};
#[cfg(feature = "server")]
pub use faults::{Failure, Fault};
#[cfg(feature = "server")]
pub use keys::{KeySpec, KeyState, UnknownKeySpec};
#[cfg(feature = "server")]
pub use sealflow_tls::{TlsConfig, TlsError};
#[cfg(feature = "server")]
pub use server::{KeyError, RunningServer, Server, StartError};
#[cfg(feature = "server")]
pub use vault::{Unlock, VaultError};
