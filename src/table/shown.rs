//! What a reader sees of a file: its schema, and batches of it put together from what was stored and what was opened.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, GenericListArray, OffsetSizeTrait, StructArray, new_null_array};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};

use super::read::{LeafState, OpenLeaf, OpenTable};
use super::values::redacted;
use crate::columns::arrow::SealedType;

impl OpenTable {
    /// The schema of what is shown: sealed columns have the type of their values.
    pub(super) fn shown_schema(&self, wanted: &[bool]) -> SchemaRef {
        let mut leaf = 0;
        let fields: Vec<FieldRef> = self
            .schema()
            .fields()
            .iter()
            .filter_map(|field| self.shown_field(field, wanted, &mut leaf))
            .collect();
        Arc::new(Schema::new(fields))
    }

    /// `None` if nothing of it is wanted.
    fn shown_field(&self, field: &Field, wanted: &[bool], leaf: &mut usize) -> Option<FieldRef> {
        let data_type = match field.data_type() {
            DataType::Struct(fields) => {
                let fields: Fields = fields
                    .iter()
                    .filter_map(|field| self.shown_field(field, wanted, leaf))
                    .collect();
                (!fields.is_empty()).then_some(DataType::Struct(fields))
            }
            DataType::List(item) => self.shown_field(item, wanted, leaf).map(DataType::List),
            DataType::LargeList(item) => self.shown_field(item, wanted, leaf).map(DataType::LargeList),
            other => {
                let n = *leaf;
                *leaf += 1;
                wanted[n].then(|| self.leaves[n].shown_type().unwrap_or_else(|| other.clone()))
            }
        }?;
        Some(Arc::new(Field::new(field.name(), data_type, true)))
    }

    /// The type of a leaf as it is shown.
    pub(super) fn shown_type(&self, n: usize) -> DataType {
        let leaf = &self.leaves[n];
        leaf.shown_type().unwrap_or_else(|| leaf.leaf.data_type.clone())
    }
}

impl OpenLeaf {
    /// The type that opened values of a sealed column have. They were sealed as the JSON that they were: times, decimals and
    /// bytes stay the texts that they are there.
    pub(super) fn shown_type(&self) -> Option<DataType> {
        use DataType::{Boolean, Float64, Int64, Utf8};
        if self.is_by_worker {
            return Some(Utf8);
        }
        Some(match &self.leaf.sealed.as_ref()?.sealed_type {
            SealedType::Arrow(data_type @ (Boolean | Int64 | Float64)) => data_type.clone(),
            SealedType::Arrow(_) | SealedType::Json => Utf8,
        })
    }

    /// Whether what is shown is JSON, and not the text of a string.
    pub(super) fn is_json(&self) -> bool {
        let sealed = self.leaf.sealed.as_ref();
        sealed.is_some_and(|sealed| sealed.sealed_type == SealedType::Json)
    }
}

/// What batches are put together from.
pub(super) struct Showing<'a> {
    pub(super) leaves: &'a [OpenLeaf],
    /// Leaves that are shown.
    pub(super) wanted: &'a [bool],
    /// The values of sealed leaves.
    pub(super) opened: &'a HashMap<usize, ArrayRef>,
}

impl Showing<'_> {
    /// A field as it is shown, from what was decoded of it.
    pub(super) fn field(
        &self,
        field: &Field,
        stored: Option<&ArrayRef>,
        len: usize,
        leaf: &mut usize,
    ) -> Option<ArrayRef> {
        match field.data_type() {
            DataType::Struct(fields) => {
                let stored = stored.and_then(|array| array.as_struct_opt());
                let mut columns = Vec::new();
                let mut shown: Vec<FieldRef> = Vec::new();
                for field in fields {
                    let child = stored.and_then(|array| array.column_by_name(field.name()));
                    if let Some(array) = self.field(field, child, len, leaf) {
                        shown.push(Arc::new(Field::new(field.name(), array.data_type().clone(), true)));
                        columns.push(array);
                    }
                }
                if shown.is_empty() {
                    return None;
                }
                let nulls = stored.and_then(|array| array.nulls().cloned());
                StructArray::try_new(shown.into(), columns, nulls)
                    .ok()
                    .map(|array| Arc::new(array) as ArrayRef)
            }
            DataType::List(item) => {
                let stored = stored.and_then(|array| array.as_list_opt::<i32>());
                self.list(item, stored, len, leaf)
            }
            DataType::LargeList(item) => {
                let stored = stored.and_then(|array| array.as_list_opt::<i64>());
                self.list(item, stored, len, leaf)
            }
            data_type => {
                let n = *leaf;
                *leaf += 1;
                if !self.wanted[n] {
                    return None;
                }
                let own = &self.leaves[n];
                let to = own.shown_type().unwrap_or_else(|| data_type.clone());
                let shown = match (self.opened.get(&n), stored, &own.state) {
                    (Some(opened), ..) => Arc::clone(opened),
                    (None, Some(stored), LeafState::Shown { .. }) if own.leaf.sealed.is_none() => Arc::clone(stored),
                    (.., LeafState::Refused { refused, .. }) => {
                        redacted(&new_null_array(&to, len), &vec![true; len], *refused, false)
                    }
                    _ => new_null_array(&to, len),
                };
                Some(shown)
            }
        }
    }

    fn list<O: OffsetSizeTrait>(
        &self,
        item: &FieldRef,
        stored: Option<&GenericListArray<O>>,
        len: usize,
        leaf: &mut usize,
    ) -> Option<ArrayRef> {
        let values = stored.map(|array| Arc::clone(array.values()));
        let inner = values.as_ref().map_or(0, Array::len);
        let shown = self.field(item, values.as_ref(), inner, leaf)?;
        let field = Arc::new(Field::new(item.name(), shown.data_type().clone(), true));
        let list = match stored {
            Some(stored) => {
                GenericListArray::<O>::try_new(field, stored.offsets().clone(), shown, stored.nulls().cloned()).ok()?
            }
            None => {
                return Some(new_null_array(
                    &GenericListArray::<O>::DATA_TYPE_CONSTRUCTOR(field),
                    len,
                ));
            }
        };
        Some(Arc::new(list))
    }
}
