//! What a thread group holds between reading and committing: batches being collected and transformed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sealflow::pipeline::{BatchLimits, Collector, Counters, Outcome, Record, StopKind, Transform, TransformError};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::error::RunError;

/// Batches that may be with the transform at once: one is worked on while another is written.
const MAX_IN_FLIGHT: usize = 3;

/// First and longest pause between two attempts while a service is away.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Topic and partition of the source.
pub(crate) type Partition = (Arc<str>, i32);

/// Offsets that a batch holds of one partition: `[first, next)`, with gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub first: i64,
    pub next: i64,
}

/// Offsets per partition.
pub(crate) type Ranges = BTreeMap<Partition, Offsets>;

/// A batch whose transform has answered.
#[derive(Debug)]
pub(crate) struct Transformed {
    pub ranges: Ranges,
    pub outcomes: Vec<Outcome>,
    pub source_bytes: u64,
}

/// A batch that the transform works on.
struct InFlight {
    ranges: Ranges,
    records: usize,
    source_bytes: u64,
    answer: Receiver<Result<Vec<Outcome>, TransformError>>,
    task: AbortHandle,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reading side of a thread group.
pub(crate) struct Flow {
    collector: Collector,
    in_flight: VecDeque<InFlight>,
    transform: Arc<dyn Transform>,
    counters: Arc<Counters>,
    runtime: Handle,
    /// Where to go on reading, for partitions whose records were dropped.
    rewinds: BTreeMap<Partition, i64>,
}

impl Flow {
    pub(crate) fn new(
        limits: BatchLimits,
        transform: Arc<dyn Transform>,
        counters: Arc<Counters>,
        runtime: Handle,
    ) -> Self {
        Self {
            collector: Collector::new(limits),
            in_flight: VecDeque::new(),
            transform,
            counters,
            runtime,
            rewinds: BTreeMap::new(),
        }
    }

    /// Takes a record in.
    pub(crate) fn push(&mut self, record: Record) {
        self.collector.push(record, Instant::now());
    }

    /// Whether the collected batch is full and no other may be started: reading must wait.
    pub(crate) fn is_full(&self) -> bool {
        self.collector.is_full() && self.in_flight.len() >= MAX_IN_FLIGHT
    }

    /// Whether the batch being collected has reached its size.
    pub(crate) fn is_batch_full(&self) -> bool {
        self.collector.is_full()
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.collector.is_empty() && self.in_flight.is_empty()
    }

    /// Whether a batch is with the transform.
    pub(crate) fn is_transforming(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// When the collected batch closes by time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.collector.deadline()
    }

    /// Hands the collected batch to the transform if it is due (or `now_please`) and there is room.
    pub(crate) fn dispatch(&mut self, now_please: bool) {
        let due = self.collector.is_due(Instant::now()) || (now_please && !self.collector.is_empty());
        if !due || self.in_flight.len() >= MAX_IN_FLIGHT {
            return;
        }
        let records = self.collector.take();
        let (sender, answer) = sync_channel(1);
        let (ranges, count) = (ranges_of(&records), records.len());
        let source_bytes = records.iter().map(|record| record.payload_bytes() as u64).sum();
        let task = transform_until_answered(Arc::clone(&self.transform), Arc::clone(&self.counters), records, sender);
        let task = self.runtime.spawn(task).abort_handle();
        self.in_flight.push_back(InFlight {
            ranges,
            records: count,
            source_bytes,
            answer,
            task,
        });
    }

    /// The oldest batch, if its transform answers within `wait`.
    pub(crate) fn next_transformed(&mut self, wait: Duration) -> Result<Option<Transformed>, RunError> {
        let Some(batch) = self.in_flight.front_mut() else {
            return Ok(None);
        };
        let outcomes = match batch.answer.recv_timeout(wait) {
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(TransformError::Stop { kind, reason, help })) => {
                return Err(RunError::Stopped { kind, reason, help });
            }
            // Retries are made by the task and never come here; another kind of error must not be passed over.
            Ok(Err(error)) => return Err(RunError::stopped(StopKind::Internal, error.to_string(), "see the log")),
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err(transform_is_broken("ended without an answer")),
        };
        if outcomes.len() != batch.records {
            return Err(transform_is_broken("did not answer with one outcome per record"));
        }
        let ranges = std::mem::take(&mut batch.ranges);
        let source_bytes = batch.source_bytes;
        self.in_flight.pop_front();
        Ok(Some(Transformed {
            ranges,
            outcomes,
            source_bytes,
        }))
    }

    /// Drops everything that is held; its partitions are to be read again from the first dropped record.
    pub(crate) fn drop_all(&mut self) {
        let collected = ranges_of(&self.collector.take());
        let in_flight = std::mem::take(&mut self.in_flight);
        for batch in &in_flight {
            self.rewind(&batch.ranges);
        }
        self.rewind(&collected);
    }

    /// Notes that these offsets must be read again.
    pub(crate) fn rewind(&mut self, ranges: &Ranges) {
        for (partition, offsets) in ranges {
            let at = self.rewinds.entry(partition.clone()).or_insert(offsets.first);
            *at = (*at).min(offsets.first);
        }
    }

    /// Forgets where a partition was to be read again: another member reads it now.
    pub(crate) fn forget(&mut self, partition: &Partition) {
        self.rewinds.remove(partition);
    }

    /// Partitions to read again, and from where.
    pub(crate) fn take_rewinds(&mut self) -> BTreeMap<Partition, i64> {
        std::mem::take(&mut self.rewinds)
    }
}

fn transform_is_broken(what: &str) -> RunError {
    RunError::stopped(
        StopKind::Internal,
        format!("the transform {what}"),
        "this is a bug in sealflow: please report it with the log",
    )
}

fn ranges_of(records: &[Record]) -> Ranges {
    let mut ranges = Ranges::new();
    for record in records {
        let (partition, offset) = (record.position.partition, record.position.offset);
        ranges
            .entry((Arc::clone(&record.position.topic), partition))
            .and_modify(|offsets| offsets.next = offset + 1)
            .or_insert(Offsets {
                first: offset,
                next: offset + 1,
            });
    }
    ranges
}

/// Hands the same records in until the answer is final. No transaction is open meanwhile.
async fn transform_until_answered(
    transform: Arc<dyn Transform>,
    counters: Arc<Counters>,
    records: Vec<Record>,
    sender: SyncSender<Result<Vec<Outcome>, TransformError>>,
) {
    let mut waiting = None;
    let mut pause = BACKOFF.0;
    let answer = loop {
        match transform.apply(records.clone()).await {
            Err(TransformError::Retry { reason }) => {
                if waiting.is_none() {
                    tracing::warn!(reason, records = records.len(), "batch waits for a service");
                }
                waiting.get_or_insert_with(|| Waiting::new(Arc::clone(&counters)));
                Counters::add(&counters.retries, 1);
                tokio::time::sleep(jitter(pause)).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
            answer => break answer,
        }
    };
    if waiting.take().is_some() {
        tracing::info!(records = records.len(), "batch goes on");
    }
    Counters::add(&counters.batches, 1);
    // Nobody listens any more if the batch was dropped, which is fine: it will be read again.
    let _ = sender.send(answer);
}

/// Half to all of a pause, so that many waiting pipelines do not come back at once.
fn jitter(pause: Duration) -> Duration {
    let mut random = [0; 4];
    if getrandom::fill(&mut random).is_err() {
        return pause;
    }
    pause.mul_f64(0.5 + f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX) / 2.0)
}

/// Counts a batch as waiting for as long as it lives, however its task ends.
struct Waiting(Arc<Counters>);

impl Waiting {
    fn new(counters: Arc<Counters>) -> Self {
        Counters::add(&counters.waiting, 1);
        Self(counters)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
