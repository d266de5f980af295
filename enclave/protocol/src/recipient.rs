//! What AWS KMS needs to release keys to this program alone, and how the program takes them: an RSA key that lives as long as the
//! process, and evidence that binds it.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use zeroize::Zeroizing;

use crate::cms;
use crate::joints::{AttestError, Attester, Claims, KeyReleaser, ReleaseError};

/// A recipient of released keys. Its private key never leaves it, and is never written anywhere.
///
/// Evidence is asked for anew each time: KMS refuses a document older than five minutes, keys are fetched rarely, and so no clock
/// is needed here.
pub struct Recipient {
    key: OaepPrivateDecryptingKey,
    public_key: Vec<u8>,
    attester: Arc<dyn Attester>,
}

/// There is no key to receive under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no RSA key can be made on this machine now: its random numbers or its cryptography failed")]
pub struct NoRecipient;

impl Recipient {
    /// A recipient with a new RSA key of 2,048 bits, which `attester` will vouch for.
    ///
    /// # Errors
    /// [`NoRecipient`]
    pub fn generate(attester: Arc<dyn Attester>) -> Result<Self, NoRecipient> {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(|_| NoRecipient)?;
        let public_key: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| NoRecipient)?;
        let public_key = public_key.as_ref().to_vec();
        let key = OaepPrivateDecryptingKey::new(key).map_err(|_| NoRecipient)?;
        Ok(Self {
            key,
            public_key,
            attester,
        })
    }

    /// Its public key, `SubjectPublicKeyInfo` in DER.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    fn unwrap(&self, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let mut key = Zeroizing::new(vec![0; self.key.min_output_size()]);
        let length = self
            .key
            .decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut key, None)
            .ok()?
            .len();
        key.truncate(length);
        Some(key)
    }
}

impl KeyReleaser for Recipient {
    fn evidence(&self) -> Result<Vec<u8>, AttestError> {
        self.attester.attest(&Claims {
            public_key: Some(&self.public_key),
            user_data: None,
            nonce: None,
        })
    }

    fn open(&self, released: &[u8]) -> Result<Zeroizing<Vec<u8>>, ReleaseError> {
        cms::open(released, |wrapped| self.unwrap(wrapped)).map_err(|_| ReleaseError)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recipient([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers with the public key that it was given, or with a failure.
    #[derive(Debug, Default)]
    struct Echo {
        asked: Mutex<u32>,
        fails: bool,
    }

    impl Attester for Echo {
        fn attest(&self, claims: &Claims<'_>) -> Result<Vec<u8>, AttestError> {
            *self.asked.lock().unwrap() += 1;
            if self.fails {
                return Err(AttestError {
                    reason: "the device is gone".to_owned(),
                });
            }
            assert_eq!((claims.user_data, claims.nonce), (None, None));
            Ok(claims.public_key.unwrap().to_vec())
        }
    }

    #[test]
    fn evidence_is_made_anew_and_binds_the_key_that_opens() {
        let attester = Arc::new(Echo::default());
        let recipient = Recipient::generate(attester.clone()).unwrap();
        let bound = recipient.evidence().unwrap();
        assert_eq!(recipient.evidence().unwrap(), bound);
        assert_eq!(*attester.asked.lock().unwrap(), 2);
        let released = cms::seal(&bound, b"a data key").unwrap();
        assert_eq!(recipient.open(&released).unwrap().as_slice(), b"a data key");
    }

    #[test]
    fn what_was_released_to_another_recipient_does_not_open() {
        let [one, other] = [(), ()].map(|()| Recipient::generate(Arc::new(Echo::default())).unwrap());
        assert_ne!(one.public_key(), other.public_key());
        let released = cms::seal(one.public_key(), b"a data key").unwrap();
        assert_eq!(other.open(&released), Err(ReleaseError));
        assert_eq!(one.open(&released[1..]), Err(ReleaseError));
    }

    #[test]
    fn without_evidence_it_says_why() {
        let recipient = Recipient::generate(Arc::new(Echo {
            fails: true,
            ..Echo::default()
        }))
        .unwrap();
        assert_eq!(recipient.evidence().unwrap_err().reason, "the device is gone");
    }

    #[test]
    fn a_recipient_prints_nothing_of_its_keys() {
        let recipient = Recipient::generate(Arc::new(Echo::default())).unwrap();
        assert_eq!(format!("{recipient:?}"), "Recipient([redacted])");
    }
}
