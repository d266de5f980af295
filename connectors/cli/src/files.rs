//! Files, read with a cap and written all or not at all.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sealflow::units::ByteSize;

use crate::failure::{Exit, Failure, Result};

/// Configuration, policies and keys are small; what is larger is another file by mistake.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Who may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// As the process's umask says.
    Shared,
    /// Only its owner: 0600.
    Private,
}

/// Reads a text file of at most 1 MiB.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    read_text_up_to(path, MAX_TEXT_BYTES)
}

/// Reads a text file of at most `most` bytes.
pub(crate) fn read_text_up_to(path: &Path, most: u64) -> Result<String> {
    let bytes = read_capped(path, most)?;
    String::from_utf8(bytes).map_err(|_| {
        Failure::new(
            Exit::Data,
            format_args!("{} is no UTF-8 text", path.display()),
            "give a text file (YAML or JSON)",
        )
    })
}

/// Reads a file of at most 1 MiB.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>> {
    read_capped(path, MAX_TEXT_BYTES)
}

/// Reads a file (`-`: standard input) of at most `most` bytes.
pub(crate) fn read_capped(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(most + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::io("read", path, &error))?;
    if bytes.len() as u64 > most {
        let message = format!("{} is larger than {}", path.display(), ByteSize(most));
        return Err(Failure::new(
            Exit::Data,
            message,
            "give a smaller file; is it the one that was meant?",
        ));
    }
    Ok(bytes)
}

/// Creates `path` with `bytes`, durably; an existing file stays as it is and is an error unless `replace`.
pub(crate) fn write_new(path: &Path, bytes: &[u8], access: Access, replace: bool) -> Result<()> {
    if !replace && path.exists() {
        return Err(Failure::io(
            "create",
            path,
            &io::Error::from(io::ErrorKind::AlreadyExists),
        ));
    }
    let mut output = AtomicFile::create(path, access)?;
    output
        .write_all(bytes)
        .map_err(|error| Failure::io("write", path, &error))?;
    output.commit()
}

/// A file that appears under its name only when it is complete: written beside it, synced, renamed. Dropped
/// without [`commit`](Self::commit) it leaves nothing behind.
pub(crate) struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    file: io::BufWriter<File>,
    committed: bool,
}

impl AtomicFile {
    /// Starts a file that will be called `target`. The temporary file is private until then.
    pub(crate) fn create(target: &Path, access: Access) -> Result<Self> {
        let failed = |error: io::Error| Failure::io("create", target, &error);
        let name = target
            .file_name()
            .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let temporary = target.with_file_name(format!(".{}.{:016x}.partial", name.to_string_lossy(), unique()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if access == Access::Private {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        let file = options.open(&temporary).map_err(failed)?;
        unfinished().insert(temporary.clone());
        Ok(Self {
            target: target.to_owned(),
            temporary,
            file: io::BufWriter::new(file),
            committed: false,
        })
    }

    /// What it will be called.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn commit(mut self) -> Result<()> {
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        written
            .and_then(|()| fs::rename(&self.temporary, &self.target))
            .map_err(|error| Failure::io("write", &self.target, &error))?;
        self.committed = true;
        unfinished().remove(&self.temporary);
        Ok(())
    }
}

/// Temporary files that exist now, for a process that is told to end.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is not finished, and keeps new ones from being started: the caller ends the process while it
/// holds what is returned. Half an output may hold plaintext that nobody asked to keep.
pub(crate) fn remove_unfinished() -> impl Sized {
    let mut unfinished = unfinished();
    for path in std::mem::take(&mut *unfinished) {
        // What cannot be removed cannot be reported any better than by its name in the folder.
        let _ = fs::remove_file(path);
    }
    unfinished
}

/// A number that no other file has: a container's processes have the same few ids again and again, and one that was
/// killed leaves its file behind.
fn unique() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // What cannot be removed was never renamed either: no half file under the real name.
            let _ = fs::remove_file(&self.temporary);
            unfinished().remove(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_committed_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&folder.path().join("out"), Access::Shared).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_process_of_the_same_id_left_is_not_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let killed = AtomicFile::create(&target, Access::Shared).unwrap();
        std::mem::forget(killed);
        AtomicFile::create(&target, Access::Shared).unwrap().commit().unwrap();
        assert!(target.exists());
    }

    #[test]
    fn a_private_file_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner.key");
        write_new(&path, b"k", Access::Private, false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_new(&path, b"other", Access::Private, false).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"k");
    }
}
