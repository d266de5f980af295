//! `sealflow audit`: whether an audit log is as it was written, and what it says.

mod lines;
mod query;
mod verify;

use std::process::ExitCode;

use crate::failure::{Exit, Failure, Result};

/// Verify audit logs, and ask them who read what
///
/// A log is a file, standard input, or a topic.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Find what was removed, edited, inserted, put in another order or cut off
    Verify(verify::Args),
    /// Show decisions: who read what, and who was refused
    Query(query::Args),
}

/// Runs the subcommand, off the runtime's threads: files and topics are read to their ends.
pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    let done = tokio::task::spawn_blocking(move || match &command {
        Command::Verify(args) => verify::run(args),
        Command::Query(args) => query::run(args),
    });
    done.await
        .map_err(|_| Failure::new(Exit::Internal, "reading the log panicked", "please report this bug"))?
}
