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

/// Functions compiled for processors with these features.
macro_rules! with_features {
    ($inline:meta, $features:literal, $($(#[$more:meta])* $visible:vis fn $name:ident($($given:tt)*) $(-> $result:ty)? $body:block)*) => {
        $($(#[$more])*
        #[$inline]
        #[target_feature(enable = $features)]
        $visible fn $name($($given)*) $(-> $result)? $body)*
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

use crate::values::Batch;
use crate::{KEY_LEN, NONCE_LEN, PREFIX_LEN};

/// Room for the counter blocks of a group.
const BLOCKS: usize = 128;
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
        // SAFETY: a `Key` exists only, and is wide only, where what the functions are compiled for is there.
        match self.wide {
            true => unsafe { wide::sealed(self, batch, &mut out[from..]) },
            false => unsafe { narrow::sealed(self, batch, &mut out[from..]) },
        }
    }
}

