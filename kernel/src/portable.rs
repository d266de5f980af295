//! The kernel for every processor, in safe code: the counter blocks of many values in one call of `aes`, then GHASH by
//! `ghash` value by value, from a state that the column's AAD is in already. What is opened is hashed first, and
//! decrypted only if its tag is right.

use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use aes::{Aes256, Block};
use ghash::GHash;
use ghash::universal_hash::UniversalHash as _;
use zeroize::Zeroizing;

use crate::values::{Aads, Batch, SealedBatch, nonce_at, split};
use crate::{HEADER, KEY_LEN, NONCE_LEN, OVERHEAD, PREFIX_LEN, TAG_LEN};

/// Counter blocks that are encrypted at once.
const BLOCKS: usize = 256;

pub(crate) struct Key {
    aes: Aes256,
    /// GHASH under H with nothing in it yet.
    hash: GHash,
}

/// A value of a group.
struct Placed<'a> {
    number: usize,
    nonce: [u8; NONCE_LEN],
    /// What is encrypted, or decrypted.
    text: &'a [u8],
    /// What is to be compared.
    tag: &'a [u8; TAG_LEN],
    /// Where it goes.
    to: usize,
    /// Where its counter blocks begin.
    at: usize,
}

/// Counter blocks, and the values that they are for.
struct Group<'a> {
    blocks: Zeroizing<Vec<[u8; 16]>>,
    values: Vec<Placed<'a>>,
}

/// GHASH of AAD: of one for all values, once known; room for a value's own.
#[derive(Default)]
struct Absorbed {
    same: Option<GHash>,
    own: Vec<u8>,
}

impl Key {
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Self {
        let aes = Aes256::new(key.into());
        let mut h = Zeroizing::new([0; 16]);
        encrypt(&aes, std::slice::from_mut(&mut *h));
        Self {
            hash: GHash::new((&*h).into()),
            aes,
        }
    }

    /// Seals into `out`, which has exactly the room. Not inlined, as the stack below the caller is wiped after it.
    #[inline(never)]
    pub(crate) fn seal(&self, batch: &Batch<'_>, out: &mut [u8]) {
        let (values, mut to) = (batch.values, 0);
        let (mut group, mut absorbed) = (Group::new(), Absorbed::default());
        for number in 0..values.len() {
            let Some(text) = values.get(number) else { continue };
            let nonce = nonce_at(batch.start, number);
            if !group.push(number, nonce, text, &[0; TAG_LEN], to) {
                self.seal_group(&mut group, batch, &mut absorbed, out);
                group.push(number, nonce, text, &[0; TAG_LEN], to);
            }
            to += text.len() + OVERHEAD;
        }
        self.seal_group(&mut group, batch, &mut absorbed, out);
    }

    fn seal_group(&self, group: &mut Group<'_>, batch: &Batch<'_>, absorbed: &mut Absorbed, out: &mut [u8]) {
        encrypt(&self.aes, &mut group.blocks);
        for value in group.values.drain(..) {
            let (hash, aad_len) = self.absorbed(&batch.aads, value.number, absorbed);
            let out = &mut out[value.to..value.to + value.text.len() + OVERHEAD];
            out[..PREFIX_LEN].copy_from_slice(&batch.prefix);
            out[PREFIX_LEN..HEADER].copy_from_slice(&value.nonce);
            let (text, tag) = out[HEADER..].split_at_mut(value.text.len());
            self.add_stream(&value, &group.blocks, text);
            tag.copy_from_slice(&hashed(hash, aad_len, text).finalize());
            tag.iter_mut()
                .zip(&group.blocks[value.at])
                .for_each(|(byte, key)| *byte ^= key);
        }
        group.blocks.clear();
    }

    /// Opens into `out`, zeros that have exactly the room, and says in `opened` what did; both are left as they are where
    /// a tag is wrong. Not inlined, as `seal`.
    #[inline(never)]
    pub(crate) fn open(&self, batch: &SealedBatch<'_>, out: &mut [u8], opened: &mut [bool]) {
        let (values, mut to) = (batch.values, 0);
        let (mut group, mut absorbed) = (Group::new(), Absorbed::default());
        for number in 0..values.len() {
            let Some((nonce, text, tag)) = values.get(number).and_then(split) else {
                continue;
            };
            if !group.push(number, *nonce, text, tag, to) {
                self.open_group(&mut group, batch, &mut absorbed, out, opened);
                group.push(number, *nonce, text, tag, to);
            }
            to += text.len();
        }
        self.open_group(&mut group, batch, &mut absorbed, out, opened);
    }

    fn open_group(
        &self,
        group: &mut Group<'_>,
        batch: &SealedBatch<'_>,
        absorbed: &mut Absorbed,
        out: &mut [u8],
        opened: &mut [bool],
    ) {
        encrypt(&self.aes, &mut group.blocks);
        for value in group.values.drain(..) {
            let (hash, aad_len) = self.absorbed(&batch.aads, value.number, absorbed);
            let mut tag = *value.tag;
            tag.iter_mut()
                .zip(&group.blocks[value.at])
                .for_each(|(byte, key)| *byte ^= key);
            // In constant time.
            if hashed(hash, aad_len, value.text).verify(&tag.into()).is_ok() {
                let out = &mut out[value.to..value.to + value.text.len()];
                self.add_stream(&value, &group.blocks, out);
                opened[value.number] = true;
            }
        }
        group.blocks.clear();
    }

    /// A value's text and key stream, added; where the group has no more of it, by blocks of its own.
    fn add_stream(&self, value: &Placed<'_>, blocks: &[[u8; 16]], out: &mut [u8]) {
        let split = value.text.len().min((BLOCKS - 1) * 16);
        let (first, rest) = out.split_at_mut(split);
        sum(first, &value.text[..split], &blocks[value.at + 1..]);
        if rest.is_empty() {
            return;
        }
        let mut blocks = Zeroizing::new([[0; 16]; BLOCKS]);
        let chunks = rest
            .chunks_mut(BLOCKS * 16)
            .zip(value.text[split..].chunks(BLOCKS * 16));
        for (n, (chunk, text)) in chunks.enumerate() {
            let blocks = &mut blocks[..chunk.len().div_ceil(16)];
            for (k, block) in blocks.iter_mut().enumerate() {
                *block = counter(value.nonce, BLOCKS + 1 + n * BLOCKS + k);
            }
            encrypt(&self.aes, blocks);
            sum(chunk, text, blocks);
        }
    }

    /// GHASH after a value's AAD, padded to whole blocks, and how long that is.
    fn absorbed(&self, aads: &Aads<'_>, number: usize, absorbed: &mut Absorbed) -> (GHash, usize) {
        let absorb = |aad: &[u8]| {
            let mut hash = self.hash.clone();
            hash.update_padded(aad);
            hash
        };
        match aads {
            Aads::Same(aad) => (absorbed.same.get_or_insert_with(|| absorb(aad)).clone(), aad.len()),
            Aads::Each { fixed, rows } => {
                let (row_len, row) = rows.row(number);
                absorbed.own.clear();
                absorbed.own.extend_from_slice(fixed);
                absorbed.own.extend_from_slice(&row_len);
                absorbed.own.extend_from_slice(row);
                (absorb(&absorbed.own), absorbed.own.len())
            }
        }
    }
}

impl<'a> Group<'a> {
    fn new() -> Self {
        Self {
            // Never larger: a buffer that grew would leave key stream behind.
            blocks: Zeroizing::new(Vec::with_capacity(BLOCKS)),
            values: Vec::with_capacity(BLOCKS),
        }
    }

    /// Takes a value in with its counter blocks, if there is room for them.
    fn push(
        &mut self,
        number: usize,
        nonce: [u8; NONCE_LEN],
        text: &'a [u8],
        tag: &'a [u8; TAG_LEN],
        to: usize,
    ) -> bool {
        // One for the tag, at most all of the rest for the value's beginning.
        let wanted = 1 + text.len().div_ceil(16).min(BLOCKS - 1);
        let at = self.blocks.len();
        if at + wanted > BLOCKS {
            return false;
        }
        self.blocks.extend((1..=wanted).map(|block| counter(nonce, block)));
        self.values.push(Placed {
            number,
            nonce,
            text,
            tag,
            to,
            at,
        });
        true
    }
}

/// After ciphertext and lengths.
fn hashed(mut hash: GHash, aad_len: usize, text: &[u8]) -> GHash {
    hash.update_padded(text);
    let mut lengths = [0; 16];
    lengths[..8].copy_from_slice(&(aad_len as u64 * 8).to_be_bytes());
    lengths[8..].copy_from_slice(&(text.len() as u64 * 8).to_be_bytes());
    hash.update(&[lengths.into()]);
    hash
}

fn encrypt(aes: &Aes256, blocks: &mut [[u8; 16]]) {
    aes.encrypt_blocks(Block::cast_slice_from_core_mut(blocks));
}

/// Text and key stream, added. Without key stream nothing is written.
fn sum(out: &mut [u8], text: &[u8], stream: &[[u8; 16]]) {
    let sums = text.iter().zip(stream.as_flattened());
    out.iter_mut()
        .zip(sums)
        .for_each(|(byte, (text, key))| *byte = text ^ key);
}

/// `nonce ‖ block`, big endian: J0 is block 1, the key stream begins with block 2.
fn counter(nonce: [u8; NONCE_LEN], block: usize) -> [u8; 16] {
    let mut counter = [0; 16];
    counter[..NONCE_LEN].copy_from_slice(&nonce);
    // Values are shorter than 2^32 blocks.
    counter[NONCE_LEN..].copy_from_slice(&(block as u32).to_be_bytes());
    counter
}
