//! Fields of JSON records: found, taken out as columns, spliced back, every other byte untouched.
//!
//! [`Locator`] finds the byte ranges of a policy's columns in a record, [`json`] turns the JSON text there
//! into plaintext encodings and back ([`coerce()`] does so for domains), [`splice`] puts sealed values in its
//! place. `arrow` maps Arrow arrays onto the same encodings. No keys, no sealing, no I/O here.

#[cfg(feature = "arrow")]
pub mod arrow;
mod coerce;
pub(crate) mod grammar;
#[cfg(feature = "locator-index")]
mod indexed;
#[cfg(all(test, feature = "locator-index"))]
mod indexed_tests;
pub mod json;
mod last4;
pub mod lines;
mod locate;
mod member;
mod number;
mod paths;
#[cfg(feature = "testing")]
pub mod testing;
mod unlocatable;

pub use coerce::{CannotCoerce, coerce};
pub use grammar::MAX_DEPTH;
pub use last4::{LAST4_SHORTEST, last4};
#[cfg(feature = "table")]
pub(crate) use locate::check_encoding;
pub use locate::{FieldHit, Found, Hit, Locator, splice};
pub use member::member_range;
pub use number::MAX_DIGITS;
pub use paths::LocatorError;
pub use unlocatable::{MAX_HITS, Unlocatable};

/// Has a record fetched into the cache that is going to be looked into next.
#[cfg(feature = "locator-index")]
pub(crate) use sealflow_json_index::prefetch;

/// Without the index the twin is slower than memory.
#[cfg(not(feature = "locator-index"))]
pub(crate) fn prefetch(_record: &[u8]) {}
