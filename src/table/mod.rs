//! Encrypted Parquet that carries its access-control list (`docs/format.md`, "Encrypted Parquet"): what a table's
//! columns are, records as rows, files written, read and looked into.
//!
//! It knows no folder and no bucket: files are bytes that are handed in and out.

mod buffers;
mod by_worker;
mod contained;
mod decoder;
mod elements;
mod encode;
mod error;
mod extra;
mod filter;
mod footer;
mod foreign;
mod guard;
mod infer;
mod keys;
pub mod landing;
mod layout;
mod leaves;
mod material;
mod pages;
mod place;
mod read;
mod rejection;
mod rows;
mod scalar;
pub mod schema;
pub mod schemas;
mod shown;
mod source;
mod values;
mod write;

pub use by_worker::AsksWorker;
pub use contained::panic_is_contained;
pub use encode::{RowEncoder, Rows, RowsError};
pub use error::{SourceError, TableError};
pub use extra::DUPLICATES;
pub use filter::Filter;
pub use foreign::{ForeignLabel, ForeignReader, KeyMaterials};
pub use infer::MAX_INFERRED_MEMBERS;
pub use keys::TableKeys;
pub use layout::{
    EXTRA_COLUMN, KEY_COLUMN, LayoutError, Leaf, LeafPlace, OFFSET_COLUMN, PARTITION_COLUMN, TIMESTAMP_COLUMN,
    TableLayout,
};
pub use leaves::FileLeaf;
pub use place::{Claims, FileId};
pub use read::{
    Asking, EmbeddedPolicies, FileLabel, LeafState, OpenLeaf, OpenTable, OpeningTableKeys, TableReader, offline,
};
pub use rejection::{MAX_CELLS, RowRejection};
pub use rows::{NOT_OF_TYPE, Query, RowStream};
pub use schema::{FieldType, SchemaError, SchemaField, TableSchema};
pub use source::FileSource;
pub use write::{Compression, Origin, TableWriter, WriteOptions, Written};

#[cfg(test)]
mod foreign_tests;
#[cfg(test)]
mod push_down_tests;
#[cfg(test)]
mod tests;
