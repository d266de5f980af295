//! A program in an enclave, as key services see it: an RSA key, and attestation documents of a development root that bind it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
    PublicEncryptingKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::keys::conformance::Attested;
use sealflow::secret::SecretBytes;
use sealflow_enclave_protocol::attestation::build::{DevRoot, Issuer};
use sealflow_enclave_protocol::attestation::{Document, Tier};
use sealflow_enclave_protocol::cms;
use zeroize::Zeroizing;

use crate::Scratch;

/// The measurement of the image that is attested: register 0.
pub const IMAGE: [u8; 48] = [0x1a; 48];
/// Another image.
pub const OTHER_IMAGE: [u8; 48] = [0x2b; 48];

/// A program in an enclave of the image [`IMAGE`], under a development root of its own.
pub struct Enclave {
    folder: Scratch,
    issuer: Issuer,
    foreign: Issuer,
    key: PrivateDecryptingKey,
    /// Milliseconds since 1970; `None` for the machine's clock.
    now: Option<u64>,
}

impl fmt::Debug for Enclave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enclave")
            .field("root", &self.root_file())
            .finish_non_exhaustive()
    }
}

impl Enclave {
    /// By the machine's clock.
    ///
    /// # Panics
    /// If there are no random numbers or no disk.
    #[must_use]
    pub fn new() -> Self {
        Self::make(None)
    }

    /// At that moment, in milliseconds since 1970.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[must_use]
    pub fn at(now: u64) -> Self {
        Self::make(Some(now))
    }

    fn make(now: Option<u64>) -> Self {
        let folder = Scratch::new();
        let moment = now.unwrap_or_else(machine_clock);
        let root = DevRoot::generate(moment).expect("random numbers");
        std::fs::write(folder.path().join("root.pem"), pem(root.certificate())).expect("the folder is writable");
        let foreign = DevRoot::generate(moment).expect("random numbers");
        Self {
            folder,
            issuer: root.issuer(moment).expect("random numbers"),
            foreign: foreign.issuer(moment).expect("random numbers"),
            key: PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("random numbers"),
            now,
        }
    }

    /// The development root's certificate, as PEM.
    #[must_use]
    pub fn root_file(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// The public half of its key: `SubjectPublicKeyInfo`, DER.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        spki(&self.key).expect("a key that was made here")
    }

    /// What it says about itself now.
    #[must_use]
    pub fn says(&self) -> Document {
        Document {
            module_id: "dev-software-nsm-testbed".to_owned(),
            timestamp_ms: self.now.unwrap_or_else(machine_clock),
            pcrs: (0..16_u8)
                .map(|n| (n, if n == 0 { IMAGE.to_vec() } else { vec![n; 48] }))
                .collect(),
            public_key: Some(self.public()),
            user_data: None,
            nonce: None,
            tier: Tier::DevSoftwareNsm,
        }
    }

    /// An attestation document, with something changed in it before it is signed.
    ///
    /// # Panics
    /// If it cannot be built.
    #[must_use]
    pub fn document_of(&self, change: impl FnOnce(&mut Document)) -> Vec<u8> {
        let mut document = self.says();
        change(&mut document);
        self.issuer.document(&document).expect("what a document can say")
    }

    /// The same, under a root that nobody trusts.
    ///
    /// # Panics
    /// As [`document_of`](Self::document_of).
    #[must_use]
    pub fn foreign_document(&self) -> Vec<u8> {
        self.foreign.document(&self.says()).expect("what a document can say")
    }

    /// Seals to its own key, as a key service does.
    ///
    /// # Panics
    /// If there are no random numbers.
    #[must_use]
    pub fn sealed_to_itself(&self, plaintext: &[u8]) -> Vec<u8> {
        cms::seal(&self.public(), plaintext).expect("random numbers")
    }

    /// Documents that nobody may believe, or take a key from: what is wrong, and the bytes.
    ///
    /// # Panics
    /// As [`document_of`](Self::document_of).
    #[must_use]
    pub fn wrong_documents(&self) -> Vec<(&'static str, Vec<u8>)> {
        const MINUTE: u64 = 60_000;
        let mut wrong = spoiled(&self.document_of(|_| {}));
        wrong.extend([
            (
                "an expired document",
                self.document_of(|document| document.timestamp_ms -= 6 * MINUTE),
            ),
            (
                "a document of the future",
                self.document_of(|document| document.timestamp_ms += 6 * MINUTE),
            ),
            ("a document of a foreign root", self.foreign_document()),
            (
                "a document of debug mode: register 0 is zero",
                self.document_of(|document| {
                    document.pcrs.insert(0, vec![0; 48]);
                }),
            ),
            (
                "a document without register 0",
                self.document_of(|document| {
                    document.pcrs.remove(&0);
                }),
            ),
            (
                "a document without a key",
                self.document_of(|document| document.public_key = None),
            ),
            (
                "a document with something else than an RSA key",
                self.document_of(|document| document.public_key = Some(elliptic_key())),
            ),
            (
                "a document with a key that is no DER",
                self.document_of(|document| document.public_key = Some(vec![0x30; 64])),
            ),
        ]);
        wrong
    }
}

impl Default for Enclave {
    fn default() -> Self {
        Self::new()
    }
}

/// What becomes of a genuine document that somebody touches.
#[must_use]
pub fn spoiled(document: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let flipped = |at: usize| {
        let mut edited = document.to_vec();
        if let Some(byte) = edited.get_mut(at) {
            *byte ^= 1;
        }
        edited
    };
    let last = document.len().saturating_sub(1);
    vec![
        ("a document with its first byte changed", flipped(0)),
        (
            "a document with a byte of its payload changed",
            flipped(document.len() / 2),
        ),
        ("a document with a byte of its signature changed", flipped(last)),
        (
            "a document without its last byte",
            document.get(..last).unwrap_or_default().to_vec(),
        ),
        ("a document with one more byte", [document, &[0]].concat()),
        ("no document", vec![0]),
    ]
}

/// A key policy that allows the account everything, and denies what gives plaintext to whoever is not of this image.
#[must_use]
pub fn measured_key_policy(image: &[u8; 48]) -> String {
    let image: String = image.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        r#"{{"Version":"2012-10-17","Statement":[
        {{"Effect":"Allow","Principal":{{"AWS":"arn:aws:iam::111122223333:root"}},"Action":"kms:*","Resource":"*"}},
        {{"Effect":"Deny","Principal":{{"AWS":"*"}},"Action":["kms:CreateGrant","kms:Encrypt",
        "kms:GenerateDataKeyPairWithoutPlaintext","kms:GenerateDataKeyWithoutPlaintext","kms:ReEncrypt*"],"Resource":"*"}},
        {{"Effect":"Deny","Principal":{{"AWS":"*"}},"Action":["kms:Decrypt","kms:DeriveSharedSecret","kms:GenerateDataKey",
        "kms:GenerateDataKeyPair"],"Resource":"*",
        "Condition":{{"StringNotEqualsIgnoreCase":{{"kms:RecipientAttestation:ImageSha384":"{image}"}}}}}}]}}"#
    )
}

#[async_trait]
impl Attested for Enclave {
    async fn document(&self) -> Result<Vec<u8>, String> {
        Ok(self.document_of(|_| {}))
    }

    async fn not_believed(&self) -> Result<Vec<(&'static str, Vec<u8>)>, String> {
        Ok(self.wrong_documents())
    }

    async fn of_others(&self) -> Result<Vec<(&'static str, Vec<u8>)>, String> {
        let other = self.document_of(|document| {
            document.pcrs.insert(0, OTHER_IMAGE.to_vec());
        });
        Ok(vec![("another image", other)])
    }

    fn open(&self, sealed: &[u8]) -> Option<SecretBytes> {
        let opener = OaepPrivateDecryptingKey::new(self.key.clone()).ok()?;
        let unwrap = |wrapped: &[u8]| {
            let mut opened = Zeroizing::new(vec![0; opener.min_output_size()]);
            let length = opener
                .decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut opened, None)
                .ok()?
                .len();
            opened.truncate(length);
            Some(opened)
        };
        let opened = cms::open(sealed, unwrap).ok()?;
        Some(SecretBytes::new(opened.to_vec()))
    }

    fn public_of(&self, private: &[u8]) -> Option<Vec<u8>> {
        spki(&PrivateDecryptingKey::from_pkcs8(private).ok()?)
    }

    fn seal_to(&self, public: &[u8], plaintext: &[u8]) -> Option<Vec<u8>> {
        let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(public).ok()?).ok()?;
        let mut sealed = vec![0; key.ciphertext_size()];
        let length = key
            .encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut sealed, None)
            .ok()?
            .len();
        sealed.truncate(length);
        Some(sealed)
    }
}

pub(crate) fn pem(certificate: &[u8]) -> String {
    let text = STANDARD.encode(certificate);
    let mut lines = vec!["-----BEGIN CERTIFICATE-----"];
    // Base64 is ASCII: every piece is text.
    lines.extend(
        text.as_bytes()
            .chunks(64)
            .filter_map(|line| std::str::from_utf8(line).ok()),
    );
    lines.push("-----END CERTIFICATE-----\n");
    lines.join("\n")
}

fn spki(key: &PrivateDecryptingKey) -> Option<Vec<u8>> {
    let der: PublicKeyX509Der<'_> = key.public_key().as_der().ok()?;
    Some(der.as_ref().to_vec())
}

/// A P-256 key: `SubjectPublicKeyInfo`, DER.
fn elliptic_key() -> Vec<u8> {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("random numbers");
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("a key that was made here");
    der.as_ref().to_vec()
}

fn machine_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The worker's program, built alone and static as images want it, in a folder of its own. `make test` has built it before.
///
/// # Panics
/// If it does not build.
#[must_use]
pub fn worker_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let built = Command::new(workspace.join("scripts/build_enclave_worker.sh"))
            .arg("--tests")
            .status()
            .expect("the script runs");
        assert!(built.success(), "the worker does not build");
        workspace
            .join("target/enclave")
            .join(target)
            .join("debug/sealflow-enclave-worker")
    })
}
