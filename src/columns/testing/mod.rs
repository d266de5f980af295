//! For tests only: a search for plaintext in every spelling, the leak corpus, and checks against an
//! independent JSON parser.

mod canary;
mod corpus;
mod differential;

pub use canary::{Canary, contains_canary};
pub use corpus::{CORPUS_CANARY, CORPUS_CANARY_NUMBER, Case, Expect, parse_index};
pub use differential::{check_json_value, check_locate};
