//! Objects in folders and buckets: places to write and read them, created once and never replaced, and the catalogue on top. It
//! knows bytes and paths, and nothing of what they mean.

mod bucket;
mod catalogue;
mod config;
mod credentials;
mod draft;
mod error;
mod folder;
mod location;
#[cfg(feature = "table")]
mod object_file;
mod options;
mod parts;
mod place;
mod requests;
mod timeout;
mod transport;
mod writer;

pub use catalogue::ObjectCatalogue;
pub use config::CatalogueConfig;
pub use error::StorageError;
pub use folder::DurableFolder;
pub use location::{BucketLocation, Location, LocationError};
#[cfg(feature = "table")]
pub use object_file::ObjectFile;
pub use options::{BucketConfig, BucketConfigError, ServerSideEncryption};
pub use place::{Listed, Page, Place};
pub use timeout::WithTimeout;
pub use writer::ObjectWriter;
