//! A file for lines that another program makes and signs, such as an enclave's worker. Several processes may append to it.

use std::path::Path;

use sealflow::audit::{AuditError, Line};

use crate::file::{Appended, FIRST_LINE, not_continuable};

/// A log of which this process only keeps the lines: it makes none, and signs none.
#[derive(Debug)]
pub struct SharedLog(Appended);

impl SharedLog {
    /// Opens the file, or makes it, with mode 0600.
    ///
    /// # Errors
    /// [`AuditError`] for what is no regular file of this user, and for a file that holds something else.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let mut file = Appended::open(path, true)?;
        let mut first = Vec::with_capacity(FIRST_LINE.len());
        let read = file.read_first(&mut first);
        read.map_err(|error| not_continuable(path, error))?;
        if !FIRST_LINE.starts_with(&first) {
            return Err(not_continuable(path, "it is no audit log"));
        }
        file.cut_torn()?;
        file.give_back(path)?;
        Ok(Self(file))
    }

    /// Appends a line, given without its end, which is durable when this returns `Ok`. If it cannot be written, nothing of it stays.
    /// Blocks.
    ///
    /// # Errors
    /// [`AuditError`], also for what is no line of an audit log.
    pub fn append(&mut self, line: &[u8]) -> Result<(), AuditError> {
        let line = Line::parse(line).map_err(|error| AuditError::Write {
            to: self.0.name(),
            reason: format!("what was to be written is no line of an audit log: {error}"),
        })?;
        // What parses is spelled in one way.
        self.0.append(&format!("{}\n", line.to_text()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use std::sync::Arc;
    use std::time::Duration;

    use sealflow::audit::{InstanceId, Journal, Sealing, Verifier};
    use sealflow::clock::UnixMillis;
    use sealflow::jose::PrivateJwk;

    use super::*;

    /// The first lines of some chain, and of whose key.
    fn chain(key: &Arc<PrivateJwk>) -> Vec<String> {
        let sealing = Sealing {
            key: key.clone(),
            every: 1,
            span: Duration::MAX,
        };
        let now = UnixMillis(1_800_000_000_000);
        let (mut journal, start) = Journal::start(InstanceId::random().unwrap(), None, sealing, now).unwrap();
        let end = journal.end(now).unwrap();
        [start.lines, end.lines].concat()
    }

    #[test]
    fn several_processes_keep_lines_of_chains_of_their_own_and_what_a_crash_left_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("enclave.jsonl");
        let key = Arc::new(PrivateJwk::generate().unwrap());
        let (first, second) = (chain(&key), chain(&key));
        let (mut one, mut other) = (SharedLog::open(&path).unwrap(), SharedLog::open(&path).unwrap());
        for (ours, theirs) in first.iter().zip(&second) {
            one.append(ours.as_bytes()).unwrap();
            // A process that died in the middle.
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, [&whole[..], b"{\"v\":1,\"inst"].concat()).unwrap();
            other.append(theirs.as_bytes()).unwrap();
        }
        let mut verifier = Verifier::new([key.thumbprint()], false);
        let text = std::fs::read_to_string(&path).unwrap();
        text.lines().for_each(|line| verifier.line(line.as_bytes()));
        let report = verifier.finish();
        assert!(report.is_whole(), "{:?}", report.breaks);
        assert_eq!(
            (report.chains.len(), report.lines as usize),
            (2, first.len() + second.len())
        );
    }

    #[test]
    fn what_is_no_log_is_not_appended_to_and_what_is_no_line_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        std::fs::write(&path, b"dear diary").unwrap();
        assert!(matches!(SharedLog::open(&path), Err(AuditError::NotContinuable { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"dear diary");
        assert!(matches!(
            SharedLog::open(Path::new("/dev/full")),
            Err(AuditError::Refused { .. })
        ));
        let path = folder.path().join("log");
        let mut log = SharedLog::open(&path).unwrap();
        let good = chain(&Arc::new(PrivateJwk::generate().unwrap())).remove(0);
        for bad in ["", "{}", "x\ny", &format!("{good}\n{good}"), &format!(" {good}")] {
            assert!(
                matches!(log.append(bad.as_bytes()), Err(AuditError::Write { .. })),
                "{bad}"
            );
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
}
