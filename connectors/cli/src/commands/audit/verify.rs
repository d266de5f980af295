//! `audit verify`: whether a log is as it was written, as far as its checkpoints reach.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::audit::{Report, Verifier};
use sealflow::jose::Thumbprint;
use serde::Serialize;

use super::lines::{self, LogArgs};
use crate::failure::{Exit, Failure, Result};
use crate::term::{OutputFormat, Style, harmless, note, say, say_json};

/// How many breaks are shown; more are counted.
const SHOWN: usize = 20;

/// Find what was removed, edited, inserted, put in another order or cut off
///
/// Exit code 0: whole, as far as checkpoints reach. 65: not, and the first line where that shows. Lines after the last checkpoint
/// could be cut off without a trace; it says how many there are.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    log: LogArgs,
    /// Checkpoints of the second place: without them a tail that was cut off is not missed
    #[arg(long, value_name = "FILE")]
    checkpoints: Option<PathBuf>,
    /// Thumbprint of an audit key that is trusted; may be repeated. Without one, whoever can write the log could have signed its checkpoints
    #[arg(
        long = "key",
        value_name = "THUMBPRINT",
        allow_hyphen_values = true,
        value_delimiter = ','
    )]
    keys: Vec<Thumbprint>,
    /// The beginning of the log is elsewhere: archived, or past the retention of its topic
    #[arg(long)]
    tail_only: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// What is printed.
#[derive(Serialize)]
struct Shown {
    whole: bool,
    lines: u64,
    decisions: u64,
    checkpoints: u64,
    /// Whether a key was named whose checkpoints count.
    proven: bool,
    signers: Vec<String>,
    unfinished_bytes: u64,
    chains: Vec<ShownChain>,
    broken: u64,
    breaks: Vec<ShownBreak>,
}

#[derive(Serialize)]
struct ShownChain {
    instance: String,
    name: Option<String>,
    first: u64,
    last: u64,
    sealed: Option<u64>,
    unsealed: u64,
}

#[derive(Serialize)]
struct ShownBreak {
    line: Option<u64>,
    instance: Option<String>,
    seq: Option<u64>,
    what: String,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let mut verifier = Verifier::new(args.keys.iter().copied(), args.tail_only);
    if let Some(path) = &args.checkpoints {
        let torn = lines::each(path, |line| verifier.checkpoint(line))?;
        if torn > 0 {
            note(format_args!(
                "the last checkpoint is unfinished ({torn} bytes) and says nothing"
            ));
        }
    }
    let torn = args.log.each(|line| verifier.line(line))?;
    verifier.torn(torn);
    let report = verifier.finish();
    let shown = Shown::of(&report, !args.keys.is_empty());
    match args.output {
        OutputFormat::Json => say_json(&shown),
        OutputFormat::Text => shown.print(args.checkpoints.is_some()),
    }
    match report.breaks.first() {
        None => Ok(ExitCode::SUCCESS),
        Some(first) => Err(Failure::new(
            Exit::Data,
            format_args!(
                "{} is not as it was written: {}",
                args.log.name(),
                harmless(&first.to_string())
            ),
            "keep log and checkpoints as evidence, compare with other copies, and find out who could write them",
        )),
    }
}

impl Shown {
    fn of(report: &Report, proven: bool) -> Self {
        let chains = report.chains.iter().map(|chain| ShownChain {
            instance: chain.instance.to_string(),
            name: chain.name.clone(),
            first: chain.first,
            last: chain.last,
            sealed: chain.sealed,
            unsealed: chain.unsealed(),
        });
        let breaks = report.breaks.iter().map(|found| ShownBreak {
            line: found.line,
            instance: found.instance.map(|instance| instance.to_string()),
            seq: found.seq,
            what: found.fault.to_string(),
        });
        Self {
            whole: report.is_whole(),
            lines: report.lines,
            decisions: report.decisions,
            checkpoints: report.checkpoints,
            proven,
            signers: report.unproven.iter().map(ToString::to_string).collect(),
            unfinished_bytes: report.torn,
            chains: chains.collect(),
            broken: report.broken,
            breaks: breaks.collect(),
        }
    }

    fn print(&self, compared: bool) {
        let style = Style::of_stdout();
        let mark = if self.whole { style.tick() } else { style.cross() };
        say(format_args!(
            "{mark} {} lines, {} of them decisions, in {} chains",
            self.lines,
            self.decisions,
            self.chains.len()
        ));
        for chain in &self.chains {
            let name = chain
                .name
                .as_deref()
                .map_or(String::new(), |name| format!(" {}", harmless(name)));
            let sealed = match (chain.sealed, chain.unsealed) {
                (None, _) => "no checkpoint".to_owned(),
                (Some(sealed), 0) => format!("sealed to {sealed}"),
                (Some(sealed), more) => format!("sealed to {sealed}, {more} after it could be cut off without a trace"),
            };
            say(format_args!(
                "  {}{name}: numbers {} to {}, {sealed}",
                chain.instance, chain.first, chain.last
            ));
        }
        if self.unfinished_bytes > 0 {
            say(format_args!(
                "{} an unfinished last line of {} bytes, which nobody was told is durable",
                style.bang(),
                self.unfinished_bytes
            ));
        }
        if !compared {
            say(format_args!(
                "{} no --checkpoints: a tail that was cut off is not missed",
                style.bang()
            ));
        }
        if !self.proven {
            say(format_args!(
                "{} no --key: whoever can write the log could have signed its checkpoints",
                style.bang()
            ));
            for signer in &self.signers {
                say(format_args!("  signed by {signer}"));
            }
        }
        for found in self.breaks.iter().take(SHOWN) {
            let line = found
                .line
                .map_or("at the end".to_owned(), |line| format!("line {line}"));
            say(format_args!("{} {line}: {}", style.cross(), harmless(&found.what)));
        }
        let more = self.broken.saturating_sub(SHOWN as u64);
        if more > 0 {
            say(format_args!("  and {more} more"));
        }
    }
}
