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

mod answer;
mod key;
mod mac;
mod places;
mod session;
mod value;

pub use answer::{Answers, DocumentError, OpenError};
pub use key::{KeyError, PrivateKey};
pub use mac::{ClientMac, MacKeyError};
pub use sealflow::jose::rsa::{RsaKeyError, RsaPublicJwk};
pub use sealflow::keys::RsaBits;
pub use session::{RowId, SealError, Session};
pub use value::seal_value;
