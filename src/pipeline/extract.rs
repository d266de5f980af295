//! What sealing finds in records: each value of a column, checked, and noted with what it is sealed under.

use std::ops::Range;

use zeroize::Zeroizing;

use super::client_values::{MAX_WRAPPED, Pending, is_sealed};
use super::hints::{self, Domains};
use super::jobs::{Bound, Item, Jobs, KeyNames, Spelling};
use super::opener::outer_places;
use super::output::{too_large, too_large_unread};
use super::plan::{Document, Place, Rejection, is_domain};
use super::record::{Record, ahead};
use super::seal::SealTransform;
use crate::columns::{Found, MAX_HITS};
use crate::policy::{Flow, Placement};

/// The most bytes that padding may add to one record.
const MAX_PADDING: usize = 16 << 20;

/// Working memory of extraction, from record to record.
#[derive(Default)]
struct Scratch {
    found: Found,
    bound: Bound,
    names: KeyNames,
    /// By rule.
    handling: Vec<Handling>,
    /// Whether any rule pads.
    pads: bool,
}

/// What of a rule is asked for each of its values, found out once for a batch.
#[derive(Clone, Copy)]
struct Handling {
    flow: Flow,
    seals_nulls: bool,
    /// Its values stay in place, because their column is encrypted as a whole.
    stays: bool,
    /// It is a hint of another column: nothing is to stand there.
    is_hint: bool,
    has_hints: bool,
    /// Its values have a row, or keys by their record.
    is_bound: bool,
    /// It belongs to no domain, and of all this there is nothing.
    is_plain: bool,
    pad_to: Option<u32>,
    /// The most bytes that padding adds to a value and its hints.
    padding: usize,
}

/// What was found in a record.
#[derive(Default)]
pub(super) struct Extracted {
    /// Values that came in clear and are sealed with the batch: which of its items.
    clear_items: Range<usize>,
    /// What clients have to do with: nothing in most records.
    clients: Option<Box<OfClient>>,
}

/// What was found in a record of a policy by which clients seal too.
#[derive(Default)]
pub(super) struct OfClient {
    /// Other values that are sealed with the batch.
    pub(super) more: Vec<Item>,
    /// Values that clients sealed for the backend.
    pub(super) pending: Vec<Pending>,
    /// Values that clients sealed for the enclave.
    pub(super) for_enclave: Vec<Pending>,
    /// Plaintexts of these that stay in place, because their columns are encrypted as a whole.
    pub(super) clear: Vec<(Place, Zeroizing<Vec<u8>>)>,
    /// Sessions in the record's value: for the backend, for the enclave.
    pub(super) sessions: [Vec<Range<usize>>; 2],
}

impl OfClient {
    const NOTHING: Self = Self {
        more: Vec::new(),
        pending: Vec::new(),
        for_enclave: Vec::new(),
        clear: Vec::new(),
        sessions: [Vec::new(), Vec::new()],
    };
}

impl Extracted {
    /// Values that are sealed with the batch, out of all that came in clear.
    pub(super) fn items<'a>(&'a self, all: &'a [Item]) -> impl Iterator<Item = &'a Item> {
        all[self.clear_items.clone()].iter().chain(&self.of_client().more)
    }

    pub(super) fn of_client(&self) -> &OfClient {
        static NOTHING: OfClient = OfClient::NOTHING;
        self.clients.as_deref().unwrap_or(&NOTHING)
    }

    pub(super) fn of_client_mut(&mut self) -> &mut OfClient {
        self.clients.get_or_insert_default()
    }

    /// Takes a value that a client sealed, where it belongs.
    fn pend(&mut self, flow: Flow, value: Pending) {
        match flow {
            Flow::Enclave => self.of_client_mut().for_enclave.push(value),
            Flow::Direct | Flow::Hybrid => self.of_client_mut().pending.push(value),
        }
    }
}

/// Which of a record's sessions values of a flow are sealed under.
fn side(flow: Flow) -> usize {
    usize::from(flow == Flow::Enclave)
}

impl SealTransform {
    /// Whether values of `rule` stay in place, because their column is encrypted as a whole.
    fn stays_in_place(&self, rule: usize) -> bool {
        self.for_table && self.plan.rules()[rule].at == Placement::Column
    }

    /// Finds the record's values and adds them to the jobs.
    fn extract(
        &self,
        record: &Record,
        domains: &Domains,
        scratch: &mut Scratch,
        jobs: &mut Jobs,
        all: &mut Extracted,
    ) -> Result<(), Rejection> {
        if record.payload_bytes() as u64 > self.limits.record.0 {
            return Err(too_large_unread());
        }
        let (before, wrapped) = (jobs.bytes, jobs.wrapped);
        // What the record may come to, sealed as far as it has been read.
        let most = before + (self.limits.record.0 - record.payload_bytes() as u64);
        let first = jobs.items.len();
        let Scratch {
            found,
            bound,
            names,
            handling,
            pads,
        } = scratch;
        // Those of the record before name nothing here.
        names.clear();
        let outer = self.plan.outer_rules();
        match &record.value {
            None if outer.is_empty() => {}
            None => self.extract_outer(record, None, domains, (bound, names), jobs, all)?,
            Some(bytes) => {
                let mut documents = 0;
                let mut padding = 0;
                self.plan.documents(bytes, found, |document| {
                    documents += 1;
                    names.clear();
                    self.plan.check_missing(&document)?;
                    if *pads {
                        let hits = document.found.hits.iter();
                        padding += hits.map(|hit| handling[self.plan.rule_of(hit)].padding).sum::<usize>();
                        check_padding(padding)?;
                    }
                    let sessions = self.sessions_of(&document)?;
                    for (side, session) in sessions.iter().enumerate() {
                        if let Some(session) = session {
                            all.of_client_mut().sessions[side].push(session.clone());
                        }
                    }
                    // Readers find values and hints alike.
                    let mut room = MAX_HITS.saturating_sub(document.found.hits.len());
                    for hit in &document.found.hits {
                        let (rule, text) = (self.plan.rule_of(hit), &document.text[hit.range()]);
                        let Handling {
                            flow,
                            seals_nulls,
                            stays,
                            is_hint,
                            has_hints,
                            is_bound,
                            is_plain,
                            pad_to,
                            ..
                        } = handling[rule];
                        if is_hint {
                            return Err(hints::taken(&self.plan.rules()[rule]));
                        }
                        if text == b"null" && !seals_nulls {
                            continue;
                        }
                        let (start, end) = (document.offset + hit.range().start, document.offset + hit.range().end);
                        let place = Place::Value { start, end };
                        if is_plain {
                            let slot = jobs.push_plain(&self.plan, rule, pad_to, text)?;
                            jobs.items.push(slot.at(place));
                            if jobs.bytes > most {
                                return Err(too_large());
                            }
                            continue;
                        }
                        let indexes = document.found.indexes(hit);
                        if flow != Flow::Direct && is_sealed(&self.plan.rules()[rule], place, text)? {
                            bound.set(&self.plan, rule, indexes, Some(&document), names)?;
                            let session = sessions[side(flow)].clone();
                            let (at, bound) = ((rule, place), bound.clone());
                            let value = Pending::note(&self.plan, at, text, bound, session, stays, jobs);
                            all.pend(flow, value);
                            check_wrapped(jobs.wrapped - wrapped)?;
                            // Its hints are derived once it is open.
                            let hints = self.plan.hints(rule).len();
                            room = room.checked_sub(hints).ok_or_else(too_many_values)?;
                            continue;
                        }
                        if !stays {
                            match is_bound {
                                true => bound.set(&self.plan, rule, indexes, Some(&document), names)?,
                                false => bound.clear(),
                            }
                            let slot = self.push_clear(jobs, domains, (rule, Spelling::Json), text, bound)?;
                            jobs.items.push(slot.at(place));
                            self.check_room(record, before, jobs)?;
                        }
                        if !has_hints {
                            continue;
                        }
                        for hint in self.plan.hints(rule) {
                            let Some(derived) = hints::derive(&self.plan.rules()[*hint], text, domains)? else {
                                continue;
                            };
                            room = room.checked_sub(1).ok_or_else(too_many_values)?;
                            let behind = Place::Value { start: end, end };
                            bound.set(&self.plan, *hint, indexes, Some(&document), names)?;
                            let slot = jobs.push(&self.plan, domains, (*hint, Spelling::Json), &derived, bound)?;
                            jobs.items.push(slot.at(behind));
                            self.check_room(record, before, jobs)?;
                        }
                    }
                    if documents == 1 && !outer.is_empty() {
                        self.extract_outer(record, Some(&document), domains, (bound, names), jobs, all)?;
                    }
                    Ok(())
                })?;
                if documents == 0 && !outer.is_empty() {
                    self.extract_outer(record, None, domains, (bound, names), jobs, all)?;
                }
            }
        }
        all.clear_items = first..jobs.items.len();
        self.check_room(record, before, jobs)?;
        check_wrapped(jobs.wrapped - wrapped)
    }

    /// Where in the record's value a document holds its sessions, for the backend and for the enclave, if the policy names fields
    /// for them.
    fn sessions_of(&self, document: &Document<'_>) -> Result<[Option<Range<usize>>; 2], Rejection> {
        let fields = [self.plan.session_field(), self.plan.enclave_session_field()];
        if fields == [None; 2] {
            return Ok([None, None]);
        }
        let range = |field: Option<usize>| match field {
            Some(field) => self.plan.field_range(document, field),
            None => Ok(None),
        };
        let [backend, enclave] = fields;
        Ok([range(backend)?, range(enclave)?])
    }

    /// Finds the values of the first records, at least of one, until what they become passes `limit` bytes.
    pub(super) fn extract_prefix(
        &self,
        records: &[Record],
        limit: u64,
        domains: &Domains,
        jobs: &mut Jobs,
    ) -> Vec<Result<Extracted, Rejection>> {
        let rules = 0..self.plan.rules().len();
        let handling: Vec<Handling> = rules.map(|rule| self.handling(rule, domains)).collect();
        let mut scratch = Scratch {
            pads: handling.iter().any(|handling| handling.padding > 0),
            handling,
            ..Scratch::default()
        };
        let mut all = Vec::with_capacity(jobs.items.capacity());
        for record in ahead(records) {
            // It is written where it stays: it would be read again in other pieces than it is written in.
            all.push(Ok(Extracted::default()));
            let Some(Ok(extracted)) = all.last_mut() else { break };
            let found = self.extract(record, domains, &mut scratch, jobs, extracted);
            // What a rejected record has put into the columns stays there, and is counted too.
            jobs.bytes += match &found {
                Ok(()) => record.payload_bytes() as u64,
                Err(_) => self.set_aside().letter_bytes(record),
            };
            if let Err(rejection) = found
                && let Some(last) = all.last_mut()
            {
                *last = Err(rejection);
            }
            if jobs.bytes >= limit || jobs.wrapped >= MAX_WRAPPED {
                break;
            }
        }
        all
    }

    /// `$key` and `$header` columns. Their fields are those of the record's first document.
    fn extract_outer(
        &self,
        record: &Record,
        document: Option<&Document<'_>>,
        domains: &Domains,
        (bound, names): (&mut Bound, &mut KeyNames),
        jobs: &mut Jobs,
        all: &mut Extracted,
    ) -> Result<(), Rejection> {
        for rule in self.plan.outer_rules() {
            let root = self.plan.rules()[*rule].path.root();
            let places = || outer_places(root, record);
            let count = places().count();
            if count == 0 && self.plan.rules()[*rule].on_missing == crate::policy::OnMissing::Reject {
                return Err(Rejection::new(
                    "missing-column",
                    format!("column {} is missing", self.plan.rules()[*rule].path),
                ));
            }
            let stays = self.stays_in_place(*rule);
            check_padding(count * self.padding(*rule, domains))?;
            for (place, bytes) in places() {
                let flow = self.plan.rules()[*rule].flow;
                if is_sealed(&self.plan.rules()[*rule], place, bytes)? {
                    let session = all.of_client().sessions[side(flow)].first().cloned();
                    bound.set(&self.plan, *rule, &[], document, names)?;
                    let (at, bound) = ((*rule, place), bound.clone());
                    let value = Pending::note(&self.plan, at, bytes, bound, session, stays, jobs);
                    all.pend(flow, value);
                } else if !stays {
                    bound.set(&self.plan, *rule, &[], document, names)?;
                    let slot = self.push_clear(jobs, domains, (*rule, Spelling::Bytes), bytes, bound)?;
                    jobs.items.push(slot.at(place));
                }
            }
        }
        Ok(())
    }

    fn handling(&self, rule: usize, domains: &Domains) -> Handling {
        let model = &self.plan.rules()[rule];
        let is_template = |(group, _): (usize, u16)| self.plan.groups[group].is_template();
        let stays = self.stays_in_place(rule);
        let (is_hint, has_hints) = (model.hint.is_some(), !self.plan.hints(rule).is_empty());
        let is_bound = self.plan.row_field(rule).is_some() || self.plan.columns[rule].is_some_and(is_template);
        let asks_more = stays || is_hint || has_hints || is_bound || is_domain(model);
        Handling {
            flow: model.flow,
            seals_nulls: model.seal_nulls,
            stays,
            is_hint,
            has_hints,
            is_bound,
            is_plain: model.flow == Flow::Direct && !asks_more,
            pad_to: model.pad_to,
            padding: self.padding(rule, domains),
        }
    }

    /// The most bytes that padding adds to a value of `rule` and its hints.
    fn padding(&self, rule: usize, domains: &Domains) -> usize {
        let model = &self.plan.rules()[rule];
        let pad_to = match model.domain() {
            _ if self.stays_in_place(rule) => None,
            Some(name) => domains.get(name).and_then(|domain| domain.document.document().pad_to),
            None => model.pad_to,
        };
        let hints = self.plan.hints(rule).iter().map(|hint| self.padding(*hint, domains));
        pad_to.unwrap_or(0) as usize + hints.sum::<usize>()
    }
}

/// Without this, a few hundred kilobytes of one-byte values could grow to gigabytes.
fn check_padding(bytes: usize) -> Result<(), Rejection> {
    if bytes <= MAX_PADDING {
        return Ok(());
    }
    Err(Rejection::new(
        "too-many-values",
        "padding adds more than 16 MiB to one record",
    ))
}

/// More values with a key of their own than are unwrapped for one record.
fn check_wrapped(wrapped: usize) -> Result<(), Rejection> {
    if wrapped <= MAX_WRAPPED {
        return Ok(());
    }
    Err(Rejection::new(
        "too-many-values",
        "the record holds more values that a client sealed each for itself than are opened together; use sessions",
    ))
}

/// More values and hints than a reader would find.
fn too_many_values() -> Rejection {
    Rejection::new(
        "too-many-values",
        "the record holds more values with their hints than can be located",
    )
}
