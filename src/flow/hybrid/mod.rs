//! The hybrid flow: clients seal values with JOSE, the backend opens them and seals them again as in the direct flow.
//!
//! A client makes a key for a session, wraps it once to an RSA key whose private half only KMS has (or the host holds, as KMS
//! gave it), and seals its values under that key. [`ClientKeys`] has each session unwrapped once; [`values`] says what a value
//! must say of itself. Where a policy wants to know which client sealed a value, [`MacKeys`] has the clients' HMAC keys, and
//! where each value counts once, a [`taken::TakenMemory`] knows which were taken.
//! Who reads has a key pair too, to whose public half an [`AnswerKey`] seals.

mod answers;
mod client_keys;
mod held_pairs;
mod mac_keys;
pub mod taken;
pub mod values;

pub use answers::AnswerKey;
pub use client_keys::{ClientKeyError, ClientKeys, MAX_SESSION_BYTES};
pub use mac_keys::{Derived, MacKeys, client_secret, key_message};
