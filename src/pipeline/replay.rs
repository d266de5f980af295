//! The replaying transform: dead letters in, their records out, through the pipeline's own transform or as they
//! were. It reads letters; where they and their records go is the sink's business.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use zeroize::Zeroizing;

use super::dead_letter::{DeadLetter, Form, decode_record};
use super::open::key_failure;
use super::output::OutputLimits;
use super::recipient::RecipientKey;
use super::record::{Position, Record};
use super::transform::{Outcome, Route, Transform, TransformError};
use super::travelling::TravellingReader;
use crate::jose::rsa::RsaKeyError;
use crate::keys::{OpeningKeys, PrivateHalf};
use crate::policy::{DEAD_LETTER_LABEL, DEAD_LETTERS_SUFFIX};
use crate::seal::{Plaintext, SealedValue, value};

/// Which dead letters are meant. What is not said is not asked for.
#[derive(Clone, Debug, Default)]
pub struct LetterFilter {
    /// Any of these codes.
    pub codes: BTreeSet<String>,
    /// Records of this topic.
    pub topic: Option<String>,
    /// Records of this partition.
    pub partition: Option<i32>,
    /// Records of this offset.
    pub offset: Option<i64>,
}

impl LetterFilter {
    /// Whether this letter is meant.
    #[must_use]
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        (self.codes.is_empty() || self.codes.contains(&letter.code))
            && self.topic.as_ref().is_none_or(|topic| *topic == letter.topic)
            && self.partition.is_none_or(|partition| partition == letter.partition)
            && self.offset.is_none_or(|offset| offset == letter.offset)
    }
}

/// Opens dead letters of one dataset, for whoever has rights on their key or the key itself.
#[derive(Clone)]
pub struct LetterOpener {
    dataset: String,
    keys: Option<OpeningKeys>,
    recipient: Option<RecipientKey>,
}

impl LetterOpener {
    /// Opens the dead letters of `dataset` with `keys`; of those that are sealed to a recipient, none.
    #[must_use]
    pub fn new(dataset: &str, keys: OpeningKeys) -> Self {
        Self {
            keys: Some(keys),
            ..Self::without_keys(dataset)
        }
    }

    /// Opens nothing, until it has a [private half](Self::with_private_half).
    #[must_use]
    pub fn without_keys(dataset: &str) -> Self {
        Self {
            dataset: format!("{dataset}{DEAD_LETTERS_SUFFIX}"),
            keys: None,
            recipient: None,
        }
    }

    /// Opens also the letters that are sealed to the public half of this key. No service is asked about them.
    ///
    /// # Errors
    /// [`RsaKeyError`] if it is no key that letters are sealed to.
    pub fn with_private_half(self, half: Arc<dyn PrivateHalf>) -> Result<Self, RsaKeyError> {
        Ok(Self {
            recipient: Some(RecipientKey::new(half)?),
            ..self
        })
    }

    /// The record that `letter` seals; `message` is the record that the letter came in, with its envelopes.
    /// `None`: it does not open here, whatever the reason.
    ///
    /// # Errors
    /// If a service is away, or refuses this identity.
    pub async fn open(&self, letter: &DeadLetter, message: &Record) -> Result<Option<Record>, TransformError> {
        match (letter.form(), &self.keys, &self.recipient) {
            (Form::Key, Some(keys), _) => self.open_with(keys, letter, message).await,
            (Form::Recipient, _, Some(recipient)) => recipient.open(letter, &self.dataset).await,
            _ => Ok(None),
        }
    }

    async fn open_with(
        &self,
        keys: &OpeningKeys,
        letter: &DeadLetter,
        message: &Record,
    ) -> Result<Option<Record>, TransformError> {
        let mut sealed = Vec::new();
        if value::read_text(letter.record.as_bytes(), &mut sealed).is_err() {
            return Ok(None);
        }
        let Ok(SealedValue::Randomised {
            key,
            column,
            nonce,
            ciphertext,
            tag,
        }) = SealedValue::parse(&sealed)
        else {
            return Ok(None);
        };
        let envelopes = TravellingReader::new(&self.dataset).of(message).envelopes();
        let envelopes: Vec<&[u8]> = envelopes.iter().map(Bytes::as_ref).collect();
        let key = match keys.get(key, &envelopes).await {
            Ok(key) => key,
            Err(error) => return key_failure(error).map(|_| None),
        };
        // The dataset and label that count are those that the value proves.
        let label = key.envelope.labels.get(usize::from(column));
        if key.envelope.dataset != self.dataset || label.is_none_or(|label| label.label != DEAD_LETTER_LABEL) {
            return Ok(None);
        }
        let mut plain = Zeroizing::new(Vec::with_capacity(ciphertext.len()));
        let mut opener = key.key.opener(&self.dataset, DEAD_LETTER_LABEL);
        if opener.open(nonce, ciphertext, tag, None, &mut plain).is_err() {
            return Ok(None);
        }
        let Ok(Plaintext::Bytes(cbor)) = Plaintext::decode(&plain) else {
            return Ok(None);
        };
        let position = Position {
            topic: letter.topic.as_str().into(),
            partition: letter.partition,
            offset: letter.offset,
        };
        Ok(decode_record(cbor, position).ok())
    }
}

/// Opens dead letters and hands their records to another transform.
///
/// The outcome of a record has the position that its letter names. What is not meant, is no letter or does not
/// open comes out as the dead letter that it was: none is ever lost by a replay.
pub struct ReplayTransform {
    opener: LetterOpener,
    filter: LetterFilter,
    /// Partitions of the topics that records may go back to.
    known: Vec<(Arc<str>, i32)>,
    then: Option<Arc<dyn Transform>>,
}

impl ReplayTransform {
    /// Replays what `filter` means of the letters of records of the topics `known` (each with its number of
    /// partitions) through `then`; as they were without it.
    #[must_use]
    pub fn new(
        opener: LetterOpener,
        filter: LetterFilter,
        known: Vec<(Arc<str>, i32)>,
        then: Option<Arc<dyn Transform>>,
    ) -> Self {
        Self {
            opener,
            filter,
            known,
            then,
        }
    }

    async fn read(&self, message: &Record) -> Result<Option<Record>, TransformError> {
        let Some(letter) = message
            .value
            .as_deref()
            .and_then(|json| DeadLetter::from_json(json).ok())
        else {
            return Ok(None);
        };
        // The position proves nothing, since anybody could have made the letter: it may lead nowhere but into this
        // pipeline's topics.
        let is_known = |(topic, partitions): &(Arc<str>, i32)| {
            **topic == *letter.topic && (0..*partitions).contains(&letter.partition)
        };
        if !self.filter.matches(&letter) || !self.known.iter().any(is_known) {
            return Ok(None);
        }
        self.opener.open(&letter, message).await
    }
}

#[async_trait]
impl Transform for ReplayTransform {
    async fn apply(&self, records: &[Record]) -> Result<Vec<Outcome>, TransformError> {
        let limit = OutputLimits::default().batch.0;
        let mut bytes = 0;
        let (mut is_opened, mut opened) = (Vec::with_capacity(records.len()), Vec::new());
        for message in records {
            let record = self.read(message).await?;
            bytes += message.payload_bytes() as u64;
            is_opened.push(record.is_some());
            opened.extend(record);
            if bytes >= limit {
                break;
            }
        }
        let replayed = match &self.then {
            _ if opened.is_empty() => Vec::new(),
            Some(then) => then.apply(&opened).await?,
            None => opened
                .into_iter()
                .map(|record| outcome(Route::Target, record))
                .collect(),
        };
        let mut replayed = replayed.into_iter();
        let mut outcomes = Vec::with_capacity(is_opened.len());
        for (message, is_opened) in records.iter().zip(is_opened) {
            if !is_opened {
                outcomes.push(outcome(Route::DeadLetter, message.clone()));
            } else if let Some(outcome) = replayed.next() {
                outcomes.push(outcome);
            } else {
                // The other transform has answered with a prefix, and so does this one.
                break;
            }
        }
        Ok(outcomes)
    }

    /// What the target still does not take stays the dead letter that it was.
    async fn refuse(&self, records: &[Record], _: &'static str) -> Result<Vec<Outcome>, TransformError> {
        Ok(records
            .iter()
            .map(|message| outcome(Route::DeadLetter, message.clone()))
            .collect())
    }
}

fn outcome(route: Route, record: Record) -> Outcome {
    Outcome { route, record }
}
