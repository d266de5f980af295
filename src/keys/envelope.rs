//! Key envelopes: a wrapped data key with what is needed to unwrap it (`docs/format.md`, "Key envelopes").
//!
//! **Nothing in an envelope is trusted.** It is found by its key id, checked against the newest signed
//! policy, and believed only once the unwrapped key recomputes that id.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use minicbor::{Decode, Decoder, Encode};

use crate::clock::UnixMillis;
use crate::seal::KeyId;

/// Version byte of this format.
pub const ENVELOPE_VERSION: u8 = 1;
/// The largest envelope, in bytes.
pub const MAX_ENVELOPE_BYTES: usize = 4096;
/// The most envelopes in one `sealflow-keys` header.
pub const MAX_ENVELOPES: usize = 64;
/// How the text form (one line of a `.sfkeys` file) starts.
pub const TEXT_PREFIX: &str = "sfk1.";
/// The Kafka header that carries envelopes.
pub const KEYS_HEADER: &str = "sealflow-keys";

/// One wrapped data key. CBOR map with integer keys (RFC 8949), at most [`MAX_ENVELOPE_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Envelope {
    /// Format version, [`ENVELOPE_VERSION`].
    #[n(0)]
    pub version: u8,
    /// Id of the data key.
    #[cbor(n(1), with = "minicbor::bytes")]
    key_id: [u8; 16],
    /// Kind of key service: `aws-kms`.
    #[n(2)]
    pub provider: String,
    /// Full ARN of the wrapping key.
    #[n(3)]
    pub arn: String,
    /// The data key as the KMS wrapped it.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub wrapped: Vec<u8>,
    /// Dataset.
    #[n(5)]
    pub dataset: String,
    /// Policy key name, a template already filled in.
    #[n(6)]
    pub key_name: String,
    /// ACL name.
    #[n(7)]
    pub acl: String,
    /// Id of the policy that it was made under.
    #[n(8)]
    pub policy_id: String,
    /// Version of that policy.
    #[n(9)]
    pub policy_version: u64,
    /// SHA-256 of that policy's YAML.
    #[cbor(n(10), with = "minicbor::bytes")]
    pub policy_sha256: [u8; 32],
    /// Labels; a sealed value's `column` is an index into them.
    #[n(11)]
    pub labels: Vec<LabelEntry>,
    /// When the key was made, milliseconds since the epoch.
    #[n(12)]
    created: u64,
    /// When it stops sealing, milliseconds since the epoch.
    #[n(13)]
    not_after: u64,
}

/// One label of an envelope.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct LabelEntry {
    /// The label.
    #[n(0)]
    pub label: String,
    /// With `bind_row`: canonical path of the row id.
    #[n(1)]
    pub bind_row: Option<String>,
}

/// What an envelope is made of.
#[derive(Clone, Debug)]
pub struct EnvelopeParts {
    /// Id of the data key.
    pub key_id: KeyId,
    /// Full ARN of the wrapping key.
    pub arn: String,
    /// The data key as the KMS wrapped it.
    pub wrapped: Vec<u8>,
    /// Dataset.
    pub dataset: String,
    /// Policy key name, a template already filled in.
    pub key_name: String,
    /// ACL name.
    pub acl: String,
    /// Policy id, version and hash.
    pub policy: (String, u64, [u8; 32]),
    /// Labels in order.
    pub labels: Vec<LabelEntry>,
    /// When the key was made.
    pub created: UnixMillis,
    /// When it stops sealing.
    pub not_after: UnixMillis,
}

/// Bytes that are no envelope, or one that is too large.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Over [`MAX_ENVELOPE_BYTES`] or [`MAX_ENVELOPES`].
    #[error("a key envelope is larger than {MAX_ENVELOPE_BYTES} bytes, or more than {MAX_ENVELOPES} travel together")]
    TooLarge,
    /// Not the CBOR that the format asks for.
    #[error("not a key envelope")]
    Malformed,
    /// Written by a newer Sealflow.
    #[error("a key envelope of a newer version: upgrade to read it")]
    NewerVersion,
}

impl Envelope {
    /// An envelope of this version.
    #[must_use]
    pub fn new(parts: EnvelopeParts) -> Self {
        let (policy_id, policy_version, policy_sha256) = parts.policy;
        Self {
            version: ENVELOPE_VERSION,
            key_id: *parts.key_id.as_bytes(),
            provider: "aws-kms".to_owned(),
            arn: parts.arn,
            wrapped: parts.wrapped,
            dataset: parts.dataset,
            key_name: parts.key_name,
            acl: parts.acl,
            policy_id,
            policy_version,
            policy_sha256,
            labels: parts.labels,
            created: parts.created.0,
            not_after: parts.not_after.0,
        }
    }

    /// Id of the data key, as claimed.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        KeyId::from_bytes(self.key_id)
    }

    /// When the key was made.
    #[must_use]
    pub fn created(&self) -> UnixMillis {
        UnixMillis(self.created)
    }

    /// When it stops sealing.
    #[must_use]
    pub fn not_after(&self) -> UnixMillis {
        UnixMillis(self.not_after)
    }

    /// The CBOR bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EnvelopeError> {
        let bytes = minicbor::to_vec(self).map_err(|_| EnvelopeError::Malformed)?;
        if bytes.len() > MAX_ENVELOPE_BYTES {
            Err(EnvelopeError::TooLarge)
        } else {
            Ok(bytes)
        }
    }

    /// Reads the CBOR bytes of exactly one envelope.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLarge);
        }
        let mut decoder = Decoder::new(bytes);
        let envelope: Self = decoder.decode().map_err(|_| EnvelopeError::Malformed)?;
        if decoder.position() != bytes.len() {
            return Err(EnvelopeError::Malformed);
        }
        if envelope.version != ENVELOPE_VERSION {
            return Err(EnvelopeError::NewerVersion);
        }
        Ok(envelope)
    }

    /// The text form, one line of a `.sfkeys` file: `sfk1.` + base64url without padding.
    pub fn to_text(&self) -> Result<String, EnvelopeError> {
        Ok(text_of(&self.to_bytes()?))
    }

    /// Reads the text form.
    pub fn from_text(text: &str) -> Result<Self, EnvelopeError> {
        let encoded = text.strip_prefix(TEXT_PREFIX).ok_or(EnvelopeError::Malformed)?;
        if encoded.len() > MAX_ENVELOPE_BYTES * 2 {
            return Err(EnvelopeError::TooLarge);
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| EnvelopeError::Malformed)?;
        Self::from_bytes(&bytes)
    }
}

/// The text form of an envelope's bytes.
#[must_use]
pub fn text_of(bytes: &[u8]) -> String {
    format!("{TEXT_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// The value of a `sealflow-keys` header: a CBOR array of byte strings, one envelope each.
pub fn write_header<'a>(envelopes: impl ExactSizeIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut encoder = minicbor::Encoder::new(Vec::with_capacity(envelopes.len() * 512));
    // Writing to a `Vec` cannot fail.
    let _ = encoder.array(envelopes.len() as u64);
    for envelope in envelopes {
        let _ = encoder.bytes(envelope);
    }
    encoder.into_writer()
}

/// The envelopes of a `sealflow-keys` header as bytes, each still to be read by [`Envelope::from_bytes`].
pub fn read_header(bytes: &[u8]) -> Result<Vec<&[u8]>, EnvelopeError> {
    let mut decoder = Decoder::new(bytes);
    let count = decoder.array().ok().flatten().ok_or(EnvelopeError::Malformed)?;
    if count > MAX_ENVELOPES as u64 {
        return Err(EnvelopeError::TooLarge);
    }
    let mut envelopes = Vec::new();
    for _ in 0..count {
        let envelope = decoder.bytes().map_err(|_| EnvelopeError::Malformed)?;
        if envelope.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLarge);
        }
        envelopes.push(envelope);
    }
    if decoder.position() == bytes.len() {
        Ok(envelopes)
    } else {
        Err(EnvelopeError::Malformed)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sample() -> Envelope {
        Envelope::new(EnvelopeParts {
            key_id: KeyId::from_bytes([9; 16]),
            arn: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab".to_owned(),
            wrapped: vec![5; 184],
            dataset: "payments".to_owned(),
            key_name: "default".to_owned(),
            acl: "pii".to_owned(),
            policy: ("payments".to_owned(), 3, [7; 32]),
            labels: vec![
                LabelEntry {
                    label: "user.email".to_owned(),
                    bind_row: None,
                },
                LabelEntry {
                    label: "cards[*].number".to_owned(),
                    bind_row: Some("order_id".to_owned()),
                },
            ],
            created: UnixMillis(1_700_000_000_000),
            not_after: UnixMillis(1_700_003_600_000),
        })
    }

    #[test]
    fn an_envelope_comes_back_as_it_was_and_stays_small() {
        let envelope = sample();
        let bytes = envelope.to_bytes().unwrap();
        assert!(bytes.len() < 450, "{} bytes", bytes.len());
        assert_eq!(Envelope::from_bytes(&bytes), Ok(envelope.clone()));
        assert_eq!(Envelope::from_text(&envelope.to_text().unwrap()), Ok(envelope));
    }

    #[test]
    fn trailing_bytes_and_other_versions_are_refused() {
        let mut bytes = sample().to_bytes().unwrap();
        bytes.push(0);
        assert_eq!(Envelope::from_bytes(&bytes), Err(EnvelopeError::Malformed));
        let newer = Envelope { version: 2, ..sample() };
        assert_eq!(
            Envelope::from_bytes(&newer.to_bytes().unwrap()),
            Err(EnvelopeError::NewerVersion)
        );
        let large = Envelope {
            wrapped: vec![0; MAX_ENVELOPE_BYTES],
            ..sample()
        };
        assert_eq!(large.to_bytes(), Err(EnvelopeError::TooLarge));
    }

    #[test]
    fn headers_come_back_as_they_were_and_are_capped() {
        let bytes = sample().to_bytes().unwrap();
        let header = write_header([&bytes[..], &bytes[..]].into_iter());
        assert_eq!(read_header(&header), Ok(vec![&bytes[..], &bytes[..]]));
        let many = write_header(vec![&b"x"[..]; MAX_ENVELOPES + 1].into_iter());
        assert_eq!(read_header(&many), Err(EnvelopeError::TooLarge));
        assert_eq!(
            read_header(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Err(EnvelopeError::TooLarge)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read_without_panic(bytes: Vec<u8>, text: String) {
            let _ = Envelope::from_bytes(&bytes);
            let _ = Envelope::from_text(&text);
            let _ = read_header(&bytes);
        }
    }
}
