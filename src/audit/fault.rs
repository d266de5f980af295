//! What can be wrong with an audit log, and where.

use std::fmt;

use super::checkpoint::CheckpointError;
use super::line::{InstanceId, LineError};
use crate::jose::Thumbprint;

/// A place at which a log is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Break {
    /// Number of the line in the log, from 1; `None`: what is missing at the end, or stands in the checkpoints alone.
    pub line: Option<u64>,
    /// The chain, where it is known.
    pub instance: Option<InstanceId>,
    /// The line's number in its chain, where it is known.
    pub seq: Option<u64>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Not a line of an audit log: edited, or of something else.
    NotALine(LineError),
    /// The first line of a chain that is here does not begin it.
    NoBeginning,
    /// A line that begins a chain stands within one, or number 0 does not begin it.
    Misplaced,
    /// Lines are missing before this one.
    Missing {
        /// Number of the first that is missing.
        expected: u64,
    },
    /// A line that was here before, or comes too late.
    OutOfOrder {
        /// The number that was due.
        expected: u64,
    },
    /// It does not go on from the line before it: that one was edited, or this one put in its place.
    OtherPrevious {
        /// Number of that line in the log.
        previous: u64,
    },
    /// A checkpoint that is none.
    BadCheckpoint {
        /// Number in the checkpoints, if it stands there.
        at: Option<u64>,
        /// Why.
        error: CheckpointError,
    },
    /// A checkpoint of a key that is not trusted.
    UntrustedCheckpoint {
        /// Number in the checkpoints, if it stands there.
        at: Option<u64>,
        /// The key.
        signer: Thumbprint,
    },
    /// A checkpoint in the log that vouches for another line than the one before it.
    OtherCheckpoint,
    /// Not the line that a checkpoint vouches for: it, or one before it, was replaced.
    Replaced {
        /// Number in the checkpoints.
        at: u64,
    },
    /// Two checkpoints vouch for different lines of one number: the log was cut off once, and went on from there.
    Contradiction {
        /// Number of the later one in the checkpoints.
        at: u64,
    },
    /// The tail was cut off: a checkpoint lies beyond the end.
    Truncated {
        /// Number of the last line that is here; `None`: the whole chain is gone.
        last: Option<u64>,
        /// Number of the checkpoint.
        at: u64,
    },
    /// No checkpoint of a trusted key vouches for anything in this chain.
    Unvouched,
    /// More chains or checkpoints than can be looked at in one go.
    TooMany,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}")?,
            None => f.write_str("the end")?,
        }
        if let Some(seq) = self.seq {
            write!(f, " (number {seq}")?;
            if let Some(instance) = self.instance {
                write!(f, " of {instance}")?;
            }
            f.write_str(")")?;
        } else if let Some(instance) = self.instance {
            write!(f, " (of {instance})")?;
        }
        write!(f, ": {}", self.fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotALine(error) => write!(f, "edited, or no audit line: {error}"),
            Self::NoBeginning => f.write_str("the lines before this one are missing: it does not begin its chain"),
            Self::Misplaced => {
                f.write_str("a chain begins where one is under way, or does not begin with its first line")
            }
            Self::Missing { expected } => write!(f, "lines are missing before it: number {expected} was due"),
            Self::OutOfOrder { expected } => {
                write!(f, "it stands here a second time or too late: number {expected} was due")
            }
            Self::OtherPrevious { previous } => {
                write!(
                    f,
                    "it does not go on from line {previous}: that one was edited, or this one put in its place"
                )
            }
            Self::BadCheckpoint { at, error } => write!(f, "{} is none: {error}", Checkpoint(*at)),
            Self::UntrustedCheckpoint { at, signer } => {
                write!(f, "{} is signed by key {signer}, which is not trusted", Checkpoint(*at))
            }
            Self::OtherCheckpoint => f.write_str("the checkpoint vouches for another line than the one before it"),
            Self::Replaced { at } => {
                write!(
                    f,
                    "not the line that checkpoint {at} vouches for: it, or one before it, was replaced"
                )
            }
            Self::Contradiction { at } => write!(
                f,
                "checkpoint {at} and an earlier one vouch for different lines: the log was cut off once and went on from there"
            ),
            Self::Truncated { last: Some(last), at } => {
                write!(
                    f,
                    "cut off: checkpoint {at} lies beyond number {last}, the last that is here"
                )
            }
            Self::Truncated { last: None, at } => {
                write!(
                    f,
                    "cut off: checkpoint {at} vouches for a chain of which nothing is here"
                )
            }
            Self::Unvouched => f.write_str("no checkpoint of a trusted key vouches for this chain"),
            Self::TooMany => f.write_str("more chains or checkpoints than can be verified in one go"),
        }
    }
}

/// How a checkpoint is called: in the log, or by its number in the second place.
struct Checkpoint(Option<u64>);

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "checkpoint {number}"),
            None => f.write_str("the checkpoint"),
        }
    }
}
