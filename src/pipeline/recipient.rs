//! Dead letters that no service opens: each a JWE to the RSA key that the policy names, bound to what the letter says in clear
//! (`docs/format.md`, "Dead letters"). It seals with the public half, and opens for whoever brings the private one.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use super::dead_letter::{DeadLetter, Form, decode_record};
use super::record::{Position, Record};
use super::transform::{StopKind, TransformError};
use crate::flow::hybrid::AnswerKey;
use crate::jose::Thumbprint;
use crate::jose::jwe::{ContentKey, Jwe, JweError, JweHeader, KeyManagement};
use crate::jose::rsa::{RsaKeyError, RsaPublicJwk};
use crate::keys::PrivateHalf;
use crate::policy::{DEAD_LETTER_LABEL, DEAD_LETTERS_SUFFIX, Recipient};

/// What a letter takes beside the text of its record: header, wrapped key of RSA-4096, nonce and tag, as base64url.
pub(super) const OVERHEAD: usize = 2_048;

/// Seals the dead letters of one batch under one content key, which is gone with it: then nobody here can open them.
pub(super) struct LetterSealer(AnswerKey);

impl LetterSealer {
    /// Letters of `dataset` (that of the records) to `recipient`. The RSA operation is done here, once.
    pub(super) fn new(recipient: &Recipient, dataset: &str) -> Result<Self, TransformError> {
        let key = RsaPublicJwk::from_json(recipient.to_json().as_bytes())
            .map_err(|_| TransformError::bug("the policy's recipient is no key to seal to"))?;
        let key = AnswerKey::new(&key, &format!("{dataset}{DEAD_LETTERS_SUFFIX}"));
        key.map(Self).map_err(|_| no_random())
    }

    /// The letter of a record at `position`, whose bytes are `cbor`.
    pub(super) fn seal(
        &self,
        code: &str,
        stage: &str,
        position: &Position,
        cbor: &[u8],
    ) -> Result<DeadLetter, TransformError> {
        let mut letter = DeadLetter::to_recipient(code, stage, position);
        let jwe = self.0.seal_in_row(DEAD_LETTER_LABEL, Some(&row(&letter)), cbor);
        letter.record = jwe.map_err(|_| unsealable(position))?;
        Ok(letter)
    }
}

/// Everything that a letter says in clear beside its form, as a JSON array: `sf_row`.
fn row(letter: &DeadLetter) -> String {
    let said = (
        &letter.code,
        &letter.stage,
        &letter.topic,
        letter.partition,
        letter.offset,
    );
    // Strings and integers always have a JSON text.
    serde_json::to_string(&said).unwrap_or_default()
}

fn no_random() -> TransformError {
    TransformError::Retry {
        reason: "the operating system gives no random numbers".to_owned(),
    }
}

/// Without random numbers, or because the header is longer than anybody reads: that is the name of the record's source.
fn unsealable(position: &Position) -> TransformError {
    TransformError::Stop {
        kind: StopKind::Data,
        reason: format!("record {position} cannot be sealed to the recipient of dead letters"),
        help: "give the source a shorter name: at most some 700 bytes of it fit into a letter's header".to_owned(),
    }
}

/// A wrapped content key, and what it is.
type Unwrapped = (Vec<u8>, Arc<ContentKey>);

/// A private key that letters were sealed to, and the last content key that it unwrapped: letters of one batch share theirs.
#[derive(Clone)]
pub(super) struct RecipientKey {
    half: Arc<dyn PrivateHalf>,
    name: Thumbprint,
    last: Arc<Mutex<Option<Unwrapped>>>,
}

impl RecipientKey {
    /// # Errors
    /// [`RsaKeyError`] if it is no key that letters are sealed to.
    pub(super) fn new(half: Arc<dyn PrivateHalf>) -> Result<Self, RsaKeyError> {
        Ok(Self {
            name: RsaPublicJwk::from_spki_der(half.public())?.thumbprint(),
            half,
            last: Arc::default(),
        })
    }

    /// The record in a letter of that dataset of dead letters. `None`: it does not open here, whatever the reason.
    pub(super) async fn open(&self, letter: &DeadLetter, dataset: &str) -> Result<Option<Record>, TransformError> {
        let Some(jwe) = self.parse(letter, dataset) else {
            return Ok(None);
        };
        let Some(key) = self.content_key(&jwe).await? else {
            return Ok(None);
        };
        let mut cbor = Zeroizing::new(Vec::with_capacity(jwe.plaintext_len() + 3));
        if key.open(&jwe, &mut cbor).is_err() {
            return Ok(None);
        }
        let position = Position {
            topic: letter.topic.as_str().into(),
            partition: letter.partition,
            offset: letter.offset,
        };
        Ok(decode_record(&cbor, position).ok())
    }

    /// The JWE, if its header says what the letter says: it is the additional data, so that both are proved together.
    fn parse<'a>(&self, letter: &'a DeadLetter, dataset: &str) -> Option<Jwe<'a>> {
        let (jwe, header) = parse(letter).ok()?;
        let expected = JweHeader {
            dataset: Some(dataset.to_owned()),
            label: Some(DEAD_LETTER_LABEL.to_owned()),
            row: Some(row(letter)),
            ..JweHeader::wrapped(&self.name)
        };
        (header == expected).then_some(jwe)
    }

    async fn content_key(&self, jwe: &Jwe<'_>) -> Result<Option<Arc<ContentKey>>, TransformError> {
        let Ok(wrapped) = jwe.encrypted_key() else {
            return Ok(None);
        };
        {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, key)) = last.as_ref().filter(|(known, _)| *known == wrapped) {
                return Ok(Some(Arc::clone(key)));
            }
        }
        let half = Arc::clone(&self.half);
        // It computes for milliseconds: nobody waits for this thread.
        let unwrapping = tokio::task::spawn_blocking(move || (half.decrypt(&wrapped), wrapped));
        let (secret, wrapped) = unwrapping
            .await
            .map_err(|_| TransformError::bug("a private-key operation panicked"))?;
        let Some(secret) = secret
            .as_ref()
            .and_then(|secret| <&[u8; 32]>::try_from(secret.expose()).ok())
        else {
            return Ok(None);
        };
        let key = Arc::new(ContentKey::new(secret));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((wrapped, Arc::clone(&key)));
        Ok(Some(key))
    }
}

impl fmt::Debug for RecipientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecipientKey({}, [redacted])", self.name)
    }
}

/// The name of the RSA key that a letter says it is sealed to, which proves nothing, and how many bytes are sealed in it.
/// `None` for letters under a policy key, and for what is no letter of this form.
#[must_use]
pub fn sealed_to(letter: &DeadLetter) -> Option<(Thumbprint, usize)> {
    let (jwe, header) = parse(letter).ok()?;
    Some((header.kid.parse().ok()?, jwe.plaintext_len()))
}

fn parse(letter: &DeadLetter) -> Result<(Jwe<'_>, JweHeader), JweError> {
    if letter.form() != Form::Recipient {
        return Err(JweError);
    }
    let jwe = Jwe::parse(&letter.record)?;
    let header = jwe.header()?;
    match header.key_management {
        KeyManagement::RsaOaep256 => Ok((jwe, header)),
        KeyManagement::Direct => Err(JweError),
    }
}
