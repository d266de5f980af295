//! Compact JWE (RFC 7516) as clients seal with: `A256GCM` under a key of a session (`dir`) or one that was wrapped to an RSA
//! key (`RSA-OAEP-256`). RFC 7518, sections 4.3, 4.5 and 5.3.
//!
//! Whatever does not open says [`JweError`] and no more: which part was wrong is nobody's business.

use std::collections::BTreeMap;
use std::fmt;

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::base64url;
use super::jwk::Thumbprint;
use super::members::Members;

/// The largest header that is read, in characters of base64url.
pub const MAX_HEADER_CHARS: usize = 2_048;
/// An encrypted key of RSA-4096, in characters of base64url.
const MAX_KEY_CHARS: usize = 683;
const NONCE_CHARS: usize = 16;
const TAG_CHARS: usize = 22;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
/// What a header may have. `crit`, `zip`, keys and certificates are refused with all else.
const MEMBERS: [&str; 9] = [
    "alg",
    "cty",
    "enc",
    "kid",
    "sf_client",
    "sf_dataset",
    "sf_label",
    "sf_row",
    "typ",
];
const ENCRYPTION: &str = "A256GCM";

/// A text that is no JWE that can be opened here. It does not say why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the JWE does not open")]
pub struct JweError;

/// How the content key of a JWE is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyManagement {
    /// It is that of a session (`alg: dir`).
    Direct,
    /// It was wrapped to an RSA key (`alg: RSA-OAEP-256`).
    RsaOaep256,
}

/// The protected header of a JWE.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JweHeader {
    /// How the content key is had.
    pub key_management: KeyManagement,
    /// The session (`dir`), or the thumbprint of the RSA key.
    pub kid: String,
    /// The client that sealed the value (`sf_client`), which its proof of who sealed has to name too.
    pub client: Option<String>,
    /// The dataset that the value was sealed for (`sf_dataset`).
    pub dataset: Option<String>,
    /// The label that the value was sealed under (`sf_label`).
    pub label: Option<String>,
    /// The row that the value was sealed for (`sf_row`): a JSON array of the row id and its list indexes.
    pub row: Option<String>,
}

impl JweHeader {
    /// Of something whose content key is wrapped to the RSA key of that name.
    #[must_use]
    pub fn wrapped(to: &Thumbprint) -> Self {
        Self {
            key_management: KeyManagement::RsaOaep256,
            kid: to.to_string(),
            client: None,
            dataset: None,
            label: None,
            row: None,
        }
    }

    /// Of a value under the key of a session.
    #[must_use]
    pub fn direct(session: &str, dataset: &str, label: &str, row: Option<&str>) -> Self {
        Self {
            key_management: KeyManagement::Direct,
            kid: session.to_owned(),
            client: None,
            dataset: Some(dataset.to_owned()),
            label: Some(label.to_owned()),
            row: row.map(str::to_owned),
        }
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`JweError`] for members twice, unknown members, other algorithms.
    fn from_json(json: &[u8]) -> Result<Self, JweError> {
        let members = Members::from_json(json).ok_or(JweError)?;
        if members.other_than(&MEMBERS).is_some() || members.text("enc") != Some(ENCRYPTION) {
            return Err(JweError);
        }
        let key_management = match members.text("alg") {
            Some("dir") => KeyManagement::Direct,
            Some("RSA-OAEP-256") => KeyManagement::RsaOaep256,
            _ => return Err(JweError),
        };
        let text = |name: &str| match members.text(name) {
            Some(text) => Ok(Some(text.to_owned())),
            None if members.has(name) => Err(JweError),
            None => Ok(None),
        };
        Ok(Self {
            key_management,
            kid: text("kid")?.ok_or(JweError)?,
            client: text("sf_client")?,
            dataset: text("sf_dataset")?,
            label: text("sf_label")?,
            row: text("sf_row")?,
        })
    }

    fn to_json(&self) -> String {
        let alg = match self.key_management {
            KeyManagement::Direct => "dir",
            KeyManagement::RsaOaep256 => "RSA-OAEP-256",
        };
        let mut members = vec![("alg", alg), ("enc", ENCRYPTION), ("kid", &self.kid)];
        let own = [
            ("sf_client", &self.client),
            ("sf_dataset", &self.dataset),
            ("sf_label", &self.label),
            ("sf_row", &self.row),
        ];
        members.extend(own.iter().filter_map(|(name, text)| Some((*name, text.as_deref()?))));
        let members: BTreeMap<&str, &str> = members.into_iter().collect();
        // Maps of strings always have a JSON text.
        serde_json::to_string(&members).unwrap_or_default()
    }

    /// The first part of a JWE with this header, for [`ContentKey::seal`].
    #[must_use]
    pub fn to_part(&self) -> String {
        base64url(self.to_json().as_bytes())
    }
}

/// The five parts of a compact JWE, not decoded yet.
#[derive(Clone, Copy)]
pub struct Jwe<'a> {
    /// The header's text, which is the additional data.
    protected: &'a str,
    encrypted_key: &'a str,
    nonce: [u8; NONCE_LEN],
    ciphertext: &'a str,
    tag: [u8; TAG_LEN],
}

impl<'a> Jwe<'a> {
    /// Takes a text apart.
    ///
    /// # Errors
    /// [`JweError`]
    pub fn parse(text: &'a str) -> Result<Self, JweError> {
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(JweError);
        let (protected, encrypted_key, nonce, ciphertext, tag) = (next()?, next()?, next()?, next()?, next()?);
        if parts.next().is_some()
            || protected.len() > MAX_HEADER_CHARS
            || encrypted_key.len() > MAX_KEY_CHARS
            || nonce.len() != NONCE_CHARS
            || tag.len() != TAG_CHARS
        {
            return Err(JweError);
        }
        Ok(Self {
            protected,
            encrypted_key,
            nonce: fixed(nonce)?,
            ciphertext,
            tag: fixed(tag)?,
        })
    }

    /// The text of its header: equal texts are equal headers.
    #[must_use]
    pub fn protected(&self) -> &'a str {
        self.protected
    }

    /// Its header.
    ///
    /// # Errors
    /// [`JweError`]
    pub fn header(&self) -> Result<JweHeader, JweError> {
        let json = URL_SAFE_NO_PAD.decode(self.protected).map_err(|_| JweError)?;
        let header = JweHeader::from_json(&json)?;
        match header.key_management {
            KeyManagement::Direct if !self.encrypted_key.is_empty() => Err(JweError),
            KeyManagement::RsaOaep256 if self.encrypted_key.is_empty() => Err(JweError),
            _ => Ok(header),
        }
    }

    /// Whether there is a content key that was wrapped to an RSA key.
    #[must_use]
    pub fn has_encrypted_key(&self) -> bool {
        !self.encrypted_key.is_empty()
    }

    /// The content key as it was wrapped to an RSA key.
    ///
    /// # Errors
    /// [`JweError`]
    pub fn encrypted_key(&self) -> Result<Vec<u8>, JweError> {
        URL_SAFE_NO_PAD.decode(self.encrypted_key).map_err(|_| JweError)
    }

    /// Length of its plaintext, in bytes.
    #[must_use]
    pub fn plaintext_len(&self) -> usize {
        self.ciphertext.len() / 4 * 3 + self.ciphertext.len() % 4 * 3 / 4
    }
}

impl fmt::Debug for Jwe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwe").finish_non_exhaustive()
    }
}

fn fixed<const N: usize>(text: &str) -> Result<[u8; N], JweError> {
    let mut bytes = [0; N];
    match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
        Ok(len) if len == N => Ok(bytes),
        _ => Err(JweError),
    }
}

/// A content key, ready to seal and open. Wiped on drop, `Debug` shows nothing.
pub struct ContentKey(Aes256Gcm);

impl ContentKey {
    /// Of 32 bytes.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(Aes256Gcm::new(key.into()))
    }

    /// Appends the plaintext of a JWE to `out`, which keeps what it had if the tag is wrong.
    ///
    /// # Errors
    /// [`JweError`]
    pub fn open(&self, jwe: &Jwe<'_>, out: &mut Vec<u8>) -> Result<(), JweError> {
        let mut buffer = Zeroizing::new(Vec::with_capacity(jwe.plaintext_len() + 3));
        let decoded = URL_SAFE_NO_PAD.decode_vec(jwe.ciphertext, &mut buffer);
        decoded.map_err(|_| JweError)?;
        let opened = self.0.decrypt_inout_detached(
            &Nonce::from(jwe.nonce),
            jwe.protected.as_bytes(),
            buffer.as_mut_slice().into(),
            &Tag::from(jwe.tag),
        );
        opened.map_err(|_| JweError)?;
        out.extend_from_slice(&buffer);
        Ok(())
    }

    /// A JWE of `plaintext`. `protected` comes from [`JweHeader::to_part`], `encrypted_key` is empty for sessions. Every call draws
    /// a nonce: one key seals at most 2^32 times (NIST SP 800-38D, section 8.3), which callers count.
    ///
    /// # Errors
    /// [`JweError`] if the operating system gives no random numbers, or the header is longer than anybody reads.
    pub fn seal(&self, protected: &str, encrypted_key: &[u8], plaintext: &[u8]) -> Result<String, JweError> {
        if protected.len() > MAX_HEADER_CHARS {
            return Err(JweError);
        }
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| JweError)?;
        let mut buffer = Zeroizing::new(plaintext.to_vec());
        let sealed =
            self.0
                .encrypt_inout_detached(&Nonce::from(nonce), protected.as_bytes(), buffer.as_mut_slice().into());
        let tag = sealed.map_err(|_| JweError)?;
        let mut text = String::with_capacity(protected.len() + encrypted_key.len() * 4 / 3 + buffer.len() * 4 / 3 + 64);
        text.push_str(protected);
        for part in [encrypted_key, &nonce, &buffer, &tag] {
            text.push('.');
            URL_SAFE_NO_PAD.encode_string(part, &mut text);
        }
        Ok(text)
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey([redacted])")
    }
}

/// The name of a session: base64url of the first 16 bytes of the SHA-256 of its JWE.
#[must_use]
pub fn session_id(session: &str) -> String {
    base64url(&Sha256::digest(session)[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7516, appendix A.1: its content key, and the parts from the initialisation vector on.
    const RFC_KEY: [u8; 32] = [
        177, 161, 244, 128, 84, 143, 225, 115, 63, 180, 3, 255, 107, 154, 212, 246, 138, 7, 110, 91, 112, 46, 34, 105,
        47, 130, 203, 46, 122, 234, 64, 252,
    ];
    const RFC_PROTECTED: &str = "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ";
    const RFC_REST: &str = "48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A.XFBoMYUZodetZdvTiFvSkQ";

    fn header() -> JweHeader {
        JweHeader {
            key_management: KeyManagement::Direct,
            kid: "k".into(),
            client: Some("web-7".into()),
            dataset: Some("payments".into()),
            label: Some("cards[*].\"odd name\"".into()),
            row: None,
        }
    }

    fn open(key: &ContentKey, text: &str) -> Result<Vec<u8>, JweError> {
        let mut out = Vec::new();
        key.open(&Jwe::parse(text)?, &mut out).map(|()| out)
    }

    #[test]
    fn the_content_of_rfc_7516_appendix_a_1_opens_and_its_algorithm_is_refused() {
        let text = format!("{RFC_PROTECTED}.AAAA.{RFC_REST}");
        let opened = open(&ContentKey::new(&RFC_KEY), &text).unwrap();
        assert_eq!(
            opened,
            b"The true sign of intelligence is not knowledge but imagination."
        );
        assert_eq!(Jwe::parse(&text).unwrap().header(), Err(JweError));
    }

    #[test]
    fn what_is_sealed_comes_back_and_equal_values_look_different() {
        let key = ContentKey::new(&[7; 32]);
        for len in [0, 1, 2, 3, 16, 4_096] {
            let plaintext = vec![42; len];
            let text = key.seal(&header().to_part(), &[], &plaintext).unwrap();
            let jwe = Jwe::parse(&text).unwrap();
            assert_eq!(jwe.header(), Ok(header()));
            assert_eq!(jwe.plaintext_len(), len);
            assert_eq!(open(&key, &text), Ok(plaintext.clone()));
            assert_ne!(key.seal(&header().to_part(), &[], &plaintext).unwrap(), text);
            assert_eq!(open(&ContentKey::new(&[8; 32]), &text), Err(JweError));
        }
    }

    #[test]
    fn whatever_is_changed_it_does_not_open() {
        let key = ContentKey::new(&[7; 32]);
        let text = key.seal(&header().to_part(), &[], b"4111111111111111").unwrap();
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            let opened = Jwe::parse(&changed)
                .and_then(|jwe| jwe.header())
                .and_then(|_| open(&key, &changed));
            assert_eq!(opened, Err(JweError), "{at}");
            assert!(open(&key, &text[..at]).is_err());
        }
        let mut out = b"before".to_vec();
        let swapped = text.replace(
            &header().to_part(),
            &JweHeader {
                label: None,
                ..header()
            }
            .to_part(),
        );
        assert_eq!(key.open(&Jwe::parse(&swapped).unwrap(), &mut out), Err(JweError));
        assert_eq!(out, b"before");
    }

    #[test]
    fn other_headers_are_refused_without_a_reason() {
        let good = r#"{"alg":"dir","enc":"A256GCM","kid":"k"}"#;
        let parse = |json: &str, encrypted_key: &str| {
            let text = format!("{}.{encrypted_key}.{RFC_REST}", base64url(json.as_bytes()));
            Jwe::parse(&text).and_then(|jwe| jwe.header())
        };
        assert!(parse(good, "").is_ok());
        assert!(parse(&good.replace("dir", "RSA-OAEP-256"), "AAAA").is_ok());
        assert_eq!(parse(good, "AAAA"), Err(JweError));
        assert_eq!(parse(&good.replace("dir", "RSA-OAEP-256"), ""), Err(JweError));
        for (from, to) in [
            ("dir", "none"),
            ("dir", "RSA1_5"),
            ("dir", "RSA-OAEP"),
            ("dir", "A256KW"),
            ("dir", "DIR"),
            ("A256GCM", "A128GCM"),
            ("A256GCM", "A256CBC-HS512"),
            (r#","kid":"k""#, ""),
            (r#""k"}"#, r#"1}"#),
            ("}", r#","zip":"DEF"}"#),
            ("}", r#","crit":["exp"]}"#),
            ("}", r#","kid":"k"}"#),
            ("}", r#","jwk":{"kty":"oct","k":"AA"}}"#),
            ("}", r#","sf_label":["card"]}"#),
            ("}", r#","sf_label":{"a":"b"}}"#),
            ("}", "}{}"),
            ("{", "["),
        ] {
            let json = good.replacen(from, to, 1);
            assert_eq!(parse(&json, ""), Err(JweError), "{json}");
        }
        let long = good.replace("\"k\"", &format!("\"{}\"", "k".repeat(2_000)));
        assert_eq!(parse(&long, ""), Err(JweError));
        for bad in ["", "....", "a.b.c.d", "a.b.c.d.e", "a.b.c.d.e.f"] {
            assert_eq!(Jwe::parse(bad).map(|_| ()), Err(JweError), "{bad}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", ContentKey::new(&[7; 32])), "ContentKey([redacted])");
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_read_without_panic(text: String) {
            if let Ok(jwe) = Jwe::parse(&text) {
                let _ = (jwe.header(), jwe.encrypted_key(), jwe.plaintext_len());
            }
        }
    }
}
