//! What the fuzz targets of tables share: a table in memory with its keys, and a runtime that lets the format's library panic
//! where Sealflow contains it.

use std::sync::{Arc, LazyLock, Once};
use std::time::Duration;

use bytes::Bytes;
use sealflow::acl::Identity;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::envelope::read_header;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{DomainKeys, EncryptionContext, Envelope, KeyService as _, OpeningKeys, SealingKeys};
use sealflow::pipeline::{Format, Headers, KeysPlacement, Position, Record, SealTransform, Timestamp, apply_all};
use sealflow::policy::{FixedPolicies, PolicySource, VerifiedPolicy};
use sealflow::seal::{UnwrappingKey, UsageLimits, WrappedKey};
use sealflow::table::{
    Asking, Compression, EmbeddedPolicies, FileId, Origin, RowEncoder, TableKeys, TableLayout, TableReader,
    TableSchema, TableWriter, WriteOptions, panic_is_contained,
};
use tokio::runtime::Runtime;

const POLICY: &str = r#"
dataset: t
version: 1
keys:
  pii: { arn: "arn:aws:kms:eu-central-1:111122223333:key/1" }
  ops: { arn: "arn:aws:kms:eu-central-1:111122223333:key/2" }
acls:
  pii: { allow: ["arn:aws:iam::111122223333:role/a"] }
columns:
  - { path: email, key: pii, acl: pii }
  - { path: card, key: pii, acl: pii, at: column }
  - { path: "tags[*]", key: pii, acl: pii, at: column }
table: { key: ops, acl: pii, footer: FOOTER }
"#;
const SCHEMA: &[u8] = br#"
dataset: t
version: 1
fields:
  - { name: id, type: int64 }
  - { name: email, type: string }
  - { name: card, type: string }
  - { name: rate, type: float64 }
  - { name: price, type: decimal, precision: 20, scale: 2 }
  - { name: tags, type: list, items: { type: string } }
"#;
/// Where the file lies.
pub const PATH: &str = "t/a.parquet";
const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

/// A table of one file.
pub struct Table {
    /// Opens it.
    pub reader: TableReader,
    /// May see everything.
    pub who: Identity,
    /// The file.
    pub file: Bytes,
    kms: Arc<MemoryKms>,
}

/// A file with an encrypted footer.
pub static ENCRYPTED: LazyLock<Table> = LazyLock::new(|| Table::new("encrypted"));
/// A file with a footer in clear.
pub static SIGNED: LazyLock<Table> = LazyLock::new(|| Table::new("signed-plaintext"));

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(1)
        .build()
        .unwrap()
});

/// Runs `work`. Panics that Sealflow contains end that work, as in a service; all others end the run.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic_is_contained() {
                before(panic);
            }
        }));
    });
    RUNTIME.block_on(work)
}

impl Table {
    fn new(footer: &str) -> Self {
        let yaml = POLICY.replace("FOOTER", footer);
        let policy = Arc::new(VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap());
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        let clock = Arc::new(ManualClock::at(NOW));
        let policies: Arc<dyn PolicySource> = Arc::new(FixedPolicies::new(vec![policy.clone()]));
        let (age, limits) = (Duration::from_secs(300), UsageLimits::STANDARD);
        let domains = DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age);
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), limits),
            domains: domains.clone(),
        };
        let seal = SealTransform::new(policy.clone(), Format::Json, KeysPlacement::Header, sealer)
            .unwrap()
            .for_table();
        let layout = TableLayout::new(&TableSchema::parse(SCHEMA).unwrap(), policy.policy()).unwrap();
        let layout = Arc::new(layout);
        let keys = TableKeys::of(kms.clone(), catalogue.clone(), clock.clone(), limits);
        let file = run(async {
            let records: Vec<Record> = (0..12).map(record).collect();
            let mut encoder = RowEncoder::new(layout.clone(), Format::Json);
            let options = WriteOptions {
                compression: Compression::Snappy,
                row_group_rows: 6,
                threads: 1,
                ..WriteOptions::default()
            };
            let place = ("", FileId::random().unwrap());
            let writer = TableWriter::begin(&policy, &layout, place, &keys, options, Vec::new());
            let mut writer = writer.await.unwrap();
            for outcome in apply_all(&seal, &records).await.unwrap() {
                for header in &outcome.record.headers {
                    for envelope in read_header(header.value.as_deref().unwrap()).unwrap() {
                        writer.add_envelope(envelope).unwrap();
                    }
                }
                encoder.append(&outcome.record).unwrap();
            }
            writer
                .write(&encoder.finish().unwrap().with_extra(None).unwrap())
                .unwrap();
            let origin = Origin {
                schema: 1,
                topic: "t".to_owned(),
                partition: 0,
                first: 0,
                last: 11,
                rows: 12,
            };
            writer.finish(&origin).unwrap().1
        });
        let reader = TableReader::new(
            policies.clone(),
            EmbeddedPolicies::Development,
            OpeningKeys::of(
                kms.clone(),
                catalogue.clone(),
                policies.clone(),
                clock.clone(),
                age,
                100,
            ),
            OpeningKeys::new(kms.clone(), catalogue, policies, clock, age, 100),
            domains,
        );
        Self {
            reader,
            who: Identity::from_arn("arn:aws:iam::111122223333:role/a").unwrap(),
            file: file.into(),
            kms,
        }
    }

    /// Who asks, and when.
    pub fn asking(&self) -> Asking<'_> {
        Asking {
            who: &self.who,
            purpose: None,
            now: NOW,
        }
    }

    /// The key of an encrypted footer, which every reader of the table can have.
    pub fn footer_key(&self) -> Vec<u8> {
        let footer = footer_start(&self.file);
        let start = footer + position(&self.file[footer..], br#"{"keyMaterialType""#).unwrap();
        let mut values = serde_json::Deserializer::from_slice(&self.file[start..]).into_iter::<serde_json::Value>();
        let material = values.next().unwrap().unwrap();
        let text = |name: &str| material[name].as_str().unwrap().to_owned();
        let envelope = Envelope::from_text(&text("wrappedKEK")).unwrap();
        let context = EncryptionContext::for_data_key(&envelope.dataset, &envelope.key_name, &envelope.acl);
        let secret = run(self.kms.unwrap(&envelope.arn, &envelope.wrapped, &context)).unwrap();
        let wrapped = WrappedKey {
            kek_id: text("keyEncryptionKeyID"),
            wrapped: text("wrappedDEK"),
        };
        let kek = UnwrappingKey::from_unwrapped(&secret, envelope.key_id()).unwrap();
        kek.unwrap("t", "$footer", &wrapped).unwrap().expose().to_vec()
    }
}

fn record(n: i64) -> Record {
    let text = format!(
        r#"{{"id":{n},"email":"p-{n}@example.com","card":"4111-{n}","rate":{n}.5,"price":{n}.25,"tags":["a{n}","b"]}}"#
    );
    Record {
        position: Position {
            topic: Arc::from("t"),
            partition: 0,
            offset: n,
        },
        timestamp: Timestamp::Created(n),
        key: None,
        value: Some(text.into()),
        headers: Headers::new(),
    }
}

/// Where `needle` begins.
pub fn position(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

/// Where the footer of a file begins.
pub fn footer_start(file: &[u8]) -> usize {
    let end = file.len() - 8;
    let length = u32::from_le_bytes(file[end..end + 4].try_into().unwrap());
    end - length as usize
}
