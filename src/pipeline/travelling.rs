//! Key envelopes that travel with records, in their `sealflow-keys` headers. Whatever else such a header holds helps
//! nobody, and does no harm: anybody can send a header of that name, and keys come from the catalogue too.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::few::Few;
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
    /// With their positions among the record's headers. Most records have one.
    headers: SmallVec<[(usize, Arc<KeysHeader>); 1]>,
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
    read: Few<Bytes, Arc<KeysHeader>>,
}

impl<'d> TravellingReader<'d> {
    pub(super) fn new(dataset: &'d str) -> Self {
        Self {
            dataset,
            hasher: RandomState::new(),
            read: Few::default(),
        }
    }

    pub(super) fn of(&mut self, record: &Record) -> Travelling {
        let mut headers: SmallVec<[(usize, Arc<KeysHeader>); 1]> = SmallVec::new();
        for (n, header) in record.headers.iter().enumerate() {
            if header.name == KEYS_HEADER
                && let Some(value) = &header.value
            {
                headers.push((n, self.header(value)));
            }
        }
        let fingerprint = match headers.as_slice() {
            [(_, one)] => one.hash,
            many => {
                let hashes: Vec<u64> = many.iter().map(|(_, header)| header.hash).collect();
                self.hasher.hash_one(hashes)
            }
        };
        Travelling { headers, fingerprint }
    }

    fn header(&mut self, value: &Bytes) -> Arc<KeysHeader> {
        if let Some(header) = self.read.get(value) {
            return Arc::clone(header);
        }
        let header = Arc::new(KeysHeader::read(value, self.dataset, &self.hasher));
        self.read.insert(value.clone(), Arc::clone(&header));
        header
    }
}
