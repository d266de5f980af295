//! `sealflow audit`: whether an audit log is as it was written, and what it says.

mod lines;
mod query;
mod verify;

use std::process::ExitCode;

use crate::failure::Result;

/// Verify audit logs, and ask them who read what
///
/// The lines of a topic can be piped in: `kcat -C -e -q -t TOPIC -b BROKERS | sealflow audit verify -`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Find what was removed, edited, inserted, put in another order or cut off
    Verify(verify::Args),
    /// Show decisions: who read what, and who was refused
    Query(query::Args),
}

/// Runs the subcommand.
pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Verify(args) => verify::run(args),
        Command::Query(args) => query::run(args),
    }
}
