//! Key envelopes that travel with records, in their `sealflow-keys` headers. Whatever else such a header holds helps
//! nobody, and does no harm: anybody can send a header of that name, and keys come from the catalogue too.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use bytes::Bytes;

use super::record::Record;
use crate::keys::Envelope;
use crate::keys::envelope::{KEYS_HEADER, read_header};
use crate::seal::KeyId;

/// What one `sealflow-keys` header holds.
struct KeysHeader {
    /// Its envelopes of the dataset.
    envelopes: Vec<Bytes>,
    /// The keys of all its envelopes; empty if one of them cannot be read.
    keys: Vec<KeyId>,
    hash: u64,
}

impl KeysHeader {
    fn read(bytes: &Bytes, dataset: &str, hasher: &RandomState) -> Self {
        let raw = read_header(bytes).unwrap_or_default();
        let envelopes: Vec<_> = raw.iter().map(|raw| Envelope::from_bytes(raw)).collect();
        let is_ours = |envelope: &&Envelope| envelope.dataset == dataset;
        let keys: Result<Vec<KeyId>, _> = envelopes
            .iter()
            .map(|envelope| envelope.as_ref().map(Envelope::key_id))
            .collect();
        let ours: Vec<Bytes> = raw
            .iter()
            .zip(&envelopes)
            .filter(|(_, envelope)| envelope.as_ref().ok().filter(is_ours).is_some())
            .map(|(raw, _)| bytes.slice_ref(raw))
            .collect();
        Self {
            hash: hasher.hash_one(&ours),
            keys: keys.unwrap_or_default(),
            envelopes: ours,
        }
    }
}

/// The `sealflow-keys` headers of one record.
pub(super) struct Travelling {
    /// With their positions among the record's headers.
    headers: Vec<(usize, Arc<KeysHeader>)>,
    fingerprint: u64,
}

impl Travelling {
    /// The envelopes of the dataset.
    pub(super) fn envelopes(&self) -> Vec<Bytes> {
        let headers = self.headers.iter();
        headers
            .flat_map(|(_, header)| header.envelopes.iter().cloned())
            .collect()
    }

    /// Tells sets of envelopes of one batch apart, so that one record's forged ones do not decide for another's.
    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The header that sealing added: the last one whose envelopes are all of `keys`, those that the record's values
    /// name. Others were there before (a record that is sealed twice, a producer's own) and stay.
    pub(super) fn added(&self, keys: &[KeyId]) -> Option<usize> {
        let is_added =
            |header: &KeysHeader| !header.keys.is_empty() && header.keys.iter().all(|key| keys.contains(key));
        let added = self.headers.iter().rfind(|(_, header)| is_added(header));
        added.map(|(position, _)| *position)
    }
}

/// Reads the headers of one batch, each different one once.
pub(super) struct TravellingReader<'d> {
    dataset: &'d str,
    hasher: RandomState,
    read: HashMap<Bytes, Arc<KeysHeader>>,
    /// The last one again, as most records of a batch carry the same.
    last: Option<(Bytes, Arc<KeysHeader>)>,
}

impl<'d> TravellingReader<'d> {
    pub(super) fn new(dataset: &'d str) -> Self {
        Self {
            dataset,
            hasher: RandomState::new(),
            read: HashMap::new(),
            last: None,
        }
    }

    pub(super) fn of(&mut self, record: &Record) -> Travelling {
        let named = |(n, header): (usize, &'_ super::Header)| {
            let is_named = header.name == KEYS_HEADER;
            header.value.clone().filter(|_| is_named).map(|value| (n, value))
        };
        let headers: Vec<_> = record
            .headers
            .iter()
            .enumerate()
            .filter_map(named)
            .map(|(n, value)| (n, self.header(value)))
            .collect();
        let hashes: Vec<u64> = headers.iter().map(|(_, header)| header.hash).collect();
        Travelling {
            fingerprint: self.hasher.hash_one(hashes),
            headers,
        }
    }

    fn header(&mut self, value: Bytes) -> Arc<KeysHeader> {
        if let Some((bytes, header)) = &self.last
            && *bytes == value
        {
            return Arc::clone(header);
        }
        let (dataset, hasher) = (self.dataset, &self.hasher);
        let read = self.read.entry(value.clone());
        let header = Arc::clone(read.or_insert_with_key(|bytes| Arc::new(KeysHeader::read(bytes, dataset, hasher))));
        self.last = Some((value, Arc::clone(&header)));
        header
    }
}
