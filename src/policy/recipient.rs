//! The RSA key that dead letters are sealed to instead of a policy key: a public JWK (RFC 7517; RFC 7518, section 6.3.1)
//! whose private half no service holds. Only read and named here; `pipeline` seals to it.

use sha2::{Digest as _, Sha256};

use super::key_path::KeyPath;
use super::problem::{Found, Problem};
use super::raw::RawRecipient;
use crate::jose::{Thumbprint, from_base64url};

/// Sizes of moduli, in bits.
const BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;
/// 65537 in base64url, the one exponent that anybody makes.
const EXPONENT: &str = "AQAB";

/// The public half of an RSA key that dead letters are sealed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Member `n`: minimal big-endian bytes in canonical base64url.
    modulus: String,
    bits: usize,
}

impl Recipient {
    /// A key as the policy writes it.
    pub(super) fn new(raw: &RawRecipient, at: &KeyPath) -> Result<Self, Found> {
        if raw.is_private() {
            return Err(Problem::PrivateRecipient.at(at));
        }
        let said = |member: &Option<String>, expected: &str| member.as_ref().is_none_or(|text| text == expected);
        let is_for_sealing = said(&raw.alg, "RSA-OAEP-256") && said(&raw.usage, "enc");
        let bits = bits(&raw.n).filter(|bits| BITS.contains(bits));
        let bits = bits.filter(|_| raw.kty == "RSA" && raw.e == EXPONENT && is_for_sealing);
        let Some(bits) = bits else {
            return Err(Problem::BadRecipient.at(at));
        };
        let modulus = raw.n.clone();
        let key = Self { modulus, bits };
        if !said(&raw.kid, &key.thumbprint().to_string()) {
            return Err(Problem::WrongRecipientKid.at(&at.key("kid")));
        }
        Ok(key)
    }

    /// The JWK with its required members in order: what RFC 7638 hashes.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!(r#"{{"e":"{EXPONENT}","kty":"RSA","n":"{}"}}"#, self.modulus)
    }

    /// The RFC 7638 thumbprint: the name of this key, and `kid` of what is sealed to it.
    #[must_use]
    pub fn thumbprint(&self) -> Thumbprint {
        Thumbprint::from_digest(Sha256::digest(self.to_json()).into())
    }

    /// Size of the modulus, in bits.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.bits
    }
}

/// Bits of a modulus in its one spelling: canonical base64url without a leading zero byte, odd.
fn bits(text: &str) -> Option<usize> {
    // What is far too long is not even decoded: base64 is a third longer.
    if text.len() > BITS.end() / 6 + 2 {
        return None;
    }
    let modulus = from_base64url(text)?;
    let (first, last) = (modulus.first()?, modulus.last()?);
    if *first == 0 || last % 2 == 0 {
        return None;
    }
    Some(modulus.len() * 8 - first.leading_zeros() as usize)
}

#[cfg(all(test, feature = "jwe"))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::jose::base64url;
    use crate::jose::rsa::RsaPublicJwk;

    fn raw(n: String) -> RawRecipient {
        RawRecipient {
            kty: "RSA".to_owned(),
            n,
            e: EXPONENT.to_owned(),
            ..RawRecipient::default()
        }
    }

    proptest! {
        /// Else a signed policy could name a key that a pipeline cannot seal to.
        #[test]
        fn the_policy_takes_exactly_the_moduli_that_can_be_sealed_to(
            len in 254_usize..=514, seed: [u8; 32], first: u8, last: u8, more in 0_usize..3,
        ) {
            let mut modulus: Vec<u8> = seed.iter().copied().cycle().take(len).collect();
            (modulus[0], modulus[len - 1]) = (first, last);
            let text = base64url(&modulus) + &"A".repeat(more);
            let here = Recipient::new(&raw(text.clone()), &KeyPath::root());
            let json = format!(r#"{{"kty":"RSA","n":"{text}","e":"AQAB"}}"#);
            let there = RsaPublicJwk::from_json(json.as_bytes());
            prop_assert_eq!(here.is_ok(), there.is_ok());
            if let (Ok(here), Ok(there)) = (here, there) {
                prop_assert_eq!(here.to_json(), there.to_json());
                prop_assert_eq!(here.thumbprint(), there.thumbprint());
                prop_assert_eq!(here.bits(), there.bits());
            }
        }
    }
}
