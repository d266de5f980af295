//! A host that is not honest about readers: it has the worker's channel to itself, and the proofs of readers in its hands.

use std::time::{Duration, Instant};

use sealflow::flow::enclave::EnclaveError;
use sealflow::flow::enclave::answer::AnswerClaims;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow_client::{PrivateKey, RsaBits};
use sealflow_enclave_protocol::message::{Proof, ReadJob, What};
use serde_json::{Value, json};

use crate::bench::{Bench, ENCLAVE_RSA, SERVER_ID};
use crate::by_hand::{self, Answered, Host, text};
use crate::certificate::Authority;
use crate::issuer::{ISSUER, Issuer, SERVER};
use crate::service::{sealed_records, token};

fn refused(answered: Result<Answered, EnclaveError>) -> String {
    match answered {
        Err(EnclaveError::Refused { reason }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was answered"),
    }
}

#[test]
fn a_host_that_puts_its_own_key_into_a_readers_request_gets_nothing() {
    let Some(bench) = Bench::new("swapped") else { return };
    let records = sealed_records(&bench);
    let record: Value = serde_json::from_str(&records[0]).unwrap();
    let (card, email) = (record["card"].as_str().unwrap(), record["email"].as_str().unwrap());
    let host = Host::behind_socket(&bench, &[]);
    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let own = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let jwk = |key: &PrivateKey| key.public().unwrap().to_json().into_bytes();
    let proof = |role: &str, server: &str, key: Option<&PrivateKey>| {
        let header = token(&bench, role, server, key);
        header.strip_prefix("Sealflow-STS ").unwrap().to_owned()
    };
    let (to_reader, to_host) = (jwk(&reader), jwk(&own));
    let of_reader = proof("support", SERVER_ID, Some(&reader));
    let job =
        |proof: &str, seal_to: &[u8], values: &[(Option<&'static str>, &str)]| -> Result<Answered, EnclaveError> {
            let job = ReadJob {
                dataset: "payments",
                purpose: None,
                proof: Proof::Sts(proof),
                seal_to,
                nonce: b"a nonce of the reader's",
                envelopes: Vec::new(),
                what: What::Values(values.to_vec()),
            };
            host.ask(&bench, &job)
        };

    // What an honest host is answered: the reader's key opens it, the host's does not.
    let honest = job(&of_reader, &to_reader, &[(Some("card"), card), (None, card)]).unwrap();
    for shown in &honest.shown {
        let jwe: String = serde_json::from_slice(shown.as_ref().unwrap()).unwrap();
        assert_eq!(reader.open(&jwe).unwrap().expose(), b"\"canary-service-77ab-0\"");
        assert!(own.open(&jwe).is_err());
    }
    // The reader knows whose answer it is, and to which question.
    let signer = host.signer().parse().unwrap();
    let shown: Vec<Option<&[u8]>> = honest.shown.iter().map(Option::as_deref).collect();
    let thumbprint = reader.public().unwrap().thumbprint();
    let verify = |nonce: &[u8], shown: &[Option<&[u8]>]| {
        AnswerClaims::verify(&honest.proof, signer, ("payments", thumbprint, nonce), shown).is_ok()
    };
    assert!(verify(b"a nonce of the reader's", &shown));
    assert!(!verify(b"another nonce", &shown));
    assert!(!verify(b"a nonce of the reader's", &shown[..1]));

    // Its own key in the place of the reader's; a proof that commits to none, or that is for another server.
    let swapped = refused(job(&of_reader, &to_host, &[(Some("card"), card)]));
    assert!(swapped.contains("does not commit to the key"), "{swapped}");
    let uncommitted = proof("support", SERVER_ID, None);
    for key in [&to_reader, &to_host] {
        let reason = refused(job(&uncommitted, key, &[(Some("card"), card)]));
        assert!(reason.contains("does not commit to the key"), "{reason}");
    }
    let elsewhere = proof("support", "other.test", Some(&reader));
    refused(job(&elsewhere, &to_reader, &[(Some("card"), card)]));
    refused(job("not.a.proof", &to_reader, &[(Some("card"), card)]));
    // As itself it may ask, and the ACL says no; nor does it learn anything by calling the value another column's, or the other way
    // round: the worker opens columns of the enclave, and no others.
    let of_host = proof("pipeline", SERVER_ID, Some(&own));
    let asked = job(
        &of_host,
        &to_host,
        &[(Some("card"), card), (Some("email"), card), (None, card)],
    )
    .unwrap();
    assert!(asked.shown.iter().all(|shown| shown.as_deref() == Some(b"null")));
    let moved = job(
        &of_reader,
        &to_reader,
        &[(Some("email"), card), (Some("card"), email), (None, email)],
    )
    .unwrap();
    assert!(moved.shown.iter().all(|shown| shown.as_deref() == Some(b"null")));
}

#[test]
fn a_token_counts_in_the_enclave_that_it_is_for_and_for_the_key_that_it_names() {
    let authority = Authority::new();
    let issuer = Issuer::start_tls(&authority);
    let root = String::from_utf8(authority.root().to_pem().unwrap()).unwrap();
    let jwks = format!("127.0.0.1:{}", issuer.address.port());
    let measured = format!(
        "issuers: [{{ issuer: \"{ISSUER}\", audiences: [{SERVER}], jwks_uri: \"https://{jwks}/keys\", root: \"{}\" }}]\n",
        root.replace('\n', "\\n")
    );
    let Some(bench) = Bench::with_measured("tokens", &measured) else {
        return;
    };
    let host = Host::behind_socket(&bench, &[jwks]);
    let mut session = bench.session(ENCLAVE_RSA);
    let sealed = host.reseal(&bench, &bench.policy(1), &mut session, &["4111"]).unwrap();
    let (value, envelope) = (text(&sealed.values), sealed.envelope);
    let (reader, public) = by_hand::reader();
    let (_, of_the_host) = by_hand::reader();
    let job = |authorization: &str, seal_to: &RsaPublicJwk| {
        let jwk = seal_to.to_json();
        host.ask(
            &bench,
            &ReadJob {
                dataset: "payments",
                purpose: None,
                proof: Proof::Oidc(authorization.strip_prefix("Bearer ").unwrap()),
                seal_to: jwk.as_bytes(),
                nonce: b"a nonce of the reader's",
                envelopes: vec![&envelope],
                what: What::Values(vec![(Some("card"), &value)]),
            },
        )
    };
    let committed = json!({ "nonce": public.thumbprint().to_string() });
    let with = |more: Value| {
        let mut claims = committed.clone();
        claims
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        issuer.token_with("alice", &claims)
    };
    let answered = job(&with(json!({})), &public).unwrap();
    let jwe: String = serde_json::from_slice(answered.shown[0].as_ref().unwrap()).unwrap();
    assert_eq!(reader.open(&jwe).unwrap().expose(), b"\"4111\"");

    let elsewhere = refused(job(&with(json!({ "aud": "another.example.com" })), &public));
    assert!(elsewhere.contains("audience"), "{elsewhere}");
    refused(job(&with(json!({ "iss": "https://login.example.org" })), &public));
    refused(job(&with(json!({ "exp": 1_700_000_000 })), &public));
    // The host's key in the place of the reader's, and a token that commits to none.
    for (authorization, key) in [(with(json!({})), &of_the_host), (issuer.token("alice"), &public)] {
        let reason = refused(job(&authorization, key));
        assert!(reason.contains("does not commit to the key"), "{reason}");
    }
    // Whom the ACL does not name is shown nothing, and told nothing else.
    let answered = job(&issuer.token_with("mallory", &committed), &public).unwrap();
    assert_eq!(answered.shown, [Some(b"null".to_vec())]);
    // A key that the issuer does not have any more vouches for nobody.
    let old = with(json!({}));
    issuer.rotate("second");
    let new = with(json!({}));
    let until = Instant::now() + Duration::from_secs(60);
    while job(&new, &public).is_err() {
        assert!(Instant::now() < until, "the new key is not fetched");
        std::thread::sleep(Duration::from_secs(1));
    }
    refused(job(&old, &public));
}
