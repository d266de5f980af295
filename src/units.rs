//! Sizes and spans as people write them in configuration: `4MiB`, `100ms`, `1h`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, written with a unit: `B`, `KiB`, `MiB`, `GiB`, `kB`, `MB`, `GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A span of time, written with a unit: `ms`, `s`, `m`, `h`, `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Why a size or span could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnitError {
    /// No digits before the unit.
    #[error("expected a whole number with a unit ({units})")]
    NotANumber {
        /// The units that would be taken.
        units: &'static str,
    },
    /// A unit that is not one of ours, or none.
    #[error("unknown or missing unit, expected one of {units}")]
    UnknownUnit {
        /// The units that would be taken.
        units: &'static str,
    },
    /// Larger than 2^64 bytes or milliseconds.
    #[error("the value is too large")]
    TooLarge,
}

const SIZE_UNITS: &str = "B, KiB, MiB, GiB, kB, MB, GB";
const SPAN_UNITS: &str = "ms, s, m, h, d";

fn number_and_unit<'a>(text: &'a str, units: &'static str) -> Result<(u64, &'a str), UnitError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 {
        return Err(UnitError::NotANumber { units });
    }
    let number = text[..end].parse().map_err(|_| UnitError::TooLarge)?;
    Ok((number, text[end..].trim_start()))
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = number_and_unit(text, SIZE_UNITS)?;
        let factor: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(UnitError::UnknownUnit { units: SIZE_UNITS }),
        };
        number.checked_mul(factor).map(Self).ok_or(UnitError::TooLarge)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = number_and_unit(text, SPAN_UNITS)?;
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(UnitError::UnknownUnit { units: SPAN_UNITS }),
        };
        let millis = number.checked_mul(millis).ok_or(UnitError::TooLarge)?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        for (factor, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
            if millis >= factor && millis.is_multiple_of(factor) {
                return write!(f, "{}{unit}", millis / factor);
            }
        }
        write!(f, "{millis}ms")
    }
}

macro_rules! text_in_serde {
    ($type:ty, $name:literal, $pattern:literal, $example:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}

text_in_serde!(ByteSize, "ByteSize", r"^[0-9]+ ?(B|KiB|MiB|GiB|kB|MB|GB)$", "4MiB");
text_in_serde!(Span, "Span", r"^[0-9]+ ?(ms|s|m|h|d)$", "100ms");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_without_a_unit_is_refused() {
        assert_eq!(
            "4096".parse::<ByteSize>(),
            Err(UnitError::UnknownUnit { units: SIZE_UNITS })
        );
    }

    #[test]
    fn sizes_and_spans_print_as_they_parse() {
        for text in ["4MiB", "1GiB", "1000B", "3KiB"] {
            assert_eq!(text.parse::<ByteSize>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
        for text in ["100ms", "1h", "90s", "2d"] {
            assert_eq!(text.parse::<Span>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
    }
}
