//! Sealed values: a column of plaintext encodings in, a column of ciphertexts out, and back.
//!
//! The formats are those of `docs/format.md`. This room holds no policy, fetches no key and knows no JSON.

mod aad;
pub mod column;
mod deterministic;
mod hint;
mod kek;
mod key;
mod opening;
pub mod plaintext;
mod randomised;
mod usage;
pub mod value;
mod wiped;

pub use aad::RowId;
pub use column::{ByteColumn, ColumnError, PlainColumn, SealedColumn};
pub use deterministic::{DeterministicOpener, DomainKey};
pub use hint::HintKey;
#[cfg(feature = "table")]
pub(crate) use kek::unwrap_foreign;
pub use kek::{UnwrappingKey, WrappedKey, WrappingKey};
pub use key::{DATA_KEY_LEN, DOMAIN_SECRET_LEN, KeyId, KeyIdError};
pub use opening::{OpenedColumn, OpeningKey, RandomisedOpener};
pub use plaintext::{Plaintext, PlaintextError, TimeUnit};
pub use randomised::{ColumnContext, SealingKey};
pub use usage::{LimitReached, UsageLimits, Used};
pub use value::{NotSealed, SealedValue};

/// Why a column could not be sealed. Nothing of it was released.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SealError {
    /// The data key has no room for this batch: take the next key.
    #[error("the data key has reached its usage limit")]
    LimitReached,
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandomness,
    /// The key was made by another process (this one is a `fork` of it).
    #[error("the data key belongs to another process")]
    OtherProcess,
    /// The key service returned key material of the wrong length.
    #[error("key material of the wrong length")]
    KeyLength,
    /// One row id per value is needed.
    #[error("a bound column needs one row id per value")]
    RowsMismatch,
    /// A value or column beyond what the format carries.
    #[error("a value is too large to seal")]
    TooLarge,
    /// The column's parts do not fit together.
    #[error(transparent)]
    Column(#[from] ColumnError),
}

/// A value that does not open. One error for all causes, so that it tells an attacker nothing.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the sealed value does not open")]
pub struct OpenError;
