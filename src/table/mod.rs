//! Encrypted Parquet that carries its access-control list (`docs/format.md`, "Encrypted Parquet"): what a table's
//! columns are, records as rows, files written, read and looked into.
//!
//! It knows no folder and no bucket: files are bytes that are handed in and out.

mod buffers;
mod encode;
mod extra;
mod guard;
mod infer;
mod layout;
mod rejection;
mod scalar;
pub mod schema;

pub use encode::{RowEncoder, Rows, RowsError};
pub use extra::DUPLICATES;
pub use infer::MAX_INFERRED_MEMBERS;
pub use layout::{
    EXTRA_COLUMN, EXTRA_LABEL, KEY_COLUMN, LayoutError, Leaf, LeafPlace, OFFSET_COLUMN, PARTITION_COLUMN,
    TIMESTAMP_COLUMN, TableLayout,
};
pub use rejection::{MAX_CELLS, RowRejection};
pub use schema::{FieldType, SchemaError, SchemaField, TableSchema};
