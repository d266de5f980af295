//! `keys rewrap`: moves the data keys of a catalogue to the KMS key that the policy names now, inside KMS.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use sealflow::keys::rewrap::{Moved, RewrapError, Step, Wrapped, inventory, plan, rewrap};
use sealflow::keys::{Catalogue, KeyAdmin, KeyServiceError};
use sealflow::policy::PolicySource;
use serde::Serialize;
use tokio::task::JoinSet;

use super::Kms;
use crate::commands::policy::Trusting;
use crate::failure::{Exit, Failure, Result};
use crate::term::{OutputFormat, Progress, note, say, say_json};
use crate::trust;

/// After so many failures the rest is not tried: it would fail alike.
const MAX_FAILURES: usize = 32;

/// Wrap data keys anew under the KMS key that the policy names now
///
/// For each data key whose newest envelope is under another KMS key, KMS re-encrypts it (kms:ReEncryptFrom on the old,
/// kms:ReEncryptTo on the new key; no plaintext leaves KMS), and the new envelope is put into the catalogue beside the
/// old ones. Readers try the newest first, so that values open although the old KMS key is disabled. Nothing is removed
/// or changed: stop it at any time and run it again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only data keys of this dataset and its dead letters; may be repeated
    #[arg(long = "dataset", value_name = "NAME")]
    datasets: Vec<String>,
    /// Only data keys whose newest envelope is under this KMS key
    #[arg(long, value_name = "ARN")]
    from: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Unwrap each new envelope before it is written. Needs kms:Decrypt, and data keys come into this process for a moment
    #[arg(long)]
    verify: bool,
    /// How many are under way at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    trusting: Trusting,
    #[command(flatten)]
    kms: Kms,
}

/// What was found and done.
#[derive(Debug, Default, Serialize)]
struct Report {
    dry_run: bool,
    /// Moved, or to be moved on a dry run, by (old ARN, new ARN).
    moves: Vec<Move>,
    /// Newest envelope under the policy's key already.
    current: usize,
    /// The newest policy does not open them.
    not_in_policy: usize,
    /// Under `previous:` only: there is no key to move them to.
    retired: usize,
    failed: Vec<Failed>,
    not_tried: usize,
    /// Objects that are no envelope known here.
    unreadable: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Move {
    from: String,
    to: String,
    data_keys: usize,
}

#[derive(Debug, Serialize)]
struct Failed {
    key: String,
    error: String,
}

struct Job {
    wrapped: Wrapped,
    from: String,
    to: String,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let trusted = args.trusting.open(None)?;
    let policies = trust::policies(&trusted.catalogue, trusted.owners.clone());
    let mut report = Report {
        dry_run: args.dry_run,
        ..Report::default()
    };
    let jobs = jobs(args, trusted.catalogue.as_ref(), &policies, &mut report).await?;
    let mut first = None;
    if args.dry_run {
        count(&mut report, jobs.iter().map(|job| (job.from.as_str(), job.to.as_str())));
    } else if !jobs.is_empty() {
        let kms = Arc::new(args.kms.open(trusted.kms).await?);
        first = work(args, kms, trusted.catalogue, jobs, &mut report).await;
    }
    tell(&report, args.output);
    match first {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => Err(failure(&error, &report)),
    }
}

/// What is to be moved; the rest is counted.
async fn jobs(
    args: &Args,
    catalogue: &dyn Catalogue,
    policies: &dyn PolicySource,
    report: &mut Report,
) -> Result<Vec<Job>> {
    let found = inventory(catalogue).await?;
    report.unreadable = found.unreadable;
    let mut jobs = Vec::new();
    for wrapped in found.keys {
        let Some(newest) = wrapped.newest() else { continue };
        let dataset = sealflow::keys::governing(&newest.dataset);
        let is_wanted = (args.datasets.is_empty() || args.datasets.iter().any(|wanted| wanted == dataset))
            && args.from.as_ref().is_none_or(|from| *from == newest.arn);
        if !is_wanted {
            continue;
        }
        match plan(policies, &wrapped).await? {
            Step::Current => report.current += 1,
            Step::Retired => report.retired += 1,
            Step::Move { from, to } => jobs.push(Job { wrapped, from, to }),
            _ => report.not_in_policy += 1,
        }
    }
    Ok(jobs)
}

/// Moves them, several at once, and returns the first failure.
async fn work(
    args: &Args,
    kms: Arc<dyn KeyAdmin>,
    catalogue: Arc<dyn Catalogue>,
    jobs: Vec<Job>,
    report: &mut Report,
) -> Option<RewrapError> {
    let progress = Progress::counted(jobs.len() as u64, "data keys");
    let (mut first, mut done, mut position) = (None, Vec::new(), 0);
    let mut jobs = jobs.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < usize::from(args.parallel)
            && report.failed.len() < MAX_FAILURES
            && let Some(job) = jobs.next()
        {
            let (kms, catalogue, verify) = (Arc::clone(&kms), Arc::clone(&catalogue), args.verify);
            running.spawn(async move {
                let moved = rewrap(kms.as_ref(), catalogue.as_ref(), &job.wrapped, &job.to, verify).await;
                (job, moved)
            });
        }
        // Tasks do not panic and are not aborted.
        let Some(Ok((job, moved))) = running.join_next().await else {
            break;
        };
        position += 1;
        progress.set(position);
        match moved {
            Ok(Moved::Already) => report.current += 1,
            Ok(Moved::Written(_)) => done.push((job.from, job.to)),
            Err(error) => {
                report.failed.push(Failed {
                    key: job.wrapped.key.to_string(),
                    error: error.to_string(),
                });
                first.get_or_insert(error);
            }
        }
    }
    drop(progress);
    report.not_tried = jobs.count();
    count(report, done.iter().map(|(from, to)| (from.as_str(), to.as_str())));
    first
}

fn count<'a>(report: &mut Report, moved: impl Iterator<Item = (&'a str, &'a str)>) {
    let mut by_arns: BTreeMap<_, usize> = BTreeMap::new();
    for arns in moved {
        *by_arns.entry(arns).or_default() += 1;
    }
    report.moves = by_arns
        .into_iter()
        .map(|((from, to), data_keys)| Move {
            from: from.to_owned(),
            to: to.to_owned(),
            data_keys,
        })
        .collect();
}

fn tell(report: &Report, output: OutputFormat) {
    if output == OutputFormat::Json {
        say_json(report);
        return;
    }
    let what = if report.dry_run { "would be moved" } else { "moved" };
    for Move { from, to, data_keys } in &report.moves {
        say(format_args!("{data_keys} data keys {what} from {from} to {to}"));
    }
    if report.moves.is_empty() {
        say(format_args!("no data keys {what}"));
    }
    for (count, what) in [
        (report.current, "are under the policy's key already"),
        (
            report.not_in_policy,
            "are not opened by the newest policy and were left alone",
        ),
        (report.retired, "are listed under `previous:` only and were left alone"),
        (report.failed.len(), "could not be moved"),
        (report.not_tried, "were not tried after so many failures"),
    ] {
        if count > 0 {
            say(format_args!("{count} data keys {what}"));
        }
    }
    for failed in &report.failed {
        note(format_args!("{}: {}", failed.key, failed.error));
    }
    for path in &report.unreadable {
        note(format_args!("{path}: not a key envelope of a version known here"));
    }
}

fn failure(error: &RewrapError, report: &Report) -> Failure {
    let message = format!(
        "{} of {} data keys could not be moved: {error}",
        report.failed.len() + report.not_tried,
        report.failed.len() + report.not_tried + report.moves.iter().map(|moved| moved.data_keys).sum::<usize>()
    );
    let (exit, help) = match error {
        RewrapError::Service(KeyServiceError::NotPermitted { .. }) => (
            Exit::NotPermitted,
            "allow this identity kms:ReEncryptFrom on the old key and kms:ReEncryptTo on the new one (with --verify also \
             kms:Decrypt), then run this again",
        ),
        RewrapError::Service(KeyServiceError::KeyUnusable { .. }) => (
            Exit::Config,
            "both KMS keys must exist and be enabled while data keys are moved; then run this again",
        ),
        RewrapError::Service(KeyServiceError::Refused { .. }) | RewrapError::WrongKey { .. } => (
            Exit::Data,
            "these envelopes were damaged or forged: find out who writes to the catalogue; the others are done",
        ),
        _ => (Exit::Unavailable, "what is done stays done: run this again"),
    };
    Failure::new(exit, message, help)
}
