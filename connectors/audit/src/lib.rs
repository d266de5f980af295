//! Audit logs in files, on standard output, and wherever a [`LineSink`] takes them. It makes no lines
//! ([`sealflow::audit::Journal`] does) and knows no Kafka.

mod config;
mod file;
mod shared;
mod writer;

pub use config::{AuditConfig, To};
pub use shared::SharedLog;
pub use writer::LineSink;
