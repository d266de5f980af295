//! Checks of the locator and the value codec against `serde_json`, for property tests and fuzz targets. They
//! panic when the two disagree.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::columns::json::{decode_json, encode_json, encode_len_bound};
use crate::columns::{Found, Locator, Unlocatable, coerce, member_range, splice};
use crate::policy::{ColumnPath, DomainType, Segment};
use crate::seal::Plaintext;
use crate::seal::plaintext::TimeUnit;

/// Short names, so that a fuzzer finds them.
const COLUMNS: [&str; 6] = ["a", "b.c", "d[*].e", "f[*][*]", "b.\"c.d\"", "g.h.i"];
const FIELDS: [&str; 2] = ["x", "b.y"];

/// (path, list indexes, start, end)
type Occurrence = (usize, Vec<u32>, usize, usize);

/// Locates a fixed set of columns in `record`, and compares with a slow walk over what `serde_json` reads.
pub fn check_locate(record: &[u8]) {
    let (columns, fields) = (paths(&COLUMNS), paths(&FIELDS));
    let Ok(locator) = Locator::new(&columns, &fields) else {
        return;
    };
    let mut found = Found::default();
    let located = locator.locate(record, &mut found);
    #[cfg(feature = "locator-index")]
    assert_eq!(
        crate::columns::indexed::compared(&locator, record).err(),
        located.clone().err(),
        "both walkers"
    );
    let text = std::str::from_utf8(record)
        .ok()
        .filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    let Some(text) = text else {
        assert!(located.is_err(), "located in what is not JSON");
        return;
    };
    match located {
        Ok(()) => {}
        // Stricter than the grammar, on purpose.
        Err(
            Unlocatable::TooDeep { .. }
            | Unlocatable::TooManyValues
            | Unlocatable::WrongType { .. }
            | Unlocatable::FlattenedName { .. }
            | Unlocatable::AmbiguousName { .. },
        ) => return,
        Err(error) => {
            assert!(
                serde_json::from_str::<IgnoredAny>(text).is_err(),
                "refused JSON as {}",
                error.code()
            );
            return;
        }
    }
    let hits: Vec<Occurrence> = found
        .hits
        .iter()
        .map(|hit| {
            (
                usize::from(hit.column),
                found.indexes(hit).to_vec(),
                hit.start as usize,
                hit.end as usize,
            )
        })
        .collect();
    assert!(hits.windows(2).all(|pair| pair[0].3 <= pair[1].2), "hits overlap");
    assert_eq!(sorted(hits), occurrences(text, &columns, true), "columns");
    let fields_found = found
        .fields
        .iter()
        .map(|hit| (usize::from(hit.field), Vec::new(), hit.start as usize, hit.end as usize));
    assert_eq!(
        sorted(fields_found.collect()),
        occurrences(text, &fields, false),
        "fields"
    );
    check_cut(text, &columns, &found);
}

/// Cuts every occurrence that is a member, as opening does with hints: what is left is JSON without them.
fn check_cut(text: &str, columns: &[ColumnPath], found: &Found) {
    let is_member = |column: usize| matches!(columns[column].segments().last(), Some(Segment::Name(_)));
    let mut cut = 0;
    let mut ranges = Vec::new();
    for hit in &found.hits {
        let range = member_range(text.as_bytes(), hit.range(), cut);
        assert_eq!(range.is_some(), is_member(usize::from(hit.column)), "a member is cut");
        if let Some(range) = range {
            cut = range.end;
            ranges.push((range, &b""[..]));
        }
    }
    let mut rest = Vec::new();
    splice(text.as_bytes(), ranges.into_iter(), &mut rest);
    let rest = String::from_utf8(rest).unwrap_or_default();
    assert!(
        serde_json::from_str::<IgnoredAny>(&rest).is_ok(),
        "what is left is JSON"
    );
    let left = occurrences(&rest, columns, true);
    assert!(left.iter().all(|(column, ..)| !is_member(*column)), "a member is left");
}

/// Encodes `text` if it is one JSON value, and checks that it comes back, also as every domain type that takes
/// it.
pub fn check_json_value(text: &[u8]) {
    let Ok(utf8) = std::str::from_utf8(text) else { return };
    // A raw value stands without white space around it.
    let is_value = serde_json::from_str::<&RawValue>(utf8).is_ok_and(|value| value.get() == utf8);
    for pad_to in [None, Some(16)] {
        let mut encoding = Vec::new();
        encode_json(text, pad_to, &mut encoding);
        assert!(encoding.len() <= encode_len_bound(text.len(), pad_to));
        assert_eq!(json_of(&encoding).as_deref(), Some(text), "comes back");
        if is_value && let Ok(Plaintext::Utf8(decoded)) = Plaintext::decode(&encoding) {
            assert_eq!(
                serde_json::from_str::<String>(utf8).ok().as_deref(),
                Some(decoded),
                "the text itself"
            );
        }
    }
    for to in domain_types() {
        let mut first = Vec::new();
        if coerce(text, &to, None, &mut first).is_err() {
            continue;
        }
        let mut second = Vec::new();
        let opened = json_of(&first).unwrap_or_default();
        assert!(coerce(&opened, &to, None, &mut second).is_ok(), "coerces again");
        assert_eq!(first, second, "equal values, equal encodings");
    }
}

fn json_of(encoding: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    decode_json(encoding, &mut out).ok()?;
    Some(out)
}

fn domain_types() -> [DomainType; 9] {
    [
        DomainType::Utf8,
        DomainType::Integer,
        DomainType::Bool,
        DomainType::Float64,
        DomainType::Decimal { scale: 2 },
        DomainType::Bytes,
        DomainType::Date,
        DomainType::Timestamp {
            unit: TimeUnit::Millisecond,
            zone: Some("UTC".to_owned()),
        },
        DomainType::Timestamp {
            unit: TimeUnit::Second,
            zone: None,
        },
    ]
}

fn paths(texts: &[&str]) -> Vec<ColumnPath> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn sorted(mut occurrences: Vec<Occurrence>) -> Vec<Occurrence> {
    occurrences.sort();
    occurrences
}

/// Where the paths lead in `text`; with `strict`, other types on the way are a failure (the locator accepted).
fn occurrences(text: &str, paths: &[ColumnPath], strict: bool) -> Vec<Occurrence> {
    let mut walk = Walk {
        text,
        strict,
        occurrences: Vec::new(),
    };
    for (n, path) in paths.iter().enumerate() {
        walk.down(n, text, path.segments(), &mut Vec::new());
    }
    sorted(walk.occurrences)
}

struct Walk<'t> {
    text: &'t str,
    strict: bool,
    occurrences: Vec<Occurrence>,
}

impl Walk<'_> {
    fn down(&mut self, path: usize, value: &str, segments: &[Segment], indexes: &mut Vec<u32>) {
        let value = value.trim_matches([' ', '\t', '\r', '\n']);
        let Some((segment, rest)) = segments.split_first() else {
            // A slice of `self.text`, so the difference of the addresses is its offset.
            let start = value.as_ptr() as usize - self.text.as_ptr() as usize;
            self.occurrences
                .push((path, indexes.clone(), start, start + value.len()));
            return;
        };
        match (segment, value.as_bytes().first()) {
            (Segment::Name(name), Some(b'{')) => {
                for (found, value) in members(value) {
                    if found == name.as_bytes() {
                        self.down(path, value, rest, indexes);
                    }
                }
            }
            (Segment::Each, Some(b'[')) => {
                for (index, value) in elements(value).into_iter().enumerate() {
                    indexes.push(u32::try_from(index).unwrap_or(u32::MAX));
                    self.down(path, value, rest, indexes);
                    indexes.pop();
                }
            }
            _ => assert!(value == "null" || !self.strict, "another type on the way was accepted"),
        }
    }
}

/// Names (decoded) and values of an object, duplicates included.
fn members(object: &str) -> Vec<(Vec<u8>, &str)> {
    let mut deserializer = serde_json::Deserializer::from_str(object);
    let members = deserializer.deserialize_map(Members);
    assert!(members.is_ok(), "serde_json read it before");
    members.unwrap_or_default()
}

fn elements(array: &str) -> Vec<&str> {
    let mut deserializer = serde_json::Deserializer::from_str(array);
    let elements = deserializer.deserialize_seq(Elements);
    assert!(elements.is_ok(), "serde_json read it before");
    elements.unwrap_or_default()
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Vec<u8>, &'de str)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = map.next_key_seed(NameBytes)? {
            members.push((name, map.next_value::<&RawValue>()?.get()));
        }
        Ok(members)
    }
}

struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(value) = seq.next_element::<&RawValue>()? {
            elements.push(value.get());
        }
        Ok(elements)
    }
}

/// A member name as bytes: halves of surrogate pairs do not fail.
struct NameBytes;

impl<'de> DeserializeSeed<'de> for NameBytes {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for NameBytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<Vec<u8>, E> {
        Ok(name.to_vec())
    }

    fn visit_str<E>(self, name: &str) -> Result<Vec<u8>, E> {
        Ok(name.as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// JSON-like texts of the names and shapes that the fixed columns are about, seldom broken.
    fn any_record() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "a",
            "b",
            "c",
            "d",
            "e",
            "f",
            "g",
            "h",
            "i",
            "x",
            "y",
            "\\u0061",
            "\\u0062",
            "c.d",
            "c\\u002ed",
            "b.c",
            "g.h",
            "h.i",
            "\\ud800",
            "a\\u0000",
            "",
        ]);
        let leaf = prop::sample::select(vec![
            "null",
            "1",
            "-0.5e3",
            "\"text\"",
            "\"\\ud800\"",
            "\"\\u00e9\"",
            "true",
            "[]",
            "{}",
            "{\"c\":1}",
            "[[1,2],[3]]",
            "1e",
            "nul",
        ]);
        leaf.prop_map(str::to_owned).prop_recursive(5, 40, 5, move |inner| {
            let space = prop::sample::select(vec!["", "", "", " ", "\n\t"]);
            let object =
                prop::collection::vec((name.clone(), space.clone(), inner.clone()), 0..5).prop_map(|members| {
                    let members: Vec<_> = members
                        .iter()
                        .map(|(name, ws, value)| format!("{ws}\"{name}\"{ws}:{ws}{value}{ws}"))
                        .collect();
                    format!("{{{}}}", members.join(","))
                });
            let array = prop::collection::vec((space, inner), 0..4).prop_map(|elements| {
                let elements: Vec<_> = elements.iter().map(|(ws, value)| format!("{ws}{value}{ws}")).collect();
                format!("[{}]", elements.join(","))
            });
            prop_oneof![3 => object, 1 => array]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        #[test]
        fn the_locator_finds_what_serde_json_reads(record in any_record()) {
            check_locate(record.as_bytes());
        }

        #[test]
        fn a_damaged_record_is_accepted_by_both_or_by_none(record in any_record(), at: prop::sample::Index, byte: u8) {
            let mut record = record.into_bytes();
            let at = at.index(record.len());
            record[at] = byte;
            check_locate(&record);
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            check_locate(&bytes);
            check_json_value(&bytes);
        }

        #[test]
        fn values_near_json_come_back(text in "[0-9.eE+\"\\\\u-]{0,20}") {
            check_json_value(text.as_bytes());
        }
    }
}
