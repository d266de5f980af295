//! The leaves of a file, and which column of a record each is.

use arrow::datatypes::{DataType, Field, Schema};

use super::TableError;
use super::layout::KEY_COLUMN;
use crate::columns::arrow::{Sealed, SealedMetadata};
use crate::policy::path::MAX_SEGMENTS;
use crate::policy::{ColumnPath, Segment};

/// A leaf of a file.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FileLeaf {
    /// The column of a record that it is.
    pub column: ColumnPath,
    /// Where it is in the file.
    pub(super) segments: Vec<Segment>,
    /// Its type as it is stored.
    pub data_type: DataType,
    /// Of sealed values: what the field says about them.
    pub sealed: Option<SealedMetadata>,
    /// Index of the top-level field that it belongs to.
    pub field: usize,
}

/// The leaves of a schema, in the order of Parquet's.
pub(super) fn file_leaves(schema: &Schema) -> Result<Vec<FileLeaf>, TableError> {
    let mut leaves = Vec::new();
    for (n, field) in schema.fields().iter().enumerate() {
        let mut path = vec![Segment::Name(field.name().clone())];
        walk(field, n, &mut path, &mut leaves)?;
    }
    Ok(leaves)
}

fn walk(field: &Field, top: usize, path: &mut Vec<Segment>, leaves: &mut Vec<FileLeaf>) -> Result<(), TableError> {
    if path.len() > MAX_SEGMENTS {
        return Err(TableError::Damaged);
    }
    match field.data_type() {
        DataType::Struct(fields) => {
            for field in fields {
                path.push(Segment::Name(field.name().clone()));
                walk(field, top, path, leaves)?;
                path.pop();
            }
        }
        DataType::List(item) | DataType::LargeList(item) => {
            path.push(Segment::Each);
            walk(item, top, path, leaves)?;
            path.pop();
        }
        // Not written by us, and no column of a JSON record.
        DataType::Map(..) | DataType::Union(..) | DataType::FixedSizeList(..) => return Err(TableError::Columns),
        data_type => leaves.push(FileLeaf {
            column: column_of(path)?,
            segments: path.clone(),
            data_type: data_type.clone(),
            sealed: field
                .try_extension_type::<Sealed>()
                .ok()
                .map(|sealed| metadata_of(&sealed)),
            field: top,
        }),
    }
    Ok(())
}

/// The column of a record that stands at `path` in a file: the key has a name of its own there.
fn column_of(path: &[Segment]) -> Result<ColumnPath, TableError> {
    match path {
        [Segment::Name(name)] if name == KEY_COLUMN => "$key".parse().map_err(|_| TableError::Damaged),
        path => Ok(ColumnPath::into_value(path.to_vec())),
    }
}

fn metadata_of(sealed: &Sealed) -> SealedMetadata {
    use arrow_schema::extension::ExtensionType as _;
    sealed.metadata().clone()
}
