//! Domains: equal values are equal bytes wherever they are sealed, and open only where the domain is declared.
#![cfg(all(feature = "pipeline", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::acl::Identity;
use sealflow::clock::{Clock, ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{
    Catalogue as _, DomainError, DomainKeys, KeyServiceError, OpeningKeys, SealingKeys, create_domain_secret,
};
use sealflow::pipeline::{
    DeadLetter, Format, Headers, KeysPlacement, OpenTransform, Position, Reader, Record, Route, SealTransform,
    SealedText, Timestamp, Transform, TransformError,
};
use sealflow::policy::signed::{sign, sign_domain};
use sealflow::policy::{
    CataloguePolicies, OwnerKey, PolicySource, PolicySourceError, TrustedOwners, VerifiedDomain, VerifiedPolicy,
    publish,
};
use sealflow::seal::{KeyId, UsageLimits};

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1";

/// One catalogue and KMS that several processes share.
struct Company {
    kms: Arc<MemoryKms>,
    catalogue: Arc<MemoryCatalogue>,
    owner: OwnerKey,
    trusted: TrustedOwners,
}

impl Company {
    fn new() -> Self {
        let owner = OwnerKey::generate().unwrap();
        let trusted = TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap();
        Self {
            kms: Arc::new(MemoryKms::new()),
            catalogue: Arc::new(MemoryCatalogue::new()),
            owner,
            trusted,
        }
    }

    async fn publish_domain(&self, name: &str, version: u64, kind: &str) -> KeyId {
        self.publish_domain_for(name, version, kind, "").await
    }

    /// A domain that `readers`, as an ACL writes them, may open.
    async fn publish_domain_for(&self, name: &str, version: u64, kind: &str, readers: &str) -> KeyId {
        let id = create_domain_secret(&*self.kms, &*self.catalogue, name, version, ARN)
            .await
            .unwrap();
        let yaml = format!(
            "domain: {name}\nversion: {version}\nkey: {{ arn: \"{ARN}\" }}\nkey_id: \"{id}\"\ntype: {kind}\nacl: {{ allow: [{readers}] }}\n"
        );
        let jws = sign_domain(yaml.as_bytes(), &self.owner).unwrap();
        publish::publish_domain(&*self.catalogue, &jws, &self.trusted)
            .await
            .unwrap();
        id
    }

    async fn publish_policy(&self, dataset: &str, columns: &str) {
        let yaml = format!(
            "dataset: {dataset}\nversion: 1\nkeys: {{ k: {{ arn: \"{ARN}\" }} }}\nacls: {{ a: {{}} }}\ncolumns:\n{columns}dead_letters: {{ key: k, acl: a }}\n"
        );
        let jws = sign(yaml.as_bytes(), &self.owner).unwrap();
        publish::publish(&*self.catalogue, &jws, &self.trusted).await.unwrap();
    }

    /// A reader of its own.
    fn reader(&self, dataset: &str) -> Reader {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(UnixMillis(1)));
        let age = Duration::from_secs(300);
        let (kms, catalogue) = (self.kms.clone(), self.catalogue.clone());
        let policies: Arc<dyn PolicySource> = Arc::new(CataloguePolicies::new(
            catalogue.clone(),
            self.trusted.clone(),
            clock.clone(),
        ));
        let domains = DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age);
        let keys = OpeningKeys::new(kms, catalogue, policies.clone(), clock, age, 100);
        Reader::new(dataset, Format::Json, policies, keys, domains)
    }

    /// A process of its own: caches of its own.
    async fn process(&self, dataset: &str) -> (SealTransform, OpenTransform) {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(UnixMillis(1)));
        let age = Duration::from_secs(300);
        let policies: Arc<dyn PolicySource> = Arc::new(CataloguePolicies::new(
            self.catalogue.clone(),
            self.trusted.clone(),
            clock.clone(),
        ));
        let policy = policies.policy(dataset).await.unwrap();
        let sealer = DirectSealer {
            keys: SealingKeys::new(
                self.kms.clone(),
                self.catalogue.clone(),
                clock.clone(),
                UsageLimits::STANDARD,
            ),
            domains: DomainKeys::new(
                self.kms.clone(),
                self.catalogue.clone(),
                policies.clone(),
                clock.clone(),
                age,
            ),
        };
        let keys = OpeningKeys::new(self.kms.clone(), self.catalogue.clone(), policies, clock, age, 100);
        let seal = SealTransform::new(policy.clone(), Format::Json, KeysPlacement::Header, sealer.clone()).unwrap();
        (
            seal,
            OpenTransform::new(policy, Format::Json, KeysPlacement::Header, keys, sealer).unwrap(),
        )
    }
}

fn record(value: &str) -> Record {
    let position = Position {
        topic: "t".into(),
        partition: 0,
        offset: 0,
    };
    Record {
        position,
        timestamp: Timestamp::None,
        key: None,
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Headers::new(),
    }
}

async fn apply(transform: &dyn Transform, value: &str) -> (Route, String) {
    let outcome = transform.apply(&[record(value)]).await.unwrap().remove(0);
    (
        outcome.route,
        String::from_utf8(outcome.record.value.unwrap().to_vec()).unwrap(),
    )
}

/// The sealed text in a record.
fn sealed_text(record: &str) -> &str {
    let start = record.find("sf1.").unwrap();
    &record[start..start + record[start..].find('"').unwrap()]
}

#[tokio::test]
async fn two_processes_seal_equal_values_of_one_domain_to_equal_bytes() {
    let company = Company::new();
    company.publish_domain("customers", 1, "utf8").await;
    company
        .publish_policy("orders", "  - { path: customer.id, domain: customers }\n")
        .await;
    company
        .publish_policy("tickets", "  - { path: who, domain: customers }\n")
        .await;
    let ((orders, open_orders), (tickets, _)) = (company.process("orders").await, company.process("tickets").await);
    let (_, order) = apply(&orders, r#"{"customer":{"id":"c-17"}}"#).await;
    let (_, ticket) = apply(&tickets, r#"{"who":"\u0063-17"}"#).await;
    assert_eq!(
        sealed_text(&order),
        sealed_text(&ticket),
        "equal values, whatever their spelling"
    );
    let (_, other) = apply(&tickets, r#"{"who":"c-18"}"#).await;
    assert_ne!(sealed_text(&order), sealed_text(&other));
    assert_eq!(
        apply(&open_orders, &order).await,
        (Route::Target, r#"{"customer":{"id":"c-17"}}"#.to_owned())
    );
}

#[tokio::test]
async fn the_list_of_the_newest_domain_document_says_who_reads_values_of_every_version() {
    let company = Company::new();
    let role = |name: &str| format!("\"arn:aws:iam::111122223333:role/{name}\"");
    let both = format!("{}, {}", role("a"), role("b"));
    company.publish_domain_for("customers", 1, "utf8", &both).await;
    company
        .publish_policy("orders", "  - { path: who, domain: customers }\n")
        .await;
    let (seal, _) = company.process("orders").await;
    let (_, sealed) = apply(&seal, r#"{"who":"c-17"}"#).await;
    let text = sealed_text(&sealed).to_owned();
    let seen = async |name: &str| {
        let who = Identity::from_arn(role(name).trim_matches('"')).unwrap();
        let reader = company.reader("orders");
        let now = UnixMillis(1);
        let reading = reader.read(vec![record(&sealed)], &who, None, now).await.unwrap();
        let value = reading.records[0].as_ref().unwrap().value.clone().unwrap();
        let lone = |label| SealedText { label, text: &text };
        let values = [lone(Some("domain:customers")), lone(None), lone(Some("domain:other"))];
        let values = reader.open_values(&values, &who, None, now).await.unwrap().values;
        (String::from_utf8(value.to_vec()).unwrap(), values.join(" "))
    };
    let shown = (r#"{"who":"c-17"}"#.to_owned(), r#""c-17" null null"#.to_owned());
    let masked = (r#"{"who":null}"#.to_owned(), "null null null".to_owned());
    assert_eq!(
        (seen("a").await, seen("b").await, seen("c").await),
        (shown.clone(), shown.clone(), masked.clone())
    );
    // A new secret, and one reader less: for what was sealed under the old one too.
    company.publish_domain_for("customers", 2, "utf8", &role("a")).await;
    assert_eq!((seen("a").await, seen("b").await), (shown, masked));
}

#[tokio::test]
async fn a_value_that_is_not_exactly_of_the_domains_type_is_a_dead_letter() {
    let company = Company::new();
    company.publish_domain("accounts", 1, "integer").await;
    company
        .publish_policy("orders", "  - { path: account, domain: accounts }\n")
        .await;
    let (seal, _) = company.process("orders").await;
    assert_eq!(apply(&seal, r#"{"account":17}"#).await.0, Route::Target);
    for value in [r#"{"account":"17"}"#, r#"{"account":1.5}"#, r#"{"account":[17]}"#] {
        let (route, letter) = apply(&seal, value).await;
        assert_eq!(route, Route::DeadLetter, "{value}");
        assert_eq!(DeadLetter::from_json(letter.as_bytes()).unwrap().code, "cannot-coerce");
    }
}

#[tokio::test]
async fn a_value_of_one_domain_does_not_open_at_a_place_of_another() {
    let company = Company::new();
    company.publish_domain("customers", 1, "utf8").await;
    company.publish_domain("staff", 1, "utf8").await;
    company
        .publish_policy(
            "orders",
            "  - { path: customer, domain: customers }\n  - { path: clerk, domain: staff }\n",
        )
        .await;
    let (seal, open) = company.process("orders").await;
    let (_, sealed) = apply(&seal, r#"{"customer":"c-1"}"#).await;
    let moved = sealed.replace("customer", "clerk");
    assert_eq!(apply(&open, &moved).await.0, Route::DeadLetter);
    assert_eq!(apply(&open, &sealed).await.0, Route::Target);
}

#[tokio::test]
async fn after_a_rotation_old_values_still_open_and_new_ones_differ() {
    let company = Company::new();
    company.publish_domain("customers", 1, "utf8").await;
    company
        .publish_policy("orders", "  - { path: customer, domain: customers }\n")
        .await;
    let (_, old) = apply(&company.process("orders").await.0, r#"{"customer":"c-1"}"#).await;
    company.publish_domain("customers", 2, "utf8").await;
    let (seal, open) = company.process("orders").await;
    let (_, new) = apply(&seal, r#"{"customer":"c-1"}"#).await;
    assert_ne!(sealed_text(&old), sealed_text(&new));
    for sealed in [old, new] {
        assert_eq!(
            apply(&open, &sealed).await,
            (Route::Target, r#"{"customer":"c-1"}"#.to_owned())
        );
    }
}

#[tokio::test]
async fn a_substituted_secret_is_refused() {
    let company = Company::new();
    company.publish_domain("customers", 1, "utf8").await;
    company
        .publish_policy("orders", "  - { path: customer, domain: customers }\n")
        .await;
    // Whoever can write to the catalogue puts a secret of another domain, wrapped by the same KMS key, in place.
    let attacker = MemoryCatalogue::new();
    for path in company.catalogue.list("policies/orders").await.unwrap() {
        let bytes = company.catalogue.get(&path).await.unwrap().unwrap();
        attacker.put_if_absent(&path, &bytes).await.unwrap();
    }
    let document = company
        .catalogue
        .get("domains/customers/1/document.jws")
        .await
        .unwrap()
        .unwrap();
    attacker
        .put_if_absent("domains/customers/1/document.jws", &document)
        .await
        .unwrap();
    create_domain_secret(&*company.kms, &attacker, "customers", 1, ARN)
        .await
        .unwrap();
    let substituted = Company {
        catalogue: Arc::new(attacker),
        ..company
    };
    let (seal, _) = substituted.process("orders").await;
    let error = seal.apply(&[record(r#"{"customer":"c-1"}"#)]).await.unwrap_err();
    assert!(
        matches!(&error, TransformError::Stop { reason, .. } if reason.contains("not the one its signed document names")),
        "{error}"
    );
}

/// A source that knows version 1 of every domain when it is first asked, and the newest from then on.
#[derive(Debug)]
struct Rotating {
    first: (KeyId, std::sync::atomic::AtomicBool),
    inner: CataloguePolicies,
}

#[async_trait::async_trait]
impl PolicySource for Rotating {
    async fn policy(&self, dataset: &str) -> Result<Arc<VerifiedPolicy>, PolicySourceError> {
        self.inner.policy(dataset).await
    }

    fn holds(&self, policy: &VerifiedPolicy) -> bool {
        self.inner.holds(policy)
    }

    async fn domain(&self, name: &str, key: Option<KeyId>) -> Result<Arc<VerifiedDomain>, PolicySourceError> {
        let was_asked = self.first.1.swap(true, std::sync::atomic::Ordering::SeqCst);
        self.inner
            .domain(name, if was_asked { key } else { Some(self.first.0) })
            .await
    }
}

#[tokio::test]
async fn a_rotation_in_the_middle_of_a_batch_does_not_mix_two_versions() {
    let company = Company::new();
    let id = company.publish_domain("customers", 1, "integer").await;
    company.publish_domain("customers", 2, "utf8").await;
    company
        .publish_policy("orders", "  - { path: id, domain: customers }\n")
        .await;
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(UnixMillis(1)));
    let inner = CataloguePolicies::new(company.catalogue.clone(), company.trusted.clone(), clock.clone());
    let policy = inner.policy("orders").await.unwrap();
    let first = (id, false.into());
    let (kms, catalogue) = (company.kms.clone(), company.catalogue.clone());
    let age = Duration::from_secs(300);
    let sealer = DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms, catalogue, Arc::new(Rotating { first, inner }), clock, age),
    };
    let seal = SealTransform::new(policy, Format::Json, KeysPlacement::Header, sealer).unwrap();
    let (route, sealed) = apply(&seal, r#"{"id":17}"#).await;
    assert_eq!(route, Route::Target);
    let (_, open) = company.process("orders").await;
    assert_eq!(apply(&open, &sealed).await, (Route::Target, r#"{"id":17}"#.to_owned()));
    let mut bytes = Vec::new();
    sealflow::seal::value::read_text(sealed_text(&sealed).as_bytes(), &mut bytes).unwrap();
    assert_eq!(bytes[1..17], *id.as_bytes(), "an integer under the key of the integers");
}

/// The domain keys of a process, and its clock.
fn domain_keys(company: &Company) -> (DomainKeys, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(UnixMillis(1)));
    let policies = CataloguePolicies::new(company.catalogue.clone(), company.trusted.clone(), clock.clone());
    let age = Duration::from_secs(300);
    let keys = DomainKeys::new(
        company.kms.clone(),
        company.catalogue.clone(),
        Arc::new(policies),
        clock.clone(),
        age,
    );
    (keys, clock)
}

#[tokio::test]
async fn a_secret_goes_on_to_count_while_kms_is_away_and_stops_when_its_key_is_disabled() {
    let company = Company::new();
    company.publish_domain("customers", 1, "utf8").await;
    let (keys, clock) = domain_keys(&company);
    keys.get("customers", None).await.unwrap();
    let away = KeyServiceError::Unavailable { reason: "test".into() };
    company.kms.fail_with(Some(away));
    let calls = company.kms.unwrap_calls();
    clock.advance(Duration::from_secs(300));
    for _ in 0..50 {
        keys.get("customers", None).await.unwrap();
    }
    assert_eq!(
        company.kms.unwrap_calls(),
        calls + 1,
        "an outage is not answered by a storm"
    );
    company.kms.fail_with(None);
    company.kms.set_unusable(ARN, true);
    clock.advance(Duration::from_secs(30));
    for _ in 0..50 {
        let refused = keys.get("customers", None).await;
        assert!(matches!(
            refused,
            Err(DomainError::Service(KeyServiceError::KeyUnusable { .. }))
        ));
    }
    assert_eq!(company.kms.unwrap_calls(), calls + 2);
    company.kms.set_unusable(ARN, false);
    clock.advance(Duration::from_secs(5));
    keys.get("customers", None).await.unwrap();
}
