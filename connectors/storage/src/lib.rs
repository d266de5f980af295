//! The catalogue on `object_store`: a folder now, buckets through the same door later. It knows bytes and paths, and
//! nothing of what they mean.

mod catalogue;
mod config;
mod folder;
mod object_file;
mod timeout;

pub use catalogue::ObjectCatalogue;
pub use config::CatalogueConfig;
pub use folder::DurableFolder;
pub use object_file::ObjectFile;
pub use timeout::WithTimeout;
