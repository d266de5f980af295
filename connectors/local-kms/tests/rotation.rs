//! Rotation by schedule and on demand, and `ReEncrypt`, by the clock of the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;

use common::{ADMIN, DAY, Kms, config, error, principal};
use sealflow_local_kms::ServerConfig;
use serde_json::{Value, json};

const OTHER: &str = "arn:aws:iam::111122223333:user/other";

impl Kms {
    async fn rotations(&self, arn: &str) -> Vec<Value> {
        let list = self.call("ListKeyRotations", &json!({ "KeyId": arn })).await.unwrap();
        list["Rotations"].as_array().unwrap().clone()
    }

    async fn status(&self, arn: &str) -> Value {
        self.call("GetKeyRotationStatus", &json!({ "KeyId": arn }))
            .await
            .unwrap()
    }

    async fn re_encrypt(&self, id: &str, blob: &Value, from: &str, to: &str) -> Result<Value, String> {
        let body = json!({ "CiphertextBlob": blob, "SourceKeyId": from, "DestinationKeyId": to,
            "SourceEncryptionContext": { "a": "1" }, "DestinationEncryptionContext": { "a": "2" } });
        self.call_as(id, "ReEncrypt", &body).await
    }
}

#[tokio::test]
async fn a_key_rotates_on_schedule_keeps_its_arn_and_opens_what_it_wrapped_before() {
    let kms = Kms::start(config()).await;
    let arn = kms.create_key().await;
    let key_id = json!({ "KeyId": arn });
    assert_eq!(kms.status(&arn).await["KeyRotationEnabled"], false);
    for days in [89, 2561] {
        let body = json!({ "KeyId": arn, "RotationPeriodInDays": days });
        assert_eq!(kms.call("EnableKeyRotation", &body).await, error("ValidationException"));
    }
    let body = json!({ "KeyId": arn, "RotationPeriodInDays": 90 });
    kms.call("EnableKeyRotation", &body).await.unwrap();
    let before = kms.data_key(&arn).await;
    kms.clock.advance(89 * DAY);
    assert!(kms.rotations(&arn).await.is_empty());
    kms.clock.advance(DAY);
    let rotations = kms.rotations(&arn).await;
    assert_eq!(
        (rotations.len(), &rotations[0]["RotationType"]),
        (1, &json!("AUTOMATIC"))
    );
    let after = kms.data_key(&arn).await;
    assert_ne!(before["KeyMaterialId"], after["KeyMaterialId"]);
    assert_eq!(after["KeyMaterialId"], rotations[0]["KeyMaterialId"]);
    for key in [&before, &after] {
        let opened = kms.decrypt(&arn, key).await.unwrap();
        assert_eq!(
            (&opened["Plaintext"], &opened["KeyMaterialId"]),
            (&key["Plaintext"], &key["KeyMaterialId"])
        );
    }
    // Periods that went by unused make one rotation, and the dates stay on their grid.
    let next = kms.status(&arn).await["NextRotationDate"].as_f64().unwrap();
    kms.clock.advance(200 * DAY);
    assert_eq!(kms.rotations(&arn).await.len(), 2);
    assert_eq!(
        kms.status(&arn).await["NextRotationDate"].as_f64().unwrap(),
        next + 180.0 * 86_400.0
    );
    kms.call("DisableKeyRotation", &key_id).await.unwrap();
    kms.clock.advance(400 * DAY);
    assert_eq!(kms.rotations(&arn).await.len(), 2);
}

#[tokio::test]
async fn disabled_and_dying_keys_do_not_rotate_and_keep_their_schedule() {
    let kms = Kms::start(config()).await;
    let arn = kms.create_key().await;
    let key_id = json!({ "KeyId": arn });
    kms.call("EnableKeyRotation", &key_id).await.unwrap();
    assert_eq!(kms.status(&arn).await["RotationPeriodInDays"], 365);
    kms.call("DisableKey", &key_id).await.unwrap();
    for operation in ["EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand"] {
        assert_eq!(
            kms.call(operation, &key_id).await,
            error("DisabledException"),
            "{operation}"
        );
    }
    kms.clock.advance(366 * DAY);
    assert_eq!(kms.status(&arn).await["KeyRotationEnabled"], true);
    assert!(kms.rotations(&arn).await.is_empty());
    // What was missed is made up for as soon as the key is enabled.
    kms.call("EnableKey", &key_id).await.unwrap();
    assert_eq!(kms.rotations(&arn).await.len(), 1);
    kms.call("ScheduleKeyDeletion", &key_id).await.unwrap();
    assert_eq!(kms.status(&arn).await["KeyRotationEnabled"], false);
    for operation in [
        "EnableKeyRotation",
        "DisableKeyRotation",
        "RotateKeyOnDemand",
        "ListKeyRotations",
    ] {
        assert_eq!(
            kms.call(operation, &key_id).await,
            error("KMSInvalidStateException"),
            "{operation}"
        );
    }
    kms.call("CancelKeyDeletion", &key_id).await.unwrap();
    assert_eq!(kms.status(&arn).await["KeyRotationEnabled"], true);
}

#[tokio::test]
async fn twenty_five_rotations_on_demand_leave_the_schedule_alone_and_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = || ServerConfig {
        folder: Some(folder.path().to_path_buf()),
        ..config()
    };
    let kms = Kms::start(config()).await;
    let arn = kms.create_key().await;
    let key_id = json!({ "KeyId": arn });
    kms.call("EnableKeyRotation", &key_id).await.unwrap();
    let next = kms.status(&arn).await["NextRotationDate"].clone();
    let mut keys = vec![kms.data_key(&arn).await];
    for _ in 0..25 {
        assert_eq!(
            kms.call("RotateKeyOnDemand", &key_id).await.unwrap()["KeyId"],
            json!(arn)
        );
        keys.push(kms.data_key(&arn).await);
    }
    assert_eq!(
        kms.call("RotateKeyOnDemand", &key_id).await,
        error("LimitExceededException")
    );
    assert_eq!(kms.status(&arn).await["NextRotationDate"], next);
    let clock = Arc::clone(&kms.clock);
    kms.server.shutdown().await;
    let kms = Kms::start_at(config(), clock).await;
    for key in &keys {
        assert_eq!(kms.decrypt(&arn, key).await.unwrap()["Plaintext"], key["Plaintext"]);
    }
    assert!(
        kms.rotations(&arn)
            .await
            .iter()
            .all(|row| row["RotationType"] == "ON_DEMAND")
    );
    let body = json!({ "KeyId": arn, "Limit": 20, "IncludeKeyMaterial": "ALL_KEY_MATERIAL" });
    let first = kms.call("ListKeyRotations", &body).await.unwrap();
    assert_eq!(
        (first["Truncated"].clone(), first["Rotations"].as_array().unwrap().len()),
        (json!(true), 20)
    );
    let body = json!({ "KeyId": arn, "Marker": first["NextMarker"], "IncludeKeyMaterial": "ALL_KEY_MATERIAL" });
    let rest = kms.call("ListKeyRotations", &body).await.unwrap();
    let rows = rest["Rotations"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[5]["KeyMaterialState"]), (6, &json!("CURRENT")));
}

#[tokio::test]
async fn re_encryption_needs_rights_at_both_keys_each_with_its_own_context() {
    let kms = Kms::start(ServerConfig {
        principals: vec![principal("AKIAADMIN", ADMIN), principal("AKIAOTHER", OTHER)],
        ..config()
    })
    .await;
    let (from, to) = (kms.create_key().await, kms.create_key().await);
    let body = json!({ "KeyId": from, "KeySpec": "AES_256", "EncryptionContext": { "a": "1" } });
    let key = kms.call("GenerateDataKey", &body).await.unwrap();
    let blob = &key["CiphertextBlob"];
    let moved = kms.re_encrypt("AKIAADMIN", blob, &from, &to).await.unwrap();
    assert_eq!((&moved["SourceKeyId"], &moved["KeyId"]), (&json!(from), &json!(to)));
    let open = |context: Value| json!({ "KeyId": to, "CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": context });
    let opened = kms.call("Decrypt", &open(json!({ "a": "2" }))).await.unwrap();
    assert_eq!(opened["Plaintext"], key["Plaintext"]);
    let old_context = kms.call("Decrypt", &open(json!({ "a": "1" }))).await;
    assert_eq!(old_context, error("InvalidCiphertextException"));
    // The source is insisted on, and so is its context.
    assert_eq!(
        kms.re_encrypt("AKIAADMIN", blob, &to, &from).await,
        error("IncorrectKeyException")
    );
    let of_other = &moved["CiphertextBlob"];
    assert_eq!(
        kms.re_encrypt("AKIAADMIN", of_other, &to, &from).await,
        error("InvalidCiphertextException")
    );
    // Rights: from without to, to without from, then both with the wrong context on one side.
    let policy = |action: &str, value: &str| {
        format!(
            r#"{{"Statement":[{{"Effect":"Allow","Principal":{{"AWS":"{ADMIN}"}},"Action":"kms:*","Resource":"*"}},{{"Effect":"Allow","Principal":{{"AWS":"{OTHER}"}},"Action":"{action}","Resource":"*","Condition":{{"StringEquals":{{"kms:EncryptionContext:a":"{value}"}}}}}}]}}"#
        )
    };
    for (at_from, at_to, is_allowed) in [
        (("kms:ReEncryptFrom", "1"), ("kms:ReEncryptFrom", "2"), false),
        (("kms:ReEncryptTo", "1"), ("kms:ReEncryptTo", "2"), false),
        (("kms:Decrypt", "1"), ("kms:Encrypt", "2"), false),
        (("kms:ReEncryptFrom", "2"), ("kms:ReEncryptTo", "2"), false),
        (("kms:ReEncryptFrom", "1"), ("kms:ReEncryptTo", "1"), false),
        (("kms:ReEncryptFrom", "1"), ("kms:ReEncryptTo", "2"), true),
        (("kms:ReEncrypt*", "1"), ("kms:ReEncrypt*", "2"), true),
    ] {
        kms.server.set_key_policy(&from, &policy(at_from.0, at_from.1)).unwrap();
        kms.server.set_key_policy(&to, &policy(at_to.0, at_to.1)).unwrap();
        let answer = kms.re_encrypt("AKIAOTHER", blob, &from, &to).await;
        match is_allowed {
            true => assert!(answer.is_ok(), "{at_from:?} {at_to:?}: {answer:?}"),
            false => assert_eq!(answer, error("AccessDeniedException"), "{at_from:?} {at_to:?}"),
        }
    }
    // Both keys must be enabled.
    for off in [&from, &to] {
        kms.server.set_enabled(off, false).unwrap();
        assert_eq!(
            kms.re_encrypt("AKIAADMIN", blob, &from, &to).await,
            error("DisabledException")
        );
        kms.server.set_enabled(off, true).unwrap();
    }
}
