//! Rotation and rewrapping through the AWS client: against the local KMS, and against moto where that is true to AWS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

use std::io::Write as _;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use sealflow::keys::{EncryptionContext, KeyAdmin as _, KeyService as _, KeyServiceError};
use sealflow::secret::SecretString;
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};
use sealflow_local_kms::{Failure, Fault, Principal, Server, ServerConfig};

const ADMIN: &str = "arn:aws:iam::111122223333:user/admin";

fn context() -> EncryptionContext {
    EncryptionContext::for_data_key("payments", "default", "pii")
}

/// Our client of `endpoint`, and the SDK's own.
async fn clients(endpoint: &str) -> (AwsKms, Client) {
    let config = KmsConfig {
        endpoint: Some(endpoint.to_owned()),
        credentials: Some(StaticCredentials {
            access_key_id: "AKIAADMIN".to_owned(),
            secret_access_key: SecretString::new("secret".to_owned()),
            session_token: None,
        }),
        ..KmsConfig::default()
    };
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .build_https();
    let sdk = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::new("AKIAADMIN", "secret", None, None, "test"))
        .endpoint_url(endpoint)
        .http_client(http)
        .build();
    (AwsKms::new(&config).await.unwrap(), Client::from_conf(sdk))
}

async fn new_key(sdk: &Client) -> String {
    let made = sdk.create_key().send().await.unwrap();
    made.key_metadata.unwrap().arn.unwrap()
}

/// What holds at every server: a rewrapped key opens under the new KMS key and is the same, and not under the old.
async fn rewrapping_moves_a_key(kms: &AwsKms, sdk: &Client) {
    let (from, to) = (new_key(sdk).await, new_key(sdk).await);
    let key = kms.generate(&from, 32, &context()).await.unwrap();
    let moved = kms.rewrap(&from, &key.wrapped, &to, &context()).await.unwrap();
    let opened = kms.unwrap(&to, &moved, &context()).await.unwrap();
    assert_eq!(opened.expose(), key.plaintext.expose());
    assert!(kms.unwrap(&from, &moved, &context()).await.is_err());
    let other = EncryptionContext::for_data_key("payments", "default", "ops");
    assert!(kms.unwrap(&to, &moved, &other).await.is_err());
    let wrong_context = kms.rewrap(&from, &key.wrapped, &to, &other).await;
    assert!(
        matches!(wrong_context, Err(KeyServiceError::Refused { .. })),
        "{wrong_context:?}"
    );
}

/// Enabling, disabling and asking; on demand; old material opens.
async fn rotation_keeps_what_was_wrapped(kms: &AwsKms, sdk: &Client) {
    let arn = new_key(sdk).await;
    let enabled = async || {
        let status = sdk.get_key_rotation_status().key_id(&arn).send().await.unwrap();
        status.key_rotation_enabled
    };
    assert!(!enabled().await);
    sdk.enable_key_rotation().key_id(&arn).send().await.unwrap();
    assert!(enabled().await);
    sdk.disable_key_rotation().key_id(&arn).send().await.unwrap();
    assert!(!enabled().await);
    let before = kms.generate(&arn, 32, &context()).await.unwrap();
    kms.rotate(&arn).await.unwrap();
    let after = kms.generate(&arn, 32, &context()).await.unwrap();
    for key in [before, after] {
        let opened = kms.unwrap(&arn, &key.wrapped, &context()).await.unwrap();
        assert_eq!(opened.expose(), key.plaintext.expose());
    }
    let rotations = sdk.list_key_rotations().key_id(&arn).send().await.unwrap();
    assert_eq!(rotations.rotations().len(), 1);
}

#[tokio::test]
async fn the_local_kms_rotates_and_re_encrypts_as_the_aws_client_expects() {
    let principal = Principal {
        access_key_id: "AKIAADMIN".to_owned(),
        secret_access_key: SecretString::new("secret".to_owned()),
        session_token: None,
        arn: ADMIN.to_owned(),
    };
    let server = Server::start(ServerConfig::in_memory(vec![principal])).await.unwrap();
    let (kms, sdk) = clients(&server.endpoint()).await;
    rewrapping_moves_a_key(&kms, &sdk).await;
    rotation_keeps_what_was_wrapped(&kms, &sdk).await;
    let arn = new_key(&sdk).await;
    // Here the SDK shows what moto does not: the material changes, and an end to it.
    let material = async || {
        let key = sdk.generate_data_key_without_plaintext().key_id(&arn);
        key.number_of_bytes(32).send().await.unwrap().key_material_id.unwrap()
    };
    let first = material().await;
    for _ in 0..25 {
        kms.rotate(&arn).await.unwrap();
    }
    assert_ne!(material().await, first);
    let spent = kms.rotate(&arn).await;
    assert!(
        matches!(&spent, Err(KeyServiceError::KeyUnusable { code, .. }) if code == "LimitExceededException"),
        "{spent:?}"
    );
    assert!(!spent.unwrap_err().is_retryable());
    server.set_enabled(&arn, false).unwrap();
    let disabled = kms.rotate(&arn).await;
    assert!(
        matches!(&disabled, Err(KeyServiceError::KeyUnusable { code, .. }) if code == "DisabledException"),
        "{disabled:?}"
    );
}

#[tokio::test]
async fn a_rotation_whose_answer_is_lost_is_asked_for_once_and_said_to_be_unclear() {
    let principal = Principal {
        access_key_id: "AKIAADMIN".to_owned(),
        secret_access_key: SecretString::new("secret".to_owned()),
        session_token: None,
        arn: ADMIN.to_owned(),
    };
    let server = Server::start(ServerConfig::in_memory(vec![principal])).await.unwrap();
    let (kms, sdk) = clients(&server.endpoint()).await;
    let internal = Failure::Error {
        status: 500,
        code: "KMSInternalException",
    };
    let throttled = Failure::Error {
        status: 400,
        code: "ThrottlingException",
    };
    // What is done although nobody hears of it, what is not, and what is surely not.
    for (failure, done, is_unclear) in [
        (Failure::DisconnectAfter, 1, true),
        (Failure::Disconnect, 0, true),
        (internal, 0, true),
        (throttled, 0, false),
    ] {
        let arn = new_key(&sdk).await;
        let before = server.requests("RotateKeyOnDemand");
        server.set_fault(Some(Fault {
            operation: Some("RotateKeyOnDemand".to_owned()),
            failure: Some(failure.clone()),
            ..Fault::default()
        }));
        let error = kms.rotate(&arn).await.unwrap_err();
        server.set_fault(None);
        assert_eq!(server.requests("RotateKeyOnDemand"), before + 1, "{failure:?}");
        let rotations = sdk.list_key_rotations().key_id(&arn).send().await.unwrap();
        assert_eq!(rotations.rotations().len(), done, "{failure:?}");
        assert_eq!(
            matches!(error, KeyServiceError::Unclear { .. }),
            is_unclear,
            "{error:?}"
        );
        let text = error.to_string();
        assert_eq!(
            text.contains("may have been rotated") && text.contains("ListKeyRotations"),
            is_unclear,
            "{text}"
        );
        assert_eq!(error.is_retryable(), !is_unclear, "{error:?}");
    }
}

#[tokio::test]
async fn moto_re_encrypts_and_keeps_rotation_status() {
    let Ok(endpoint) = std::env::var("SEALFLOW_MOTO_ENDPOINT") else {
        skipped("kms rotation and re-encryption against moto: no moto server");
        return;
    };
    let (kms, sdk) = clients(&endpoint).await;
    rewrapping_moves_a_key(&kms, &sdk).await;
    rotation_keeps_what_was_wrapped(&kms, &sdk).await;
}

/// What could not be tested is said, and counted by the test runner.
fn skipped(what: &str) {
    println!("skipped: {what}");
    if let Ok(path) = std::env::var("SEALFLOW_SKIPPED") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(file, "{what}").unwrap();
    }
}
