//! The catalogue as the core sees it: small objects under paths, created once and never changed.

use std::fmt;

use async_trait::async_trait;

/// A store of small objects with put-if-absent: a folder, a bucket prefix. The contract, which
/// [`conformance`](crate::keys::conformance) checks:
///
/// * paths are `/`-separated, relative, of `[A-Za-z0-9._#-]+` segments; no segment is `.` or `..`, and the last does
///   not end in `#` and digits (see [`check_path`]);
/// * objects have at most [`MAX_OBJECT`] bytes;
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

/// The largest object a catalogue takes or gives back, in bytes.
pub const MAX_OBJECT: usize = 1 << 20;

/// The longest path, in bytes.
const MAX_PATH: usize = 1024;

/// The longest segment of a path, in bytes: what file systems take, with room for a temporary suffix.
const MAX_SEGMENT: usize = 200;

/// Checks that `path` keeps the contract of [`Catalogue`]. Implementations call it before they touch a store,
/// so that no name from a policy or an envelope ever leaves the catalogue's folder.
pub fn check_path(path: &str) -> Result<(), CatalogueError> {
    let invalid = |reason: &str| CatalogueError::Invalid {
        path: shown(path),
        reason: reason.to_owned(),
    };
    if path.len() > MAX_PATH {
        return Err(invalid("the path is longer than 1,024 bytes"));
    }
    for segment in path.split('/') {
        if segment.is_empty() {
            return Err(invalid("a segment is empty"));
        }
        if segment == "." || segment == ".." {
            return Err(invalid("a segment is . or .."));
        }
        if segment.len() > MAX_SEGMENT {
            return Err(invalid("a segment is longer than 200 bytes"));
        }
        if !segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'#' | b'-'))
        {
            return Err(invalid("a segment has characters other than A-Z a-z 0-9 . _ # -"));
        }
    }
    // Such names are object_store's own: half-written files of a folder, which listings leave out.
    let suffix = path
        .rsplit('/')
        .next()
        .and_then(|name| name.split_once('#'))
        .map_or("", |(_, suffix)| suffix);
    if !suffix.is_empty() && suffix.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid("the name ends in # and digits"));
    }
    Ok(())
}

/// `path` as an error may show it: control characters escaped, cut to a length that fits a log line.
fn shown(path: &str) -> String {
    path.escape_debug().take(MAX_SEGMENT).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_leave_the_folder_are_refused() {
        let long = "a".repeat(MAX_SEGMENT + 1);
        for path in [
            "",
            "/",
            "/etc/passwd",
            "a//b",
            "a/",
            "../a",
            "a/../b",
            "a/./b",
            "a\\b",
            "a b",
            "a\0",
            "ä",
            "a:b",
            "a#1",
            "a/b#22",
            &long,
        ] {
            assert!(
                matches!(check_path(path), Err(CatalogueError::Invalid { .. })),
                "{path:?} was taken"
            );
        }
        for path in [
            "a",
            "policies/pay.ments#dead-letters/0000000001.jws",
            "keys/00ff/0",
            "...",
            "a/.b",
        ] {
            assert_eq!(check_path(path), Ok(()), "{path:?}");
        }
    }
}
