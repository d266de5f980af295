//! A leaf in a batch of rows: its values, and the row and the lists that each stands in.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, OffsetSizeTrait, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};

use crate::columns::json;
use crate::policy::Segment;

/// The values of a leaf in a batch, and the row and list indexes of each.
pub(super) struct Elements {
    pub(super) array: ArrayRef,
    pub(super) rows: Vec<u32>,
    /// How many lists a value stands in.
    depth: usize,
    /// Its index in each of them, outermost first: `depth` for each value.
    indexes: Vec<u32>,
}

/// Finds a leaf in a batch; `None` if it was not decoded.
pub(super) fn find(batch: &RecordBatch, segments: &[Segment]) -> Option<Elements> {
    let (Segment::Name(first), rest) = segments.split_first()? else {
        return None;
    };
    let mut found = Elements {
        array: Arc::clone(batch.column_by_name(first)?),
        rows: (0..u32::try_from(batch.num_rows()).ok()?).collect(),
        depth: 0,
        indexes: Vec::new(),
    };
    for segment in rest {
        found = match segment {
            Segment::Name(name) => Elements {
                array: Arc::clone(found.array.as_struct_opt()?.column_by_name(name)?),
                ..found
            },
            Segment::Each => match found.array.data_type() {
                DataType::List(_) => found.each::<i32>()?,
                DataType::LargeList(_) => found.each::<i64>()?,
                _ => return None,
            },
        };
    }
    Some(found)
}

impl Elements {
    fn each<O: OffsetSizeTrait>(self) -> Option<Self> {
        let list = self.array.as_list_opt::<O>()?;
        let values = Arc::clone(list.values());
        let (mut rows, depth) = (vec![0; values.len()], self.depth + 1);
        let mut indexes = vec![0; values.len() * depth];
        for (n, window) in list.offsets().windows(2).enumerate() {
            for (index, element) in (window[0].as_usize()..window[1].as_usize()).enumerate() {
                rows[element] = self.rows[n];
                let (outer, own) = indexes[element * depth..][..depth].split_at_mut(self.depth);
                outer.copy_from_slice(&self.indexes[n * self.depth..][..self.depth]);
                own[0] = u32::try_from(index).ok()?;
            }
        }
        Some(Self {
            array: values,
            rows,
            depth,
            indexes,
        })
    }
}

impl Elements {
    /// The canonical row ids of these values, from the column that the policy binds them to; empty if that is not there.
    pub(super) fn row_ids(&self, batch: &RecordBatch, bound: &[Segment], values: &[usize]) -> Vec<Option<Vec<u8>>> {
        let Some(ids) = find(batch, bound) else {
            return Vec::new();
        };
        let id = |value: &usize| {
            let scalar = json_scalar(&ids.array, self.rows[*value] as usize)?.into_bytes();
            let mut out = Vec::new();
            json::encode_row_id(&scalar, &self.indexes[value * self.depth..][..self.depth], &mut out).ok()?;
            Some(out)
        };
        values.iter().map(id).collect()
    }

    /// How many lists a value stands in.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// The index of a value in each list that it stands in, outermost first.
    pub(super) fn indexes(&self, value: usize) -> &[u32] {
        &self.indexes[value * self.depth..][..self.depth]
    }
}

/// The JSON of a clear scalar column of a row: what names the row to columns that are bound to it.
pub(super) fn row_name(batch: &RecordBatch, bound: &[Segment], row: usize) -> Option<String> {
    json_scalar(&find(batch, bound)?.array, row)
}

/// A value of a clear scalar column as JSON text.
fn json_scalar(array: &ArrayRef, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Utf8 => {
            let mut out = Vec::new();
            json::write_string(array.as_string::<i32>().value(row), &mut out);
            String::from_utf8(out).ok()
        }
        DataType::Int64 => Some(array.as_primitive::<Int64Type>().value(row).to_string()),
        DataType::Boolean => Some(array.as_boolean().value(row).to_string()),
        _ => None,
    }
}
