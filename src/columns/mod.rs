//! Fields of JSON records: found, taken out as columns, spliced back, every other byte untouched.
//!
//! [`Locator`] finds the byte ranges of a policy's columns in a record, [`splice`] puts sealed values in
//! their place. No keys, no sealing, no I/O here.

mod grammar;
pub mod lines;
mod locate;
mod paths;

pub use grammar::MAX_DEPTH;
pub use locate::{FieldHit, Found, Hit, Locator, MAX_HITS, Unlocatable, splice};
pub use paths::LocatorError;
