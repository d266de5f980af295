//! Certificates of our servers: read from PEM files, and read again when they change. It listens nowhere.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// The longest file.
const MAX_FILE: u64 = 1 << 20;

/// A server's certificate, as PEM files. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate, and those that lead from it to a root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// It is not what it should be.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// They do not go together, or with TLS 1.2 and 1.3.
    #[error("{}: the key is not that of the certificate, or of a kind that is not taken: {reason}", path.display())]
    Mismatch {
        /// The key's file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A certificate that follows its files.
#[derive(Debug)]
pub struct Certificate {
    files: TlsConfig,
    current: RwLock<Arc<CertifiedKey>>,
    /// Hash of what was read last, usable or not.
    seen: Mutex<[u8; 32]>,
}

/// Both files as they are now.
struct Pem {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn open(files: &TlsConfig) -> Result<Arc<Self>, TlsError> {
        let pem = Pem::read(files)?;
        Ok(Arc::new(Self {
            current: RwLock::new(Arc::new(pem.certified(files)?)),
            seen: Mutex::new(pem.hash()),
            files: files.clone(),
        }))
    }

    /// Reads the files again. If they have changed, they count for the connections from now on.
    ///
    /// # Errors
    /// [`TlsError`], once for each state of the files; the certificate that was there goes on to count.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let pem = Pem::read(&self.files)?;
        let hash = pem.hash();
        let before = std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), hash);
        if before == hash {
            return Ok(false);
        }
        let certified = pem.certified(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
        Ok(true)
    }

    /// What a server does with it: TLS 1.2 and 1.3, HTTP/1.1, no client certificates.
    ///
    /// # Errors
    /// [`TlsError::Mismatch`]
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| TlsError::Mismatch {
            path: self.files.key.clone(),
            reason: error.to_string(),
        })?;
        let resolver = Arc::clone(self) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Pem {
    fn read(files: &TlsConfig) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read(&files.certificate)?.to_vec(),
            key: read(&files.key)?,
        })
    }

    fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(Sha256::digest(&self.certificate));
        hash.update(Sha256::digest(&*self.key));
        hash.finalize().into()
    }

    fn certified(&self, files: &TlsConfig) -> Result<CertifiedKey, TlsError> {
        let chain = chain(&files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        let key = key.map_err(|_| malformed(&files.key, "there is no private key in it, as PEM"))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        CertifiedKey::from_der(chain, key, &provider).map_err(|error| TlsError::Mismatch {
            path: files.key.clone(),
            reason: error.to_string(),
        })
    }
}

/// The certificates of a PEM file, in their order: one at least.
///
/// # Errors
/// [`TlsError::Read`], [`TlsError::Malformed`]
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    chain(path, &read(path)?)
}

fn chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    // Errors of the parser may quote lines of the file.
    let chain = chain.map_err(|_| malformed(path, "not PEM"))?;
    if chain.is_empty() {
        return Err(malformed(path, "there is no certificate in it"));
    }
    Ok(chain)
}

fn malformed(path: &Path, reason: &str) -> TlsError {
    TlsError::Malformed {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let failed = |error: std::io::Error| TlsError::Read {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if length > MAX_FILE {
        return Err(TlsError::Malformed {
            path: path.to_owned(),
            reason: format!("longer than {MAX_FILE} bytes"),
        });
    }
    // Long enough: a vector that grows leaves a copy behind that nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of a certificate and its key.
    fn files(folder: &Path) -> TlsConfig {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = TlsConfig {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn a_certificate_and_its_key_are_taken_and_taken_again_when_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = Certificate::open(&files(folder.path())).unwrap();
        certificate.server_config().unwrap();
        assert!(!certificate.refresh().unwrap(), "nothing has changed");
        let files = files(folder.path());
        assert!(certificate.refresh().unwrap());
        // What cannot be used is said once, and what was there goes on.
        std::fs::write(&files.key, "nothing").unwrap();
        assert!(certificate.refresh().is_err());
        assert!(!certificate.refresh().unwrap());
    }

    #[test]
    fn what_is_no_pair_of_files_is_named_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let good = files(folder.path());
        let other = tempfile::tempdir().unwrap();
        let foreign = files(other.path());
        let mixed = TlsConfig {
            key: foreign.key,
            ..good.clone()
        };
        assert!(matches!(Certificate::open(&mixed), Err(TlsError::Mismatch { path, .. }) if path == mixed.key));
        let swapped = TlsConfig {
            certificate: good.key.clone(),
            key: good.certificate.clone(),
        };
        assert!(matches!(Certificate::open(&swapped), Err(TlsError::Malformed { path, .. }) if path == good.key));
        let missing = TlsConfig {
            key: folder.path().join("none"),
            ..good.clone()
        };
        assert!(matches!(Certificate::open(&missing), Err(TlsError::Read { path, .. }) if path == missing.key));
        assert_eq!(certificates(&good.certificate).unwrap().len(), 1);
        assert!(certificates(&good.key).is_err());
    }
}
