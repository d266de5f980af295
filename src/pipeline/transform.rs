//! What happens to records between source and sink.

use async_trait::async_trait;

use super::record::Record;

/// Where an outcome goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the target, at the same partition number.
    Target,
    /// To the dead letters, sealed whole.
    DeadLetter,
}

/// What became of one record.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Where it goes.
    pub route: Route,
    /// What is written there; its position is that of the record it came from.
    pub record: Record,
}

/// Turns a batch of records into as many outcomes, in the same order.
///
/// A transform holds no state between batches that a repeat would notice: after an error or an abort the
/// caller hands the same records in again.
#[async_trait]
pub trait Transform: Send + Sync {
    /// One outcome per record, in order. An error means that *nothing* of the batch may leave.
    async fn apply(&self, records: Vec<Record>) -> Result<Vec<Outcome>, TransformError>;
}

/// Why a whole batch could not be transformed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransformError {
    /// Keys, catalogue or another service are away: wait, then hand the same batch in again.
    #[error("waiting for a service: {reason}")]
    Retry {
        /// What is away, without secrets.
        reason: String,
    },
    /// Going on would break a guarantee: stop the pipeline.
    #[error("{reason}")]
    Stop {
        /// Whose fault it is.
        kind: StopKind,
        /// What happened and where, never a value.
        reason: String,
        /// What to do about it.
        help: String,
    },
}

/// Why a pipeline stops, by who can mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopKind {
    /// The data: a record that cannot be processed and has nowhere to go.
    Data,
    /// Policy or configuration.
    Config,
    /// The key service refuses us.
    NotPermitted,
    /// A service gave an answer that cannot be used.
    Unavailable,
    /// A bug of ours.
    Internal,
}

impl TransformError {
    /// A broken invariant: stop rather than write something wrong.
    pub(crate) fn bug(what: &str) -> Self {
        Self::Stop {
            kind: StopKind::Internal,
            reason: format!("internal error: {what}"),
            help: "this is a bug of ours: nothing was written; please report it".to_owned(),
        }
    }
}
