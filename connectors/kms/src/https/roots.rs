//! Which roots are believed: Amazon's own, those of the web, or exactly one.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

/// What the subjects of Amazon Trust Services' roots hold: Amazon Root CA 1 to 4, and Starfield Services, which signs them
/// across for old clients.
const AMAZON: [&[u8]; 2] = [b"Amazon Root CA", b"Starfield Services Root Certificate Authority"];

/// Not a certificate that can be a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate (X.509, DER) that can be a root")]
pub struct RootError;

/// The roots of Amazon Trust Services alone: what endpoints of AWS prove themselves by, outside China. Compiled in.
///
/// Fewer than the web's, since any of those could say who KMS is.
#[must_use]
pub fn amazon_roots() -> RootCertStore {
    let of_amazon = |subject: &[u8]| {
        let holds = |name: &&[u8]| subject.windows(name.len()).any(|part| part == *name);
        AMAZON.iter().any(holds)
    };
    let mut roots = RootCertStore::empty();
    let all = webpki_roots::TLS_SERVER_ROOTS.iter();
    roots.roots.extend(all.filter(|root| of_amazon(&root.subject)).cloned());
    roots
}

/// Mozilla's list, compiled in: for OIDC issuers, and for AWS in China.
#[must_use]
pub fn web_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots
}

/// This root (X.509, DER) and no other: for a server of one's own.
///
/// # Errors
/// [`RootError`]
pub fn only_root(der: &[u8]) -> Result<RootCertStore, RootError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(der.to_vec())).map_err(|_| RootError)?;
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_is_believed_by_its_own_roots_alone() {
        assert_eq!(amazon_roots().len(), 5);
        assert!(web_roots().len() > 50);
        assert_eq!(only_root(b"no certificate").err(), Some(RootError));
    }
}
