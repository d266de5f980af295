//! Reading sealed values that came without a record for somebody: the rules are those of records ([`Reader::read`]), value
//! by value.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::dead_letter::CANNOT_OPEN;
use super::decisions::{ColumnDecision, ColumnOutcome, Decisions};
use super::opener::{Names, Opener, UNKNOWN, Value, cannot_open, not_sealed};
use super::plan::Rejection;
use super::read::{EnclaveColumns, ReadError, Reader, by};
use super::record::{Header, Position, Record, Timestamp};
use super::travelling::TravellingReader;
use crate::acl::{Identity, Refused};
use crate::audit::Event;
use crate::clock::UnixMillis;
use crate::columns::json;
use crate::flow::hybrid::AnswerKey;
use crate::policy::{Flow, VerifiedPolicy};
use crate::seal::{Plaintext, SealedValue, value};

/// A sealed value without its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedText<'a> {
    /// The column that it was taken from, if the caller knows it: it then has to prove that label. Values of a domain
    /// need it.
    pub label: Option<&'a str>,
    /// `sf1.…`
    pub text: &'a str,
}

/// What somebody sees of single values, and why. `Debug` shows none of them.
#[non_exhaustive]
pub struct OpenedValues {
    /// JSON text of each value that was given, in order; of those that were refused or do not open, what stands in
    /// their place.
    pub values: Vec<String>,
    /// What was decided about the columns.
    pub decisions: Vec<ColumnDecision>,
    /// The policy by which it was.
    pub policy: Arc<VerifiedPolicy>,
}

impl OpenedValues {
    /// As [`Reading::events`](super::Reading::events).
    #[must_use]
    pub fn events(&self, about: &Event) -> Vec<Event> {
        let about = by(&self.policy, about);
        self.decisions.iter().map(|decision| decision.event(&about)).collect()
    }
}

impl fmt::Debug for OpenedValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedValues")
            .field("values", &self.values.len())
            .field("decisions", &self.decisions)
            .finish_non_exhaustive()
    }
}

/// A value that came without a record: its rule, and its sealed bytes.
type LoneItem = (usize, Vec<u8>);

impl Reader {
    /// What `who` sees of single values at `now`, if they are read for `purpose`. Values that are bound to their row
    /// open with their record only.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn open_values(
        &self,
        values: &[SealedText<'_>],
        who: &Identity,
        purpose: Option<&str>,
        now: UnixMillis,
    ) -> Result<OpenedValues, ReadError> {
        self.open_values_to(values, who, purpose, now, None).await
    }

    /// As [`Reader::open_values`]; what is opened is sealed to the reader's key, if one is given.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn open_values_to(
        &self,
        values: &[SealedText<'_>],
        who: &Identity,
        purpose: Option<&str>,
        now: UnixMillis,
        seal_to: Option<&AnswerKey>,
    ) -> Result<OpenedValues, ReadError> {
        self.open_values_with(values, &[], who, purpose, now, seal_to).await
    }

    /// As [`Reader::open_values_to`]; `headers` have the envelopes that travel with the values.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn open_values_with(
        &self,
        values: &[SealedText<'_>],
        headers: &[Header],
        who: &Identity,
        purpose: Option<&str>,
        now: UnixMillis,
        seal_to: Option<&AnswerKey>,
    ) -> Result<OpenedValues, ReadError> {
        let mut asked = self.asked(who, purpose, now).await?;
        let opener = Arc::clone(&asked.opener);
        let mut nowhere = Record {
            position: Position {
                topic: Arc::from("values"),
                partition: 0,
                offset: 0,
            },
            timestamp: Timestamp::None,
            key: None,
            value: None,
            headers: headers.iter().cloned().collect(),
        };
        let travelling = TravellingReader::new(&self.dataset).of(&nowhere);
        let fingerprint = travelling.fingerprint();
        let mut items = Vec::with_capacity(values.len());
        // Which column a value without a label is of is known when its key is: asked for only if some column is open.
        let is_any_open = opener
            .plan
            .rules()
            .iter()
            .any(|rule| asked.access(&rule.label).is_allowed());
        for value in values {
            let refused = match value.label {
                Some(label) => !asked.access(opener.current(label)).is_allowed(),
                None => !is_any_open,
            };
            // Nobody asks for a key for a reader who is refused anyway.
            items.push(if refused {
                None
            } else {
                Some(self.lone_item(&opener, value))
            });
        }
        let wanted = items.iter().flatten().flatten();
        let wanted = wanted.map(|(rule, sealed)| (*rule, Names::of(sealed)));
        let mut ring = opener.keyring(std::iter::once((wanted, &travelling))).await?;
        let mut decisions = Decisions::default();
        let mut texts = Vec::with_capacity(values.len());
        for (n, (value, item)) in values.iter().zip(items).enumerate() {
            nowhere.position.offset = i64::try_from(n).unwrap_or(i64::MAX);
            if item.is_none() && value.label.is_none() {
                let because = || "no column of the dataset is open to the reader".to_owned();
                decisions.add(UNKNOWN, ColumnOutcome::Refused, because, &nowhere.position);
                texts.push(Refused::Null.json().to_owned());
                continue;
            }
            let claimed = match &item {
                Some(Ok((rule, sealed))) => opener.claimed(Value::alone(*rule, sealed), fingerprint, &mut ring),
                Some(Err(rejection)) => Err(rejection.clone()),
                None => Ok(opener.current(value.label.unwrap_or_default()).to_owned()),
            };
            let opened = claimed.and_then(|claimed| {
                if value.label.is_some_and(|label| opener.current(label) != claimed) {
                    return Err(cannot_open());
                }
                // Known only now for values without a label.
                if self.enclave == EnclaveColumns::Only && !opener.is_enclave(&claimed) {
                    return Err(cannot_open());
                }
                let (is_allowed, refused) = (asked.access(&claimed).is_allowed(), asked.access(&claimed).refused);
                let Some(item) = item.filter(|_| is_allowed) else {
                    let label = opener.named(&claimed);
                    decisions.add(
                        label,
                        ColumnOutcome::Refused,
                        || asked.because(&claimed),
                        &nowhere.position,
                    );
                    return Ok(refused.json().to_owned());
                };
                let (rule, sealed) = item?;
                let mut rules = opener.plan.rules().iter();
                let rule = rules.position(|rule| rule.label == claimed).unwrap_or(rule);
                let value = Value::alone(rule, &sealed);
                let mut encoding = Zeroizing::new(Vec::with_capacity(sealed.len()));
                opener.open(&nowhere, value, (&claimed, fingerprint), &mut ring, &mut encoding)?;
                let plaintext = Plaintext::decode(&encoding).map_err(|_| cannot_open())?;
                let mut text = Zeroizing::new(Vec::with_capacity(json::json_len(&plaintext)));
                json::write_json(&plaintext, &mut text);
                let text = match seal_to {
                    Some(key) => format!("\"{}\"", key.seal(&claimed, &text).map_err(|_| cannot_open())?),
                    None => String::from_utf8(std::mem::take(&mut *text)).map_err(|_| cannot_open())?,
                };
                decisions.add(
                    &claimed,
                    ColumnOutcome::Opened,
                    || asked.because(&claimed),
                    &nowhere.position,
                );
                Ok(text)
            });
            texts.push(opened.unwrap_or_else(|rejection| {
                let outcome = ColumnOutcome::Failed(rejection.code);
                // What a caller or an envelope calls a column is repeated only if the policy calls it that too.
                let label = value.label.map_or(UNKNOWN, |label| opener.named(opener.current(label)));
                decisions.add(label, outcome, || rejection.detail.clone(), &nowhere.position);
                Refused::Null.json().to_owned()
            }));
        }
        Ok(OpenedValues {
            values: texts,
            decisions: decisions.0,
            policy: Arc::clone(&opener.plan.policy),
        })
    }

    fn lone_item(&self, opener: &Opener, value: &SealedText<'_>) -> Result<LoneItem, Rejection> {
        let label = value.label.map(|label| opener.current(label));
        match label.filter(|label| opener.is_enclave(label)) {
            Some(_) => self
                .enclave
                .refuses(Flow::Enclave)
                .map_or_else(|| lone_item(opener, value), Err),
            None => lone_item(opener, value),
        }
    }
}

/// A value that came without a record. Which rule it belongs to is known when its key is.
fn lone_item(opener: &Opener, value: &SealedText<'_>) -> Result<LoneItem, Rejection> {
    let mut sealed = Vec::new();
    value::read_text(value.text.as_bytes(), &mut sealed).map_err(|_| not_sealed())?;
    let label = value.label.map(|label| opener.current(label));
    let rule = opener
        .plan
        .rules()
        .iter()
        .position(|rule| Some(rule.label.as_str()) == label);
    let is_of_a_domain = matches!(SealedValue::parse(&sealed), Ok(SealedValue::Deterministic { .. }));
    match rule {
        Some(rule) => Ok((rule, sealed)),
        None if is_of_a_domain => Err(Rejection::new(
            CANNOT_OPEN,
            "a value of a domain opens only with the label of a column: domain:NAME",
        )),
        None => Ok((0, sealed)),
    }
}
