//! JSON objects of strings, read strictly: no duplicated members, no other types.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use zeroize::Zeroizing;

/// The members of a JSON object whose values are strings or such objects. Strings are wiped on drop, since
/// one may be a private key.
#[derive(Default)]
pub(super) struct Members(BTreeMap<String, Member>);

enum Member {
    Text(Zeroizing<String>),
    Members(Members),
}

impl Members {
    /// Reads one object, and nothing after it.
    pub(super) fn from_json(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// Whether there is a member `name`, of whatever kind.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The string member `name`.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(Member::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The object member `name`.
    pub(super) fn object(&self, name: &str) -> Option<&Self> {
        match self.0.get(name) {
            Some(Member::Members(members)) => Some(members),
            _ => None,
        }
    }

    /// The first member that is none of `known`.
    pub(super) fn other_than(&self, known: &[&str]) -> Option<&str> {
        self.0.keys().map(String::as_str).find(|name| !known.contains(name))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MemberVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((name, member)) = map.next_entry::<String, Member>()? {
            if members.insert(name, member).is_some() {
                return Err(A::Error::custom("a duplicated member"));
            }
        }
        Ok(Members(members))
    }
}

struct MemberVisitor;

impl<'de> Visitor<'de> for MemberVisitor {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an object")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Member, E> {
        Ok(Member::Text(Zeroizing::new(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Member, A::Error> {
        MembersVisitor.visit_map(map).map(Member::Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_of_strings_without_duplicates_are_read() {
        let read = |json: &str| Members::from_json(json.as_bytes());
        let members = read(r#" {"a":"x","o":{"b":"y"}} "#).unwrap();
        assert_eq!(
            (members.text("a"), members.text("o"), members.text("c")),
            (Some("x"), None, None)
        );
        assert_eq!(members.object("o").and_then(|o| o.text("b")), Some("y"));
        assert_eq!(members.other_than(&["a"]), Some("o"));
        for json in [
            r#"{"a":"x","a":"x"}"#,
            r#"{"a":"x","\u0061":"x"}"#,
            r#"{"o":{"b":"y","b":"y"}}"#,
            r#"["a"]"#,
            r#"{"a":["x"]}"#,
            r#"{"a":1}"#,
            r#"{"a":null}"#,
            r#"{"a":"x"}{}"#,
            "",
        ] {
            assert!(read(json).is_none(), "{json}");
        }
    }
}
