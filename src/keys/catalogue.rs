//! The catalogue as the core sees it: small objects under paths, created once and never changed.

use std::fmt;

use async_trait::async_trait;

/// A store of small objects with put-if-absent: a folder, a bucket prefix. The contract, which
/// [`conformance`](crate::keys::conformance) checks:
///
/// * paths are `/`-separated, relative, of `[A-Za-z0-9._#-]+` segments; no segment is `.` or `..`;
/// * `put_if_absent` is atomic and durable: of two concurrent calls for one path exactly one returns
///   [`Put::Created`], and once it has, every `get` everywhere sees those bytes;
/// * objects are never changed; only `delete`, which no pipeline calls, removes them.
#[async_trait]
pub trait Catalogue: Send + Sync + fmt::Debug {
    /// The object at `path`, or `None`.
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, CatalogueError>;

    /// Creates the object at `path` unless there is one.
    async fn put_if_absent(&self, path: &str, bytes: &[u8]) -> Result<Put, CatalogueError>;

    /// Full paths of all objects below the folder `prefix` (no trailing slash), in no order.
    async fn list(&self, prefix: &str) -> Result<Vec<String>, CatalogueError>;
}

/// How a `put_if_absent` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is there now, with our bytes.
    Created,
    /// Another object was there before; nothing was written.
    Exists,
}

/// Why the catalogue did not answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CatalogueError {
    /// The store cannot be reached, or is full.
    #[error("the catalogue cannot be reached: {reason}")]
    Unavailable {
        /// What happened.
        reason: String,
    },
    /// The store refuses us.
    #[error("the catalogue refuses access to {path}")]
    NotPermitted {
        /// The object.
        path: String,
    },
    /// A path that breaks the contract, or an object over the cap.
    #[error("not a catalogue object: {path}: {reason}")]
    Invalid {
        /// The object.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl CatalogueError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
