//! The folder of dead letters that are larger than their topic takes: a file each, there for good before the
//! offsets move past the record, and seen as a letter only once they have.
//!
//! Until its transaction has committed, a letter lies beside its place under a name that nobody lists or replays.
//! Renaming it comes after the commit; where a process dies before it could, whoever is assigned the partition next
//! knows from the committed offset whether the letter counts, and finishes or removes it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sealflow::pipeline::{Position, Record, Timestamp};

/// Extension of letters whose transaction has not committed, as far as their writer knew.
const UNFINISHED: &str = "unfinished";

/// The folder, for one producer.
pub(crate) struct OversizeFolder {
    folder: PathBuf,
    reader: String,
    /// Tells the files of this producer from those of one that it has fenced and that may still be cleaning up.
    writer: String,
    unfinished: Mutex<Vec<Unfinished>>,
}

/// A letter of the open transaction.
struct Unfinished {
    path: PathBuf,
    finished: PathBuf,
}

impl OversizeFolder {
    /// `pipeline` holds no dots; a replay reads by offsets of its own.
    pub(crate) fn new(folder: &Path, pipeline: &str, is_replay: bool) -> io::Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            reader: reader(pipeline, is_replay),
            writer: format!("{:016x}", getrandom::u64().map_err(io::Error::other)?),
            unfinished: Mutex::default(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Writes a dead letter, of the record that was read at `read_at`. It counts when the transaction has committed.
    pub(crate) fn write(&self, letter: &Record, read_at: &Position) -> io::Result<()> {
        let position = &letter.position;
        let within = self.folder.join(&*position.topic).join(position.partition.to_string());
        fs::create_dir_all(&within)?;
        let stem = format!("{}.{}", position.offset, millis(letter.timestamp));
        let unfinished = Unfinished {
            path: within.join(format!(
                "{stem}.{}.{}.{}.{}.{UNFINISHED}",
                self.reader, read_at.partition, read_at.offset, self.writer
            )),
            finished: within.join(format!("{stem}.json")),
        };
        let mut file = File::create(&unfinished.path)?;
        let written = file
            .write_all(letter.value.as_deref().unwrap_or_default())
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.sync_all())
            .and_then(|()| sync_names(&within));
        if let Err(error) = written {
            // On a full disk, the half that was written would keep it full.
            let _ = fs::remove_file(&unfinished.path);
            return Err(error);
        }
        self.unfinished().push(unfinished);
        Ok(())
    }

    /// The transaction has committed: its letters count.
    pub(crate) fn committed(&self) {
        for Unfinished { path, finished } in self.unfinished().drain(..) {
            match finish(&path, &finished) {
                Ok(()) => tracing::warn!(path = %finished.display(), "dead letter written to the folder"),
                // Too late to abort. The letter is there, under its other name.
                Err(error) => tracing::error!(
                    path = %path.display(), error = %error,
                    "a dead letter cannot be renamed: the next start of the pipeline does it"
                ),
            }
        }
    }

    /// The transaction was aborted: its records are read again, and become what they become then.
    pub(crate) fn aborted(&self) {
        for Unfinished { path, .. } in self.unfinished().drain(..) {
            if let Err(error) = remove(&path) {
                tracing::warn!(path = %path.display(), error = %error, "a dead letter that does not count stays for now");
            }
        }
    }

    /// Leaves the letters of a transaction whose end is not known to the next start.
    pub(crate) fn left_open(&self) {
        self.unfinished().clear();
    }

    fn unfinished(&self) -> MutexGuard<'_, Vec<Unfinished>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What earlier owners of a partition left unfinished in `folder`, now that its offset is known: letters of records
/// before `committed` count, others are removed, as their records are read again.
pub(crate) fn settle(
    folder: &Path,
    pipeline: &str,
    is_replay: bool,
    topic: &str,
    partition: i32,
    committed: Option<i64>,
) -> io::Result<()> {
    let reader = reader(pipeline, is_replay);
    for within in folders_of(folder, topic, partition, is_replay)? {
        for path in entries(&within)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let parts: Vec<&str> = name.split('.').collect();
            let [offset, millis, name, kind, read_partition, read_offset, _, UNFINISHED] = parts[..] else {
                continue;
            };
            let is_ours = format!("{name}.{kind}") == reader && read_partition.parse() == Ok(partition);
            let Some(read_offset) = read_offset.parse::<i64>().ok().filter(|_| is_ours) else {
                continue;
            };
            if committed.is_some_and(|next| read_offset < next) {
                finish(&path, &within.join(format!("{offset}.{millis}.json")))?;
                tracing::warn!(path = %path.display(), "a dead letter that was left unfinished counts: its record is committed");
            } else {
                remove(&path)?;
                tracing::info!(path = %path.display(), "a dead letter of no committed transaction is removed: its record is read again");
            }
        }
    }
    Ok(())
}

/// Where letters of records may lie that were read at a partition: of records of other places, in a replay.
fn folders_of(folder: &Path, topic: &str, partition: i32, is_replay: bool) -> io::Result<Vec<PathBuf>> {
    if !is_replay {
        return Ok(vec![folder.join(topic).join(partition.to_string())]);
    }
    let mut folders = Vec::new();
    for topic in entries(folder)?.iter().filter(|path| path.is_dir()) {
        folders.extend(entries(topic)?.into_iter().filter(|path| path.is_dir()));
    }
    Ok(folders)
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn reader(pipeline: &str, is_replay: bool) -> String {
    format!("{pipeline}.{}", if is_replay { "replay" } else { "run" })
}

/// Part of the name, so that a topic that was deleted and made again does not overwrite the letters of the old one.
fn millis(timestamp: Timestamp) -> i64 {
    match timestamp {
        Timestamp::None => 0,
        Timestamp::Created(millis) | Timestamp::Appended(millis) => millis,
    }
}

/// Another owner of the partition may have been quicker: then there is nothing left to do.
fn finish(path: &Path, finished: &Path) -> io::Result<()> {
    match fs::rename(path, finished) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => finished
            .parent()
            .map_or(Ok(()), |folder| File::open(folder)?.sync_all()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Names are durable only with their folders; new folders only with theirs.
fn sync_names(within: &Path) -> io::Result<()> {
    for folder in within.ancestors().take(4) {
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        match File::open(folder) {
            Ok(folder) => folder.sync_all()?,
            // A folder above ours that may be passed through but not read is not ours to make durable.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sealflow::pipeline::Headers;

    use super::*;

    fn position(topic: &str, offset: i64) -> Position {
        Position {
            topic: topic.into(),
            partition: 3,
            offset,
        }
    }

    fn letter(offset: i64) -> Record {
        Record {
            position: position("payments", offset),
            timestamp: Timestamp::Created(77),
            key: None,
            value: Some(format!("letter {offset}").into_bytes().into()),
            headers: Headers::new(),
        }
    }

    /// A new folder, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("sealflow-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            Self(folder)
        }

        /// What a reader of the folder takes for letters, and how many files there are.
        fn letters(&self) -> (Vec<String>, usize) {
            let files = entries(&self.0.join("payments/3")).unwrap();
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            let mut letters: Vec<String> = files.iter().map(name).filter(|name| name.ends_with(".json")).collect();
            letters.sort();
            (letters, files.len())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_letter_counts_when_its_transaction_has_committed_and_goes_when_it_was_aborted() {
        let scratch = Scratch::new("counts");
        let folder = OversizeFolder::new(&scratch.0, "p", false).unwrap();
        folder.write(&letter(10), &position("payments", 10)).unwrap();
        assert_eq!(scratch.letters(), (vec![], 1), "written, and no letter yet");
        folder.aborted();
        assert_eq!(scratch.letters(), (vec![], 0));
        folder.write(&letter(10), &position("payments", 10)).unwrap();
        folder.committed();
        assert_eq!(scratch.letters(), (vec!["10.77.json".to_owned()], 1));
        folder.aborted();
        assert_eq!(scratch.letters().1, 1, "what is committed stays");
    }

    #[test]
    fn what_a_dead_owner_left_counts_below_the_committed_offset_and_is_removed_from_there_on() {
        let scratch = Scratch::new("left");
        let dead = OversizeFolder::new(&scratch.0, "p", false).unwrap();
        for offset in [9, 10, 11] {
            dead.write(&letter(offset), &position("payments", offset)).unwrap();
        }
        for (pipeline, is_replay, partition) in [("q", false, 3), ("p", true, 3), ("p", false, 4)] {
            settle(&scratch.0, pipeline, is_replay, "payments", partition, Some(0)).unwrap();
            assert_eq!(scratch.letters(), (vec![], 3), "others' are left alone");
        }
        settle(&scratch.0, "p", false, "payments", 3, Some(10)).unwrap();
        assert_eq!(scratch.letters(), (vec!["9.77.json".to_owned()], 1));
        dead.write(&letter(10), &position("payments", 10)).unwrap();
        settle(&scratch.0, "p", false, "payments", 3, None).unwrap();
        assert_eq!(scratch.letters().1, 1, "nothing is committed: all is read again");
        settle(&scratch.0.join("no such folder"), "p", true, "payments", 3, None).unwrap();
    }

    #[test]
    fn an_owner_that_was_fenced_does_not_remove_what_the_next_one_has_written() {
        let scratch = Scratch::new("fenced");
        let [old, new] = [(); 2].map(|()| OversizeFolder::new(&scratch.0, "p", false).unwrap());
        old.write(&letter(10), &position("payments", 10)).unwrap();
        settle(&scratch.0, "p", false, "payments", 3, Some(10)).unwrap();
        new.write(&letter(10), &position("payments", 10)).unwrap();
        old.aborted();
        new.committed();
        assert_eq!(scratch.letters(), (vec!["10.77.json".to_owned()], 1));
    }

    #[test]
    fn a_replays_letters_are_settled_by_the_offset_at_which_it_read_them() {
        let scratch = Scratch::new("replays");
        let dead = OversizeFolder::new(&scratch.0, "p", true).unwrap();
        dead.write(&letter(10), &position("payments.dead", 500)).unwrap();
        settle(&scratch.0, "p", false, "payments", 3, Some(11)).unwrap();
        assert_eq!(scratch.letters(), (vec![], 1), "not by the pipeline's own offset");
        settle(&scratch.0, "p", true, "payments.dead", 3, Some(501)).unwrap();
        assert_eq!(scratch.letters(), (vec!["10.77.json".to_owned()], 1));
    }
}
