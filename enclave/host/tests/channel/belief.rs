//! Nobody is believed who does not prove what they are.

use std::sync::Arc;
use std::time::Duration;

use sealflow::keys::Catalogue;
use sealflow_enclave_host::{ConnectError, Connection};
use sealflow_enclave_protocol::attestation::build::DevRoot;
use sealflow_enclave_protocol::frame::{Frame, Kind};
use sealflow_enclave_protocol::joints::{Attester as _, Claims};
use sealflow_enclave_protocol::link::read_frame;
use sealflow_enclave_protocol::message::{CatalogueQuestion, Hello, HelloAnswer};
use tokio::io::AsyncWriteExt as _;

use crate::bench::{Bench, HostSide, IMAGE, NOW, Nsm};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_believed_who_does_not_prove_what_they_are() {
    let bench = Bench::new().await;
    let reason = |answer: Result<Connection, ConnectError>| match answer {
        Err(ConnectError::NotBelieved(error)) => error.reason,
        other => panic!("{other:?}"),
    };
    // Another image, debug mode, another root, evidence of an hour ago.
    let (channel, _) = bench.worker(bench.trusted(), [0xb2; 48]);
    assert!(reason(bench.connected(channel).await).contains("measure"));
    let (channel, _) = bench.worker(bench.trusted(), [0; 48]);
    assert!(reason(bench.connected(channel).await).contains("debug"));
    let other = Bench {
        root: Arc::new(DevRoot::generate(NOW.0).unwrap()),
        ..Bench::new().await
    };
    let (channel, _) = other.worker(bench.trusted(), IMAGE);
    assert!(reason(bench.connected(channel).await).contains("root"));
    // A man in the middle who answers with evidence that another asked for, or signs with a key of his own.
    for is_replayed in [true, false] {
        let (channel, mut theirs) = tokio::io::duplex(1 << 16);
        let attester = Nsm {
            root: bench.root.clone(),
            image: IMAGE,
            clock: bench.clock.clone(),
        };
        tokio::spawn(async move {
            let asked = read_frame(&mut theirs).await.unwrap().unwrap();
            let hello = Hello::read(&asked.body).unwrap();
            let nonce = if is_replayed { [9; 32] } else { hello.nonce };
            let signer = if is_replayed { "own" } else { "theirs" };
            let user_data = sealflow_enclave_protocol::message::signer_user_data("own");
            let claims = Claims {
                public_key: None,
                user_data: Some(&user_data),
                nonce: Some(&nonce),
            };
            let answer = HelloAnswer {
                evidence: attester.attest(&claims).unwrap(),
                signer: signer.to_owned(),
                version: "1".to_owned(),
            };
            let frame = Frame::new(Kind::Answer, asked.sequence, answer.to_body());
            theirs.write_all(&frame.header().unwrap()).await.unwrap();
            theirs.write_all(&frame.body).await.unwrap();
            read_frame(&mut theirs).await.ok()
        });
        let why = reason(bench.connected(channel).await);
        assert!(why.contains(if is_replayed { "nonce" } else { "bind" }), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_believed_yet_writes_nothing_to_the_catalogue_and_to_the_log() {
    let bench = Bench::new().await;
    let put = CatalogueQuestion::PutIfAbsent("keys/payments/forged".to_owned(), vec![1]);
    for frame in [
        Frame::new(Kind::Catalogue, 1, put.to_body()),
        Frame::new(Kind::Audit, 0, b"a line of somebody's".to_vec()),
    ] {
        let (channel, mut theirs) = tokio::io::duplex(1 << 16);
        let side = Arc::new(HostSide::default());
        let peer = tokio::spawn(async move {
            read_frame(&mut theirs).await.unwrap().unwrap();
            theirs.write_all(&frame.header().unwrap()).await.unwrap();
            theirs.write_all(&frame.body).await.unwrap();
            // An answer, or that it is hung up on.
            let _ = tokio::time::timeout(Duration::from_millis(500), read_frame(&mut theirs)).await;
        });
        assert!(bench.connected_with(channel, side.clone()).await.is_err());
        peer.await.unwrap();
        assert_eq!(bench.catalogue.get("keys/payments/forged").await.unwrap(), None);
        assert!(side.lines().is_empty());
    }
}
