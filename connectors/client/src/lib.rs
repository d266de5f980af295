//! What clients link to seal values before they leave, and to open what is answered to them: JOSE (RFC 7515-7518), so that
//! every language's own libraries do the same. No Kafka, no Arrow, no network.
//!
//! A [`Session`] makes a key, wraps it once to an RSA key that the backend's KMS holds, and seals values under it; [`seal_value`]
//! makes a key for one value. Whoever reads has a [`PrivateKey`] of their own, to whose public half [`Answers`] are sealed.
//!
//! ```
//! use sealflow_client::{PrivateKey, RsaBits, Session};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In life: from `sealflow keys public --jwk`, or the service's `/.well-known/jwks.json`.
//! let key = PrivateKey::generate(RsaBits::Rsa2048)?;
//! let mut session = Session::begin(&key.public()?, "payments")?;
//! let sealed = session.seal("card.number", br#""4111111111111111""#)?;
//! assert_eq!(sealed.split('.').count(), 5);
//! // `sealed` goes in the place of the value, `session.token()` beside it or in the header `sealflow-session`.
//! # Ok(())
//! # }
//! ```
//!
//! Values of **enclave** columns are sealed to a key that the policy's owner vouches for, never to a bare one, since whoever serves
//! the key could serve their own. The client pins the owner's thumbprint, which it has from the owner and not from the server:
//!
//! ```
//! use sealflow_client::{EnclaveKey, EnclavePins, Session};
//! # use sealflow::{clock::UnixMillis, jose::PrivateJwk, policy::{EnclaveKeys, enclave_keys::signed}};
//! # use sealflow_client::{PrivateKey, RsaBits};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let owner = PrivateJwk::generate()?;
//! # let enclave = PrivateKey::generate(RsaBits::Rsa2048)?;
//! # let keys = EnclaveKeys::new("payments", vec!["card.number".to_owned()], vec![enclave.public()?])?;
//! # let millis = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
//! # let span = std::time::Duration::from_secs(86_400);
//! # let document = signed::sign(&keys, UnixMillis(u64::try_from(millis)?), span, &owner)?;
//! # let thumbprint = owner.thumbprint().to_string();
//! // In life: the answer of the service's `/.well-known/enclave-keys`, and what `sealflow policy keygen` printed for the owner.
//! let pins = EnclavePins::owner(thumbprint.parse()?);
//! let key = EnclaveKey::believe(&document, &pins, "payments", None)?;
//! let mut session = Session::begin_for_enclave(&key)?;
//! let sealed = session.seal("card.number", br#""4111111111111111""#)?;
//! assert!(session.seal("note", b"1").is_err(), "the owner said nothing of this label");
//! # Ok(())
//! # }
//! ```

mod answer;
mod enclave;
#[cfg(feature = "attestation")]
mod enclave_answer;
mod key;
mod mac;
mod places;
mod session;
mod value;

pub use answer::{Answers, DocumentError, OpenError};
pub use enclave::{EnclaveKey, EnclaveLabels, EnclavePins};
#[cfg(feature = "attestation")]
pub use enclave_answer::{EnclaveAnswer, EnclaveAnswerError, EnclaveQuestion};
pub use key::{KeyError, PrivateKey};
pub use mac::{ClientMac, MacKeyError};
pub use sealflow::clock::UnixMillis;
pub use sealflow::jose::Thumbprint;
pub use sealflow::jose::rsa::{RsaKeyError, RsaPublicJwk};
pub use sealflow::keys::RsaBits;
#[cfg(feature = "attestation")]
pub use sealflow::policy::enclave_keys::attested;
pub use sealflow::policy::{EnclaveKeysError, Evidence, TrustedOwners};
pub use session::{RowId, SealError, Session};
pub use value::{seal_value, seal_value_beside, seal_value_for_enclave};
