//! A company with domains, policies with hints, and processes that seal, open and read by them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::acl::Identity;
use sealflow::clock::{Clock, ManualClock, UnixMillis};
use sealflow::columns::testing::{CORPUS_CANARY, CORPUS_CANARY_NUMBER, Expect, contains_canary, parse_index};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{DomainKeys, OpeningKeys, SealingKeys, create_domain_secret};
use sealflow::pipeline::{
    Format, Headers, KeysPlacement, OpenTransform, Outcome, Position, Reader, Reading, Record, Route, SealTransform,
    Timestamp, Transform,
};
use sealflow::policy::signed::{sign, sign_domain};
use sealflow::policy::{CataloguePolicies, OwnerKey, PolicySource, TrustedOwners, publish};
use sealflow::seal::UsageLimits;
use serde_json::Value;

pub(crate) const NOW: UnixMillis = UnixMillis(1_767_225_600_000); // 2026-01-01T00:00:00Z
const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1";
/// The KMS key of the hints in [`COLUMNS`].
pub(crate) const HINT_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/2";
pub(crate) const COLUMNS: &str = r#"
  - path: card.number
    key: pci
    acl: pci
    hints:
      - { derive: last4, key: hints, acl: support }
      - { derive: hmac, key: hints, domain: customers, acl: fraud }
  - { path: note, key: pci, acl: pci, hints: [{ derive: last4, key: hints, acl: support }] }"#;

/// One catalogue and KMS that several processes share. It has a domain `customers` of text.
pub(crate) struct Company {
    pub(crate) kms: Arc<MemoryKms>,
    catalogue: Arc<MemoryCatalogue>,
    owner: OwnerKey,
    trusted: TrustedOwners,
}

/// A process of its own: caches of its own.
pub(crate) struct Process {
    pub(crate) seal: SealTransform,
    pub(crate) open: OpenTransform,
    pub(crate) reader: Reader,
}

impl Company {
    pub(crate) async fn new() -> Self {
        let owner = OwnerKey::generate().unwrap();
        let company = Self {
            kms: Arc::new(MemoryKms::new()),
            catalogue: Arc::new(MemoryCatalogue::new()),
            trusted: TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap(),
            owner,
        };
        company.publish_domain("customers", 1, "utf8").await;
        company
    }

    pub(crate) async fn publish_domain(&self, name: &str, version: u64, kind: &str) {
        let id = create_domain_secret(&*self.kms, &*self.catalogue, name, version, ARN)
            .await
            .unwrap();
        let yaml = format!(
            "domain: {name}\nversion: {version}\nkey: {{ arn: \"{ARN}\" }}\nkey_id: \"{id}\"\ntype: {kind}\npad_to: 16\nacl: {{}}\n"
        );
        let jws = sign_domain(yaml.as_bytes(), &self.owner).unwrap();
        publish::publish_domain(&*self.catalogue, &jws, &self.trusted)
            .await
            .unwrap();
    }

    /// Publishes the first policy of `dataset`, and starts a process of it.
    pub(crate) async fn process(&self, dataset: &str, columns: &str, format: Format) -> Process {
        let acl = |role: &str| format!("  {role}: {{ allow: [\"arn:aws:iam::111122223333:role/{role}\"] }}\n");
        let acls: String = ["pci", "support", "fraud"].map(acl).concat();
        let yaml = format!(
            "dataset: {dataset}\nversion: 1\nkeys:\n  pci: {{ arn: \"{ARN}\" }}\n  hints: {{ arn: \"{HINT_ARN}\" }}\nacls:\n{acls}dead_letters: {{ key: pci, acl: pci }}\ncolumns:\n{columns}\n"
        );
        let jws = sign(yaml.as_bytes(), &self.owner).unwrap();
        publish::publish(&*self.catalogue, &jws, &self.trusted).await.unwrap();
        self.process_again(dataset, format).await
    }

    pub(crate) async fn process_again(&self, dataset: &str, format: Format) -> Process {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
        let (kms, catalogue) = (self.kms.clone(), self.catalogue.clone());
        let policies: Arc<dyn PolicySource> = Arc::new(CataloguePolicies::new(
            catalogue.clone(),
            self.trusted.clone(),
            clock.clone(),
        ));
        let policy = policies.policy(dataset).await.unwrap();
        let age = Duration::from_secs(300);
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
            domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
        };
        let keys = OpeningKeys::new(kms, catalogue, policies.clone(), clock, age, 100);
        let placement = KeysPlacement::Header;
        Process {
            seal: SealTransform::new(policy.clone(), format, placement, sealer.clone()).unwrap(),
            open: OpenTransform::new(policy, format, placement, keys.clone(), sealer.clone()).unwrap(),
            reader: Reader::new(dataset, format, policies, keys, sealer.domains),
        }
    }

    /// The keyed hash of a plaintext encoding.
    pub(crate) async fn hash(&self, domain: &str, encoding: &[u8]) -> String {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
        let (kms, catalogue) = (self.kms.clone(), self.catalogue.clone());
        let policies = CataloguePolicies::new(catalogue.clone(), self.trusted.clone(), clock.clone());
        let domains = DomainKeys::new(kms, catalogue, Arc::new(policies), clock, Duration::from_secs(1));
        let domain = domains.get(domain, None).await.unwrap();
        domain.key.hints().hash(encoding).to_string()
    }
}

impl Process {
    pub(crate) async fn seal_bytes(&self, value: &[u8]) -> Outcome {
        let mut record = record("");
        record.value = Some(Bytes::copy_from_slice(value));
        self.seal.apply(&[record]).await.unwrap().remove(0)
    }

    pub(crate) async fn sealed_record(&self, value: &str) -> Record {
        let outcome = self.seal_bytes(value.as_bytes()).await;
        assert_eq!(outcome.route, Route::Target, "{value}");
        outcome.record
    }

    pub(crate) async fn open_record(&self, record: Record) -> (Route, Record) {
        let outcome = self.open.apply(&[record]).await.unwrap().remove(0);
        (outcome.route, outcome.record)
    }

    pub(crate) async fn read(&self, record: Record, role: &str) -> Reading {
        self.reader.read(vec![record], &who(role), None, NOW).await.unwrap()
    }

    /// The keyed hash that the role `fraud` sees at `pointer` (RFC 6901) of the record, sealed.
    pub(crate) async fn hash_seen(&self, value: &str, pointer: &str) -> String {
        let sealed = self.sealed_record(value).await;
        let reading = self.read(sealed, "fraud").await;
        let shown: Value = serde_json::from_str(&text(reading.records[0].as_ref().unwrap())).unwrap();
        shown.pointer(pointer).unwrap().as_str().unwrap().to_owned()
    }
}

pub(crate) fn who(role: &str) -> Identity {
    Identity::from_arn(&format!("arn:aws:sts::111122223333:assumed-role/{role}/session")).unwrap()
}

pub(crate) fn record(value: &str) -> Record {
    Record {
        position: Position {
            topic: "payments".into(),
            partition: 0,
            offset: 0,
        },
        timestamp: Timestamp::None,
        key: None,
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Headers::new(),
    }
}

pub(crate) fn text(record: &Record) -> String {
    String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap()
}

pub(crate) async fn apply(transform: &dyn Transform, value: &str) -> (Route, String) {
    let outcome = transform.apply(&[record(value)]).await.unwrap().remove(0);
    (outcome.route, text(&outcome.record))
}

/// The sealed texts in a record, in order.
pub(crate) fn sealed_texts(record: &str) -> Vec<String> {
    let parts = record.split('"');
    parts
        .filter(|part| part.starts_with("sf1."))
        .map(str::to_owned)
        .collect()
}

/// A record of the leak corpus, and columns of a policy that gives each of its columns that can have one a hint.
pub(crate) struct HostileRecord {
    pub(crate) file: String,
    pub(crate) record: Vec<u8>,
    pub(crate) columns: String,
    pub(crate) route: Route,
    /// Whether it holds the canary where the policy has no column.
    pub(crate) may_stay: bool,
}

impl HostileRecord {
    pub(crate) fn leaks(bytes: &[u8]) -> bool {
        contains_canary(bytes, CORPUS_CANARY) || contains_canary(bytes, CORPUS_CANARY_NUMBER)
    }
}

pub(crate) fn corpus() -> Vec<HostileRecord> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/leak-corpus");
    let index = std::fs::read_to_string(folder.join("index.tsv")).unwrap();
    let column = |path: &String| {
        let quoted = serde_json::to_string(path).unwrap();
        let hints = if path.ends_with("[*]") {
            ""
        } else {
            ", hints: [{ derive: last4, acl: support }]"
        };
        format!("  - {{ path: {quoted}, key: pci, acl: pci{hints} }}\n")
    };
    let record = |case: sealflow::columns::testing::Case| HostileRecord {
        record: std::fs::read(folder.join(&case.file)).unwrap(),
        columns: case.columns.iter().map(column).collect(),
        route: match case.expect {
            Expect::DeadLetter(_) => Route::DeadLetter,
            _ => Route::Target,
        },
        may_stay: matches!(case.expect, Expect::Clear(_)),
        file: case.file,
    };
    parse_index(&index).unwrap().into_iter().map(record).collect()
}
