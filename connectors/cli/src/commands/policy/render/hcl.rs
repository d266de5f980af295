//! Terraform's language, as far as it is written here: blocks, attributes and literal values, laid out as `terraform fmt`
//! lays them out.

use std::fmt::Write as _;

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A string, escaped when it is written: nothing in it is ever evaluated.
    Text(String),
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Number(u64),
    /// A reference to another block: `aws_kms_key.name.id`.
    Reference(String),
    /// A list.
    List(Vec<Value>),
    /// An object.
    Object(Vec<(String, Value)>),
    /// `jsonencode(…)` of a value.
    Json(Box<Value>),
}

/// A block: `resource "aws_kms_key" "name" { … }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Its type.
    pub(super) kind: &'static str,
    /// Its labels.
    pub(super) labels: Vec<String>,
    /// What stands in it, in this order.
    pub(super) body: Vec<Item>,
    /// Lines above it.
    pub(super) comment: Vec<String>,
}

/// What stands in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// `name = value`
    Attribute(&'static str, Value),
    /// A block within the block.
    Block(Block),
}

impl Block {
    /// A block without labels.
    pub(super) fn new(kind: &'static str, body: Vec<Item>) -> Self {
        Self {
            kind,
            labels: Vec::new(),
            body,
            comment: Vec::new(),
        }
    }

    /// `resource "TYPE" "NAME"`
    pub(super) fn resource(of: &str, name: &str, body: Vec<Item>) -> Self {
        Self {
            labels: vec![of.to_owned(), name.to_owned()],
            ..Self::new("resource", body)
        }
    }

    /// With lines above it.
    pub(super) fn commented(mut self, lines: &[&str]) -> Self {
        self.comment = lines.iter().map(|line| (*line).to_owned()).collect();
        self
    }
}

/// A file: comment lines at its head, then the blocks.
pub(super) fn file(head: &[String], blocks: &[Block]) -> String {
    let mut out = String::new();
    write_comment(head, 0, &mut out);
    for block in blocks {
        out.push('\n');
        write_block(block, 0, &mut out);
    }
    out
}

/// A string as a literal in which nothing is evaluated.
///
/// Escapes as the language's specification has them: backslash sequences, and `$${` and `%%{` for the starts of
/// interpolations and directives.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '$' | '%' if rest.peek() == Some(&'{') => {
                out.push(c);
                out.push(c);
            }
            c if c.is_control() => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// JSON as a value of this language.
pub(super) fn of_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::String(text) => Value::Text(text.clone()),
        serde_json::Value::Bool(yes) => Value::Bool(*yes),
        serde_json::Value::Number(number) => Value::Number(number.as_u64().unwrap_or_default()),
        serde_json::Value::Array(items) => Value::List(items.iter().map(of_json).collect()),
        serde_json::Value::Object(members) => Value::Object(
            members
                .iter()
                .map(|(name, value)| (name.clone(), of_json(value)))
                .collect(),
        ),
        serde_json::Value::Null => Value::Reference("null".to_owned()),
    }
}

fn write_comment(lines: &[String], depth: usize, out: &mut String) {
    for line in lines {
        let text = format!("# {line}");
        out.push_str(&indent(depth));
        out.push_str(text.trim_end());
        out.push('\n');
    }
}

fn indent(depth: usize) -> String {
    "  ".repeat(depth)
}

fn write_block(block: &Block, depth: usize, out: &mut String) {
    write_comment(&block.comment, depth, out);
    out.push_str(&indent(depth));
    out.push_str(block.kind);
    for label in &block.labels {
        out.push(' ');
        out.push_str(&quoted(label));
    }
    out.push_str(" {\n");
    let mut attributes = Vec::new();
    for item in &block.body {
        match item {
            Item::Attribute(name, value) => attributes.push(((*name).to_owned(), value)),
            Item::Block(inner) => {
                write_attributes(&std::mem::take(&mut attributes), depth + 1, out);
                out.push('\n');
                write_block(inner, depth + 1, out);
            }
        }
    }
    write_attributes(&attributes, depth + 1, out);
    out.push_str(&indent(depth));
    out.push_str("}\n");
}

/// One a line; the `=` of those on neighbouring lines that end on their line stand below each other.
fn write_attributes(attributes: &[(String, &Value)], depth: usize, out: &mut String) {
    let written: Vec<String> = attributes.iter().map(|(_, value)| literal(value, depth)).collect();
    let mut n = 0;
    while n < attributes.len() {
        let lines = written[n..].iter().take_while(|text| !text.contains('\n')).count();
        let width = attributes[n..n + lines]
            .iter()
            .map(|(name, _)| name.chars().count())
            .max();
        let end = n + lines.max(1);
        for ((name, _), text) in attributes[n..end].iter().zip(&written[n..end]) {
            let width = width.unwrap_or(0);
            out.push_str(&indent(depth));
            // Writing to a string does not fail.
            let _ = writeln!(out, "{name:width$} = {text}");
        }
        n = end;
    }
}

/// As it stands behind a `=` in a body of this depth.
fn literal(value: &Value, depth: usize) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Bool(yes) => yes.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Reference(path) => path.clone(),
        Value::Json(value) => format!("jsonencode({})", literal(value, depth)),
        Value::List(items) => match &items[..] {
            [] => "[]".to_owned(),
            [Value::Object(_)] => format!("[{}]", literal(&items[0], depth)),
            [one] => format!("[{}]", literal(one, depth)),
            _ => {
                let lines = items
                    .iter()
                    .map(|item| format!("{}{},\n", indent(depth + 1), literal(item, depth + 1)));
                format!("[\n{}{}]", lines.collect::<String>(), indent(depth))
            }
        },
        Value::Object(members) if members.is_empty() => "{}".to_owned(),
        Value::Object(members) => {
            let named: Vec<(String, &Value)> = members.iter().map(|(name, value)| (key(name), value)).collect();
            let mut body = String::new();
            write_attributes(&named, depth + 1, &mut body);
            format!("{{\n{body}{}}}", indent(depth))
        }
    }
}

/// The name of an object's member: bare if it is an identifier.
fn key(name: &str) -> String {
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    if starts && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        name.to_owned()
    } else {
        quoted(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_string_is_evaluated() {
        let table = [
            ("a", r#""a""#),
            ("${path.module}", r#""$${path.module}""#),
            ("%{ if true }", r#""%%{ if true }""#),
            ("$$ 100% $", r#""$$ 100% $""#),
            ("$${a}", r#""$$${a}""#),
            ("a\"b\\c\n\u{7}", r#""a\"b\\c\n\u0007""#),
        ];
        for (text, expected) in table {
            assert_eq!(quoted(text), expected);
        }
    }

    #[test]
    fn a_file_is_laid_out_as_terraform_fmt_does() {
        let object = Value::Object(vec![
            ("Sid".to_owned(), Value::Text("A".to_owned())),
            ("Resource".to_owned(), Value::Text("*".to_owned())),
            (
                "Condition".to_owned(),
                Value::Object(vec![(
                    "kms:a".to_owned(),
                    Value::List(vec![Value::Text("x".to_owned())]),
                )]),
            ),
            ("Principal".to_owned(), Value::Text("*".to_owned())),
        ]);
        let block = Block::resource(
            "aws_kms_key_policy",
            "a",
            vec![
                Item::Attribute("key_id", Value::Text("1".to_owned())),
                Item::Attribute("n", Value::Number(1)),
                Item::Attribute("policy", Value::Json(Box::new(object))),
                Item::Block(Block::new(
                    "lifecycle",
                    vec![Item::Attribute("prevent_destroy", Value::Bool(true))],
                )),
            ],
        );
        let expected = r#"# head

# why
resource "aws_kms_key_policy" "a" {
  key_id = "1"
  n      = 1
  policy = jsonencode({
    Sid      = "A"
    Resource = "*"
    Condition = {
      "kms:a" = ["x"]
    }
    Principal = "*"
  })

  lifecycle {
    prevent_destroy = true
  }
}
"#;
        assert_eq!(file(&["head".to_owned()], &[block.commented(&["why"])]), expected);
    }
}
