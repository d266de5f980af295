//! Ciphertext blobs of the local KMS: what `GenerateDataKey` and `Encrypt` give out and `Decrypt` takes.
//!
//! `"SFLK" ‖ version 02 ‖ u16 BE length ‖ key ARN ‖ u32 BE material ‖ salt(16) ‖ ciphertext ‖ tag(16)`, where `material`
//! counts the rotations of the KMS key before the blob was made: it says which backing key opens it. Version 01 has no
//! such number and means 0. The cipher is AES-256-GCM; its key and nonce come by HKDF-SHA-256 from that material and
//! the salt, so that no (key, nonce) pair repeats. The additional authenticated data is everything before the ciphertext,
//! then the encryption context sorted by name, each name and value behind its u32 BE length.

use std::collections::BTreeMap;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

const MAGIC: &[u8] = b"SFLK\x02";
/// Written before keys could be rotated; still opened.
const MAGIC_1: &[u8] = b"SFLK\x01";
const SALT_LEN: usize = 16;
const TAG_LEN: usize = 16;
const MAX_ARN: usize = 512;
const INFO: &[u8] = b"sealflow local-kms blob v1";

/// The largest blob that `Decrypt` takes, as in AWS KMS.
pub const MAX_BLOB: usize = 6144;

/// The encryption context as a request gives it.
pub type Context = BTreeMap<String, String>;

/// A blob taken apart; nothing of it is authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob<'a> {
    /// The ARN of the key that the blob says it is under.
    pub key_arn: &'a str,
    /// How often that key had been rotated: which of its materials the blob is under.
    pub material: u32,
    header: &'a [u8],
    salt: &'a [u8],
    ciphertext: &'a [u8],
}

/// These bytes are no blob, or not one of this key and context. It carries no detail.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a ciphertext of this key and encryption context")]
pub struct InvalidBlob;

/// Takes a blob apart.
pub fn parse(bytes: &[u8]) -> Result<Blob<'_>, InvalidBlob> {
    if bytes.len() > MAX_BLOB {
        return Err(InvalidBlob);
    }
    let (rest, is_first) = match bytes.strip_prefix(MAGIC) {
        Some(rest) => (rest, false),
        None => (bytes.strip_prefix(MAGIC_1).ok_or(InvalidBlob)?, true),
    };
    let (length, rest) = rest.split_first_chunk::<2>().ok_or(InvalidBlob)?;
    let length = usize::from(u16::from_be_bytes(*length));
    if length == 0 || length > MAX_ARN {
        return Err(InvalidBlob);
    }
    let (arn, rest) = rest.split_at_checked(length).ok_or(InvalidBlob)?;
    let key_arn = std::str::from_utf8(arn).map_err(|_| InvalidBlob)?;
    let (material, rest) = match rest.split_first_chunk::<4>() {
        _ if is_first => (0, rest),
        Some((number, rest)) => (u32::from_be_bytes(*number), rest),
        None => return Err(InvalidBlob),
    };
    let (salt, ciphertext) = rest.split_at_checked(SALT_LEN).ok_or(InvalidBlob)?;
    if ciphertext.len() < TAG_LEN {
        return Err(InvalidBlob);
    }
    let header = &bytes[..bytes.len() - ciphertext.len()];
    Ok(Blob {
        key_arn,
        material,
        header,
        salt,
        ciphertext,
    })
}

/// Encrypts `plaintext` under a KMS key's material, given with its number.
pub(crate) fn seal(
    (number, material): (u32, &[u8; 32]),
    key_arn: &str,
    plaintext: &[u8],
    context: &Context,
) -> Result<Vec<u8>, InvalidBlob> {
    let mut salt = [0; SALT_LEN];
    getrandom::fill(&mut salt).map_err(|_| InvalidBlob)?;
    let length = u16::try_from(key_arn.len()).map_err(|_| InvalidBlob)?;
    let mut blob = [
        MAGIC,
        &length.to_be_bytes(),
        key_arn.as_bytes(),
        &number.to_be_bytes(),
        &salt,
    ]
    .concat();
    let (cipher, nonce) = cipher(material, &salt)?;
    let payload = Payload {
        msg: plaintext,
        aad: &aad(&blob, context),
    };
    let ciphertext = cipher.encrypt(&nonce, payload).map_err(|_| InvalidBlob)?;
    blob.extend_from_slice(&ciphertext);
    Ok(blob)
}

/// Decrypts `blob` with the material that it names.
pub(crate) fn open(material: &[u8; 32], blob: &Blob<'_>, context: &Context) -> Result<Zeroizing<Vec<u8>>, InvalidBlob> {
    let (cipher, nonce) = cipher(material, blob.salt)?;
    let payload = Payload {
        msg: blob.ciphertext,
        aad: &aad(blob.header, context),
    };
    cipher
        .decrypt(&nonce, payload)
        .map(Zeroizing::new)
        .map_err(|_| InvalidBlob)
}

pub(crate) type BlobNonce = Nonce<aes_gcm::aead::consts::U12>;

fn cipher(material: &[u8; 32], salt: &[u8]) -> Result<(Aes256Gcm, BlobNonce), InvalidBlob> {
    let mut derived = Zeroizing::new([0; 32 + 12]);
    Hkdf::<Sha256>::new(Some(salt), material)
        .expand(INFO, derived.as_mut_slice())
        .map_err(|_| InvalidBlob)?;
    let (key, nonce) = derived.split_first_chunk::<32>().ok_or(InvalidBlob)?;
    let nonce: [u8; 12] = nonce.try_into().map_err(|_| InvalidBlob)?;
    let cipher = Aes256Gcm::new_from_slice(key).map_err(|_| InvalidBlob)?;
    Ok((cipher, BlobNonce::from(nonce)))
}

fn aad(header: &[u8], context: &Context) -> Vec<u8> {
    let mut aad = header.to_vec();
    for (name, value) in context {
        for part in [name, value] {
            // Contexts are capped far below 2^32 bytes where requests are read.
            aad.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            aad.extend_from_slice(part.as_bytes());
        }
    }
    aad
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/a";

    fn context(pairs: &[(&str, &str)]) -> Context {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_blob_opens_only_with_its_key_and_context() {
        let given = context(&[("a", "1"), ("b", "2")]);
        let blob = seal((3, &[7; 32]), ARN, b"data key", &given).unwrap();
        let parsed = parse(&blob).unwrap();
        assert_eq!((parsed.key_arn, parsed.material), (ARN, 3));
        assert_eq!(open(&[7; 32], &parsed, &given).unwrap().as_slice(), b"data key");
        assert_eq!(open(&[8; 32], &parsed, &given), Err(InvalidBlob));
        for other in [
            context(&[]),
            context(&[("a", "1")]),
            context(&[("a", "2"), ("b", "1")]),
            context(&[("a", "1b2")]),
        ] {
            assert_eq!(open(&[7; 32], &parsed, &other), Err(InvalidBlob), "{other:?}");
        }
    }

    #[test]
    fn every_bit_of_a_blob_counts() {
        let blob = seal((3, &[7; 32]), ARN, b"data key", &Context::new()).unwrap();
        for at in 0..blob.len() * 8 {
            let mut edited = blob.clone();
            edited[at / 8] ^= 1 << (at % 8);
            let opened = parse(&edited).and_then(|b| open(&[7; 32], &b, &Context::new()));
            assert_eq!(opened, Err(InvalidBlob), "bit {at}");
        }
        for end in 0..blob.len() {
            assert!(
                parse(&blob[..end])
                    .and_then(|b| open(&[7; 32], &b, &Context::new()))
                    .is_err(),
                "{end} bytes"
            );
        }
    }

    #[test]
    fn a_blob_from_before_rotations_opens_with_the_first_material() {
        // Made as version 01 made them: no number, everything else the same.
        let salt = [9; SALT_LEN];
        let header = [
            MAGIC_1,
            &u16::try_from(ARN.len()).unwrap().to_be_bytes(),
            ARN.as_bytes(),
            &salt,
        ]
        .concat();
        let given = context(&[("a", "1")]);
        let (cipher, nonce) = cipher(&[7; 32], &salt).unwrap();
        let payload = Payload {
            msg: b"data key",
            aad: &aad(&header, &given),
        };
        let blob = [header.clone(), cipher.encrypt(&nonce, payload).unwrap()].concat();
        let parsed = parse(&blob).unwrap();
        assert_eq!((parsed.key_arn, parsed.material), (ARN, 0));
        assert_eq!(open(&[7; 32], &parsed, &given).unwrap().as_slice(), b"data key");
    }

    proptest! {
        #[test]
        fn parsing_any_bytes_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
            let bytes = if magic { [MAGIC, &tail].concat() } else { tail };
            if let Ok(blob) = parse(&bytes) {
                prop_assert!(open(&[7; 32], &blob, &Context::new()).is_err());
            }
        }
    }
}
