//! JSON values as the one type of their domain, exactly or not at all.
//!
//! Only the spelling is normalised, never the JSON type: a string stays a string when it is opened, a number
//! a number. Equal values get equal encodings, so that they seal to equal bytes in every dataset.

use std::borrow::Cow;
use std::ops::Deref;

use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::{Zeroize as _, Zeroizing};

use super::json::string_value;
use super::number::Exact;
use crate::calendar;
use crate::policy::DomainType;
use crate::seal::plaintext::Plaintext;

/// A value that its domain's type does not hold exactly. Carries no value.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the value is not exactly {to}")]
pub struct CannotCoerce {
    /// What the domain wants, for people.
    pub to: &'static str,
}

impl CannotCoerce {
    /// The code in dead letters and metrics; never changes.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "cannot-coerce"
    }
}

/// Appends the plaintext encoding of the JSON value `text` as `to`. Nulls stay null.
///
/// | type | taken | normalised |
/// |---|---|---|
/// | `utf8` | strings | escapes |
/// | `integer` | numbers without a fraction, up to 1,024 digits | `1.0`, `1e2`, `-0` |
/// | `bool` | `true`, `false` | |
/// | `float64` | numbers equal to the shortest spelling of a float64 | `1`, `1.0`, `10e-1`; `-0` is `0` |
/// | `decimal` | numbers with no more digits after the point than its scale | trailing zeros |
/// | `bytes` | strings of base64, either alphabet, padded or not | alphabet, padding |
/// | `date` | strings, `YYYY-MM-DD` | escapes |
/// | `timestamp` | strings, RFC 3339 (without an offset if the type has no zone), no finer than its unit | offset, fraction |
///
/// Opened again a value has the spelling of [`decode_json`](super::json::decode_json).
pub fn coerce(text: &[u8], to: &DomainType, pad_to: Option<u32>, out: &mut Vec<u8>) -> Result<(), CannotCoerce> {
    if text == b"null" {
        Plaintext::Null.encode(pad_to, out);
        return Ok(());
    }
    try_coerce(text, to, pad_to, out).ok_or(CannotCoerce { to: wanted(to) })
}

fn try_coerce(text: &[u8], to: &DomainType, pad_to: Option<u32>, out: &mut Vec<u8>) -> Option<()> {
    match to {
        DomainType::Utf8 => Plaintext::Utf8(&secret_string(text)?).encode(pad_to, out),
        DomainType::Integer => Plaintext::Integer(&Exact::parse(text)?.scaled(0)?).encode(pad_to, out),
        DomainType::Bool => match text {
            b"true" => Plaintext::Bool(true).encode(pad_to, out),
            b"false" => Plaintext::Bool(false).encode(pad_to, out),
            _ => return None,
        },
        DomainType::Float64 => Plaintext::Float64(float(text)?.to_bits()).encode(pad_to, out),
        DomainType::Decimal { scale } => {
            let unscaled = Exact::parse(text)?.scaled(*scale)?;
            Plaintext::Decimal {
                scale: *scale,
                unscaled: &unscaled,
            }
            .encode(pad_to, out);
        }
        DomainType::Bytes => Plaintext::Bytes(&bytes(&secret_string(text)?)?).encode(pad_to, out),
        DomainType::Date => Plaintext::Date(calendar::parse_date(&secret_string(text)?)?).encode(pad_to, out),
        DomainType::Timestamp { unit, zone } => {
            let count = calendar::parse_timestamp(&secret_string(text)?, *unit, zone.is_some())?;
            Plaintext::Timestamp {
                unit: *unit,
                count,
                zone: zone.as_deref(),
            }
            .encode(pad_to, out);
        }
    }
    Some(())
}

fn wanted(to: &DomainType) -> &'static str {
    match to {
        DomainType::Utf8 => "a string of Unicode text",
        DomainType::Integer => "an integer of at most 1,024 digits",
        DomainType::Bool => "a boolean",
        DomainType::Float64 => "a number that a float64 holds",
        DomainType::Decimal { .. } => "a number with the digits of the domain's scale",
        DomainType::Bytes => "a string of base64",
        DomainType::Date => "a date (YYYY-MM-DD)",
        DomainType::Timestamp { zone: Some(_), .. } => "an RFC 3339 time with an offset, in the domain's unit",
        DomainType::Timestamp { zone: None, .. } => "an RFC 3339 time without an offset, in the domain's unit",
    }
}

fn secret_string(text: &[u8]) -> Option<SecretText<'_>> {
    string_value(text).map(SecretText)
}

/// The text of a JSON string, wiped if it had to be decoded.
struct SecretText<'t>(Cow<'t, str>);

impl Deref for SecretText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for SecretText<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(text) = &mut self.0 {
            text.zeroize();
        }
    }
}

/// The float64 whose shortest spelling is the same number as `text`; zero has no sign.
fn float(text: &[u8]) -> Option<f64> {
    let exact = Exact::parse(text)?;
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    if !value.is_finite() {
        return None;
    }
    let mut shortest = zmij::Buffer::new();
    let same = Exact::parse(shortest.format(value).as_bytes())? == exact;
    same.then_some(if value == 0.0 { 0.0 } else { value })
}

fn bytes(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let alphabet: &Alphabet = if text.contains(['-', '_']) {
        &URL_SAFE
    } else {
        &STANDARD
    };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config)
        .decode(text)
        .ok()
        .map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::json::decode_json;
    use super::*;
    use crate::seal::plaintext::TimeUnit;

    /// The JSON that a value comes back as.
    fn coerced(text: &str, to: &DomainType) -> Option<String> {
        let mut encoding = Vec::new();
        coerce(text.as_bytes(), to, None, &mut encoding).ok()?;
        let mut out = Vec::new();
        decode_json(&encoding, &mut out).unwrap();
        Some(String::from_utf8(out).unwrap())
    }

    fn assert_same(spellings: &[&str], to: &DomainType, opened: &str) {
        for text in spellings {
            assert_eq!(coerced(text, to).as_deref(), Some(opened), "{text}");
        }
    }

    fn assert_refused(spellings: &[&str], to: &DomainType) {
        for text in spellings {
            assert_eq!(coerced(text, to), None, "{text}");
        }
    }

    #[test]
    fn equal_values_are_one_value_however_they_are_spelled() {
        assert_same(&[r#""é""#, r#""\u00e9""#, r#""\u00E9""#], &DomainType::Utf8, r#""é""#);
        assert_same(&["100", "1e2", "100.00", "1.0E+2"], &DomainType::Integer, "100");
        assert_same(&["0", "-0", "0.0"], &DomainType::Integer, "0");
        assert_same(&["1", "1.0", "10e-1"], &DomainType::Float64, "1.0");
        assert_same(&["-0", "0", "-0.0", "0e5"], &DomainType::Float64, "0.0");
        assert_same(
            &["12.5", "12.50", "1250e-2"],
            &DomainType::Decimal { scale: 2 },
            "12.50",
        );
        assert_same(
            &[r#""-_8=""#, r#""-_8""#, r#""+/8=""#, r#""+\/8""#],
            &DomainType::Bytes,
            r#""+/8=""#,
        );
        assert_same(
            &[r#""2024-02-29""#, r#""2024\u002d02-29""#],
            &DomainType::Date,
            r#""2024-02-29""#,
        );
        let stamp = DomainType::Timestamp {
            unit: TimeUnit::Millisecond,
            zone: Some("UTC".to_owned()),
        };
        let spellings = [
            r#""2024-01-01T00:00:00Z""#,
            r#""2024-01-01t01:00:00.000000+01:00""#,
            r#""2023-12-31 19:00:00.0-05:00""#,
        ];
        assert_same(&spellings, &stamp, r#""2024-01-01T00:00:00.000Z""#);
        assert_same(&["null"], &DomainType::Integer, "null");
    }

    #[test]
    fn what_the_type_does_not_hold_exactly_is_refused() {
        assert_refused(&["1", "true", r#""\ud800""#, "{}", "[]"], &DomainType::Utf8);
        assert_refused(&["1.5", r#""1""#, "true", "1e1024", "1e-1"], &DomainType::Integer);
        assert_refused(&["0", "1", r#""true""#], &DomainType::Bool);
        assert_refused(
            &[
                "9007199254740993",
                "0.10000000000000000001",
                "1e400",
                "1e-400",
                r#""1""#,
            ],
            &DomainType::Float64,
        );
        assert_refused(&["1.005", r#""1.00""#, "1e1023"], &DomainType::Decimal { scale: 2 });
        assert_refused(
            &[r#""AP9=""#, r#""A""#, r#""A B=""#, r#""-/8=""#, "1"],
            &DomainType::Bytes,
        );
        assert_refused(
            &[
                r#""2023-02-29""#,
                r#""2024-2-29""#,
                r#""2024-02-29T00:00:00Z""#,
                "19782",
            ],
            &DomainType::Date,
        );
        let stamp = DomainType::Timestamp {
            unit: TimeUnit::Second,
            zone: None,
        };
        assert_refused(
            &[r#""2024-01-01T00:00:00Z""#, r#""2024-01-01T00:00:00.5""#, "1704067200"],
            &stamp,
        );
    }

    proptest! {
        #[test]
        fn coercing_what_was_opened_changes_nothing(integer: i128, float in proptest::num::f64::NORMAL, text: String, bytes: Vec<u8>) {
            let spelled = [
                (integer.to_string(), DomainType::Integer),
                (zmij::Buffer::new().format(float).to_owned(), DomainType::Float64),
                (serde_json::to_string(&text).unwrap(), DomainType::Utf8),
                (format!("\"{}\"", base64::engine::general_purpose::STANDARD.encode(bytes)), DomainType::Bytes),
            ];
            for (text, to) in spelled {
                let opened = coerced(&text, &to);
                prop_assert!(opened.is_some(), "{}", text);
                prop_assert_eq!(opened.as_deref().and_then(|opened| coerced(opened, &to)), opened);
            }
        }

        #[test]
        fn no_text_breaks_a_coercion(text in "\\PC{0,30}", number in "-?[0-9.]{0,8}([eE][+-]?[0-9]{0,25})?", quoted in "\"[0-9TZ:+. =A-Za-z\\\\-]{0,30}\"") {
            let stamp = DomainType::Timestamp { unit: TimeUnit::Nanosecond, zone: Some("Z".to_owned()) };
            let types = [DomainType::Utf8, DomainType::Integer, DomainType::Bool, DomainType::Float64,
                DomainType::Decimal { scale: -128 }, DomainType::Decimal { scale: 127 }, DomainType::Bytes, DomainType::Date, stamp];
            for text in [text, number, quoted] {
                for to in &types {
                    let _ = coerce(text.as_bytes(), to, Some(16), &mut Vec::new());
                }
            }
        }
    }
}
