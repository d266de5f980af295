//! Dead letters: a record that could not be processed, sealed whole, with its position and a code in clear
//! (`docs/format.md`, "Dead letters").

use std::borrow::Cow;

use bytes::Bytes;
use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::record::{Header, Headers, Position, Record, Timestamp};
use crate::seal::value;

/// Marks the format and its version, of letters under a policy key.
pub const FORMAT: &str = "dead-letter/1";
/// Of letters that are sealed to a recipient.
pub const RECIPIENT_FORMAT: &str = "dead-letter/2";
/// The one code of all cryptographic failures: which check failed is nobody's business.
pub const CANNOT_OPEN: &str = "cannot-open";

/// How the record in a dead letter is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As a sealed value, under a data key that KMS unwraps: [`FORMAT`].
    Key,
    /// As a JWE, to an RSA key whose private half no service holds: [`RECIPIENT_FORMAT`].
    Recipient,
}

impl Form {
    fn of(sealflow: &str) -> Result<Self, NotADeadLetter> {
        match sealflow {
            FORMAT => Ok(Self::Key),
            RECIPIENT_FORMAT => Ok(Self::Recipient),
            _ => Err(NotADeadLetter),
        }
    }
}

/// What a dead letter says in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// [`FORMAT`] or [`RECIPIENT_FORMAT`].
    pub sealflow: String,
    /// Stable code of the reason.
    pub code: String,
    /// What the pipeline was doing: `seal` or `open`.
    pub stage: String,
    /// Topic of the record.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The record (key, value, headers, time stamp): a sealed value as text, or a compact JWE.
    pub record: String,
}

/// Bytes that are no dead letter, or not one of this version.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a dead letter of a version known here")]
pub struct NotADeadLetter;

impl DeadLetter {
    /// A dead letter of the record at `position`, whose sealed bytes are `sealed`.
    #[must_use]
    pub fn new(code: &str, stage: &str, position: &Position, sealed: &[u8]) -> Self {
        let mut text = Vec::with_capacity(value::text_len(sealed.len()));
        value::write_text(sealed, &mut text);
        Self {
            sealflow: FORMAT.to_owned(),
            code: code.to_owned(),
            stage: stage.to_owned(),
            topic: position.topic.to_string(),
            partition: position.partition,
            offset: position.offset,
            // The text form is ASCII.
            record: String::from_utf8(text).unwrap_or_default(),
        }
    }

    /// A dead letter to a recipient, whose record is still to be sealed.
    pub(super) fn to_recipient(code: &str, stage: &str, position: &Position) -> Self {
        Self {
            sealflow: RECIPIENT_FORMAT.to_owned(),
            record: String::new(),
            ..Self::new(code, stage, position, &[])
        }
    }

    /// How its record is sealed.
    #[must_use]
    pub fn form(&self) -> Form {
        // Letters are made or read with one of the two.
        Form::of(&self.sealflow).unwrap_or(Form::Key)
    }

    /// The JSON that is written to the dead-letter topic.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Room from the start: growing would copy what may be the largest message of all.
        let mut json = Vec::with_capacity(self.record.len() + self.topic.len() + 256);
        // Strings and integers always serialise, and a `Vec` takes all of it.
        let _ = serde_json::to_writer(&mut json, self);
        json
    }

    /// Only the code of that JSON, without a copy of the record.
    pub fn code_of(json: &[u8]) -> Result<Cow<'_, str>, NotADeadLetter> {
        #[derive(Deserialize)]
        struct Head<'a> {
            sealflow: Cow<'a, str>,
            #[serde(borrow)]
            code: Cow<'a, str>,
        }
        let head: Head<'_> = serde_json::from_slice(json).map_err(|_| NotADeadLetter)?;
        Form::of(&head.sealflow).map(|_| head.code)
    }

    /// Reads that JSON.
    pub fn from_json(json: &[u8]) -> Result<Self, NotADeadLetter> {
        let letter: Self = serde_json::from_slice(json).map_err(|_| NotADeadLetter)?;
        Form::of(&letter.sealflow).map(|_| letter)
    }
}

/// SHA-256 of a letter's JSON, in hexadecimal digits: names the letter wherever it lies. Each has a nonce of its own.
#[must_use]
pub fn digest(json: &[u8]) -> String {
    use std::fmt::Write as _;

    use sha2::{Digest as _, Sha256};
    Sha256::digest(json)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            // Writing into a `String` cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// A record's key, value, headers and time stamp as CBOR: array of five, what a dead letter seals.
pub(crate) fn encode_record(record: &Record) -> Zeroizing<Vec<u8>> {
    let room = record.payload_bytes() + 64 + record.headers.len() * 16;
    let mut encoder = Encoder::new(Vec::with_capacity(room));
    // Writing to a `Vec` cannot fail.
    let _ = write_record(&mut encoder, record);
    Zeroizing::new(encoder.into_writer())
}

type Written = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

fn write_record(encoder: &mut Encoder<Vec<u8>>, record: &Record) -> Written {
    encoder.array(5)?;
    write_bytes(encoder, record.key.as_ref())?;
    write_bytes(encoder, record.value.as_ref())?;
    encoder.array(record.headers.len() as u64)?;
    for header in &record.headers {
        encoder.array(2)?.str(&header.name)?;
        write_bytes(encoder, header.value.as_ref())?;
    }
    let (kind, millis) = match record.timestamp {
        Timestamp::None => (0, 0),
        Timestamp::Created(millis) => (1, millis),
        Timestamp::Appended(millis) => (2, millis),
    };
    encoder.u8(kind)?.i64(millis)?;
    Ok(())
}

fn write_bytes(encoder: &mut Encoder<Vec<u8>>, bytes: Option<&Bytes>) -> Written {
    match bytes {
        Some(bytes) => encoder.bytes(bytes)?,
        None => encoder.null()?,
    };
    Ok(())
}

/// The record behind `encode_record`'s bytes; `position` comes from the dead letter.
pub fn decode_record(cbor: &[u8], position: Position) -> Result<Record, NotADeadLetter> {
    let mut decoder = Decoder::new(cbor);
    let record = read_record(&mut decoder, position).map_err(|_| NotADeadLetter)?;
    if decoder.position() == cbor.len() {
        Ok(record)
    } else {
        Err(NotADeadLetter)
    }
}

fn read_record(decoder: &mut Decoder<'_>, position: Position) -> Result<Record, minicbor::decode::Error> {
    let wrong = || minicbor::decode::Error::message("unexpected shape");
    if decoder.array()? != Some(5) {
        return Err(wrong());
    }
    let key = read_bytes(decoder)?;
    let value = read_bytes(decoder)?;
    let count = decoder.array()?.ok_or_else(wrong)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        if decoder.array()? != Some(2) {
            return Err(wrong());
        }
        headers.push(Header {
            name: decoder.str()?.to_owned().into(),
            value: read_bytes(decoder)?,
        });
    }
    let timestamp = match (decoder.u8()?, decoder.i64()?) {
        (0, _) => Timestamp::None,
        (1, millis) => Timestamp::Created(millis),
        (2, millis) => Timestamp::Appended(millis),
        _ => return Err(wrong()),
    };
    Ok(Record {
        position,
        timestamp,
        key,
        value,
        headers,
    })
}

fn read_bytes(decoder: &mut Decoder<'_>) -> Result<Option<Bytes>, minicbor::decode::Error> {
    if decoder.datatype()? == Type::Null {
        decoder.null()?;
        return Ok(None);
    }
    Ok(Some(Bytes::copy_from_slice(decoder.bytes()?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position() -> Position {
        Position {
            topic: "t".into(),
            partition: 3,
            offset: 9,
        }
    }

    proptest! {
        #[test]
        fn a_record_comes_back_from_its_dead_letter_as_it_was(key: Option<Vec<u8>>, value: Option<Vec<u8>>, headers: Vec<(String, Option<Vec<u8>>)>, millis: i64) {
            let headers = headers.into_iter().map(|(name, value)| Header { name: name.into(), value: value.map(Bytes::from) }).collect();
            let timestamp = Timestamp::Created(millis);
            let record = Record { position: position(), timestamp, key: key.map(Bytes::from), value: value.map(Bytes::from), headers };
            let cbor = encode_record(&record);
            prop_assert_eq!(decode_record(&cbor, position()), Ok(record));
        }

        #[test]
        fn any_bytes_can_be_read_without_panic(bytes: Vec<u8>) {
            let _ = decode_record(&bytes, position());
            let _ = DeadLetter::from_json(&bytes);
        }
    }

    #[test]
    fn the_clear_part_comes_back_as_it_was() {
        let letter = DeadLetter::new("trailing-bytes", "seal", &position(), &[1, 2, 3]);
        assert_eq!(DeadLetter::from_json(&letter.to_json()), Ok(letter));
    }
}
