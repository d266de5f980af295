//! What clients seal goes over and comes back sealed, each value in its place.

use std::sync::Arc;
use std::time::Duration;

use sealflow::flow::enclave::{ClientBatch, ClientColumn, EnclaveError, ValueKey, ValueRefusal};
use sealflow::jose::PrivateJwk;
use sealflow::keys::Catalogue as _;
use sealflow::policy::signed::sign;
use sealflow::policy::{TrustedOwners, VerifiedPolicy, publish, signed};
use sealflow_enclave_protocol::message::Credentials;

use crate::bench::{Bench, HOUR, IMAGE, NOW, yaml};

#[tokio::test(flavor = "multi_thread")]
async fn columns_go_over_and_come_back_sealed_each_value_in_its_place() {
    let bench = Bench::new().await;
    let (channel, side) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    assert_eq!(connection.believed().tier, "dev-software-nsm");
    let mut session = bench.session().await;
    let mut cards: Vec<String> = (0..20_000)
        .map(|n| session.seal("card", n.to_string().as_bytes()).unwrap())
        .collect();
    cards[7] = session.seal("iban", b"1").unwrap();
    cards[19_999] = "eyJ.not.a.jwe.x".to_owned();
    let sealed = connection.reseal(&bench.batch(&session, &cards)).await.unwrap();
    let [column] = sealed.as_slice() else {
        panic!("one column")
    };
    let refused = [(7, ValueRefusal::CannotOpen), (19_999, ValueRefusal::CannotOpen)];
    assert_eq!(column.refused, refused);
    let values = column.values.view();
    assert_eq!((values.len(), values.iter().flatten().count()), (20_000, 19_998));
    assert!(values.get(7).is_none() && values.get(8).unwrap()[0] == 0x11);
    // The envelope is in the catalogue before anything comes back.
    let stored = bench.catalogue.list(&format!("keys/{}", column.key)).await.unwrap();
    assert_eq!(
        bench.catalogue.get(&stored[0]).await.unwrap().as_ref(),
        Some(&column.envelope)
    );
    assert_eq!((bench.kms.decrypt_rsa_calls(), bench.kms.generate_calls()), (1, 1));

    // A bound column: values in clear and sealed ones, rows for all.
    let mut column = ClientColumn::new("iban", true, true);
    column.values.push(br#""DE89""#).unwrap();
    column.keys.push(ValueKey::Clear);
    column.rows.as_mut().unwrap().push(b"\x06o-7").unwrap();
    let batch = ClientBatch {
        policy: bench.policy.clone(),
        sessions: vec![],
        columns: vec![column],
    };
    assert_eq!(connection.reseal(&batch).await.unwrap()[0].refused, []);
    let status = connection.status().await.unwrap();
    assert_eq!(
        (status.values, status.refused, status.kms_requests, status.now_ms),
        (19_999, 2, 7, NOW.0)
    );
    let credentials = Credentials {
        access_key_id: "AKIA".to_owned(),
        secret_access_key: "s".to_owned().into(),
        session_token: None,
        expires_ms: None,
    };
    connection.credentials(&credentials).await.unwrap();
    connection.status().await.unwrap();
    assert_eq!(*side.0.lock().unwrap(), ["AKIA"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_under_way_side_by_side() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = Arc::new(bench.connected(channel).await.unwrap());
    bench.kms.set_delay(Duration::from_millis(50));
    let mut running = Vec::new();
    for n in 0..8 {
        // Each with a session of its own, which takes a call.
        let mut session = bench.session().await;
        let cards = [session.seal("card", n.to_string().as_bytes()).unwrap()];
        let (connection, batch) = (connection.clone(), bench.batch(&session, &cards));
        running.push(tokio::spawn(async move { connection.reseal(&batch).await }));
    }
    for run in running {
        assert_eq!(run.await.unwrap().unwrap()[0].refused, []);
    }
    assert!(bench.kms.peak_in_flight() > 2, "{}", bench.kms.peak_in_flight());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_by_its_own_owners_and_by_policies_that_are_leased() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let cards = [session.seal("card", b"1").unwrap()];
    let batch = |policy: &Arc<VerifiedPolicy>| ClientBatch {
        policy: policy.clone(),
        ..bench.batch(&session, &cards)
    };
    // Of another owner than the measured ones: the host would like it to open by a policy of its own.
    let stranger = TrustedOwners::everywhere(vec![PrivateJwk::generate().unwrap().thumbprint()]).unwrap();
    let (channel, _) = bench.worker(stranger, IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let error = connection.reseal(&batch(&bench.policy)).await.unwrap_err();
    assert!(matches!(error, EnclaveError::Refused { .. }), "{error}");
    // The host goes by another version than counts.
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let jws = sign(yaml(2, &IMAGE).as_bytes(), &bench.owner).unwrap();
    let newer = Arc::new(signed::verify(&jws, &bench.trusted()).unwrap());
    let error = connection.reseal(&batch(&newer)).await.unwrap_err();
    assert!(matches!(error, EnclaveError::Unavailable { .. }), "{error}");
    assert!(connection.reseal(&batch(&bench.policy)).await.is_ok());
    // Its lease ends, by the worker's own time.
    bench.clock.advance(HOUR);
    let error = connection.reseal(&batch(&bench.policy)).await.unwrap_err();
    assert!(error.to_string().contains("lease"), "{error}");
    bench.lease(HOUR).await;
    assert!(connection.reseal(&batch(&bench.policy)).await.is_ok());
    // What is in the catalogue instead of the policy's newest version: nothing older counts any more.
    publish::publish(&*bench.catalogue, &jws, &bench.trusted())
        .await
        .unwrap();
    let error = connection.reseal(&batch(&bench.policy)).await.unwrap_err();
    assert!(!matches!(error, EnclaveError::BadAnswer { .. }), "{error}");
}
