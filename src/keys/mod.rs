//! Data keys: where they come from, how long they live, and the envelopes that carry them.

pub mod catalogue;
pub mod service;

pub use catalogue::{Catalogue, CatalogueError, Put};
pub use service::{EncryptionContext, GeneratedKey, KeyDescription, KeyService, KeyServiceError};
