//! What a key service owes to programs that prove what they are: one contract against the local KMS over HTTP and, where somebody
//! has an enclave, against AWS.
//!
//! For AWS: `SEALFLOW_AWS_CONFORMANCE=1`, credentials and region as for the AWS command line, and
//! - `SEALFLOW_AWS_MEASURED_KEY`, `SEALFLOW_AWS_OTHER_KEY`, `SEALFLOW_AWS_OPEN_KEY`, `SEALFLOW_AWS_DISABLED_KEY`,
//!   `SEALFLOW_AWS_RSA_KEY`: full ARNs of the keys of [`AttestedKeys`];
//! - `SEALFLOW_AWS_ATTEST`: a program without arguments that hands a public key (`SubjectPublicKeyInfo`, DER, as base64 on its
//!   standard input) to an enclave of the right measurement and prints the attestation document that binds it, as base64;
//! - `SEALFLOW_AWS_ATTEST_OTHER`: the same for an enclave of another measurement, if there is one;
//! - `SEALFLOW_AWS_OLD_DOCUMENT`: a file with a document, as base64, that is older than five minutes, if there is one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    DataKeyPairSpec, DataKeySpec, EncryptionAlgorithmSpec, KeyEncryptionMechanism, RecipientInfo,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::keys::conformance::{Answer, Ask, Attested, AttestedKeyService, AttestedKeys, attested_key_service};
use sealflow::keys::{EncryptionContext, RsaBits};
use sealflow::secret::{SecretBytes, SecretString};
use sealflow_local_kms::{KeySpec, Principal, RunningServer, Server, ServerConfig};
use sealflow_testbed::{Enclave, IMAGE, measured_key_policy, skip, spoiled};

const HOST: &str = "arn:aws:iam::111122223333:role/host";

/// A key service, asked by AWS's own client.
struct Wire(aws_sdk_kms::Client);

#[async_trait]
impl AttestedKeyService for Wire {
    async fn ask(&self, ask: &Ask<'_>, document: Option<&[u8]>) -> Result<Answer, String> {
        let recipient = document.map(|document| {
            RecipientInfo::builder()
                .key_encryption_algorithm(KeyEncryptionMechanism::RsaesOaepSha256)
                .attestation_document(Blob::new(document))
                .build()
        });
        match ask {
            Ask::DataKey { arn, context } => {
                let request = self.0.generate_data_key().key_id(*arn).key_spec(DataKeySpec::Aes256);
                let request = request
                    .set_encryption_context(Some(pairs(context)))
                    .set_recipient(recipient);
                let answer = request.send().await.map_err(code)?;
                Ok(Answer {
                    arn: answer.key_id,
                    plaintext: secret(answer.plaintext),
                    wrapped: bytes(answer.ciphertext_blob),
                    public: None,
                    sealed: bytes(answer.ciphertext_for_recipient),
                })
            }
            Ask::Pair { arn, context } => {
                let request = self
                    .0
                    .generate_data_key_pair()
                    .key_id(*arn)
                    .key_pair_spec(DataKeyPairSpec::Rsa2048);
                let request = request
                    .set_encryption_context(Some(pairs(context)))
                    .set_recipient(recipient);
                let answer = request.send().await.map_err(code)?;
                Ok(Answer {
                    arn: answer.key_id,
                    plaintext: secret(answer.private_key_plaintext),
                    wrapped: bytes(answer.private_key_ciphertext_blob),
                    public: bytes(answer.public_key),
                    sealed: bytes(answer.ciphertext_for_recipient),
                })
            }
            Ask::Decrypt { arn, wrapped, context } => {
                let request = self.0.decrypt().key_id(*arn).ciphertext_blob(Blob::new(*wrapped));
                let request = request
                    .set_encryption_context(Some(pairs(context)))
                    .set_recipient(recipient);
                decrypted(request.send().await.map_err(code)?)
            }
            Ask::DecryptRsa { arn, sealed } => {
                let request = self.0.decrypt().key_id(*arn).ciphertext_blob(Blob::new(*sealed));
                let request = request.encryption_algorithm(EncryptionAlgorithmSpec::RsaesOaepSha256);
                decrypted(request.set_recipient(recipient).send().await.map_err(code)?)
            }
            Ask::Random { length } => {
                let length = i32::try_from(*length).unwrap();
                let request = self
                    .0
                    .generate_random()
                    .number_of_bytes(length)
                    .set_recipient(recipient);
                let answer = request.send().await.map_err(code)?;
                Ok(Answer {
                    plaintext: secret(answer.plaintext),
                    sealed: bytes(answer.ciphertext_for_recipient),
                    ..Answer::default()
                })
            }
        }
    }

    async fn public_key(&self, arn: &str) -> Result<Vec<u8>, String> {
        let answer = self.0.get_public_key().key_id(arn).send().await.map_err(code)?;
        bytes(answer.public_key).ok_or_else(|| "GetPublicKey gives nothing".to_owned())
    }
}

fn decrypted(answer: aws_sdk_kms::operation::decrypt::DecryptOutput) -> Result<Answer, String> {
    Ok(Answer {
        arn: answer.key_id,
        plaintext: secret(answer.plaintext),
        sealed: bytes(answer.ciphertext_for_recipient),
        ..Answer::default()
    })
}

fn pairs(context: &EncryptionContext) -> std::collections::HashMap<String, String> {
    context
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn bytes(blob: Option<Blob>) -> Option<Vec<u8>> {
    blob.map(Blob::into_inner).filter(|bytes| !bytes.is_empty())
}

fn secret(blob: Option<Blob>) -> Option<SecretBytes> {
    bytes(blob).map(SecretBytes::new)
}

#[allow(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn code<E: ProvideErrorMetadata, R>(error: SdkError<E, R>) -> String {
    error.code().unwrap_or("no answer").to_owned()
}

async fn local_kms(enclave: &Enclave) -> (RunningServer, Wire) {
    let principal = Principal {
        access_key_id: "AKIAHOST".to_owned(),
        secret_access_key: SecretString::new("secret".to_owned()),
        session_token: None,
        arn: HOST.to_owned(),
    };
    let config = ServerConfig {
        attestation_root: Some(enclave.root_file()),
        ..ServerConfig::in_memory(vec![principal])
    };
    let server = Server::start(config).await.unwrap();
    let client = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::new("AKIAHOST", "secret", None, None, "test"))
        .endpoint_url(server.endpoint())
        .http_client(http_client());
    let wire = Wire(aws_sdk_kms::Client::from_conf(client.build()));
    (server, wire)
}

fn http_client() -> aws_sdk_kms::config::SharedHttpClient {
    use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
    let builder = aws_smithy_http_client::Builder::new();
    builder.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https()
}

/// The five keys of the suite, in the local KMS.
async fn local_keys(server: &RunningServer) -> [String; 5] {
    let measured = measured_key_policy(&IMAGE);
    let make = |spec, policy: Option<String>| async move {
        let made = server.create_key_of(spec, None, "", policy.as_deref()).await;
        made.unwrap()
    };
    let keys = [
        make(KeySpec::Symmetric, Some(measured.clone())).await,
        make(KeySpec::Symmetric, Some(measured.clone())).await,
        make(KeySpec::Symmetric, None).await,
        make(KeySpec::Symmetric, None).await,
        make(KeySpec::Rsa(RsaBits::Rsa2048), Some(measured)).await,
    ];
    server.set_enabled(&keys[3], false).unwrap();
    keys
}

fn named(keys: &[String; 5]) -> AttestedKeys<'_> {
    let [measured, other, open, disabled, rsa] = keys;
    AttestedKeys {
        measured,
        other,
        open,
        disabled,
        rsa,
    }
}

#[tokio::test]
async fn the_local_kms_keeps_the_contract_towards_attested_programs() {
    let enclave = Enclave::new();
    let (server, wire) = local_kms(&enclave).await;
    let keys = local_keys(&server).await;
    assert_eq!(attested_key_service(&wire, &named(&keys), &enclave).await, Ok(()));
}

#[tokio::test]
async fn aws_keeps_the_contract_towards_attested_programs() {
    const TEST: &str = "attested key services against AWS";
    if std::env::var("SEALFLOW_AWS_CONFORMANCE").as_deref() != Ok("1") {
        skip(&format!("{TEST}: needs an enclave on AWS (SEALFLOW_AWS_CONFORMANCE=1)"));
        return;
    }
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{TEST}: {name} is not set"));
    let keys =
        ["MEASURED", "OTHER", "OPEN", "DISABLED", "RSA"].map(|name| variable(&format!("SEALFLOW_AWS_{name}_KEY")));
    let config = aws_config::defaults(BehaviorVersion::latest()).http_client(http_client());
    let wire = Wire(aws_sdk_kms::Client::new(&config.load().await));
    let program = OnAws {
        software: Enclave::new(),
        attest: variable("SEALFLOW_AWS_ATTEST"),
    };
    assert_eq!(attested_key_service(&wire, &named(&keys), &program).await, Ok(()));
}

/// An enclave that somebody runs: it attests to the key that the test holds.
struct OnAws {
    software: Enclave,
    attest: String,
}

impl OnAws {
    fn attested_by(&self, program: &str) -> Result<Vec<u8>, String> {
        let failed = |error: std::io::Error| format!("{program}: {error}");
        let mut command = Command::new(program);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let public = STANDARD.encode(self.software.public());
        let mut stdin = child.stdin.take().ok_or("no standard input")?;
        stdin.write_all(public.as_bytes()).map_err(failed)?;
        drop(stdin);
        let output = child.wait_with_output().map_err(failed)?;
        decoded(&String::from_utf8_lossy(&output.stdout)).ok_or(format!("{program}: what it prints is not base64"))
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.split_whitespace().collect::<String>()).ok()
}

#[async_trait]
impl Attested for OnAws {
    async fn document(&self) -> Result<Vec<u8>, String> {
        self.attested_by(&self.attest)
    }

    async fn not_believed(&self) -> Result<Vec<(&'static str, Vec<u8>)>, String> {
        let mut wrong = spoiled(&self.document().await?);
        // AWS believes its own root alone.
        wrong.push(("a document of a development root", self.software.document_of(|_| {})));
        match std::env::var("SEALFLOW_AWS_OLD_DOCUMENT") {
            Ok(path) => {
                let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
                wrong.push(("an old document", decoded(&text).ok_or(format!("{path}: not base64"))?));
            }
            Err(_) => skip("attested key services against AWS: an old document (SEALFLOW_AWS_OLD_DOCUMENT)"),
        }
        Ok(wrong)
    }

    async fn of_others(&self) -> Result<Vec<(&'static str, Vec<u8>)>, String> {
        match std::env::var("SEALFLOW_AWS_ATTEST_OTHER") {
            Ok(program) => Ok(vec![("another image", self.attested_by(&program)?)]),
            Err(_) => {
                skip("attested key services against AWS: another image (SEALFLOW_AWS_ATTEST_OTHER)");
                Ok(Vec::new())
            }
        }
    }

    fn open(&self, sealed: &[u8]) -> Option<SecretBytes> {
        self.software.open(sealed)
    }

    fn public_of(&self, private: &[u8]) -> Option<Vec<u8>> {
        self.software.public_of(private)
    }

    fn seal_to(&self, public: &[u8], plaintext: &[u8]) -> Option<Vec<u8>> {
        self.software.seal_to(public, plaintext)
    }
}

/// How a service breaks the contract.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// What a server that ignores `Recipient` does.
    IgnoresRecipient,
    PlaintextBeside,
    NamesAnotherKey,
    /// One byte in front: no BER of indefinite length any more.
    OtherEncoding,
    /// Believes whatever it is shown.
    BelievesAll,
    /// The same data key every time.
    Repeats,
}

/// The local KMS with a fault.
struct Broken<'a> {
    wire: &'a Wire,
    enclave: &'a Enclave,
    fault: Fault,
    asked: AtomicU32,
}

#[async_trait]
impl AttestedKeyService for Broken<'_> {
    async fn ask(&self, ask: &Ask<'_>, document: Option<&[u8]>) -> Result<Answer, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let good = self.enclave.document_of(|_| {});
        let document = match self.fault {
            Fault::IgnoresRecipient => None,
            Fault::BelievesAll => document.map(|_| good.as_slice()),
            _ => document,
        };
        let mut answer = self.wire.ask(ask, document).await?;
        match self.fault {
            Fault::PlaintextBeside if document.is_some() => answer.plaintext = Some(SecretBytes::new(vec![1; 32])),
            Fault::NamesAnotherKey => answer.arn = Some("arn:aws:kms:eu-central-1:111122223333:key/other".to_owned()),
            Fault::OtherEncoding => {
                if let Some(sealed) = &mut answer.sealed {
                    sealed.insert(0, 0x30);
                }
            }
            Fault::Repeats if matches!(ask, Ask::DataKey { .. } | Ask::Decrypt { .. }) => {
                answer.sealed = Some(self.enclave.sealed_to_itself(&[7; 32]));
            }
            _ => {}
        }
        Ok(answer)
    }

    async fn public_key(&self, arn: &str) -> Result<Vec<u8>, String> {
        self.wire.public_key(arn).await
    }
}

#[tokio::test]
async fn a_service_that_breaks_the_contract_is_found_out() {
    let enclave = Enclave::new();
    let (server, wire) = local_kms(&enclave).await;
    let keys = local_keys(&server).await;
    for (fault, sentence) in [
        (Fault::IgnoresRecipient, "ends with AccessDeniedException"),
        (
            Fault::PlaintextBeside,
            "gives plaintext beside what is for the recipient",
        ),
        (Fault::NamesAnotherKey, "names another key"),
        (Fault::OtherEncoding, "no BER of indefinite length"),
        (Fault::BelievesAll, "is done"),
        (Fault::Repeats, "two data keys are equal"),
    ] {
        let broken = Broken {
            wire: &wire,
            enclave: &enclave,
            fault,
            asked: AtomicU32::new(0),
        };
        let found = attested_key_service(&broken, &named(&keys), &enclave).await;
        assert!(
            found.as_ref().is_err_and(|found| found.contains(sentence)),
            "{fault:?}: {found:?}"
        );
        assert!(broken.asked.load(Ordering::Relaxed) > 0);
    }
}
