//! Encrypted Parquet that carries its access-control list (`docs/format.md`, "Encrypted Parquet"): what a table's
//! columns are, records as rows, files written, read and looked into.
//!
//! It knows no folder and no bucket: files are bytes that are handed in and out.

mod extra;
mod infer;
pub mod schema;

pub use extra::DUPLICATES;
pub use infer::MAX_INFERRED_MEMBERS;
pub use schema::{FieldType, SchemaError, SchemaField, TableSchema};
