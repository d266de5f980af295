//! Columns of the enclave in a batch: passed on to the worker as clients sealed them, put in place as the worker sealed them.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::client_values::{ClientValues, Refusal, cannot_open, not_json, text_of};
use super::dead_letter::CANNOT_OPEN;
use super::extract::Extracted;
use super::hints::Domains;
use super::jobs::{Bound, Item, Jobs, Slot, Spelling};
use super::plan::Rejection;
use super::record::{Position, Record};
use super::seal::{EnvelopeBytes, SealTransform, Sealed, TravellingKey};
use super::set_aside::joined;
use super::transform::{StopKind, TransformError};
use crate::flow::enclave::{ClientBatch, ClientColumn, EnclaveError, ResealedColumn, ValueKey, ValueRefusal};
use crate::policy::{Flow, Root};
use crate::seal::PlainColumn;

/// What the worker is sealing, while the batch goes on. Dropped, nobody waits for it any more.
#[derive(Default)]
pub(super) struct Resealing {
    /// At most one.
    answer: JoinSet<Result<Vec<ResealedColumn>, EnclaveError>>,
    /// The rule and the number of values of each column that was asked for.
    asked: Vec<(usize, usize)>,
}

impl Resealing {
    /// The columns, in the order of their jobs.
    pub(super) async fn finish(&mut self) -> Result<Vec<Sealed>, TransformError> {
        let Some(answer) = self.answer.join_next().await else {
            return Ok(Vec::new());
        };
        let columns = joined(answer)?.map_err(from_enclave)?;
        let fits = |(column, (_, len)): (&ResealedColumn, &(usize, usize))| column.values.view().len() == *len;
        if columns.len() != self.asked.len() || !columns.iter().zip(&self.asked).all(fits) {
            return Err(from_enclave(EnclaveError::BadAnswer {
                reason: "too few or too many columns or values".to_owned(),
            }));
        }
        let sealed = columns.into_iter().zip(&self.asked).map(|(column, (rule, _))| Sealed {
            rule: *rule,
            column: column.values,
            key: Some(TravellingKey {
                id: column.key,
                envelope: EnvelopeBytes::Workers(column.envelope),
            }),
            refused: column.refused,
        });
        Ok(sealed.collect())
    }
}

impl SealTransform {
    /// Adds a value that came in clear to what is sealed here, or by the enclave worker.
    pub(super) fn push_clear(
        &self,
        jobs: &mut Jobs,
        domains: &Domains,
        (rule, spelling): (usize, Spelling),
        text: &[u8],
        bound: &Bound,
    ) -> Result<Slot, Rejection> {
        if self.plan.rules()[rule].flow == Flow::Enclave {
            return jobs.push_for_enclave(&self.plan, rule, text, ValueKey::Clear, &bound.row);
        }
        jobs.push(&self.plan, domains, (rule, spelling), text, bound)
    }

    /// Has the worker seal what is the enclave's. What its header alone refuses is rejected at once; the worker looks at everything
    /// again.
    pub(super) fn pass_on(
        &self,
        records: &[Record],
        extracted: &mut [Result<Extracted, Rejection>],
        jobs: &mut Jobs,
        refused: &mut Vec<(Position, Refusal)>,
    ) -> Result<Resealing, TransformError> {
        let mut sessions = Vec::new();
        if extracted
            .iter()
            .flatten()
            .any(|found| !found.of_client().for_enclave.is_empty())
        {
            sessions = self.add_for_enclave(records, extracted, jobs, refused);
        }
        self.reseal(jobs, sessions)
    }

    /// Adds what clients sealed for the enclave to the jobs, as it came; the sessions of all.
    fn add_for_enclave(
        &self,
        records: &[Record],
        extracted: &mut [Result<Extracted, Rejection>],
        jobs: &mut Jobs,
        refused: &mut Vec<(Position, Refusal)>,
    ) -> Vec<String> {
        let Some((_, rule)) = self.enclave.as_ref().zip(self.plan.policy.policy().enclave.as_ref()) else {
            for one in extracted.iter_mut() {
                if one
                    .as_ref()
                    .is_ok_and(|found| !found.of_client().for_enclave.is_empty())
                {
                    *one = Err(Rejection::new(
                        CANNOT_OPEN,
                        "no enclave worker is here to open what clients seal",
                    ));
                }
            }
            return Vec::new();
        };
        let mut values = ClientValues::new(&self.plan, &rule.client);
        let mut all = Vec::new();
        for (n, (record, one)) in records.iter().zip(extracted.iter_mut()).enumerate() {
            let Ok(found) = one else { continue };
            match values.look(record, &found.of_client().for_enclave) {
                Ok(wanted) if wanted.is_empty() => {}
                Ok(wanted) => all.push((n, wanted)),
                Err(refusal) => {
                    *one = Err(refusal.rejection.clone());
                    refused.push((record.position.clone(), refusal));
                }
            }
        }
        let (sessions, keys) = values.into_sessions();
        for (n, wanted) in all {
            let one = &mut extracted[n];
            let Ok(found) = one else { continue };
            let before = jobs.bytes;
            let values = std::mem::take(&mut found.of_client_mut().for_enclave);
            let passed = values.into_iter().zip(wanted).try_for_each(|(value, wanted)| {
                let text = text_of(&records[n], value.place)?;
                let slot = jobs.push_for_enclave(&self.plan, value.rule, text.as_bytes(), keys[wanted], value.row())?;
                found.of_client_mut().more.push(slot.at(value.place));
                self.check_room(&records[n], before, jobs)
            });
            if let Err(rejection) = passed {
                *one = Err(rejection);
            }
        }
        sessions
    }

    /// Hands the columns that only the worker opens over to it.
    fn reseal(&self, jobs: &mut Jobs, sessions: Vec<String>) -> Result<Resealing, TransformError> {
        let mut resealing = Resealing::default();
        let mut columns = Vec::new();
        for job in &mut jobs.list {
            let Some(keys) = job.of_clients.take() else { continue };
            let rule = &self.plan.rules()[job.rule];
            resealing.asked.push((job.rule, keys.len()));
            columns.push(ClientColumn {
                label: rule.label.clone(),
                is_json: *rule.path.root() == Root::Value,
                values: std::mem::replace(&mut job.plain, PlainColumn::with_capacity(0, 0)),
                keys,
                rows: job.rows.take(),
            });
        }
        if columns.is_empty() {
            return Ok(resealing);
        }
        let Some(worker) = self.enclave.clone() else {
            return Err(TransformError::Stop {
                kind: StopKind::Config,
                reason: "a column is `flow: enclave`, and no enclave worker is configured".to_owned(),
                help: "add an `enclave` section to the pipeline file".to_owned(),
            });
        };
        let batch = ClientBatch {
            policy: Arc::clone(&self.plan.policy),
            sessions,
            columns,
        };
        resealing.answer.spawn(async move { worker.reseal(batch).await });
        Ok(resealing)
    }
}

/// Rejects the records of which the worker refused a value.
pub(super) fn refuse_by_worker(
    records: &[Record],
    extracted: &mut [Result<Extracted, Rejection>],
    items: &[Item],
    sealed: &[Sealed],
    refused: &mut Vec<(Position, Refusal)>,
) {
    if sealed.iter().all(|column| column.refused.is_empty()) {
        return;
    }
    for (record, one) in records.iter().zip(extracted) {
        let Some(rejection) = one.as_ref().ok().and_then(|found| refusal_of(found, items, sealed)) else {
            continue;
        };
        *one = Err(rejection.clone());
        refused.push((record.position.clone(), Refusal::of_no_column(rejection)));
    }
}

/// Why the worker refused a value of the record, if it did.
fn refusal_of(found: &Extracted, items: &[Item], sealed: &[Sealed]) -> Option<Rejection> {
    found.items(items).find_map(|item| {
        let refused = &sealed[item.slot.job].refused;
        let number = u32::try_from(item.slot.index).ok()?;
        let at = refused.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(match refused[at].1 {
            ValueRefusal::CannotOpen => cannot_open(),
            ValueRefusal::NotJson => not_json(),
        })
    })
}

/// What a pipeline does about a worker that does not answer, or refuses.
fn from_enclave(error: EnclaveError) -> TransformError {
    match error {
        error if error.is_retryable() => TransformError::Retry {
            reason: error.to_string(),
        },
        EnclaveError::Unrecorded { .. } => TransformError::Stop {
            kind: StopKind::Io,
            reason: error.to_string(),
            help: "make room on the disk of `enclave.audit`, or name another file".to_owned(),
        },
        error => TransformError::Stop {
            kind: StopKind::NotPermitted,
            reason: error.to_string(),
            help: "`sealflow enclave status` says what the worker believes; its key policies and the policy's lease decide"
                .to_owned(),
        },
    }
}
