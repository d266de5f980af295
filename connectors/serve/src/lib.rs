//! The reading service: proves who asks, opens what the ACL of each proven label lets them see, writes down every
//! decision before it answers. Policies, keys, clock and audit log are handed in; what is opened and what is masked the
//! core decides ([`sealflow::pipeline::Reader`]).

pub mod api;
pub mod config;
pub mod identity;
mod limits;
pub mod metrics;
mod open;
pub mod openapi;
pub mod problem;
mod refusals;
mod server;
mod service;
mod timed;
mod tls;

pub use config::{ConfigError, IdentityConfig, LimitsConfig, OidcConfig, StsConfig, TlsConfig};
pub use metrics::Metrics;
pub use open::{MOST_READERS, Opening};
pub use server::{ServeError, Server};
pub use service::{Parts, Service};
pub use tls::{Certificate, TlsError};
