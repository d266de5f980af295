use super::*;

const FULL: &str = r"
dataset: payments
version: 3
fields:
  - { name: id, type: string }
  - { name: ok, type: bool }
  - { name: n, type: int64 }
  - { name: ratio, type: float64 }
  - { name: blob, type: binary }
  - { name: at, type: timestamp }
  - { name: at_ns, type: timestamp, unit: nanosecond }
  - { name: day, type: date }
  - { name: amount, type: decimal, precision: 18, scale: 2 }
  - { name: any, type: json }
  - { name: tags, type: list, items: { type: string } }
  - name: user
    type: struct
    fields:
      - { name: email, type: string }
      - name: cards
        type: list
        items: { type: struct, fields: [ { name: number, type: string } ] }
";

/// Frozen: the catalogue keeps these bytes.
const FULL_JSON: &str = concat!(
    r#"{"dataset":"payments","version":3,"fields":[{"name":"id","type":"string"},{"name":"ok","type":"bool"},"#,
    r#"{"name":"n","type":"int64"},{"name":"ratio","type":"float64"},{"name":"blob","type":"binary"},"#,
    r#"{"name":"at","type":"timestamp","unit":"microsecond"},{"name":"at_ns","type":"timestamp","unit":"nanosecond"},"#,
    r#"{"name":"day","type":"date"},{"name":"amount","type":"decimal","precision":18,"scale":2},"#,
    r#"{"name":"any","type":"json"},{"name":"tags","type":"list","items":{"type":"string"}},"#,
    r#"{"name":"user","type":"struct","fields":[{"name":"email","type":"string"},{"name":"cards","type":"list","#,
    r#""items":{"type":"struct","fields":[{"name":"number","type":"string"}]}}]}]}"#,
);

fn of_fields(fields: &str) -> Result<TableSchema, YamlError> {
    TableSchema::parse(format!("dataset: d\nversion: 1\nfields: [ {fields} ]\n").as_bytes())
}

#[test]
fn a_schema_is_read_from_yaml_and_json_and_written_in_one_way() {
    let schema = TableSchema::parse(FULL.as_bytes()).unwrap();
    assert_eq!(schema.to_json(), FULL_JSON);
    assert_eq!(TableSchema::parse(FULL_JSON.as_bytes()).as_ref(), Ok(&schema));
    let indented = FULL_JSON.replace(',', " ,\n\t");
    assert_eq!(TableSchema::parse(indented.as_bytes()), Ok(schema));
}

#[test]
fn names_with_any_escape_of_json_come_back() {
    let json = r#"{"dataset":"d","version":1,"fields":[{"name":"\ud83d\ude00\/ \"é","type":"json"}]}"#;
    let schema = TableSchema::parse(json.as_bytes()).unwrap();
    assert_eq!(schema.fields()[0].name, "😀/ \"é");
    assert_eq!(TableSchema::parse(schema.to_json().as_bytes()), Ok(schema));
}

#[test]
fn problems_have_a_place_a_line_and_help() {
    for (fields, path, message) in [
        (
            "{ name: a, type: strng }",
            "fields[0].type",
            "unknown word `strng`; did you mean `string`?",
        ),
        ("{ name: a, type: bool, nul: 1 }", "fields[0].nul", "unknown key `nul`"),
        ("{ name: a }", "fields[0]", "missing key `type`"),
        ("{ type: bool }", "fields[0]", "missing key `name`"),
        ("", "fields", "at least one field"),
        (
            "{ name: a, type: bool }, { name: a, type: json }",
            "fields[1].name",
            "an earlier field",
        ),
        (
            "{ name: '', type: bool }",
            "fields[0].name",
            "field names are 1 to 128 bytes",
        ),
        ("{ name: _offset, type: bool }", "fields[0].name", "_offset is reserved"),
        ("{ name: _Extra, type: bool }", "fields[0].name", "_Extra is reserved"),
        ("{ name: _sealflow_x, type: bool }", "fields[0].name", "is reserved"),
        ("{ name: a, type: bool, unit: second }", "fields[0].unit", "no `unit`"),
        (
            "{ name: a, type: timestamp, unit: second }",
            "fields[0].unit",
            "no timestamps in seconds",
        ),
        (
            "{ name: a, type: decimal, precision: 5 }",
            "fields[0]",
            "a decimal needs",
        ),
        (
            "{ name: a, type: decimal, precision: 39, scale: 0 }",
            "fields[0]",
            "precision is 1 to 38",
        ),
        (
            "{ name: a, type: decimal, precision: 2, scale: 3 }",
            "fields[0]",
            "precision is 1 to 38",
        ),
        ("{ name: a, type: list }", "fields[0]", "a list needs `items`"),
        (
            "{ name: a, type: list, items: { name: b, type: bool } }",
            "fields[0].items.name",
            "elements have no name",
        ),
        ("{ name: a, type: struct }", "fields[0]", "a struct needs `fields`"),
        (
            "{ name: a, type: struct, fields: [] }",
            "fields[0].fields",
            "at least one field",
        ),
        (
            "{ name: a, type: struct, fields: [ { name: b, type: bool } ] }, { name: a.b, type: bool }",
            "fields[1]",
            "another field has the same dotted path",
        ),
        (
            "{ name: a, type: list, items: { type: bool } }, { name: a.list.element, type: bool }",
            "fields[1]",
            "another field has the same dotted path",
        ),
    ] {
        let error = of_fields(fields).unwrap_err();
        assert!(
            error.path == path && error.message.contains(message),
            "{fields}: {} {}",
            error.path,
            error.message
        );
        assert!(error.line.is_some() && !error.help.is_empty(), "{fields}");
    }
    let version = TableSchema::parse(b"dataset: d\nversion: 0\nfields: [ { name: a, type: bool } ]").unwrap_err();
    assert_eq!((version.path.as_str(), version.line), ("version", Some(2)));
    let dataset = TableSchema::parse(b"dataset: d d\nversion: 1\nfields: [ { name: a, type: bool } ]").unwrap_err();
    assert_eq!(dataset.path, "dataset");
    let twice =
        TableSchema::parse(br#"{"dataset":"d","dataset":"e","version":1,"fields":[{"name":"a","type":"bool"}]}"#);
    assert_eq!(twice.unwrap_err().message, "the key `dataset` is there twice");
}

#[test]
fn a_schema_has_bounds() {
    let leaves = |count: usize| {
        let fields: Vec<String> = (0..count).map(|n| format!("{{ name: f{n}, type: bool }}")).collect();
        of_fields(&fields.join(", "))
    };
    assert!(leaves(MAX_LEAVES).is_ok());
    assert!(leaves(MAX_LEAVES + 1).unwrap_err().message.contains("more than 4096"));
    let nested = |depth: usize| {
        let (open, close) = ("{ type: list, items: ".repeat(depth - 1), "}".repeat(depth - 1));
        of_fields(&format!(
            "{{ name: a, type: list, items: {open} {{ type: bool }} {close} }}"
        ))
    };
    assert!(nested(MAX_NESTING).is_ok());
    assert!(nested(MAX_NESTING + 1).unwrap_err().message.contains("nest at most 12"));
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    assert!(of_fields(&format!("{{ name: {long}, type: bool }}")).is_err());
}

#[test]
fn a_newer_schema_only_adds() {
    let schema = |version: u64, fields: &str| {
        TableSchema::parse(format!("dataset: d\nversion: {version}\nfields: [ {fields} ]").as_bytes()).unwrap()
    };
    let first = schema(
        2,
        "{ name: a, type: int64 }, { name: l, type: list, items: { type: struct, fields: [ { name: x, type: bool } ] } }",
    );
    let more = schema(
        4,
        "{ name: l, type: list, items: { type: struct, fields: [ { name: y, type: json }, { name: x, type: bool } ] } }, { name: a, type: int64 }, { name: b, type: date }",
    );
    assert_eq!(first.evolve(&more), Ok(()));
    let refused = |version: u64, fields: &str| {
        let error = first.evolve(&schema(version, fields)).unwrap_err();
        assert!(!error.help().is_empty());
        error.to_string()
    };
    let list = "{ name: l, type: list, items: { type: struct, fields: [ { name: x, type: bool } ] } }";
    assert!(refused(2, &format!("{{ name: a, type: int64 }}, {list}")).contains("does not follow version 2"));
    assert_eq!(
        refused(3, &format!("{{ name: a, type: float64 }}, {list}")),
        "a is a int64 in version 2 of the schema and a float64 in the newer one"
    );
    assert!(refused(3, list).starts_with("a is in version 2"));
    let inner = "{ name: a, type: int64 }, { name: l, type: list, items: { type: struct, fields: [ { name: y, type: bool } ] } }";
    assert!(refused(3, inner).starts_with("l[*].x is in version 2"));
    let unit = |unit: &str| format!("{{ name: t, type: timestamp, unit: {unit} }}");
    let older = schema(1, &unit("millisecond"));
    assert!(matches!(
        older.evolve(&schema(2, &unit("nanosecond"))),
        Err(SchemaError::Changed { .. })
    ));
    let other = TableSchema::parse(b"dataset: e\nversion: 9\nfields: [ { name: a, type: bool } ]").unwrap();
    assert!(matches!(first.evolve(&other), Err(SchemaError::OtherDataset { .. })));
}
