//! Replays the dead letters of the folder, each once: file by file, in a transaction of its own.
//!
//! A transaction commits, beside the record, the digest of the letter's file as the metadata of an offset of a group
//! that nobody reads by. A file goes when its transaction is committed. A replay that died in between finds the
//! digest of a file that is still there, and removes it instead of replaying it again; there is one at most for
//! each partition.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::slice;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::TopicPartitionList;
use sealflow::pipeline::{Outcome, Record, Route, StopKind, TransformError};

use crate::error::{RunError, unreachable_or_denied};
use crate::flow::Transformed;
use crate::group::DRAIN_PATIENCE;
use crate::properties::{Identity, source_observer};
use crate::runner::{Plan, Shutdown};
use crate::topics::{self, ObserverClient};
use crate::transaction::{Failure, Transactions};

/// How long the group's offsets may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a transaction that was aborted is tried again.
const ATTEMPTS: u32 = 5;
/// Between two attempts, and while a service is away.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// A letter of the folder.
#[derive(Clone, Debug)]
pub struct FolderLetter {
    /// Its file.
    pub path: PathBuf,
    /// The letter as a record: its position is that of the record in it.
    pub message: Record,
    /// Digest of the file.
    pub digest: String,
}

/// What became of the letters of the folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FolderSummary {
    /// Replayed now, or by a replay that died before it could remove the file.
    pub replayed: u64,
    /// Not selected, not opened, or refused again: their files stay.
    pub kept: u64,
}

/// Replays `letters`, which are read one after the other.
pub(crate) fn replay(
    plan: &Plan,
    letters: &mut dyn Iterator<Item = Result<FolderLetter, RunError>>,
) -> Result<FolderSummary, RunError> {
    let group = format!("{}-folder", plan.group());
    let identity = Identity {
        group: &group,
        member: format!("{}.folder", plan.member(0)),
    };
    let transactions = Transactions::start(plan, &identity)?;
    let mut client = source_observer(&plan.config);
    client.set("group.id", &group).set("enable.auto.commit", "false");
    let consumer = topics::observer(&client, "source.kafka.properties")?;
    let mut summary = FolderSummary::default();
    for letter in letters {
        if plan.shutdown() != Shutdown::Run {
            break;
        }
        let letter = letter?;
        let replayed = is_replayed(&consumer, &letter)? || replay_one(plan, &transactions, &consumer, &letter)?;
        if replayed {
            failpoint!("before-remove");
            remove(&letter.path).map_err(|error| {
                RunError::stopped(
                    StopKind::Unavailable,
                    format!("{} is replayed and cannot be removed: {error}", letter.path.display()),
                    "allow this process to remove it, and start again: it is not replayed twice",
                )
            })?;
            summary.replayed += 1;
        } else {
            summary.kept += 1;
        }
    }
    Ok(summary)
}

/// Whether the newest transaction of the letter's partition was this letter's.
fn is_replayed(consumer: &ObserverClient, letter: &FolderLetter) -> Result<bool, RunError> {
    let failed = |error| unreachable_or_denied(&error, consumer.context().last_log());
    let position = &letter.message.position;
    let mut list = TopicPartitionList::new();
    list.add_partition(&position.topic, position.partition);
    let committed = consumer.committed_offsets(list, PATIENCE).map_err(failed)?;
    let elements = committed.elements();
    Ok(elements.iter().any(|element| element.metadata() == letter.digest))
}

fn replay_one(
    plan: &Plan,
    transactions: &Transactions,
    consumer: &ObserverClient,
    letter: &FolderLetter,
) -> Result<bool, RunError> {
    let Some(outcome) = transformed(plan, &letter.message)? else {
        return Ok(false);
    };
    let batch = [Transformed::new(
        slice::from_ref(&letter.message),
        vec![outcome],
        tracing::Span::none(),
    )];
    let mut reason = String::new();
    for _ in 0..ATTEMPTS {
        match transactions.commit(&batch, &plan.routes(), &letter.digest, || consumer.group_metadata()) {
            Ok(_) => return Ok(true),
            Err(Failure::TooLarge(refused)) => {
                let path = letter.path.display();
                let bytes = refused.first().map(|refused| refused.bytes);
                tracing::warn!(%path, bytes, "still larger than the topic takes: the letter stays");
                return Ok(false);
            }
            Err(Failure::Aborted(why)) => {
                tracing::warn!(reason = why, "transaction aborted, the letter is tried again");
                reason = why;
                std::thread::sleep(PAUSE);
            }
            Err(Failure::Ended(error)) => return Err(error),
        }
    }
    Err(RunError::Unavailable { reason })
}

/// What the letter's record becomes, if that goes to a target. Told to stop, it waits no longer for a service that
/// is away than a pipeline does.
fn transformed(plan: &Plan, message: &Record) -> Result<Option<Outcome>, RunError> {
    let mut told = None;
    loop {
        let answer = plan.runtime.block_on(attempt(plan, message, &mut told));
        match answer {
            Some(Ok(outcomes)) => {
                let mut outcomes = outcomes.into_iter();
                return Ok(outcomes.next().filter(|outcome| outcome.route == Route::Target));
            }
            Some(Err(TransformError::Stop { kind, reason, help })) => {
                return Err(RunError::Stopped { kind, reason, help });
            }
            Some(Err(error)) => {
                tracing::warn!(error = %error, "a letter waits for a service");
                std::thread::sleep(PAUSE);
            }
            None => {
                return Err(RunError::stopped(
                    StopKind::Unavailable,
                    "told to stop while a letter waits for a service: it stays, and was not replayed",
                    "start again when the service answers",
                ));
            }
        }
    }
}

/// One try; none once it was told to stop and patience is over.
async fn attempt(
    plan: &Plan,
    message: &Record,
    told: &mut Option<Instant>,
) -> Option<Result<Vec<Outcome>, TransformError>> {
    let mut answer = plan.transform.apply(slice::from_ref(message));
    loop {
        let draining = plan.shutdown() != Shutdown::Run;
        if draining && (plan.is_stopping() || told.get_or_insert_with(Instant::now).elapsed() >= DRAIN_PATIENCE) {
            return None;
        }
        // The transform may wait for longer than a signal should.
        if let Ok(answer) = tokio::time::timeout(LOOK, &mut answer).await {
            return Some(answer);
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    fs::remove_file(path)?;
    // The name is gone for good only with the folder on disk.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
