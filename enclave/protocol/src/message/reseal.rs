//! Columns that clients sealed, to be sealed for storage.

use zeroize::Zeroizing;

use crate::column::{MAX_VALUES, WireColumn};
use crate::wire::{Malformed, Reader, Writer};

/// The value came in clear.
pub const KEY_CLEAR: u32 = 0;
/// Its key is in the value itself.
pub const KEY_OWN: u32 = 1;
/// Its key is in the first session; the next number is the second.
pub const KEY_FIRST_SESSION: u32 = 2;

/// The most columns of a job.
pub const MAX_COLUMNS: usize = 1_000;
/// The most sessions of a job.
pub const MAX_SESSIONS: usize = 65_536;
const MAX_SESSION: usize = 4_096;
const MAX_NAME: usize = 1_024;
const MAX_ENVELOPE: usize = 4_096;

/// The body of [`Kind::Reseal`](crate::frame::Kind::Reseal).
#[derive(Debug)]
pub struct ResealJob<'a> {
    /// The dataset.
    pub dataset: &'a str,
    /// SHA-256 of the policy that the host goes by.
    pub policy: [u8; 32],
    /// The sessions that values name.
    pub sessions: Vec<&'a str>,
    /// The columns.
    pub columns: Vec<JobColumn<'a>>,
}

/// One column of a job.
#[derive(Debug)]
pub struct JobColumn<'a> {
    /// Its label.
    pub label: &'a str,
    /// Whether a plaintext is JSON text; else it is bytes.
    pub is_json: bool,
    /// The values as they came.
    pub values: WireColumn<'a>,
    /// Where the key of each is: [`KEY_CLEAR`], [`KEY_OWN`], or [`KEY_FIRST_SESSION`] and the number of a session.
    pub keys: Vec<u32>,
    /// The row id of each, if the column is bound.
    pub rows: Option<WireColumn<'a>>,
}

/// Writes a [`ResealJob`] without having it whole.
#[derive(Debug)]
pub struct JobWriter(Writer);

impl JobWriter {
    /// A job of so many columns, with room for `bytes`.
    #[must_use]
    pub fn new(dataset: &str, policy: &[u8; 32], sessions: &[String], columns: usize, bytes: usize) -> Self {
        let mut body = Writer::with_room(bytes + 1_024);
        body.text(dataset);
        body.raw(policy);
        body.count(sessions.len());
        for session in sessions {
            body.text(session);
        }
        body.count(columns);
        Self(body)
    }

    /// Begins the next column; [`WireColumn::write`] its values, then [`JobWriter::keys`], then its rows.
    pub fn column(&mut self, label: &str, is_json: bool) -> &mut Writer {
        self.0.text(label);
        self.0.u8(u8::from(is_json));
        &mut self.0
    }

    /// The keys of the column's values.
    pub fn keys(&mut self, keys: impl ExactSizeIterator<Item = u32>) -> &mut Writer {
        self.0.count(keys.len());
        for key in keys {
            self.0.u32(key);
        }
        &mut self.0
    }

    /// The body.
    #[must_use]
    pub fn finish(self) -> Zeroizing<Vec<u8>> {
        self.0.finish()
    }
}

impl<'a> ResealJob<'a> {
    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let dataset = from.text(MAX_NAME)?;
        let policy = from.raw(32)?.try_into().map_err(|_| Malformed)?;
        let count = from.count(MAX_SESSIONS, 4)?;
        let sessions = (0..count).map(|_| from.text(MAX_SESSION)).collect::<Result<_, _>>()?;
        let count = from.count(MAX_COLUMNS, 16)?;
        let columns = (0..count)
            .map(|_| JobColumn::read(&mut from))
            .collect::<Result<_, _>>()?;
        from.end()?;
        Ok(Self {
            dataset,
            policy,
            sessions,
            columns,
        })
    }
}

impl<'a> JobColumn<'a> {
    fn read(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        let label = from.text(MAX_NAME)?;
        let is_json = from.flag()?;
        let values = WireColumn::read(from)?;
        let count = from.count(MAX_VALUES, 4)?;
        let keys: Vec<u32> = (0..count).map(|_| from.u32()).collect::<Result<_, _>>()?;
        let rows = from.option(WireColumn::read)?;
        if keys.len() != values.len() || rows.as_ref().is_some_and(|rows| rows.len() != values.len()) {
            return Err(Malformed);
        }
        Ok(Self {
            label,
            is_json,
            values,
            keys,
            rows,
        })
    }
}

/// The worker's answer.
#[derive(Debug)]
pub struct ResealAnswer<'a> {
    /// One for each column of the job, in order.
    pub columns: Vec<SealedPart<'a>>,
}

/// A column as the worker sealed it.
#[derive(Debug)]
pub struct SealedPart<'a> {
    /// The sealed values; null where one was refused.
    pub values: WireColumn<'a>,
    /// Numbers of the values that were refused, ascending, and why: 1 does not open, 2 is not JSON.
    pub refused: Vec<(u32, u8)>,
    /// The id of the data key.
    pub key: [u8; 16],
    /// The envelope of the data key.
    pub envelope: &'a [u8],
}

impl<'a> ResealAnswer<'a> {
    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let count = from.count(MAX_COLUMNS, 16)?;
        let columns = (0..count)
            .map(|_| SealedPart::read(&mut from))
            .collect::<Result<_, _>>()?;
        from.end()?;
        Ok(Self { columns })
    }
}

impl<'a> SealedPart<'a> {
    /// Appends a part to a body.
    pub fn write(&self, to: &mut Writer) {
        WireColumn::write(self.values.validity, &self.values.offsets, self.values.bytes, to);
        to.count(self.refused.len());
        for (number, why) in &self.refused {
            to.u32(*number);
            to.u8(*why);
        }
        to.raw(&self.key);
        to.bytes(self.envelope);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        let values = WireColumn::read(from)?;
        let count = from.count(MAX_VALUES, 5)?;
        let refused: Vec<(u32, u8)> = (0..count)
            .map(|_| Ok((from.u32()?, from.u8()?)))
            .collect::<Result<_, Malformed>>()?;
        let is_ascending = refused.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !is_ascending {
            return Err(Malformed);
        }
        Ok(Self {
            values,
            refused,
            key: from.raw(16)?.try_into().map_err(|_| Malformed)?,
            envelope: from.bytes(MAX_ENVELOPE)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use proptest::prelude::*;

    use super::*;

    fn body() -> Zeroizing<Vec<u8>> {
        let sessions = ["s1".to_owned(), "s2".to_owned()];
        let mut job = JobWriter::new("payments", &[7; 32], &sessions, 2, 64);
        WireColumn::write(None, &[0, 2, 3], b"abc", job.column("card", true));
        job.keys([KEY_OWN, KEY_FIRST_SESSION + 1].into_iter()).u8(0);
        WireColumn::write(None, &[0, 1], b"x", job.column("iban", false));
        let rows = job.keys([KEY_CLEAR].into_iter());
        rows.u8(1);
        WireColumn::write(None, &[0, 4], b"row1", rows);
        job.finish()
    }

    #[test]
    fn a_job_comes_back_and_no_part_of_it_is_one() {
        let body = body();
        let job = ResealJob::read(&body).unwrap();
        assert_eq!(
            (job.dataset, job.policy, &job.sessions[..]),
            ("payments", [7; 32], &["s1", "s2"][..])
        );
        assert_eq!(
            (
                job.columns[0].label,
                job.columns[0].is_json,
                job.columns[0].values.len()
            ),
            ("card", true, 2)
        );
        assert_eq!(job.columns[0].keys, [KEY_OWN, KEY_FIRST_SESSION + 1]);
        assert_eq!(job.columns[1].rows.as_ref().unwrap().bytes, b"row1");
        for cut in 0..body.len() {
            assert!(ResealJob::read(&body[..cut]).is_err(), "{cut}");
        }
        assert!(ResealJob::read(&[&body[..], &[0]].concat()).is_err());
    }

    #[test]
    fn an_answer_comes_back() {
        let part = SealedPart {
            values: WireColumn {
                validity: Some(&[0b01]),
                offsets: vec![0, 3, 3],
                bytes: b"abc",
            },
            refused: vec![(1, 1)],
            key: [9; 16],
            envelope: b"envelope",
        };
        let mut writer = Writer::default();
        writer.count(1);
        part.write(&mut writer);
        let body = writer.finish();
        let answer = ResealAnswer::read(&body).unwrap();
        assert_eq!(
            (&answer.columns[0].values, &answer.columns[0].refused),
            (&part.values, &part.refused)
        );
        assert_eq!(
            (answer.columns[0].key, answer.columns[0].envelope),
            ([9; 16], &b"envelope"[..])
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, at: usize, byte: u8) {
            let _ = ResealJob::read(&bytes);
            let _ = ResealAnswer::read(&bytes);
            let mut body = body();
            let at = at % body.len();
            body[at] = byte;
            let _ = ResealJob::read(&body);
        }
    }
}
