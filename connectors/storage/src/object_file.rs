//! One object of a store as a file that is read in pieces.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _};
use sealflow::table::{FileSource, SourceError};

/// An object that is read in pieces: a file of a folder, an object of a bucket.
#[derive(Clone, Debug)]
pub struct ObjectFile {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
}

impl ObjectFile {
    /// The object at `path`, whose size is asked for once.
    ///
    /// # Errors
    /// [`SourceError`] if it is not there or may not be read.
    pub async fn open(store: Arc<dyn ObjectStore>, path: Path) -> Result<Self, SourceError> {
        let meta = store.head(&path).await.map_err(|error| meaning(&error))?;
        Ok(Self {
            store,
            path,
            size: meta.size,
        })
    }

    /// As [`ObjectFile::open`], of an object whose size a listing told.
    #[must_use]
    pub fn listed(store: Arc<dyn ObjectStore>, path: Path, size: u64) -> Self {
        Self { store, path, size }
    }
}

#[async_trait]
impl FileSource for ObjectFile {
    fn size(&self) -> u64 {
        self.size
    }

    async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        let bytes = self.store.get_range(&self.path, range).await;
        bytes.map_err(|error| meaning(&error))
    }
}

fn meaning(error: &Error) -> SourceError {
    match error {
        Error::NotFound { .. } => SourceError::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => SourceError::NotPermitted,
        _ => match io_kind(error) {
            Some(std::io::ErrorKind::NotFound) => SourceError::NotFound,
            Some(std::io::ErrorKind::PermissionDenied) => SourceError::NotPermitted,
            Some(kind) => SourceError::Unavailable {
                reason: kind.to_string(),
            },
            None => SourceError::Unavailable {
                reason: "the object store failed".to_owned(),
            },
        },
    }
}

/// The operating system's error below `error`, if there is one.
fn io_kind(error: &Error) -> Option<std::io::ErrorKind> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        source = error.source();
    }
    None
}
