//! Why a record's columns cannot be told for sure: each reason is a dead letter with a code of its own.

use std::sync::Arc;

use super::grammar::{Fault, FaultKind};

/// More values than this in one record are refused: sealing makes a byte of input about forty bytes of output.
pub const MAX_HITS: usize = 65_536;

/// Why a record's columns cannot be told for sure. Never holds a value of the record.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unlocatable {
    /// Over 4 GiB.
    #[error("the record is larger than 4 GiB")]
    TooLarge,
    /// Nothing but white space.
    #[error("the record is empty")]
    Empty,
    /// Starts with a UTF-8, UTF-16 or UTF-32 byte order mark.
    #[error("the record starts with a byte order mark")]
    ByteOrderMark,
    /// Not UTF-8.
    #[error("invalid UTF-8 at byte {at}")]
    InvalidUtf8 {
        /// Byte offset in the record.
        at: usize,
    },
    /// Ends in the middle of a value.
    #[error("the JSON document ends too early, at byte {at}")]
    Truncated {
        /// Byte offset in the record.
        at: usize,
    },
    /// Not JSON as RFC 8259 has it.
    #[error("not JSON (RFC 8259) at byte {at}")]
    InvalidJson {
        /// Byte offset in the record.
        at: usize,
    },
    /// A raw control character in a string.
    #[error("unescaped control character in a string at byte {at}")]
    ControlCharacter {
        /// Byte offset in the record.
        at: usize,
    },
    /// A backslash sequence JSON does not know.
    #[error("invalid escape in a string at byte {at}")]
    InvalidEscape {
        /// Byte offset in the record.
        at: usize,
    },
    /// Something after the document.
    #[error("bytes after the JSON document, from byte {at}")]
    TrailingBytes {
        /// Byte offset in the record.
        at: usize,
    },
    /// More than [`MAX_DEPTH`](super::MAX_DEPTH) containers in one another.
    #[error("more than 128 levels of nesting at byte {at}")]
    TooDeep {
        /// Byte offset in the record.
        at: usize,
    },
    /// More than [`MAX_HITS`] values to seal.
    #[error("more than {MAX_HITS} values to seal in one record")]
    TooManyValues,
    /// Another type on the way to a column than the policy's path says.
    #[error("{expected} expected on the way to {column}, found {found} at byte {at}")]
    WrongType {
        /// Canonical path of a column that lies below.
        column: Arc<str>,
        /// What the path goes through.
        expected: &'static str,
        /// What the record has.
        found: &'static str,
        /// Byte offset in the record.
        at: usize,
    },
    /// A member whose name spells several segments of a column.
    #[error(
        "the member name at byte {at} may be a flattened spelling of {column} (add it to the policy as a quoted path if it is a column of its own)"
    )]
    FlattenedName {
        /// Canonical path of the column, or of another one beside it.
        column: Arc<str>,
        /// Byte offset in the record.
        at: usize,
    },
    /// A member name beside or on the way to a column that parsers read differently: half a surrogate pair, or
    /// U+0000.
    #[error("the member name at byte {at} holds half a surrogate pair or U+0000")]
    AmbiguousName {
        /// Byte offset in the record.
        at: usize,
    },
}

impl Unlocatable {
    /// The code in dead letters and metrics; never changes.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge => "record-too-large",
            Self::Empty => "empty-record",
            Self::ByteOrderMark => "byte-order-mark",
            Self::InvalidUtf8 { .. } => "invalid-utf8",
            Self::Truncated { .. } => "truncated-json",
            Self::InvalidJson { .. } => "invalid-json",
            Self::ControlCharacter { .. } => "control-character",
            Self::InvalidEscape { .. } => "invalid-escape",
            Self::TrailingBytes { .. } => "trailing-bytes",
            Self::TooDeep { .. } => "too-deep",
            Self::TooManyValues => "too-many-values",
            Self::WrongType { .. } => "wrong-type",
            Self::FlattenedName { .. } => "flattened-name",
            Self::AmbiguousName { .. } => "ambiguous-name",
        }
    }
}

impl From<Fault> for Unlocatable {
    fn from(Fault { at, what }: Fault) -> Self {
        match what {
            FaultKind::Truncated => Self::Truncated { at },
            FaultKind::Unexpected => Self::InvalidJson { at },
            FaultKind::ControlCharacter => Self::ControlCharacter { at },
            FaultKind::BadEscape => Self::InvalidEscape { at },
            FaultKind::TooDeep => Self::TooDeep { at },
        }
    }
}
