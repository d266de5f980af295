//! What must not work: opening without rights at the KMS, a tampered value, values moved to another place.

use std::slice;

use bytes::Bytes;
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use sealflow::pipeline::{DeadLetter, Header, Position, Record, Route, Timestamp, Transform as _, TransformError};

use super::bench::{Bench, Who};
use super::stream::{Streamed, wrong};
use crate::failure::Result;

/// One attempt and how it was refused.
pub(super) struct Refusal {
    pub(super) who: &'static str,
    pub(super) answer: String,
}

/// Tries them all.
pub(super) async fn run(bench: &Bench, streamed: &Streamed) -> Result<Vec<Refusal>> {
    let [first, second] = streamed.sealed.as_slice() else {
        return Ok(Vec::new());
    };
    let (first, second) = (record_of(first), record_of(second));
    let mut refusals = vec![without_rights(bench, &first).await?];
    for (who, record) in [
        ("a value with one bit changed", edited(&first, flip_a_bit)?),
        ("a value moved to another field", edited(&first, swap_two_fields)?),
        (
            "a card number moved to another record (its policy binds it to `id`)",
            with_card_of(&first, &second)?,
        ),
    ] {
        refusals.push(Refusal {
            who,
            answer: refused(bench, record).await?,
        });
    }
    Ok(refusals)
}

async fn without_rights(bench: &Bench, record: &Record) -> Result<Refusal> {
    let intern = bench.open_transform(Who::Intern).await?;
    match intern.apply(slice::from_ref(record)).await {
        Err(TransformError::Stop { reason, .. }) => Ok(Refusal {
            who: "role/intern, without rights at the KMS key",
            answer: reason,
        }),
        _ => Err(wrong("a principal without rights was not refused")),
    }
}

/// The code of the dead letter that the record becomes.
async fn refused(bench: &Bench, record: Record) -> Result<String> {
    let opener = bench.open_transform(Who::Pipeline).await?;
    let outcomes = opener
        .apply(&[record])
        .await
        .map_err(|error| wrong(&error.to_string()))?;
    let letter = outcomes
        .first()
        .filter(|outcome| outcome.route == Route::DeadLetter)
        .and_then(|outcome| outcome.record.value.as_ref());
    let letter = letter
        .and_then(|json| DeadLetter::from_json(json).ok())
        .ok_or_else(|| wrong("a tampered record was opened"))?;
    Ok(format!(
        "refused ({}), the record goes to the dead letters, sealed whole",
        letter.code
    ))
}

fn record_of(message: &OwnedMessage) -> Record {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    Record {
        position: Position {
            topic: message.topic().into(),
            partition: message.partition(),
            offset: message.offset(),
        },
        timestamp: Timestamp::None,
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: headers
            .map(|header| Header {
                name: header.key.to_owned().into(),
                value: header.value.map(Bytes::copy_from_slice),
            })
            .collect(),
    }
}

fn edited(record: &Record, edit: fn(&str) -> Option<String>) -> Result<Record> {
    let value = record
        .value
        .as_deref()
        .and_then(|value| std::str::from_utf8(value).ok());
    let value = value
        .and_then(edit)
        .ok_or_else(|| wrong("the sealed record has another shape than expected"))?;
    Ok(Record {
        value: Some(value.into()),
        ..record.clone()
    })
}

/// Byte ranges of the sealed texts in a record.
fn sealed_ranges(value: &str) -> Vec<std::ops::Range<usize>> {
    let starts = value.match_indices("\"sf1.").map(|(at, _)| at + 1);
    starts
        .filter_map(|start| value[start..].find('"').map(|len| start..start + len))
        .collect()
}

fn flip_a_bit(value: &str) -> Option<String> {
    let at = sealed_ranges(value).first()?.end - 4;
    let other = if value.as_bytes()[at] == b'A' { "B" } else { "A" };
    Some([&value[..at], other, &value[at + 1..]].concat())
}

fn swap_two_fields(value: &str) -> Option<String> {
    let ranges = sealed_ranges(value);
    let (a, b) = (ranges.first()?.clone(), ranges.get(1)?.clone());
    Some(
        [
            &value[..a.start],
            &value[b.clone()],
            &value[a.end..b.start],
            &value[a],
            &value[b.end..],
        ]
        .concat(),
    )
}

/// `first` with the last sealed value (a card number) of `second`.
fn with_card_of(first: &Record, second: &Record) -> Result<Record> {
    let shape = || wrong("the sealed record has another shape than expected");
    let text = |record: &Record| {
        record
            .value
            .as_deref()
            .and_then(|value| std::str::from_utf8(value).ok())
            .map(str::to_owned)
    };
    let (to, from) = (text(first).ok_or_else(shape)?, text(second).ok_or_else(shape)?);
    let (target, source) = (
        sealed_ranges(&to).pop().ok_or_else(shape)?,
        sealed_ranges(&from).pop().ok_or_else(shape)?,
    );
    let value = [&to[..target.start], &from[source], &to[target.end..]].concat();
    Ok(Record {
        value: Some(value.into()),
        ..first.clone()
    })
}
