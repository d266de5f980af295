//! Sealed values: a column of plaintext encodings in, a column of ciphertexts out, and back.
//!
//! The formats are those of `docs/format.md`. This room holds no policy, fetches no key and knows no JSON.

pub mod column;
pub mod plaintext;

pub use column::{ByteColumn, ColumnError, PlainColumn, SealedColumn};
pub use plaintext::{Plaintext, PlaintextError};
