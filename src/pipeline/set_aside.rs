//! Sets records aside: dead letters in place of what cannot be processed, and what a pipeline does about keys
//! that cannot be had.

use bytes::Bytes;

use super::dead_letter::{self, DeadLetter};
use super::plan::{DeadLetterPlan, Plan, Rejection};
use super::recipient::{self, LetterSealer};
use super::record::{Header, Record};
use super::seal::KeysPlacement;
use super::transform::{Outcome, Route, StopKind, TransformError};
use crate::flow::direct::{DirectError, DirectSealer};
use crate::keys::envelope::{KEYS_HEADER, write_header};
use crate::keys::{DomainError, KeyError};
use crate::policy::{PolicySourceError, Recipient};
use crate::seal::{PlainColumn, Plaintext, SealedColumn, value};

/// What a dead letter is beside the text of its record: JSON members, position, the header with its envelope.
const LETTER_OVERHEAD: usize = 1_024;

/// Seals dead letters as the policy says: under a key, or to a recipient.
pub(super) struct SetAside<'a> {
    pub(super) plan: &'a Plan,
    pub(super) sealer: &'a DirectSealer,
    pub(super) placement: KeysPlacement,
    /// What the transform was doing: `seal` or `open`.
    pub(super) stage: &'static str,
}

impl SetAside<'_> {
    /// At least what a dead letter of `record` takes.
    pub(super) fn letter_bytes(&self, record: &Record) -> u64 {
        let headers = record.headers.len() * 16;
        let overhead = match &self.plan.dead_letters {
            Some(DeadLetterPlan::Recipient(_)) => LETTER_OVERHEAD + recipient::OVERHEAD,
            _ => LETTER_OVERHEAD,
        };
        (value::text_len(record.payload_bytes() + headers + value::GCM_OVERHEAD) + overhead) as u64
    }

    /// Dead letters of the first of `records`, until together they pass `limit`; at least one.
    pub(super) async fn refuse(
        &self,
        records: &[Record],
        code: &'static str,
        limit: u64,
    ) -> Result<Vec<Outcome>, TransformError> {
        let mut bytes = 0;
        let fitting = records.iter().position(|record| {
            bytes += self.letter_bytes(record);
            bytes >= limit
        });
        let records = &records[..fitting.map_or(records.len(), |last| last + 1)];
        let rejected: Vec<_> = (0..records.len())
            .map(|n| (n, Rejection::new(code, "the target does not take it")))
            .collect();
        let mut outcomes: Vec<_> = records
            .iter()
            .map(|record| Outcome {
                route: Route::DeadLetter,
                record: record.clone(),
            })
            .collect();
        self.seal(&rejected, &mut outcomes).await?;
        Ok(outcomes)
    }

    /// Replaces each rejected record among `outcomes` by its dead letter, or stops where the policy has none.
    pub(super) async fn seal(
        &self,
        rejected: &[(usize, Rejection)],
        outcomes: &mut [Outcome],
    ) -> Result<(), TransformError> {
        let Some((first, rejection)) = rejected.first() else {
            return Ok(());
        };
        let spec = match &self.plan.dead_letters {
            Some(DeadLetterPlan::Key(spec)) => spec,
            Some(DeadLetterPlan::Recipient(recipient)) => return self.seal_to(recipient, rejected, outcomes),
            None => return Err(TransformError::Stop {
                kind: StopKind::Data,
                reason: format!("record {} cannot be processed ({}): {}", outcomes[*first].record.position, rejection.code, rejection.detail),
                help: "mend the record, or add `dead_letters` to the policy so that such records are set aside, sealed whole".to_owned(),
            }),
        };
        let plain = column_of(rejected, outcomes)?;
        let (key, sealed) = self
            .sealer
            .seal(spec, 0, None, plain.view())
            .await
            .map_err(from_direct)?;
        drop(plain);
        let header: Bytes = write_header([key.envelope_bytes.as_slice()].into_iter()).into();
        let header = (self.placement == KeysPlacement::Header).then_some(header);
        self.write(rejected, outcomes, &sealed, header.as_ref())
    }

    /// Seals them to the recipient: no key service is asked, and no envelope travels.
    fn seal_to(
        &self,
        recipient: &Recipient,
        rejected: &[(usize, Rejection)],
        outcomes: &mut [Outcome],
    ) -> Result<(), TransformError> {
        let sealer = LetterSealer::new(recipient, &self.plan.policy.policy().dataset)?;
        for (n, rejection) in rejected {
            let record = &mut outcomes[*n].record;
            let cbor = dead_letter::encode_record(record);
            empty(record);
            let letter = sealer.seal(rejection.code, self.stage, &record.position, &cbor)?;
            drop(cbor);
            record.value = Some(letter.to_json().into());
        }
        Ok(())
    }

    fn write(
        &self,
        rejected: &[(usize, Rejection)],
        outcomes: &mut [Outcome],
        sealed: &SealedColumn,
        header: Option<&Bytes>,
    ) -> Result<(), TransformError> {
        for (index, (n, rejection)) in rejected.iter().enumerate() {
            let Some(bytes) = sealed.view().get(index) else {
                return Err(TransformError::bug("a sealed column lacks a value"));
            };
            let record = &mut outcomes[*n].record;
            empty(record);
            let letter = DeadLetter::new(rejection.code, self.stage, &record.position, bytes);
            record.value = Some(letter.to_json().into());
            record.headers.extend(header.cloned().map(|value| Header {
                name: KEYS_HEADER.into(),
                value: Some(value),
            }));
        }
        Ok(())
    }
}

/// The record goes before its letter is written: the largest messages are in memory as seldom as can be.
fn empty(record: &mut Record) {
    record.key = None;
    record.value = None;
    record.headers.clear();
}

/// The rejected records whole, as one column.
fn column_of(rejected: &[(usize, Rejection)], outcomes: &[Outcome]) -> Result<PlainColumn, TransformError> {
    let mut plain = PlainColumn::with_capacity(rejected.len(), 0);
    for (n, _) in rejected {
        let cbor = dead_letter::encode_record(&outcomes[*n].record);
        plain
            .push_with(cbor.len() + 8, |out| Plaintext::Bytes(&cbor).encode(None, out))
            .map_err(|error| from_direct(DirectError::Seal(error.into())))?;
    }
    Ok(plain)
}

/// The result of a task of ours, which is never aborted.
pub(super) fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, TransformError> {
    result.map_err(|_| TransformError::bug("fetching a key panicked"))
}

/// What a pipeline does about a key or column that cannot be had.
pub(crate) fn from_direct(error: DirectError) -> TransformError {
    match error {
        DirectError::Key(error) if error.is_retryable() => TransformError::Retry {
            reason: error.to_string(),
        },
        DirectError::Key(KeyError::Service(error)) => service_stop(&error),
        DirectError::Key(error) => TransformError::Stop {
            kind: StopKind::Unavailable,
            reason: error.to_string(),
            help: "check the policy's keys and the catalogue with `sealflow validate`".to_owned(),
        },
        DirectError::Seal(error) => TransformError::Stop {
            kind: StopKind::Data,
            reason: error.to_string(),
            help: "make batches smaller (`batch:` in the pipeline file)".to_owned(),
        },
    }
}

pub(super) fn from_domain(error: DomainError) -> TransformError {
    match error {
        error if error.is_retryable() => TransformError::Retry {
            reason: error.to_string(),
        },
        DomainError::Service(error) => service_stop(&error),
        DomainError::Policy(error @ PolicySourceError::NotPermitted { .. }) => TransformError::Stop {
            kind: StopKind::NotPermitted,
            reason: error.to_string(),
            help: "let this process read the catalogue's domains/".to_owned(),
        },
        error => TransformError::Stop {
            kind: StopKind::Config,
            reason: error.to_string(),
            help: "check the domain with `sealflow policy domain show`".to_owned(),
        },
    }
}

/// A refusal of the key service that no waiting mends.
pub(super) fn service_stop(error: &crate::keys::KeyServiceError) -> TransformError {
    TransformError::Stop {
        kind: StopKind::NotPermitted,
        reason: error.to_string(),
        help: "check the credentials, the KMS key's policy and its state with `sealflow validate`".to_owned(),
    }
}
