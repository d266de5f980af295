//! One object of a store as a file that is read in pieces.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _};
use sealflow::table::{FileSource, SourceError};

use crate::error::{StorageError, meaning};
use crate::place::{Listed, Place};

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
        let meta = store.head(&path).await.map_err(|error| source_error(&error))?;
        Ok(Self {
            store,
            path,
            size: meta.size,
        })
    }

    /// An object of a place, as its listing told.
    ///
    /// # Errors
    /// [`SourceError::Invalid`] for paths that its store does not take.
    pub fn in_place(place: &Place, listed: &Listed) -> Result<Self, SourceError> {
        let path = Path::parse(&listed.path).map_err(|_| SourceError::Invalid {
            reason: "its path is none that the store takes".to_owned(),
        })?;
        Ok(Self::listed(place.store(), path, listed.size))
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
        bytes.map_err(|error| source_error(&error))
    }
}

fn source_error(error: &Error) -> SourceError {
    match meaning(error, "") {
        StorageError::NotFound { .. } | StorageError::NoBucket { .. } => SourceError::NotFound,
        StorageError::NotPermitted { .. } => SourceError::NotPermitted,
        StorageError::Unavailable { reason, .. } => SourceError::Unavailable { reason },
        StorageError::Invalid { reason, .. } => SourceError::Invalid { reason },
        error @ (StorageError::Location(_) | StorageError::Options(_)) => SourceError::Invalid {
            reason: error.to_string(),
        },
    }
}
