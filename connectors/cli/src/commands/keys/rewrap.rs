//! `keys rewrap`: moves the data keys of a catalogue to the KMS key that the policy names now, inside KMS.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use sealflow::keys::rewrap::{Moved, RewrapError, Step, Wrapped, inventory, openable, plan, rewrap, verify_current};
use sealflow::keys::{Catalogue, KeyAdmin, KeyServiceError};
use sealflow::policy::PolicySource;
use serde::Serialize;
use tokio::task::JoinSet;

use super::Kms;
use crate::commands::policy::Trusting;
use crate::failure::{Exit, Failure, Result};
use crate::term::{OutputFormat, Progress, note, say, say_json};

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
    /// Only data keys whose newest envelope is under this KMS key; with --verify, that have any envelope under it
    #[arg(long, value_name = "ARN")]
    from: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Unwrap each new envelope before it is written, and the newest ones that are under the policy's key already: what
    /// does not hold its data key is mended from an older envelope. Needs kms:Decrypt, and data keys come into this
    /// process for a moment
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
    /// Of those, unwrapped and found to hold their data key.
    verified: usize,
    /// Newest envelope under the policy's key, but without its data key: replaced from an older one.
    mended: usize,
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
    /// From which ARN to which; `None` if it is under the policy's key already, and only verified.
    step: Option<(String, String)>,
}

impl Job {
    async fn run(
        &self,
        kms: &dyn KeyAdmin,
        catalogue: &dyn Catalogue,
        policies: &dyn PolicySource,
        verify: bool,
    ) -> Result<Moved, RewrapError> {
        match &self.step {
            Some(_) => rewrap(kms, catalogue, policies, &self.wrapped, verify).await,
            None => verify_current(kms, catalogue, policies, &self.wrapped).await,
        }
    }
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let trusted = args.trusting.open(None).await?;
    let policies = trusted.policies_to_look_at()?;
    let mut report = Report {
        dry_run: args.dry_run,
        ..Report::default()
    };
    let jobs = jobs(args, trusted.catalogue.as_ref(), policies.as_ref(), &mut report).await?;
    let mut first = None;
    if args.dry_run {
        report.current += jobs.iter().filter(|job| job.step.is_none()).count();
        count(&mut report, jobs.iter().filter_map(|job| job.step.clone()));
    } else if !jobs.is_empty() {
        let kms = Arc::new(args.kms.open(trusted.kms).await?);
        first = work(args, kms, trusted.catalogue, policies, jobs, &mut report).await;
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
        // Forged envelopes may hide a genuine one from these questions, so who verifies asks them of all.
        let asked = if args.verify { usize::MAX } else { 1 };
        let mut asked = wrapped.envelopes.iter().take(asked).map(|(_, envelope)| envelope);
        let is_wanted = asked.any(|envelope| {
            let dataset = sealflow::keys::governing(&envelope.dataset);
            (args.datasets.is_empty() || args.datasets.iter().any(|wanted| wanted == dataset))
                && args.from.as_ref().is_none_or(|from| *from == envelope.arn)
        });
        if !is_wanted {
            continue;
        }
        let wrapped = openable(policies, &wrapped).await?;
        match plan(policies, &wrapped).await? {
            Step::Current if args.verify => jobs.push(Job { wrapped, step: None }),
            Step::Current => report.current += 1,
            Step::Retired => report.retired += 1,
            Step::Move { from, to } => jobs.push(Job {
                wrapped,
                step: Some((from, to)),
            }),
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
    policies: Arc<dyn PolicySource>,
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
            let (kms, catalogue, policies) = (Arc::clone(&kms), Arc::clone(&catalogue), Arc::clone(&policies));
            let verify = args.verify;
            running.spawn(async move {
                let moved = job
                    .run(kms.as_ref(), catalogue.as_ref(), policies.as_ref(), verify)
                    .await;
                (job, moved)
            });
        }
        let Some(ended) = running.join_next().await else { break };
        // None is aborted. A panic is the command's: what has panicked may not have been moved.
        let (job, moved) = ended.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
        position += 1;
        progress.set(position);
        match moved {
            Ok(Moved::Already) => report.current += 1,
            Ok(Moved::Verified) => {
                report.current += 1;
                report.verified += 1;
            }
            Ok(Moved::Written(_)) => match job.step {
                Some(arns) => done.push(arns),
                None => report.mended += 1,
            },
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
    count(report, done.into_iter());
    first
}

fn count(report: &mut Report, moved: impl Iterator<Item = (String, String)>) {
    let mut by_arns: BTreeMap<_, usize> = BTreeMap::new();
    for arns in moved {
        *by_arns.entry(arns).or_default() += 1;
    }
    report.moves = by_arns
        .into_iter()
        .map(|((from, to), data_keys)| Move { from, to, data_keys })
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
        (
            report.current,
            "are under the policy's key already, as their envelopes say",
        ),
        (report.verified, "of these were unwrapped, and are what they say"),
        (
            report.mended,
            "were under the policy's key by a damaged or forged envelope, and were mended from an older one",
        ),
        (
            report.not_in_policy,
            "are not opened by the newest policy and were left alone",
        ),
        (report.retired, "are listed under `previous:` only and were left alone"),
        (report.failed.len(), "could not be moved or verified"),
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
        "{} of {} data keys could not be moved or verified: {error}",
        report.failed.len() + report.not_tried,
        report.failed.len()
            + report.not_tried
            + report.verified
            + report.mended
            + report.moves.iter().map(|moved| moved.data_keys).sum::<usize>()
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
            "these envelopes were damaged or forged: keep the KMS keys of all their envelopes, and find out who writes to \
             the catalogue; the others are done",
        ),
        _ => (Exit::Unavailable, "what is done stays done: run this again"),
    };
    Failure::new(exit, message, help)
}
