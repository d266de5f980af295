//! Dead letters to a recipient: what no service opens, whoever has the private half does, and nothing that was moved or edited.
#![cfg(all(feature = "pipeline", feature = "testing"))]
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;
use rsa::pkcs8::{DecodePrivateKey as _, EncodePublicKey as _};
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{DomainKeys, OpeningKeys, PrivateHalf, SealingKeys};
use sealflow::pipeline::dead_letter::{Form, decode_record};
use sealflow::pipeline::{
    DeadLetter, Format, Header, KeysPlacement, LetterFilter, LetterOpener, OpenTransform, Outcome, Position, Record,
    ReplayTransform, Route, SealTransform, StopKind, Timestamp, Transform, TransformError, sealed_to,
};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use sealflow::secret::SecretBytes;
use sha2::Sha256;

const HEAD: &str = r#"
dataset: payments
version: 1
keys: { default: { arn: "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111" } }
acls: { pii: {} }
columns: [ { path: card, key: default, acl: pii } ]
"#;
const UNDER_KEY: &str = "dead_letters: { key: default, acl: pii }\n";

/// A private half, and how often it was used.
#[derive(Debug)]
struct Half {
    key: rsa::PrivateKey,
    public: Vec<u8>,
    calls: AtomicU64,
}

impl Half {
    fn new(key: rsa::PrivateKey) -> Arc<Self> {
        let public = key.to_public_key().to_public_key_der().unwrap().into_vec();
        let calls = AtomicU64::new(0);
        Arc::new(Self { key, public, calls })
    }

    fn jwk(&self) -> RsaPublicJwk {
        RsaPublicJwk::from_spki_der(&self.public).unwrap()
    }
}

impl PrivateHalf for Half {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Option<SecretBytes> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let plaintext = self.key.oaep_decrypt::<Sha256>(ciphertext).ok();
        plaintext.map(SecretBytes::new)
    }
}

/// One key for all tests: making one takes a second.
fn half() -> Arc<Half> {
    static KEY: OnceLock<rsa::PrivateKey> = OnceLock::new();
    let key = KEY.get_or_init(|| rsa::PrivateKey::new(&mut getrandom::SysRng, 2_048).unwrap());
    Half::new(key.clone())
}

/// Everything that a host has: the key service with all rights, the catalogue, the policy.
struct Bench {
    kms: Arc<MemoryKms>,
    keys: OpeningKeys,
    seal: SealTransform,
    open: OpenTransform,
}

impl Bench {
    fn new(dead_letters: &str, keys: Option<(Arc<MemoryKms>, Arc<MemoryCatalogue>)>) -> Self {
        let yaml = format!("{HEAD}{dead_letters}");
        let policy = Arc::new(VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap());
        let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
        let (kms, catalogue) = keys.unwrap_or_default();
        let clock = Arc::new(ManualClock::at(UnixMillis(1_700_000_000_000)));
        let age = Duration::from_secs(300);
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
            domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
        };
        let keys = OpeningKeys::new(kms.clone(), catalogue, policies, clock, age, 1_000);
        let (format, placement) = (Format::Json, KeysPlacement::Header);
        let seal = SealTransform::new(policy.clone(), format, placement, sealer.clone()).unwrap();
        let open = OpenTransform::new(policy, format, placement, keys.clone(), sealer).unwrap();
        Self { kms, keys, seal, open }
    }

    fn to(half: &Half) -> Self {
        Self::new(&to(half), None)
    }

    fn opener(&self, half: &Arc<Half>) -> LetterOpener {
        let opener = LetterOpener::new("payments", self.keys.clone());
        opener.with_private_half(half.clone()).unwrap()
    }
}

fn to(half: &Half) -> String {
    format!("dead_letters: {{ recipient: {} }}\n", half.jwk().to_published_json())
}

fn record(offset: i64, value: &[u8]) -> Record {
    Record {
        position: Position {
            topic: "payments".into(),
            partition: 1,
            offset,
        },
        timestamp: Timestamp::Created(1_700_000_000_000 + offset),
        key: Some(Bytes::from_static(b"customer-9")),
        value: Some(Bytes::copy_from_slice(value)),
        headers: [Header {
            name: "trace".into(),
            value: None,
        }]
        .into(),
    }
}

/// Each sets itself aside, with a code of its own.
fn broken() -> Vec<Record> {
    vec![
        record(7, br#"{"card":"canary-1"} trailing"#),
        record(8, b"\xff canary-2"),
        record(9, br#"{"card":"canary-3""#),
    ]
}

fn letter(outcome: &Outcome) -> DeadLetter {
    assert_eq!(outcome.route, Route::DeadLetter);
    let record = &outcome.record;
    assert_eq!(
        (&record.key, record.headers.len()),
        (&None, 0),
        "nothing travels beside it"
    );
    let json = record.value.as_deref().unwrap();
    assert!(!json.windows(6).any(|window| window == b"canary"));
    DeadLetter::from_json(json).unwrap()
}

async fn opened(opener: &LetterOpener, letter: &DeadLetter) -> Option<Record> {
    opener.open(letter, &record(0, b"")).await.unwrap()
}

#[tokio::test]
async fn a_letter_to_a_recipient_opens_whole_for_its_key_and_with_nothing_that_the_host_has() {
    let half = half();
    let bench = Bench::to(&half);
    // What is sealed well beside them needs KMS; they do not.
    let outcomes = bench.seal.apply(&broken()).await.unwrap();
    assert_eq!((bench.kms.generate_calls(), bench.kms.unwrap_calls()), (0, 0));
    let host = LetterOpener::new("payments", bench.keys.clone());
    let owner = LetterOpener::without_keys("payments");
    let owner = owner.with_private_half(half.clone()).unwrap();
    for (outcome, original) in outcomes.iter().zip(broken()) {
        let letter = letter(outcome);
        assert_eq!(letter.form(), Form::Recipient);
        assert_eq!(sealed_to(&letter).unwrap().0, half.jwk().thumbprint());
        assert_eq!(opened(&host, &letter).await, None);
        assert_eq!(opened(&owner, &letter).await, Some(original));
        assert_eq!(DeadLetter::code_of(&letter.to_json()).unwrap(), letter.code);
    }
    assert_eq!(bench.kms.unwrap_calls(), 0, "nobody even asks");
}

#[tokio::test]
async fn a_batch_of_letters_takes_one_rsa_operation_on_each_side_and_no_two_batches_share_a_key() {
    let half = half();
    let bench = Bench::to(&half);
    let opener = bench.opener(&half);
    let wrapped = |letter: &DeadLetter| letter.record.split('.').nth(1).unwrap().to_owned();
    let mut keys = Vec::new();
    for batch in 1..=2 {
        let letters: Vec<_> = bench.seal.apply(&broken()).await.unwrap().iter().map(letter).collect();
        for letter in &letters {
            assert!(opened(&opener, letter).await.is_some());
            assert_eq!(wrapped(letter), wrapped(&letters[0]));
        }
        assert_eq!(half.calls.load(Ordering::Relaxed), batch);
        keys.push(wrapped(&letters[0]));
    }
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test]
async fn a_letter_that_was_moved_swapped_or_edited_does_not_open() {
    let half = half();
    let bench = Bench::to(&half);
    let opener = bench.opener(&half);
    let letters: Vec<_> = bench.seal.apply(&broken()).await.unwrap().iter().map(letter).collect();
    let good = &letters[0];
    assert!(opened(&opener, good).await.is_some());
    // Two letters of one batch have one content key, and still keep their places.
    let swapped = DeadLetter {
        record: letters[1].record.clone(),
        ..good.clone()
    };
    let edits: [fn(&mut DeadLetter); 6] = [
        |letter| letter.code = "invalid-utf8".to_owned(),
        |letter| letter.stage = "open".to_owned(),
        |letter| letter.topic = "orders".to_owned(),
        |letter| letter.partition += 1,
        |letter| letter.offset += 1,
        |letter| letter.sealflow = "dead-letter/1".to_owned(),
    ];
    let edited = edits.map(|edit| {
        let mut letter = good.clone();
        edit(&mut letter);
        letter
    });
    for letter in edited.iter().chain([&swapped]) {
        assert_eq!(opened(&opener, letter).await, None, "{letter:?}");
    }
    for at in (0..good.record.len()).step_by(7) {
        let mut bytes = good.record.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let letter = DeadLetter {
            record: String::from_utf8(bytes).unwrap(),
            ..good.clone()
        };
        assert_eq!(opened(&opener, &letter).await, None, "{at}");
    }
    // Of another dataset, and with another key.
    let elsewhere = LetterOpener::without_keys("orders").with_private_half(half.clone());
    assert_eq!(opened(&elsewhere.unwrap(), good).await, None);
    let other = Half::new(rsa::PrivateKey::new(&mut getrandom::SysRng, 2_048).unwrap());
    assert_eq!(opened(&bench.opener(&other), good).await, None);
    assert_eq!(other.calls.load(Ordering::Relaxed), 0, "its name is enough");
}

#[tokio::test]
async fn what_does_not_open_and_what_a_target_refuses_go_to_the_recipient_too() {
    let half = half();
    let bench = Bench::to(&half);
    let not_sealed = record(3, br#"{"card":"canary"}"#);
    let outcome = bench.open.apply(slice::from_ref(&not_sealed)).await.unwrap().remove(0);
    let of_opening = letter(&outcome);
    assert_eq!(
        (of_opening.code.as_str(), of_opening.stage.as_str()),
        ("not-sealed", "open")
    );
    let refused = bench
        .seal
        .refuse(slice::from_ref(&not_sealed), "too-large")
        .await
        .unwrap();
    let of_target = letter(&refused[0]);
    assert_eq!(of_target.code, "too-large");
    for letter in [of_opening, of_target] {
        assert_eq!(opened(&bench.opener(&half), &letter).await, Some(not_sealed.clone()));
    }
}

#[tokio::test]
async fn a_source_whose_name_does_not_fit_into_a_header_stops_the_pipeline_and_names_no_value() {
    let bench = Bench::to(&half());
    let mut long = broken().remove(0);
    long.position.topic = "x".repeat(2_000).into();
    let error = bench.seal.apply(&[long]).await.unwrap_err();
    let TransformError::Stop { kind, reason, .. } = error else {
        panic!("{error}")
    };
    assert!(kind == StopKind::Data && !reason.contains("canary"), "{reason}");
}

/// Hands records on as they are.
struct Pass;

#[async_trait]
impl Transform for Pass {
    async fn apply(&self, records: &[Record]) -> Result<Vec<Outcome>, TransformError> {
        let target = |record| Outcome {
            route: Route::Target,
            record,
        };
        Ok(records.iter().cloned().map(target).collect())
    }
}

#[tokio::test]
async fn a_replay_opens_letters_of_both_forms_each_with_its_own_key_and_keeps_the_others() {
    let half = half();
    let services = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
    let before = Bench::new(UNDER_KEY, Some(services.clone()));
    let now = Bench::new(&to(&half), Some(services));
    let mut letters: Vec<Record> = Vec::new();
    for outcome in before.seal.apply(&broken()).await.unwrap() {
        letters.push(outcome.record);
    }
    for outcome in now.seal.apply(&broken()).await.unwrap() {
        letters.push(outcome.record);
    }
    let replay = |opener: LetterOpener| {
        let known = vec![(Arc::from("payments"), 2)];
        ReplayTransform::new(opener, LetterFilter::default(), known, Some(Arc::new(Pass)))
    };
    let host = replay(LetterOpener::new("payments", now.keys.clone()));
    let owner = replay(now.opener(&half));
    for (replay, opened) in [(host, 3), (owner, 6)] {
        let outcomes = replay.apply(&letters).await.unwrap();
        for (n, outcome) in outcomes.into_iter().enumerate() {
            let expected = match n < opened {
                true => (Route::Target, broken().remove(n % 3)),
                false => (Route::DeadLetter, letters[n].clone()),
            };
            assert_eq!((outcome.route, outcome.record), expected, "{n}");
        }
    }
}

type Stanza<'a> = HashMap<&'a str, &'a str>;

#[tokio::test]
async fn every_golden_letter_to_a_recipient_opens_or_is_refused_as_its_header_says() {
    let stanzas: Vec<Stanza<'_>> = include_str!("golden/dead-letters.txt")
        .split("---\n")
        .skip(1)
        .map(|text| text.lines().filter_map(|line| line.split_once(": ")).collect())
        .collect();
    let (head, letters) = stanzas.split_first().unwrap();
    assert_eq!(letters.len(), 21);
    let key = rsa::PrivateKey::from_pkcs8_der(&hex::decode(head["pkcs8"]).unwrap()).unwrap();
    let half = Half::new(key);
    assert_eq!(half.jwk().to_json(), head["recipient"]);
    let opener = LetterOpener::without_keys(head["dataset"]);
    let opener = opener.with_private_half(half).unwrap();
    for stanza in letters {
        let letter = DeadLetter::from_json(stanza["letter"].as_bytes()).unwrap();
        let opened = opened(&opener, &letter).await;
        let position = Position {
            topic: letter.topic.as_str().into(),
            partition: letter.partition,
            offset: letter.offset,
        };
        let record = decode_record(&hex::decode(stanza["cbor"]).unwrap(), position).unwrap();
        match stanza["expect"] {
            "opens" => assert_eq!(opened, Some(record), "{}", stanza["name"]),
            "refused" => assert_eq!(opened, None, "{}", stanza["name"]),
            other => panic!("expect: {other}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_record_comes_back_from_its_letter_to_a_recipient_as_it_was(
        key: Option<Vec<u8>>, value: Vec<u8>, headers: Vec<(String, Option<Vec<u8>>)>, topic in "\\PC{0,60}", partition: i32, offset: i64,
    ) {
        let headers = headers.into_iter().map(|(name, value)| Header { name: name.into(), value: value.map(Bytes::from) }).collect();
        let record = Record {
            position: Position { topic: topic.into(), partition, offset },
            timestamp: Timestamp::Appended(offset),
            key: key.map(Bytes::from),
            value: Some(value.into()),
            headers,
        };
        let half = half();
        let back = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let bench = Bench::to(&half);
            let outcome = bench.seal.refuse(slice::from_ref(&record), "too-large").await.unwrap().remove(0);
            opened(&bench.opener(&half), &letter(&outcome)).await
        });
        prop_assert_eq!(back, Some(record));
    }

    #[test]
    fn letters_that_anybody_made_up_are_read_without_panic(record: String, code: String) {
        let clear = serde_json::json!({
            "sealflow": "dead-letter/2", "code": code, "stage": "seal", "topic": "t", "partition": 0, "offset": 0, "record": record,
        });
        let letter = DeadLetter::from_json(clear.to_string().as_bytes()).unwrap();
        prop_assert_eq!(letter.form(), Form::Recipient);
        let _ = sealed_to(&letter);
        let back = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let opener = LetterOpener::without_keys("payments").with_private_half(half()).unwrap();
            opened(&opener, &letter).await
        });
        prop_assert_eq!(back, None);
    }
}
