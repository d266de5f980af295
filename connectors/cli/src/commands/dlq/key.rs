//! The private key of dead letters that are sealed to a recipient: no service holds it, so it comes on the command line.

use std::path::Path;
use std::sync::Arc;

use sealflow::jose::Thumbprint;
use sealflow::pipeline::LetterOpener;
use sealflow_client::PrivateKey;
use zeroize::Zeroizing;

use crate::failure::{Exit, Failure, Result};
use crate::files;

/// A key that was given.
pub(super) struct LetterKey {
    key: Arc<PrivateKey>,
    /// Its public half's thumbprint, which letters and policies name.
    pub(super) name: Thumbprint,
}

impl LetterKey {
    /// Reads a key file, as `sealflow client keygen` writes it.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let pem = Zeroizing::new(files::read_text(path)?);
        let read = PrivateKey::from_pem(&pem).and_then(|key| Ok((key.public()?.thumbprint(), key)));
        let (name, key) = read.map_err(|error| {
            Failure::config(
                format_args!("{}: {error}", path.display()),
                "give the file that `sealflow client keygen` wrote",
            )
        })?;
        let key = Arc::new(key);
        Ok(Self { key, name })
    }

    /// An opener that opens with it too.
    pub(super) fn add_to(&self, opener: LetterOpener) -> Result<LetterOpener> {
        let half = Arc::clone(&self.key);
        opener
            .with_private_half(half)
            .map_err(|error| Failure::new(Exit::Internal, error, "this is a bug of sealflow: please report it"))
    }
}

/// Dead letters to a recipient, and no key for them.
pub(super) fn is_needed(recipient: &Thumbprint) -> Failure {
    Failure::new(
        Exit::NotPermitted,
        format_args!("dead letters are sealed to the key {recipient}, whose private half no service holds"),
        "whoever has its file gives it with --dead-letter-key FILE",
    )
}
