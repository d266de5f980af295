//! Reading a column of sealed values for somebody, as it stands in a table: the rules are those of records
//! ([`Reader::read`]), value by value.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::decisions::{ColumnDecision, ColumnOutcome, Decisions};
use super::opener::{Value, not_sealed};
use super::read::{ReadError, Reader, stop};
use super::record::{Header, Position, Record, Timestamp};
use super::travelling::TravellingReader;
use crate::acl::{Identity, Refused};
use crate::clock::UnixMillis;
use crate::keys::envelope::{KEYS_HEADER, MAX_ENVELOPES, write_header};
use crate::policy::{EXTRA_LABEL, VerifiedPolicy};
use crate::seal::{PlainColumn, SealedValue};

/// A column of sealed values, and where it was found.
pub struct SealedCells<'a> {
    /// The label of its place, as the policy calls it now.
    pub label: &'a str,
    /// The sealed values.
    pub values: Vec<&'a [u8]>,
    /// The row ids of the values, where the policy binds the column; empty otherwise.
    pub rows: Vec<Option<Vec<u8>>>,
    /// The record of each value.
    pub at: Vec<Position>,
    /// The envelopes that travel with the column.
    pub envelopes: &'a [Bytes],
}

/// What somebody sees of a column. `Debug` shows no value.
#[non_exhaustive]
pub struct OpenedCells {
    /// Plaintext encoding of each value; null for what was refused or does not open.
    pub values: PlainColumn,
    /// What is shown in the place of values that the ACL does not let the reader open, where there are any.
    pub refused: Option<Refused>,
    /// Which of the values those are.
    pub is_refused: Vec<bool>,
    /// What was decided.
    pub decisions: Vec<ColumnDecision>,
    /// The policy by which it was.
    pub policy: Arc<VerifiedPolicy>,
}

impl fmt::Debug for OpenedCells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedCells")
            .field("values", &self.is_refused.len())
            .field("decisions", &self.decisions)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// What `who` sees of a column at `now`, if it is read for `purpose`.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn open_cells(
        &self,
        cells: &SealedCells<'_>,
        who: &Identity,
        purpose: Option<&str>,
        now: UnixMillis,
    ) -> Result<OpenedCells, ReadError> {
        let mut asked = self.asked(who, purpose, now).await?;
        let opener = Arc::clone(&asked.opener);
        let own = opener.current(cells.label);
        let rule = opener.plan.rules().iter().position(|rule| rule.label == own);
        let nowhere = record(cells.envelopes);
        let travelling = TravellingReader::new(&self.dataset).of(&nowhere);
        let fingerprint = travelling.fingerprint();
        // Nobody asks for a key for a reader who is refused anyway.
        let unasked = rule.and_then(|rule| self.enclave.refuses(opener.plan.rules()[rule].flow));
        let asks = unasked.is_none() && (self.moved || asked.access(own).is_allowed());
        let sealed = cells.values.iter().copied().enumerate();
        let values: Vec<Option<Value<'_>>> = sealed
            .map(|(n, sealed)| {
                let row = cells.rows.get(n).and_then(Option::as_deref);
                let is_sealed = asks && SealedValue::parse(sealed).is_ok();
                is_sealed.then(|| Value::in_row(rule.unwrap_or(0), sealed, row))
            })
            .collect();
        let wanted = values.iter().flatten().map(|value| (value.rule, value.names));
        let mut ring = opener.keyring(std::iter::once((wanted, &travelling))).await?;

        let bytes = cells.values.iter().map(|value| value.len()).sum();
        let mut opened = OpenedCells {
            values: PlainColumn::with_capacity(cells.values.len(), bytes),
            refused: None,
            is_refused: vec![false; cells.values.len()],
            decisions: Vec::new(),
            policy: Arc::clone(&opener.plan.policy),
        };
        let mut decisions = Decisions::default();
        let mut encoding = Zeroizing::new(Vec::with_capacity(bytes.min(1 << 20)));
        let somewhere = nowhere.position.clone();
        for (n, value) in values.into_iter().enumerate() {
            let at = cells.at.get(n).unwrap_or(&somewhere);
            let claimed = match value {
                Some(value) if self.moved => opener.claimed(value, fingerprint, &mut ring),
                _ => Ok(own.to_owned()),
            };
            let shown = claimed.and_then(|label| {
                if !asked.access(&label).is_allowed() {
                    let named = if label == EXTRA_LABEL {
                        EXTRA_LABEL
                    } else {
                        opener.named(&label)
                    };
                    decisions.add(named, ColumnOutcome::Refused, || asked.because(&label), at);
                    return Ok(Some(asked.access(&label).refused));
                }
                let value = value.ok_or_else(|| unasked.clone().unwrap_or_else(not_sealed))?;
                encoding.clear();
                if value.sealed.len() > encoding.capacity() {
                    encoding = Zeroizing::new(Vec::with_capacity(value.sealed.len().next_power_of_two()));
                }
                opener.open(&nowhere, value, (&label, fingerprint), &mut ring, &mut encoding)?;
                decisions.add(&label, ColumnOutcome::Opened, || asked.because(&label), at);
                Ok(None)
            });
            match shown {
                Ok(None) => opened.push(Some(&encoding))?,
                Ok(Some(refused)) => {
                    opened.refused = Some(refused);
                    opened.is_refused[n] = true;
                    opened.push(None)?;
                }
                Err(rejection) => {
                    let outcome = ColumnOutcome::Failed(rejection.code);
                    decisions.add(own, outcome, || rejection.detail.clone(), at);
                    opened.push(None)?;
                }
            }
        }
        opened.decisions = decisions.0;
        Ok(opened)
    }
}

impl OpenedCells {
    fn push(&mut self, encoding: Option<&[u8]>) -> Result<(), ReadError> {
        let pushed = match encoding {
            Some(encoding) => self.values.push(encoding),
            None => self.values.push_null(),
        };
        pushed.map_err(|_| {
            let help = "read fewer rows at once";
            stop(
                "the values of a column do not fit into memory at once".to_owned(),
                help.to_owned(),
            )
        })
    }
}

/// A record that carries nothing but envelopes.
fn record(envelopes: &[Bytes]) -> Record {
    let headers = envelopes.chunks(MAX_ENVELOPES).map(|chunk| Header {
        name: KEYS_HEADER.into(),
        value: Some(write_header(chunk.iter().map(Bytes::as_ref)).into()),
    });
    Record {
        position: Position {
            topic: Arc::from("cells"),
            partition: 0,
            offset: 0,
        },
        timestamp: Timestamp::None,
        key: None,
        value: None,
        headers: headers.collect(),
    }
}
