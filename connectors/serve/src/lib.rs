//! The reading service: proves who asks, opens what the ACL of each proven label lets them see, writes down every
//! decision before it answers. Policies, keys, clock and audit log are handed in; what is opened and what is masked the
//! core decides ([`sealflow::pipeline::Reader`]).
//!
//! Without the feature `server` there is only what reads requests ([`api`]): no HTTP, no TLS, no runtime.

#[cfg(feature = "server")]
mod answer;
pub mod api;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
mod enclave_keys;
#[cfg(feature = "server")]
pub mod identity;
#[cfg(feature = "server")]
mod limits;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
mod open;
#[cfg(feature = "server")]
pub mod openapi;
pub mod problem;
#[cfg(feature = "server")]
mod published;
#[cfg(feature = "server")]
mod refusals;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod service;
#[cfg(feature = "server")]
mod timed;
#[cfg(feature = "server")]
mod worker;

#[cfg(feature = "server")]
pub use config::{ConfigError, IdentityConfig, LimitsConfig, OidcConfig, StsConfig};
#[cfg(feature = "server")]
pub use enclave_keys::PublishedEnclaveKeys;
#[cfg(feature = "server")]
pub use metrics::Metrics;
#[cfg(feature = "server")]
pub use open::{MOST_READERS, Opening};
#[cfg(feature = "server")]
pub use published::PublishedKeys;
#[cfg(feature = "server")]
pub use sealflow_tls::{Certificate, TlsConfig, TlsError};
#[cfg(feature = "server")]
pub use server::{ServeError, Server};
#[cfg(feature = "server")]
pub use service::{Parts, Service};
#[cfg(feature = "server")]
pub use worker::{AsksForCallers, ForCaller, Vouched};
