//! Names of policy keys: plain (`default`) or templates (`tenant-{tenant_id}`) that clear fields of a record
//! fill in.

use std::fmt;

use super::path::{ColumnPath, Root, Segment};

/// The longest name of a policy key as written, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// The longest value of a template field, in bytes.
pub const MAX_VALUE_BYTES: usize = 64;

/// The name of a policy key, plain or with fields to fill in. Displays as it is written in the policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyTemplate {
    /// The literal before each field, then the one after the last: always one more than `fields`.
    literals: Vec<String>,
    fields: Vec<ColumnPath>,
}

/// Why a text is no name of a policy key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// Nothing there, or over [`MAX_NAME_BYTES`].
    #[error("a key name has 1 to {MAX_NAME_BYTES} bytes")]
    Length,
    /// A character outside `[A-Za-z0-9_-]` in the literal part.
    #[error("unexpected character at byte {at}: key names are of [A-Za-z0-9_-], with fields in braces")]
    BadCharacter {
        /// Byte offset in the name.
        at: usize,
    },
    /// A brace without its partner.
    #[error("the brace at byte {at} has no partner")]
    Unbalanced {
        /// Byte offset in the name.
        at: usize,
    },
    /// A field that is no path.
    #[error("the field at byte {at} is no path: {reason}")]
    BadField {
        /// Byte offset in the name.
        at: usize,
        /// What the path parser says.
        reason: String,
    },
    /// A field in a list, or the record's key or header.
    #[error("the field at byte {at} does not name one scalar of the record's value")]
    NotOneScalar {
        /// Byte offset in the name.
        at: usize,
    },
    /// Two fields with nothing between them.
    #[error("two fields side by side: different values could give the same name")]
    Adjacent,
    /// A spelling other than the canonical one.
    #[error("not the canonical spelling, which is {canonical}")]
    NotCanonical {
        /// How to write it.
        canonical: String,
    },
}

/// Why values do not make a name. Never repeats a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// Not one value per field.
    #[error("the key name has {expected} fields, got {given} values")]
    Count {
        /// Fields of the template.
        expected: usize,
        /// Values that came.
        given: usize,
    },
    /// A value outside `[A-Za-z0-9_-]{1,64}`.
    #[error("the value of {field} is not of [A-Za-z0-9_-] or not 1 to {MAX_VALUE_BYTES} bytes long")]
    BadValue {
        /// Path of the field.
        field: String,
    },
    /// A value that holds the literal behind its field, so that other values could give the same name.
    #[error("the value of {field} holds the text that separates it from the next field")]
    Ambiguous {
        /// Path of the field.
        field: String,
    },
}

impl KeyTemplate {
    /// Reads a key name as written in a policy.
    ///
    /// # Errors
    /// [`TemplateError`]
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() || text.len() > MAX_NAME_BYTES {
            return Err(TemplateError::Length);
        }
        let mut template = Self {
            literals: vec![String::new()],
            fields: Vec::new(),
        };
        let mut at = 0;
        while let Some(character) = text[at..].chars().next() {
            match character {
                '{' => {
                    let end = closing_brace(text, at).ok_or(TemplateError::Unbalanced { at })?;
                    template.push_field(&text[at + 1..end], at + 1)?;
                    at = end + 1;
                }
                '}' => return Err(TemplateError::Unbalanced { at }),
                c if c.is_ascii() && is_name_byte(c as u8) => {
                    if let Some(literal) = template.literals.last_mut() {
                        literal.push(c);
                    }
                    at += 1;
                }
                _ => return Err(TemplateError::BadCharacter { at }),
            }
        }
        let canonical = template.to_string();
        if canonical != text {
            return Err(TemplateError::NotCanonical { canonical });
        }
        Ok(template)
    }

    fn push_field(&mut self, text: &str, at: usize) -> Result<(), TemplateError> {
        let parsed = text.parse::<ColumnPath>();
        let path = parsed.map_err(|error| TemplateError::BadField {
            at,
            reason: error.to_string(),
        })?;
        let is_one_scalar = *path.root() == Root::Value && !path.segments().contains(&Segment::Each);
        if !is_one_scalar {
            return Err(TemplateError::NotOneScalar { at });
        }
        let is_adjacent = !self.fields.is_empty() && self.literals.last().is_some_and(String::is_empty);
        if is_adjacent {
            return Err(TemplateError::Adjacent);
        }
        self.fields.push(path);
        self.literals.push(String::new());
        Ok(())
    }

    /// The fields to fill in, in order; empty for a plain name.
    #[must_use]
    pub fn fields(&self) -> &[ColumnPath] {
        &self.fields
    }

    /// Whether there are fields to fill in.
    #[must_use]
    pub fn is_template(&self) -> bool {
        !self.fields.is_empty()
    }

    /// The name with `any` in place of each field: a pattern in the language of whoever asks, `tenant-*`.
    #[must_use]
    pub fn with_each_field_as(&self, any: &str) -> String {
        self.literals.join(any)
    }

    /// The name with `values` in place of the fields, in their order.
    ///
    /// Different values never give the same name: a value that holds the literal behind its field is refused.
    ///
    /// # Errors
    /// [`ResolveError`]: such a record is a dead letter.
    pub fn resolve<V: AsRef<str>>(&self, values: &[V]) -> Result<String, ResolveError> {
        if values.len() != self.fields.len() {
            return Err(ResolveError::Count {
                expected: self.fields.len(),
                given: values.len(),
            });
        }
        let mut name = self.literals[0].clone();
        let after = self.literals.iter().skip(1);
        for (n, ((field, value), literal)) in self.fields.iter().zip(values).zip(after).enumerate() {
            let value = value.as_ref();
            let is_value = (1..=MAX_VALUE_BYTES).contains(&value.len()) && value.bytes().all(is_name_byte);
            if !is_value {
                return Err(ResolveError::BadValue {
                    field: field.to_string(),
                });
            }
            let start = name.len();
            name.push_str(value);
            name.push_str(literal);
            let is_last = n + 1 == self.fields.len();
            if !is_last && name[start..].find(literal.as_str()) != Some(value.len()) {
                return Err(ResolveError::Ambiguous {
                    field: field.to_string(),
                });
            }
        }
        Ok(name)
    }

    /// Whether [`resolve`](Self::resolve) gives `name` for some values.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let Some(mut rest) = name.strip_prefix(self.literals[0].as_str()) else {
            return false;
        };
        let is_value = |value: &str| (1..=MAX_VALUE_BYTES).contains(&value.len()) && value.bytes().all(is_name_byte);
        for (n, literal) in self.literals.iter().enumerate().skip(1) {
            let is_last = n + 1 == self.literals.len();
            let end = if is_last {
                rest.strip_suffix(literal.as_str()).map(str::len)
            } else {
                rest.find(literal.as_str())
            };
            let Some(end) = end.filter(|end| is_value(&rest[..*end])) else {
                return false;
            };
            rest = &rest[end + literal.len()..];
        }
        rest.is_empty()
    }

    /// Whether some name matches both (it may say so of names longer than values can be).
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.atoms(), other.atoms());
        // can[i][j]: the rests a[i..] and b[j..] have a name in common.
        let mut can = vec![vec![false; b.len() + 1]; a.len() + 1];
        can[a.len()][b.len()] = true;
        for i in (0..=a.len()).rev() {
            for j in (0..=b.len()).rev() {
                let both = i < a.len() && j < b.len();
                if !both {
                    continue;
                }
                // One character that both take; a field may then stay where it is.
                can[i][j] = match (a[i], b[j]) {
                    (Some(x), Some(y)) => x == y && can[i + 1][j + 1],
                    (Some(_), None) => can[i + 1][j + 1] || can[i + 1][j],
                    (None, Some(_)) => can[i + 1][j + 1] || can[i][j + 1],
                    (None, None) => can[i + 1][j + 1] || can[i + 1][j] || can[i][j + 1],
                };
            }
        }
        can[0][0]
    }

    /// Characters of the name, `None` for each field.
    fn atoms(&self) -> Vec<Option<u8>> {
        let mut atoms = Vec::new();
        for (n, literal) in self.literals.iter().enumerate() {
            if n > 0 {
                atoms.push(None);
            }
            atoms.extend(literal.bytes().map(Some));
        }
        atoms
    }
}

/// The brace that closes the one at `start`, braces inside quoted names aside.
fn closing_brace(text: &str, start: usize) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (n, byte) in text.bytes().enumerate().skip(start + 1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(n),
            _ => {}
        }
    }
    None
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.literals[0])?;
        for (field, literal) in self.fields.iter().zip(self.literals.iter().skip(1)) {
            write!(f, "{{{field}}}{literal}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn template(text: &str) -> KeyTemplate {
        KeyTemplate::parse(text).unwrap()
    }

    #[test]
    fn names_print_as_they_parse() {
        for text in [
            "default",
            "tenant-{tenant_id}",
            "{a}",
            "{user.region}_{user.tenant}-x",
            r#"t-{"odd }name".x}"#,
        ] {
            assert_eq!(KeyTemplate::parse(text).map(|t| t.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        assert_eq!(KeyTemplate::parse(""), Err(TemplateError::Length));
        assert_eq!(KeyTemplate::parse("a b"), Err(TemplateError::BadCharacter { at: 1 }));
        assert_eq!(KeyTemplate::parse("é"), Err(TemplateError::BadCharacter { at: 0 }));
        assert_eq!(KeyTemplate::parse("a{b"), Err(TemplateError::Unbalanced { at: 1 }));
        assert_eq!(KeyTemplate::parse("a}b"), Err(TemplateError::Unbalanced { at: 1 }));
        assert!(matches!(
            KeyTemplate::parse("a{}"),
            Err(TemplateError::BadField { at: 2, .. })
        ));
        assert_eq!(
            KeyTemplate::parse("a{b[*]}"),
            Err(TemplateError::NotOneScalar { at: 2 })
        );
        assert_eq!(
            KeyTemplate::parse("a{$key}"),
            Err(TemplateError::NotOneScalar { at: 2 })
        );
        assert_eq!(KeyTemplate::parse("{a}{b}"), Err(TemplateError::Adjacent));
        let canonical = "{a}".to_owned();
        assert_eq!(
            KeyTemplate::parse(r#"{"a"}"#),
            Err(TemplateError::NotCanonical { canonical })
        );
    }

    #[test]
    fn values_outside_the_alphabet_make_no_name_and_are_not_repeated() {
        let tenant = template("tenant-{tenant_id}");
        assert_eq!(tenant.resolve(&["a-1"]).as_deref(), Ok("tenant-a-1"));
        for value in ["", "a b", "a/b", "é", &"a".repeat(65)] {
            let error = tenant.resolve(&[value]).unwrap_err();
            assert_eq!(
                error,
                ResolveError::BadValue {
                    field: "tenant_id".to_owned()
                }
            );
        }
        assert_eq!(
            tenant.resolve::<&str>(&[]),
            Err(ResolveError::Count { expected: 1, given: 0 })
        );
    }

    #[test]
    fn two_pairs_of_values_never_give_one_name() {
        let pair = template("{a}-{b}");
        assert_eq!(pair.resolve(&["x", "y-z"]).as_deref(), Ok("x-y-z"));
        assert_eq!(
            pair.resolve(&["x-y", "z"]),
            Err(ResolveError::Ambiguous { field: "a".to_owned() })
        );
        let long = template("{a}--{b}");
        assert_eq!(
            long.resolve(&["x-", "b"]),
            Err(ResolveError::Ambiguous { field: "a".to_owned() })
        );
    }

    #[test]
    fn templates_overlap_exactly_when_one_name_fits_both() {
        let overlap = |a: &str, b: &str| template(a).overlaps(&template(b));
        assert!(overlap("default", "default"));
        assert!(overlap("tenant-{a}", "tenant-{b}"));
        assert!(overlap("tenant-{a}", "tenant-x"));
        assert!(overlap("{a}", "tenant-{b}"));
        assert!(overlap("{a}-x", "y-{b}"));
        assert!(!overlap("default", "other"));
        assert!(!overlap("tenant-{a}", "tenant-"));
        assert!(!overlap("tenant-{a}", "default"));
        assert!(!overlap("a-{x}", "b-{x}"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_that_prints_as_it_was_or_an_error(text in r#"[a-c_{}."\\\[\]*$é -]{0,24}"#) {
            if let Ok(name) = KeyTemplate::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn what_resolves_matches(a in "[ab_-]{1,6}", b in "[ab_-]{1,6}", text in "(x-)?\\{a\\}[-_]{1,2}\\{b\\}(-y)?") {
            let pair = template(&text);
            if let Ok(name) = pair.resolve(&[a, b]) {
                prop_assert!(pair.matches(&name));
                prop_assert!(pair.overlaps(&template(&name)));
            }
        }

        #[test]
        fn one_name_comes_from_one_pair(a in "[ab-]{1,4}", b in "[ab-]{1,4}", c in "[ab-]{1,4}", d in "[ab-]{1,4}") {
            let pair = template("{a}-{b}");
            if let (Ok(first), Ok(second)) = (pair.resolve(&[&a, &b]), pair.resolve(&[&c, &d])) {
                prop_assert_eq!(first == second, (a, b) == (c, d));
            }
        }
    }
}
