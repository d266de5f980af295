//! Files taken apart and put together again: by somebody who has no key, and by somebody who has the footer's.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use bytes::Bytes;

use super::Bench;
use crate::keys::{Envelope, KeyService as _};
use crate::policy::FOOTER_LABEL;
use crate::seal::{UnwrappingKey, UsageLimits, WrappingKey};
use crate::secret::SecretBytes;
use crate::table::FileLabel;
use crate::table::footer::Tail;
use crate::table::keys::ModuleKey;
use crate::table::material::{Material, Wrapped};
use crate::table::place::Claims;

/// Length and magic bytes.
const END: usize = 8;

pub(super) fn position(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

/// The length of a binary in the compact protocol of Thrift.
fn varint(mut length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while length >= 128 {
        bytes.push((length % 128) as u8 | 128);
        length /= 128;
    }
    bytes.push(length as u8);
    bytes
}

/// Replaces the binary `from` wherever it is in `thrift`; returns how often.
pub(super) fn put(thrift: &mut Vec<u8>, from: &[u8], to: &[u8]) -> usize {
    let (from, to) = (
        [varint(from.len()), from.to_vec()].concat(),
        [varint(to.len()), to.to_vec()].concat(),
    );
    let (mut out, mut rest, mut count) = (Vec::new(), thrift.as_slice(), 0);
    while let Some(at) = position(rest, &from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(&to);
        rest = &rest[at + from.len()..];
        count += 1;
    }
    out.extend_from_slice(rest);
    *thrift = out;
    count
}

/// Replaces the binary `from` where it is first.
pub(super) fn put_first(thrift: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    let whole = [varint(from.len()), from.to_vec()].concat();
    let end = position(thrift, &whole).unwrap() + whole.len();
    let rest = thrift.split_off(end);
    assert_eq!(put(thrift, from, to), 1);
    thrift.extend_from_slice(&rest);
}

/// Where the footer of a file begins.
pub(super) fn footer_start(file: &[u8]) -> usize {
    let end = file.len() - END;
    let mut length = [0; 4];
    length.copy_from_slice(&file[end..end + 4]);
    end - u32::from_le_bytes(length) as usize
}

/// The file with another footer; the magic bytes stay.
fn with_footer(file: &[u8], footer: &[u8]) -> Bytes {
    let mut out = file[..footer_start(file)].to_vec();
    out.extend_from_slice(footer);
    out.extend_from_slice(&(footer.len() as u32).to_le_bytes());
    out.extend_from_slice(&file[file.len() - 4..]);
    out.into()
}

/// The key material of the footer.
pub(super) async fn footer_material(file: &Bytes) -> Vec<u8> {
    Tail::fetch(file).await.unwrap().material().await.unwrap()
}

/// What somebody without keys can do: other claims in the key material of the footer.
pub(super) async fn with_claims(file: &Bytes, change: impl FnOnce(&mut Claims)) -> Bytes {
    let bytes = footer_material(file).await;
    let mut material = Material::from_bytes(&bytes).unwrap();
    change(material.claims.as_mut().unwrap());
    let mut footer = file[footer_start(file)..file.len() - END].to_vec();
    assert_eq!(put(&mut footer, &bytes, &material.to_bytes()), 1);
    with_footer(file, &footer)
}

/// What somebody without keys can do: other key material of the footer.
pub(super) async fn with_material(file: &Bytes, from: &str, to: &str) -> Bytes {
    let bytes = footer_material(file).await;
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert_eq!(text.matches(from).count(), 1);
    let mut footer = file[footer_start(file)..file.len() - END].to_vec();
    assert_eq!(put(&mut footer, &bytes, text.replace(from, to).as_bytes()), 1);
    with_footer(file, &footer)
}

/// What somebody without keys can do in a plaintext footer: another text for one of its texts.
pub(super) fn with_text(file: &Bytes, from: &str, to: &str) -> Bytes {
    let mut footer = file[footer_start(file)..file.len() - END].to_vec();
    assert_eq!(put(&mut footer, from.as_bytes(), to.as_bytes()), 1);
    with_footer(file, &footer)
}

/// A key-encryption key in the hands of somebody to whom the key service gave it.
pub(super) struct Kek {
    secret: SecretBytes,
    envelope: Envelope,
    text: String,
}

impl Kek {
    /// Of the module with that key material.
    pub(super) async fn of(bench: &Bench, material: &[u8]) -> Self {
        let Wrapped::Double { kek, .. } = Material::from_bytes(material).unwrap().wrapped else {
            panic!("it is wrapped twice");
        };
        let envelope = Envelope::from_text(&kek).unwrap();
        let (key, acl) = (&envelope.key_name, &envelope.acl);
        let context = crate::keys::EncryptionContext::for_data_key(&envelope.dataset, key, acl);
        let secret = bench
            .kms
            .unwrap(&envelope.arn, &envelope.wrapped, &context)
            .await
            .unwrap();
        Self {
            secret,
            envelope,
            text: kek,
        }
    }

    pub(super) fn secret(&self) -> &SecretBytes {
        &self.secret
    }

    /// The key of a module that was wrapped under this.
    pub(super) fn unwrap(&self, label: &str, material: &[u8]) -> SecretBytes {
        let Wrapped::Double { key, .. } = Material::from_bytes(material).unwrap().wrapped else {
            panic!("it is wrapped twice");
        };
        let unwrapping = UnwrappingKey::from_unwrapped(&self.secret, self.envelope.key_id()).unwrap();
        unwrapping.unwrap(&self.envelope.dataset, label, &key).unwrap()
    }

    /// A key of its holder's own, as that of a column of `label`, or of the footer of a file of these claims.
    pub(super) fn forge(&self, label: &str, claims: Option<&Claims>) -> ModuleKey {
        self.forge_in(&self.envelope.dataset, label, claims)
    }

    /// The same as a key of that dataset.
    pub(super) fn forge_in(&self, dataset: &str, label: &str, claims: Option<&Claims>) -> ModuleKey {
        let key = SecretBytes::new(vec![0x5a; 32]);
        let wrapping = WrappingKey::from_generated(&self.secret, UsageLimits::STANDARD).unwrap();
        let material = Material {
            is_footer: claims.is_some(),
            master_key: self.envelope.arn.clone(),
            wrapped: Wrapped::Double {
                key: wrapping.wrap(dataset, label, &key).unwrap(),
                kek: self.text.clone(),
            },
            label: Some(label.to_owned()),
            claims: claims.cloned(),
        };
        ModuleKey {
            key,
            material: material.to_bytes(),
        }
    }
}

/// The encrypted footer of a file, opened with its key.
pub(super) struct Footer {
    file: Bytes,
    /// `FileCryptoMetaData`, which everybody can read.
    pub(super) crypto: Vec<u8>,
    /// `FileMetaData`.
    pub(super) thrift: Vec<u8>,
    key: SecretBytes,
    /// The random part of the file's additional data.
    unique: Vec<u8>,
    prefix: Vec<u8>,
}

impl Footer {
    pub(super) async fn open(bench: &Bench, file: &Bytes) -> Self {
        let material = footer_material(file).await;
        let kek = Kek::of(bench, &material).await;
        let key = kek.unwrap(FOOTER_LABEL, &material);
        let claims = FileLabel::read(file).await.unwrap().claims;
        let prefix = claims.aad_prefix(claims.check().unwrap(), &bench.policy.policy().sha256);
        let area = &file[footer_start(file)..file.len() - END];
        // Behind the material ends the struct.
        let split = position(area, &material).unwrap() + material.len() + 1;
        let (crypto, module) = area.split_at(split);
        // `aad_prefix`, and behind it `aad_file_unique`: the next field, a binary of eight bytes.
        let at = position(crypto, &prefix).unwrap() + prefix.len();
        assert_eq!(crypto[at..at + 2], [0x18, 8]);
        let unique = crypto[at + 2..at + 10].to_vec();
        let aad = [&prefix[..], &unique, &[0]].concat();
        let (nonce, text) = module[4..].split_first_chunk::<12>().unwrap();
        let payload = Payload { msg: text, aad: &aad };
        let thrift = cipher(&key).decrypt(&Nonce::from(*nonce), payload).unwrap();
        Self {
            file: file.clone(),
            crypto: crypto.to_vec(),
            thrift,
            key,
            unique,
            prefix,
        }
    }

    /// Another prefix of the additional data: also the one that is stored.
    pub(super) fn set_prefix(&mut self, prefix: Vec<u8>) {
        assert_eq!(put(&mut self.crypto, &self.prefix, &prefix), 1);
        self.prefix = prefix;
    }

    /// The file with this footer.
    pub(super) fn close(&self) -> Bytes {
        let aad = [&self.prefix[..], &self.unique, &[0]].concat();
        let payload = Payload {
            msg: &self.thrift,
            aad: &aad,
        };
        let nonce = [0x77; 12];
        let text = cipher(&self.key).encrypt(&Nonce::from(nonce), payload).unwrap();
        let length = (12 + text.len()) as u32;
        let footer = [&self.crypto[..], &length.to_le_bytes(), &nonce, &text].concat();
        with_footer(&self.file, &footer)
    }
}

fn cipher(key: &SecretBytes) -> Aes256Gcm {
    Aes256Gcm::new_from_slice(key.expose()).unwrap()
}
