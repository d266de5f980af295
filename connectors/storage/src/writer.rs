//! One object, written piece by piece: a draft in a folder, parts in a bucket. Memory is bounded, and what is dropped unfinished
//! never appears.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use sealflow::keys::Put;

use crate::bucket::Bucket;
use crate::draft::Draft;
use crate::error::{StorageError, meaning};
use crate::folder::generic;
use crate::parts::PartsWriter;
use crate::place::cancelled;

/// Pieces are gathered to this many bytes before the disk is asked.
const GATHERED: usize = 1 << 20;

/// An object in the making. Dropped, or aborted, it never appears; what it took is given back as far as that can be done (an
/// abort that fails is left to [`Place::clean_leftovers`](crate::Place::clean_leftovers)). After an error only that is left to do.
pub struct ObjectWriter {
    path: String,
    written: u64,
    inner: Inner,
}

enum Inner {
    Folder(FolderWriter),
    Bucket(PartsWriter),
    /// An error ended it.
    Failed,
}

struct FolderWriter {
    draft: Draft,
    gathered: Vec<Bytes>,
    bytes: usize,
}

impl fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("path", &self.path)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl ObjectWriter {
    pub(crate) fn in_folder(path: &str, draft: Draft) -> Self {
        let writer = FolderWriter {
            draft,
            gathered: Vec::new(),
            bytes: 0,
        };
        Self::new(path, Inner::Folder(writer))
    }

    pub(crate) fn in_bucket(path: &str, bucket: Arc<Bucket>, key: Path, size_hint: Option<u64>) -> Self {
        Self::new(path, Inner::Bucket(PartsWriter::new(bucket, key, size_hint)))
    }

    fn new(path: &str, inner: Inner) -> Self {
        Self {
            path: path.to_owned(),
            written: 0,
            inner,
        }
    }

    /// The object's path in its place.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes of it that are in memory.
    #[must_use]
    pub fn buffered(&self) -> u64 {
        let bytes = match &self.inner {
            Inner::Folder(writer) => writer.bytes,
            Inner::Bucket(writer) => writer.buffered(),
            Inner::Failed => 0,
        };
        bytes as u64
    }

    /// Appends. Waits while more parts are on their way than memory is there for.
    ///
    /// # Errors
    /// [`StorageError`]; the object is lost then.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        let len = bytes.len() as u64;
        // Put back only if it went well: whoever drops this future, too, cannot go on with half of it.
        let next = match std::mem::replace(&mut self.inner, Inner::Failed) {
            Inner::Folder(writer) => writer.write(&self.path, bytes).await.map(Inner::Folder),
            Inner::Bucket(mut writer) => match writer.write(bytes).await {
                Ok(()) => Ok(Inner::Bucket(writer)),
                Err(error) => {
                    writer.abort().await;
                    Err(meaning(&error, &self.path))
                }
            },
            Inner::Failed => Err(self.failed()),
        };
        self.inner = next?;
        self.written += len;
        Ok(())
    }

    /// Makes the object appear, durably and whole, unless there is one: [`Put::Exists`] then, and nothing of ours is left.
    ///
    /// After an error that [`is_retryable`](StorageError::is_retryable) a bucket may have it, or have it later; a new writer finds out.
    ///
    /// # Errors
    /// [`StorageError`]
    pub async fn finish(self) -> Result<Put, StorageError> {
        match self.inner {
            Inner::Folder(writer) => writer.finish(&self.path).await,
            Inner::Bucket(writer) => writer.finish().await.map_err(|error| meaning(&error, &self.path)),
            Inner::Failed => Err(self.failed()),
        }
    }

    /// Gives up.
    pub async fn abort(self) {
        match self.inner {
            Inner::Folder(writer) => drop(tokio::task::spawn_blocking(move || drop(writer)).await),
            Inner::Bucket(writer) => writer.abort().await,
            Inner::Failed => (),
        }
    }

    fn failed(&self) -> StorageError {
        StorageError::Unavailable {
            path: self.path.clone(),
            reason: "an earlier write failed".to_owned(),
        }
    }
}

impl FolderWriter {
    async fn write(mut self, path: &str, bytes: Bytes) -> Result<Self, StorageError> {
        self.bytes += bytes.len();
        self.gathered.push(bytes);
        if self.bytes < GATHERED {
            return Ok(self);
        }
        let flushed = tokio::task::spawn_blocking(move || self.flush().map(|()| self)).await;
        let flushed = flushed.map_err(|_| cancelled(path))?;
        flushed.map_err(|error| meaning(&generic(error), path))
    }

    async fn finish(mut self, path: &str) -> Result<Put, StorageError> {
        let finished = tokio::task::spawn_blocking(move || self.flush().and_then(|()| self.draft.publish())).await;
        let finished = finished.map_err(|_| cancelled(path))?;
        finished.map_err(|error| meaning(&generic(error), path))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.bytes = 0;
        for piece in self.gathered.drain(..) {
            self.draft.write(&piece)?;
        }
        Ok(())
    }
}
