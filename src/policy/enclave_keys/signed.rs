//! Enclave keys that the policy's owner signed: a JWS (EdDSA) of type `sealflow-enclave-keys`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{EnclaveKeys, EnclaveKeysError, Evidence, MAX_DOCUMENT_BYTES, RawKey, VerifiedEnclaveKeys, check_now};
use crate::clock::UnixMillis;
use crate::jose::{JwsType, PrivateJwk, SelfSigned, jws};
use crate::policy::TrustedOwners;

/// The longest that a document holds: from `iat` to `exp`.
pub const MAX_SPAN: Duration = Duration::from_secs(400 * 86_400);

/// What is signed, as JSON. Times are seconds since 1970-01-01T00:00:00Z (RFC 7519, `NumericDate`).
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    dataset: String,
    labels: Vec<String>,
    keys: Vec<RawKey>,
    iat: u64,
    exp: u64,
}

/// Signs enclave keys, from `now` for `span`.
///
/// # Errors
/// [`EnclaveKeysError::BadSpan`] beyond [`MAX_SPAN`] or below a second; [`EnclaveKeysError::TooLarge`].
pub fn sign(
    keys: &EnclaveKeys,
    now: UnixMillis,
    span: Duration,
    owner: &PrivateJwk,
) -> Result<String, EnclaveKeysError> {
    let iat = now.0 / 1_000;
    let claims = Claims {
        dataset: keys.dataset.clone(),
        labels: keys.labels.clone(),
        keys: keys.to_raw_keys(),
        iat,
        exp: iat.saturating_add(span.as_secs()),
    };
    check_span(&claims)?;
    let payload = serde_json::to_vec(&claims).map_err(|_| EnclaveKeysError::Malformed)?;
    let jws = jws::sign(JwsType::EnclaveKeys, &payload, owner)?;
    if jws.len() > MAX_DOCUMENT_BYTES {
        return Err(EnclaveKeysError::TooLarge);
    }
    Ok(jws)
}

/// Believes enclave keys that a pinned owner of their dataset signed, at `now`. Which dataset that is, and whether a newer
/// document was seen, the caller [checks](VerifiedEnclaveKeys::check).
///
/// # Errors
/// [`EnclaveKeysError`]
pub fn verify(jws: &str, owners: &TrustedOwners, now: UnixMillis) -> Result<VerifiedEnclaveKeys, EnclaveKeysError> {
    if jws.len() > MAX_DOCUMENT_BYTES {
        return Err(EnclaveKeysError::TooLarge);
    }
    let signed = SelfSigned::verify(jws, JwsType::EnclaveKeys)?;
    let signer = signed.signer();
    if !owners.knows(&signer) {
        // Not even read: what somebody signs with a key of their own says nothing, its dataset included.
        return Err(EnclaveKeysError::NotAnOwner {
            dataset: "any dataset".to_owned(),
            signer,
        });
    }
    let claims: Claims = serde_json::from_slice(&signed.into_payload()).map_err(|_| EnclaveKeysError::Malformed)?;
    check_span(&claims)?;
    let Claims {
        dataset,
        labels,
        keys,
        iat,
        exp,
    } = claims;
    let keys = EnclaveKeys::of_raw(&dataset, labels, keys)?;
    if !owners.is_owner(&dataset, &signer) {
        return Err(EnclaveKeysError::NotAnOwner { dataset, signer });
    }
    let moment = |seconds: u64| UnixMillis(seconds.saturating_mul(1_000));
    let (issued, expires) = (moment(iat), moment(exp));
    check_now(issued, expires, now)?;
    Ok(VerifiedEnclaveKeys {
        keys,
        evidence: Evidence::Owner(signer),
        issued,
        expires,
        text: jws.to_owned(),
    })
}

fn check_span(claims: &Claims) -> Result<(), EnclaveKeysError> {
    let seconds = i128::from(claims.exp) - i128::from(claims.iat);
    if (1..=i128::from(MAX_SPAN.as_secs())).contains(&seconds) {
        return Ok(());
    }
    Err(EnclaveKeysError::BadSpan { seconds })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{DAY, NOW, key, keys};
    use super::super::{Document, MAX_KEYS, MAX_LABELS, document, documents};
    use super::*;
    use crate::jose::rsa::to_jwks;
    use crate::policy::Pin;

    fn owner() -> (PrivateJwk, TrustedOwners) {
        let owner = PrivateJwk::generate().unwrap();
        let trusted = TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap();
        (owner, trusted)
    }

    #[test]
    fn keys_that_the_owner_signed_hold_to_their_end_and_not_a_moment_longer() {
        let (owner, trusted) = owner();
        let jws = sign(&keys("payments"), NOW, DAY, &owner).unwrap();
        let verified = verify(&jws, &trusted, NOW).unwrap();
        assert_eq!(verified.keys(), &keys("payments"));
        assert_eq!(verified.evidence(), &Evidence::Owner(owner.thumbprint()));
        let expires = NOW.plus(DAY);
        assert_eq!(
            (verified.issued(), verified.expires(), verified.text()),
            (NOW, expires, &*jws)
        );
        assert!(verify(&jws, &trusted, UnixMillis(expires.0 - 1)).is_ok());
        assert_eq!(
            verify(&jws, &trusted, expires),
            Err(EnclaveKeysError::Expired { at: expires })
        );
        let early = UnixMillis(NOW.0 - 300_000);
        assert!(verify(&jws, &trusted, early).is_ok());
        let too_early = UnixMillis(early.0 - 1);
        assert_eq!(
            verify(&jws, &trusted, too_early),
            Err(EnclaveKeysError::NotYet { at: NOW })
        );
    }

    #[test]
    fn whoever_serves_the_keys_cannot_serve_their_own() {
        let (owner, trusted) = owner();
        let host = PrivateJwk::generate().unwrap();
        // Signed by themselves.
        let own = sign(&keys("payments"), NOW, DAY, &host).unwrap();
        assert!(
            matches!(verify(&own, &trusted, NOW), Err(EnclaveKeysError::NotAnOwner { signer, .. }) if signer == host.thumbprint())
        );
        // By an owner of another dataset.
        let pin = |name: &str, key: &PrivateJwk| format!("{name}={}", key.thumbprint()).parse::<Pin>().unwrap();
        let per_dataset = TrustedOwners::pinned(&[pin("payments", &owner), pin("other", &host)]).unwrap();
        let dataset = "payments".to_owned();
        let signer = host.thumbprint();
        assert_eq!(
            verify(&own, &per_dataset, NOW),
            Err(EnclaveKeysError::NotAnOwner { dataset, signer })
        );
        // A bare key, a set of them, and what is neither.
        for bare in [key().to_published_json(), to_jwks(&[key()]), key().to_json()] {
            assert_eq!(document(&bare), Err(EnclaveKeysError::BareKey));
            assert_eq!(documents(&bare), Err(EnclaveKeysError::BareKey));
            assert_eq!(
                documents(&format!("{{\"documents\":[{bare}]}}")),
                Err(EnclaveKeysError::BareKey)
            );
        }
        // What the owner signed, as something else: a document of one type is none of another.
        let jws = sign(&keys("payments"), NOW, DAY, &owner).unwrap();
        let payload = SelfSigned::verify(&jws, JwsType::EnclaveKeys).unwrap().into_payload();
        for typ in [JwsType::Policy, JwsType::Domain, JwsType::Lease, JwsType::Audit] {
            let other = jws::sign(typ, &payload, &owner).unwrap();
            assert!(
                matches!(verify(&other, &trusted, NOW), Err(EnclaveKeysError::Jws(_))),
                "{typ}"
            );
        }
        // Another key in the place of the owner's, under the owner's signature.
        let parts: Vec<&str> = jws.split('.').collect();
        let text = String::from_utf8(payload).unwrap();
        let changed = text.replace("\"payments\"", "\"refunds\"");
        assert_ne!(changed, text);
        let changed = [parts[0], &crate::jose::base64url(changed.as_bytes()), parts[2]].join(".");
        assert!(matches!(verify(&changed, &trusted, NOW), Err(EnclaveKeysError::Jws(_))));
    }

    #[test]
    fn keys_of_another_dataset_and_keys_older_than_those_that_were_seen_do_not_count() {
        let (owner, trusted) = owner();
        let of = |dataset: &str, at| verify(&sign(&keys(dataset), at, DAY, &owner).unwrap(), &trusted, NOW).unwrap();
        let second = Duration::from_secs(1);
        let (older, newer) = (of("payments", NOW), of("payments", NOW.plus(second)));
        assert!(newer.clone().check("payments", Some(older.issued())).is_ok());
        assert!(older.clone().check("payments", Some(older.issued())).is_ok());
        let refused = older.check("payments", Some(newer.issued()));
        let (issued, seen) = (NOW, NOW.plus(second));
        assert_eq!(refused, Err(EnclaveKeysError::Older { issued, seen }));
        assert!(matches!(
            of("refunds", NOW).check("payments", None),
            Err(EnclaveKeysError::OtherDataset { .. })
        ));
    }

    #[test]
    fn claims_that_an_owner_signed_by_other_means_are_checked_too() {
        let (owner, trusted) = owner();
        let good = sign(&keys("payments"), NOW, DAY, &owner).unwrap();
        let good = SelfSigned::verify(&good, JwsType::EnclaveKeys).unwrap().into_payload();
        let good = String::from_utf8(good).unwrap();
        let of = |claims: &str| {
            let jws = jws::sign(JwsType::EnclaveKeys, claims.as_bytes(), &owner).unwrap();
            verify(&jws, &trusted, NOW)
        };
        assert!(of(&good).is_ok());
        let with = |from: &str, to: &str| {
            let changed = good.replacen(from, to, 1);
            assert_ne!(changed, good, "{from}");
            of(&changed).unwrap_err()
        };
        let exp = format!("\"exp\":{}", NOW.plus(DAY).0 / 1_000);
        assert_eq!(
            with(&exp, &format!("\"exp\":{}", NOW.plus(MAX_SPAN).0 / 1_000 + 1)),
            EnclaveKeysError::BadSpan {
                seconds: 400 * 86_400 + 1
            }
        );
        for other in ["\"exp\":1", "\"exp\":18446744073709551615", "\"exp\":0"] {
            assert!(matches!(with(&exp, other), EnclaveKeysError::BadSpan { .. }), "{other}");
        }
        for other in [
            "\"exp\":-1",
            "\"exp\":1.5",
            "\"exp\":\"1\"",
            "\"nbf\":1",
            "\"x\":1,\"exp\":1",
        ] {
            assert_eq!(with(&exp, other), EnclaveKeysError::Malformed, "{other}");
        }
        assert_eq!(
            with(
                "{\"dataset\":\"payments\"",
                "{\"dataset\":\"payments\",\"dataset\":\"payments\""
            ),
            EnclaveKeysError::Malformed
        );
        assert_eq!(
            with("\"use\":\"enc\"", "\"use\":\"enc\",\"x\":1"),
            EnclaveKeysError::Malformed
        );
        assert_eq!(
            with("\"use\":\"enc\"", "\"use\":\"enc\",\"d\":\"AQAB\""),
            EnclaveKeysError::Malformed
        );
        assert!(matches!(
            with("\"use\":\"enc\"", "\"use\":\"sig\""),
            EnclaveKeysError::BadKey(_)
        ));
        assert!(matches!(with("\"AQAB\"", "\"Aw\""), EnclaveKeysError::BadKey(_)));
        let kid = key().thumbprint().to_string();
        for (from, to) in [
            ("\"payments\"", "\"../payments\""),
            ("[\"card\"", "[\"\""),
            ("[\"card\"", "[\"a\\nb\""),
            ("[\"card\"", "[\"card\",\"card\""),
            (&*kid, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),
        ] {
            assert!(matches!(with(from, to), EnclaveKeysError::BadContent { .. }), "{to}");
        }
    }

    #[test]
    fn there_are_bounds_for_keys_labels_and_length() {
        let (owner, trusted) = owner();
        let labels =
            |count: usize, long: usize| -> Vec<String> { (0..count).map(|n| format!("{n:0>long$}")).collect() };
        let new = |labels, keys| EnclaveKeys::new("payments", labels, keys);
        assert!(new(labels(MAX_LABELS, 3), vec![key()]).is_ok());
        for bad in [
            new(labels(MAX_LABELS + 1, 3), vec![key()]),
            new(vec![], vec![key()]),
            new(labels(1, 1_025), vec![key()]),
            new(labels(1, 1), vec![]),
            new(labels(1, 1), vec![key(), key()]),
            new(labels(1, 1), vec![key(); MAX_KEYS + 1]),
            EnclaveKeys::new("a/b", labels(1, 1), vec![key()]),
        ] {
            assert!(matches!(bad, Err(EnclaveKeysError::BadContent { .. })));
        }
        let long = new(labels(MAX_LABELS, 1_000), vec![key()]).unwrap();
        assert_eq!(sign(&long, NOW, DAY, &owner), Err(EnclaveKeysError::TooLarge));
        for span in [MAX_SPAN + Duration::from_secs(1), Duration::ZERO] {
            assert!(matches!(
                sign(&keys("d"), NOW, span, &owner),
                Err(EnclaveKeysError::BadSpan { .. })
            ));
        }
        let most = "a".repeat(MAX_DOCUMENT_BYTES);
        assert_eq!(document(&most).err(), None, "a text of exactly the most is looked at");
        let longer = format!("{most}a");
        assert_eq!(verify(&longer, &trusted, NOW), Err(EnclaveKeysError::TooLarge));
        assert_eq!(document(&longer), Err(EnclaveKeysError::TooLarge));
    }

    #[test]
    fn a_file_has_one_document_or_those_of_an_answer_in_its_order() {
        let (owner, _) = owner();
        let (one, two) = (
            sign(&keys("a"), NOW, DAY, &owner).unwrap(),
            sign(&keys("b"), NOW, DAY, &owner).unwrap(),
        );
        assert_eq!(documents(&format!("{one}\n")), Ok(vec![Document::Signed(&one)]));
        let answer = format!("{{ \"documents\": [\"{one}\", \"{two}\"] }}\n");
        assert_eq!(
            documents(&answer),
            Ok(vec![Document::Signed(&one), Document::Signed(&two)])
        );
        assert_eq!(documents("{\"documents\":[]}"), Err(EnclaveKeysError::None));
        assert_eq!(
            documents(&format!("{{\"documents\":[{}]}}", vec!["\"a\""; 65].join(","))),
            Err(EnclaveKeysError::TooLarge)
        );
        for bad in [
            "{}",
            "{\"documents\":[1]}",
            "{\"documents\":1}",
            "{\"documents\":[{}]}",
            "{",
        ] {
            let refused = documents(bad).and_then(|all| match all[..] {
                [Document::Signed(jws)] => {
                    verify(jws, &TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap(), NOW).map(drop)
                }
                _ => Ok(()),
            });
            assert!(refused.is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_believed_that_was_not_signed(text in ".{0,300}", at in 0_usize..400, with in any::<char>()) {
            let (owner, trusted) = owner();
            prop_assert!(verify(&text, &trusted, NOW).is_err());
            let _ = documents(&text);
            let jws = sign(&keys("payments"), NOW, DAY, &owner).unwrap();
            let mut changed: Vec<char> = jws.chars().collect();
            changed[at % jws.len()] = with;
            let changed: String = changed.into_iter().collect();
            prop_assert!(changed == jws || verify(&changed, &trusted, NOW).is_err());
        }
    }
}
