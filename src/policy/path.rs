//! Column paths (`user.email`, `cards[*].number`, `$key`, `$header.trace-id`) and their canonical spelling,
//! which is the default label of a column (`docs/format.md`, "Labels").

use std::fmt::{self, Write as _};
use std::str::FromStr;

/// The longest path that is taken, in bytes.
pub const MAX_PATH_BYTES: usize = 1024;
/// The most segments a path may have.
pub const MAX_SEGMENTS: usize = 64;

/// Where a path starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Root {
    /// The record's value, a JSON document.
    Value,
    /// The record's key (`$key`), as bytes.
    Key,
    /// Every header of that name (`$header.NAME`), as bytes.
    Header(String),
}

/// One step down into a JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// The member of that (decoded) name.
    Name(String),
    /// Each element of an array (`[*]`).
    Each,
}

/// A field path over a record, for example `cards[*].number`.
///
/// `Display` prints the canonical spelling: segments of `[A-Za-z0-9_]+` as they are, others as JSON
/// strings, joined by dots, lists as `[*]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ColumnPath {
    root: Root,
    segments: Vec<Segment>,
}

/// Why a text is no column path.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathError {
    /// Nothing there.
    #[error("the path is empty")]
    Empty,
    /// Over [`MAX_PATH_BYTES`] or [`MAX_SEGMENTS`].
    #[error("the path is longer than {MAX_PATH_BYTES} bytes or {MAX_SEGMENTS} segments")]
    TooLong,
    /// A character that needs quotes, or a missing one.
    #[error("unexpected text at byte {at}: names other than [A-Za-z0-9_]+ are written as JSON strings, lists as [*]")]
    Unexpected {
        /// Byte offset in the path.
        at: usize,
    },
    /// A quoted segment that is no JSON string.
    #[error("the quoted name at byte {at} is no JSON string")]
    BadString {
        /// Byte offset of the opening quote.
        at: usize,
    },
    /// `$something` that is neither `$key` nor `$header.NAME`.
    #[error("unknown root, expected $key or $header.NAME (a member whose name starts with $ is written in quotes)")]
    UnknownRoot,
}

impl ColumnPath {
    /// A path of `segments` into the record's value.
    #[must_use]
    pub fn into_value(segments: Vec<Segment>) -> Self {
        Self {
            root: Root::Value,
            segments,
        }
    }

    /// Where the path starts.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The steps below the root; empty for `$key` and `$header.NAME`.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// How many `[*]` the path has.
    #[must_use]
    pub fn depth_of_lists(&self) -> usize {
        self.segments.iter().filter(|s| **s == Segment::Each).count()
    }

    /// Whether `self` names the same place as `other` or one that holds it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.root == other.root && other.segments.starts_with(&self.segments)
    }
}

impl FromStr for ColumnPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong);
        }
        if text == "$key" {
            return Ok(Self {
                root: Root::Key,
                segments: Vec::new(),
            });
        }
        if let Some(name) = text.strip_prefix("$header.") {
            return header(name, text.len() - name.len());
        }
        if text.starts_with('$') {
            return Err(PathError::UnknownRoot);
        }
        let segments = segments(text)?;
        if segments.len() > MAX_SEGMENTS {
            return Err(PathError::TooLong);
        }
        Ok(Self::into_value(segments))
    }
}

/// A header name: plain with `-` allowed (`$header.trace-id`), or a JSON string.
fn header(name: &str, at: usize) -> Result<ColumnPath, PathError> {
    let plain = !name.is_empty() && name.bytes().all(|b| is_plain(b) || b == b'-');
    let name = if plain {
        name.to_owned()
    } else {
        let (decoded, used) = quoted(name, at)?;
        if used != name.len() {
            return Err(PathError::Unexpected { at: at + used });
        }
        decoded
    };
    Ok(ColumnPath {
        root: Root::Header(name),
        segments: Vec::new(),
    })
}

fn segments(text: &str) -> Result<Vec<Segment>, PathError> {
    let mut segments = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("[*]") {
            segments.push(Segment::Each);
            at += 3;
            continue;
        }
        let mut start = at;
        if !segments.is_empty() {
            if !rest.starts_with('.') {
                return Err(PathError::Unexpected { at });
            }
            start += 1;
        }
        let rest = &text[start..];
        if rest.starts_with('"') {
            let (name, used) = quoted(rest, start)?;
            segments.push(Segment::Name(name));
            at = start + used;
            continue;
        }
        let used = rest.bytes().take_while(|b| is_plain(*b)).count();
        if used == 0 {
            return Err(PathError::Unexpected { at: start });
        }
        segments.push(Segment::Name(rest[..used].to_owned()));
        at = start + used;
    }
    Ok(segments)
}

/// The JSON string at the start of `text`, and the bytes it takes.
fn quoted(text: &str, at: usize) -> Result<(String, usize), PathError> {
    if !text.starts_with('"') {
        return Err(PathError::Unexpected { at });
    }
    let mut strings = serde_json::Deserializer::from_str(text).into_iter::<String>();
    match strings.next() {
        Some(Ok(name)) => Ok((name, strings.byte_offset())),
        _ => Err(PathError::BadString { at }),
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

impl fmt::Display for ColumnPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.root {
            Root::Value => {}
            Root::Key => return f.write_str("$key"),
            Root::Header(name) => {
                f.write_str("$header.")?;
                return name_to(f, name, |b| is_plain(b) || b == b'-');
            }
        }
        for (n, segment) in self.segments.iter().enumerate() {
            match segment {
                Segment::Each => f.write_str("[*]")?,
                Segment::Name(name) => {
                    if n > 0 {
                        f.write_char('.')?;
                    }
                    name_to(f, name, is_plain)?;
                }
            }
        }
        Ok(())
    }
}

fn name_to(f: &mut fmt::Formatter<'_>, name: &str, plain: fn(u8) -> bool) -> fmt::Result {
    if !name.is_empty() && name.bytes().all(plain) {
        return f.write_str(name);
    }
    let quoted = serde_json::to_string(name).map_err(|_| fmt::Error)?;
    f.write_str(&quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Result<String, PathError> {
        text.parse::<ColumnPath>().map(|path| path.to_string())
    }

    #[test]
    fn canonical_paths_print_as_they_parse() {
        for text in [
            "a",
            "user.email",
            "cards[*].number",
            "a[*][*]",
            "[*].x",
            "$key",
            "$header.trace-id",
            r#""a.b".c"#,
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(text));
        }
    }

    #[test]
    fn needless_quotes_and_escapes_fall_away() {
        assert_eq!(canonical(r#""\u0063ard"."x""#).as_deref(), Ok("card.x"));
    }

    #[test]
    fn hostile_paths_are_refused() {
        assert_eq!(canonical(""), Err(PathError::Empty));
        assert_eq!(canonical("a..b"), Err(PathError::Unexpected { at: 2 }));
        assert_eq!(canonical("a-b"), Err(PathError::Unexpected { at: 1 }));
        assert_eq!(canonical("a[0]"), Err(PathError::Unexpected { at: 1 }));
        assert_eq!(canonical("$value"), Err(PathError::UnknownRoot));
        assert_eq!(canonical("\"a"), Err(PathError::BadString { at: 0 }));
        assert_eq!(canonical("a."), Err(PathError::Unexpected { at: 2 }));
        assert_eq!(canonical(&"a".repeat(MAX_PATH_BYTES + 1)), Err(PathError::TooLong));
    }

    #[test]
    fn a_path_covers_what_lies_below_it() {
        let path = |t: &str| t.parse::<ColumnPath>().map_err(|e| e.to_string());
        assert_eq!(path("user").and_then(|a| Ok(a.covers(&path("user.email")?))), Ok(true));
        assert_eq!(path("user.email").and_then(|a| Ok(a.covers(&path("user")?))), Ok(false));
    }
}
