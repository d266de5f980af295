//! A file that is written beside its name and appears under it whole, durably, and only if nothing is there.
//!
//! It is synced, linked to its name (which fails if there is one), its temporary name removed, and every folder up to the root
//! synced. What a crash leaves has a name that listings leave out and [`clean_leftovers`] knows.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sealflow::clock::UnixMillis;
use sealflow::keys::Put;

/// Objects hold names, wrapped keys and sealed values, no secrets; the group may read them, so that readers need not be writers.
/// The process's umask takes away from both.
const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// The file under its temporary name, `NAME#DIGITS`; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Draft {
    root: PathBuf,
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl Draft {
    /// A new, empty file beside `path`, and the folders above it.
    pub(crate) fn begin(root: &Path, path: &Path) -> io::Result<Self> {
        make_folders(path.parent().unwrap_or(root)).map_err(|e| match e.kind() {
            // A file stands where a folder should; `AlreadyExists` would say that our object is there.
            ErrorKind::AlreadyExists => io::Error::from(ErrorKind::NotADirectory),
            _ => e,
        })?;
        loop {
            let mut name = path.as_os_str().to_owned();
            name.push(format!("#{}", unique_number()));
            let temporary = PathBuf::from(name);
            let mut options = OpenOptions::new();
            match options.create_new(true).write(true).mode(FILE_MODE).open(&temporary) {
                Ok(file) => {
                    return Ok(Self {
                        root: root.to_owned(),
                        path: path.to_owned(),
                        temporary,
                        file,
                    });
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => (),
                Err(e) => return Err(e),
            }
        }
    }

    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Gives it its name. [`Put::Exists`] if there is an object, which is as durable then as ours would be.
    pub(crate) fn publish(self) -> io::Result<Put> {
        self.file.sync_all()?;
        let linked = fs::hard_link(&self.temporary, &self.path);
        let _ = fs::remove_file(&self.temporary);
        let put = match linked {
            Ok(()) => Put::Created,
            Err(e) if e.kind() == ErrorKind::AlreadyExists && self.path.is_dir() => {
                return Err(io::Error::from(ErrorKind::IsADirectory));
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Put::Exists,
            Err(e) => return Err(e),
        };
        let folder = self.path.parent().unwrap_or(&self.root);
        for ancestor in folder
            .ancestors()
            .take_while(|ancestor| ancestor.starts_with(&self.root))
        {
            File::open(ancestor)?.sync_all()?;
        }
        Ok(put)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Not there any more once it was published.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Removes the drafts below `folder` that nobody has written to since `before`. Returns how many.
pub(crate) fn clean_leftovers(folder: &Path, before: UnixMillis) -> io::Result<u64> {
    let before = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(before.0));
    let before = before.ok_or(ErrorKind::InvalidInput)?;
    let mut cleaned = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && is_draft(&entry.file_name().to_string_lossy()) {
                cleaned += u64::from(remove_if_older(&entry.path(), before)?);
            }
        }
    }
    Ok(cleaned)
}

/// Another process may clean, or publish, at the same time: what is gone is gone.
fn remove_if_older(path: &Path, before: SystemTime) -> io::Result<bool> {
    let removed = fs::symlink_metadata(path).and_then(|metadata| {
        if metadata.modified()? >= before {
            return Ok(false);
        }
        fs::remove_file(path).map(|()| true)
    });
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        other => other,
    }
}

/// Whether a name is one that [`Draft::begin`] makes, and objects may not have.
pub(crate) fn is_draft(name: &str) -> bool {
    let number = name.rsplit_once('#').map_or("", |(_, number)| number);
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

/// Numbers that differ between the tasks, processes and machines that share a folder.
fn unique_number() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Makes `folder` and what is missing above it; other processes may do the same at the same time.
pub(crate) fn make_folders(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_draft_that_is_dropped_leaves_nothing_and_one_that_is_published_only_its_name() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let mut draft = Draft::begin(root.path(), &path).unwrap();
        draft.write(b"half").unwrap();
        assert!(is_draft(&names(&root.path().join("a"))[0]));
        drop(draft);
        assert!(names(&root.path().join("a")).is_empty());
        for (bytes, put) in [(b"one", Put::Created), (b"two", Put::Exists)] {
            let mut draft = Draft::begin(root.path(), &path).unwrap();
            draft.write(bytes).unwrap();
            assert_eq!(draft.publish().unwrap(), put);
        }
        assert_eq!(names(&root.path().join("a")), ["b"]);
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn only_old_drafts_are_leftovers() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("deep/er");
        fs::create_dir_all(&deep).unwrap();
        for name in ["a#1", "deep/b#22", "deep/er/c#3", "deep/er/d", "deep/e#x", "f#"] {
            fs::write(root.path().join(name), "x").unwrap();
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now = u64::try_from(now.as_millis()).unwrap();
        assert_eq!(clean_leftovers(root.path(), UnixMillis(now - 60_000)).unwrap(), 0);
        assert_eq!(
            clean_leftovers(&root.path().join("deep"), UnixMillis(now + 60_000)).unwrap(),
            2
        );
        assert_eq!(names(root.path()), ["a#1", "deep", "f#"]);
        assert_eq!(names(&deep), ["d"]);
        assert_eq!(clean_leftovers(&root.path().join("none"), UnixMillis(now)).unwrap(), 0);
    }
}
