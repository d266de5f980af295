//! Compact JWS with HS256 (RFC 7515; RFC 7518, section 3.2) around the JWE of a client (`cty: JWE`): which client sealed it.
//!
//! The header is `{alg: HS256, cty: JWE, kid}`, with `iat` and `jti` where each value counts once. Whatever does not verify
//! says [`JweError`] and no more.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::Sha256;

use super::jwe::JweError;
use super::{base64url, is_client_name};

/// The largest header that is read, in characters of base64url.
const MAX_HEADER_CHARS: usize = 1_024;
/// The longest name of a value, in bytes.
pub const MAX_VALUE_NAME: usize = 128;
const MAC_LEN: usize = 32;
const MAC_CHARS: usize = 43;

/// What a client says of a value beside the MAC over it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MacHeader {
    /// The client (`kid`).
    pub client: String,
    /// When it sealed the value, in seconds since the epoch (`iat`).
    pub issued_at: Option<u64>,
    /// The name of the value: no other of this client has it (`jti`).
    pub value: Option<String>,
}

/// The header as it is written and read: no other members, none twice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    cty: Cow<'a, str>,
    #[serde(borrow)]
    kid: Cow<'a, str>,
    #[serde(default)]
    iat: Option<u64>,
    #[serde(default, borrow)]
    jti: Option<Cow<'a, str>>,
    #[serde(default)]
    typ: Option<Cow<'a, str>>,
}

impl MacHeader {
    /// Of a value of this client.
    #[must_use]
    pub fn new(client: &str) -> Self {
        Self {
            client: client.to_owned(),
            issued_at: None,
            value: None,
        }
    }

    /// Of a value that counts once: sealed at `issued_at` (seconds since the epoch), under a name that this client gives no other.
    #[must_use]
    pub fn once(client: &str, issued_at: u64, value: &str) -> Self {
        Self {
            client: client.to_owned(),
            issued_at: Some(issued_at),
            value: Some(value.to_owned()),
        }
    }

    fn from_json(json: &[u8]) -> Result<Self, JweError> {
        let header: Header<'_> = serde_json::from_slice(json).map_err(|_| JweError)?;
        let is_ours = header.alg == "HS256" && header.cty == "JWE" && header.typ.is_none_or(|typ| typ == "JOSE");
        let is_name = |text: &str| (1..=MAX_VALUE_NAME).contains(&text.len());
        if !is_ours || !is_client_name(&header.kid) || header.jti.as_ref().is_some_and(|jti| !is_name(jti)) {
            return Err(JweError);
        }
        Ok(Self {
            client: header.kid.into_owned(),
            issued_at: header.iat,
            value: header.jti.map(Cow::into_owned),
        })
    }

    fn to_json(&self) -> String {
        let mut members = serde_json::Map::new();
        let mut put = |name: &str, value: serde_json::Value| members.insert(name.to_owned(), value);
        put("alg", "HS256".into());
        put("cty", "JWE".into());
        if let Some(issued_at) = self.issued_at {
            put("iat", issued_at.into());
        }
        if let Some(value) = &self.value {
            put("jti", value.as_str().into());
        }
        put("kid", self.client.as_str().into());
        serde_json::Value::from(members).to_string()
    }
}

/// A JWE in a JWS, taken apart; nothing of it is verified yet.
#[derive(Clone, PartialEq, Eq)]
pub struct MacJws {
    /// What the client says.
    pub header: MacHeader,
    /// The JWE.
    jwe: String,
    /// How much of the text the MAC is over.
    signed_len: usize,
    mac: [u8; MAC_LEN],
}

impl MacJws {
    /// Takes a text apart.
    ///
    /// # Errors
    /// [`JweError`]
    pub fn parse(text: &str) -> Result<Self, JweError> {
        let (signed, mac_text) = text.rsplit_once('.').ok_or(JweError)?;
        let (header, payload) = signed.split_once('.').ok_or(JweError)?;
        if header.len() > MAX_HEADER_CHARS || mac_text.len() != MAC_CHARS {
            return Err(JweError);
        }
        let mut mac = [0; MAC_LEN];
        match URL_SAFE_NO_PAD.decode_slice(mac_text, &mut mac) {
            Ok(MAC_LEN) => {}
            _ => return Err(JweError),
        }
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| JweError)?;
        let jwe = URL_SAFE_NO_PAD.decode(payload).map_err(|_| JweError)?;
        Ok(Self {
            header: MacHeader::from_json(&header)?,
            jwe: String::from_utf8(jwe).map_err(|_| JweError)?,
            signed_len: signed.len(),
            mac,
        })
    }

    /// The JWE: of whom, [`MacKey::verifies`] says.
    #[must_use]
    pub fn jwe(&self) -> &str {
        &self.jwe
    }
}

/// It may hold names of clients and values, which logs need not know.
impl fmt::Debug for MacJws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MacJws").finish_non_exhaustive()
    }
}

/// A client's HMAC key of 256 bits, ready to use. Wiped on drop, `Debug` shows nothing.
pub struct MacKey(Hmac<Sha256>);

impl MacKey {
    /// Of 32 bytes.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        // Keys of any length are taken (RFC 2104, section 2), so this cannot fail.
        #[allow(clippy::expect_used)]
        Self(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// A JWS of `jwe` with this header.
    #[must_use]
    pub fn sign(&self, header: &MacHeader, jwe: &str) -> String {
        let mut text = base64url(header.to_json().as_bytes());
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(jwe, &mut text);
        let mac = self.0.clone().chain_update(text.as_bytes()).finalize().into_bytes();
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(mac, &mut text);
        text
    }

    /// Whether the MAC of `jws` is by this key; `text` is what it was parsed from. Compared in constant time.
    #[must_use]
    pub fn verifies(&self, jws: &MacJws, text: &str) -> bool {
        let signed = text.as_bytes().get(..jws.signed_len).unwrap_or_default();
        self.0.clone().chain_update(signed).verify_slice(&jws.mac).is_ok()
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    #[test]
    fn what_is_signed_verifies_and_nothing_else() {
        let key = MacKey::new(&KEY);
        let header = MacHeader::once("web-7", 1_790_000_000, "v-1");
        let text = key.sign(&header, "a.b.c.d.e");
        let jws = MacJws::parse(&text).unwrap();
        assert_eq!((jws.header.clone(), jws.jwe()), (header, "a.b.c.d.e"));
        assert!(key.verifies(&jws, &text));
        assert!(!MacKey::new(&[8; 32]).verifies(&jws, &text));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            let verified = MacJws::parse(&changed).map(|jws| key.verifies(&jws, &changed));
            assert_ne!(verified, Ok(true), "{at}");
        }
        assert!(!format!("{key:?} {jws:?}").contains("web-7"));
    }

    /// RFC 7515, appendix A.1, whose key is one of 512 bits: HMAC takes it as it is, so the block is the key.
    #[test]
    fn the_mac_of_rfc_7515_appendix_a_1_is_that_of_this_key() {
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let signed = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let mac = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let block = URL_SAFE_NO_PAD.decode(key).unwrap();
        let key = MacKey(Hmac::new_from_slice(&block).unwrap());
        let jws = MacJws {
            header: MacHeader::new("joe"),
            jwe: String::new(),
            signed_len: signed.len(),
            mac: URL_SAFE_NO_PAD.decode(mac).unwrap().try_into().unwrap(),
        };
        assert!(key.verifies(&jws, signed));
        assert_eq!(
            MacJws::parse(&format!("{signed}.{mac}")),
            Err(JweError),
            "its header is none of ours"
        );
    }

    #[test]
    fn only_headers_of_ours_are_read() {
        let read = |header: &str| {
            let text = format!(
                "{}.{}.{}",
                base64url(header.as_bytes()),
                base64url(b"a"),
                base64url(&[0; 32])
            );
            MacJws::parse(&text).map(|jws| jws.header)
        };
        assert_eq!(
            read(r#"{"alg":"HS256","cty":"JWE","kid":"c"}"#),
            Ok(MacHeader::new("c"))
        );
        assert!(read(r#"{"alg":"HS256","cty":"JWE","typ":"JOSE","kid":"c","iat":1,"jti":"x"}"#).is_ok());
        for bad in [
            r#"{"alg":"none","cty":"JWE","kid":"c"}"#,
            r#"{"alg":"HS384","cty":"JWE","kid":"c"}"#,
            r#"{"alg":"RS256","cty":"JWE","kid":"c"}"#,
            r#"{"alg":"HS256","kid":"c"}"#,
            r#"{"alg":"HS256","cty":"JWT","kid":"c"}"#,
            r#"{"alg":"HS256","cty":"JWE"}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":""}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":"a b"}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":"c","kid":"d"}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":"c","crit":["b64"]}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":"c","b64":false}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":"c","jwk":{}}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":"c","iat":-1}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":"c","iat":1.5}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":"c","jti":""}"#,
            r#"{"alg":"HS256","cty":"JWE","kid":"c"} x"#,
            "[]",
            "",
        ] {
            assert_eq!(read(bad), Err(JweError), "{bad}");
        }
        for text in ["", "a", "a.b", "a.b.c", "a.b.c.d.e"] {
            assert_eq!(MacJws::parse(text), Err(JweError), "{text}");
        }
    }
}
