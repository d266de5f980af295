//! Readers are proved inside, answered under their own key, and written down before they are answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aws_lc_rs::signature::Ed25519KeyPair;
use sealflow::audit::Verifier;
use sealflow::flow::enclave::EnclaveError;
use sealflow::flow::enclave::answer::AnswerClaims;
use sealflow::jose::Thumbprint;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::RsaBits;
use sealflow::seal::value;
use sealflow_client::PrivateKey;
use sealflow_enclave_host::Connection;
use sealflow_enclave_protocol::frame::Frame;
use sealflow_enclave_protocol::message::{Outcome, Proof, ReadAnswer, ReadJob, What};

use crate::bench::{Bench, HostSide, IMAGE, TestIssuer};

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_proved_inside_and_answered_under_the_key_that_the_proof_commits_to() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let side = Arc::new(HostSide::default());
    let connection = bench.connected_with(channel, side.clone()).await.unwrap();
    let mut session = bench.session().await;
    let cards = [session.seal("card", br#""4111111111111111""#).unwrap()];
    let sealed = connection.reseal(&bench.batch(&session, &cards)).await.unwrap();
    let mut text = Vec::new();
    value::write_text(sealed[0].values.view().get(0).unwrap(), &mut text);
    let text = String::from_utf8(text).unwrap();
    let record = format!(r#"{{"id":"o-7","card":"{text}"}}"#);

    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let (public, hosts) = (
        reader.public().unwrap(),
        PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap(),
    );
    let thumbprint = public.thumbprint().to_string();
    let token = bench.issuer.token("ann", "sealflow", &thumbprint);
    let signer: Thumbprint = connection.signer().parse().unwrap();
    let ask = async |token: &str, key: &RsaPublicJwk, what: What<'_>| {
        let json = key.to_json();
        let job = ReadJob {
            dataset: "payments",
            purpose: None,
            proof: Proof::Oidc(token),
            seal_to: json.as_bytes(),
            nonce: b"nonce-1",
            envelopes: vec![],
            what,
        };
        connection.read(&job).await
    };
    for what in [
        What::Values(vec![(Some("card"), text.as_str())]),
        What::Records(vec![record.as_bytes()]),
    ] {
        let frame = ask(&token, &public, what).await.unwrap();
        let answer = ReadAnswer::read(&frame.body).unwrap();
        assert_eq!((answer.policy_version, answer.decisions[0].count), (1, 1));
        let question = ("payments", public.thumbprint(), &b"nonce-1"[..]);
        AnswerClaims::verify(answer.proof, signer, question, &answer.shown).unwrap();
        assert!(
            AnswerClaims::verify(
                answer.proof,
                signer,
                ("payments", public.thumbprint(), b"nonce-2"),
                &answer.shown
            )
            .is_err()
        );
        let shown: serde_json::Value = serde_json::from_slice(answer.shown[0].unwrap()).unwrap();
        let jwe = shown.get("card").unwrap_or(&shown).as_str().unwrap().to_owned();
        assert!(!String::from_utf8_lossy(&frame.body).contains("4111"));
        assert_eq!(reader.open(&jwe).unwrap().expose(), br#""4111111111111111""#);
    }
    // The host puts its own key in; a token for another audience; somebody whom the ACL does not name.
    let values = || What::Values(vec![(Some("card"), text.as_str())]);
    let refused = async |token: &str, key: &RsaPublicJwk| match ask(token, key, values()).await {
        Err(EnclaveError::Refused { reason }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(&token, &hosts).await.contains("commit"));
    let without = bench.issuer.token("ann", "sealflow", "");
    assert!(refused(&without, &public).await.contains("commit"));
    let elsewhere = bench.issuer.token("ann", "other-service", &thumbprint);
    assert!(refused(&elsewhere, &public).await.contains("audience"));
    let forged = TestIssuer(Ed25519KeyPair::generate().unwrap()).token("ann", "sealflow", &thumbprint);
    refused(&forged, &public).await;
    let bob = bench.issuer.token("bob", "sealflow", &thumbprint);
    let frame = ask(&bob, &public, values()).await.unwrap();
    let answer = ReadAnswer::read(&frame.body).unwrap();
    assert_eq!(
        (answer.shown[0], answer.decisions[0].outcome),
        (Some(&b"null"[..]), Outcome::Refused)
    );
    // Its lines tell the same, under the key that its evidence binds.
    let lines = side.lines();
    let decisions = |verdict: &str| {
        lines
            .iter()
            .filter(|line| line.contains(&format!("\"decision\":\"{verdict}\"")))
            .count()
    };
    assert_eq!((decisions("allowed"), decisions("refused")), (2, 5), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("4111") || line.contains(&token)));
}

/// A sealed value, a reader's key, and a token of `ann` that commits to it.
pub(crate) async fn readable(bench: &Bench, connection: &Connection) -> (String, RsaPublicJwk, String) {
    let mut session = bench.session().await;
    let cards = [session.seal("card", br#""4111111111111111""#).unwrap()];
    let sealed = connection.reseal(&bench.batch(&session, &cards)).await.unwrap();
    let mut text = Vec::new();
    value::write_text(sealed[0].values.view().get(0).unwrap(), &mut text);
    let public = PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap();
    let token = bench.issuer.token("ann", "sealflow", &public.thumbprint().to_string());
    (String::from_utf8(text).unwrap(), public, token)
}

pub(crate) fn read_job<'a>(text: &'a str, key: &'a str, token: &'a str) -> ReadJob<'a> {
    ReadJob {
        dataset: "payments",
        purpose: None,
        proof: Proof::Oidc(token),
        seal_to: key.as_bytes(),
        nonce: b"nonce-1",
        envelopes: vec![],
        what: What::Values(vec![(Some("card"), text)]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_comes_after_its_lines_and_the_lines_of_many_readers_are_one_chain() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let side = Arc::new(HostSide::default());
    let connection = Arc::new(bench.connected_with(channel, side.clone()).await.unwrap());
    let signer: Thumbprint = connection.signer().parse().unwrap();
    let (text, key, token) = readable(&bench, &connection).await;
    let before = side.lines().len();
    connection.read(&read_job(&text, &key.to_json(), &token)).await.unwrap();
    // The decision and the checkpoint behind it, however late they are written.
    let kept = side.lines();
    assert_eq!(kept.len() - before, 2, "{kept:#?}");
    let mut reading = Vec::new();
    for _ in 0..16 {
        let (connection, text, key, token) = (connection.clone(), text.clone(), key.to_json(), token.clone());
        reading.push(tokio::spawn(async move {
            connection.read(&read_job(&text, &key, &token)).await.map(drop)
        }));
    }
    for read in reading {
        read.await.unwrap().unwrap();
    }
    let mut verifier = Verifier::new([signer], true);
    side.lines().iter().for_each(|line| verifier.line(line.as_bytes()));
    let report = verifier.finish();
    assert!(report.is_whole(), "{:?}", report.breaks);
    assert_eq!((report.lines, report.decisions, report.chains.len()), (34, 17, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_is_not_written_down_ends_the_worker_and_its_answer_is_not_handed_on() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let side = Arc::new(HostSide::default());
    let connection = bench.connected_with(channel, side.clone()).await.unwrap();
    let (text, key, token) = readable(&bench, &connection).await;
    assert!(connection.read(&read_job(&text, &key.to_json(), &token)).await.is_ok());
    side.is_full.store(true, Ordering::Relaxed);
    let unrecorded = |answer: Result<Frame, EnclaveError>| match answer {
        Err(error @ EnclaveError::Unrecorded { .. }) => {
            assert!(
                error.to_string().contains("no space left") && !error.is_retryable(),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    };
    unrecorded(connection.read(&read_job(&text, &key.to_json(), &token)).await);
    connection.ended().await;
    // It is gone for everything else too, and says why; also once there is room again.
    side.is_full.store(false, Ordering::Relaxed);
    unrecorded(connection.read(&read_job(&text, &key.to_json(), &token)).await);
    assert!(matches!(
        connection.status().await,
        Err(EnclaveError::Unrecorded { .. })
    ));
    assert!(connection.unrecorded().is_some());
}
