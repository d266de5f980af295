//! Collects records until a batch is full or old enough; knows no clock but the instants it is given.

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::units::{ByteSize, Span};

/// When a batch closes: whichever limit is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchLimits {
    /// Most records in a batch.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub rows: u32,
    /// Most bytes of keys, values and headers in a batch; a single larger record is a batch of its own.
    pub bytes: ByteSize,
    /// How long the first record of a batch waits for others.
    pub time: Span,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            rows: 8_192,
            bytes: ByteSize(4 << 20),
            time: Span(std::time::Duration::from_millis(100)),
        }
    }
}

/// The batch that is being collected.
#[derive(Debug)]
pub struct Collector {
    limits: BatchLimits,
    records: Vec<Record>,
    bytes: u64,
    opened: Option<Instant>,
}

impl Collector {
    /// An empty batch that closes at `limits`.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            records: Vec::new(),
            bytes: 0,
            opened: None,
        }
    }

    /// Adds a record; the first one starts the batch's clock.
    pub fn push(&mut self, record: Record, now: Instant) {
        self.opened.get_or_insert(now);
        self.bytes += record.payload_bytes() as u64;
        self.records.push(record);
    }

    /// Whether the batch must close before another record is added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.records.len() >= self.limits.rows as usize || self.bytes >= self.limits.bytes.0
    }

    /// When the batch closes by time; `None` while it is empty.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.opened.map(|opened| opened + self.limits.time.0)
    }

    /// Whether the batch holds something and is full or old enough.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.is_full() || self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Whether nothing was collected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What was collected, in order; the collector is empty afterwards.
    pub fn take(&mut self) -> Vec<Record> {
        self.bytes = 0;
        self.opened = None;
        std::mem::take(&mut self.records)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::pipeline::{Headers, Position, Timestamp};

    fn record(len: usize) -> Record {
        Record {
            position: Position {
                topic: "t".into(),
                partition: 0,
                offset: 0,
            },
            timestamp: Timestamp::None,
            key: None,
            value: Some(Bytes::from(vec![0; len])),
            headers: Headers::new(),
        }
    }

    fn limits(rows: u32, bytes: u64) -> BatchLimits {
        BatchLimits {
            rows,
            bytes: ByteSize(bytes),
            time: Span(Duration::from_millis(100)),
        }
    }

    #[test]
    fn a_batch_closes_by_rows_by_bytes_and_by_time() {
        let now = Instant::now();
        let mut by_rows = Collector::new(limits(2, 1_000));
        by_rows.push(record(1), now);
        assert!(!by_rows.is_due(now));
        by_rows.push(record(1), now);
        assert!(by_rows.is_full());

        let mut by_bytes = Collector::new(limits(10, 1_000));
        by_bytes.push(record(1_000), now);
        assert!(by_bytes.is_full());

        let mut by_time = Collector::new(limits(10, 1_000));
        by_time.push(record(1), now);
        by_time.push(record(1), now + Duration::from_millis(99));
        assert!(!by_time.is_due(now + Duration::from_millis(99)));
        assert!(by_time.is_due(now + Duration::from_millis(100)));
    }

    #[test]
    fn taking_a_batch_leaves_an_empty_one_whose_clock_is_not_started() {
        let now = Instant::now();
        let mut collector = Collector::new(limits(1, 1));
        collector.push(record(5), now);
        assert_eq!(collector.take().len(), 1);
        assert!(collector.is_empty() && !collector.is_full());
        assert_eq!(collector.deadline(), None);
    }

    #[test]
    fn an_empty_batch_is_never_due() {
        let collector = Collector::new(limits(1, 1));
        assert!(!collector.is_due(Instant::now() + Duration::from_secs(3_600)));
    }
}
