//! The `.sfkeys` file beside a sealed file: the envelopes of all data keys that it needs, one a line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sealflow::keys::Envelope;
use sealflow::keys::envelope::read_header;
use sealflow::pipeline::Outcome;

use super::stream::envelopes;
use crate::failure::{Exit, Failure, Result};
use crate::files::{self, Access};

/// A file sealed for many tenants has about 600 bytes for each of their keys.
const MAX_BYTES: u64 = 256 << 20;

/// Reads a sidecar's text.
pub(crate) fn read(path: &Path) -> Result<String> {
    files::read_text_up_to(path, MAX_BYTES)
}

/// A sidecar that is being collected.
pub(crate) struct Sidecar {
    path: PathBuf,
    lines: BTreeSet<String>,
    seen: BTreeSet<Vec<u8>>,
    dirty: bool,
}

impl Sidecar {
    /// A sidecar at `path`. Lines that are there stay: they may belong to another file, or to the one that is replaced.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let lines = if path.exists() {
            read(path)?.lines().map(str::to_owned).collect()
        } else {
            BTreeSet::new()
        };
        Ok(Self {
            path: path.to_owned(),
            lines,
            seen: BTreeSet::new(),
            dirty: true,
        })
    }

    /// The default place: the file's name and `.sfkeys`.
    pub(crate) fn beside(file: &Path) -> PathBuf {
        let mut name = file.as_os_str().to_owned();
        name.push(".sfkeys");
        name.into()
    }

    /// Adds the envelopes of sealed records.
    pub(crate) fn add(&mut self, outcomes: &[Outcome]) -> Result<()> {
        for header in outcomes.iter().flat_map(|outcome| envelopes(&outcome.record)) {
            // Records of one batch mostly share one header.
            if !self.seen.insert(header.to_vec()) {
                continue;
            }
            let ours = |error| {
                Failure::new(
                    Exit::Internal,
                    format_args!("a key envelope of our own: {error}"),
                    "report this",
                )
            };
            for bytes in read_header(header).map_err(ours)? {
                let text = Envelope::from_bytes(bytes)
                    .and_then(|envelope| envelope.to_text())
                    .map_err(ours)?;
                self.dirty |= self.lines.insert(text);
            }
        }
        Ok(())
    }

    /// Writes the file, whole, if it changed.
    pub(crate) fn save(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        let text: String = self.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        files::write_new(&self.path, text.as_bytes(), Access::Shared, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_of_many_keys_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sfkeys");
        let text: String = (0..4_000).map(|n| format!("sfk1.{n:0600}\n")).collect();
        std::fs::write(&path, &text).unwrap();
        let mut sidecar = Sidecar::at(&path).unwrap();
        sidecar.save().unwrap();
        assert!(read(&path).unwrap() == text);
    }
}
