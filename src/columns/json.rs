//! JSON values as plaintext encodings and back, byte for byte (`docs/format.md`, "Plaintext").
//!
//! A value gets the type that spells it exactly as it was spelled; what no type spells so is kept as JSON
//! text. Hence `decode_json(encode_json(text)) == text` for every JSON value.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{grammar, number};
use crate::calendar;
use crate::seal::plaintext::{self, Plaintext, PlaintextError};

/// Appends the plaintext encoding of `text`, one JSON value as [`Locator`](super::Locator) found it (no white
/// space around it).
///
/// The text itself is not checked again: bytes that are not JSON come back as they are, unless they are not
/// even UTF-8 and become `07` bytes.
pub fn encode_json(text: &[u8], pad_to: Option<u32>, out: &mut Vec<u8>) {
    if let [b'"', inner @ .., b'"'] = text
        && grammar::is_plain_ascii(inner)
    {
        // What most strings are, without a second look.
        return plaintext::encode_ascii(inner, pad_to, out);
    }
    let Ok(utf8) = std::str::from_utf8(text) else {
        return Plaintext::Bytes(text).encode(pad_to, out);
    };
    match text.first() {
        Some(b'"') => encode_string(utf8, pad_to, out),
        Some(b'-' | b'0'..=b'9') => encode_number(utf8, pad_to, out),
        _ => {
            let plaintext = match text {
                b"null" => Plaintext::Null,
                b"true" => Plaintext::Bool(true),
                b"false" => Plaintext::Bool(false),
                _ => Plaintext::Json(utf8),
            };
            plaintext.encode(pad_to, out);
        }
    }
}

/// At most so many bytes are appended by [`encode_json`] for a text of that length.
#[must_use]
pub fn encode_len_bound(text_len: usize, pad_to: Option<u32>) -> usize {
    // A number of one digit and a point becomes eight bytes; nothing else grows.
    Plaintext::Null.encoded_len_bound(pad_to) + text_len
}

fn encode_string(text: &str, pad_to: Option<u32>, out: &mut Vec<u8>) {
    let token = grammar::string(text.as_bytes(), 1);
    let Some(token) = token.ok().filter(|token| token.end == text.len()) else {
        return Plaintext::Json(text).encode(pad_to, out);
    };
    let inner = &text[1..text.len() - 1];
    if !token.escaped {
        return Plaintext::Utf8(inner).encode(pad_to, out);
    }
    let is_canonical = is_canonical(inner.as_bytes());
    if !is_canonical || !plaintext::encode_utf8(pad_to, out, |out| grammar::unescape(inner.as_bytes(), out).is_ok()) {
        Plaintext::Json(text).encode(pad_to, out);
    }
}

fn encode_number(text: &str, pad_to: Option<u32>, out: &mut Vec<u8>) {
    if let Some(integer) = number::canonical_integer(text.as_bytes()) {
        return Plaintext::Integer(&integer).encode(pad_to, out);
    }
    match text.parse::<f64>() {
        Ok(float) if float.is_finite() && zmij::Buffer::new().format(float) == text => {
            Plaintext::Float64(float.to_bits()).encode(pad_to, out);
        }
        _ => Plaintext::Json(text).encode(pad_to, out),
    }
}

/// Whether every escape in the inside of a string token is one that [`write_string`] would write.
fn is_canonical(inner: &[u8]) -> bool {
    let mut rest = inner;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        let escape = &rest[at..];
        let len = match escape.get(1) {
            Some(b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            // The short escapes and printable characters are never written as \u.
            Some(b'u') => match escape.get(2..6) {
                Some([b'0', b'0', b'0', b'0'..=b'7' | b'b' | b'e' | b'f']) => 6,
                Some([b'0', b'0', b'1', b'0'..=b'9' | b'a'..=b'f']) => 6,
                _ => return false,
            },
            _ => return false,
        };
        rest = &escape[len..];
    }
    true
}

/// Appends the JSON value that a plaintext encoding stands for: the text that [`encode_json`] was given, or,
/// for values that did not come from JSON, the nearest JSON has:
///
/// | plaintext | JSON |
/// |---|---|
/// | float64 | number, shortest spelling; `"NaN"`, `"Infinity"`, `"-Infinity"` |
/// | decimal | number with the digits of its scale |
/// | bytes | string, base64 (RFC 4648, padded) |
/// | timestamp | string, RFC 3339: no offset for local times, its own for fixed offsets, else UTC (`Z`) |
/// | date, time | string, `YYYY-MM-DD`, `HH:MM:SS` with the fraction of its unit (a count beyond one day: number) |
/// | duration | string, ISO 8601 in seconds (`PT1.500S`) |
pub fn decode_json(encoding: &[u8], out: &mut Vec<u8>) -> Result<(), PlaintextError> {
    write_json(&Plaintext::decode(encoding)?, out);
    Ok(())
}

/// Appends the JSON value of a plaintext, as [`decode_json`] says.
pub fn write_json(plaintext: &Plaintext<'_>, out: &mut Vec<u8>) {
    match plaintext {
        Plaintext::Null => out.extend_from_slice(b"null"),
        Plaintext::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Plaintext::Integer(integer) => number::write_decimal(integer, 0, out),
        Plaintext::Float64(bits) => write_float(f64::from_bits(*bits), out),
        Plaintext::Decimal { scale, unscaled } => number::write_decimal(unscaled, *scale, out),
        Plaintext::Utf8(text) => write_string(text, out),
        Plaintext::Bytes(bytes) => {
            let encoded = Zeroizing::new(STANDARD.encode(bytes));
            write_string(&encoded, out);
        }
        Plaintext::Json(text) => out.extend_from_slice(text.as_bytes()),
        temporal => write_temporal(temporal, out),
    }
}

/// Bytes that [`write_json`] appends: exactly, for strings, bytes and JSON; at most, for all others.
#[must_use]
pub fn json_len(plaintext: &Plaintext<'_>) -> usize {
    match plaintext {
        Plaintext::Utf8(text) => string_len(text),
        Plaintext::Bytes(bytes) => bytes.len().div_ceil(3) * 4 + 2,
        Plaintext::Json(text) => text.len(),
        // Not 2.5 digits for a byte, and not 128 zeros for a scale.
        Plaintext::Integer(digits) | Plaintext::Decimal { unscaled: digits, .. } => digits.len() * 3 + MOST_OTHER,
        Plaintext::Timestamp { zone, .. } => zone.map_or(0, str::len) + MOST_OTHER,
        _ => MOST_OTHER,
    }
}

/// The longest JSON text of a number, a time or a literal, beside digits and zone.
const MOST_OTHER: usize = 160;

/// Bytes that [`write_string`] appends.
fn string_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut len, mut at) = (bytes.len() + 2, 0);
    loop {
        at = grammar::plain_run(bytes, at);
        len += match bytes.get(at) {
            None => return len,
            Some(b'"' | b'\\' | 0x08 | 0x0c | b'\n' | b'\r' | b'\t') => 1,
            Some(_) => 5,
        };
        at += 1;
    }
}

fn write_float(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format(value).as_bytes());
    } else if value.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else {
        out.extend_from_slice(if value > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
    }
}

fn write_temporal(value: &Plaintext<'_>, out: &mut Vec<u8>) {
    let mut text = Zeroizing::new(String::with_capacity(48));
    match *value {
        Plaintext::Timestamp { unit, count, zone } => calendar::write_timestamp(unit, count, zone, &mut text),
        Plaintext::Date(days) => calendar::write_date(days.into(), &mut text),
        Plaintext::Time { unit, count } => match calendar::write_time(unit, count, &mut text) {
            Some(()) => {}
            None => return out.extend_from_slice(count.to_string().as_bytes()),
        },
        Plaintext::Duration { unit, count } => calendar::write_duration(unit, count, &mut text),
        _ => {}
    }
    write_string(&text, out);
}

/// Appends `text` as a JSON string in our canonical spelling: escapes only where JSON demands them.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let mut at = 0;
    out.push(b'"');
    loop {
        let end = grammar::plain_run(bytes, at);
        out.extend_from_slice(&bytes[at..end]);
        let Some(special) = bytes.get(end) else { break };
        at = end + 1;
        out.push(b'\\');
        match special {
            0x08 => out.push(b'b'),
            0x0c => out.push(b'f'),
            b'\n' => out.push(b'n'),
            b'\r' => out.push(b'r'),
            b'\t' => out.push(b't'),
            control @ 0..0x20 => {
                out.extend_from_slice(b"u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
            itself => out.push(*itself),
        }
    }
    out.push(b'"');
}

/// The text of a JSON string token, whatever its spelling; `None` for other values and for halves of
/// surrogate pairs, which no text has.
#[must_use]
pub fn string_value(token: &[u8]) -> Option<Cow<'_, str>> {
    if token.first() != Some(&b'"') {
        return None;
    }
    let string = grammar::string(token, 1)
        .ok()
        .filter(|string| string.end == token.len())?;
    let inner = &token[1..token.len() - 1];
    if !string.escaped {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    let mut decoded = Vec::with_capacity(inner.len());
    grammar::unescape(inner, &mut decoded).ok()?;
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// A value that names no row: a float, null, an object, an array, or text with half a surrogate pair.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a row id must be a string, an integer or a boolean")]
pub struct NotARowId;

/// Appends the canonical row id of the scalar `text`: its plaintext encoding (strings decoded, so that the
/// spelling does not matter), then the list `indexes` of the sealed value, u32 big endian.
pub fn encode_row_id(text: &[u8], indexes: &[u32], out: &mut Vec<u8>) -> Result<(), NotARowId> {
    match text {
        b"true" | b"false" => Plaintext::Bool(text == b"true").encode(None, out),
        [b'"', inner @ .., b'"'] if grammar::is_plain_ascii(inner) => plaintext::encode_ascii(inner, None, out),
        [b'"', ..] => encode_any_string(text, out)?,
        _ => Plaintext::Integer(&number::canonical_integer(text).ok_or(NotARowId)?).encode(None, out),
    }
    for index in indexes {
        out.extend_from_slice(&index.to_be_bytes());
    }
    Ok(())
}

/// Appends the encoding of a string token, whatever its spelling.
fn encode_any_string(token: &[u8], out: &mut Vec<u8>) -> Result<(), NotARowId> {
    let string = grammar::string(token, 1).map_err(|_| NotARowId)?;
    let inner = token[1..].strip_suffix(b"\"").filter(|_| string.end == token.len());
    let inner = inner.ok_or(NotARowId)?;
    let is_text = plaintext::encode_utf8(None, out, |out| grammar::unescape(inner, out).is_ok());
    is_text.then_some(()).ok_or(NotARowId)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seal::plaintext::TimeUnit;
    use crate::seal::plaintext::{integer_bytes, types};

    fn encoded(text: &str, pad_to: Option<u32>) -> Vec<u8> {
        let mut out = Vec::new();
        encode_json(text.as_bytes(), pad_to, &mut out);
        assert!(out.len() <= encode_len_bound(text.len(), pad_to), "{text}");
        out
    }

    fn decoded(encoding: &[u8]) -> String {
        let mut out = Vec::new();
        decode_json(encoding, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn plain_json(value: &Plaintext<'_>) -> String {
        let mut encoding = Vec::new();
        value.encode(None, &mut encoding);
        decoded(&encoding)
    }

    #[test]
    fn a_value_gets_the_type_that_spells_it_exactly() {
        for (text, kind) in [
            ("null", types::NULL),
            ("true", types::TRUE),
            ("false", types::FALSE),
            ("0", types::INTEGER),
            ("-9223372036854775809", types::INTEGER),
            ("9007199254740993", types::INTEGER),
            ("0.1", types::FLOAT64),
            ("-0.0", types::FLOAT64),
            ("1e+300", types::FLOAT64),
            ("1e300", types::JSON),
            ("-0", types::JSON),
            ("1E3", types::JSON),
            ("1.50", types::JSON),
            ("1e400", types::JSON),
            ("0.10000000000000000001", types::JSON),
            (r#""""#, types::UTF8),
            (r#""aé😀/\"\\\b\f\n\r\t\u0000\u001f""#, types::UTF8),
            (r#""\u0041""#, types::JSON),
            (r#""\/""#, types::JSON),
            (r#""\u001F""#, types::JSON),
            (r#""\u0008""#, types::JSON),
            (r#""\u0009""#, types::JSON),
            (r#""\u000a""#, types::JSON),
            (r#""\u000c""#, types::JSON),
            (r#""\u000d""#, types::JSON),
            (r#""\ud800""#, types::JSON),
            (r#""\ud83d\ude00""#, types::JSON),
            ("{ }", types::JSON),
            ("[1, 2]", types::JSON),
        ] {
            let encoding = encoded(text, None);
            assert_eq!(encoding[0], kind, "{text}");
            assert_eq!(decoded(&encoding), text);
        }
        let longest = "9".repeat(number::MAX_DIGITS);
        assert_eq!(encoded(&longest, None)[0], types::INTEGER);
        assert_eq!(encoded(&format!("{longest}9"), None)[0], types::JSON);
    }

    /// Frozen: a value sealed as float64 bits must open to the text it had, whatever version of `zmij` is linked.
    #[test]
    fn the_spelling_of_floats_never_changes() {
        for text in GOLDEN_FLOATS {
            let mut out = Vec::new();
            write_float(text.parse().unwrap(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    const GOLDEN_FLOATS: [&str; 16] = [
        "0.0",
        "-0.0",
        "1.0",
        "0.1",
        "-123.456",
        "0.00001",
        "0.000012345",
        "1e-6",
        "5e-324",
        "1234567890123456.0",
        "1000000000000000.0",
        "1e+16",
        "1.2345678901234568e+17",
        "1e+21",
        "1.5e+300",
        "1.7976931348623157e+308",
    ];

    #[test]
    fn what_is_not_json_comes_back_too() {
        for text in [
            "", "nul", "\"", "\"a\"b\"", "\"\\\"", "-", "-inf", "1x", "NaN", "01", "\"a\nb\"",
        ] {
            assert_eq!(decoded(&encoded(text, None)), text);
        }
        let mut out = Vec::new();
        encode_json(b"\"\xff\"", None, &mut out);
        assert_eq!(out, b"\x07\"\xff\"");
    }

    #[test]
    fn values_that_json_does_not_have_become_the_nearest_it_has() {
        let integer = integer_bytes(-1250);
        assert_eq!(
            plain_json(&Plaintext::Decimal {
                scale: 2,
                unscaled: &integer
            }),
            "-12.50"
        );
        assert_eq!(plain_json(&Plaintext::Bytes(b"\0\xff")), "\"AP8=\"");
        assert_eq!(plain_json(&Plaintext::Float64(f64::NAN.to_bits())), "\"NaN\"");
        assert_eq!(
            plain_json(&Plaintext::Float64(f64::NEG_INFINITY.to_bits())),
            "\"-Infinity\""
        );
        assert_eq!(plain_json(&Plaintext::Date(19_782)), "\"2024-02-29\"");
        assert_eq!(
            plain_json(&Plaintext::Time {
                unit: TimeUnit::Second,
                count: 86_400
            }),
            "86400"
        );
        assert_eq!(
            plain_json(&Plaintext::Duration {
                unit: TimeUnit::Second,
                count: 5
            }),
            "\"PT5S\""
        );
        let stamp = Plaintext::Timestamp {
            unit: TimeUnit::Millisecond,
            count: 1,
            zone: Some("UTC"),
        };
        assert_eq!(plain_json(&stamp), "\"1970-01-01T00:00:00.001Z\"");
        assert_eq!(decode_json(&[0x7f], &mut Vec::new()), Err(PlaintextError));
    }

    #[test]
    fn a_row_has_one_id_however_it_is_spelled() {
        let id = |text: &str, indexes: &[u32]| {
            let mut out = Vec::new();
            encode_row_id(text.as_bytes(), indexes, &mut out).map(|()| out)
        };
        assert_eq!(id(r#""\u0061""#, &[]), Ok(vec![6, b'a']));
        assert_eq!(id(r#""a""#, &[1, 258]), Ok(vec![6, b'a', 0, 0, 0, 1, 0, 0, 1, 2]));
        assert_eq!(id("300", &[]), Ok(vec![3, 1, 44]));
        assert_eq!(id("true", &[]), Ok(vec![2]));
        for text in ["null", "1.0", "-0", "1e2", "{}", "[1]", r#""\ud800""#, ""] {
            assert_eq!(id(text, &[]), Err(NotARowId), "{text}");
        }
    }

    /// A string token in any spelling that JSON allows.
    fn any_string() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[ !#-\\[\\]-~]{0,6}",
            "\\\\[\"\\\\/bfnrt]",
            "\\\\u00[0-1][0-9a-fA-F]",
            "\\\\u[0-9a-fA-F]{4}",
            "\\\\u[dD][89abAB][0-9a-fA-F]{2}\\\\u[dD][c-fC-F][0-9a-fA-F]{2}",
            "[^\\x00-\\x1f\"\\\\]{0,3}",
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
    }

    fn any_number() -> impl Strategy<Value = String> {
        let float = any::<f64>().prop_filter("JSON has finite numbers only", |value| value.is_finite());
        prop_oneof![
            "-?(0|[1-9][0-9]{0,60})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?",
            float.prop_map(|value| zmij::Buffer::new().format(value).to_owned()),
            any::<f32>()
                .prop_filter("finite", |value| value.is_finite())
                .prop_map(|value| format!("{value:e}")),
            any::<i128>().prop_map(|value| value.to_string()),
        ]
    }

    fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            any_string(),
            any_number(),
            prop::sample::select(vec!["null", "true", "false"]).prop_map(str::to_owned),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let members = prop::collection::vec((any_string(), "[ \t\r\n]{0,2}", inner.clone()), 0..4);
            let elements = prop::collection::vec(("[ \t\r\n]{0,2}", inner), 0..4);
            prop_oneof![
                members.prop_map(|members| {
                    let members: Vec<_> = members
                        .iter()
                        .map(|(name, ws, value)| format!("{ws}{name}{ws}:{value}"))
                        .collect();
                    format!("{{{}}}", members.join(","))
                }),
                elements.prop_map(|elements| {
                    let elements: Vec<_> = elements.iter().map(|(ws, value)| format!("{ws}{value}{ws}")).collect();
                    format!("[{}]", elements.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_length_of_a_text_is_known_before_it_is_written(text: String, controls in "[\\x00-\\x1f\"\\\\a]{0,40}", bytes: Vec<u8>) {
            for plaintext in [
                Plaintext::Utf8(&text),
                Plaintext::Utf8(&controls),
                Plaintext::Json(&text),
                Plaintext::Bytes(&bytes),
            ] {
                let mut out = Vec::new();
                write_json(&plaintext, &mut out);
                prop_assert_eq!(out.len(), json_len(&plaintext));
            }
        }

        #[test]
        fn no_other_value_is_longer_than_is_said(
            digits in prop::collection::vec(any::<u8>(), 1..600), scale: i8, bits: u64, count: i64, days: i32,
        ) {
            let zone = Some("America/Argentina/ComodRivadavia");
            for unit in [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond] {
                for plaintext in [
                    Plaintext::Timestamp { unit, count, zone },
                    Plaintext::Timestamp { unit, count, zone: Some("+05:30") },
                    Plaintext::Timestamp { unit, count, zone: None },
                    Plaintext::Time { unit, count },
                    Plaintext::Duration { unit, count },
                    Plaintext::Integer(&digits),
                    Plaintext::Decimal { scale, unscaled: &digits },
                    Plaintext::Float64(bits),
                    Plaintext::Date(days),
                    Plaintext::Null,
                    Plaintext::Bool(false),
                ] {
                    let mut out = Vec::new();
                    write_json(&plaintext, &mut out);
                    prop_assert!(out.len() <= json_len(&plaintext), "{} bytes", out.len());
                    let mut encoding = Vec::new();
                    plaintext.encode(None, &mut encoding);
                    // What `Edits` has room for without looking.
                    prop_assert!(json_len(&plaintext) <= encoding.len() * 6 + 160);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_json_value_comes_back_byte_for_byte(text in any_json(), pad in proptest::option::of(1u32..200)) {
            prop_assert_eq!(grammar::value(text.as_bytes(), 0, 0), Ok(text.len()), "the generator writes JSON: {}", text);
            let encoding = encoded(&text, pad);
            prop_assert_eq!(decoded(&encoding), text);
        }

        #[test]
        fn strings_of_any_text_are_written_canonically(text: String) {
            let mut token = Vec::new();
            write_string(&text, &mut token);
            let read = serde_json::from_slice::<String>(&token).ok();
            prop_assert_eq!(read.as_deref(), Some(text.as_str()));
            let found = string_value(&token);
            prop_assert_eq!(found.as_deref(), Some(text.as_str()));
            let mut encoding = Vec::new();
            encode_json(&token, None, &mut encoding);
            prop_assert_eq!(encoding[0], types::UTF8);
            prop_assert_eq!(&encoding[1..], text.as_bytes());
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            let mut encoding = Vec::new();
            encode_json(&bytes, None, &mut encoding);
            prop_assert!(encoding.len() <= encode_len_bound(bytes.len(), None));
            let mut out = Vec::new();
            prop_assert!(decode_json(&encoding, &mut out).is_ok());
            if std::str::from_utf8(&bytes).is_ok() {
                prop_assert_eq!(out, bytes);
            }
        }
    }
}
