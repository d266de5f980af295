//! The kernel for every processor, in safe code: the counter blocks of many values in one call of `aes`, then GHASH by
//! `ghash` value by value, from a state that the column's AAD is in already.

use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use aes::{Aes256, Block};
use ghash::GHash;
use ghash::universal_hash::UniversalHash as _;
use zeroize::Zeroizing;

use crate::values::{Aads, Batch, nonce_at};
use crate::{KEY_LEN, NONCE_LEN, TAG_LEN};

/// Counter blocks that are encrypted at once.
const BLOCKS: usize = 256;

pub(crate) struct Key {
    aes: Aes256,
    /// GHASH under H with nothing in it yet.
    hash: GHash,
}

/// A value of a group: its number, and where its counter blocks begin.
struct Placed<'a> {
    number: usize,
    value: &'a [u8],
    at: usize,
}

/// Counter blocks, and the values that they are for.
struct Group<'a> {
    blocks: Zeroizing<Vec<[u8; 16]>>,
    values: Vec<Placed<'a>>,
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

    pub(crate) fn seal(&self, batch: &mut Batch<'_>, room: usize, out: &mut Vec<u8>) {
        out.reserve(room);
        let mut group = Group {
            // Never larger: a buffer that grew would leave key stream behind.
            blocks: Zeroizing::new(Vec::with_capacity(BLOCKS)),
            values: Vec::with_capacity(BLOCKS),
        };
        let values = batch.values;
        for number in 0..values.len() {
            let Some(value) = values.get(number) else { continue };
            // One for the tag, at most all of the rest for the value's beginning.
            let wanted = 1 + value.len().div_ceil(16).min(BLOCKS - 1);
            if group.blocks.len() + wanted > BLOCKS {
                self.finish(&mut group, batch, out);
            }
            let at = group.blocks.len();
            group.values.push(Placed { number, value, at });
            let nonce = nonce_at(batch.start, number);
            group.blocks.extend((1..=wanted).map(|block| counter(nonce, block)));
        }
        self.finish(&mut group, batch, out);
    }

    fn finish(&self, group: &mut Group<'_>, batch: &mut Batch<'_>, out: &mut Vec<u8>) {
        encrypt(&self.aes, &mut group.blocks);
        let mut own = Vec::new();
        let mut same = None;
        for Placed { number, value, at } in group.values.drain(..) {
            let (mut hash, aad_len) = match &mut batch.aads {
                Aads::Same(aad) => (same.get_or_insert_with(|| self.absorbed(aad)).clone(), aad.len()),
                Aads::Each { fixed, write } => {
                    own.clear();
                    own.extend_from_slice(fixed);
                    write(number, &mut own);
                    (self.absorbed(&own), own.len())
                }
            };
            let nonce = nonce_at(batch.start, number);
            out.extend_from_slice(&batch.prefix);
            out.extend_from_slice(&nonce);
            let from = out.len();
            // Zeros first: the plaintext never stands in the output, whatever goes wrong.
            out.resize(from + value.len(), 0);
            let split = value.len().min((BLOCKS - 1) * 16);
            let (first, rest) = out[from..].split_at_mut(split);
            sum(first, &value[..split], &group.blocks[at + 1..]);
            if !rest.is_empty() {
                self.seal_rest(rest, &value[split..], nonce);
            }
            hash.update_padded(&out[from..]);
            let mut lengths = [0; 16];
            lengths[..8].copy_from_slice(&(aad_len as u64 * 8).to_be_bytes());
            lengths[8..].copy_from_slice(&(value.len() as u64 * 8).to_be_bytes());
            hash.update(&[lengths.into()]);
            let mut tag: [u8; TAG_LEN] = hash.finalize().into();
            tag.iter_mut()
                .zip(&group.blocks[at])
                .for_each(|(byte, key)| *byte ^= key);
            out.extend_from_slice(&tag);
        }
        group.blocks.clear();
    }

    /// Seals what of a value comes after its group's key stream.
    fn seal_rest(&self, out: &mut [u8], value: &[u8], nonce: [u8; NONCE_LEN]) {
        let mut blocks = Zeroizing::new([[0; 16]; BLOCKS]);
        let chunks = out.chunks_mut(BLOCKS * 16).zip(value.chunks(BLOCKS * 16));
        for (n, (chunk, value)) in chunks.enumerate() {
            let blocks = &mut blocks[..chunk.len().div_ceil(16)];
            for (k, block) in blocks.iter_mut().enumerate() {
                *block = counter(nonce, BLOCKS + 1 + n * BLOCKS + k);
            }
            encrypt(&self.aes, blocks);
            sum(chunk, value, blocks);
        }
    }

    /// GHASH after that AAD, padded to whole blocks.
    fn absorbed(&self, aad: &[u8]) -> GHash {
        let mut hash = self.hash.clone();
        hash.update_padded(aad);
        hash
    }
}

fn encrypt(aes: &Aes256, blocks: &mut [[u8; 16]]) {
    aes.encrypt_blocks(Block::cast_slice_from_core_mut(blocks));
}

/// Value and key stream, added. Without key stream nothing is written.
fn sum(out: &mut [u8], value: &[u8], stream: &[[u8; 16]]) {
    let sums = value.iter().zip(stream.as_flattened());
    out.iter_mut()
        .zip(sums)
        .for_each(|(byte, (value, key))| *byte = value ^ key);
}

/// `nonce ‖ block`, big endian: J0 is block 1, the key stream begins with block 2.
fn counter(nonce: [u8; NONCE_LEN], block: usize) -> [u8; 16] {
    let mut counter = [0; 16];
    counter[..NONCE_LEN].copy_from_slice(&nonce);
    // Values are shorter than 2^32 blocks.
    counter[NONCE_LEN..].copy_from_slice(&(block as u32).to_be_bytes());
    counter
}
