//! A channel in memory between the worker's end of the relay and the host's, and certificates.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::sync::{Arc, Mutex};

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use sealflow_enclave_host::relay::{Relay, RelayTarget};
use sealflow_enclave_worker::dial::RelayDialer;
use sealflow_local_kms::TlsConfig;
use tokio::sync::mpsc;

/// Both ends, connected.
pub(crate) struct Channel {
    pub(crate) dialer: Arc<RelayDialer>,
    pub(crate) relay: Arc<Relay>,
    carried: Arc<Mutex<Vec<u8>>>,
}

impl Channel {
    pub(crate) fn new(allowed: impl IntoIterator<Item = RelayTarget>) -> Self {
        let (to_host, mut of_worker) = mpsc::channel::<Vec<u8>>(8);
        let (to_worker, mut of_host) = mpsc::channel::<Vec<u8>>(8);
        let dialer = Arc::new(RelayDialer::new(to_host));
        let relay = Arc::new(Relay::new(allowed, to_worker));
        let carried = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn({
            let (relay, carried) = (Arc::clone(&relay), Arc::clone(&carried));
            async move {
                while let Some(message) = of_worker.recv().await {
                    carried.lock().unwrap().extend_from_slice(&message);
                    relay.deliver(&message).unwrap();
                }
            }
        });
        tokio::spawn({
            let (dialer, carried) = (Arc::clone(&dialer), Arc::clone(&carried));
            async move {
                while let Some(message) = of_host.recv().await {
                    carried.lock().unwrap().extend_from_slice(&message);
                    dialer.deliver(&message).unwrap();
                }
            }
        });
        Self { dialer, relay, carried }
    }

    /// All bytes that went through, of both directions.
    pub(crate) fn carried(&self) -> Vec<u8> {
        self.carried.lock().unwrap().clone()
    }
}

/// An authority, and certificates for localhost by it.
pub(crate) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub(crate) root: Vec<u8>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            root,
        }
    }

    pub(crate) fn files(&self, folder: &Path) -> TlsConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = TlsConfig {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

/// As a client seals: RSAES-OAEP with SHA-256 to a `SubjectPublicKeyInfo`.
pub(crate) fn seal_to(public: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(public).unwrap()).unwrap();
    let mut sealed = vec![0; key.ciphertext_size()];
    let length = key
        .encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut sealed, None)
        .unwrap()
        .len();
    sealed.truncate(length);
    sealed
}
