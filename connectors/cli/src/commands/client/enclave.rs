//! The key of an enclave, out of a file that whoever served it may have made up: believed as far as it is pinned.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sealflow::policy::{EnclaveKeysError, Evidence, Pin, Seen};
use sealflow_client::attested::{
    DEFAULT_MAX_AGE, Measurement, MeasurementError, Measurements, Pinned, Register, Trust,
};
use sealflow_client::{EnclaveKey, EnclavePins, UnixMillis};
use sha2::{Digest as _, Sha256};

use crate::failure::{Failure, Result};
use crate::files;
use crate::remembered::VersionsFile;
use crate::term::note;
use crate::trust;

/// Enclave keys
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Enclave columns")]
pub(super) struct EnclaveArgs {
    /// The keys that enclave columns are sealed to: a document that the policy's owner signed, or the answer of the
    /// service's /.well-known/enclave-keys
    #[arg(long, value_name = "FILE")]
    pub(super) enclave_keys: Option<PathBuf>,
    /// Thumbprint of the owner whose signature under enclave keys is believed: have it from the owner, not from who serves the
    /// keys; also as PATTERN=THUMBPRINT for some datasets; may be repeated
    #[arg(
        long = "owner",
        value_name = "THUMBPRINT",
        allow_hyphen_values = true,
        requires = "enclave_keys"
    )]
    pub(super) owners: Vec<Pin>,
    /// What the enclave's image has to measure, instead of an owner: `image=HEX` as whoever built it says, more of it behind commas
    /// (`image=HEX,kernel=HEX`); may be repeated for several images. Documents that it attests are believed for a day at most
    #[arg(
        long = "measurement",
        value_name = "NAME=HEX",
        value_parser = measurements,
        requires = "enclave_keys",
        conflicts_with = "owners"
    )]
    measurements: Vec<Measurements>,
    /// Certificate (DER) of a development root that is believed beside AWS's: it proves nothing of any hardware
    #[cfg(feature = "dev-software-nsm")]
    #[arg(long, value_name = "FILE", requires = "measurements")]
    dev_root: Option<PathBuf>,
}

/// `NAME=HEX`, several behind commas.
fn measurements(text: &str) -> std::result::Result<Measurements, MeasurementError> {
    let mut pairs = Vec::new();
    for pair in text.split(',') {
        let (name, digits) = pair.split_once('=').ok_or(MeasurementError::UnknownName)?;
        pairs.push((name.parse::<Register>()?, digits.parse::<Measurement>()?));
    }
    Measurements::new(pairs)
}

impl EnclaveArgs {
    /// The key for `dataset`, newer than any that this machine has seen.
    pub(super) fn read(&self, path: &Path, dataset: &str) -> Result<EnclaveKey> {
        let pins = self.pins()?;
        let text = files::read_text(path)?;
        // Evidence has an age, and needs no memory.
        let memory = VersionsFile::of_enclave_keys(&self.owners).filter(|_| !self.owners.is_empty());
        let seen = match &memory {
            Some(memory) => memory.load()?.remove(dataset),
            None => None,
        };
        let seen = seen.map(|seen| UnixMillis(seen.version.saturating_mul(1_000)));
        let key = EnclaveKey::believe(&text, &pins, dataset, seen)
            .map_err(|error| Failure::config(format_args!("{}: {error}", path.display()), error.help()))?;
        if let Some(memory) = memory {
            remember(&memory, &key);
        }
        if let Evidence::Measured { image, tier } = key.evidence() {
            note(format_args!("sealing to the enclave with the image {image} ({tier})"));
        }
        Ok(key)
    }

    fn pins(&self) -> Result<EnclavePins> {
        if !self.measurements.is_empty() {
            return Ok(EnclavePins::Measurements(Pinned {
                trust: self.roots()?,
                measurements: self.measurements.clone(),
                nonce: None,
                max_age: DEFAULT_MAX_AGE,
            }));
        }
        if self.owners.is_empty() {
            return Err(Failure::usage(
                "--enclave-keys, and nobody whose word about them counts",
                "pin the policy's owner (--owner THUMBPRINT, which the owner tells you) or the enclave's image (--measurement)",
            ));
        }
        Ok(EnclavePins::Owners(trust::owners(&self.owners)?))
    }

    #[cfg(feature = "dev-software-nsm")]
    fn roots(&self) -> Result<Trust> {
        let Some(path) = &self.dev_root else {
            return Ok(Trust::nitro());
        };
        Trust::with_dev_root(&files::read_small(path)?).map_err(|error| {
            let help = "give the certificate of the software NSM's root, DER";
            Failure::config(format_args!("{}: {error}", path.display()), help)
        })
    }

    #[cfg(not(feature = "dev-software-nsm"))]
    fn roots(&self) -> Result<Trust> {
        Ok(Trust::nitro())
    }
}

/// Keeps when the newest document was made. One that cannot be kept stops nobody from sealing.
fn remember(memory: &VersionsFile, key: &EnclaveKey) {
    let owner = match key.evidence() {
        Evidence::Owner(owner) => Some(*owner),
        _ => None,
    };
    let seen = Seen {
        version: key.issued().0 / 1_000,
        sha256: Sha256::digest(key.document()).into(),
        owner,
    };
    if let Err(failure) = memory.save(&BTreeMap::from([(key.dataset().to_owned(), seen)])) {
        note(format_args!(
            "note: older enclave keys will not be noticed: {}",
            failure.message
        ));
    }
}

impl From<EnclaveKeysError> for Failure {
    fn from(error: EnclaveKeysError) -> Self {
        let help = error.help();
        match error {
            EnclaveKeysError::Catalogue(error) => error.into(),
            EnclaveKeysError::BadSpan { .. } => Self::usage(error, help),
            error => Self::config(error, help),
        }
    }
}
