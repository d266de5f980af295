//! Encrypted Parquet that carries its access-control list (`docs/format.md`, "Encrypted Parquet"): what a table's
//! columns are, records as rows, files written, read and looked into.
//!
//! It knows no folder and no bucket: files are bytes that are handed in and out.

mod error;
mod filter;
mod footer;
mod keys;
pub mod landing;
mod layout;
mod leaves;
mod material;
mod place;
mod read;
mod rows;
mod source;
mod write;

pub use error::{SourceError, TableError};
pub use filter::Filter;
pub use keys::TableKeys;
pub use layout::{Leaf, LeafPlace, TableLayout};
pub use leaves::FileLeaf;
pub use place::{Claims, FileId};
pub use read::{
    Asking, EmbeddedPolicies, FileLabel, LeafState, OpenLeaf, OpenTable, OpeningTableKeys, TableReader, offline,
};
pub use rows::{NOT_OF_TYPE, Query, Rows};
pub use source::FileSource;
pub use write::{Compression, Origin, TableWriter, WriteOptions, Written};

#[cfg(test)]
mod tests;
