//! [`KeyService`](sealflow::keys::KeyService) on `aws-sdk-kms`: the client of AWS KMS and of everything that speaks
//! its protocol, and the credentials that clients of AWS use. It stores nothing and decides nothing.
//!
//! With the feature `chain` (on by default) it is [`AwsKms`], with the AWS chain of credentials and the system's network. Without
//! it only [`AttestedKms`] is left, for a program in a TEE: it has no network, files or environment of its own.

mod answer;
mod arn;
mod attested;
mod error;
mod held;
pub mod https;

#[cfg(feature = "chain")]
mod admin;
#[cfg(feature = "chain")]
mod chain;
#[cfg(feature = "chain")]
mod client;
#[cfg(feature = "chain")]
mod client_keys;
#[cfg(feature = "chain")]
mod config;
#[cfg(feature = "chain")]
mod credentials;
#[cfg(feature = "chain")]
mod presign;

pub use arn::{ArnPatternError, ArnPatterns, is_region};
pub use attested::{AttestedKms, AttestedKmsConfig, AttestedKmsConfigError, Handed, HandedCredentials};
#[cfg(feature = "chain")]
pub use chain::{AwsChain, ChainConfig};
#[cfg(feature = "chain")]
pub use client::AwsKms;
#[cfg(feature = "chain")]
pub use config::{KmsConfig, KmsConfigError, StaticCredentials, is_endpoint};
#[cfg(feature = "chain")]
pub use presign::PresignError;
