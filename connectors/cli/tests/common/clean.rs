//! The search of everything that was written.

use std::path::Path;

/// No file at or below `path` holds what `holds` looks for. Kafka's indexes of its logs, which hold numbers alone and are large,
/// are left out.
pub(crate) fn assert_clean(path: &Path, holds: &dyn Fn(&[u8]) -> bool) {
    if path.is_symlink() {
        return;
    }
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            assert_clean(&entry.unwrap().path(), holds);
        }
    } else if path
        .extension()
        .is_none_or(|extension| extension != "index" && extension != "timeindex")
    {
        let bytes = std::fs::read(path).unwrap();
        assert!(!holds(&bytes), "{}", path.display());
    }
}
