//! `Recipient`: what it gives and to whom, which documents are refused and how that is called, and what key policies of enclave
//! keys deny. The contract that AWS keeps too is the KMS client's `attestation` test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Kms, NOW, config, error};
use sealflow::keys::RsaBits;
use sealflow::keys::conformance::Attested as _;
use sealflow_local_kms::{KeySpec, Server, ServerConfig, StartError};
use sealflow_testbed::{Enclave, IMAGE, OTHER_IMAGE, measured_key_policy};
use serde_json::{Value, json};

const OAEP: &str = "RSAES_OAEP_SHA_256";

async fn start() -> (Kms, Enclave) {
    let enclave = Enclave::at(NOW.0);
    let config = ServerConfig {
        attestation_root: Some(enclave.root_file()),
        ..config()
    };
    (Kms::start(config).await, enclave)
}

fn recipient(document: &[u8]) -> Value {
    json!({ "AttestationDocument": STANDARD.encode(document), "KeyEncryptionAlgorithm": OAEP })
}

impl Kms {
    /// A key under that policy, by the library: no policy stands in the way.
    async fn key(&self, spec: KeySpec, policy: Option<&str>) -> String {
        self.server.create_key_of(spec, None, "", policy).await.unwrap()
    }

    async fn with(&self, operation: &str, body: Value, document: &[u8]) -> Result<Value, String> {
        let mut body = body;
        body["Recipient"] = recipient(document);
        self.call(operation, &body).await
    }
}

fn opened(enclave: &Enclave, answer: &Value) -> Vec<u8> {
    let sealed = STANDARD
        .decode(answer["CiphertextForRecipient"].as_str().unwrap())
        .unwrap();
    enclave.open(&sealed).unwrap().expose().to_vec()
}

#[tokio::test]
async fn with_a_recipient_there_is_no_member_with_plaintext_and_the_recipient_has_it_all() {
    let (kms, enclave) = start().await;
    let arn = kms.key(KeySpec::Symmetric, None).await;
    let document = enclave.document_of(|_| {});
    let context = json!({ "sealflow:dataset": "payments" });
    let named = json!({ "KeyId": arn, "KeySpec": "AES_256", "EncryptionContext": context });
    let made = kms.with("GenerateDataKey", named, &document).await.unwrap();
    let decrypt = json!({ "KeyId": arn, "CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": context });
    let again = kms.with("Decrypt", decrypt.clone(), &document).await.unwrap();
    let key = opened(&enclave, &made);
    assert_eq!((key.len(), &opened(&enclave, &again)), (32, &key));
    // The same blob opens without a recipient where nobody asks for one.
    let clear = kms.call("Decrypt", &decrypt).await.unwrap();
    assert_eq!(clear["Plaintext"], STANDARD.encode(&key));

    let pair = json!({ "KeyId": arn, "KeyPairSpec": "RSA_2048" });
    let pair = kms.with("GenerateDataKeyPair", pair, &document).await.unwrap();
    let public = STANDARD.decode(pair["PublicKey"].as_str().unwrap()).unwrap();
    assert_eq!(enclave.public_of(&opened(&enclave, &pair)), Some(public));

    let random = kms
        .with("GenerateRandom", json!({ "NumberOfBytes": 64 }), &document)
        .await
        .unwrap();
    assert_eq!(opened(&enclave, &random).len(), 64);

    let rsa = kms.key(KeySpec::Rsa(RsaBits::Rsa2048), None).await;
    let public = kms.call("GetPublicKey", &json!({ "KeyId": rsa })).await.unwrap();
    let public = STANDARD.decode(public["PublicKey"].as_str().unwrap()).unwrap();
    let sealed = STANDARD.encode(enclave.seal_to(&public, b"session").unwrap());
    let decrypt = json!({ "KeyId": rsa, "CiphertextBlob": sealed, "EncryptionAlgorithm": OAEP });
    let session = kms.with("Decrypt", decrypt, &document).await.unwrap();
    assert_eq!(opened(&enclave, &session), b"session");

    for answer in [&made, &again, &pair, &random, &session] {
        for member in ["Plaintext", "PrivateKeyPlaintext"] {
            assert_eq!(answer[member], Value::Null, "{answer}");
        }
    }
    for answer in [&made, &again, &pair] {
        assert_eq!(answer["KeyId"], arn.as_str());
        assert!(answer["KeyMaterialId"].is_string());
    }
}

#[tokio::test]
async fn random_bytes_have_aws_bounds_and_need_no_key() {
    let (kms, _) = start().await;
    for length in [1, 1024] {
        let random = kms
            .call("GenerateRandom", &json!({ "NumberOfBytes": length }))
            .await
            .unwrap();
        assert_eq!(
            STANDARD.decode(random["Plaintext"].as_str().unwrap()).unwrap().len(),
            length
        );
    }
    for body in [
        json!({}),
        json!({ "NumberOfBytes": 0 }),
        json!({ "NumberOfBytes": 1025 }),
        json!({ "NumberOfBytes": 1, "KeyId": "a" }),
    ] {
        assert_eq!(
            kms.call("GenerateRandom", &body).await,
            error("ValidationException"),
            "{body}"
        );
    }
    let store = json!({ "NumberOfBytes": 1, "CustomKeyStoreId": "cks-1" });
    assert_eq!(
        kms.call("GenerateRandom", &store).await,
        error("UnsupportedOperationException")
    );
}

#[tokio::test]
async fn a_document_that_is_not_believed_is_refused_even_where_nobody_asks_for_one() {
    let (kms, enclave) = start().await;
    let arn = kms.key(KeySpec::Symmetric, None).await;
    let wrong = enclave.wrong_documents();
    assert!(wrong.len() > 12);
    for (what, document) in wrong {
        for (operation, body) in [
            ("GenerateDataKey", json!({ "KeyId": arn, "KeySpec": "AES_256" })),
            (
                "GenerateDataKeyPair",
                json!({ "KeyId": arn, "KeyPairSpec": "RSA_2048" }),
            ),
            ("GenerateRandom", json!({ "NumberOfBytes": 1 })),
        ] {
            let answer = kms.with(operation, body, &document).await;
            assert_eq!(answer, error("ValidationException"), "{operation}: {what}");
        }
    }
    let document = STANDARD.encode(enclave.document_of(|_| {}));
    for recipient in [
        json!({}),
        json!({ "AttestationDocument": document }),
        json!({ "KeyEncryptionAlgorithm": OAEP }),
        json!({ "AttestationDocument": document, "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_1" }),
        json!({ "AttestationDocument": "", "KeyEncryptionAlgorithm": OAEP }),
        json!({ "AttestationDocument": "not base64", "KeyEncryptionAlgorithm": OAEP }),
        json!({ "AttestationDocument": document, "KeyEncryptionAlgorithm": OAEP, "Nonce": "" }),
    ] {
        let body = json!({ "NumberOfBytes": 1, "Recipient": recipient });
        assert_eq!(
            kms.call("GenerateRandom", &body).await,
            error("ValidationException"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_document_is_believed_for_five_minutes() {
    let (kms, enclave) = start().await;
    let document = enclave.document_of(|_| {});
    let ask = || kms.with("GenerateRandom", json!({ "NumberOfBytes": 1 }), &document);
    assert!(ask().await.is_ok());
    kms.clock.advance(Duration::from_secs(300));
    assert!(ask().await.is_ok());
    kms.clock.advance(Duration::from_millis(1));
    assert_eq!(ask().await, error("ValidationException"));
}

#[tokio::test]
async fn without_its_root_in_the_configuration_development_documents_are_foreign() {
    let enclave = Enclave::at(NOW.0);
    let document = enclave.document_of(|_| {});
    let plain = Kms::start(config()).await;
    let body = json!({ "NumberOfBytes": 1 });
    assert_eq!(
        plain.with("GenerateRandom", body.clone(), &document).await,
        error("ValidationException")
    );
    let other = Enclave::at(NOW.0);
    let kms = Kms::start(ServerConfig {
        attestation_root: Some(other.root_file()),
        ..config()
    })
    .await;
    assert_eq!(
        kms.with("GenerateRandom", body.clone(), &document).await,
        error("ValidationException")
    );
    assert!(
        kms.with("GenerateRandom", body, &other.document_of(|_| {}))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_root_that_cannot_be_used_stops_the_start_and_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let enclave = Enclave::at(NOW.0);
    let root = std::fs::read_to_string(enclave.root_file()).unwrap();
    for (name, text) in [("empty.pem", String::new()), ("two.pem", format!("{root}{root}"))] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let attestation_root = Some(path);
        match Server::start(ServerConfig {
            attestation_root,
            ..config()
        })
        .await
        {
            Err(error @ StartError::AttestationRoot { .. }) => assert!(error.to_string().contains(name), "{error}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn operations_that_give_no_plaintext_take_no_recipient() {
    let (kms, enclave) = start().await;
    let (arn, rsa) = (
        kms.key(KeySpec::Symmetric, None).await,
        kms.key(KeySpec::Rsa(RsaBits::Rsa2048), None).await,
    );
    let hmac = kms.key(KeySpec::Hmac256, None).await;
    let document = enclave.document_of(|_| {});
    let made = kms.data_key(&arn).await;
    for (operation, body) in [
        ("Encrypt", json!({ "KeyId": arn, "Plaintext": "AAAA" })),
        (
            "GenerateDataKeyWithoutPlaintext",
            json!({ "KeyId": arn, "KeySpec": "AES_256" }),
        ),
        (
            "GenerateDataKeyPairWithoutPlaintext",
            json!({ "KeyId": arn, "KeyPairSpec": "RSA_2048" }),
        ),
        (
            "ReEncrypt",
            json!({ "CiphertextBlob": made["CiphertextBlob"], "DestinationKeyId": arn }),
        ),
        ("GetPublicKey", json!({ "KeyId": rsa })),
        (
            "GenerateMac",
            json!({ "KeyId": hmac, "MacAlgorithm": "HMAC_SHA_256", "Message": "AAAA" }),
        ),
        ("DescribeKey", json!({ "KeyId": arn })),
    ] {
        assert!(kms.call(operation, &body).await.is_ok(), "{operation}");
        assert_eq!(
            kms.with(operation, body, &document).await,
            error("ValidationException"),
            "{operation}"
        );
    }
}

/// The policy of DESIGN's enclave keys, under which the account may do everything that is not denied.
#[tokio::test]
async fn a_key_policy_with_a_measurement_gives_to_that_image_alone_and_what_would_go_round_it_to_nobody() {
    let (kms, enclave) = start().await;
    let policy = measured_key_policy(&IMAGE);
    let arn = kms.key(KeySpec::Symmetric, Some(&policy)).await;
    let elsewhere = kms.key(KeySpec::Symmetric, None).await;
    let good = enclave.document_of(|_| {});
    let other = enclave.document_of(|document| {
        document.pcrs.insert(0, OTHER_IMAGE.to_vec());
    });
    // The right bytes in another register do not help.
    let moved = enclave.document_of(|document| {
        document.pcrs.insert(0, OTHER_IMAGE.to_vec());
        document.pcrs.insert(1, IMAGE.to_vec());
    });
    let data_key = json!({ "KeyId": arn, "KeySpec": "AES_256" });
    let made = kms.with("GenerateDataKey", data_key.clone(), &good).await.unwrap();
    let pair = json!({ "KeyId": arn, "KeyPairSpec": "RSA_2048" });
    let decrypt = json!({ "KeyId": arn, "CiphertextBlob": made["CiphertextBlob"] });
    let unnamed = json!({ "CiphertextBlob": made["CiphertextBlob"] });
    let public = STANDARD.encode(enclave.public());
    let derive = json!({ "KeyId": arn, "KeyAgreementAlgorithm": "ECDH", "PublicKey": public });
    for (operation, body) in [
        ("GenerateDataKey", data_key.clone()),
        ("GenerateDataKeyPair", pair.clone()),
        ("Decrypt", decrypt),
        ("Decrypt", unnamed),
        ("DeriveSharedSecret", derive),
    ] {
        assert_eq!(
            kms.call(operation, &body).await,
            error("AccessDeniedException"),
            "{operation} without Recipient"
        );
        for document in [&other, &moved] {
            let answer = kms.with(operation, body.clone(), document).await;
            assert_eq!(answer, error("AccessDeniedException"), "{operation} of another image");
        }
        // No key here is for key agreement, so that is as far as it goes.
        match kms.with(operation, body, &good).await {
            Ok(answer) => assert!(answer["CiphertextForRecipient"].is_string(), "{operation}"),
            Err(code) => assert_eq!(
                (operation, code.as_str()),
                ("DeriveSharedSecret", "InvalidKeyUsageException")
            ),
        }
    }
    let from_here = json!({ "CiphertextBlob": made["CiphertextBlob"], "DestinationKeyId": elsewhere });
    let foreign = kms.data_key(&elsewhere).await;
    let to_here = json!({ "CiphertextBlob": foreign["CiphertextBlob"], "DestinationKeyId": arn });
    let grant = json!({ "KeyId": arn, "GranteePrincipal": common::ADMIN, "Operations": ["Decrypt"] });
    for (operation, body) in [
        ("Encrypt", json!({ "KeyId": arn, "Plaintext": "AAAA" })),
        ("ReEncrypt", from_here),
        ("ReEncrypt", to_here),
        ("CreateGrant", grant.clone()),
        ("GenerateDataKeyWithoutPlaintext", data_key),
        ("GenerateDataKeyPairWithoutPlaintext", pair),
    ] {
        assert_eq!(
            kms.call(operation, &body).await,
            error("AccessDeniedException"),
            "{operation}"
        );
    }
    // Of a key whose policy lets, a grant is refused for another reason: there are none.
    let mut grant = grant;
    grant["KeyId"] = json!(elsewhere);
    assert_eq!(
        kms.call("CreateGrant", &grant).await,
        error("UnsupportedOperationException")
    );

    kms.server.set_enabled(&arn, false).unwrap();
    let disabled = kms
        .with("GenerateDataKey", json!({ "KeyId": arn, "KeySpec": "AES_256" }), &good)
        .await;
    assert_eq!(disabled, error("DisabledException"));
}

#[tokio::test]
async fn a_dry_run_with_a_recipient_gives_nothing() {
    let (kms, enclave) = start().await;
    let arn = kms.key(KeySpec::Symmetric, Some(&measured_key_policy(&IMAGE))).await;
    let body = json!({ "KeyId": arn, "KeySpec": "AES_256", "DryRun": true });
    assert_eq!(kms.call("GenerateDataKey", &body).await, error("AccessDeniedException"));
    let answer = kms.with("GenerateDataKey", body, &enclave.document_of(|_| {})).await;
    assert_eq!(answer, error("DryRunOperationException"));
}
