//! Values that say which client sealed them: their MACs are verified before anything else is done for them, and those that
//! count once are claimed for the place where they were read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::client_values::{Pending, Refusal, cannot_open, text_of};
use super::plan::{Place, Plan, Rejection};
use super::record::{Record, Timestamp};
use super::seal::FETCHES;
use super::set_aside::{joined, service_stop};
use super::transform::{StopKind, TransformError};
use crate::audit::{AuditError, AuditLog};
use crate::clock::{Clock, UnixMillis};
use crate::flow::hybrid::taken::{Claim, MAX_OF_RECORD, Taken, TakenError, TakenMemory, name_of, place_of};
use crate::flow::hybrid::{ClientKeyError, ClientKeys, Derived, MacKeys};
use crate::jose::mac::{MacJws, MacKey};
use crate::keys::ClientKeyService;
use crate::policy::{ClientSealed, MacRule};

/// How far ahead of ours a client's clock may be.
const SKEW: Duration = Duration::from_secs(60);

/// Clients of whom no value has verified yet whose keys are asked for together: fewer than the bucket has chances.
const STRANGERS: usize = 64;

/// The pending values of one record that is not refused yet: its number in the batch, the record, the values.
pub(super) type OfRecord<'a> = (usize, &'a Record, &'a [Pending]);
/// What was refused, by the number of its record.
pub(super) type Refused = Vec<(usize, Refusal)>;

/// What opens and judges the values that clients seal. Cheap to clone; clones share what they remember.
#[derive(Clone)]
pub struct Clients {
    /// Their sessions, and keys of single values.
    pub keys: ClientKeys,
    /// The keys by which they prove who they are.
    pub macs: MacKeys,
    pub(super) taken: Option<Arc<dyn TakenMemory>>,
    pub(super) audit: Option<Arc<dyn AuditLog>>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Clients {
    /// Remembers at most `capacity` sessions and as many clients, each asked of the key service again after `max_age`.
    #[must_use]
    pub fn new(service: Arc<dyn ClientKeyService>, clock: Arc<dyn Clock>, max_age: Duration, capacity: u64) -> Self {
        Self {
            keys: ClientKeys::new(Arc::clone(&service), Arc::clone(&clock), max_age, capacity),
            macs: MacKeys::new(service, Arc::clone(&clock), max_age, capacity),
            taken: None,
            audit: None,
            clock,
        }
    }

    /// The same, with a memory of values of columns `once`. Without it a policy with such columns stops.
    #[must_use]
    pub fn with_taken(mut self, taken: Arc<dyn TakenMemory>) -> Self {
        self.taken = Some(taken);
        self
    }

    /// The same; the first value of each record that is refused for what its client did is written down before anything of its
    /// batch leaves.
    #[must_use]
    pub fn with_audit(mut self, audit: Arc<dyn AuditLog>) -> Self {
        self.audit = Some(audit);
        self
    }

    /// Ends the audit log, if there is one.
    ///
    /// # Errors
    /// [`AuditError`]
    pub async fn close(&self) -> Result<(), AuditError> {
        match &self.audit {
            Some(log) => log.close().await,
            None => Ok(()),
        }
    }

    pub(super) fn log(&self) -> Option<(&dyn AuditLog, &dyn Clock)> {
        self.audit.as_deref().map(|log| (log, &*self.clock))
    }

    /// Forgets keys that are past their age: call it about once a second.
    pub async fn tick(&self) {
        self.keys.tick().await;
        self.macs.tick().await;
    }
}

/// Verifies proofs, and claims what counts once.
pub(super) struct Proofs<'a> {
    pub(super) plan: &'a Plan,
    pub(super) rule: &'a MacRule,
    pub(super) keys: &'a MacKeys,
    pub(super) taken: Option<&'a dyn TakenMemory>,
    pub(super) clock: &'a dyn Clock,
}

impl Proofs<'_> {
    /// Records of which a value does not prove who sealed it.
    ///
    /// # Errors
    /// [`TransformError`] if the key service does not answer.
    pub(super) async fn verify(&self, records: &[OfRecord<'_>]) -> Result<Refused, TransformError> {
        let all = records.iter();
        let all = all.flat_map(|(n, record, pending)| pending.iter().map(move |value| (*n, *record, value)));
        let mut values: Vec<Unproved<'_>> = all
            .filter(|(.., value)| self.is_authenticated(value))
            .map(|(n, record, value)| Unproved {
                n,
                record,
                value,
                is_proved: false,
            })
            .collect();
        let mut clients: HashMap<&str, Vec<usize>> = HashMap::new();
        for (number, of) in values.iter().enumerate() {
            if let Some(jws) = &of.value.proof {
                clients.entry(&jws.header.client).or_default().push(number);
            }
        }
        let dataset = &self.plan.policy.policy().dataset;
        let mut strangers = Vec::new();
        for (client, mut numbers) in clients {
            let known = self.keys.known(self.rule, dataset, client).await;
            let mut tried = Vec::new();
            for (n, key) in known.map_err(not_derived)? {
                prove(&mut values, &mut numbers, &key);
                tried.push(n);
            }
            if !numbers.is_empty() && !self.rule.revoked.contains(client) {
                strangers.push(Stranger {
                    client,
                    numbers,
                    tried,
                    derived: Vec::new(),
                    has_proved: false,
                });
            }
        }
        // Together they use up no more of the bucket than comes back when they have proved themselves.
        let arns = 1 + self.rule.previous.len();
        for some in strangers.chunks_mut((STRANGERS / arns).max(1)) {
            let _turn = self.keys.turn().await;
            for (n, arn) in self.rule.arns().enumerate() {
                let wanted = some
                    .iter()
                    .filter(|one| !one.numbers.is_empty() && !one.tried.contains(&n));
                let wanted = wanted.map(|one| one.client.to_owned()).collect();
                let mut derived = self.derive(arn, n == 0, wanted).await?;
                for one in some.iter_mut() {
                    if let Some(key) = derived.remove(one.client) {
                        if prove(&mut values, &mut one.numbers, key.key()) {
                            key.verified().await;
                            one.has_proved = true;
                        }
                        one.derived.push(key);
                    }
                }
            }
            for one in some.iter_mut().filter(|one| one.has_proved) {
                one.derived.drain(..).for_each(Derived::give_back);
            }
        }
        let mut refused = Vec::new();
        for of in values.iter().filter(|of| !of.is_proved) {
            // Who it says that sealed it was not proved, so nobody is named.
            refused.push((of.n, Refusal::new(of.value.rule, None, cannot_open())));
        }
        Ok(refused)
    }

    /// The claims of a record whose values count once; none if it has no such values.
    ///
    /// # Errors
    /// [`Refusal`] of a value that has no name or no time.
    pub(super) fn claims(&self, record: &Record, pending: &[Pending]) -> Result<Option<Claims>, Refusal> {
        let now = self.clock.now();
        let mut all = Claims::default();
        for value in pending.iter().filter(|value| self.counts_once(value)) {
            let claim = value
                .proof
                .as_ref()
                .and_then(|jws| self.claim_of(record, value, jws, now));
            let claim = claim.ok_or_else(|| Refusal::new(value.rule, value.client(), cannot_open()))?;
            all.claims.push(claim);
            all.of.push((value.rule, value.client()));
        }
        if all.claims.len() > MAX_OF_RECORD {
            let what = "the record holds more values that count once than are taken together";
            return Err(Refusal::new(all.of[0].0, None, Rejection::new("too-many-values", what)));
        }
        Ok(Some(all).filter(|all| !all.claims.is_empty()))
    }

    /// Takes the values of records, by the numbers of the records; those of which one was taken elsewhere, or comes too late.
    ///
    /// # Errors
    /// [`TransformError`] if the memory does not answer.
    pub(super) async fn take(&self, records: Vec<(usize, Claims)>) -> Result<Refused, TransformError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let Some(taken) = self.taken else {
            return Err(TransformError::Stop {
                kind: StopKind::Config,
                reason: "a column is `client_sealed: once`, and nothing remembers which values were taken".to_owned(),
                help: "add `replay_memory: { topic: NAME }` to the pipeline".to_owned(),
            });
        };
        let (of, claims): (Vec<_>, Vec<_>) = records.into_iter().map(|(n, all)| ((n, all.of), all.claims)).unzip();
        let decided = taken.claim(&claims).await;
        let decided = decided.map_err(|error| not_decided(&error))?;
        if decided.len() != claims.len() {
            return Err(TransformError::bug("a memory decided on too few or too many records"));
        }
        let mut refused = Vec::new();
        for ((n, of), taken) in of.into_iter().zip(decided) {
            let (which, rejection) = match taken {
                Taken::Here => continue,
                Taken::Elsewhere(which) => {
                    let what = "what the client sealed was read before, at another place";
                    (which, Rejection::new("replayed", what))
                }
                Taken::Late(which) => {
                    let what = "what the client sealed came too long after it was sealed, or before";
                    (which, Rejection::new("late", what))
                }
            };
            if let Some((rule, client)) = of.into_iter().nth(which) {
                refused.push((n, Refusal::new(rule, client, rejection)));
            } else {
                return Err(TransformError::bug("a memory decided on a value that was not claimed"));
            }
        }
        Ok(refused)
    }

    fn is_authenticated(&self, value: &Pending) -> bool {
        self.plan.rules()[value.rule].client_sealed.is_authenticated()
    }

    fn counts_once(&self, value: &Pending) -> bool {
        self.plan.rules()[value.rule].client_sealed == ClientSealed::Once
    }

    /// The keys of clients under the KMS key `arn`, asked for side by side.
    async fn derive(
        &self,
        arn: &str,
        is_current: bool,
        clients: Vec<String>,
    ) -> Result<HashMap<String, Derived>, TransformError> {
        let mut fetches = JoinSet::new();
        let mut derived = HashMap::new();
        let mut failure: Option<TransformError> = None;
        let mut fetched = |(client, answer): (String, Result<Derived, ClientKeyError>)| match answer {
            Ok(key) => {
                derived.insert(client, key);
            }
            // A name that was invented, as far as anybody can tell.
            Err(ClientKeyError::Refused) => {}
            // What was derived from a previous key that is gone verifies nothing, and stops nothing.
            Err(ClientKeyError::Service(error)) if !is_current && !error.is_retryable() => {
                tracing::debug!(key = arn, %error, "a previous HMAC key of clients cannot be used");
            }
            Err(error) => {
                failure.get_or_insert(not_derived(error));
            }
        };
        for client in clients {
            if fetches.len() >= FETCHES
                && let Some(done) = fetches.join_next().await
            {
                fetched(joined(done)?);
            }
            let (keys, arn) = (self.keys.clone(), arn.to_owned());
            let dataset = self.plan.policy.policy().dataset.clone();
            fetches.spawn(async move {
                let derived = keys.derive(&arn, &dataset, &client).await;
                (client, derived)
            });
        }
        while let Some(done) = fetches.join_next().await {
            fetched(joined(done)?);
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(derived),
        }
    }

    fn claim_of(&self, record: &Record, value: &Pending, jws: &MacJws, now: UnixMillis) -> Option<Claim> {
        let issued = UnixMillis(jws.header.issued_at?.saturating_mul(1_000));
        let dataset = &self.plan.policy.policy().dataset;
        let position = &record.position;
        let within = match value.place {
            Place::Value { start, .. } => format!("v{start}"),
            Place::Key => "k".to_owned(),
            Place::Header(n) => format!("h{n}"),
        };
        let arrived = match record.timestamp {
            Timestamp::Appended(millis) => UnixMillis(u64::try_from(millis).unwrap_or(0)),
            // The producer's own time proves nothing: what counts is when it is read.
            Timestamp::Created(_) | Timestamp::None => now,
        };
        let last = issued.plus(self.rule.remember);
        Some(Claim {
            name: name_of(dataset, &jws.header.client, jws.header.value.as_deref()?),
            place: place_of(&position.topic, position.partition, position.offset, within.as_bytes()),
            // Once more as long: what was taken in time may be read again.
            until: last.plus(self.rule.remember),
            is_in_time: issued <= arrived.plus(SKEW) && arrived <= issued.plus(self.rule.max_age) && now < last,
        })
    }
}

/// The values of a record that count once.
#[derive(Default)]
pub(super) struct Claims {
    claims: Vec<Claim>,
    /// The rule of each, and who sealed it.
    of: Vec<(usize, Option<String>)>,
}

/// A value that has to say who sealed it.
struct Unproved<'a> {
    /// The number of its record.
    n: usize,
    record: &'a Record,
    value: &'a Pending,
    is_proved: bool,
}

/// A client of whom not every value verifies with a key that is known.
struct Stranger<'a> {
    client: &'a str,
    /// Its values that are not proved yet.
    numbers: Vec<usize>,
    /// Under which KMS keys its key is known, and did not verify the others.
    tried: Vec<usize>,
    derived: Vec<Derived>,
    has_proved: bool,
}

/// Takes out the `numbers` of those values that verify with `key`; whether there were any.
fn prove(values: &mut [Unproved<'_>], numbers: &mut Vec<usize>, key: &MacKey) -> bool {
    let before = numbers.len();
    numbers.retain(|number| {
        let of = &mut values[*number];
        let text = text_of(of.record, of.value.place).ok();
        let proof = of.value.proof.as_ref().zip(text);
        of.is_proved = proof.is_some_and(|(jws, text)| key.verifies(jws, &text));
        !of.is_proved
    });
    numbers.len() < before
}

fn not_derived(error: ClientKeyError) -> TransformError {
    match error {
        ClientKeyError::Service(error) if !error.is_retryable() => service_stop(&error),
        error => TransformError::Retry {
            reason: error.to_string(),
        },
    }
}

fn not_decided(error: &TakenError) -> TransformError {
    match error {
        TakenError::Away { .. } => TransformError::Retry {
            reason: error.to_string(),
        },
        TakenError::Unusable { help, .. } => TransformError::Stop {
            kind: StopKind::Config,
            help: help.clone(),
            reason: error.to_string(),
        },
    }
}
