//! Landing a topic in encrypted Parquet, exactly once: which files a stretch of a partition becomes, and in which order
//! intent, files and offset are made durable (`docs/format.md`, "Landing").
//!
//! It does nothing itself: [`Stretch`] says what is to be done next, and is told how it went. What it says holds whatever
//! fails, repeats, loses its answer or dies in between; `simulation.rs` tries.

mod bucket;
mod edition;
mod error;
mod file;
mod intent;
mod stretch;
mod table_edition;

pub use bucket::{Bucket, BucketRule, EventTimeUnit, PartitionBy, PartitionByError};
pub use edition::{Edition, Landing};
pub use error::{LandingError, StoreError};
pub use file::{FileDraft, FileStore, OpenFile, claims_of};
pub use intent::{Intent, MAX_FILES, MAX_SET_ASIDE, PlannedFile, Whose};
pub use stretch::{Listed, RollLimits, Step, Stretch, Wants};
pub use table_edition::{EditionError, TableEdition, TableParts};

#[cfg(test)]
mod simulation;
