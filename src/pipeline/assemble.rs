//! Sealed records put together: every value of a batch is written once, all of them into one buffer.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use super::extract::Extracted;
use super::jobs::Item;
use super::plan::{Place, Plan};
use super::pool::Pool;
use super::record::{Header, Record};
use super::seal::{KeysPlacement, Sealed, TravellingKey};
use super::transform::{Outcome, Route, TransformError};
use crate::columns::member_range;
use crate::keys::envelope::{KEYS_HEADER, MAX_ENVELOPES, write_header};
use crate::policy::{ClientRule, SESSION_HEADER};
use crate::seal::{ByteColumn, value};

/// The records of one batch in the making.
pub(super) struct Assembly<'a> {
    placement: KeysPlacement,
    /// Records become rows of a table.
    for_table: bool,
    items: &'a [Item],
    sealed: &'a [Sealed],
    /// Of each of `sealed`.
    columns: Vec<Column<'a>>,
    /// Values of records, one after the other.
    out: Vec<u8>,
    /// Which outcome's value is where in them.
    values: Vec<(usize, Range<usize>)>,
    replaced: Vec<(Range<usize>, With<'a>)>,
    /// Text form of a value.
    text: Vec<u8>,
    /// Text forms in keys and headers.
    pool: Pool,
    keys: KeyHeaders,
    /// What the policy says of clients, for the backend and for the enclave.
    rules: [Option<&'a ClientRule>; 2],
}

/// A sealed column, and what is asked of it for each of its values.
struct Column<'a> {
    values: ByteColumn<'a>,
    /// What stands before the text form in JSON.
    opening: &'a [u8],
    /// It has a key that is to travel with the record.
    has_key: bool,
}

/// What comes in place of a range of a record's value.
#[derive(Clone, Copy)]
enum With<'a> {
    /// The text form of these sealed bytes, behind this opening.
    Sealed { opening: &'a [u8], bytes: &'a [u8] },
    /// A plaintext that stays, because its column is encrypted as a whole.
    Clear(&'a [u8]),
    /// Nothing: it is cut out.
    Nothing,
}

/// Headers with envelopes, each made once.
#[derive(Default)]
struct KeyHeaders {
    /// The jobs that sealed values of the record at hand, one for each value.
    used: Vec<usize>,
    /// Those of the record before, and its header.
    last: Option<(Vec<usize>, Bytes)>,
    /// Those of a record, each once.
    all: HashMap<Vec<usize>, Bytes>,
}

impl<'a> Assembly<'a> {
    /// For records whose values become at most `bytes` together.
    pub(super) fn new(
        plan: &'a Plan,
        (placement, for_table): (KeysPlacement, bool),
        items: &'a [Item],
        sealed: &'a [Sealed],
        (records, bytes): (usize, u64),
    ) -> Self {
        let policy = plan.policy.policy();
        Self {
            rules: [policy.client.as_ref(), policy.enclave.as_ref().map(|rule| &rule.client)],
            placement,
            for_table,
            items,
            columns: sealed.iter().map(|column| Column::of(plan, column)).collect(),
            sealed,
            out: Vec::with_capacity(usize::try_from(bytes).unwrap_or(0)),
            values: Vec::with_capacity(records),
            replaced: Vec::new(),
            text: Vec::new(),
            pool: Pool::default(),
            keys: KeyHeaders::default(),
        }
    }

    /// Adds the record with sealed values in place of plaintexts. Its value follows with [`finish`](Self::finish).
    pub(super) fn add(
        &mut self,
        from: &Record,
        found: &'a Extracted,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), TransformError> {
        self.keys.used.clear();
        let n = outcomes.len();
        outcomes.push(Outcome {
            route: Route::Target,
            record: from.without_value(usize::from(self.placement == KeysPlacement::Header)),
        });
        let (record, original) = (&mut outcomes[n].record, from.value.as_ref());
        let is_written = match self.rules {
            [None, None] => self.sealed_alone(n, (record, original), found)?,
            rules => self.with_clients(n, (record, original), found, rules)?,
        };
        if !is_written {
            record.value = original.cloned();
        }
        if self.for_table {
            // A file carries what it finds there: nothing of a producer's.
            record.headers.retain(|header| header.name != KEYS_HEADER);
        }
        if self.placement == KeysPlacement::Header && !self.keys.used.is_empty() {
            record.headers.push(Header {
                name: KEYS_HEADER.into(),
                value: Some(self.keys.header(self.sealed)),
            });
        }
        Ok(())
    }

    /// Of values that came in clear, which are in order. Whether the record's value is written.
    fn sealed_alone(
        &mut self,
        n: usize,
        (record, original): (&mut Record, Option<&Bytes>),
        found: &'a Extracted,
    ) -> Result<bool, TransformError> {
        let text = original.map(Bytes::as_ref).unwrap_or_default();
        let (from, mut at) = (self.out.len(), None);
        for item in found.items(self.items) {
            let (opening, bytes) = self.sealed_bytes(item)?;
            match item.place {
                Place::Value { start, end } => {
                    self.out.extend_from_slice(&text[at.unwrap_or(0)..start]);
                    self.write_sealed(opening, bytes);
                    at = Some(end);
                }
                place => self.put(record, place, bytes),
            }
        }
        if let Some(at) = at {
            self.out.extend_from_slice(&text[at..]);
            self.values.push((n, from..self.out.len()));
        }
        Ok(at.is_some())
    }

    /// What was sealed of an item, and what stands before it. Its key is to travel with the record.
    #[inline(always)]
    fn sealed_bytes(&mut self, item: &Item) -> Result<(&'a [u8], &'a [u8]), TransformError> {
        let column = &self.columns[item.slot.job];
        if column.has_key {
            self.keys.used.push(item.slot.job);
        }
        let bytes = column.values.get(item.slot.index);
        let bytes = bytes.ok_or_else(|| TransformError::bug("a sealed column lacks a value"))?;
        Ok((column.opening, bytes))
    }

    /// Of a policy by which clients seal too. Whether the record's value is written.
    fn with_clients(
        &mut self,
        n: usize,
        (record, original): (&mut Record, Option<&Bytes>),
        found: &'a Extracted,
        rules: [Option<&ClientRule>; 2],
    ) -> Result<bool, TransformError> {
        self.replaced.clear();
        for item in found.items(self.items) {
            let (opening, bytes) = self.sealed_bytes(item)?;
            match item.place {
                Place::Value { start, end } => {
                    self.replaced.push((start..end, With::Sealed { opening, bytes }));
                }
                place => self.put(record, place, bytes),
            }
        }
        self.of_clients(rules, (record, original), found);
        match original {
            Some(original) if !self.replaced.is_empty() => self.write(n, original),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What stays in clear, and the sessions that go.
    fn of_clients(
        &mut self,
        rules: [Option<&ClientRule>; 2],
        (record, original): (&mut Record, Option<&Bytes>),
        found: &'a Extracted,
    ) {
        for (place, plain) in &found.of_client().clear {
            match *place {
                Place::Value { start, end } => self.replaced.push((start..end, With::Clear(plain))),
                Place::Key => record.key = Some(plain.to_vec().into()),
                Place::Header(n) => record.headers[n].value = Some(plain.to_vec().into()),
            }
        }
        // Values of clients come after all others.
        self.replaced.sort_by_key(|(range, _)| range.start);
        let mut in_headers = rules.iter().flatten().filter(|rule| rule.session.is_none()).peekable();
        // A header does not say for whom its session is: they stay if one of the two wants to keep its own.
        if in_headers.peek().is_some() && in_headers.all(|rule| !rule.keep_session) {
            record.headers.retain(|header| header.name != SESSION_HEADER);
        }
        for (rule, sessions) in rules.iter().zip(&found.of_client().sessions) {
            if rule.is_some_and(|rule| !rule.keep_session)
                && let Some(original) = original
            {
                cut_sessions(original, sessions, &mut self.replaced);
            }
        }
    }

    /// Writes the value of outcome `n`: every byte as it was but for what is replaced, which is in order.
    fn write(&mut self, n: usize, original: &[u8]) {
        let (from, mut at) = (self.out.len(), 0);
        let replaced = std::mem::take(&mut self.replaced);
        for (range, with) in &replaced {
            self.out.extend_from_slice(&original[at..range.start]);
            match *with {
                With::Sealed { opening, bytes } => self.write_sealed(opening, bytes),
                With::Clear(plain) => self.out.extend_from_slice(plain),
                With::Nothing => {}
            }
            at = range.end;
        }
        self.replaced = replaced;
        self.out.extend_from_slice(&original[at..]);
        self.values.push((n, from..self.out.len()));
    }

    /// Writes the text form of sealed bytes behind its opening, and the closing quote.
    #[inline]
    fn write_sealed(&mut self, opening: &[u8], bytes: &[u8]) {
        match opening {
            [quote] => self.out.push(*quote),
            name => self.out.extend_from_slice(name),
        }
        value::write_text(bytes, &mut self.out);
        self.out.push(b'"');
    }

    /// Puts the text form of sealed bytes into a record's key, or a header.
    fn put(&mut self, record: &mut Record, place: Place, bytes: &[u8]) {
        self.text.clear();
        value::write_text(bytes, &mut self.text);
        let text = Some(self.pool.copy(&self.text));
        match place {
            Place::Value { .. } => {}
            Place::Key => record.key = text,
            Place::Header(n) => record.headers[n].value = text,
        }
    }

    /// Gives the outcomes their values.
    pub(super) fn finish(self, outcomes: &mut [Outcome]) {
        let out = Bytes::from(self.out);
        for (n, range) in self.values {
            outcomes[n].record.value = Some(out.slice(range));
        }
    }
}

impl<'a> Column<'a> {
    fn of(plan: &'a Plan, sealed: &'a Sealed) -> Self {
        Self {
            values: sealed.column.view(),
            opening: plan.opening(sealed.rule),
            has_key: sealed.key.is_some(),
        }
    }
}

impl KeyHeaders {
    /// The header of the record whose jobs are in `used`.
    fn header(&mut self, sealed: &[Sealed]) -> Bytes {
        if let Some((used, header)) = &self.last
            && *used == self.used
        {
            return header.clone();
        }
        let (used, _) = self.last.get_or_insert_default();
        used.clone_from(&self.used);
        self.used.sort_unstable();
        self.used.dedup();
        let header = match self.all.get(self.used.as_slice()) {
            Some(header) => header.clone(),
            None => {
                let header = keys_header(&self.used, sealed);
                self.all.insert(self.used.clone(), header.clone());
                header
            }
        };
        if let Some((_, last)) = &mut self.last {
            *last = header.clone();
        }
        header
    }
}

/// The header with the envelopes of `jobs`, each key once; no more than readers take. The catalogue has them all.
fn keys_header(jobs: &[usize], sealed: &[Sealed]) -> Bytes {
    let mut keys: Vec<&TravellingKey> = jobs.iter().filter_map(|job| sealed[*job].key.as_ref()).collect();
    keys.sort_unstable_by_key(|key| key.id);
    keys.dedup_by_key(|key| key.id);
    keys.truncate(MAX_ENVELOPES);
    write_header(keys.iter().map(|key| key.bytes())).into()
}

/// Cuts the members that hold sessions, in order with the other replacements.
fn cut_sessions(original: &[u8], sessions: &[Range<usize>], replaced: &mut Vec<(Range<usize>, With<'_>)>) {
    for session in sessions {
        let next = replaced.partition_point(|(range, _)| range.start < session.start);
        let cut = replaced[..next].last().map_or(0, |(range, _)| range.end);
        if let Some(member) = member_range(original, session.clone(), cut) {
            replaced.insert(next, (member, With::Nothing));
        }
    }
}
