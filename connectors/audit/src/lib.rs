//! Audit logs in files and on standard output. It makes no lines ([`sealflow::audit::Journal`] does) and knows no Kafka.

mod config;
mod file;
mod writer;

pub use config::{AuditConfig, To};
