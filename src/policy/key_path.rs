//! Places in a YAML document (`columns[2].bind_row`), as error messages name them.

use std::fmt::{self, Write as _};

/// One step down into a YAML document.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// A place in a YAML document. Displays as `columns[2].bind_row`; keys that are no plain words are quoted:
/// `keys["tenant-{tenant_id}"].arn`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPath(Vec<Step>);

impl KeyPath {
    /// The document itself.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// The value of `name` in the map at this place.
    #[must_use]
    pub fn key(&self, name: &str) -> Self {
        self.with(Step::Key(name.to_owned()))
    }

    /// The element `n` (from 0) of the list at this place.
    #[must_use]
    pub fn index(&self, n: usize) -> Self {
        self.with(Step::Index(n))
    }

    /// Whether this is the document itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The first step as a key or an index, and what follows it.
    pub(super) fn split_first(&self) -> Option<(StepRef<'_>, Self)> {
        let (first, rest) = self.0.split_first()?;
        let step = match first {
            Step::Key(name) => StepRef::Key(name),
            Step::Index(n) => StepRef::Index(*n),
        };
        Some((step, Self(rest.to_vec())))
    }
}

/// A borrowed step.
#[derive(Clone, Copy, Debug)]
pub(super) enum StepRef<'a> {
    Key(&'a str),
    Index(usize),
}

impl From<&serde_path_to_error::Path> for KeyPath {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment;

        let step = |segment: &Segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { variant } => Some(Step::Key(variant.clone())),
            Segment::Unknown => None,
        };
        Self(path.iter().map_while(step).collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(name) if is_plain(name) => {
                    if n > 0 {
                        f.write_char('.')?;
                    }
                    f.write_str(name)?;
                }
                Step::Key(name) => write!(f, "[{name:?}]")?,
            }
        }
        Ok(())
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_like_the_document() {
        let root = KeyPath::root();
        assert_eq!(
            root.key("columns").index(2).key("bind_row").to_string(),
            "columns[2].bind_row"
        );
        assert_eq!(
            root.key("keys").key("tenant-{id}").key("arn").to_string(),
            r#"keys["tenant-{id}"].arn"#
        );
        assert_eq!(root.to_string(), "");
    }
}
