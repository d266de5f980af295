//! What goes wrong when a topic is landed. No error holds a value.

use crate::pipeline::{StopKind, TransformError};

/// Why a partition cannot go on being landed. Nothing was overwritten, and nothing was committed that is not durable.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LandingError {
    /// A topic whose name cannot be part of a folder's name.
    #[error("topic {topic} cannot be landed: its name is no part of a path, or is longer than 190 bytes")]
    Topic {
        /// Its name.
        topic: String,
    },
    /// An intent that this version cannot follow.
    #[error("the intent {path} {what}")]
    Intent {
        /// Its path in the catalogue.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Another file stands where one of this pipeline belongs.
    #[error("{path} is not the file that the intent {intent} names")]
    OtherFile {
        /// The file.
        path: String,
        /// The intent.
        intent: String,
    },
    /// The committed offset is in the midst of what an intent has landed: rows would be written twice.
    #[error("{topic}/{partition}: offset {offset} is within [{start}, {end}), which are landed together already")]
    Inside {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// Where reading was to begin.
        offset: i64,
        /// Begin of the stretch.
        start: i64,
        /// Its end.
        end: i64,
    },
    /// The source does not hold the records any more that an intent's missing file is of.
    #[error(
        "{topic}/{partition}: {path} is missing, and of the records in [{start}, {end}) that it is of the source holds {found} and not {rows}"
    )]
    SourceChanged {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// The file.
        path: String,
        /// Begin of the stretch.
        start: i64,
        /// Its end.
        end: i64,
        /// How many there were.
        rows: u64,
        /// How many there are.
        found: u64,
    },
    /// A record that no file of an intent is of: the source is not what it was.
    #[error("{topic}/{partition}/{offset} is in none of the files of the intent {intent}, which it was read for")]
    Unplanned {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// Offset.
        offset: i64,
        /// The intent.
        intent: String,
    },
    /// Records that came out of order: a bug of ours.
    #[error("{topic}/{partition}/{offset} came out of order")]
    Order {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// Offset.
        offset: i64,
    },
    /// A step that was not asked for was answered: a bug of ours.
    #[error("landing was told of something that it had not asked for")]
    Step,
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandomness,
}

impl LandingError {
    /// Who can mend it.
    #[must_use]
    pub fn kind(&self) -> StopKind {
        match self {
            Self::Topic { .. } => StopKind::Config,
            Self::Intent { .. }
            | Self::OtherFile { .. }
            | Self::Inside { .. }
            | Self::SourceChanged { .. }
            | Self::Unplanned { .. } => StopKind::Data,
            Self::Order { .. } | Self::Step => StopKind::Internal,
            Self::NoRandomness => StopKind::Unavailable,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Topic { .. } => "land a topic of a shorter name",
            Self::Intent { .. } => "another or a newer pipeline wrote it: give this one another name, or upgrade",
            Self::OtherFile { .. } => {
                "two pipelines write one dataset at one location: give one of them a location of its own, and take the other's file away"
            }
            Self::Inside { .. } => "set the group's offset to the begin or the end of that stretch, then start again",
            Self::SourceChanged { .. } | Self::Unplanned { .. } => {
                "nothing was overwritten: bring the records or the file back; if both are lost, docs/operations.md says how to go on without them"
            }
            Self::Order { .. } | Self::Step => {
                "this is a bug of ours: nothing was written twice; please report it with the log"
            }
            Self::NoRandomness => "check the machine",
        }
    }
}

impl From<LandingError> for TransformError {
    fn from(error: LandingError) -> Self {
        Self::Stop {
            kind: error.kind(),
            reason: error.to_string(),
            help: error.help().to_owned(),
        }
    }
}

/// Why a file could not be written, or looked for.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{reason}")]
pub struct StoreError {
    /// What happened and where.
    pub reason: String,
    /// What to do about it.
    pub help: String,
    /// Who can mend it; `None` if it is worth another try.
    pub kind: Option<StopKind>,
}

impl From<StoreError> for TransformError {
    fn from(error: StoreError) -> Self {
        match error.kind {
            None => Self::Retry { reason: error.reason },
            Some(kind) => Self::Stop {
                kind,
                reason: error.reason,
                help: error.help,
            },
        }
    }
}
