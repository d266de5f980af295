//! The one type that all values of a domain have: values are coerced exactly to it, or dead-lettered.

use serde::{Deserialize, Serialize};

use crate::seal::plaintext::TimeUnit;

/// The type of a domain's values. Equal values of one type have one plaintext encoding, so that they seal
/// to equal bytes in every dataset of the domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DomainType {
    /// Text.
    Utf8,
    /// Whole numbers of any size.
    Integer,
    /// True or false.
    Bool,
    /// 64-bit floating-point numbers.
    Float64,
    /// Decimals with a fixed number of digits after the point.
    Decimal {
        /// Digits after the point; may be negative.
        scale: i8,
    },
    /// Bytes, as they are.
    Bytes,
    /// Calendar days.
    Date,
    /// Points in time.
    Timestamp {
        /// Resolution of the stored count.
        unit: TimeUnit,
        /// Zone name or offset; without one, local times.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zone: Option<String>,
    },
}
