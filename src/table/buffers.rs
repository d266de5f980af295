//! The columns of a batch while it is built: buffers in Arrow's layout that can be taken back to an earlier length, so
//! that a record is in all of them or in none.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array, Float64Array, Int64Array,
    ListArray, StringArray, StructArray, TimestampMicrosecondArray, TimestampMillisecondArray,
    TimestampNanosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, TimeUnit};
use arrow::error::ArrowError;

use super::layout::{Node, NodeKind, StructNode};
use super::rejection::RowRejection;
use super::scalar::Scalar;
use super::schema::FieldType;

/// The values of one place of the record's JSON, one entry per place above it.
pub(super) struct Column {
    valid: BooleanBufferBuilder,
    values: Values,
}

enum Values {
    Bool(BooleanBufferBuilder),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float64(Vec<f64>),
    Decimal(Vec<i128>),
    Bytes(Texts),
    List { offsets: Vec<i32>, items: Box<Column> },
    Struct(Vec<Column>),
}

/// Values of any length; also those of the record's key.
pub(super) struct Texts {
    offsets: Vec<i32>,
    bytes: Vec<u8>,
}

impl Texts {
    pub(super) fn new() -> Self {
        Self {
            offsets: vec![0],
            bytes: Vec::new(),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), RowRejection> {
        let end = i32::try_from(self.bytes.len() + bytes.len()).map_err(|_| RowRejection::BatchTooLarge)?;
        self.bytes.extend_from_slice(bytes);
        self.offsets.push(end);
        Ok(())
    }

    fn push_empty(&mut self) {
        self.offsets.extend(self.offsets.last().copied());
    }

    fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len + 1);
        // Offsets are never negative, and start with a zero.
        let end = self.offsets.last().map_or(0, |end| *end as usize);
        self.bytes.truncate(end);
    }

    fn parts(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let Self { offsets, bytes } = std::mem::replace(self, Self::new());
        (OffsetBuffer::new(ScalarBuffer::from(offsets)), Buffer::from_vec(bytes))
    }
}

impl Column {
    /// An empty column of a place.
    pub(super) fn of(node: &Node) -> Self {
        match &node.kind {
            NodeKind::Sealed(_) => Self::bytes(),
            NodeKind::List(items) => Self::with(Values::List {
                offsets: vec![0],
                items: Box::new(Self::of(items)),
            }),
            NodeKind::Struct(members) => Self::with(Values::Struct(Self::members(members))),
            NodeKind::Scalar(field_type) => Self::with(match field_type {
                FieldType::Bool => Values::Bool(BooleanBufferBuilder::new(0)),
                FieldType::Int64 | FieldType::Timestamp(_) => Values::Int64(Vec::new()),
                FieldType::Date => Values::Int32(Vec::new()),
                FieldType::Float64 => Values::Float64(Vec::new()),
                FieldType::Decimal { .. } => Values::Decimal(Vec::new()),
                // Lists and structs have kinds of their own.
                _ => Values::Bytes(Texts::new()),
            }),
        }
    }

    /// An empty column of bytes.
    pub(super) fn bytes() -> Self {
        Self::with(Values::Bytes(Texts::new()))
    }

    /// Empty columns of an object's members.
    pub(super) fn members(node: &StructNode) -> Vec<Self> {
        node.children.iter().map(Self::of).collect()
    }

    fn with(values: Values) -> Self {
        Self {
            valid: BooleanBufferBuilder::new(0),
            values,
        }
    }

    /// Entries so far, nulls included.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.valid.len()
    }

    /// Appends a null, to all that lies below too; returns how many entries of leaves that makes.
    pub(super) fn push_null(&mut self) -> usize {
        self.valid.append(false);
        match &mut self.values {
            Values::Bool(values) => values.append(false),
            Values::Int32(values) => values.push(0),
            Values::Int64(values) => values.push(0),
            Values::Float64(values) => values.push(0.0),
            Values::Decimal(values) => values.push(0),
            Values::Bytes(texts) => texts.push_empty(),
            Values::List { offsets, .. } => offsets.extend(offsets.last().copied()),
            Values::Struct(children) => return children.iter_mut().map(Self::push_null).sum(),
        }
        1
    }

    /// Appends one value, of the type that the place has.
    pub(super) fn push(&mut self, value: Scalar<'_>) -> Result<(), RowRejection> {
        match (&mut self.values, value) {
            (Values::Bool(values), Scalar::Bool(value)) => values.append(value),
            (Values::Int32(values), Scalar::Int32(value)) => values.push(value),
            (Values::Int64(values), Scalar::Int64(value)) => values.push(value),
            (Values::Float64(values), Scalar::Float64(value)) => values.push(value),
            (Values::Decimal(values), Scalar::Decimal(value)) => values.push(value),
            (Values::Bytes(texts), Scalar::Bytes(bytes)) => texts.push(bytes)?,
            // Column and scalar are made from one type, so there is no other pair.
            _ => {
                self.push_null();
                return Ok(());
            }
        }
        self.valid.append(true);
        Ok(())
    }

    /// Begins an object: its number, and the columns of its members, each of which is to get one entry.
    pub(super) fn open_struct(&mut self) -> (usize, &mut [Self]) {
        self.valid.append(true);
        let row = self.valid.len() - 1;
        match &mut self.values {
            Values::Struct(children) => (row, children),
            _ => (row, &mut []),
        }
    }

    /// The column of a list's elements.
    pub(super) fn items(&mut self) -> Option<&mut Self> {
        match &mut self.values {
            Values::List { items, .. } => Some(items),
            _ => None,
        }
    }

    /// Ends a list whose elements have been appended to [`items`](Self::items).
    pub(super) fn close_list(&mut self) -> Result<(), RowRejection> {
        if let Values::List { offsets, items } = &mut self.values {
            offsets.push(i32::try_from(items.len()).map_err(|_| RowRejection::BatchTooLarge)?);
        }
        self.valid.append(true);
        Ok(())
    }

    /// Forgets all but the first `len` entries. A record that was refused may have left more in columns below than here.
    pub(super) fn truncate(&mut self, len: usize) {
        self.valid.truncate(len);
        match &mut self.values {
            Values::Bool(values) => values.truncate(len),
            Values::Int32(values) => values.truncate(len),
            Values::Int64(values) => values.truncate(len),
            Values::Float64(values) => values.truncate(len),
            Values::Decimal(values) => values.truncate(len),
            Values::Bytes(texts) => texts.truncate(len),
            Values::List { offsets, items } => {
                offsets.truncate(len + 1);
                // Offsets are never negative, and start with a zero.
                items.truncate(offsets.last().map_or(0, |end| *end as usize));
            }
            Values::Struct(children) => {
                for child in children {
                    child.truncate(len);
                }
            }
        }
    }

    /// The entries as an array of the field's type; the column is empty then.
    pub(super) fn finish(&mut self, field: &Field) -> Result<ArrayRef, ArrowError> {
        let len = self.len();
        let nulls = NullBuffer::new(self.valid.finish());
        let nulls = (nulls.null_count() > 0).then_some(nulls);
        Ok(match &mut self.values {
            Values::Bool(values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Int32(values) => Arc::new(Date32Array::new(std::mem::take(values).into(), nulls)),
            Values::Int64(values) => integers(std::mem::take(values).into(), nulls, field.data_type()),
            Values::Float64(values) => Arc::new(Float64Array::new(std::mem::take(values).into(), nulls)),
            Values::Decimal(values) => {
                let array = Decimal128Array::new(std::mem::take(values).into(), nulls);
                match field.data_type() {
                    DataType::Decimal128(precision, scale) => {
                        Arc::new(array.with_precision_and_scale(*precision, *scale)?)
                    }
                    _ => Arc::new(array),
                }
            }
            Values::Bytes(texts) => {
                let (offsets, bytes) = texts.parts();
                match field.data_type() {
                    DataType::Utf8 => Arc::new(StringArray::try_new(offsets, bytes, nulls)?),
                    _ => Arc::new(BinaryArray::try_new(offsets, bytes, nulls)?),
                }
            }
            Values::List { offsets, items } => {
                let DataType::List(element) = field.data_type() else {
                    return Err(ArrowError::SchemaError("a list is no list".to_owned()));
                };
                let offsets = OffsetBuffer::new(std::mem::replace(offsets, vec![0]).into());
                let items = items.finish(element)?;
                Arc::new(ListArray::try_new(Arc::clone(element), offsets, items, nulls)?)
            }
            Values::Struct(children) => {
                let DataType::Struct(fields) = field.data_type() else {
                    return Err(ArrowError::SchemaError("a struct is no struct".to_owned()));
                };
                let mut arrays = Vec::with_capacity(children.len());
                for (child, field) in children.iter_mut().zip(fields) {
                    arrays.push(child.finish(field)?);
                }
                Arc::new(StructArray::try_new_with_length(fields.clone(), arrays, nulls, len)?)
            }
        })
    }
}

/// Integers, or timestamps of the field's unit and zone.
fn integers(values: ScalarBuffer<i64>, nulls: Option<NullBuffer>, data_type: &DataType) -> ArrayRef {
    match data_type {
        DataType::Timestamp(unit, zone) => {
            let zone = zone.clone();
            match unit {
                TimeUnit::Nanosecond => Arc::new(TimestampNanosecondArray::new(values, nulls).with_timezone_opt(zone)),
                TimeUnit::Millisecond => {
                    Arc::new(TimestampMillisecondArray::new(values, nulls).with_timezone_opt(zone))
                }
                // Schemas have no timestamps in seconds.
                _ => Arc::new(TimestampMicrosecondArray::new(values, nulls).with_timezone_opt(zone)),
            }
        }
        _ => Arc::new(Int64Array::new(values, nulls)),
    }
}
