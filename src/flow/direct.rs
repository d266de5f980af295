//! The direct flow: plaintext columns in, sealed under a data key from KMS or a domain's secret.
//!
//! Fetches keys through the caches of [`crate::keys`]; knows no record and no JSON.

use std::sync::Arc;

use crate::keys::{ActiveKey, DomainKeys, KeyError, KeySpec, SealingKeys};
use crate::seal::{ByteColumn, ColumnContext, SealError, SealedColumn};

/// A batch that a fresh key refuses is larger than any key's limits; the second try takes care of the race
/// with other batches for a key's last room.
const MAX_TRIES: usize = 4;

/// Seals columns of plaintext encodings.
#[derive(Clone, Debug)]
pub struct DirectSealer {
    /// Data keys.
    pub keys: SealingKeys,
    /// Domain secrets.
    pub domains: DomainKeys,
}

/// Why a column was not sealed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DirectError {
    /// There is no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is one, but it cannot seal this.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl DirectSealer {
    /// Seals one column under the current data key of `spec`, moving to the next key where that one is used
    /// up. `rows` is the row binding: the canonical path and one row id per value.
    pub async fn seal(
        &self,
        spec: &KeySpec,
        column: u16,
        rows: Option<(&str, ByteColumn<'_>)>,
        plain: ByteColumn<'_>,
    ) -> Result<(Arc<ActiveKey>, SealedColumn), DirectError> {
        let label = spec
            .labels
            .get(usize::from(column))
            .map(|entry| entry.label.as_str())
            .unwrap_or_default();
        let context = ColumnContext {
            dataset: &spec.dataset,
            label,
            column,
            rows,
        };
        let mut last = SealError::LimitReached;
        for _ in 0..MAX_TRIES {
            let key = self.keys.get(spec).await?;
            match key.key.seal(&context, plain) {
                Ok(sealed) => return Ok((key, sealed)),
                Err(SealError::LimitReached) => last = SealError::LimitReached,
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.into())
    }
}
