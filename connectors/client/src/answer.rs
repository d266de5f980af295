//! Answers: what a backend seals to a client's key.

use std::fmt;

use sealflow::jose::jwe::Jwe;
use sealflow::secret::SecretBytes;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::key::PrivateKey;
use crate::places::texts;

/// How every JWE begins: base64url of `{"`.
const BEGINNING: &[u8] = b"eyJ";

/// Why an answer does not open. It does not say what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It is not sealed to this key, or was changed.
    #[error("the answer does not open with this key")]
    DoesNotOpen,
    /// It was sealed as a value of another dataset or label than was asked for: somebody exchanged answers.
    #[error("the answer belongs to another dataset or label")]
    OtherPlace,
    /// What was sealed is no JSON.
    #[error("what was sealed is not JSON")]
    NotJson,
}

/// Why the answers in a document are not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The document is no JSON.
    #[error("not JSON")]
    NotJson,
    /// An answer to this key was sealed as a value of another dataset or label than that of its place.
    #[error("the answer at {at} belongs to another dataset or label")]
    OtherPlace {
        /// Its column path in the document.
        at: String,
    },
}

/// Opens answers of one dataset with a key.
pub struct Answers<'a> {
    key: &'a PrivateKey,
    dataset: String,
}

impl<'a> Answers<'a> {
    /// With this key, the answers of this dataset.
    #[must_use]
    pub fn new(key: &'a PrivateKey, dataset: &str) -> Self {
        Self {
            key,
            dataset: dataset.to_owned(),
        }
    }

    /// The JSON text in an answer of this label, spelled as it was sealed.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn text(&self, jwe: &str, label: &str) -> Result<SecretBytes, OpenError> {
        self.text_if(jwe, |sealed| sealed == label)
    }

    /// The JSON value in an answer of this label. Numbers are those of [`Value`]: where digits beyond float64 matter, take
    /// [`text`](Self::text).
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn value(&self, jwe: &str, label: &str) -> Result<Value, OpenError> {
        let plain = self.text(jwe, label)?;
        serde_json::from_slice(plain.expose()).map_err(|_| OpenError::NotJson)
    }

    /// Replaces each string of a JSON text that is a JWE sealed to this key by what it holds; how many were. Every other byte
    /// stays, and a line stays a line. What is sealed to other keys stays too.
    ///
    /// Each answer has to stand where its label says: at that path, in the record itself or in one that `sealflow read` or the
    /// reading service wrapped. Those of `labels` may stand anywhere: labels that are no paths, or those of columns that were renamed.
    ///
    /// # Errors
    /// [`DocumentError`]
    pub fn document(&self, json: &[u8], labels: &[String]) -> Result<(SecretBytes, usize), DocumentError> {
        check_json(json).map_err(|_| DocumentError::NotJson)?;
        let mut out = Zeroizing::new(Vec::with_capacity(json.len()));
        let (mut copied, mut opened) = (0, 0);
        for text in texts(json, |text| text.starts_with(BEGINNING)) {
            let inner = json.get(text.range.start + 1..text.range.end - 1).unwrap_or_default();
            let Ok(jwe) = std::str::from_utf8(inner) else { continue };
            let belongs = |label: &str| text.place.is_of(label) || labels.iter().any(|one| one == label);
            let plain = match self.text_if(jwe, belongs) {
                Ok(plain) => plain,
                Err(OpenError::OtherPlace) => {
                    let at = text.place.to_string();
                    return Err(DocumentError::OtherPlace { at });
                }
                Err(OpenError::DoesNotOpen | OpenError::NotJson) => continue,
            };
            out.extend_from_slice(&json[copied..text.range.start]);
            // Between the tokens of a JSON text a line break is white space, and within them there is none.
            let bytes = plain.expose().iter();
            out.extend(bytes.map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
            (copied, opened) = (text.range.end, opened + 1);
        }
        out.extend_from_slice(&json[copied..]);
        Ok((SecretBytes::new(std::mem::take(&mut *out)), opened))
    }

    /// The JSON text in an answer whose label passes.
    fn text_if(&self, jwe: &str, belongs: impl Fn(&str) -> bool) -> Result<SecretBytes, OpenError> {
        let plain: SecretBytes = self.key.open(jwe)?;
        // What it says of itself is under the tag that has been checked.
        let header = Jwe::parse(jwe).and_then(|jwe| jwe.header());
        let header = header.map_err(|_| OpenError::DoesNotOpen)?;
        let is_ours = header.dataset.as_deref() == Some(&*self.dataset) && header.label.as_deref().is_some_and(belongs);
        if !is_ours {
            return Err(OpenError::OtherPlace);
        }
        check_json(plain.expose())?;
        Ok(plain)
    }
}

fn check_json(text: &[u8]) -> Result<(), OpenError> {
    // What is ignored is not checked for UTF-8 otherwise.
    let text = std::str::from_utf8(text).map_err(|_| OpenError::NotJson)?;
    let value = serde_json::from_str::<serde::de::IgnoredAny>(text);
    value.map(drop).map_err(|_| OpenError::NotJson)
}

impl fmt::Debug for Answers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers")
            .field("dataset", &self.dataset)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use sealflow::jose::jwe::{ContentKey, JweHeader};

    use super::*;
    use crate::RsaBits;

    fn seal(to: &PrivateKey, (dataset, label): (Option<&str>, Option<&str>), text: &str) -> String {
        let (public, content) = (to.public().unwrap(), [9; 32]);
        let wrapped = public.wrap(&content).unwrap();
        let mut header = JweHeader::wrapped(&public.thumbprint());
        (header.dataset, header.label) = (dataset.map(str::to_owned), label.map(str::to_owned));
        ContentKey::new(&content)
            .seal(&header.to_part(), &wrapped, text.as_bytes())
            .unwrap()
    }

    fn of(label: &str) -> (Option<&str>, Option<&str>) {
        (Some("payments"), Some(label))
    }

    #[test]
    fn answers_in_a_document_are_opened_as_they_were_spelled_and_every_other_byte_stays() {
        let (key, other) = (
            PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
            PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
        );
        let answers = Answers::new(&key, "payments");
        let number = seal(&key, of("a"), "12345678901234567890123.10");
        let list = seal(&key, of("b[*]"), "[1,\r\n\"\\n\"]");
        let (foreign, no_json) = (seal(&other, of("c"), "1"), seal(&key, of("d"), "4111-1111"));
        // A name stays, whatever it looks like.
        let named = format!(r#"{{"{number}" :1,"a":"{number}"}}"#);
        let (opened, count) = answers.document(named.as_bytes(), &[]).unwrap();
        let expected = format!(r#"{{"{number}" :1,"a":12345678901234567890123.10}}"#);
        assert_eq!((opened.expose(), count), (expected.as_bytes(), 1));
        let quoted =
            format!(r#" {{"a" : "{number}","b":[1.50,"{list}","\\","\"eyJ",true], "c":"{foreign}","d":"{no_json}"}} "#);
        let (opened, count) = answers.document(quoted.as_bytes(), &[]).unwrap();
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
            answers
                .document(alone.as_bytes(), &["a".to_owned()])
                .unwrap()
                .0
                .expose(),
            b"12345678901234567890123.10"
        );
        assert_eq!(answers.document(b"\"\xff\"", &[]).err(), Some(DocumentError::NotJson));
        for bad in ["", "eyJ", &number, "{\"a\":}", "\"eyJ", "\"eyJ\\"] {
            assert_eq!(
                answers.document(bad.as_bytes(), &[]).err(),
                Some(DocumentError::NotJson),
                "{bad}"
            );
        }
        assert_eq!(answers.text(&no_json, "d").err(), Some(OpenError::NotJson));
        assert_eq!(answers.text(&foreign, "c").err(), Some(OpenError::DoesNotOpen));
        assert_eq!(answers.value(&list, "b[*]").unwrap(), serde_json::json!([1, "\n"]));
    }

    #[test]
    fn an_answer_opens_as_a_value_of_its_own_dataset_and_label_alone() {
        let key = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
        let answers = Answers::new(&key, "payments");
        let good = seal(&key, of("card"), "1");
        assert_eq!(answers.text(&good, "card").unwrap().expose(), b"1");
        for (place, asked) in [
            (of("card"), "amount"),
            ((Some("refunds"), Some("card")), "card"),
            ((None, Some("card")), "card"),
            ((Some("payments"), None), "card"),
            ((None, None), ""),
        ] {
            let sealed = seal(&key, place, "1");
            assert_eq!(
                answers.text(&sealed, asked).err(),
                Some(OpenError::OtherPlace),
                "{place:?}"
            );
            assert_eq!(
                answers.value(&sealed, asked).err(),
                Some(OpenError::OtherPlace),
                "{place:?}"
            );
        }
        let document = format!(r#"{{"x":1,"amount":"{good}"}}"#);
        let other_place = DocumentError::OtherPlace {
            at: "amount".to_owned(),
        };
        assert_eq!(
            answers.document(document.as_bytes(), &[]).err(),
            Some(other_place.clone())
        );
        let (opened, _) = answers.document(document.as_bytes(), &["card".to_owned()]).unwrap();
        assert_eq!(opened.expose(), br#"{"x":1,"amount":1}"#);
        let elsewhere = Answers::new(&key, "refunds").document(document.as_bytes(), &["card".to_owned()]);
        assert_eq!(elsewhere.err(), Some(other_place));
    }
}
