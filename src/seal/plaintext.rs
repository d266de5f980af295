//! Plaintext encodings: `type ‖ value`, optionally padded (`docs/format.md`, "Plaintext").
//!
//! An encoding is what gets encrypted. It carries its type, so that a value comes back as what it was.

use num_bigint::BigInt;
#[cfg(feature = "columns")]
use zeroize::Zeroize as _;

/// High bit of the type byte: the value is padded.
const PADDED: u8 = 0x80;
/// Type bytes that padding adds: `type|80 ‖ u32 little-endian length`.
const PADDED_HEADER: usize = 5;

/// Type bytes of plaintext encodings.
pub mod types {
    #![allow(missing_docs)] // the names say it
    pub const NULL: u8 = 0x00;
    pub const FALSE: u8 = 0x01;
    pub const TRUE: u8 = 0x02;
    pub const INTEGER: u8 = 0x03;
    pub const FLOAT64: u8 = 0x04;
    pub const DECIMAL: u8 = 0x05;
    pub const UTF8: u8 = 0x06;
    pub const BYTES: u8 = 0x07;
    pub const TIMESTAMP: u8 = 0x08;
    pub const JSON: u8 = 0x09;
    pub const DATE: u8 = 0x0a;
    pub const TIME: u8 = 0x0b;
    pub const DURATION: u8 = 0x0c;
}

/// Resolution of timestamps, times and durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeUnit {
    /// Seconds (`00`).
    Second,
    /// Milliseconds (`01`).
    Millisecond,
    /// Microseconds (`02`).
    Microsecond,
    /// Nanoseconds (`03`).
    Nanosecond,
}

impl TimeUnit {
    fn code(self) -> u8 {
        match self {
            Self::Second => 0,
            Self::Millisecond => 1,
            Self::Microsecond => 2,
            Self::Nanosecond => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Second, Self::Millisecond, Self::Microsecond, Self::Nanosecond]
            .get(usize::from(code))
            .copied()
    }
}

/// One decoded plaintext, borrowed from its encoding. No `Debug`: it is the secret itself.
#[derive(Clone, Copy, PartialEq)]
pub enum Plaintext<'a> {
    /// `00`
    Null,
    /// `01`, `02`
    Bool(bool),
    /// `03`: shortest two's complement, big endian, any width; zero is one byte.
    Integer(&'a [u8]),
    /// `04`: the 64 bits, so that every NaN and the sign of zero survive.
    Float64(u64),
    /// `05`: value = integer · 10^-scale; the integer as in `03`.
    Decimal {
        /// Digits after the point; may be negative.
        scale: i8,
        /// Unscaled integer, shortest two's complement, big endian.
        unscaled: &'a [u8],
    },
    /// `06`
    Utf8(&'a str),
    /// `07`
    Bytes(&'a [u8]),
    /// `08`: count since the epoch; the zone as it was given, empty for none.
    Timestamp {
        /// Resolution of `count`.
        unit: TimeUnit,
        /// Units since 1970-01-01T00:00:00 (UTC if there is a zone).
        count: i64,
        /// Zone name or offset; `None` for local times.
        zone: Option<&'a str>,
    },
    /// `09`: JSON text, verbatim.
    Json(&'a str),
    /// `0a`: days since 1970-01-01.
    Date(i32),
    /// `0b`: time of day.
    Time {
        /// Resolution of `count`.
        unit: TimeUnit,
        /// Units since midnight.
        count: i64,
    },
    /// `0c`
    Duration {
        /// Resolution of `count`.
        unit: TimeUnit,
        /// Length in units.
        count: i64,
    },
}

/// Bytes that are no plaintext encoding. Carries no detail: the bytes were authenticated, so this is either
/// a newer version's type or a bug.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a plaintext encoding known to this version")]
pub struct PlaintextError;

impl<'a> Plaintext<'a> {
    /// Decodes one encoding, padded or not. Encodings are canonical: anything that [`encode`](Self::encode)
    /// would not write is refused.
    pub fn decode(encoding: &'a [u8]) -> Result<Self, PlaintextError> {
        let (kind, value) = split(encoding)?;
        let utf8 = |bytes| std::str::from_utf8(bytes).map_err(|_| PlaintextError);
        Ok(match kind {
            types::NULL if value.is_empty() => Self::Null,
            types::FALSE if value.is_empty() => Self::Bool(false),
            types::TRUE if value.is_empty() => Self::Bool(true),
            types::INTEGER if is_shortest_integer(value) => Self::Integer(value),
            types::FLOAT64 => Self::Float64(u64::from_be_bytes(fixed(value)?)),
            types::DECIMAL => {
                let (scale, unscaled) = value.split_first().ok_or(PlaintextError)?;
                if !is_shortest_integer(unscaled) {
                    return Err(PlaintextError);
                }
                Self::Decimal {
                    scale: i8::from_be_bytes([*scale]),
                    unscaled,
                }
            }
            types::UTF8 => Self::Utf8(utf8(value)?),
            types::BYTES => Self::Bytes(value),
            types::TIMESTAMP => {
                let (unit, rest) = unit_of(value)?;
                let (count, zone) = rest.split_at_checked(8).ok_or(PlaintextError)?;
                let zone = utf8(zone)?;
                Self::Timestamp {
                    unit,
                    count: i64::from_be_bytes(fixed(count)?),
                    zone: (!zone.is_empty()).then_some(zone),
                }
            }
            types::JSON => Self::Json(utf8(value)?),
            types::DATE => Self::Date(i32::from_be_bytes(fixed(value)?)),
            types::TIME => {
                let (unit, count) = unit_of(value)?;
                Self::Time {
                    unit,
                    count: i64::from_be_bytes(fixed(count)?),
                }
            }
            types::DURATION => {
                let (unit, count) = unit_of(value)?;
                Self::Duration {
                    unit,
                    count: i64::from_be_bytes(fixed(count)?),
                }
            }
            _ => return Err(PlaintextError),
        })
    }

    /// Appends the encoding to `out`: with `pad_to`, padded with zeros to a multiple of that many bytes.
    ///
    /// `Integer` and `Decimal` bytes must be in their shortest form, as [`integer_bytes`] makes them.
    pub fn encode(&self, pad_to: Option<u32>, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(self.kind());
        if pad_to.is_some() {
            out.extend_from_slice(&[0; PADDED_HEADER - 1]);
        }
        let value = out.len();
        match *self {
            Self::Null | Self::Bool(_) => {}
            Self::Integer(bytes) | Self::Bytes(bytes) => out.extend_from_slice(bytes),
            Self::Float64(bits) => out.extend_from_slice(&bits.to_be_bytes()),
            Self::Decimal { scale, unscaled } => {
                out.extend_from_slice(&scale.to_be_bytes());
                out.extend_from_slice(unscaled);
            }
            Self::Utf8(text) | Self::Json(text) => out.extend_from_slice(text.as_bytes()),
            Self::Timestamp { unit, count, zone } => {
                out.push(unit.code());
                out.extend_from_slice(&count.to_be_bytes());
                out.extend_from_slice(zone.unwrap_or_default().as_bytes());
            }
            Self::Date(days) => out.extend_from_slice(&days.to_be_bytes()),
            Self::Time { unit, count } | Self::Duration { unit, count } => {
                out.push(unit.code());
                out.extend_from_slice(&count.to_be_bytes());
            }
        }
        if let Some(multiple) = pad_to {
            pad(out, start, value, multiple);
        }
    }

    /// An upper bound of the bytes that [`encode`](Self::encode) appends.
    #[must_use]
    pub fn encoded_len_bound(&self, pad_to: Option<u32>) -> usize {
        let value = match *self {
            Self::Integer(bytes) | Self::Bytes(bytes) => bytes.len(),
            Self::Decimal { unscaled, .. } => unscaled.len() + 1,
            Self::Utf8(text) | Self::Json(text) => text.len(),
            Self::Timestamp { zone, .. } => 9 + zone.map_or(0, str::len),
            _ => 9,
        };
        PADDED_HEADER + value + pad_to.map_or(0, |n| n as usize)
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Null => types::NULL,
            Self::Bool(false) => types::FALSE,
            Self::Bool(true) => types::TRUE,
            Self::Integer(_) => types::INTEGER,
            Self::Float64(_) => types::FLOAT64,
            Self::Decimal { .. } => types::DECIMAL,
            Self::Utf8(_) => types::UTF8,
            Self::Bytes(_) => types::BYTES,
            Self::Timestamp { .. } => types::TIMESTAMP,
            Self::Json(_) => types::JSON,
            Self::Date(_) => types::DATE,
            Self::Time { .. } => types::TIME,
            Self::Duration { .. } => types::DURATION,
        }
    }
}

/// [`Plaintext::encode`] of a text that is all ASCII.
#[cfg(feature = "columns")]
pub(crate) fn encode_ascii(text: &[u8], pad_to: Option<u32>, out: &mut Vec<u8>) {
    let start = begin_utf8(pad_to, out);
    out.extend_from_slice(text);
    end_utf8(start, pad_to, out);
}

/// [`Plaintext::encode`] of a text that `write` appends, unless that says that there is none, or it is not UTF-8: then
/// nothing is appended, and what was is wiped.
#[cfg(feature = "columns")]
pub(crate) fn encode_utf8(pad_to: Option<u32>, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
    let start = begin_utf8(pad_to, out);
    let value = out.len();
    if write(out) && std::str::from_utf8(&out[value..]).is_ok() {
        end_utf8(start, pad_to, out);
        return true;
    }
    out[start..].zeroize();
    out.truncate(start);
    false
}

/// Where the encoding begins.
#[cfg(feature = "columns")]
fn begin_utf8(pad_to: Option<u32>, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    match pad_to {
        Some(_) => out.extend_from_slice(&[types::UTF8, 0, 0, 0, 0]),
        None => out.push(types::UTF8),
    }
    start
}

#[cfg(feature = "columns")]
fn end_utf8(start: usize, pad_to: Option<u32>, out: &mut Vec<u8>) {
    if let Some(multiple) = pad_to {
        pad(out, start, start + PADDED_HEADER, multiple);
    }
}

/// The shortest big-endian two's complement of `value`; zero is one zero byte.
#[must_use]
pub fn integer_bytes(value: i128) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let redundant = bytes
        .windows(2)
        .take_while(|pair| (pair[0] == 0 && pair[1] < 0x80) || (pair[0] == 0xff && pair[1] >= 0x80))
        .count();
    bytes[redundant..].to_vec()
}

/// The shortest big-endian two's complement of an integer of any width.
#[must_use]
pub fn big_integer_bytes(value: &BigInt) -> Vec<u8> {
    value.to_signed_bytes_be()
}

/// The integer that `bytes` (big-endian two's complement) spell, if it fits.
#[must_use]
pub fn integer_value(bytes: &[u8]) -> Option<i128> {
    if bytes.is_empty() || bytes.len() > 16 {
        return None;
    }
    let fill = if bytes[0] >= 0x80 { 0xff } else { 0 };
    let mut wide = [fill; 16];
    wide[16 - bytes.len()..].copy_from_slice(bytes);
    Some(i128::from_be_bytes(wide))
}

fn is_shortest_integer(bytes: &[u8]) -> bool {
    match bytes {
        [] => false,
        [first, second, ..] => !((*first == 0 && *second < 0x80) || (*first == 0xff && *second >= 0x80)),
        [_] => true,
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], PlaintextError> {
    bytes.try_into().map_err(|_| PlaintextError)
}

fn unit_of(value: &[u8]) -> Result<(TimeUnit, &[u8]), PlaintextError> {
    let (code, rest) = value.split_first().ok_or(PlaintextError)?;
    Ok((TimeUnit::from_code(*code).ok_or(PlaintextError)?, rest))
}

/// Type and value of an encoding, with padding checked and taken off.
fn split(encoding: &[u8]) -> Result<(u8, &[u8]), PlaintextError> {
    let (kind, rest) = encoding.split_first().ok_or(PlaintextError)?;
    if kind & PADDED == 0 {
        return Ok((*kind, rest));
    }
    let (len, rest) = rest.split_at_checked(PADDED_HEADER - 1).ok_or(PlaintextError)?;
    let len = usize::try_from(u32::from_le_bytes(fixed(len)?)).map_err(|_| PlaintextError)?;
    let (value, zeros) = rest.split_at_checked(len).ok_or(PlaintextError)?;
    if zeros.iter().any(|byte| *byte != 0) {
        return Err(PlaintextError);
    }
    Ok((kind & !PADDED, value))
}

/// Turns `out[start..]` = `type ‖ 4 bytes of room ‖ value` into its padded form.
fn pad(out: &mut Vec<u8>, start: usize, value: usize, multiple: u32) {
    // A column holds at most 2 GiB, which `PlainColumn` refuses to exceed, so the length fits.
    let len = u32::try_from(out.len() - value).unwrap_or(u32::MAX);
    out[start] |= PADDED;
    out[start + 1..start + PADDED_HEADER].copy_from_slice(&len.to_le_bytes());
    let total = (out.len() - start).next_multiple_of(multiple.max(1) as usize);
    out.resize(start + total, 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(value: &Plaintext<'_>, pad_to: Option<u32>) -> Vec<u8> {
        let mut out = Vec::new();
        value.encode(pad_to, &mut out);
        assert!(out.len() <= value.encoded_len_bound(pad_to));
        out
    }

    #[test]
    fn encodings_are_those_of_the_format() {
        assert_eq!(encoded(&Plaintext::Null, None), [0]);
        assert_eq!(encoded(&Plaintext::Integer(&integer_bytes(128)), None), [3, 0, 128]);
        assert_eq!(encoded(&Plaintext::Utf8("é"), None), [6, 0xc3, 0xa9]);
        assert_eq!(
            encoded(&Plaintext::Utf8("ab"), Some(8)),
            [0x86, 2, 0, 0, 0, b'a', b'b', 0]
        );
        let stamp = Plaintext::Timestamp {
            unit: TimeUnit::Millisecond,
            count: 1,
            zone: Some("Z"),
        };
        assert_eq!(encoded(&stamp, None), [8, 1, 0, 0, 0, 0, 0, 0, 0, 1, b'Z']);
    }

    #[test]
    fn integers_take_the_fewest_bytes() {
        for (value, len) in [
            (0, 1),
            (127, 1),
            (128, 2),
            (-128, 1),
            (-129, 2),
            (i128::MAX, 16),
            (i128::MIN, 16),
        ] {
            let bytes = integer_bytes(value);
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes, big_integer_bytes(&BigInt::from(value)));
            assert_eq!(integer_value(&bytes), Some(value));
        }
    }

    #[test]
    fn encodings_that_are_not_canonical_are_refused() {
        for bytes in [
            &[][..],
            &[3],
            &[3, 0, 1],
            &[3, 0xff, 0xff],
            &[4, 0],
            &[0, 0],
            &[0x0d],
            &[6, 0xff],
            &[0x86, 1, 0, 0, 0],
            &[0x86, 0, 0, 0, 0, 1],
        ] {
            assert!(Plaintext::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn every_encoding_decodes_to_itself(bytes: Vec<u8>, text: String, pad in proptest::option::of(1u32..300), n: i128, bits: u64) {
            let integer = integer_bytes(n);
            let values = [
                Plaintext::Bytes(&bytes), Plaintext::Utf8(&text), Plaintext::Json(&text), Plaintext::Integer(&integer),
                Plaintext::Float64(bits), Plaintext::Decimal { scale: -3, unscaled: &integer }, Plaintext::Bool(true),
            ];
            for value in values {
                let encoding = encoded(&value, pad);
                if let Some(pad) = pad {
                    prop_assert_eq!(encoding.len() % pad as usize, 0);
                }
                prop_assert!(Plaintext::decode(&encoding) == Ok(value));
            }
        }

        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(bytes: Vec<u8>) {
            if let Ok(value) = Plaintext::decode(&bytes) && bytes[0] & PADDED == 0 {
                prop_assert_eq!(encoded(&value, None), bytes);
            }
        }
    }
}
