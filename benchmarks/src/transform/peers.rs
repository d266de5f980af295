//! How one seals fields without Sealflow: as somebody does who knows every fast crate, and as one does it first.
//!
//! Both write our text form, with the bytes of our header, so that they write as much. A field's plaintext is its JSON text as
//! it stands.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use base64::Engine as _;
use base64_simd::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sealflow::seal::value::{NONCE_LEN, SUITE_GCM, TEXT_PREFIX};
use sealflow_benchmarks::Error;
use serde_json::Value;
use sonic_rs::{JsonValueTrait as _, LazyValue, PointerTree};

use super::data::Path;

pub(super) const KEY: [u8; 32] = [1; 32];
/// Suite, key id and column.
const HEADER: usize = 19;

/// Somebody who seals the fields of records.
pub(super) trait Peer: Sized {
    const NAME: &'static str;

    fn new(paths: Vec<Path>) -> Result<Self, Error>;

    /// Appends the record with its fields sealed.
    fn seal(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), Error>;
}

/// AAD of a column, about as long as ours.
pub(super) fn aad(column: usize, paths: &[Path]) -> Vec<u8> {
    let path = &paths[column];
    let each = path.each.as_ref().map(|each| format!("[*].{each}")).unwrap_or_default();
    format!(
        "sealflow/1 of sixteen bytes: payments, {}{each}",
        path.members.join(".")
    )
    .into_bytes()
}

fn header(column: usize) -> [u8; HEADER] {
    let mut header = [9; HEADER];
    header[0] = SUITE_GCM;
    header[17..].copy_from_slice(&(column as u16).to_be_bytes());
    header
}

fn next(counter: &mut u64) -> [u8; NONCE_LEN] {
    *counter += 1;
    let mut nonce = [5; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// `sonic-rs` finds the fields in one pass that stops behind the last, `ring` seals each, `base64-simd` encodes, and what is
/// between is copied. All memory is used again.
pub(super) struct Expert {
    paths: Vec<Path>,
    tree: PointerTree,
    key: LessSafeKey,
    aads: Vec<Vec<u8>>,
    counter: u64,
    hits: Vec<(usize, usize, usize)>,
    sealed: Vec<u8>,
}

impl Peer for Expert {
    const NAME: &'static str = "sonic-rs, ring, base64-simd";

    fn new(paths: Vec<Path>) -> Result<Self, Error> {
        let mut tree = PointerTree::new();
        for path in &paths {
            tree.add_path(path.members.iter().map(String::as_str));
        }
        let key = UnboundKey::new(&AES_256_GCM, &KEY).map_err(|_| "ring refuses the key")?;
        Ok(Self {
            tree,
            key: LessSafeKey::new(key),
            aads: (0..paths.len()).map(|column| aad(column, &paths)).collect(),
            paths,
            counter: 0,
            hits: Vec::new(),
            sealed: Vec::new(),
        })
    }

    fn seal(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.hits.clear();
        let found = sonic_rs::get_many(record, &self.tree)?;
        for (column, (value, path)) in found.iter().zip(&self.paths).enumerate() {
            let Some(value) = value else { continue };
            match &path.each {
                None => self.hits.push(place(record, value, column)),
                // It has no path for each element of a list: the list is read a second time.
                Some(member) => {
                    for element in sonic_rs::to_array_iter(value.as_raw_str()) {
                        if let Some(value) = element?.get(member.as_str()) {
                            self.hits.push(place(record, &value, column));
                        }
                    }
                }
            }
        }
        self.hits.sort_unstable();
        let mut at = 0;
        for (start, end, column) in &self.hits {
            let text = record.get(*start..*end).ok_or("a value that is not in the record")?;
            if text == b"null" {
                continue;
            }
            let nonce = next(&mut self.counter);
            self.sealed.clear();
            self.sealed.extend_from_slice(&header(*column));
            self.sealed.extend_from_slice(&nonce);
            self.sealed.extend_from_slice(text);
            let (nonce, aad) = (Nonce::assume_unique_for_key(nonce), Aad::from(&self.aads[*column]));
            let body = &mut self.sealed[HEADER + NONCE_LEN..];
            let tag = self.key.seal_in_place_separate_tag(nonce, aad, body);
            self.sealed
                .extend_from_slice(tag.map_err(|_| "ring does not seal")?.as_ref());
            out.extend_from_slice(&record[at..*start]);
            out.push(b'"');
            out.extend_from_slice(TEXT_PREFIX.as_bytes());
            URL_SAFE_NO_PAD.encode_append(&self.sealed, out);
            out.push(b'"');
            at = *end;
        }
        out.extend_from_slice(&record[at..]);
        Ok(())
    }
}

/// Start, end and column of a value that borrows from the record.
fn place(record: &[u8], value: &LazyValue<'_>, column: usize) -> (usize, usize, usize) {
    let text = value.as_raw_str();
    let start = (text.as_ptr() as usize).wrapping_sub(record.as_ptr() as usize);
    (start, start.wrapping_add(text.len()), column)
}

/// A tree of `serde_json`, each field sealed by `aes-gcm` and encoded by `base64`, and the tree written again.
pub(super) struct Tree {
    paths: Vec<Path>,
    cipher: Aes256Gcm,
    aads: Vec<Vec<u8>>,
    counter: u64,
}

impl Peer for Tree {
    const NAME: &'static str = "serde_json, aes-gcm, base64";

    fn new(paths: Vec<Path>) -> Result<Self, Error> {
        Ok(Self {
            cipher: Aes256Gcm::new(&KEY.into()),
            aads: (0..paths.len()).map(|column| aad(column, &paths)).collect(),
            paths,
            counter: 0,
        })
    }

    fn seal(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let mut tree: Value = serde_json::from_slice(record)?;
        let Self {
            paths,
            cipher,
            aads,
            counter,
        } = self;
        for (column, path) in paths.iter().enumerate() {
            let mut members = path.members.iter();
            let Some(value) = members.try_fold(&mut tree, |value, member| value.get_mut(member)) else {
                continue;
            };
            let mut seal = |value: &mut Value| seal_value(cipher, &aads[column], column, next(counter), value);
            match &path.each {
                None => seal(value)?,
                Some(member) => {
                    for element in value.as_array_mut().into_iter().flatten() {
                        element.get_mut(member).map_or(Ok(()), &mut seal)?;
                    }
                }
            }
        }
        serde_json::to_writer(out, &tree)?;
        Ok(())
    }
}

fn seal_value(
    cipher: &Aes256Gcm,
    aad: &[u8],
    column: usize,
    nonce: [u8; NONCE_LEN],
    value: &mut Value,
) -> Result<(), Error> {
    if value.is_null() {
        return Ok(());
    }
    let msg = serde_json::to_vec(value)?;
    let ciphertext = cipher
        .encrypt(&nonce.into(), Payload { msg: &msg, aad })
        .map_err(|_| "aes-gcm does not seal")?;
    let sealed = [&header(column)[..], &nonce, &ciphertext].concat();
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(sealed);
    *value = Value::String(format!("{TEXT_PREFIX}{encoded}"));
    Ok(())
}
