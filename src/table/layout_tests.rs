use arrow::array::RecordBatch;
use arrow_schema::extension::ExtensionType as _;
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::file::reader::{FileReader as _, SerializedFileReader};

use super::*;
use crate::columns::arrow::Sealed;

const SCHEMA: &str = r"
dataset: payments
version: 1
fields:
  - { name: id, type: string }
  - { name: amount, type: decimal, precision: 12, scale: 2 }
  - { name: at, type: timestamp }
  - { name: any, type: json }
  - name: card
    type: struct
    fields: [ { name: number, type: string }, { name: year, type: int64 } ]
  - { name: tags, type: list, items: { type: string } }
  - { name: grid, type: list, items: { type: list, items: { type: float64 } } }
  - name: cards
    type: list
    items:
      type: struct
      fields: [ { name: number, type: string }, { name: holder, type: struct, fields: [ { name: name, type: string } ] } ]
  - { name: address, type: struct, fields: [ { name: street, type: string } ] }
";

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1";

fn policy(columns: &str) -> Policy {
    let yaml = format!(
        "dataset: payments\nversion: 1\nkeys: {{ k: {{ arn: \"{ARN}\" }}, \"t-{{tenant}}\": {{ arn: \"{ARN}\" }} }}\nacls: {{ a: {{}} }}\ncolumns:\n{columns}"
    );
    Policy::parse(yaml.as_bytes()).unwrap()
}

fn layout_of(schema: &str, columns: &str) -> Result<TableLayout, LayoutError> {
    TableLayout::new(&TableSchema::parse(schema.as_bytes()).unwrap(), &policy(columns))
}

fn refused(columns: &str) -> LayoutError {
    let error = layout_of(SCHEMA, columns).err().unwrap();
    assert!(!error.help().is_empty());
    error
}

fn places(layout: &TableLayout) -> Vec<(&str, LeafPlace)> {
    layout
        .leaves()
        .iter()
        .map(|leaf| (leaf.path.as_str(), leaf.place))
        .collect()
}

const COLUMNS: &str = "
  - { path: card.number, key: k, acl: a, hints: [ { derive: last4, acl: a } ] }
  - { path: 'cards[*].number', key: k, acl: a, at: column }
  - { path: address, key: k, acl: a }
  - { path: 'tags[*]', key: k, acl: a, at: column }
  - { path: amount, key: k, acl: a }
  - { path: not.listed, key: k, acl: a }
  - { path: $key, key: k, acl: a }
  - { path: $header.trace, key: k, acl: a }
";

#[test]
fn every_leaf_has_its_path_and_its_place() {
    let layout = layout_of(SCHEMA, COLUMNS).unwrap();
    use LeafPlace::{Clear, Column, Extra, Record, Value};
    assert_eq!(
        places(&layout),
        [
            ("_partition", Record),
            ("_offset", Record),
            ("_timestamp", Record),
            ("_key", Value { rule: 6 }),
            ("id", Clear),
            ("amount", Value { rule: 4 }),
            ("at", Clear),
            ("any", Clear),
            ("card.number", Value { rule: 0 }),
            ("card.number#last4", Value { rule: 8 }),
            ("card.year", Clear),
            ("tags.list.element", Column { rule: 3 }),
            ("grid.list.element.list.element", Clear),
            ("cards.list.element.number", Column { rule: 1 }),
            ("cards.list.element.holder.name", Clear),
            ("address", Value { rule: 2 }),
            ("_extra", Extra),
        ]
    );
}

/// Keys of Parquet's encryption are given to these very paths: one that it spells otherwise would be left in clear.
#[test]
fn leaves_are_named_and_ordered_as_parquet_names_and_orders_them() {
    let layout = layout_of(SCHEMA, COLUMNS).unwrap();
    let expected: Vec<&str> = layout.leaves().iter().map(|leaf| leaf.path.as_str()).collect();
    let converted = ArrowSchemaConverter::new().convert(&layout.arrow_schema()).unwrap();
    let found: Vec<String> = converted
        .columns()
        .iter()
        .map(|column| column.path().string())
        .collect();
    assert_eq!(found, expected);
    let mut file = Vec::new();
    let batch = RecordBatch::new_empty(layout.arrow_schema());
    let mut writer = ArrowWriter::try_new(&mut file, layout.arrow_schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let reader = SerializedFileReader::new(bytes::Bytes::from(file)).unwrap();
    let written = reader.metadata().file_metadata().schema_descr().columns().to_vec();
    let written: Vec<String> = written.iter().map(|column| column.path().string()).collect();
    assert_eq!(written, expected);
}

#[test]
fn sealed_leaves_say_their_label_and_what_they_were() {
    let layout = layout_of(SCHEMA, COLUMNS).unwrap();
    let schema = layout.arrow_schema();
    let metadata = |field: &Field| {
        let metadata = field.extension_type_metadata();
        let metadata = Sealed::deserialize_metadata(metadata).unwrap();
        assert_eq!(
            (field.extension_type_name(), field.data_type()),
            (Some(Sealed::NAME), &DataType::Binary)
        );
        (metadata.label, metadata.sealed_type)
    };
    let of = |name: &str| metadata(schema.field_with_name(name).unwrap());
    let arrow = SealedType::Arrow;
    assert_eq!(of("_key"), ("$key".to_owned(), arrow(DataType::Binary)));
    assert_eq!(of("amount"), ("amount".to_owned(), arrow(DataType::Decimal128(12, 2))));
    assert_eq!(of("address"), ("address".to_owned(), SealedType::Json));
    assert_eq!(of("_extra"), ("$extra".to_owned(), SealedType::Json));
    let DataType::Struct(card) = schema.field_with_name("card").unwrap().data_type() else {
        panic!("no struct")
    };
    assert_eq!(metadata(&card[0]), ("card.number".to_owned(), arrow(DataType::Utf8)));
    assert_eq!(
        metadata(&card[1]),
        ("card.number#last4".to_owned(), arrow(DataType::Utf8))
    );
    let any = schema.field_with_name("any").unwrap();
    assert_eq!(
        (any.extension_type_name(), any.data_type()),
        (Some("arrow.json"), &DataType::Utf8)
    );
}

#[test]
fn a_hint_that_the_schema_lists_stands_where_it_lists_it() {
    let schema =
        "dataset: payments\nversion: 1\nfields: [ { name: 'n#last4', type: json }, { name: n, type: string } ]";
    let columns = "  - { path: n, key: k, acl: a, hints: [ { derive: last4, acl: a } ] }";
    let layout = layout_of(schema, columns).unwrap();
    let paths: Vec<&str> = layout.leaves()[3..].iter().map(|leaf| leaf.path.as_str()).collect();
    assert_eq!(paths, ["n#last4", "n", "_extra"]);
    assert_eq!(layout.leaves()[3].place, LeafPlace::Value { rule: 1 });
}

#[test]
fn a_column_of_its_own_is_a_declared_scalar_under_a_plain_key() {
    let column = |path: &str| format!("  - {{ path: {path}, key: k, acl: a, at: column }}");
    for path in [
        "missing",
        "card.missing",
        "id.x",
        "any.x",
        "'card[*]'",
        "tags.x",
        "'tags[*].x'",
        "'grid[*][*][*]'",
    ] {
        assert!(
            matches!(refused(&column(path)), LayoutError::NotDeclared { .. }),
            "{path}"
        );
    }
    for path in ["card", "tags", "cards", "'cards[*]'", "'grid[*]'", "address"] {
        assert!(
            matches!(refused(&column(path)), LayoutError::NotScalar { .. }),
            "{path}"
        );
    }
    for path in ["any", "id", "amount", "'grid[*][*]'", "'cards[*].holder.name'", "$key"] {
        let layout = layout_of(SCHEMA, &column(path)).unwrap();
        let column = LeafPlace::Column { rule: 0 };
        assert_eq!(
            layout.leaves().iter().filter(|leaf| leaf.place == column).count(),
            1,
            "{path}"
        );
    }
    let domain = refused("  - { path: id, domain: d, at: column }");
    assert!(matches!(domain, LayoutError::InDomain { .. }));
    let template = refused("  - { path: any, key: 't-{tenant}', acl: a, at: column }");
    assert!(matches!(template, LayoutError::UnderTemplate { .. }));
    assert!(matches!(refused(&column("$header.x")), LayoutError::Header { .. }));
}

#[test]
fn two_leaves_of_one_path_and_another_datasets_schema_are_refused() {
    let schema = "dataset: payments\nversion: 1\nfields: [ { name: a, type: struct, fields: [ { name: b, type: string } ] }, { name: 'a.b#last4', type: string } ]";
    let columns = "  - { path: a.b, key: k, acl: a, hints: [ { derive: last4, acl: a } ] }";
    let error = layout_of(schema, columns).err().unwrap();
    assert!(matches!(error, LayoutError::SamePath { path } if path == "a.b#last4"));
    let other = SCHEMA.replace("payments", "refunds");
    let error = layout_of(&other, COLUMNS).err().unwrap();
    assert!(matches!(error, LayoutError::OtherDataset { .. }));
}
