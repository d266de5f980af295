//! Columns of the enclave in tables: their sealed values go to the worker as they are stored, and what it answers, sealed to the
//! reader's key, stands in their places.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, BinaryArray, BooleanArray, RecordBatch, StringArray};
use async_trait::async_trait;
use serde_json::Value;

use super::elements::{Elements, find, row_name};
use super::error::TableError;
use super::layout::EXTRA_COLUMN;
use super::read::{OpenLeaf, OpenTable, Own};
use super::rows::{Places, RowStream};
use crate::flow::enclave::EnclaveError;
use crate::keys::Envelope;
use crate::keys::envelope::write_header;
use crate::pipeline::dead_letter::CANNOT_OPEN;
use crate::pipeline::{ColumnOutcome, ForWorker, SealedText, WorkerAnswer, WorkerDecision, WorkerQuestion};
use crate::policy::{ColumnRule, EXTRA_LABEL, Flow, Policy, Root, Segment};
use crate::seal::{KeyId, SealedValue, value};

/// The most values of one question, and about how many bytes.
const MOST_VALUES: usize = 8_192;
const MOST_BYTES: usize = 8 << 20;
/// The longest value of a header of envelopes that the worker takes.
const MOST_HEADER: usize = 12 << 10;

/// Asks the enclave worker for a reader, and believes nothing but what the worker has signed for that question.
#[async_trait]
pub trait AsksWorker: Send + Sync + fmt::Debug {
    /// What the worker answers.
    ///
    /// # Errors
    /// [`EnclaveError`]
    async fn ask(&self, question: &WorkerQuestion<'_>) -> Result<WorkerAnswer, EnclaveError>;
}

impl OpenTable {
    /// The same file, whose columns of the enclave the worker answers for: as JWEs, in columns of text.
    #[must_use]
    pub fn with_worker(mut self, worker: Arc<dyn AsksWorker>) -> Self {
        let of_enclave: Vec<bool> = self.leaves.iter().map(|leaf| self.is_of_enclave(leaf)).collect();
        for (leaf, is_of_enclave) in self.leaves.iter_mut().zip(of_enclave) {
            leaf.is_by_worker = is_of_enclave && leaf.leaf.sealed.is_some();
        }
        if let Some(own) = &mut self.own {
            own.worker = Some(worker);
        }
        self
    }

    /// Whether only the enclave opens values of that leaf, by the newest policy.
    pub(super) fn is_of_enclave(&self, leaf: &OpenLeaf) -> bool {
        let Some(own) = self.own.as_ref().filter(|_| leaf.leaf.sealed.is_some()) else {
            return false;
        };
        let policy = own.policy.policy();
        rule_of(policy, &leaf.label_now(policy)).is_some_and(|rule| rule.flow == Flow::Enclave)
    }
}

impl OpenLeaf {
    /// The label of sealed values of this leaf, as that policy calls it.
    pub(super) fn label_now(&self, policy: &Policy) -> String {
        let rule = policy.columns.iter().find(|rule| rule.path == self.leaf.column);
        match rule {
            Some(rule) => rule.label.clone(),
            None if self.leaf.column.to_string() == EXTRA_COLUMN => EXTRA_LABEL.to_owned(),
            // The policy has dropped or renamed the column: the label that it had, as it is called now.
            None => {
                let sealed = self.leaf.sealed.as_ref();
                let had = sealed.map(|sealed| sealed.label.clone()).unwrap_or_default();
                policy.previous.labels.get(&had).cloned().unwrap_or(had)
            }
        }
    }
}

fn rule_of<'a>(policy: &'a Policy, label: &str) -> Option<&'a ColumnRule> {
    policy.columns.iter().find(|rule| rule.label == label)
}

impl RowStream<'_> {
    /// What the worker answers for its leaves, by their numbers.
    pub(super) async fn of_worker(
        &mut self,
        stored: &RecordBatch,
        at: &Places,
        keep: Option<&BooleanArray>,
    ) -> Result<Vec<(usize, ArrayRef)>, TableError> {
        let table = self.table;
        let rows = shown_rows(stored.num_rows(), keep, self.left);
        let mut answered = Vec::new();
        for (n, leaf) in table.leaves.iter().enumerate() {
            if !self.wanted[n] || !leaf.is_by_worker || !leaf.is_shown() {
                continue;
            }
            if let Some(found) = find(stored, &leaf.leaf.segments) {
                answered.push((n, self.answers(leaf, &found, stored, at, &rows).await?));
            }
        }
        Ok(answered)
    }

    async fn answers(
        &mut self,
        leaf: &OpenLeaf,
        found: &Elements,
        stored: &RecordBatch,
        at: &Places,
        rows: &[bool],
    ) -> Result<ArrayRef, TableError> {
        let own = self.table.own.as_ref().ok_or(TableError::Damaged)?;
        let (policy, worker) = (own.policy.policy(), own.worker.as_ref().ok_or(TableError::Damaged)?);
        let values = found.array.as_binary_opt::<i32>().ok_or(TableError::Damaged)?;
        let label = leaf.label_now(policy);
        let bound = rule_of(policy, &label).and_then(|rule| Bound::of(rule, found));
        let cells: Vec<usize> = (0..values.len())
            .filter(|n| values.is_valid(*n) && rows[found.rows[*n] as usize])
            .collect();
        let mut texts: Vec<Option<String>> = vec![None; values.len()];
        for range in questions(&cells, values, found) {
            let cells = &cells[range];
            let envelopes = headers(own, values, cells);
            let asked = Asked {
                dataset: &policy.dataset,
                label: &label,
                purpose: self.asking.purpose,
                envelopes: envelopes.iter().map(Vec::as_slice).collect(),
            };
            let (shown, decisions) = match &bound {
                Some(bound) => asked.in_rows(&**worker, bound, (cells, values, found), stored).await?,
                None => asked.alone(&**worker, (cells, values)).await?,
            };
            for (cell, text) in cells.iter().zip(shown) {
                texts[*cell] = text;
            }
            if let (Some(first), Some(last)) = (cells.first(), cells.last()) {
                let place = |cell: usize| at.of(found.rows[cell] as usize);
                let ends = (place(*first), place(*last));
                let decisions = decisions.iter().map(|decision| decision.between(&ends.0, &ends.1));
                self.decisions.extend(decisions);
            }
        }
        Ok(Arc::new(StringArray::from(texts)))
    }
}

/// Which rows of a batch are shown: those that a filter keeps, and not more than are wanted.
fn shown_rows(rows: usize, keep: Option<&BooleanArray>, left: u64) -> Vec<bool> {
    let mut left = left;
    let shown = |row: usize| {
        let is_kept = left > 0 && keep.is_none_or(|keep| keep.is_valid(row) && keep.value(row));
        left -= u64::from(is_kept);
        is_kept
    };
    (0..rows).map(shown).collect()
}

/// The cells of each question. Those of one row stay together.
fn questions(cells: &[usize], values: &BinaryArray, found: &Elements) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (n, cell) in cells.iter().enumerate() {
        let is_next_row = n > start && found.rows[*cell] != found.rows[cells[n - 1]];
        if is_next_row && (n - start >= MOST_VALUES || bytes >= MOST_BYTES) {
            ranges.push(start..n);
            (start, bytes) = (n, 0);
        }
        bytes += values.value(*cell).len();
    }
    if start < cells.len() {
        ranges.push(start..cells.len());
    }
    ranges
}

/// Headers of the envelopes that the file carries of the keys of these values.
fn headers(own: &Own, values: &BinaryArray, cells: &[usize]) -> Vec<Vec<u8>> {
    let keys: HashSet<KeyId> = cells
        .iter()
        .filter_map(|cell| SealedValue::parse(values.value(*cell)).ok().map(|value| value.key()))
        .collect();
    let is_asked = |bytes: &&bytes::Bytes| Envelope::from_bytes(bytes).is_ok_and(|one| keys.contains(&one.key_id()));
    let envelopes: Vec<&[u8]> = own.envelopes.iter().filter(is_asked).map(AsRef::as_ref).collect();
    let (mut headers, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (n, envelope) in envelopes.iter().enumerate() {
        if n > start && bytes + envelope.len() > MOST_HEADER {
            headers.push(write_header(envelopes[start..n].iter().copied()));
            (start, bytes) = (n, 0);
        }
        bytes += envelope.len();
    }
    if start < envelopes.len() {
        headers.push(write_header(envelopes[start..].iter().copied()));
    }
    headers
}

/// A column whose values open in their rows alone.
struct Bound<'a> {
    /// Where its values stand in a record.
    path: &'a [Segment],
    /// Where that stands what names the row.
    row: &'a [Segment],
}

impl<'a> Bound<'a> {
    /// `None` for values that open by themselves, or that no record can be made for: of these the worker says that they do not open.
    fn of(rule: &'a ColumnRule, found: &Elements) -> Option<Self> {
        let row = rule.bind_row.as_ref()?;
        let path = rule.path.segments();
        let lists = path.iter().filter(|segment| **segment == Segment::Each).count();
        let has_place = *rule.path.root() == Root::Value && *row.root() == Root::Value && lists == found.depth();
        has_place.then(|| Self {
            path,
            row: row.segments(),
        })
    }
}

/// What all questions about a column say.
struct Asked<'a> {
    dataset: &'a str,
    label: &'a str,
    purpose: Option<&'a str>,
    envelopes: Vec<&'a [u8]>,
}

/// The text that is shown for each cell, and what was decided.
type Answered = (Vec<Option<String>>, Vec<WorkerDecision>);

impl Asked<'_> {
    async fn ask(&self, worker: &dyn AsksWorker, what: ForWorker<'_>) -> Result<WorkerAnswer, TableError> {
        let count = what.len();
        let question = WorkerQuestion {
            dataset: self.dataset,
            purpose: self.purpose,
            envelopes: self.envelopes.clone(),
            what,
        };
        let answer = worker.ask(&question).await?;
        match answer.shown.len() == count {
            true => Ok(answer),
            false => Err(no_answer()),
        }
    }

    /// Of values by themselves.
    async fn alone(
        &self,
        worker: &dyn AsksWorker,
        (cells, values): (&[usize], &BinaryArray),
    ) -> Result<Answered, TableError> {
        let texts: Vec<String> = cells.iter().map(|cell| text_of(values.value(*cell))).collect();
        let texts = texts.iter().map(|text| SealedText {
            label: Some(self.label),
            text,
        });
        let answer = self.ask(worker, ForWorker::Values(texts.collect())).await?;
        let shown = answer.shown.iter().map(|shown| match shown {
            Some(json) => serde_json::from_slice(json).map_err(|_| no_answer()),
            None => Ok(None),
        });
        Ok((shown.collect::<Result<_, _>>()?, answer.decisions))
    }

    /// Of values in records that hold nothing beside them but what names the row.
    async fn in_rows(
        &self,
        worker: &dyn AsksWorker,
        bound: &Bound<'_>,
        (cells, values, found): (&[usize], &BinaryArray, &Elements),
        stored: &RecordBatch,
    ) -> Result<Answered, TableError> {
        // Ascending, as rows are.
        let mut records: BTreeMap<u32, Value> = BTreeMap::new();
        for cell in cells {
            let row = found.rows[*cell];
            let record = records.entry(row).or_insert_with(|| {
                let mut record = empty(bound.path);
                if let Some(name) = row_name(stored, bound.row, row as usize)
                    && let Ok(name) = serde_json::from_str(&name)
                {
                    put(&mut record, bound.row, &[], name);
                }
                record
            });
            let text = Value::String(text_of(values.value(*cell)));
            put(record, bound.path, found.indexes(*cell), text);
        }
        let texts: Vec<String> = records.values().map(Value::to_string).collect();
        let texts = texts.iter().map(String::as_bytes).collect();
        let answer = self.ask(worker, ForWorker::Records(texts)).await?;
        let mut decisions = answer.decisions;
        let mut shown: BTreeMap<u32, Option<Value>> = BTreeMap::new();
        for (row, record) in records.keys().zip(&answer.shown) {
            let record = record.as_ref().map(|json| serde_json::from_slice(json));
            shown.insert(*row, record.transpose().map_err(|_| no_answer())?);
        }
        let (mut texts, mut withheld) = (Vec::with_capacity(cells.len()), 0);
        for cell in cells {
            let Some(Some(record)) = shown.get(&found.rows[*cell]) else {
                withheld += 1;
                texts.push(None);
                continue;
            };
            texts.push(match get(record, bound.path, found.indexes(*cell)) {
                Some(Value::String(text)) => Some(text.clone()),
                Some(Value::Null) => None,
                _ => return Err(no_answer()),
            });
        }
        if withheld > 0 {
            decisions.push(WorkerDecision {
                label: self.label.to_owned(),
                outcome: ColumnOutcome::Failed(CANNOT_OPEN),
                because: "the worker cannot take the row apart".to_owned(),
                count: withheld,
            });
        }
        Ok((texts, decisions))
    }
}

fn text_of(sealed: &[u8]) -> String {
    let mut text = Vec::with_capacity(value::text_len(sealed.len()));
    value::write_text(sealed, &mut text);
    // Base64 and a prefix: ASCII.
    String::from_utf8(text).unwrap_or_default()
}

fn no_answer() -> TableError {
    TableError::Worker(EnclaveError::BadAnswer {
        reason: "it shows something else than was asked for".to_owned(),
    })
}

/// What holds nothing, and can hold something at that path.
fn empty(path: &[Segment]) -> Value {
    match path.first() {
        Some(Segment::Name(_)) => Value::Object(serde_json::Map::new()),
        Some(Segment::Each) => Value::Array(Vec::new()),
        None => Value::Null,
    }
}

/// Puts a value where a path leads, by these indexes in the lists on its way.
fn put(at: &mut Value, path: &[Segment], indexes: &[u32], value: Value) {
    let Some((first, rest)) = path.split_first() else {
        *at = value;
        return;
    };
    match (first, at) {
        (Segment::Name(name), Value::Object(members)) => {
            let member = members.entry(name.as_str()).or_insert_with(|| empty(rest));
            put(member, rest, indexes, value);
        }
        (Segment::Each, Value::Array(elements)) => {
            let Some((index, indexes)) = indexes.split_first() else {
                return;
            };
            let index = *index as usize;
            while elements.len() <= index {
                elements.push(empty(rest));
            }
            put(&mut elements[index], rest, indexes, value);
        }
        // Two paths that cannot be of one record: then the value is nowhere, and does not open.
        _ => {}
    }
}

/// What stands there.
fn get<'v>(at: &'v Value, path: &[Segment], indexes: &[u32]) -> Option<&'v Value> {
    let Some((first, rest)) = path.split_first() else {
        return Some(at);
    };
    match first {
        Segment::Name(name) => get(at.get(name)?, rest, indexes),
        Segment::Each => {
            let (index, indexes) = indexes.split_first()?;
            get(at.get(*index as usize)?, rest, indexes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::ColumnPath;

    fn segments(path: &str) -> Vec<Segment> {
        let path: ColumnPath = path.parse().unwrap();
        path.segments().to_vec()
    }

    #[test]
    fn what_is_put_into_a_record_stands_where_its_path_and_indexes_say() {
        let path = segments("orders[*].cards[*].pan");
        let mut record = empty(&path);
        put(&mut record, &segments("orders_id"), &[], Value::from(7));
        put(&mut record, &path, &[1, 2], Value::from("x"));
        put(&mut record, &path, &[0, 0], Value::from("y"));
        let expected = r#"{"orders_id":7,"orders":[{"cards":[{"pan":"y"}]},{"cards":[{},{},{"pan":"x"}]}]}"#;
        assert_eq!(record.to_string(), expected);
        assert_eq!(get(&record, &path, &[1, 2]), Some(&Value::from("x")));
        assert_eq!(get(&record, &path, &[1, 1]), None);
        // A scalar where the other path has an object.
        let mut record = Value::Object(serde_json::Map::new());
        put(&mut record, &segments("a"), &[], Value::from(1));
        put(&mut record, &segments("a.b"), &[], Value::from(2));
        assert_eq!(record.to_string(), r#"{"a":1}"#);
    }

    #[test]
    fn rows_that_are_not_shown_are_not_asked_for() {
        let keep = BooleanArray::from(vec![Some(true), None, Some(false), Some(true), Some(true)]);
        assert_eq!(shown_rows(5, Some(&keep), 2), [true, false, false, true, false]);
        assert_eq!(shown_rows(3, None, u64::MAX), [true, true, true]);
    }
}
