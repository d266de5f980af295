//! Answers: what a backend seals to a client's key.

use std::fmt;

use sealflow::secret::SecretBytes;
use serde_json::Value;

use crate::key::PrivateKey;

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

    /// The JSON value in an answer.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn value(&self, jwe: &str) -> Result<Value, OpenError> {
        let plain: SecretBytes = self.0.open(jwe)?;
        serde_json::from_slice(plain.expose()).map_err(|_| OpenError::NotJson)
    }

    /// Replaces each JWE in a document that is sealed to this key by what it holds; how many were.
    pub fn document(&self, document: &mut Value) -> usize {
        match document {
            Value::String(text) => match self.value(text) {
                Ok(value) => {
                    *document = value;
                    1
                }
                Err(_) => 0,
            },
            Value::Array(list) => list.iter_mut().map(|value| self.document(value)).sum(),
            Value::Object(members) => members.values_mut().map(|value| self.document(value)).sum(),
            _ => 0,
        }
    }
}

impl fmt::Debug for Answers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}
