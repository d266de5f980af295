//! The worker's streams through the host's relay, both real, over a channel in memory: bytes, limits, refusals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::Channel;
use sealflow_enclave_host::relay::RelayTarget;
use sealflow_enclave_protocol::relay::{MAX_STREAMS, Message, Violation};
use sealflow_enclave_worker::dial::RelayDialer;
use sealflow_kms::https::Dial as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

/// A server that does something with each connection; its port, and how many it has had.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> (u16, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream));
        }
    });
    (port, connections)
}

async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    drop(tokio::io::copy(&mut from, &mut to).await);
}

fn target(host: &str, port: u16) -> RelayTarget {
    RelayTarget::new(host, port).unwrap()
}

async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it never happened");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_back_as_they_were_sent_on_many_streams_at_the_same_time() {
    const STREAMS: usize = 24;
    const BYTES: usize = 1_500_000;
    let (port, connections) = server(echo).await;
    let channel = Channel::new([target("localhost", port)]);
    let mut all = tokio::task::JoinSet::new();
    for n in 0..STREAMS {
        let dialer = Arc::clone(&channel.dialer);
        all.spawn(async move {
            let sent: Vec<u8> = (0..BYTES).map(|i| u8::try_from((i * 7 + n) % 251).unwrap()).collect();
            let stream = dialer.dial("localhost", port).await.unwrap();
            let (mut from, mut to) = tokio::io::split(stream);
            let expected = sent.clone();
            let reading = async move {
                let mut received = vec![0; BYTES];
                // Some of them read late, so that windows fill.
                tokio::time::sleep(Duration::from_millis(u64::try_from(n % 5 * 40).unwrap())).await;
                from.read_exact(&mut received).await.unwrap();
                assert!(received == expected, "stream {n} came back changed");
            };
            let writing = async move { to.write_all(&sent).await.unwrap() };
            tokio::join!(reading, writing);
        });
    }
    tokio::time::timeout(PATIENCE, all.join_all()).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), STREAMS);
    until(|| channel.relay.counters().open == 0).await;
    let counters = channel.relay.counters();
    let bytes = u64::try_from(STREAMS * BYTES).unwrap();
    assert_eq!(
        (counters.dialled, counters.from_worker, counters.to_worker),
        (24, bytes, bytes)
    );
}

#[tokio::test]
async fn the_host_dials_what_it_lists_and_no_address_that_it_does_not() {
    let (port, connections) = server(echo).await;
    let (other, _) = server(echo).await;
    let channel = Channel::new([target("localhost", port)]);
    for (host, port) in [
        ("127.0.0.1", port),
        ("::1", port),
        ("localhost.", port),
        ("localhost", other),
        ("169.254.169.254", 80),
    ] {
        let refused = channel.dialer.dial(host, port).await.err().map(|error| error.kind());
        assert_eq!(refused, Some(std::io::ErrorKind::PermissionDenied), "{host}:{port}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
    assert_eq!(channel.relay.counters().refused, 5);
    // What is no name does not even leave the worker.
    for host in ["", "LOCALHOST", "a/b", "user@localhost"] {
        let refused = channel.dialer.dial(host, port).await.err().map(|error| error.kind());
        assert_eq!(refused, Some(std::io::ErrorKind::InvalidInput), "{host}");
    }
    assert!(channel.dialer.dial("localhost", port).await.is_ok());
    // An address that is listed is dialled.
    let channel = Channel::new([target("127.0.0.1", port)]);
    assert!(channel.dialer.dial("127.0.0.1", port).await.is_ok());
}

#[tokio::test]
async fn a_port_without_a_server_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let channel = Channel::new([target("127.0.0.1", port)]);
    let refused = channel
        .dialer
        .dial("127.0.0.1", port)
        .await
        .err()
        .map(|error| error.kind());
    assert_eq!(refused, Some(std::io::ErrorKind::HostUnreachable));
    assert_eq!(channel.relay.counters().unreachable, 1);
}

#[tokio::test]
async fn a_server_that_ends_is_seen_to_end_after_its_last_byte() {
    let (port, _) = server(|mut stream| async move {
        stream.write_all(&vec![7; 400_000]).await.unwrap();
    })
    .await;
    let channel = Channel::new([target("localhost", port)]);
    let mut stream = channel.dialer.dial("localhost", port).await.unwrap();
    let mut received = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut received))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(received, vec![7; 400_000]);
    until(|| channel.relay.counters().open == 0).await;
    let broken = stream.write_all(b"more").await.err().map(|error| error.kind());
    assert_eq!(broken, Some(std::io::ErrorKind::BrokenPipe));
}

#[tokio::test]
async fn a_stream_that_is_dropped_ends_at_the_server_after_its_last_byte() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let (port, _) = server(move |mut stream| {
        let sender = sender.clone();
        async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            sender.send(all).unwrap();
        }
    })
    .await;
    let channel = Channel::new([target("localhost", port)]);
    let mut stream = channel.dialer.dial("localhost", port).await.unwrap();
    stream.write_all(b"the last words").await.unwrap();
    drop(stream);
    let received = tokio::time::timeout(PATIENCE, received.recv()).await.unwrap();
    assert_eq!(received.as_deref(), Some(b"the last words".as_slice()));
    until(|| channel.relay.counters().open == 0).await;
}

#[tokio::test]
async fn there_are_64_streams_and_each_that_ends_makes_room() {
    let (port, _) = server(echo).await;
    let channel = Channel::new([target("localhost", port)]);
    let mut streams = Vec::new();
    for _ in 0..MAX_STREAMS {
        streams.push(channel.dialer.dial("localhost", port).await.unwrap());
    }
    let busy = channel
        .dialer
        .dial("localhost", port)
        .await
        .err()
        .map(|error| error.kind());
    assert_eq!(busy, Some(std::io::ErrorKind::ResourceBusy));
    streams.pop();
    until(|| channel.relay.counters().open < 64).await;
    assert!(channel.dialer.dial("localhost", port).await.is_ok());
}

#[tokio::test]
async fn a_host_that_breaks_the_protocol_breaks_its_streams_and_crashes_nothing() {
    let wrong: Vec<(Vec<u8>, Violation)> = vec![
        (Vec::new(), Violation::Length),
        (vec![2, 1, 0, 0], Violation::Length),
        ([b"\x04\x01\0\0\0".as_slice(), &[7; 32_769]].concat(), Violation::Length),
        (vec![9, 1, 0, 0, 0], Violation::Kind),
        (Message::Opened { stream: 7 }.encode(), Violation::OutOfTurn),
        (Message::Close { stream: 1 }.encode(), Violation::OutOfTurn),
        (
            Message::Data {
                stream: 1,
                bytes: b"before it is open",
            }
            .encode(),
            Violation::OutOfTurn,
        ),
        (
            Message::Open {
                stream: 2,
                port: 443,
                host: "a",
            }
            .encode(),
            Violation::OutOfTurn,
        ),
    ];
    for (message, violation) in wrong {
        let (outgoing, mut sent) = mpsc::channel(16);
        let dialer = Arc::new(RelayDialer::new(outgoing));
        let waiting = tokio::spawn({
            let dialer = Arc::clone(&dialer);
            async move { dialer.dial("kms.example", 443).await.err().map(|error| error.kind()) }
        });
        let open = sent.recv().await.unwrap();
        assert!(matches!(Message::decode(&open), Ok(Message::Open { stream: 1, .. })));
        assert_eq!(dialer.deliver(&message), Err(violation));
        assert_eq!(waiting.await.unwrap(), Some(std::io::ErrorKind::ConnectionReset));
        assert!(dialer.dial("kms.example", 443).await.is_err());
        assert!(dialer.deliver(&Message::Opened { stream: 1 }.encode()).is_err());
    }
}

#[tokio::test]
async fn a_worker_that_breaks_the_protocol_is_told_from_one_that_is_late() {
    let (port, _) = server(echo).await;
    let channel = Channel::new([target("localhost", port)]);
    let stream = channel.dialer.dial("localhost", port).await.unwrap();
    let bytes = b"x";
    for wrong in [
        Message::Opened { stream: 1 },
        Message::Open {
            stream: 1,
            port,
            host: "localhost",
        },
        Message::Data { stream: 9, bytes },
    ] {
        assert_eq!(
            channel.relay.deliver(&wrong.encode()),
            Err(Violation::OutOfTurn),
            "{wrong:?}"
        );
    }
    drop(stream);
    until(|| channel.relay.counters().open == 0).await;
    assert_eq!(
        channel.relay.deliver(&Message::Data { stream: 1, bytes }.encode()),
        Ok(())
    );
}

#[tokio::test]
async fn a_channel_that_nobody_takes_from_holds_streams_up_and_its_end_breaks_them() {
    let (outgoing, sent) = mpsc::channel(1);
    let dialer = RelayDialer::new(outgoing);
    // Nobody answers: who waits decides how long.
    let late = tokio::time::timeout(Duration::from_millis(50), dialer.dial("kms.example", 443)).await;
    assert!(late.is_err());
    drop(sent);
    let gone = tokio::time::timeout(PATIENCE, dialer.dial("kms.example", 443))
        .await
        .unwrap();
    assert_eq!(
        gone.err().map(|error| error.kind()),
        Some(std::io::ErrorKind::ConnectionReset)
    );
}
