//! JSON numbers as exact decimals: spelled differently, the same value is the same here.

use std::ops::Deref;

use num_bigint::BigInt;
use zeroize::Zeroizing;

use super::grammar;
use crate::seal::plaintext::{big_integer_bytes, integer_value};

/// Integers with more digits than this stay JSON text, or are refused where a type is asked for.
pub const MAX_DIGITS: usize = 1024;

/// The value `digits · 10^exponent`, in the one form with no zero at either end of the digits.
#[derive(PartialEq, Eq)]
pub(super) struct Exact {
    negative: bool,
    /// ASCII digits; none for zero.
    digits: Zeroizing<Vec<u8>>,
    exponent: i64,
}

impl Exact {
    /// Reads a JSON number; `None` for other texts and for exponents beyond all use.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let is_number = matches!(text.first(), Some(b'-' | b'0'..=b'9'));
        if !is_number || grammar::scalar(text, 0) != Ok(text.len()) {
            return None;
        }
        let (mantissa, exponent) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => (&text[..at], &text[at + 1..]),
            None => (text, &b"0"[..]),
        };
        let fraction = mantissa
            .iter()
            .position(|byte| *byte == b'.')
            .map_or(0, |at| mantissa.len() - at - 1);
        let mut digits = Zeroizing::new(Vec::with_capacity(mantissa.len()));
        digits.extend(
            mantissa
                .iter()
                .filter(|byte| byte.is_ascii_digit())
                .skip_while(|byte| **byte == b'0'),
        );
        let trailing = digits.iter().rev().take_while(|byte| **byte == b'0').count();
        let significant = digits.len() - trailing;
        digits.truncate(significant);
        if digits.is_empty() {
            return Some(Self {
                negative: false,
                digits,
                exponent: 0,
            });
        }
        // A text is at most u32::MAX bytes long, and an exponent within ±2^62 cannot overflow with that.
        let exponent: i64 = std::str::from_utf8(exponent).ok()?.parse().ok()?;
        let exponent = exponent
            .checked_sub(i64::try_from(fraction).ok()?)?
            .checked_add(i64::try_from(trailing).ok()?)?;
        Some(Self {
            negative: text[0] == b'-',
            digits,
            exponent,
        })
    }

    /// The integer `value · 10^scale` as shortest two's complement, if it is one of at most [`MAX_DIGITS`].
    pub(super) fn scaled(&self, scale: i8) -> Option<Integer> {
        if self.digits.is_empty() {
            return Some(Integer::of(0));
        }
        // No zero stands at the end of the digits, so a negative shift leaves a fraction.
        let shift = usize::try_from(self.exponent.checked_add(i64::from(scale))?).ok()?;
        if self.digits.len().saturating_add(shift) > MAX_DIGITS {
            return None;
        }
        let mut digits = Zeroizing::new(Vec::with_capacity(self.digits.len() + shift));
        digits.extend_from_slice(&self.digits);
        digits.resize(self.digits.len() + shift, b'0');
        integer_from_digits(self.negative, &digits)
    }
}

/// Digits that i128 holds, and u64.
const WIDE_DIGITS: usize = 38;
const NARROW_DIGITS: usize = 19;

/// An integer in shortest two's complement, big endian; wiped. Most need no memory of their own.
pub(super) enum Integer {
    Short { bytes: Zeroizing<[u8; 16]>, from: usize },
    Long(Zeroizing<Vec<u8>>),
}

impl Integer {
    fn of(value: i128) -> Self {
        let bytes = Zeroizing::new(value.to_be_bytes());
        // Bits that only repeat the sign, but for one of them.
        let signs = if value < 0 {
            value.leading_ones()
        } else {
            value.leading_zeros()
        };
        let from = (signs as usize - 1) / 8;
        Self::Short { bytes, from }
    }
}

impl Deref for Integer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { bytes, from } => &bytes[*from..],
            Self::Long(bytes) => bytes,
        }
    }
}

/// The integer that a canonical spelling (`-?(0|[1-9][0-9]*)`, not `-0`, at most [`MAX_DIGITS`]) stands for.
pub(super) fn canonical_integer(text: &[u8]) -> Option<Integer> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let canonical = match digits.first()? {
        b'0' => digits.len() == 1 && !negative,
        _ => digits.len() <= MAX_DIGITS && digits.iter().all(u8::is_ascii_digit),
    };
    if canonical {
        integer_from_digits(negative, digits)
    } else {
        None
    }
}

fn integer_from_digits(negative: bool, digits: &[u8]) -> Option<Integer> {
    let with_sign = |magnitude: i128| Integer::of(if negative { -magnitude } else { magnitude });
    if digits.len() <= NARROW_DIGITS {
        let digits = digits.iter().map(|digit| u64::from(digit - b'0'));
        return Some(with_sign(digits.fold(0, |value, digit| value * 10 + digit).into()));
    }
    if digits.len() <= WIDE_DIGITS {
        let digits = digits.iter().map(|digit| i128::from(digit - b'0'));
        return Some(with_sign(digits.fold(0, |value, digit| value * 10 + digit)));
    }
    let magnitude = BigInt::parse_bytes(digits, 10)?;
    Some(Integer::Long(Zeroizing::new(big_integer_bytes(&if negative {
        -magnitude
    } else {
        magnitude
    }))))
}

/// Appends the decimal spelling of an integer.
fn write_integer(value: i128, out: &mut Vec<u8>) {
    // A sign and 39 digits.
    let mut text = Zeroizing::new([0; 40]);
    let (mut at, mut rest) = (text.len(), value.unsigned_abs());
    while let [.., digit] = &mut text[..at] {
        // Division of 128 bits is slow, and few have as many.
        (*digit, rest) = match u64::try_from(rest) {
            Ok(rest) => ((rest % 10) as u8, u128::from(rest / 10)),
            Err(_) => ((rest % 10) as u8, rest / 10),
        };
        *digit += b'0';
        at -= 1;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&text[at..]);
}

/// Appends the decimal spelling of `unscaled · 10^-scale`.
pub(super) fn write_decimal(unscaled: &[u8], scale: i8, out: &mut Vec<u8>) {
    if scale == 0
        && let Some(value) = integer_value(unscaled)
    {
        return write_integer(value, out);
    }
    let digits = Zeroizing::new(BigInt::from_signed_bytes_be(unscaled).to_string());
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits.as_str()),
    };
    out.extend_from_slice(sign.as_bytes());
    let places = usize::from(scale.unsigned_abs());
    if scale <= 0 {
        out.extend_from_slice(digits.as_bytes());
        if digits != "0" {
            out.resize(out.len() + places, b'0');
        }
    } else if digits.len() > places {
        let (whole, fraction) = digits.split_at(digits.len() - places);
        out.extend_from_slice(whole.as_bytes());
        out.push(b'.');
        out.extend_from_slice(fraction.as_bytes());
    } else {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + places - digits.len(), b'0');
        out.extend_from_slice(digits.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::plaintext::integer_bytes;
    use crate::seal::plaintext::integer_value;

    fn scaled(text: &str, scale: i8) -> Option<i128> {
        Exact::parse(text.as_bytes())?
            .scaled(scale)
            .and_then(|bytes| integer_value(&bytes))
    }

    #[test]
    fn the_same_value_is_the_same_number_however_it_is_spelled() {
        for text in ["1200", "1200.0", "1.2e3", "12E+2", "120000e-2", "1200.00e0"] {
            assert_eq!(scaled(text, 0), Some(1200), "{text}");
        }
        for text in ["0", "-0", "0.000", "0e999999999999", "-0.0e-5"] {
            assert_eq!(scaled(text, 0), Some(0), "{text}");
        }
        assert_eq!(scaled("-12.5", 2), Some(-1250));
        assert_eq!(scaled("5000", -3), Some(5));
    }

    #[test]
    fn what_is_not_exact_or_too_large_is_refused() {
        for (text, scale) in [
            ("0.5", 0),
            ("1.005", 2),
            ("5001", -3),
            ("1e1024", 0),
            ("1e-1", 0),
            ("1e99999999999999999999", 0),
            ("1e9223372036854775807", 1),
        ] {
            assert_eq!(scaled(text, scale), None, "{text}");
        }
        for text in ["", "x", "01", "1.", "+1", " 1", "1 ", "\"1\"", "-inf"] {
            assert!(Exact::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn only_canonical_integers_are_integers() {
        for text in [
            "0",
            "7",
            "-7",
            "12345678901234567890123",
            "99999999999999999999999999999999999999",
        ] {
            assert_eq!(
                canonical_integer(text.as_bytes()).and_then(|b| integer_value(&b)),
                text.parse().ok(),
                "{text}"
            );
        }
        for text in [
            "-0",
            "00",
            "01",
            "-",
            "",
            "1.0",
            "1e3",
            "+1",
            &"1".repeat(MAX_DIGITS + 1),
        ] {
            assert!(canonical_integer(text.as_bytes()).is_none(), "{text}");
        }
        let longest = "9".repeat(MAX_DIGITS);
        let mut back = Vec::new();
        write_decimal(&canonical_integer(longest.as_bytes()).unwrap(), 0, &mut back);
        assert_eq!(back, longest.as_bytes());
    }

    #[test]
    fn integers_of_every_width_are_as_short_as_they_can_be_and_come_back() {
        let edges = (0..127).flat_map(|bits| {
            let power = 1_i128 << bits;
            [power - 1, power, power + 1, -power, 1 - power, -power - 1]
        });
        for value in edges.chain([i128::MAX, i128::MIN, 10_i128.pow(19), 10_i128.pow(38) - 1]) {
            let spelled = value.to_string();
            let shortest = Integer::of(value);
            assert_eq!(*shortest, *integer_bytes(value), "{value}");
            let parsed = canonical_integer(spelled.as_bytes()).unwrap();
            assert_eq!(*parsed, *shortest, "{value}");
            let mut out = Vec::new();
            write_decimal(&shortest, 0, &mut out);
            assert_eq!(out, spelled.as_bytes());
        }
    }

    #[test]
    fn decimals_are_written_with_their_scale() {
        let written = |unscaled: i128, scale| {
            let mut out = Vec::new();
            write_decimal(&integer_bytes(unscaled), scale, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(1250, 2), "12.50");
        assert_eq!(written(-5, 3), "-0.005");
        assert_eq!(written(5, -3), "5000");
        assert_eq!(written(0, -3), "0");
        assert_eq!(written(0, 2), "0.00");
    }
}
