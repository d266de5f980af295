//! The folder of the local KMS: sealed records on disk, written atomically, one process at a time.
//!
//! Every record (a key, the aliases) is one file `"SFLR" ‖ 01 ‖ nonce(12) ‖ ciphertext ‖ tag(16)`, AES-256-GCM under the
//! vault's key with the record's name as additional authenticated data. The vault's key comes from a master-key file
//! that only its owner may read, or by Argon2id (RFC 9106) from a passphrase.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use argon2::{Algorithm, Argon2, Params, Version};
use hkdf::Hkdf;
use sealflow::secret::SecretString;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::blob::BlobNonce;

const MAGIC: &[u8] = b"SFLR\x01";
const NONCE_LEN: usize = 12;
const MAX_FILE: u64 = 1 << 20;
const MASTER_KEY: &str = "master.key";
const PASSPHRASE: &str = "passphrase.json";
const CHECK: &str = "check";
const LOCK: &str = "lock";

/// Argon2id as RFC 9106 recommends where memory is constrained: 64 MiB, three passes.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
/// More than this is refused when it is read from a file: whoever edits it must not make us allocate it.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
const MAX_PASSES: u32 = 16;

/// What opens the folder of keys.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Unlock {
    /// `master.key` in the folder, mode 0600, made when the folder is new.
    KeyFile,
    /// A master-key file somewhere else, mode 0600, made when it is not there and the folder is new.
    KeyFileAt(PathBuf),
    /// A passphrase.
    Passphrase(SecretString),
}

/// Why the folder of keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Another process has the folder open.
    #[error("{path}: another local KMS is running on this folder")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Others than the owner can read the file (or write to the folder).
    #[error("{path}: its mode {mode:04o} lets others in; expected {expected}")]
    TooOpen {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What to set.
        expected: &'static str,
    },
    /// The passphrase or the master key is not that of this folder.
    #[error("{path}: wrong passphrase or master key")]
    WrongKey {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has keys, but not what opens them in the way that was asked for.
    #[error("{path}: {reason}")]
    Unopenable {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// A file was changed, or is not one of ours.
    #[error("{path}: damaged, or not written by this program")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The operating system gives no random numbers.
    #[error("no random numbers")]
    NoRandomness,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PassphraseFile {
    algorithm: String,
    memory_kib: u32,
    passes: u32,
    salt: String,
}

/// An open folder; it is locked until this value is dropped.
pub(crate) struct Vault {
    folder: PathBuf,
    cipher: Aes256Gcm,
    _lock: File,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens `folder`, or makes it.
    pub(crate) fn open(folder: &Path, unlock: &Unlock) -> Result<Self, VaultError> {
        let builder = || {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder
        };
        builder().create(folder).map_err(at(folder))?;
        let folder = fs::canonicalize(folder).map_err(at(folder))?;
        let mode = fs::metadata(&folder).map_err(at(&folder))?.mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(VaultError::TooOpen {
                path: folder,
                mode,
                expected: "0700",
            });
        }
        let lock = lock_folder(&folder)?;
        let is_new = !folder.join(CHECK).exists();
        let key = match unlock {
            Unlock::KeyFile => master_key(&folder, &folder.join(MASTER_KEY), is_new)?,
            Unlock::KeyFileAt(path) => master_key(&folder, path, is_new)?,
            Unlock::Passphrase(passphrase) => passphrase_key(&folder, passphrase, is_new)?,
        };
        let cipher =
            Aes256Gcm::new_from_slice(key.as_slice()).map_err(|_| VaultError::WrongKey { path: folder.clone() })?;
        let vault = Self {
            folder,
            cipher,
            _lock: lock,
        };
        if is_new {
            vault.write(CHECK, b"")?;
        } else if vault.read(CHECK).is_err() {
            return Err(VaultError::WrongKey { path: vault.folder });
        }
        Ok(vault)
    }

    /// Reads and opens the record `name`.
    pub(crate) fn read(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let path = self.folder.join(name);
        let bytes = read_private(&path)?;
        let damaged = || VaultError::Damaged { path: path.clone() };
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let payload = Payload {
            msg: ciphertext,
            aad: name.as_bytes(),
        };
        self.cipher
            .decrypt(&BlobNonce::from(*nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| damaged())
    }

    /// Seals and writes the record `name`, in place of an older one: after a crash there is the old or the new one.
    pub(crate) fn write(&self, name: &str, plaintext: &[u8]) -> Result<(), VaultError> {
        let path = self.folder.join(name);
        let nonce: [u8; NONCE_LEN] = random()?;
        let payload = Payload {
            msg: plaintext,
            aad: name.as_bytes(),
        };
        let ciphertext = self
            .cipher
            .encrypt(&BlobNonce::from(nonce), payload)
            .map_err(|_| VaultError::Damaged { path: path.clone() })?;
        write_private(&path, &[MAGIC, &nonce, &ciphertext].concat())
    }

    /// Removes the record `name`.
    pub(crate) fn remove(&self, name: &str) -> Result<(), VaultError> {
        let path = self.folder.join(name);
        fs::remove_file(&path).map_err(at(&path))?;
        sync_folder(&self.folder)
    }

    /// Names of all records that end in one of `endings`.
    pub(crate) fn names_ending(&self, endings: &[&str]) -> Result<Vec<String>, VaultError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(at(&self.folder))? {
            let name = entry.map_err(at(&self.folder))?.file_name();
            let wanted = |name: &&str| endings.iter().any(|ending| name.ends_with(ending)) && *name != MASTER_KEY;
            if let Some(name) = name.to_str().filter(wanted) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether there is a record `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> VaultError {
    let path = path.to_path_buf();
    move |source| VaultError::Io { path, source }
}

fn lock_folder(folder: &Path) -> Result<File, VaultError> {
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(VaultError::Locked {
            path: folder.to_path_buf(),
        }),
        Err(TryLockError::Error(source)) => Err(VaultError::Io { path, source }),
    }
}

fn master_key(folder: &Path, path: &Path, is_new: bool) -> Result<Zeroizing<[u8; 32]>, VaultError> {
    if is_new && !path.exists() {
        let master: Zeroizing<[u8; 32]> = Zeroizing::new(random()?);
        write_private(path, master.as_slice())?;
    } else if !path.exists() {
        let reason = "it has keys, but no master-key file; were they made with a passphrase?";
        return Err(VaultError::Unopenable {
            path: folder.to_path_buf(),
            reason,
        });
    }
    let bytes = read_private(path)?;
    let master: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| VaultError::Damaged {
        path: path.to_path_buf(),
    })?;
    let mut key = Zeroizing::new([0; 32]);
    // Invariant: 32 bytes are within what HKDF can give.
    let expanded = Hkdf::<Sha256>::new(None, master).expand(b"sealflow local-kms vault v1", key.as_mut_slice());
    expanded.map_err(|_| VaultError::Damaged {
        path: path.to_path_buf(),
    })?;
    Ok(key)
}

fn passphrase_key(folder: &Path, passphrase: &SecretString, is_new: bool) -> Result<Zeroizing<[u8; 32]>, VaultError> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let path = folder.join(PASSPHRASE);
    if is_new && !path.exists() {
        let salt: [u8; 16] = random()?;
        let file = PassphraseFile {
            algorithm: "argon2id".to_owned(),
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            salt: STANDARD.encode(salt),
        };
        let text = serde_json::to_vec_pretty(&file).map_err(|_| VaultError::Damaged { path: path.clone() })?;
        write_private(&path, &text)?;
    } else if !path.exists() {
        let reason = "it has keys, but they were not made with a passphrase";
        return Err(VaultError::Unopenable {
            path: folder.to_path_buf(),
            reason,
        });
    }
    let damaged = || VaultError::Damaged { path: path.clone() };
    let file: PassphraseFile = serde_json::from_slice(&read_private(&path)?).map_err(|_| damaged())?;
    let salt = STANDARD.decode(&file.salt).map_err(|_| damaged())?;
    if file.algorithm != "argon2id" || file.memory_kib > MAX_MEMORY_KIB || file.passes > MAX_PASSES {
        return Err(damaged());
    }
    let params = Params::new(file.memory_kib, file.passes, 1, Some(32)).map_err(|_| damaged())?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut key = Zeroizing::new([0; 32]);
    argon2
        .hash_password_into(passphrase.expose().as_bytes(), &salt, key.as_mut_slice())
        .map_err(|_| damaged())?;
    Ok(key)
}

/// Reads a file that only its owner may read.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let file = File::open(path).map_err(at(path))?;
    let metadata = file.metadata().map_err(at(path))?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(VaultError::TooOpen {
            path: path.to_path_buf(),
            mode,
            expected: "0600",
        });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(metadata.len().min(MAX_FILE)).unwrap_or(0),
    ));
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(at(path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(VaultError::Damaged {
            path: path.to_path_buf(),
        });
    }
    Ok(bytes)
}

/// Writes a file that only its owner may read, by way of a temporary one in the same folder.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), VaultError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // Only a crash leaves one behind, and the lock says that nobody else is writing it.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&temporary)(e)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(at(&temporary))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(at(&temporary))?;
    fs::rename(&temporary, path).map_err(at(path))?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => sync_folder(folder),
        _ => sync_folder(Path::new(".")),
    }
}

fn sync_folder(folder: &Path) -> Result<(), VaultError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(at(folder))
}

fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| VaultError::NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn passphrase(text: &str) -> Unlock {
        Unlock::Passphrase(SecretString::new(text.to_owned()))
    }

    #[test]
    fn a_folder_opens_again_only_with_what_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path(), &passphrase("correct horse")).unwrap();
        vault.write("a.key", b"material").unwrap();
        drop(vault);
        let wrong = Vault::open(folder.path(), &passphrase("battery staple"));
        assert!(matches!(wrong, Err(VaultError::WrongKey { .. })), "{wrong:?}");
        let other_way = Vault::open(folder.path(), &Unlock::KeyFile);
        assert!(matches!(other_way, Err(VaultError::Unopenable { .. })), "{other_way:?}");
        let vault = Vault::open(folder.path(), &passphrase("correct horse")).unwrap();
        assert_eq!(vault.read("a.key").unwrap().as_slice(), b"material");
    }

    #[test]
    fn a_master_key_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Vault::open(folder.path(), &Unlock::KeyFile).unwrap());
        let path = folder.path().join(MASTER_KEY);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o660, 0o666, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let opened = Vault::open(folder.path(), &Unlock::KeyFile);
            assert!(matches!(opened, Err(VaultError::TooOpen { .. })), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Vault::open(folder.path(), &Unlock::KeyFile).is_ok());
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(
            Vault::open(folder.path(), &Unlock::KeyFile),
            Err(VaultError::TooOpen { .. })
        ));
    }

    #[test]
    fn two_servers_cannot_have_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Vault::open(folder.path(), &Unlock::KeyFile).unwrap();
        assert!(matches!(
            Vault::open(folder.path(), &Unlock::KeyFile),
            Err(VaultError::Locked { .. })
        ));
        drop(first);
        assert!(Vault::open(folder.path(), &Unlock::KeyFile).is_ok());
    }

    #[test]
    fn records_that_were_edited_or_renamed_are_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path(), &Unlock::KeyFile).unwrap();
        vault.write("a.key", b"material of a").unwrap();
        vault.write("b.key", b"material of b").unwrap();
        assert_eq!(vault.names_ending(&[".key"]).unwrap(), ["a.key", "b.key"]);
        let (a, b) = (folder.path().join("a.key"), folder.path().join("b.key"));
        let bytes = fs::read(&a).unwrap();
        assert!(!bytes.windows(8).any(|w| w == b"material"), "material in clear on disk");
        for at in 0..bytes.len() {
            let mut edited = bytes.clone();
            edited[at] ^= 1;
            fs::write(&a, &edited).unwrap();
            assert!(
                matches!(vault.read("a.key"), Err(VaultError::Damaged { .. })),
                "byte {at}"
            );
        }
        fs::rename(&b, &a).unwrap();
        assert!(matches!(vault.read("a.key"), Err(VaultError::Damaged { .. })));
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_record() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path(), &Unlock::KeyFile).unwrap();
        vault.write("a.key", b"old").unwrap();
        fs::write(folder.path().join("a.key.new"), b"torn").unwrap();
        assert_eq!(vault.read("a.key").unwrap().as_slice(), b"old");
        assert_eq!(vault.names_ending(&[".key"]).unwrap(), ["a.key"]);
        vault.write("a.key", b"new").unwrap();
        assert_eq!(vault.read("a.key").unwrap().as_slice(), b"new");
    }

    #[test]
    fn debug_shows_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let unlock = passphrase("hunter2");
        let vault = Vault::open(folder.path(), &unlock).unwrap();
        assert!(!format!("{unlock:?} {vault:?}").contains("hunter2"));
    }
}
