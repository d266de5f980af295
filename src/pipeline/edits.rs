//! Records in the making: what stands at their places replaced, every other byte kept. The values of a batch are written
//! into one buffer.

use std::ops::Range;

use bytes::Bytes;
use zeroize::{Zeroize as _, Zeroizing};

use super::opener::cannot_open;
use super::plan::{Place, Rejection};
use super::pool::Pool;
use super::record::Record;
use crate::acl::Refused;
use crate::columns::{json, member_range};
use crate::flow::hybrid::AnswerKey;
use crate::seal::Plaintext;

/// The replacements of one record after another.
pub(super) struct Edits<'r> {
    /// Plaintext encoding of one value.
    encoding: Zeroizing<Vec<u8>>,
    /// Values of records, one behind the other.
    out: Vec<u8>,
    /// Which record's value is where in them.
    values: Vec<(usize, Range<usize>)>,
    /// The value of the record at hand.
    original: &'r [u8],
    /// Where it begins in `out`.
    from: usize,
    /// How much of the original is written or replaced; `None`: nothing was.
    done: Option<usize>,
    outer: Vec<(Place, Option<Bytes>)>,
    pool: Pool,
}

impl<'r> Edits<'r> {
    /// With room for the values of `records`, which opening makes smaller.
    pub(super) fn for_records(records: &[Record]) -> Self {
        let values = records.iter().filter_map(|record| record.value.as_ref());
        Self {
            encoding: Zeroizing::default(),
            out: Vec::with_capacity(values.map(Bytes::len).sum()),
            values: Vec::with_capacity(records.len()),
            original: &[],
            from: 0,
            done: None,
            outer: Vec::new(),
            pool: Pool::default(),
        }
    }

    /// Begins with a record, whose places follow, those of its value in order. What was written of one that was not finished is
    /// wiped.
    pub(super) fn start(&mut self, record: &'r Record) {
        wipe_from(&mut self.out, self.from);
        self.outer.clear();
        self.original = record.value.as_deref().unwrap_or_default();
        self.done = None;
    }

    /// An empty buffer for the plaintext encoding of a value, with room for `len` bytes.
    pub(super) fn encoding(&mut self, len: usize) -> &mut Vec<u8> {
        self.encoding.clear();
        if len > self.encoding.capacity() {
            self.encoding = Zeroizing::new(Vec::with_capacity(len.next_power_of_two()));
        }
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
                let (from, done) = (self.out.len(), self.done);
                self.replace(start..end);
                if json::decode_json(encoding, &mut self.out).is_err() {
                    wipe_from(&mut self.out, from);
                    self.done = done;
                    return Err(cannot_open());
                }
            }
            outer => {
                let bytes = with_outer(encoding, |bytes| self.pool.copy(bytes))?;
                self.outer.push((outer, Some(bytes)));
            }
        }
        Ok(())
    }

    /// Puts the value that was opened into [`Edits::encoding`] at its place, sealed to who asked.
    pub(super) fn put_sealed(&mut self, place: Place, label: &str, to: &AnswerKey) -> Result<(), Rejection> {
        match place {
            Place::Value { start, end } => {
                // No JSON text is longer than six bytes for each of its encoding's, and a number's 64.
                let mut text = Zeroizing::new(Vec::with_capacity(self.encoding.len() * 6 + 64));
                json::decode_json(&self.encoding, &mut text).map_err(|_| cannot_open())?;
                let jwe = to.seal(label, &text).map_err(|_| cannot_open())?;
                self.replace(start..end);
                self.out.push(b'"');
                self.out.extend_from_slice(jwe.as_bytes());
                self.out.push(b'"');
            }
            outer => {
                let jwe = with_outer(&self.encoding, |bytes| to.seal(label, bytes))?;
                self.outer.push((outer, Some(jwe.map_err(|_| cannot_open())?.into())));
            }
        }
        Ok(())
    }

    /// Puts what a refused reader sees at a place.
    pub(super) fn put_masked(&mut self, place: Place, refused: Refused) {
        match place {
            Place::Value { start, end } => {
                self.replace(start..end);
                self.out.extend_from_slice(refused.json().as_bytes());
            }
            outer => {
                let text = refused.text().map(|text| Bytes::from_static(text.as_bytes()));
                self.outer.push((outer, text));
            }
        }
    }

    /// Cuts the member whose value is at a place of the record's value.
    pub(super) fn put_removed(&mut self, place: Place) -> Result<(), Rejection> {
        let Place::Value { start, end } = place else {
            return Err(cannot_open());
        };
        let cut = self.done.unwrap_or(0);
        let range = member_range(self.original, start..end, cut).ok_or_else(cannot_open)?;
        self.replace(range);
        Ok(())
    }

    /// Writes the original up to `range`, in whose place comes what is written next.
    fn replace(&mut self, range: Range<usize>) {
        self.out
            .extend_from_slice(&self.original[self.done.unwrap_or(0)..range.start]);
        self.done = Some(range.end);
    }

    /// The record that was begun with, which is number `n`. Its value comes with [`Edits::finish`], if something of it changed.
    pub(super) fn apply(&mut self, n: usize, record: &Record) -> Record {
        let mut edited = record.without_value(0);
        for (place, bytes) in self.outer.drain(..) {
            match place {
                Place::Key => edited.key = bytes,
                Place::Header(n) => edited.headers[n].value = bytes,
                Place::Value { .. } => {}
            }
        }
        match self.done {
            Some(done) => {
                self.out.extend_from_slice(&self.original[done..]);
                self.values.push((n, self.from..self.out.len()));
                self.from = self.out.len();
            }
            None => edited.value.clone_from(&record.value),
        }
        edited
    }

    /// Gives `put` the values of records, by their number.
    pub(super) fn finish(mut self, mut put: impl FnMut(usize, Bytes)) {
        wipe_from(&mut self.out, self.from);
        let out = Bytes::from(self.out);
        for (n, range) in self.values {
            put(n, out.slice(range));
        }
    }
}

/// Leaves nothing behind of what is given up.
fn wipe_from(out: &mut Vec<u8>, from: usize) {
    out[from..].zeroize();
    out.truncate(from);
}

/// Gives `take` a key or header: bytes as they were.
fn with_outer<T>(encoding: &[u8], take: impl FnOnce(&[u8]) -> T) -> Result<T, Rejection> {
    match Plaintext::decode(encoding).map_err(|_| cannot_open())? {
        Plaintext::Bytes(bytes) => Ok(take(bytes)),
        Plaintext::Utf8(text) => Ok(take(text.as_bytes())),
        _ => {
            let mut text = Zeroizing::new(Vec::with_capacity(encoding.len() * 6 + 64));
            json::decode_json(encoding, &mut text).map_err(|_| cannot_open())?;
            Ok(take(&text))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pipeline::{Header, Position, Timestamp};

    const RECORD: &str = r#"{"a":"sealed","b":"sealed","c":1}"#;

    fn record() -> Record {
        Record {
            position: Position {
                topic: Arc::from("t"),
                partition: 0,
                offset: 0,
            },
            timestamp: Timestamp::None,
            key: Some(Bytes::from_static(b"sealed")),
            value: Some(Bytes::from_static(RECORD.as_bytes())),
            headers: [Header {
                name: "h".into(),
                value: Some(Bytes::from_static(b"sealed")),
            }]
            .into_iter()
            .collect(),
        }
    }

    /// The place of the value of that member.
    fn place(member: &str) -> Place {
        let start = RECORD.find(&format!("\"{member}\":")).unwrap() + 4;
        let end = start + RECORD[start..].find([',', '}']).unwrap();
        Place::Value { start, end }
    }

    fn encoded(plaintext: &Plaintext<'_>) -> Vec<u8> {
        let mut encoding = Vec::new();
        plaintext.encode(None, &mut encoding);
        encoding
    }

    /// What records become, by their number.
    fn finished(edits: Edits<'_>) -> Vec<(usize, String)> {
        let mut values = Vec::new();
        edits.finish(|n, value| values.push((n, String::from_utf8(value.to_vec()).unwrap())));
        values
    }

    #[test]
    fn what_a_record_had_before_one_of_its_values_failed_is_in_no_other() {
        let records = [record(), record(), record(), record()];
        let mut edits = Edits::for_records(&records);
        let good = encoded(&Plaintext::Utf8("good"));
        let secret = encoded(&Plaintext::Utf8("secret"));
        for (n, record) in records.iter().enumerate() {
            edits.start(record);
            if n % 2 == 1 {
                edits.put(place("a"), &secret).unwrap();
                edits.put(Place::Key, &secret).unwrap();
                assert!(edits.put(place("b"), b"\xff no encoding").is_err());
                continue;
            }
            edits.put(place("a"), &good).unwrap();
            let edited = edits.apply(n, record);
            assert_eq!((edited.value, edited.key), (None, record.key.clone()));
        }
        let good = RECORD.replacen("\"sealed\"", "\"good\"", 1);
        assert_eq!(finished(edits), [(0, good.clone()), (2, good)]);
    }

    #[test]
    fn a_place_whose_value_failed_is_masked_between_others() {
        let record = record();
        let mut edits = Edits::for_records(std::slice::from_ref(&record));
        edits.start(&record);
        edits.put(place("a"), &encoded(&Plaintext::Utf8("\u{1}\"é"))).unwrap();
        assert!(edits.put(place("b"), &[]).is_err());
        edits.put_masked(place("b"), Refused::Null);
        edits.put_removed(place("c")).unwrap();
        let header = Place::Header(0);
        edits.put(Place::Key, &encoded(&Plaintext::Bytes(b"\xff\0"))).unwrap();
        edits.put(header, &encoded(&Plaintext::Bool(true))).unwrap();
        let edited = edits.apply(0, &record);
        assert_eq!(edited.key.as_deref(), Some(&b"\xff\0"[..]));
        assert_eq!(edited.headers[0].value.as_deref(), Some(&b"true"[..]));
        let value = r#"{"a":"\u0001\"é","b":null}"#;
        assert_eq!(finished(edits), [(0, value.to_owned())]);
    }

    #[test]
    fn a_record_of_which_nothing_changes_keeps_its_value_itself() {
        let record = record();
        let mut edits = Edits::for_records(&[]);
        edits.start(&record);
        assert_eq!(edits.apply(0, &record), record);
        assert!(finished(edits).is_empty());
    }
}
