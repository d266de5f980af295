//! Who may speak to the local KMS: signatures by an independent signer, then tampered with; caps on what is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{ADMIN, NOW, Request, config, exchange, principal};
use sealflow::clock::ManualClock;
use sealflow::secret::SecretString;
use sealflow_local_kms::{RunningServer, Server, ServerConfig};
use serde_json::json;

async fn start(config: ServerConfig) -> (RunningServer, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(NOW));
    let shared: Arc<ManualClock> = Arc::clone(&clock);
    (Server::start_with_clock(config, shared).await.unwrap(), clock)
}

fn list_keys() -> Request {
    Request::kms("ListKeys", &json!({}))
}

#[tokio::test]
async fn what_was_changed_after_signing_is_refused() {
    let (server, _) = start(config()).await;
    let addr = server.addr();
    let good = Request::kms("CreateKey", &json!({ "Description": "a" })).sign(addr);
    assert_eq!(good.send(addr).await.status, 200);
    type Change = (&'static str, fn(&mut Request));
    let changes: [Change; 7] = [
        ("another body", |r| r.body = br#"{"Description":"b"}"#.to_vec()),
        ("no body", |r| r.body = b"{}".to_vec()),
        ("another operation", |r| set(r, "x-amz-target", "TrentService.ListKeys")),
        ("another time", |r| set(r, "x-amz-date", "20260102T030406Z")),
        ("another content type", |r| {
            set(r, "content-type", "application/X-amz-json-1.1");
        }),
        ("a part of the signature", |r| {
            let old = get(r, "authorization");
            let flipped = if old.ends_with('0') { '1' } else { '0' };
            set(r, "authorization", &format!("{}{flipped}", &old[..old.len() - 1]));
        }),
        ("fewer signed headers", |r| {
            let new = get(r, "authorization").replace("host;x-amz-date", "host");
            set(r, "authorization", &new);
        }),
    ];
    for (what, change) in changes {
        let mut request = good.clone();
        change(&mut request);
        let answer = request.send(addr).await;
        let code = answer.code.as_deref().unwrap_or("taken");
        assert!(
            matches!(code, "InvalidSignatureException" | "IncompleteSignatureException"),
            "{what}: {answer:?}"
        );
    }
    assert_eq!(
        Request::kms("ListKeys", &json!({})).call(addr).await.json()["Keys"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

fn get(request: &Request, name: &str) -> String {
    request.headers.iter().find(|(n, _)| n == name).unwrap().1.clone()
}

fn set(request: &mut Request, name: &str, value: &str) {
    request.headers.iter_mut().find(|(n, _)| n == name).unwrap().1 = value.to_owned();
}

#[tokio::test]
async fn a_header_that_is_added_or_doubled_after_signing_is_refused() {
    let (server, _) = start(config()).await;
    let addr = server.addr();
    for (name, value) in [
        ("x-amz-extra", "1"),
        ("x-amz-security-token", "t"),
        ("x-amz-target", "TrentService.ListAliases"),
        ("x-amz-date", "20260102T030405Z"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ("host", "other"),
    ] {
        let mut request = list_keys().sign(addr);
        request.headers.push((name.to_owned(), value.to_owned()));
        let answer = request.send(addr).await;
        assert!(answer.status == 400, "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn an_unsigned_payload_is_refused_even_when_it_is_signed_so() {
    let (server, _) = start(config()).await;
    let addr = server.addr();
    let answer = list_keys()
        .header("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        .call(addr)
        .await;
    assert_eq!(answer.code.as_deref(), Some("InvalidSignatureException"));
}

#[tokio::test]
async fn requests_that_are_more_than_five_minutes_off_are_refused() {
    let (server, clock) = start(config()).await;
    let addr = server.addr();
    let request = list_keys().sign(addr);
    clock.advance(Duration::from_secs(300));
    assert_eq!(request.send(addr).await.status, 200);
    clock.advance(Duration::from_secs(1));
    assert_eq!(
        request.send(addr).await.code.as_deref(),
        Some("InvalidSignatureException")
    );
    let early = Request {
        time: NOW.plus(Duration::from_secs(602)),
        ..list_keys()
    };
    assert_eq!(
        early.call(addr).await.code.as_deref(),
        Some("InvalidSignatureException")
    );
}

#[tokio::test]
async fn other_scopes_secrets_and_keys_are_refused_with_their_own_codes() {
    let (server, _) = start(config()).await;
    let addr = server.addr();
    let credentials = |id: &str, secret: &str| (id.to_owned(), secret.to_owned(), None);
    let cases = [
        (
            Request {
                region: "us-west-2".to_owned(),
                ..list_keys()
            },
            "InvalidSignatureException",
        ),
        (
            Request {
                service: "s3".to_owned(),
                ..list_keys()
            },
            "InvalidSignatureException",
        ),
        (
            Request {
                service: "sts".to_owned(),
                ..list_keys()
            },
            "InvalidSignatureException",
        ),
        (
            Request {
                credentials: credentials("AKIAADMIN", "wrong"),
                ..list_keys()
            },
            "InvalidSignatureException",
        ),
        (
            Request {
                credentials: credentials("AKIANOBODY", "wrong"),
                ..list_keys()
            },
            "UnrecognizedClientException",
        ),
        (
            Request {
                service: "kms".to_owned(),
                ..Request::caller_identity()
            },
            "SignatureDoesNotMatch",
        ),
    ];
    for (request, code) in cases {
        assert_eq!(
            request.clone().call(addr).await.code.as_deref(),
            Some(code),
            "{request:?}"
        );
    }
    let unsigned = list_keys().send(addr).await;
    assert_eq!(unsigned.code.as_deref(), Some("MissingAuthenticationTokenException"));
    let garbled = list_keys().header("authorization", "Bearer hunter2").send(addr).await;
    assert_eq!(garbled.code.as_deref(), Some("IncompleteSignatureException"));
    assert!(!garbled.text().contains("hunter2"));
}

#[tokio::test]
async fn temporary_credentials_need_their_session_token() {
    let mut temporary = principal("ASIATEMPORARY", "arn:aws:sts::111122223333:assumed-role/etl/run");
    temporary.session_token = Some(SecretString::new("the-token".to_owned()));
    let (server, _) = start(ServerConfig {
        principals: vec![temporary],
        ..config()
    })
    .await;
    let addr = server.addr();
    let with = |token: Option<&str>| Request {
        credentials: (
            "ASIATEMPORARY".to_owned(),
            "secret-of-ASIATEMPORARY".to_owned(),
            token.map(ToOwned::to_owned),
        ),
        ..list_keys()
    };
    assert_eq!(with(Some("the-token")).call(addr).await.status, 200);
    for token in [None, Some("another"), Some("the-token-and-more")] {
        let answer = with(token).call(addr).await;
        assert_eq!(answer.code.as_deref(), Some("UnrecognizedClientException"), "{token:?}");
    }
}

#[tokio::test]
async fn sts_tells_who_signed() {
    let (server, _) = start(config()).await;
    let addr = server.addr();
    for region in ["eu-central-1", "us-east-1"] {
        let answer = Request {
            region: region.to_owned(),
            ..Request::caller_identity()
        }
        .call(addr)
        .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(
            answer.text().contains(&format!("<Arn>{ADMIN}</Arn>")),
            "{}",
            answer.text()
        );
        assert!(answer.text().contains("<Account>111122223333</Account>"));
    }
    let mut other = Request::caller_identity();
    other.body = b"Action=AssumeRole&Version=2011-06-15".to_vec();
    assert_eq!(
        other.call(addr).await.code.as_deref(),
        Some("UnknownOperationException")
    );
}

#[tokio::test]
async fn only_post_to_the_root_is_answered() {
    let (server, _) = start(config()).await;
    let addr = server.addr();
    for head in [
        "GET / HTTP/1.1",
        "POST /kms HTTP/1.1",
        "POST /?Action=x HTTP/1.1",
        "PUT / HTTP/1.1",
    ] {
        let mut request = list_keys().sign(addr);
        request.head = head.to_owned();
        assert_eq!(
            request.send(addr).await.code.as_deref(),
            Some("UnknownOperationException"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn large_bodies_and_many_or_large_headers_are_cut_off() {
    let (server, _) = start(config()).await;
    let addr = server.addr();
    let large = Request {
        body: vec![b' '; 64 * 1024 + 1],
        ..list_keys()
    };
    assert_eq!(large.call(addr).await.status, 413);
    // Whoever announces no length is counted while it arrives.
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let head = format!("POST / HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(
        exchange(addr, format!("{head}{}0\r\n\r\n", chunk.repeat(3)).as_bytes())
            .await
            .status,
        413
    );
    let mut many = list_keys();
    many.headers
        .extend((0..100).map(|i| (format!("x-{i}"), "1".to_owned())));
    assert_eq!(many.send(addr).await.status, 431);
    let long = list_keys().header("x-long", &"x".repeat(64 * 1024));
    assert_eq!(long.send(addr).await.status, 431);
    assert_eq!(list_keys().call(addr).await.status, 200);
}

#[tokio::test]
async fn connections_above_the_limit_wait_for_their_turn() {
    let (server, _) = start(ServerConfig {
        max_connections: 1,
        ..config()
    })
    .await;
    let addr = server.addr();
    let idle = tokio::net::TcpStream::connect(addr).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let waiting = tokio::spawn(list_keys().call(addr));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        !waiting.is_finished(),
        "the second connection was served beside the first"
    );
    drop(idle);
    assert_eq!(waiting.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_client_that_hangs_does_not_hold_up_the_end() {
    use tokio::io::AsyncWriteExt as _;
    let (server, _) = start(config()).await;
    let mut hanging = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
    hanging
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::time::timeout(Duration::from_secs(6), server.shutdown())
        .await
        .expect("the server did not end");
}
