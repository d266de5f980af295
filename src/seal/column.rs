//! Columns of byte values as borrowed parts in Arrow's layout: validity bitmap, offsets, bytes.
//!
//! Plaintext and sealed columns are different types, so that one can never stand in for the other.
//! Nothing here needs the arrow crate.

use super::wiped::Wiped;

/// A borrowed column of N values in Arrow's Binary layout.
#[derive(Clone, Copy)]
pub struct ByteColumn<'a> {
    /// One bit per value, least significant first, 1 = not null; `None` = no nulls.
    validity: Option<&'a [u8]>,
    /// N + 1 ascending offsets into `bytes`.
    offsets: &'a [i32],
    bytes: &'a [u8],
}

/// Parts that do not make a column.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ColumnError {
    /// Offsets are missing, not ascending, or point outside the bytes.
    #[error("column offsets are not ascending within the bytes")]
    BadOffsets,
    /// The validity bitmap is too short.
    #[error("the validity bitmap is shorter than the column")]
    ShortValidity,
    /// More than 2^31 - 1 bytes in one column.
    #[error("a column holds at most 2 GiB")]
    TooLarge,
}

impl<'a> ByteColumn<'a> {
    /// Checks the parts once, so that [`get`](Self::get) cannot fail later.
    pub fn new(validity: Option<&'a [u8]>, offsets: &'a [i32], bytes: &'a [u8]) -> Result<Self, ColumnError> {
        let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else {
            return Err(ColumnError::BadOffsets);
        };
        let ascending = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        let inside = *first >= 0 && usize::try_from(*last).is_ok_and(|last| last <= bytes.len());
        if !ascending || !inside {
            return Err(ColumnError::BadOffsets);
        }
        if validity.is_some_and(|bits| bits.len() * 8 < offsets.len() - 1) {
            return Err(ColumnError::ShortValidity);
        }
        Ok(Self {
            validity,
            offsets,
            bytes,
        })
    }

    /// Validity bitmap, offsets and bytes.
    #[must_use]
    pub fn parts(&self) -> (Option<&'a [u8]>, &'a [i32], &'a [u8]) {
        (self.validity, self.offsets, self.bytes)
    }

    /// Number of values, nulls included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Value `n`, or `None` where it is null or out of range.
    #[inline]
    #[must_use]
    pub fn get(&self, n: usize) -> Option<&'a [u8]> {
        if n >= self.len() || self.validity.is_some_and(|bits| bits[n / 8] & (1 << (n % 8)) == 0) {
            return None;
        }
        // `new` checked that offsets ascend within the bytes, hence are not negative.
        let (start, end) = (self.offsets[n] as usize, self.offsets[n + 1] as usize);
        Some(&self.bytes[start..end])
    }

    /// All values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&'a [u8]>> + '_ {
        (0..self.len()).map(|n| self.get(n))
    }

    /// Sum of the lengths of all values that are not null.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        match (self.validity, self.offsets) {
            (None, [first, .., last]) => (last - first) as usize,
            _ => self.iter().flatten().map(<[u8]>::len).sum(),
        }
    }
}

/// An owned column that is built value by value; the shared part of plaintext and sealed columns.
struct Builder {
    /// Empty as long as there are no nulls.
    validity: Vec<u8>,
    offsets: Vec<i32>,
}

impl Builder {
    fn with_capacity(values: usize) -> Self {
        let mut offsets = Vec::with_capacity(values + 1);
        offsets.push(0);
        Self {
            validity: Vec::new(),
            offsets,
        }
    }

    /// Of values each `overhead` bytes longer than those of `plain`; where the last one ends.
    fn in_shape_of(plain: ByteColumn<'_>, overhead: usize) -> Result<(Self, usize), ColumnError> {
        let mut parts = Self::with_capacity(plain.len());
        let mut end = 0;
        if plain.validity.is_some() {
            for value in plain.iter() {
                end += value.map_or(0, |value| value.len() + overhead);
                parts.push(value.is_some(), end)?;
            }
            return Ok((parts, end));
        }
        let (len, most) = (plain.len(), i32::MAX as usize);
        let room = len.checked_mul(overhead).map(|more| more + plain.value_bytes());
        end = room.filter(|end| *end <= most).ok_or(ColumnError::TooLarge)?;
        let mut longer = -plain.offsets[0];
        parts.offsets.extend(plain.offsets[1..].iter().map(|offset| {
            // No sum is larger than the last, which fits.
            longer += overhead as i32;
            offset + longer
        }));
        Ok((parts, end))
    }

    #[inline]
    fn push(&mut self, valid: bool, end: usize) -> Result<(), ColumnError> {
        let end = i32::try_from(end).map_err(|_| ColumnError::TooLarge)?;
        if !valid || !self.validity.is_empty() {
            self.mark(valid);
        }
        self.offsets.push(end);
        Ok(())
    }

    /// Whether the next value is null: it is, or one before was.
    #[inline(never)]
    fn mark(&mut self, valid: bool) {
        let n = self.offsets.len() - 1;
        if self.validity.is_empty() {
            self.validity.resize(n.div_ceil(8), 0xff);
            if let Some(last) = self.validity.last_mut().filter(|_| !n.is_multiple_of(8)) {
                *last = 0xff >> (8 - n % 8);
            }
        }
        if n.is_multiple_of(8) {
            self.validity.push(0);
        }
        self.validity[n / 8] |= u8::from(valid) << (n % 8);
    }

    fn view<'a>(&'a self, bytes: &'a [u8]) -> ByteColumn<'a> {
        ByteColumn {
            validity: (!self.validity.is_empty()).then_some(&self.validity),
            offsets: &self.offsets,
            bytes,
        }
    }
}

/// Plaintext encodings (`type ‖ value`, see [`super::plaintext`]) of one column; wiped on drop, no `Debug`
/// of values, no `Clone`.
pub struct PlainColumn {
    parts: Builder,
    bytes: Wiped,
}

/// Sealed values of one column.
pub struct SealedColumn {
    parts: Builder,
    bytes: Vec<u8>,
}

impl PlainColumn {
    /// An empty column with room for `values` values of `bytes` bytes together; it grows when it must.
    #[must_use]
    pub fn with_capacity(values: usize, bytes: usize) -> Self {
        Self {
            parts: Builder::with_capacity(values),
            bytes: Wiped::with_capacity(bytes),
        }
    }

    /// Appends a null.
    pub fn push_null(&mut self) -> Result<(), ColumnError> {
        self.parts.push(false, self.bytes.len())
    }

    /// Appends one plaintext encoding, copied.
    pub fn push(&mut self, encoding: &[u8]) -> Result<(), ColumnError> {
        self.push_with(encoding.len(), |out| out.extend_from_slice(encoding))
    }

    /// Appends the value that `write` appends to the column's bytes, at most `room` bytes long (beyond that a
    /// copy that is not wiped may stay behind in memory).
    #[inline]
    pub fn push_with(&mut self, room: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), ColumnError> {
        reserve_wiping(&mut self.bytes, room);
        write(&mut self.bytes);
        self.parts.push(true, self.bytes.len())
    }

    /// Bytes of all encodings together.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The column as borrowed parts.
    #[must_use]
    pub fn view(&self) -> ByteColumn<'_> {
        self.parts.view(&self.bytes)
    }
}

/// Makes room by moving to a larger buffer and wiping the old one, instead of a silent `realloc`.
#[inline]
fn reserve_wiping(bytes: &mut Wiped, room: usize) {
    if bytes.capacity() - bytes.len() < room {
        grow_wiping(bytes, room);
    }
}

#[cold]
#[inline(never)]
fn grow_wiping(bytes: &mut Wiped, room: usize) {
    let capacity = (bytes.capacity() * 2).max(bytes.len() + room).max(4096);
    let mut larger = Wiped::with_capacity(capacity);
    larger.extend_from_slice(bytes);
    *bytes = larger;
}

impl SealedColumn {
    /// An empty column with room for `values` values of `bytes` bytes together.
    #[must_use]
    pub fn with_capacity(values: usize, bytes: usize) -> Self {
        Self {
            parts: Builder::with_capacity(values),
            bytes: Vec::with_capacity(bytes),
        }
    }

    /// A column in the shape of `plain`, each of its values `overhead` bytes longer, which `fill` appends one after the other.
    pub(super) fn in_shape_of(
        plain: ByteColumn<'_>,
        overhead: usize,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Self, ColumnError> {
        let (parts, end) = Builder::in_shape_of(plain, overhead)?;
        let mut bytes = Vec::with_capacity(end);
        fill(&mut bytes);
        if bytes.len() != end {
            return Err(ColumnError::BadOffsets);
        }
        Ok(Self { parts, bytes })
    }

    /// Appends a null.
    pub fn push_null(&mut self) -> Result<(), ColumnError> {
        self.parts.push(false, self.bytes.len())
    }

    /// Appends one sealed value, copied.
    pub fn push(&mut self, sealed: &[u8]) -> Result<(), ColumnError> {
        self.push_with(|out| out.extend_from_slice(sealed))
    }

    /// Appends the value that `write` appends to the column's bytes.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), ColumnError> {
        write(&mut self.bytes);
        self.parts.push(true, self.bytes.len())
    }

    /// The column as borrowed parts.
    #[must_use]
    pub fn view(&self) -> ByteColumn<'_> {
        self.parts.view(&self.bytes)
    }
}
