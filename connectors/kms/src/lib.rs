//! [`KeyService`](sealflow::keys::KeyService) on `aws-sdk-kms`: the client of AWS KMS and of everything that speaks
//! its protocol. It stores nothing and decides nothing.

mod admin;
mod client;
mod config;
mod credentials;
mod error;
mod presign;

pub use client::AwsKms;
pub use config::{KmsConfig, KmsConfigError, StaticCredentials};
pub use presign::PresignError;
