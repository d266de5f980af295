//! The values of a batch on their way to being sealed: per rule and key one column.

use std::collections::HashMap;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::hints::Domains;
use super::plan::{Document, Place, Plan, Rejection, is_domain};
use crate::columns::{coerce, json};
use crate::flow::enclave::ValueKey;
use crate::policy::{ColumnRule, DomainDocument, DomainType};
use crate::seal::{ColumnError, PlainColumn, Plaintext, value};

/// The most values that a column is made for: a policy may have many columns, and a batch few values of each.
const MOST_EXPECTED: usize = 1_024;
/// The most bytes that are held for the encoding of a domain's next value.
const MOST_COERCED: usize = 1 << 20;
/// Bytes of a value and of a row id that columns are made for; longer ones make them grow.
const EXPECTED_VALUE: usize = 32;
const EXPECTED_ROW: usize = 24;

/// Values of one rule under one key, on their way to one seal call.
pub(super) struct Job {
    pub(super) rule: usize,
    /// Resolved key name; `None` for plain keys and domains.
    pub(super) key_name: Option<Arc<str>>,
    pub(super) plain: PlainColumn,
    pub(super) rows: Option<PlainColumn>,
    pub(super) len: usize,
    /// Its column belongs to a domain.
    domain: bool,
    /// Of an enclave column: where the key of each value is. Its values are as clients sealed them, and the worker seals them.
    pub(super) of_clients: Option<Vec<ValueKey>>,
}

/// One value of a record: where its sealed form goes, and where it comes from.
#[derive(Clone, Copy)]
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) slot: Slot,
}

/// Where a value is among the jobs.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) job: usize,
    pub(super) index: usize,
}

impl Slot {
    /// Of what goes to `place`.
    pub(super) fn at(self, place: Place) -> Item {
        Item { place, slot: self }
    }
}

/// How a value is spelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// In a record's value.
    Json,
    /// In its key or a header.
    Bytes,
}

impl Spelling {
    /// Of what is found there.
    pub(super) fn of(place: Place) -> Self {
        match place {
            Place::Value { .. } => Self::Json,
            Place::Key | Place::Header(_) => Self::Bytes,
        }
    }
}

/// What a value is sealed under, as its record says: the key's name, the row that it is bound to. One is filled again and again.
#[derive(Clone, Default)]
pub(super) struct Bound {
    pub(super) key_name: Option<Arc<str>>,
    /// Empty if it is bound to none.
    pub(super) row: Vec<u8>,
}

/// The names of the keys of one document, each resolved once.
#[derive(Default)]
pub(super) struct KeyNames {
    of_groups: Vec<Option<Arc<str>>>,
}

impl KeyNames {
    /// For the next document.
    pub(super) fn clear(&mut self) {
        self.of_groups.clear();
    }

    fn get(
        &mut self,
        plan: &Plan,
        group: usize,
        document: Option<&Document<'_>>,
    ) -> Result<Option<Arc<str>>, Rejection> {
        if !plan.groups[group].is_template() {
            return Ok(None);
        }
        if self.of_groups.len() <= group {
            self.of_groups.resize(group + 1, None);
        }
        let name = &mut self.of_groups[group];
        if name.is_none() {
            *name = plan.key_name(group, document)?.map(Arc::from);
        }
        Ok(name.clone())
    }
}

impl Bound {
    /// Of a value that is bound to nothing.
    pub(super) fn clear(&mut self) {
        self.row.clear();
        self.key_name = None;
    }

    /// Of a value of `rule` at these list indexes. `document` is the one that holds its fields, whose keys have these names.
    pub(super) fn set(
        &mut self,
        plan: &Plan,
        rule: usize,
        indexes: &[u32],
        document: Option<&Document<'_>>,
        names: &mut KeyNames,
    ) -> Result<(), Rejection> {
        self.row.clear();
        self.key_name = match plan.columns[rule] {
            Some((group, _)) => names.get(plan, group, document)?,
            None => None,
        };
        if let Some(field) = plan.row_field(rule) {
            let Some(document) = document else {
                return Err(Rejection::new(
                    "missing-field",
                    "a row-bound column needs a record with a value",
                ));
            };
            let scalar = plan.field(document, field)?;
            json::encode_row_id(scalar, indexes, &mut self.row)
                .map_err(|error| Rejection::new("bad-row-id", error.to_string()))?;
        }
        Ok(())
    }

    /// Of the hint `rule` of this value: its key is a plain one or the value's, its row the value's.
    pub(super) fn of_hint(&self, plan: &Plan, rule: usize) -> Self {
        let of_template = plan.columns[rule].is_some_and(|(group, _)| plan.groups[group].is_template());
        Self {
            key_name: self.key_name.clone().filter(|_| of_template),
            row: self.row.clone(),
        }
    }
}

/// The jobs of one batch.
#[derive(Default)]
pub(super) struct Jobs {
    pub(super) list: Vec<Job>,
    /// Values that were found in clear, record after record.
    pub(super) items: Vec<Item>,
    /// By rule.
    plain_keys: Vec<Option<usize>>,
    /// By rule and key name.
    template_keys: HashMap<usize, HashMap<Arc<str>, usize>>,
    /// Bytes that the records so far become: sealed values in their text form, row ids, dead letters.
    pub(super) bytes: u64,
    /// Values of clients that have a key of their own.
    pub(super) wrapped: usize,
    /// How many values a column is made for.
    expected: usize,
    /// The encoding of one value of a domain.
    coerced: Zeroizing<Vec<u8>>,
}

impl Jobs {
    /// For a batch of so many records.
    pub(super) fn for_records(records: usize) -> Self {
        Self {
            items: Vec::with_capacity(records),
            expected: records.min(MOST_EXPECTED),
            ..Self::default()
        }
    }

    /// The job of `rule` under `key_name`, made when it is new.
    #[inline]
    fn of(&mut self, plan: &Plan, rule: usize, key_name: Option<&Arc<str>>) -> usize {
        if key_name.is_none()
            && let Some(Some(known)) = self.plain_keys.get(rule)
        {
            return *known;
        }
        self.sought(plan, rule, key_name)
    }

    #[inline(never)]
    fn sought(&mut self, plan: &Plan, rule: usize, key_name: Option<&Arc<str>>) -> usize {
        let next = self.list.len();
        let known = match key_name {
            None => {
                if self.plain_keys.len() <= rule {
                    self.plain_keys.resize(rule + 1, None);
                }
                *self.plain_keys[rule].get_or_insert(next)
            }
            Some(name) => {
                let names = self.template_keys.entry(rule).or_default();
                match names.get(name) {
                    Some(job) => *job,
                    None => *names.entry(Arc::clone(name)).or_insert(next),
                }
            }
        };
        if known == next {
            // Keys of a template share the records of a batch, nobody knows how.
            let values = if key_name.is_none() { self.expected } else { 0 };
            let column = |bytes| PlainColumn::with_capacity(values, values * bytes);
            self.list.push(Job {
                rule,
                key_name: key_name.cloned(),
                plain: column(EXPECTED_VALUE),
                rows: plan.row_field(rule).map(|_| column(EXPECTED_ROW)),
                domain: is_domain(&plan.rules()[rule]),
                len: 0,
                of_clients: None,
            });
        }
        known
    }

    /// Adds a value.
    pub(super) fn push(
        &mut self,
        plan: &Plan,
        domains: &Domains,
        (rule, spelling): (usize, Spelling),
        text: &[u8],
        bound: &Bound,
    ) -> Result<Slot, Rejection> {
        let model = &plan.rules()[rule];
        let job = self.of(plan, rule, bound.key_name.as_ref());
        let target = &mut self.list[job];
        let sealed = match target.domain {
            false => target.push(text, spelling, model.pad_to)?,
            true => {
                let before = target.plain.byte_len();
                push_of_domain(&mut target.plain, model, domains, (spelling, text), &mut self.coerced)?;
                target.plain.byte_len() - before + value::SIV_OVERHEAD
            }
        };
        if let Some(rows) = &mut target.rows {
            rows.push(&bound.row).map_err(column_full)?;
        }
        let index = target.len;
        target.len += 1;
        let text = value::text_len(sealed) + plan.opening(rule).len() + 1;
        self.bytes += (text + bound.row.len()) as u64;
        Ok(Slot { job, index })
    }

    /// Adds a value of a record of a plain rule: it belongs to no domain, and nothing of its record is asked for its key or a row.
    #[inline]
    pub(super) fn push_plain(
        &mut self,
        plan: &Plan,
        rule: usize,
        pad_to: Option<u32>,
        text: &[u8],
    ) -> Result<Slot, Rejection> {
        let job = self.of(plan, rule, None);
        let target = &mut self.list[job];
        let sealed = target.push(text, Spelling::Json, pad_to)?;
        let index = target.len;
        target.len += 1;
        // Between quotes.
        self.bytes += (value::text_len(sealed) + 2) as u64;
        Ok(Slot { job, index })
    }
}

impl Job {
    /// Adds the encoding of a value of no domain; how long it is when it is sealed.
    #[inline]
    fn push(&mut self, text: &[u8], spelling: Spelling, pad_to: Option<u32>) -> Result<usize, Rejection> {
        let before = self.plain.byte_len();
        let written = self
            .plain
            .push_with(json::encode_len_bound(text.len(), pad_to), |out| match spelling {
                Spelling::Json => json::encode_json(text, pad_to, out),
                Spelling::Bytes => Plaintext::Bytes(text).encode(pad_to, out),
            });
        written.map_err(column_full)?;
        Ok(self.plain.byte_len() - before + value::GCM_OVERHEAD)
    }
}

/// Adds a value of a column that belongs to a domain, coerced to that's type.
#[inline(never)]
fn push_of_domain(
    plain: &mut PlainColumn,
    rule: &ColumnRule,
    domains: &Domains,
    (spelling, text): (Spelling, &[u8]),
    coerced: &mut Zeroizing<Vec<u8>>,
) -> Result<(), Rejection> {
    let name = rule.domain().unwrap_or_default();
    let domain = domains
        .get(name)
        .ok_or_else(|| Rejection::new("no-domain", format!("domain {name} is not loaded")))?;
    let document = domain.document.document();
    let room = text.len() * 2 + 64 + document.pad_to.unwrap_or(0) as usize;
    if room > coerced.capacity() {
        *coerced = Zeroizing::new(Vec::with_capacity(room.next_power_of_two()));
    }
    coerced.clear();
    let pushed = coerce_into(spelling, text, document, coerced).and_then(|()| plain.push(coerced).map_err(column_full));
    if coerced.capacity() > MOST_COERCED {
        *coerced = Zeroizing::default();
    }
    pushed
}

#[cold]
fn column_full(_: ColumnError) -> Rejection {
    Rejection::new("batch-too-large", "more than 2 GiB of one column in a batch")
}

impl Jobs {
    /// Adds a value of an enclave column as it came.
    pub(super) fn push_for_enclave(
        &mut self,
        plan: &Plan,
        rule: usize,
        text: &[u8],
        key: ValueKey,
        row: &[u8],
    ) -> Result<Slot, Rejection> {
        let job = self.of(plan, rule, None);
        let target = &mut self.list[job];
        target.plain.push(text).map_err(column_full)?;
        if let Some(rows) = &mut target.rows {
            rows.push(row).map_err(column_full)?;
        }
        target.of_clients.get_or_insert_default().push(key);
        target.len += 1;
        let model = &plan.rules()[rule];
        // A JWE is longer than what it holds; padding may make that longer again.
        let longest = json::encode_len_bound(text.len(), model.pad_to) + value::GCM_OVERHEAD;
        let sealed = value::text_len(longest) + plan.opening(rule).len() + 1;
        let index = target.len - 1;
        self.bytes += (sealed + row.len()) as u64;
        Ok(Slot { job, index })
    }
}

fn coerce_into(spelling: Spelling, text: &[u8], domain: &DomainDocument, out: &mut Vec<u8>) -> Result<(), Rejection> {
    let coerced = match spelling {
        Spelling::Json => coerce(text, &domain.kind, domain.pad_to, out),
        // Keys and headers are bytes: a text domain takes them as a string, every other one as JSON text.
        _ if domain.kind == DomainType::Bytes => {
            Plaintext::Bytes(text).encode(domain.pad_to, out);
            Ok(())
        }
        _ if domain.kind == DomainType::Utf8 => {
            let Ok(text) = std::str::from_utf8(text) else {
                return Err(Rejection::new("cannot-coerce", "not UTF-8"));
            };
            Plaintext::Utf8(text).encode(domain.pad_to, out);
            Ok(())
        }
        _ => coerce(text, &domain.kind, domain.pad_to, out),
    };
    coerced.map_err(|error| Rejection::new(error.code(), error.to_string()))
}
