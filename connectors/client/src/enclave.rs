//! Keys of enclaves: believed only from a document that somebody vouches for whom the client has pinned.
//!
//! The backend's host serves these documents, and must not be able to serve keys of its own. So an [`EnclaveKey`] cannot be made of a
//! JWK: it comes out of a document that verifies, with its dataset and labels, and nothing else can be sealed to it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use sealflow::clock::UnixMillis;
use sealflow::jose::Thumbprint;
use sealflow::jose::rsa::RsaPublicJwk;
#[cfg(feature = "attestation")]
use sealflow::policy::enclave_keys::attested;
use sealflow::policy::enclave_keys::{self, Document, signed};
use sealflow::policy::{EnclaveKeysError, Evidence, TrustedOwners, VerifiedEnclaveKeys};

use crate::session::SealError;

/// Whom a client believes about the keys of an enclave: exactly one kind.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EnclavePins {
    /// Owners of policies, by the thumbprints of their keys: documents that one of them signed.
    Owners(TrustedOwners),
    /// Measurements of enclaves: documents that one of them attests.
    #[cfg(feature = "attestation")]
    Measurements(attested::Pinned),
}

impl EnclavePins {
    /// Documents that a key with this thumbprint signed, whatever their dataset.
    #[must_use]
    pub fn owner(owner: Thumbprint) -> Self {
        Self::Owners(TrustedOwners::of(owner))
    }

    fn verify(&self, document: Document<'_>, now: UnixMillis) -> Result<VerifiedEnclaveKeys, EnclaveKeysError> {
        match (self, document) {
            (Self::Owners(owners), Document::Signed(jws)) => signed::verify(jws, owners, now),
            #[cfg(feature = "attestation")]
            (Self::Measurements(pinned), Document::Attested(json)) => attested::verify(json, pinned, now),
            // Kinds of documents that nobody pinned.
            _ => Err(EnclaveKeysError::OtherKind),
        }
    }
}

/// An RSA key whose private half an enclave has, and what may be sealed to it: the values of some labels of one dataset, until a moment.
///
/// There is no way to make one of a JWK.
///
/// ```compile_fail
/// # fn bare(jwk: sealflow_client::RsaPublicJwk) {
/// let key = sealflow_client::EnclaveKey::from(jwk);
/// # }
/// ```
#[derive(Clone)]
pub struct EnclaveKey {
    key: RsaPublicJwk,
    document: VerifiedEnclaveKeys,
}

impl EnclaveKey {
    /// The current key of `dataset` in a document or in the answer of `/.well-known/enclave-keys`, by the time of this machine. Of several
    /// documents that verify the one that was made last counts. `seen` is when the latest was made that this client has seen
    /// ([`issued`](Self::issued)): what is older is refused, since who serves documents can hold the newest back.
    ///
    /// # Errors
    /// [`EnclaveKeysError`]: of the first document, if none is believed.
    pub fn believe(
        text: &str,
        pins: &EnclavePins,
        dataset: &str,
        seen: Option<UnixMillis>,
    ) -> Result<Self, EnclaveKeysError> {
        Self::believe_at(text, pins, dataset, seen, now())
    }

    /// As [`believe`](Self::believe), at a time that the caller knows better than this machine.
    ///
    /// # Errors
    /// [`EnclaveKeysError`]
    pub fn believe_at(
        text: &str,
        pins: &EnclavePins,
        dataset: &str,
        seen: Option<UnixMillis>,
        now: UnixMillis,
    ) -> Result<Self, EnclaveKeysError> {
        let mut newest: Option<VerifiedEnclaveKeys> = None;
        let mut refused = None;
        for document in enclave_keys::documents(text)? {
            match pins.verify(document, now).and_then(|keys| keys.check(dataset, seen)) {
                Ok(keys) if newest.as_ref().is_none_or(|other| other.issued() < keys.issued()) => newest = Some(keys),
                Ok(_) => {}
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let document = newest.ok_or_else(|| refused.unwrap_or(EnclaveKeysError::None))?;
        // There is one: documents without are refused.
        let key = document.keys().keys().first().cloned().ok_or(EnclaveKeysError::None)?;
        Ok(Self { key, document })
    }

    /// The dataset whose values are sealed to it.
    #[must_use]
    pub fn dataset(&self) -> &str {
        self.document.keys().dataset()
    }

    /// The labels whose values are sealed to it.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        self.document.keys().labels()
    }

    /// Whether the values of this label are sealed to it.
    #[must_use]
    pub fn is_for(&self, label: &str) -> bool {
        self.labels().iter().any(|one| one == label)
    }

    /// Who vouches for it.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        self.document.evidence()
    }

    /// When its document was made: keep it for next time.
    #[must_use]
    pub fn issued(&self) -> UnixMillis {
        self.document.issued()
    }

    /// The first moment at which nothing is sealed to it any more.
    #[must_use]
    pub fn expires(&self) -> UnixMillis {
        self.document.expires()
    }

    /// The document that it came from.
    #[must_use]
    pub fn document(&self) -> &str {
        self.document.text()
    }

    /// Its name (RFC 7638).
    #[must_use]
    pub fn thumbprint(&self) -> Thumbprint {
        self.key.thumbprint()
    }

    pub(crate) fn jwk(&self) -> &RsaPublicJwk {
        &self.key
    }

    /// How long it can be sealed to from now on.
    pub(crate) fn remaining(&self) -> Result<Duration, SealError> {
        let remaining = self.expires().since(now());
        if remaining.is_zero() {
            return Err(SealError::KeyEnded);
        }
        Ok(remaining)
    }

    pub(crate) fn check(&self, label: &str) -> Result<(), SealError> {
        if self.is_for(label) {
            return Ok(());
        }
        Err(SealError::NotOfTheEnclave)
    }
}

impl fmt::Debug for EnclaveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnclaveKey")
            .field("dataset", &self.dataset())
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Labels whose values go to an enclave, as the caller knows them: nothing of them is sealed to a bare key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnclaveLabels(BTreeSet<String>);

impl EnclaveLabels {
    pub(crate) fn check(&self, label: &str) -> Result<(), SealError> {
        if self.0.contains(label) {
            return Err(SealError::OfAnEnclave);
        }
        Ok(())
    }
}

impl<S: Into<String>> FromIterator<S> for EnclaveLabels {
    fn from_iter<I: IntoIterator<Item = S>>(labels: I) -> Self {
        Self(labels.into_iter().map(Into::into).collect())
    }
}

fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use sealflow::jose::PrivateJwk;
    use sealflow::jose::jwe::{Jwe, KeyManagement};
    use sealflow::policy::EnclaveKeys;

    use super::*;
    use crate::{PrivateKey, RowId, RsaBits, Session, seal_value_beside, seal_value_for_enclave};

    const HOUR: Duration = Duration::from_secs(3_600);

    struct Bench {
        owner: PrivateJwk,
        pins: EnclavePins,
        enclave: PrivateKey,
    }

    impl Bench {
        fn new() -> Self {
            let owner = PrivateJwk::generate().unwrap();
            Self {
                pins: EnclavePins::owner(owner.thumbprint()),
                owner,
                enclave: PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
            }
        }

        fn keys(&self, dataset: &str, labels: &[&str]) -> EnclaveKeys {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            EnclaveKeys::new(dataset, labels, vec![self.enclave.public().unwrap()]).unwrap()
        }

        fn signed(&self, dataset: &str, labels: &[&str], at: UnixMillis, span: Duration) -> String {
            signed::sign(&self.keys(dataset, labels), at, span, &self.owner).unwrap()
        }

        fn believe(&self, text: &str) -> Result<EnclaveKey, EnclaveKeysError> {
            EnclaveKey::believe(text, &self.pins, "payments", None)
        }
    }

    fn ago(span: Duration) -> UnixMillis {
        let earlier = now().0 - u64::try_from(span.as_millis()).unwrap();
        UnixMillis(earlier)
    }

    #[test]
    fn what_is_sealed_for_an_enclave_is_a_session_of_its_dataset_and_of_its_labels_alone() {
        let bench = Bench::new();
        let key = bench
            .believe(&bench.signed("payments", &["card", "items[*].pan"], now(), HOUR))
            .unwrap();
        let mut session = Session::begin_for_enclave(&key).unwrap();
        let row = RowId::new("\"o-7\"", &[2]).unwrap();
        let text = session.seal_in_row("items[*].pan", b"\"4111\"", &row).unwrap();
        let jwe = Jwe::parse(&text).unwrap();
        let header = jwe.header().unwrap();
        assert_eq!(header.key_management, KeyManagement::Direct);
        assert_eq!(header.dataset.as_deref(), Some("payments"));
        assert!(
            bench.enclave.open(session.token()).is_ok(),
            "the private half opens the session"
        );
        assert!(session.seal("card", b"1").is_ok());
        for label in ["items[*].name", "Card", "card ", "", "items"] {
            assert_eq!(session.seal(label, b"1"), Err(SealError::NotOfTheEnclave), "{label}");
            assert_eq!(
                seal_value_for_enclave(&key, label, b"1", None, None),
                Err(SealError::NotOfTheEnclave),
                "{label}"
            );
        }
        let value = seal_value_for_enclave(&key, "card", b"12.50", None, None).unwrap();
        assert_eq!(bench.enclave.open(&value).unwrap().expose(), b"12.50");
    }

    #[test]
    fn a_bare_key_gets_nothing_of_an_enclave() {
        let bare = PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap();
        let labels: EnclaveLabels = ["card"].into_iter().collect();
        let mut session = Session::begin(&bare, "payments").unwrap().never_for(labels.clone());
        assert!(session.seal("note", b"1").is_ok());
        assert_eq!(session.seal("card", b"1"), Err(SealError::OfAnEnclave));
        let row = RowId::new("1", &[]).unwrap();
        assert_eq!(session.seal_in_row("card", b"1", &row), Err(SealError::OfAnEnclave));
        assert!(seal_value_beside(&labels, &bare, "payments", "note", b"1", None, None).is_ok());
        let refused = seal_value_beside(&labels, &bare, "payments", "card", b"1", None, None);
        assert_eq!(refused, Err(SealError::OfAnEnclave));
        let bench = Bench::new();
        for text in [bare.to_published_json(), sealflow::jose::rsa::to_jwks(&[bare])] {
            assert_eq!(bench.believe(&text).err(), Some(EnclaveKeysError::BareKey));
        }
    }

    #[test]
    fn a_host_that_serves_what_it_likes_makes_nobody_seal_to_its_key() {
        let (bench, host) = (Bench::new(), Bench::new());
        let good = bench.signed("payments", &["card"], ago(HOUR), 2 * HOUR);
        let key = bench.believe(&good).unwrap();
        // Its own key, signed by itself: alone, and before or behind the owner's.
        let own = host.signed("payments", &["card"], now(), HOUR);
        assert!(matches!(
            bench.believe(&own).err(),
            Some(EnclaveKeysError::NotAnOwner { .. })
        ));
        for both in [format!("[\"{own}\",\"{good}\"]"), format!("[\"{good}\",\"{own}\"]")] {
            let believed = bench.believe(&format!("{{\"documents\":{both}}}")).unwrap();
            assert_eq!(believed.thumbprint(), key.thumbprint());
        }
        // The owner's word about another dataset, or about a time that is over.
        let other = bench.signed("refunds", &["card"], now(), HOUR);
        assert!(matches!(
            bench.believe(&other).err(),
            Some(EnclaveKeysError::OtherDataset { .. })
        ));
        let over = bench.signed("payments", &["card"], ago(2 * HOUR), HOUR);
        assert!(matches!(
            bench.believe(&over).err(),
            Some(EnclaveKeysError::Expired { .. })
        ));
        // One that holds, and is older than what was seen here: with labels that were taken away since, say.
        let newer = bench.signed("payments", &["note"], now(), HOUR);
        let newer = bench.believe(&newer).unwrap();
        let again = EnclaveKey::believe(&good, &bench.pins, "payments", Some(newer.issued()));
        assert!(matches!(again.err(), Some(EnclaveKeysError::Older { .. })));
        // Parts of two documents put together.
        let (one, two): (Vec<&str>, Vec<&str>) = (good.split('.').collect(), own.split('.').collect());
        for mixed in [
            [one[0], two[1], one[2]],
            [two[0], one[1], one[2]],
            [one[0], two[1], two[2]],
        ] {
            assert!(matches!(
                bench.believe(&mixed.join(".")).err(),
                Some(EnclaveKeysError::Jws(_))
            ));
        }
    }

    #[cfg(feature = "dev-software-nsm")]
    #[test]
    fn a_client_that_pins_measurements_believes_that_enclave_and_no_owner() {
        use attested::{DEFAULT_MAX_AGE, Measurement, Measurements, Pinned, Tier, Trust};
        use sealflow_enclave_protocol::attestation::build::DevRoot;

        let bench = Bench::new();
        let root = DevRoot::generate(now().0).unwrap();
        let issuer = root.issuer(now().0).unwrap();
        let pins = |image: u8| {
            EnclavePins::Measurements(Pinned {
                trust: Trust::with_dev_root(root.certificate()).unwrap(),
                measurements: vec![Measurements::of_image(Measurement::new(&[image; 48]).unwrap())],
                nonce: None,
                max_age: DEFAULT_MAX_AGE,
            })
        };
        let keys = bench.keys("payments", &["card"]);
        let evidence = sealflow_enclave_protocol::attestation::Document {
            module_id: "i-test-enc".to_owned(),
            timestamp_ms: now().0,
            pcrs: [(0, vec![0xA1; 48])].into_iter().collect(),
            public_key: None,
            user_data: Some(attested::user_data(&keys).unwrap()),
            nonce: None,
            tier: Tier::DevSoftwareNsm,
        };
        let document = attested::write(&keys, &issuer.document(&evidence).unwrap()).unwrap();
        let believe = |text: &str, pins: &EnclavePins| EnclaveKey::believe(text, pins, "payments", None);
        let key = believe(&document, &pins(0xA1)).unwrap();
        assert!(matches!(
            key.evidence(),
            Evidence::Measured {
                tier: "dev-software-nsm",
                ..
            }
        ));
        assert!(Session::begin_for_enclave(&key).unwrap().seal("card", b"1").is_ok());
        assert!(matches!(
            believe(&document, &pins(0xA2)).err(),
            Some(EnclaveKeysError::Attestation(_))
        ));
        // One kind of pin says nothing of the other kind of document.
        assert_eq!(believe(&document, &bench.pins).err(), Some(EnclaveKeysError::OtherKind));
        let signed = bench.signed("payments", &["card"], now(), HOUR);
        assert_eq!(believe(&signed, &pins(0xA1)).err(), Some(EnclaveKeysError::OtherKind));
        let both = format!("{{\"documents\":[\"{signed}\",{document}]}}");
        assert!(believe(&both, &pins(0xA1)).is_ok() && believe(&both, &bench.pins).is_ok());
    }

    #[test]
    fn nothing_is_sealed_once_the_document_has_ended() {
        let bench = Bench::new();
        let text = bench.signed("payments", &["card"], ago(2 * HOUR), HOUR);
        let then = ago(HOUR + HOUR / 2);
        let key = EnclaveKey::believe_at(&text, &bench.pins, "payments", None, then).unwrap();
        assert_eq!(Session::begin_for_enclave(&key).err(), Some(SealError::KeyEnded));
        let refused = seal_value_for_enclave(&key, "card", b"1", None, None);
        assert_eq!(refused, Err(SealError::KeyEnded));
        // A session that was begun before does not go on after it, either.
        let text = bench.signed("payments", &["card"], ago(HOUR), HOUR + Duration::from_secs(5));
        let mut session = Session::begin_for_enclave(&bench.believe(&text).unwrap()).unwrap();
        assert!(session.seal("card", b"1").is_ok());
        std::thread::sleep(Duration::from_millis(5_100));
        assert_eq!(session.seal("card", b"1"), Err(SealError::UsedUp));
        assert!(!session.has_room(1));
    }
}
