//! The `audit:` section of a configuration, and the log that it asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use schemars::JsonSchema;
use sealflow::audit::{AuditError, AuditLog, Sealing};
use sealflow::clock::Clock;
use sealflow::jose::PrivateJwk;
use sealflow::jose::jwk::MAX_JWK_BYTES;
use sealflow::units::Span;
use serde::Deserialize;

use crate::file::{Checkpoints, LogFile};
use crate::writer::{LineSink, Output, Writer};

/// The audit log: where each decision is written before anything is opened.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// Where the lines go.
    pub to: To,
    /// The file, with `to: file`. It is made with mode 0600 if it is not there, and one process writes it at a time.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The topic, with `to: topic`. Every process begins a chain of its own in it.
    #[serde(default)]
    pub topic: Option<AuditTopic>,
    /// The audit key that signs checkpoints: a private Ed25519 JWK, as `sealflow policy keygen` makes it.
    pub key: PathBuf,
    /// The second place of the checkpoints: a file that whoever may write the log may not write, best on another disk or host.
    pub checkpoints: PathBuf,
    /// A checkpoint after so many lines at the latest.
    #[serde(default = "every")]
    #[schemars(range(min = 1))]
    pub every: u64,
    /// A checkpoint so long after the last at the latest, if there are new lines.
    #[serde(default = "span")]
    pub span: Span,
    /// What this process is called in the log; by default the name of the host is not looked up and none is written.
    #[serde(default)]
    pub name: Option<String>,
}

/// A topic for audit lines, which has to be there.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditTopic {
    /// `host:port` of one or more brokers, separated by commas.
    pub brokers: String,
    /// Its name.
    pub name: String,
    /// librdkafka properties: how to connect.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// Properties may hold secrets.
impl fmt::Debug for AuditTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditTopic")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum To {
    /// A file, synced before anything is answered.
    File,
    /// Standard output, for a collector: durable is what it took, which may not be a disk.
    Stdout,
    /// A topic: durable is what every in-sync replica has.
    Topic,
}

fn every() -> u64 {
    1_000
}

fn span() -> Span {
    Span(Duration::from_secs(60))
}

impl AuditConfig {
    /// Opens the log: goes on with the chain of the file, or begins one. Nothing else may write to it meanwhile.
    ///
    /// # Errors
    /// [`AuditError`]; then nothing may be opened.
    pub fn open(&self, clock: Arc<dyn Clock>) -> Result<Arc<dyn AuditLog>, AuditError> {
        self.open_with(clock, None)
    }

    /// As [`open`](Self::open); with `to: topic` the lines go to `topic`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        &self,
        clock: Arc<dyn Clock>,
        topic: Option<Box<dyn LineSink>>,
    ) -> Result<Arc<dyn AuditLog>, AuditError> {
        if self.topic.is_some() && self.to != To::Topic {
            return Err(refused(Path::new("topic"), "only `to: topic` takes a `topic`"));
        }
        let sealing = Sealing {
            key: Arc::new(self.key()?),
            every: self.every.max(1),
            span: self.span.0,
        };
        // Several processes write to one topic, each a chain of its own, and may share the second place.
        let checkpoints = Checkpoints::open(&self.checkpoints, self.to == To::Topic)?;
        let output = match (self.to, &self.path) {
            (To::Topic, None) => {
                let nowhere = || refused(Path::new("topic"), "`to: topic` needs a `topic`");
                Output::Elsewhere(topic.ok_or_else(nowhere)?)
            }
            (To::Topic, Some(path)) => return Err(refused(path, "`to: topic` takes no `path`")),
            (To::File, Some(path)) if *path == self.checkpoints => {
                return Err(refused(path, "log and checkpoints are one file"));
            }
            (To::File, Some(path)) => Output::File(LogFile::open(path)?),
            (To::File, None) => return Err(refused(Path::new("file"), "`to: file` needs a `path`")),
            (To::Stdout, None) => Output::Stdout,
            (To::Stdout, Some(path)) => return Err(refused(path, "`to: stdout` takes no `path`")),
        };
        let writer = Writer::start(output, checkpoints, self.name.clone(), sealing, clock)?;
        Ok(Arc::new(writer))
    }

    fn key(&self) -> Result<PrivateJwk, AuditError> {
        let refuse = |reason: String| refused(&self.key, format_args!("its key: {reason}"));
        let failed = |error: std::io::Error| refuse(error.to_string());
        // A pipe would block, and has no end.
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let file = options.open(&self.key).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(refuse("no regular file".to_owned()));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(refuse(
                "others may read it, and could sign checkpoints (chmod 600)".to_owned(),
            ));
        }
        let mut json = Vec::with_capacity(MAX_JWK_BYTES + 1);
        file.take(MAX_JWK_BYTES as u64 + 1)
            .read_to_end(&mut json)
            .map_err(failed)?;
        if json.len() > MAX_JWK_BYTES {
            return Err(refuse("too large for a key".to_owned()));
        }
        let key = PrivateJwk::from_json(&json).map_err(|error| refuse(error.to_string()));
        // Wiped: it held the private key.
        drop(sealflow::secret::SecretBytes::new(std::mem::take(&mut json)));
        key
    }
}

pub(crate) fn refused(path: &Path, reason: impl fmt::Display) -> AuditError {
    AuditError::Refused {
        to: path.display().to_string(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_audit_section_may_say_is_what_is_known_and_nothing_that_guards_is_left_out() {
        let good = r#"{"to":"file","path":"a.log","key":"audit.key","checkpoints":"b.log"}"#;
        let config: AuditConfig = serde_json::from_str(good).unwrap();
        assert_eq!((config.every, config.span.0), (1_000, Duration::from_secs(60)));
        for bad in [
            r#"{"to":"file","path":"a.log","key":"audit.key"}"#,
            r#"{"to":"file","path":"a.log","checkpoints":"b.log"}"#,
            r#"{"to":"file","path":"a.log","key":"k","checkpoints":"b.log","sync":false}"#,
            r#"{"to":"nowhere","key":"k","checkpoints":"b.log"}"#,
        ] {
            assert!(serde_json::from_str::<AuditConfig>(bad).is_err(), "{bad}");
        }
    }
}
