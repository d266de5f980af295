//! How large a record and a batch may become: the bound of what a transform holds and answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::Rejection;
use crate::units::ByteSize;

/// Code of records that are larger than the target takes, or than [`OutputLimits::record`].
pub const TOO_LARGE: &str = "too-large";

/// Most bytes that records may become. Sealing makes a value of one digit seventy bytes long, and padding more:
/// without these limits a few megabytes read would be hundreds of megabytes to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputLimits {
    /// A batch that becomes larger is sealed and written in pieces of this size.
    pub batch: ByteSize,
    /// A record that is or becomes larger is not sealed: it becomes a dead letter, `too-large`.
    pub record: ByteSize,
}

impl OutputLimits {
    /// For files, whose records nobody else has to take.
    pub const FILES: Self = Self {
        batch: ByteSize(8 << 20),
        record: ByteSize(1 << 30),
    };
}

impl Default for OutputLimits {
    fn default() -> Self {
        Self {
            batch: ByteSize(8 << 20),
            record: ByteSize(16 << 20),
        }
    }
}

pub(super) fn too_large() -> Rejection {
    Rejection::new(TOO_LARGE, "sealed, it would be larger than output.record allows")
}

pub(super) fn too_large_unread() -> Rejection {
    Rejection::new(TOO_LARGE, "it is larger than output.record allows")
}
