//! How a place is taken from the command line: not as clap does it, which repeats what it refuses, and that might be credentials.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use sealflow_storage::Location;

/// Parses a folder or `s3://BUCKET/PREFIX`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlaceParser;

impl TypedValueParser for PlaceParser {
    type Value = Location;

    fn parse_ref(
        &self,
        _: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        // Names of folders need not be text.
        let Some(text) = value.to_str() else {
            return Ok(Location::Folder(PathBuf::from(value)));
        };
        text.parse().map_err(|error: sealflow_storage::LocationError| {
            let option = argument.and_then(clap::Arg::get_long).map(|name| format!("--{name}"));
            let named = || {
                argument
                    .map_or("place", |argument| argument.get_id().as_str())
                    .to_uppercase()
            };
            let name = option.unwrap_or_else(named);
            let report = format!("{name}: {error}\n\n  tip: {}\n", error.help());
            clap::Error::raw(ErrorKind::ValueValidation, report)
        })
    }
}
