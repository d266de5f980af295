//! The development root in its folder, and what signs documents under it: an intermediate and a leaf of three hours, renewed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use sealflow_enclave_protocol::attestation::Document;
use sealflow_enclave_protocol::attestation::build::{BuildError, DevRoot, Issuer};
use zeroize::Zeroizing;

/// The root's certificate, DER: what verifiers are given.
pub const CERTIFICATE: &str = "dev-root.der";

/// The root's key, PKCS #8 in DER, which only its owner may read.
pub const KEY: &str = "dev-root.key";

/// Held while a root is made, since several NSMs may start at once.
const LOCK: &str = "dev-root.lock";

/// Largest of these files, in bytes. They have some hundred.
const MOST: u64 = 64 * 1024;

/// How long before its end a leaf is replaced, in milliseconds: documents are looked at after they were signed.
const RENEW_BEFORE_MS: u64 = 60 * 60 * 1000;

/// Why there is no development root.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// A file of it cannot be read or written.
    #[error("the development root cannot be used: {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// Others than its owner may read its key.
    #[error(
        "{path} is the key of the development root, and others than its owner can read it: chmod 600 {path}, or make a new one"
    )]
    Readable {
        /// Its key.
        path: PathBuf,
    },
    /// Certificate or key are not what they should be.
    #[error(
        "the development root in {folder} cannot be used: {source}. Remove {CERTIFICATE} and {KEY} there for a new one"
    )]
    Build {
        /// Where it is.
        folder: PathBuf,
        /// What is wrong.
        source: BuildError,
    },
}

/// A development root that signs.
#[derive(Debug)]
pub struct Root {
    folder: PathBuf,
    root: DevRoot,
    issuer: Issuer,
}

impl Root {
    /// The root of this folder, which is made if there is none.
    ///
    /// # Errors
    /// [`RootError`]
    pub fn load_or_make(folder: &Path, now_ms: u64) -> Result<Self, RootError> {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
        made.map_err(at(folder))?;
        let _lock = locked(&folder.join(LOCK))?;
        let key = folder.join(KEY);
        let root = if key.try_exists().map_err(at(&key))? {
            load(folder)?
        } else {
            make(folder, now_ms)?
        };
        let issuer = root.issuer(now_ms).map_err(built(folder))?;
        Ok(Self {
            folder: folder.to_owned(),
            root,
            issuer,
        })
    }

    /// Signs a document, with a leaf that lives for an hour at least.
    ///
    /// # Errors
    /// [`RootError::Build`]
    pub fn sign(&mut self, document: &Document) -> Result<Vec<u8>, RootError> {
        let now_ms = document.timestamp_ms;
        if self.issuer.valid_until_ms() < now_ms.saturating_add(RENEW_BEFORE_MS) {
            self.issuer = self.root.issuer(now_ms).map_err(built(&self.folder))?;
        }
        self.issuer.document(document).map_err(built(&self.folder))
    }
}

/// The certificate of the development root in this folder, DER: for who verifies.
///
/// # Errors
/// [`RootError::File`] if there is none.
pub fn certificate_of(folder: &Path) -> Result<Vec<u8>, RootError> {
    let path = folder.join(CERTIFICATE);
    let file = File::open(&path).map_err(at(&path))?;
    read(file, &path)
}

fn load(folder: &Path) -> Result<DevRoot, RootError> {
    let certificate = certificate_of(folder)?;
    let path = folder.join(KEY);
    let file = File::open(&path).map_err(at(&path))?;
    // Of the file that is open, so that nothing comes between looking and reading.
    let mode = file.metadata().map_err(at(&path))?.mode();
    if mode & 0o077 != 0 {
        return Err(RootError::Readable { path });
    }
    let key = Zeroizing::new(read(file, &path)?);
    DevRoot::load(&certificate, &key).map_err(built(folder))
}

/// The certificate comes first: a folder with a key has both.
fn make(folder: &Path, now_ms: u64) -> Result<DevRoot, RootError> {
    let root = DevRoot::generate(now_ms).map_err(built(folder))?;
    write(&folder.join(CERTIFICATE), 0o644, root.certificate())?;
    write(&folder.join(KEY), 0o600, &root.private_key())?;
    Ok(root)
}

/// Whole, or not at all.
fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), RootError> {
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&draft)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&draft)
        .map_err(at(&draft))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(at(&draft))?;
    fs::rename(&draft, path).map_err(at(path))
}

fn read(file: File, path: &Path) -> Result<Vec<u8>, RootError> {
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).map_err(at(path))?;
    Ok(bytes)
}

/// Until it is dropped, nobody else makes a root here.
fn locked(path: &Path) -> Result<File, RootError> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(at(path))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|error| at(path)(error.into()))?;
    Ok(file)
}

fn at(path: &Path) -> impl Fn(io::Error) -> RootError {
    move |source| RootError::File {
        path: path.to_owned(),
        source,
    }
}

fn built(folder: &Path) -> impl Fn(BuildError) -> RootError {
    move |source| RootError::Build {
        folder: folder.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sealflow_enclave_protocol::attestation::{Tier, Trust, verify};

    use super::*;

    const NOW: u64 = 1_900_000_000_000;
    const HOUR: u64 = 60 * 60 * 1000;

    fn document(timestamp_ms: u64) -> Document {
        let pcrs = BTreeMap::from([(0, vec![7; 48])]);
        let module_id = "dev-software-nsm-0".to_owned();
        let tier = Tier::DevSoftwareNsm;
        Document {
            module_id,
            timestamp_ms,
            pcrs,
            public_key: None,
            user_data: None,
            nonce: None,
            tier,
        }
    }

    #[test]
    fn documents_verify_for_days_since_what_signs_them_is_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let mut root = Root::load_or_make(folder.path(), NOW).unwrap();
        let trust = Trust::with_dev_root(&certificate_of(folder.path()).unwrap()).unwrap();
        for hours in [0, 1, 2, 3, 4, 50, 51] {
            let now = NOW + hours * HOUR;
            let document = root.sign(&document(now)).unwrap();
            // For an hour after it was signed, too.
            assert!(verify(&document, &trust, now).is_ok(), "{hours}");
            assert!(verify(&document, &trust, now + HOUR - 1000).is_ok(), "{hours}");
            assert!(verify(&document, &trust, now + 4 * HOUR).is_err(), "{hours}");
        }
    }

    #[test]
    fn a_certificate_of_another_root_is_noticed() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Root::load_or_make(one.path(), NOW).unwrap();
        Root::load_or_make(other.path(), NOW).unwrap();
        fs::copy(other.path().join(CERTIFICATE), one.path().join(CERTIFICATE)).unwrap();
        let mixed = Root::load_or_make(one.path(), NOW);
        assert!(matches!(mixed, Err(RootError::Build { .. })));
    }

    #[test]
    fn a_root_that_was_made_by_halves_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CERTIFICATE), b"half").unwrap();
        fs::write(folder.path().join("dev-root.new"), b"draft").unwrap();
        let mut root = Root::load_or_make(folder.path(), NOW).unwrap();
        let trust = Trust::with_dev_root(&certificate_of(folder.path()).unwrap()).unwrap();
        assert!(verify(&root.sign(&document(NOW)).unwrap(), &trust, NOW).is_ok());
    }
}
