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
    written: Written<'r>,
}

/// What becomes of the records.
struct Written<'r> {
    /// Values of records, one behind the other.
    out: Zeroizing<Vec<u8>>,
    /// Which record's value is where in them.
    values: Vec<(usize, Range<usize>)>,
    /// The value of the record at hand.
    original: &'r [u8],
    /// Where it begins in `out`.
    from: usize,
    /// How much of the original is written or replaced; `None`: nothing was.
    done: Option<usize>,
    /// What its key and headers become: ranges of `outer_texts`, or a null.
    outer: Vec<(Place, Option<Range<usize>>)>,
    outer_texts: Zeroizing<Vec<u8>>,
    /// Keys and headers of finished records.
    pool: Pool,
}

impl<'r> Edits<'r> {
    /// With room for the values of `records`, which opening mostly makes smaller.
    pub(super) fn for_records(records: &[Record]) -> Self {
        let values = records.iter().filter_map(|record| record.value.as_ref());
        let written = Written {
            out: Zeroizing::new(Vec::with_capacity(values.map(Bytes::len).sum())),
            values: Vec::with_capacity(records.len()),
            original: &[],
            from: 0,
            done: None,
            outer: Vec::new(),
            outer_texts: Zeroizing::default(),
            pool: Pool::default(),
        };
        Self {
            encoding: Zeroizing::default(),
            written,
        }
    }

    /// Begins with a record, whose places follow, those of its value in order. What was written of one that was not finished is
    /// wiped.
    pub(super) fn start(&mut self, record: &'r Record) {
        let written = &mut self.written;
        wipe_from(&mut written.out, written.from);
        wipe_from(&mut written.outer_texts, 0);
        written.outer.clear();
        written.original = record.value.as_deref().unwrap_or_default();
        written.done = None;
    }

    /// An empty buffer for the plaintext encoding of a value, with room for `len` bytes.
    pub(super) fn encoding(&mut self, len: usize) -> &mut Vec<u8> {
        self.encoding.clear();
        reserve(&mut self.encoding, len);
        &mut self.encoding
    }

    /// Puts the value that was opened into [`Edits::encoding`] at its place.
    pub(super) fn put_opened(&mut self, place: Place) -> Result<(), Rejection> {
        self.written.put(place, &self.encoding)
    }

    /// Puts the value of that plaintext encoding at its place.
    pub(super) fn put(&mut self, place: Place, encoding: &[u8]) -> Result<(), Rejection> {
        self.written.put(place, encoding)
    }

    /// Puts the value that was opened into [`Edits::encoding`] at its place, sealed to who asked.
    pub(super) fn put_sealed(&mut self, place: Place, label: &str, to: &AnswerKey) -> Result<(), Rejection> {
        let plaintext = Plaintext::decode(&self.encoding).map_err(|_| cannot_open())?;
        let mut text = Zeroizing::new(Vec::with_capacity(text_len(place, &plaintext)));
        write_text(place, &plaintext, &mut text);
        let jwe = to.seal(label, &text).map_err(|_| cannot_open())?;
        match place {
            Place::Value { .. } => self.written.write(place, &[b"\"", jwe.as_bytes(), b"\""]),
            Place::Key | Place::Header(_) => self.written.write(place, &[jwe.as_bytes()]),
        }
        Ok(())
    }

    /// Puts what a refused reader sees at a place.
    pub(super) fn put_masked(&mut self, place: Place, refused: Refused) {
        match place {
            Place::Value { .. } => self.written.write(place, &[refused.json().as_bytes()]),
            outer => match refused.text() {
                Some(text) => self.written.write(outer, &[text.as_bytes()]),
                None => self.written.outer.push((outer, None)),
            },
        }
    }

    /// Cuts the member whose value is at a place of the record's value.
    pub(super) fn put_removed(&mut self, place: Place) -> Result<(), Rejection> {
        let Place::Value { start, end } = place else {
            return Err(cannot_open());
        };
        let cut = self.written.done.unwrap_or(0);
        let member = member_range(self.written.original, start..end, cut).ok_or_else(cannot_open)?;
        let (start, end) = (member.start, member.end);
        self.written.write(Place::Value { start, end }, &[]);
        Ok(())
    }

    /// The record that was begun with, which is number `n`. Its value comes with [`Edits::finish`], if something of it changed.
    pub(super) fn apply(&mut self, n: usize, record: &Record) -> Record {
        let mut edited = record.without_value(0);
        if !self.written.finish_record(n, &mut edited) {
            edited.value.clone_from(&record.value);
        }
        edited
    }

    /// Gives `put` the values of records, by their number.
    pub(super) fn finish(self, mut put: impl FnMut(usize, Bytes)) {
        let Written {
            mut out, values, from, ..
        } = self.written;
        wipe_from(&mut out, from);
        let out = Bytes::from(std::mem::take(&mut *out));
        for (n, range) in values {
            put(n, out.slice(range));
        }
    }
}

impl Written<'_> {
    /// Puts the value of that plaintext encoding at its place.
    fn put(&mut self, place: Place, encoding: &[u8]) -> Result<(), Rejection> {
        let plaintext = Plaintext::decode(encoding).map_err(|_| cannot_open())?;
        self.begin(place, || text_len(place, &plaintext), encoding.len() * LONGER + SHORT);
        let from = self.outer_texts.len();
        match place {
            Place::Value { .. } => write_text(place, &plaintext, &mut self.out),
            outer => {
                write_text(outer, &plaintext, &mut self.outer_texts);
                self.outer.push((outer, Some(from..self.outer_texts.len())));
            }
        }
        Ok(())
    }

    /// Writes `texts` to a place.
    fn write(&mut self, place: Place, texts: &[&[u8]]) {
        let len: usize = texts.iter().map(|text| text.len()).sum();
        self.begin(place, || len, len);
        let from = self.outer_texts.len();
        let out = match place {
            Place::Value { .. } => &mut self.out,
            outer => {
                self.outer.push((outer, Some(from..from + len)));
                &mut self.outer_texts
            }
        };
        for text in texts {
            out.extend_from_slice(text);
        }
    }

    /// Makes room for what is written to a place next: `len()` bytes, which are asked for only where `most` have no room. Before it,
    /// if it is a place of the record's value, the original up to there.
    fn begin(&mut self, place: Place, len: impl FnOnce() -> usize, most: usize) {
        let (out, between) = match place {
            Place::Value { start, end } => {
                let between = &self.original[self.done.unwrap_or(0)..start];
                self.done = Some(end);
                (&mut self.out, between)
            }
            _ => (&mut self.outer_texts, &[][..]),
        };
        if out.capacity() - out.len() < between.len() + most {
            reserve(out, between.len() + len());
        }
        out.extend_from_slice(between);
    }

    /// Puts keys and headers into the record, and the rest of its value behind what was written. Whether its value changed.
    fn finish_record(&mut self, n: usize, record: &mut Record) -> bool {
        for (place, range) in self.outer.drain(..) {
            let bytes = range.map(|range| self.pool.copy(&self.outer_texts[range]));
            match place {
                Place::Key => record.key = bytes,
                Place::Header(n) => record.headers[n].value = bytes,
                Place::Value { .. } => {}
            }
        }
        let Some(done) = self.done else { return false };
        let rest = &self.original[done..];
        reserve(&mut self.out, rest.len());
        self.out.extend_from_slice(rest);
        self.values.push((n, self.from..self.out.len()));
        self.from = self.out.len();
        true
    }
}

/// No JSON text is longer than so many bytes for each of its encoding's, and as many for what is short.
const LONGER: usize = 6;
const SHORT: usize = 160;

/// Appends what stands at a place for a plaintext: JSON, or for a key or header its bytes as they were.
fn write_text(place: Place, plaintext: &Plaintext<'_>, out: &mut Vec<u8>) {
    match (place, plaintext) {
        (Place::Key | Place::Header(_), Plaintext::Bytes(bytes)) => out.extend_from_slice(bytes),
        (Place::Key | Place::Header(_), Plaintext::Utf8(text)) => out.extend_from_slice(text.as_bytes()),
        _ => json::write_json(plaintext, out),
    }
}

/// How many bytes that are, at most.
fn text_len(place: Place, plaintext: &Plaintext<'_>) -> usize {
    match (place, plaintext) {
        (Place::Key | Place::Header(_), Plaintext::Bytes(bytes)) => bytes.len(),
        (Place::Key | Place::Header(_), Plaintext::Utf8(text)) => text.len(),
        _ => json::json_len(plaintext),
    }
}

/// Room for `more` bytes. What is too small is wiped, as growing a `Vec` would leave a copy behind.
fn reserve(buffer: &mut Zeroizing<Vec<u8>>, more: usize) {
    let wanted = buffer.len() + more;
    if wanted > buffer.capacity() {
        let mut larger = Vec::with_capacity(wanted.max(buffer.capacity() / 4 * 5));
        larger.extend_from_slice(buffer);
        *buffer = Zeroizing::new(larger);
    }
}

/// Leaves nothing behind of what is given up.
fn wipe_from(out: &mut Vec<u8>, from: usize) {
    // Not of nothing: to write no bytes to the address of an empty `Vec`, which is nowhere, takes a processor with AVX-512 30 ns.
    if from < out.len() {
        out[from..].zeroize();
        out.truncate(from);
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
    fn what_becomes_longer_than_it_was_has_its_room() {
        let records = [record(), record()];
        let mut edits = Edits::for_records(&records);
        let controls = "\u{1}".repeat(10_000);
        for (n, record) in records.iter().enumerate() {
            edits.start(record);
            edits.put(place("a"), &encoded(&Plaintext::Utf8(&controls))).unwrap();
            edits.put(Place::Key, &encoded(&Plaintext::Utf8(&controls))).unwrap();
            assert_eq!(edits.apply(n, record).key.unwrap(), controls.as_bytes());
        }
        let value = RECORD.replacen("sealed", &"\\u0001".repeat(10_000), 1);
        assert_eq!(finished(edits), [(0, value.clone()), (1, value)]);
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
