//! What a connector lands with: the policy and schema that count now, and files under them.

use std::sync::Arc;

use async_trait::async_trait;

use super::file::OpenFile;
use super::intent::PlannedFile;
use crate::pipeline::{Transform, TransformError};
use crate::table::Claims;

/// Where a pipeline lands.
#[async_trait]
pub trait Landing: Send + Sync {
    /// What counts now, for the next batch.
    async fn edition(&self) -> Result<Arc<dyn Edition>, TransformError>;

    /// What the file at `path` below the table's location claims to be, if it is there.
    async fn claims(&self, path: &str) -> Result<Option<Claims>, TransformError>;
}

/// One version of policy and schema. Rows of two editions are never in one file.
#[async_trait]
pub trait Edition: Send + Sync {
    /// SHA-256 of the policy, and version of the schema.
    fn version(&self) -> ([u8; 32], u64);

    /// The most records of one batch: those of more could be under more data keys than a file carries.
    fn most_records(&self) -> usize;

    /// Makes of records what rows are made of, and dead letters.
    fn transform(&self) -> &dyn Transform;

    /// Begins a file, whose path is below the table's location.
    ///
    /// # Errors
    /// [`TransformError`]
    async fn begin(&self, file: &PlannedFile, path: &str) -> Result<Box<dyn OpenFile>, TransformError>;
}
