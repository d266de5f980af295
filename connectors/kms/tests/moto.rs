//! The KMS client against moto, an independent implementation of the AWS protocol, if the test runner has started one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

use std::io::Write as _;

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use sealflow::keys::{KeyService as _, conformance};
use sealflow::secret::SecretString;
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};

#[tokio::test]
async fn the_client_keeps_the_contract_against_moto() {
    let Ok(endpoint) = std::env::var("SEALFLOW_MOTO_ENDPOINT") else {
        skipped("kms conformance against moto: no moto server");
        return;
    };
    let config = KmsConfig {
        endpoint: Some(endpoint.clone()),
        credentials: Some(StaticCredentials {
            access_key_id: "AKIAMOTO".to_owned(),
            secret_access_key: SecretString::new("anything".to_owned()),
            session_token: None,
        }),
        ..KmsConfig::default()
    };
    let kms = AwsKms::new(&config).await.unwrap();
    let (arn, other) = (moto_key(&endpoint).await, moto_key(&endpoint).await);
    assert_eq!(conformance::key_service(&kms, &arn, &other).await, Ok(()));
    let identity = kms.identity().await.unwrap();
    assert!(identity.starts_with("arn:aws:"), "{identity}");
}

async fn moto_key(endpoint: &str) -> String {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::new("AKIAMOTO", "anything", None, None, "test"))
        .endpoint_url(endpoint)
        .http_client(
            aws_smithy_http_client::Builder::new()
                .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                    aws_smithy_http_client::tls::rustls_provider::CryptoMode::AwsLc,
                ))
                .build_https(),
        )
        .build();
    let made = aws_sdk_kms::Client::from_conf(config)
        .create_key()
        .send()
        .await
        .unwrap();
    made.key_metadata.unwrap().arn.unwrap()
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
