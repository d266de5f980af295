//! Data keys: where they come from, how long they live, and the envelopes that carry them.

pub mod catalogue;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod service;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use catalogue::{Catalogue, CatalogueError, MAX_OBJECT, Put, check_path};
pub use service::{EncryptionContext, GeneratedKey, KeyDescription, KeyService, KeyServiceError};
