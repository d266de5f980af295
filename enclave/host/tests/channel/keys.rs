//! The worker vouches for what clients seal to, and makes pairs that only workers can have made.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::clock::Clock as _;
use sealflow::flow::enclave::{ClientBatch, EnclaveError};
use sealflow::jose::PrivateJwk;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::{ClientKeyService as _, EncryptionContext, RsaBits};
use sealflow::policy::enclave_keys::attested::{self, Measurement, Measurements, Pinned};
use sealflow::policy::signed::sign;
use sealflow::policy::{KeyPair, TrustedOwners, VerifiedPolicy, lease, publish, signed};
use sealflow_client::{PrivateKey, Session};
use sealflow_enclave_protocol::attestation::Trust;
use sealflow_enclave_protocol::joints::Verifier as _;
use sealflow_enclave_protocol::message::{PairAnswer, PairJob};

use crate::bench::{Bench, HOUR, IMAGE, NOW, PAIR_ARN, RSA_ARN, yaml};

fn pinned(bench: &Bench, image: [u8; 48]) -> Pinned {
    Pinned {
        trust: Trust::with_dev_root(bench.root.certificate()).unwrap(),
        measurements: vec![Measurements::of_image(Measurement::new(&image).unwrap())],
        nonce: None,
        max_age: HOUR,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_vouches_for_the_keys_and_labels_of_the_signed_policy_and_for_nothing_else() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let text = connection.client_keys("payments").await.unwrap();
    let verified = attested::verify(&text, &pinned(&bench, IMAGE), NOW)
        .unwrap()
        .check("payments", None)
        .unwrap();
    let key = RsaPublicJwk::from_spki_der(&bench.kms.public_key(RSA_ARN).await.unwrap()).unwrap();
    assert_eq!(
        (verified.keys().keys(), verified.keys().labels()),
        (&[key][..], &["card".to_owned(), "iban".to_owned()][..])
    );
    // Of another image; with a key of the host's own in it.
    assert!(attested::verify(&text, &pinned(&bench, [0xb2; 48]), NOW).is_err());
    let own = PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut hosts = document.clone();
    hosts["keys"] = serde_json::from_str::<serde_json::Value>(&format!("[{}]", own.to_published_json())).unwrap();
    assert!(attested::verify(&hosts.to_string(), &pinned(&bench, IMAGE), NOW).is_err());
    // The host chooses the dataset, and there must be a policy of a measured owner for it.
    assert!(matches!(
        connection.client_keys("refunds").await,
        Err(EnclaveError::Refused { .. })
    ));
    let stranger = TrustedOwners::everywhere(vec![PrivateJwk::generate().unwrap().thumbprint()]).unwrap();
    let (channel, _) = bench.worker(stranger, IMAGE);
    let other = bench.connected(channel).await.unwrap();
    assert!(matches!(
        other.client_keys("payments").await,
        Err(EnclaveError::Refused { .. })
    ));
    // It counts no more when its lease has ended.
    bench.clock.advance(HOUR);
    let error = connection.client_keys("payments").await.unwrap_err();
    assert!(error.to_string().contains("lease"), "{error}");
}

/// The next version of the policy, whose clients seal to that pair.
async fn with_pair(bench: &Bench, version: u32, pair: &KeyPair) -> Arc<VerifiedPolicy> {
    let (public, wrapped) = (STANDARD.encode(&pair.public), STANDARD.encode(&pair.wrapped));
    let yaml = yaml(version, &IMAGE).replace(
        &format!("{{ arn: \"{RSA_ARN}\" }}"),
        &format!(
            "{{ pair: {{ arn: \"{}\", public: \"{public}\", wrapped: \"{wrapped}\" }} }}",
            pair.arn
        ),
    );
    assert!(yaml.contains("pair:"));
    let jws = sign(yaml.as_bytes(), &bench.owner).unwrap();
    let policy = Arc::new(signed::verify(&jws, &bench.trusted()).unwrap());
    publish::publish(&*bench.catalogue, &jws, &bench.trusted())
        .await
        .unwrap();
    let lease = lease::sign(&policy, bench.clock.now(), HOUR, &bench.owner).unwrap();
    let published = lease::publish(&*bench.catalogue, &lease, &policy, &bench.trusted(), bench.clock.now()).await;
    published.unwrap();
    policy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_the_worker_had_made_is_proved_and_opens_and_what_the_host_made_of_it_does_not() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let job = |dataset, bits| PairJob {
        dataset,
        arn: PAIR_ARN,
        bits,
        nonce: [3; 32],
    };
    // For datasets that measured owners give an enclave, of sizes that there are.
    for bad in [job("refunds", 2_048), job("payments", 1_024)] {
        assert!(
            matches!(connection.make_pair(&bad).await, Err(EnclaveError::Refused { .. })),
            "{bad:?}"
        );
    }
    let frame = connection.make_pair(&job("payments", 2_048)).await.unwrap();
    let answer = PairAnswer::read(&frame.body).unwrap();
    let made = |wrapped: &[u8]| KeyPair::made(PAIR_ARN, "payments", answer.public.to_vec(), wrapped.to_vec()).unwrap();
    let pair = made(answer.wrapped);
    let believes = |nonce: [u8; 32], pair: &KeyPair| {
        bench
            .verifier()
            .verify(answer.evidence, &nonce, &pair.user_data())
            .is_ok()
    };
    assert!(believes([3; 32], &pair));
    // Evidence of another question; a blob that the host had made, in the place of the worker's; the pair of another dataset.
    assert!(!believes([4; 32], &pair));
    let context = EncryptionContext::for_client_pair("payments");
    let hosts = bench
        .kms
        .generate_pair(PAIR_ARN, RsaBits::Rsa2048, &context)
        .await
        .unwrap();
    assert!(!believes([3; 32], &made(&hosts.wrapped_private)));
    let elsewhere = KeyPair::made(PAIR_ARN, "refunds", answer.public.to_vec(), answer.wrapped.to_vec()).unwrap();
    assert!(!believes([3; 32], &elsewhere));
    // Evidence for keys is none for pairs.
    let text = connection.client_keys("payments").await.unwrap();
    let keys: serde_json::Value = serde_json::from_str(&text).unwrap();
    let evidence = STANDARD.decode(keys["attestation"].as_str().unwrap()).unwrap();
    assert!(bench.verifier().verify(&evidence, &[3; 32], &pair.user_data()).is_err());

    // The owner puts it into the policy: the worker vouches for it, and opens what is sealed to it, without a request each.
    let policy = with_pair(&bench, 2, &pair).await;
    let text = connection.client_keys("payments").await.unwrap();
    let verified = attested::verify(&text, &pinned(&bench, IMAGE), NOW).unwrap();
    let public = RsaPublicJwk::from_spki_der(&pair.public).unwrap();
    assert_eq!(verified.keys().keys(), std::slice::from_ref(&public));
    let before = bench.kms.decrypt_rsa_calls();
    for n in 0..4 {
        let mut session = Session::begin(&public, "payments").unwrap();
        let cards = [session.seal("card", n.to_string().as_bytes()).unwrap()];
        let batch = ClientBatch {
            policy: policy.clone(),
            ..bench.batch(&session, &cards)
        };
        assert_eq!(connection.reseal(&batch).await.unwrap()[0].refused, []);
    }
    assert_eq!(bench.kms.decrypt_rsa_calls(), before);

    // A policy with the host's blob behind the worker's public half: nothing is opened, and nothing vouched for.
    let policy = with_pair(&bench, 3, &made(&hosts.wrapped_private)).await;
    let mut session = Session::begin(&public, "payments").unwrap();
    let cards = [session.seal("card", b"1").unwrap()];
    let batch = ClientBatch {
        policy,
        ..bench.batch(&session, &cards)
    };
    assert!(connection.reseal(&batch).await.is_err());
    let error = connection.client_keys("payments").await.unwrap_err();
    assert!(
        matches!(&error, EnclaveError::Refused { reason } if reason.contains("public half")),
        "{error}"
    );
}
