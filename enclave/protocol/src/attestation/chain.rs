//! The chain of a document: from the certificate whose key signed it to the root. `rustls-webpki` checks the path (signatures,
//! names, validity, basic constraints, path length, critical extensions); here is what it leaves out.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime};
use webpki::aws_lc_rs::ECDSA_P384_SHA384;
use webpki::{EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeIdIter, anchor_from_trusted_cert};

use super::AttestationError;
use super::x509::Profile;

/// Signatures of certificates: ECDSA on P-384 with SHA-384, as AWS's are.
const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[ECDSA_P384_SHA384];
/// A point on P-384, uncompressed.
const POINT_BYTES: usize = 97;
/// A `SubjectPublicKeyInfo` of P-384 up to its point (RFC 5480).
const P384_PREFIX: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22, 0x03, 0x62, 0x00,
];

/// Follows the chain at `now_ms`, and gives the key of the certificate at its end: a point on P-384.
///
/// `intermediates` are in the document's order, the one below the root first, and must all be part of the path in that order.
pub(super) fn verify(
    certificate: &[u8],
    intermediates: &[&[u8]],
    root: &[u8],
    now_ms: u64,
) -> Result<[u8; POINT_BYTES], AttestationError> {
    let now = Duration::from_millis(now_ms);
    check_root_now(root, intermediates.len(), now)?;
    let root = CertificateDer::from(root);
    let anchor = anchor_from_trusted_cert(&root).map_err(|_| AttestationError::Root("it is no certificate"))?;
    let chain: Vec<CertificateDer<'_>> = intermediates.iter().map(|der| CertificateDer::from(*der)).collect();
    let certificate = CertificateDer::from(certificate);
    let leaf = EndEntityCert::try_from(&certificate).map_err(|error| refusal(&error))?;
    let path = leaf
        .verify_for_usage(
            ALGORITHMS,
            std::slice::from_ref(&anchor),
            &chain,
            UnixTime::since_unix_epoch(now),
            NoPurpose,
            None,
            None,
        )
        .map_err(|error| refusal(&error))?;

    let mut found = 0;
    for (used, listed) in path.intermediate_certificates().zip(intermediates.iter().rev()) {
        if used.der().as_ref() != *listed {
            return Err(AttestationError::Chain("`cabundle` is not in order, the root first"));
        }
        if !profile(listed)?.may_certify() {
            return Err(AttestationError::Chain("an authority may not sign certificates"));
        }
        found += 1;
    }
    if found != intermediates.len() {
        return Err(AttestationError::Chain(
            "`cabundle` holds a certificate that is no part of it",
        ));
    }
    let signer = profile(&certificate)?;
    if !signer.may_sign() {
        return Err(AttestationError::Chain(
            "the certificate that signed may not sign documents",
        ));
    }
    if signer.path_length.is_some() {
        return Err(AttestationError::Chain(
            "the certificate that signed has a path length, like an authority",
        ));
    }
    point(&leaf.subject_public_key_info()).ok_or(AttestationError::Chain("the key that signed is not on P-384"))
}

/// Whether a certificate can be a root: an authority that may sign certificates, on P-384.
pub(super) fn check_root(root: &[u8]) -> Result<Profile, AttestationError> {
    let profile = Profile::of(root).ok_or(AttestationError::Root("it is no certificate"))?;
    if !profile.is_ca {
        return Err(AttestationError::Root("it is no authority"));
    }
    if !profile.may_certify() {
        return Err(AttestationError::Root("it may not sign certificates"));
    }
    let der = CertificateDer::from(root);
    let certificate = EndEntityCert::try_from(&der).map_err(|_| AttestationError::Root("it is no certificate"))?;
    point(&certificate.subject_public_key_info()).ok_or(AttestationError::Root("its key is not on P-384"))?;
    Ok(profile)
}

/// A root's own validity and path length, which a path check takes for granted.
fn check_root_now(root: &[u8], intermediates: usize, now: Duration) -> Result<(), AttestationError> {
    let profile = check_root(root)?;
    let now = i64::try_from(now.as_secs()).map_err(|_| AttestationError::Validity)?;
    let (not_before, not_after) = profile.validity;
    if now < not_before || now > not_after {
        return Err(AttestationError::Validity);
    }
    if profile
        .path_length
        .is_some_and(|length| intermediates > usize::from(length))
    {
        return Err(AttestationError::Chain("it is longer than its root allows"));
    }
    Ok(())
}

fn profile(certificate: &[u8]) -> Result<Profile, AttestationError> {
    Profile::of(certificate).ok_or(AttestationError::Chain("a certificate of it cannot be read"))
}

fn point(key: &SubjectPublicKeyInfoDer<'_>) -> Option<[u8; POINT_BYTES]> {
    key.as_ref().strip_prefix(P384_PREFIX)?.try_into().ok()
}

/// Certificates of this PKI have no extended key usage; one for TLS servers or code would belong to something else.
struct NoPurpose;

impl ExtendedKeyUsageValidator for NoPurpose {
    fn validate(&self, mut purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        match purposes.next() {
            None => Ok(()),
            Some(_) => Err(Error::UnsupportedCriticalExtension),
        }
    }
}

fn refusal(error: &Error) -> AttestationError {
    match error {
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => AttestationError::Validity,
        Error::CaUsedAsEndEntity => AttestationError::Chain("the certificate that signed is an authority's"),
        Error::EndEntityUsedAsCa => AttestationError::Chain("a certificate was signed by one that is no authority"),
        Error::PathLenConstraintViolated | Error::MaximumPathDepthExceeded => {
            AttestationError::Chain("it is longer than one of its authorities allows")
        }
        Error::InvalidSignatureForPublicKey => AttestationError::Chain("a certificate's signature is wrong"),
        Error::UnsupportedCriticalExtension => {
            AttestationError::Chain("a certificate is for another purpose, or has an extension that is not known")
        }
        Error::UnknownIssuer => AttestationError::Chain("a certificate between them is missing"),
        _ => AttestationError::Chain("a certificate of it cannot be read, or is not of ECDSA on P-384"),
    }
}
