//! The HMAC key of a client, by which it proves that it sealed a value: an HS256 JWS around the JWE (RFC 7515).

use std::fmt;
use std::time::SystemTime;

use sealflow::jose::base64url;
use sealflow::jose::from_base64url_32;
use sealflow::jose::is_client_name;
use sealflow::jose::mac::{MacHeader, MacKey};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::session::SealError;

/// A text that is no HMAC key of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the JWK of a client's HMAC key: kty oct, alg HS256, kid its name, k of 256 bits")]
pub struct MacKeyError;

/// The HMAC key of a client. `Debug` shows nothing of it.
pub struct ClientMac {
    client: String,
    key: MacKey,
}

/// RFC 7518, section 6.4.
#[derive(Deserialize)]
struct Jwk<'a> {
    kty: &'a str,
    alg: &'a str,
    kid: &'a str,
    k: &'a str,
}

impl ClientMac {
    /// Reads the JWK that the backend's operator made (`sealflow keys client`).
    ///
    /// # Errors
    /// [`MacKeyError`]
    pub fn from_jwk(json: &[u8]) -> Result<Self, MacKeyError> {
        let jwk: Jwk<'_> = serde_json::from_slice(json).map_err(|_| MacKeyError)?;
        let key = from_base64url_32(jwk.k).map(Zeroizing::new).ok_or(MacKeyError)?;
        if jwk.kty != "oct" || jwk.alg != "HS256" || !is_client_name(jwk.kid) {
            return Err(MacKeyError);
        }
        Ok(Self {
            client: jwk.kid.to_owned(),
            key: MacKey::new(&key),
        })
    }

    /// The name of the client.
    #[must_use]
    pub fn client(&self) -> &str {
        &self.client
    }

    /// A sealed value (a JWE, whose header names this client) with the proof of who sealed it. Every call gives it a name of its
    /// own and the time that it is now: what is signed twice counts twice.
    pub(crate) fn sign(&self, jwe: &str) -> Result<String, SealError> {
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(|_| SealError::NoRandom)?;
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let header = MacHeader::once(&self.client, now.as_secs(), &base64url(&name));
        Ok(self.key.sign(&header, jwe))
    }
}

impl fmt::Debug for ClientMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientMac")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use sealflow::jose::mac::MacJws;

    use super::*;

    #[test]
    fn a_jwk_of_a_client_signs_what_its_key_verifies_and_each_value_has_a_name() {
        let jwk = format!(
            r#"{{"kty":"oct","alg":"HS256","kid":"web-7","k":"{}"}}"#,
            base64url(&[7; 32])
        );
        let mac = ClientMac::from_jwk(jwk.as_bytes()).unwrap();
        let (one, other) = (mac.sign("a.b.c.d.e").unwrap(), mac.sign("a.b.c.d.e").unwrap());
        let parsed = MacJws::parse(&one).unwrap();
        assert!(MacKey::new(&[7; 32]).verifies(&parsed, &one));
        assert_eq!((parsed.header.client.as_str(), parsed.jwe()), ("web-7", "a.b.c.d.e"));
        assert_ne!(parsed.header.value, MacJws::parse(&other).unwrap().header.value);
        assert!(!format!("{mac:?}").contains(&base64url(&[7; 32])));
        for (from, to) in [("oct", "RSA"), ("HS256", "none"), ("web-7", "web 7"), ("Bwc", "Bw")] {
            assert!(
                ClientMac::from_jwk(jwk.replacen(from, to, 1).as_bytes()).is_err(),
                "{from}"
            );
        }
    }
}
