//! JOSE as used here: EdDSA JWS (RFC 7515, RFC 8037), JWE of clients (RFC 7516) and HS256 JWS around them, Ed25519 and RSA JWKs
//! (RFC 7517, RFC 7638 thumbprints).
//!
//! One algorithm for each purpose, one serialisation, an exact header: what the standards leave open is refused. Only the key
//! sets of OIDC issuers, who are not ours, know more algorithms.

#[cfg(feature = "jwe")]
pub mod jwe;
pub mod jwk;
#[cfg(feature = "identity")]
pub mod jwks;
pub mod jws;
#[cfg(feature = "jwe")]
pub mod mac;
mod members;
#[cfg(feature = "jwe")]
pub mod rsa;
#[cfg(feature = "identity")]
mod strict;

pub use jwk::{JwkError, PrivateJwk, PublicJwk, Thumbprint, ThumbprintError};
#[cfg(feature = "identity")]
pub use jwks::{JwkSet, JwksError, NoKey, TokenAlgorithm};
pub use jws::{JwsError, JwsType, SelfSigned};
#[cfg(feature = "identity")]
pub(crate) use strict::from_strict_json;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The longest name of a client, in bytes.
pub const MAX_CLIENT_NAME: usize = 64;

/// Whether a text can name a client: 1 to 64 of `A-Z a-z 0-9 . _ -`.
#[must_use]
pub fn is_client_name(text: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_CLIENT_NAME).contains(&text.len()) && text.bytes().all(is_of_name)
}

/// base64url without padding (RFC 4648, section 5).
#[must_use]
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes of canonical base64url: no padding, no white space, unused bits zero. `None` otherwise.
pub(crate) fn from_base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// The 32 bytes of a key, a point or a digest in canonical base64url.
#[must_use]
pub fn from_base64url_32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    // 43 characters: checked first, so that a longer text cannot overflow.
    let is_full = text.len() == 43 && URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) == Ok(32);
    is_full.then_some(bytes)
}
