//! The highest versions that this machine has seen, kept in a file from one run to the next: so that an older policy put back,
//! or a newest one taken away, is noticed by a command that has just started. What the file does not hold, it does not know.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealflow::jose::Thumbprint;
use sealflow::policy::{CataloguePolicies, Highest, Pin, PolicySource, PolicySourceError, Seen};
use sealflow::policy::{VerifiedDomain, VerifiedPolicy};
use sealflow::seal::KeyId;
use sealflow_storage::Location;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::files::{self, Access, AtomicFile};

/// The folder that it is kept in, or `none`.
pub(crate) const STATE: &str = "SEALFLOW_STATE";
const FILE: &str = "versions.json";
const LOCK: &str = "versions.lock";
const NONE: &str = "none";
/// What stands in the place of a catalogue for enclave keys, which clients have from anywhere. No catalogue is called so: folders
/// are absolute, buckets begin with `s3:`.
const ENCLAVE_KEYS: &str = "enclave-keys of clients";
/// Some fifty thousand names.
const MOST_BYTES: u64 = 16 << 20;
/// Another process holds the lock for as long as a small file takes.
const LOCK_TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// Everything seen, of every catalogue.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    version: u32,
    seen: Vec<Entry>,
}

/// The highest version of one name in one catalogue that bore the signature of one owner. By owner, so that a catalogue
/// that begins anew under another key at the same place is none that went back.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    catalogue: String,
    name: String,
    owner: Thumbprint,
    version: u64,
    sha256: String,
}

/// The file, as far as one catalogue and its pinned owners are concerned.
#[derive(Clone, Debug)]
pub(crate) struct VersionsFile {
    folder: PathBuf,
    catalogue: String,
    owners: Vec<Thumbprint>,
}

impl VersionsFile {
    /// That of this machine's user: in `SEALFLOW_STATE`, by default the XDG state folder. `None` where there is none: nothing
    /// is remembered then.
    pub(crate) fn of(catalogue: &Location, owners: &[Pin]) -> Option<Self> {
        let owners: Vec<_> = owners.iter().map(|pin| pin.owner).collect();
        Some(Self::in_folder(&folder()?, catalogue, &owners))
    }

    /// The same for enclave keys as clients have seen them: versions are the seconds at which documents were made.
    pub(crate) fn of_enclave_keys(owners: &[Pin]) -> Option<Self> {
        Some(Self {
            folder: folder()?,
            catalogue: ENCLAVE_KEYS.to_owned(),
            owners: owners.iter().map(|pin| pin.owner).collect(),
        })
    }

    fn in_folder(folder: &Path, catalogue: &Location, owners: &[Thumbprint]) -> Self {
        let catalogue = match catalogue {
            // By its real name, so that two ways to one folder are one. One that is not there has nothing to go back from.
            Location::Folder(path) => fs::canonicalize(path)
                .unwrap_or_else(|_| path.clone())
                .display()
                .to_string(),
            // Whatever endpoint leads to it.
            Location::Bucket(bucket) => bucket.to_string(),
        };
        Self {
            folder: folder.to_owned(),
            catalogue,
            owners: owners.to_vec(),
        }
    }

    /// What was seen of policies and domains that one of the pinned owners signed.
    ///
    /// # Errors
    /// If there is a file, and it cannot be read as one: going on without it would be forgetting.
    pub(crate) fn load(&self) -> Result<BTreeMap<String, Seen>> {
        let mut known = BTreeMap::<String, Seen>::new();
        for entry in self.read()?.seen {
            if entry.catalogue != self.catalogue || !self.owners.contains(&entry.owner) {
                continue;
            }
            let sha256 = entry.hash().ok_or_else(|| self.broken("a hash in it is none"))?;
            let seen = Seen {
                version: entry.version,
                sha256,
                owner: Some(entry.owner),
            };
            if known.get(&entry.name).is_none_or(|other| other.version < seen.version) {
                known.insert(entry.name, seen);
            }
        }
        Ok(known)
    }

    /// Adds what was seen. What another process has written meanwhile stays, unless this is higher.
    pub(crate) fn save(&self, seen: &BTreeMap<String, Seen>) -> Result<()> {
        let lock = self.lock()?;
        let mut memory = self.read()?;
        for (name, seen) in seen {
            let Some(owner) = seen.owner else { continue };
            let new = Entry {
                catalogue: self.catalogue.clone(),
                name: name.clone(),
                owner,
                version: seen.version,
                sha256: URL_SAFE_NO_PAD.encode(seen.sha256),
            };
            let is_same = |old: &&mut Entry| old.is_about(&new);
            match memory.seen.iter_mut().find(is_same) {
                Some(old) if old.version >= new.version => {}
                Some(old) => *old = new,
                None => memory.seen.push(new),
            }
        }
        memory.version = 1;
        let path = self.path();
        let json = serde_json::to_vec_pretty(&memory).map_err(|error| self.broken(&error.to_string()))?;
        if json.len() as u64 > MOST_BYTES {
            return Err(self.broken("it has grown too large"));
        }
        let mut file = AtomicFile::create(&path, Access::Private)?;
        file.write_all(&json)
            .map_err(|error| Failure::io("write", &path, &error))?;
        file.commit()?;
        drop(lock);
        Ok(())
    }

    fn read(&self) -> Result<Memory> {
        let path = self.path();
        // A link to nowhere is no absence.
        if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            return Ok(Memory::default());
        }
        let text = files::read_capped(&path, MOST_BYTES)?;
        let memory: Memory = serde_json::from_slice(&text).map_err(|error| self.broken(&error.to_string()))?;
        if memory.version != 1 {
            return Err(self.broken("it is of another version of sealflow"));
        }
        Ok(memory)
    }

    /// Other processes wait while it is held.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.folder).map_err(|error| Failure::io("create", &self.folder, &error))?;
        let path = self.folder.join(LOCK);
        let open = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(|error| Failure::io("open", &path, &error))?;
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN_TRIES),
                Err(TryLockError::Error(error)) => return Err(Failure::io("lock", &path, &error)),
            }
        }
        Err(Failure::io("lock", &path, &std::io::ErrorKind::TimedOut.into()))
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    fn broken(&self, why: &str) -> Failure {
        Failure::config(
            format_args!("{}: the versions seen cannot be read: {why}", self.path().display()),
            "find out who changed it; if nobody can have put an old policy back, move it away, and versions are remembered anew",
        )
    }
}

/// Where it is kept; `None` for nowhere.
fn folder() -> Option<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    match variable(STATE) {
        Some(folder) if folder == Path::new(NONE) => None,
        Some(folder) => Some(folder),
        None => {
            let state = variable("XDG_STATE_HOME")
                .filter(|folder| folder.is_absolute())
                .or_else(|| variable("HOME").map(|home| home.join(".local/state")))?;
            Some(state.join("sealflow"))
        }
    }
}

impl Entry {
    fn is_about(&self, other: &Self) -> bool {
        (&self.catalogue, &self.name, &self.owner) == (&other.catalogue, &other.name, &other.owner)
    }

    fn hash(&self) -> Option<[u8; 32]> {
        URL_SAFE_NO_PAD.decode(&self.sha256).ok()?.try_into().ok()
    }
}

/// The policies of a catalogue, none older than those that this machine saw in it before.
#[derive(Debug)]
pub(crate) struct Remembering {
    policies: CataloguePolicies,
    file: VersionsFile,
    saved: Mutex<BTreeMap<String, Seen>>,
}

impl Remembering {
    /// `policies`, beginning with what `file` holds.
    ///
    /// # Errors
    /// As [`VersionsFile::load`].
    pub(crate) fn new(policies: CataloguePolicies, file: VersionsFile) -> Result<Self> {
        let saved = file.load()?;
        Ok(Self {
            policies: policies.with_highest(Highest::restore(saved.clone())),
            file,
            saved: Mutex::new(saved),
        })
    }

    /// Writes down what is new. A disk that does not take it costs what this is for, and nothing else.
    fn remember(&self) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.policies.highest().snapshot();
        if *saved == seen {
            return;
        }
        match self.file.save(&seen) {
            Ok(()) => *saved = seen,
            // Tried again at the next look.
            Err(failure) => tracing::warn!(
                error = failure.message,
                "the versions seen are not remembered: an older policy put back would not be noticed by the next run"
            ),
        }
    }
}

#[async_trait]
impl PolicySource for Remembering {
    async fn policy(&self, dataset: &str) -> Result<Arc<VerifiedPolicy>, PolicySourceError> {
        let answer = self.policies.policy(dataset).await;
        self.remember();
        answer
    }

    async fn domain(&self, name: &str, key: Option<KeyId>) -> Result<Arc<VerifiedDomain>, PolicySourceError> {
        let answer = self.policies.domain(name, key).await;
        self.remember();
        answer
    }

    fn holds(&self, policy: &VerifiedPolicy) -> bool {
        self.policies.holds(policy)
    }

    fn overdue(&self, dataset: &str) -> Option<PolicySourceError> {
        self.policies.overdue(dataset)
    }
}

#[cfg(test)]
mod tests {
    use sealflow::clock::{ManualClock, UnixMillis};
    use sealflow::jose::PrivateJwk;
    use sealflow::keys::Catalogue;
    use sealflow::keys::testing::MemoryCatalogue;
    use sealflow::policy::{TrustedOwners, signed};

    use super::*;

    struct Bench {
        folder: tempfile::TempDir,
        owner: PrivateJwk,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                owner: PrivateJwk::generate().unwrap(),
            }
        }

        fn file(&self, owners: &[&PrivateJwk]) -> VersionsFile {
            let owners: Vec<_> = owners.iter().map(|owner| owner.thumbprint()).collect();
            let catalogue = Location::Folder(self.folder.path().to_owned());
            VersionsFile::in_folder(&self.folder.path().join("state"), &catalogue, &owners)
        }

        fn catalogue(&self, versions: &[u64]) -> Arc<dyn Catalogue> {
            let catalogue = MemoryCatalogue::new();
            for version in versions {
                let yaml = format!("dataset: d\nversion: {version}\ncolumns: [{{ path: a, domain: x }}]\n");
                let jws = signed::sign(yaml.as_bytes(), &self.owner).unwrap();
                catalogue.overwrite(&format!("policies/d/{version:010}.jws"), jws.as_bytes());
            }
            Arc::new(catalogue)
        }

        fn policies(&self, versions: &[u64]) -> Result<Remembering> {
            let trusted = TrustedOwners::everywhere(vec![self.owner.thumbprint()]).unwrap();
            let clock = Arc::new(ManualClock::at(UnixMillis(1)));
            let policies = CataloguePolicies::new(self.catalogue(versions), trusted, clock);
            Remembering::new(policies, self.file(&[&self.owner]))
        }
    }

    #[tokio::test]
    async fn a_process_that_has_just_started_notices_that_the_newest_policy_is_gone_or_replaced_by_an_older_one() {
        let bench = Bench::new();
        let first = bench.policies(&[1, 2]).unwrap().policy("d").await.unwrap();
        assert_eq!(first.policy().version, 2);
        let gone = bench.policies(&[1]).unwrap().policy("d").await.unwrap_err();
        assert!(
            gone.to_string().contains("version 1 of d is older than version 2"),
            "{gone}"
        );
        let all_gone = bench.policies(&[]).unwrap().policy("d").await.unwrap_err();
        assert!(
            all_gone.to_string().contains("version 2 was there before"),
            "{all_gone}"
        );
        let newer = bench.policies(&[1, 2, 3]).unwrap().policy("d").await.unwrap();
        assert_eq!(newer.policy().version, 3);
        let back = bench.policies(&[1, 2]).unwrap().policy("d").await.unwrap_err();
        assert!(back.to_string().contains("older than version 3"), "{back}");
    }

    #[tokio::test]
    async fn a_catalogue_that_begins_anew_under_another_owner_is_none_that_went_back() {
        let mut bench = Bench::new();
        bench.policies(&[7]).unwrap().policy("d").await.unwrap();
        let old = std::mem::replace(&mut bench.owner, PrivateJwk::generate().unwrap());
        assert_eq!(
            bench
                .policies(&[1])
                .unwrap()
                .policy("d")
                .await
                .unwrap()
                .policy()
                .version,
            1
        );
        // Both are there, and while both are pinned the higher counts.
        let known = bench.file(&[&old, &bench.owner]).load().unwrap();
        assert_eq!((known["d"].version, known["d"].owner), (7, Some(old.thumbprint())));
        assert!(bench.file(&[]).load().unwrap().is_empty());
    }

    #[test]
    fn what_another_process_saw_meanwhile_stays() {
        let bench = Bench::new();
        let file = bench.file(&[&bench.owner]);
        let seen = |version| Seen {
            version,
            sha256: [u8::try_from(version).unwrap(); 32],
            owner: Some(bench.owner.thumbprint()),
        };
        file.save(&BTreeMap::from([("d".to_owned(), seen(5)), ("e".to_owned(), seen(1))]))
            .unwrap();
        file.save(&BTreeMap::from([
            ("d".to_owned(), seen(4)),
            ("domain:x".to_owned(), seen(2)),
        ]))
        .unwrap();
        let known = file.load().unwrap();
        assert_eq!(known.values().map(|seen| seen.version).collect::<Vec<_>>(), [5, 2, 1]);
        assert_eq!(known["d"], seen(5));
    }

    #[tokio::test]
    async fn a_memory_that_cannot_be_read_stops_and_one_that_cannot_be_written_is_said() {
        let bench = Bench::new();
        bench.policies(&[1]).unwrap().policy("d").await.unwrap();
        let path = bench.file(&[]).path();
        for broken in ["", "{", r#"{"version":2,"seen":[]}"#, r#"{"version":1,"seen":[{}]}"#] {
            fs::write(&path, broken).unwrap();
            let failure = bench.policies(&[1]).map(drop).unwrap_err();
            assert!(failure.message.contains("versions.json"), "{failure}");
        }
        // A disk that takes nothing: a folder stands where the lock belongs.
        fs::remove_file(&path).unwrap();
        fs::remove_file(path.with_file_name(LOCK)).unwrap();
        fs::create_dir(path.with_file_name(LOCK)).unwrap();
        assert!(bench.policies(&[1]).unwrap().policy("d").await.is_ok());
        assert!(!path.exists());
    }
}
