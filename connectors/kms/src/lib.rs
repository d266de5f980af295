//! [`KeyService`](sealflow::keys::KeyService) on `aws-sdk-kms`: the client of AWS KMS and of everything that speaks
//! its protocol, and the credentials that clients of AWS use. It stores nothing and decides nothing.

mod admin;
mod chain;
mod client;
mod client_keys;
mod config;
mod credentials;
mod error;
mod held;
mod presign;

pub use chain::{AwsChain, ChainConfig};
pub use client::AwsKms;
pub use config::{KmsConfig, KmsConfigError, StaticCredentials, is_endpoint, is_region};
pub use presign::PresignError;
