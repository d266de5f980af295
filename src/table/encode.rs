//! Records as rows of a table: each value in the column of its place, what has none as JSON text to be sealed into
//! `_extra`, or the whole record refused.
//!
//! Records come from [`SealTransform::for_table`](crate::pipeline::SealTransform::for_table), so that what the policy seals
//! by value is sealed already. It is checked again here: a value of such a place that is not sealed is refused.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::error::ArrowError;
use zeroize::Zeroizing;

use super::buffers::Column;
use super::extra::{Again, DUPLICATES, ExtraText};
use super::guard::Scratch;
use super::layout::{KeyPlace, Node, NodeKind, StructNode, TableLayout, UTC};
use super::rejection::{MAX_CELLS, RowRejection};
use super::scalar::{self, Scalar};
use crate::columns::arrow::sealed_array;
use crate::columns::{Unlocatable, check_encoding, grammar, lines};
use crate::pipeline::{Format, Record, Timestamp};
use crate::seal::{ByteColumn, PlainColumn, Plaintext, SealedColumn, SealedValue, value};

/// A schema registry's prefix: a zero byte, and a schema id of four bytes.
const REGISTRY_PREFIX_LEN: usize = 5;

/// Makes rows of records. One for a file at a time; reused after [`finish`](Self::finish).
pub struct RowEncoder {
    layout: Arc<TableLayout>,
    format: Format,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    timestamps: Vec<Option<i64>>,
    keys: Column,
    members: Vec<Column>,
    extra: PlainColumn,
    has_extra: bool,
    bytes: u64,
    // Working memory of one record.
    text: ExtraText,
    decoded: Zeroizing<Vec<u8>>,
    scratch: Scratch,
    sealed: Vec<u8>,
}

impl RowEncoder {
    /// An encoder of records whose values are documents of `format`. A value of several documents is no row.
    #[must_use]
    pub fn new(layout: Arc<TableLayout>, format: Format) -> Self {
        let members = Column::members(&layout.root);
        Self {
            layout,
            format,
            partitions: Vec::new(),
            offsets: Vec::new(),
            timestamps: Vec::new(),
            keys: Column::bytes(),
            members,
            extra: PlainColumn::with_capacity(0, 0),
            has_extra: false,
            bytes: 0,
            text: ExtraText::default(),
            decoded: Zeroizing::default(),
            scratch: Scratch::default(),
            sealed: Vec::new(),
        }
    }

    /// Rows since the last [`finish`](Self::finish).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.offsets.len()
    }

    /// About how many bytes these rows take in memory. A column holds less than 2 GiB, so finish long before.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a record as a row. A tombstone, a record without value, is a row of nulls.
    ///
    /// # Errors
    /// [`RowRejection`]: the record cannot be a row. Nothing of it is left behind.
    pub fn append(&mut self, record: &Record) -> Result<(), RowRejection> {
        let rows = self.rows();
        match self.try_append(record) {
            Ok(cells) => {
                self.partitions.push(record.position.partition);
                self.offsets.push(record.position.offset);
                self.timestamps.push(match record.timestamp {
                    Timestamp::None => None,
                    Timestamp::Created(millis) | Timestamp::Appended(millis) => Some(millis),
                });
                self.bytes += record.payload_bytes() as u64 + cells as u64 * 9 + 32;
                Ok(())
            }
            Err(rejection) => {
                self.keys.truncate(rows);
                for member in &mut self.members {
                    member.truncate(rows);
                }
                Err(rejection)
            }
        }
    }

    /// The rows, without `_extra`, which is to be sealed. The encoder is empty then.
    ///
    /// # Errors
    /// [`RowsError`]: a bug of ours.
    pub fn finish(&mut self) -> Result<Rows, RowsError> {
        let schema = self.layout.arrow_schema();
        let extra = std::mem::replace(&mut self.extra, PlainColumn::with_capacity(0, 0));
        let stamps = std::mem::take(&mut self.timestamps);
        let stamps = TimestampMillisecondArray::from(stamps).with_timezone(UTC);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(std::mem::take(&mut self.partitions))),
            Arc::new(Int64Array::from(std::mem::take(&mut self.offsets))),
            Arc::new(stamps),
        ];
        if self.layout.key.is_some() {
            columns.push(self.keys.finish(&Field::new("", DataType::Binary, true))?);
        }
        let fields = schema.fields().iter().skip(columns.len());
        for (member, field) in self.members.iter_mut().zip(fields) {
            columns.push(member.finish(field)?);
        }
        self.bytes = 0;
        Ok(Rows {
            schema,
            columns,
            extra,
            has_extra: std::mem::take(&mut self.has_extra),
        })
    }

    /// Appends the record to all columns but those of its position; returns how many entries that made.
    fn try_append(&mut self, record: &Record) -> Result<usize, RowRejection> {
        self.append_key(record)?;
        self.text.clear();
        let layout = Arc::clone(&self.layout);
        let (left, cells) = match &record.value {
            None => (false, self.members.iter_mut().map(Column::push_null).sum()),
            Some(value) => {
                let document = document(self.format, value)?;
                check_encoding(document)?;
                let mut walk = Walk {
                    record: document,
                    text: &mut self.text,
                    decoded: &mut self.decoded,
                    scratch: &mut self.scratch,
                    sealed: &mut self.sealed,
                    cells: 0,
                };
                let left = walk.document(&layout.root, &mut self.members, self.offsets.len())?;
                (left, walk.cells)
            }
        };
        // Last, as this column is never cut back.
        let pushed = if left {
            let text = std::str::from_utf8(self.text.bytes()).map_err(|error| Unlocatable::InvalidUtf8 {
                at: error.valid_up_to(),
            })?;
            let plaintext = Plaintext::Json(text);
            let room = plaintext.encoded_len_bound(None);
            self.extra.push_with(room, |out| plaintext.encode(None, out))
        } else {
            self.extra.push_null()
        };
        pushed.map_err(|_| RowRejection::BatchTooLarge)?;
        self.has_extra |= left;
        Ok(cells)
    }

    fn append_key(&mut self, record: &Record) -> Result<(), RowRejection> {
        let (Some(place), Some(key)) = (&self.layout.key, &record.key) else {
            self.keys.push_null();
            return Ok(());
        };
        match place {
            KeyPlace::Plain => self.keys.push(Scalar::Bytes(key)),
            KeyPlace::Sealed => {
                self.sealed.clear();
                let is_sealed =
                    value::read_text(key, &mut self.sealed).is_ok() && SealedValue::parse(&self.sealed).is_ok();
                if !is_sealed {
                    return Err(RowRejection::NotSealed {
                        column: "$key".to_owned(),
                    });
                }
                self.keys.push(Scalar::Bytes(&self.sealed))
            }
        }
    }
}

/// The one document of a record's value.
fn document(format: Format, value: &[u8]) -> Result<&[u8], RowRejection> {
    match format {
        Format::Json => Ok(value),
        Format::JsonSr if value.len() > REGISTRY_PREFIX_LEN && value[0] == 0 => Ok(&value[REGISTRY_PREFIX_LEN..]),
        Format::JsonSr => Err(RowRejection::NoRegistryPrefix),
        Format::Ndjson => {
            let mut documents = lines::lines(value).filter(|line| !line.content.is_empty());
            let first = documents.next().ok_or(Unlocatable::Empty)?;
            match documents.next() {
                Some(_) => Err(RowRejection::SeveralDocuments),
                None => Ok(&value[first.content]),
            }
        }
    }
}

/// One record on its way into the columns.
///
/// Every step appends exactly one entry to the column of its place. Its answer says whether something was left over, which
/// is in the text of `_extra` then.
struct Walk<'a> {
    record: &'a [u8],
    text: &'a mut ExtraText,
    decoded: &'a mut Zeroizing<Vec<u8>>,
    scratch: &'a mut Scratch,
    sealed: &'a mut Vec<u8>,
    cells: usize,
}

/// Where a value ended, and whether something of it was left over.
struct Taken {
    end: usize,
    left: bool,
}

impl Walk<'_> {
    fn document(&mut self, root: &StructNode, members: &mut [Column], row: usize) -> Result<bool, RowRejection> {
        let start = grammar::space(self.record, 0);
        if self.record.get(start) != Some(&b'{') {
            // What is no JSON at all has other codes.
            let end = match self.record.get(start) {
                None => return Err(Unlocatable::Empty.into()),
                Some(_) => grammar::value(self.record, start, 0)?,
            };
            self.check_end(end)?;
            return Err(RowRejection::NotAnObject);
        }
        let taken = self.object(root, members, row, start, 1)?;
        self.check_end(taken.end)?;
        Ok(taken.left)
    }

    fn check_end(&self, end: usize) -> Result<(), RowRejection> {
        let at = grammar::space(self.record, end);
        if at == self.record.len() {
            return Ok(());
        }
        Err(Unlocatable::TrailingBytes { at }.into())
    }

    /// Takes the object whose brace is at `at`, the `depth`-th around its members, as entry `row` of the `columns`.
    fn object(
        &mut self,
        node: &StructNode,
        columns: &mut [Column],
        row: usize,
        at: usize,
        depth: usize,
    ) -> Result<Taken, RowRejection> {
        let record = self.record;
        let (mut again, mut undeclared) = (Again::new(), HashSet::new());
        let (mut left, mut next, mut is_first) = (false, 0, true);
        let mut at = grammar::space(record, at + 1);
        loop {
            match record.get(at) {
                Some(b'}') => break,
                Some(b',') if !is_first => at = grammar::space(record, at + 1),
                _ if is_first => {}
                _ => return Err(grammar::unexpected(record, at).into()),
            }
            if record.get(at) != Some(&b'"') {
                return Err(grammar::unexpected(record, at).into());
            }
            is_first = false;
            let token = grammar::string(record, at + 1)?;
            let name = at..token.end;
            let value = grammar::colon(record, token.end)?;
            let (decoded, is_text) = decoded_name(&record[at + 1..token.end - 1], token.escaped);
            let position = if is_text {
                node.position(&decoded, &mut next)
            } else {
                None
            };
            let end = match position {
                Some(position) if columns[position].len() == row => {
                    let before = self.text.len();
                    let taken = self.value(&node.children[position], &mut columns[position], value, depth)?;
                    if taken.left {
                        self.text.name_before(before, !left, &record[name]);
                        left = true;
                    }
                    taken.end
                }
                Some(position) => {
                    let end = grammar::value(record, value, depth)?;
                    self.divert(&node.children[position], &record[value..end])?;
                    again.push((name, value..end));
                    end
                }
                None => {
                    let end = grammar::value(record, value, depth)?;
                    if let Some(guard) = node.undeclared.get(&*decoded) {
                        guard.check(&record[value..end], self.scratch)?;
                    }
                    if *decoded == *DUPLICATES.as_bytes() || !undeclared.insert(decoded) {
                        again.push((name, value..end));
                    } else {
                        let before = self.text.len();
                        self.text.write(&record[value..end]);
                        self.text.name_before(before, !left, &record[name]);
                        left = true;
                    }
                    end
                }
            };
            at = grammar::space(record, end);
        }
        if !again.is_empty() {
            self.text.again(!left, record, again);
            left = true;
        }
        if left {
            self.text.write(b"}");
        }
        for column in columns.iter_mut().filter(|column| column.len() == row) {
            self.cells += column.push_null();
        }
        self.check_cells()?;
        Ok(Taken { end: at + 1, left })
    }

    /// Takes the value at `at`, inside `depth` containers.
    fn value(&mut self, node: &Node, column: &mut Column, at: usize, depth: usize) -> Result<Taken, RowRejection> {
        match (&node.kind, self.record.get(at)) {
            (NodeKind::Struct(members), Some(b'{')) => {
                grammar::check_depth(depth + 1, at)?;
                let (row, columns) = column.open_struct();
                self.object(members, columns, row, at, depth + 1)
            }
            (NodeKind::List(items), Some(b'[')) => {
                grammar::check_depth(depth + 1, at)?;
                self.list(items, column, at, depth + 1)
            }
            _ => {
                let end = grammar::value(self.record, at, depth)?;
                let left = self.whole(node, column, at, end)?;
                self.check_cells()?;
                Ok(Taken { end, left })
            }
        }
    }

    /// Takes the array whose bracket is at `at`, the `depth`-th around its elements.
    fn list(&mut self, items: &Node, column: &mut Column, at: usize, depth: usize) -> Result<Taken, RowRejection> {
        let record = self.record;
        let (mut left, mut count) = (false, 0);
        let mut at = grammar::space(record, at + 1);
        loop {
            match record.get(at) {
                Some(b']') => break,
                Some(b',') if count > 0 => at = grammar::space(record, at + 1),
                _ if count == 0 => {}
                _ => return Err(grammar::unexpected(record, at).into()),
            }
            let before = self.text.len();
            if left {
                self.text.write(b",");
            }
            // A column of a list has a column of elements.
            let Some(elements) = column.items() else { break };
            let taken = self.value(items, elements, at, depth)?;
            if taken.left && !left {
                self.text.list_before(before, count);
                left = true;
            } else if !taken.left {
                self.text.truncate(before);
                if left {
                    self.text.write(b",null");
                }
            }
            count += 1;
            at = grammar::space(record, taken.end);
        }
        if left {
            self.text.write(b"]");
        }
        column.close_list()?;
        self.cells += 1;
        self.check_cells()?;
        Ok(Taken { end: at + 1, left })
    }

    /// Takes a value as one: sealed, a scalar, a null, or what does not fit. Whether it was left over.
    fn whole(&mut self, node: &Node, column: &mut Column, at: usize, end: usize) -> Result<bool, RowRejection> {
        let text = &self.record[at..end];
        self.cells += 1;
        if let NodeKind::Sealed(place) = &node.kind {
            self.sealed.clear();
            if place.read(text, self.sealed)? {
                column.push(Scalar::Bytes(self.sealed))?;
            } else {
                column.push_null();
            }
            return Ok(false);
        }
        if text == b"null" {
            self.cells += column.push_null();
            return Ok(false);
        }
        if let NodeKind::Scalar(field_type) = &node.kind
            && let Some(scalar) = scalar::read(text, field_type, self.decoded)
        {
            // A JSON column may hold places that are sealed.
            if let Some(guard) = &node.guard {
                guard.check(text, self.scratch)?;
            }
            column.push(scalar)?;
            return Ok(false);
        }
        self.divert(node, text)?;
        self.text.write(text);
        self.cells += column.push_null();
        Ok(true)
    }

    /// Whether the value `text` of a place may go to `_extra`.
    fn divert(&mut self, node: &Node, text: &[u8]) -> Result<(), RowRejection> {
        if let Some(column) = &node.column {
            return Err(RowRejection::SchemaConflict {
                column: column.to_string(),
            });
        }
        match &node.guard {
            Some(guard) => guard.check(text, self.scratch),
            None => Ok(()),
        }
    }

    fn check_cells(&self) -> Result<(), RowRejection> {
        if self.cells <= MAX_CELLS {
            return Ok(());
        }
        Err(RowRejection::TooManyValues)
    }
}

/// The name that the inside of a string token stands for. One with half a surrogate pair is no text, so no field has it: it
/// stays as it is spelled.
fn decoded_name(inner: &[u8], escaped: bool) -> (Cow<'_, [u8]>, bool) {
    if !escaped {
        return (Cow::Borrowed(inner), true);
    }
    let mut name = Vec::with_capacity(inner.len());
    match grammar::unescape(inner, &mut name) {
        Ok(()) => (Cow::Owned(name), true),
        Err(_) => (Cow::Borrowed(inner), false),
    }
}

/// Rows that lack nothing but their `_extra`.
pub struct Rows {
    schema: SchemaRef,
    columns: Vec<ArrayRef>,
    extra: PlainColumn,
    has_extra: bool,
}

/// Why rows do not become a record batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowsError {
    /// `_extra` holds something, and was not sealed, or not this one.
    #[error("the column _extra is to be sealed, value for value, before the rows are a record batch")]
    ExtraNotSealed,
    /// Columns that do not make a batch: a bug of ours.
    #[error("the rows do not make a record batch: {0}")]
    Arrow(#[from] ArrowError),
}

impl Rows {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.extra.view().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is to be sealed into `_extra`, one entry per row: plaintext encodings of JSON text, or null. `None` if all are
    /// null, and so nothing is to be sealed. Wiped when the rows are dropped.
    #[must_use]
    pub fn extra(&self) -> Option<ByteColumn<'_>> {
        self.has_extra.then(|| self.extra.view())
    }

    /// The rows as a record batch, with what [`extra`](Self::extra) was sealed as.
    ///
    /// # Errors
    /// [`RowsError::ExtraNotSealed`] if there is something in `extra`, and `sealed` is not a sealed value for each.
    pub fn with_extra(mut self, sealed: Option<&SealedColumn>) -> Result<RecordBatch, RowsError> {
        let plain = self.extra.view();
        let extra: BinaryArray = match sealed {
            None if self.has_extra => return Err(RowsError::ExtraNotSealed),
            None => BinaryArray::new_null(plain.len()),
            Some(sealed) => {
                let sealed = sealed.view();
                let is_whole = sealed.len() == plain.len()
                    && plain.iter().zip(sealed.iter()).all(|(plain, sealed)| match sealed {
                        None => plain.is_none(),
                        Some(sealed) => plain.is_some() && SealedValue::parse(sealed).is_ok(),
                    });
                if !is_whole {
                    return Err(RowsError::ExtraNotSealed);
                }
                sealed_array(&sealed)
            }
        };
        self.columns.push(Arc::new(extra));
        Ok(RecordBatch::try_new(self.schema, self.columns)?)
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
