//! Bytes of one place in another, by somebody without keys: none is shown as what stood there.

use super::surgery::{with_claims, with_text};
use super::*;
use crate::policy::signed::sign;

const BANK: &str = r#"
dataset: payments
version: 2
fields:
  - { name: id, type: int64 }
  - { name: card, type: string }
  - { name: iban, type: string }
"#;

fn bank_policy(table: &str) -> String {
    POLICY
        .replace("version: 1", "version: 2")
        .replace(
            "  - { path: email, key: pii, acl: pii }\n",
            "  - { path: iban, key: pii, acl: pii, at: column }\n",
        )
        .replace(
            "  - { path: \"items[*].serial\", key: pii, acl: pii, at: column }\n",
            "",
        )
        .replace(
            "table: { key: ops, acl: ops }",
            &format!("table: {{ key: ops, acl: ops{table} }}"),
        )
}

/// As long as a card, so that the columns are of the same size.
fn iban(n: i64) -> String {
    format!("DE00-9999-{n:04}")
}

async fn bank_file(bench: &Bench, salt: i64) -> Bytes {
    let text = |n: i64| {
        let (card, iban) = (card(n + salt), iban(n + salt));
        format!(r#"{{"id":{n},"card":"{card}","iban":"{iban}"}}"#)
    };
    let options = WriteOptions {
        compression: Compression::None,
        row_group_rows: 100,
        ..WriteOptions::default()
    };
    bench.written(BANK, (0..200).map(text), options).await
}

/// The bytes of each column of each row group, and where its data pages begin.
async fn chunks(bench: &Bench, file: &Bytes) -> Vec<Vec<(std::ops::Range<usize>, usize)>> {
    let who = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
    let asking = Asking {
        who: &who,
        purpose: None,
        now: NOW,
    };
    let table = bench.reader().open(Arc::new(file.clone()), PATH, asking).await.unwrap();
    let groups = table.metadata.metadata().row_groups();
    let chunk = |column: &parquet::file::metadata::ColumnChunkMetaData| {
        let (start, length) = column.byte_range();
        let range = start as usize..(start + length) as usize;
        (range, column.data_page_offset() as usize)
    };
    groups
        .iter()
        .map(|group| group.columns().iter().map(chunk).collect())
        .collect()
}

const CARD: usize = 4;
const IBAN: usize = 5;

/// The file is refused as soon as `changed` columns are read, and reads as ever without them.
async fn is_refused(bench: &Bench, file: &Bytes, changed: &[&str], what: &str) {
    let ask = |columns: &[&str]| Query {
        columns: Some(columns.iter().map(|&name| name.to_owned()).collect()),
        ..Query::default()
    };
    for &column in changed {
        let error = bench.read(file, "analyst", &ask(&[column])).await.unwrap_err();
        assert!(matches!(error, TableError::Damaged), "{what}, {column}: {error}");
    }
    let error = bench.read(file, "analyst", &Query::default()).await.unwrap_err();
    assert!(matches!(error, TableError::Damaged), "{what}: {error}");
    let (rest, _) = bench.read(file, "analyst", &ask(&["id"])).await.unwrap();
    let ids = rest.column(0).as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(ids, (0..200).collect::<Vec<_>>(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_another_column_row_group_page_or_file_are_refused_and_the_rest_is_read() {
    for footer in ["", ", footer: signed-plaintext"] {
        let bench = Bench::new(&bank_policy(footer));
        let (file, other) = (bank_file(&bench, 0).await, bank_file(&bench, 500).await);
        let (of_file, of_other) = (chunks(&bench, &file).await, chunks(&bench, &other).await);
        let (card, iban) = (of_file[0][CARD].clone(), of_file[0][IBAN].clone());
        let swapped = |one: &std::ops::Range<usize>, two: &std::ops::Range<usize>| {
            assert_eq!(one.len(), two.len());
            let mut bytes = file.to_vec();
            bytes[one.clone()].copy_from_slice(&file[two.clone()]);
            bytes[two.clone()].copy_from_slice(&file[one.clone()]);
            Bytes::from(bytes)
        };
        let columns = swapped(&card.0, &iban.0);
        is_refused(&bench, &columns, &["card", "iban"], "another column's bytes").await;
        // Under the footer's readers' keys too: whose key it is does not matter.
        let groups = swapped(&card.0, &of_file[1][CARD].0);
        is_refused(&bench, &groups, &["card"], "another row group's bytes").await;
        let pages = swapped(&(card.1..card.0.end), &(iban.1..iban.0.end));
        is_refused(&bench, &pages, &["card", "iban"], "another column's page").await;

        let from = &of_other[0][CARD];
        for (whole, taken) in [
            (card.0.clone(), from.0.clone()),
            (card.1..card.0.end, from.1..from.0.end),
        ] {
            assert_eq!(whole.len(), taken.len());
            let mut bytes = file.to_vec();
            bytes[whole].copy_from_slice(&other[taken]);
            is_refused(&bench, &bytes.into(), &["card"], "another file's").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_in_another_dataset_or_folder_is_refused_also_with_claims_that_fit_there() {
    for footer in ["", ", footer: signed-plaintext"] {
        let bench = Bench::new(&bank_policy(footer));
        let other = signed(
            &bank_policy(footer).replace("dataset: payments", "dataset: invoices"),
            &bench.owner,
        );
        let both: Arc<dyn PolicySource> = Arc::new(FixedPolicies::new(vec![bench.policy.clone(), Arc::clone(&other)]));
        let reader = bench.reader_by(both);
        let file = bank_file(&bench, 0).await;
        let (folder, dataset) = (
            "/data/payments/topic=orders/date=2026-01-02/a.parquet",
            "/data/invoices/topic=orders/date=2026-01-01/a.parquet",
        );
        let ask = async |file: &Bytes, path: &str| {
            read(&reader, file, path, "analyst", &Query::default())
                .await
                .unwrap_err()
        };
        for path in [folder, dataset] {
            let error = ask(&file, path).await;
            assert!(matches!(error, TableError::Moved { .. }), "{error}");
        }
        // Whoever moves it can write into its claims, which everybody reads. They are not what it was written under.
        let there = with_claims(&file, |claims| {
            "topic=orders/date=2026-01-02".clone_into(&mut claims.partition);
        })
        .await;
        let error = ask(&there, folder).await;
        assert!(matches!(error, TableError::Damaged), "{error}");
        let there = with_claims(&file, |claims| "invoices".clone_into(&mut claims.dataset)).await;
        let error = ask(&there, dataset).await;
        assert!(matches!(error, TableError::OtherPolicy { .. }), "{error}");
        let there = with_claims(&file, |claims| {
            "invoices".clone_into(&mut claims.dataset);
            claims.policy = other.jws().map(str::to_owned);
        })
        .await;
        let error = ask(&there, dataset).await;
        assert!(matches!(error, TableError::Footer(_)), "{error}");
        let renamed = with_claims(&file, |claims| claims.file = FileId::random().unwrap().to_string()).await;
        let error = ask(&renamed, PATH).await;
        assert!(matches!(error, TableError::Damaged), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_policy_in_the_file_is_refused_whosever_and_whichever_it_is() {
    for footer in ["", ", footer: signed-plaintext"] {
        let yaml = bank_policy(footer);
        let bench = Bench::new(&yaml);
        let file = bank_file(&bench, 0).await;
        let genuine = bench.policy.jws().unwrap();
        let stranger = OwnerKey::generate().unwrap();
        let older = yaml.replace("version: 2", "version: 1");
        let newer = yaml.replace("version: 2", "version: 3").replace(
            "    allow: [\"arn:aws:iam::111122223333:role/analyst\"]\n",
            "    allow: [\"arn:aws:iam::111122223333:role/*\"]\n",
        );
        assert_ne!(newer, yaml.replace("version: 2", "version: 3"));
        let policies = [
            ("another owner's", sign(yaml.as_bytes(), &stranger).unwrap(), false),
            ("an older one", sign(older.as_bytes(), &bench.owner).unwrap(), true),
            ("a newer one", sign(newer.as_bytes(), &bench.owner).unwrap(), true),
        ];
        for (what, jws, is_owners) in policies {
            let error = {
                let file = with_claims(&file, |claims| claims.policy = Some(jws.clone())).await;
                bench.read(&file, "support", &Query::default()).await.unwrap_err()
            };
            let is_expected = match is_owners {
                true => matches!(error, TableError::Damaged),
                false => matches!(error, TableError::EmbeddedPolicy(_)),
            };
            assert!(is_expected, "{what}: {error}");
            if footer.is_empty() {
                continue;
            }
            // In the metadata alone, and in both places.
            let file = with_text(&file, genuine, &jws);
            let error = bench.read(&file, "support", &Query::default()).await.unwrap_err();
            assert!(matches!(error, TableError::Damaged), "{what}: {error}");
            let file = with_claims(&file, |claims| claims.policy = Some(jws.clone())).await;
            let error = bench.read(&file, "support", &Query::default()).await.unwrap_err();
            assert_eq!(matches!(error, TableError::Damaged), is_owners, "{what}: {error}");
        }
        // And none at all.
        let none = with_claims(&file, |claims| claims.policy = None).await;
        let error = bench.read(&none, "analyst", &Query::default()).await.unwrap_err();
        assert!(matches!(error, TableError::Foreign), "{error}");
        let unsigned = with_claims(&file, |claims| {
            claims.policy = None;
            claims.unsigned_policy = Some("e30=".to_owned());
        })
        .await;
        let error = bench.read(&unsigned, "analyst", &Query::default()).await.unwrap_err();
        assert!(matches!(error, TableError::Unsigned), "{error}");
    }
}
