//! One file per subcommand: its arguments, and what it does with them.

pub(crate) mod completion;
pub(crate) mod demo;
pub(crate) mod init;
pub(crate) mod kms;
pub(crate) mod schema;
pub(crate) mod validate;
pub(crate) mod version;
