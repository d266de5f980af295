//! Finds every occurrence of a policy's columns in a JSON record, and reads the whole record to do so.
//!
//! It answers with byte ranges; nothing is copied or rebuilt. A record that another parser might read
//! differently (or that hides a column behind another shape than the policy's) is refused, never passed:
//! [`Unlocatable`] makes it a dead letter.
//!
//! Two walkers find the same. The one here goes byte by byte, and says what is wrong and where. The other (`indexed.rs`)
//! goes by an index of the record's tokens and is several times as fast; it comes first where it can, and where it gives
//! up, the one here decides.

use std::ops::Range;
use std::sync::Arc;

use super::grammar;
use super::paths::{self, LocatorError, Meaning, Node};
use super::unlocatable::{MAX_HITS, Unlocatable};
use crate::policy::ColumnPath;

/// Columns and fields of one policy, compiled. Cheap to share.
pub struct Locator {
    nodes: Vec<Node>,
}

/// What was found in one record, and the working memory for it: reuse it from record to record.
#[derive(Default)]
pub struct Found {
    /// Occurrences of columns: ascending, never overlapping.
    pub hits: Vec<Hit>,
    /// Occurrences of fields, in the order of their first byte.
    pub fields: Vec<FieldHit>,
    indexes: Vec<u32>,
    pub(super) frames: Vec<Frame>,
    name: Vec<u8>,
    #[cfg(feature = "locator-index")]
    pub(super) index: Option<Box<sealflow_json_index::Index>>,
}

/// One occurrence of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Position of the column in the list given to [`Locator::new`].
    pub column: u16,
    /// First byte of the JSON value.
    pub start: u32,
    /// The byte after its last.
    pub end: u32,
    first_index: u32,
    lists: u8,
}

/// One occurrence of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldHit {
    /// Position of the field in the list given to [`Locator::new`].
    pub field: u16,
    /// First byte of the JSON value.
    pub start: u32,
    /// The byte after its last.
    pub end: u32,
}

impl Hit {
    /// The bytes of the JSON value in the record.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl FieldHit {
    /// The bytes of the JSON value in the record.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl Found {
    /// The array index at each `[*]` of the hit's path, outermost first.
    #[must_use]
    pub fn indexes(&self, hit: &Hit) -> &[u32] {
        let first = hit.first_index as usize;
        &self.indexes[first..first + usize::from(hit.lists)]
    }

    /// Whether the same was found.
    #[cfg(all(feature = "locator-index", any(test, feature = "testing")))]
    pub(super) fn has_same(&self, other: &Self) -> bool {
        (&self.hits, &self.fields, &self.indexes) == (&other.hits, &other.fields, &other.indexes)
    }

    fn clear(&mut self) {
        self.hits.clear();
        self.fields.clear();
        self.indexes.clear();
        self.frames.clear();
    }

    /// Adds an occurrence of a column, in the containers that are open.
    pub(super) fn hit(&mut self, column: u16, start: usize, end: usize) -> Result<(), Unlocatable> {
        if self.hits.len() >= MAX_HITS {
            return Err(Unlocatable::TooManyValues);
        }
        let first_index = self.indexes.len();
        // `position` of a list that is open counts from 1.
        let lists = self.frames.iter().filter(|frame| !frame.is_object);
        self.indexes.extend(lists.map(|frame| frame.position - 1));
        // Depth is at most MAX_DEPTH = 128, so the count fits.
        let lists = (self.indexes.len() - first_index) as u8;
        self.hits.push(Hit {
            column,
            start: offset(start),
            end: offset(end),
            first_index: offset(first_index),
            lists,
        });
        Ok(())
    }

    #[inline]
    pub(super) fn end_fields(&mut self, first: usize, count: usize, end: usize) {
        for field in self.fields.iter_mut().skip(first).take(count) {
            field.end = offset(end);
        }
    }

    /// What the member name `raw` means at `node`: the inside of a checked token that starts at `at`.
    pub(super) fn meaning(
        &mut self,
        node: &Node,
        at: usize,
        raw: &[u8],
        escaped: bool,
    ) -> Result<Meaning, Unlocatable> {
        let name = if escaped {
            let name = &mut self.name;
            name.clear();
            let decoded = grammar::unescape(raw, name);
            // Others replace, drop or keep half a pair, and some end a name at U+0000.
            if node.expects_container() && (decoded.is_err() || name.contains(&0)) {
                return Err(Unlocatable::AmbiguousName { at });
            }
            if decoded.is_err() {
                return Ok(Meaning::Other);
            }
            &self.name
        } else {
            raw
        };
        match node.member(name) {
            Meaning::Flattened => Err(Unlocatable::FlattenedName {
                column: example(node),
                at,
            }),
            meaning => Ok(meaning),
        }
    }
}

impl Locator {
    /// Compiles `columns`, the paths to seal, and `fields`, the paths of clear scalars to read (row ids, key
    /// templates). Hits name them by their position.
    pub fn new(columns: &[ColumnPath], fields: &[ColumnPath]) -> Result<Self, LocatorError> {
        Ok(Self {
            nodes: paths::compile(columns, fields)?,
        })
    }

    /// Finds every occurrence in `record`, one JSON document with white space around it at most.
    ///
    /// Duplicated members are all found. A null on the way to a column is as if the member were missing.
    /// After an error `found` is to be ignored.
    pub fn locate(&self, record: &[u8], found: &mut Found) -> Result<(), Unlocatable> {
        #[cfg(feature = "locator-index")]
        if super::indexed::is_worth_it() && self.locate_indexed(record, found) {
            return Ok(());
        }
        self.locate_bytewise(record, found)
    }

    /// Whether the walk of the index finds what there is; if not, it may be there all the same.
    #[cfg(feature = "locator-index")]
    pub(super) fn locate_indexed(&self, record: &[u8], found: &mut Found) -> bool {
        found.clear();
        super::indexed::locate(&self.nodes, record, found).is_ok()
    }

    pub(super) fn locate_bytewise(&self, record: &[u8], found: &mut Found) -> Result<(), Unlocatable> {
        found.clear();
        check_encoding(record)?;
        let start = grammar::space(record, 0);
        if start == record.len() {
            return Err(Unlocatable::Empty);
        }
        let mut walk = Walk {
            nodes: &self.nodes,
            text: record,
            found,
        };
        let end = walk.document(start)?;
        let end = grammar::space(record, end);
        if end != record.len() {
            return Err(Unlocatable::TrailingBytes { at: end });
        }
        Ok(())
    }
}

pub(crate) fn check_encoding(record: &[u8]) -> Result<(), Unlocatable> {
    if u32::try_from(record.len()).is_err() {
        return Err(Unlocatable::TooLarge);
    }
    let marks: [&[u8]; 4] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"];
    if marks.iter().any(|mark| record.starts_with(mark)) {
        return Err(Unlocatable::ByteOrderMark);
    }
    match std::str::from_utf8(record) {
        Ok(_) => Ok(()),
        Err(error) => Err(Unlocatable::InvalidUtf8 {
            at: error.valid_up_to(),
        }),
    }
}

/// A container that is being walked through, because columns or fields lie below.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub(super) node: u32,
    /// Elements begun; for objects whether a member was seen.
    pub(super) position: u32,
    pub(super) is_object: bool,
    /// The fields that are this very container, whose end is not known yet: a range of `Found::fields`.
    pub(super) first_field: u32,
    pub(super) fields: u32,
}

struct Walk<'a> {
    nodes: &'a [Node],
    text: &'a [u8],
    found: &'a mut Found,
}

impl Walk<'_> {
    /// Walks the document whose value starts at `at`; returns its end.
    fn document(&mut self, at: usize) -> Result<usize, Unlocatable> {
        let mut at = self.value(0, at)?;
        while let Some(frame) = self.found.frames.last().copied() {
            at = if frame.is_object {
                self.next_member(frame, at)?
            } else {
                self.next_element(frame, at)?
            };
        }
        Ok(at)
    }

    /// Takes the value at `at`, which belongs to `node`: measures it, or opens a frame for it. Returns where to
    /// go on.
    fn value(&mut self, node: u32, at: usize) -> Result<usize, Unlocatable> {
        let nodes = self.nodes;
        let node_id = node;
        let node = &nodes[node as usize];
        let depth = self.found.frames.len();
        if let Some(column) = node.column {
            let end = grammar::value(self.text, at, depth)?;
            self.found.hit(column, at, end)?;
            return Ok(end);
        }
        let first = self.text.get(at).copied();
        self.check_type(node, first, at)?;
        let (is_object, enters) = match first {
            Some(b'{') => (true, node.looks_into_members()),
            Some(b'[') => (false, node.each.is_some()),
            _ => (false, false),
        };
        let first_field = self.found.fields.len();
        for field in &node.fields {
            self.found.fields.push(FieldHit {
                field: *field,
                start: offset(at),
                end: offset(at),
            });
        }
        if !enters {
            let end = grammar::value(self.text, at, depth)?;
            self.found.end_fields(first_field, node.fields.len(), end);
            return Ok(end);
        }
        grammar::check_depth(depth + 1, at)?;
        self.found.frames.push(Frame {
            node: node_id,
            position: 0,
            is_object,
            first_field: offset(first_field),
            fields: offset(node.fields.len()),
        });
        Ok(at + 1)
    }

    /// Goes on in an object: the next member, or its end.
    fn next_member(&mut self, frame: Frame, at: usize) -> Result<usize, Unlocatable> {
        let nodes = self.nodes;
        let node = &nodes[frame.node as usize];
        let depth = self.found.frames.len();
        let mut at = grammar::space(self.text, at);
        let mut first = frame.position == 0;
        loop {
            match self.text.get(at) {
                Some(b'}') => return Ok(self.close(at)),
                Some(b',') if !first => at = grammar::space(self.text, at + 1),
                _ if first => {}
                _ => return Err(grammar::unexpected(self.text, at).into()),
            }
            if self.text.get(at) != Some(&b'"') {
                return Err(grammar::unexpected(self.text, at).into());
            }
            let name = grammar::string(self.text, at + 1)?;
            let raw = &self.text[at + 1..name.end - 1];
            let meaning = self.found.meaning(node, at, raw, name.escaped)?;
            let value = grammar::colon(self.text, name.end)?;
            if let Meaning::Node(next) = meaning {
                if let Some(frame) = self.found.frames.last_mut() {
                    frame.position = 1;
                }
                return self.value(next, value);
            }
            // The common case, a member that is nobody's, stays in this loop.
            let end = match self.text.get(value) {
                Some(b'"') => grammar::string(self.text, value + 1)?.end,
                _ => grammar::value(self.text, value, depth)?,
            };
            at = grammar::space(self.text, end);
            first = false;
        }
    }

    /// Goes on in an array: the next element, or its end.
    fn next_element(&mut self, frame: Frame, at: usize) -> Result<usize, Unlocatable> {
        let mut at = grammar::space(self.text, at);
        // `position` counts the elements already begun.
        let first = frame.position == 0;
        match self.text.get(at) {
            Some(b']') => return Ok(self.close(at)),
            Some(b',') if !first => at = grammar::space(self.text, at + 1),
            _ if first => {}
            _ => return Err(grammar::unexpected(self.text, at).into()),
        }
        if let Some(frame) = self.found.frames.last_mut() {
            frame.position += 1;
        }
        // A frame for an array is only opened at a node with `each`.
        let each = self.nodes[frame.node as usize].each.unwrap_or_default();
        self.value(each, at)
    }

    /// Closes the innermost container, whose bracket is at `at`.
    fn close(&mut self, at: usize) -> usize {
        if let Some(frame) = self.found.frames.pop() {
            self.found
                .end_fields(frame.first_field as usize, frame.fields as usize, at + 1);
        }
        at + 1
    }

    /// Refuses a value of another type than the columns below `node` go through.
    #[inline]
    fn check_type(&self, node: &Node, first: Option<u8>, at: usize) -> Result<(), Unlocatable> {
        let fits = match first {
            Some(b'{') => node.column_in_members || !node.column_in_elements,
            Some(b'[') => node.column_in_elements || !node.column_in_members,
            _ => !node.expects_container() || self.text[at..].starts_with(b"null"),
        };
        if fits { Ok(()) } else { Err(wrong_type(node, first, at)) }
    }
}

#[cold]
fn wrong_type(node: &Node, first: Option<u8>, at: usize) -> Unlocatable {
    let expected = match (node.column_in_members, node.column_in_elements) {
        (true, true) => "an object or an array",
        (true, false) => "an object",
        _ => "an array",
    };
    let found = match first {
        None => return Unlocatable::Truncated { at },
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'-' | b'0'..=b'9') => "a number",
        Some(_) => return Unlocatable::InvalidJson { at },
    };
    Unlocatable::WrongType {
        column: example(node),
        expected,
        found,
        at,
    }
}

fn example(node: &Node) -> Arc<str> {
    node.example.clone().unwrap_or_else(|| "".into())
}

/// Offsets fit: `check_encoding` refuses records over `u32::MAX` bytes, and no list here is longer than the
/// record times the cap on columns that share a place.
#[inline]
pub(super) fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Appends `record` to `out` with `replacements` (ascending, not overlapping) in place; every other byte stays.
pub fn splice<'a>(record: &[u8], replacements: impl Iterator<Item = (Range<usize>, &'a [u8])>, out: &mut Vec<u8>) {
    let mut at = 0;
    for (range, replacement) in replacements {
        out.extend_from_slice(&record[at..range.start]);
        out.extend_from_slice(replacement);
        at = range.end;
    }
    out.extend_from_slice(&record[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> Vec<ColumnPath> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// (column, indexes, text) of each hit.
    type Hits = Vec<(u16, Vec<u32>, String)>;

    /// What both walkers find.
    fn found(locator: &Locator, record: &[u8]) -> Result<Found, Unlocatable> {
        #[cfg(feature = "locator-index")]
        return crate::columns::indexed::compared(locator, record);
        #[cfg(not(feature = "locator-index"))]
        {
            let mut found = Found::default();
            locator.locate(record, &mut found).map(|()| found)
        }
    }

    /// The hits, or the code.
    fn located(columns: &[&str], record: &str) -> Result<Hits, &'static str> {
        let locator = Locator::new(&paths(columns), &[]).unwrap();
        let found = found(&locator, record.as_bytes()).map_err(|error| error.code())?;
        let text = |hit: &Hit| record[hit.range()].to_owned();
        Ok(found
            .hits
            .iter()
            .map(|hit| (hit.column, found.indexes(hit).to_vec(), text(hit)))
            .collect())
    }

    fn texts(columns: &[&str], record: &str) -> Result<Vec<String>, &'static str> {
        Ok(located(columns, record)?.into_iter().map(|(_, _, text)| text).collect())
    }

    fn ok(texts: &[&str]) -> Result<Vec<String>, &'static str> {
        Ok(texts.iter().map(|&text| text.to_owned()).collect())
    }

    #[test]
    fn values_are_found_where_the_policy_says_with_their_list_indexes() {
        let record =
            r#" {"id":7,"cards":[{"n":"a","x":[1]},{"n" : {"k":[2]} },{}],"m":[[1,2],[],[3]],"user":{"email":null}} "#;
        let hits = located(&["user.email", "cards[*].n", "m[*][*]"], record).unwrap();
        let expected = [
            (1, vec![0], "\"a\""),
            (1, vec![1], "{\"k\":[2]}"),
            (2, vec![0, 0], "1"),
            (2, vec![0, 1], "2"),
            (2, vec![2, 0], "3"),
            (0, vec![], "null"),
        ];
        assert_eq!(
            hits,
            expected.map(|(column, indexes, text)| (column, indexes, text.to_owned()))
        );
    }

    #[test]
    fn every_occurrence_of_a_duplicated_member_is_found() {
        assert_eq!(
            texts(&["card"], r#"{"card":1,"card":2,"email":3,"\u0063ard":4}"#),
            ok(&["1", "2", "4"])
        );
        assert_eq!(
            texts(&["u.e"], r#"{"u":{"e":1,"e":2},"u":null,"\u0075":{"\u0065":3}}"#),
            ok(&["1", "2", "3"])
        );
    }

    #[test]
    fn another_shape_than_the_policys_is_refused() {
        for record in [
            r#"{"u":[{"e":1}]}"#,
            r#"{"u":"{\"e\":1}"}"#,
            r#"{"u":1}"#,
            r#"{"u":true}"#,
            r#"{"u":[]}"#,
            r#"[{"u":{"e":1}}]"#,
            "1",
        ] {
            assert_eq!(texts(&["u.e"], record), Err("wrong-type"), "{record}");
        }
        for record in [r#"{"c":{"0":1}}"#, r#"{"c":1}"#, r#"{"c":{}}"#] {
            assert_eq!(texts(&["c[*]"], record), Err("wrong-type"), "{record}");
        }
        for record in ["{}", "null", r#"{"u":null}"#, r#"{"u":{}}"#, r#"{"v":[1]}"#] {
            assert_eq!(texts(&["u.e"], record), ok(&[]), "{record}");
        }
        // A policy that declares both shapes takes both.
        assert_eq!(
            texts(&["e.m", "e[*].m"], r#"{"e":{"m":1},"e":[{"m":2}]}"#),
            ok(&["1", "2"])
        );
    }

    #[test]
    fn flattened_names_are_refused_unless_the_policy_has_them() {
        for (path, record) in [
            ("u.e", r#"{"u.e":1}"#),
            ("u.e", r#"{"u\u002ee":1}"#),
            ("a.b.c", r#"{"a.b":{"c":1}}"#),
            ("a.b.c", r#"{"a":{"b.c":1}}"#),
            ("a[*].b", r#"{"a.b":[1]}"#),
            ("a[*].b", r#"{"a.0.b":1}"#),
            ("a[*].b", r#"{"a[0]":{"b":1}}"#),
            ("a[*]", r#"{"a.1":1}"#),
            ("[*].a.b", r#"[{"a.b":1}]"#),
            (r#""x.y".z"#, r#"{"x.y.z":1}"#),
        ] {
            assert_eq!(texts(&[path], record), Err("flattened-name"), "{path} in {record}");
        }
        assert_eq!(texts(&["u.e", r#""u.e""#], r#"{"u.e":1,"u":{"e":2}}"#), ok(&["1", "2"]));
        assert_eq!(texts(&["u.e"], r#"{"e":1,"v.e":1,"u.f":1,"w":{"u.e":1}}"#), ok(&[]));
        assert_eq!(texts(&[r#""x.y"[*].z"#], r#"{"x.y":[{"z":1}]}"#), ok(&["1"]));
    }

    #[test]
    fn names_that_parsers_read_differently_are_refused_where_they_matter() {
        assert_eq!(texts(&["card"], r#"{"ca\ud800rd":1}"#), Err("ambiguous-name"));
        assert_eq!(texts(&["card"], r#"{"card\u0000":1}"#), Err("ambiguous-name"));
        assert_eq!(texts(&["card"], r#"{"other":{"card\u0000":1,"\ud800":2}}"#), ok(&[]));
    }

    #[test]
    fn a_name_as_long_as_a_record_is_looked_at_once() {
        // Looked at from each bracket to its end, these would take a minute each.
        for part in ["[", "[1", "[*", ".1[", "[x]"] {
            let name = part.repeat((1 << 20) / part.len());
            assert_eq!(texts(&["u.e"], &format!("{{\"{name}\":1}}")), ok(&[]), "{part}");
        }
        assert_eq!(texts(&["u.e"], r#"{"u[1[0].e":1}"#), ok(&[]));
        assert_eq!(texts(&["u[*].e"], r#"{"u[][*][10].e":1}"#), Err("flattened-name"));
    }

    #[test]
    fn fields_are_reported_with_all_their_occurrences() {
        let locator = Locator::new(&paths(&["u.e"]), &paths(&["id", "u.t", "o", "id"])).unwrap();
        let record = br#"{"id":1,"u":{"t":"x","e":2},"o":{"a":[1]},"id":[2]}"#;
        let found = found(&locator, record).unwrap();
        let fields: Vec<(u16, &[u8])> = found.fields.iter().map(|f| (f.field, &record[f.range()])).collect();
        let expected: [(u16, &[u8]); 6] = [
            (0, b"1"),
            (3, b"1"),
            (1, b"\"x\""),
            (2, b"{\"a\":[1]}"),
            (0, b"[2]"),
            (3, b"[2]"),
        ];
        assert_eq!(fields, expected);
        assert_eq!(found.hits.len(), 1);
    }

    #[test]
    fn a_field_that_is_a_container_with_fields_below_keeps_its_whole_range() {
        let locator = Locator::new(&[], &paths(&["o", "o.a", "o.a[*]"])).unwrap();
        let record = br#"{"o":{"a":[1, {}] }}"#;
        let found = found(&locator, record).unwrap();
        let fields: Vec<(u16, &[u8])> = found.fields.iter().map(|f| (f.field, &record[f.range()])).collect();
        let expected: [(u16, &[u8]); 4] = [(0, b"{\"a\":[1, {}] }"), (1, b"[1, {}]"), (2, b"1"), (2, b"{}")];
        assert_eq!(fields, expected);
    }

    #[test]
    fn the_whole_document_is_checked_also_beside_the_columns() {
        for (record, code) in [
            ("", "empty-record"),
            (" \n", "empty-record"),
            ("\u{feff}{}", "byte-order-mark"),
            ("{} {}", "trailing-bytes"),
            ("{}\0", "trailing-bytes"),
            (r#"{"a":1"#, "truncated-json"),
            (r#"{"a":1,}"#, "invalid-json"),
            (r#"{"b":NaN}"#, "invalid-json"),
            (r#"{"b":"\x"}"#, "invalid-escape"),
            ("{\"b\":\"\t\"}", "control-character"),
            (r#"{"a":1 "b":2}"#, "invalid-json"),
            (r#"{"b":[1,]}"#, "invalid-json"),
            (r#"{'a':1}"#, "invalid-json"),
            (r#"{,"a":1}"#, "invalid-json"),
            (r#"{"b":01}"#, "invalid-json"),
            ("{\"a\"}", "invalid-json"),
            ("{", "truncated-json"),
        ] {
            assert_eq!(texts(&["a"], record), Err(code), "{record}");
        }
        let locator = Locator::new(&paths(&["a"]), &[]).unwrap();
        let error = found(&locator, b"{\"b\":\"\xff\"}").err();
        assert_eq!(error, Some(Unlocatable::InvalidUtf8 { at: 6 }));
    }

    #[test]
    fn nesting_and_the_number_of_values_are_bounded() {
        let nest = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert_eq!(texts(&["a"], &nest(127)).map(|hits| hits.len()), Ok(1));
        assert_eq!(texts(&["a"], &nest(128)), Err("too-deep"));
        assert_eq!(texts(&["b"], &nest(128)), Err("too-deep"));
        let many = |n: usize| format!("[{}1]", "1,".repeat(n - 1));
        assert_eq!(texts(&["[*]"], &many(MAX_HITS)).map(|hits| hits.len()), Ok(MAX_HITS));
        assert_eq!(texts(&["[*]"], &many(MAX_HITS + 1)), Err("too-many-values"));
    }

    #[test]
    fn messages_name_the_column_and_the_place_but_no_value() {
        let locator = Locator::new(&paths(&["user.email"]), &[]).unwrap();
        let error = found(&locator, br#"{"user":"canary"}"#).err().unwrap();
        assert_eq!(
            error.to_string(),
            "an object expected on the way to user.email, found a string at byte 8"
        );
    }

    #[test]
    fn splicing_leaves_every_other_byte() {
        let record = br#"{ "a" : 1 , "b":2}"#;
        let mut out = Vec::new();
        splice(record, [(8..9, &b"\"x\""[..]), (16..17, b"")].into_iter(), &mut out);
        assert_eq!(out, br#"{ "a" : "x" , "b":}"#);
    }
}
