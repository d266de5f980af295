//! Answers: what a backend seals to a client's key.

use std::fmt;

use sealflow::secret::SecretBytes;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::key::PrivateKey;

/// How every JWE begins: base64url of `{"`.
const BEGINNING: &[u8] = b"eyJ";

/// Why an answer does not open. It does not say what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It is not sealed to this key, or was changed.
    #[error("the answer does not open with this key")]
    DoesNotOpen,
    /// What was sealed is no JSON.
    #[error("what was sealed is not JSON")]
    NotJson,
}

/// Opens answers with a key.
pub struct Answers<'a>(&'a PrivateKey);

impl<'a> Answers<'a> {
    /// With this key.
    #[must_use]
    pub fn new(key: &'a PrivateKey) -> Self {
        Self(key)
    }

    /// The JSON text in an answer, spelled as it was sealed.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn text(&self, jwe: &str) -> Result<SecretBytes, OpenError> {
        let plain: SecretBytes = self.0.open(jwe)?;
        check_json(plain.expose())?;
        Ok(plain)
    }

    /// The JSON value in an answer. Numbers are those of [`Value`]: where digits beyond float64 matter, take
    /// [`text`](Self::text).
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn value(&self, jwe: &str) -> Result<Value, OpenError> {
        let plain = self.0.open(jwe)?;
        serde_json::from_slice(plain.expose()).map_err(|_| OpenError::NotJson)
    }

    /// Replaces each string of a JSON text that is a JWE sealed to this key by what it holds; how many were. Every other byte
    /// stays, and a line stays a line.
    ///
    /// # Errors
    /// [`OpenError::NotJson`]
    pub fn document(&self, json: &[u8]) -> Result<(SecretBytes, usize), OpenError> {
        check_json(json)?;
        let mut out = Zeroizing::new(Vec::with_capacity(json.len()));
        let (mut copied, mut at, mut opened) = (0, 0, 0);
        while at < json.len() {
            if json[at] != b'"' {
                at += 1;
                continue;
            }
            let end = end_of_string(json, at);
            let text = json.get(at + 1..end - 1).unwrap_or_default();
            if text.starts_with(BEGINNING)
                && !is_name(json, end)
                && let Ok(text) = std::str::from_utf8(text)
                && let Ok(plain) = self.text(text)
            {
                out.extend_from_slice(&json[copied..at]);
                // Between the tokens of a JSON text a line break is white space, and within them there is none.
                let bytes = plain.expose().iter();
                out.extend(bytes.map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
                (copied, opened) = (end, opened + 1);
            }
            at = end;
        }
        out.extend_from_slice(&json[copied..]);
        Ok((SecretBytes::new(std::mem::take(&mut *out)), opened))
    }
}

fn check_json(text: &[u8]) -> Result<(), OpenError> {
    // What is ignored is not checked for UTF-8 otherwise.
    let text = std::str::from_utf8(text).map_err(|_| OpenError::NotJson)?;
    let value = serde_json::from_str::<serde::de::IgnoredAny>(text);
    value.map(drop).map_err(|_| OpenError::NotJson)
}

/// Behind the closing quote of the string that begins at `at`, in a text that is JSON.
fn end_of_string(json: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < json.len() && json[end] != b'"' {
        end += if json[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(json.len())
}

/// Whether the string that ends at `end` is the name of a member.
fn is_name(json: &[u8], end: usize) -> bool {
    let mut rest = json[end..].iter();
    rest.find(|byte| !b" \t\r\n".contains(byte)) == Some(&b':')
}

impl fmt::Debug for Answers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use sealflow::jose::jwe::{ContentKey, JweHeader};

    use super::*;
    use crate::RsaBits;

    fn seal(to: &PrivateKey, text: &str) -> String {
        let (public, content) = (to.public().unwrap(), [9; 32]);
        let wrapped = public.wrap(&content).unwrap();
        let header = JweHeader::wrapped(&public.thumbprint()).to_part();
        ContentKey::new(&content)
            .seal(&header, &wrapped, text.as_bytes())
            .unwrap()
    }

    #[test]
    fn answers_in_a_document_are_opened_as_they_were_spelled_and_every_other_byte_stays() {
        let (key, other) = (
            PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
            PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
        );
        let answers = Answers::new(&key);
        let (number, list) = (seal(&key, "12345678901234567890123.10"), seal(&key, "[1,\r\n\"\\n\"]"));
        let (foreign, no_json) = (seal(&other, "1"), seal(&key, "4111-1111"));
        // A name stays, whatever it looks like.
        let named = format!(r#"{{"{number}" :"{number}"}}"#);
        let (opened, count) = answers.document(named.as_bytes()).unwrap();
        let expected = format!(r#"{{"{number}" :12345678901234567890123.10}}"#);
        assert_eq!((opened.expose(), count), (expected.as_bytes(), 1));
        let quoted =
            format!(r#" {{"a" : "{number}","b":[1.50,"{list}","\\","\"eyJ",true], "c":"{foreign}","d":"{no_json}"}} "#);
        let (opened, count) = answers.document(quoted.as_bytes()).unwrap();
        assert_eq!(count, 2);
        let text = std::str::from_utf8(opened.expose()).unwrap();
        assert_eq!(
            text,
            quoted
                .replace(&format!("\"{number}\""), "12345678901234567890123.10")
                .replace(&format!("\"{list}\""), "[1,  \"\\n\"]")
        );
        let alone = format!("\"{number}\"");
        assert_eq!(
            answers.document(alone.as_bytes()).unwrap().0.expose(),
            b"12345678901234567890123.10"
        );
        assert_eq!(answers.document(b"\"\xff\"").err(), Some(OpenError::NotJson));
        for bad in ["", "eyJ", &number, "{\"a\":}", "\"eyJ", "\"eyJ\\"] {
            assert_eq!(
                answers.document(bad.as_bytes()).err(),
                Some(OpenError::NotJson),
                "{bad}"
            );
        }
        assert_eq!(answers.text(&no_json).err(), Some(OpenError::NotJson));
        assert_eq!(answers.text(&foreign).err(), Some(OpenError::DoesNotOpen));
        assert_eq!(answers.value(&list).unwrap(), serde_json::json!([1, "\n"]));
    }
}
