//! The hybrid flow: clients seal values with JOSE, the backend opens them and seals them again as in the direct flow.
//!
//! A client makes a key for a session, wraps it once to an RSA key whose private half only KMS has (or the host holds, as KMS
//! gave it), and seals its values under that key. [`ClientKeys`] has each session unwrapped once; [`values`] says what a value must say of itself.
//! Who reads has a key pair too, to whose public half an [`AnswerKey`] seals.

mod answers;
mod client_keys;
mod held_pairs;
pub mod values;

pub use answers::AnswerKey;
pub use client_keys::{ClientKeyError, ClientKeys, MAX_SESSION_BYTES};
