//! Counts what became of sample records: lost, twice, out of order, changed. Nothing is assumed: every record that is
//! found in the target is compared with the one that its id names, made again from the seed.

use std::collections::BTreeMap;

use sealflow_samples::{SampleRecord, record};
use serde_json::json;

use crate::Message;

/// Which sample records were written to which partition, in order.
#[derive(Clone, Debug)]
pub struct Expected {
    seed: u64,
    partitions: u32,
    count: u64,
}

/// What was counted in a target topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that were read in the target.
    pub found: u64,
    /// Records written to the source and not found at their partition.
    pub lost: u64,
    /// Findings of a record beyond its first, at any partition.
    pub twice: u64,
    /// Findings that come after a later record of the same partition.
    pub out_of_order: u64,
    /// Findings that differ from the original in what must not change, hold a plaintext, or are no sample records.
    pub changed: u64,
    /// The first thing that was wrong, without values.
    pub first: Option<String>,
}

impl Expected {
    /// The first `count` records of a seed, as [`Expected::message`] spreads them over `partitions`.
    #[must_use]
    pub fn new(seed: u64, count: u64, partitions: i32) -> Self {
        Self {
            seed,
            partitions: partitions.unsigned_abs(),
            count,
        }
    }

    /// How many records there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All messages in the order in which they are written.
    pub fn messages(&self) -> impl Iterator<Item = Message> + '_ {
        self.messages_from(0)
    }

    /// Those from the `first` one on.
    pub fn messages_from(&self, first: u64) -> impl Iterator<Item = Message> + '_ {
        (first..self.count).map(|n| self.message(&record(self.seed, n)))
    }

    /// A sample as a message: its partition by its key, with a header, an empty header and a time stamp.
    #[must_use]
    pub fn message(&self, sample: &SampleRecord) -> Message {
        Message {
            partition: self.partition_of(sample),
            offset: 0,
            key: Some(sample.key.clone()),
            value: Some(sample.value.clone()),
            headers: vec![("source".into(), Some(b"test".to_vec())), ("empty".into(), None)],
            timestamp: Some(1_767_225_600_000 + i64::try_from(sample.n).unwrap_or(0)),
        }
    }

    /// Counts a whole topic. `read` hands every message of it, each partition in order, to the function it is given;
    /// `check` says what is wrong with a message that should be this sample.
    pub fn tally(
        &self,
        read: impl FnOnce(&mut dyn FnMut(Message)),
        check: impl Fn(&Message, &Message, &SampleRecord) -> Result<(), String>,
    ) -> Tally {
        let mut tally = Tally::default();
        // How often each record was found, and the last one per partition.
        let mut times = vec![0_u32; usize::try_from(self.count).expect("it fits")];
        let mut at_home = vec![false; times.len()];
        let mut last: BTreeMap<i32, u64> = BTreeMap::new();
        read(&mut |message| {
            tally.found += 1;
            let Some(n) = number_of(&message).filter(|n| *n < self.count) else {
                return tally.wrong(&message, "is no record that was written");
            };
            let sample = record(self.seed, n);
            let original = self.message(&sample);
            let index = usize::try_from(n).expect("it fits");
            times[index] += 1;
            if message.partition == original.partition {
                at_home[index] = true;
            } else {
                tally.wrong(&message, "is at another partition");
            }
            let before = last.insert(message.partition, n);
            if before.is_some_and(|before| before > n) {
                tally.out_of_order += 1;
                tally.note(&message, "comes after a later one");
            }
            if let Err(what) = check(&message, &original, &sample) {
                tally.wrong(&message, &what);
            }
        });
        tally.lost = at_home.iter().filter(|found| !**found).count() as u64;
        tally.twice = times.iter().map(|times| u64::from(times.saturating_sub(1))).sum();
        tally
    }

    fn partition_of(&self, sample: &SampleRecord) -> i32 {
        let hash = sample.key.iter().fold(17_u32, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(u32::from(*byte))
        });
        i32::try_from(hash % self.partitions).expect("a partition number")
    }
}

impl Tally {
    /// Whether every one of `expected` records was found once, in order, as it was.
    #[must_use]
    pub fn is_exact(&self, expected: u64) -> bool {
        self.found == expected && (self.lost, self.twice, self.out_of_order, self.changed) == (0, 0, 0, 0)
    }

    /// For a report.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "found": self.found,
            "lost": self.lost,
            "twice": self.twice,
            "out_of_order": self.out_of_order,
            "changed": self.changed,
        })
    }

    fn wrong(&mut self, message: &Message, what: &str) {
        self.changed += 1;
        self.note(message, what);
    }

    fn note(&mut self, message: &Message, what: &str) {
        self.first
            .get_or_insert_with(|| format!("partition {} offset {}: {what}", message.partition, message.offset));
    }
}

/// The number in `"id":"r-0000000012"`, which is clear in every output.
fn number_of(message: &Message) -> Option<u64> {
    const MARK: &[u8] = br#""id":"r-"#;
    let value = message.value.as_deref()?;
    let at = value.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    std::str::from_utf8(value.get(at..at + 10)?).ok()?.parse().ok()
}

/// What a sealed record must be: key, time stamp, headers and every byte outside of sealed values as before, envelopes
/// in a last header, as many sealed values as there are secrets, and none of those in clear.
///
/// # Errors
/// What is wrong, without values.
pub fn check_sealed(sealed: &Message, original: &Message, sample: &SampleRecord) -> Result<(), String> {
    if (&sealed.key, sealed.timestamp) != (&original.key, original.timestamp) {
        return Err("has another key or time stamp".into());
    }
    match sealed.headers.split_last() {
        Some((last, rest)) if last.0 == "sealflow-keys" && rest == original.headers => {}
        _ => return Err("has other headers".into()),
    }
    let (text, before) = (utf8(sealed)?, utf8(original)?);
    if sample.secrets.iter().any(|secret| text.contains(secret.as_str())) {
        return Err("holds a plaintext".into());
    }
    let fields = same_outside_sealed_values(text, before).ok_or("differs outside of sealed values")?;
    if fields != sample.secrets.len() {
        return Err(format!(
            "has {fields} sealed values instead of {}",
            sample.secrets.len()
        ));
    }
    Ok(())
}

/// What an opened record must be: the original.
///
/// # Errors
/// What is wrong, without values.
pub fn check_opened(opened: &Message, original: &Message, _: &SampleRecord) -> Result<(), String> {
    let same = (&opened.key, &opened.value, &opened.headers, opened.timestamp)
        == (&original.key, &original.value, &original.headers, original.timestamp);
    if same {
        Ok(())
    } else {
        Err("is not the original".into())
    }
}

fn utf8(message: &Message) -> Result<&str, String> {
    std::str::from_utf8(message.value.as_deref().unwrap_or_default()).map_err(|_| "is not text".into())
}

/// Walks both texts: what stands between sealed values must be the same bytes. Returns how many there are. Knows
/// nothing of Sealflow but how the text form starts and ends.
fn same_outside_sealed_values(sealed: &str, original: &str) -> Option<usize> {
    let mut pieces = sealed.split("\"sf1.");
    let mut rest = original.strip_prefix(pieces.next()?)?;
    let mut fields = 0;
    for piece in pieces {
        let (value, clear) = piece.split_once('"')?;
        let is_text_form = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !value.bytes().all(is_text_form) {
            return None;
        }
        // The value in clear ends where the clear text goes on; something was there before.
        let at = rest.find(clear).filter(|at| *at >= 1)?;
        rest = &rest[at + clear.len()..];
        fields += 1;
    }
    rest.is_empty().then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(change: impl FnOnce(&mut Vec<Message>)) -> Tally {
        let expected = Expected::new(3, 200, 4);
        let mut messages: Vec<Message> = expected.messages().collect();
        change(&mut messages);
        expected.tally(|each| messages.into_iter().for_each(each), check_opened)
    }

    #[test]
    fn every_kind_of_fault_is_counted_as_what_it_is() {
        assert!(tally(|_| {}).is_exact(200));
        let lost = tally(|messages| drop(messages.remove(17)));
        assert_eq!((lost.found, lost.lost, lost.twice), (199, 1, 0));
        let twice = tally(|messages| {
            let again = messages[199].clone();
            messages.push(again);
        });
        assert_eq!(
            (twice.found, twice.lost, twice.twice, twice.out_of_order),
            (201, 0, 1, 0)
        );
        let elsewhere = tally(|messages| messages[5].partition = (messages[5].partition + 1) % 4);
        assert_eq!((elsewhere.lost, elsewhere.twice), (1, 0));
        let changed = tally(|messages| messages[9].headers.clear());
        assert_eq!((changed.lost, changed.changed), (0, 1));
        let swapped = tally(|messages| {
            let of_one = |message: &Message| message.partition == 2;
            let first = messages.iter().position(of_one).unwrap();
            let second = first + 1 + messages[first + 1..].iter().position(of_one).unwrap();
            messages.swap(first, second);
        });
        assert_eq!((swapped.lost, swapped.twice, swapped.out_of_order), (0, 0, 1));
        assert!(!swapped.is_exact(200));
    }

    #[test]
    fn a_plaintext_or_another_byte_in_a_sealed_record_is_seen() {
        let expected = Expected::new(3, 1, 1);
        let sample = record(3, 0);
        let original = expected.message(&sample);
        let mut text = String::from_utf8(sample.value.clone()).unwrap();
        for secret in &sample.secrets {
            let at = text.find(&format!("\"{secret}\"")).unwrap();
            text.replace_range(at..at + secret.len() + 2, "\"sf1.AAAA\"");
        }
        let mut sealed = original.clone();
        sealed.headers.push(("sealflow-keys".into(), Some(vec![1])));
        sealed.value = Some(text.clone().into_bytes());
        assert_eq!(check_sealed(&sealed, &original, &sample), Ok(()));
        let with = |value: String| Message {
            value: Some(value.into_bytes()),
            ..sealed.clone()
        };
        assert!(check_sealed(&with(text.replacen("\"time\"", "\"tims\"", 1)), &original, &sample).is_err());
        let leaky = text.replacen("\"sf1.AAAA\"", &format!("\"{}\"", sample.secrets[0]), 1);
        assert!(check_sealed(&with(leaky), &original, &sample).is_err());
        assert!(check_sealed(&original, &original, &sample).is_err());
    }
}
