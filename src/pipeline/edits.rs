//! A record in the making: what stands at its places replaced, every other byte kept.

use std::ops::Range;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::opener::cannot_open;
use super::plan::{Place, Rejection};
use super::record::Record;
use crate::acl::Refused;
use crate::columns::{json, member_range, splice};
use crate::flow::hybrid::AnswerKey;
use crate::seal::Plaintext;

/// The replacements of one record after another. Opened texts are wiped once, when the batch is done.
#[derive(Default)]
pub(super) struct Edits {
    /// Plaintext encoding of one value.
    encoding: Zeroizing<Vec<u8>>,
    /// JSON texts of one record.
    texts: Zeroizing<Vec<u8>>,
    /// Ranges of the record's value, with those of the texts that go there.
    spliced: Vec<(Range<usize>, Range<usize>)>,
    outer: Vec<(Place, Option<Bytes>)>,
}

impl Edits {
    /// Forgets those of the last record.
    pub(super) fn start(&mut self) {
        self.texts.clear();
        self.spliced.clear();
        self.outer.clear();
    }

    /// An empty buffer for the plaintext encoding of a value, with room for `len` bytes.
    pub(super) fn encoding(&mut self, len: usize) -> &mut Vec<u8> {
        self.encoding.clear();
        reserve(&mut self.encoding, len);
        &mut self.encoding
    }

    /// Puts the value that was opened into [`Edits::encoding`] at its place.
    pub(super) fn put_opened(&mut self, place: Place) -> Result<(), Rejection> {
        let encoding = std::mem::take(&mut self.encoding);
        let put = self.put(place, &encoding);
        self.encoding = encoding;
        put
    }

    /// Puts the value of that plaintext encoding at its place.
    pub(super) fn put(&mut self, place: Place, encoding: &[u8]) -> Result<(), Rejection> {
        match place {
            Place::Value { start, end } => {
                // No JSON text is longer than six bytes for each of its encoding's, and a number's 64.
                reserve(&mut self.texts, encoding.len() * 6 + 64);
                let at = self.texts.len();
                if json::decode_json(encoding, &mut self.texts).is_err() {
                    self.texts.truncate(at);
                    return Err(cannot_open());
                }
                self.spliced.push((start..end, at..self.texts.len()));
            }
            outer => self.outer.push((outer, Some(outer_bytes(encoding)?))),
        }
        Ok(())
    }

    /// Puts the value that was opened into [`Edits::encoding`] at its place, sealed to who asked.
    pub(super) fn put_sealed(&mut self, place: Place, label: &str, to: &AnswerKey) -> Result<(), Rejection> {
        match place {
            Place::Value { start, end } => {
                let mut text = Zeroizing::new(Vec::with_capacity(self.encoding.len() * 6 + 64));
                json::decode_json(&self.encoding, &mut text).map_err(|_| cannot_open())?;
                let jwe = to.seal(label, &text).map_err(|_| cannot_open())?;
                reserve(&mut self.texts, jwe.len() + 2);
                let at = self.texts.len();
                self.texts.push(b'"');
                self.texts.extend_from_slice(jwe.as_bytes());
                self.texts.push(b'"');
                self.spliced.push((start..end, at..self.texts.len()));
            }
            outer => {
                let jwe = to
                    .seal(label, &outer_bytes(&self.encoding)?)
                    .map_err(|_| cannot_open())?;
                self.outer.push((outer, Some(jwe.into())));
            }
        }
        Ok(())
    }

    /// Puts what a refused reader sees at a place.
    pub(super) fn put_masked(&mut self, place: Place, refused: Refused) {
        match place {
            Place::Value { start, end } => {
                let json = refused.json().as_bytes();
                reserve(&mut self.texts, json.len());
                let at = self.texts.len();
                self.texts.extend_from_slice(json);
                self.spliced.push((start..end, at..self.texts.len()));
            }
            outer => {
                let text = refused.text().map(|text| Bytes::from_static(text.as_bytes()));
                self.outer.push((outer, text));
            }
        }
    }

    /// Cuts the member whose value is at a place of the record's value.
    pub(super) fn put_removed(&mut self, record: &Record, place: Place) -> Result<(), Rejection> {
        let (Place::Value { start, end }, Some(value)) = (place, &record.value) else {
            return Err(cannot_open());
        };
        let cut = self.spliced.last().map_or(0, |(range, _)| range.end);
        let range = member_range(value, start..end, cut).ok_or_else(cannot_open)?;
        let nothing = self.texts.len()..self.texts.len();
        self.spliced.push((range, nothing));
        Ok(())
    }

    /// The record with everything at its place. Places of the value were put in order.
    pub(super) fn apply(&mut self, record: &Record) -> Record {
        let mut edited = record.without_value(0);
        for (place, bytes) in self.outer.drain(..) {
            match place {
                Place::Key => edited.key = bytes,
                Place::Header(n) => edited.headers[n].value = bytes,
                Place::Value { .. } => {}
            }
        }
        edited.value.clone_from(&record.value);
        if let Some(original) = &record.value
            && !self.spliced.is_empty()
        {
            let replaced: usize = self.spliced.iter().map(|(range, _)| range.len()).sum();
            // Exactly: a larger one would be moved once more.
            let mut out = Vec::with_capacity(original.len() - replaced + self.texts.len());
            let texts = &self.texts;
            let spliced = self.spliced.drain(..);
            splice(original, spliced.map(|(range, text)| (range, &texts[text])), &mut out);
            edited.value = Some(out.into());
        }
        edited
    }
}

/// Room for `more` bytes. What is too small is wiped, as growing a `Vec` would leave a copy behind.
fn reserve(buffer: &mut Zeroizing<Vec<u8>>, more: usize) {
    let wanted = buffer.len() + more;
    if wanted > buffer.capacity() {
        let mut larger = Vec::with_capacity(wanted.next_power_of_two());
        larger.extend_from_slice(buffer);
        *buffer = Zeroizing::new(larger);
    }
}

/// A key or header: bytes as they were.
fn outer_bytes(encoding: &[u8]) -> Result<Bytes, Rejection> {
    match Plaintext::decode(encoding).map_err(|_| cannot_open())? {
        Plaintext::Bytes(bytes) => Ok(Bytes::copy_from_slice(bytes)),
        Plaintext::Utf8(text) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        _ => {
            let mut text = Vec::new();
            json::decode_json(encoding, &mut text).map_err(|_| cannot_open())?;
            Ok(text.into())
        }
    }
}
