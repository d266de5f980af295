//! Whatever breaks the protocol ends the connection.

use std::time::Duration;

use sealflow::flow::enclave::{EnclaveError, ValueKey};
use sealflow_enclave_protocol::frame::{Frame, Kind};
use sealflow_enclave_protocol::link::read_frame;
use sealflow_enclave_protocol::message::{Failure, FailureKind, Hello};
use tokio::io::AsyncWriteExt as _;

use crate::bench::{Bench, IMAGE, PANICS};

#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_the_protocol_ends_the_connection_and_a_replayed_question_is_none() {
    let bench = Bench::new().await;
    let hello = || Frame::new(Kind::Hello, 5, Hello { nonce: [1; 32] }.to_body());
    let bytes = |frame: &Frame| [&frame.header().unwrap()[..], &frame.body].concat();
    let long = |len: u32| {
        let mut header = bytes(&hello());
        header[..4].copy_from_slice(&len.to_le_bytes());
        header
    };
    let bad: Vec<(&str, Vec<u8>)> = vec![
        (
            "an answer that nobody asked for",
            bytes(&Frame::new(Kind::CatalogueAnswer, 77, vec![1])),
        ),
        ("a question of a worker's", bytes(&Frame::new(Kind::Audit, 1, vec![]))),
        (
            "a relayed message that is none",
            bytes(&Frame::new(Kind::Relay, 0, vec![1, 2, 3])),
        ),
        (
            "credentials that are none",
            bytes(&Frame::new(Kind::Credentials, 0, vec![9])),
        ),
        ("a frame that is too long", long(u32::MAX)),
        ("a frame that is too short", long(3)),
        ("a question played again", [bytes(&hello()), bytes(&hello())].concat()),
        ("no frame", b"GET / HTTP/1.1\r\nhost: worker\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in bad {
        let (mut channel, _) = bench.worker(bench.trusted(), IMAGE);
        channel.write_all(&bytes).await.unwrap();
        let mut answers = 0;
        let ended = tokio::time::timeout(Duration::from_secs(10), async {
            while let Ok(Some(_)) = read_frame(&mut channel).await {
                answers += 1;
            }
        });
        ended.await.unwrap_or_else(|_| panic!("{what}: the worker goes on"));
        assert!(answers <= 1, "{what}");
    }
    // A question that is no question of its kind is answered, without a reason, and the worker goes on.
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let mut session = bench.session().await;
    let cards = [session.seal("card", b"1").unwrap()];
    let mut wrong = bench.batch(&session, &cards);
    wrong.columns[0].label = "unknown".to_owned();
    assert!(matches!(
        connection.reseal(&wrong).await,
        Err(EnclaveError::Refused { .. })
    ));
    wrong.columns[0].label = "card".to_owned();
    wrong.columns[0].keys[0] = ValueKey::Session(3);
    assert!(matches!(
        connection.reseal(&wrong).await,
        Err(EnclaveError::BadAnswer { .. })
    ));
    assert!(connection.reseal(&bench.batch(&session, &cards)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_makes_the_worker_panic_is_answered_and_the_worker_goes_on() {
    let bench = Bench::new().await;
    let (mut channel, _) = bench.worker(bench.trusted(), IMAGE);
    for (sequence, nonce, kind) in [(1, PANICS, Kind::Failure), (2, [1; 32], Kind::Answer)] {
        let hello = Frame::new(Kind::Hello, sequence, Hello { nonce }.to_body());
        let bytes = [&hello.header().unwrap()[..], &hello.body].concat();
        channel.write_all(&bytes).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), read_frame(&mut channel));
        let answer = answer.await.expect("it is answered").unwrap().unwrap();
        assert_eq!((answer.kind, answer.sequence), (kind, sequence));
        if kind == Kind::Failure {
            let failure = Failure::read(&answer.body).unwrap();
            assert_eq!(failure.kind, FailureKind::Refused);
            assert!(failure.reason.contains("panicked"), "{}", failure.reason);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_no_frame_takes_is_refused_and_the_next_one_passes() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let mut session = bench.session().await;
    let large = vec!["x".repeat(1 << 20); 64];
    let refused = connection.reseal(&bench.batch(&session, &large)).await.unwrap_err();
    assert!(
        matches!(&refused, EnclaveError::Refused { reason } if reason.contains("make batches smaller")),
        "{refused}"
    );
    let cards = [session.seal("card", b"1").unwrap()];
    assert!(connection.reseal(&bench.batch(&session, &cards)).await.is_ok());
}

/// Time passes as soon as everybody waits for it.
#[tokio::test(start_paused = true)]
async fn a_host_that_says_nothing_any_more_is_hung_up_on() {
    let bench = Bench::new().await;
    let (mut channel, _) = bench.worker(bench.trusted(), IMAGE);
    let hello = Frame::new(Kind::Hello, 1, Hello { nonce: [1; 32] }.to_body());
    let bytes = [&hello.header().unwrap()[..], &hello.body].concat();
    channel.write_all(&bytes).await.unwrap();
    assert_eq!(read_frame(&mut channel).await.unwrap().unwrap().kind, Kind::Answer);
    let began = tokio::time::Instant::now();
    assert!(!matches!(read_frame(&mut channel).await, Ok(Some(_))));
    let waited = began.elapsed().as_secs();
    assert!((600..660).contains(&waited), "{waited} s");
}
