//! The audit log: who was let at what, as hash-chained lines with signed checkpoints. Pure: it writes no file and sends
//! nothing; what makes lines durable implements [`AuditLog`] in the connectors.
//!
//! Each decision is one [`Event`], never with a value in it. A [`Journal`] makes its line; a [`Verifier`]
//! finds what was removed, edited, inserted, put in another order or cut off, as far as the checkpoints reach.

pub mod checkpoint;
mod event;
mod fault;
mod journal;
pub mod line;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod verify;
#[cfg(test)]
mod verify_tests;

use async_trait::async_trait;

pub use checkpoint::Checkpoint;
pub use event::{Event, Place, Proof, Verdict};
pub use fault::{Break, Fault};
pub use journal::{Journal, Lines, Sealing};
pub use line::{Body, InstanceId, Line, LineError, LineHash};
pub use verify::{ChainReport, Report, Verifier};

/// Where the lines of an audit log go.
///
/// Whoever opens values answers nothing before [`record`](Self::record) has returned `Ok`: what cannot be written down
/// does not happen.
#[async_trait]
pub trait AuditLog: Send + Sync {
    /// Writes the events down, in their order. Returns when their lines are durable: on disk, or acknowledged by every
    /// in-sync replica. May be called concurrently; lines of one call are not mixed with those of another.
    ///
    /// # Errors
    /// [`AuditError`]: it is not known whether the lines are durable, and the caller must answer nothing.
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError>;

    /// Ends the log with a last checkpoint. Recording fails from here on. Dropping a log without it loses no line, but
    /// the lines after the last checkpoint could be cut off without a trace.
    ///
    /// # Errors
    /// [`AuditError`]
    async fn close(&self) -> Result<(), AuditError> {
        Ok(())
    }
}

/// Why events were not written down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The place did not take them: a full disk, a broker that does not answer.
    #[error("the audit log {to} cannot be written: {reason}")]
    Write {
        /// The file or topic.
        to: String,
        /// The operating system's or the broker's reason.
        reason: String,
    },
    /// It was closed, or an earlier failure left it in a state in which it takes nothing any more.
    #[error("the audit log {to} takes no more lines: {reason}")]
    Closed {
        /// The file or topic.
        to: String,
        /// Why.
        reason: String,
    },
    /// What is already there is no audit log that could be continued.
    #[error("the audit log {to} cannot be continued: {reason}")]
    NotContinuable {
        /// The file or topic.
        to: String,
        /// Why.
        reason: String,
    },
    /// It was asked for in a way that is refused: a symbolic link, another owner, a key that is none.
    #[error("the audit log {to} is refused: {reason}")]
    Refused {
        /// The file or topic.
        to: String,
        /// Why.
        reason: String,
    },
    /// The operating system gave no random numbers for the name of a chain.
    #[error("the operating system gives no random numbers")]
    NoRandom,
}

impl AuditError {
    /// Whether the same call can succeed later without anybody changing anything but the disk or the brokers.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Write { .. })
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Write { .. } => "make room on the disk, or bring the brokers back; until then nothing is opened",
            Self::Closed { .. } => "restart the process once the cause is mended",
            Self::NotContinuable { .. } => {
                "look at it with `sealflow audit verify`, then move log and checkpoints away together, and keep both; new ones begin a new chain"
            }
            Self::Refused { .. } => "check path, owner and mode of the file, and the key",
            Self::NoRandom => "check /dev/urandom and the limits of the sandbox",
        }
    }
}
