//! `sealflow seal`: JSON records of a file or pipe, sealed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sealflow::flow::hybrid::taken::TakenHere;
use sealflow::pipeline::{Format, KeysPlacement, OutputLimits};

use super::access::Access;
use super::sidecar::Sidecar;
use super::stream::{Input, Outputs, StreamArgs, pass};
use crate::failure::{Failure, Result};
use crate::files;
use crate::signals;
use crate::term::note;
use crate::while_it_counts::WhileItCounts;

/// Seal JSON records of a file or of standard input
///
/// The envelopes of the data keys go into a `.sfkeys` file beside the output, and into the catalogue. Every byte
/// outside the sealed fields stays as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    stream: StreamArgs,
    /// Where the key envelopes go; default: the output's name and `.sfkeys`
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Set records that cannot be sealed aside in this file, sealed whole; without it they are an error
    #[arg(long, value_name = "FILE")]
    dead_letters: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let keys = match (&args.keys, &args.stream.output) {
        (Some(keys), _) => keys.clone(),
        (None, Some(output)) => Sidecar::beside(output),
        (None, None) => {
            return Err(Failure::usage(
                "standard output has no name for its .sfkeys file",
                "say where the key envelopes go: --keys FILE; or write to a file: --output FILE",
            ));
        }
    };
    args.stream.check_outputs(&[
        args.dead_letters.as_deref(),
        args.keys.is_none().then_some(keys.as_path()),
    ])?;
    signals::remove_half_written_files()?;
    let mut services = args.access.open(None).await?;
    // One process reads the whole of a file.
    services.clients = services.clients.with_taken(Arc::new(TakenHere::default()));
    let transform = services
        .sealing(Format::Json, KeysPlacement::Header, services.sealer())?
        .with_limits(OutputLimits::FILES);
    let counters = transform.counters();
    let input = Input::open(&args.stream)?;
    let outputs = Outputs::create(
        &args.stream,
        files::Access::Shared,
        args.dead_letters.as_deref(),
        Some(Sidecar::at(&keys)?),
    )?;
    let passed = pass(input, &WhileItCounts::new(transform, &services), outputs).await?;
    let values = counters.values.load(Ordering::Relaxed);
    let output = args.stream.output.as_deref().unwrap_or(Path::new("standard output"));
    note(format_args!(
        "sealed {values} values of {} records into {}, {} dead letters, key envelopes in {}",
        passed.records,
        output.display(),
        passed.dead_letters,
        keys.display()
    ));
    Ok(ExitCode::SUCCESS)
}
