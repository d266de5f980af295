//! AES-256-GCM for whole columns: many values under one key at the speed of one large one.
//!
//! This is the standard's cipher (NIST SP 800-38D, nonces of 96 and tags of 128 bits) and nothing else: every value
//! comes out bit for bit as any implementation makes it. Called once per value, GCM takes many times what its AES
//! takes: set-up, one block at a time, a reduction per block. Values of a column share their key, so here they go side
//! by side: sealed, and opened. The crate holds no policy and draws no random numbers; whoever calls it answers for
//! nonces that never repeat.
//!
//! Kernels that compute the same: `portable`, safe code on the crates `aes` and `ghash`; `avx2`, which encrypts the
//! counter blocks of many values at once, with VAES (`avx2-vaes`) where the processor has it; `neon`, the same for 64-bit
//! Arm; and `avx512`, in which four values are in the four lanes of a register. [`Cipher::new`] takes the best that the processor has; `SEALFLOW_KERNEL`
//! in the environment forces another, such as `SEALFLOW_KERNEL=portable`.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod serial;
mod text;
mod values;

#[cfg(test)]
mod tests;

use std::sync::OnceLock;

pub use text::{NotBase64url, base64url_len, read_base64url, write_base64url};
pub use values::{Aads, Batch, SealedBatch, Values};

/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// Bytes of a nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;
/// Bytes that come before the nonce of each value.
pub const PREFIX_LEN: usize = 19;
/// What a value grows by: prefix, nonce and tag.
pub const OVERHEAD: usize = PREFIX_LEN + NONCE_LEN + TAG_LEN;

/// Bytes before the ciphertext of each value.
const HEADER: usize = PREFIX_LEN + NONCE_LEN;

/// Which code computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// Safe code for every processor.
    Portable,
    /// AVX2 with AES-NI and PCLMULQDQ.
    Avx2,
    /// AVX2 with VAES and VPCLMULQDQ, in registers of 256 bits.
    Avx2Vaes,
    /// AVX-512 with VAES and VPCLMULQDQ.
    Avx512,
    /// Neon with AES and PMULL, of 64-bit Arm.
    Neon,
}

impl Kernel {
    /// The best that this processor has, or the one whose name `SEALFLOW_KERNEL` says. What it says and is not there is
    /// not taken.
    #[must_use]
    pub fn of_machine() -> Self {
        static CHOSEN: OnceLock<Kernel> = OnceLock::new();
        *CHOSEN.get_or_init(|| Self::said(&std::env::var("SEALFLOW_KERNEL").unwrap_or_default()))
    }

    /// The kernel of that name if this processor has it, or the best.
    fn said(name: &str) -> Self {
        let all = Self::all();
        let said = all.iter().find(|kernel| kernel.name() == name);
        said.or(all.first()).copied().unwrap_or(Self::Portable)
    }

    /// What it is called in `SEALFLOW_KERNEL`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx2Vaes => "avx2-vaes",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// All that this processor has, the fastest first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let fast = [
            (avx512::is_there(), Self::Avx512),
            (serial::is_there(Self::Avx2Vaes), Self::Avx2Vaes),
            (serial::is_there(Self::Avx2), Self::Avx2),
        ];
        #[cfg(target_arch = "aarch64")]
        let fast = [(serial::is_there(Self::Neon), Self::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let fast = [];
        let there = fast.into_iter().filter(|(there, _)| *there);
        there.map(|(_, kernel)| kernel).chain([Self::Portable]).collect()
    }
}

/// Bytes of the stack that are wiped after each call: the deepest of ours goes 25 KiB down.
const STACK: usize = 32 << 10;
/// Most values, and most bytes of sealed ones: places and numbers are of 32 bits.
const MOST: usize = i32::MAX as usize;

/// A batch that is not sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// More than 2^31 - 1 values, or bytes of sealed ones; or an output that grows beyond 2^32 - 1 bytes.
    TooLarge,
    /// There are rows, but not as many as values.
    RowsMismatch,
}

/// A key that is ready to seal and open with. Wiped when it is dropped.
pub struct Cipher(Scheduled);

enum Scheduled {
    Portable(Box<portable::Key>),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Serial(Box<serial::Key>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Box<avx512::Key>),
}

impl Cipher {
    /// On the kernel of this machine.
    #[must_use]
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        Self::on(Kernel::of_machine(), key)
    }

    /// On that kernel; on the portable one if the processor does not have it.
    #[must_use]
    pub fn on(kernel: Kernel, key: &[u8; KEY_LEN]) -> Self {
        let cipher = Self::made(kernel, key);
        wipe_stack();
        cipher
    }

    /// Apart, so that what it leaves on the stack is below.
    #[inline(never)]
    fn made(kernel: Kernel, key: &[u8; KEY_LEN]) -> Self {
        let scheduled = match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => avx512::Key::new(key).map(Scheduled::Avx512),
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Kernel::Avx2Vaes | Kernel::Avx2 | Kernel::Neon => serial::Key::new(kernel, key).map(Scheduled::Serial),
            _ => None,
        };
        Self(scheduled.unwrap_or_else(|| Scheduled::Portable(Box::new(portable::Key::new(key)))))
    }

    /// Which kernel computes.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        match &self.0 {
            Scheduled::Portable(_) => Kernel::Portable,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Scheduled::Serial(key) => key.kernel(),
            #[cfg(target_arch = "x86_64")]
            Scheduled::Avx512(_) => Kernel::Avx512,
        }
    }

    /// Appends each value of the batch that is not null: `prefix ‖ nonce ‖ ciphertext ‖ tag`, in their order. Value i
    /// has the nonce `start + i` (mod 2^96), nulls take a number too.
    ///
    /// # Errors
    /// [`BatchError`]; nothing is appended.
    pub fn seal(&self, batch: &Batch<'_>, out: &mut Vec<u8>) -> Result<(), BatchError> {
        batch.aads.check(batch.values.len())?;
        let (count, bytes) = batch.values.sum();
        let room = count.checked_mul(OVERHEAD).and_then(|more| more.checked_add(bytes));
        let room = room
            .filter(|room| *room <= MOST && batch.values.len() <= MOST)
            .filter(|room| has_places(out, *room))
            .ok_or(BatchError::TooLarge)?;
        out.reserve(room);
        match &self.0 {
            Scheduled::Portable(key) => {
                let from = out.len();
                // Zeros first: the plaintext never stands in the output, whatever goes wrong.
                out.resize(from + room, 0);
                key.seal(batch, &mut out[from..]);
            }
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Scheduled::Serial(key) => key.seal(batch, out),
            #[cfg(target_arch = "x86_64")]
            Scheduled::Avx512(key) => key.seal(batch, out),
        }
        wipe_stack();
        Ok(())
    }
}

impl Cipher {
    /// Appends the plaintext of each value, in their order, each [`OVERHEAD`] shorter than the value; and to `opened`
    /// one entry per value: whether its tag was right. One that does not open leaves as many zeros in the place of its
    /// plaintext, one shorter than [`OVERHEAD`] leaves nothing. Nulls leave nothing, and are not `opened`.
    ///
    /// Tags are compared in constant time. `out` grows once, before any plaintext is in it, so that no growth leaves
    /// plaintext of this batch behind.
    ///
    /// # Errors
    /// [`BatchError`]; nothing is appended.
    pub fn open(&self, batch: &SealedBatch<'_>, out: &mut Vec<u8>, opened: &mut Vec<bool>) -> Result<(), BatchError> {
        batch.aads.check(batch.values.len())?;
        // Bytes are as many as a place of 32 bits can tell.
        if batch.values.len() > MOST {
            return Err(BatchError::TooLarge);
        }
        let (from, first) = (out.len(), opened.len());
        let room = batch.values.sum_opened();
        if !has_places(out, room) {
            return Err(BatchError::TooLarge);
        }
        out.reserve(room);
        opened.resize(first + batch.values.len(), false);
        let opened = &mut opened[first..];
        match &self.0 {
            Scheduled::Portable(key) => {
                out.resize(from + room, 0);
                key.open(batch, &mut out[from..], opened);
            }
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Scheduled::Serial(key) => key.open(batch, out, opened),
            #[cfg(target_arch = "x86_64")]
            Scheduled::Avx512(key) => key.open(batch, out, opened),
        }
        wipe_stack();
        Ok(())
    }
}

/// Whether 32 bits can tell every place in `out` when it has grown by so many bytes.
fn has_places(out: &[u8], room: usize) -> bool {
    u32::try_from(out.len().saturating_add(room)).is_ok()
}

/// Overwrites what functions that have returned, and are not inlined, left on the stack: round keys, powers of H and key stream that did not fit
/// the registers. As far down as ours go; nothing can be said of what a compiler does elsewhere.
fn wipe_stack() {
    zeroize::zeroize_stack::<STACK>();
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cipher")
            .field("kernel", &self.kernel())
            .finish_non_exhaustive()
    }
}
