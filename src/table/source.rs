//! Where the bytes of a file come from: a folder, a bucket, memory.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use super::SourceError;

/// A file that can be read in pieces. It does not change while it is read.
#[async_trait]
pub trait FileSource: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// The bytes of `range`, which lies within its size.
    async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError>;
}

/// A file in memory.
#[async_trait]
impl FileSource for Bytes {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        let index = |at: u64| usize::try_from(at).ok().filter(|at| *at <= self.len());
        match (index(range.start), index(range.end)) {
            (Some(start), Some(end)) if start <= end => Ok(self.slice(start..end)),
            _ => Err(SourceError::Unavailable {
                reason: "it ends before".to_owned(),
            }),
        }
    }
}
