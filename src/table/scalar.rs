//! JSON values as values of a scalar type, exactly or not at all.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::schema::FieldType;
use crate::calendar;
use crate::columns::grammar;

/// One value of a leaf.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    Bool(bool),
    /// Days of a date.
    Int32(i32),
    /// Integers, and counts of a timestamp's unit.
    Int64(i64),
    Float64(f64),
    /// Unscaled.
    Decimal(i128),
    /// Text, bytes or JSON text.
    Bytes(&'a [u8]),
}

/// The JSON value `text` (not null, of valid UTF-8) as a `to`; `None` if it is none. Strings with escapes and base64 are
/// decoded into `decoded`.
pub(super) fn read<'a>(text: &'a [u8], to: &FieldType, decoded: &'a mut Zeroizing<Vec<u8>>) -> Option<Scalar<'a>> {
    Some(match to {
        FieldType::Bool => match text {
            b"true" => Scalar::Bool(true),
            b"false" => Scalar::Bool(false),
            _ => return None,
        },
        FieldType::Int64 => Scalar::Int64(integer(text)?),
        FieldType::Float64 => Scalar::Float64(float(text)?),
        FieldType::Decimal { precision, scale } => Scalar::Decimal(decimal(text, *precision, *scale)?),
        FieldType::String => Scalar::Bytes(string(text, decoded)?),
        FieldType::Binary => {
            let mut base64 = Zeroizing::new(Vec::new());
            let base64 = string(text, &mut base64)?;
            decoded.clear();
            reserve(decoded, base64.len());
            // This engine takes only what it would write, so the value comes back as it was.
            STANDARD.decode_vec(base64, decoded).ok()?;
            Scalar::Bytes(decoded)
        }
        FieldType::Date => {
            let text = std::str::from_utf8(string(text, decoded)?).ok()?;
            Scalar::Int32(calendar::parse_date(text)?)
        }
        FieldType::Timestamp(unit) => {
            let text = std::str::from_utf8(string(text, decoded)?).ok()?;
            Scalar::Int64(calendar::parse_timestamp(text, *unit, true)?)
        }
        FieldType::Json => Scalar::Bytes(text),
        FieldType::List(_) | FieldType::Struct(_) => return None,
    })
}

/// The text of a string token; `None` for other values, and for halves of surrogate pairs.
fn string<'a>(token: &'a [u8], decoded: &'a mut Zeroizing<Vec<u8>>) -> Option<&'a [u8]> {
    if token.first() != Some(&b'"') {
        return None;
    }
    let inner = token.get(1..token.len() - 1)?;
    if grammar::plain_run(inner, 0) == inner.len() {
        return Some(inner);
    }
    decoded.clear();
    // No escape is shorter than what it stands for.
    reserve(decoded, inner.len());
    grammar::unescape(inner, decoded).ok()?;
    Some(decoded)
}

/// Room for `len` bytes in an empty buffer, without leaving a copy of an old value behind.
fn reserve(buffer: &mut Zeroizing<Vec<u8>>, len: usize) {
    if buffer.capacity() < len {
        *buffer = Zeroizing::new(Vec::with_capacity(len.next_power_of_two()));
    }
}

/// An integer in the one spelling that it comes back with: `-?(0|[1-9][0-9]*)`, not `-0`.
fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_number = matches!(digits, [b'0'] | [b'1'..=b'9', ..]);
    if !is_number || text == b"-0" {
        return None;
    }
    // Anything but digits, such as a fraction, is refused here.
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The float64 nearest to a number with a fraction or an exponent; integers only if they are exact.
fn float(text: &[u8]) -> Option<f64> {
    if !matches!(text.first(), Some(b'-' | b'0'..=b'9')) {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let value: f64 = text.parse().ok().filter(|value: &f64| value.is_finite())?;
    if text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        return Some(value);
    }
    // Integers are identifiers as often as measures. An i128 holds all of 38 digits.
    let exact: i128 = text.parse().ok()?;
    #[allow(clippy::cast_possible_truncation)] // of no fraction; saturates beyond i128, and then differs
    let rounded = value as i128;
    (rounded == exact).then_some(value)
}

/// A number as `unscaled · 10^-scale` of at most `precision` digits.
fn decimal(text: &[u8], precision: u8, scale: u8) -> Option<i128> {
    let (is_negative, rest) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'0'..=b'9', _) => (false, text),
        _ => return None,
    };
    let (mantissa, exponent) = match rest.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => (
            &rest[..at],
            std::str::from_utf8(&rest[at + 1..]).ok()?.parse::<i64>().ok()?,
        ),
        None => (rest, 0),
    };
    let (whole, fraction) = match mantissa.iter().position(|byte| *byte == b'.') {
        Some(at) => (&mantissa[..at], &mantissa[at + 1..]),
        None => (mantissa, &b""[..]),
    };
    let mut unscaled: i128 = 0;
    for digit in whole.iter().chain(fraction) {
        unscaled = unscaled.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    if unscaled == 0 {
        // A zero has no sign in a decimal column.
        return (!is_negative).then_some(0);
    }
    // The value is unscaled · 10^(exponent - fraction), and wanted is unscaled · 10^-scale.
    let mut shift = exponent
        .checked_sub(i64::try_from(fraction.len()).ok()?)?
        .checked_add(i64::from(scale))?;
    while shift < 0 {
        if unscaled % 10 != 0 {
            return None;
        }
        unscaled /= 10;
        shift += 1;
    }
    let factor = 10i128.checked_pow(u32::try_from(shift).ok()?)?;
    unscaled = unscaled.checked_mul(factor)?;
    if unscaled >= 10i128.checked_pow(u32::from(precision))? {
        return None;
    }
    Some(if is_negative { -unscaled } else { unscaled })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seal::TimeUnit;

    fn fits(text: &str, to: &FieldType) -> Option<String> {
        let mut decoded = Zeroizing::new(Vec::new());
        read(text.as_bytes(), to, &mut decoded).map(|scalar| match scalar {
            Scalar::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Scalar::Bool(value) => value.to_string(),
            Scalar::Int32(value) => value.to_string(),
            Scalar::Int64(value) => value.to_string(),
            Scalar::Float64(value) => value.to_string(),
            Scalar::Decimal(value) => value.to_string(),
        })
    }

    #[test]
    fn a_value_fits_a_type_exactly_or_not_at_all() {
        let decimal = FieldType::Decimal { precision: 5, scale: 2 };
        let micros = FieldType::Timestamp(TimeUnit::Microsecond);
        type Spelled<'a> = (&'a FieldType, &'a [(&'a str, Option<&'a str>)]);
        let cases: [Spelled<'_>; 8] = [
            (
                &FieldType::Bool,
                &[("true", Some("true")), ("1", None), ("\"true\"", None)],
            ),
            (
                &FieldType::Int64,
                &[
                    ("0", Some("0")),
                    ("-9223372036854775808", Some("-9223372036854775808")),
                    ("9223372036854775808", None),
                    ("-0", None),
                    ("1.0", None),
                    ("1e2", None),
                    ("\"1\"", None),
                    ("true", None),
                    ("[1]", None),
                ],
            ),
            (
                &FieldType::Float64,
                &[
                    ("1", Some("1")),
                    ("0.1", Some("0.1")),
                    ("3.14159265358979323846", Some("3.141592653589793")),
                    ("9007199254740992", Some("9007199254740992")),
                    ("9007199254740993", None),
                    ("1e400", None),
                    ("100000000000000000000000", None),
                    ("1e23", Some("100000000000000000000000")),
                    ("\"1.5\"", None),
                    ("null", None),
                ],
            ),
            (
                &decimal,
                &[
                    ("1", Some("100")),
                    ("-12.5", Some("-1250")),
                    ("12.500", Some("1250")),
                    ("1.25e2", Some("12500")),
                    ("125e-2", Some("125")),
                    ("0", Some("0")),
                    ("0.00", Some("0")),
                    ("-0", None),
                    ("0.001", None),
                    ("1000", None),
                    ("999.99", Some("99999")),
                    ("1e40", None),
                    ("1e-99999999999999999999", None),
                    ("1e99999999999999999999", None),
                    ("1e9223372036854775807", None),
                    ("1e-9223372036854775807", None),
                    ("123456789012345678901234567890123456789012345", None),
                    ("\"1\"", None),
                ],
            ),
            (
                &FieldType::String,
                &[
                    (r#""a\u0041""#, Some("aA")),
                    (r#""\ud800""#, None),
                    ("1", None),
                    (r#""""#, Some("")),
                ],
            ),
            (
                &FieldType::Binary,
                &[
                    (r#""aGk=""#, Some("hi")),
                    (r#""aGk""#, None),
                    (r#""aGl=""#, None),
                    (r#""__8=""#, None),
                    (r#""\u0061Gk=""#, Some("hi")),
                    ("1", None),
                ],
            ),
            (
                &FieldType::Date,
                &[(r#""1970-01-02""#, Some("1")), (r#""1970-1-2""#, None), ("1", None)],
            ),
            (
                &micros,
                &[
                    (r#""1970-01-01T00:00:00.000001Z""#, Some("1")),
                    (r#""1970-01-01T02:00:00+02:00""#, Some("0")),
                    (r#""1970-01-01T00:00:00.0000001Z""#, None),
                    (r#""1970-01-01T00:00:00""#, None),
                    (r#""2016-12-31T23:59:60Z""#, None),
                    ("0", None),
                ],
            ),
        ];
        for (to, values) in cases {
            for (text, expected) in values {
                assert_eq!(fits(text, to).as_deref(), *expected, "{text} as {to}");
            }
        }
        assert_eq!(fits("[1, {}]", &FieldType::Json).as_deref(), Some("[1, {}]"));
    }

    proptest! {
        #[test]
        fn decimals_are_those_of_the_exact_reader(text in "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,12})?([eE][+-]?[0-9]{1,2})?", scale in 0u8..=12) {
            use crate::columns::coerce;
            use crate::policy::DomainType;
            use crate::seal::Plaintext;
            use crate::seal::plaintext::integer_value;

            let mut encoding = Vec::new();
            let exact = coerce(text.as_bytes(), &DomainType::Decimal { scale: i8::try_from(scale).unwrap() }, None, &mut encoding);
            let exact = exact.ok().and_then(|()| match Plaintext::decode(&encoding) {
                Ok(Plaintext::Decimal { unscaled, .. }) => integer_value(unscaled),
                _ => None,
            });
            let exact = exact.filter(|value| value.unsigned_abs() < 10u128.pow(38));
            let found = decimal(text.as_bytes(), 38, scale);
            // Where the digits overflow on the way, or a zero has a sign, the value goes to `_extra` instead.
            if let Some(found) = found {
                prop_assert_eq!(Some(found), exact);
            } else if let Some(exact) = exact {
                prop_assert!(text.bytes().filter(u8::is_ascii_digit).count() > 36 || exact == 0, "{}", text);
            }
        }
    }
}
