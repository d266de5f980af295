//! Attestation documents under a root for development: what a software NSM answers with. Building trusts nothing: only
//! `Trust::with_dev_root` does, in builds that have it.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PublicKeyData, SignatureAlgorithm, date_time_ymd,
};
use zeroize::Zeroizing;

use super::syntax::{self, ARRAY, MAP, MAX_DATA_BYTES, MAX_PCRS, MAX_PUBLIC_KEY_BYTES, PROTECTED, UNSIGNED};
use super::{Document, MAX_SKEW_MS, chain};

/// How long a root lives.
const ROOT_DAYS: u64 = 3650;
/// How long what signs documents lives, and the authority above it, as on Nitro.
const LEAF_HOURS: u64 = 3;
const HOUR_MS: u64 = 60 * 60 * 1000;
/// The last time that certificates are made at, in the year 9000: they have four digits for the year they end in.
const LATEST_MS: u64 = 221_845_392_000_000;

const ROOT_NAME: &str = "dev-software-nsm.sealflow root";
const INTERMEDIATE_NAME: &str = "dev-software-nsm.sealflow intermediate";
const LEAF_NAME: &str = "dev-software-nsm.sealflow document signer";

/// A root for development: a P-384 authority of its own, nobody else's.
pub struct DevRoot {
    certificate: Vec<u8>,
    key: KeyPair,
}

/// What signs documents: a key, and its chain to a [`DevRoot`]. It lives for three hours; make the next before that.
pub struct Issuer {
    /// Root first.
    bundle: Vec<Vec<u8>>,
    certificate: Vec<u8>,
    key: EcdsaKeyPair,
    valid_until_ms: u64,
}

/// Why there is no root, issuer or document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A key cannot be made or read.
    #[error("the key of the development root cannot be made, or is no P-384 key in PKCS #8")]
    Key,
    /// A certificate cannot be made, or is not that of the key, or over.
    #[error(
        "the certificates of the development root cannot be made; is the root of another key, or over? a new one can be made"
    )]
    Certificate,
    /// A document that [`super::verify`] would refuse.
    #[error("no attestation document can say this: {0}")]
    Document(&'static str),
}

impl DevRoot {
    /// A new root, valid for ten years from `now_ms`.
    ///
    /// # Errors
    /// [`BuildError`]
    pub fn generate(now_ms: u64) -> Result<Self, BuildError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).map_err(|_| BuildError::Key)?;
        let until_ms = now_ms.saturating_add(ROOT_DAYS * 24 * HOUR_MS);
        let mut params = authority(ROOT_NAME, now_ms, until_ms)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).map_err(|_| BuildError::Certificate)?;
        Ok(Self {
            certificate: certificate.der().to_vec(),
            key,
        })
    }

    /// A root that was made before: its certificate (DER), and its key (PKCS #8, DER).
    ///
    /// Whether they belong together, [`Self::issuer`] finds out.
    ///
    /// # Errors
    /// [`BuildError::Key`]
    pub fn load(certificate: &[u8], private_key: &[u8]) -> Result<Self, BuildError> {
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&private_key.into(), &PKCS_ECDSA_P384_SHA384)
            .map_err(|_| BuildError::Key)?;
        Ok(Self {
            certificate: certificate.to_vec(),
            key,
        })
    }

    /// Its certificate, DER: what verifiers are given.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its key, PKCS #8 in DER: for a file that nobody else reads.
    #[must_use]
    pub fn private_key(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.key.serialize_der())
    }

    /// Something that signs documents for three hours from `now_ms`.
    ///
    /// # Errors
    /// [`BuildError`]
    pub fn issuer(&self, now_ms: u64) -> Result<Issuer, BuildError> {
        let valid_until_ms = now_ms.saturating_add(LEAF_HOURS * HOUR_MS);
        let root = rcgen::Issuer::new(authority(ROOT_NAME, now_ms, valid_until_ms)?, &self.key);

        let between = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).map_err(|_| BuildError::Key)?;
        let mut params = authority(INTERMEDIATE_NAME, now_ms, valid_until_ms)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let intermediate = params.signed_by(&between, &root).map_err(|_| BuildError::Certificate)?;
        let authority = rcgen::Issuer::new(params, between);

        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).map_err(|_| BuildError::Key)?;
        let mut params = certificate(LEAF_NAME, now_ms, valid_until_ms)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let leaf = params
            .signed_by(&SigningPoint(&key), &authority)
            .map_err(|_| BuildError::Certificate)?;

        // Also finds a root whose key is another, or whose time is over.
        chain::verify(leaf.der(), &[intermediate.der()], &self.certificate, now_ms)
            .map_err(|_| BuildError::Certificate)?;
        Ok(Issuer {
            bundle: vec![self.certificate.clone(), intermediate.der().to_vec()],
            certificate: leaf.der().to_vec(),
            key,
            valid_until_ms,
        })
    }
}

impl Issuer {
    /// Signs a document: COSE_Sign1, ES384, untagged. `tier` is not part of it; the root says that.
    ///
    /// # Errors
    /// [`BuildError::Document`]: a field out of bounds.
    pub fn document(&self, document: &Document) -> Result<Vec<u8>, BuildError> {
        check(document)?;
        let bundle: Vec<&[u8]> = self.bundle.iter().map(Vec::as_slice).collect();
        sign(&payload(document, &self.certificate, &bundle), &self.key)
    }

    /// When its documents stop to be believed, milliseconds since the epoch.
    #[must_use]
    pub fn valid_until_ms(&self) -> u64 {
        self.valid_until_ms
    }
}

impl fmt::Debug for DevRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DevRoot([redacted])")
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("valid_until_ms", &self.valid_until_ms)
            .finish_non_exhaustive()
    }
}

/// The bounds that a verifier holds documents to.
fn check(document: &Document) -> Result<(), BuildError> {
    if document.module_id.is_empty() || document.module_id.len() > MAX_DATA_BYTES {
        return Err(BuildError::Document("the module id is empty or too long"));
    }
    if document.timestamp_ms == 0 {
        return Err(BuildError::Document("the time is zero"));
    }
    let pcrs_fit = document
        .pcrs
        .iter()
        .all(|(index, value)| *index < MAX_PCRS && matches!(value.len(), 32 | 48 | 64));
    if document.pcrs.is_empty() || !pcrs_fit {
        return Err(BuildError::Document(
            "PCRs are 1 to 32, with indexes 0 to 31 and 32, 48 or 64 bytes",
        ));
    }
    let key_fits = document
        .public_key
        .as_ref()
        .is_none_or(|key| (1..=MAX_PUBLIC_KEY_BYTES).contains(&key.len()));
    let data_fits = [&document.user_data, &document.nonce]
        .into_iter()
        .flatten()
        .all(|data| data.len() <= MAX_DATA_BYTES);
    if !key_fits || !data_fits {
        return Err(BuildError::Document(
            "a public key has 1 to 1,024 bytes, user data and a nonce at most 512",
        ));
    }
    Ok(())
}

/// The payload: fields in AWS's order.
pub(super) fn payload(document: &Document, certificate: &[u8], bundle: &[&[u8]]) -> Vec<u8> {
    let claims = [
        ("public_key", &document.public_key),
        ("user_data", &document.user_data),
        ("nonce", &document.nonce),
    ];
    let present = claims.iter().filter(|(_, value)| value.is_some()).count();
    let mut out = Vec::new();
    syntax::head(&mut out, MAP, 6 + present as u64);
    syntax::text(&mut out, "module_id");
    syntax::text(&mut out, &document.module_id);
    syntax::text(&mut out, "digest");
    syntax::text(&mut out, "SHA384");
    syntax::text(&mut out, "timestamp");
    syntax::head(&mut out, UNSIGNED, document.timestamp_ms);
    syntax::text(&mut out, "pcrs");
    syntax::head(&mut out, MAP, document.pcrs.len() as u64);
    for (index, value) in &document.pcrs {
        syntax::head(&mut out, UNSIGNED, u64::from(*index));
        syntax::bytes(&mut out, value);
    }
    syntax::text(&mut out, "certificate");
    syntax::bytes(&mut out, certificate);
    syntax::text(&mut out, "cabundle");
    syntax::head(&mut out, ARRAY, bundle.len() as u64);
    for certificate in bundle {
        syntax::bytes(&mut out, certificate);
    }
    for (name, value) in claims {
        if let Some(value) = value {
            syntax::text(&mut out, name);
            syntax::bytes(&mut out, value);
        }
    }
    out
}

/// A COSE_Sign1 around a payload.
pub(super) fn sign(payload: &[u8], key: &EcdsaKeyPair) -> Result<Vec<u8>, BuildError> {
    let signature = key
        .sign(&SystemRandom::new(), &syntax::to_be_signed(payload))
        .map_err(|_| BuildError::Key)?;
    Ok(sign1(&PROTECTED, payload, signature.as_ref()))
}

/// The COSE_Sign1 of these parts.
pub(super) fn sign1(protected: &[u8], payload: &[u8], signature: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 128);
    syntax::head(&mut out, ARRAY, 4);
    syntax::bytes(&mut out, protected);
    syntax::head(&mut out, MAP, 0);
    syntax::bytes(&mut out, payload);
    syntax::bytes(&mut out, signature);
    out
}

/// A certificate of an authority that may sign others.
pub(super) fn authority(name: &str, from_ms: u64, until_ms: u64) -> Result<CertificateParams, BuildError> {
    let mut params = certificate(name, from_ms, until_ms)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// A certificate that says nothing yet. It begins a little earlier, for verifiers whose clock is behind.
pub(super) fn certificate(name: &str, from_ms: u64, until_ms: u64) -> Result<CertificateParams, BuildError> {
    if until_ms > LATEST_MS {
        return Err(BuildError::Certificate);
    }
    let epoch = date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + Duration::from_millis(from_ms.saturating_sub(MAX_SKEW_MS));
    params.not_after = epoch + Duration::from_millis(until_ms);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// The public half of what signs documents.
pub(super) struct SigningPoint<'a>(pub(super) &'a EcdsaKeyPair);

impl PublicKeyData for SigningPoint<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P384_SHA384
    }
}
