//! Keys of the local KMS: their states, their policies, their names, and that they survive a restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{DAY, Kms, NOW, config, error, principal};
use sealflow::secret::SecretString;
use sealflow_local_kms::{Server, ServerConfig, StartError, VaultError};
use serde_json::{Value, json};

#[tokio::test]
async fn key_states_follow_aws() {
    let kms = Kms::start(config()).await;
    let arn = kms.create_key().await;
    let key_id = json!({ "KeyId": arn });
    let key = kms.data_key(&arn).await;
    assert_eq!(kms.decrypt(&arn, &key).await.unwrap()["Plaintext"], key["Plaintext"]);

    kms.call("DisableKey", &key_id).await.unwrap();
    assert_eq!(kms.decrypt(&arn, &key).await, error("DisabledException"));
    for operation in ["GenerateDataKey", "GenerateDataKeyWithoutPlaintext"] {
        let body = json!({ "KeyId": arn, "KeySpec": "AES_256" });
        assert_eq!(kms.call(operation, &body).await, error("DisabledException"));
    }
    let encrypt = json!({ "KeyId": arn, "Plaintext": "AAAA" });
    assert_eq!(kms.call("Encrypt", &encrypt).await, error("DisabledException"));
    kms.call("EnableKey", &key_id).await.unwrap();
    assert!(kms.decrypt(&arn, &key).await.is_ok());

    for days in [6, 31] {
        let body = json!({ "KeyId": arn, "PendingWindowInDays": days });
        assert_eq!(
            kms.call("ScheduleKeyDeletion", &body).await,
            error("ValidationException")
        );
    }
    let scheduled = kms
        .call(
            "ScheduleKeyDeletion",
            &json!({ "KeyId": arn, "PendingWindowInDays": 7 }),
        )
        .await
        .unwrap();
    assert_eq!(scheduled["KeyState"], "PendingDeletion");
    assert_eq!(
        scheduled["DeletionDate"].as_f64().unwrap(),
        (NOW.0 / 1000 + 7 * 86_400) as f64
    );
    assert_eq!(kms.decrypt(&arn, &key).await, error("KMSInvalidStateException"));
    for operation in ["EnableKey", "DisableKey"] {
        assert_eq!(kms.call(operation, &key_id).await, error("KMSInvalidStateException"));
    }
    assert_eq!(
        kms.call("ScheduleKeyDeletion", &key_id).await,
        error("KMSInvalidStateException")
    );
    kms.clock.advance(6 * DAY);
    kms.call("CancelKeyDeletion", &key_id).await.unwrap();
    assert_eq!(
        kms.call("CancelKeyDeletion", &key_id).await,
        error("KMSInvalidStateException")
    );
    assert_eq!(kms.decrypt(&arn, &key).await, error("DisabledException"));
    kms.call("EnableKey", &key_id).await.unwrap();
    kms.clock.advance(60 * DAY);
    assert!(kms.decrypt(&arn, &key).await.is_ok());
}

#[tokio::test]
async fn a_key_is_gone_at_its_deletion_date_from_disk_too() {
    let folder = tempfile::tempdir().unwrap();
    let config = || ServerConfig {
        folder: Some(folder.path().to_path_buf()),
        ..config()
    };
    let kms = Kms::start(config()).await;
    let arn = kms.create_key().await;
    let (kept, id) = (kms.create_key().await, arn.rsplit('/').next().unwrap().to_owned());
    kms.call(
        "CreateAlias",
        &json!({ "AliasName": "alias/dying", "TargetKeyId": arn }),
    )
    .await
    .unwrap();
    let key = kms.data_key(&arn).await;
    kms.call(
        "ScheduleKeyDeletion",
        &json!({ "KeyId": arn, "PendingWindowInDays": 7 }),
    )
    .await
    .unwrap();
    let file = folder.path().join(format!("{id}.key"));
    assert!(file.exists());
    kms.clock.advance(7 * DAY);
    assert_eq!(kms.decrypt(&arn, &key).await, error("NotFoundException"));
    assert_eq!(kms.decrypt("alias/dying", &key).await, error("NotFoundException"));
    assert!(!file.exists(), "the material is still on disk");
    let clock = Arc::clone(&kms.clock);
    kms.server.shutdown().await;
    let kms = Kms::start_at(config(), clock).await;
    assert_eq!(kms.decrypt(&arn, &key).await, error("NotFoundException"));
    assert!(kms.call("DescribeKey", &json!({ "KeyId": kept })).await.is_ok());
}

#[tokio::test]
async fn keys_policies_aliases_and_states_survive_a_restart() {
    for passphrase in [None, Some("correct horse battery staple")] {
        let folder = tempfile::tempdir().unwrap();
        let config = |passphrase: Option<&str>| ServerConfig {
            folder: Some(folder.path().join("kms")),
            passphrase: passphrase.map(|p| SecretString::new(p.to_owned())),
            principals: vec![
                principal("AKIAADMIN", common::ADMIN),
                principal("AKIAOTHER", "arn:aws:iam::111122223333:user/other"),
            ],
            ..config()
        };
        let kms = Kms::start(config(passphrase)).await;
        let arn = kms.create_key().await;
        let policy = r#"{"Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/admin"},"Action":"kms:*","Resource":"*"}]}"#;
        kms.call(
            "PutKeyPolicy",
            &json!({ "KeyId": arn, "PolicyName": "default", "Policy": policy }),
        )
        .await
        .unwrap();
        kms.call("CreateAlias", &json!({ "AliasName": "alias/a", "TargetKeyId": arn }))
            .await
            .unwrap();
        let disabled = kms.create_key().await;
        kms.call("DisableKey", &json!({ "KeyId": disabled })).await.unwrap();
        let key = kms.data_key("alias/a").await;
        kms.server.shutdown().await;
        no_file_holds(&folder.path().join("kms"), key["Plaintext"].as_str().unwrap());

        if passphrase.is_some() {
            let wrong = Server::start(config(Some("wrong"))).await;
            assert!(
                matches!(wrong, Err(StartError::Vault(VaultError::WrongKey { .. }))),
                "{wrong:?}"
            );
            let none = Server::start(config(None)).await;
            assert!(
                matches!(none, Err(StartError::Vault(VaultError::Unopenable { .. }))),
                "{none:?}"
            );
        }
        let kms = Kms::start(config(passphrase)).await;
        assert_eq!(kms.decrypt(&arn, &key).await.unwrap()["Plaintext"], key["Plaintext"]);
        assert_eq!(kms.decrypt("alias/a", &key).await.unwrap()["KeyId"], arn.as_str());
        assert_eq!(
            kms.call("GetKeyPolicy", &json!({ "KeyId": arn })).await.unwrap()["Policy"],
            policy
        );
        let state = kms.call("DescribeKey", &json!({ "KeyId": disabled })).await.unwrap();
        assert_eq!(state["KeyMetadata"]["KeyState"], "Disabled");
        let body = json!({ "KeyId": arn, "CiphertextBlob": key["CiphertextBlob"] });
        assert_eq!(
            kms.call_as("AKIAOTHER", "Decrypt", &body).await,
            error("AccessDeniedException")
        );
    }
}

fn no_file_holds(folder: &Path, text: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(text.len()).any(|w| w == text.as_bytes()));
    }
}

#[tokio::test]
async fn a_second_server_on_a_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = || ServerConfig {
        folder: Some(folder.path().to_path_buf()),
        ..config()
    };
    let first = Kms::start(config()).await;
    let second = Server::start(config()).await;
    assert!(
        matches!(second, Err(StartError::Vault(VaultError::Locked { .. }))),
        "{second:?}"
    );
    first.server.shutdown().await;
    assert!(Server::start(config()).await.is_ok());
}

#[tokio::test]
async fn what_this_server_does_not_know_is_refused_and_not_ignored() {
    let kms = Kms::start(config()).await;
    let arn = kms.create_key().await;
    let key = kms.data_key(&arn).await;
    let blob = &key["CiphertextBlob"];
    let recipient = json!({ "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": "AAAA" });
    let cases = [
        (
            "Decrypt",
            json!({ "KeyId": arn, "CiphertextBlob": blob, "Recipient": recipient }),
            "ValidationException",
        ),
        (
            "GenerateDataKey",
            json!({ "KeyId": arn, "KeySpec": "AES_256", "Recipient": recipient }),
            "ValidationException",
        ),
        (
            "Decrypt",
            json!({ "KeyId": arn, "CiphertextBlob": blob, "GrantTokens": ["t"] }),
            "UnsupportedOperationException",
        ),
        (
            "Decrypt",
            json!({ "KeyId": arn, "CiphertextBlob": blob, "DryRun": true }),
            "DryRunOperationException",
        ),
        (
            "CreateKey",
            json!({ "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY" }),
            "UnsupportedOperationException",
        ),
        (
            "CreateKey",
            json!({ "KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY" }),
            "UnsupportedOperationException",
        ),
        ("CreateKey", json!({ "KeyUsage": "SIGN_VERIFY" }), "ValidationException"),
        (
            "CreateKey",
            json!({ "Origin": "EXTERNAL" }),
            "UnsupportedOperationException",
        ),
        (
            "CreateKey",
            json!({ "MultiRegion": true }),
            "UnsupportedOperationException",
        ),
        (
            "CreateKey",
            json!({ "Policy": "{}" }),
            "MalformedPolicyDocumentException",
        ),
        ("Sign", json!({ "KeyId": arn }), "UnknownOperationException"),
    ];
    for (operation, body, code) in cases {
        assert_eq!(kms.call(operation, &body).await, error(code), "{operation} {body}");
    }
}

#[tokio::test]
async fn data_keys_have_the_length_asked_for_within_bounds() {
    let kms = Kms::start(config()).await;
    let arn = kms.create_key().await;
    for (spec, length) in [
        (json!({ "KeySpec": "AES_256" }), 32),
        (json!({ "KeySpec": "AES_128" }), 16),
        (json!({ "NumberOfBytes": 1 }), 1),
        (json!({ "NumberOfBytes": 64 }), 64),
        (json!({ "NumberOfBytes": 1024 }), 1024),
    ] {
        let mut body = spec.clone();
        body["KeyId"] = json!(arn);
        let key = kms.call("GenerateDataKey", &body).await.unwrap();
        let text = key["Plaintext"].as_str().unwrap();
        assert_eq!(text.len(), (length as usize).div_ceil(3) * 4, "{spec}");
        assert_eq!(kms.decrypt(&arn, &key).await.unwrap()["Plaintext"], key["Plaintext"]);
    }
    for spec in [
        json!({}),
        json!({ "KeySpec": "AES_512" }),
        json!({ "NumberOfBytes": 0 }),
        json!({ "NumberOfBytes": 1025 }),
        json!({ "NumberOfBytes": -1 }),
        json!({ "NumberOfBytes": 32, "KeySpec": "AES_256" }),
    ] {
        let mut body = spec.clone();
        body["KeyId"] = json!(arn);
        assert_eq!(
            kms.call("GenerateDataKey", &body).await,
            error("ValidationException"),
            "{spec}"
        );
    }
    let sealed = kms
        .call("Encrypt", &json!({ "KeyId": arn, "Plaintext": "aGVsbG8=" }))
        .await
        .unwrap();
    assert_eq!(kms.decrypt(&arn, &sealed).await.unwrap()["Plaintext"], "aGVsbG8=");
}

#[tokio::test]
async fn ciphertexts_of_other_keys_contexts_and_servers_do_not_open() {
    let kms = Kms::start(config()).await;
    let (arn, other) = (kms.create_key().await, kms.create_key().await);
    let key = kms.data_key(&arn).await;
    assert_eq!(kms.decrypt(&other, &key).await, error("IncorrectKeyException"));
    let blob = &key["CiphertextBlob"];
    let with_context = json!({ "KeyId": arn, "CiphertextBlob": blob, "EncryptionContext": { "a": "b" } });
    assert_eq!(
        kms.call("Decrypt", &with_context).await,
        error("InvalidCiphertextException")
    );
    assert!(
        kms.call("Decrypt", &json!({ "CiphertextBlob": blob })).await.is_ok(),
        "the key is in the blob"
    );
    let garbage = json!({ "KeyId": arn, "CiphertextBlob": "AAAA" });
    assert_eq!(kms.call("Decrypt", &garbage).await, error("InvalidCiphertextException"));
    // Another server with a key of the same name has other material.
    let (here, there) = (Kms::start(config()).await, Kms::start(config()).await);
    let arn = here.server.create_key(Some("same"), "", None).unwrap();
    assert_eq!(there.server.create_key(Some("same"), "", None).unwrap(), arn);
    let key = here.data_key(&arn).await;
    assert_eq!(there.decrypt(&arn, &key).await, error("InvalidCiphertextException"));
}

#[tokio::test]
async fn aliases_name_keys_and_lists_come_in_pages() {
    let kms = Kms::start(config()).await;
    let mut arns = Vec::new();
    for _ in 0..5 {
        arns.push(kms.create_key().await);
    }
    let alias = |name: &str, target: &str| json!({ "AliasName": name, "TargetKeyId": target });
    kms.call("CreateAlias", &alias("alias/a", &arns[0])).await.unwrap();
    assert_eq!(
        kms.call("CreateAlias", &alias("alias/a", &arns[1])).await,
        error("AlreadyExistsException")
    );
    for bad in ["a", "alias/", "alias/aws/s3", "alias/a b"] {
        assert_eq!(
            kms.call("CreateAlias", &alias(bad, &arns[1])).await,
            error("InvalidAliasNameException"),
            "{bad}"
        );
    }
    let id = arns[0].rsplit('/').next().unwrap();
    let alias_arn = "arn:aws:kms:eu-central-1:111122223333:alias/a";
    for name in ["alias/a", alias_arn, id, &arns[0]] {
        let found = kms.call("DescribeKey", &json!({ "KeyId": name })).await.unwrap();
        assert_eq!(found["KeyMetadata"]["Arn"], arns[0].as_str(), "{name}");
    }
    let missing = [
        "alias/b",
        "arn:aws:kms:us-east-1:111122223333:alias/a",
        "arn:aws:kms:eu-central-1:999999999999:key/x",
    ];
    for name in missing {
        assert_eq!(
            kms.call("DescribeKey", &json!({ "KeyId": name })).await,
            error("NotFoundException"),
            "{name}"
        );
    }
    let listed = kms.call("ListAliases", &json!({ "KeyId": arns[0] })).await.unwrap();
    assert_eq!(
        (
            listed["Aliases"].as_array().unwrap().len(),
            &listed["Aliases"][0]["TargetKeyId"]
        ),
        (1, &json!(id))
    );
    let mut seen = Vec::new();
    let mut marker = Value::Null;
    loop {
        let mut body = json!({ "Limit": 2 });
        if marker.is_string() {
            body["Marker"] = marker;
        }
        let page = kms.call("ListKeys", &body).await.unwrap();
        seen.extend(
            page["Keys"]
                .as_array()
                .unwrap()
                .iter()
                .map(|k| k["KeyArn"].as_str().unwrap().to_owned()),
        );
        marker = page["NextMarker"].clone();
        if page["Truncated"] == false {
            break;
        }
    }
    arns.sort();
    assert_eq!(seen, arns);
}

#[tokio::test]
async fn every_operation_on_a_key_asks_its_policy() {
    let both = vec![
        principal("AKIAADMIN", common::ADMIN),
        principal("AKIAOTHER", "arn:aws:iam::111122223333:user/other"),
    ];
    let kms = Kms::start(ServerConfig {
        principals: both,
        ..config()
    })
    .await;
    let policy = r#"{"Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/admin"},"Action":"kms:*","Resource":"*"}]}"#;
    let made = kms.call("CreateKey", &json!({ "Policy": policy })).await.unwrap();
    let arn = made["KeyMetadata"]["Arn"].as_str().unwrap();
    let key = kms.data_key(arn).await;
    let id = json!({ "KeyId": arn });
    let operations = [
        ("DescribeKey", id.clone()),
        ("GetKeyPolicy", id.clone()),
        ("PutKeyPolicy", json!({ "KeyId": arn, "Policy": policy })),
        ("CreateAlias", json!({ "AliasName": "alias/x", "TargetKeyId": arn })),
        ("GenerateDataKey", json!({ "KeyId": arn, "KeySpec": "AES_256" })),
        (
            "GenerateDataKeyWithoutPlaintext",
            json!({ "KeyId": arn, "KeySpec": "AES_256" }),
        ),
        ("Encrypt", json!({ "KeyId": arn, "Plaintext": "AAAA" })),
        (
            "Decrypt",
            json!({ "KeyId": arn, "CiphertextBlob": key["CiphertextBlob"] }),
        ),
        ("Decrypt", json!({ "CiphertextBlob": key["CiphertextBlob"] })),
        ("DisableKey", id.clone()),
        ("EnableKey", id.clone()),
        ("ScheduleKeyDeletion", id.clone()),
        ("CancelKeyDeletion", id),
    ];
    for (operation, body) in &operations {
        let denied = kms.call_as("AKIAOTHER", operation, body).await;
        assert_eq!(denied, error("AccessDeniedException"), "{operation}");
    }
    for (operation, body) in &operations {
        assert!(kms.call(operation, body).await.is_ok(), "{operation}");
    }
}
