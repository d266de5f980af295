//! Reading for somebody: each sealed value is opened or masked for itself, as the ACL of its proven label says.
//!
//! The opposite of the opening transform: nothing is set aside, and one column that is refused, or one value that does
//! not open, takes nothing from the others. What does not open is a null, never its plaintext and never a guess.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::dead_letter::CANNOT_OPEN;
use super::decisions::{ColumnDecision, ColumnOutcome, Decisions, Withheld};
use super::edits::Edits;
use super::open::{domain_failure, key_failure};
use super::open_columns::{At, OpenedValues as OpenedColumns, ToOpen};
use super::opener::{Failures, Item, Keyring, Opener, Value, Values, cannot_open};
use super::output::OutputLimits;
use super::plan::{self, Format, Plan, Rejection};
use super::record::{Record, ahead};
use super::set_aside::service_stop;
use super::transform::{StopKind, TransformError};
use super::travelling::{Travelling, TravellingReader};
use crate::acl::{Identity, Refused};
use crate::audit::Event;
use crate::clock::UnixMillis;
use crate::columns::Found;
use crate::flow::hybrid::AnswerKey;
use crate::keys::{DomainError, DomainKeys, KeyServiceError, OpenKeyError, OpeningKeys};
use crate::policy::{Access, Flow, PolicySource, PolicySourceError, VerifiedDomain, VerifiedPolicy};

/// Code of a value whose key the key service does not unwrap for this process.
pub const KEY_REFUSED: &str = "key-refused";
/// Code of a value that only the enclave opens.
pub const ENCLAVE_ONLY: &str = "enclave-only";
/// What a reader does about columns of the enclave, whose keys the backend does not get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EnclaveColumns {
    /// They do not open: a null is shown, with the code [`ENCLAVE_ONLY`].
    #[default]
    Masked,
    /// They stay as they are: what the worker has put there.
    Left,
    /// They alone are opened, and all others stay as they are: the worker's own reader.
    Only,
}

impl EnclaveColumns {
    /// Whether columns of that flow stay as they are.
    fn leaves(self, flow: Flow) -> bool {
        match self {
            Self::Masked => false,
            Self::Left => flow == Flow::Enclave,
            Self::Only => flow != Flow::Enclave,
        }
    }

    /// Why a column of that flow is not opened, if it is not.
    pub(super) fn refuses(self, flow: Flow) -> Option<Rejection> {
        let only = || {
            Rejection::new(
                ENCLAVE_ONLY,
                "only the enclave opens values of this column, and seals them to a reader",
            )
        };
        (self == Self::Masked && flow == Flow::Enclave).then(only)
    }
}

/// Reads records of one dataset, by the newest policy at every call.
pub struct Reader {
    pub(super) dataset: String,
    format: Format,
    policies: Arc<dyn PolicySource>,
    keys: OpeningKeys,
    domains: DomainKeys,
    most_bytes: u64,
    pub(super) moved: bool,
    pub(super) enclave: EnclaveColumns,
    /// Of the policy that was the newest at the last call.
    compiled: RwLock<Option<Arc<Opener>>>,
}

/// What somebody sees of a batch, and why.
#[derive(Debug)]
#[non_exhaustive]
pub struct Reading {
    /// One for each record that was given, in order.
    pub records: Vec<Result<Record, Withheld>>,
    /// What was decided about the columns.
    pub decisions: Vec<ColumnDecision>,
    /// The policy by which it was.
    pub policy: Arc<VerifiedPolicy>,
}

/// Why nothing can be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// There is no policy that counts: not signed by whom the reader pins, its lease is over, …
    #[error(transparent)]
    Policy(#[from] PolicySourceError),
    /// A service is away, or has to be mended.
    #[error(transparent)]
    Service(#[from] TransformError),
}

impl ReadError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Policy(error) => error.is_retryable(),
            Self::Service(error) => matches!(error, TransformError::Retry { .. }),
        }
    }
}

impl Reading {
    /// Everything that was decided, as lines of an audit log. `about` says when and who asked; dataset and version of
    /// the policy are filled in.
    #[must_use]
    pub fn events(&self, about: &Event) -> Vec<Event> {
        let about = by(&self.policy, about);
        let mut events: Vec<Event> = self.decisions.iter().map(|decision| decision.event(&about)).collect();
        // Those of one reason and partition are one line, however many there are: anybody can send such records.
        let mut folded: BTreeMap<(&'static str, &str, i32), Event> = BTreeMap::new();
        for withheld in self.records.iter().filter_map(|record| record.as_ref().err()) {
            let at = &withheld.position;
            match folded.entry((withheld.code, &at.topic, at.partition)) {
                Entry::Vacant(free) => {
                    free.insert(withheld.event(&about));
                }
                Entry::Occupied(mut known) => {
                    let event = known.get_mut();
                    event.count += 1;
                    if let Some(place) = &mut event.place {
                        place.last = Some(at.offset);
                    }
                }
            }
        }
        events.extend(folded.into_values());
        events
    }
}

pub(super) fn by(policy: &VerifiedPolicy, about: &Event) -> Event {
    let policy = policy.policy();
    Event {
        dataset: Some(policy.dataset.clone()),
        policy_version: Some(policy.version),
        ..about.clone()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("dataset", &self.dataset)
            .finish_non_exhaustive()
    }
}

/// What a batch is read by and for whom.
pub(super) struct Asked<'a> {
    pub(super) opener: Arc<Opener>,
    documents: BTreeMap<String, Arc<VerifiedDomain>>,
    /// Domains whose document counts for nobody, and why.
    unusable: BTreeMap<String, String>,
    who: &'a Identity,
    purpose: Option<&'a str>,
    now: UnixMillis,
    /// Answers about labels so far.
    known: HashMap<String, Access>,
}

impl Asked<'_> {
    /// Why values of `label` are opened or refused, in words.
    pub(super) fn because(&mut self, label: &str) -> String {
        let domain = label.strip_prefix("domain:");
        if let Some(why) = domain.and_then(|domain| self.unusable.get(domain)) {
            return why.clone();
        }
        self.access(label).because.to_string()
    }

    pub(super) fn access(&mut self, label: &str) -> &Access {
        if !self.known.contains_key(label) {
            let policy = self.opener.plan.policy.policy();
            let documents = &self.documents;
            let document = |name: &str| documents.get(name).map(|domain| domain.document());
            let access = policy.access(label, self.who, self.purpose, self.now, document);
            self.known.insert(label.to_owned(), access);
        }
        &self.known[label]
    }
}

/// The places of one record, and the envelopes that travel with it.
struct Extracted {
    /// Of [`Batch::places`].
    places: Range<usize>,
    travelling: Travelling,
}

/// What was found in the records of a batch.
#[derive(Default)]
struct Batch {
    records: Vec<Result<Extracted, Rejection>>,
    /// Record after record, in order.
    places: Vec<OfPlace>,
    values: Values,
}

/// A place of a column, and what was found there.
struct OfPlace {
    rule: usize,
    place: plan::Place,
    item: Result<Item, Rejection>,
    /// Where it is among what is opened together: nothing for what is refused, or opens by itself.
    at: Option<At>,
}

impl Reader {
    /// A reader of `dataset`, whose policy is asked of `policies` at every call: what is revoked there is refused here.
    #[must_use]
    pub fn new(
        dataset: &str,
        format: Format,
        policies: Arc<dyn PolicySource>,
        keys: OpeningKeys,
        domains: DomainKeys,
    ) -> Self {
        Self {
            dataset: dataset.to_owned(),
            format,
            policies,
            keys,
            domains,
            most_bytes: OutputLimits::default().record.0,
            moved: false,
            enclave: EnclaveColumns::default(),
            compiled: RwLock::default(),
        }
    }

    /// The same reader, which opens values at other places than their own too: of columns that were renamed. The ACL
    /// that counts stays that of the label that a value proves.
    #[must_use]
    pub fn with_moved(mut self, moved: bool) -> Self {
        self.moved = moved;
        self
    }

    /// The same reader, which does something else about columns of the enclave.
    #[must_use]
    pub fn with_enclave_columns(mut self, enclave: EnclaveColumns) -> Self {
        self.enclave = enclave;
        self
    }

    /// The same reader, with another limit of the records that it takes.
    #[must_use]
    pub fn with_largest_record(mut self, bytes: u64) -> Self {
        self.most_bytes = bytes;
        self
    }

    /// What `who` sees of `records` at `now`, if they are read for `purpose`.
    ///
    /// # Errors
    /// [`ReadError`] if there is no policy that counts, or a service is away. Keys that the key service refuses, and
    /// values that do not open, are no errors: they are decisions.
    pub async fn read(
        &self,
        records: Vec<Record>,
        who: &Identity,
        purpose: Option<&str>,
        now: UnixMillis,
    ) -> Result<Reading, ReadError> {
        self.read_to(records, who, purpose, now, None).await
    }

    /// As [`Reader::read`]; what is opened is sealed to the reader's key, if one is given.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn read_to(
        &self,
        records: Vec<Record>,
        who: &Identity,
        purpose: Option<&str>,
        now: UnixMillis,
        seal_to: Option<&AnswerKey>,
    ) -> Result<Reading, ReadError> {
        let mut asked = self.asked(who, purpose, now).await?;
        let opener = Arc::clone(&asked.opener);
        let mut batch = self.extract(&opener, &records);
        // Nobody asks for a key for a reader who is refused anyway.
        let mut is_wanted = vec![None; opener.plan.rules().len()];
        for OfPlace { rule, .. } in &batch.places {
            let is_allowed = || self.moved || asked.access(&opener.plan.rules()[*rule].label).is_allowed();
            is_wanted[*rule].get_or_insert_with(is_allowed);
        }
        let wanted = batch.records.iter().flatten().map(|found| {
            let places = batch.places[found.places.clone()].iter();
            let items = places.filter(|place| is_wanted[place.rule] == Some(true));
            let items = items.filter_map(|place| place.item.as_ref().ok());
            (items.map(|item| (item.rule as usize, item.names)), &found.travelling)
        });
        let mut ring = opener.keyring(wanted).await?;
        let opened = self.open_columns(&records, &mut batch, &mut asked, &mut ring);
        let mut edits = Edits::for_records(&records);
        let mut decisions = Decisions::default();
        let mut shown = Vec::with_capacity(records.len());
        let mut places = batch.places.into_iter();
        for (n, (record, found)) in records.iter().zip(batch.records).enumerate() {
            shown.push(match found {
                Ok(found) => {
                    let out = (&mut edits, &mut decisions, seal_to);
                    let places = places.by_ref().take(found.places.len());
                    let of = (record, places, found.travelling.fingerprint());
                    self.show(of, (&batch.values, &opened), &mut asked, &mut ring, out);
                    Ok(edits.apply(n, record))
                }
                Err(rejection) => Err(Withheld {
                    position: record.position.clone(),
                    code: rejection.code,
                }),
            });
        }
        edits.finish(|n, value| {
            if let Ok(record) = &mut shown[n] {
                record.value = Some(value);
            }
        });
        Ok(Reading {
            records: shown,
            decisions: decisions.0,
            policy: Arc::clone(&opener.plan.policy),
        })
    }

    pub(super) async fn asked<'a>(
        &self,
        who: &'a Identity,
        purpose: Option<&'a str>,
        now: UnixMillis,
    ) -> Result<Asked<'a>, ReadError> {
        let opener = self.opener(self.policies.policy(&self.dataset).await?)?;
        let (mut documents, mut unusable) = (BTreeMap::new(), BTreeMap::new());
        for name in opener.plan.domains() {
            match self.policies.domain(name, None).await {
                Ok(document) => {
                    documents.insert(name.to_owned(), document);
                }
                // Its values are refused: nobody says who may open them.
                Err(error) if !error.is_retryable() => {
                    unusable.insert(name.to_owned(), error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Asked {
            opener,
            documents,
            unusable,
            who,
            purpose,
            now,
            known: HashMap::new(),
        })
    }

    /// What opens by this policy, compiled again if it is another one than before.
    fn opener(&self, policy: Arc<VerifiedPolicy>) -> Result<Arc<Opener>, ReadError> {
        let known = self.compiled.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|known| known.plan.policy.policy().sha256 == policy.policy().sha256) {
            return Ok(known);
        }
        if let Some(first) = policy.policy().unsupported().first() {
            return Err(stop(format!("policy of {}: {first}", self.dataset), first.help.clone()));
        }
        let plan = Plan::new(policy, self.format).map_err(|error| {
            let help = "check the policy with `sealflow policy check`";
            stop(format!("policy of {}: {error}", self.dataset), help.to_owned())
        })?;
        let opener = Arc::new(Opener {
            plan,
            keys: self.keys.clone(),
            domains: self.domains.clone(),
            failures: Failures {
                key: refused_key,
                domain: refused_domain,
            },
        });
        *self.compiled.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&opener));
        Ok(opener)
    }

    fn extract(&self, opener: &Opener, records: &[Record]) -> Batch {
        let mut found = Found::default();
        let mut travelling = TravellingReader::new(&self.dataset);
        let mut batch = Batch::default();
        let Batch {
            records: all,
            places,
            values,
        } = &mut batch;
        all.reserve(records.len());
        for record in ahead(records) {
            let first = places.len();
            let to = (&mut found, &mut *values);
            let extracted = opener.extract(record, self.most_bytes, to, |(rule, place, item)| {
                let flow = opener.plan.rules()[rule].flow;
                if self.enclave.leaves(flow) {
                    return Ok(false);
                }
                let item = item.map(|item| self.enclave.refuses(flow).map_or(item, Err));
                let is_kept = matches!(item, Some(Ok(_)));
                // A null hides nothing.
                places.extend(item.map(|item| OfPlace {
                    rule,
                    place,
                    item,
                    at: None,
                }));
                Ok(is_kept)
            });
            if extracted.is_err() {
                places.truncate(first);
            }
            all.push(extracted.map(|()| Extracted {
                places: first..places.len(),
                travelling: travelling.of(record),
            }));
        }
        batch
    }

    /// Opens what the reader may see of all records together, but for values of domains.
    fn open_columns(
        &self,
        records: &[Record],
        batch: &mut Batch,
        asked: &mut Asked<'_>,
        ring: &mut Keyring,
    ) -> OpenedColumns {
        let opener = Arc::clone(&asked.opener);
        let mut to_open = ToOpen::default();
        for (record, one) in records.iter().zip(&batch.records) {
            let Ok(Extracted { places, travelling }) = one else {
                continue;
            };
            let fingerprint = travelling.fingerprint();
            for found in &mut batch.places[places.clone()] {
                let Ok(item) = &found.item else { continue };
                let value = batch.values.get(item);
                // What claims nothing is rejected where it is shown.
                let Ok(label) = self.claimed(&opener, value, fingerprint, ring) else {
                    continue;
                };
                if !asked.access(&label).is_allowed() {
                    continue;
                }
                // What is wrong with it is found again where it is shown.
                let added = opener.add(record, value, (&label, fingerprint), ring, &mut to_open);
                found.at = added.ok().flatten();
            }
        }
        to_open.open()
    }

    /// The label whose list counts for a value: its place's, or the one that it proves where values may be moved.
    fn claimed<'a>(
        &self,
        opener: &'a Opener,
        value: Value<'_>,
        fingerprint: u64,
        ring: &mut Keyring,
    ) -> Result<Cow<'a, str>, Rejection> {
        match self.moved {
            true => opener.claimed(value, fingerprint, ring).map(Cow::Owned),
            false => Ok(Cow::Borrowed(&opener.plan.rules()[value.rule].label)),
        }
    }

    /// Each of the record's places opened or masked.
    fn show<'r>(
        &self,
        (record, places, fingerprint): (&'r Record, impl Iterator<Item = OfPlace>, u64),
        (values, opened): (&Values, &OpenedColumns),
        asked: &mut Asked<'_>,
        ring: &mut Keyring,
        (edits, decisions, seal_to): (&mut Edits<'r>, &mut Decisions, Option<&AnswerKey>),
    ) {
        let opener = Arc::clone(&asked.opener);
        edits.start(record);
        for OfPlace { rule, place, item, at } in places {
            let own = &opener.plan.rules()[rule].label;
            let value = item.map(|item| values.get(&item));
            let claimed = match &value {
                Ok(value) => self.claimed(&opener, *value, fingerprint, ring),
                Err(_) => Ok(Cow::Borrowed(own.as_str())),
            };
            let shown = claimed.and_then(|label| {
                if !asked.access(&label).is_allowed() {
                    edits.put_masked(place, asked.access(&label).refused);
                    let named = opener.named(&label);
                    decisions.add(
                        named,
                        ColumnOutcome::Refused,
                        || asked.because(&label),
                        &record.position,
                    );
                    return Ok(());
                }
                let value = value?;
                match (at, seal_to) {
                    (Some(at), None) => edits.put(place, opened.get(at)?)?,
                    (at, seal_to) => {
                        let encoding = edits.encoding(value.sealed.len());
                        match at {
                            Some(at) => encoding.extend_from_slice(opened.get(at)?),
                            None => opener.open(record, value, (&label, fingerprint), ring, encoding)?,
                        }
                        match seal_to {
                            Some(key) => edits.put_sealed(place, &label, key)?,
                            None => edits.put_opened(place)?,
                        }
                    }
                }
                decisions.add(
                    &label,
                    ColumnOutcome::Opened,
                    || asked.because(&label),
                    &record.position,
                );
                Ok(())
            });
            if let Err(rejection) = shown {
                // Of a reader whom the place's own list refuses too, nothing has failed.
                let own_access = asked.access(own);
                if self.moved && !own_access.is_allowed() {
                    edits.put_masked(place, own_access.refused);
                    decisions.add(own, ColumnOutcome::Refused, || asked.because(own), &record.position);
                    continue;
                }
                edits.put_masked(place, Refused::Null);
                let outcome = ColumnOutcome::Failed(rejection.code);
                decisions.add(own, outcome, || rejection.detail.clone(), &record.position);
            }
        }
    }
}

pub(super) fn stop(reason: String, help: String) -> ReadError {
    ReadError::Service(TransformError::Stop {
        kind: StopKind::Config,
        reason,
        help,
    })
}

/// A key that KMS refuses takes its values away and no others: one refused column never fails the rest.
fn refused_key(error: OpenKeyError) -> Result<Rejection, TransformError> {
    match error {
        OpenKeyError::Service(error @ KeyServiceError::NotPermitted { .. }) => {
            Ok(Rejection::new(KEY_REFUSED, error.to_string()))
        }
        // Of another dataset, which an envelope names: one's own was asked for just before. A pasted value stops nobody.
        OpenKeyError::Policy(PolicySourceError::Untrusted { .. } | PolicySourceError::NotPermitted { .. }) => {
            Ok(cannot_open())
        }
        error => key_failure(error),
    }
}

fn refused_domain(error: DomainError) -> Result<Rejection, TransformError> {
    match error {
        error if error.is_retryable() => domain_failure(error),
        DomainError::Service(error @ KeyServiceError::NotPermitted { .. }) => {
            Ok(Rejection::new(KEY_REFUSED, error.to_string()))
        }
        DomainError::Service(error) => Err(service_stop(&error)),
        error => Ok(Rejection::new(CANNOT_OPEN, error.to_string())),
    }
}
