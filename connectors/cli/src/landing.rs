//! Landing put together: a place as a store of files, and editions of the newest policy.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sealflow::keys::Put;
use sealflow::pipeline::{StopKind, TransformError};
use sealflow::table::landing::{Edition, FileDraft, FileStore, Landing, StoreError, TableEdition, claims_of};
use sealflow::table::{Claims, FileSource, SourceError, TableError};
use sealflow_storage::{ObjectWriter, Place, StorageError};

use crate::reload::Reloading;

/// A place as a store of files.
pub(crate) struct PlaceFiles(pub(crate) Place);

struct Draft(ObjectWriter);

struct Stored {
    place: Place,
    path: String,
    size: u64,
}

#[async_trait]
impl FileStore for PlaceFiles {
    async fn begin(&self, path: &str) -> Result<Box<dyn FileDraft>, StoreError> {
        match self.0.writer(path, None).await {
            Ok(writer) => Ok(Box::new(Draft(writer))),
            Err(error) => Err(store_error(&error)),
        }
    }

    async fn open(&self, path: &str) -> Result<Option<Box<dyn FileSource>>, StoreError> {
        let size = self.0.size(path).await.map_err(|error| store_error(&error))?;
        Ok(size.map(|size| {
            Box::new(Stored {
                place: self.0.clone(),
                path: path.to_owned(),
                size,
            }) as Box<dyn FileSource>
        }))
    }
}

#[async_trait]
impl FileDraft for Draft {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.0.write(bytes).await.map_err(|error| draft_error(&error))
    }

    fn buffered(&self) -> u64 {
        self.0.buffered()
    }

    async fn finish(self: Box<Self>) -> Result<Put, StoreError> {
        self.0.finish().await.map_err(|error| draft_error(&error))
    }
}

#[async_trait]
impl FileSource for Stored {
    fn size(&self) -> u64 {
        self.size
    }

    async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        self.place
            .read_range(&self.path, range)
            .await
            .map_err(|error| match error {
                StorageError::NotFound { .. } => SourceError::NotFound,
                StorageError::NotPermitted { .. } => SourceError::NotPermitted,
                other => SourceError::Unavailable {
                    reason: other.to_string(),
                },
            })
    }
}

/// Of a draft: one that somebody has cleaned away is made again.
fn draft_error(error: &StorageError) -> StoreError {
    let mut meant = store_error(error);
    if matches!(error, StorageError::NotFound { .. }) {
        meant.kind = None;
    }
    meant
}

fn store_error(error: &StorageError) -> StoreError {
    let kind = match error {
        error if error.is_retryable() => None,
        StorageError::NotPermitted { .. } => Some(StopKind::NotPermitted),
        _ => Some(StopKind::Config),
    };
    StoreError {
        reason: error.to_string(),
        help: error.help().to_owned(),
        kind,
    }
}

/// Where a pipeline lands, under the newest policy.
pub(crate) struct Lander {
    pub(crate) editions: Arc<Reloading<TableEdition>>,
    pub(crate) store: Arc<dyn FileStore>,
}

#[async_trait]
impl Landing for Lander {
    async fn edition(&self) -> Result<Arc<dyn Edition>, TransformError> {
        Ok(self.editions.newest().await?)
    }

    async fn claims(&self, path: &str) -> Result<Option<Claims>, TransformError> {
        let Some(file) = self.store.open(path).await? else {
            return Ok(None);
        };
        match claims_of(&*file).await {
            Ok(claims) => Ok(Some(claims)),
            Err(TableError::Source(SourceError::NotFound)) => Ok(None),
            Err(error) if error.is_retryable() => Err(TransformError::Retry {
                reason: format!("{path}: {error}"),
            }),
            Err(error) => Err(TransformError::Stop {
                kind: StopKind::Data,
                reason: format!("{path}: {error}"),
                help: "another file stands where one of this pipeline belongs: find out who put it there, and take it away".to_owned(),
            }),
        }
    }
}
