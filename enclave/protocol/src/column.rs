//! Columns on the wire: validity bitmap, offsets and bytes in Arrow's layout, without Arrow.

use crate::wire::{Malformed, Reader, Writer};

/// The most values of one column.
pub const MAX_VALUES: usize = 1 << 20;

/// A column as it stands in a body.
#[derive(Clone, PartialEq, Eq)]
pub struct WireColumn<'a> {
    /// One bit per value, least significant first, 1 = not null; `None` = no nulls.
    pub validity: Option<&'a [u8]>,
    /// One more than there are values; ascending, within `bytes`.
    pub offsets: Vec<i32>,
    /// The values.
    pub bytes: &'a [u8],
}

impl<'a> WireColumn<'a> {
    /// Appends a column to a body.
    pub fn write(validity: Option<&[u8]>, offsets: &[i32], bytes: &[u8], to: &mut Writer) {
        to.option(validity, Writer::bytes);
        to.count(offsets.len());
        for offset in offsets {
            to.raw(&offset.to_le_bytes());
        }
        to.bytes(bytes);
    }

    /// Reads a column, and checks that its parts fit together.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        let validity = from.option(|from| from.bytes(MAX_VALUES / 8 + 1))?;
        let count = from.count(MAX_VALUES + 1, 4)?;
        let values = count.checked_sub(1).ok_or(Malformed)?;
        let raw = from.raw(4 * count)?;
        let (words, _) = raw.as_chunks::<4>();
        let offsets: Vec<i32> = words.iter().map(|word| i32::from_le_bytes(*word)).collect();
        let bytes = from.bytes(usize::MAX)?;
        let is_ascending = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        let last = offsets.last().copied().and_then(|last| usize::try_from(last).ok());
        let fits = offsets.first() == Some(&0) && is_ascending && last == Some(bytes.len());
        let is_covered = validity.is_none_or(|bits| bits.len() == values.div_ceil(8));
        if !fits || !is_covered {
            return Err(Malformed);
        }
        Ok(Self {
            validity,
            offsets,
            bytes,
        })
    }

    /// How many values there are, nulls included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for WireColumn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireColumn")
            .field("values", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn columns_come_back_and_no_bytes_panic(values in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 0..40), junk: Vec<u8>) {
            let (mut validity, mut offsets, mut bytes) = (vec![0_u8; values.len().div_ceil(8)], vec![0_i32], Vec::new());
            for (n, value) in values.iter().enumerate() {
                if let Some(value) = value {
                    validity[n / 8] |= 1 << (n % 8);
                    bytes.extend_from_slice(value);
                }
                offsets.push(i32::try_from(bytes.len()).unwrap());
            }
            let mut writer = Writer::default();
            WireColumn::write(Some(&validity), &offsets, &bytes, &mut writer);
            let body = writer.finish();
            let mut reader = Reader::new(&body);
            let column = WireColumn::read(&mut reader).unwrap();
            prop_assert_eq!(reader.end(), Ok(()));
            prop_assert_eq!((column.validity, &column.offsets, column.bytes), (Some(&validity[..]), &offsets, &bytes[..]));
            let _ = WireColumn::read(&mut Reader::new(&junk));
            for cut in 0..body.len() {
                prop_assert!(WireColumn::read(&mut Reader::new(&body[..cut])).is_err());
            }
        }
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let read = |validity: Option<&[u8]>, offsets: &[i32], bytes: &[u8]| {
            let mut writer = Writer::default();
            WireColumn::write(validity, offsets, bytes, &mut writer);
            let body = writer.finish();
            WireColumn::read(&mut Reader::new(&body)).map(|column| column.len())
        };
        assert_eq!(read(None, &[0, 1, 3], b"abc"), Ok(2));
        assert_eq!(read(Some(&[0b10]), &[0, 0, 3], b"abc"), Ok(2));
        assert_eq!(read(None, &[0], b""), Ok(0));
        for offsets in [&[][..], &[1, 3], &[0, 2], &[0, 4], &[0, 3, 2, 3], &[0, -1, 3]] {
            assert_eq!(read(None, offsets, b"abc"), Err(Malformed), "{offsets:?}");
        }
        assert_eq!(read(Some(&[]), &[0, 3], b"abc"), Err(Malformed));
        assert_eq!(read(Some(&[1, 1]), &[0, 3], b"abc"), Err(Malformed));
    }
}
