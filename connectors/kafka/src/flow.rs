//! What a thread group holds between reading and committing: batches being collected and transformed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sealflow::pipeline::{
    BatchLimits, Collector, Counters, Outcome, Position, Record, Route, SPANS, StopKind, TOO_LARGE, Transform,
    TransformError, check_prefix,
};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tracing::{Instrument as _, Span};

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
    /// Each record comes after the one before.
    pub in_order: bool,
}

/// Offsets per partition.
pub(crate) type Ranges = BTreeMap<Partition, Offsets>;

/// The first records of a batch, whose transform has answered.
#[derive(Debug)]
pub(crate) struct Transformed {
    pub ranges: Ranges,
    pub outcomes: Vec<Outcome>,
    /// Where each outcome's record was read. An outcome's own position may be another one: that of the record in a
    /// dead letter.
    pub read_at: Vec<Position>,
    pub source_bytes: u64,
    /// From its first record to its commit.
    pub span: Span,
}

impl Transformed {
    pub(crate) fn new(records: &[Record], outcomes: Vec<Outcome>, span: Span) -> Self {
        Self {
            ranges: ranges_of(records),
            outcomes,
            read_at: records.iter().map(|record| record.position.clone()).collect(),
            source_bytes: records.iter().map(|record| record.payload_bytes() as u64).sum(),
            span,
        }
    }
}

/// What a record became that was larger than its topic takes: what the next attempt does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Its sealed form: it becomes a dead letter.
    Outcome,
    /// Its dead letter, for which there was another reason: it goes to the folder.
    Letter,
    /// First the one, then the other.
    Both,
}

/// Records whose outcomes were too large, by topic, partition and offset. Of records that are held only, so no
/// longer than the batches in flight.
type Refusals = BTreeMap<(Arc<str>, i32, i64), Refusal>;

/// What a transform said, and the records it left for the next time.
type Answer = Result<(Transformed, Vec<Record>), TransformError>;

/// A batch that the transform works on.
struct InFlight {
    ranges: Ranges,
    answer: Receiver<Answer>,
    task: AbortHandle,
    span: Span,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reading side of a thread group.
pub(crate) struct Flow {
    collector: Collector,
    /// The span of the batch being collected, and within it that of reading.
    collecting: Option<(Span, Span)>,
    in_flight: VecDeque<InFlight>,
    transform: Arc<dyn Transform>,
    counters: Arc<Counters>,
    runtime: Handle,
    /// Where to go on reading, for partitions whose records were dropped.
    rewinds: BTreeMap<Partition, i64>,
    /// Where reading was gone back to, of partitions that no record has come of since.
    sought: BTreeMap<Partition, i64>,
    refusals: Arc<Refusals>,
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
            collecting: None,
            in_flight: VecDeque::new(),
            transform,
            counters,
            runtime,
            rewinds: BTreeMap::new(),
            sought: BTreeMap::new(),
            refusals: Arc::default(),
        }
    }

    /// Takes a record in, unless its partition has still to be gone back in: what librdkafka had fetched ahead may come
    /// before the seek, and would be taken for the next record after what was dropped.
    ///
    /// After the seek, the first record must be the one that was dropped first: anything later would skip records.
    pub(crate) fn push(&mut self, record: Record) -> Result<(), RunError> {
        if !self.rewinds.is_empty() || !self.sought.is_empty() {
            let position = &record.position;
            let partition = (Arc::clone(&position.topic), position.partition);
            if self.rewinds.contains_key(&partition) {
                return Ok(());
            }
            if let Some(expected) = self.sought.remove(&partition)
                && position.offset > expected
            {
                return Err(RunError::Unavailable {
                    reason: format!(
                        "{position} came instead of offset {expected}, which was read before an abort and must be read again, \
                         unless the source has removed it since; the next start goes on from what is committed"
                    ),
                });
            }
        }
        self.collecting.get_or_insert_with(batch_span);
        self.collector.push(record, Instant::now());
        Ok(())
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
        let (span, _) = self.collecting.take().unwrap_or_else(batch_span);
        span.record("records", records.len());
        span.record(
            "bytes",
            records.iter().map(|record| record.payload_bytes() as u64).sum::<u64>(),
        );
        let batch = self.start(records, span);
        self.in_flight.push_back(batch);
    }

    fn start(&self, records: Vec<Record>, span: Span) -> InFlight {
        let (sender, answer) = sync_channel(1);
        let ranges = ranges_of(&records);
        span.record("partitions", ranges.len());
        let work = Work {
            transform: Arc::clone(&self.transform),
            counters: Arc::clone(&self.counters),
            refusals: Arc::clone(&self.refusals),
            records,
            span: span.clone(),
        };
        let transform = tracing::debug_span!(target: SPANS, parent: &span, "transform");
        let task = self
            .runtime
            .spawn(work.until_answered(sender).instrument(transform))
            .abort_handle();
        InFlight {
            ranges,
            answer,
            task,
            span,
        }
    }

    /// The first records of the oldest batch, if its transform answers within `wait`. What is left of the batch
    /// goes to the transform again, and stays the oldest.
    pub(crate) fn next_transformed(&mut self, wait: Duration) -> Result<Option<Transformed>, RunError> {
        let Some(batch) = self.in_flight.front_mut() else {
            return Ok(None);
        };
        let (transformed, rest) = match batch.answer.recv_timeout(wait) {
            Ok(Ok(answer)) => answer,
            Ok(Err(TransformError::Stop { kind, reason, help })) => {
                return Err(RunError::Stopped { kind, reason, help });
            }
            // Retries are made by the task and never come here; another kind of error must not be passed over.
            Ok(Err(error)) => return Err(RunError::stopped(StopKind::Internal, error.to_string(), "see the log")),
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err(transform_is_broken("ended without an answer")),
        };
        let span = batch.span.clone();
        self.in_flight.pop_front();
        if !rest.is_empty() {
            let rest = self.start(rest, span);
            self.in_flight.push_front(rest);
        }
        Ok(Some(transformed))
    }

    /// Notes that what became of the record at `position` was larger than its topic takes.
    pub(crate) fn refused(&mut self, position: &Position, route: Route) {
        let key = (Arc::clone(&position.topic), position.partition, position.offset);
        let refusals = Arc::make_mut(&mut self.refusals);
        let refusal = match (route, refusals.get(&key)) {
            (Route::Target, _) => Refusal::Outcome,
            (_, Some(Refusal::Outcome | Refusal::Both)) => Refusal::Both,
            _ => Refusal::Letter,
        };
        refusals.insert(key, refusal);
    }

    /// Forgets what was refused of records that are committed now.
    pub(crate) fn committed(&mut self, (topic, partition): &Partition, next: i64) {
        if !self.refusals.is_empty() {
            Arc::make_mut(&mut self.refusals)
                .retain(|(t, p, offset), _| t != topic || p != partition || *offset >= next);
        }
    }

    /// Drops everything that is held; its partitions are to be read again from the first dropped record.
    pub(crate) fn drop_all(&mut self) {
        let collected = ranges_of(&self.collector.take());
        self.collecting = None;
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
        self.sought.remove(partition);
        self.committed(partition, i64::MAX);
    }

    /// Whether something that was dropped is to be read again.
    pub(crate) fn has_rewinds(&self) -> bool {
        !self.rewinds.is_empty()
    }

    /// Partitions to read again, and from where: the caller goes back there before it reads.
    pub(crate) fn take_rewinds(&mut self) -> BTreeMap<Partition, i64> {
        self.sought
            .extend(self.rewinds.iter().map(|(partition, at)| (partition.clone(), *at)));
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

/// A new trace: the batch, and reading as its first part.
fn batch_span() -> (Span, Span) {
    use tracing::field::Empty;
    let batch =
        tracing::debug_span!(target: SPANS, parent: None, "batch", records = Empty, bytes = Empty, partitions = Empty);
    let read = tracing::debug_span!(target: SPANS, parent: &batch, "read");
    (batch, read)
}

fn ranges_of(records: &[Record]) -> Ranges {
    let is_of = |a: &Position, b: &Position| a.partition == b.partition && a.topic == b.topic;
    let mut ranges = Ranges::new();
    // Records of a partition come in runs.
    for run in records.chunk_by(|a, b| is_of(&a.position, &b.position)) {
        let at = &run[0].position;
        let offsets = ranges.entry((Arc::clone(&at.topic), at.partition)).or_insert(Offsets {
            first: at.offset,
            next: at.offset,
            in_order: true,
        });
        for record in run {
            let offset = record.position.offset;
            offsets.in_order &= offset >= offsets.next;
            offsets.next = offset + 1;
        }
    }
    ranges
}

/// A batch on its way through the transform.
struct Work {
    transform: Arc<dyn Transform>,
    counters: Arc<Counters>,
    refusals: Arc<Refusals>,
    records: Vec<Record>,
    /// The batch's.
    span: Span,
}

impl Work {
    /// Hands the same records in until the answer is final. No transaction is open meanwhile.
    async fn until_answered(self, sender: SyncSender<Answer>) {
        let mut waiting = None;
        let mut pause = BACKOFF.0;
        let answer = loop {
            match self.attempt().await {
                Err(TransformError::Retry { reason }) => {
                    if waiting.is_none() {
                        tracing::warn!(reason, records = self.records.len(), "batch waits for a service");
                    }
                    waiting.get_or_insert_with(|| Waiting::new(Arc::clone(&self.counters)));
                    Counters::add(&self.counters.retries, 1);
                    tokio::time::sleep(jitter(pause)).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
                answer => break answer,
            }
        };
        if waiting.take().is_some() {
            tracing::info!(records = self.records.len(), "batch goes on");
        }
        Counters::add(&self.counters.batches, 1);
        let (mut records, span) = (self.records, self.span);
        let answer = answer.map(|outcomes| {
            let rest = records.split_off(outcomes.len());
            (Transformed::new(&records, outcomes, span), rest)
        });
        // Nobody listens any more if the batch was dropped, which is fine: it will be read again.
        let _ = sender.send(answer);
    }

    /// Outcomes of the first records: of those up to the next one that was refused, or of that one.
    async fn attempt(&self) -> Result<Vec<Outcome>, TransformError> {
        let of = |record: &Record| self.refusal(&record.position);
        failpoint!("before-transform", injected());
        let first = self.records.first().and_then(of);
        let run = match first {
            None => self.records.iter().take_while(|record| of(record).is_none()).count(),
            Some(_) => 1,
        };
        let records = &self.records[..run];
        let mut outcomes = match first {
            None | Some(Refusal::Letter) => self.transform.apply(records).await?,
            Some(Refusal::Outcome | Refusal::Both) => self.transform.refuse(records, TOO_LARGE).await?,
        };
        failpoint!("after-transform", injected());
        check_prefix(outcomes.len(), run)?;
        if matches!(first, Some(Refusal::Letter | Refusal::Both)) {
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.route == Route::DeadLetter) {
                outcome.route = Route::Oversize;
            }
        }
        Ok(outcomes)
    }

    fn refusal(&self, position: &Position) -> Option<Refusal> {
        if self.refusals.is_empty() {
            return None;
        }
        let key = (Arc::clone(&position.topic), position.partition, position.offset);
        self.refusals.get(&key).copied()
    }
}

#[cfg(feature = "failpoints")]
fn injected() -> TransformError {
    TransformError::Retry {
        reason: "failed by a failpoint".into(),
    }
}

/// Half to all of a pause, so that many waiting pipelines do not come back at once.
pub(crate) fn jitter(pause: Duration) -> Duration {
    let mut random = [0; 4];
    if getrandom::fill(&mut random).is_err() {
        return pause;
    }
    pause.mul_f64(0.5 + f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX) / 2.0)
}

/// Counts a batch as waiting for as long as it lives, however its task ends.
pub(crate) struct Waiting(Arc<Counters>);

impl Waiting {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Counters::add(&counters.waiting, 1);
        Self(counters)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use sealflow::pipeline::{Headers, Timestamp};

    use super::*;

    struct Unused;

    #[async_trait::async_trait]
    impl Transform for Unused {
        async fn apply(&self, _: &[Record]) -> Result<Vec<Outcome>, TransformError> {
            Ok(Vec::new())
        }
    }

    fn record(topic: &Arc<str>, partition: i32, offset: i64) -> Record {
        Record {
            position: Position {
                topic: Arc::clone(topic),
                partition,
                offset,
            },
            timestamp: Timestamp::None,
            key: None,
            value: Some(b"value".to_vec().into()),
            headers: Headers::new(),
        }
    }

    #[tokio::test]
    async fn a_partition_that_is_to_be_gone_back_in_takes_no_record_until_then() {
        let (transform, counters) = (Arc::new(Unused), Arc::new(Counters::default()));
        let mut flow = Flow::new(BatchLimits::default(), transform, counters, Handle::current());
        let topic: Arc<str> = "t".into();
        flow.push(record(&topic, 0, 10)).unwrap();
        flow.drop_all();
        // Fetched ahead: of the partition that was dropped, and of another one.
        flow.push(record(&topic, 0, 11)).unwrap();
        assert!(flow.is_empty(), "11 would be committed before 10");
        flow.push(record(&topic, 1, 70)).unwrap();
        assert_eq!(flow.take_rewinds(), [((Arc::clone(&topic), 0), 10)].into());
        flow.push(record(&topic, 0, 10)).unwrap();
        flow.push(record(&topic, 0, 12)).unwrap();
        let held = ranges_of(&flow.collector.take());
        assert_eq!(
            held.into_values()
                .map(|offsets| (offsets.first, offsets.next))
                .collect::<Vec<_>>(),
            [(10, 13), (70, 71)]
        );
    }

    #[tokio::test]
    async fn a_seek_that_skips_what_was_dropped_ends_the_run() {
        let (transform, counters) = (Arc::new(Unused), Arc::new(Counters::default()));
        let mut flow = Flow::new(BatchLimits::default(), transform, counters, Handle::current());
        let topic: Arc<str> = "t".into();
        flow.push(record(&topic, 0, 10)).unwrap();
        flow.drop_all();
        flow.take_rewinds();
        let error = flow.push(record(&topic, 0, 11)).unwrap_err();
        assert!(
            error.to_string().contains("t/0/11 came instead of offset 10"),
            "{error}"
        );
        assert!(flow.is_empty());
    }
}
