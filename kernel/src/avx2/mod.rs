//! Many values one after the other in registers of AVX2's age: AES by AES-NI, one block to a register, or by VAES, two to a
//! register of 256 bits; GHASH by PCLMULQDQ.
//!
//! Values are taken in groups, of as many counter blocks as the key stream has room for. These are encrypted at once, whosever
//! they are: that is what hides how long a round takes. Then each value is hashed with a power of H per block and one
//! reduction at its end. Nothing of one value waits for another, so that the processor takes up the next while this one's
//! products are on their way, and lengths need not be alike. Of *long values* only what does not fill all registers goes this
//! way; the rest is encrypted while what came before it is hashed.
//!
//! What is branched on are lengths and nulls, which the sealed column shows anyway; never a byte of a value, of the key
//! or of the key stream.

/// Functions for processors of which [`is_there`] is true.
macro_rules! on_avx2 {
    ($($(#[$more:meta])* $visible:vis fn $name:ident($($given:tt)*) $(-> $result:ty)? $body:block)*) => {
        $($(#[$more])*
        #[inline]
        #[target_feature(enable = "avx2,aes,pclmulqdq")]
        $visible fn $name($($given)*) $(-> $result)? $body)*
    };
}

mod ghash;
mod key;
mod lanes;
mod narrow;
mod wide;

use core::arch::x86_64::*;

use zeroize::Zeroizing;

use ghash::{Sum, absorbed, added, hashed, nothing, power, powers_from, reduced, reversed};
pub(crate) use key::Key;
use key::scheduled;
use lanes::{Block, Stream, load, load_some, ones, store, store_at};

use crate::values::{Aads, Batch};
use crate::{KEY_LEN, NONCE_LEN, OVERHEAD, PREFIX_LEN};

/// Room for the counter blocks of a group.
const BLOCKS: usize = 256;
/// Bytes up to which a value's whole key stream is its group's.
const SHORT: usize = 256;
/// Highest power of H that is kept.
const POWERS: usize = 32;
/// Bytes of AADs after which a group ends.
const AADS: usize = 1 << 16;
/// Where the ciphertext begins.
const HEADER: usize = PREFIX_LEN + NONCE_LEN;

/// Whether this processor has all that is used here.
pub(crate) fn is_there() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq")
}

/// Whether it has AES and carry-less multiplication in registers of 256 bits too.
pub(crate) fn is_wide() -> bool {
    is_there() && is_x86_feature_detected!("vaes") && is_x86_feature_detected!("vpclmulqdq")
}

/// What is known of a value when its counter blocks are made.
#[derive(Clone, Copy, Default)]
struct Placed {
    from: u32,
    len: u32,
    /// Bytes of its own AAD with what of all AADs goes with it.
    aad: u32,
}

/// What is written before each value but the nonce.
struct Head {
    first: [u8; 16],
    /// Bytes 15 to 18, and zeros.
    second: __m128i,
}

/// The sum that values of one length and AAD begin with.
struct Cached {
    len: u32,
    sum: Sum,
}

impl Key {
    /// With VAES if `wide`. `None` where the processor cannot.
    #[allow(unsafe_code)] // the way into code for AVX2
    pub(crate) fn new(key: &[u8; KEY_LEN], wide: bool) -> Option<Box<Self>> {
        let there = if wide { is_wide() } else { is_there() };
        // SAFETY: what the functions are compiled for is there.
        there.then(|| unsafe { scheduled(key, wide) })
    }

    pub(crate) fn is_wide(&self) -> bool {
        self.wide
    }

    #[allow(unsafe_code)] // the way into code for AVX2
    pub(crate) fn seal(&self, batch: &mut Batch<'_>, room: usize, out: &mut Vec<u8>) {
        let from = out.len();
        // Zeros first: every byte is written, and none is read before. It also brings the lines into the cache.
        out.resize(from + room, 0);
        // SAFETY: a `Key` exists only where what the functions are compiled for is there.
        unsafe { sealed(self, batch, &mut out[from..]) }
    }

    /// Bytes that fill all registers.
    fn chunk(&self) -> usize {
        16 * if self.wide { wide::CHUNK } else { narrow::CHUNK }
    }
}

on_avx2! {
    /// Seals into `out`, which has exactly the room.
    fn sealed(key: &Key, batch: &mut Batch<'_>, out: &mut [u8]) {
        let values = batch.values;
        let head = head(&batch.prefix);
        let mut own = Vec::new();
        let (fixed, same) = match &batch.aads {
            Aads::Same(aad) => (*aad, true),
            Aads::Each { fixed, .. } => (fixed.as_chunks::<16>().0.as_flattened(), false),
        };
        own.extend_from_slice(fixed);
        pad(&mut own);
        let state = absorbed(key, _mm_setzero_si128(), own.as_chunks().0);
        let fixed = fixed.len();
        let mut cached = Cached { len: u32::MAX, sum: nothing() };
        let mut stream = Zeroizing::new(Stream([[0; 16]; BLOCKS]));
        let mut group = [Placed::default(); BLOCKS];
        let start = first(batch.start);
        let chunk = key.chunk();
        let mut out = out;
        let mut number = 0;
        while number < values.len() {
            own.clear();
            let (mut count, mut used, mut to) = (0, 0, 0);
            for (n, pair) in (number..).zip(values.offsets()[number..].windows(2)) {
                if !values.is_null(n) {
                    // Offsets ascend.
                    let (from, len) = (pair[0] as u32, (pair[1] - pair[0]) as u32);
                    let rest = rest(len as usize, chunk);
                    let wanted = blocks(rest) + 1;
                    if used + wanted > BLOCKS || own.len() > AADS {
                        break;
                    }
                    let nonce = nonce(start, n);
                    counters(&mut stream.0[used..used + wanted], nonce, (len as usize - rest) / 16);
                    write_head(&head, nonce, &mut out[to..to + HEADER]);
                    let aad = own_aad(&mut batch.aads, n, &mut own);
                    group[count] = Placed { from, len, aad: (fixed + aad) as u32 };
                    (count, used, to) = (count + 1, used + wanted, to + len as usize + OVERHEAD);
                }
                number = n + 1;
            }
            encrypt(key, &mut stream.0[..used.next_multiple_of(wide::CHUNK)]);
            let (mut at, mut aads) = (0, &*own);
            for placed in &group[..count] {
                let len = placed.len as usize;
                let rest = rest(len, chunk);
                let used = blocks(rest) + 1;
                let stream = &stream.0[at..at + used];
                let (place, others) = out.split_at_mut(len + OVERHEAD);
                let text = &values.bytes()[placed.from as usize..];
                let own;
                (own, aads) = aads.split_at((placed.aad as usize - fixed).next_multiple_of(16));
                let own = own.as_chunks().0;
                let sum = if rest < len {
                    let state = absorbed(key, state, own);
                    let nonce = nonce_of(&place[HEADER - 16..]);
                    let state = seal_chunks(key, nonce, &text[..len - rest], &mut place[HEADER..], state);
                    begin(key, state, &[], used, placed)
                } else if same {
                    if cached.len != placed.len {
                        cached = Cached { len: placed.len, sum: begin(key, state, &[], used, placed) };
                    }
                    cached.sum
                } else {
                    begin(key, state, own, used, placed)
                };
                let sum = seal_rest(key, &stream[1..], &text[len - rest..], rest, &mut place[HEADER + len - rest..], sum);
                let tag = _mm_xor_si128(reversed(reduced(sum)), load(&stream[0]));
                store_at(place, HEADER + len, tag);
                out = others;
                at += used;
            }
        }
    }

    // ---- the header

    fn head(prefix: &[u8; PREFIX_LEN]) -> Head {
        let (mut first, mut second) = ([0; 16], [0; 16]);
        first.copy_from_slice(&prefix[..16]);
        second[..PREFIX_LEN - 15].copy_from_slice(&prefix[15..]);
        Head { first, second: load(&second) }
    }

    fn write_head(head: &Head, nonce: __m128i, out: &mut [u8]) {
        let (begin, _) = out.split_at_mut(16);
        begin.copy_from_slice(&head.first);
        store_at(out, HEADER - 16, _mm_or_si128(_mm_slli_si128::<4>(nonce), head.second));
    }

    /// The nonce of value n, and zeros.
    fn nonce(start: u128, n: usize) -> __m128i {
        let nonce = start.wrapping_add(n as u128);
        _mm_set_epi64x(i64::from((nonce as u32).to_be()), ((nonce >> 32) as u64).to_be() as i64)
    }

    /// The nonce at the end of 16 bytes, and zeros.
    fn nonce_of(bytes: &[u8]) -> __m128i {
        _mm_srli_si128::<4>(load(bytes.first_chunk().unwrap_or(&[0; 16])))
    }

    // ---- what values begin with

    /// What the AAD and the lengths add. `used`: blocks of ciphertext to come, and one.
    fn begin(key: &Key, state: __m128i, own: &[Block], used: usize, placed: &Placed) -> Sum {
        let lengths = _mm_set_epi64x(i64::from(placed.aad) * 8, i64::from(placed.len) * 8);
        added(hashed(key, state, own, used), lengths, power(key, 1))
    }

    /// Counter blocks of a value: the first makes the tag, the others what of the key stream comes after so many blocks.
    fn counters(blocks: &mut [Block], nonce: __m128i, after: usize) {
        for (block, number) in blocks.iter_mut().zip(&NUMBERS) {
            store(block, _mm_or_si128(nonce, load(number)));
        }
        if after > 0 {
            for (n, block) in blocks.iter_mut().enumerate().skip(1) {
                store(block, _mm_insert_epi32::<3>(nonce, ((after + n + 1) as u32).to_be() as i32));
            }
        }
    }

    // ---- ciphertext

    /// Seals `len` bytes of the text with the key stream there; the products of their GHASH.
    fn seal_rest(key: &Key, stream: &[Block], text: &[u8], len: usize, out: &mut [u8], sum: Sum) -> Sum {
        let mut sum = sum;
        let powers = powers_from(key, stream.len() + 1);
        let whole = text[..len].as_chunks().0;
        for (((text, out), stream), power) in whole.iter().zip(out.as_chunks_mut().0).zip(stream).zip(powers) {
            let cipher = _mm_xor_si128(load(text), load(stream));
            store(out, cipher);
            sum = added(sum, reversed(cipher), load(power));
        }
        let done = whole.len();
        if done < stream.len() {
            let left = len - 16 * done;
            let text = load_some(&text[16 * done..], left);
            let cipher = _mm_and_si128(_mm_xor_si128(text, load(&stream[done])), ones(left));
            // What is written beyond the value is where its tag comes.
            store_at(out, 16 * done, cipher);
            sum = added(sum, reversed(cipher), load(&powers[done]));
        }
        sum
    }

    #[allow(unsafe_code)] // the way into code for VAES
    fn encrypt(key: &Key, blocks: &mut [Block]) {
        match key.wide {
            // SAFETY: a `Key` is wide only where what the function is compiled for is there.
            true => unsafe { wide::encrypt(key, blocks) },
            false => narrow::encrypt(key, blocks),
        }
    }

    #[allow(unsafe_code)] // the way into code for VAES
    fn seal_chunks(key: &Key, nonce: __m128i, text: &[u8], out: &mut [u8], state: __m128i) -> __m128i {
        match key.wide {
            // SAFETY: a `Key` is wide only where what the function is compiled for is there.
            true => unsafe { wide::seal_chunks(key, nonce, text, out, state) },
            false => narrow::seal_chunks(key, nonce, text, out, state),
        }
    }
}

/// 1, 2, 3 … at the ends of blocks: J0 is block 1, the key stream begins with block 2.
static NUMBERS: [Block; SHORT / 16 + 1] = {
    let mut numbers = [[0; 16]; SHORT / 16 + 1];
    let mut n = 0;
    while n < numbers.len() {
        numbers[n][15] = n as u8 + 1;
        n += 1;
    }
    numbers
};

/// Bytes of a value whose key stream is its group's.
#[inline]
fn rest(len: usize, chunk: usize) -> usize {
    // A chunk is a power of two.
    if len <= SHORT { len } else { len & (chunk - 1) }
}

/// Blocks that a value begins.
#[inline]
fn blocks(len: usize) -> usize {
    len.div_ceil(16)
}

/// The AAD of value n beyond what all have in whole blocks, and zeros up to a block's end. How long it is.
#[inline]
fn own_aad(aads: &mut Aads<'_>, n: usize, own: &mut Vec<u8>) -> usize {
    let Aads::Each { fixed, write } = aads else { return 0 };
    let from = own.len();
    own.extend_from_slice(fixed.as_chunks::<16>().1);
    write(n, own);
    let len = own.len().saturating_sub(from);
    pad(own);
    len
}

/// Zeros up to a block's end.
#[inline]
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
}

fn first(start: [u8; NONCE_LEN]) -> u128 {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&start);
    u128::from_be_bytes(wide)
}
