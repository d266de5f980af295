//! Many values one after the other in registers of AVX2's age: AES by AES-NI, one block to a register, or by VAES, two to a
//! register of 256 bits; GHASH by PCLMULQDQ or VPCLMULQDQ.
//!
//! Values are taken in groups, of as many counter blocks as the key stream has room for. These are encrypted at once, whosever
//! they are: that is what hides how long a round takes. Then each value is hashed, with a power of H per block and one
//! reduction at its end. Nothing of one value waits for another, so that the processor takes up the next while this one's
//! products are on their way; values of a group are sorted by their blocks, so that it guesses branches right. Of *long
//! values* only what does not fill all registers goes this way; the rest is encrypted while other blocks of it are hashed.
//!
//! `column` and `long` are compiled twice, in `narrow` and in `wide`, which name the registers and what is done with them.
//! Sealing and opening are one code: what is hashed is what is written, or what is read. What is opened stands in the output
//! while its tag is made, and is zeros again before anything else is done if that is wrong.
//!
//! What is branched on are lengths and nulls, which the sealed column shows anyway; never a byte of a value, of the key
//! or of the key stream.

/// Functions compiled for processors with these features.
macro_rules! with_features {
    ($inline:meta, $features:literal, $($(#[$more:meta])* $visible:vis fn $name:ident $(<const $constant:ident: $kind:ty>)? ($($given:tt)*) $(-> $result:ty)? $body:block)*) => {
        $($(#[$more])*
        #[$inline]
        #[target_feature(enable = $features)]
        $visible fn $name $(<const $constant: $kind>)? ($($given)*) $(-> $result)? $body)*
    };
}

/// Functions for processors of which [`is_there`] is true.
macro_rules! on_avx2 {
    ($($code:tt)*) => { with_features! { inline, "avx2,aes,pclmulqdq", $($code)* } };
}

mod ghash;
mod key;
mod lanes;
mod narrow;
mod wide;

pub(crate) use key::Key;
use key::scheduled;

use crate::values::{Aads, Batch, SealedBatch, Values};
use crate::{KEY_LEN, NONCE_LEN, PREFIX_LEN};

/// Room for the counter blocks of a group.
const BLOCKS: usize = 128;
/// Bytes up to which a value's whole key stream is its group's.
const SHORT: usize = 256;
/// Highest power of H that is kept.
const POWERS: usize = 32;
/// Bytes of AADs after which a group ends.
const AADS: usize = 1 << 16;
/// Bytes of output after which a group ends, so that its place is written when it comes.
const LARGE: usize = 1 << 14;

/// Whether this processor has all that is used here.
pub(crate) fn is_there() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq")
}

/// Whether it has AES and carry-less multiplication in registers of 256 bits too.
pub(crate) fn is_wide() -> bool {
    is_there() && is_x86_feature_detected!("vaes") && is_x86_feature_detected!("vpclmulqdq")
}

/// What comes before sealed values: nothing to write when opening.
struct Start {
    prefix: [u8; PREFIX_LEN],
    /// Of value 0.
    nonce: u128,
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

    /// Appends the sealed values to `out`, which has the room.
    pub(crate) fn seal(&self, batch: &mut Batch<'_>, out: &mut Vec<u8>) {
        let start = Start {
            prefix: batch.prefix,
            nonce: first(batch.start),
        };
        self.column::<false>(&start, &mut batch.aads, &batch.values, out, &mut []);
    }

    /// Appends the plaintexts to `out`, which has the room, and says in `opened`, where all is false, what did open.
    pub(crate) fn open(&self, batch: &mut SealedBatch<'_>, out: &mut Vec<u8>, opened: &mut [bool]) {
        let start = Start {
            prefix: [0; PREFIX_LEN],
            nonce: 0,
        };
        self.column::<true>(&start, &mut batch.aads, &batch.values, out, opened);
    }

    #[allow(unsafe_code)] // the way into code for AVX2
    fn column<const OPEN: bool>(
        &self,
        start: &Start,
        aads: &mut Aads<'_>,
        values: &Values<'_>,
        out: &mut Vec<u8>,
        opened: &mut [bool],
    ) {
        match self.wide {
            // SAFETY: a `Key` is wide only where what the function is compiled for is there.
            true => unsafe { wide::column::<OPEN>(self, start, aads, values, out, opened) },
            // SAFETY: a `Key` exists only where what the function is compiled for is there.
            false => unsafe { narrow::column::<OPEN>(self, start, aads, values, out, opened) },
        }
    }
}

fn first(start: [u8; NONCE_LEN]) -> u128 {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&start);
    u128::from_be_bytes(wide)
}
