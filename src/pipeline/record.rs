//! One log event with everything a broker keeps beside its value.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::columns::prefetch;

/// How many records ahead values are fetched into the cache.
const AHEAD: usize = 2;

/// Where a record was read: names the record in every error and dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Topic, or the name of another source (a file, `stdin`).
    pub topic: Arc<str>,
    /// Partition; 0 for files.
    pub partition: i32,
    /// Offset; the record's number in a file, from 0.
    pub offset: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// A record's time stamp, milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timestamp {
    /// The source gives none.
    None,
    /// Set by the producer.
    Created(i64),
    /// Set by the broker on append.
    Appended(i64),
}

/// One header of a record: names may repeat, values may be null.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// Name, not unique. Ours are not copied for each record.
    pub name: Cow<'static, str>,
    /// Value; `None` is Kafka's null.
    pub value: Option<Bytes>,
}

/// Headers of a record, in order. Most sealed records have the one with their envelopes, for which no memory is asked for.
pub type Headers = SmallVec<[Header; 1]>;

/// One record. `Debug` shows its position and sizes, never its content.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it was read.
    pub position: Position,
    /// Time stamp.
    pub timestamp: Timestamp,
    /// Key; `None` is Kafka's null.
    pub key: Option<Bytes>,
    /// Value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in order.
    pub headers: Headers,
}

impl Record {
    /// Bytes of key, value and headers together: what counts against the memory bound.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|h| h.name.len() + len(&h.value)).sum();
        len(&self.key) + len(&self.value) + headers
    }

    /// The same record with no value, and room for `more` headers.
    #[inline(always)] // it is made where it is to be
    pub(super) fn without_value(&self, more: usize) -> Self {
        let mut headers = Headers::with_capacity(self.headers.len() + more);
        headers.extend(self.headers.iter().cloned());
        Self {
            position: self.position.clone(),
            timestamp: self.timestamp,
            key: self.key.clone(),
            value: None,
            headers,
        }
    }
}

/// The records in order; the value of one that comes soon is fetched into the cache meanwhile.
pub(super) fn ahead(records: &[Record]) -> impl Iterator<Item = &Record> {
    let soon = records.iter().skip(AHEAD).map(Some).chain(std::iter::repeat(None));
    records.iter().zip(soon).map(|(record, soon)| {
        if let Some(value) = soon.and_then(|soon| soon.value.as_deref()) {
            prefetch(value);
        }
        record
    })
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("position", &format_args!("{}", self.position))
            .field("payload_bytes", &self.payload_bytes())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
