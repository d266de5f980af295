//! Arrow arrays as columns of plaintext encodings and back, value for value and bit for bit, and sealed
//! columns as Arrow fields.
//!
//! Dictionaries are encoded by value. Nested arrays (structs, lists, maps, unions) and intervals are refused:
//! their leaves are columns of their own.

mod decode;
mod encode;
mod extension;
mod floats;
mod format;

use arrow::datatypes::DataType;

pub use decode::decode_array;
pub use encode::encode_array;
pub use extension::{Sealed, SealedMetadata, SealedType, sealed_array, sealed_column, sealed_field};

use crate::seal::plaintext::TimeUnit;
use crate::seal::{ColumnError, PlaintextError};

/// Why an array cannot be taken or made. Never holds a value.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum ArrowColumnError {
    /// A type without a plaintext encoding.
    #[error("columns of type {data_type} cannot be sealed: seal their leaves, or encode them as text or binary")]
    Unsupported {
        /// The type.
        data_type: DataType,
    },
    /// A value that the wanted type does not hold exactly.
    #[error("value {row} is not exactly a {to}")]
    Mismatch {
        /// Which value.
        row: usize,
        /// The wanted type.
        to: DataType,
    },
    /// Too many bytes for one array of that type.
    #[error("the values do not fit into one array of type {to}")]
    TooLarge {
        /// The wanted type.
        to: DataType,
    },
    /// The column cannot be built.
    #[error(transparent)]
    Column(#[from] ColumnError),
    /// Not plaintext encodings.
    #[error(transparent)]
    Plaintext(#[from] PlaintextError),
}

fn unit_of(unit: arrow::datatypes::TimeUnit) -> TimeUnit {
    match unit {
        arrow::datatypes::TimeUnit::Second => TimeUnit::Second,
        arrow::datatypes::TimeUnit::Millisecond => TimeUnit::Millisecond,
        arrow::datatypes::TimeUnit::Microsecond => TimeUnit::Microsecond,
        arrow::datatypes::TimeUnit::Nanosecond => TimeUnit::Nanosecond,
    }
}

/// Milliseconds of a day: `Date64` counts milliseconds, a date counts days.
const DAY_MS: i64 = 86_400_000;

#[cfg(test)]
mod tests;
