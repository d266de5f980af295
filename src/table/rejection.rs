//! Why a record cannot be a row: each reason is a dead letter with a code of its own.

use crate::columns::Unlocatable;
use crate::columns::grammar::Fault;

/// The most entries that one record makes in the leaves of a table, nulls counted.
pub const MAX_CELLS: usize = 1 << 20;

/// Why a record cannot be a row of a table. Never holds a value of the record.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowRejection {
    /// Not one JSON document in UTF-8.
    #[error(transparent)]
    Unreadable(#[from] Unlocatable),
    /// A JSON document that is no object.
    #[error("the record is no JSON object")]
    NotAnObject,
    /// Several documents: a row is one.
    #[error("the record holds several JSON documents, and a row is one")]
    SeveralDocuments,
    /// Without the five bytes that `json-sr` has in front.
    #[error("the value does not start with a schema registry's five bytes")]
    NoRegistryPrefix,
    /// Something that would go to `_extra`, which other people may read than those of the column.
    #[error("a value at, around or below the column {column} does not fit its type, or stands there a second time")]
    SchemaConflict {
        /// Canonical path of the column.
        column: String,
    },
    /// Something that the schema does not have, and the policy has no key for `_extra`.
    #[error(
        "a field that the table's schema does not have or that is of another type, and the policy has no `table.extra` to seal it under"
    )]
    NoExtra,
    /// A place whose values are sealed one by one holds something else.
    #[error("the value of {column} is not sealed")]
    NotSealed {
        /// Canonical path of the column.
        column: String,
    },
    /// More than [`MAX_CELLS`].
    #[error("the record makes more than {MAX_CELLS} entries in the columns of the table")]
    TooManyValues,
    /// More than 2 GiB in one column, before this record: the batch must be finished first.
    #[error("more than 2 GiB of one column in a batch")]
    BatchTooLarge,
}

impl RowRejection {
    /// The code in dead letters and metrics; never changes.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(error) => error.code(),
            Self::NotAnObject => "not-an-object",
            Self::SeveralDocuments => "several-documents",
            Self::NoRegistryPrefix => "no-registry-prefix",
            Self::SchemaConflict { .. } => "schema-conflict",
            Self::NoExtra => "unknown-field",
            Self::NotSealed { .. } => "not-sealed",
            Self::TooManyValues => "too-many-values",
            Self::BatchTooLarge => "batch-too-large",
        }
    }
}

impl From<Fault> for RowRejection {
    fn from(fault: Fault) -> Self {
        Self::Unreadable(fault.into())
    }
}
