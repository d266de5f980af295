//! A search for one text in every spelling that JSON allows, and in some that tools add.

/// Layers of escapes or base64 around one another that are looked into.
const LAYERS: usize = 3;
/// Shorter canaries than this would be found by chance.
const SHORTEST: usize = 8;

/// Whether `bytes` hold `canary`: see [`Canary`].
#[must_use]
pub fn contains_canary(bytes: &[u8], canary: &str) -> bool {
    Canary::new(canary).is_in(bytes)
}

/// A text that must not be found in anything that was written: a secret of a test's own.
///
/// Found are its bytes in any letter case, UTF-16, UTF-32, hexadecimal of either case, JSON escapes (of single
/// characters, escaped again, surrogate pairs), base64 of both alphabets at any position, and all of these
/// within one another up to three layers; a canary of digits also as a JSON number with fraction or exponent.
pub struct Canary {
    patterns: Vec<Vec<u8>>,
    /// Which bytes a pattern starts with.
    starts: [bool; 256],
    /// Significant digits of a canary that is a number.
    digits: Option<Vec<u8>>,
    /// Characters of base64 that hold the canary at the least.
    base64_len: usize,
}

impl Canary {
    /// A search for `canary`, at least 8 bytes long (shorter ones would be found by chance).
    #[must_use]
    pub fn new(canary: &str) -> Self {
        assert!(canary.len() >= SHORTEST, "a canary needs at least {SHORTEST} bytes");
        let utf16: Vec<u16> = canary.encode_utf16().collect();
        let patterns = vec![
            canary.as_bytes().to_vec(),
            utf16.iter().flat_map(|unit| unit.to_le_bytes()).collect(),
            utf16.iter().flat_map(|unit| unit.to_be_bytes()).collect(),
            canary.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect(),
            canary.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect(),
            canary
                .bytes()
                .flat_map(|byte| format!("{byte:02x}").into_bytes())
                .collect(),
        ];
        let mut starts = [false; 256];
        for first in patterns.iter().filter_map(|pattern| pattern.first()) {
            starts[usize::from(first.to_ascii_lowercase())] = true;
            starts[usize::from(first.to_ascii_uppercase())] = true;
        }
        let is_number = canary.bytes().all(|byte| byte.is_ascii_digit());
        let digits = is_number.then(|| canary.trim_matches('0').as_bytes().to_vec());
        Self {
            patterns,
            starts,
            digits,
            base64_len: canary.len() * 8 / 6,
        }
    }

    /// Whether it is in `bytes`, in any spelling.
    #[must_use]
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.search(bytes, LAYERS)
    }

    fn search(&self, bytes: &[u8], layers: usize) -> bool {
        if self.is_plain_in(bytes) || self.is_number_in(bytes) {
            return true;
        }
        if layers == 0 {
            return false;
        }
        let in_escapes = unescaped(bytes).is_some_and(|text| self.search(&text, layers - 1));
        in_escapes || self.is_base64_in(bytes, layers - 1)
    }

    fn is_plain_in(&self, bytes: &[u8]) -> bool {
        let mut at = 0;
        while let Some(next) = bytes[at..].iter().position(|byte| self.starts[usize::from(*byte)]) {
            at += next;
            let here = |pattern: &Vec<u8>| {
                bytes[at..]
                    .get(..pattern.len())
                    .is_some_and(|bytes| bytes.eq_ignore_ascii_case(pattern))
            };
            if self.patterns.iter().any(here) {
                return true;
            }
            at += 1;
        }
        false
    }

    /// Whether a JSON number has the canary's digits, wherever its point is.
    fn is_number_in(&self, bytes: &[u8]) -> bool {
        let Some(digits) = &self.digits else { return false };
        let numbers = bytes.split(|byte| !matches!(byte, b'0'..=b'9' | b'.'));
        numbers.filter(|number| number.len() >= digits.len()).any(|number| {
            let found: Vec<u8> = number.iter().copied().filter(u8::is_ascii_digit).collect();
            found.windows(digits.len()).any(|window| window == digits)
        })
    }

    fn is_base64_in(&self, bytes: &[u8], layers: usize) -> bool {
        let runs = bytes
            .split(|byte| sextet(*byte).is_none())
            .filter(|run| run.len() >= self.base64_len);
        // The run may begin before the encoding: with any of four positions as the first of a quadruple.
        runs.flat_map(|run| (0..4).map(|skip| &run[skip.min(run.len())..]))
            .any(|run| self.search(&unbase64(run), layers))
    }
}

/// `bytes` with one layer of JSON escapes taken off, as the most lenient parser would; `None` without any.
fn unescaped(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut at = bytes.iter().position(|byte| *byte == b'\\')?;
    let mut text = bytes[..at].to_vec();
    while let Some(byte) = bytes.get(at) {
        if *byte != b'\\' {
            text.push(*byte);
            at += 1;
            continue;
        }
        let (decoded, len) = one_escape(&bytes[at + 1..]);
        text.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes());
        at += 1 + len;
    }
    Some(text)
}

/// The character after a backslash, and how many bytes spell it.
fn one_escape(rest: &[u8]) -> (char, usize) {
    match rest.first() {
        None => ('\\', 0),
        Some(b'n') => ('\n', 1),
        Some(b't') => ('\t', 1),
        Some(b'r') => ('\r', 1),
        Some(b'b') => ('\u{8}', 1),
        Some(b'f') => ('\u{c}', 1),
        Some(b'u') => match (code_unit(&rest[1..]), rest.get(5..7), rest.get(7..).and_then(code_unit)) {
            (Some(high @ 0xd800..=0xdbff), Some(b"\\u"), Some(low @ 0xdc00..=0xdfff)) => {
                let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11)
            }
            (Some(unit), ..) => (char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), 5),
            (None, ..) => ('u', 1),
        },
        Some(byte) if byte.is_ascii() => (char::from(*byte), 1),
        Some(_) => ('\\', 0),
    }
}

fn code_unit(digits: &[u8]) -> Option<u32> {
    digits
        .get(..4)?
        .iter()
        .try_fold(0, |code, digit| Some(code << 4 | char::from(*digit).to_digit(16)?))
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    }
}

/// The bytes of a run of base64 characters; what is left over at the end is dropped.
fn unbase64(run: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(run.len() * 3 / 4);
    let (mut bits, mut held) = (0u32, 0);
    for value in run.iter().filter_map(|byte| sextet(*byte)) {
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
    use proptest::prelude::*;

    use super::*;

    const CANARY: &str = "canary-5d1f0c7b";

    fn escaped(text: &str) -> String {
        text.chars().map(|c| format!("\\u{:04X}", u32::from(c))).collect()
    }

    #[test]
    fn a_canary_is_found_in_every_spelling() {
        let hex: String = CANARY.bytes().map(|byte| format!("{byte:02X}")).collect();
        let utf16: Vec<u8> = CANARY.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for spelling in [
            CANARY.as_bytes(),
            b"xxCANARY-5D1F0C7Bxx",
            escaped(CANARY).as_bytes(),
            escaped(&escaped(CANARY)).as_bytes(),
            escaped(CANARY).replace('\\', "\\\\").as_bytes(),
            br#"c\u0061n\u0061ry\u002d5d1f0c7b"#,
            br"can\ary-5d1f0c7b",
            hex.as_bytes(),
            hex.to_lowercase().as_bytes(),
            &utf16,
            escaped(&hex).as_bytes(),
            STANDARD.encode(escaped(CANARY)).as_bytes(),
            STANDARD.encode(STANDARD.encode(CANARY)).as_bytes(),
        ] {
            assert!(
                contains_canary(spelling, CANARY),
                "{}",
                String::from_utf8_lossy(spelling)
            );
        }
        for number in [
            "4929718264105373",
            "4.929718264105373e15",
            "49297182641053730E-1",
            "-4929718264105373.000",
            "\"4929718264105373\"",
        ] {
            assert!(contains_canary(number.as_bytes(), "4929718264105373"), "{number}");
        }
    }

    #[test]
    fn what_is_not_the_canary_is_not_found() {
        for other in [
            "",
            "canary-5d1f0c7",
            "canary-5d1f0c7c",
            "\\u0063",
            "\\",
            "\\u",
            "492971826410537",
            "====",
            "YWJj",
        ] {
            assert!(!contains_canary(other.as_bytes(), CANARY), "{other}");
            assert!(!contains_canary(other.as_bytes(), "4929718264105373"), "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_canary_is_found_wherever_it_stands(before: Vec<u8>, after: Vec<u8>, which in 0usize..5) {
            let around = [before.as_slice(), CANARY.as_bytes(), &after].concat();
            let bytes = match which {
                0 => around,
                1 => STANDARD_NO_PAD.encode(around).into_bytes(),
                2 => URL_SAFE.encode(around).into_bytes(),
                3 => [b"prefix".as_slice(), STANDARD.encode(around).as_bytes(), b"suffix"].concat(),
                _ => [b"\"", escaped(CANARY).as_bytes(), b"\"", after.as_slice()].concat(),
            };
            prop_assert!(contains_canary(&bytes, CANARY));
        }

        #[test]
        fn random_bytes_hold_no_canary(bytes: Vec<u8>) {
            prop_assert!(!contains_canary(&bytes, CANARY));
        }
    }
}
