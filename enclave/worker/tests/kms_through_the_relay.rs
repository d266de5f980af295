//! The worker's KMS client against a real KMS that verifies attestation, over TLS through the relay: what the worker gets, and
//! what the host sees and can do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Authority, Channel};
use sealflow::clock::{Clock, UnixMillis};
use sealflow::keys::{
    ClientKeyService as _, EncryptionContext, KeyService as _, KeyServiceError, RsaBits, conformance,
};
use sealflow::secret::SecretString;
use sealflow_enclave_host::relay::RelayTarget;
use sealflow_enclave_protocol::joints::{AttestError, Attester, Claims};
use sealflow_enclave_protocol::recipient::Recipient;
use sealflow_kms::https::{HttpsClient, HttpsConfig, only_root};
use sealflow_kms::{ArnPatterns, AttestedKms, AttestedKmsConfig, Handed, HandedCredentials};
use sealflow_local_kms::{KeySpec, Principal, RunningServer, Server, ServerConfig};
use sealflow_testbed::{Enclave, IMAGE, OTHER_IMAGE, measured_key_policy};

const PATTERN: &str = "arn:aws:kms:eu-central-1:111122223333:key/*";

#[derive(Debug)]
struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> UnixMillis {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        UnixMillis(u64::try_from(now.as_millis()).unwrap())
    }
}

/// Documents about a program of this image.
#[derive(Debug)]
struct Nsm {
    enclave: Arc<Enclave>,
    image: [u8; 48],
}

impl Attester for Nsm {
    fn attest(&self, claims: &Claims<'_>) -> Result<Vec<u8>, AttestError> {
        Ok(self.enclave.document_of(|document| {
            document.public_key = claims.public_key.map(<[u8]>::to_vec);
            document.user_data = claims.user_data.map(<[u8]>::to_vec);
            document.nonce = claims.nonce.map(<[u8]>::to_vec);
            document.pcrs.insert(0, self.image.to_vec());
        }))
    }
}

fn principal() -> Principal {
    Principal {
        access_key_id: "AKIAHOST".to_owned(),
        secret_access_key: SecretString::new("secret".to_owned()),
        session_token: None,
        arn: "arn:aws:iam::111122223333:role/host".to_owned(),
    }
}

/// A KMS for localhost whose certificate is by `authority`.
async fn kms(authority: &Authority, enclave: &Enclave) -> RunningServer {
    let folder = tempfile::tempdir().unwrap();
    let config = ServerConfig {
        tls: Some(authority.files(folder.path())),
        attestation_root: Some(enclave.root_file()),
        ..ServerConfig::in_memory(vec![principal()])
    };
    Server::start(config).await.unwrap()
}

struct Bench {
    server: RunningServer,
    channel: Channel,
    kms: AttestedKms,
}

/// A worker of `image` that trusts `root`, and whose measured endpoint is where `server` listens.
fn bench(server: RunningServer, root: &[u8], enclave: Arc<Enclave>, image: [u8; 48]) -> Bench {
    let port = server.addr().port();
    let channel = Channel::new([RelayTarget::new("localhost", port).unwrap()]);
    let clock: Arc<dyn Clock> = Arc::new(MachineClock);
    let config = AttestedKmsConfig {
        endpoint: Some(format!("https://localhost:{port}")),
        attempts: 2,
        timeout: sealflow::units::Span(Duration::from_secs(50)),
        ..AttestedKmsConfig::new(ArnPatterns::parse(&[PATTERN]).unwrap())
    };
    let https = HttpsConfig {
        hosts: config.hosts().unwrap(),
        connect_timeout: Duration::from_secs(30),
        connections: 4,
    };
    let https = HttpsClient::new(https, channel.dialer.clone(), only_root(root).unwrap(), clock.clone()).unwrap();
    let credentials = HandedCredentials::new(clock.clone());
    credentials.set(Handed {
        access_key_id: "AKIAHOST".to_owned(),
        secret_access_key: SecretString::new("secret".to_owned()),
        session_token: None,
        expires: None,
    });
    let releaser = Recipient::generate(Arc::new(Nsm { enclave, image })).unwrap();
    let kms = AttestedKms::new(&config, &https, credentials, Arc::new(releaser), clock).unwrap();
    Bench { server, channel, kms }
}

async fn honest() -> Bench {
    let (authority, enclave) = (Authority::new(), Arc::new(Enclave::new()));
    let server = kms(&authority, &enclave).await;
    bench(server, &authority.root, enclave, IMAGE)
}

async fn key(server: &RunningServer, spec: KeySpec) -> String {
    let policy = measured_key_policy(&IMAGE);
    server.create_key_of(spec, None, "", Some(&policy)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_keeps_the_contract_of_key_services_through_the_host() {
    let bench = honest().await;
    let arn = key(&bench.server, KeySpec::Symmetric).await;
    let other = key(&bench.server, KeySpec::Symmetric).await;
    assert_eq!(conformance::key_service(&bench.kms, &arn, &other).await, Ok(()));
    assert_eq!(bench.kms.random("eu-central-1", 100).await.unwrap().len(), 100);
    assert!(bench.channel.relay.counters().dialled <= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_and_rsa_keys_open_in_the_worker_alone_and_the_host_sees_no_secret() {
    let bench = honest().await;
    let (arn, rsa) = (
        key(&bench.server, KeySpec::Symmetric).await,
        key(&bench.server, KeySpec::Rsa(RsaBits::Rsa2048)).await,
    );
    let context = EncryptionContext::for_client_pair("payments");
    let pair = bench.kms.generate_pair(&arn, RsaBits::Rsa2048, &context).await.unwrap();
    let half = bench
        .kms
        .private_half(&arn, &pair.wrapped_private, &context)
        .await
        .unwrap();
    assert_eq!(half.public(), pair.public);
    let elsewhere = EncryptionContext::for_client_pair("refunds");
    let refused = bench
        .kms
        .private_half(&arn, &pair.wrapped_private, &elsewhere)
        .await
        .err();
    assert!(matches!(refused, Some(KeyServiceError::Refused { .. })), "{refused:?}");

    let session = b"a session of a client, in clear";
    let public = bench.kms.public_key(&rsa).await.unwrap();
    let sealed = common::seal_to(&public, session);
    assert_eq!(bench.kms.decrypt_rsa(&rsa, &sealed).await.unwrap().expose(), session);
    let to_pair = common::seal_to(&pair.public, session);
    assert_eq!(half.decrypt(&to_pair).unwrap().expose(), session);

    // All bytes that the host carried, both ways.
    let key = bench
        .kms
        .generate(&arn, 32, &EncryptionContext::for_domain("customers"))
        .await
        .unwrap();
    let carried = bench.channel.carried();
    assert!(carried.len() > 10_000, "the relay carried it all");
    for secret in [
        session.as_slice(),
        key.plaintext.expose(),
        b"AKIAHOST",
        b"GenerateDataKey",
        arn.as_bytes(),
    ] {
        assert!(!carried.windows(secret.len()).any(|part| part == secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_gets_nothing_and_a_disabled_key_stops_at_once() {
    let (authority, enclave) = (Authority::new(), Arc::new(Enclave::new()));
    let server = kms(&authority, &enclave).await;
    let changed = bench(server, &authority.root, enclave, OTHER_IMAGE);
    let arn = key(&changed.server, KeySpec::Symmetric).await;
    let context = EncryptionContext::for_domain("customers");
    let denied = changed.kms.generate(&arn, 32, &context).await.err();
    assert!(
        matches!(denied, Some(KeyServiceError::NotPermitted { .. })),
        "{denied:?}"
    );

    let bench = honest().await;
    let arn = key(&bench.server, KeySpec::Symmetric).await;
    let made = bench.kms.generate(&arn, 32, &context).await.unwrap();
    assert_eq!(
        bench.kms.unwrap(&arn, &made.wrapped, &context).await.unwrap(),
        made.plaintext
    );
    bench.server.set_enabled(&arn, false).unwrap();
    let stopped = bench.kms.unwrap(&arn, &made.wrapped, &context).await.err();
    assert!(
        matches!(stopped, Some(KeyServiceError::KeyUnusable { .. })),
        "{stopped:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_answers_as_kms_itself_is_not_asked() {
    // It even verifies attestation, and takes the credentials: only who it is, it cannot prove.
    let (authority, of_host) = (Authority::new(), Authority::new());
    let enclave = Arc::new(Enclave::new());
    let impostor = kms(&of_host, &enclave).await;
    let arn = impostor.create_key(None, "", None).unwrap();
    let bench = bench(impostor, &authority.root, enclave, IMAGE);
    let refused = bench
        .kms
        .generate(&arn, 32, &EncryptionContext::for_domain("customers"))
        .await
        .err();
    assert!(
        matches!(refused, Some(KeyServiceError::Unavailable { .. })),
        "{refused:?}"
    );
    assert!(bench.channel.relay.counters().dialled > 0, "it was dialled");
    assert_eq!(bench.server.requests("GenerateDataKey"), 0);
}
