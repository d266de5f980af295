//! The grammar of JSON texts (RFC 8259), byte by byte: checks and measures, builds nothing.
//!
//! Strict on purpose: what a lenient parser downstream would read differently from us is a leak. UTF-8 is not
//! checked here; callers check a whole record at once, which is faster.

/// Containers may nest this deep.
pub const MAX_DEPTH: usize = 128;

/// Where a text stops being JSON, and why. Small, because it is returned from every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: usize,
    pub(crate) what: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The text ends where something must follow.
    Truncated,
    /// A byte that the grammar does not allow there.
    Unexpected,
    /// A control character in a string that is not escaped.
    ControlCharacter,
    /// A backslash sequence that JSON does not know.
    BadEscape,
    /// Containers nested deeper than [`MAX_DEPTH`].
    TooDeep,
}

/// A string token: where it ends (after the closing quote) and whether it holds backslashes.
pub(crate) struct StringToken {
    pub(crate) end: usize,
    pub(crate) escaped: bool,
}

/// Skips the white space at `at`.
#[inline]
pub(crate) fn space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

/// Checks the whole value that starts at `at`, itself inside `depth` containers, and returns its end.
pub(crate) fn value(text: &[u8], mut at: usize, depth: usize) -> Result<usize, Fault> {
    // One bit per open container, 1 = object; MAX_DEPTH bits at most.
    let mut objects: u128 = 0;
    let mut open = 0;
    'value: loop {
        match text.get(at) {
            Some(b'"') => at = string(text, at + 1)?.end,
            Some(b'{') => {
                open += 1;
                check_depth(depth + open, at)?;
                objects = objects << 1 | 1;
                at = space(text, at + 1);
                if text.get(at) != Some(&b'}') {
                    at = name(text, at)?;
                    continue 'value;
                }
            }
            Some(b'[') => {
                open += 1;
                check_depth(depth + open, at)?;
                objects <<= 1;
                at = space(text, at + 1);
                if text.get(at) != Some(&b']') {
                    continue 'value;
                }
            }
            _ => at = scalar(text, at)?,
        }
        loop {
            if open == 0 {
                return Ok(at);
            }
            at = space(text, at);
            let in_object = objects & 1 == 1;
            match text.get(at) {
                Some(b',') => {
                    at = space(text, at + 1);
                    if in_object {
                        at = name(text, at)?;
                    }
                    continue 'value;
                }
                Some(b'}') if in_object => {}
                Some(b']') if !in_object => {}
                _ => return Err(unexpected(text, at)),
            }
            at += 1;
            open -= 1;
            objects >>= 1;
        }
    }
}

/// Refuses the container that opens at `at` if it is the `depth`-th of its kind and that is too deep.
#[inline]
pub(crate) fn check_depth(depth: usize, at: usize) -> Result<(), Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault {
            at,
            what: FaultKind::TooDeep,
        });
    }
    Ok(())
}

/// A member name with its colon: returns where the value starts.
#[inline]
fn name(text: &[u8], at: usize) -> Result<usize, Fault> {
    if text.get(at) != Some(&b'"') {
        return Err(unexpected(text, at));
    }
    let end = string(text, at + 1)?.end;
    colon(text, end)
}

/// The colon after a member name that ended at `at`: returns where the value starts.
#[inline]
pub(crate) fn colon(text: &[u8], at: usize) -> Result<usize, Fault> {
    let at = space(text, at);
    if text.get(at) != Some(&b':') {
        return Err(unexpected(text, at));
    }
    Ok(space(text, at + 1))
}

/// A number or literal that starts at `at`: returns its end.
#[inline]
pub(crate) fn scalar(text: &[u8], at: usize) -> Result<usize, Fault> {
    match text.get(at) {
        Some(b'-' | b'0'..=b'9') => number(text, at),
        Some(b't') => literal(text, at, b"true"),
        Some(b'f') => literal(text, at, b"false"),
        Some(b'n') => literal(text, at, b"null"),
        _ => Err(unexpected(text, at)),
    }
}

fn literal(text: &[u8], at: usize, word: &[u8]) -> Result<usize, Fault> {
    let rest = &text[at..];
    if rest.starts_with(word) {
        return Ok(at + word.len());
    }
    let same = rest.iter().zip(word).take_while(|(a, b)| a == b).count();
    Err(unexpected(text, at + same))
}

fn number(text: &[u8], mut at: usize) -> Result<usize, Fault> {
    if text[at] == b'-' {
        at += 1;
    }
    at = match text.get(at) {
        Some(b'0') => at + 1,
        _ => digits(text, at)?,
    };
    if text.get(at) == Some(&b'.') {
        at = digits(text, at + 1)?;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1;
        if let Some(b'+' | b'-') = text.get(at) {
            at += 1;
        }
        at = digits(text, at)?;
    }
    Ok(at)
}

/// One digit or more.
#[inline]
fn digits(text: &[u8], at: usize) -> Result<usize, Fault> {
    let mut end = at;
    while let Some(b'0'..=b'9') = text.get(end) {
        end += 1;
    }
    if end == at {
        return Err(unexpected(text, at));
    }
    Ok(end)
}

/// The string whose opening quote is just before `at`.
#[inline]
pub(crate) fn string(text: &[u8], mut at: usize) -> Result<StringToken, Fault> {
    let mut escaped = false;
    loop {
        at = plain_run(text, at);
        match text.get(at) {
            Some(b'"') => return Ok(StringToken { end: at + 1, escaped }),
            Some(b'\\') => {
                escaped = true;
                at = escape(text, at)?;
            }
            Some(_) => {
                return Err(Fault {
                    at,
                    what: FaultKind::ControlCharacter,
                });
            }
            None => {
                return Err(Fault {
                    at,
                    what: FaultKind::Truncated,
                });
            }
        }
    }
}

const ONES: u64 = u64::from_le_bytes([1; 8]);
const HIGHS: u64 = ONES << 7;

/// High bits of bytes that do not stand for themselves in a string: quotes, backslashes, control characters. False hits
/// occur only above a true one, so the lowest is exact.
#[inline]
fn specials(word: u64) -> u64 {
    let quotes = word ^ (ONES * b'"' as u64);
    let slashes = word ^ (ONES * b'\\' as u64);
    // A byte is zero (quote, backslash) or below 0x20 where the subtraction borrows into its high bit.
    let hits = (quotes.wrapping_sub(ONES) & !quotes)
        | (slashes.wrapping_sub(ONES) & !slashes)
        | (word.wrapping_sub(ONES * 0x20) & !word);
    hits & HIGHS
}

/// Whether all bytes are ASCII and stand for themselves in a string.
#[inline]
pub(crate) fn is_plain_ascii(text: &[u8]) -> bool {
    let others = |chunk: &[u8; 8]| {
        let word = u64::from_le_bytes(*chunk);
        specials(word) | word & HIGHS
    };
    let (chunks, rest) = text.as_chunks::<8>();
    let hits = chunks.iter().fold(0, |hits, chunk| hits | others(chunk));
    let last = match text.last_chunk::<8>() {
        Some(last) => others(last),
        None => {
            let mut padded = [b' '; 8];
            padded[..rest.len()].copy_from_slice(rest);
            others(&padded)
        }
    };
    hits | last == 0
}

/// The end of the run of bytes from `at` that stand for themselves in a string: stops at a quote, a backslash,
/// a control character or the end. Eight bytes at a time: this loop sees most bytes of most records.
#[inline]
pub(crate) fn plain_run(text: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let hits = specials(u64::from_le_bytes(*chunk));
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    // Less than eight are left: of the last eight, if there are as many. Zeros come in behind them, and end the run.
    if let Some(chunk) = text.last_chunk::<8>() {
        let left = text.len().saturating_sub(at);
        let word = u64::from_le_bytes(*chunk).checked_shr(64 - 8 * left as u32);
        return at + word.map_or(0, |word| (specials(word).trailing_zeros() / 8) as usize);
    }
    while let Some(byte) = text.get(at) {
        if *byte < 0x20 || *byte == b'"' || *byte == b'\\' {
            break;
        }
        at += 1;
    }
    at
}

/// The end of the escape sequence whose backslash is at `at`.
fn escape(text: &[u8], at: usize) -> Result<usize, Fault> {
    match text.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') => {
            for n in 2..6 {
                match text.get(at + n) {
                    Some(byte) if byte.is_ascii_hexdigit() => {}
                    Some(_) => {
                        return Err(Fault {
                            at: at + n,
                            what: FaultKind::BadEscape,
                        });
                    }
                    None => {
                        return Err(Fault {
                            at: at + n,
                            what: FaultKind::Truncated,
                        });
                    }
                }
            }
            Ok(at + 6)
        }
        Some(_) => Err(Fault {
            at: at + 1,
            what: FaultKind::BadEscape,
        }),
        None => Err(Fault {
            at: at + 1,
            what: FaultKind::Truncated,
        }),
    }
}

/// The fault at `at`: a byte too many or one too few.
#[cold]
pub(crate) fn unexpected(text: &[u8], at: usize) -> Fault {
    let what = if at < text.len() {
        FaultKind::Unexpected
    } else {
        FaultKind::Truncated
    };
    Fault { at, what }
}

/// A `\u` escape that is half of a surrogate pair: no Unicode text has it, and parsers disagree about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoneSurrogate;

/// Appends the text that `inner`, the checked inside of a string token, stands for.
pub(crate) fn unescape(inner: &[u8], out: &mut Vec<u8>) -> Result<(), LoneSurrogate> {
    let mut at = 0;
    while at < inner.len() {
        let end = plain_run(inner, at);
        out.extend_from_slice(&inner[at..end]);
        let Some(kind) = inner.get(end + 1) else { break };
        at = end + 2;
        match kind {
            b'b' => out.push(0x08),
            b'f' => out.push(0x0c),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => at = unescape_unicode(inner, at, out)?,
            itself => out.push(*itself),
        }
    }
    Ok(())
}

/// Appends the character of the `\u` escape (or pair of them) whose digits start at `at`; returns the end.
fn unescape_unicode(inner: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, LoneSurrogate> {
    let first = hex4(inner, at).ok_or(LoneSurrogate)?;
    let (code, end) = match first {
        0xd800..=0xdbff if inner.get(at + 4..at + 6) == Some(b"\\u") => {
            let second = hex4(inner, at + 6)
                .filter(|unit| (0xdc00..=0xdfff).contains(unit))
                .ok_or(LoneSurrogate)?;
            (0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00), at + 10)
        }
        other => (other, at + 4),
    };
    let character = char::from_u32(code).ok_or(LoneSurrogate)?;
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(end)
}

fn hex4(inner: &[u8], at: usize) -> Option<u32> {
    inner
        .get(at..at + 4)?
        .iter()
        .try_fold(0, |code, digit| Some(code << 4 | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(text: &str) -> Result<usize, FaultKind> {
        value(text.as_bytes(), 0, 0).map_err(|fault| fault.what)
    }

    #[test]
    fn every_valid_value_is_measured_to_its_end() {
        for text in [
            "0",
            "-0",
            "-10.25e+7",
            "1E1",
            "true",
            "null",
            "\"\"",
            "\"a\\u00e9\\/\"",
            "[]",
            "{}",
            "[ ]",
            "{ }",
        ] {
            assert_eq!(end_of(text), Ok(text.len()), "{text}");
        }
        let nested = r#" {"a" : [1 , {"b":{}} , []] , "" : "long text without any escape" } "#;
        assert_eq!(value(nested.as_bytes(), 1, 0), Ok(nested.len() - 1));
    }

    #[test]
    fn what_rfc_8259_does_not_allow_is_refused() {
        use FaultKind::{BadEscape, ControlCharacter, Truncated, Unexpected};
        for (text, fault) in [
            ("", Truncated),
            ("-", Truncated),
            ("1.", Truncated),
            ("1e", Truncated),
            (".5", Unexpected),
            ("+1", Unexpected),
            ("NaN", Unexpected),
            ("-Infinity", Unexpected),
            ("tru", Truncated),
            ("trux", Unexpected),
            ("'a'", Unexpected),
            ("[1,]", Unexpected),
            ("[,1]", Unexpected),
            ("{\"a\":1,}", Unexpected),
            ("{a:1}", Unexpected),
            ("{\"a\" 1}", Unexpected),
            ("[01]", Unexpected),
            ("[1}", Unexpected),
            ("{\"a\":1]", Unexpected),
            ("\"\\x\"", BadEscape),
            ("\"\\u00g0\"", BadEscape),
            ("\"\n\"", ControlCharacter),
            ("\"12345678\u{1f}\"", ControlCharacter),
            ("\"abc", Truncated),
            ("[1", Truncated),
            ("[/**/1]", Unexpected),
            ("[0x1]", Unexpected),
            ("[\u{a0}1]", Unexpected),
        ] {
            assert_eq!(end_of(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn nesting_ends_at_128_containers() {
        let nest = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(end_of(&nest(MAX_DEPTH)), Ok(2 * MAX_DEPTH));
        assert_eq!(end_of(&nest(MAX_DEPTH + 1)), Err(FaultKind::TooDeep));
        assert_eq!(
            value(b"[[]]", 0, MAX_DEPTH - 1).map_err(|f| f.what),
            Err(FaultKind::TooDeep)
        );
        assert_eq!(end_of(&"[".repeat(1_000_000)), Err(FaultKind::TooDeep));
    }

    #[test]
    fn every_byte_of_a_word_is_seen_by_the_string_scan() {
        for at in 0..24 {
            for (byte, stops) in [
                (b'"', true),
                (b'\\', true),
                (0x1f, true),
                (0, true),
                (0x20, false),
                (0x7f, false),
                (0x80, false),
                (0xff, false),
            ] {
                let mut text = vec![b'a'; 24];
                text[at] = byte;
                assert_eq!(plain_run(&text, 0), if stops { at } else { 24 }, "{byte:#x} at {at}");
                for len in at + 1..=24 {
                    let is_plain = !stops && byte.is_ascii();
                    assert_eq!(is_plain_ascii(&text[..len]), is_plain, "{byte:#x} at {at} of {len}");
                }
            }
        }
    }

    #[test]
    fn a_run_from_anywhere_ends_where_the_first_byte_does_not_stand_for_itself() {
        let stops = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
        for len in 0..=26 {
            for special in 0..=len {
                // A special byte before the run makes the ones behind it look special too.
                for other in 0..len {
                    let mut text = vec![b'!'; len];
                    text.iter_mut().skip(special).take(1).for_each(|byte| *byte = b'"');
                    text[other] = b'\\';
                    for at in 0..=len {
                        let run = text[at..].iter().position(|byte| stops(*byte));
                        let end = run.map_or(len, |run| at + run);
                        assert_eq!(plain_run(&text, at), end, "{text:?} from {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn escapes_decode_to_the_text_they_stand_for() {
        let decoded = |inner: &str| {
            let mut out = Vec::new();
            unescape(inner.as_bytes(), &mut out).map(|()| out)
        };
        assert_eq!(
            decoded(r#"a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00z"#),
            Ok("a\"\\/\u{8}\u{c}\n\r\té😀z".into())
        );
        for lone in [
            r"\ud800",
            r"\udc00",
            r"\ud800x",
            r"\ud800\n",
            r"\ud800\u0041",
            r"\ud800\ud800",
            r"\udc00\ud800",
        ] {
            assert_eq!(decoded(lone), Err(LoneSurrogate), "{lone}");
        }
    }
}
