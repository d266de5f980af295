//! The KMS client against the local KMS: the contract, faults, key states and policies, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::{Duration, Instant};

use sealflow::keys::conformance;
use sealflow::keys::{EncryptionContext, KeyService as _, KeyServiceError};
use sealflow::secret::SecretString;
use sealflow::units::Span;
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};
use sealflow_local_kms::{Failure, Fault, Principal, RunningServer, Server, ServerConfig};

const WRITER: &str = "arn:aws:iam::111122223333:role/writer";
const READER: &str = "arn:aws:sts::111122223333:assumed-role/reader/monday";

fn principal(id: &str, arn: &str) -> Principal {
    let secret_access_key = SecretString::new(format!("secret-of-{id}"));
    Principal {
        access_key_id: id.to_owned(),
        secret_access_key,
        session_token: None,
        arn: arn.to_owned(),
    }
}

fn server_config() -> ServerConfig {
    ServerConfig::in_memory(vec![principal("AKIAWRITER", WRITER), principal("AKIAREADER", READER)])
}

async fn server() -> RunningServer {
    Server::start(server_config()).await.unwrap()
}

fn client_config(server: &RunningServer, id: &str) -> KmsConfig {
    KmsConfig {
        endpoint: Some(server.endpoint()),
        credentials: Some(StaticCredentials {
            access_key_id: id.to_owned(),
            secret_access_key: SecretString::new(format!("secret-of-{id}")),
            session_token: None,
        }),
        timeout: Span(Duration::from_secs(2)),
        ..KmsConfig::default()
    }
}

async fn client(server: &RunningServer, id: &str) -> AwsKms {
    AwsKms::new(&client_config(server, id)).await.unwrap()
}

fn context() -> EncryptionContext {
    EncryptionContext::for_data_key("payments", "default", "pii")
}

#[tokio::test]
async fn the_client_keeps_the_contract_against_the_local_kms() {
    let server = server().await;
    let (arn, other) = (
        server.create_key(None, "", None).unwrap(),
        server.create_key(None, "", None).unwrap(),
    );
    let kms = client(&server, "AKIAWRITER").await;
    assert_eq!(conformance::key_service(&kms, &arn, &other).await, Ok(()));
}

#[tokio::test]
async fn the_identity_is_the_arn_that_sts_tells_and_is_asked_once() {
    let server = server().await;
    let kms = client(&server, "AKIAREADER").await;
    assert_eq!(kms.identity().await.as_deref(), Ok(READER));
    assert_eq!(kms.identity().await.as_deref(), Ok(READER));
    assert_eq!(server.requests("GetCallerIdentity"), 1);
}

#[tokio::test]
async fn an_identity_without_sts_is_a_hash_that_stays() {
    let server = server().await;
    server.set_fault(Some(Fault {
        operation: Some("GetCallerIdentity".to_owned()),
        failure: Some(Failure::Disconnect),
        ..Fault::default()
    }));
    let kms = client(&server, "AKIAREADER").await;
    let name = kms.identity().await.unwrap();
    assert!(name.starts_with("access-key:") && !name.contains("AKIA"), "{name}");
    server.set_fault(None);
    assert_eq!(kms.identity().await.unwrap(), name);
}

#[tokio::test]
async fn disabled_and_dying_keys_are_unusable_and_come_back() {
    let server = server().await;
    let arn = server.create_key(None, "", None).unwrap();
    let kms = client(&server, "AKIAWRITER").await;
    let key = kms.generate(&arn, 32, &context()).await.unwrap();
    server.set_enabled(&arn, false).unwrap();
    for error in [
        kms.unwrap(&arn, &key.wrapped, &context()).await.err(),
        kms.generate(&arn, 32, &context()).await.err(),
    ] {
        assert_eq!(
            error,
            Some(KeyServiceError::KeyUnusable {
                arn: arn.clone(),
                code: "DisabledException".to_owned()
            })
        );
    }
    let described = kms.describe(&arn).await.unwrap();
    assert_eq!((described.enabled, described.state.as_str()), (false, "Disabled"));
    server.set_enabled(&arn, true).unwrap();
    assert!(kms.unwrap(&arn, &key.wrapped, &context()).await.is_ok());
}

#[tokio::test]
async fn key_policies_decide_by_principal_and_encryption_context() {
    let server = server().await;
    let policy = r#"{"Version":"2012-10-17","Statement":[
        {"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/writer"},"Action":"kms:*","Resource":"*"},
        {"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/reader"},"Action":"kms:Decrypt","Resource":"*",
         "Condition":{"StringEquals":{"kms:EncryptionContext:sealflow:acl":"pii"}}}]}"#;
    let arn = server.create_key(None, "", Some(policy)).unwrap();
    let (writer, reader) = (client(&server, "AKIAWRITER").await, client(&server, "AKIAREADER").await);
    let pii = writer.generate(&arn, 32, &context()).await.unwrap();
    let ops_context = EncryptionContext::for_data_key("payments", "default", "ops");
    let ops = writer.generate(&arn, 32, &ops_context).await.unwrap();
    assert_eq!(reader.unwrap(&arn, &pii.wrapped, &context()).await, Ok(pii.plaintext));
    let denied = Some(KeyServiceError::NotPermitted {
        arn: arn.clone(),
        code: "AccessDeniedException".to_owned(),
    });
    assert_eq!(reader.unwrap(&arn, &ops.wrapped, &ops_context).await.err(), denied);
    assert_eq!(reader.generate(&arn, 32, &context()).await.err(), denied);
    // Lying about the context passes the policy but not the cipher.
    let lied = reader.unwrap(&arn, &ops.wrapped, &context()).await;
    assert!(matches!(lied, Err(KeyServiceError::Refused { .. })), "{lied:?}");
}

#[tokio::test]
async fn wrong_secrets_and_unknown_access_keys_are_not_permitted() {
    let server = server().await;
    let arn = server.create_key(None, "", None).unwrap();
    for (id, secret, code) in [
        ("AKIAWRITER", "another", "InvalidSignatureException"),
        ("AKIANOBODY", "another", "UnrecognizedClientException"),
    ] {
        let mut config = client_config(&server, id);
        config.credentials.as_mut().unwrap().secret_access_key = SecretString::new(secret.to_owned());
        let kms = AwsKms::new(&config).await.unwrap();
        let refused = kms.generate(&arn, 32, &context()).await.err();
        assert_eq!(
            refused,
            Some(KeyServiceError::NotPermitted {
                arn: arn.clone(),
                code: code.to_owned()
            })
        );
    }
}

#[tokio::test]
async fn passing_faults_are_retried_and_lasting_ones_reported() {
    let server = server().await;
    let arn = server.create_key(None, "", None).unwrap();
    let kms = client(&server, "AKIAWRITER").await;
    let fault = |failure: Failure, times| Fault {
        operation: Some("GenerateDataKey".to_owned()),
        failure: Some(failure),
        times,
        ..Fault::default()
    };
    let error = |status, code| Failure::Error { status, code };
    for passing in [
        error(400, "ThrottlingException"),
        error(500, "KMSInternalException"),
        Failure::Disconnect,
    ] {
        server.set_fault(Some(fault(passing.clone(), Some(2))));
        let generated = kms.generate(&arn, 32, &context()).await;
        assert!(generated.is_ok(), "{passing:?}: {generated:?}");
    }
    let before = server.requests("GenerateDataKey");
    server.set_fault(Some(fault(error(400, "ThrottlingException"), None)));
    let throttled = kms.generate(&arn, 32, &context()).await.err();
    assert_eq!(throttled, Some(KeyServiceError::Throttled { retry_after: None }));
    assert_eq!(server.requests("GenerateDataKey") - before, 3, "attempts");
    for lasting in [error(503, "KMSInternalException"), Failure::Disconnect] {
        server.set_fault(Some(fault(lasting, None)));
        let failed = kms.generate(&arn, 32, &context()).await;
        assert!(matches!(failed, Err(KeyServiceError::Unavailable { .. })), "{failed:?}");
    }
    server.set_fault(None);
    assert!(kms.generate(&arn, 32, &context()).await.is_ok(), "no recovery");
}

#[tokio::test]
async fn a_slow_service_is_given_up_in_time() {
    let server = server().await;
    let arn = server.create_key(None, "", None).unwrap();
    server.set_fault(Some(Fault {
        delay: Duration::from_secs(60),
        ..Fault::default()
    }));
    let mut config = client_config(&server, "AKIAWRITER");
    config.timeout = Span(Duration::from_millis(200));
    let kms = AwsKms::new(&config).await.unwrap();
    let start = Instant::now();
    let failed = kms.generate(&arn, 32, &context()).await;
    assert!(matches!(failed, Err(KeyServiceError::Unavailable { .. })), "{failed:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unavailable_and_can_come_back() {
    let server = server().await;
    let addr = server.addr();
    let kms = client(&server, "AKIAWRITER").await;
    server.shutdown().await;
    let arn = "arn:aws:kms:eu-central-1:111122223333:key/fixed-id";
    let failed = kms.generate(arn, 32, &context()).await;
    assert!(matches!(failed, Err(KeyServiceError::Unavailable { .. })), "{failed:?}");
    let again = ServerConfig {
        listen: addr,
        ..server_config()
    };
    let server = Server::start(again).await.unwrap();
    assert_eq!(server.create_key(Some("fixed-id"), "", None).unwrap(), arn);
    assert!(kms.generate(arn, 32, &context()).await.is_ok());
}

#[tokio::test]
async fn aliases_and_keys_of_other_services_are_refused_without_a_request() {
    let server = server().await;
    let kms = client(&server, "AKIAWRITER").await;
    for arn in ["alias/a", "1234", "arn:aws:kms:eu-central-1:111122223333:alias/a"] {
        let refused = kms.generate(arn, 32, &context()).await;
        assert!(
            matches!(refused, Err(KeyServiceError::KeyUnusable { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(server.requests("GenerateDataKey"), 0);
}

#[tokio::test]
async fn errors_and_debug_output_show_no_secret() {
    let server = server().await;
    let arn = server.create_key(None, "", None).unwrap();
    let kms = client(&server, "AKIAWRITER").await;
    let key = kms.generate(&arn, 32, &context()).await.unwrap();
    server.set_enabled(&arn, false).unwrap();
    let error = kms.generate(&arn, 32, &context()).await.err();
    let shown = format!("{kms:?} {server:?} {error:?} {:?}", key.plaintext);
    let hex: String = key.plaintext.expose().iter().map(|b| format!("{b:02x}")).collect();
    let list = format!("{:?}", key.plaintext.expose());
    for secret in ["secret-of", &hex, list.trim_matches(['[', ']'])] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
