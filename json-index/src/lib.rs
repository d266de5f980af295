//! Where the tokens of a JSON text (RFC 8259) are: brackets, colons, commas, strings, numbers and literals, in one pass
//! over the text, 64 bytes at a time.
//!
//! Each token is checked as such: strings for control characters and escapes, numbers and literals for their spelling,
//! and whatever is none of these is refused. How tokens follow each other is not checked, nor is UTF-8; both are for the
//! caller, who gets what it takes: tokens by 64 as masks, and whether the text is all ASCII. No tree is built,
//! and nothing of a string or number is copied.
//!
//! Three kernels make the same index: `avx512`, `avx2`, and `portable`, which is safe code. [`Kernel::of_machine`] is
//! the best that the processor has; `SEALFLOW_KERNEL=portable` in the environment forces the last.

mod portable;
mod scan;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use std::sync::OnceLock;

/// Bytes that are looked at, and tokens that are put into a [`Group`], at once.
pub const BLOCK: usize = 64;
/// Bytes that [`prefetch`] asks for at most: what follows the processor fetches by itself.
const FETCHED: usize = 2 << 10;
/// Longer texts are not indexed: of one that is all brackets the index is ten times as large.
pub const MOST: usize = 4 << 20;
/// An index that grew beyond so many tokens is not kept for the next text.
const KEPT: usize = 1 << 20;

/// Which code makes the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// Safe code for every processor.
    Portable,
    /// AVX2 with PCLMULQDQ.
    Avx2,
    /// AVX-512 with VBMI, VBMI2 and PCLMULQDQ.
    Avx512,
}

impl Kernel {
    /// The best that this processor has, or what `SEALFLOW_KERNEL` says. What it says and is not there is not taken.
    #[must_use]
    pub fn of_machine() -> Self {
        static CHOSEN: OnceLock<Kernel> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let said = std::env::var("SEALFLOW_KERNEL").unwrap_or_default();
            Self::named(&said).unwrap_or_else(Self::best)
        })
    }

    /// All that this processor has, the fastest first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_avx2() {
                all.insert(0, Self::Avx2);
            }
            if x86::has_avx512() {
                all.insert(0, Self::Avx512);
            }
        }
        all
    }

    fn best() -> Self {
        Self::all().into_iter().next().unwrap_or(Self::Portable)
    }

    fn named(name: &str) -> Option<Self> {
        let named = match name {
            "portable" => Self::Portable,
            // The kernel that seals has two for AVX2.
            "avx2" | "avx2-vaes" => Self::Avx2,
            "avx512" => Self::Avx512,
            _ => return None,
        };
        Self::all().into_iter().find(|kernel| *kernel == named)
    }
}

/// What a token is: the byte that it begins with, but for numbers and literals, which all are [`SCALAR`].
pub type Kind = u8;
/// The kind of numbers and literals.
pub const SCALAR: Kind = b'0';

/// Tokens 64 n to 64 n + 63 of a text: bit i is set where token 64 n + i is of that kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// `{`
    pub objects: u64,
    /// `}`
    pub object_ends: u64,
    /// `[`
    pub arrays: u64,
    /// `]`
    pub array_ends: u64,
    /// `:`
    pub colons: u64,
    /// `,`
    pub commas: u64,
    /// Strings, by their opening quote.
    pub strings: u64,
    /// Numbers and literals.
    pub scalars: u64,
}

/// Working memory for indexes: reuse it from text to text, so that nothing is allocated.
pub struct Index {
    /// Only one that this processor has.
    kernel: Kernel,
    room: Room,
}

/// What an index is written to. `positions`, `kinds` and `words` are as long, and mean nothing beyond the tokens that there are.
#[derive(Default)]
struct Room {
    positions: Vec<u32>,
    kinds: Vec<Kind>,
    groups: Vec<Group>,
    /// Where in numbers and literals come letters.
    words: Vec<u32>,
    #[cfg(target_arch = "x86_64")]
    part: x86::Part,
}

impl Room {
    /// Whether there is room for a block's tokens, or words, beyond the first `count`.
    #[inline(always)]
    fn has(&self, count: usize) -> bool {
        self.kinds.len() >= count + BLOCK
    }

    /// Makes that room, and for 63 more blocks.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, count: usize) {
        let len = (count + 64 * BLOCK).next_power_of_two();
        self.positions.resize(len, 0);
        self.kinds.resize(len, 0);
        self.words.resize(len, 0);
    }
}

/// The index of a text.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// Byte offset of each token.
    pub positions: &'a [u32],
    /// Kind of each token.
    pub kinds: &'a [Kind],
    /// The same by 64; the last may not be full.
    pub groups: &'a [Group],
    /// No string that a colon or white space follows has a backslash, a dot or a `[` in it: so no member name has.
    pub plain_names: bool,
    /// The text is all ASCII.
    pub is_ascii: bool,
}

impl Default for Index {
    fn default() -> Self {
        Self::on(Kernel::of_machine())
    }
}

impl Index {
    /// On that kernel; on the portable one if the processor does not have it.
    #[must_use]
    pub fn on(kernel: Kernel) -> Self {
        let is_there = kernel == Kernel::of_machine() || Kernel::all().contains(&kernel);
        Self {
            kernel: if is_there { kernel } else { Kernel::Portable },
            room: Room::default(),
        }
    }

    /// Which kernel makes the index.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Fills the places to check with that, as an earlier text may have left them.
    #[cfg(test)]
    fn poison(&mut self, place: u32) {
        self.room.words.fill(place);
    }

    /// Indexes `text`. `None` if a token is not as RFC 8259 has it, or the text is longer than [`MOST`].
    ///
    /// A number that lacks its last digit (`1.`) right before a string, or at the end of the text, may be read: no document has either,
    /// which whoever walks the tokens sees, and the kernels differ there.
    pub fn read(&mut self, text: &[u8]) -> Option<Tokens<'_>> {
        if text.len() > MOST {
            return None;
        }
        let room = &mut self.room;
        if room.kinds.len() > KEPT {
            *room = Room::default();
        }
        let summary = match self.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => x86::by_avx512(text, room),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => x86::by_avx2(text, room),
            _ => portable::index(text, room),
        };
        let scan::Summary {
            count,
            is_ascii,
            plain_names,
        } = summary?;
        Some(Tokens {
            positions: &room.positions[..count],
            kinds: &room.kinds[..count],
            groups: &room.groups,
            is_ascii,
            plain_names,
        })
    }
}

/// Has the first bytes of a text fetched into the cache, for who is going to read it soon: of texts that lie anywhere in
/// memory the processor cannot know. Nothing is read, and where there is no such instruction nothing happens.
pub fn prefetch(text: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch(&text[..text.len().min(FETCHED)]);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = text;
}

/// What is left after the last whole block, and spaces, which are no tokens.
fn filled(rest: &[u8]) -> [u8; BLOCK] {
    let mut block = [b' '; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    block
}
