//! What is the same on every kernel: from the classes of a block's bytes to its tokens, in words of 64 bits, with what
//! one block hands to the next.
//!
//! A word has a bit for each byte of the block, the first byte lowest; `word << 1 | carry` is then "the byte before is".

use crate::{BLOCK, Room, SCALAR};

/// The classes of a block's bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Classes {
    /// Below 0x20.
    pub(crate) control: u64,
    /// `{ } [ ] : ,`
    pub(crate) operator: u64,
    /// Space, tab, line feed, carriage return.
    pub(crate) space: u64,
    /// A colon, or white space: what can come after a member name.
    pub(crate) after_name: u64,
    /// `. [ \`: what makes a member name worth a look.
    pub(crate) special: u64,
    /// Digits, `.`, `-`.
    pub(crate) number: u64,
    /// What cannot come after the byte before it: no digit after `.` or `-`, a `.` not after a digit, a `-` after one; and
    /// digits after a zero that may be the first of its number.
    pub(crate) ill: u64,
}

/// The byte before is, and what the next block is told.
macro_rules! before {
    ($word:expr, $carry:expr) => {{
        let word = $word;
        let before = word << 1 | $carry;
        $carry = word >> 63;
        before
    }};
}

/// From the bytes that numbers are made of to what is ill among them, for kernels that have no table of pairs.
#[derive(Default)]
pub(crate) struct Numbers {
    digit: u64,
    wants_digit: u64,
    within: u64,
    first_zero: u64,
}

impl Numbers {
    /// `ill` of [`Classes`].
    #[inline(always)]
    pub(crate) fn ill(&mut self, digit: u64, zero: u64, point: u64, minus: u64) -> u64 {
        let after_digit = before!(digit, self.digit);
        let after_wanting = before!(minus | point, self.wants_digit);
        let first_zero = zero & !before!(digit | point, self.within);
        let after_zero = before!(first_zero, self.first_zero) & digit;
        (after_wanting & !digit) | (point & !after_digit) | (minus & after_digit) | after_zero
    }
}

/// The tokens of a block, each where it begins.
#[derive(Clone, Copy)]
pub(crate) struct Starts {
    pub(crate) all: u64,
    pub(crate) scalars: u64,
}

/// What became of a text.
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) is_ascii: bool,
    pub(crate) plain_names: bool,
}

/// What the blocks so far have left behind: carries of one bit, or of all bits for `in_string`; and whether anything
/// was wrong, or a name special.
#[derive(Default)]
pub(crate) struct Scan {
    escaped: u64,
    in_string: u64,
    special: u64,
    special_end: u64,
    scalar: u64,
    other: u64,
    fault: u64,
    ill: u64,
    special_names: u64,
    /// Places in [`Room::words`](crate::Room) that are taken.
    pub(crate) words: usize,
}

impl Scan {
    /// The quotes that open and close strings: those that are not escaped. Escapes are checked.
    #[inline(always)]
    pub(crate) fn quotes(&mut self, text: &[u8], at: usize, quote: u64, backslash: u64) -> u64 {
        if backslash | self.escaped == 0 {
            return quote;
        }
        let (escaped, carry, fault) = escapes(text, at, backslash, self.escaped);
        self.escaped = carry;
        self.fault |= fault;
        quote & !escaped
    }

    /// The tokens that begin in the block at `at`. `in_quotes` has a bit for every byte that an odd number of the block's
    /// `quotes` came up to: its prefix sum without carries. `words` has room for as many as the block has bytes.
    #[inline(always)]
    pub(crate) fn starts(
        &mut self,
        at: usize,
        classes: &Classes,
        quotes: u64,
        in_quotes: u64,
        words: &mut [u32],
    ) -> Starts {
        // From an opening quote up to what is before the closing one.
        let strings = in_quotes ^ self.in_string;
        self.in_string = ((strings as i64) >> 63) as u64;
        let scalars = !(strings | quotes | classes.operator | classes.space);
        let first = scalars & !before!(scalars, self.scalar);
        let other = scalars & !classes.number;
        let first_other = other & !before!(other, self.other);

        // A special byte carries to where its string or number ends, and past others that come after it.
        let within = strings | scalars;
        let special = classes.special & within;
        let sum = u128::from(within) + u128::from(special) + u128::from(self.special);
        self.special = (sum >> 64) as u64;
        let sum = sum as u64;
        let special_ends = sum & quotes & !strings;
        self.special_names |= before!(special_ends, self.special_end) & classes.after_name;

        self.fault |= classes.control & strings;
        // A second point.
        self.fault |= sum & special & scalars;
        self.ill |= classes.ill & !(strings | quotes);
        let all = (classes.operator & !strings) | (quotes & strings) | first;
        self.remember(at, first_other, words);
        Starts { all, scalars: first }
    }

    /// Remembers where in numbers and literals come other bytes than digits, points and signs, to be checked in the end:
    /// seldom more than two in a block, and so without a guess how many.
    #[inline(always)]
    fn remember(&mut self, at: usize, mut words_at: u64, words: &mut [u32]) {
        let Some(words) = words.get_mut(self.words..self.words + BLOCK) else {
            self.fault = 1;
            return;
        };
        // A block is at most 4 MiB from the beginning.
        let at = at as u32;
        words[0] = at + words_at.trailing_zeros();
        let mut count = usize::from(words_at != 0);
        words_at &= words_at.wrapping_sub(1);
        words[count] = at + words_at.trailing_zeros();
        count += usize::from(words_at != 0);
        words_at &= words_at.wrapping_sub(1);
        while words_at != 0 {
            words[count % BLOCK] = at + words_at.trailing_zeros();
            count += 1;
            words_at &= words_at - 1;
        }
        self.words += count;
    }

    /// After the last block.
    pub(crate) fn state(&self, is_ascii: bool) -> State {
        State {
            is_wrong: self.fault | self.escaped | self.in_string != 0,
            is_ill: self.ill != 0,
            special_names: self.special_names != 0,
            is_ascii,
        }
    }
}

/// What is known of a text after its last block.
pub(crate) struct State {
    pub(crate) is_wrong: bool,
    /// Something stands ill in a number, unless it is a zero in front of an exponent's digits.
    pub(crate) is_ill: bool,
    pub(crate) special_names: bool,
    pub(crate) is_ascii: bool,
}

impl State {
    /// How many tokens there are, unless something is wrong.
    pub(crate) fn end(&self, text: &[u8], room: &Room, words: usize, count: usize) -> Option<Summary> {
        if self.is_wrong {
            return None;
        }
        for at in room.words.get(..words)? {
            if !is_word(text, *at as usize) {
                return None;
            }
        }
        if self.is_ill && !are_numbers(text, room, count) {
            return None;
        }
        Some(Summary {
            count,
            is_ascii: self.is_ascii,
            plain_names: !self.special_names,
        })
    }
}

/// Whether all numbers are, as far as [`is_word`] does not say.
#[cold]
#[inline(never)]
fn are_numbers(text: &[u8], room: &Room, count: usize) -> bool {
    let tokens = room.positions.iter().zip(&room.kinds).take(count);
    for (at, kind) in tokens {
        if *kind == SCALAR && !is_number(text, *at as usize) {
            return false;
        }
    }
    true
}

/// Whether a number begins at `at`, up to its exponent, or a literal.
fn is_number(text: &[u8], mut at: usize) -> bool {
    match text.get(at) {
        Some(b't' | b'f' | b'n') => return true,
        Some(b'-') => at += 1,
        _ => {}
    }
    at = match text.get(at) {
        Some(b'0') => at + 1,
        Some(b'1'..=b'9') => digits_end(text, at),
        _ => return false,
    };
    if text.get(at) == Some(&b'.') {
        let fraction = at + 1;
        at = digits_end(text, fraction);
        if at == fraction {
            return false;
        }
    }
    is_end(text, at) || matches!(text.get(at), Some(b'e' | b'E' | b'"' | b':' | b'{' | b'['))
}

fn digits_end(text: &[u8], mut at: usize) -> usize {
    while let Some(b'0'..=b'9') = text.get(at) {
        at += 1;
    }
    at
}

/// The bytes after a backslash that is not itself escaped; whether the next block begins with one; what is not right.
/// Not a method, so that the state stays in registers.
#[inline(never)]
pub(crate) fn escapes(text: &[u8], at: usize, backslash: u64, carry: u64) -> (u64, u64, u64) {
    const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    // A run of backslashes escapes every second byte from its own second on: adding up carries through the run, and
    // tells by parity where it ends. After simdjson (Langdale and Lemire, 2019).
    let begins = backslash & !carry;
    let ends = ((begins << 1 | ODD).wrapping_sub(begins)) ^ ODD;
    let escaped = ends ^ (backslash | carry);
    let (mut rest, mut fault) = (escaped, 0);
    while rest != 0 {
        let place = at + rest.trailing_zeros() as usize;
        fault |= u64::from(!is_escape(text, place));
        rest &= rest - 1;
    }
    (escaped, (ends & backslash) >> 63, fault)
}

/// Whether what follows a backslash, at `at`, is an escape.
#[inline(always)]
fn is_escape(text: &[u8], at: usize) -> bool {
    match text.get(at) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => true,
        Some(b'u') => text
            .get(at + 1..at + 5)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)),
        _ => false,
    }
}

/// Whether a number or literal is at its end before `at`.
#[inline(always)]
fn is_end(text: &[u8], at: usize) -> bool {
    matches!(
        text.get(at),
        None | Some(b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')
    )
}

/// Whether the other bytes than digits, points and signs that begin at `at` are a literal or, after a digit, belong to an
/// exponent.
#[inline(always)]
fn is_word(text: &[u8], at: usize) -> bool {
    let Some(rest) = text.get(at..) else { return false };
    let len = match rest.first_chunk::<4>() {
        Some(b"true" | b"null") => 4,
        Some(b"fals") if rest.get(4) == Some(&b'e') => 5,
        _ => return at > 0 && text[at - 1].is_ascii_digit() && is_exponent(text, at),
    };
    is_end(rest, len) && (at == 0 || !text[at - 1].is_ascii_digit())
}

/// Whether an exponent begins at `at`: nothing else comes in its number after it.
#[inline(always)]
fn is_exponent(text: &[u8], mut at: usize) -> bool {
    if !matches!(text.get(at), Some(b'e' | b'E')) {
        return false;
    }
    at += 1;
    if let Some(b'+' | b'-') = text.get(at) {
        at += 1;
    }
    let end = digits_end(text, at);
    end > at && is_end(text, end)
}
