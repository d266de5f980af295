//! A schema from samples of the records: what a table's columns may be, for somebody to look at and correct.
//!
//! Nothing is guessed: a string stays a string, whatever it looks like, and fields of several types are `json`.

use super::schema::{FieldType, MAX_LEAVES, MAX_NESTING, SchemaError, SchemaField, TableSchema};
use super::schema::{is_dataset_name, is_field_name, is_reserved};
use crate::columns::grammar::{self, Fault};
use crate::columns::{check_encoding, json};
use crate::policy::yaml::MAX_YAML_BYTES;

/// An object with more members than this is a map, whose names are data: it becomes `json`.
pub const MAX_INFERRED_MEMBERS: usize = 256;
/// Integers beyond this are not all float64s.
const EXACT_INTEGER: u64 = 1 << 53;
/// What a field takes in the document beside its name, at most.
const FIELD_BYTES: usize = 64;

impl TableSchema {
    /// Version 1 of a schema for records like `samples`, one JSON object each; others are passed over.
    ///
    /// | seen | type |
    /// |---|---|
    /// | booleans, strings | `bool`, `string` |
    /// | numbers | `int64`, or `float64` if one is not spelled as an integer and all integers are exact in it |
    /// | objects, arrays | `struct`, `list`; beyond 12 levels, and objects with more than 256 members: `json` |
    /// | several of these, integers beyond 64 bits, nothing but null or empty | `json` |
    ///
    /// Fields stand in the order in which they were first seen. Names that cannot be fields, and what is beyond the
    /// size of a schema, are left out: such members go to `_extra`. The same samples always give the same schema.
    ///
    /// # Errors
    /// [`SchemaError::BadDataset`], [`SchemaError::NothingToInfer`].
    pub fn infer<'a>(dataset: &str, samples: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, SchemaError> {
        if !is_dataset_name(dataset) {
            return Err(SchemaError::BadDataset);
        }
        let mut root = Object::default();
        let mut room = Room {
            fields: MAX_LEAVES / 2,
            bytes: MAX_YAML_BYTES - MAX_YAML_BYTES / 8,
        };
        for sample in samples {
            // A sample that turns out to be broken must leave nothing behind.
            if is_object(sample) {
                let at = grammar::space(sample, 0);
                // The grammar has been checked, so this does not fail.
                let _ = root.see(sample, at, 0, &mut room);
            }
        }
        let fields = root.fields();
        // Whatever Sealflow's own rules refuse beyond this, such as two dotted paths that are the same, is left out too.
        let fields = without_collisions(fields);
        if fields.is_empty() {
            return Err(SchemaError::NothingToInfer);
        }
        Self::new(dataset, 1, &fields).map_err(|_| SchemaError::NothingToInfer)
    }
}

fn is_object(sample: &[u8]) -> bool {
    let start = grammar::space(sample, 0);
    check_encoding(sample).is_ok()
        && sample.get(start) == Some(&b'{')
        && grammar::value(sample, start, 0).is_ok_and(|end| grammar::space(sample, end) == sample.len())
}

/// What may still be added.
struct Room {
    fields: usize,
    bytes: usize,
}

impl Room {
    fn take(&mut self, name: &str) -> bool {
        let bytes = name.len() * 2 + FIELD_BYTES;
        if self.fields == 0 || self.bytes < bytes {
            return false;
        }
        self.fields -= 1;
        self.bytes -= bytes;
        true
    }
}

/// What was seen at one place.
enum Seen {
    Nothing,
    Bool,
    Integer { is_exact: bool },
    Float,
    Text,
    List(Box<Seen>),
    Object(Object),
    Mixed,
}

#[derive(Default)]
struct Object {
    members: Vec<(String, Seen)>,
    positions: std::collections::HashMap<String, usize>,
}

impl Object {
    /// Looks at the object whose brace is at `at`; returns its end.
    fn see(&mut self, text: &[u8], at: usize, depth: usize, room: &mut Room) -> Result<usize, Fault> {
        let mut at = grammar::space(text, at + 1);
        while text.get(at) == Some(&b'"') {
            let token = grammar::string(text, at + 1)?;
            let name = json::string_value(&text[at..token.end]);
            let value = grammar::colon(text, token.end)?;
            let position = name.and_then(|name| self.position(&name, depth == 0, room));
            at = match position {
                Some(position) => self.members[position].1.see(text, value, depth + 1, room)?,
                None => grammar::value(text, value, 0)?,
            };
            at = grammar::space(text, at);
            if text.get(at) == Some(&b',') {
                at = grammar::space(text, at + 1);
            }
        }
        Ok(at + 1)
    }

    /// Where the member of that name is kept; `None` if it cannot be a field.
    fn position(&mut self, name: &str, is_top: bool, room: &mut Room) -> Option<usize> {
        if let Some(position) = self.positions.get(name) {
            return Some(*position);
        }
        let is_map = !is_top && self.members.len() > MAX_INFERRED_MEMBERS;
        if is_map || !is_field_name(name) || (is_top && is_reserved(name)) || !room.take(name) {
            return None;
        }
        self.members.push((name.to_owned(), Seen::Nothing));
        self.positions.insert(name.to_owned(), self.members.len() - 1);
        Some(self.members.len() - 1)
    }

    fn fields(self) -> Vec<SchemaField> {
        let field = |(name, seen): (String, Seen)| SchemaField {
            name,
            field_type: seen.field_type(),
        };
        self.members.into_iter().map(field).collect()
    }
}

impl Seen {
    /// Looks at the value at `at`, inside `depth` containers; returns its end.
    fn see(&mut self, text: &[u8], at: usize, depth: usize, room: &mut Room) -> Result<usize, Fault> {
        let is_container = matches!(text.get(at), Some(b'{' | b'['));
        if is_container && depth > MAX_NESTING {
            *self = Self::Mixed;
        }
        match text.get(at) {
            Some(b'{') => {
                if matches!(self, Self::Nothing) {
                    *self = Self::Object(Object::default());
                }
                if let Self::Object(object) = self {
                    return object.see(text, at, depth, room);
                }
                *self = Self::Mixed;
            }
            Some(b'[') => {
                if matches!(self, Self::Nothing) {
                    *self = Self::List(Box::new(Self::Nothing));
                }
                if let Self::List(items) = self {
                    return items.see_all(text, at, depth, room);
                }
                *self = Self::Mixed;
            }
            Some(b'"') => self.also(Self::Text),
            Some(b't' | b'f') => self.also(Self::Bool),
            Some(b'n') => {}
            _ => {
                let end = grammar::scalar(text, at)?;
                self.also(number(&text[at..end]));
                return Ok(end);
            }
        }
        grammar::value(text, at, 0)
    }

    /// Looks at the elements of the array whose bracket is at `at`; returns its end.
    fn see_all(&mut self, text: &[u8], at: usize, depth: usize, room: &mut Room) -> Result<usize, Fault> {
        let mut at = grammar::space(text, at + 1);
        while text.get(at).is_some_and(|byte| *byte != b']') {
            at = grammar::space(text, self.see(text, at, depth + 1, room)?);
            if text.get(at) == Some(&b',') {
                at = grammar::space(text, at + 1);
            }
        }
        Ok(at + 1)
    }

    fn also(&mut self, other: Self) {
        let both = std::mem::replace(self, Self::Mixed);
        *self = match (both, other) {
            (Self::Nothing, other) => other,
            (Self::Bool, Self::Bool) => Self::Bool,
            (Self::Text, Self::Text) => Self::Text,
            (Self::Integer { is_exact: a }, Self::Integer { is_exact: b }) => Self::Integer { is_exact: a && b },
            (Self::Float, Self::Float | Self::Integer { is_exact: true })
            | (Self::Integer { is_exact: true }, Self::Float) => Self::Float,
            _ => Self::Mixed,
        };
    }

    fn field_type(self) -> FieldType {
        match self {
            Self::Nothing | Self::Mixed => FieldType::Json,
            Self::Bool => FieldType::Bool,
            Self::Integer { .. } => FieldType::Int64,
            Self::Float => FieldType::Float64,
            Self::Text => FieldType::String,
            Self::List(items) => FieldType::List(Box::new(items.field_type())),
            Self::Object(object) if object.members.is_empty() => FieldType::Json,
            Self::Object(object) if object.members.len() > MAX_INFERRED_MEMBERS => FieldType::Json,
            Self::Object(object) => FieldType::Struct(object.fields()),
        }
    }
}

fn number(text: &[u8]) -> Seen {
    let text = std::str::from_utf8(text).unwrap_or_default();
    if text.contains(['.', 'e', 'E']) || text == "-0" {
        return match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Seen::Float,
            _ => Seen::Mixed,
        };
    }
    match text.parse::<i64>() {
        Ok(value) => Seen::Integer {
            is_exact: value.unsigned_abs() <= EXACT_INTEGER,
        },
        Err(_) => Seen::Mixed,
    }
}

/// The fields without those whose dotted path another one has: `"a.b"` beside `a` with a member `b`.
fn without_collisions(fields: Vec<SchemaField>) -> Vec<SchemaField> {
    let dotted: Vec<String> = fields.iter().map(|field| format!("{}.", field.name)).collect();
    let mut kept = Vec::with_capacity(fields.len());
    for (n, field) in fields.into_iter().enumerate() {
        // Only a name with a dot can be a path through another.
        let is_path = field.name.contains('.')
            && dotted
                .iter()
                .enumerate()
                .any(|(other, path)| other != n && dotted[n].starts_with(path.as_str()));
        if !is_path {
            let field_type = match field.field_type {
                FieldType::Struct(inner) => FieldType::Struct(without_collisions(inner)),
                FieldType::List(items) => FieldType::List(Box::new(in_list(*items))),
                other => other,
            };
            kept.push(SchemaField { field_type, ..field });
        }
    }
    kept
}

fn in_list(items: FieldType) -> FieldType {
    match items {
        FieldType::Struct(inner) => FieldType::Struct(without_collisions(inner)),
        FieldType::List(items) => FieldType::List(Box::new(in_list(*items))),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inferred(samples: &[&str]) -> String {
        let schema = TableSchema::infer("d", samples.iter().map(|sample| sample.as_bytes())).unwrap();
        let json = schema.to_json();
        json[r#"{"dataset":"d","version":1,"fields":"#.len()..json.len() - 1].to_owned()
    }

    #[test]
    fn types_are_those_that_hold_every_sample_exactly() {
        for (samples, expected) in [
            (&[r#"{"a":1}"#, r#"{"a":-9223372036854775808}"#][..], "int64"),
            (&[r#"{"a":1}"#, r#"{"a":1.5}"#], "float64"),
            (&[r#"{"a":1.5}"#, r#"{"a":9007199254740992}"#], "float64"),
            (&[r#"{"a":1.5}"#, r#"{"a":9007199254740993}"#], "json"),
            (&[r#"{"a":9223372036854775808}"#], "json"),
            (&[r#"{"a":1e400}"#], "json"),
            (&[r#"{"a":"2024-01-01T00:00:00Z"}"#], "string"),
            (&[r#"{"a":true}"#, r#"{"a":null}"#, "{}"], "bool"),
            (&[r#"{"a":true}"#, r#"{"a":1}"#], "json"),
            (&[r#"{"a":"x"}"#, r#"{"a":{"b":1}}"#], "json"),
            (&[r#"{"a":null}"#], "json"),
            (&[r#"{"a":{}}"#], "json"),
        ] {
            assert_eq!(
                inferred(samples),
                format!(r#"[{{"name":"a","type":"{expected}"}}]"#),
                "{samples:?}"
            );
        }
    }

    #[test]
    fn objects_and_arrays_are_looked_into_in_the_order_first_seen() {
        let samples = [
            r#"{"b":{"y":1},"a":[{"n":"x"},{"m":[]}]}"#,
            r#"{"a":[{"n":null,"m":[1]}],"b":{"x":true},"c":[[1.5]]}"#,
        ];
        assert_eq!(
            inferred(&samples),
            concat!(
                r#"[{"name":"b","type":"struct","fields":[{"name":"y","type":"int64"},{"name":"x","type":"bool"}]},"#,
                r#"{"name":"a","type":"list","items":{"type":"struct","fields":[{"name":"n","type":"string"},"#,
                r#"{"name":"m","type":"list","items":{"type":"int64"}}]}},"#,
                r#"{"name":"c","type":"list","items":{"type":"list","items":{"type":"float64"}}}]"#,
            )
        );
    }

    #[test]
    fn what_cannot_be_a_column_is_left_out() {
        let samples = [
            r#"{"_extra":1,"_Offset":1,"":1,"a\nb":1,"\ud800":1,"ok":1,"a":{"b":1},"a.b":1}"#,
            "[1]",
            "nonsense",
            r#"{"ok":1} {}"#,
        ];
        assert_eq!(
            inferred(&samples),
            r#"[{"name":"ok","type":"int64"},{"name":"a","type":"struct","fields":[{"name":"b","type":"int64"}]}]"#
        );
        let nothing = TableSchema::infer("d", [&b"{}"[..], b"1", b"{\"a\":1"]);
        assert_eq!(nothing, Err(SchemaError::NothingToInfer));
        assert_eq!(TableSchema::infer("d d", []), Err(SchemaError::BadDataset));
    }

    #[test]
    fn maps_deep_values_and_endless_names_stay_within_a_schema() {
        let members = |count: usize| {
            let members: Vec<String> = (0..count).map(|n| format!(r#""m{n}":{n}"#)).collect();
            format!("{{{}}}", members.join(","))
        };
        let map = format!(r#"{{"m":{}}}"#, members(MAX_INFERRED_MEMBERS + 1));
        assert_eq!(inferred(&[&map]), r#"[{"name":"m","type":"json"}]"#);
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(60), "]".repeat(60));
        let schema = TableSchema::infer("d", [deep.as_bytes()]).unwrap();
        assert_eq!(TableSchema::parse(schema.to_json().as_bytes()), Ok(schema));
        let wide = members(20_000);
        let schema = TableSchema::infer("d", [wide.as_bytes()]).unwrap();
        assert_eq!(schema.fields().len(), MAX_LEAVES / 2);
        assert_eq!(TableSchema::parse(schema.to_json().as_bytes()), Ok(schema));
    }

    proptest! {
        #[test]
        fn any_samples_give_nothing_or_a_schema_that_parses(samples in prop::collection::vec("[{}\\[\\]\",:a.0-9tn ]{0,40}", 0..4)) {
            let bytes: Vec<&[u8]> = samples.iter().map(String::as_bytes).collect();
            if let Ok(schema) = TableSchema::infer("d", bytes.iter().copied()) {
                let parsed = TableSchema::parse(schema.to_json().as_bytes());
                prop_assert_eq!(parsed.as_ref(), Ok(&schema));
                let yaml_too = crate::policy::yaml::from_yaml::<serde_json::Value>(&schema.to_json());
                prop_assert!(yaml_too.is_ok());
                prop_assert_eq!(TableSchema::infer("d", bytes.iter().copied()), Ok(schema));
            }
        }
    }
}
