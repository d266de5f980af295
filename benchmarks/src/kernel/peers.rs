//! AES-256-GCM of other libraries, one value a call, from one buffer into another. A new peer is an `impl` here and a line
//! beside.

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use sealflow_benchmarks::Error;
use sealflow_kernel::{NONCE_LEN, TAG_LEN};

/// A library that seals and opens one value.
pub(super) trait Peer: Sized {
    const NAME: &'static str;

    fn new(key: &[u8; 32]) -> Result<Self, Error>;

    /// Writes ciphertext and tag into `out`, which has room for exactly these. Whether it could.
    fn seal(&self, nonce: [u8; NONCE_LEN], aad: &[u8], text: &[u8], out: &mut [u8]) -> bool;

    /// Writes the plaintext of `sealed`, ciphertext and tag, to the beginning of `out`, which has as much room. Whether it
    /// opened.
    fn open(&self, nonce: [u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool;
}

/// The crate `aes-gcm`.
pub(super) struct RustCrypto(Aes256Gcm);

impl Peer for RustCrypto {
    const NAME: &'static str = "aes-gcm";

    fn new(key: &[u8; 32]) -> Result<Self, Error> {
        Ok(Self(Aes256Gcm::new(&(*key).into())))
    }

    fn seal(&self, nonce: [u8; NONCE_LEN], aad: &[u8], text: &[u8], out: &mut [u8]) -> bool {
        let (body, tag) = out.split_at_mut(text.len());
        let Ok(both) = InOutBuf::new(text, body) else {
            return false;
        };
        let sealed = self.0.encrypt_inout_detached(&nonce.into(), aad, both);
        sealed.map(|made| tag.copy_from_slice(&made)).is_ok()
    }

    fn open(&self, nonce: [u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        let Some((body, tag)) = sealed.split_last_chunk::<TAG_LEN>() else {
            return false;
        };
        let Ok(both) = InOutBuf::new(body, &mut out[..body.len()]) else {
            return false;
        };
        let opened = self.0.decrypt_inout_detached(&nonce.into(), aad, both, tag.into());
        opened.is_ok()
    }
}

/// The crate `ring`, which works in place: the value is copied to where it is to be.
pub(super) struct Ring(ring::aead::LessSafeKey);

impl Peer for Ring {
    const NAME: &'static str = "ring";

    fn new(key: &[u8; 32]) -> Result<Self, Error> {
        let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, key).map_err(|_| "ring refuses the key")?;
        Ok(Self(ring::aead::LessSafeKey::new(key)))
    }

    fn seal(&self, nonce: [u8; NONCE_LEN], aad: &[u8], text: &[u8], out: &mut [u8]) -> bool {
        let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
        let (body, tag) = out.split_at_mut(text.len());
        body.copy_from_slice(text);
        let sealed = self
            .0
            .seal_in_place_separate_tag(nonce, ring::aead::Aad::from(aad), body);
        sealed.map(|made| tag.copy_from_slice(made.as_ref())).is_ok()
    }

    fn open(&self, nonce: [u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
        out.copy_from_slice(sealed);
        self.0.open_in_place(nonce, ring::aead::Aad::from(aad), out).is_ok()
    }
}

/// The crate `aws-lc-rs`.
pub(super) struct AwsLc(aws_lc_rs::aead::LessSafeKey);

impl Peer for AwsLc {
    const NAME: &'static str = "aws-lc-rs";

    fn new(key: &[u8; 32]) -> Result<Self, Error> {
        use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| "aws-lc-rs refuses the key")?;
        Ok(Self(LessSafeKey::new(key)))
    }

    fn seal(&self, nonce: [u8; NONCE_LEN], aad: &[u8], text: &[u8], out: &mut [u8]) -> bool {
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
        let aad = aws_lc_rs::aead::Aad::from(aad);
        let (body, tag) = out.split_at_mut(text.len());
        let sealed = self.0.seal_out_of_place_scatter(nonce, aad, text, body, &[], tag);
        sealed.is_ok()
    }

    fn open(&self, nonce: [u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
        let aad = aws_lc_rs::aead::Aad::from(aad);
        let Some((body, tag)) = sealed.split_last_chunk::<TAG_LEN>() else {
            return false;
        };
        let opened = self
            .0
            .open_separate_gather(nonce, aad, body, tag, &mut out[..body.len()]);
        opened.is_ok()
    }
}
