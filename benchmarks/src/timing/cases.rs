//! What is timed: each case has two classes of inputs, which public knowledge cannot tell apart.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::hint::black_box;

use sealflow_benchmarks::Error;
use sealflow_kernel::{
    Aads, Batch, Cipher, KEY_LEN, Kernel, NONCE_LEN, OVERHEAD, PREFIX_LEN, SealedBatch, TAG_LEN, Values,
};

/// Lengths of the values of a batch: empty, shorter than a block, whole blocks, several, and one that a kernel takes alone.
const LENS: [usize; 9] = [0, 5, 16, 16, 16, 31, 32, 90, 400];
const AAD: [u8; 60] = [7; 60];
/// Bytes of their plaintext.
const TEXT: usize = {
    let (mut sum, mut n) = (0, 0);
    while n < LENS.len() {
        sum += LENS[n];
        n += 1;
    }
    sum
};

/// Which class an input is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Always the same.
    Fixed,
    /// Another every time; or the same, but somewhere else.
    Other,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    /// Plaintext: zeros, or random.
    SealText,
    /// Key, from its schedule on: zeros, or random.
    SealKey,
    /// Plaintext of sealed values: zeros, or random.
    OpenText,
    /// Where each tag is wrong: in its first byte, or in its last.
    OpenWrong,
    /// The same, and then one tag is compared byte by byte.
    LeakyOpen,
}

pub(super) struct Case {
    what: What,
    kernel: Kernel,
    cipher: Cipher,
    key: [u8; KEY_LEN],
    text: [u8; TEXT],
    offsets: Vec<i32>,
    sealed_offsets: Vec<i32>,
    sealed: Vec<u8>,
    /// As they were sealed.
    right: Vec<u8>,
    out: Vec<u8>,
    opened: Vec<bool>,
}

/// All cases of a kernel; the last one leaks.
pub(super) fn all(kernel: Kernel) -> Result<Vec<Case>, Error> {
    let whats = [
        What::SealText,
        What::SealKey,
        What::OpenText,
        What::OpenWrong,
        What::LeakyOpen,
    ];
    whats.into_iter().map(|what| Case::new(what, kernel)).collect()
}

impl Case {
    fn new(what: What, kernel: Kernel) -> Result<Self, Error> {
        let (mut offsets, mut sealed_offsets) = (vec![0], vec![0]);
        let (mut end, mut sealed_end) = (0, 0);
        for len in LENS {
            (end, sealed_end) = (end + len, sealed_end + len + OVERHEAD);
            offsets.push(i32::try_from(end)?);
            sealed_offsets.push(i32::try_from(sealed_end)?);
        }
        let mut case = Self {
            what,
            kernel,
            cipher: Cipher::on(kernel, &[1; KEY_LEN]),
            key: [0; KEY_LEN],
            text: [0; TEXT],
            offsets,
            sealed_offsets,
            sealed: Vec::new(),
            right: Vec::new(),
            out: Vec::with_capacity(TEXT + LENS.len() * OVERHEAD),
            opened: Vec::with_capacity(LENS.len()),
        };
        case.seal()?;
        case.sealed.clone_from(&case.out);
        case.right.clone_from(&case.out);
        Ok(case)
    }

    pub(super) fn name(&self) -> &'static str {
        match self.what {
            What::SealText => "seal: plaintext of zeros or random",
            What::SealKey => "schedule and seal: key of zeros or random",
            What::OpenText => "open: plaintext of zeros or random",
            What::OpenWrong => "open: first or last byte of tags wrong",
            What::LeakyOpen => "a leak on purpose: one tag compared byte by byte",
        }
    }

    /// Whether it is there to be found.
    pub(super) fn leaks(&self) -> bool {
        self.what == What::LeakyOpen
    }

    /// Makes the next input of that class.
    pub(super) fn prepare(&mut self, class: Class, random: &mut Random) -> Result<(), Error> {
        // The same is done for either class. `black_box`: else the compiler makes a loop for zeros of it, and what comes
        // before the measurement tells the classes apart.
        let mask = black_box(0_u8.wrapping_sub(class as u8));
        match self.what {
            What::SealText => random.fill(&mut self.text, mask),
            What::SealKey => random.fill(&mut self.key, mask),
            What::OpenText => {
                random.fill(&mut self.text, mask);
                self.seal()?;
                self.sealed.clone_from(&self.out);
            }
            What::OpenWrong | What::LeakyOpen => {
                self.sealed.copy_from_slice(&self.right);
                let wrong = random.number() as u8 | 1;
                for pair in self.sealed_offsets.windows(2) {
                    let end = pair[1] as usize;
                    self.sealed[end - TAG_LEN] ^= wrong & !mask;
                    self.sealed[end - 1] ^= wrong & mask;
                }
            }
        }
        Ok(())
    }

    /// What is timed.
    #[inline(never)]
    pub(super) fn run(&mut self) -> Result<(), Error> {
        match self.what {
            What::SealText => self.seal()?,
            What::SealKey => {
                self.cipher = Cipher::on(self.kernel, &self.key);
                self.seal()?;
            }
            What::OpenText | What::OpenWrong => self.open()?,
            What::LeakyOpen => {
                self.open()?;
                self.opened.push(same_tag(&self.sealed, &self.right));
            }
        }
        black_box((&self.out, &self.opened));
        Ok(())
    }

    fn seal(&mut self) -> Result<(), Error> {
        self.out.clear();
        let batch = Batch {
            prefix: [2; PREFIX_LEN],
            start: [3; NONCE_LEN],
            aads: Aads::Same(&AAD),
            values: Values::new(None, &self.offsets, &self.text).ok_or("no column")?,
        };
        let sealed = self.cipher.seal(&batch, &mut self.out);
        sealed.map_err(|error| format!("{error:?}").into())
    }

    fn open(&mut self) -> Result<(), Error> {
        self.out.clear();
        self.opened.clear();
        let batch = SealedBatch {
            aads: Aads::Same(&AAD),
            values: Values::new(None, &self.sealed_offsets, &self.sealed).ok_or("no column")?,
        };
        let opened = self.cipher.open(&batch, &mut self.out, &mut self.opened);
        opened.map_err(|error| format!("{error:?}").into())
    }
}

/// Whether the last tags are the same, found out as one should not: it ends at the first byte that differs.
fn same_tag(a: &[u8], b: &[u8]) -> bool {
    let tags = a[a.len() - TAG_LEN..].iter().zip(&b[b.len() - TAG_LEN..]);
    for (a, b) in tags {
        if black_box(a ^ b) != 0 {
            return false;
        }
    }
    true
}

/// Numbers by SplitMix64, seeded by the operating system through the hasher of the standard library.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    /// The class of the next input.
    pub(super) fn class(&mut self) -> Class {
        [Class::Fixed, Class::Other][(self.number() >> 63) as usize]
    }

    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Random where the mask has ones, else zeros.
    fn fill(&mut self, bytes: &mut [u8], mask: u8) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.number().to_le_bytes();
            chunk
                .iter_mut()
                .zip(random)
                .for_each(|(byte, random)| *byte = random & mask);
        }
    }
}
