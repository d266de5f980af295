//! Where the strings of a JSON text stand: their column paths, spelled as labels are.

use std::ops::Range;

use sealflow::policy::{ColumnPath, Segment};

/// What wraps a record where it is shown, and is no part of its paths: a list of records, a line of `sealflow read` of a topic,
/// with one document or several, and the reading service's answer.
const AROUND: [&[Step<'static>]; 4] = [
    &[Step::Each],
    &[Step::Name("value")],
    &[Step::Name("value"), Step::Each],
    &[Step::Name("records"), Step::Each],
];
/// The most of a path that is shown: segments, and characters.
const SHOWN: (usize, usize) = (64, 256);

/// A string value of a JSON text.
pub(crate) struct Text {
    /// Its bytes, with the quotes.
    pub(crate) range: Range<usize>,
    /// Where it stands.
    pub(crate) place: Place,
}

/// The steps from the top of a document to a value.
pub(crate) struct Place(Vec<Segment>);

#[derive(PartialEq)]
enum Step<'a> {
    Name(&'a str),
    Each,
}

impl Place {
    /// Whether a value of this label belongs here: its label is the path to here, from the top or from a record that is wrapped
    /// as `sealflow read` and the reading service wrap them, or the name of the member (a column of its own).
    pub(crate) fn is_of(&self, label: &str) -> bool {
        if self.spells(0, label) {
            return true;
        }
        let around = AROUND.iter().filter(|around| self.begins_with(around));
        for around in around {
            if self.spells(around.len(), label) {
                return true;
            }
        }
        // The message's key, as `sealflow read` shows it.
        label == "$key" && matches!(&self.0[..], [Segment::Name(name)] if name == "key")
    }

    /// Whether the steps from `from` on are that label, or one member that is named like it.
    fn spells(&self, from: usize, label: &str) -> bool {
        match &self.0[from..] {
            [] => false,
            [Segment::Name(name)] if name == label => true,
            steps => ColumnPath::into_value(steps.to_vec()).to_string() == label,
        }
    }

    fn begins_with(&self, around: &[Step<'_>]) -> bool {
        let steps = self.0.iter().map(|segment| match segment {
            Segment::Name(name) => Step::Name(name),
            Segment::Each => Step::Each,
        });
        self.0.len() > around.len()
            && steps.take(around.len()).eq(around.iter().map(|step| match step {
                Step::Name(name) => Step::Name(name),
                Step::Each => Step::Each,
            }))
    }
}

impl std::fmt::Display for Place {
    /// The canonical spelling, shortened where it is long.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the top of the document");
        }
        let path = ColumnPath::into_value(self.0.iter().take(SHOWN.0).cloned().collect()).to_string();
        match path.char_indices().nth(SHOWN.1) {
            Some((end, _)) => write!(f, "{}…", &path[..end]),
            None => f.write_str(&path),
        }
    }
}

/// The string values of `json`, which is one JSON document, in their order. `wanted` says by its bytes between the quotes whether
/// a string is of interest.
pub(crate) fn texts(json: &[u8], wanted: impl Fn(&[u8]) -> bool) -> Vec<Text> {
    let mut texts = Vec::new();
    // The containers around: what the member's name is in an object, nothing in a list.
    let mut around: Vec<Option<Range<usize>>> = Vec::new();
    // Of the two strings of a member the first is its name.
    let mut is_name = false;
    let mut at = 0;
    while at < json.len() {
        match json[at] {
            b'{' => {
                around.push(Some(0..0));
                is_name = true;
            }
            b'[' => {
                around.push(None);
                is_name = false;
            }
            b'}' | b']' => {
                around.pop();
                is_name = false;
            }
            b',' => is_name = matches!(around.last(), Some(Some(_))),
            b'"' => {
                let range = at..end_of_string(json, at);
                let inner = json.get(range.start + 1..range.end - 1).unwrap_or_default();
                if is_name {
                    if let Some(Some(name)) = around.last_mut() {
                        *name = range.clone();
                    }
                    is_name = false;
                } else if wanted(inner) {
                    let place = Place(around.iter().map(|name| segment(json, name.as_ref())).collect());
                    let range = range.clone();
                    texts.push(Text { range, place });
                }
                at = range.end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    texts
}

fn segment(json: &[u8], name: Option<&Range<usize>>) -> Segment {
    let Some(name) = name else { return Segment::Each };
    let text = json.get(name.clone()).unwrap_or_default();
    // Half a surrogate pair is no text: such a name is that of no label.
    let decoded = serde_json::from_slice(text).unwrap_or_else(|_| String::from_utf8_lossy(text).into_owned());
    Segment::Name(decoded)
}

/// Behind the closing quote of the string that begins at `at`, in a text that is JSON.
fn end_of_string(json: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < json.len() && json[end] != b'"' {
        end += if json[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(json.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(json: &str) -> Vec<(String, String)> {
        let texts = texts(json.as_bytes(), |_| true);
        let shown = texts
            .iter()
            .map(|text| (json[text.range.clone()].to_owned(), text.place.to_string()));
        shown.collect()
    }

    #[test]
    fn strings_stand_at_paths_that_are_spelled_as_labels_are() {
        let json =
            r#" {"a":"1","b":{"c d":["2",{"e":[["3"],"4"]}],"\u0066":"5"},"g":[],"h":{},"i":"6" , "j" : [ "7" ] } "#;
        let expected = [
            ("\"1\"", "a"),
            ("\"2\"", "b.\"c d\"[*]"),
            ("\"3\"", "b.\"c d\"[*].e[*][*]"),
            ("\"4\"", "b.\"c d\"[*].e[*]"),
            ("\"5\"", "b.f"),
            ("\"6\"", "i"),
            ("\"7\"", "j[*]"),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(text, place)| ((*text).to_owned(), (*place).to_owned()))
            .collect();
        assert_eq!(places(json), expected);
        assert_eq!(
            places("\"x\\\"y\""),
            [("\"x\\\"y\"".to_owned(), "the top of the document".to_owned())]
        );
        assert_eq!(places("[[\"x\"]]")[0].1, "[*][*]");
    }

    #[test]
    fn a_value_belongs_where_its_label_says_also_in_a_record_that_is_wrapped() {
        for (json, label, belongs) in [
            (r#"{"card":"x"}"#, "card", true),
            (r#"{"card":"x"}"#, "amount", false),
            (r#"{"card":"x"}"#, "a.card", false),
            (r#"{"a":{"card":"x"}}"#, "a.card", true),
            (r#"{"a":{"card":"x"}}"#, "card", false),
            (r#"{"cards":[{"number":"x"}]}"#, "cards[*].number", true),
            (r#"{"a.card":"x"}"#, "a.card", true),
            (r#"{"a.card":"x"}"#, "\"a.card\"", true),
            (r#"{"value":{"card":"x"}}"#, "card", true),
            (r#"{"value":{"card":"x"}}"#, "value.card", true),
            (r#"{"value":[{"card":"x"}]}"#, "card", true),
            (r#"{"value":{"a":{"card":"x"}}}"#, "card", false),
            (r#"{"records":[{"card":"x"}]}"#, "card", true),
            (r#"[{"card":"x"}]"#, "[*].card", true),
            (r#"[{"card":"x"}]"#, "card", true),
            (r#"[[{"card":"x"}]]"#, "card", false),
            (r#"{"key":"x"}"#, "$key", true),
            (r#"{"a":"x"}"#, "$key", false),
            (r#""x""#, "card", false),
            (r#""x""#, "", false),
            (r#"{"value":"x"}"#, "", false),
        ] {
            let texts = texts(json.as_bytes(), |_| true);
            assert_eq!(texts.len(), 1, "{json}");
            assert_eq!(texts[0].place.is_of(label), belongs, "{json} {label}");
        }
    }
}
