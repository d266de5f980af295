//! Kafka messages as records and back: keys, values, headers and timestamps as they were.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rdkafka::Timestamp as KafkaTimestamp;
use rdkafka::message::{BorrowedMessage, Header as KafkaHeader, Headers as KafkaHeaders, Message, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use sealflow::keys::envelope::KEYS_HEADER;
use sealflow::pipeline::{Header, Headers, Position, Record, Timestamp};

/// A message that cannot be represented.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnreadableHeader;

/// Most bytes of keys, values and headers that lie in one piece of memory: a record that is held holds no more of others.
const PIECE: usize = 128 << 10;

/// Where messages are copied to: one piece of memory for many, as each is small and all of a batch go together.
#[derive(Default)]
pub(crate) struct Copies {
    piece: BytesMut,
}

impl Copies {
    fn of(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.len() > PIECE / 8 {
            return Bytes::copy_from_slice(bytes);
        }
        if self.piece.capacity() < bytes.len() {
            self.piece = BytesMut::with_capacity(PIECE);
        }
        self.piece.extend_from_slice(bytes);
        self.piece.split().freeze()
    }
}

/// Copies a message out of librdkafka's buffers.
pub(crate) fn from_message(
    topic: &Arc<str>,
    message: &BorrowedMessage<'_>,
    copies: &mut Copies,
) -> Result<Record, UnreadableHeader> {
    Ok(Record {
        position: Position {
            topic: Arc::clone(topic),
            partition: message.partition(),
            offset: message.offset(),
        },
        timestamp: match message.timestamp() {
            KafkaTimestamp::NotAvailable => Timestamp::None,
            KafkaTimestamp::CreateTime(millis) => Timestamp::Created(millis),
            KafkaTimestamp::LogAppendTime(millis) => Timestamp::Appended(millis),
        },
        key: message.key().map(|key| copies.of(key)),
        value: message.payload().map(|value| copies.of(value)),
        headers: match message.headers() {
            Some(headers) => copy_headers(headers, copies)?,
            None => Headers::new(),
        },
    })
}

fn copy_headers(headers: &impl KafkaHeaders, copies: &mut Copies) -> Result<Headers, UnreadableHeader> {
    // rdkafka panics on a header name that is not UTF-8. A record from outside must not be able to do that.
    let copied = catch_unwind(AssertUnwindSafe(|| {
        headers
            .iter()
            .map(|header| Header {
                name: match header.key {
                    KEYS_HEADER => KEYS_HEADER.into(),
                    name => name.to_owned().into(),
                },
                value: header.value.map(|value| copies.of(value)),
            })
            .collect()
    }));
    copied.map_err(|_| UnreadableHeader)
}

/// The message that is produced for a record. `index` comes back in a failed delivery's report.
pub(crate) fn to_message<'a>(
    topic: &'a str,
    partition: i32,
    record: &'a Record,
    index: usize,
) -> BaseRecord<'a, [u8], [u8], usize> {
    let mut message = BaseRecord::with_opaque_to(topic, index).partition(partition);
    message.key = record.key.as_deref();
    message.payload = record.value.as_deref();
    message.timestamp = match record.timestamp {
        Timestamp::None => None,
        Timestamp::Created(millis) | Timestamp::Appended(millis) => Some(millis),
    };
    if !record.headers.is_empty() {
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        message.headers = Some(record.headers.iter().fold(headers, |headers, header| {
            headers.insert(KafkaHeader {
                key: &header.name,
                value: header.value.as_deref(),
            })
        }));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_order_repeats_nulls_and_empty_values() {
        let record = Record {
            position: Position {
                topic: "t".into(),
                partition: 3,
                offset: 9,
            },
            timestamp: Timestamp::Created(1),
            key: Some(Bytes::new()),
            value: None,
            headers: vec![
                Header {
                    name: "b".into(),
                    value: Some(Bytes::from_static(b"1")),
                },
                Header {
                    name: "a".into(),
                    value: None,
                },
                Header {
                    name: "b".into(),
                    value: Some(Bytes::new()),
                },
                Header {
                    name: "".into(),
                    value: Some(Bytes::from_static(b"\0\xff")),
                },
            ]
            .into(),
        };
        let message = to_message("out", 3, &record, 0);
        assert_eq!((message.key, message.payload), (Some(&b""[..]), None));
        let copied = copy_headers(&message.headers.unwrap_or_default(), &mut Copies::default());
        assert_eq!(copied, Ok(record.headers));
    }
}
