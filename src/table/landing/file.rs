//! Files on their way into a store: what a store must be able to do, and what a file at a place says without keys.

use async_trait::async_trait;
use bytes::Bytes;

use super::error::StoreError;
use crate::keys::Put;
use crate::pipeline::{Record, TransformError};
use crate::table::footer::Tail;
use crate::table::material::Material;
use crate::table::{Claims, FileSource, Origin, TableError};

/// A place of objects that appear whole, once, and are never replaced: a folder, a part of a bucket.
#[async_trait]
pub trait FileStore: Send + Sync {
    /// Begins the object at `path`. It is seen by nobody before it is [finished](FileDraft::finish), and never if it is dropped.
    async fn begin(&self, path: &str) -> Result<Box<dyn FileDraft>, StoreError>;

    /// The object at `path`, if there is one.
    async fn open(&self, path: &str) -> Result<Option<Box<dyn FileSource>>, StoreError>;
}

/// An object that is being written.
#[async_trait]
pub trait FileDraft: Send {
    /// Appends. After an error the draft is lost.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Bytes that were written and are still in memory.
    fn buffered(&self) -> u64;

    /// Makes it appear, durably, unless there is one of its name: [`Put::Exists`] then. After an error that is worth another try it
    /// may have appeared.
    async fn finish(self: Box<Self>) -> Result<Put, StoreError>;
}

/// A table file that rows are added to.
#[async_trait]
pub trait OpenFile: Send {
    /// Adds records as the transform made them, and says of each that cannot be a row the code that its dead letter has:
    /// nothing of it is in the file. After an error the file is lost.
    ///
    /// # Errors
    /// [`TransformError`]
    async fn add(&mut self, records: Vec<Record>) -> Result<Vec<Option<&'static str>>, TransformError>;

    /// Writes all rows out, so that none is in memory; the draft may still hold some of their bytes. After an error the file is lost.
    ///
    /// # Errors
    /// [`TransformError`]
    async fn spill(&mut self) -> Result<(), TransformError>;

    /// Rows that were added.
    fn rows(&self) -> u64;

    /// Bytes written so far, and about how many bytes are in memory, as rows or written.
    fn sizes(&self) -> (u64, u64);

    /// Whether it takes no more rows, for a reason of its own.
    fn is_full(&self) -> bool;

    /// Writes the footer: everything but the name is done then. After an error the file is lost.
    ///
    /// # Errors
    /// [`TransformError`]
    async fn close(&mut self, origin: &Origin) -> Result<(), TransformError>;

    /// Gives it its name, unless there is a file of it. After an error it is not known whether it has it.
    ///
    /// # Errors
    /// [`TransformError`]
    async fn finish(self: Box<Self>) -> Result<Put, TransformError>;
}

/// What a file says of itself without keys. It is believed by no reader, but tells the files of one pipeline apart.
///
/// # Errors
/// [`TableError::Damaged`], [`TableError::NotEncrypted`], [`TableError::Foreign`], [`TableError::Source`]
pub async fn claims_of(source: &dyn FileSource) -> Result<Claims, TableError> {
    let material = Tail::fetch(source).await?.material().await?;
    let material = Material::from_bytes(&material).map_err(|_| TableError::Foreign)?;
    material.claims.ok_or(TableError::Foreign)
}
