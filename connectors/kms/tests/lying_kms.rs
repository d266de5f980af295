//! The KMS client against an endpoint that lies: answers that cannot be used are refused, never believed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use sealflow::keys::{ClientKeyService as _, EncryptionContext, KeyService as _, KeyServiceError, RsaBits};
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
async fn what_is_no_rsa_private_key_is_never_held() {
    for lie in [
        generated(ARN, KEY_32, ""),
        generated(ARN, &"A".repeat(1_624), ""),
        generated(OTHER, KEY_32, ""),
        generated(ARN, "", ""),
    ] {
        let kms = client_of(200, lie.clone()).await;
        let answer = kms.private_half(ARN, b"wrapped", &context()).await.err();
        assert!(
            matches!(answer, Some(KeyServiceError::BadAnswer { .. })),
            "{lie}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn public_keys_that_nobody_can_open_for_are_refused() {
    let body = |arn: &str, key: &str, usage: &str, algorithm: &str| {
        format!(
            r#"{{"KeyId":"{arn}","PublicKey":"{key}","KeyUsage":"{usage}","EncryptionAlgorithms":["{algorithm}"]}}"#
        )
    };
    let honest = body(ARN, "AAAA", "ENCRYPT_DECRYPT", "RSAES_OAEP_SHA_256");
    assert!(client_of(200, honest).await.public_key(ARN).await.is_ok());
    for lie in [
        body(OTHER, "AAAA", "ENCRYPT_DECRYPT", "RSAES_OAEP_SHA_256"),
        body(ARN, "", "ENCRYPT_DECRYPT", "RSAES_OAEP_SHA_256"),
        body(ARN, &"A".repeat(11_000), "ENCRYPT_DECRYPT", "RSAES_OAEP_SHA_256"),
    ] {
        let answer = client_of(200, lie).await.public_key(ARN).await;
        assert!(matches!(answer, Err(KeyServiceError::BadAnswer { .. })), "{answer:?}");
    }
    for lie in [
        body(ARN, "AAAA", "SIGN_VERIFY", "RSAES_OAEP_SHA_256"),
        body(ARN, "AAAA", "ENCRYPT_DECRYPT", "RSAES_OAEP_SHA_1"),
        format!(r#"{{"KeyId":"{ARN}","PublicKey":"AAAA"}}"#),
    ] {
        let answer = client_of(200, lie).await.public_key(ARN).await;
        assert!(matches!(answer, Err(KeyServiceError::KeyUnusable { .. })), "{answer:?}");
    }
}

#[tokio::test]
async fn rsa_plaintexts_that_cannot_be_are_refused() {
    let body = |arn: &str, plaintext: &str, algorithm: &str| {
        format!(r#"{{"KeyId":"{arn}","Plaintext":"{plaintext}","EncryptionAlgorithm":"{algorithm}"}}"#)
    };
    let honest = body(ARN, KEY_32, "RSAES_OAEP_SHA_256");
    assert!(client_of(200, honest).await.decrypt_rsa(ARN, b"sealed").await.is_ok());
    for lie in [
        body(OTHER, KEY_32, "RSAES_OAEP_SHA_256"),
        body(ARN, KEY_32, "RSAES_OAEP_SHA_1"),
        body(ARN, &"A".repeat(4 * 149), "RSAES_OAEP_SHA_256"),
        format!(r#"{{"KeyId":"{ARN}","EncryptionAlgorithm":"RSAES_OAEP_SHA_256"}}"#),
    ] {
        let answer = client_of(200, lie).await.decrypt_rsa(ARN, b"sealed").await;
        assert!(matches!(answer, Err(KeyServiceError::BadAnswer { .. })), "{answer:?}");
    }
    // That is the client's doing, and no sign of a broken KMS.
    let nothing = body(ARN, "", "RSAES_OAEP_SHA_256");
    let answer = client_of(200, nothing).await.decrypt_rsa(ARN, b"sealed").await;
    assert!(matches!(answer, Err(KeyServiceError::Refused { .. })), "{answer:?}");
}

#[tokio::test]
async fn pairs_that_are_not_what_was_asked_for_are_refused() {
    let body = |arn: &str, spec: &str, public: &str, blob: &str| {
        format!(
            r#"{{"KeyId":"{arn}","KeyPairSpec":"{spec}","PublicKey":"{public}","PrivateKeyCiphertextBlob":"{blob}"}}"#
        )
    };
    let public = "A".repeat(4 * 98);
    let ask = async |body: String| {
        let kms = client_of(200, body).await;
        kms.generate_pair(ARN, RsaBits::Rsa2048, &context()).await
    };
    assert!(ask(body(ARN, "RSA_2048", &public, "AAAA")).await.is_ok());
    for lie in [
        body(OTHER, "RSA_2048", &public, "AAAA"),
        body(ARN, "RSA_3072", &public, "AAAA"),
        body(ARN, "ECC_NIST_P256", &public, "AAAA"),
        body(ARN, "RSA_2048", "AAAA", "AAAA"),
        body(ARN, "RSA_2048", &public, ""),
    ] {
        let answer = ask(lie).await;
        assert!(matches!(answer, Err(KeyServiceError::BadAnswer { .. })), "{answer:?}");
    }
}

#[tokio::test]
async fn macs_that_are_none_are_refused_and_only_a_plain_no_is_one() {
    let made = |arn: &str, mac: &str, algorithm: &str| {
        format!(r#"{{"KeyId":"{arn}","Mac":"{mac}","MacAlgorithm":"{algorithm}"}}"#)
    };
    assert!(
        client_of(200, made(ARN, KEY_32, "HMAC_SHA_256"))
            .await
            .mac(ARN, b"m")
            .await
            .is_ok()
    );
    for lie in [
        made(OTHER, KEY_32, "HMAC_SHA_256"),
        made(ARN, KEY_31, "HMAC_SHA_256"),
        made(ARN, KEY_32, "HMAC_SHA_512"),
    ] {
        let answer = client_of(200, lie).await.mac(ARN, b"m").await;
        assert!(matches!(answer, Err(KeyServiceError::BadAnswer { .. })), "{answer:?}");
    }
    let verified = |arn: &str, valid: bool, algorithm: &str| {
        format!(r#"{{"KeyId":"{arn}","MacValid":{valid},"MacAlgorithm":"{algorithm}"}}"#)
    };
    let ask = async |status, body: String| client_of(status, body).await.verify_mac(ARN, b"m", &[0; 32]).await;
    assert_eq!(ask(200, verified(ARN, true, "HMAC_SHA_256")).await, Ok(true));
    for lie in [
        verified(OTHER, true, "HMAC_SHA_256"),
        verified(ARN, true, "HMAC_SHA_224"),
        verified(ARN, false, "HMAC_SHA_256"),
        format!(r#"{{"KeyId":"{ARN}","MacAlgorithm":"HMAC_SHA_256"}}"#),
        "{}".to_owned(),
    ] {
        let answer = ask(200, lie).await;
        assert!(matches!(answer, Err(KeyServiceError::BadAnswer { .. })), "{answer:?}");
    }
    assert_eq!(
        ask(400, r#"{"__type":"KMSInvalidMacException"}"#.to_owned()).await,
        Ok(false)
    );
    for trouble in [
        "InvalidCiphertextException",
        "AccessDeniedException",
        "InvalidKeyUsageException",
    ] {
        let answer = ask(400, format!(r#"{{"__type":"{trouble}"}}"#)).await;
        assert!(answer.is_err(), "{trouble}: {answer:?}");
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
