//! The development KMS: an endpoint that speaks the AWS KMS JSON protocol, checks signatures, key policies and key
//! states, and keeps its keys in memory or wrapped in a folder.
//!
//! It is for development, demos and tests. It has no TLS, no audit log and no hardware: whoever can read its memory
//! has its keys. Clients are stock AWS clients with another endpoint.
//!
//! It rotates keys by schedule and on demand, keeping old material for decryption, and re-encrypts from one key to another.
//!
//! It makes symmetric keys, RSA keys for encryption (RSAES-OAEP with SHA-256) and HMAC keys (SHA-256), and data keys and RSA
//! data key pairs under symmetric ones. RSA private keys are used by aws-lc-rs alone (RUSTSEC-2023-0071).
//!
//! It signs nothing, has no IAM policies (a key policy's root principal speaks for everybody in the account) and no grants;
//! members of a request that it does not know are refused, never ignored.

pub mod blob;
mod config;
mod error;
mod faults;
mod http;
mod keys;
pub mod policy;
pub mod presigned;
mod server;
mod service;
pub mod sigv4;
mod vault;

pub use config::{ConfigError, Principal, ServerConfig};
pub use faults::{Failure, Fault};
pub use keys::{KeySpec, KeyState, UnknownKeySpec};
pub use server::{KeyError, RunningServer, Server, StartError};
pub use vault::{Unlock, VaultError};
