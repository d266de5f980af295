//! `sealflow open`: sealed JSON records of a file or pipe, opened again by whoever KMS lets.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use sealflow::pipeline::{Format, KeysPlacement, OutputLimits};

use super::access::Access;
use super::sidecar::{self, Sidecar};
use super::stream::{Input, Outputs, StreamArgs, pass};
use crate::failure::Result;
use crate::files;
use crate::signals;
use crate::term::note;
use crate::while_it_counts::WhileItCounts;

/// Open sealed JSON records of a file or of standard input
///
/// This recreates plaintext; an output file is readable for you alone (0600). KMS decides whether your credentials
/// may open: here the policy's ACLs are information.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    stream: StreamArgs,
    /// The `.sfkeys` file; default: the input's name and `.sfkeys` if it is there, and the catalogue
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    args.stream.check_outputs(&[])?;
    signals::remove_half_written_files()?;
    let beside = args
        .stream
        .input_file()
        .map(Sidecar::beside)
        .filter(|path| path.exists());
    let sidecar = match args.keys.as_ref().or(beside.as_ref()) {
        Some(path) => Some((sidecar::read(path)?, path.display().to_string())),
        None => None,
    };
    let sidecar = sidecar.as_ref().map(|(text, name)| (text.as_str(), name.as_str()));
    let services = args.access.open(sidecar).await?;
    let transform = services
        .opening(
            Format::Json,
            KeysPlacement::Catalogue,
            services.opening_keys(),
            services.sealer(),
        )?
        .with_limits(OutputLimits::FILES);
    let counters = transform.counters();
    let input = Input::open(&args.stream)?;
    let outputs = Outputs::create(&args.stream, files::Access::Private, None, None)?;
    let passed = pass(input, &WhileItCounts::new(transform, &services), outputs).await?;
    let values = counters.values.load(Ordering::Relaxed);
    let output = args.stream.output.as_deref().unwrap_or(Path::new("standard output"));
    note(format_args!(
        "opened {values} values of {} records into {}",
        passed.records,
        output.display()
    ));
    Ok(ExitCode::SUCCESS)
}
