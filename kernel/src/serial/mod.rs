//! Many values one after the other, in registers of one block or of two: AES-NI and PCLMULQDQ of x86, VAES and VPCLMULQDQ in
//! registers of 256 bits, or AES and PMULL of 64-bit Arm.
//!
//! Values are taken in groups, of as many counter blocks as the key stream has room for. These are encrypted at once, whosever
//! they are: that is what hides how long a round takes. Then each value is hashed, with a power of H per block and one
//! reduction at its end. Nothing of one value waits for another, so that the processor takes up the next while this one's
//! products are on their way; values of a group are sorted by their blocks, so that it guesses branches right. Of *long
//! values* only what does not fill all registers goes this way; the rest is encrypted while other blocks of it are hashed.
//!
//! `column` and `long` are compiled for each kind of register, in `narrow` and in `wide`, which name the registers and what is
//! done with them; `lanes` has what differs between the machines. Sealing and opening are one code: what is hashed is what is
//! written, or what is read. What is opened stands in the output while its tag is made, and is zeros again before anything else
//! is done if that is wrong.
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

/// Functions for the instructions that lanes want: all kernels here have these.
#[cfg(target_arch = "x86_64")]
macro_rules! with_aes {
    ($inline:meta, $($code:tt)*) => { with_features! { $inline, "avx2,aes,pclmulqdq", $($code)* } };
}

/// Functions for the instructions that lanes want.
#[cfg(target_arch = "aarch64")]
macro_rules! with_aes {
    ($inline:meta, $($code:tt)*) => { with_features! { $inline, "neon,aes", $($code)* } };
}

mod ghash;
mod key;
mod lanes;
mod narrow;
#[cfg(target_arch = "x86_64")]
mod wide;

pub(crate) use key::Key;
use key::scheduled;

use crate::values::{Aads, Batch, SealedBatch, Values};
use crate::{KEY_LEN, Kernel, NONCE_LEN, PREFIX_LEN};

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

/// Whether this processor has all that the kernel uses; `false` for those that are not here.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_there(kernel: Kernel) -> bool {
    let narrow =
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
    match kernel {
        Kernel::Avx2 => narrow,
        Kernel::Avx2Vaes => narrow && is_x86_feature_detected!("vaes") && is_x86_feature_detected!("vpclmulqdq"),
        _ => false,
    }
}

/// Whether this processor has all that the kernel uses; `false` for those that are not here. What lanes say of words and
/// halves is right in little endian.
#[cfg(target_arch = "aarch64")]
pub(crate) fn is_there(kernel: Kernel) -> bool {
    kernel == Kernel::Neon
        && cfg!(target_endian = "little")
        && std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull")
}

/// What comes before sealed values: nothing to write when opening.
struct Start {
    prefix: [u8; PREFIX_LEN],
    /// Of value 0.
    nonce: u128,
}

impl Key {
    /// `None` where the processor cannot.
    #[allow(unsafe_code)] // the way into code for these instructions
    pub(crate) fn new(kernel: Kernel, key: &[u8; KEY_LEN]) -> Option<Box<Self>> {
        // SAFETY: what the function is compiled for is there, whichever of the kernels it is.
        is_there(kernel).then(|| unsafe { scheduled(key, kernel) })
    }

    pub(crate) fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Appends the sealed values to `out`, which has the room.
    pub(crate) fn seal(&self, batch: &Batch<'_>, out: &mut Vec<u8>) {
        let start = Start {
            prefix: batch.prefix,
            nonce: first(batch.start),
        };
        self.column::<false>(&start, &batch.aads, &batch.values, out, &mut []);
    }

    /// Appends the plaintexts to `out`, which has the room, and says in `opened`, where all is false, what did open.
    pub(crate) fn open(&self, batch: &SealedBatch<'_>, out: &mut Vec<u8>, opened: &mut [bool]) {
        let start = Start {
            prefix: [0; PREFIX_LEN],
            nonce: 0,
        };
        self.column::<true>(&start, &batch.aads, &batch.values, out, opened);
    }

    #[allow(unsafe_code)] // the way into code for these instructions
    fn column<const OPEN: bool>(
        &self,
        start: &Start,
        aads: &Aads<'_>,
        values: &Values<'_>,
        out: &mut Vec<u8>,
        opened: &mut [bool],
    ) {
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Key` exists only where its kernel is there: this one, with what the function is compiled for.
            Kernel::Avx2Vaes => unsafe { wide::column::<OPEN>(self, start, aads, values, out, opened) },
            // SAFETY: a `Key` exists only where what all kernels here have is there: what the function is compiled for.
            _ => unsafe { narrow::column::<OPEN>(self, start, aads, values, out, opened) },
        }
    }
}

fn first(start: [u8; NONCE_LEN]) -> u128 {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&start);
    u128::from_be_bytes(wide)
}
