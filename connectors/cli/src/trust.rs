//! Signed policies of a catalogue, believed if a pinned owner signed them.

use std::sync::Arc;

use sealflow::jose::Thumbprint;
use sealflow::keys::Catalogue;
use sealflow::policy::{CataloguePolicies, PolicySource, TrustedOwners};

use crate::clock::MachineClock;
use crate::failure::{Failure, Result};

/// The newest signed policies in `catalogue`, for `dataset`, of `owners`.
pub(crate) fn policies(
    catalogue: &Arc<dyn Catalogue>,
    _dataset: &str,
    owners: &[String],
) -> Result<Arc<dyn PolicySource>> {
    let parsed: Result<Vec<Thumbprint>, _> = owners.iter().map(|owner| owner.parse()).collect();
    let refused = |error: &dyn std::fmt::Display| {
        Failure::config(
            format_args!("trust.owners: {error}"),
            "`sealflow policy keygen` prints the thumbprint of an owner key",
        )
    };
    let parsed = parsed.map_err(|error| refused(&error))?;
    let trusted = TrustedOwners::everywhere(parsed).map_err(|error| refused(&error))?;
    Ok(Arc::new(CataloguePolicies::new(
        Arc::clone(catalogue),
        trusted,
        Arc::new(MachineClock),
    )))
}
