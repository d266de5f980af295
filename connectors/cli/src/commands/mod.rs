//! One file per subcommand: its arguments, and what it does with them.

mod access;
pub(crate) mod acl;
pub(crate) mod audit;
pub(crate) mod client;
pub(crate) mod completion;
pub(crate) mod demo;
pub(crate) mod dlq;
pub(crate) mod enclave;
pub(crate) mod init;
pub(crate) mod keys;
pub(crate) mod kms;
mod land;
pub(crate) mod open;
pub(crate) mod policy;
pub(crate) mod read;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod seal;
pub(crate) mod serve;
mod sidecar;
mod stream;
pub(crate) mod tables;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod validate;
pub(crate) mod version;
