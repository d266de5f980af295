//! Records on their way: what a source hands over, what a transform makes of it, where it goes.
//!
//! This module knows no broker: connectors implement the reading and writing around [`Transform`].

mod assemble;
pub mod batch;
mod by_worker;
mod client_proofs;
mod client_values;
pub mod counters;
pub mod dead_letter;
mod decisions;
mod edits;
mod extract;
mod few;
mod for_enclave;
mod hints;
mod jobs;
mod open;
mod open_columns;
mod opener;
mod output;
mod plan;
mod pool;
mod read;
mod read_column;
mod read_values;
mod recipient;
pub mod record;
mod refusals;
mod replay;
mod seal;
mod set_aside;
pub mod transform;
mod travelling;

pub use batch::{BatchLimits, Collector};
pub use by_worker::{ForWorker, WorkerAnswer, WorkerDecision, WorkerQuestion};
pub use client_proofs::Clients;
pub use counters::Counters;
pub use dead_letter::DeadLetter;
pub use decisions::{ColumnDecision, ColumnOutcome, Withheld};
pub use open::OpenTransform;
pub use output::{OutputLimits, TOO_LARGE};
pub use plan::Format;
pub use read::{ENCLAVE_ONLY, EnclaveColumns, KEY_REFUSED, ReadError, Reader, Reading};
pub use read_column::{OpenedCells, SealedCells};
pub use read_values::{OpenedValues, SealedText};
pub use recipient::sealed_to;
pub use record::{Header, Headers, Position, Record, Timestamp};
pub use replay::{LetterFilter, LetterOpener, ReplayTransform};
pub use seal::{KeysPlacement, SealTransform, TransformCounters};
#[cfg(feature = "table")]
pub(crate) use set_aside::from_direct;
pub use transform::{Outcome, Route, SPANS, StopKind, Transform, TransformError, apply_all, check_prefix};
