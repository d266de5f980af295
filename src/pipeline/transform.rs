//! What happens to records between source and sink.

use async_trait::async_trait;

use super::record::Record;

/// Target of the spans that a batch leaves behind (`batch`, `read`, `transform`, `locate`, `fetch_keys`, `seal`, `open`,
/// `transaction`, `produce`, `commit`). Their fields are counts and codes, never a value.
pub const SPANS: &str = "sealflow::spans";

/// Where an outcome goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the target, at the same partition number.
    Target,
    /// To the dead letters, sealed whole.
    DeadLetter,
    /// To a folder, as a dead letter that is larger than its topic takes. No transform answers so; the sink
    /// decides it.
    Oversize,
}

/// What became of one record.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Where it goes.
    pub route: Route,
    /// What is written there; its position is that of the record it came from.
    pub record: Record,
}

/// Turns a batch of records into outcomes, in the same order.
///
/// A transform holds no state between batches that a repeat would notice: after an error or an abort the
/// caller hands the same records in again.
#[async_trait]
pub trait Transform: Send + Sync {
    /// One outcome per record for the first k >= 1 of `records`, in order: as many as its limit of output has
    /// room for. The caller hands the others in again. An error means that *nothing* of the batch may leave.
    async fn apply(&self, records: &[Record]) -> Result<Vec<Outcome>, TransformError>;

    /// Dead letters with `code`, without a look at the records: the target does not take what they become.
    /// A prefix, as `apply`. The default is for transforms that make no dead letters.
    async fn refuse(&self, records: &[Record], code: &'static str) -> Result<Vec<Outcome>, TransformError> {
        let position = records.first().map(|record| record.position.to_string());
        Err(TransformError::Stop {
            kind: StopKind::Data,
            reason: format!("record {} cannot be set aside ({code})", position.unwrap_or_default()),
            help: "raise max.message.bytes of the target topic".to_owned(),
        })
    }
}

#[async_trait]
impl Transform for std::sync::Arc<dyn Transform> {
    async fn apply(&self, records: &[Record]) -> Result<Vec<Outcome>, TransformError> {
        (**self).apply(records).await
    }

    async fn refuse(&self, records: &[Record], code: &'static str) -> Result<Vec<Outcome>, TransformError> {
        (**self).refuse(records, code).await
    }
}

/// The outcomes of all `records`, piece after piece. They are held together, so this is for few records.
///
/// # Errors
/// The first of a piece.
pub async fn apply_all(transform: &dyn Transform, records: &[Record]) -> Result<Vec<Outcome>, TransformError> {
    let mut all = Vec::new();
    while all.len() < records.len() {
        let rest = &records[all.len()..];
        let mut outcomes = transform.apply(rest).await?;
        check_prefix(outcomes.len(), rest.len())?;
        match all.is_empty() {
            true => all = outcomes,
            false => all.append(&mut outcomes),
        }
    }
    Ok(all)
}

/// Whether a transform that was given `records` may have answered with `outcomes`.
///
/// # Errors
/// If not, as a bug of the transform.
pub fn check_prefix(outcomes: usize, records: usize) -> Result<(), TransformError> {
    if (1..=records).contains(&outcomes) {
        return Ok(());
    }
    Err(TransformError::bug(
        "a transform answered with too few or too many outcomes",
    ))
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
    /// A file of ours, or the disk below it.
    Io,
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
