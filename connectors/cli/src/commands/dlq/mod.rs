//! `sealflow dlq`: what was set aside, by code and position, and back again once the reason is mended.

mod key;
mod list;
mod read;
mod replay;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::pipeline::LetterFilter;

use crate::failure::Result;
use crate::term::OutputFormat;

/// Look through dead letters, and replay them
///
/// Dead letters are records that a pipeline could not process, sealed whole. Code, stage and position are in clear.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List dead letters, and count them by code
    List(list::Args),
    /// Show one dead letter; its record only with --open
    Show(show::Args),
    /// Send the records of dead letters through the pipeline again, each once
    Replay(replay::Args),
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::List(args) => list::run(args).await,
        Command::Show(args) => show::run(args).await,
        Command::Replay(args) => replay::run(args).await,
    }
}

/// Whose dead letters
#[derive(Debug, clap::Args)]
struct Place {
    /// The pipeline file
    #[arg(value_name = "PIPELINE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pipeline: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Which of them
#[derive(Debug, clap::Args)]
struct Select {
    /// Only letters of this code; may be repeated
    #[arg(long = "code", value_name = "CODE")]
    codes: Vec<String>,
    /// Only letters of records of this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Only letters of records of this partition
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
    /// Only letters of records of this offset
    #[arg(long, value_name = "N")]
    offset: Option<i64>,
}

impl Select {
    fn filter(self) -> LetterFilter {
        LetterFilter {
            codes: self.codes.into_iter().collect(),
            topic: self.topic,
            partition: self.partition,
            offset: self.offset,
        }
    }
}
