//! Additional authenticated data: what a sealed value says and proves (`docs/format.md`, "AAD").

use sealflow_kernel::{Aads, Values};

use super::column::ByteColumn;
use super::key::KeyId;
use super::value::{SUITE_GCM, SUITE_SIV};

const PREFIX: &[u8] = b"sealflow/1";

/// Binds each value of a column to a row of its dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowId<'a> {
    /// Canonical path of the clear scalar that identifies the row.
    pub path: &'a str,
    /// Canonical row id: plaintext encoding of that scalar ‖ u32 big-endian index per `[*]`, outermost first.
    pub id: &'a [u8],
}

/// The AAD of values of one (key, dataset, label); rows are filled in value by value.
pub(crate) struct Aad {
    bytes: Vec<u8>,
    fixed: usize,
}

impl Aad {
    /// `"sealflow/1" ‖ 0x11 ‖ key id ‖ lp(dataset) ‖ lp(label)`
    pub(crate) fn randomised(key: KeyId, dataset: &str, label: &str) -> Self {
        Self::new(SUITE_GCM, key, dataset, label)
    }

    /// `"sealflow/1" ‖ 0x12 ‖ key id ‖ lp("") ‖ lp("domain:NAME")`
    pub(crate) fn deterministic(key: KeyId, domain: &str) -> Self {
        Self::new(SUITE_SIV, key, "", &format!("domain:{domain}"))
    }

    fn new(suite: u8, key: KeyId, dataset: &str, label: &str) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(PREFIX);
        bytes.push(suite);
        bytes.extend_from_slice(key.as_bytes());
        push_lp(&mut bytes, dataset.as_bytes());
        push_lp(&mut bytes, label.as_bytes());
        Self {
            fixed: bytes.len(),
            bytes,
        }
    }

    /// The AADs of a column: one for all, or, if it has rows, each with the path of all and the id of its own. `None` if the ids are
    /// no column, which they are.
    pub(super) fn of_column<'a>(&'a mut self, rows: Option<(&str, ByteColumn<'a>)>) -> Option<Aads<'a>> {
        let Some((path, ids)) = rows else {
            return Some(Aads::Same(self.of(None)));
        };
        self.bytes.truncate(self.fixed);
        push_path(&mut self.bytes, path);
        let (validity, offsets, bytes) = ids.parts();
        // The kernel puts the length in front of each, as `push_lp` does.
        let rows = Values::new(validity, offsets, bytes)?;
        Some(Aads::Each {
            fixed: &self.bytes,
            rows,
        })
    }

    /// The whole AAD of one value: ends in `00`, or `01 ‖ lp(path) ‖ lp(row id)`.
    pub(crate) fn of(&mut self, row: Option<RowId<'_>>) -> &[u8] {
        self.bytes.truncate(self.fixed);
        push_row(&mut self.bytes, row);
        &self.bytes
    }
}

/// `00`, or `01 ‖ lp(path) ‖ lp(row id)`
fn push_row(out: &mut Vec<u8>, row: Option<RowId<'_>>) {
    match row {
        None => out.push(0),
        Some(row) => {
            push_path(out, row.path);
            push_lp(out, row.id);
        }
    }
}

/// `01 ‖ lp(path)`
fn push_path(out: &mut Vec<u8>, path: &str) {
    out.push(1);
    push_lp(out, path.as_bytes());
}

/// `lp(x)` = u32 little-endian length ‖ bytes.
fn push_lp(out: &mut Vec<u8>, bytes: &[u8]) {
    // Datasets, labels, paths and row ids come from records and policies that are capped far below 4 GiB.
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_aad_is_that_of_the_format() {
        let mut aad = Aad::randomised(KeyId::from_bytes([0xaa; 16]), "d", "l");
        let mut expected = b"sealflow/1\x11".to_vec();
        expected.extend_from_slice(&[0xaa; 16]);
        expected.extend_from_slice(b"\x01\0\0\0d\x01\0\0\0l");
        let fixed = expected.len();
        expected.push(0);
        assert_eq!(aad.of(None), expected);
        expected.truncate(fixed);
        expected.extend_from_slice(b"\x01\x02\0\0\0id\x03\0\0\0\x03\x01\x02");
        assert_eq!(
            aad.of(Some(RowId {
                path: "id",
                id: &[3, 1, 2]
            })),
            expected
        );
    }
}
