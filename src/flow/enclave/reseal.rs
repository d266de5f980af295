//! What the worker does: opens what clients sealed, seals it again under the policy's data keys.
//!
//! It runs inside the TEE, over a key service that releases keys to the TEE alone; in tests it stands in for a whole worker.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::{ClientBatch, ClientColumn, EnclaveError, EnclaveWorker, ResealedColumn, ValueKey, ValueRefusal};
use crate::columns::json;
use crate::flow::direct::{DirectError, DirectSealer};
use crate::flow::hybrid::values::{Found, NotOpened, check_place, open};
use crate::flow::hybrid::{ClientKeyError, ClientKeys};
use crate::jose::jwe::{ContentKey, Jwe, JweHeader, KeyManagement, session_id};
use crate::keys::{KeyError, KeySpec};
use crate::policy::{ClientRule, ClientSealed, ColumnRule, Flow, Policy, PolicySource, VerifiedPolicy};
use crate::seal::{ByteColumn, PlainColumn, Plaintext, SealedColumn};

/// Keys that are fetched side by side for one batch.
const FETCHES: usize = 16;

/// Opens and seals again by the newest policy of the dataset.
#[derive(Clone)]
pub struct Resealer {
    policies: Arc<dyn PolicySource>,
    clients: ClientKeys,
    sealer: DirectSealer,
}

/// A column as it is handed in.
#[derive(Clone, Copy)]
pub struct ColumnIn<'a> {
    /// Its label.
    pub label: &'a str,
    /// Whether a plaintext is JSON text.
    pub is_json: bool,
    /// The values as they came.
    pub values: ByteColumn<'a>,
    /// Where the key of each is.
    pub keys: &'a [ValueKey],
    /// The row id of each, if the column is bound.
    pub rows: Option<ByteColumn<'a>>,
}

/// The session keys of a batch; `None` for what does not open.
type Sessions = Vec<Option<Arc<ContentKey>>>;

impl Resealer {
    /// By these policies, with these keys.
    #[must_use]
    pub fn new(policies: Arc<dyn PolicySource>, clients: ClientKeys, sealer: DirectSealer) -> Self {
        Self {
            policies,
            clients,
            sealer,
        }
    }

    /// Seals the columns of one batch again, one answer for each, in order. `sha256` is the hash of the policy that the host goes by:
    /// only the one that counts here is worked by.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn columns(
        &self,
        (dataset, sha256): (&str, &[u8; 32]),
        sessions: &[&str],
        columns: &[ColumnIn<'_>],
    ) -> Result<Vec<ResealedColumn>, EnclaveError> {
        let policy = self.policy(dataset, sha256).await?;
        let Some(rule) = &policy.policy().enclave else {
            return Err(refused("the policy has no enclave"));
        };
        let named: HashMap<String, usize> = sessions
            .iter()
            .enumerate()
            .map(|(n, text)| (session_id(text), n))
            .collect();
        let keys = self.sessions(&rule.client, sessions).await?;
        let mut sealed = Vec::with_capacity(columns.len());
        for column in columns {
            let opening = Opening {
                resealer: self,
                policy: policy.policy(),
                rule: &rule.client,
                named: &named,
                keys: &keys,
            };
            sealed.push(opening.reseal(column).await?);
        }
        // While keys were fetched the policy, or its lease, may have ended.
        if !self.policies.holds(&policy) {
            return Err(EnclaveError::Unavailable {
                reason: "the lease of the policy ended meanwhile".to_owned(),
            });
        }
        Ok(sealed)
    }

    async fn policy(&self, dataset: &str, sha256: &[u8; 32]) -> Result<Arc<VerifiedPolicy>, EnclaveError> {
        let policy = self.policies.policy(dataset).await.map_err(|error| match error {
            error if error.is_retryable() => unavailable(&error),
            error => refused(error),
        })?;
        if policy.policy().sha256 != *sha256 {
            let reason = format!(
                "version {} of the policy of {dataset} counts here, the host goes by another",
                policy.policy().version
            );
            return Err(EnclaveError::Unavailable { reason });
        }
        Ok(policy)
    }

    async fn sessions(&self, rule: &ClientRule, sessions: &[&str]) -> Result<Sessions, EnclaveError> {
        let wanted = sessions.iter().map(|text| ((*text).to_owned(), true));
        self.unwrapped(rule, wanted.collect()).await
    }

    /// The keys that are wrapped in these texts, sessions or single values, asked for side by side.
    async fn unwrapped(&self, rule: &ClientRule, wanted: Vec<(String, bool)>) -> Result<Sessions, EnclaveError> {
        let mut keys = vec![None; wanted.len()];
        let mut fetches = JoinSet::new();
        let mut failure = None;
        let mut take = |done: Result<(usize, Result<Arc<ContentKey>, ClientKeyError>), _>| match done {
            Ok((n, Ok(key))) => keys[n] = Some(key),
            Ok((_, Err(ClientKeyError::Refused))) => {}
            Ok((_, Err(ClientKeyError::Service(error)))) if !error.is_retryable() => {
                failure.get_or_insert(refused(error));
            }
            Ok((_, Err(error))) => {
                failure.get_or_insert(unavailable(&error));
            }
            Err(_) => {
                failure.get_or_insert(unavailable(&"a task ended early"));
            }
        };
        for (n, (text, is_session)) in wanted.into_iter().enumerate() {
            if fetches.len() >= FETCHES
                && let Some(done) = fetches.join_next().await
            {
                take(done);
            }
            let (clients, rule) = (self.clients.clone(), rule.clone());
            fetches.spawn(async move {
                let key = match is_session {
                    true => clients.session(&rule, &text).await,
                    false => clients.of_value(&rule, &text).await,
                };
                (n, key)
            });
        }
        // What is under way ends before a failure is told: its answers are remembered.
        while let Some(done) = fetches.join_next().await {
            take(done);
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(keys),
        }
    }
}

impl fmt::Debug for Resealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resealer").finish_non_exhaustive()
    }
}

/// One batch being opened.
struct Opening<'a> {
    resealer: &'a Resealer,
    policy: &'a Policy,
    rule: &'a ClientRule,
    /// The sessions by their names.
    named: &'a HashMap<String, usize>,
    keys: &'a Sessions,
}

impl Opening<'_> {
    async fn reseal(&self, column: &ColumnIn<'_>) -> Result<ResealedColumn, EnclaveError> {
        let rules = self.policy.columns.iter();
        let rule = rules
            .clone()
            .position(|rule| rule.flow == Flow::Enclave && rule.label == column.label);
        let Some((n, rule)) = rule.map(|n| (n, &self.policy.columns[n])) else {
            return Err(refused("a column that the policy does not give to the enclave"));
        };
        let is_bound = rule.bind_row.is_some();
        if column.keys.len() != column.values.len() || is_bound != column.rows.is_some() {
            return Err(refused("a column whose parts do not fit together"));
        }
        let group = self.policy.groups().into_iter().find_map(|group| {
            let at = group.labels.iter().position(|label| label.column == Some(n))?;
            Some((KeySpec::of(self.policy, &group)?, u16::try_from(at).ok()?))
        });
        let (spec, at) = group.ok_or_else(|| refused("a column without a key"))?;
        let own = self.own_keys(column).await?;
        let (plain, numbers, bad) = self.open(rule, column, &own)?;
        let path = rule.bind_row.as_ref().map(ToString::to_string);
        // Of those that open.
        let chosen = match column.rows {
            Some(rows) if !bad.is_empty() => Some(chosen(rows, &numbers)?),
            _ => None,
        };
        let rows = chosen.as_ref().map(PlainColumn::view).or(column.rows);
        let rows = path.as_deref().zip(rows);
        let sealed = self.resealer.sealer.seal(&spec, at, rows, plain.view()).await;
        let (key, sealed) = sealed.map_err(from_direct)?;
        let values = match bad.is_empty() {
            true => sealed,
            false => spread(&sealed, &numbers, column.values.len())?,
        };
        Ok(ResealedColumn {
            values,
            refused: bad,
            key: key.key.id(),
            envelope: key.envelope_bytes.clone(),
        })
    }

    /// The keys of values that have one of their own, by the number of the value.
    async fn own_keys(&self, column: &ColumnIn<'_>) -> Result<HashMap<usize, Arc<ContentKey>>, EnclaveError> {
        let own = column.keys.iter().enumerate().filter(|(_, key)| **key == ValueKey::Own);
        let texts = own.filter_map(|(n, _)| Some((n, std::str::from_utf8(column.values.get(n)?).ok()?.to_owned())));
        let (numbers, texts): (Vec<usize>, Vec<(String, bool)>) = texts.map(|(n, text)| (n, (text, false))).unzip();
        let keys = self.resealer.unwrapped(self.rule, texts).await?;
        Ok(numbers
            .into_iter()
            .zip(keys)
            .filter_map(|(n, key)| Some((n, key?)))
            .collect())
    }

    /// Plaintext encodings of what opens, the numbers of those values, and what does not open.
    #[allow(clippy::type_complexity)] // three lists of one column, taken apart at once
    fn open(
        &self,
        rule: &ColumnRule,
        column: &ColumnIn<'_>,
        own: &HashMap<usize, Arc<ContentKey>>,
    ) -> Result<(PlainColumn, Vec<u32>, Vec<(u32, ValueRefusal)>), EnclaveError> {
        let mut plain = PlainColumn::with_capacity(column.values.len(), column.values.value_bytes());
        let (mut numbers, mut bad) = (Vec::with_capacity(column.values.len()), Vec::new());
        let mut headers = Headers::default();
        for (number, (n, key)) in (0_u32..).zip(column.keys.iter().enumerate()) {
            let text = column.values.get(n).unwrap_or_default();
            let row = column.rows.and_then(|rows| rows.get(n));
            let opened = match key {
                ValueKey::Clear if rule.client_sealed == ClientSealed::Optional => Ok(Zeroizing::new(text.to_vec())),
                ValueKey::Clear => Err(ValueRefusal::CannotOpen),
                ValueKey::Own | ValueKey::Session(_) => {
                    self.open_one(rule, column, (text, row), (*key, own.get(&n)), &mut headers)
                }
            };
            match opened {
                Ok(opened) => {
                    push(&mut plain, &opened, rule, column.is_json)?;
                    numbers.push(number);
                }
                Err(refusal) => bad.push((number, refusal)),
            }
        }
        Ok((plain, numbers, bad))
    }

    fn open_one(
        &self,
        rule: &ColumnRule,
        column: &ColumnIn<'_>,
        (text, row): (&[u8], Option<&[u8]>),
        (key, own): (ValueKey, Option<&Arc<ContentKey>>),
        headers: &mut Headers,
    ) -> Result<Zeroizing<Vec<u8>>, ValueRefusal> {
        let cannot = |_| ValueRefusal::CannotOpen;
        let text = std::str::from_utf8(text).map_err(|_| ValueRefusal::CannotOpen)?;
        let jwe = Jwe::parse(text).map_err(cannot)?;
        let header = headers.of(&jwe)?;
        if jwe.has_encrypted_key() != (header.key_management == KeyManagement::RsaOaep256) {
            return Err(ValueRefusal::CannotOpen);
        }
        let found = Found {
            policy: self.policy,
            label: &rule.label,
            row: rule.bind_row.as_ref().map(|_| row.unwrap_or_default()),
            client: None,
        };
        check_place(&header, found).map_err(cannot)?;
        let content = match (header.key_management, key) {
            (KeyManagement::RsaOaep256, ValueKey::Own) => own,
            // By the name that the value says, whatever the host says.
            (KeyManagement::Direct, ValueKey::Session(_)) => {
                let session = self.named.get(&header.kid);
                session.and_then(|n| self.keys.get(*n)).and_then(Option::as_ref)
            }
            _ => None,
        };
        let content = content.ok_or(ValueRefusal::CannotOpen)?;
        open(content, &jwe, column.is_json).map_err(|error| match error {
            NotOpened::CannotOpen => ValueRefusal::CannotOpen,
            NotOpened::NotJson => ValueRefusal::NotJson,
        })
    }
}

/// Headers by their text: those of one session and column are equal.
#[derive(Default)]
struct Headers(HashMap<String, Arc<JweHeader>>);

impl Headers {
    fn of(&mut self, jwe: &Jwe<'_>) -> Result<Arc<JweHeader>, ValueRefusal> {
        if let Some(header) = self.0.get(jwe.protected()) {
            return Ok(Arc::clone(header));
        }
        let header = Arc::new(jwe.header().map_err(|_| ValueRefusal::CannotOpen)?);
        self.0.insert(jwe.protected().to_owned(), Arc::clone(&header));
        Ok(header)
    }
}

fn push(plain: &mut PlainColumn, text: &[u8], rule: &ColumnRule, is_json: bool) -> Result<(), EnclaveError> {
    let room = json::encode_len_bound(text.len(), rule.pad_to);
    let pushed = match is_json {
        true => plain.push_with(room, |out| json::encode_json(text, rule.pad_to, out)),
        false => plain.push_with(room, |out| Plaintext::Bytes(text).encode(rule.pad_to, out)),
    };
    pushed.map_err(refused)
}

/// The values of these numbers.
fn chosen(column: ByteColumn<'_>, numbers: &[u32]) -> Result<PlainColumn, EnclaveError> {
    let mut chosen = PlainColumn::with_capacity(numbers.len(), column.value_bytes());
    for number in numbers {
        let value = column.get(*number as usize).unwrap_or_default();
        chosen.push(value).map_err(refused)?;
    }
    Ok(chosen)
}

/// The values at their numbers, nulls between them.
fn spread(column: &SealedColumn, numbers: &[u32], len: usize) -> Result<SealedColumn, EnclaveError> {
    let view = column.view();
    let mut all = SealedColumn::with_capacity(len, view.value_bytes());
    let mut next = numbers.iter().enumerate().peekable();
    for n in 0..len {
        let pushed = match next.next_if(|(_, number)| **number as usize == n) {
            Some((at, _)) => all.push(view.get(at).unwrap_or_default()),
            None => all.push_null(),
        };
        pushed.map_err(refused)?;
    }
    Ok(all)
}

fn from_direct(error: DirectError) -> EnclaveError {
    match error {
        DirectError::Key(error) if error.is_retryable() => unavailable(&error),
        DirectError::Key(KeyError::Service(error)) => refused(error),
        error => refused(error),
    }
}

fn unavailable(reason: &impl ToString) -> EnclaveError {
    EnclaveError::Unavailable {
        reason: reason.to_string(),
    }
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn refused(reason: impl ToString) -> EnclaveError {
    EnclaveError::Refused {
        reason: reason.to_string(),
    }
}

impl ClientColumn {
    /// The column, borrowed.
    #[must_use]
    pub fn view(&self) -> ColumnIn<'_> {
        ColumnIn {
            label: &self.label,
            is_json: self.is_json,
            values: self.values.view(),
            keys: &self.keys,
            rows: self.rows.as_ref().map(PlainColumn::view),
        }
    }
}

/// In this process: for tests of what is around the worker.
#[async_trait]
impl EnclaveWorker for Resealer {
    async fn reseal(&self, batch: ClientBatch) -> Result<Vec<ResealedColumn>, EnclaveError> {
        let policy = batch.policy.policy();
        let sessions: Vec<&str> = batch.sessions.iter().map(String::as_str).collect();
        let columns: Vec<ColumnIn<'_>> = batch.columns.iter().map(ClientColumn::view).collect();
        self.columns((&policy.dataset, &policy.sha256), &sessions, &columns)
            .await
    }

    fn is_ready(&self) -> bool {
        true
    }
}
