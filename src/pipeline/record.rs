//! One log event with everything a broker keeps beside its value.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

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
    pub headers: Vec<Header>,
}

impl Record {
    /// Bytes of key, value and headers together: what counts against the memory bound.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|h| h.name.len() + len(&h.value)).sum();
        len(&self.key) + len(&self.value) + headers
    }
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
