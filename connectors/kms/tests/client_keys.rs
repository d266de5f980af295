//! Keys that clients seal to, through the KMS client: one contract against the local KMS and against MiniStack, an
//! independent implementation, whose RSA is real.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{EncryptionAlgorithmSpec, KeySpec as AwsKeySpec, KeyUsageType};
use base64::Engine as _;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::hybrid::{ClientKeyError, ClientKeys};
use sealflow::keys::{
    ClientKeyService as _, EncryptionContext, GeneratedPair, KeyService as _, KeyServiceError, RsaBits, conformance,
};
use sealflow::policy::Policy;
use sealflow::secret::{SecretBytes, SecretString};
use sealflow::units::Span;
use sealflow_client::{RsaPublicJwk, Session};
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};
use sealflow_local_kms::{Failure, Fault, KeySpec, Principal, RunningServer, Server, ServerConfig};
use sealflow_testbed::{Ministack, or_skip};

const OTHER: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const HOST: &str = "arn:aws:iam::111122223333:role/host";

async fn local_kms() -> RunningServer {
    let principal = Principal {
        access_key_id: "AKIAHOST".to_owned(),
        secret_access_key: SecretString::new("secret".to_owned()),
        session_token: None,
        arn: HOST.to_owned(),
    };
    Server::start(ServerConfig::in_memory(vec![principal])).await.unwrap()
}

async fn client(endpoint: &str) -> AwsKms {
    let config = KmsConfig {
        endpoint: Some(endpoint.to_owned()),
        credentials: Some(StaticCredentials {
            access_key_id: "AKIAHOST".to_owned(),
            secret_access_key: SecretString::new("secret".to_owned()),
            session_token: None,
        }),
        // A pair of 4,096 bits, on a machine that has other things to do.
        timeout: Span(Duration::from_secs(60)),
        ..KmsConfig::default()
    };
    AwsKms::new(&config).await.unwrap()
}

async fn local_key(server: &RunningServer, spec: KeySpec) -> String {
    server.create_key_of(spec, None, "", None).await.unwrap()
}

#[tokio::test]
async fn the_client_keeps_the_contract_of_client_keys_against_the_local_kms() {
    let server = local_kms().await;
    let kms = client(&server.endpoint()).await;
    let hmac = local_key(&server, KeySpec::Hmac256).await;
    let symmetric = local_key(&server, KeySpec::Symmetric).await;
    for bits in RsaBits::ALL {
        let rsa = local_key(&server, KeySpec::Rsa(bits)).await;
        let other = local_key(&server, KeySpec::Rsa(bits)).await;
        let kept = conformance::client_key_service(&kms, &rsa, &other, &hmac, &symmetric).await;
        assert_eq!(kept, Ok(()), "{bits:?}");
    }
}

#[tokio::test]
async fn the_client_keeps_the_contract_of_client_keys_against_ministack() {
    let Some(server) = or_skip("kms client keys against MiniStack", Ministack::start()) else {
        return;
    };
    let endpoint = server.endpoint();
    let kms = client(&endpoint).await;
    let hmac = ministack_key(&endpoint, AwsKeySpec::Hmac256).await;
    let symmetric = ministack_key(&endpoint, AwsKeySpec::SymmetricDefault).await;
    let rsa = ministack_key(&endpoint, AwsKeySpec::Rsa2048).await;
    let other = ministack_key(&endpoint, AwsKeySpec::Rsa2048).await;
    let kept = conformance::client_key_service(&kms, &rsa, &other, &hmac, &symmetric).await;
    assert_eq!(kept, Ok(()));
    // Python takes its time for larger keys: one each, sealed to inside.
    for spec in [AwsKeySpec::Rsa3072, AwsKeySpec::Rsa4096] {
        let arn = ministack_key(&endpoint, spec).await;
        let sealed = aws_client(&endpoint)
            .encrypt()
            .key_id(&arn)
            .encryption_algorithm(EncryptionAlgorithmSpec::RsaesOaepSha256)
            .plaintext(Blob::new("session"))
            .send()
            .await;
        let sealed = sealed.unwrap().ciphertext_blob.unwrap();
        let opened = kms.decrypt_rsa(&arn, sealed.as_ref()).await;
        assert_eq!(opened, Ok(SecretBytes::new(b"session".to_vec())));
        assert!(kms.public_key(&arn).await.unwrap().len() >= sealed.as_ref().len());
    }
}

/// By a client that is AWS's alone.
async fn ministack_key(endpoint: &str, spec: AwsKeySpec) -> String {
    let usage = match spec {
        AwsKeySpec::Hmac256 => KeyUsageType::GenerateVerifyMac,
        _ => KeyUsageType::EncryptDecrypt,
    };
    let made = aws_client(endpoint)
        .create_key()
        .key_spec(spec)
        .key_usage(usage)
        .send()
        .await;
    made.unwrap().key_metadata.unwrap().arn.unwrap()
}

fn aws_client(endpoint: &str) -> aws_sdk_kms::Client {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::new("AKIAHOST", "secret", None, None, "test"))
        .endpoint_url(endpoint)
        .http_client(
            aws_smithy_http_client::Builder::new()
                .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                    aws_smithy_http_client::tls::rustls_provider::CryptoMode::AwsLc,
                ))
                .build_https(),
        )
        .build();
    aws_sdk_kms::Client::from_conf(config)
}

#[tokio::test]
async fn the_public_key_of_a_key_for_signatures_is_refused() {
    let Some(server) = or_skip("kms public keys for signatures against MiniStack", Ministack::start()) else {
        return;
    };
    let endpoint = server.endpoint();
    let made = aws_client(&endpoint)
        .create_key()
        .key_spec(AwsKeySpec::Rsa2048)
        .key_usage(KeyUsageType::SignVerify)
        .send()
        .await;
    let arn = made.unwrap().key_metadata.unwrap().arn.unwrap();
    let refused = client(&endpoint).await.public_key(&arn).await.err();
    let code = "NotAnEncryptionKey".to_owned();
    assert_eq!(refused, Some(KeyServiceError::KeyUnusable { arn, code }));
}

#[tokio::test]
async fn the_host_sees_a_private_key_only_where_it_may_unwrap_it() {
    let server = local_kms().await;
    let kms = client(&server.endpoint()).await;
    let policy = format!(
        r#"{{"Statement":[{{"Effect":"Allow","Principal":{{"AWS":"{HOST}"}},
            "Action":"kms:GenerateDataKeyPairWithoutPlaintext","Resource":"*"}}]}}"#
    );
    let arn = server.create_key(None, "", Some(&policy)).unwrap();
    let context = EncryptionContext::for_data_key("payments", "default", "pii");
    let pair = kms.generate_pair(&arn, RsaBits::Rsa2048, &context).await.unwrap();
    let denied = kms.unwrap(&arn, &pair.wrapped_private, &context).await.err();
    assert!(
        matches!(denied, Some(KeyServiceError::NotPermitted { .. })),
        "{denied:?}"
    );
    assert_eq!(server.requests("GenerateDataKeyPair"), 0);
}

/// A policy whose clients seal to this pair.
fn policy_of(dataset: &str, pair: &GeneratedPair) -> Policy {
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let yaml = format!(
        "dataset: {dataset}\nversion: 1\nkeys: {{ k: {{ arn: \"{OTHER}\" }} }}\nacls: {{ a: {{}} }}\n\
         client: {{ keys: {{ web: {{ pair: {{ arn: \"{}\", public: \"{}\", wrapped: \"{}\" }} }} }} }}\n\
         columns: [{{ path: card, key: k, acl: a, flow: hybrid }}]\n",
        pair.arn,
        base64(&pair.public),
        base64(&pair.wrapped_private)
    );
    Policy::parse(yaml.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sessions_under_a_pair_cost_one_request_and_a_disabled_key_stops_after_its_age() {
    let server = local_kms().await;
    let kms = Arc::new(client(&server.endpoint()).await);
    let arn = local_key(&server, KeySpec::Symmetric).await;
    let context = EncryptionContext::for_client_pair("payments");
    let pair = kms.generate_pair(&arn, RsaBits::Rsa2048, &context).await.unwrap();
    let to = RsaPublicJwk::from_spki_der(&pair.public).unwrap();
    let rule = policy_of("payments", &pair).client.unwrap();
    let (clock, age) = (
        Arc::new(ManualClock::at(UnixMillis(1_700_000_000_000))),
        Duration::from_secs(300),
    );
    let keys = ClientKeys::new(kms.clone(), clock.clone(), age, 10_000);
    let sessions: Vec<Session> = (0..1_000).map(|_| Session::begin(&to, "payments").unwrap()).collect();
    let all = |keys: ClientKeys| {
        let mut asked = tokio::task::JoinSet::new();
        for session in &sessions {
            let (keys, rule, token) = (keys.clone(), rule.clone(), session.token().to_owned());
            asked.spawn(async move { keys.session(&rule, &token).await.map(drop) });
        }
        asked.join_all()
    };
    assert!(all(keys.clone()).await.iter().all(Result::is_ok));
    assert_eq!((server.requests("Decrypt"), server.requests("GetPublicKey")), (1, 0));

    // The same blob under the name of another dataset.
    let elsewhere = policy_of("refunds", &pair).client.unwrap();
    let refused = keys.session(&elsewhere, sessions[0].token()).await.err();
    assert!(
        matches!(&refused, Some(ClientKeyError::Service(KeyServiceError::Refused { .. }))),
        "{refused:?}"
    );

    server.set_enabled(&arn, false).unwrap();
    clock.advance(age - Duration::from_secs(1));
    assert!(keys.session(&rule, sessions[0].token()).await.is_ok());
    clock.advance(Duration::from_secs(1));
    keys.tick().await;
    for session in &sessions[..3] {
        let stopped = keys.session(&rule, session.token()).await.err();
        assert!(
            matches!(
                &stopped,
                Some(ClientKeyError::Service(KeyServiceError::KeyUnusable { .. }))
            ),
            "{stopped:?}"
        );
    }
}

#[tokio::test]
async fn calls_about_client_keys_are_retried_and_fail_by_meaning() {
    let server = local_kms().await;
    let kms = client(&server.endpoint()).await;
    let (rsa, hmac) = (
        local_key(&server, KeySpec::Rsa(RsaBits::Rsa2048)).await,
        local_key(&server, KeySpec::Hmac256).await,
    );
    for operation in ["GetPublicKey", "GenerateMac", "VerifyMac", "Decrypt"] {
        let ask = || async {
            match operation {
                "GetPublicKey" => kms.public_key(&rsa).await.err(),
                "GenerateMac" => kms.mac(&hmac, b"m").await.err(),
                "VerifyMac" => kms.verify_mac(&hmac, b"m", &[0; 32]).await.err(),
                _ => kms.decrypt_rsa(&rsa, &[1; 256]).await.err(),
            }
        };
        let fault = |status, code, times| {
            server.set_fault(Some(Fault {
                operation: Some(operation.to_owned()),
                failure: Some(Failure::Error { status, code }),
                times,
                ..Fault::default()
            }));
        };
        server.set_fault(None);
        let calm = ask().await;
        fault(500, "KMSInternalException", Some(2));
        assert_eq!(ask().await, calm, "{operation} is not retried");
        fault(400, "ThrottlingException", None);
        let throttled = ask().await;
        assert_eq!(
            throttled,
            Some(KeyServiceError::Throttled { retry_after: None }),
            "{operation}"
        );
    }
    server.set_fault(None);
    server.set_enabled(&hmac, false).unwrap();
    let code = "DisabledException".to_owned();
    let disabled = Some(KeyServiceError::KeyUnusable {
        arn: hmac.clone(),
        code,
    });
    assert_eq!(kms.verify_mac(&hmac, b"m", &[0; 32]).await.err(), disabled);
}

#[tokio::test]
async fn messages_that_no_mac_is_asked_of_make_no_request() {
    let server = local_kms().await;
    let kms = client(&server.endpoint()).await;
    let hmac = local_key(&server, KeySpec::Hmac256).await;
    for message in [Vec::new(), vec![0; 4097]] {
        assert!(kms.mac(&hmac, &message).await.is_err());
        assert!(kms.verify_mac(&hmac, &message, &[0; 32]).await.is_err());
    }
    assert!(kms.public_key("alias/a").await.is_err());
    let requests = ["GenerateMac", "VerifyMac", "GetPublicKey"].map(|operation| server.requests(operation));
    assert_eq!(requests, [0, 0, 0]);
}
