//! Files by somebody who has the footer's key, as every reader of a table does: what they gain by it, and what they can make.

use arrow::datatypes::{DataType, Field, Schema};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::surgery::{Footer, Kek, footer_material, put, put_first};
use super::*;
use crate::policy::FOOTER_LABEL;
use crate::policy::signed::sign;
use crate::table::footer::column_material;
use crate::table::keys::{FileKeys, ModuleKey};
use crate::table::material::Material;

/// Which key a forger puts behind a leaf.
type Choice<'a> = &'a dyn Fn(&Leaf, &Kek) -> Option<ModuleKey>;

/// A file of that layout and rows, all of it made with the key-encryption key of the footer.
async fn forged(
    bench: &Bench,
    policy: &VerifiedPolicy,
    layout: &TableLayout,
    rows: &RecordBatch,
    of: Choice<'_>,
) -> Bytes {
    let genuine = bench.file().await;
    let kek = Kek::of(bench, &footer_material(&genuine).await).await;
    let id = FileId::random().unwrap();
    let mut claims = Claims::new("payments", PLACE, id);
    claims.policy = policy.jws().map(str::to_owned);
    let leaves = layout.leaves().iter();
    let keys = FileKeys {
        footer: kek.forge(FOOTER_LABEL, Some(&claims)),
        columns: leaves
            .filter_map(|leaf| Some((leaf.path.clone(), of(leaf, &kek)?)))
            .collect(),
    };
    let options = WriteOptions::default();
    let writer = TableWriter::with_keys(policy, layout, (&claims, id), keys, options, Vec::new()).unwrap();
    finished(writer, rows, &[])
}

fn under_footer(_: &Leaf, kek: &Kek) -> Option<ModuleKey> {
    Some(kek.forge(FOOTER_LABEL, None))
}

fn state<'a>(table: &'a OpenTable, column: &str) -> &'a LeafState {
    let mut leaves = table.leaves().iter();
    &leaves
        .find(|leaf| leaf.leaf.column.to_string() == column)
        .unwrap()
        .state
}

async fn open(bench: &Bench, file: &Bytes, who: &Identity) -> Result<OpenTable, TableError> {
    let asking = Asking {
        who,
        purpose: None,
        now: NOW,
    };
    bench.reader().open(Arc::new(file.clone()), PATH, asking).await
}

fn analyst() -> Identity {
    Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap()
}

/// Why a column is not shown.
fn because(state: &LeafState) -> &str {
    match state {
        LeafState::Failed { because, .. } => because,
        other => panic!("it is {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_the_policy_is_not_shown_unless_it_is_under_its_own_key() {
    let bench = Bench::new(POLICY);
    let layout = layout(&bench.policy);
    let (rows, _) = bench.rows(&layout).await;
    let is_card = |leaf: &Leaf| leaf.path == "card";

    // Under the footer's key, and said so.
    let file = forged(&bench, &bench.policy, &layout, &rows, &under_footer).await;
    let table = open(&bench, &file, &analyst()).await.unwrap();
    assert_eq!(because(state(&table, "card")), "the column is not under its own key");

    // The id of a key-encryption key can be made for any label by whoever has that key: here by a reader of the footer.
    let as_card = |leaf: &Leaf, kek: &Kek| Some(kek.forge(if is_card(leaf) { "card" } else { FOOTER_LABEL }, None));
    let file = forged(&bench, &bench.policy, &layout, &rows, &as_card).await;
    let table = open(&bench, &file, &analyst()).await.unwrap();
    assert_eq!(because(state(&table, "card")), "the column's key does not open here");
    let (shown, _) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
    assert_eq!(texts(&shown, "card"), vec![None; 200]);
    assert_eq!(texts(&shown, "email").len(), 200);

    // With the label of one column in the place of another, of no column, and of what a column is called nowhere.
    for (label, reason) in [
        ("items[*].serial", "the column was written for another place"),
        ("email", "the column was written for another place"),
    ] {
        let other = |leaf: &Leaf, kek: &Kek| Some(kek.forge(if is_card(leaf) { label } else { FOOTER_LABEL }, None));
        let file = forged(&bench, &bench.policy, &layout, &rows, &other).await;
        let table = open(&bench, &file, &analyst()).await.unwrap();
        assert_eq!(because(state(&table, "card")), reason, "{label}");
    }
    let nowhere = |leaf: &Leaf, kek: &Kek| Some(kek.forge(if is_card(leaf) { "nowhere" } else { FOOTER_LABEL }, None));
    let file = forged(&bench, &bench.policy, &layout, &rows, &nowhere).await;
    let table = open(&bench, &file, &analyst()).await.unwrap();
    assert!(!table.leaves()[5].is_shown(), "{:?}", table.leaves()[5]);

    // Not encrypted at all.
    let open_column = |leaf: &Leaf, kek: &Kek| (!is_card(leaf)).then(|| kek.forge(FOOTER_LABEL, None));
    let file = forged(&bench, &bench.policy, &layout, &rows, &open_column).await;
    let error = open(&bench, &file, &analyst()).await.unwrap_err();
    assert!(matches!(error, TableError::Damaged), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_material_of_a_genuine_column_opens_no_pages_of_a_forger() {
    let bench = Bench::new(POLICY);
    let layout = layout(&bench.policy);
    let (rows, _) = bench.rows(&layout).await;
    let genuine = bench.file().await;
    let taken = material_of(&bench, &genuine, "card").await;
    let borrowed = |leaf: &Leaf, kek: &Kek| {
        let mut module = kek.forge(FOOTER_LABEL, None);
        if leaf.path == "card" {
            module.material = taken.clone();
        }
        Some(module)
    };
    let file = forged(&bench, &bench.policy, &layout, &rows, &borrowed).await;
    let error = bench.read(&file, "analyst", &Query::default()).await.unwrap_err();
    assert!(matches!(error, TableError::Damaged), "{error}");
}

/// The key material of a column.
async fn material_of(bench: &Bench, file: &Bytes, column: &str) -> Vec<u8> {
    let table = open(bench, file, &analyst()).await.unwrap();
    let of = |leaf: &OpenLeaf| leaf.leaf.column.to_string() == column;
    let n = table.leaves().iter().position(of).unwrap();
    column_material(table.metadata.metadata(), n).unwrap().unwrap().0
}

/// What values sealed one by one have in their place is not taken for them.
#[tokio::test(flavor = "multi_thread")]
async fn values_in_the_open_are_not_shown_as_sealed_ones() {
    let bench = Bench::new(POLICY);
    // A table in which the column is in the open, and the policy in the file that says it is not.
    let bare = POLICY.replace("  - { path: email, key: pii, acl: pii }\n", "");
    let other = signed(&bare, &bench.owner);
    let open_layout = layout(&other);
    let forger = Bench {
        policy: other,
        kms: bench.kms.clone(),
        catalogue: bench.catalogue.clone(),
        clock: bench.clock.clone(),
        owner: OwnerKey::generate().unwrap(),
        keys: bench.keys.clone(),
        sealer: bench.sealer.clone(),
    };
    let (rows, _) = forger.rows(&open_layout).await;
    let file = forged(&bench, &bench.policy, &open_layout, &rows, &under_footer).await;
    let table = open(&bench, &file, &analyst()).await.unwrap();
    assert_eq!(
        because(state(&table, "email")),
        "the values of the column are not sealed"
    );
    let (shown, _) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
    assert_eq!(texts(&shown, "email"), vec![None; 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_in_the_open_are_not_shown_as_sealed_ones_of_one_key_for_everything() {
    let yaml = POLICY.replace(
        "table: { key: ops, acl: ops }",
        "table: { key: pii, acl: pii, profile: duckdb }",
    );
    let bench = Bench::new(&yaml);
    let layout = layout(&signed(
        &yaml.replace("  - { path: email, key: pii, acl: pii }\n", ""),
        &bench.owner,
    ));
    // Nothing is sealed by value in these records, so that any policy makes rows of them.
    let email = arrow::array::StringArray::from_iter_values((0..200).map(email));
    let (rows, _) = bench
        .rows_of(
            &self::layout(&bench.policy),
            (0..200).map(|n| format!(r#"{{"id":{n}}}"#)),
        )
        .await;
    let schema = layout.arrow_schema();
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        "email" => Arc::new(email.clone()) as arrow::array::ArrayRef,
        name => Arc::clone(rows.column_by_name(name).unwrap()),
    });
    let rows = RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap();
    let file = forged(&bench, &bench.policy, &layout, &rows, &|_, _| None).await;
    let table = open(&bench, &file, &analyst()).await.unwrap();
    assert_eq!(
        because(state(&table, "email")),
        "the values of the column are not sealed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_without_keys_of_their_own_are_refused_where_the_policy_wants_them() {
    let bench = Bench::new(POLICY);
    let layout = layout(&bench.policy);
    let (rows, _) = bench.rows(&layout).await;
    let file = forged(&bench, &bench.policy, &layout, &rows, &|_, _| None).await;
    let error = open(&bench, &file, &analyst()).await.unwrap_err();
    assert!(matches!(error, TableError::Damaged), "{error}");
}

/// Whoever may read the table of another dataset, whose policy has names of the same spelling, makes no file of this one.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_another_dataset_make_no_file_of_this_one() {
    let bench = Bench::new(POLICY);
    let other = Bench {
        policy: signed(&POLICY.replace("dataset: payments", "dataset: invoices"), &bench.owner),
        kms: bench.kms.clone(),
        catalogue: bench.catalogue.clone(),
        clock: bench.clock.clone(),
        owner: OwnerKey::generate().unwrap(),
        keys: bench.keys.clone(),
        sealer: bench.sealer.clone(),
    };
    let invoices = SCHEMA.replace("dataset: payments", "dataset: invoices");
    let theirs = other
        .written(&invoices, (0..3).map(record_text), WriteOptions::default())
        .await;
    let kek = Kek::of(&other, &footer_material(&theirs).await).await;
    let layout = layout(&bench.policy);
    let (rows, _) = bench.rows(&layout).await;
    let id = FileId::random().unwrap();
    let mut claims = Claims::new("payments", PLACE, id);
    claims.policy = bench.policy.jws().map(str::to_owned);
    let column = |leaf: &Leaf| (leaf.path.clone(), kek.forge_in("payments", FOOTER_LABEL, None));
    let keys = FileKeys {
        footer: kek.forge_in("payments", FOOTER_LABEL, Some(&claims)),
        columns: layout.leaves().iter().map(column).collect(),
    };
    let options = WriteOptions::default();
    let writer = TableWriter::with_keys(&bench.policy, &layout, (&claims, id), keys, options, Vec::new()).unwrap();
    let file = finished(writer, &rows, &[]);
    let both: Arc<dyn PolicySource> = Arc::new(FixedPolicies::new(vec![bench.policy.clone(), other.policy.clone()]));
    let error = read(&bench.reader_by(both), &file, PATH, "analyst", &Query::default())
        .await
        .unwrap_err();
    assert!(matches!(error, TableError::Footer(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_is_one_in_all_row_groups_and_leaves_are_counted_as_parquet_counts_them() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let card = material_of(&bench, &file, "card").await;
    let kek = Kek::of(&bench, &footer_material(&file).await).await;
    let mut footer = Footer::open(&bench, &file).await;
    put_first(&mut footer.thrift, &card, &kek.forge(FOOTER_LABEL, None).material);
    let error = open(&bench, &footer.close(), &analyst()).await.unwrap_err();
    assert!(matches!(error, TableError::Damaged), "{error}");

    // An Arrow schema that calls the list a list view, which is another type for the same columns.
    let table = open(&bench, &file, &analyst()).await.unwrap();
    let view = |field: &Arc<Field>| match field.data_type() {
        DataType::List(item) => Arc::new(field.as_ref().clone().with_data_type(DataType::ListView(item.clone()))),
        _ => Arc::clone(field),
    };
    let fields: Vec<_> = table.schema().fields().iter().map(view).collect();
    let texts = table.metadata.metadata().file_metadata().key_value_metadata().unwrap();
    let stored = texts.iter().find(|text| text.key == "ARROW:schema").unwrap();
    let other = parquet::arrow::encode_arrow_schema(&Schema::new(fields));
    let mut footer = Footer::open(&bench, &file).await;
    let stored = stored.value.as_ref().unwrap();
    assert_eq!(put(&mut footer.thrift, stored.as_bytes(), other.as_bytes()), 1);
    let error = open(&bench, &footer.close(), &analyst()).await.unwrap_err();
    assert!(matches!(error, TableError::Damaged), "{error}");
}

/// Some of what can be written there makes the library that reads it panic.
#[tokio::test(flavor = "multi_thread")]
async fn no_arrow_schema_ends_more_than_the_reading_of_its_file() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let table = open(&bench, &file, &analyst()).await.unwrap();
    let texts = table.metadata.metadata().file_metadata().key_value_metadata().unwrap();
    let stored = texts.iter().find(|text| text.key == "ARROW:schema").unwrap();
    let stored = stored.value.as_ref().unwrap();
    let schema = STANDARD.decode(stored).unwrap();
    let mut refused = 0;
    for n in (0..schema.len()).filter(|n| schema[*n] != 0) {
        let mut other = schema.clone();
        other[n] = 0;
        let mut footer = Footer::open(&bench, &file).await;
        assert_eq!(
            put(&mut footer.thrift, stored.as_bytes(), STANDARD.encode(other).as_bytes()),
            1
        );
        match open(&bench, &footer.close(), &analyst()).await {
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, TableError::Damaged), "byte {n}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

/// The footer of a genuine file, opened, changed and closed again over the genuine pages.
#[tokio::test(flavor = "multi_thread")]
async fn a_footer_rewritten_over_genuine_pages_opens_no_column_and_changes_no_acl() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let (whole, _) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
    let footer = async || Footer::open(&bench, &file).await;
    // The knife itself cuts nothing.
    let same = footer().await.close();
    let (again, _) = bench.read(&same, "analyst", &Query::default()).await.unwrap();
    assert_eq!(again, whole);
    assert_ne!(same, file);

    let (card, id) = (
        material_of(&bench, &file, "card").await,
        material_of(&bench, &file, "id").await,
    );
    let kek = Kek::of(&bench, &id).await;

    // A key of the forger's in the place of the column's: support, who has none, still sees nothing.
    let mut forged = footer().await;
    assert_eq!(
        put(&mut forged.thrift, &card, &kek.forge(FOOTER_LABEL, None).material),
        2
    );
    let forged = forged.close();
    for role in ["support", "analyst"] {
        let (shown, decisions) = bench.read(&forged, role, &Query::default()).await.unwrap();
        assert_eq!(texts(&shown, "card"), vec![None; 200]);
        assert_eq!(shown.column_by_name("id"), whole.column_by_name("id"));
        assert_eq!(
            count(&decisions, FOOTER_LABEL, ColumnOutcome::Failed("cannot-open")),
            200,
            "{decisions:?}"
        );
    }

    // The label alone: the id of the key-encryption key is that of the genuine one.
    for label in [FOOTER_LABEL, "items[*].serial", "email"] {
        let mut material = Material::from_bytes(&card).unwrap();
        material.label = Some(label.to_owned());
        let mut forged = footer().await;
        assert_eq!(put(&mut forged.thrift, &card, &material.to_bytes()), 2);
        let forged = forged.close();
        for role in ["support", "analyst"] {
            let (shown, _) = bench.read(&forged, role, &Query::default()).await.unwrap();
            let cards = texts(&shown, "card");
            assert!(
                cards
                    .iter()
                    .all(|card| card.as_deref().is_none_or(|card| card == "[redacted]")),
                "{label}"
            );
        }
    }

    // The genuine material of a protected column behind a clear one, and the other way: keys of one open no pages of the other.
    let mut forged = footer().await;
    put(&mut forged.thrift, &card, b"card's");
    put(&mut forged.thrift, &id, &card);
    put(&mut forged.thrift, b"card's", &id);
    let forged = forged.close();
    for role in ["support", "analyst"] {
        match bench.read(&forged, role, &Query::default()).await {
            Err(error) => assert!(matches!(error, TableError::Damaged), "{role}: {error}"),
            Ok((shown, _)) => assert_eq!(texts(&shown, "card"), vec![None; 200], "{role}"),
        }
    }

    // The policy: its owner's signature, and the additional data of every column, say no.
    let genuine = bench.policy.jws().unwrap();
    let generous = POLICY.replace(
        "    allow: [\"arn:aws:iam::111122223333:role/analyst\"]\n",
        "    allow: [\"arn:aws:iam::111122223333:role/*\"]\n",
    );
    assert_ne!(generous, POLICY);
    let stranger = OwnerKey::generate().unwrap();
    for (owner, is_owners) in [(&stranger, false), (&bench.owner, true)] {
        let jws = sign(generous.as_bytes(), owner).unwrap();
        let mut forged = footer().await;
        assert_eq!(put(&mut forged.thrift, genuine.as_bytes(), jws.as_bytes()), 1);
        let error = bench
            .read(&forged.close(), "support", &Query::default())
            .await
            .unwrap_err();
        assert!(matches!(error, TableError::Damaged), "in the metadata alone: {error}");

        let bytes = footer_material(&file).await;
        let mut material = Material::from_bytes(&bytes).unwrap();
        let claims = material.claims.as_mut().unwrap();
        claims.policy = Some(jws);
        if is_owners {
            let sha256 = signed(&generous, &bench.owner).policy().sha256;
            forged.set_prefix(claims.aad_prefix(claims.check().unwrap(), &sha256));
        }
        assert_eq!(put(&mut forged.crypto, &bytes, &material.to_bytes()), 1);
        let error = bench
            .read(&forged.close(), "support", &Query::default())
            .await
            .unwrap_err();
        // Also one that its owner did sign: the columns were written under another.
        let is_expected = match is_owners {
            true => matches!(error, TableError::Damaged),
            false => matches!(error, TableError::EmbeddedPolicy(_)),
        };
        assert!(is_expected, "{error}");
    }
}

/// What `docs/threat-model.md` says can be made by whoever reads the footer. If one of these is refused some day, say so there.
#[tokio::test(flavor = "multi_thread")]
async fn the_footers_key_is_enough_to_write_what_is_under_it() {
    let bench = Bench::new(POLICY);
    let layout = layout(&bench.policy);

    // A whole file: clear columns, places of records, where it says that it comes from. Protected columns are empty.
    let texts_of = (0..200).map(|n| format!(r#"{{"id":{}}}"#, n + 7_000));
    let (rows, _) = bench.rows_of(&layout, texts_of).await;
    let file = forged(&bench, &bench.policy, &layout, &rows, &under_footer).await;
    let (shown, _) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
    assert_eq!(
        shown.column_by_name("id").unwrap().as_primitive::<Int64Type>().value(0),
        7_000
    );
    assert_eq!(texts(&shown, "card"), vec![None; 200]);
    assert_eq!(
        open(&bench, &file, &analyst()).await.unwrap().origin().unwrap().topic,
        "orders"
    );

    // Sealed values of a genuine file in other rows, if they are bound to none.
    let (rows, _) = bench.rows(&layout).await;
    let index: arrow::array::UInt64Array = (0..200_u64).rev().collect();
    let columns: Vec<_> = rows
        .schema()
        .fields()
        .iter()
        .zip(rows.columns())
        .map(|(field, column)| match field.name().as_str() {
            "email" => arrow::compute::take(column, &index, None).unwrap(),
            _ => Arc::clone(column),
        })
        .collect();
    let rows = RecordBatch::try_new(rows.schema(), columns).unwrap();
    let file = forged(&bench, &bench.policy, &layout, &rows, &under_footer).await;
    let (shown, _) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
    assert_eq!(texts(&shown, "email")[0], Some(email(199)));

    // A column that an older policy of the owner's left in the clear, under that policy.
    let older = POLICY.replace("  - { path: card, key: pii, acl: pii, at: column }\n", "");
    assert_ne!(older, POLICY);
    let newer = Bench {
        policy: signed(&POLICY.replace("version: 1", "version: 2"), &bench.owner),
        ..bench
    };
    let older = signed(&older, &newer.owner);
    let older_layout = super::layout(&older);
    let forger = Bench {
        policy: older,
        kms: newer.kms.clone(),
        catalogue: newer.catalogue.clone(),
        clock: newer.clock.clone(),
        owner: OwnerKey::generate().unwrap(),
        keys: newer.keys.clone(),
        sealer: newer.sealer.clone(),
    };
    let (rows, _) = forger.rows(&older_layout).await;
    let file = forged(&newer, &forger.policy, &older_layout, &rows, &under_footer).await;
    let (shown, _) = newer.read(&file, "analyst", &Query::default()).await.unwrap();
    assert_eq!(texts(&shown, "card")[3], Some(card(3)));
}
