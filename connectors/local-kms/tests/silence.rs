//! The local KMS never logs key material, secrets or ciphertexts, at any level; and it says that it is for development.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use common::{NOW, Request, config};
use sealflow::clock::ManualClock;
use sealflow_local_kms::Server;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Captured {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

// The only test of this file: the subscriber is that of the whole process, blocking threads included.
#[tokio::test]
async fn logs_hold_no_key_and_say_that_it_is_for_development() {
    let captured = Captured::default();
    let everything = tracing_subscriber::filter::LevelFilter::TRACE;
    tracing_subscriber::fmt()
        .with_max_level(everything)
        .with_writer(captured.clone())
        .init();

    let server = Server::start_with_clock(config(), Arc::new(ManualClock::at(NOW)))
        .await
        .unwrap();
    let addr = server.addr();
    let arn = server.create_key(None, "", None).unwrap();
    let generate = json!({ "KeyId": arn, "KeySpec": "AES_256", "EncryptionContext": { "a": "value-of-context" } });
    let key = Request::kms("GenerateDataKey", &generate).call(addr).await.json();
    let blob = key["CiphertextBlob"].clone();
    let decrypt = json!({ "KeyId": arn, "CiphertextBlob": blob, "EncryptionContext": { "a": "value-of-context" } });
    assert_eq!(
        Request::kms("Decrypt", &decrypt).call(addr).await.json()["Plaintext"],
        key["Plaintext"]
    );
    let refused = json!({ "KeyId": arn, "CiphertextBlob": blob });
    assert_eq!(Request::kms("Decrypt", &refused).call(addr).await.status, 400);
    let encrypt = json!({ "KeyId": arn, "Plaintext": "aHVudGVyMmh1bnRlcjI=" });
    assert_eq!(Request::kms("Encrypt", &encrypt).call(addr).await.status, 200);
    server.shutdown().await;

    let logs = String::from_utf8_lossy(&captured.0.lock().unwrap()).into_owned();
    assert!(logs.contains("FOR DEVELOPMENT ONLY"), "{logs}");
    assert!(
        logs.contains("refused") && logs.contains("InvalidCiphertextException"),
        "{logs}"
    );
    for secret in [
        key["Plaintext"].as_str().unwrap(),
        blob.as_str().unwrap(),
        "aHVudGVyMmh1bnRlcjI=",
        "secret-of",
    ] {
        assert!(!logs.contains(secret), "{logs}");
    }
}
