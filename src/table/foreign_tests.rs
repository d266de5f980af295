//! Files of others, written by the Parquet crate with key material as its key tools spell it: what the key service gives
//! keys for is shown, and no file with a policy is read past it.

use std::sync::Arc;

use aes_gcm::aead::Aead as _;
use aes_gcm::aead::Payload;
use aes_gcm::{Aes128Gcm, KeyInit as _, Nonce};
use arrow::array::{Array as _, ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::encryption::encrypt::FileEncryptionProperties;
use parquet::file::properties::WriterProperties;

use super::material::{Material, Wrapped};
use super::tests::Bench;
use super::*;
use crate::acl::Identity;
use crate::clock::UnixMillis;
use crate::keys::testing::MemoryKms;
use crate::keys::{EncryptionContext, KeyService as _};
use crate::pipeline::{ColumnDecision, ColumnOutcome, KEY_REFUSED};
use crate::seal::WrappedKey;

const FOOTER: &str = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-3333-3333-333333333333";
const COLUMN: &str = "arn:aws:kms:eu-central-1:111122223333:key/44444444-4444-4444-4444-444444444444";
const ROWS: i64 = 100;
const POLICY: &str = r#"
dataset: payments
version: 1
keys: { ops: { arn: "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222" } }
acls: { ops: { allow: ["arn:aws:iam::111122223333:role/analyst"] } }
columns:
  - { path: email, key: ops, acl: ops }
  - { path: card, key: ops, acl: ops, at: column }
table: { key: ops, acl: ops }
"#;

/// How a writer of others was configured.
#[derive(Clone, Copy, Debug)]
struct Others {
    is_double: bool,
    key_len: usize,
    is_plaintext_footer: bool,
    /// Whether all other columns are under the footer's key; else they are in clear.
    is_whole: bool,
}

const DOUBLE: Others = Others {
    is_double: true,
    key_len: 32,
    is_plaintext_footer: false,
    is_whole: false,
};

impl Others {
    async fn module(self, kms: &MemoryKms, arn: &str, is_footer: bool) -> (Vec<u8>, Vec<u8>) {
        let context = EncryptionContext::default();
        let (key, wrapped) = if self.is_double {
            let kek = kms.generate(arn, 16, &context).await.unwrap();
            let mut key = vec![0; self.key_len];
            getrandom::fill(&mut key).unwrap();
            let cipher = Aes128Gcm::new_from_slice(kek.plaintext.expose()).unwrap();
            let payload = Payload {
                msg: &key,
                aad: b"0123456789abcdef",
            };
            let sealed = cipher.encrypt(&Nonce::from([3; 12]), payload).unwrap();
            let wrapped = Wrapped::Double {
                key: WrappedKey {
                    kek_id: STANDARD.encode(b"0123456789abcdef"),
                    wrapped: STANDARD.encode([&[3; 12][..], &sealed].concat()),
                },
                kek: STANDARD.encode(kek.wrapped),
            };
            (key, wrapped)
        } else {
            let generated = kms.generate(arn, self.key_len, &context).await.unwrap();
            let wrapped = Wrapped::Single {
                key: STANDARD.encode(&generated.wrapped),
            };
            (generated.plaintext.expose().to_vec(), wrapped)
        };
        let material = Material {
            is_footer,
            master_key: arn.to_owned(),
            wrapped,
            label: None,
            claims: None,
        };
        (key, material.to_bytes())
    }

    async fn file(self, kms: &MemoryKms) -> Bytes {
        let footer = self.module(kms, FOOTER, true).await;
        let column = self.module(kms, COLUMN, false).await;
        self.file_under(footer, column)
    }

    fn file_under(self, (footer, footer_material): (Vec<u8>, Vec<u8>), column: (Vec<u8>, Vec<u8>)) -> Bytes {
        let mut builder = FileEncryptionProperties::builder(footer.clone())
            .with_footer_key_metadata(footer_material.clone())
            .with_plaintext_footer(self.is_plaintext_footer)
            .with_column_key_and_metadata("card", column.0, column.1);
        if self.is_whole {
            builder = builder.with_column_key_and_metadata("id", footer, footer_material);
        }
        let properties = WriterProperties::builder()
            .with_file_encryption_properties(builder.build().unwrap())
            .set_max_row_group_row_count(Some(60))
            .build();
        let rows = rows();
        let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).unwrap();
        writer.write(&rows).unwrap();
        writer.into_inner().unwrap().into()
    }
}

fn rows() -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS));
    let cards: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(tests::card)));
    RecordBatch::try_from_iter([("id", ids), ("card", cards)]).unwrap()
}

async fn read(
    kms: &Arc<MemoryKms>,
    file: &Bytes,
    query: &Query,
) -> Result<(RecordBatch, Vec<ColumnDecision>), TableError> {
    let reader = ForeignReader::new(kms.clone());
    let table = reader.open(Arc::new(file.clone()), None).await?;
    assert!(table.is_foreign() && table.policy().is_none() && table.claims().is_none());
    let who = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
    let asking = Asking {
        who: &who,
        purpose: None,
        now: UnixMillis(0),
    };
    let mut rows = table.rows(query, asking, "a.parquet")?;
    let mut batches = Vec::new();
    while let Some(batch) = rows.next().await? {
        batches.push(batch);
    }
    let batch = arrow::compute::concat_batches(rows.schema(), &batches).unwrap();
    Ok((batch, rows.take_decisions()))
}

fn cards(batch: &RecordBatch) -> Vec<Option<&str>> {
    batch
        .column_by_name("card")
        .unwrap()
        .as_string::<i32>()
        .iter()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_is_shown_as_far_as_the_key_service_gives_keys() {
    for n in 0..16 {
        let others = Others {
            is_double: n & 1 == 0,
            key_len: if n & 2 == 0 { 16 } else { 32 },
            is_plaintext_footer: n & 4 == 0,
            is_whole: n & 8 == 0,
        };
        let kms = Arc::new(MemoryKms::new());
        let file = others.file(&kms).await;
        let (all, decisions) = read(&kms, &file, &Query::default()).await.unwrap();
        assert_eq!(all.columns(), rows().columns(), "{others:?}");
        assert!(decisions.iter().any(|known| known.label == "card"
            && known.outcome == ColumnOutcome::Opened
            && known.because.contains("no policy")));
        // Without the flag it is refused, and the flag is named.
        let error = FileLabel::read(&file).await.unwrap_err();
        assert!(
            matches!(error, TableError::Foreign) && error.help().contains("--foreign"),
            "{error}"
        );

        kms.set_unusable(COLUMN, true);
        let (some, decisions) = read(&kms, &file, &Query::default()).await.unwrap();
        assert_eq!(some.column(0), all.column(0));
        assert_eq!(cards(&some), vec![None; 100]);
        assert!(
            decisions
                .iter()
                .all(|known| known.label != "card" || known.outcome == ColumnOutcome::Failed(KEY_REFUSED))
        );
        kms.set_unusable(FOOTER, true);
        let error = read(&kms, &file, &Query::default()).await.unwrap_err();
        assert!(matches!(error, TableError::Footer(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_whose_key_is_refused_cannot_be_filtered_by() {
    let kms = Arc::new(MemoryKms::new());
    let file = DOUBLE.file(&kms).await;
    kms.set_unusable(COLUMN, true);
    let query = Query {
        filter: Filter::parse("card = 'x'").unwrap(),
        ..Query::default()
    };
    let error = read(&kms, &file, &query).await.unwrap_err();
    assert!(matches!(error, TableError::Refused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_encryption_key_is_asked_for_once_and_an_absent_service_is_no_refusal() {
    let kms = Arc::new(MemoryKms::new());
    let file = DOUBLE.file(&kms).await;
    let reader = ForeignReader::new(kms.clone());
    for _ in 0..3 {
        reader.open(Arc::new(file.clone()), None).await.unwrap();
    }
    assert_eq!(kms.unwrap_calls(), 2);
    assert_eq!(format!("{reader:?}"), "ForeignReader { .. }");
    kms.fail_with(Some(crate::keys::KeyServiceError::Unavailable {
        reason: "away".into(),
    }));
    let error = ForeignReader::new(kms.clone())
        .open(Arc::new(file), None)
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_policy_is_never_read_past_it() {
    let yaml = [
        POLICY.to_owned(),
        POLICY.replace(
            "table: { key: ops, acl: ops }",
            "table: { key: ops, acl: ops, footer: signed-plaintext }",
        ),
    ];
    for yaml in yaml {
        let bench = Bench::new(&yaml);
        let file = bench.file().await;
        let error = read(&bench.kms, &file, &Query::default()).await.unwrap_err();
        assert!(matches!(error, TableError::NotForeign), "{error}");
        let error = ForeignLabel::read(&file).await.unwrap_err();
        assert!(matches!(error, TableError::NotForeign), "{error}");

        // What everybody reads is cut off: the place of the policy is filled with something else of the same length.
        let mut cut = file.to_vec();
        let at = find(&cut, b"\"sealflow\":");
        cut[at..at + 11].copy_from_slice(b"\"somebody\":");
        let error = read(&bench.kms, &cut.clone().into(), &Query::default())
            .await
            .unwrap_err();
        assert!(matches!(error, TableError::NotForeign), "{error}");
        // And the envelope too is spelled as others spell theirs: it is not what the key service wrapped without a context.
        let at = find(&cut, b"\"wrappedKEK\":\"sfk1.") + 14;
        let end = at + cut[at..].iter().position(|byte| *byte == b'"').unwrap();
        let like_others = STANDARD.encode(vec![7; (end - at) / 4 * 3]);
        let padded = format!("{like_others}\"{}", " ".repeat(end - at - like_others.len()));
        cut[at..=end].copy_from_slice(padded.as_bytes());
        let error = read(&bench.kms, &cut.into(), &Query::default()).await.unwrap_err();
        assert!(matches!(error, TableError::Footer(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_our_key_service_wrapped_for_a_policy_does_not_open_without_its_context() {
    let kms = Arc::new(MemoryKms::new());
    let context = EncryptionContext::for_data_key("payments", "ops", "ops");
    let generated = kms.generate(FOOTER, 32, &context).await.unwrap();
    // As somebody writes it who took the wrapped key out of an envelope and knows the key.
    let material = Material {
        is_footer: true,
        master_key: FOOTER.to_owned(),
        wrapped: Wrapped::Single {
            key: STANDARD.encode(&generated.wrapped),
        },
        label: None,
        claims: None,
    };
    let footer = (generated.plaintext.expose().to_vec(), material.to_bytes());
    let column = DOUBLE.module(&kms, COLUMN, false).await;
    let file = DOUBLE.file_under(footer, column);
    let error = read(&kms, &file, &Query::default()).await.unwrap_err();
    assert!(matches!(error, TableError::Footer(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_footer_with_our_texts_is_ours_whatever_its_key_material_says() {
    let kms = Arc::new(MemoryKms::new());
    let (footer, material) = DOUBLE.module(&kms, FOOTER, true).await;
    let properties = FileEncryptionProperties::builder(footer).with_footer_key_metadata(material);
    let properties = WriterProperties::builder()
        .with_file_encryption_properties(properties.build().unwrap())
        .set_key_value_metadata(Some(vec![parquet::file::metadata::KeyValue::new(
            "sealflow.policy".to_owned(),
            "jws".to_owned(),
        )]))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows().schema(), Some(properties)).unwrap();
    writer.write(&rows()).unwrap();
    let file: Bytes = writer.into_inner().unwrap().into();
    let error = read(&kms, &file, &Query::default()).await.unwrap_err();
    assert!(matches!(error, TableError::NotForeign), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_file_of_others_shows_nothing_that_was_not_written() {
    let kms = Arc::new(MemoryKms::new());
    let others = Others {
        is_whole: true,
        ..DOUBLE
    };
    let file = others.file(&kms).await;
    for at in (4..file.len()).step_by(41) {
        let mut changed = file.to_vec();
        changed[at] ^= 1 << (at % 8);
        if let Ok((batch, _)) = read(&kms, &changed.into(), &Query::default()).await {
            let is_same = batch.columns() == rows().columns();
            // What names the key of a column may be changed: then the column is not shown.
            assert!(is_same || batch.column(1).null_count() == 100, "{at}");
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).rposition(|window| window == what).unwrap()
}
