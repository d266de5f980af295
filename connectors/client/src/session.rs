//! Sealing: a key for a session, and values under it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealflow::jose::jwe::{ContentKey, JweHeader, MAX_HEADER_CHARS, session_id};
use sealflow::jose::rsa::RsaPublicJwk;
use zeroize::Zeroizing;

use crate::enclave::{EnclaveKey, EnclaveLabels};
use crate::mac::ClientMac;

/// Values that a session seals at most: each draws a nonce of 96 random bits, as a batch does under a data key.
const MAX_VALUES: u64 = 1 << 20;
/// Plaintext bytes that a session seals at most.
const MAX_BYTES: u64 = 64 << 30;
/// How long a session seals, at most.
const MAX_AGE: Duration = Duration::from_secs(3_600);

/// Why a value was not sealed. Never holds a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// 2^20 values, 64 GiB or an hour: begin the next session.
    #[error("the session is used up: begin the next one")]
    UsedUp,
    /// What is to be sealed is no JSON value.
    #[error("not one JSON value (RFC 8259) without white space around it")]
    NotJson,
    /// A row id is a string, an integer or a boolean.
    #[error("a row id is a string, an integer or a boolean")]
    NotARowId,
    /// Dataset, label and row id do not fit into a header that anybody reads.
    #[error("dataset, label and row id together are too long")]
    TooLong,
    /// The operating system gave no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandom,
    /// The document that the enclave's key came from says nothing of this label.
    #[error("the label is none that the enclave's key is for")]
    NotOfTheEnclave,
    /// A label whose values go to an enclave, and a key that nobody vouches for.
    #[error("values of this label are sealed to an enclave's verified key, never to a bare one")]
    OfAnEnclave,
    /// The document that the enclave's key came from has ended.
    #[error("the enclave's key has ended: fetch the newest document")]
    KeyEnded,
}

/// The labels of a session.
enum Labels {
    All,
    Except(EnclaveLabels),
    Of(EnclaveKey),
}

impl Labels {
    fn check(&self, label: &str) -> Result<(), SealError> {
        match self {
            Self::All => Ok(()),
            Self::Except(enclave) => enclave.check(label),
            Self::Of(key) => key.check(label),
        }
    }
}

/// The row that a value belongs to: for columns that the policy binds (`bind_row`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowId(pub(crate) String);

impl RowId {
    /// Of the JSON text of the field that names the row, and the value's index in each list that its path goes through (`[*]`),
    /// outermost first.
    ///
    /// # Errors
    /// [`SealError::NotARowId`]
    pub fn new(field: &str, indexes: &[u32]) -> Result<Self, SealError> {
        let id: serde_json::Value = serde_json::from_str(field).map_err(|_| SealError::NotARowId)?;
        let is_scalar = id.is_string() || id.is_boolean() || id.is_i64() || id.is_u64();
        if !is_scalar {
            return Err(SealError::NotARowId);
        }
        let parts: Vec<serde_json::Value> = std::iter::once(id).chain(indexes.iter().map(|n| (*n).into())).collect();
        Ok(Self(serde_json::Value::from(parts).to_string()))
    }
}

/// A session: a key of its own, wrapped once, and what was sealed under it. `Debug` shows no key.
pub struct Session {
    key: ContentKey,
    token: String,
    id: String,
    dataset: String,
    labels: Labels,
    mac: Option<Arc<ClientMac>>,
    began: Instant,
    max_age: Duration,
    values: u64,
    bytes: u64,
}

impl Session {
    /// Begins a session for values of `dataset`, sealed to `to`.
    ///
    /// # Errors
    /// [`SealError::NoRandom`]
    pub fn begin(to: &RsaPublicJwk, dataset: &str) -> Result<Self, SealError> {
        let (key, wrapping) = (random()?, random()?);
        let encrypted_key = to.wrap(&wrapping).map_err(|_| SealError::NoRandom)?;
        let text = Zeroizing::new(sealflow::jose::base64url(&*key));
        let jwk = Zeroizing::new([r#"{"k":""#, &text, r#"","kty":"oct"}"#].concat());
        let header = JweHeader::wrapped(&to.thumbprint());
        let token = ContentKey::new(&wrapping)
            .seal(&header.to_part(), &encrypted_key, jwk.as_bytes())
            .map_err(|_| SealError::NoRandom)?;
        Ok(Self {
            key: ContentKey::new(&key),
            id: session_id(&token),
            token,
            dataset: dataset.to_owned(),
            labels: Labels::All,
            mac: None,
            began: Instant::now(),
            max_age: MAX_AGE,
            values: 0,
            bytes: 0,
        })
    }

    /// Begins a session for values that an enclave opens: of the dataset and the labels of the key's document, and not beyond its end.
    ///
    /// # Errors
    /// [`SealError::KeyEnded`], [`SealError::NoRandom`]
    pub fn begin_for_enclave(to: &EnclaveKey) -> Result<Self, SealError> {
        let remaining = to.remaining()?;
        let session = Self::begin(to.jwk(), to.dataset())?;
        Ok(Self {
            labels: Labels::Of(to.clone()),
            max_age: remaining.min(MAX_AGE),
            ..session
        })
    }

    /// The same session, which refuses these labels: their values go to an enclave, and this key is a bare one. A session that
    /// [is for an enclave](Self::begin_for_enclave) has its own labels, and stays as it is.
    #[must_use]
    pub fn never_for(mut self, enclave: EnclaveLabels) -> Self {
        if !matches!(self.labels, Labels::Of(_)) {
            self.labels = Labels::Except(enclave);
        }
        self
    }

    /// The same session, whose values say who sealed them: for columns with `client_sealed: authenticated` or `once`. Each becomes a
    /// compact JWS around its JWE.
    #[must_use]
    pub fn with_mac(mut self, mac: Arc<ClientMac>) -> Self {
        self.mac = Some(mac);
        self
    }

    /// What the backend needs to open the values: goes with each record, in the header `sealflow-session` or a field.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Seals a JSON value as one of the column `label`: a compact JWE, which goes in its place as a string.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn seal(&mut self, label: &str, json: &[u8]) -> Result<String, SealError> {
        self.seal_with(label, json, None)
    }

    /// As [`Session::seal`], of a column that the policy binds to rows.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn seal_in_row(&mut self, label: &str, json: &[u8], row: &RowId) -> Result<String, SealError> {
        self.seal_with(label, json, Some(row))
    }

    /// Whether it can seal that many values more.
    #[must_use]
    pub fn has_room(&self, values: u64) -> bool {
        self.values.saturating_add(values) <= MAX_VALUES
            && self.bytes < MAX_BYTES
            && self.began.elapsed() < self.max_age
    }

    fn seal_with(&mut self, label: &str, json: &[u8], row: Option<&RowId>) -> Result<String, SealError> {
        self.labels.check(label)?;
        check_json(json)?;
        let bytes = self.bytes.saturating_add(json.len() as u64);
        if self.values >= MAX_VALUES || bytes > MAX_BYTES || self.began.elapsed() >= self.max_age {
            return Err(SealError::UsedUp);
        }
        (self.values, self.bytes) = (self.values + 1, bytes);
        let mut header = JweHeader::direct(&self.id, &self.dataset, label, row.map(|row| row.0.as_str()));
        header.client = self.mac.as_ref().map(|mac| mac.client().to_owned());
        let part = header.to_part();
        if part.len() > MAX_HEADER_CHARS {
            return Err(SealError::TooLong);
        }
        let jwe = self.key.seal(&part, &[], json).map_err(|_| SealError::NoRandom)?;
        proved(jwe, self.mac.as_deref())
    }
}

/// A value with the proof of who sealed it, if there is to be one.
pub(crate) fn proved(jwe: String, mac: Option<&ClientMac>) -> Result<String, SealError> {
    match mac {
        Some(mac) => mac.sign(&jwe),
        None => Ok(jwe),
    }
}

/// One value, and nothing around it: what the backend takes.
pub(crate) fn check_json(json: &[u8]) -> Result<(), SealError> {
    let is_space = |byte: Option<&u8>| byte.is_none_or(|byte| b" \t\r\n".contains(byte));
    if is_space(json.first()) || is_space(json.last()) {
        return Err(SealError::NotJson);
    }
    let value = serde_json::from_slice::<serde::de::IgnoredAny>(json);
    value.map(drop).map_err(|_| SealError::NotJson)
}

pub(crate) fn random() -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|_| SealError::NoRandom)?;
    Ok(bytes)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("dataset", &self.dataset)
            .field("values", &self.values)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use sealflow::jose::jwe::{Jwe, KeyManagement};

    use super::*;
    use crate::{PrivateKey, RsaBits};

    #[test]
    fn a_session_holds_the_key_of_its_values_and_they_say_where_they_belong() {
        let key = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
        let mut session = Session::begin(&key.public().unwrap(), "payments").unwrap();
        let jwk: serde_json::Value = serde_json::from_slice(key.open(session.token()).unwrap().expose()).unwrap();
        assert_eq!(jwk["kty"], "oct");
        let row = RowId::new("\"o-7\"", &[2]).unwrap();
        let text = session.seal_in_row("cards[*].number", b"\"4111\"", &row).unwrap();
        let jwe = Jwe::parse(&text).unwrap();
        let header = jwe.header().unwrap();
        assert_eq!(header.key_management, KeyManagement::Direct);
        assert_eq!(header.kid, session_id(session.token()));
        assert_eq!(header.dataset.as_deref(), Some("payments"));
        assert_eq!(header.label.as_deref(), Some("cards[*].number"));
        assert_eq!(header.row.as_deref(), Some("[\"o-7\",2]"));
        let mut plain = Vec::new();
        session.key.open(&jwe, &mut plain).unwrap();
        assert_eq!(plain, b"\"4111\"");
        let other = Session::begin(&key.public().unwrap(), "payments").unwrap();
        assert!(other.key.open(&jwe, &mut plain).is_err());
        assert!(!format!("{session:?}").contains(jwk["k"].as_str().unwrap()));
    }

    #[test]
    fn a_session_ends_at_its_limits() {
        let key = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
        let mut session = Session::begin(&key.public().unwrap(), "payments").unwrap();
        session.values = MAX_VALUES - 1;
        assert!(session.seal("a", b"1").is_ok());
        assert_eq!(session.seal("a", b"1"), Err(SealError::UsedUp));
        (session.values, session.bytes) = (0, MAX_BYTES - 1);
        assert_eq!(session.seal("a", b"22"), Err(SealError::UsedUp));
        assert!(session.seal("a", b"1").is_ok());
    }

    #[test]
    fn only_json_is_sealed_and_only_scalars_name_rows() {
        let key = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
        let mut session = Session::begin(&key.public().unwrap(), "payments").unwrap();
        for good in ["null", "1.50", "\"\"", "{\"a\":[1]}"] {
            assert!(session.seal("a", good.as_bytes()).is_ok(), "{good}");
        }
        for bad in ["", " 1", "1 ", "4111-1111", "'x'", "1 2", "\u{feff}1"] {
            assert_eq!(session.seal("a", bad.as_bytes()), Err(SealError::NotJson), "{bad}");
        }
        let row = RowId::new(&format!("\"{}\"", "o".repeat(2_000)), &[]).unwrap();
        assert_eq!(session.seal_in_row("a", b"1", &row), Err(SealError::TooLong));
        for bad in ["null", "1.5", "[1]", "x", ""] {
            assert_eq!(RowId::new(bad, &[]), Err(SealError::NotARowId), "{bad}");
        }
    }
}
