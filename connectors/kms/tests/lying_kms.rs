//! The KMS client against an endpoint that lies: answers that cannot be used are refused, never believed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use sealflow::keys::{EncryptionContext, KeyService as _, KeyServiceError};
use sealflow::secret::SecretString;
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/asked";
const OTHER: &str = "arn:aws:kms:eu-central-1:111122223333:key/other";
/// 32 and 31 bytes.
const KEY_32: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const KEY_31: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==";

/// A client of an endpoint that answers everything with `status` and `body`.
async fn client_of(status: u16, body: String) -> AwsKms {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, status, body.clone()));
        }
    });
    let config = KmsConfig {
        endpoint: Some(endpoint),
        credentials: Some(StaticCredentials {
            access_key_id: "AKIA".to_owned(),
            secret_access_key: SecretString::new("secret".to_owned()),
            session_token: None,
        }),
        attempts: 1,
        ..KmsConfig::default()
    };
    AwsKms::new(&config).await.unwrap()
}

async fn answer(mut stream: TcpStream, status: u16, body: String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next())
        .unwrap();
    stream.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
    let text = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.unwrap();
}

fn generated(arn: &str, plaintext: &str, blob: &str) -> String {
    format!(r#"{{"KeyId":"{arn}","Plaintext":"{plaintext}","CiphertextBlob":"{blob}"}}"#)
}

fn context() -> EncryptionContext {
    EncryptionContext::for_domain("customers")
}

#[tokio::test]
async fn generated_keys_that_are_not_what_was_asked_for_are_refused() {
    let honest = client_of(200, generated(ARN, KEY_32, "AAAA")).await;
    assert!(honest.generate(ARN, 32, &context()).await.is_ok());
    for lie in [
        generated(OTHER, KEY_32, "AAAA"),
        generated("asked", KEY_32, "AAAA"),
        generated(ARN, KEY_31, "AAAA"),
        generated(ARN, "", "AAAA"),
        generated(ARN, KEY_32, ""),
        format!(r#"{{"KeyId":"{ARN}","CiphertextBlob":"AAAA"}}"#),
        format!(r#"{{"KeyId":"{ARN}","Plaintext":"{KEY_32}"}}"#),
        format!(r#"{{"Plaintext":"{KEY_32}","CiphertextBlob":"AAAA"}}"#),
        "{}".to_owned(),
        "no JSON".to_owned(),
    ] {
        let answer = client_of(200, lie.clone()).await.generate(ARN, 32, &context()).await;
        assert!(
            matches!(answer, Err(KeyServiceError::BadAnswer { .. })),
            "{lie}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn unwrapped_keys_of_another_kms_key_are_refused() {
    let honest = client_of(200, generated(ARN, KEY_32, "")).await;
    assert!(honest.unwrap(ARN, b"wrapped", &context()).await.is_ok());
    for lie in [
        generated(OTHER, KEY_32, ""),
        generated(ARN, "", ""),
        format!(r#"{{"Plaintext":"{KEY_32}"}}"#),
    ] {
        let answer = client_of(200, lie.clone())
            .await
            .unwrap(ARN, b"wrapped", &context())
            .await;
        assert!(
            matches!(answer, Err(KeyServiceError::BadAnswer { .. })),
            "{lie}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn descriptions_of_another_key_are_refused() {
    let body = format!(r#"{{"KeyMetadata":{{"KeyId":"other","Arn":"{OTHER}","Enabled":true,"KeyState":"Enabled"}}}}"#);
    let answer = client_of(200, body).await.describe(ARN).await;
    assert!(matches!(answer, Err(KeyServiceError::BadAnswer { .. })), "{answer:?}");
}

#[tokio::test]
async fn what_an_error_page_says_does_not_reach_our_messages() {
    for (status, body) in [
        (400, r#"{"__type":"hunter2 hunter2","message":"hunter2"}"#),
        (403, r#"{"__type":"AccessDeniedException","message":"hunter2"}"#),
        (500, "<html>hunter2</html>"),
        (200, "<html>hunter2</html>"),
    ] {
        let error = client_of(status, body.to_owned())
            .await
            .unwrap(ARN, b"wrapped", &context())
            .await
            .err()
            .unwrap();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn servers_in_trouble_are_retryable_whatever_they_say() {
    for (status, body) in [(500, ""), (503, "<html>"), (502, "{}"), (429, "{}")] {
        let error = client_of(status, body.to_owned())
            .await
            .unwrap(ARN, b"wrapped", &context())
            .await
            .err()
            .unwrap();
        assert!(error.is_retryable(), "{status}: {error:?}");
    }
}
