//! What a landing holds of one partition.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sealflow::pipeline::{Format, Outcome, StopKind};
use sealflow::table::FileId;
use sealflow::table::landing::{BucketRule, OpenFile, Step, Stretch};

use crate::error::RunError;

/// First and longest pause between two attempts at a step.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Policy and schema of open files.
pub(super) type Version = ([u8; 32], u64);

/// One partition.
pub(super) struct Part {
    /// Of this assignment: what comes back for an earlier one is not for this one.
    pub(super) epoch: u64,
    pub(super) stretch: Stretch,
    rule: BucketRule,
    pub(super) files: BTreeMap<FileId, Box<dyn OpenFile>>,
    /// Dead letters of the records that were gathered, in their order: they are sent when the files are closed.
    letters: Vec<Outcome>,
    letter_bytes: u64,
    /// Of the files that are open, or of the last that were.
    pub(super) version: Version,
    /// The next offset to hand to the stretch. If it is another one than the stretch wants, the consumer goes there.
    pub(super) at: i64,
    /// The first record after going back is none beyond this.
    expected: Option<i64>,
    /// Whether librdkafka is told to fetch.
    pub(super) is_fetching: bool,
    /// Records, dead letters and bytes since the last commit.
    pub(super) counted: Counted,
    /// No step before this instant.
    pub(super) retry_at: Option<Instant>,
    failures: u32,
    pub(super) used: Instant,
}

/// What is to be counted at the next commit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    pub(super) records: u64,
    pub(super) dead: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) files: u64,
    pub(super) rows: u64,
}

impl Part {
    pub(super) fn new(epoch: u64, stretch: Stretch, format: Format) -> Result<Self, RunError> {
        let rule = rule(&stretch, format)?;
        Ok(Self {
            epoch,
            rule,
            at: stretch.start(),
            stretch,
            files: BTreeMap::new(),
            letters: Vec::new(),
            letter_bytes: 0,
            version: ([0; 32], 0),
            expected: None,
            is_fetching: false,
            counted: Counted::default(),
            retry_at: None,
            failures: 0,
            used: Instant::now(),
        })
    }

    /// The stretch, and the rule that gives its records buckets now.
    pub(super) fn with_rule(&mut self, format: Format) -> Result<(&mut Stretch, &mut BucketRule), RunError> {
        if self.rule.by() != self.stretch.partition_by() {
            self.rule = rule(&self.stretch, format)?;
        }
        Ok((&mut self.stretch, &mut self.rule))
    }

    /// Where the consumer must be; `None` if nothing is to be read.
    pub(super) fn position(&self) -> Option<i64> {
        match self.stretch.step() {
            Step::Gather { from } | Step::Rebuild { from } => Some(from),
            _ => None,
        }
    }

    /// What was read and is not used is read again.
    pub(super) fn go_back(&mut self) {
        self.at = i64::MIN;
    }

    /// The consumer is at `from` now.
    pub(super) fn went_to(&mut self, from: i64) {
        self.at = from;
        self.expected = match self.stretch.step() {
            // It is where a record was.
            Step::Rebuild { .. } => Some(from),
            // Records that were compacted meanwhile are missed by nobody; what was deleted, the reset of the consumer tells.
            _ => None,
        };
    }

    /// Whether this may be the first record after going back: anything later would skip records.
    pub(super) fn check_expected(&mut self, offset: i64) -> Result<(), RunError> {
        let Some(expected) = self.expected else { return Ok(()) };
        if offset < expected {
            return Ok(());
        }
        self.expected = None;
        if offset == expected {
            return Ok(());
        }
        let whose = self.stretch.whose();
        Err(RunError::stopped(
            StopKind::Data,
            format!(
                "{}/{}: offset {offset} came where {expected} was read before: the source does not hold it any more",
                whose.topic, whose.partition
            ),
            "docs/operations.md says how to go on without records that are lost",
        ))
    }

    /// Files that were begun are given up, and what is not durable is done again.
    pub(super) fn lost(&mut self) {
        self.stretch.lost();
        self.drop_files();
        self.go_back();
        self.later();
    }

    pub(super) fn drop_files(&mut self) {
        self.files.clear();
        self.take_letters();
        self.counted = Counted::default();
    }

    /// Keeps a dead letter until its stretch ends.
    pub(super) fn keep_letter(&mut self, letter: Outcome) {
        self.letter_bytes += letter.record.payload_bytes() as u64;
        self.letters.push(letter);
    }

    /// The dead letters of the stretch, which are the caller's now.
    pub(super) fn take_letters(&mut self) -> Vec<Outcome> {
        self.letter_bytes = 0;
        std::mem::take(&mut self.letters)
    }

    /// Bytes of dead letters in memory.
    pub(super) fn letter_bytes(&self) -> u64 {
        self.letter_bytes
    }

    /// A step failed in a way that passes: it is tried again, later and later.
    pub(super) fn later(&mut self) {
        let pause = BACKOFF.0.saturating_mul(1 << self.failures.min(10)).min(BACKOFF.1);
        self.failures += 1;
        self.retry_at = Some(Instant::now() + pause);
    }

    /// A step went well.
    pub(super) fn went_well(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }

    /// Whether something is to be done that is not reading.
    pub(super) fn has_step(&self, now: Instant) -> bool {
        !self.stretch.is_reading() && self.retry_at.is_none_or(|at| at <= now)
    }

    /// Bytes written to open files, and bytes of rows in memory.
    pub(super) fn sizes(&self) -> (u64, u64) {
        let sizes = self.files.values().map(|file| file.sizes());
        sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    }
}

fn rule(stretch: &Stretch, format: Format) -> Result<BucketRule, RunError> {
    BucketRule::new(stretch.partition_by(), format).map_err(|error| {
        RunError::stopped(
            StopKind::Config,
            format!("partition_by: {error}"),
            "name a field of the record's value, or leave event_time out",
        )
    })
}
