//! The Arrow extension type `sealflow.sealed`: Binary storage, and what the values were before sealing.
//!
//! The metadata is JSON, `{"label":"user.email","type":"u"}`; the type is a format string of the Arrow C data
//! interface, or `json` for columns taken from JSON records. So a column that is refused or all null keeps
//! its type.

use arrow::array::{Array, BinaryArray, BinaryBuilder};
use arrow::datatypes::{DataType, Field};
use arrow_schema::ArrowError;
use arrow_schema::extension::ExtensionType;
use serde::{Deserialize, Serialize};

use super::ArrowColumnError;
use super::format::{format_of, parse_format};
use crate::seal::{ByteColumn, ColumnError, SealedColumn};

/// The extension type of a sealed column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed(SealedMetadata);

/// What a sealed column's field says about it. A hint only: the values themselves prove their label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedMetadata {
    /// The label that the values are sealed under.
    pub label: String,
    /// What they were.
    pub sealed_type: SealedType,
}

/// What sealed values were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealedType {
    /// Values of JSON records, each with a type of its own.
    Json,
    /// Values of an Arrow array; dictionaries count as their values' type.
    Arrow(DataType),
}

#[derive(Serialize, Deserialize)]
struct MetadataJson {
    label: String,
    r#type: String,
}

impl ExtensionType for Sealed {
    const NAME: &'static str = "sealflow.sealed";
    type Metadata = SealedMetadata;

    fn metadata(&self) -> &SealedMetadata {
        &self.0
    }

    fn serialize_metadata(&self) -> Option<String> {
        let r#type = match &self.0.sealed_type {
            SealedType::Json => "json".to_owned(),
            SealedType::Arrow(data_type) => format_of(data_type)?,
        };
        // Two strings always serialise.
        serde_json::to_string(&MetadataJson {
            label: self.0.label.clone(),
            r#type,
        })
        .ok()
    }

    fn deserialize_metadata(metadata: Option<&str>) -> Result<SealedMetadata, ArrowError> {
        let text = metadata.ok_or_else(|| invalid("metadata is missing"))?;
        let MetadataJson { label, r#type } =
            serde_json::from_str(text).map_err(|_| invalid("metadata is not {\"label\":…,\"type\":…}"))?;
        let sealed_type = match r#type.as_str() {
            "json" => SealedType::Json,
            format => SealedType::Arrow(parse_format(format).ok_or_else(|| invalid("unknown type in metadata"))?),
        };
        Ok(SealedMetadata { label, sealed_type })
    }

    fn supports_data_type(&self, data_type: &DataType) -> Result<(), ArrowError> {
        match data_type {
            DataType::Binary => Ok(()),
            other => Err(invalid(&format!("storage must be Binary, not {other}"))),
        }
    }

    fn try_new(data_type: &DataType, metadata: SealedMetadata) -> Result<Self, ArrowError> {
        if let SealedType::Arrow(data_type) = &metadata.sealed_type
            && format_of(data_type).is_none()
        {
            return Err(invalid(&format!("columns of type {data_type} cannot be sealed")));
        }
        let sealed = Self(metadata);
        sealed.supports_data_type(data_type)?;
        Ok(sealed)
    }
}

fn invalid(what: &str) -> ArrowError {
    ArrowError::InvalidArgumentError(format!("{}: {what}", Sealed::NAME))
}

/// A nullable field for the sealed values of a column.
pub fn sealed_field(name: &str, metadata: SealedMetadata) -> Result<Field, ArrowColumnError> {
    let unsupported = match &metadata.sealed_type {
        SealedType::Arrow(data_type) => data_type.clone(),
        SealedType::Json => DataType::Utf8,
    };
    let sealed = Sealed::try_new(&DataType::Binary, metadata)
        .map_err(|_| ArrowColumnError::Unsupported { data_type: unsupported })?;
    Ok(Field::new(name, DataType::Binary, true).with_extension_type(sealed))
}

/// The sealed values as an Arrow array (copied).
#[must_use]
pub fn sealed_array(column: &ByteColumn<'_>) -> BinaryArray {
    // A column has 32-bit offsets itself, so those of the array do not overflow.
    let mut builder = BinaryBuilder::with_capacity(column.len(), column.value_bytes());
    for value in column.iter() {
        builder.append_option(value);
    }
    builder.finish()
}

/// The sealed values of an Arrow array (copied).
pub fn sealed_column(array: &BinaryArray) -> Result<SealedColumn, ColumnError> {
    let mut column = SealedColumn::with_capacity(array.len(), array.value_data().len());
    for value in array {
        match value {
            Some(value) => column.push(value)?,
            None => column.push_null()?,
        }
    }
    Ok(column)
}
