//! Files written and read with keys in memory: who sees what, and what is refused.

mod calls;
mod debug;
mod forged;
mod hidden;
mod key_tools;
mod landed;
mod surgery;
mod swapped;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;

use super::*;
use crate::acl::Identity;
use crate::clock::{ManualClock, UnixMillis};
use crate::flow::direct::DirectSealer;
use crate::jose::Thumbprint;
use crate::keys::envelope::read_header;
use crate::keys::testing::{MemoryCatalogue, MemoryKms};
use crate::keys::{DomainKeys, OpeningKeys, SealingKeys};
use crate::pipeline::{
    ColumnDecision, ColumnOutcome, Format, Headers, KeysPlacement, Position, Record, Route, SealTransform, Timestamp,
    apply_all,
};
use crate::policy::signed::{sign, verify};
use crate::policy::{FixedPolicies, OwnerKey, PolicySource, TrustRule, TrustedOwners, VerifiedPolicy};
use crate::seal::UsageLimits;

const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
const PII: &str = "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111";
const PLACE: &str = "topic=orders/date=2026-01-01";
const PATH: &str = "/data/payments/topic=orders/date=2026-01-01/a.parquet";
const POLICY: &str = r#"
dataset: payments
version: 1
keys:
  pii: { arn: "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111" }
  ops: { arn: "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222" }
acls:
  pii:
    allow: ["arn:aws:iam::111122223333:role/analyst"]
    refused: redact
  ops:
    allow: ["arn:aws:iam::111122223333:role/analyst", "arn:aws:iam::111122223333:role/support"]
columns:
  - { path: email, key: pii, acl: pii }
  - { path: card, key: pii, acl: pii, at: column }
  - { path: "items[*].serial", key: pii, acl: pii, at: column }
table: { key: ops, acl: ops }
"#;

pub(super) struct Bench {
    pub(super) kms: Arc<MemoryKms>,
    catalogue: Arc<MemoryCatalogue>,
    clock: Arc<ManualClock>,
    owner: OwnerKey,
    pub(super) policy: Arc<VerifiedPolicy>,
    keys: TableKeys,
    sealer: SealingKeys,
}

fn trusted(owners: Vec<Thumbprint>) -> TrustedOwners {
    TrustedOwners::new(vec![TrustRule {
        dataset: "*".to_owned(),
        owners,
    }])
    .unwrap()
}

impl Bench {
    pub(super) fn new(yaml: &str) -> Self {
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        let clock = Arc::new(ManualClock::at(NOW));
        let owner = OwnerKey::generate().unwrap();
        let policy = signed(yaml, &owner);
        Self {
            keys: TableKeys::of(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
            sealer: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
            kms,
            catalogue,
            clock,
            owner,
            policy,
        }
    }

    /// A file of 200 rows in two row groups.
    pub(super) async fn file(&self) -> Bytes {
        self.file_at(PLACE, FileId::random().unwrap()).await
    }

    async fn file_at(&self, place: &str, id: FileId) -> Bytes {
        let options = WriteOptions {
            row_group_rows: 100,
            threads: 3,
            ..WriteOptions::default()
        };
        let layout = layout(&self.policy);
        let out = Vec::new();
        let writer = TableWriter::begin(&self.policy, &layout, (place, id), &self.keys, options, out).await;
        let mut writer = writer.unwrap();
        let (rows, envelope) = self.rows(&layout).await;
        writer.write(&rows).unwrap();
        writer.add_envelope(&envelope).unwrap();
        let origin = Origin {
            schema: 1,
            topic: "orders".into(),
            partition: 3,
            first: 1_000,
            last: 1_199,
            rows: 200,
        };
        let (written, bytes) = writer.finish(&origin).unwrap();
        assert_eq!(
            (written.rows, written.row_groups, written.bytes),
            (200, 2, bytes.len() as u64)
        );
        bytes.into()
    }

    /// 200 records, sealed and made rows as a pipeline does it; with an envelope of their values' key.
    async fn rows(&self, layout: &Arc<TableLayout>) -> (RecordBatch, Vec<u8>) {
        self.rows_of(layout, (0..200).map(record_text)).await
    }

    /// The same of these records.
    async fn rows_of(
        &self,
        layout: &Arc<TableLayout>,
        texts: impl IntoIterator<Item = String>,
    ) -> (RecordBatch, Vec<u8>) {
        let sealer = DirectSealer {
            keys: self.sealer.clone(),
            domains: self.domains(),
        };
        let seal = SealTransform::new(self.policy.clone(), Format::Json, KeysPlacement::Header, sealer).unwrap();
        let record = |(n, text): (i64, String)| Record {
            position: Position {
                topic: Arc::from("orders"),
                partition: 3,
                offset: 1_000 + n,
            },
            timestamp: Timestamp::Appended(1_767_225_600_000 + n),
            key: None,
            value: Some(text.into()),
            headers: Headers::new(),
        };
        let records: Vec<Record> = (0..).zip(texts).map(record).collect();
        let outcomes = apply_all(&seal.for_table(), &records).await.unwrap();
        let mut encoder = RowEncoder::new(Arc::clone(layout), Format::Json);
        let mut envelope = Vec::new();
        for outcome in outcomes {
            assert_eq!(outcome.route, Route::Target);
            for header in &outcome.record.headers {
                let value = header.value.clone().unwrap();
                envelope = read_header(&value).unwrap()[0].to_vec();
            }
            encoder.append(&outcome.record).unwrap();
        }
        (encoder.finish().unwrap().with_extra(None).unwrap(), envelope)
    }

    pub(super) fn keys(&self) -> &TableKeys {
        &self.keys
    }

    /// These records as a file, with the envelope of its sealed values' key if it has any.
    pub(super) async fn written(
        &self,
        schema: &str,
        texts: impl IntoIterator<Item = String>,
        options: WriteOptions,
    ) -> Bytes {
        let layout = layout_of(schema, &self.policy);
        let (rows, envelope) = self.rows_of(&layout, texts).await;
        let place = (PLACE, FileId::random().unwrap());
        let writer = TableWriter::begin(&self.policy, &layout, place, &self.keys, options, Vec::new()).await;
        finished(writer.unwrap(), &rows, &envelope)
    }

    fn domains(&self) -> DomainKeys {
        let age = Duration::from_secs(60);
        DomainKeys::new(
            self.kms.clone(),
            self.catalogue.clone(),
            self.policies(),
            self.clock.clone(),
            age,
        )
    }

    fn policies(&self) -> Arc<dyn PolicySource> {
        Arc::new(FixedPolicies::new(vec![self.policy.clone()]))
    }

    pub(super) fn reader(&self) -> TableReader {
        self.reader_by(self.policies())
    }

    fn reader_by(&self, policies: Arc<dyn PolicySource>) -> TableReader {
        let age = Duration::from_secs(60);
        TableReader::new(
            policies.clone(),
            EmbeddedPolicies::OwnedBy(trusted(vec![self.owner.thumbprint()])),
            OpeningKeys::of(
                self.kms.clone(),
                self.catalogue.clone(),
                policies.clone(),
                self.clock.clone(),
                age,
                100,
            ),
            OpeningKeys::new(
                self.kms.clone(),
                self.catalogue.clone(),
                policies,
                self.clock.clone(),
                age,
                100,
            ),
            self.domains(),
        )
    }

    async fn read(
        &self,
        file: &Bytes,
        role: &str,
        query: &Query,
    ) -> Result<(RecordBatch, Vec<ColumnDecision>), TableError> {
        read(&self.reader(), file, PATH, role, query).await
    }
}

async fn read(
    reader: &TableReader,
    file: &Bytes,
    path: &str,
    role: &str,
    query: &Query,
) -> Result<(RecordBatch, Vec<ColumnDecision>), TableError> {
    let who = Identity::from_arn(&format!("arn:aws:iam::111122223333:role/{role}")).unwrap();
    let asking = Asking {
        who: &who,
        purpose: None,
        now: NOW,
    };
    let table = reader.open(Arc::new(file.clone()), path, asking).await?;
    let mut rows = table.rows(query, asking, "a.parquet")?;
    let mut batches = Vec::new();
    while let Some(batch) = rows.next().await? {
        batches.push(batch);
    }
    let batch = arrow::compute::concat_batches(rows.schema(), &batches).unwrap();
    Ok((batch, rows.take_decisions()))
}

/// A file of these rows.
fn finished(mut writer: TableWriter<Vec<u8>>, rows: &RecordBatch, envelope: &[u8]) -> Bytes {
    writer.write(rows).unwrap();
    if !envelope.is_empty() {
        writer.add_envelope(envelope).unwrap();
    }
    let count = rows.num_rows() as u64;
    let origin = Origin {
        schema: 1,
        topic: "orders".into(),
        partition: 3,
        first: 1_000,
        last: 999 + count as i64,
        rows: count,
    };
    writer.finish(&origin).unwrap().1.into()
}

fn record_text(n: i64) -> String {
    let (first, second) = (2 * n, 2 * n + 1);
    format!(
        r#"{{"id":{n},"email":"{}","card":"{}","items":[{{"serial":"serial-{first}","count":{first}}},{{"serial":"serial-{second}","count":{second}}}]}}"#,
        email(n),
        card(n)
    )
}

/// Whether `needle` is somewhere in `bytes`.
fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

fn signed(yaml: &str, owner: &OwnerKey) -> Arc<VerifiedPolicy> {
    let jws = sign(yaml.as_bytes(), owner).unwrap();
    Arc::new(verify(&jws, &trusted(vec![owner.thumbprint()])).unwrap())
}

pub(super) fn email(n: i64) -> String {
    format!("person-{n}@example.com")
}

pub(super) fn card(n: i64) -> String {
    format!("4111-0000-{n:04}")
}

const SCHEMA: &str = r#"
dataset: payments
version: 1
fields:
  - { name: id, type: int64 }
  - { name: email, type: string }
  - { name: card, type: string }
  - name: items
    type: list
    items: { type: struct, fields: [{ name: serial, type: string }, { name: count, type: int64 }] }
"#;

fn layout(policy: &VerifiedPolicy) -> Arc<TableLayout> {
    layout_of(SCHEMA, policy)
}

fn layout_of(schema: &str, policy: &VerifiedPolicy) -> Arc<TableLayout> {
    let schema = TableSchema::parse(schema.as_bytes()).unwrap();
    Arc::new(TableLayout::new(&schema, policy.policy()).unwrap())
}

fn texts(batch: &RecordBatch, name: &str) -> Vec<Option<String>> {
    let array = batch.column_by_name(name).unwrap().as_string::<i32>();
    array.iter().map(|text| text.map(str::to_owned)).collect()
}

fn serials(batch: &RecordBatch) -> Vec<Option<String>> {
    let items = batch.column_by_name("items").unwrap().as_list::<i32>();
    let serials = items.values().as_struct().column_by_name("serial").unwrap();
    serials
        .as_string::<i32>()
        .iter()
        .map(|text| text.map(str::to_owned))
        .collect()
}

fn count(decisions: &[ColumnDecision], label: &str, outcome: ColumnOutcome) -> u64 {
    let of = decisions
        .iter()
        .filter(|known| known.label == label && known.outcome == outcome);
    of.map(|known| known.count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_sees_their_columns_of_a_file_and_one_that_is_refused_takes_nothing_from_the_others() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let (all, decisions) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
    assert_eq!(
        texts(&all, "email"),
        (0..200).map(|n| Some(email(n))).collect::<Vec<_>>()
    );
    assert_eq!(texts(&all, "card"), (0..200).map(|n| Some(card(n))).collect::<Vec<_>>());
    assert_eq!(
        serials(&all),
        (0..400).map(|n| Some(format!("serial-{n}"))).collect::<Vec<_>>()
    );
    for label in ["email", "card", "items[*].serial"] {
        assert_eq!(
            count(&decisions, label, ColumnOutcome::Opened),
            200,
            "{label}: {decisions:?}"
        );
    }
    assert!(
        decisions
            .iter()
            .all(|known| known.first.partition == 3 && known.first.offset >= 1_000)
    );

    let (some, decisions) = bench.read(&file, "support", &Query::default()).await.unwrap();
    let redacted = || Some("[redacted]".to_owned());
    assert_eq!(texts(&some, "email"), vec![redacted(); 200]);
    assert_eq!(texts(&some, "card"), vec![redacted(); 200]);
    assert_eq!(serials(&some), vec![redacted(); 400]);
    assert_eq!(some.column_by_name("id").unwrap(), all.column_by_name("id").unwrap());
    let counts = |batch: &RecordBatch| {
        let items = batch.column_by_name("items").unwrap().as_list::<i32>().clone();
        items.values().as_struct().column_by_name("count").unwrap().clone()
    };
    assert_eq!(&counts(&some), &counts(&all));
    for label in ["email", "card", "items[*].serial"] {
        assert_eq!(
            count(&decisions, label, ColumnOutcome::Refused),
            200,
            "{label}: {decisions:?}"
        );
    }

    let refused = bench.read(&file, "nobody", &Query::default()).await.unwrap_err();
    assert!(matches!(refused, TableError::Refused { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_the_key_service_refuses_take_their_columns_and_no_other() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    bench.kms.set_unusable(PII, true);
    let (some, decisions) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
    assert_eq!(texts(&some, "card"), vec![None; 200]);
    assert_eq!(
        some.column_by_name("id")
            .unwrap()
            .as_primitive::<Int64Type>()
            .value(199),
        199
    );
    assert!(
        decisions
            .iter()
            .any(|known| known.label == "card" && matches!(known.outcome, ColumnOutcome::Failed(_)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_rows_and_filters_are_those_that_were_asked_for() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let ask = |columns: &[&str], filter: &str, limit: Option<u64>| Query {
        columns: (!columns.is_empty()).then(|| columns.iter().map(|&name| name.to_owned()).collect()),
        filter: if filter.is_empty() {
            Filter::default()
        } else {
            Filter::parse(filter).unwrap()
        },
        limit,
        batch_rows: 64,
    };
    let read = async |role: &str, query: Query| bench.read(&file, role, &query).await;
    let (batch, _) = read("analyst", ask(&["card"], "", Some(70))).await.unwrap();
    assert_eq!((batch.num_columns(), batch.num_rows()), (1, 70));
    let (batch, _) = read(
        "analyst",
        ask(
            &["id", "items[*].count"],
            "id >= 150 and card != '4111-0000-0151'",
            None,
        ),
    )
    .await
    .unwrap();
    assert_eq!((batch.num_columns(), batch.num_rows()), (2, 49));
    let (batch, decisions) = read("analyst", ask(&["id"], "email = 'person-7@example.com'", None))
        .await
        .unwrap();
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().values(), &[7]);
    assert_eq!(count(&decisions, "card", ColumnOutcome::Opened), 0, "{decisions:?}");
    let (batch, _) = read("analyst", ask(&[], "id = 5000", None)).await.unwrap();
    assert_eq!(batch.num_rows(), 0);
    // A guess that finds nothing is a look at all rows.
    let (batch, decisions) = read("analyst", ask(&["id"], "card = 'no such card'", None))
        .await
        .unwrap();
    assert_eq!(
        (batch.num_rows(), count(&decisions, "card", ColumnOutcome::Opened)),
        (0, 200)
    );
    for (role, filter) in [
        ("support", "card = 'x'"),
        ("analyst", "nothing = 1"),
        ("analyst", "id = 'x'"),
    ] {
        let error = read(role, ask(&[], filter, None)).await.unwrap_err();
        assert!(
            matches!(
                error,
                TableError::Refused { .. } | TableError::NoColumn { .. } | TableError::Filter { .. }
            ),
            "{filter}: {error}"
        );
    }
    assert!(matches!(
        read("analyst", ask(&["emai"], "", None)).await.unwrap_err(),
        TableError::NoColumn { .. }
    ));
    // Sealed values that the filter may not compare give no row either.
    let (batch, _) = read("support", ask(&["id"], "email = 'person-7@example.com'", None))
        .await
        .unwrap();
    assert_eq!(batch.num_rows(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_anywhere_shows_nothing_that_was_not_written() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let (whole, _) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
    let (mut refused, mut flips) = (0, 0);
    for at in (0..file.len()).step_by(97).chain(file.len() - 9..file.len()) {
        let mut changed = file.to_vec();
        changed[at] ^= 1 << (at % 8);
        flips += 1;
        match bench.read(&changed.into(), "analyst", &Query::default()).await {
            Err(_) => refused += 1,
            // The leading magic bytes, and page indexes, which are not read.
            Ok((batch, _)) => assert_eq!(batch, whole, "{at}"),
        }
    }
    assert!(refused * 10 > flips * 9, "{refused} of {flips}");
    for length in [0, 7, 8, 100, file.len() - 1] {
        assert!(
            bench
                .read(&file.slice(..length), "analyst", &Query::default())
                .await
                .is_err()
        );
        assert!(
            bench
                .read(&file.slice(file.len() - length..), "analyst", &Query::default())
                .await
                .is_err()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_elsewhere_is_refused_unless_it_was_moved_on_purpose() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    for path in [
        "/data/payments/topic=orders/date=2026-01-02/a.parquet",
        "/data/orders/a.parquet",
        "a.parquet",
    ] {
        let error = read(&bench.reader(), &file, path, "analyst", &Query::default())
            .await
            .unwrap_err();
        assert!(matches!(error, TableError::Moved { .. }), "{error}");
        let moved = bench.reader().with_moved(true);
        assert!(read(&moved, &file, path, "analyst", &Query::default()).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_file_says_without_keys_is_its_policy_and_place_and_no_more() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let label = FileLabel::read(&file).await.unwrap();
    assert_eq!(
        (label.claims.dataset.as_str(), label.claims.partition.as_str()),
        ("payments", PLACE)
    );
    assert_eq!(label.claims.policy.as_deref(), bench.policy.jws());
    assert!(!label.has_plaintext_footer);
    let error = FileLabel::read(&Bytes::from_static(b"PAR1....PAR1")).await.unwrap_err();
    assert!(matches!(error, TableError::Damaged), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_somebody_else_or_a_newer_one_decides_as_it_should() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let stranger = OwnerKey::generate().unwrap();
    let reader = TableReader::new(
        bench.policies(),
        EmbeddedPolicies::OwnedBy(trusted(vec![stranger.thumbprint()])),
        OpeningKeys::of(
            bench.kms.clone(),
            bench.catalogue.clone(),
            bench.policies(),
            bench.clock.clone(),
            Duration::from_secs(60),
            9,
        ),
        OpeningKeys::new(
            bench.kms.clone(),
            bench.catalogue.clone(),
            bench.policies(),
            bench.clock.clone(),
            Duration::from_secs(60),
            9,
        ),
        bench.domains(),
    );
    let error = read(&reader, &file, PATH, "analyst", &Query::default())
        .await
        .unwrap_err();
    assert!(matches!(error, TableError::EmbeddedPolicy(_)), "{error}");

    // The newest policy takes the analyst's right away: the one in the file does not give it back.
    let newer = POLICY.replace("version: 1", "version: 2").replace(
        "    allow: [\"arn:aws:iam::111122223333:role/analyst\"]\n",
        "    allow: []\n",
    );
    let newest: Arc<dyn PolicySource> = Arc::new(FixedPolicies::new(vec![signed(&newer, &bench.owner)]));
    let (batch, _) = read(&bench.reader_by(newest), &file, PATH, "analyst", &Query::default())
        .await
        .unwrap();
    assert_eq!(texts(&batch, "card"), vec![Some("[redacted]".to_owned()); 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_needs_a_lease_does_not_open_its_file_without_a_catalogue() {
    let owner = OwnerKey::generate().unwrap();
    let policy = |yaml: &str| VerifiedPolicy::clone(&signed(yaml, &owner));
    assert!(offline(policy(POLICY)).is_ok());
    let leased = offline(policy(&format!("{POLICY}lease: required\n")));
    assert!(matches!(leased, Err(TableError::Refused { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_cost_three_calls_of_the_key_service_and_no_debug_shows_a_key() {
    let bench = Bench::new(&POLICY.replace(
        "{ path: email, key: pii, acl: pii }",
        "{ path: email, key: pii, acl: pii, at: column }",
    ));
    let layout = layout(&bench.policy);
    for _ in 0..2 {
        let id = FileId::random().unwrap();
        let options = WriteOptions::default();
        let writer = TableWriter::begin(&bench.policy, &layout, (PLACE, id), &bench.keys, options, Vec::new()).await;
        let text = format!("{:?}", writer.unwrap());
        assert!(text.len() < 80 && !text.contains("key"), "{text}");
    }
    // One for each pair of key and ACL: the footer's, and the columns'.
    assert_eq!(bench.kms.generate_calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_footers_and_the_duckdb_profile_read_as_the_others() {
    let footer = POLICY.replace(
        "table: { key: ops, acl: ops }",
        "table: { key: ops, acl: ops, footer: signed-plaintext }",
    );
    let duckdb = POLICY.replace(
        "table: { key: ops, acl: ops }",
        "table: { key: pii, acl: pii, profile: duckdb }",
    );
    for yaml in [footer, duckdb] {
        let bench = Bench::new(&yaml);
        let file = bench.file().await;
        let (all, _) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
        assert_eq!(texts(&all, "email")[7], Some(email(7)));
        assert_eq!(texts(&all, "card")[199], Some(card(199)));
        let mut changed = file.to_vec();
        let at = changed.len() - 60;
        changed[at] ^= 1;
        assert!(bench.read(&changed.into(), "analyst", &Query::default()).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_protected_value_is_in_a_file_whatever_its_footer() {
    for footer in ["encrypted", "signed-plaintext"] {
        let yaml = POLICY.replace(
            "table: { key: ops, acl: ops }",
            &format!("table: {{ key: ops, acl: ops, footer: {footer} }}"),
        );
        let bench = Bench::new(&yaml);
        for compression in [Compression::None, Compression::Snappy, Compression::Zstd] {
            let layout = layout(&bench.policy);
            let options = WriteOptions {
                compression,
                ..WriteOptions::default()
            };
            let id = FileId::random().unwrap();
            let writer =
                TableWriter::begin(&bench.policy, &layout, (PLACE, id), &bench.keys, options, Vec::new()).await;
            let mut writer = writer.unwrap();
            let (rows, _) = bench.rows(&layout).await;
            writer.write(&rows).unwrap();
            let origin = Origin {
                schema: 1,
                topic: "orders".into(),
                partition: 0,
                first: 0,
                last: 199,
                rows: 200,
            };
            let (_, file) = writer.finish(&origin).unwrap();
            for n in 0..200 {
                for value in [email(n), card(n), format!("serial-{n}")] {
                    let value = value.as_bytes();
                    assert!(!file.windows(value.len()).any(|window| window == value), "{footer}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_newer_version_says_so_and_is_not_guessed_at() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let newer = surgery::with_material(&file, r#""version":1"#, r#""version":2"#).await;
    let error = bench.read(&newer, "analyst", &Query::default()).await.unwrap_err();
    assert!(matches!(error, TableError::NewerVersion), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_schema_and_envelopes_without_end_are_not_written() {
    let bench = Bench::new(POLICY);
    let layout = layout(&bench.policy);
    let (rows, envelope) = bench.rows(&layout).await;
    let place = (PLACE, FileId::random().unwrap());
    let options = WriteOptions::default();
    let writer = TableWriter::begin(&bench.policy, &layout, place, &bench.keys, options, Vec::new()).await;
    let mut writer = writer.unwrap();
    // As many columns of the same types, and one that is sealed stands in the place of one that is not.
    let mut order: Vec<usize> = (0..rows.num_columns()).collect();
    let last = order.len() - 1;
    let email = rows.schema().index_of("email").unwrap();
    order.swap(email, last);
    let error = writer.write(&rows.project(&order).unwrap()).unwrap_err();
    assert!(matches!(error, TableError::Rows { .. }), "{error}");
    let error = writer.add_envelope(&vec![0; 5_000]).unwrap_err();
    assert!(matches!(error, TableError::Rows { .. }), "{error}");
    for n in 0..4_096_u32 {
        writer.add_envelope(&n.to_le_bytes()).unwrap();
    }
    writer.add_envelope(&7_u32.to_le_bytes()).unwrap();
    let error = writer.add_envelope(&envelope).unwrap_err();
    assert!(matches!(error, TableError::Rows { .. }), "{error}");
}
