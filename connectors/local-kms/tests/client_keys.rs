//! RSA and HMAC keys of the local KMS: what they do, for whom, what AWS answers where they do not, and that they survive a
//! restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::path::Path;

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{ADMIN, DAY, Kms, config, error, principal};
use sealflow_local_kms::{Server, ServerConfig, StartError, VaultError};
use serde_json::{Value, json};

const OAEP: &str = "RSAES_OAEP_SHA_256";
const OTHER: &str = "arn:aws:iam::111122223333:user/other";

impl Kms {
    async fn key_of(&self, spec: &str, usage: &str) -> String {
        let body = json!({ "KeySpec": spec, "KeyUsage": usage });
        let made = self.call("CreateKey", &body).await.unwrap();
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    async fn rsa_key(&self) -> String {
        self.key_of("RSA_2048", "ENCRYPT_DECRYPT").await
    }

    async fn hmac_key(&self) -> String {
        self.key_of("HMAC_256", "GENERATE_VERIFY_MAC").await
    }

    /// What a client does, who knows nothing but the public key.
    async fn sealed_to(&self, arn: &str, plaintext: &[u8]) -> String {
        let public = self.call("GetPublicKey", &json!({ "KeyId": arn })).await.unwrap();
        seal(&public["PublicKey"], plaintext)
    }

    async fn decrypt_rsa(&self, arn: &str, sealed: &str) -> Result<Value, String> {
        let body = json!({ "KeyId": arn, "CiphertextBlob": sealed, "EncryptionAlgorithm": OAEP });
        self.call("Decrypt", &body).await
    }
}

fn seal(public: &Value, plaintext: &[u8]) -> String {
    let der = STANDARD.decode(public.as_str().unwrap()).unwrap();
    let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&der).unwrap()).unwrap();
    let mut sealed = vec![0; key.ciphertext_size()];
    key.encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut sealed, None)
        .unwrap();
    STANDARD.encode(sealed)
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[tokio::test]
async fn keys_of_every_spec_describe_themselves_as_in_aws() {
    let kms = Kms::start(config()).await;
    for (spec, usage, algorithms) in [
        (
            "SYMMETRIC_DEFAULT",
            "ENCRYPT_DECRYPT",
            ("EncryptionAlgorithms", "SYMMETRIC_DEFAULT"),
        ),
        ("RSA_2048", "ENCRYPT_DECRYPT", ("EncryptionAlgorithms", OAEP)),
        ("RSA_3072", "ENCRYPT_DECRYPT", ("EncryptionAlgorithms", OAEP)),
        ("RSA_4096", "ENCRYPT_DECRYPT", ("EncryptionAlgorithms", OAEP)),
        ("HMAC_256", "GENERATE_VERIFY_MAC", ("MacAlgorithms", "HMAC_SHA_256")),
    ] {
        let arn = kms.key_of(spec, usage).await;
        let described = kms.call("DescribeKey", &json!({ "KeyId": arn })).await.unwrap();
        let metadata = &described["KeyMetadata"];
        assert_eq!(
            (&metadata["KeySpec"], &metadata["KeyUsage"]),
            (&json!(spec), &json!(usage))
        );
        assert_eq!(metadata["CustomerMasterKeySpec"], spec);
        for name in ["EncryptionAlgorithms", "MacAlgorithms"] {
            let expected = if name == algorithms.0 {
                json!([algorithms.1])
            } else {
                Value::Null
            };
            assert_eq!(metadata[name], expected, "{spec} {name}");
        }
        let has_material = metadata["CurrentKeyMaterialId"].is_string();
        assert_eq!(has_material, spec == "SYMMETRIC_DEFAULT", "{spec}");
    }
    for (spec, usage, code) in [
        (json!("RSA_2048"), Value::Null, "ValidationException"),
        (json!("HMAC_256"), Value::Null, "ValidationException"),
        (json!("HMAC_256"), json!("ENCRYPT_DECRYPT"), "ValidationException"),
        (json!("RSA_2048"), json!("GENERATE_VERIFY_MAC"), "ValidationException"),
        (Value::Null, json!("GENERATE_VERIFY_MAC"), "ValidationException"),
        (json!("RSA_2048"), json!("EVERYTHING"), "ValidationException"),
        (json!("RSA_4096"), json!("SIGN_VERIFY"), "UnsupportedOperationException"),
        (
            json!("HMAC_512"),
            json!("GENERATE_VERIFY_MAC"),
            "UnsupportedOperationException",
        ),
        (
            json!("RSA_1024"),
            json!("ENCRYPT_DECRYPT"),
            "UnsupportedOperationException",
        ),
    ] {
        let body = json!({ "KeySpec": spec, "KeyUsage": usage });
        assert_eq!(kms.call("CreateKey", &body).await, error(code), "{body}");
    }
}

#[tokio::test]
async fn what_a_client_seals_to_the_public_key_decrypts_and_needs_the_key_named() {
    let kms = Kms::start(config()).await;
    let arn = kms.rsa_key().await;
    let sealed = kms.sealed_to(&arn, b"session").await;
    let opened = kms.decrypt_rsa(&arn, &sealed).await.unwrap();
    let expected = json!({ "KeyId": arn, "Plaintext": base64(b"session"), "EncryptionAlgorithm": OAEP });
    assert_eq!(opened, expected);
    let unnamed = json!({ "CiphertextBlob": sealed, "EncryptionAlgorithm": OAEP });
    assert_eq!(kms.call("Decrypt", &unnamed).await, error("InvalidCiphertextException"));
    let by_default = json!({ "KeyId": arn, "CiphertextBlob": sealed });
    assert_eq!(
        kms.call("Decrypt", &by_default).await,
        error("InvalidCiphertextException")
    );
    for (change, value, code) in [
        (
            "EncryptionAlgorithm",
            json!("RSAES_OAEP_SHA_1"),
            "UnsupportedOperationException",
        ),
        ("EncryptionAlgorithm", json!("ROT13"), "ValidationException"),
        (
            "EncryptionContext",
            json!({ "a": "b" }),
            "UnsupportedOperationException",
        ),
        ("DryRun", json!(true), "DryRunOperationException"),
    ] {
        let mut body = json!({ "KeyId": arn, "CiphertextBlob": sealed, "EncryptionAlgorithm": OAEP });
        body[change] = value;
        assert_eq!(kms.call("Decrypt", &body).await, error(code), "{change}");
    }
}

/// Answers that differ would be an oracle (Manger, CRYPTO 2001): code and message both.
#[tokio::test]
async fn rsa_ciphertexts_that_do_not_open_all_look_alike() {
    let kms = Kms::start(config()).await;
    let (arn, other) = (kms.rsa_key().await, kms.rsa_key().await);
    let sealed = STANDARD.decode(kms.sealed_to(&arn, b"session").await).unwrap();
    let mut edited = sealed.clone();
    edited[128] ^= 1;
    let wrong = [
        STANDARD.decode(kms.sealed_to(&other, b"session").await).unwrap(),
        edited,
        sealed[1..].to_vec(),
        [sealed.as_slice(), &[0]].concat(),
        vec![0; 256],
        vec![0xff; 256],
        vec![1],
        vec![1; 6144],
    ];
    for bytes in wrong {
        let body = json!({ "KeyId": arn, "CiphertextBlob": base64(&bytes), "EncryptionAlgorithm": OAEP });
        let answer = common::Request::kms("Decrypt", &body).call(kms.addr()).await;
        let expected = json!({ "__type": "InvalidCiphertextException", "message": "" });
        assert_eq!((answer.status, answer.json()), (400, expected), "{} bytes", bytes.len());
    }
}

#[tokio::test]
async fn encryption_inside_the_service_takes_what_fits_and_re_encrypts() {
    let kms = Kms::start(config()).await;
    for (spec, most) in [("RSA_2048", 190), ("RSA_3072", 318), ("RSA_4096", 446)] {
        let arn = kms.key_of(spec, "ENCRYPT_DECRYPT").await;
        let body = |length| json!({ "KeyId": arn, "Plaintext": base64(&vec![7; length]), "EncryptionAlgorithm": OAEP });
        let sealed = kms.call("Encrypt", &body(most)).await.unwrap();
        assert_eq!(
            (&sealed["KeyId"], &sealed["EncryptionAlgorithm"]),
            (&json!(arn), &json!(OAEP))
        );
        let opened = kms
            .decrypt_rsa(&arn, sealed["CiphertextBlob"].as_str().unwrap())
            .await
            .unwrap();
        assert_eq!(opened["Plaintext"], base64(&vec![7; most]));
        assert_eq!(
            kms.call("Encrypt", &body(most + 1)).await,
            error("ValidationException"),
            "{spec}"
        );
    }
    // From the client's key into storage, without a plaintext outside.
    let (rsa, symmetric) = (kms.rsa_key().await, kms.create_key().await);
    let sealed = kms.sealed_to(&rsa, b"session").await;
    let body = json!({
        "CiphertextBlob": sealed, "SourceKeyId": rsa, "SourceEncryptionAlgorithm": OAEP,
        "DestinationKeyId": symmetric, "DestinationEncryptionContext": { "a": "b" },
    });
    let moved = kms.call("ReEncrypt", &body).await.unwrap();
    assert_eq!(
        (&moved["SourceKeyId"], &moved["KeyId"]),
        (&json!(rsa), &json!(symmetric))
    );
    assert!(moved["SourceKeyMaterialId"].is_null() && moved["DestinationKeyMaterialId"].is_string());
    let stored = json!({ "CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": { "a": "b" } });
    assert_eq!(
        kms.call("Decrypt", &stored).await.unwrap()["Plaintext"],
        base64(b"session")
    );
    let back = json!({
        "CiphertextBlob": moved["CiphertextBlob"], "SourceEncryptionContext": { "a": "b" },
        "DestinationKeyId": rsa, "DestinationEncryptionAlgorithm": OAEP,
    });
    let back = kms.call("ReEncrypt", &back).await.unwrap();
    let opened = kms
        .decrypt_rsa(&rsa, back["CiphertextBlob"].as_str().unwrap())
        .await
        .unwrap();
    assert_eq!(opened["Plaintext"], base64(b"session"));
}

#[tokio::test]
async fn pairs_come_with_their_private_half_wrapped_and_in_clear_only_if_asked_for() {
    let kms = Kms::start(config()).await;
    let arn = kms.create_key().await;
    let body = json!({ "KeyId": arn, "KeyPairSpec": "RSA_3072", "EncryptionContext": { "a": "b" } });
    let silent = kms.call("GenerateDataKeyPairWithoutPlaintext", &body).await.unwrap();
    assert!(
        silent["PrivateKeyPlaintext"].is_null(),
        "the private half is in the answer"
    );
    let pair = kms.call("GenerateDataKeyPair", &body).await.unwrap();
    for answer in [&silent, &pair] {
        assert_eq!(
            (&answer["KeyId"], &answer["KeyPairSpec"]),
            (&json!(arn), &json!("RSA_3072"))
        );
        assert!(answer["KeyMaterialId"].is_string());
    }
    let opening = json!({ "CiphertextBlob": pair["PrivateKeyCiphertextBlob"], "EncryptionContext": { "a": "b" } });
    let opened = kms.call("Decrypt", &opening).await.unwrap();
    assert_eq!(opened["Plaintext"], pair["PrivateKeyPlaintext"]);
    let without = json!({ "CiphertextBlob": pair["PrivateKeyCiphertextBlob"] });
    assert_eq!(kms.call("Decrypt", &without).await, error("InvalidCiphertextException"));
    for (spec, code) in [
        ("RSA_1024", "UnsupportedOperationException"),
        ("ECC_NIST_P256", "UnsupportedOperationException"),
        ("SYMMETRIC_DEFAULT", "ValidationException"),
        ("HMAC_256", "ValidationException"),
    ] {
        let body = json!({ "KeyId": arn, "KeyPairSpec": spec });
        assert_eq!(kms.call("GenerateDataKeyPair", &body).await, error(code), "{spec}");
    }
}

#[tokio::test]
async fn a_mac_is_hmac_sha_256_and_verifies_under_its_key_alone() {
    let kms = Kms::start(config()).await;
    let (arn, other) = (kms.hmac_key().await, kms.hmac_key().await);
    let make =
        |arn: &str, message: &[u8]| json!({ "KeyId": arn, "MacAlgorithm": "HMAC_SHA_256", "Message": base64(message) });
    let made = kms.call("GenerateMac", &make(&arn, b"message")).await.unwrap();
    assert_eq!(made["KeyId"], arn.as_str());
    let mac = STANDARD.decode(made["Mac"].as_str().unwrap()).unwrap();
    assert_eq!(mac.len(), 32);
    let verify = |arn: &str, message: &[u8], mac: &[u8]| {
        let mut body = make(arn, message);
        body["Mac"] = json!(base64(mac));
        body
    };
    let verified = kms.call("VerifyMac", &verify(&arn, b"message", &mac)).await.unwrap();
    assert_eq!(
        verified,
        json!({ "KeyId": arn, "MacValid": true, "MacAlgorithm": "HMAC_SHA_256" })
    );
    let mut edited = mac.clone();
    edited[31] ^= 1;
    for (arn, message, mac) in [
        (&arn, b"message".as_slice(), edited.as_slice()),
        (&arn, b"message", &mac[..31]),
        (&arn, b"message", &mac[..1]),
        (&arn, b"messagf", &mac),
        (&other, b"message", &mac),
    ] {
        let answer = kms.call("VerifyMac", &verify(arn, message, mac)).await;
        assert_eq!(answer, error("KMSInvalidMacException"));
    }
    for (algorithm, message, code) in [
        ("HMAC_SHA_512", vec![1], "InvalidKeyUsageException"),
        ("HMAC_MD5", vec![1], "ValidationException"),
        ("HMAC_SHA_256", Vec::new(), "ValidationException"),
        ("HMAC_SHA_256", vec![1; 4097], "ValidationException"),
    ] {
        let body = json!({ "KeyId": arn, "MacAlgorithm": algorithm, "Message": base64(&message) });
        assert_eq!(kms.call("GenerateMac", &body).await, error(code), "{algorithm}");
    }
    assert_eq!(
        kms.call("VerifyMac", &verify(&arn, b"m", b"")).await,
        error("ValidationException")
    );
}

#[tokio::test]
async fn keys_of_the_wrong_kind_are_refused_in_aws_words() {
    let kms = Kms::start(config()).await;
    let (rsa, hmac, symmetric) = (kms.rsa_key().await, kms.hmac_key().await, kms.create_key().await);
    let key = kms.data_key(&symmetric).await;
    let sealed = kms.sealed_to(&rsa, b"session").await;
    let (usage, unsupported) = ("InvalidKeyUsageException", "UnsupportedOperationException");
    let mac = json!({ "MacAlgorithm": "HMAC_SHA_256", "Message": "AAAA" });
    let cases = [
        ("GetPublicKey", &symmetric, json!({}), unsupported),
        ("GetPublicKey", &hmac, json!({}), usage),
        ("GenerateDataKey", &rsa, json!({ "KeySpec": "AES_256" }), usage),
        ("GenerateDataKey", &hmac, json!({ "KeySpec": "AES_256" }), usage),
        (
            "GenerateDataKeyWithoutPlaintext",
            &rsa,
            json!({ "KeySpec": "AES_256" }),
            usage,
        ),
        ("GenerateDataKeyPair", &rsa, json!({ "KeyPairSpec": "RSA_2048" }), usage),
        (
            "GenerateDataKeyPairWithoutPlaintext",
            &hmac,
            json!({ "KeyPairSpec": "RSA_2048" }),
            usage,
        ),
        ("Encrypt", &rsa, json!({ "Plaintext": "AAAA" }), usage),
        ("Encrypt", &hmac, json!({ "Plaintext": "AAAA" }), usage),
        (
            "Encrypt",
            &symmetric,
            json!({ "Plaintext": "AAAA", "EncryptionAlgorithm": OAEP }),
            usage,
        ),
        (
            "Decrypt",
            &hmac,
            json!({ "CiphertextBlob": key["CiphertextBlob"] }),
            usage,
        ),
        (
            "Decrypt",
            &hmac,
            json!({ "CiphertextBlob": sealed, "EncryptionAlgorithm": OAEP }),
            usage,
        ),
        (
            "Decrypt",
            &symmetric,
            json!({ "CiphertextBlob": sealed, "EncryptionAlgorithm": OAEP }),
            usage,
        ),
        (
            "Decrypt",
            &rsa,
            json!({ "CiphertextBlob": key["CiphertextBlob"] }),
            "InvalidCiphertextException",
        ),
        ("GenerateMac", &rsa, mac.clone(), usage),
        ("GenerateMac", &symmetric, mac, usage),
        (
            "VerifyMac",
            &symmetric,
            json!({ "MacAlgorithm": "HMAC_SHA_256", "Message": "AAAA", "Mac": "AAAA" }),
            usage,
        ),
        ("EnableKeyRotation", &rsa, json!({}), unsupported),
        ("DisableKeyRotation", &hmac, json!({}), unsupported),
        ("RotateKeyOnDemand", &rsa, json!({}), unsupported),
        ("ListKeyRotations", &hmac, json!({}), unsupported),
    ];
    for (operation, arn, mut body, code) in cases {
        body["KeyId"] = json!(arn);
        assert_eq!(kms.call(operation, &body).await, error(code), "{operation} {body}");
    }
    let to_hmac = json!({ "CiphertextBlob": key["CiphertextBlob"], "DestinationKeyId": hmac });
    assert_eq!(kms.call("ReEncrypt", &to_hmac).await, error(usage));
    for arn in [rsa, hmac] {
        let status = kms
            .call("GetKeyRotationStatus", &json!({ "KeyId": arn }))
            .await
            .unwrap();
        assert_eq!(status, json!({ "KeyId": arn, "KeyRotationEnabled": false }));
    }
}

#[tokio::test]
async fn states_of_rsa_and_hmac_keys_follow_aws() {
    let kms = Kms::start(config()).await;
    let (rsa, hmac) = (kms.rsa_key().await, kms.hmac_key().await);
    let sealed = kms.sealed_to(&rsa, b"session").await;
    let mac = json!({ "KeyId": hmac, "MacAlgorithm": "HMAC_SHA_256", "Message": "AAAA" });
    for (operation, code) in [
        ("DisableKey", "DisabledException"),
        ("ScheduleKeyDeletion", "KMSInvalidStateException"),
    ] {
        for arn in [&rsa, &hmac] {
            kms.call(operation, &json!({ "KeyId": arn })).await.unwrap();
        }
        assert_eq!(kms.call("GetPublicKey", &json!({ "KeyId": rsa })).await, error(code));
        assert_eq!(kms.decrypt_rsa(&rsa, &sealed).await, error(code));
        assert_eq!(kms.call("GenerateMac", &mac).await, error(code));
    }
    kms.clock.advance(31 * DAY);
    assert_eq!(kms.decrypt_rsa(&rsa, &sealed).await, error("NotFoundException"));
}

/// Each action by its own name, and with the encryption context where there is one.
#[tokio::test]
async fn key_policies_decide_about_each_operation_by_its_name() {
    let kms = Kms::start(ServerConfig {
        principals: vec![principal("AKIAADMIN", ADMIN), principal("AKIAOTHER", OTHER)],
        ..config()
    })
    .await;
    let policy = |actions: &str, condition: &str| {
        format!(
            r#"{{"Statement":[{{"Effect":"Allow","Principal":{{"AWS":"{ADMIN}"}},"Action":"kms:*","Resource":"*"}},
            {{"Effect":"Allow","Principal":{{"AWS":"{OTHER}"}},"Action":[{actions}],"Resource":"*"{condition}}}]}}"#
        )
    };
    let create = async |spec: &str, usage: &str| {
        let policy = policy(r#""kms:DescribeKey""#, "");
        let body = json!({ "KeySpec": spec, "KeyUsage": usage, "Policy": policy });
        let made = kms.call("CreateKey", &body).await.unwrap();
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    };
    let rsa = create("RSA_2048", "ENCRYPT_DECRYPT").await;
    let hmac = create("HMAC_256", "GENERATE_VERIFY_MAC").await;
    let symmetric = create("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT").await;
    let sealed = kms.sealed_to(&rsa, b"session").await;
    let mut mac = json!({ "KeyId": hmac, "MacAlgorithm": "HMAC_SHA_256", "Message": "AAAA" });
    let made = kms.call("GenerateMac", &mac).await.unwrap();
    let generate = mac.clone();
    mac["Mac"] = made["Mac"].clone();
    let pair = json!({ "KeyId": symmetric, "KeyPairSpec": "RSA_2048", "EncryptionContext": { "acl": "pii" } });
    let operations = [
        ("GetPublicKey", &rsa, json!({ "KeyId": rsa })),
        (
            "Decrypt",
            &rsa,
            json!({ "KeyId": rsa, "CiphertextBlob": sealed, "EncryptionAlgorithm": OAEP }),
        ),
        (
            "Encrypt",
            &rsa,
            json!({ "KeyId": rsa, "Plaintext": "AAAA", "EncryptionAlgorithm": OAEP }),
        ),
        ("GenerateMac", &hmac, generate),
        ("VerifyMac", &hmac, mac),
        ("GenerateDataKeyPair", &symmetric, pair.clone()),
        ("GenerateDataKeyPairWithoutPlaintext", &symmetric, pair),
    ];
    for (operation, arn, body) in &operations {
        let put = async |policy: String| {
            let body = json!({ "KeyId": arn, "Policy": policy });
            kms.call("PutKeyPolicy", &body).await.unwrap();
        };
        // All others together do not allow it, and it alone does.
        let others: Vec<String> = operations
            .iter()
            .filter(|(other, ..)| other != operation)
            .map(|(other, ..)| format!(r#""kms:{other}""#))
            .collect();
        put(policy(&others.join(","), "")).await;
        let denied = kms.call_as("AKIAOTHER", operation, body).await;
        assert_eq!(denied, error("AccessDeniedException"), "{operation}");
        put(policy(&format!(r#""kms:{operation}""#), "")).await;
        assert!(kms.call_as("AKIAOTHER", operation, body).await.is_ok(), "{operation}");
    }
    let condition = r#","Condition":{"StringEquals":{"kms:EncryptionContext:acl":"pii"}}"#;
    let body = json!({ "KeyId": symmetric, "Policy": policy(r#""kms:GenerateDataKeyPair*""#, condition) });
    kms.call("PutKeyPolicy", &body).await.unwrap();
    for operation in ["GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext"] {
        let body = |acl| json!({ "KeyId": symmetric, "KeyPairSpec": "RSA_2048", "EncryptionContext": { "acl": acl } });
        assert!(kms.call_as("AKIAOTHER", operation, &body("pii")).await.is_ok());
        let denied = kms.call_as("AKIAOTHER", operation, &body("ops")).await;
        assert_eq!(denied, error("AccessDeniedException"), "{operation}");
    }
}

fn in_folder(folder: &Path) -> ServerConfig {
    ServerConfig {
        folder: Some(folder.to_path_buf()),
        ..config()
    }
}

#[tokio::test]
async fn rsa_and_hmac_keys_survive_a_restart_and_their_files_are_bound_to_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let kms = Kms::start(in_folder(folder.path())).await;
    let (rsa, hmac) = (kms.rsa_key().await, kms.hmac_key().await);
    let sealed = kms.sealed_to(&rsa, b"session").await;
    let mac = json!({ "KeyId": hmac, "MacAlgorithm": "HMAC_SHA_256", "Message": "AAAA" });
    let made = kms.call("GenerateMac", &mac).await.unwrap();
    kms.server.shutdown().await;

    let kms = Kms::start(in_folder(folder.path())).await;
    assert_eq!(
        kms.decrypt_rsa(&rsa, &sealed).await.unwrap()["Plaintext"],
        base64(b"session")
    );
    assert_eq!(kms.call("GenerateMac", &mac).await.unwrap(), made);
    kms.server.shutdown().await;

    let file = |arn: &str, ending: &str| {
        folder
            .path()
            .join(format!("{}{ending}", arn.rsplit('/').next().unwrap()))
    };
    // A folder's owner cannot make an HMAC key of what was an RSA key, nor hide one as symmetric.
    std::fs::rename(file(&rsa, ".rsa"), file(&rsa, ".key")).unwrap();
    let renamed = Server::start(in_folder(folder.path())).await;
    assert!(
        matches!(renamed, Err(StartError::Vault(VaultError::Damaged { .. }))),
        "{renamed:?}"
    );
    std::fs::remove_file(file(&rsa, ".key")).unwrap();
    let kms = Kms::start(in_folder(folder.path())).await;
    kms.call(
        "ScheduleKeyDeletion",
        &json!({ "KeyId": hmac, "PendingWindowInDays": 7 }),
    )
    .await
    .unwrap();
    assert!(file(&hmac, ".hmac").exists());
    kms.clock.advance(7 * DAY);
    kms.call("ListKeys", &json!({})).await.unwrap();
    assert!(!file(&hmac, ".hmac").exists(), "the secret is still on disk");
}

/// Made by the version before there were RSA keys: one key, rotated once, and a data key under each material.
#[tokio::test]
async fn a_folder_from_before_rsa_keys_opens_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/folder-of-symmetric-keys");
    for entry in std::fs::read_dir(&old).unwrap() {
        let entry = entry.unwrap();
        let to = folder.path().join(entry.file_name());
        std::fs::write(&to, std::fs::read(entry.path()).unwrap()).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&to, private).unwrap();
    }
    let opened: Value = serde_json::from_slice(&std::fs::read(folder.path().join("opens.json")).unwrap()).unwrap();
    let kms = Kms::start(in_folder(folder.path())).await;
    for key in opened.as_array().unwrap() {
        let body = json!({ "KeyId": "alias/old", "CiphertextBlob": key["CiphertextBlob"] });
        let answer = kms.call("Decrypt", &body).await.unwrap();
        assert_eq!(answer["Plaintext"], key["Plaintext"]);
        assert_eq!(answer["KeyMaterialId"], key["KeyMaterialId"]);
    }
    let arn = json!({ "KeyId": "alias/old" });
    let metadata = kms.call("DescribeKey", &arn).await.unwrap();
    assert_eq!(metadata["KeyMetadata"]["KeySpec"], "SYMMETRIC_DEFAULT");
    let status = kms.call("GetKeyRotationStatus", &arn).await.unwrap();
    assert_eq!(status["KeyRotationEnabled"], true);
}
