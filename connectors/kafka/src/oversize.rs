//! The folder of dead letters that are larger than their topic takes: a file each, there for good before the
//! offsets move past the record.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sealflow::pipeline::{Position, Record, Timestamp};

/// Where the dead letter of the record at `position` is. The time stamp is part of the name, so that a topic that
/// was deleted and made again does not overwrite the letters of the old one.
fn path_of(folder: &Path, position: &Position, timestamp: Timestamp) -> PathBuf {
    let millis = match timestamp {
        Timestamp::None => 0,
        Timestamp::Created(millis) | Timestamp::Appended(millis) => millis,
    };
    folder
        .join(&*position.topic)
        .join(position.partition.to_string())
        .join(format!("{}.{millis}.json", position.offset))
}

/// Writes a dead letter. Doing it again for the same record replaces the file by one of the same content, which
/// happens when the transaction that it belongs to was aborted.
pub(crate) fn write(folder: &Path, letter: &Record) -> io::Result<PathBuf> {
    let path = path_of(folder, &letter.position, letter.timestamp);
    let within = path.parent().unwrap_or(folder);
    fs::create_dir_all(within)?;
    let half = path.with_extension(format!("{}.half", std::process::id()));
    let mut file = File::create(&half)?;
    let written = file
        .write_all(letter.value.as_deref().unwrap_or_default())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&half, &path));
    if let Err(error) = written {
        // On a full disk, the half that was written would keep it full.
        let _ = fs::remove_file(&half);
        return Err(error);
    }
    // The names are durable only with their folders; new folders only with theirs.
    for folder in within.ancestors().take(4) {
        match File::open(if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        }) {
            Ok(folder) => folder.sync_all()?,
            // A folder above ours that may be passed through but not read is not ours to make durable.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            Err(error) => return Err(error),
        }
    }
    Ok(path)
}
