//! Columns that a policy for these records should probably have.

use std::collections::BTreeMap;

use sealflow::policy::{ColumnPath, Segment};
use serde_json::Value;

use super::classify::{Kind, kind_of_name, kind_of_value};

/// Records of a hostile or map-like shape could have endless paths.
const MAX_PATHS: usize = 10_000;

/// A column to seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// Where it is.
    pub(crate) path: ColumnPath,
    /// What it seems to hold.
    pub(crate) kind: Kind,
    /// Whether its name said so, not its values.
    pub(crate) by_name: bool,
    /// In how many records it occurs, nulls included.
    pub(crate) records: u64,
}

/// What was seen at one path.
#[derive(Default)]
struct Seen {
    records: u64,
    last_record: Option<u64>,
    scalars: u64,
    kinds: BTreeMap<Kind, u64>,
    by_name: Option<Kind>,
}

/// Counts what the fields of records look like.
#[derive(Default)]
pub(crate) struct Survey {
    paths: BTreeMap<Vec<Segment>, Seen>,
    records: u64,
}

impl Survey {
    /// Looks at one record.
    pub(crate) fn add(&mut self, record: &Value) {
        self.visit(record, &mut Vec::new());
        self.records += 1;
    }

    /// Records looked at.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// The columns to seal, in the order of their paths.
    pub(crate) fn proposals(&self) -> Vec<Proposal> {
        self.paths
            .iter()
            .filter_map(|(segments, seen)| proposal(segments, seen))
            .collect()
    }

    /// A clear scalar at the top that every record has and that is named like an identifier: what values can be bound to.
    pub(crate) fn row_id(&self) -> Option<ColumnPath> {
        let named = |segments: &[Segment]| matches!(segments, [Segment::Name(name)] if matches!(name.as_str(), "id" | "event_id" | "uuid" | "record_id"));
        let everywhere = |seen: &Seen| seen.records == self.records && seen.scalars == self.records;
        let found = self
            .paths
            .iter()
            .find(|(segments, seen)| named(segments) && everywhere(seen) && proposal(segments, seen).is_none());
        found.map(|(segments, _)| ColumnPath::into_value(segments.clone()))
    }

    fn visit(&mut self, node: &Value, path: &mut Vec<Segment>) {
        match node {
            Value::Object(members) => {
                for (name, child) in members {
                    path.push(Segment::Name(name.clone()));
                    self.visit(child, path);
                    path.pop();
                }
            }
            Value::Array(elements) => {
                path.push(Segment::Each);
                for element in elements {
                    self.visit(element, path);
                }
                path.pop();
            }
            scalar => self.scalar(scalar, path),
        }
    }

    fn scalar(&mut self, scalar: &Value, path: &[Segment]) {
        if path.is_empty() || (self.paths.len() >= MAX_PATHS && !self.paths.contains_key(path)) {
            return;
        }
        let record = self.records;
        let seen = self.paths.entry(path.to_vec()).or_insert_with(|| Seen {
            by_name: name_of(path),
            ..Seen::default()
        });
        if seen.last_record != Some(record) {
            seen.last_record = Some(record);
            seen.records += 1;
        }
        let kind = match scalar {
            Value::Null => return,
            Value::String(text) => kind_of_value(text),
            // Of numbers only cards are told by their digits.
            Value::Number(number) => kind_of_value(&number.to_string()).filter(|kind| *kind == Kind::Card),
            _ => None,
        };
        seen.scalars += 1;
        if let Some(kind) = kind {
            *seen.kinds.entry(kind).or_default() += 1;
        }
    }
}

fn name_of(path: &[Segment]) -> Option<Kind> {
    let mut names = path.iter().rev().filter_map(|segment| match segment {
        Segment::Name(name) => Some(name.as_str()),
        Segment::Each => None,
    });
    let name = names.next()?;
    kind_of_name(name, names.next())
}

fn proposal(segments: &[Segment], seen: &Seen) -> Option<Proposal> {
    // One number in ten passes Luhn by chance, so cards need nearly all values; others a third.
    let enough = |kind: Kind, count: u64| {
        if kind == Kind::Card {
            count * 10 >= seen.scalars * 8
        } else {
            count * 3 >= seen.scalars
        }
    };
    let by_value = seen
        .kinds
        .iter()
        .filter(|(kind, count)| enough(**kind, **count))
        .map(|(kind, _)| *kind)
        .min();
    let kind = by_value.or(seen.by_name)?;
    let path = ColumnPath::into_value(segments.to_vec());
    Some(Proposal {
        path,
        kind,
        by_name: by_value.is_none(),
        records: seen.records,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_records_are_proposed_as_the_sample_policy_has_them() {
        let mut survey = Survey::default();
        for sample in sealflow_samples::generate(1, 200) {
            survey.add(&serde_json::from_slice(&sample.value).unwrap());
        }
        let mut paths: Vec<String> = survey.proposals().iter().map(|p| p.path.to_string()).collect();
        let mut expected = sealflow_samples::SEALED_PATHS.map(str::to_owned).to_vec();
        paths.sort();
        expected.sort();
        assert_eq!(paths, expected);
        assert_eq!(survey.row_id().map(|path| path.to_string()).as_deref(), Some("id"));
    }

    #[test]
    fn a_number_that_passes_luhn_once_is_no_card() {
        let mut survey = Survey::default();
        for n in 0..100_u64 {
            survey.add(&serde_json::json!({ "order": 4_000_000_000_000_000 + n }));
        }
        assert_eq!(survey.proposals(), []);
    }
}
