//! What is sealed and opened: values in Arrow's layout, and what they are bound to.

use crate::{BatchError, NONCE_LEN, OVERHEAD, PREFIX_LEN, TAG_LEN};

/// Bytes of a row's length in an AAD.
pub(crate) const ROW_LEN: usize = 4;

/// N values, borrowed, in Arrow's Binary layout.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    validity: Option<&'a [u8]>,
    offsets: &'a [i32],
    bytes: &'a [u8],
}

/// What a batch is sealed with beside the key.
pub struct Batch<'a> {
    /// Comes before each value's nonce.
    pub prefix: [u8; PREFIX_LEN],
    /// Nonce of the first value.
    pub start: [u8; NONCE_LEN],
    /// What the values are bound to.
    pub aads: Aads<'a>,
    /// The plaintext.
    pub values: Values<'a>,
}

/// Sealed values, each `prefix ‖ nonce ‖ ciphertext ‖ tag`, and what they are bound to.
pub struct SealedBatch<'a> {
    /// What the values are bound to.
    pub aads: Aads<'a>,
    /// The sealed values. Each has a nonce of its own; the prefix is not looked at.
    pub values: Values<'a>,
}

/// Additional authenticated data.
pub enum Aads<'a> {
    /// The same for all.
    Same(&'a [u8]),
    /// Each value's own: `fixed`, the length of its row as 4 bytes (little endian), its row. A null is an empty row.
    Each {
        /// How each of them begins.
        fixed: &'a [u8],
        /// As many as there are values.
        rows: Values<'a>,
    },
}

impl Aads<'_> {
    /// Whether there is one for each of so many values.
    pub(crate) fn check(&self, values: usize) -> Result<(), BatchError> {
        match self {
            Self::Each { rows, .. } if rows.len() != values => Err(BatchError::RowsMismatch),
            _ => Ok(()),
        }
    }
}

impl<'a> Values<'a> {
    /// Validity bitmap (one bit per value, least significant first, 1 = not null; `None`: no nulls), N + 1 ascending
    /// offsets, bytes. `None` if they do not fit together.
    #[must_use]
    pub fn new(validity: Option<&'a [u8]>, offsets: &'a [i32], bytes: &'a [u8]) -> Option<Self> {
        let (first, last) = (offsets.first()?, offsets.last()?);
        let ascend = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        let inside = *first >= 0 && usize::try_from(*last).is_ok_and(|last| last <= bytes.len());
        let long_enough = validity.is_none_or(|bits| bits.len() * 8 >= offsets.len() - 1);
        (ascend && inside && long_enough).then_some(Self {
            validity,
            offsets,
            bytes,
        })
    }

    /// How many there are, nulls included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Value n, unless it is null.
    #[must_use]
    pub fn get(&self, n: usize) -> Option<&'a [u8]> {
        if self.is_null(n) {
            return None;
        }
        // `new` has seen that offsets ascend within the bytes.
        Some(&self.bytes[self.offsets[n] as usize..self.offsets[n + 1] as usize])
    }

    /// As a row: its length, as it comes before it, and its bytes.
    #[inline]
    pub(crate) fn row(&self, n: usize) -> ([u8; ROW_LEN], &'a [u8]) {
        let row = self.get(n).unwrap_or_default();
        // Offsets are of 31 bits.
        ((row.len() as u32).to_le_bytes(), row)
    }

    /// As a row: where it is, and how long.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn place(&self, n: usize) -> (usize, u32) {
        let Some(&[from, until]) = self.offsets.get(n..n + 2) else {
            return (0, 0);
        };
        // Offsets ascend.
        (from as usize, if self.is_null(n) { 0 } else { (until - from) as u32 })
    }

    #[inline]
    pub(crate) fn is_null(&self, n: usize) -> bool {
        self.validity.is_some_and(|bits| bits[n / 8] & (1 << (n % 8)) == 0)
    }

    /// Which of the 16 values from n on are not null.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn valid(&self, n: usize) -> u16 {
        let Some(bits) = self.validity else { return u16::MAX };
        let byte = |k: usize| u32::from(bits.get(n / 8 + k).copied().unwrap_or_default()) << (8 * k);
        ((byte(0) | byte(1) | byte(2)) >> (n % 8)) as u16
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[inline]
    pub(crate) fn offsets(&self) -> &'a [i32] {
        self.offsets
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[inline]
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Values that are not null, and their bytes together.
    pub(crate) fn sum(&self) -> (usize, usize) {
        if self.validity.is_none() {
            let (first, last) = (self.offsets[0], self.offsets[self.len()]);
            return (self.len(), (last - first) as usize);
        }
        let lens = (0..self.len()).filter_map(|n| self.get(n)).map(<[u8]>::len);
        lens.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len))
    }

    /// Bytes of plaintext in sealed values.
    pub(crate) fn sum_opened(&self) -> usize {
        // Offsets ascend: no length is negative, and no sum beyond the last offset.
        let opened = |pair: &[i32]| (pair[1] - pair[0] - OVERHEAD as i32).max(0);
        let pairs = self.offsets.windows(2);
        let sum = match self.validity {
            None => pairs.map(opened).sum::<i32>(),
            Some(_) => pairs.enumerate().fold(
                0,
                |sum, (n, pair)| if self.is_null(n) { sum } else { sum + opened(pair) },
            ),
        };
        sum as usize
    }
}

/// Nonce, ciphertext and tag of a sealed value, unless it is too short to be one.
pub(crate) fn split(sealed: &[u8]) -> Option<(&[u8; NONCE_LEN], &[u8], &[u8; TAG_LEN])> {
    let (nonce, rest) = sealed.get(PREFIX_LEN..)?.split_first_chunk()?;
    let (text, tag) = rest.split_last_chunk()?;
    Some((nonce, text, tag))
}

/// (start + n) mod 2^96, big endian.
pub(crate) fn nonce_at(start: [u8; NONCE_LEN], n: usize) -> [u8; NONCE_LEN] {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&start);
    let sum = u128::from_be_bytes(wide).wrapping_add(n as u128).to_be_bytes();
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&sum[4..]);
    nonce
}
