//! The search of everything that was written.

use std::path::Path;

/// No file at or below `path` holds what `holds` looks for. Kafka's indexes of its logs, which hold numbers alone and are large,
/// are left out. A broker that runs removes files while they are looked at (`.deleted`, snapshots): what is gone is passed over.
pub(crate) fn assert_clean(path: &Path, holds: &dyn Fn(&[u8]) -> bool) {
    assert!(path.exists(), "{} is not there", path.display());
    search(path, holds);
}

fn search(path: &Path, holds: &dyn Fn(&[u8]) -> bool) {
    if path.is_symlink() {
        return;
    }
    if path.is_dir() {
        let Some(entries) = unless_gone(std::fs::read_dir(path)) else {
            return;
        };
        for entry in entries {
            search(&entry.unwrap().path(), holds);
        }
    } else if path
        .extension()
        .is_none_or(|extension| extension != "index" && extension != "timeindex")
    {
        let Some(bytes) = unless_gone(std::fs::read(path)) else {
            return;
        };
        assert!(!holds(&bytes), "{}", path.display());
    }
}

fn unless_gone<T>(result: std::io::Result<T>) -> Option<T> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        result => Some(result.unwrap()),
    }
}
