//! The files of an audit log: opened with care, appended durably, cut back to what is durable after a failure.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use sealflow::audit::line::MAX_LINE_BYTES;
use sealflow::audit::{AuditError, Checkpoint, Line};

use crate::config::refused;

/// How every line of an audit log begins.
pub(crate) const FIRST_LINE: &[u8] = b"{\"v\":1,\"instance";
/// How long another process may keep a shared file to itself.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// A file that only this process appends to.
#[derive(Debug)]
pub(crate) struct Appended {
    path: PathBuf,
    file: File,
    /// Bytes that are durable, and the end of the last whole line.
    durable: u64,
    /// Why it takes nothing any more.
    dead: Option<String>,
    /// Whether other processes append to it too: then it is locked only while something is appended.
    is_shared: bool,
}

impl Appended {
    pub(crate) fn open(path: &Path, is_shared: bool) -> Result<Self, AuditError> {
        let refuse = |reason: String| refused(path, reason);
        // Before opening: a pipe would block, a device may act.
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_file() => {
                return Err(refuse("it is a symbolic link, or no regular file".to_owned()));
            }
            _ => {}
        }
        let mut options = OpenOptions::new();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.read(true).append(true).create(true).mode(0o600);
        options.custom_flags(flags.bits().cast_signed());
        let file = options.open(path).map_err(|error| refuse(error.to_string()))?;
        let opened = file.metadata().map_err(|error| refuse(error.to_string()))?;
        // Again, of what was opened: it may have been exchanged in between.
        let named = fs::symlink_metadata(path).map_err(|error| refuse(error.to_string()))?;
        if !named.file_type().is_file() || (named.dev(), named.ino()) != (opened.dev(), opened.ino()) {
            return Err(refuse(
                "it is a symbolic link, or was exchanged while it was opened".to_owned(),
            ));
        }
        if opened.uid() != rustix::process::geteuid().as_raw() {
            return Err(refuse("it belongs to another user".to_owned()));
        }
        if opened.mode() & 0o022 != 0 {
            return Err(refuse("others may write it (chmod go-w)".to_owned()));
        }
        if is_shared {
            lock(&file).map_err(|error| refuse(error.to_string()))?;
        } else {
            file.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => refuse("another process writes it".to_owned()),
                TryLockError::Error(error) => refuse(error.to_string()),
            })?;
        }
        // Again, under the lock: others may have appended meanwhile.
        let opened = file.metadata().map_err(|error| refuse(error.to_string()))?;
        // The name of a new file must survive a crash as well as its bytes.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))
            .and_then(|folder| folder.sync_all())
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            durable: opened.len(),
            dead: None,
            is_shared,
        })
    }

    /// Takes away what stands after the last end of a line, and says how much that was. Returns the last whole line.
    pub(crate) fn cut_torn(&mut self) -> Result<(Option<Vec<u8>>, u64), AuditError> {
        let failed = |error: io::Error| refused(&self.path, error);
        // The unfinished line and the one before it, each as long as a line may be.
        let most = 2 * (MAX_LINE_BYTES as u64 + 1);
        let from = self.durable.saturating_sub(most);
        let mut tail = Vec::new();
        self.file.seek(SeekFrom::Start(from)).map_err(failed)?;
        (&self.file).take(most).read_to_end(&mut tail).map_err(failed)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole == 0 && from > 0 {
            return Err(not_continuable(&self.path, "its end is no line"));
        }
        let torn = (tail.len() - whole) as u64;
        if torn > 0 {
            self.file.set_len(self.durable - torn).map_err(failed)?;
            self.file.sync_all().map_err(failed)?;
            self.durable -= torn;
        }
        tail.truncate(whole);
        let Some(line) = tail.strip_suffix(b"\n") else {
            return Ok((None, torn));
        };
        let start = line.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Ok((Some(line[start..].to_vec()), torn))
    }

    /// Appends `text`, which is durable when this returns `Ok`. If it cannot be written, nothing of it stays.
    pub(crate) fn append(&mut self, text: &str) -> Result<(), AuditError> {
        if let Some(reason) = &self.dead {
            return Err(AuditError::Closed {
                to: self.path.display().to_string(),
                reason: reason.clone(),
            });
        }
        let appended = self.begin().and_then(|()| self.write(text));
        // What is written stands whether or not the lock can be given back; the end of the process does that.
        let _ = self.end();
        appended
    }

    /// Takes a shared file for itself, and finds its end. What a process that died in the middle has left is taken away.
    fn begin(&mut self) -> Result<(), AuditError> {
        if !self.is_shared {
            return Ok(());
        }
        lock(&self.file).map_err(|error| self.write_error(&error))?;
        let metadata = self.file.metadata();
        self.durable = metadata.map_err(|error| self.write_error(&error))?.len();
        self.cut_torn().map(drop)
    }

    /// The first bytes of the file, at most as many as a first line is known by.
    pub(crate) fn read_first(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        (&self.file).take(FIRST_LINE.len() as u64).read_to_end(into).map(drop)
    }

    /// Lets others at a shared file that was opened.
    pub(crate) fn give_back(&self, path: &Path) -> Result<(), AuditError> {
        self.end().map_err(|error| refused(path, error))
    }

    /// Lets others at a shared file.
    fn end(&self) -> io::Result<()> {
        if self.is_shared {
            self.file.unlock()?;
        }
        Ok(())
    }

    fn write(&mut self, text: &str) -> Result<(), AuditError> {
        let written = self.file.write_all(text.as_bytes());
        if let Err(error) = written {
            let back = self.file.set_len(self.durable).and_then(|()| self.file.sync_data());
            if let Err(worse) = back {
                self.dead = Some(format!("what was written of a line could not be taken away: {worse}"));
            }
            return Err(self.write_error(&error));
        }
        if let Err(error) = self.file.sync_data() {
            // What is on disk now nobody knows, and a second sync may lie (Linux forgets the error).
            self.dead = Some(format!("the disk did not keep what it took: {error}"));
            return Err(self.write_error(&error));
        }
        self.durable += text.len() as u64;
        Ok(())
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn write_error(&self, error: &io::Error) -> AuditError {
        AuditError::Write {
            to: self.path.display().to_string(),
            reason: error.to_string(),
        }
    }
}

/// The file of the log.
#[derive(Debug)]
pub(crate) struct LogFile {
    pub(crate) file: Appended,
    /// Its last whole line, as it is and as it is spelled.
    pub(crate) last: Option<(Line, String)>,
    /// Bytes of an unfinished line, which were taken away: nobody was told that it is durable.
    pub(crate) dropped: u64,
}

impl LogFile {
    pub(crate) fn open(path: &Path) -> Result<Self, AuditError> {
        let mut file = Appended::open(path, false)?;
        // Not one byte of a file that is something else is touched: its first line must be ours already.
        let mut first = Vec::with_capacity(FIRST_LINE.len());
        file.read_first(&mut first).map_err(|error| refused(path, error))?;
        if !FIRST_LINE.starts_with(&first) {
            return Err(not_continuable(path, "it is no audit log"));
        }
        let (last, dropped) = file.cut_torn()?;
        let last = match last {
            None => None,
            Some(bytes) => {
                let line = Line::parse(&bytes)
                    .map_err(|error| not_continuable(path, format_args!("its last line is {error}")))?;
                // A line that parses is UTF-8.
                Some((line, String::from_utf8_lossy(&bytes).into_owned()))
            }
        };
        Ok(Self { file, last, dropped })
    }
}

/// The second place: a checkpoint as JWS per line.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    pub(crate) file: Appended,
    /// The last one.
    last: Option<Checkpoint>,
}

impl Checkpoints {
    /// `is_shared` with other processes, which write checkpoints of other chains there.
    pub(crate) fn open(path: &Path, is_shared: bool) -> Result<Self, AuditError> {
        let mut file = Appended::open(path, is_shared)?;
        let mut first = [0; 2];
        let read = (&file.file).read(&mut first).map_err(|error| refused(path, error))?;
        if b"ey"[..read] != first[..read] {
            return Err(not_continuable(path, "it holds no checkpoints"));
        }
        let (last, _) = file.cut_torn()?;
        let last = match last {
            None => None,
            Some(bytes) => {
                let checkpoint = Checkpoint::verify(&String::from_utf8_lossy(&bytes))
                    .map_err(|error| not_continuable(path, format_args!("its last line: {error}")))?;
                Some(checkpoint.0)
            }
        };
        file.give_back(path)?;
        Ok(Self { file, last })
    }

    /// Refuses to go on with a log that lacks a line of which this knows: it was cut off.
    pub(crate) fn check(&self, log: &LogFile) -> Result<(), AuditError> {
        let (Some(checkpoint), Some((line, _))) = (&self.last, &log.last) else {
            return match &self.last {
                Some(_) => Err(not_continuable(
                    &log.file.path,
                    "it is empty, and there are checkpoints of it: its lines were taken away, or these are another log's",
                )),
                None => Ok(()),
            };
        };
        if checkpoint.instance == line.instance && checkpoint.seq > line.seq {
            let reason = format!(
                "its tail was cut off: it ends with number {}, and there is a checkpoint of number {}",
                line.seq, checkpoint.seq
            );
            return Err(not_continuable(&log.file.path, reason));
        }
        Ok(())
    }
}

pub(crate) fn not_continuable(path: &Path, reason: impl std::fmt::Display) -> AuditError {
    AuditError::NotContinuable {
        to: path.display().to_string(),
        reason: reason.to_string(),
    }
}

/// Takes a shared file, which others keep for the time of one write. One that is never given back is another log's own.
fn lock(file: &File) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(BETWEEN_TRIES),
            Err(TryLockError::WouldBlock) => return Err(io::Error::other("another process keeps it to itself")),
        }
    }
}
