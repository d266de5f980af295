//! Values of a batch on their way to being opened: per key and column one call.

use std::sync::Arc;

use super::few::Few;
use super::opener::cannot_open;
use super::plan::Rejection;
use crate::keys::OpenedKey;
use crate::seal::{ColumnContext, OpenedColumn, PlainColumn, SealedColumn};

/// What tells columns apart: the key, as a fingerprint of what travels with its record had it found, and the index of its label.
type Of = (*const OpenedKey, u16);

/// The most bytes of sealed values and row ids that are opened together. An envelope says which field rows are, and that may be
/// long: what comes after that opens one by one.
const MOST: usize = 128 << 20;

/// Sealed values, column by column.
#[derive(Default)]
pub(super) struct ToOpen {
    columns: Vec<Column>,
    known: Few<Of, usize>,
    /// The row id of one value, for whoever adds it.
    pub(super) row: Vec<u8>,
    bytes: usize,
}

struct Column {
    /// Held, so that no other key has its address.
    key: Arc<OpenedKey>,
    column: u16,
    sealed: SealedColumn,
    /// Row ids, where the envelope says that values are bound.
    rows: Option<PlainColumn>,
    len: usize,
}

/// Where a value is.
#[derive(Clone, Copy)]
pub(super) struct At {
    column: u32,
    index: u32,
}

/// What became of them.
pub(super) struct OpenedValues(Vec<Option<OpenedColumn>>);

impl ToOpen {
    /// Adds a value that was sealed under `key` as its label number `column`, and is of the row `row` if such are bound. `None` if
    /// there is no room for more.
    pub(super) fn push(
        &mut self,
        key: &Arc<OpenedKey>,
        column: u16,
        sealed: &[u8],
        row: Option<&[u8]>,
    ) -> Result<Option<At>, Rejection> {
        self.bytes += sealed.len() + row.map_or(0, <[u8]>::len);
        if self.bytes > MOST {
            return Ok(None);
        }
        let number = self.of(key, column, row.is_some());
        let target = &mut self.columns[number];
        let (Ok(number), Ok(index)) = (u32::try_from(number), u32::try_from(target.len)) else {
            return Ok(None);
        };
        if target.rows.is_some() != row.is_some() {
            return Err(cannot_open());
        }
        // Both have the room: a column holds more than all that are opened together.
        let pushed = target.sealed.push(sealed);
        pushed
            .and_then(|()| {
                target
                    .rows
                    .as_mut()
                    .zip(row)
                    .map_or(Ok(()), |(rows, row)| rows.push(row))
            })
            .map_err(|error| Rejection::new("batch-too-large", error.to_string()))?;
        target.len += 1;
        Ok(Some(At { column: number, index }))
    }

    /// The column of a key's label, which is one of its envelope.
    fn of(&mut self, key: &Arc<OpenedKey>, column: u16, has_rows: bool) -> usize {
        let of = (Arc::as_ptr(key), column);
        if let Some(known) = self.known.get(&of) {
            return *known;
        }
        let number = self.columns.len();
        self.known.insert(of, number);
        self.columns.push(Column {
            key: Arc::clone(key),
            column,
            sealed: SealedColumn::with_capacity(0, 0),
            rows: has_rows.then(|| PlainColumn::with_capacity(0, 0)),
            len: 0,
        });
        number
    }

    /// Opens all of them.
    pub(super) fn open(self) -> OpenedValues {
        OpenedValues(self.columns.iter().map(Column::open).collect())
    }
}

impl Column {
    fn open(&self) -> Option<OpenedColumn> {
        let envelope = &self.key.envelope;
        let entry = envelope.labels.get(usize::from(self.column))?;
        let rows = entry.bind_row.as_deref().zip(self.rows.as_ref().map(PlainColumn::view));
        let context = ColumnContext {
            dataset: &envelope.dataset,
            label: &entry.label,
            column: self.column,
            rows,
        };
        self.key.key.open(&context, self.sealed.view()).ok()
    }
}

impl OpenedValues {
    /// The plaintext encoding of a value.
    pub(super) fn get(&self, at: At) -> Result<&[u8], Rejection> {
        let column = self.0.get(at.column as usize).and_then(Option::as_ref);
        column
            .and_then(|column| column.get(at.index as usize))
            .ok_or_else(cannot_open)
    }
}
