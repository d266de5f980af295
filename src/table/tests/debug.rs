//! `{:?}` of what holds keys or values shows neither.

use std::fmt::Debug;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::surgery::{Kek, footer_material};
use super::*;
use crate::policy::FOOTER_LABEL;
use crate::table::footer::column_material;

/// The text of `{:?}` of whatever has one, and nothing of what has none: so that one that is given a derived one later is
/// looked at here as well.
macro_rules! shown {
    ($value:expr) => {
        (&&Shown(&$value)).text()
    };
}

struct Shown<'a, T: ?Sized>(&'a T);

trait WithDebug {
    fn text(&self) -> String;
}

impl<T: Debug + ?Sized> WithDebug for &Shown<'_, T> {
    fn text(&self) -> String {
        format!("{:?} {:#?}", self.0, self.0)
    }
}

trait WithoutDebug {
    fn text(&self) -> String;
}

impl<T: ?Sized> WithoutDebug for Shown<'_, T> {
    fn text(&self) -> String {
        String::new()
    }
}

/// How bytes are spelled by those who mean no harm.
fn spellings(secret: &[u8]) -> Vec<String> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let decimal = |between: &str| {
        let numbers: Vec<String> = secret.iter().map(u8::to_string).collect();
        numbers.join(between)
    };
    let escaped = secret.escape_ascii().to_string();
    vec![
        hex.to_uppercase(),
        hex,
        STANDARD.encode(secret).trim_end_matches('=').to_owned(),
        URL_SAFE_NO_PAD.encode(secret),
        decimal(", "),
        decimal(",\n"),
        decimal(","),
        escaped,
        String::from_utf8_lossy(secret).into_owned(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_debug_of_a_table_shows_a_key_or_a_value() {
    let bench = Bench::new(POLICY);
    let layout = layout(&bench.policy);
    let file = bench.file().await;
    let who = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
    let asking = Asking {
        who: &who,
        purpose: None,
        now: NOW,
    };
    let reader = bench.reader();
    let table = reader.open(Arc::new(file.clone()), PATH, asking).await.unwrap();

    // The keys: of the footer, of each leaf, and those that wrap them.
    let footer = footer_material(&file).await;
    let kek = Kek::of(&bench, &footer).await;
    let mut secrets = vec![
        kek.secret().expose().to_vec(),
        kek.unwrap(FOOTER_LABEL, &footer).expose().to_vec(),
    ];
    for (n, leaf) in table.leaves().iter().enumerate() {
        let (material, _) = column_material(table.metadata.metadata(), n).unwrap().unwrap();
        let kek = Kek::of(&bench, &material).await;
        secrets.push(kek.secret().expose().to_vec());
        let label = leaf.label.as_deref().unwrap_or(FOOTER_LABEL);
        secrets.push(kek.unwrap(label, &material).expose().to_vec());
    }
    assert!(secrets.iter().all(|secret| secret.len() == 32));
    // The values.
    secrets.extend((0..200).flat_map(|n| [email(n), card(n)]).map(String::into_bytes));

    let query = Query {
        filter: Filter::parse("card != '4111-0000-0003' and email != 'person-4@example.com'").unwrap(),
        ..Query::default()
    };
    let mut rows = table.rows(&query, asking, "a.parquet").unwrap();
    assert_eq!(rows.next().await.unwrap().unwrap().num_rows(), 98);

    let id = FileId::random().unwrap();
    let writer = TableWriter::begin(
        &bench.policy,
        &layout,
        (PLACE, id),
        &bench.keys,
        WriteOptions::default(),
        Vec::new(),
    );
    let mut writer = writer.await.unwrap();
    writer.write(&bench.rows(&layout).await.0).unwrap();
    let mut encoder = RowEncoder::new(Arc::clone(&layout), Format::Json);
    let record = |text: &str| Record {
        position: Position {
            topic: Arc::from("orders"),
            partition: 3,
            offset: 1,
        },
        timestamp: Timestamp::None,
        key: None,
        value: Some(text.to_owned().into()),
        headers: Headers::new(),
    };
    // Refused, as its address is not sealed, and as another has no place; and taken, with a card in a column.
    let rejection = encoder.append(&record(&record_text(7))).unwrap_err();
    let taken = record(r#"{"card":"4111-0000-0007","other":"4111-0000-0008"}"#);
    let no_extra = encoder.append(&taken).unwrap_err();
    encoder.append(&record(r#"{"card":"4111-0000-0007"}"#)).unwrap();
    let before = shown!(encoder);
    let unfinished = encoder.finish().unwrap();
    let label = FileLabel::read(&file).await.unwrap();
    let refused = table.rows(
        &Query {
            filter: Filter::parse("id = '4111-0000-0009'").unwrap(),
            ..Query::default()
        },
        asking,
        "a.parquet",
    );
    let texts = [
        ("RowEncoder", before),
        ("Rows", shown!(unfinished)),
        ("RowRejection", shown!((rejection, no_extra))),
        ("TableLayout", shown!(*layout)),
        ("Leaf", shown!(layout.leaves())),
        ("TableKeys", shown!(bench.keys)),
        ("TableWriter", shown!(writer)),
        ("TableReader", shown!(reader)),
        (
            "EmbeddedPolicies",
            shown!(EmbeddedPolicies::OwnedBy(trusted(vec![bench.owner.thumbprint()]))),
        ),
        ("OpenTable", shown!(table)),
        ("OpenLeaf", shown!(table.leaves())),
        ("Query and Filter", shown!(query)),
        ("RowStream", shown!(rows)),
        ("decisions", shown!(rows.take_decisions())),
        ("FileLabel and Claims", shown!(label)),
        ("Asking", shown!(asking)),
        ("TableError", shown!(refused.err())),
        ("Origin", shown!(table.origin())),
        ("OwnerKey", shown!(bench.owner)),
    ];
    let shown: Vec<&str> = texts
        .iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, _)| *name)
        .collect();
    assert!(
        shown.contains(&"OpenTable") && shown.contains(&"RowStream") && shown.contains(&"TableKeys"),
        "{shown:?}"
    );
    for secret in &secrets {
        for spelling in spellings(secret) {
            for (name, text) in &texts {
                assert!(!text.contains(&spelling), "{name} shows {spelling}: {text}");
            }
        }
    }
    // The search finds what is there.
    let seen = shown!(vec![secrets[1].clone()]);
    assert!(spellings(&secrets[1]).iter().any(|spelling| seen.contains(spelling)));
}
