//! `sealflow completion`: scripts for shells.

use std::io;
use std::process::ExitCode;

use clap_complete::Shell;

use crate::failure::Result;

/// Print a completion script for a shell
///
/// For example: `sealflow completion bash > /etc/bash_completion.d/sealflow`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::cli::definition(), "sealflow", &mut script);
    // A closed pipe is the reader's choice.
    let _ = io::Write::write_all(&mut io::stdout(), &script);
    Ok(ExitCode::SUCCESS)
}
