//! Owner keys: read, made, pinned; and the signed policies of a catalogue that pinned owners signed.

use std::path::Path;
use std::sync::Arc;

use sealflow::jose::{JwkError, PrivateJwk};
use sealflow::keys::Catalogue;
use sealflow::policy::{CataloguePolicies, Pin, PolicySource, PublishError, TrustError, TrustedOwners};

use crate::failure::{Exit, Failure, Result};
use crate::files::{self, Access};
use crate::remembered::{Remembering, VersionsFile};
use crate::services::clock;

/// The owners that are believed; an empty list is refused.
pub(crate) fn owners(pins: &[Pin]) -> Result<TrustedOwners> {
    TrustedOwners::pinned(pins).map_err(|error| Failure::config(&error, error.help()))
}

/// The newest signed policies in `catalogue`, of `owners`.
pub(crate) fn policies(catalogue: &Arc<dyn Catalogue>, owners: TrustedOwners) -> CataloguePolicies {
    CataloguePolicies::new(Arc::clone(catalogue), owners, clock())
}

/// None of them older than this machine has seen.
pub(crate) fn remembering(policies: CataloguePolicies, file: Option<VersionsFile>) -> Result<Arc<dyn PolicySource>> {
    Ok(match file {
        Some(file) => Arc::new(Remembering::new(policies, file)?),
        None => Arc::new(policies),
    })
}

/// Makes an owner key and writes it, readable for its owner alone. An existing file is never replaced.
pub(crate) fn make_owner_key(path: &Path) -> Result<PrivateJwk> {
    let key = PrivateJwk::generate()
        .map_err(|error| Failure::new(Exit::Internal, error, "check the operating system's random numbers"))?;
    files::write_new(path, key.to_private_json().expose(), Access::Private, false)?;
    Ok(key)
}

/// Reads an owner key, which nobody else may be able to read.
pub(crate) fn read_owner_key(path: &Path) -> Result<PrivateJwk> {
    refuse_shared(path)?;
    let json = zeroize::Zeroizing::new(files::read_small(path)?);
    PrivateJwk::from_json(&json).map_err(|error: JwkError| {
        let help = "give the owner's private key, as `sealflow policy keygen` wrote it";
        Failure::config(format_args!("{}: {error}", path.display()), help)
    })
}

fn refuse_shared(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let metadata = std::fs::metadata(path).map_err(|error| Failure::io("read", path, &error))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            let message = format!("{}: others can read this private key", path.display());
            return Err(Failure::new(
                Exit::NotPermitted,
                message,
                format_args!("chmod 600 {}", path.display()),
            ));
        }
    }
    Ok(())
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        Self::config(&error, error.help())
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let help = error.help();
        match error {
            PublishError::Catalogue(error) => error.into(),
            error => Self::config(error, help),
        }
    }
}
