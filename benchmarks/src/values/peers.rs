//! AES-256-GCM of other libraries, one value a call. A new peer is an `impl` here and two lines beside.

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;
use sealflow_benchmarks::Error;

/// A library that seals and opens one value.
pub(super) trait Peer: Sized {
    const NAME: &'static str;

    fn new(key: &[u8; 32]) -> Result<Self, Error>;

    /// `buffer` is a nonce of 12 bytes and a plaintext; becomes nonce, ciphertext, tag of 16 bytes.
    fn seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>);

    /// The other way; whether it opened. The plaintext then stands behind the nonce.
    fn open(&mut self, aad: &[u8], buffer: &mut Vec<u8>) -> bool;
}

/// The nonce at the start of a buffer; empty buffers do not occur.
fn nonce_of(buffer: &[u8]) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce.copy_from_slice(&buffer[..12]);
    nonce
}

/// The crate `aes-gcm`, by which single values of ours are opened.
pub(super) struct RustCrypto(Aes256Gcm);

impl Peer for RustCrypto {
    const NAME: &'static str = "aes-gcm";

    fn new(key: &[u8; 32]) -> Result<Self, Error> {
        Ok(Self(Aes256Gcm::new(&(*key).into())))
    }

    fn seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>) {
        let nonce = nonce_of(buffer).into();
        let sealed = self.0.encrypt_inout_detached(&nonce, aad, (&mut buffer[12..]).into());
        if let Ok(tag) = sealed {
            buffer.extend_from_slice(&tag);
        }
    }

    fn open(&mut self, aad: &[u8], buffer: &mut Vec<u8>) -> bool {
        let nonce = nonce_of(buffer).into();
        let Some((body, tag)) = buffer[12..].split_last_chunk_mut::<16>() else {
            return false;
        };
        let opened = self.0.decrypt_inout_detached(&nonce, aad, body.into(), &(*tag).into());
        opened.is_ok()
    }
}

/// The crate `ring`.
pub(super) struct Ring(ring::aead::LessSafeKey);

impl Peer for Ring {
    const NAME: &'static str = "ring";

    fn new(key: &[u8; 32]) -> Result<Self, Error> {
        let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, key).map_err(|_| "ring refuses the key")?;
        Ok(Self(ring::aead::LessSafeKey::new(key)))
    }

    fn seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>) {
        let nonce = ring::aead::Nonce::assume_unique_for_key(nonce_of(buffer));
        let aad = ring::aead::Aad::from(aad);
        if let Ok(tag) = self.0.seal_in_place_separate_tag(nonce, aad, &mut buffer[12..]) {
            buffer.extend_from_slice(tag.as_ref());
        }
    }

    fn open(&mut self, aad: &[u8], buffer: &mut Vec<u8>) -> bool {
        let nonce = ring::aead::Nonce::assume_unique_for_key(nonce_of(buffer));
        let opened = self
            .0
            .open_in_place(nonce, ring::aead::Aad::from(aad), &mut buffer[12..]);
        opened.is_ok()
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

    fn seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>) {
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce_of(buffer));
        let aad = aws_lc_rs::aead::Aad::from(aad);
        if let Ok(tag) = self.0.seal_in_place_separate_tag(nonce, aad, &mut buffer[12..]) {
            buffer.extend_from_slice(tag.as_ref());
        }
    }

    fn open(&mut self, aad: &[u8], buffer: &mut Vec<u8>) -> bool {
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce_of(buffer));
        let aad = aws_lc_rs::aead::Aad::from(aad);
        self.0.open_in_place(nonce, aad, &mut buffer[12..]).is_ok()
    }
}

/// The system's OpenSSL through the crate `openssl`: one context for each direction, keyed once.
pub(super) struct OpenSsl {
    sealing: CipherCtx,
    opening: CipherCtx,
}

impl OpenSsl {
    fn try_seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>) -> Result<(), ErrorStack> {
        let (nonce, body) = buffer.split_at_mut(12);
        let (ctx, length) = (&mut self.sealing, body.len());
        ctx.encrypt_init(None, None, Some(nonce))?;
        ctx.cipher_update(aad, None)?;
        ctx.cipher_update_inplace(body, length)?;
        ctx.cipher_final(&mut [])?;
        let mut tag = [0; 16];
        ctx.tag(&mut tag)?;
        buffer.extend_from_slice(&tag);
        Ok(())
    }

    fn try_open(&mut self, aad: &[u8], buffer: &mut [u8]) -> Result<(), ErrorStack> {
        let (nonce, rest) = buffer.split_at_mut(12);
        let (body, tag) = rest.split_at_mut(rest.len().saturating_sub(16));
        let (ctx, length) = (&mut self.opening, body.len());
        ctx.decrypt_init(None, None, Some(nonce))?;
        ctx.cipher_update(aad, None)?;
        ctx.cipher_update_inplace(body, length)?;
        ctx.set_tag(tag)?;
        ctx.cipher_final(&mut [])?;
        Ok(())
    }
}

impl Peer for OpenSsl {
    const NAME: &'static str = "openssl";

    fn new(key: &[u8; 32]) -> Result<Self, Error> {
        let (mut sealing, mut opening) = (CipherCtx::new()?, CipherCtx::new()?);
        sealing.encrypt_init(Some(openssl::cipher::Cipher::aes_256_gcm()), Some(key), None)?;
        opening.decrypt_init(Some(openssl::cipher::Cipher::aes_256_gcm()), Some(key), None)?;
        Ok(Self { sealing, opening })
    }

    fn seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>) {
        std::hint::black_box(self.try_seal(aad, buffer).is_ok());
    }

    fn open(&mut self, aad: &[u8], buffer: &mut Vec<u8>) -> bool {
        self.try_open(aad, buffer).is_ok()
    }
}

/// The same through the one-call functions of the crate, which set cipher and key up for every value.
pub(super) struct OpenSslOneCall {
    cipher: openssl::symm::Cipher,
    key: [u8; 32],
}

impl Peer for OpenSslOneCall {
    const NAME: &'static str = "openssl, one call";

    fn new(key: &[u8; 32]) -> Result<Self, Error> {
        let cipher = openssl::symm::Cipher::aes_256_gcm();
        Ok(Self { cipher, key: *key })
    }

    fn seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>) {
        let (nonce, plaintext) = buffer.split_at(12);
        let mut tag = [0; 16];
        if let Ok(sealed) = openssl::symm::encrypt_aead(self.cipher, &self.key, Some(nonce), aad, plaintext, &mut tag) {
            buffer.truncate(12);
            buffer.extend_from_slice(&sealed);
            buffer.extend_from_slice(&tag);
        }
    }

    fn open(&mut self, aad: &[u8], buffer: &mut Vec<u8>) -> bool {
        let Some((body, tag)) = buffer.split_last_chunk::<16>() else {
            return false;
        };
        let (nonce, body) = body.split_at(12);
        let opened = openssl::symm::decrypt_aead(self.cipher, &self.key, Some(nonce), aad, body, tag);
        let Ok(plaintext) = opened else { return false };
        buffer.truncate(12);
        buffer.extend_from_slice(&plaintext);
        true
    }
}
