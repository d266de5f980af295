//! Column paths compiled into a tree that the locator walks beside the record.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::policy::{ColumnPath, Root, Segment};

/// Why a set of paths cannot be located.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocatorError {
    /// `$key` or `$header.NAME`: those are not in the record's value.
    #[error("{path} is not a path into the record's value")]
    NotInValue {
        /// The path.
        path: String,
    },
    /// The path without segments: the whole value.
    #[error("a path needs at least one segment")]
    NoSegments,
    /// One path names a place within another, or the same place.
    #[error("{path} lies within {outer}, which is sealed whole")]
    Covered {
        /// The inner path.
        path: String,
        /// The path that holds it.
        outer: String,
    },
    /// A field that must be read in clear is sealed, or holds something that is.
    #[error("{field} must be clear, but {column} is sealed")]
    FieldIsSealed {
        /// The field.
        field: String,
        /// The column.
        column: String,
    },
    /// More than 65,535 columns or fields.
    #[error("at most 65,535 columns and as many fields")]
    TooMany,
}

/// One place in the tree; index 0 is the root.
#[derive(Default)]
pub(super) struct Node {
    /// The column that ends here.
    pub(super) column: Option<u16>,
    /// The fields that end here.
    pub(super) fields: Vec<u16>,
    /// Members to go on with.
    members: Members,
    /// Elements to go on with.
    pub(super) each: Option<u32>,
    /// Whether a column (not only a field) goes on through a member, or through the elements.
    pub(super) column_in_members: bool,
    pub(super) column_in_elements: bool,
    /// Names that spell several segments of a column at once (`user.email`, `cards[0]`): a record with one is
    /// refused.
    flattened: Flattened,
    /// The first column at or below this node, for messages.
    pub(super) example: Option<Arc<str>>,
}

/// What a member name means at a node.
pub(super) enum Meaning {
    /// Nothing of interest below.
    Other,
    /// Go on at that node.
    Node(u32),
    /// Could be several segments of a column at once.
    Flattened,
}

impl Node {
    /// Whether members of an object here have to be looked at.
    pub(super) fn looks_into_members(&self) -> bool {
        !self.members.names.is_empty()
    }

    /// Whether a column lies below.
    pub(super) fn expects_container(&self) -> bool {
        self.column_in_members || self.column_in_elements
    }

    /// The node that the member leads to whose name has neither escapes nor dots nor `[`.
    #[cfg(feature = "locator-index")]
    #[inline]
    pub(super) fn plain_member(&self, name: &[u8]) -> Option<u32> {
        self.members.get(name)
    }

    /// Which bytes, by their lower six bits, members' names begin with; with a quote, if a name is empty.
    #[cfg(feature = "locator-index")]
    #[inline(always)]
    pub(super) fn firsts(&self) -> u64 {
        self.members.firsts
    }

    /// What the member of that decoded name is.
    #[inline]
    pub(super) fn member(&self, name: &[u8]) -> Meaning {
        let known = self.members.get(name);
        if self.flattened.is_empty() || !name.iter().any(|byte| matches!(byte, b'.' | b'[')) {
            return known.map_or(Meaning::Other, Meaning::Node);
        }
        self.dotted_member(name, known)
    }

    #[cold]
    fn dotted_member(&self, name: &[u8], known: Option<u32>) -> Meaning {
        let joined = self.flattened.joined.contains(name);
        match known {
            // A quoted name of the policy itself (`"user.email"`) is taken at its word.
            Some(node) if !joined || self.members.ends.contains(&node) => Meaning::Node(node),
            _ if joined || self.flattened.contains_indexed(name) => Meaning::Flattened,
            _ => Meaning::Other,
        }
    }
}

/// The flattened names that a node refuses.
#[derive(Default)]
struct Flattened {
    /// Two names or more, joined by dots.
    joined: BTreeSet<Vec<u8>>,
    /// Names of lists: refused with an index behind them.
    lists: BTreeSet<Vec<u8>>,
}

impl Flattened {
    fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.lists.is_empty()
    }

    /// Whether `name` is one of ours with list indexes in it.
    fn contains_indexed(&self, name: &[u8]) -> bool {
        let bare = without_indexes(name);
        bare != name && (self.joined.contains(&bare) || self.lists.contains(&bare))
    }

    /// Adds every name that a flattening tool could give the beginnings of `segments`, which start in an object.
    fn add(&mut self, segments: &[Segment]) {
        let mut name = Vec::new();
        let mut names = 0;
        for segment in segments {
            match segment {
                Segment::Name(next) => {
                    if names > 0 {
                        name.push(b'.');
                    }
                    name.extend_from_slice(next.as_bytes());
                    names += 1;
                    if names > 1 {
                        self.joined.insert(name.clone());
                    }
                }
                Segment::Each if names == 1 => {
                    self.lists.insert(name.clone());
                }
                Segment::Each => {}
            }
        }
    }
}

/// The members of a node. Names are told by their [`mark`]s; those that share one are sorted by length, then bytes, so that no
/// record can make a look-up slow.
#[derive(Default)]
struct Members {
    /// Sorted by mark.
    names: Vec<(Box<[u8]>, u32)>,
    /// Where the names of each mark that there is begin, and where all end.
    starts: Vec<usize>,
    /// The bytes that names begin with, each as the bit of its lower six bits; a quote, for the empty one.
    #[cfg(feature = "locator-index")]
    firsts: u64,
    /// The marks of the names, each as a bit: hardly another name has one of them.
    marks: u64,
    /// Nodes at which a path of the policy ends.
    ends: BTreeSet<u32>,
}

impl Members {
    #[inline(always)]
    fn get(&self, name: &[u8]) -> Option<u32> {
        let mark = mark(name);
        if self.marks & mark == 0 {
            return None;
        }
        self.find(mark, name)
    }

    /// How many marks come before.
    fn nth(&self, mark: u64) -> usize {
        (self.marks & (mark - 1)).count_ones() as usize
    }

    /// Among those that have this mark, which is there.
    fn find(&self, mark: u64, name: &[u8]) -> Option<u32> {
        let nth = self.nth(mark);
        let of_mark = &self.names[self.starts[nth]..self.starts[nth + 1]];
        if let [(known, node)] = of_mark {
            return (**known == *name).then_some(*node);
        }
        let at = of_mark.binary_search_by(|(known, _)| order(known, name)).ok()?;
        Some(of_mark[at].1)
    }

    fn insert(&mut self, name: &[u8], node: u32) {
        let new = mark(name);
        let by_mark = |known: &[u8]| mark(known).cmp(&new).then_with(|| order(known, name));
        if let Err(at) = self.names.binary_search_by(|(known, _)| by_mark(known)) {
            self.names.insert(at, (name.into(), node));
            let nth = self.nth(new);
            if self.starts.is_empty() {
                self.starts.push(0);
            }
            if self.marks & new == 0 {
                self.marks |= new;
                self.starts.insert(nth, self.starts[nth]);
            }
            self.starts[nth + 1..].iter_mut().for_each(|start| *start += 1);
            #[cfg(feature = "locator-index")]
            {
                let first = name.first().copied().unwrap_or(b'"');
                self.firsts |= 1 << (first & 63);
            }
        }
    }
}

fn order(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// One bit of 64, by length, first and last byte.
#[inline(always)]
fn mark(name: &[u8]) -> u64 {
    let [first, last] = [name.first(), name.last()].map(|byte| usize::from(byte.copied().unwrap_or_default()));
    1 << ((name.len() + 5 * first + 11 * last) % 64)
}

/// The name without list indexes, as flattening tools write them: `cards[0].number`, `cards.0.number` and
/// `cards[*].number` are all `cards.number`.
fn without_indexes(name: &[u8]) -> Vec<u8> {
    let mut unbracketed = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        match bracketed(&name[at..]) {
            Some(len) => at += len,
            None => {
                unbracketed.push(name[at]);
                at += 1;
            }
        }
    }
    let parts = unbracketed.split(|byte| *byte == b'.').enumerate();
    let named: Vec<&[u8]> = parts
        .filter(|(n, part)| *n == 0 || !is_index(part))
        .map(|(_, part)| part)
        .collect();
    named.join(&b'.')
}

/// The length of a list index in brackets. It looks no further than that goes: a name may be as long as a record.
fn bracketed(name: &[u8]) -> Option<usize> {
    let inside = name.strip_prefix(b"[")?;
    let len = match inside.first() {
        Some(b'*') => 1,
        _ => inside.iter().take_while(|byte| byte.is_ascii_digit()).count(),
    };
    (inside.get(len) == Some(&b']')).then_some(len + 2)
}

fn is_index(part: &[u8]) -> bool {
    part == b"*" || part.iter().all(u8::is_ascii_digit)
}

/// Compiles `columns` and `fields` into a tree of nodes.
pub(super) fn compile(columns: &[ColumnPath], fields: &[ColumnPath]) -> Result<Vec<Node>, LocatorError> {
    check(columns, fields)?;
    let mut nodes = vec![Node::default()];
    for (n, path) in columns.iter().enumerate() {
        let column = u16::try_from(n).map_err(|_| LocatorError::TooMany)?;
        let end = insert(&mut nodes, path, true)?;
        nodes[end].column = Some(column);
    }
    for (n, path) in fields.iter().enumerate() {
        let field = u16::try_from(n).map_err(|_| LocatorError::TooMany)?;
        let end = insert(&mut nodes, path, false)?;
        nodes[end].fields.push(field);
    }
    Ok(nodes)
}

fn check(columns: &[ColumnPath], fields: &[ColumnPath]) -> Result<(), LocatorError> {
    for path in columns.iter().chain(fields) {
        if *path.root() != Root::Value {
            return Err(LocatorError::NotInValue { path: path.to_string() });
        }
        if path.segments().is_empty() {
            return Err(LocatorError::NoSegments);
        }
    }
    // Sorted, a path stands right before the first one that it covers.
    let mut sorted: Vec<&ColumnPath> = columns.iter().collect();
    sorted.sort();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].covers(pair[1])) {
        return Err(LocatorError::Covered {
            path: pair[1].to_string(),
            outer: pair[0].to_string(),
        });
    }
    for field in fields {
        if let Some(column) = columns
            .iter()
            .find(|column| column.covers(field) || field.covers(column))
        {
            return Err(LocatorError::FieldIsSealed {
                field: field.to_string(),
                column: column.to_string(),
            });
        }
    }
    Ok(())
}

/// Adds the nodes of `path`; returns the one where it ends.
fn insert(nodes: &mut Vec<Node>, path: &ColumnPath, is_column: bool) -> Result<usize, LocatorError> {
    let text: Arc<str> = path.to_string().into();
    let segments = path.segments();
    let mut at = 0;
    for (n, segment) in segments.iter().enumerate() {
        let fresh = u32::try_from(nodes.len()).map_err(|_| LocatorError::TooMany)?;
        let node = &mut nodes[at];
        if is_column {
            node.example.get_or_insert_with(|| text.clone());
            // Below a list the elements' own node knows the names.
            if *segment != Segment::Each {
                node.flattened.add(&segments[n..]);
            }
        }
        let next = match segment {
            Segment::Name(name) => {
                node.column_in_members |= is_column;
                let next = node.members.get(name.as_bytes()).unwrap_or(fresh);
                node.members.insert(name.as_bytes(), next);
                if n + 1 == segments.len() {
                    node.members.ends.insert(next);
                }
                next
            }
            Segment::Each => {
                node.column_in_elements |= is_column;
                *node.each.get_or_insert(fresh)
            }
        };
        if next == fresh {
            nodes.push(Node::default());
        }
        at = next as usize;
    }
    if is_column {
        nodes[at].example.get_or_insert(text);
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> Vec<ColumnPath> {
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    }

    fn refusal(columns: &[&str], fields: &[&str]) -> Option<LocatorError> {
        compile(&paths(columns), &paths(fields)).err()
    }

    #[test]
    fn paths_that_cover_each_other_are_refused() {
        assert!(matches!(
            refusal(&["user.email", "a", "user"], &[]),
            Some(LocatorError::Covered { .. })
        ));
        assert!(matches!(refusal(&["a", "a"], &[]), Some(LocatorError::Covered { .. })));
        assert!(matches!(
            refusal(&["a"], &["a.b"]),
            Some(LocatorError::FieldIsSealed { .. })
        ));
        assert!(matches!(
            refusal(&["a.b"], &["a"]),
            Some(LocatorError::FieldIsSealed { .. })
        ));
        assert!(matches!(refusal(&["$key"], &[]), Some(LocatorError::NotInValue { .. })));
        assert!(matches!(
            refusal(&[], &["$header.x"]),
            Some(LocatorError::NotInValue { .. })
        ));
        assert_eq!(refusal(&["a", "ab", "b.c", "b[*].c"], &["c", "c", "c.d"]), None);
    }

    #[test]
    fn flattened_names_are_all_joins_of_two_segments_or_more() {
        let path: Vec<Segment> = paths(&["a.b[*].c"])
            .into_iter()
            .flat_map(|p| p.segments().to_vec())
            .collect();
        let names = |segments: &[Segment]| {
            let mut flattened = Flattened::default();
            flattened.add(segments);
            (flattened.joined, flattened.lists)
        };
        assert_eq!(
            names(&path),
            (BTreeSet::from([b"a.b".to_vec(), b"a.b.c".to_vec()]), BTreeSet::new())
        );
        assert_eq!(
            names(&path[1..]),
            (BTreeSet::from([b"b.c".to_vec()]), BTreeSet::from([b"b".to_vec()]))
        );
        assert_eq!(names(&path[3..]), (BTreeSet::new(), BTreeSet::new()));
    }

    #[test]
    fn list_indexes_in_names_do_not_hide_a_column() {
        for name in [
            "cards[0].number",
            "cards.0.number",
            "cards[*].number",
            "cards.*.number",
            "cards[].number",
            "cards[12][3].number.0",
        ] {
            assert_eq!(without_indexes(name.as_bytes()), b"cards.number", "{name}");
        }
        assert_eq!(without_indexes(b"a[x].b["), b"a[x].b[");
        assert_eq!(without_indexes(b"0.a"), b"0.a");
    }
}
