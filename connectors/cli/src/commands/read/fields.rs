//! Fields of JSON records by their paths, their texts as they are spelled: numbers are not touched.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// Objects below this many others are shown as JSON.
const MAX_DEPTH: usize = 16;

/// Objects whose paths are longer are shown as JSON too.
const MAX_PATH: usize = 1_024;

/// Calls `visit` for every field of a document, objects before their members: its path, its JSON text, and whether it is
/// no object, so that a table shows it. Lists are shown as JSON. A member that occurs twice is visited twice.
pub(super) fn walk<'j>(json: &'j str, visit: &mut dyn FnMut(&str, &'j str, bool)) {
    if let Some(members) = members(json) {
        below(&mut String::new(), members, 1, visit);
    }
}

fn below<'j>(
    path: &mut String,
    members: Vec<(String, &'j str)>,
    depth: usize,
    visit: &mut dyn FnMut(&str, &'j str, bool),
) {
    let prefix = path.len();
    for (name, json) in members {
        path.truncate(prefix);
        if prefix > 0 {
            path.push('.');
        }
        path.push_str(&segment(&name));
        // Below a name that nobody would ask for, every path would be as long again.
        let members = (path.len() <= MAX_PATH).then(|| members_below(json, depth)).flatten();
        match members {
            Some(members) => {
                visit(path, json, false);
                below(path, members, depth + 1, visit);
            }
            None => visit(path, json, true),
        }
    }
}

fn members_below(json: &str, depth: usize) -> Option<Vec<(String, &str)>> {
    let members = (depth < MAX_DEPTH).then(|| members(json)).flatten()?;
    // An empty object has nothing to show but itself.
    (!members.is_empty()).then_some(members)
}

/// As labels are spelled: anything but letters, digits and `_` as a JSON string.
fn segment(name: &str) -> String {
    let is_plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if is_plain {
        return name.to_owned();
    }
    serde_json::Value::from(name).to_string()
}

/// Members of an object in order, with the texts of their values; `None` for anything else.
fn members(json: &str) -> Option<Vec<(String, &str)>> {
    /// Members as they stand, duplicates too.
    struct InOrder;

    impl<'de> Visitor<'de> for InOrder {
        type Value = Vec<(String, &'de str)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                members.push((name, value.get()));
            }
            Ok(members)
        }
    }

    if !json.trim_start().starts_with('{') {
        return None;
    }
    serde_json::Deserializer::from_str(json).deserialize_map(InOrder).ok()
}

/// What a cell shows: the text of a string, the JSON text of anything else, nothing for null.
pub(super) fn cell(json: &str) -> Option<String> {
    match json.as_bytes().first() {
        Some(b'"') => Some(serde_json::from_str(json).unwrap_or_else(|_| json.to_owned())),
        _ if json == "null" => None,
        _ => Some(json.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_paths_of_labels_and_keep_their_spelling() {
        let json = r#"{"a":{"b c":1.50,"d":{}},"l":[{"x":1}],"s":"\u0061","n":null,"a":12345678901234567890123.0}"#;
        let mut seen = Vec::new();
        walk(json, &mut |path, json, leaf| seen.push((path.to_owned(), json, leaf)));
        let expected = [
            ("a", r#"{"b c":1.50,"d":{}}"#, false),
            ("a.\"b c\"", "1.50", true),
            ("a.d", "{}", true),
            ("l", r#"[{"x":1}]"#, true),
            ("s", r#""\u0061""#, true),
            ("n", "null", true),
            ("a", "12345678901234567890123.0", true),
        ];
        let expected: Vec<_> = expected.map(|(path, json, leaf)| (path.to_owned(), json, leaf)).into();
        assert_eq!(seen, expected);
        assert_eq!(cell(r#""\u0061""#).as_deref(), Some("a"));
        assert_eq!((cell("null"), cell("1.50").as_deref()), (None, Some("1.50")));
        // No text of UTF-8: shown as it is spelled.
        assert_eq!(cell(r#""\ud800""#).as_deref(), Some(r#""\ud800""#));
    }

    #[test]
    fn a_long_name_is_spelled_once_and_not_again_for_every_field_below() {
        let members: Vec<String> = (0..1_000).map(|n| format!("\"m{n}\":1")).collect();
        let json = format!("{{\"{}\":{{{}}}}}", "n".repeat(2_000), members.join(","));
        let mut lengths = Vec::new();
        walk(&json, &mut |path, _, is_leaf| lengths.push((path.len(), is_leaf)));
        assert_eq!(lengths, [(2_000, true)]);
    }

    #[test]
    fn depth_is_bounded_and_what_is_no_object_has_no_fields() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100));
        let mut deepest = 0;
        walk(&deep, &mut |path, _, _| deepest = deepest.max(path.split('.').count()));
        assert_eq!(deepest, MAX_DEPTH);
        for json in ["[1]", "1", "\"x\"", ""] {
            walk(json, &mut |path, _, _| panic!("{json}: {path}"));
        }
    }
}
