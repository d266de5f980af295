//! YAML into typed values, with errors that say where and what to do: for policies, domain documents and
//! every configuration file.
//!
//! YAML 1.2 without its traps: unknown and duplicated keys, merge keys, `yes`/`no` booleans, second documents
//! and documents over [`MAX_YAML_BYTES`] are refused. Messages never repeat a value, since configuration
//! files hold passwords.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error as SaphyrError, MergeKeyPolicy, Options, Spanned};

use super::key_path::{KeyPath, StepRef};

/// The largest document that is taken.
pub const MAX_YAML_BYTES: usize = 1 << 20;

/// Why a YAML document is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", Place { path, line: *line, column: *column })]
pub struct YamlError {
    /// Where: `columns[2].bind_row`; empty for the whole document.
    pub path: String,
    /// Line, from 1, where it is known.
    pub line: Option<u64>,
    /// Column, from 1, where it is known.
    pub column: Option<u64>,
    /// What is wrong. Never repeats a value.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

impl YamlError {
    /// The error of a check on a value that parsed, with the line and column of `path` in `text`.
    #[must_use]
    pub fn at(text: &str, path: &KeyPath, message: String, help: String) -> Self {
        let (line, column) = locate(text, path).unzip();
        Self {
            path: path.to_string(),
            line,
            column,
            message,
            help,
        }
    }
}

/// `path (line 3, column 5): `, as far as it is known.
pub(super) struct Place<'a> {
    pub(super) path: &'a str,
    pub(super) line: Option<u64>,
    pub(super) column: Option<u64>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let position = self.line.zip(self.column);
        match (self.path.is_empty(), position) {
            (true, None) => Ok(()),
            (true, Some((line, column))) => write!(f, "line {line}, column {column}: "),
            (false, None) => write!(f, "{}: ", self.path),
            (false, Some((line, column))) => write!(f, "{} (line {line}, column {column}): ", self.path),
        }
    }
}

/// Reads one YAML document as a `T`.
///
/// Use `#[serde(deny_unknown_fields)]` on `T` and below: the error for an unknown key then names the keys
/// that are known and the one that was probably meant.
///
/// # Errors
/// [`YamlError`] with place, message and help.
pub fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    if text.len() > MAX_YAML_BYTES {
        return Err(YamlError {
            path: String::new(),
            line: None,
            column: None,
            message: format!("the document is longer than {MAX_YAML_BYTES} bytes"),
            help: "split it, or remove what is not configuration".to_owned(),
        });
    }
    let mut place = KeyPath::root();
    let result = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
        serde_path_to_error::deserialize::<_, T>(deserializer).map_err(|error| {
            place = KeyPath::from(error.path());
            error.into_inner()
        })
    });
    result.map_err(|error| explain(&error, &place))
}

/// As [`from_yaml`], for bytes that must be UTF-8.
///
/// # Errors
/// [`YamlError`] with place, message and help.
pub fn from_yaml_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, YamlError> {
    from_yaml(utf8(bytes)?)
}

/// The text of a document.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, YamlError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
        YamlError {
            path: String::new(),
            line: Some(line),
            column: Some(1),
            message: "not UTF-8 text".to_owned(),
            help: "save the file as UTF-8".to_owned(),
        }
    })
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_nodes: 100_000,
            max_events: 250_000,
            max_documents: 2,
            max_anchors: 1_000,
            max_aliases: 1_000,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn explain(error: &SaphyrError, place: &KeyPath) -> YamlError {
    let error = error.without_snippet();
    let location = error.location();
    let (message, help) = message_and_help(error);
    YamlError {
        path: place.to_string(),
        line: location.map(|at| at.line()),
        column: location.map(|at| at.column()),
        message,
        help,
    }
}

fn message_and_help(error: &SaphyrError) -> (String, String) {
    match error {
        SaphyrError::AliasError { error, .. } => message_and_help(error),
        SaphyrError::SerdeUnknownField { field, expected, .. } => unknown("key", field, expected),
        SaphyrError::SerdeUnknownVariant { variant, expected, .. } => unknown("word", variant, expected),
        SaphyrError::SerdeMissingField { field, .. } => {
            (format!("missing key `{field}`"), format!("add `{field}:` here"))
        }
        SaphyrError::DuplicateMappingKey { key, .. } => {
            let name = key
                .as_deref()
                .map_or(String::new(), |key| format!(" `{}`", shorten(key)));
            (
                format!("the key{name} is there twice"),
                "remove one of the two".to_owned(),
            )
        }
        SaphyrError::SerdeInvalidType {
            unexpected, expected, ..
        } => {
            let found = kind_of(unexpected);
            (
                format!("expected {}, found {found}", readable(expected)),
                "write it as the documentation shows".to_owned(),
            )
        }
        SaphyrError::SerdeInvalidValue { expected, .. } => (
            format!("expected {}", readable(expected)),
            "correct the value".to_owned(),
        ),
        SaphyrError::InvalidScalar { ty, .. } => {
            (format!("expected a value of type {ty}"), "correct the value".to_owned())
        }
        SaphyrError::Unexpected { expected, .. } => (
            format!("expected a {}", expected.trim_end_matches(" start")),
            "check the indentation and the kind of value".to_owned(),
        ),
        SaphyrError::NullIntoString { .. } => (
            "expected a string, found nothing".to_owned(),
            "write a value, or remove the key".to_owned(),
        ),
        SaphyrError::InvalidBooleanStrict { .. } => (
            "expected true or false".to_owned(),
            "write `true` or `false`".to_owned(),
        ),
        SaphyrError::Eof { .. } => (
            "the document is empty".to_owned(),
            "write at least the required keys".to_owned(),
        ),
        SaphyrError::MultipleDocuments { .. } => (
            "a second document after `---`".to_owned(),
            "one file holds one document: split it".to_owned(),
        ),
        SaphyrError::MergeKeyNotAllowed { .. } => (
            "merge keys (`<<`) are not taken".to_owned(),
            "write the keys out".to_owned(),
        ),
        SaphyrError::Budget { .. } => (
            "the document is nested too deeply or has too many parts".to_owned(),
            "write it flatter, with fewer anchors and aliases".to_owned(),
        ),
        // Messages of our own `Deserialize` implementations: units, paths, patterns.
        SaphyrError::Message { msg, .. } => (msg.clone(), "correct the value".to_owned()),
        SaphyrError::ExternalMessage { msg, .. } => (
            format!("not YAML: {msg}"),
            "check indentation, brackets and quotes around this place".to_owned(),
        ),
        // What remains are structural errors whose texts could repeat a value.
        _ => (
            "not YAML as expected here".to_owned(),
            "check indentation, brackets, quotes and tags around this place".to_owned(),
        ),
    }
}

fn unknown(what: &str, written: &str, expected: &[&'static str]) -> (String, String) {
    let mut message = format!("unknown {what} `{}`", shorten(written));
    if let Some(meant) = closest(written, expected) {
        message.push_str(&format!("; did you mean `{meant}`?"));
    }
    let help = match expected {
        [] => "remove it: nothing is taken here".to_owned(),
        _ => format!("expected one of: {}", expected.join(", ")),
    };
    (message, help)
}

/// At most 64 characters of a word that was written where a known one was expected.
fn shorten(word: &str) -> String {
    word.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// The known word that was probably meant.
pub(crate) fn closest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let normal = |word: &str| word.to_ascii_lowercase().replace('-', "_");
    let written = normal(written);
    if written.len() > 64 {
        return None;
    }
    let (distance, meant) = known
        .iter()
        .map(|word| (distance(&written, &normal(word)), *word))
        .min()?;
    let length = written.chars().count().max(meant.chars().count());
    (distance <= (length / 3).max(1) && distance < length).then_some(meant)
}

/// Edits (insert, remove, replace, swap neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// `string "hunter2"` without the value.
fn kind_of(unexpected: &str) -> &'static str {
    let kinds = [
        ("string", "a string"),
        ("integer", "a number"),
        ("floating", "a number"),
        ("boolean", "true or false"),
        ("map", "a map"),
        ("sequence", "a list"),
        ("unit", "nothing"),
        ("Option", "nothing"),
    ];
    kinds
        .iter()
        .find(|(start, _)| unexpected.starts_with(start))
        .map_or("something else", |(_, kind)| kind)
}

/// What serde expected, in words of a YAML writer.
fn readable(expected: &str) -> String {
    match expected {
        text if text.starts_with("struct ") || text == "a map" => "a map".to_owned(),
        text if text.starts_with("enum ") => "one of its words".to_owned(),
        "a sequence" => "a list".to_owned(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not negative".to_owned(),
        "i8" | "i16" | "i32" | "i64" => "a whole number".to_owned(),
        text => text.to_owned(),
    }
}

/// Line and column of the value at `path`, or of the nearest place above it that exists.
pub(super) fn locate(text: &str, path: &KeyPath) -> Option<(u64, u64)> {
    let mut node: Spanned<Node> = serde_saphyr::from_str_with_options(text, options()).ok()?;
    let mut rest = path.clone();
    while let Some((step, below)) = rest.split_first() {
        let child = match (step, node.value) {
            (StepRef::Key(name), Node::Map(ref mut map)) => map.remove(name),
            (StepRef::Index(n), Node::List(list)) => list.into_iter().nth(n),
            _ => None,
        };
        let (line, column) = (node.referenced.line(), node.referenced.column());
        let Some(child) = child else {
            return Some((line, column));
        };
        node = child;
        rest = below;
    }
    Some((node.referenced.line(), node.referenced.column()))
}

/// A document as a tree of places, without its values.
enum Node {
    Map(BTreeMap<String, Spanned<Node>>),
    List(Vec<Spanned<Node>>),
    Scalar,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut members = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            members.insert(name, map.next_value()?);
        }
        Ok(Node::Map(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            elements.push(element);
        }
        Ok(Node::List(elements))
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Node::Scalar)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        name: String,
        #[serde(default)]
        threads: u16,
        #[serde(default)]
        fast: bool,
        #[serde(default)]
        mode: Mode,
        #[serde(default)]
        parts: Vec<Part>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Seal,
        Open,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        size: crate::units::ByteSize,
        #[serde(default)]
        password: String,
    }

    /// Flattened members are buffered, so serde itself words their errors.
    #[derive(Debug, PartialEq, Deserialize)]
    struct Flat {
        #[serde(flatten)]
        inner: Inner,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        port: u16,
        pin: char,
    }

    fn refused(text: &str) -> YamlError {
        let error = from_yaml::<Config>(text).unwrap_err();
        assert!(!error.help.is_empty(), "{error} without help");
        error
    }

    #[test]
    fn an_unknown_key_names_itself_its_place_and_the_known_ones() {
        let error = refused("name: a\nparts:\n  - size: 1MiB\n  - size: 1MiB\n    passwrod: x\n");
        assert_eq!(error.path, "parts[1].passwrod");
        assert_eq!((error.line, error.column), (Some(5), Some(5)));
        assert_eq!(error.message, "unknown key `passwrod`; did you mean `password`?");
        assert_eq!(error.help, "expected one of: size, password");
        assert_eq!(refused("name: a\nzzz: 1").message, "unknown key `zzz`");
        assert_eq!(
            refused("name: a\nmode: sael").message,
            "unknown word `sael`; did you mean `seal`?"
        );
    }

    #[test]
    fn a_missing_key_is_named() {
        assert_eq!(refused("threads: 1").message, "missing key `name`");
        let error = refused("name: a\nparts: [{ password: x }]");
        assert_eq!(
            (error.path.as_str(), error.message.as_str()),
            ("parts[0]", "missing key `size`")
        );
    }

    #[test]
    fn no_message_repeats_a_value() {
        for text in [
            "name: a\nthreads: hunter2",
            "name: a\nfast: hunter2",
            "name: a\nparts: hunter2",
            "name: a\nparts: [hunter2]",
            "name: a\nparts: [{ size: hunter2 }]",
            "name: [hunter2]",
            "name: { hunter2: 1 }",
            "name: !hunter2 x",
            "name: a\nparts: [{ size: 1MiB, password: [hunter2] }]",
            "name: \"hunter2",
            "name: *hunter2",
            "hunter2",
            "- hunter2",
            "name: hunter2\n bad: x",
            "name: a\nparts: [{ size: 1MiB, password: \"hunter2\\q\" }]",
        ] {
            let error = refused(text);
            let shown = format!("{error} {}", error.help);
            assert!(!shown.contains("hunter2"), "{text}: {shown}");
        }
        for text in ["port: hunter2\npin: x", "port: 1\npin: hunter2"] {
            let error = from_yaml::<Flat>(text).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{text}: {error}");
            assert!(error.message.starts_with("expected "), "{text}: {error}");
        }
    }

    #[test]
    fn the_traps_of_yaml_are_refused() {
        assert_eq!(refused("name: a\nname: b").message, "the key `name` is there twice");
        assert_eq!(refused("name: a\nfast: yes").message, "expected true or false");
        assert_eq!(
            refused("name: a\n---\nname: b").message,
            "a second document after `---`"
        );
        assert_eq!(refused("base: &b { name: a }\n<<: *b").path, "base");
        assert_eq!(refused("<<: { name: a }").message, "merge keys (`<<`) are not taken");
        assert_eq!(refused("").message, "the document is empty");
        let deep = format!("name: a\nparts: {}{}", "[".repeat(40), "]".repeat(40));
        assert!(from_yaml::<Config>(&deep).is_err());
        assert!(
            from_yaml_bytes::<Config>(b"name: \xff")
                .unwrap_err()
                .message
                .contains("UTF-8")
        );
    }

    #[test]
    fn large_documents_are_refused_unread() {
        let text = format!("name: a\n#{}", "x".repeat(MAX_YAML_BYTES));
        assert!(refused(&text).message.contains("longer than 1048576 bytes"));
    }

    #[test]
    fn an_alias_bomb_is_refused_soon() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..10 {
            let alias = format!("*a{}, ", n - 1).repeat(10);
            text.push_str(&format!("a{n}: &a{n} [{alias}]\n"));
        }
        type Any = BTreeMap<String, IgnoredAny>;
        assert!(from_yaml::<Any>(&text).is_err());
    }

    #[test]
    fn a_word_far_from_all_known_ones_is_not_guessed() {
        assert_eq!(
            closest("dead-letters", &["dead_letters", "columns"]),
            Some("dead_letters")
        );
        assert_eq!(closest("colums", &["dead_letters", "columns"]), Some("columns"));
        assert_eq!(closest("x", &["y"]), None);
        assert_eq!(closest("zebra", &["dead_letters", "columns"]), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[ -~\n\t\u{85}é]{0,200}") {
            let _ = from_yaml::<Config>(&text);
            let _ = locate(&text, &KeyPath::root().key("parts").index(1).key("size"));
        }
    }
}
