//! Who the worker is, how it is, and with which credentials it asks KMS.

use std::fmt;

use zeroize::Zeroizing;

use crate::wire::{Malformed, Reader, Writer};

/// Length of the nonce of a [`Hello`], in bytes.
pub const NONCE: usize = 32;
const MAX_EVIDENCE: usize = 16 << 10;
const MAX_TEXT: usize = 4_096;

/// The body of [`Kind::Hello`](crate::frame::Kind::Hello).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the evidence must repeat.
    pub nonce: [u8; NONCE],
}

impl Hello {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        self.nonce.to_vec()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let nonce = body.try_into().map_err(|_| Malformed)?;
        Ok(Self { nonce })
    }
}

/// The worker's answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloAnswer {
    /// An attestation document with the nonce. Its `user_data` names `signer`: [`signer_user_data`].
    pub evidence: Vec<u8>,
    /// The Ed25519 key by which the worker signs answers and audit lines, as JWK thumbprint (RFC 7638) in base64url.
    pub signer: String,
    /// Version of the worker.
    pub version: String,
}

impl HelloAnswer {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::with_room(self.evidence.len() + 128);
        body.bytes(&self.evidence);
        body.text(&self.signer);
        body.text(&self.version);
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let answer = Self {
            evidence: from.bytes(MAX_EVIDENCE)?.to_vec(),
            signer: from.text(128)?.to_owned(),
            version: from.text(128)?.to_owned(),
        };
        from.end()?;
        Ok(answer)
    }
}

/// The `user_data` of evidence that binds the key by which a worker signs.
#[must_use]
pub fn signer_user_data(signer: &str) -> Vec<u8> {
    [b"sealflow-enclave-signer/1 ", signer.as_bytes()].concat()
}

/// The body of [`Kind::Credentials`](crate::frame::Kind::Credentials): those of the parent instance. They let nobody open anything:
/// key policies want the measurement too.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The access key's id.
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: Zeroizing<String>,
    /// The session's token.
    pub session_token: Option<Zeroizing<String>>,
    /// When they end, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

impl Credentials {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let token = self.session_token.as_ref().map_or(0, |token| token.len());
        let mut body = Writer::with_room(token + self.access_key_id.len() + self.secret_access_key.len() + 64);
        body.text(&self.access_key_id);
        body.text(&self.secret_access_key);
        body.option(self.session_token.as_ref(), |body, token| body.text(token));
        body.option(self.expires_ms, Writer::u64);
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let credentials = Self {
            access_key_id: from.text(256)?.to_owned(),
            secret_access_key: Zeroizing::new(from.text(256)?.to_owned()),
            session_token: from.option(|from| Ok(Zeroizing::new(from.text(MAX_TEXT)?.to_owned())))?,
            expires_ms: from.option(Reader::u64)?,
        };
        from.end()?;
        Ok(credentials)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// The worker's answer to [`Kind::Status`](crate::frame::Kind::Status).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its time, in milliseconds since 1970: that of the attested source.
    pub now_ms: u64,
    /// Requests to KMS so far.
    pub kms_requests: u64,
    /// Values sealed again so far.
    pub values: u64,
    /// Values refused so far.
    pub refused: u64,
    /// The most bytes of memory that it has held (resident); 0 where its system does not say.
    pub memory: u64,
}

impl Status {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::default();
        for number in [self.now_ms, self.kms_requests, self.values, self.refused, self.memory] {
            body.u64(number);
        }
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let status = Self {
            now_ms: from.u64()?,
            kms_requests: from.u64()?,
            values: from.u64()?,
            refused: from.u64()?,
            memory: from.u64()?,
        };
        from.end()?;
        Ok(status)
    }
}
