use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimeUnit};
use arrow_schema::extension::ExtensionType as _;
use base64::Engine as _;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::calendar;
use crate::columns::arrow::Sealed;
use crate::columns::{Found, Locator, MAX_DEPTH, json};
use crate::pipeline::{Headers, Position};
use crate::policy::Policy;
use crate::seal::plaintext;
use crate::table::{FieldType, SchemaField, TableSchema};

/// JSON with its members in order, numbers as they are spelled.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    fn parse(text: &str) -> Self {
        let (value, end) = Self::parse_at(text, grammar::space(text.as_bytes(), 0));
        assert_eq!(grammar::space(text.as_bytes(), end), text.len(), "{text}");
        value
    }

    fn parse_at(text: &str, at: usize) -> (Self, usize) {
        let bytes = text.as_bytes();
        let end = grammar::value(bytes, at, 0).unwrap();
        let value = match bytes[at] {
            b'n' => Self::Null,
            b't' | b'f' => Self::Bool(bytes[at] == b't'),
            b'"' => Self::Text(Self::text(&text[at..end])),
            b'[' => {
                let (mut list, mut at) = (Vec::new(), grammar::space(bytes, at + 1));
                while bytes[at] != b']' {
                    let (element, end) = Self::parse_at(text, at);
                    list.push(element);
                    at = Self::behind(bytes, end);
                }
                Self::List(list)
            }
            b'{' => {
                let (mut members, mut at) = (Vec::new(), grammar::space(bytes, at + 1));
                while bytes[at] != b'}' {
                    let name = at..grammar::string(bytes, at + 1).unwrap().end;
                    let (value, end) = Self::parse_at(text, grammar::colon(bytes, name.end).unwrap());
                    members.push((Self::text(&text[name]), value));
                    at = Self::behind(bytes, end);
                }
                Self::Object(members)
            }
            _ => Self::Number(text[at..end].to_owned()),
        };
        (value, end)
    }

    fn text(token: &str) -> String {
        json::string_value(token.as_bytes()).map_or_else(|| token.to_owned(), Cow::into_owned)
    }

    fn behind(bytes: &[u8], end: usize) -> usize {
        let at = grammar::space(bytes, end);
        if bytes[at] == b',' {
            grammar::space(bytes, at + 1)
        } else {
            at
        }
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(&value.to_string()),
            Self::Number(text) => out.push_str(text),
            Self::Text(text) => {
                let mut token = Vec::new();
                json::write_string(text, &mut token);
                out.push_str(std::str::from_utf8(&token).unwrap());
            }
            Self::List(list) => {
                out.push('[');
                for (n, element) in list.iter().enumerate() {
                    out.push_str(if n > 0 { ", " } else { "" });
                    element.write(out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (n, (name, value)) in members.iter().enumerate() {
                    out.push_str(if n > 0 { " ," } else { "" });
                    Self::Text(name.clone()).write(out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }

    /// What is the same value for everybody: of equal names the last counts, a null member is a missing one, numbers are
    /// float64s unless they are integers, instants are in UTC.
    fn canonical(self) -> Self {
        match self {
            Self::Object(members) => {
                let mut kept: Vec<(String, Self)> = Vec::new();
                for (name, value) in members {
                    kept.retain(|(other, _)| *other != name);
                    kept.push((name, value.canonical()));
                }
                kept.retain(|(_, value)| *value != Self::Null);
                kept.sort_by(|a, b| a.0.cmp(&b.0));
                Self::Object(kept)
            }
            Self::List(list) => Self::List(list.into_iter().map(Self::canonical).collect()),
            Self::Number(text) => {
                let is_integer = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') && text != "-0";
                let value: f64 = text.parse().unwrap();
                Self::Number(match value {
                    _ if is_integer => text,
                    whole if whole.fract() == 0.0 && whole.abs() < 1e38 => (whole as i128).to_string(),
                    value if value.is_finite() => format!("{value:?}"),
                    _ => text,
                })
            }
            Self::Text(text) => match calendar::parse_timestamp(&text, plaintext::TimeUnit::Nanosecond, true) {
                Some(nanos) => Self::Text(format!("{nanos} ns")),
                None => Self::Text(text),
            },
            other => other,
        }
    }

    /// A record again: what is in the columns, with what is in `_extra`.
    fn merge(self, extra: Self) -> Self {
        match (self, extra) {
            (Self::Null, extra) => extra,
            (column, Self::Null) => column,
            (Self::List(columns), Self::List(extra)) => {
                assert_eq!(columns.len(), extra.len());
                Self::List(
                    columns
                        .into_iter()
                        .zip(extra)
                        .map(|(column, extra)| column.merge(extra))
                        .collect(),
                )
            }
            (Self::Object(mut members), Self::Object(extra)) => {
                let mut again = Vec::new();
                for (name, value) in extra {
                    if name == DUPLICATES {
                        again = match value {
                            Self::List(again) => again,
                            other => panic!("{other:?}"),
                        };
                    } else if let Some((_, column)) = members.iter_mut().find(|(other, _)| *other == name) {
                        let merged = std::mem::replace(column, Self::Null).merge(value);
                        *column = merged;
                    } else {
                        members.push((name, value));
                    }
                }
                for object in again {
                    match object {
                        Self::Object(one) if one.len() == 1 => members.extend(one),
                        other => panic!("{other:?}"),
                    }
                }
                Self::Object(members)
            }
            (column, extra) => panic!("{column:?} and {extra:?}"),
        }
    }

    fn of_array(array: &ArrayRef, field: &Field, row: usize) -> Self {
        if array.is_null(row) {
            return Self::Null;
        }
        match field.data_type() {
            DataType::Boolean => Self::Bool(array.as_boolean().value(row)),
            DataType::Int64 => Self::Number(array.as_primitive::<Int64Type>().value(row).to_string()),
            DataType::Float64 => {
                Self::Number(format!("{:?}", array.as_primitive::<Float64Type>().value(row)).replace("inf", "bad"))
            }
            DataType::Decimal128(..) => Self::Number(array.as_primitive::<Decimal128Type>().value_as_string(row)),
            DataType::Utf8 if field.extension_type_name() == Some("arrow.json") => {
                Self::parse(array.as_string::<i32>().value(row))
            }
            DataType::Utf8 => Self::Text(array.as_string::<i32>().value(row).to_owned()),
            DataType::Binary if field.extension_type_name() == Some(Sealed::NAME) => {
                let mut text = Vec::new();
                value::write_text(array.as_binary::<i32>().value(row), &mut text);
                Self::Text(String::from_utf8(text).unwrap())
            }
            DataType::Binary => {
                let engine = base64::engine::general_purpose::STANDARD;
                Self::Text(engine.encode(array.as_binary::<i32>().value(row)))
            }
            DataType::Date32 => {
                let mut text = String::new();
                calendar::write_date(array.as_primitive::<Date32Type>().value(row).into(), &mut text);
                Self::Text(text)
            }
            DataType::Timestamp(unit, _) => {
                let unit = match unit {
                    TimeUnit::Millisecond => plaintext::TimeUnit::Millisecond,
                    TimeUnit::Microsecond => plaintext::TimeUnit::Microsecond,
                    _ => plaintext::TimeUnit::Nanosecond,
                };
                let counts = arrow::compute::cast(array, &DataType::Int64).unwrap();
                let mut text = String::new();
                calendar::write_timestamp(
                    unit,
                    counts.as_primitive::<Int64Type>().value(row),
                    Some("Z"),
                    &mut text,
                );
                Self::Text(text)
            }
            DataType::List(element) => {
                let elements = array.as_list::<i32>().value(row);
                Self::List(
                    (0..elements.len())
                        .map(|n| Self::of_array(&elements, element, n))
                        .collect(),
                )
            }
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns().iter().zip(fields);
                let member = |(column, field): (&ArrayRef, &Arc<Field>)| {
                    (field.name().clone(), Self::of_array(column, field, row))
                };
                Self::Object(columns.map(member).collect())
            }
            other => panic!("{other}"),
        }
    }
}

fn policy(columns: &str) -> Policy {
    let yaml = format!(
        "dataset: d\nversion: 1\nkeys: {{ k: {{ arn: \"arn:aws:kms:eu-central-1:111122223333:key/1\" }} }}\nacls: {{ a: {{}} }}\ncolumns: [ {columns} ]"
    );
    Policy::parse(yaml.as_bytes()).unwrap()
}

fn encoder(fields: &str, columns: &str) -> RowEncoder {
    let schema = TableSchema::parse(format!("dataset: d\nversion: 1\nfields: [ {fields} ]").as_bytes()).unwrap();
    encoder_of(&schema, columns)
}

fn encoder_of(schema: &TableSchema, columns: &str) -> RowEncoder {
    let layout = TableLayout::new(schema, &policy(columns)).unwrap();
    RowEncoder::new(Arc::new(layout), Format::Json)
}

fn record(value: Option<&[u8]>) -> Record {
    Record {
        position: Position {
            topic: "t".into(),
            partition: 3,
            offset: 40,
        },
        timestamp: Timestamp::Created(1_700_000_000_000),
        key: Some(Bytes::from_static(b"key")),
        value: value.map(Bytes::copy_from_slice),
        headers: Headers::new(),
    }
}

/// Bytes that pass for a sealed value, and their text as a JSON string.
fn sealed(fill: u8) -> (Vec<u8>, String) {
    let mut bytes = vec![fill; 60];
    bytes[0] = value::SUITE_GCM;
    let mut text = Vec::new();
    value::write_text(&bytes, &mut text);
    (bytes, format!("\"{}\"", String::from_utf8(text).unwrap()))
}

/// The texts of `_extra`.
fn extras(rows: &Rows) -> Vec<Option<String>> {
    let text = |encoding: Option<&[u8]>| match encoding.map(Plaintext::decode) {
        None => None,
        Some(Ok(Plaintext::Json(text))) => Some(text.to_owned()),
        Some(other) => panic!("{:?}", other.is_ok()),
    };
    rows.extra.view().iter().map(text).collect()
}

/// The rows as they are, with something in the place of `_extra`.
fn batch(rows: Rows) -> RecordBatch {
    let mut column = SealedColumn::with_capacity(0, 0);
    for plain in rows.extra.view().iter() {
        match plain {
            Some(_) => column.push(&sealed(1).0).unwrap(),
            None => column.push_null().unwrap(),
        }
    }
    rows.with_extra(Some(&column)).unwrap()
}

/// The `_extra` of a record.
fn extra_of(encoder: &mut RowEncoder, value: &str) -> Option<String> {
    encoder.append(&record(Some(value.as_bytes()))).unwrap();
    let rows = encoder.finish().unwrap();
    extras(&rows).remove(0)
}

fn code(encoder: &mut RowEncoder, value: &str) -> &'static str {
    let before = encoder.rows();
    let error = encoder.append(&record(Some(value.as_bytes()))).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hidden"), "{error}");
    assert_eq!(encoder.rows(), before);
    error.code()
}

/// The record of row `row` again.
fn rendered(batch: &RecordBatch, row: usize, extra: Option<&str>) -> Json {
    let own = ["_partition", "_offset", "_timestamp", "_key", "_extra"];
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    let members = columns
        .filter(|(field, _)| !own.contains(&field.name().as_str()))
        .map(|(field, column)| (field.name().clone(), Json::of_array(column, field, row)))
        .collect();
    Json::Object(members).merge(extra.map_or(Json::Null, Json::parse))
}

const NOBODY: &str = "{ path: zz, key: k, acl: a }";

#[test]
fn what_has_no_column_goes_to_extra_as_it_is_spelled_and_where_it_stood() {
    let fields = "{ name: n, type: int64 }, { name: user, type: struct, fields: [ { name: email, type: string } ] }, { name: l, type: list, items: { type: int64 } }, { name: c, type: list, items: { type: struct, fields: [ { name: x, type: bool } ] } }";
    let mut encoder = encoder(fields, NOBODY);
    for (value, extra) in [
        (
            r#"{"n":1,"user":{"email":"a"},"l":[1,null],"c":[{"x":true},null,{}]}"#,
            None,
        ),
        (
            r#"{"user":{"nick" : "x","email":"a"},"n": "not a number"}"#,
            Some(r#"{"user":{"nick":"x"},"n":"not a number"}"#),
        ),
        (
            r#"{"a\u0062": [1, 2] , "ab2":{"x" :1}}"#,
            Some(r#"{"a\u0062":[1, 2],"ab2":{"x" :1}}"#),
        ),
        (
            r#"{"user":"u","l":{"x":1},"c":7}"#,
            Some(r#"{"user":"u","l":{"x":1},"c":7}"#),
        ),
        (r#"{"l":[1,"x",2.5,3],"c":[]}"#, Some(r#"{"l":[null,"x",2.5,null]}"#)),
        (
            r#"{"c":[{"x":true},{"y":1},null,{"x":1,"z":null},{}]}"#,
            Some(r#"{"c":[null,{"y":1},null,{"x":1,"z":null},null]}"#),
        ),
        // Of equal names the first has the column.
        (
            r#"{"n":1,"n":2,"n":null}"#,
            Some(r#"{"$duplicates":[{"n":2},{"n":null}]}"#),
        ),
        (r#"{"n":"x","n":2}"#, Some(r#"{"n":"x","$duplicates":[{"n":2}]}"#)),
        (
            r#"{"user":{"email":"a","email":"b"},"user":{"nick":"x"},"q":1,"\u0071":2}"#,
            Some(
                r#"{"user":{"$duplicates":[{"email":"b"}]},"q":1,"$duplicates":[{"user":{"nick":"x"}},{"\u0071":2}]}"#,
            ),
        ),
        (r#"{"$duplicates":5}"#, Some(r#"{"$duplicates":[{"$duplicates":5}]}"#)),
        (
            r#"{"\ud800":1,"\ud800":2}"#,
            Some(r#"{"\ud800":1,"$duplicates":[{"\ud800":2}]}"#),
        ),
    ] {
        assert_eq!(extra_of(&mut encoder, value).as_deref(), extra, "{value}");
    }
}

#[test]
fn rows_have_their_position_and_names_are_compared_decoded() {
    let mut encoder = encoder(
        r#"{ name: kä, type: string }, { name: '\ud800', type: json }"#,
        "{ path: $key, key: k, acl: a, at: column }",
    );
    encoder
        .append(&record(Some(r#"{"\u006b\u00E4":"\u0061","\ud800":1}"#.as_bytes())))
        .unwrap();
    encoder.append(&record(None)).unwrap();
    let rows = encoder.finish().unwrap();
    assert_eq!(extras(&rows), [Some(r#"{"\ud800":1}"#.to_owned()), None]);
    let batch = batch(rows);
    let names: Vec<&str> = batch
        .schema_ref()
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    assert_eq!(
        names,
        ["_partition", "_offset", "_timestamp", "_key", "kä", "\\ud800", "_extra"]
    );
    for row in 0..2 {
        assert_eq!(
            batch.column(0).as_primitive::<arrow::datatypes::Int32Type>().value(row),
            3
        );
        assert_eq!(batch.column(1).as_primitive::<Int64Type>().value(row), 40);
        assert_eq!(batch.column(3).as_binary::<i32>().value(row), b"key");
    }
    assert_eq!(batch.column(4).as_string::<i32>().value(0), "a");
    assert!(batch.column(4).is_null(1) && batch.column(5).null_count() == 2);
    assert_eq!(encoder.rows(), 0);
    assert!(encoder.finish().unwrap().is_empty());
}

#[test]
fn records_that_are_not_one_object_are_refused_each_with_its_code() {
    let mut encoder = encoder("{ name: n, type: int64 }", NOBODY);
    for (value, expected) in [
        ("[1]", "not-an-object"),
        ("\"hidden\"", "not-an-object"),
        ("null", "not-an-object"),
        ("", "empty-record"),
        (" ", "empty-record"),
        ("{} {}", "trailing-bytes"),
        ("[1] x", "trailing-bytes"),
        ("{\"n\":1", "truncated-json"),
        ("{\"n\":1,}", "invalid-json"),
        ("{\"n\":hidden}", "invalid-json"),
        ("{,}", "invalid-json"),
        ("{\"n\":1 \"m\":2}", "invalid-json"),
        ("\u{feff}{}", "byte-order-mark"),
    ] {
        assert_eq!(code(&mut encoder, value), expected, "{value}");
    }
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    assert_eq!(code(&mut encoder, &deep), "too-deep");
    let error = encoder.append(&record(Some(b"{\"\xff\":1}"))).unwrap_err();
    assert_eq!(error.code(), "invalid-utf8");
    encoder.format = Format::Ndjson;
    assert_eq!(code(&mut encoder, "{}\n{}\n"), "several-documents");
    assert_eq!(code(&mut encoder, "\n\n"), "empty-record");
    encoder.append(&record(Some(b"\n{\"n\":1}\r\n"))).unwrap();
    encoder.format = Format::JsonSr;
    assert_eq!(code(&mut encoder, "{\"n\":1}"), "no-registry-prefix");
    encoder.append(&record(Some(b"\0\0\0\0\x07{\"n\":2}"))).unwrap();
    let batch = batch(encoder.finish().unwrap());
    assert_eq!(batch.column(3).as_primitive::<Int64Type>().values(), &[1, 2]);
}

const CARDS: &str = "{ name: card, type: struct, fields: [ { name: number, type: string }, { name: year, type: int64 } ] }, { name: l, type: list, items: { type: struct, fields: [ { name: pin, type: int64 } ] } }, { name: s, type: string }";
const CARD_COLUMNS: &str = "{ path: card.number, key: k, acl: a, at: column }, { path: 'l[*].pin', key: k, acl: a, at: column }, { path: s, key: k, acl: a }";

/// `_extra` has one ACL, wider than that of a column `at: column`.
#[test]
fn nothing_at_around_or_below_a_column_of_its_own_goes_to_extra() {
    let mut encoder = encoder(CARDS, CARD_COLUMNS);
    for value in [
        r#"{"card":{"number":4111}}"#,
        r#"{"card":{"number":{"hidden":1}}}"#,
        r#"{"card":{"number":"\ud800hidden"}}"#,
        r#"{"card":{"number":"hidden","number":"hidden"}}"#,
        r#"{"card":{"number":"hidden","\u006eumber":null}}"#,
        r#"{"card":"hidden"}"#,
        r#"{"card":["hidden"]}"#,
        r#"{"card":null,"card":{"number":"hidden"}}"#,
        r#"{"card":{},"card":{"year":1}}"#,
        r#"{"l":{"pin":1}}"#,
        r#"{"l":[{"pin":"hidden"}]}"#,
        r#"{"l":[{"pin":1},"hidden"]}"#,
        r#"{"l":[[{"pin":1}]]}"#,
        r#"{"l":[],"l":[{"pin":1}]}"#,
    ] {
        assert_eq!(code(&mut encoder, value), "schema-conflict", "{value}");
    }
    // What stands beside it may.
    let value = r#"{"card":{"number":"4","year":"hidden","x":1},"l":[{"pin":1,"x":2},{"pin":null}]}"#;
    let extra = r#"{"card":{"year":"hidden","x":1},"l":[{"x":2},null]}"#;
    assert_eq!(extra_of(&mut encoder, value).as_deref(), Some(extra));
}

#[test]
fn a_record_that_is_refused_leaves_nothing_behind() {
    let mut encoder = encoder(CARDS, CARD_COLUMNS);
    let (bytes, text) = sealed(7);
    let good =
        |n: usize| format!(r#"{{"x":{n},"l":[{{"pin":{n}}},{{"pin":1}}],"s":{text},"card":{{"number":"c{n}"}}}}"#);
    for n in 0..20 {
        encoder.append(&record(Some(good(n).as_bytes()))).unwrap();
        let bad = format!(
            r#"{{"s":{text},"gone":1,"l":[{{"pin":9}},{{}},{{"pin":9}}],"card":{{"number":"hidden","year":5,"number":1}}}}"#
        );
        assert_eq!(code(&mut encoder, &bad), "schema-conflict");
    }
    let rows = encoder.finish().unwrap();
    let extra = extras(&rows);
    let batch = batch(rows);
    assert_eq!(batch.num_rows(), 20);
    for (row, extra) in extra.iter().enumerate() {
        assert_eq!(extra.as_deref(), Some(format!(r#"{{"x":{row}}}"#).as_str()));
        let expected = Json::parse(&good(row)).canonical();
        assert_eq!(rendered(&batch, row, extra.as_deref()).canonical(), expected);
        assert_eq!(batch.column(5).as_binary::<i32>().value(row), bytes);
    }
}

#[test]
fn a_place_that_is_sealed_by_value_holds_a_sealed_value_or_null() {
    let columns = "{ path: s, key: k, acl: a }, { path: o, key: k, acl: a }, { path: any.x, key: k, acl: a }, { path: far.x, key: k, acl: a }, { path: away, key: k, acl: a, seal_nulls: true }, { path: 'm[*].x', key: k, acl: a }, { path: m.y, key: k, acl: a }, { path: $key, key: k, acl: a }";
    let fields = "{ name: s, type: int64 }, { name: o, type: struct, fields: [ { name: x, type: bool } ] }, { name: any, type: json }, { name: m, type: list, items: { type: struct, fields: [ { name: z, type: bool } ] } }";
    let mut encoder = encoder(fields, columns);
    let (key, (_, text)) = (sealed(3).1.replace('"', ""), sealed(9));
    let mut append = |value: &str, key: &str| {
        let mut record = record(Some(value.as_bytes()));
        record.key = Some(Bytes::copy_from_slice(key.as_bytes()));
        encoder.append(&record)
    };
    let not_sealed = |path: &str| {
        Err(RowRejection::NotSealed {
            column: path.to_owned(),
        })
    };
    for (value, path) in [
        (r#"{"s":1}"#, "s"),
        (r#"{"s":"hidden"}"#, "s"),
        (r#"{"s":"sf1.hidden"}"#, "s"),
        (r#"{"s":"sf1."}"#, "s"),
        (r#"{"s":null,"s":1}"#, "s"),
        (r#"{"o":{"x":true}}"#, "o"),
        (r#"{"any":{"x":1}}"#, "any.x"),
        (r#"{"any":1,"any":{"x":1}}"#, "any.x"),
        (r#"{"far":{"x":"hidden"}}"#, "far.x"),
        (r#"{"far":1,"far":{"x":"hidden"}}"#, "far.x"),
        (r#"{"away":1}"#, "away"),
        (r#"{"away":null}"#, "away"),
        (r#"{"m":[{"x":1}]}"#, "m[*].x"),
        (r#"{"m":{"y":1}}"#, "m.y"),
    ] {
        assert_eq!(append(value, &key), not_sealed(path), "{value}");
    }
    assert_eq!(append("{}", "key"), not_sealed("$key"));
    let good = format!(
        r#"{{"s":{text},"o":{text},"any":{{"x":{text}}},"far":{{"x":{text},"y":null}},"away":{text},"m":[{{"x":{text}}},{{"x":null}}],"s":{text}}}"#
    );
    append(&good, &key).unwrap();
    append(
        r#"{"s":null,"o":null,"any":{"x":null},"far":null,"m":{"y":null}}"#,
        &key,
    )
    .unwrap();
    let extra = format!(
        r#"{{"far":{{"x":{text},"y":null}},"away":{text},"m":[{{"x":{text}}},{{"x":null}}],"$duplicates":[{{"s":{text}}}]}}"#
    );
    let rows = encoder.finish().unwrap();
    assert_eq!(
        extras(&rows),
        [Some(extra), Some(r#"{"far":null,"m":{"y":null}}"#.to_owned())]
    );
    let batch = batch(rows);
    assert_eq!(batch.column(3).as_binary::<i32>().value(0), sealed(3).0);
    for column in [4, 5] {
        assert_eq!(batch.column(column).as_binary::<i32>().value(0), sealed(9).0);
        assert!(batch.column(column).is_null(1));
    }
}

/// Two bytes of a record could otherwise become an entry in thousands of columns.
#[test]
fn a_record_makes_so_many_entries_and_no_more() {
    let members: Vec<String> = (0..1024).map(|n| format!("{{ name: f{n}, type: bool }}")).collect();
    let fields = format!(
        "{{ name: l, type: list, items: {{ type: struct, fields: [ {} ] }} }}",
        members.join(", ")
    );
    let mut encoder = encoder(&fields, NOBODY);
    let of = |elements: usize| format!("{{\"l\":[{}]}}", vec!["{}"; elements].join(","));
    assert_eq!(code(&mut encoder, &of(MAX_CELLS / 1024 + 1)), "too-many-values");
    encoder.append(&record(Some(of(1_000).as_bytes()))).unwrap();
    let batch = batch(encoder.finish().unwrap());
    assert_eq!(batch.column(3).as_list::<i32>().values().len(), 1_000);
}

#[test]
fn rows_are_no_batch_before_every_extra_is_sealed() {
    let rows = |values: &[&str]| {
        let mut encoder = encoder("{ name: n, type: int64 }", NOBODY);
        for value in values {
            encoder.append(&record(Some(value.as_bytes()))).unwrap();
        }
        encoder.finish().unwrap()
    };
    let column = |values: &[Option<&[u8]>]| {
        let mut column = SealedColumn::with_capacity(0, 0);
        for value in values {
            match value {
                Some(value) => column.push(value).unwrap(),
                None => column.push_null().unwrap(),
            }
        }
        column
    };
    let good = sealed(1).0;
    let values = [r#"{"x":1}"#, "{}"];
    assert_eq!(rows(&values).extra().unwrap().len(), 2);
    assert!(rows(&["{}"]).extra().is_none());
    assert_eq!(rows(&["{}"]).with_extra(None).unwrap().num_rows(), 1);
    for wrong in [
        None,
        Some(column(&[Some(&good)])),
        Some(column(&[None, None])),
        Some(column(&[None, Some(&good)])),
        Some(column(&[Some(&good), Some(&good)])),
        Some(column(&[Some(b"\x09{\"x\":1}"), None])),
    ] {
        let refused = rows(&values).with_extra(wrong.as_ref());
        assert!(matches!(refused, Err(RowsError::ExtraNotSealed)));
    }
    let batch = rows(&values).with_extra(Some(&column(&[Some(&good), None]))).unwrap();
    assert_eq!(batch.column(4).as_binary::<i32>().value(0), good);
}

fn any_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "d", "$duplicates"]).prop_map(str::to_owned)
}

fn any_json() -> impl Strategy<Value = Json> {
    let texts = vec![
        "",
        "x",
        "aGk=",
        "2024-02-29",
        "2024-01-01T02:00:00.5+02:00",
        "2016-12-31T23:59:60Z",
        "é\"\\\u{1}",
    ];
    let numbers = vec![
        "0",
        "-0",
        "1",
        "-7",
        "1.5",
        "12.50",
        "1e2",
        "9007199254740993",
        "9223372036854775808",
        "1e400",
        "0.001",
    ];
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        prop::sample::select(texts).prop_map(|text| Json::Text(text.to_owned())),
        prop::sample::select(numbers).prop_map(|number| Json::Number(number.to_owned())),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec((any_name(), inner.clone()), 0..5).prop_map(Json::Object),
            prop::collection::vec(inner, 0..4).prop_map(Json::List),
        ]
    })
}

fn any_record() -> impl Strategy<Value = Json> {
    prop::collection::vec((any_name(), any_json()), 0..6).prop_map(Json::Object)
}

fn any_type() -> impl Strategy<Value = FieldType> {
    let units = [plaintext::TimeUnit::Millisecond, plaintext::TimeUnit::Nanosecond];
    let leaf = prop_oneof![
        Just(FieldType::Bool),
        Just(FieldType::Int64),
        Just(FieldType::Float64),
        Just(FieldType::String),
        Just(FieldType::Binary),
        Just(FieldType::Date),
        Just(FieldType::Json),
        Just(FieldType::Decimal { precision: 6, scale: 2 }),
        prop::sample::select(units.to_vec()).prop_map(FieldType::Timestamp),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        let fields = prop::collection::btree_map("[abc]", inner.clone(), 1..4);
        prop_oneof![
            inner.prop_map(|items| FieldType::List(Box::new(items))),
            fields.prop_map(|fields| {
                let field = |(name, field_type)| SchemaField { name, field_type };
                FieldType::Struct(fields.into_iter().map(field).collect())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn columns_and_extra_together_are_the_record(types in prop::collection::vec(any_type(), 1..4), records in prop::collection::vec(any_record(), 1..4)) {
        let names = ["a", "b", "c"].map(str::to_owned);
        let fields: Vec<SchemaField> = names.into_iter().zip(types).map(|(name, field_type)| SchemaField { name, field_type }).collect();
        let schema = TableSchema::new("d", 1, &fields).unwrap();
        let parsed = TableSchema::parse(schema.to_json().as_bytes());
        prop_assert_eq!(parsed.as_ref(), Ok(&schema));
        let mut encoder = encoder_of(&schema, NOBODY);
        for json in &records {
            let mut text = String::new();
            json.write(&mut text);
            prop_assert_eq!(encoder.append(&record(Some(text.as_bytes()))), Ok(()));
        }
        let rows = encoder.finish().unwrap();
        let extra = extras(&rows);
        let batch = batch(rows);
        for (row, (json, extra)) in records.into_iter().zip(&extra).enumerate() {
            prop_assert_eq!(rendered(&batch, row, extra.as_deref()).canonical(), json.canonical());
        }
    }

    /// Every value that the policy's path finds is in its column, or the record is refused: none is in `_extra`.
    #[test]
    fn values_of_a_column_of_its_own_are_all_in_it(records in prop::collection::vec(any_record(), 1..4)) {
        let fields = "{ name: a, type: struct, fields: [ { name: b, type: string } ] }, { name: c, type: list, items: { type: struct, fields: [ { name: b, type: json } ] } }";
        let paths = ["a.b", "c[*].b"];
        let columns = "{ path: a.b, key: k, acl: a, at: column }, { path: 'c[*].b', key: k, acl: a, at: column }";
        let locator = Locator::new(&paths.map(|path| path.parse().unwrap()), &[]).unwrap();
        let (mut encoder, mut found, mut expected) = (encoder(fields, columns), Found::default(), [0, 0]);
        for json in &records {
            let mut text = String::new();
            json.write(&mut text);
            let located = locator.locate(text.as_bytes(), &mut found).is_ok();
            let appended = encoder.append(&record(Some(text.as_bytes())));
            if let Err(error) = &appended {
                prop_assert_eq!(error.code(), "schema-conflict");
                continue;
            }
            prop_assert!(located, "{} has a row, and cannot be located", text);
            for hit in &found.hits {
                expected[usize::from(hit.column)] += usize::from(&text[hit.range()] != "null");
            }
        }
        let batch = batch(encoder.finish().unwrap());
        let a = batch.column(3).as_struct().column(0);
        let c = batch.column(4).as_list::<i32>().values().as_struct().column(0).clone();
        prop_assert_eq!([a.len() - a.null_count(), c.len() - c.null_count()], expected);
    }

    #[test]
    fn no_bytes_break_the_encoder(value: Vec<u8>, near in "[{}\\[\\]\",:abc$\\\\u0-9.e tn-]{0,60}") {
        let mut encoder = encoder(CARDS, CARD_COLUMNS);
        for value in [value.as_slice(), near.as_bytes()] {
            let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok();
            let appended = encoder.append(&record(Some(value)));
            prop_assert!(is_json || appended.is_err());
        }
        prop_assert!(encoder.finish().is_ok());
    }
}
