//! Attested documents of enclave keys in the catalogue: one for each hour and content, found by name for as long as they may count.

#![allow(clippy::unwrap_used)] // tests
#![cfg(feature = "testing")]

use std::time::Duration;

use sealflow::clock::UnixMillis;
use sealflow::jose::PrivateJwk;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::Catalogue as _;
use sealflow::keys::testing::MemoryCatalogue;
use sealflow::policy::enclave_keys::published::{last, last_attested, publish, publish_attested};
use sealflow::policy::enclave_keys::signed;
use sealflow::policy::{EnclaveKeys, EnclaveKeysError, TrustedOwners, VerifiedEnclaveKeys};

/// RFC 7638, section 3.1.
const KEY: &str = r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB"}"#;
/// The beginning of an hour.
const HOUR_BEGINS: u64 = 1_767_225_600_000;
const HOUR: u64 = 3_600_000;

/// Where documents lie and how, whoever vouches for them: here an owner does.
struct Bench {
    catalogue: MemoryCatalogue,
    owner: PrivateJwk,
}

impl Bench {
    fn new() -> Self {
        Self {
            catalogue: MemoryCatalogue::new(),
            owner: PrivateJwk::generate().unwrap(),
        }
    }

    fn verify(&self, text: &str, now: UnixMillis) -> Option<VerifiedEnclaveKeys> {
        let trusted = TrustedOwners::everywhere(vec![self.owner.thumbprint()]).unwrap();
        signed::verify(text, &trusted, now).ok()
    }

    fn document(&self, at: u64, labels: &[&str]) -> VerifiedEnclaveKeys {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let key = RsaPublicJwk::from_json(KEY.as_bytes()).unwrap();
        let keys = EnclaveKeys::new("payments", labels, vec![key]).unwrap();
        let at = UnixMillis(at);
        let jws = signed::sign(&keys, at, Duration::from_secs(86_400), &self.owner).unwrap();
        self.verify(&jws, at).unwrap()
    }

    async fn publish(&self, document: &VerifiedEnclaveKeys) -> Result<bool, EnclaveKeysError> {
        let now = document.issued();
        publish_attested(&self.catalogue, document, |text| self.verify(text, now)).await
    }

    async fn last(&self, now: u64) -> Vec<String> {
        last_attested(&self.catalogue, "payments", UnixMillis(now))
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn an_hour_has_one_document_of_the_same_keys_and_labels_and_the_newest_come_first() {
    let bench = Bench::new();
    let of = |at: u64, labels: &[&str]| bench.document(HOUR_BEGINS + at, labels);
    let first = of(1_000, &["card"]);
    assert_eq!(bench.publish(&first).await, Ok(true));
    // By another pipeline, a little later.
    assert_eq!(bench.publish(&of(60_000, &["card"])).await, Ok(false));
    // A newer policy has another column; it is out at once.
    let newer = of(120_000, &["card", "iban"]);
    assert_eq!(bench.publish(&newer).await, Ok(true));
    assert_eq!(bench.publish(&of(180_000, &["card", "iban"])).await, Ok(false));
    let next = of(HOUR, &["card", "iban"]);
    assert_eq!(bench.publish(&next).await, Ok(true));
    let texts = [next.text(), newer.text(), first.text()];
    assert_eq!(bench.last(HOUR_BEGINS + HOUR + 5_000).await, texts);
    // Those of four hours count, and nobody lists the others.
    assert_eq!(bench.last(HOUR_BEGINS + 3 * HOUR).await, texts);
    assert_eq!(bench.last(HOUR_BEGINS + 4 * HOUR).await, [next.text()]);
    assert_eq!(bench.last(HOUR_BEGINS + 5 * HOUR).await, Vec::<String>::new());
    // They displace nothing of the owner's.
    assert_eq!(publish(&bench.catalogue, &first).await, Ok(0));
    assert_eq!(last(&bench.catalogue, "payments").await.unwrap(), [first.text()]);
}

#[tokio::test]
async fn what_somebody_else_puts_into_an_hour_stands_for_nothing_and_fills_that_hour_alone() {
    let bench = Bench::new();
    let hour = HOUR_BEGINS / HOUR;
    let squat = async |number: u64, bytes: &[u8]| {
        let path = format!("enclave-keys-attested/payments/{hour:010}-{number}");
        bench.catalogue.put_if_absent(&path, bytes).await.unwrap();
    };
    squat(0, b"garbage").await;
    squat(1, &[0xff]).await;
    // Vouched for by somebody else.
    let stranger = Bench::new();
    squat(2, stranger.document(HOUR_BEGINS, &["card"]).text().as_bytes()).await;
    squat(3, &vec![b'a'; 200_000]).await;
    let document = bench.document(HOUR_BEGINS, &["card"]);
    assert_eq!(bench.publish(&document).await, Ok(true));
    let texts = bench.last(HOUR_BEGINS).await;
    // What is no text, or too long for a document, is passed over.
    assert_eq!((texts.len(), texts[0].as_str()), (3, document.text()));
    for number in 5..8 {
        squat(number, b"garbage").await;
    }
    let other = bench.document(HOUR_BEGINS, &["iban"]);
    assert!(matches!(
        bench.publish(&other).await,
        Err(EnclaveKeysError::Full { .. })
    ));
    assert_eq!(
        bench.publish(&bench.document(HOUR_BEGINS + HOUR, &["iban"])).await,
        Ok(true)
    );
}
