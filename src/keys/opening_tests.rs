//! Keys that open stay while strangers send what they like.

use super::*;
use crate::clock::{ManualClock, UnixMillis};
use crate::keys::envelope::EnvelopeParts;
use crate::keys::testing::{MemoryCatalogue, MemoryKms};
use crate::keys::{KeySpec, LabelEntry, SealingKeys};
use crate::policy::{FixedPolicies, VerifiedPolicy};
use crate::seal::UsageLimits;

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001";
const HOUR: Duration = Duration::from_secs(3_600);
const CAPACITY: u64 = 8;

struct Bench {
    kms: Arc<MemoryKms>,
    clock: Arc<ManualClock>,
    catalogue: Arc<MemoryCatalogue>,
    keys: OpeningKeys,
}

impl Bench {
    fn new() -> Self {
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        let clock = Arc::new(ManualClock::at(UnixMillis(1_000_000)));
        let yaml = format!(
            "dataset: payments\nversion: 1\nkeys: {{ default: {{ arn: \"{ARN}\" }} }}\nacls: {{ pii: {{}} }}\n\
             columns: [{{ path: email, key: default, acl: pii }}]\n"
        );
        let policy = VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap();
        let policies = Arc::new(FixedPolicies::new(vec![Arc::new(policy)]));
        let keys = OpeningKeys::new(kms.clone(), catalogue.clone(), policies, clock.clone(), HOUR, CAPACITY);
        Self {
            kms,
            clock,
            catalogue,
            keys,
        }
    }

    /// A new data key, its envelope in `catalogue`.
    async fn make_in(&self, catalogue: Arc<MemoryCatalogue>) -> (KeyId, Envelope) {
        let sealing = SealingKeys::new(self.kms.clone(), catalogue, self.clock.clone(), UsageLimits::STANDARD);
        let labels = Arc::from([LabelEntry {
            label: "email".into(),
            bind_row: None,
        }]);
        let spec = KeySpec {
            dataset: "payments".into(),
            key_name: "default".into(),
            template: "default".into(),
            arn: ARN.into(),
            acl: "pii".into(),
            labels,
            policy: (1, [1; 32]),
            max_age: HOUR,
            max_live: 1,
        };
        let active = sealing.get(&spec).await.unwrap();
        let envelope = Envelope::from_bytes(&active.envelope_bytes).unwrap();
        (active.key.id(), envelope)
    }

    /// A new data key of which only its envelope tells, as it travels.
    async fn make_elsewhere(&self) -> (KeyId, Envelope) {
        self.make_in(Arc::new(MemoryCatalogue::new())).await
    }

    async fn get(&self, id: KeyId, envelope: &Envelope) -> Result<Arc<OpenedKey>, OpenKeyError> {
        self.keys.get(id, &[&envelope.to_bytes().unwrap()]).await
    }

    fn hits(&self) -> u64 {
        self.keys.counters().hits.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_flood_of_forged_envelopes_displaces_no_key_that_opens() {
    let bench = Bench::new();
    let (stored, _) = bench.make_in(bench.catalogue.clone()).await;
    let (travelling, envelope) = bench.make_elsewhere().await;
    let (_, template) = bench.make_elsewhere().await;
    bench.keys.get(stored, &[]).await.unwrap();
    bench.get(travelling, &envelope).await.unwrap();
    assert_eq!(bench.kms.unwrap_calls(), 2);
    let mut refused = Vec::new();
    // Under the ids of both keys, too, and beyond the bucket of chances.
    for n in 0..100 * CAPACITY {
        let mut forged = template.clone();
        forged.wrapped = n.to_be_bytes().to_vec();
        for id in [stored, travelling, forged.key_id()] {
            let forged = Envelope::new(EnvelopeParts {
                key_id: id,
                arn: ARN.into(),
                wrapped: forged.wrapped.clone(),
                dataset: "payments".into(),
                key_name: "default".into(),
                acl: "pii".into(),
                policy: ("payments".into(), 1, [1; 32]),
                labels: forged.labels.clone(),
                created: UnixMillis(0),
                not_after: UnixMillis(1),
            });
            match bench.get(id, &forged).await {
                // What the catalogue holds is tried first.
                Ok(key) => assert_eq!(key.envelope.key_id(), stored),
                Err(error) => refused.push(error),
            }
        }
        bench.keys.tick().await;
    }
    assert_eq!(refused.len() as u64, 200 * CAPACITY);
    assert!(matches!(refused.last(), Some(OpenKeyError::TooManyRefused { .. })));
    assert!(bench.keys.0.strangers.entry_count() <= MAX_STRANGERS);
    let (asked, hits) = (bench.kms.unwrap_calls(), bench.hits());
    bench.keys.get(stored, &[]).await.unwrap();
    bench.get(travelling, &envelope).await.unwrap();
    assert_eq!((bench.kms.unwrap_calls() - asked, bench.hits() - hits), (0, 2));
}

#[tokio::test]
async fn what_an_envelope_says_beside_its_wrapped_key_is_no_new_question_and_is_told_as_it_came() {
    let bench = Bench::new();
    let (id, envelope) = bench.make_elsewhere().await;
    for n in 0..100_u8 {
        let mut varied = envelope.clone();
        varied.policy_sha256 = [n; 32];
        varied.labels[0].label = format!("label{n}");
        let opened = bench.get(id, &varied).await.unwrap();
        assert_eq!(opened.envelope, varied);
        bench.keys.tick().await;
    }
    assert_eq!(bench.kms.unwrap_calls(), 1);
    assert_eq!(bench.keys.0.keys.entry_count(), 1);
    // Whatever it is unwrapped by is another one.
    let mut other = envelope.clone();
    other.wrapped[0] ^= 1;
    assert!(bench.get(id, &other).await.is_err());
    assert_eq!(bench.kms.unwrap_calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn many_who_bring_one_envelope_ask_once_and_again_when_the_key_is_old() {
    let bench = Bench::new();
    let (id, envelope) = bench.make_elsewhere().await;
    bench.kms.set_delay(Duration::from_millis(50));
    for round in 1..=3 {
        let asking: Vec<_> = (0..64)
            .map(|_| {
                let (keys, bytes) = (bench.keys.clone(), envelope.to_bytes().unwrap());
                tokio::spawn(async move { keys.get(id, &[&bytes]).await.map(drop) })
            })
            .collect();
        for asking in asking {
            assert_eq!(asking.await.unwrap(), Ok(()));
        }
        assert_eq!(bench.kms.unwrap_calls(), round);
        bench.keys.tick().await;
        // It was kept, and not emptied by keeping it.
        bench.get(id, &envelope).await.unwrap();
        assert_eq!(bench.kms.unwrap_calls(), round);
        bench.clock.advance(HOUR);
    }
}
