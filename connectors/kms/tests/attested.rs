//! The client of a program in a TEE against servers in memory, honest ones and lying ones: what it asks, what it takes, and whom.
//! No sockets: who dials is a function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sealflow::clock::{Clock as _, ManualClock, UnixMillis};
use sealflow::keys::{ClientKeyService as _, EncryptionContext, KeyService as _, KeyServiceError, RsaBits};
use sealflow::secret::SecretString;
use sealflow_enclave_protocol::joints::{AttestError, KeyReleaser, ReleaseError};
use sealflow_kms::https::{Dial, HttpsClient, HttpsConfig, HttpsError, Stream, only_root, web_roots};
use sealflow_kms::{ArnPatterns, AttestedKms, AttestedKmsConfig, Handed, HandedCredentials};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

const HOST: &str = "kms.eu-central-1.amazonaws.com";
const PATTERN: &str = "arn:aws:kms:eu-central-1:111122223333:key/a*";
const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/asked";
const OTHER: &str = "arn:aws:kms:eu-central-1:111122223333:key/another";
/// 2030-01-01T00:00:00Z: no machine's clock shows it.
const NOW: UnixMillis = UnixMillis(1_893_456_000_000);
/// What never takes so long on a machine with nothing else to do may take long on a busy one.
const PATIENCE: Duration = Duration::from_secs(120);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Releases by a prefix: what is sealed how is the business of other tests.
#[derive(Debug)]
struct Pretended;

impl KeyReleaser for Pretended {
    fn evidence(&self) -> Result<Vec<u8>, AttestError> {
        Ok(b"evidence".to_vec())
    }

    fn open(&self, released: &[u8]) -> Result<Zeroizing<Vec<u8>>, ReleaseError> {
        let opened = released.strip_prefix(b"released:").ok_or(ReleaseError)?;
        Ok(Zeroizing::new(opened.to_vec()))
    }
}

fn released(secret: &[u8]) -> String {
    STANDARD.encode([b"released:".as_slice(), secret].concat())
}

/// An authority, valid from a day before [`NOW`] to a day after, and certificates by it.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: Vec<u8>,
}

fn validity(params: &mut rcgen::CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2029, 12, 31);
    params.not_after = rcgen::date_time_ymd(2030, 1, 2);
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        validity(&mut params);
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            root,
        }
    }

    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        validity(&mut params);
        let certificate: CertificateDer<'static> = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn operation(&self) -> &str {
        self.header("x-amz-target").unwrap().split_once('.').unwrap().1
    }
}

type Answer = dyn Fn(&Seen) -> Vec<u8> + Send + Sync;

/// A server that is dialled in memory.
struct Server {
    /// `None`: it speaks no TLS.
    tls: Option<TlsAcceptor>,
    answer: Box<Answer>,
    seen: Mutex<Vec<Seen>>,
    dialled: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

#[derive(Clone)]
struct Dialled(Arc<Server>);

impl fmt::Debug for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialled")
    }
}

impl Dialled {
    fn new(tls: Option<TlsAcceptor>, answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Server {
            tls,
            answer: Box::new(answer),
            seen: Mutex::default(),
            dialled: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
        }))
    }

    fn seen(&self) -> Vec<Seen> {
        self.0.seen.lock().unwrap().clone()
    }

    fn dials(&self) -> usize {
        self.0.dialled.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Dial for Dialled {
    async fn dial(&self, _: &str, _: u16) -> std::io::Result<Box<dyn Stream>> {
        self.0.dialled.fetch_add(1, Ordering::SeqCst);
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        let server = Arc::clone(&self.0);
        tokio::spawn(async move {
            let open = server.open.fetch_add(1, Ordering::SeqCst) + 1;
            server.most_open.fetch_max(open, Ordering::SeqCst);
            match &server.tls {
                Some(tls) => {
                    if let Ok(stream) = tls.accept(theirs).await {
                        serve(&server, stream).await;
                    }
                }
                None => {
                    let mut theirs = theirs;
                    drop(theirs.write_all(b"HTTP/1.1 400 X\r\n\r\n").await);
                    serve(&server, theirs).await;
                }
            }
            server.open.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(Box::new(ours))
    }
}

/// Answers until one answer says `connection: close`.
async fn serve(server: &Server, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) if head.len() < 20_000 => head.push(byte),
                _ => return,
            }
        }
        let mut seen = Seen {
            head: String::from_utf8_lossy(&head).into_owned(),
            body: Vec::new(),
        };
        let length = seen
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        seen.body = vec![0; length];
        stream.read_exact(&mut seen.body).await.unwrap();
        let answer = (server.answer)(&seen);
        server.seen.lock().unwrap().push(seen);
        if answer.is_empty() {
            std::future::pending::<()>().await;
        }
        if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if answer.windows(17).any(|part| part == b"connection: close") {
            drop(stream.shutdown().await);
            return;
        }
    }
}

fn http(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn aws(status: u16, body: &Value) -> Vec<u8> {
    // A time that AWS would claim and that nobody must follow.
    let headers = "content-type: application/x-amz-json-1.1\r\ndate: Tue, 01 Jan 2019 00:00:00 GMT\r\n";
    http(status, headers, body.to_string().as_bytes())
}

struct Bench {
    kms: AttestedKms,
    server: Dialled,
    credentials: HandedCredentials,
    clock: Arc<ManualClock>,
}

fn credentials(id: &str) -> Handed {
    Handed {
        access_key_id: id.to_owned(),
        secret_access_key: SecretString::new("secret".to_owned()),
        session_token: None,
        expires: None,
    }
}

fn https(server: &Dialled, root: &[u8], clock: Arc<ManualClock>, connections: usize) -> HttpsClient {
    let config = HttpsConfig {
        hosts: BTreeSet::from([(HOST.to_owned(), 443)]),
        connect_timeout: PATIENCE,
        connections,
    };
    HttpsClient::new(config, Arc::new(server.clone()), only_root(root).unwrap(), clock).unwrap()
}

/// A client of this server, which trusts `root`.
fn bench_of(server: Dialled, root: &[u8]) -> Bench {
    let clock = Arc::new(ManualClock::at(NOW));
    let config = AttestedKmsConfig {
        attempts: 1,
        timeout: sealflow::units::Span(Duration::from_secs(30)),
        ..AttestedKmsConfig::new(ArnPatterns::parse(&[PATTERN]).unwrap())
    };
    let hosts = config.hosts().unwrap();
    assert_eq!(hosts, BTreeSet::from([(HOST.to_owned(), 443)]));
    let https = https(&server, root, clock.clone(), 4);
    let handed = HandedCredentials::new(clock.clone());
    assert!(handed.set(credentials("AKIA1")));
    let kms = AttestedKms::new(&config, &https, handed.clone(), Arc::new(Pretended), clock.clone());
    Bench {
        kms: kms.unwrap(),
        server,
        credentials: handed,
        clock,
    }
}

/// A client of a KMS that answers by `answer`.
fn bench(answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Bench {
    let authority = Authority::new();
    let server = Dialled::new(Some(authority.acceptor(HOST)), answer);
    bench_of(server, &authority.root)
}

fn always(body: Value) -> Bench {
    bench(move |_| aws(200, &body))
}

fn context() -> EncryptionContext {
    EncryptionContext::for_data_key("payments", "default", "pii")
}

/// PKCS #8 and `SubjectPublicKeyInfo` of a new key.
fn pair(size: KeySize) -> (Vec<u8>, Vec<u8>) {
    let key = PrivateDecryptingKey::generate(size).unwrap();
    let private: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    (private.as_ref().to_vec(), public.as_ref().to_vec())
}

fn is_bad<T: fmt::Debug>(answer: &Result<T, KeyServiceError>) -> bool {
    matches!(answer, Err(KeyServiceError::BadAnswer { .. }))
}

/// `base` with some members replaced; null takes one away.
fn with(base: &Value, change: &Value) -> Value {
    let mut body = base.clone();
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            body.as_object_mut().unwrap().remove(name);
        } else {
            body[name] = value.clone();
        }
    }
    body
}

/// What every answer with a secret can lie about.
fn lies(plaintext: &str) -> Vec<Value> {
    let long = STANDARD.encode(vec![7; 6145]);
    vec![
        json!({ plaintext: STANDARD.encode([7; 32]) }),
        json!({ plaintext: STANDARD.encode([7; 32]), "CiphertextForRecipient": null }),
        json!({ "CiphertextForRecipient": null }),
        json!({ "CiphertextForRecipient": "" }),
        json!({ "CiphertextForRecipient": STANDARD.encode(b"no release") }),
        json!({ "CiphertextForRecipient": long }),
        json!({ "KeyId": OTHER }),
        json!({ "KeyId": "asked" }),
        json!({ "KeyId": null }),
    ]
}

#[tokio::test]
async fn a_data_key_is_taken_as_released_and_never_as_a_plaintext() {
    let honest = json!({"KeyId": ARN, "CiphertextBlob": "AAAA", "CiphertextForRecipient": released(&[7; 32])});
    let key = always(honest.clone()).kms.generate(ARN, 32, &context()).await.unwrap();
    assert_eq!(
        (key.plaintext.expose(), key.wrapped.as_slice()),
        ([7; 32].as_slice(), [0; 3].as_slice())
    );
    // As KMS may also spell that there is none.
    let empty = with(&honest, &json!({"Plaintext": ""}));
    assert!(always(empty).kms.generate(ARN, 32, &context()).await.is_ok());

    let mut lies = lies("Plaintext");
    lies.extend([31, 33, 0].map(|len| json!({ "CiphertextForRecipient": released(&vec![7; len]) })));
    lies.extend([json!({ "CiphertextBlob": "" }), json!({ "CiphertextBlob": null })]);
    for lie in lies {
        let answer = always(with(&honest, &lie)).kms.generate(ARN, 32, &context()).await;
        assert!(is_bad(&answer), "{lie}: {answer:?}");
    }
}

#[tokio::test]
async fn what_is_unwrapped_is_taken_as_released_and_never_as_a_plaintext() {
    let honest = json!({"KeyId": ARN, "CiphertextForRecipient": released(&[7; 32]),
        "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"});
    let kms = always(honest.clone()).kms;
    assert_eq!(kms.unwrap(ARN, b"wrapped", &context()).await.unwrap().expose(), [7; 32]);
    assert_eq!(kms.decrypt_rsa(ARN, b"sealed").await.unwrap().expose(), [7; 32]);
    for lie in lies("Plaintext") {
        let kms = always(with(&honest, &lie)).kms;
        let unwrapped = kms.unwrap(ARN, b"wrapped", &context()).await;
        assert!(is_bad(&unwrapped), "{lie}: {unwrapped:?}");
        let opened = kms.decrypt_rsa(ARN, b"sealed").await;
        assert!(is_bad(&opened), "{lie}: {opened:?}");
        assert!(is_bad(&kms.private_half(ARN, b"wrapped", &context()).await), "{lie}");
    }
    for length in [0, 4097] {
        let body = with(
            &honest,
            &json!({ "CiphertextForRecipient": released(&vec![7; length]) }),
        );
        assert!(
            is_bad(&always(body).kms.unwrap(ARN, b"wrapped", &context()).await),
            "{length}"
        );
    }
    // Longer than RSA carries; by another algorithm; and nothing at all, which is the client's fault.
    let long = with(&honest, &json!({ "CiphertextForRecipient": released(&[7; 447]) }));
    assert!(is_bad(&always(long).kms.decrypt_rsa(ARN, b"sealed").await));
    let other = with(&honest, &json!({ "EncryptionAlgorithm": "RSAES_OAEP_SHA_1" }));
    assert!(is_bad(&always(other).kms.decrypt_rsa(ARN, b"sealed").await));
    let nothing = with(&honest, &json!({ "CiphertextForRecipient": released(b"") }));
    let refused = always(nothing).kms.decrypt_rsa(ARN, b"sealed").await;
    assert!(matches!(refused, Err(KeyServiceError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_pair_is_taken_only_if_its_halves_belong_together() {
    let (private, public) = pair(KeySize::Rsa2048);
    let (_, foreign) = pair(KeySize::Rsa2048);
    let (large_private, large_public) = pair(KeySize::Rsa3072);
    let honest = json!({"KeyId": ARN, "KeyPairSpec": "RSA_2048", "PublicKey": STANDARD.encode(&public),
        "PrivateKeyCiphertextBlob": "AAAA", "CiphertextForRecipient": released(&private)});
    let made = always(honest.clone())
        .kms
        .generate_pair(ARN, RsaBits::Rsa2048, &context())
        .await
        .unwrap();
    assert_eq!((made.public, made.wrapped_private), (public.clone(), vec![0; 3]));
    let opened = json!({"KeyId": ARN, "CiphertextForRecipient": released(&private)});
    let half = always(opened)
        .kms
        .private_half(ARN, b"wrapped", &context())
        .await
        .unwrap();
    assert_eq!(half.public(), public);

    let mut lies = lies("PrivateKeyPlaintext");
    lies.extend([
        // The host's own pair, in part or in whole of another size.
        json!({ "PublicKey": STANDARD.encode(&foreign) }),
        json!({ "PublicKey": STANDARD.encode(&large_public), "CiphertextForRecipient": released(&large_private) }),
        json!({ "CiphertextForRecipient": released(&private[..private.len() - 1]) }),
        json!({ "KeyPairSpec": "RSA_3072" }),
        json!({ "KeyPairSpec": null }),
        json!({ "PublicKey": "" }),
        json!({ "PrivateKeyCiphertextBlob": "" }),
    ]);
    for lie in lies {
        let answer = always(with(&honest, &lie))
            .kms
            .generate_pair(ARN, RsaBits::Rsa2048, &context())
            .await;
        assert!(is_bad(&answer), "{lie}: {answer:?}");
    }
}

#[tokio::test]
async fn random_bytes_are_released_too() {
    let honest = json!({ "CiphertextForRecipient": released(&[7; 48]) });
    let kms = always(honest.clone()).kms;
    assert_eq!(kms.random("eu-central-1", 48).await.unwrap().expose(), [7; 48]);
    assert!(is_bad(&kms.random("eu-central-1", 47).await));
    assert!(matches!(
        kms.random("eu-west-1", 48).await,
        Err(KeyServiceError::NotPermitted { .. })
    ));
    let lie = with(&honest, &json!({ "Plaintext": STANDARD.encode([7; 48]) }));
    assert!(is_bad(&always(lie).kms.random("eu-central-1", 48).await));
}

/// Whatever is asked, something.
fn anything(seen: &Seen) -> Vec<u8> {
    let (private, public) = (b"no key".to_vec(), STANDARD.encode(b"no key"));
    aws(
        200,
        &match seen.operation() {
            "GenerateDataKey" => {
                json!({"KeyId": ARN, "CiphertextBlob": "AAAA", "CiphertextForRecipient": released(&[7; 32])})
            }
            "GenerateDataKeyPair" => json!({"KeyId": ARN, "KeyPairSpec": "RSA_2048", "PublicKey": public,
                "PrivateKeyCiphertextBlob": "AAAA", "CiphertextForRecipient": released(&private)}),
            "GetPublicKey" => json!({"KeyId": ARN, "PublicKey": public, "KeyUsage": "ENCRYPT_DECRYPT",
                "EncryptionAlgorithms": ["RSAES_OAEP_SHA_256"]}),
            "DescribeKey" => {
                json!({"KeyMetadata": {"KeyId": "asked", "Arn": ARN, "Enabled": true, "KeyState": "Enabled"}})
            }
            _ => {
                json!({"KeyId": ARN, "CiphertextForRecipient": released(&[7; 32]), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"})
            }
        },
    )
}

#[tokio::test]
async fn every_request_for_a_secret_names_the_recipient_the_full_arn_and_the_given_time() {
    let bench = bench(anything);
    let kms = &bench.kms;
    kms.generate(ARN, 32, &context()).await.unwrap();
    kms.generate(ARN, 64, &context()).await.unwrap_err();
    kms.unwrap(ARN, b"wrapped", &context()).await.unwrap();
    kms.decrypt_rsa(ARN, b"sealed").await.unwrap();
    kms.generate_pair(ARN, RsaBits::Rsa2048, &context()).await.unwrap_err();
    kms.private_half(ARN, b"wrapped", &context()).await.unwrap_err();
    kms.random("eu-central-1", 32).await.unwrap();
    let about_secrets = bench.server.seen();
    kms.public_key(ARN).await.unwrap();
    assert!(kms.describe(ARN).await.unwrap().enabled);
    let seen = bench.server.seen();
    assert_eq!((about_secrets.len(), seen.len()), (7, 9));

    let recipient =
        json!({"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": STANDARD.encode(b"evidence")});
    let pairs = json!({"sealflow:dataset": "payments", "sealflow:key": "default", "sealflow:acl": "pii"});
    for request in &about_secrets {
        let body = request.json();
        assert_eq!(body["Recipient"], recipient, "{}", request.operation());
        let is_symmetric = body["EncryptionAlgorithm"].is_null() && request.operation() != "GenerateRandom";
        assert_eq!(
            body["EncryptionContext"],
            if is_symmetric { pairs.clone() } else { Value::Null }
        );
    }
    for request in &seen {
        // Although each answer before it came with another date.
        assert_eq!(
            request.header("x-amz-date"),
            Some("20300101T000000Z"),
            "{}",
            request.head
        );
        assert_eq!(request.header("host"), Some(HOST));
        let body = request.json();
        let is_about_a_key = request.operation() != "GenerateRandom";
        assert_eq!(body["KeyId"], if is_about_a_key { json!(ARN) } else { Value::Null });
    }
    assert_eq!(bench.server.dials(), 1, "one connection carries them all");
    assert_eq!(kms.identity().await.unwrap(), "attested");
    assert!(!format!("{kms:?}").contains("AKIA"));
}

#[tokio::test]
async fn keys_that_are_not_in_the_configuration_are_not_even_asked_for() {
    let bench = bench(anything);
    let kms = &bench.kms;
    for arn in [
        "arn:aws:kms:eu-central-1:111122223333:key/other",
        "arn:aws:kms:eu-central-1:999999999999:key/asked",
        "arn:aws:kms:eu-west-1:111122223333:key/asked",
        "arn:aws-cn:kms:eu-central-1:111122223333:key/asked",
        "arn:aws:kms:eu-central-1:111122223333:alias/asked",
        "asked",
        "alias/asked",
        "",
    ] {
        let refused = [
            kms.generate(arn, 32, &context()).await.err(),
            kms.unwrap(arn, b"wrapped", &context()).await.err(),
            kms.decrypt_rsa(arn, b"sealed").await.err(),
            kms.generate_pair(arn, RsaBits::Rsa2048, &context()).await.err(),
            kms.private_half(arn, b"wrapped", &context()).await.err(),
            kms.public_key(arn).await.err(),
            kms.describe(arn).await.err(),
        ];
        for refused in refused {
            assert!(
                matches!(refused, Some(KeyServiceError::NotPermitted { .. })),
                "{arn}: {refused:?}"
            );
        }
    }
    // Nor is anything wrapped or unwrapped that is bound to nothing.
    let none = EncryptionContext::default();
    let refused = [
        kms.generate(ARN, 32, &none).await.err(),
        kms.unwrap(ARN, b"wrapped", &none).await.err(),
        kms.generate_pair(ARN, RsaBits::Rsa2048, &none).await.err(),
    ];
    for refused in refused {
        assert!(matches!(refused, Some(KeyServiceError::Refused { .. })), "{refused:?}");
    }
    for mac in [
        kms.mac(ARN, b"m").await.err(),
        kms.verify_mac(ARN, b"m", &[0; 32]).await.err(),
    ] {
        assert!(matches!(mac, Some(KeyServiceError::KeyUnusable { .. })), "{mac:?}");
    }
    assert_eq!(bench.server.dials(), 0);
}

#[tokio::test]
async fn a_server_that_has_not_proved_to_be_kms_gets_no_request() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let impostors = [
        ("by another root", Some(stranger.acceptor(HOST))),
        (
            "of another name",
            Some(authority.acceptor("kms.eu-west-1.amazonaws.com")),
        ),
        ("without TLS", None),
    ];
    for (what, tls) in impostors {
        let bench = bench_of(Dialled::new(tls, anything), &authority.root);
        let answer = bench.kms.generate(ARN, 32, &context()).await;
        assert!(
            matches!(answer, Err(KeyServiceError::Unavailable { .. })),
            "{what}: {answer:?}"
        );
        assert!(bench.server.dials() > 0 && bench.server.seen().is_empty(), "{what}");
    }
    // A certificate is looked at by the given clock, and its own machine's says that this one is not valid for years.
    let bench = bench_of(Dialled::new(Some(authority.acceptor(HOST)), anything), &authority.root);
    assert!(bench.kms.generate(ARN, 32, &context()).await.is_ok());
    for moment in [UnixMillis(NOW.0 - 2 * 86_400_000), NOW.plus(2 * DAY)] {
        let bench = bench_of(Dialled::new(Some(authority.acceptor(HOST)), anything), &authority.root);
        bench.clock.set(moment);
        let answer = bench.kms.generate(ARN, 32, &context()).await;
        assert!(
            answer.is_err() && bench.server.seen().is_empty(),
            "{}",
            bench.clock.now()
        );
    }
}

#[tokio::test]
async fn the_webs_roots_do_not_say_who_a_server_of_ones_own_is() {
    let authority = Authority::new();
    let server = Dialled::new(Some(authority.acceptor(HOST)), |_| http(200, "", b"{}"));
    let config = HttpsConfig {
        hosts: BTreeSet::from([(HOST.to_owned(), 443)]),
        connect_timeout: PATIENCE,
        connections: 1,
    };
    let clock = Arc::new(ManualClock::at(NOW));
    let client = HttpsClient::new(config, Arc::new(server.clone()), web_roots(), clock).unwrap();
    let refused = client.get(&format!("https://{HOST}/"), 10, PATIENCE).await;
    assert_eq!(refused, Err(HttpsError::Tls { host: HOST.to_owned() }));
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn credentials_that_are_refused_are_asked_for_and_replaced() {
    let bench = bench(|seen| {
        let by = seen.header("authorization").unwrap_or_default();
        if by.contains("AKIA1") {
            return aws(400, &json!({"__type": "ExpiredTokenException", "message": "expired"}));
        }
        anything(seen)
    });
    let context = context();
    let ask = || bench.kms.generate(ARN, 32, &context);
    // Others may come: a later try can succeed, and whoever has them is told.
    let away = ask().await.unwrap_err();
    assert!(away.is_retryable(), "{away:?}");
    tokio::time::timeout(Duration::from_secs(10), bench.credentials.wanted())
        .await
        .unwrap();
    assert!(ask().await.unwrap_err().is_retryable());
    assert_eq!(bench.server.seen().len(), 1, "without credentials nothing is sent");
    assert!(!bench.credentials.set(credentials("AKIA1")));
    bench.clock.advance(Duration::from_secs(300));
    assert!(!ask().await.unwrap_err().is_retryable());
    assert!(bench.credentials.set(credentials("AKIA2")));
    assert!(ask().await.is_ok());
}

#[tokio::test]
async fn errors_are_retried_and_mapped_by_meaning() {
    let authority = Authority::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let server = Dialled::new(Some(authority.acceptor(HOST)), move |seen| {
        match counted.fetch_add(1, Ordering::SeqCst) {
            0 => aws(500, &json!({"__type": "KMSInternalException"})),
            1 | 2 => anything(seen),
            _ => aws(
                400,
                &json!({"__type": "AccessDeniedException", "message": "no attestation"}),
            ),
        }
    });
    let clock = Arc::new(ManualClock::at(NOW));
    let handed = HandedCredentials::new(clock.clone());
    handed.set(credentials("AKIA1"));
    let config = AttestedKmsConfig::new(ArnPatterns::parse(&[PATTERN]).unwrap());
    let https = https(&server, &authority.root, clock.clone(), 2);
    let kms = AttestedKms::new(&config, &https, handed, Arc::new(Pretended), clock).unwrap();
    assert!(kms.generate(ARN, 32, &context()).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert!(kms.unwrap(ARN, b"wrapped", &context()).await.is_ok());
    let denied = kms.unwrap(ARN, b"wrapped", &context()).await.err();
    let code = "AccessDeniedException".to_owned();
    assert_eq!(
        denied,
        Some(KeyServiceError::NotPermitted {
            arn: ARN.to_owned(),
            code
        })
    );
    assert_eq!(asked.load(Ordering::SeqCst), 4, "what is denied is not asked for again");
}

/// A client without KMS.
fn documents(answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static, connections: usize) -> (HttpsClient, Dialled) {
    let authority = Authority::new();
    let server = Dialled::new(Some(authority.acceptor(HOST)), answer);
    let client = https(&server, &authority.root, Arc::new(ManualClock::at(NOW)), connections);
    (client, server)
}

#[tokio::test]
async fn documents_come_from_listed_hosts_within_their_cap_and_time() {
    const CAP: usize = 512 * 1024;
    let (client, server) = documents(
        |seen| match seen.head.split(' ').nth(1).unwrap() {
            "/jwks?v=1" => http(200, "", b"{}"),
            "/most" => http(200, "", &vec![b' '; CAP]),
            "/more" => http(200, "", &vec![b' '; CAP + 1]),
            "/endless" => {
                let chunk = [b"1000\r\n".as_slice(), &[b' '; 4096], b"\r\n"].concat();
                let head = b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n".as_slice();
                [head, &chunk.repeat(CAP / 4096 + 1)].concat()
            }
            "/moved" => http(302, "location: https://other.example/\r\n", b""),
            "/head" => http(200, &format!("x-long: {}\r\n", "x".repeat(100_000)), b"{}"),
            "/noise" => b"\x16\x03\x01 noise\r\n\r\n".to_vec(),
            "/never" => Vec::new(),
            _ => http(404, "", b""),
        },
        2,
    );
    let get = async |url: &str| client.get(url, CAP, PATIENCE).await;
    let at = |path: &str| format!("https://{HOST}{path}");
    let host = || HOST.to_owned();
    assert_eq!(get(&at("/jwks?v=1")).await.unwrap().as_ref(), b"{}");
    assert_eq!(get(&at("/most")).await.unwrap().len(), CAP);
    for path in ["/more", "/endless"] {
        assert_eq!(
            get(&at(path)).await,
            Err(HttpsError::TooLong { host: host(), cap: CAP }),
            "{path}"
        );
    }
    assert_eq!(
        get(&at("/moved")).await,
        Err(HttpsError::Status {
            host: host(),
            status: 302
        })
    );
    assert_eq!(
        get(&at("/none")).await,
        Err(HttpsError::Status {
            host: host(),
            status: 404
        })
    );
    for path in ["/head", "/noise"] {
        assert_eq!(
            get(&at(path)).await,
            Err(HttpsError::Connection { host: host() }),
            "{path}"
        );
    }
    let late = client.get(&at("/never"), CAP, Duration::from_millis(50)).await;
    assert_eq!(late, Err(HttpsError::Timeout { host: host() }));

    let dials = server.dials();
    for url in [
        "http://kms.eu-central-1.amazonaws.com/",
        "https://kms.eu-central-1.amazonaws.com:444/",
        "https://169.254.169.254/latest/meta-data/",
        "https://other.example/",
        "https://me@kms.eu-central-1.amazonaws.com/",
    ] {
        assert!(matches!(get(url).await, Err(HttpsError::NotAllowed { .. })), "{url}");
    }
    assert_eq!(server.dials(), dials);
}

#[tokio::test]
async fn a_few_connections_are_used_again_and_closed_ones_replaced() {
    let (client, server) = documents(
        |seen| match seen.head.contains("/last") {
            true => http(200, "connection: close\r\n", b"{}"),
            false => http(200, "", b"{}"),
        },
        3,
    );
    let get = async |client: HttpsClient, path: &'static str| {
        client.get(&format!("https://{HOST}{path}"), 10, PATIENCE).await
    };
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..30 {
        all.spawn(get(client.clone(), "/"));
    }
    assert!(all.join_all().await.iter().all(Result::is_ok));
    assert!(server.dials() <= 3 && server.0.most_open.load(Ordering::SeqCst) <= 3);
    for _ in 0..4 {
        assert!(get(client.clone(), "/last").await.is_ok());
        assert!(get(client.clone(), "/").await.is_ok());
    }
}
