//! Values that count once: which were taken, and where. The first place at which a value is read has it for good; whatever
//! looks the same elsewhere is a replay. The same place read again is none.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use crate::clock::UnixMillis;

/// Most names that a memory of one process holds: about 100 MB.
pub const MAX_TAKEN: usize = 1 << 20;
/// Most values of one record that count once.
pub const MAX_OF_RECORD: usize = 1 << 10;
/// Names are forgotten a minute at a time.
const MINUTE_MILLIS: u64 = 60_000;

/// The first half of a SHA-256: of a value's name, or of where it was read.
pub type Hash = [u8; 16];

/// One value, and who wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Of dataset, client and `jti`: [`name_of`].
    pub name: Hash,
    /// Of topic, partition, offset and where in the record: [`place_of`].
    pub place: Hash,
    /// When its name can be forgotten, because it would be refused as late.
    pub until: UnixMillis,
    /// Whether it came in time. What did not is taken only where it was taken before.
    pub is_in_time: bool,
}

/// What became of the claims of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Its values belong to this place.
    Here,
    /// This one belongs to another place, so that the record is a replay and takes none of them.
    Elsewhere(usize),
    /// This one came too late, or from the future, and belongs to no place.
    Late(usize),
}

/// Why claims could not be decided. Nothing of the batch may leave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakenError {
    /// The memory is away or full: try again.
    #[error("the memory of values that count once does not answer: {reason}")]
    Away {
        /// Why.
        reason: String,
    },
    /// The memory refuses this process, or is not there: no waiting mends it.
    #[error("the memory of values that count once cannot be used: {reason}")]
    Unusable {
        /// Why.
        reason: String,
        /// What to do about it.
        help: String,
    },
}

/// A memory of taken values, shared by all that read the same topics.
#[async_trait]
pub trait TakenMemory: Send + Sync + fmt::Debug {
    /// Decides the claims of records, in their order: a record takes all of its values, or none. What is answered is durable, and
    /// every process gets the same answer for the same place.
    ///
    /// # Errors
    /// [`TakenError`]: it is not known which of the values were taken; the same claims may be made again.
    async fn claim(&self, records: &[Vec<Claim>]) -> Result<Vec<Taken>, TakenError>;
}

/// The name of a value: no two clients share one, nor two datasets.
#[must_use]
pub fn name_of(dataset: &str, client: &str, jti: &str) -> Hash {
    hash(
        b"sealflow value name",
        &[dataset.as_bytes(), client.as_bytes(), jti.as_bytes()],
    )
}

/// Where a value was read: topic, partition, offset, and where in the record.
#[must_use]
pub fn place_of(topic: &str, partition: i32, offset: i64, within: &[u8]) -> Hash {
    let (partition, offset) = (partition.to_be_bytes(), offset.to_be_bytes());
    hash(
        b"sealflow value place",
        &[topic.as_bytes(), &partition, &offset, within],
    )
}

fn hash(of: &[u8], parts: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    hash.update(of);
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut half = Hash::default();
    half.copy_from_slice(&hash.finalize()[..16]);
    half
}

/// The claims that were made, in the order in which they were: the first of a name has it. Forgets in time.
#[derive(Default)]
pub struct TakenValues {
    places: HashMap<Hash, Hash>,
    /// Which names are forgotten in which minute.
    minutes: BTreeMap<u64, Vec<Hash>>,
}

impl TakenValues {
    /// The place that has a name.
    #[must_use]
    pub fn place(&self, name: &Hash) -> Option<&Hash> {
        self.places.get(name)
    }

    /// What becomes of the claims of a record as things are; `None` if they have to be made first.
    #[must_use]
    pub fn decide(&self, claims: &[Claim]) -> Option<Taken> {
        let mut are_all_here = true;
        for (n, claim) in claims.iter().enumerate() {
            let within = claims[..n].iter().find(|other| other.name == claim.name);
            match self.place(&claim.name).or(within.map(|other| &other.place)) {
                Some(place) if *place == claim.place => {}
                Some(_) => return Some(Taken::Elsewhere(n)),
                None if !claim.is_in_time => return Some(Taken::Late(n)),
                None => are_all_here = false,
            }
        }
        are_all_here.then_some(Taken::Here)
    }

    /// Makes the claims of a record (name, place, and when it can be forgotten): gives all names to their places, unless another
    /// place has one of them.
    pub fn take(&mut self, claims: &[(Hash, Hash, UnixMillis)]) {
        let is_free = |(n, (name, place, _)): (usize, &(Hash, Hash, UnixMillis))| {
            let within = claims[..n].iter().find(|(other, ..)| other == name);
            let holder = self.place(name).or(within.map(|(_, place, _)| place));
            holder.is_none_or(|holder| holder == place)
        };
        if !claims.iter().enumerate().all(is_free) {
            return;
        }
        for (name, place, until) in claims {
            if self.places.insert(*name, *place).is_none() {
                self.minutes.entry(until.0 / MINUTE_MILLIS).or_default().push(*name);
            }
        }
    }

    /// Forgets what is past its time.
    pub fn forget(&mut self, now: UnixMillis) {
        while let Some(first) = self.minutes.first_entry() {
            // A minute may hold what is remembered until its last millisecond.
            if *first.key() >= now.0 / MINUTE_MILLIS {
                return;
            }
            for name in first.remove() {
                self.places.remove(&name);
            }
        }
    }

    /// How many names there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl fmt::Debug for TakenValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TakenValues").field("len", &self.len()).finish()
    }
}

/// A memory of one process, which ends with it: for files, which one process reads whole.
#[derive(Debug, Default)]
pub struct TakenHere(Mutex<TakenValues>);

#[async_trait]
impl TakenMemory for TakenHere {
    async fn claim(&self, records: &[Vec<Claim>]) -> Result<Vec<Taken>, TakenError> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut decided = Vec::with_capacity(records.len());
        for claims in records {
            if let Some(taken) = values.decide(claims) {
                decided.push(taken);
                continue;
            }
            if values.len() + claims.len() > MAX_TAKEN {
                return Err(full());
            }
            let wanted: Vec<_> = claims
                .iter()
                .map(|claim| (claim.name, claim.place, claim.until))
                .collect();
            values.take(&wanted);
            decided.push(Taken::Here);
        }
        Ok(decided)
    }
}

/// A memory of one process is full for good.
fn full() -> TakenError {
    TakenError::Unusable {
        reason: format!("more than {MAX_TAKEN} values that count once in one file"),
        help: "split the file, or put the records into a topic and run a pipeline".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    fn claim(name: u8, place: u8) -> Claim {
        Claim {
            name: [name; 16],
            place: [place; 16],
            until: UnixMillis(10 * MINUTE_MILLIS),
            is_in_time: true,
        }
    }

    #[tokio::test]
    async fn the_first_place_has_a_value_and_keeps_it() {
        let memory = TakenHere::default();
        let late = |claim: Claim| Claim {
            is_in_time: false,
            ..claim
        };
        let claims = [
            claim(1, 1),
            claim(1, 2),
            claim(2, 2),
            claim(1, 1),
            late(claim(3, 1)),
            late(claim(1, 1)),
        ];
        assert_eq!(
            memory.claim(&claims.map(|claim| vec![claim])).await.unwrap(),
            [
                Taken::Here,
                Taken::Elsewhere(0),
                Taken::Here,
                Taken::Here,
                Taken::Late(0),
                Taken::Here
            ]
        );
        let again = [claim(1, 2), claim(3, 3)].map(|claim| vec![claim]);
        assert_eq!(memory.claim(&again).await.unwrap(), [Taken::Elsewhere(0), Taken::Here]);
    }

    #[tokio::test]
    async fn a_record_takes_all_of_its_values_or_none() {
        let memory = TakenHere::default();
        let late = Claim {
            is_in_time: false,
            ..claim(9, 9)
        };
        let records = [
            vec![claim(1, 1), claim(2, 2)],
            // One of them is taken, so the other stays free.
            vec![claim(3, 3), claim(1, 3)],
            vec![claim(4, 4), late],
            // A name twice in one record.
            vec![claim(5, 5), claim(5, 6)],
            vec![claim(3, 7), claim(4, 7), claim(5, 7)],
        ];
        let expected = [
            Taken::Here,
            Taken::Elsewhere(1),
            Taken::Late(1),
            Taken::Elsewhere(1),
            Taken::Here,
        ];
        assert_eq!(memory.claim(&records).await.unwrap(), expected);
        // Read again: what the last record has taken meanwhile is not free any more.
        let again = [
            Taken::Here,
            Taken::Elsewhere(0),
            Taken::Elsewhere(0),
            Taken::Elsewhere(0),
            Taken::Here,
        ];
        assert_eq!(memory.claim(&records).await.unwrap(), again);
        // As all processes read them from a topic: the same.
        let mut values = TakenValues::default();
        for claims in &records {
            let in_time = claims.iter().all(|claim| claim.is_in_time);
            let made: Vec<_> = claims
                .iter()
                .map(|claim| (claim.name, claim.place, claim.until))
                .collect();
            values.take(if in_time { &made } else { &[] });
        }
        let decided: Vec<_> = records.iter().map(|claims| values.decide(claims).unwrap()).collect();
        assert_eq!(decided, again);
    }

    #[test]
    fn names_are_forgotten_after_their_time_and_not_before() {
        let mut values = TakenValues::default();
        let end = UnixMillis(10 * MINUTE_MILLIS + 5);
        values.take(&[([1; 16], [1; 16], end)]);
        values.take(&[([2; 16], [1; 16], UnixMillis(end.0 + MINUTE_MILLIS))]);
        values.forget(end);
        assert_eq!(values.len(), 2);
        values.forget(UnixMillis(11 * MINUTE_MILLIS));
        assert_eq!(
            (values.len(), values.place(&[1; 16]), values.place(&[2; 16])),
            (1, None, Some(&[1; 16]))
        );
        values.forget(UnixMillis(u64::MAX));
        assert!(values.is_empty());
    }

    /// As `docs/format.md` has them, by Python's hashlib.
    #[test]
    fn names_and_places_have_the_bytes_of_the_format() {
        let hex = |hash: Hash| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(name_of("payments", "web-7", "v-1")),
            "a9fd4f5d13716a7983945648d280431d"
        );
        assert_eq!(
            hex(place_of("orders", 3, 1041, b"v17")),
            "937f290773db5e4806d49b9825bd90f0"
        );
    }

    #[test]
    fn names_and_places_are_those_of_all_their_parts() {
        let names = [
            name_of("d", "c", "j"),
            name_of("dc", "", "j"),
            name_of("d", "cj", ""),
            name_of("d", "c", "k"),
            place_of("d", 0, 0, b""),
            place_of("d", 1, 0, b""),
            place_of("d", 0, 1, b""),
            place_of("d", 0, 0, b"x"),
            place_of("e", 0, 0, b""),
        ];
        for (n, name) in names.iter().enumerate() {
            assert!(!names[..n].contains(name), "{n}");
        }
    }
}
