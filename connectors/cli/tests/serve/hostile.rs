//! Slow, silent, greedy and garbled clients do no harm, and a stop lets those finish who are under way.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::client::read;

const LIMITS: &str = "limits: { head_timeout: 1s, body_timeout: 1s, answer_timeout: 2s, connections: 40, requests_burst: 1000, requests_per_second: 1000 }";

#[test]
fn clients_that_are_slow_silent_or_garbled_are_left_and_nobody_else_notices() {
    let bench = Bench::new();
    let serving = bench.start(LIMITS);
    let (client, alice) = (&serving.client, bench.issuer.token("alice"));
    let answers = |what: &str| assert_eq!(client.open_text(&alice, &bench.records("")).status, 200, "{what}");
    answers("before");
    // No TLS at all, and nothing.
    let mut plain = TcpStream::connect(client.address).unwrap();
    plain.write_all(b"GET /v1/whoami HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let _silent: Vec<_> = (0..10).map(|_| TcpStream::connect(client.address).unwrap()).collect();
    // Half a head, half a body, and a connection that is kept and not used.
    let started = Instant::now();
    let mut half_head = client.connect();
    half_head.write_all(b"GET /v1/whoami HTTP/1.1\r\nHost:").unwrap();
    let mut half_body = client.connect();
    let head = format!(
        "POST /v1/open HTTP/1.1\r\nHost: a\r\nAuthorization: {alice}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    );
    half_body.write_all(head.as_bytes()).unwrap();
    answers("beside slow ones");
    assert_eq!(read(&mut half_body).unwrap().code(), "too-slow");
    let mut rest = Vec::new();
    let _ = half_head.read_to_end(&mut rest);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    let mut idle = client.connect();
    idle.write_all(format!("GET /v1/whoami HTTP/1.1\r\nHost: a\r\nAuthorization: {alice}\r\n\r\n").as_bytes())
        .unwrap();
    let kept = Instant::now();
    let _ = idle.read_to_end(&mut rest);
    assert!(
        kept.elapsed() < Duration::from_secs(8),
        "an idle connection is closed: {:?}",
        kept.elapsed()
    );
    // Garbage, heads that are too long, framing that two readers could take for different things.
    for garbage in [
        "\r\n\r\n\0\0\0\0".to_owned(),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(100_000)),
        format!("GET /v1/whoami HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(200)),
        format!(
            "POST /v1/open HTTP/1.1\r\nHost: a\r\nAuthorization: {alice}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{{}}"
        ),
        format!(
            "POST /v1/open HTTP/1.1\r\nHost: a\r\nAuthorization: {alice}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        ),
    ] {
        let mut stream = client.connect();
        let _ = stream.write_all(garbage.as_bytes());
        if let Ok(answer) = read(&mut stream) {
            assert!((400..500).contains(&answer.status), "{answer:?}");
        }
        answers("after garbage");
    }
    assert!(serving.instance.peak_memory_kib().unwrap() < 300 * 1024);
    serving.stop();
}

/// The head of a request of `length` bytes, after which the connection ends.
fn head(authorization: &str, length: usize) -> String {
    format!(
        "POST /v1/open HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: {authorization}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
}

#[test]
fn of_thirty_requests_at_once_of_one_principal_two_are_worked_on_and_the_others_are_told_to_come_back() {
    let bench = Bench::new();
    let serving = bench.start(
        "limits: { in_flight: 4, in_flight_per_principal: 2, requests_burst: 1000, requests_per_second: 1000, \
         body_timeout: 60s, head_timeout: 60s, request_timeout: 60s }",
    );
    let (alice, bob) = (bench.issuer.token("alice"), bench.issuer.token("bob"));
    let body = bench.records("");
    let (first, rest) = body.split_at(10);
    let begun = |_| {
        let mut stream = serving.client.connect();
        stream.write_all((head(&alice, body.len()) + first).as_bytes()).unwrap();
        stream
    };
    let mut under_way: Vec<_> = (0..2).map(begun).collect();
    std::thread::sleep(Duration::from_secs(1));
    let beyond: Vec<_> = (0..28).map(begun).collect();
    for mut stream in beyond {
        let answer = read(&mut stream).unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (429, "too-many-at-once"));
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    assert_eq!(serving.client.open_text(&bob, &body).status, 200, "another principal");
    for stream in &mut under_way {
        stream.write_all(rest.as_bytes()).unwrap();
        assert_eq!(read(stream).unwrap().status, 200);
    }
    assert_eq!(
        serving.client.open_text(&alice, &body).status,
        200,
        "there is room again"
    );
    serving.stop();
}

#[test]
fn a_client_that_takes_its_answer_a_little_at_a_time_is_cut_off_and_one_that_rests_between_answers_is_not() {
    const WHOLE: Duration = Duration::from_secs(3);
    let bench = Bench::new();
    let serving = bench.start(
        "limits: { body: 64MiB, answer_timeout: 60s, whole_answer_timeout: 3s, head_timeout: 60s, request_timeout: 60s }",
    );
    let alice = bench.issuer.token("alice");
    // More than the system's buffers take.
    let filler = "x".repeat(1 << 20);
    let record = bench.sealed[0].replacen('{', &format!("{{\"filler\":\"{filler}\","), 1);
    let body = format!(r#"{{"dataset":"payments","records":[{}]}}"#, vec![record; 40].join(","));
    let mut slow = serving.client.connect();
    slow.write_all((head(&alice, body.len()) + &body).as_bytes()).unwrap();
    let (mut taken, mut piece, mut began) = (0, vec![0; 1 << 10], None);
    // A little at a time for long enough, then whatever was under way.
    while let Ok(length @ 1..) = slow.read(&mut piece) {
        taken += length;
        let began = began.get_or_insert_with(Instant::now);
        if began.elapsed() < WHOLE * 3 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(began.is_some() && taken < body.len() / 2, "{taken} of {}", body.len());
    // Resting is no crime: the time of one answer does not count for the next.
    let mut kept = serving.client.connect();
    for _ in 0..3 {
        let ask = format!("GET /v1/whoami HTTP/1.1\r\nHost: a\r\nAuthorization: {alice}\r\n\r\n");
        kept.write_all(ask.as_bytes()).unwrap();
        let mut said = String::new();
        while !said.ends_with('}') {
            let length = kept.read(&mut piece).unwrap();
            assert!(length > 0, "{said}");
            said.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        }
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        std::thread::sleep(WHOLE + Duration::from_secs(1));
    }
    serving.stop();
}

#[test]
fn one_principal_and_one_address_do_not_take_the_places_of_all_others() {
    let bench = Bench::new();
    let serving = bench.start(
        "limits: { in_flight: 2, in_flight_per_principal: 2, body_timeout: 20s, head_timeout: 20s, connections: 40, \
         connections_per_address: 6 }",
    );
    let client = &serving.client;
    let (alice, bob) = (bench.issuer.token("alice"), bench.issuer.token("bob"));
    let body = bench.records("");
    // Two bodies of one principal that do not come: its own places, and nobody else's.
    let half_bodies: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = client.connect();
            let head = format!(
                "POST /v1/open HTTP/1.1\r\nHost: a\r\nAuthorization: {alice}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(client.open_text(&alice, &body).code(), "too-many-at-once");
    assert_eq!(client.open_text(&bob, &body).status, 200);
    drop(half_bodies);
    // Who asks for nothing that there is keeps no connection.
    let mut nothing = client.connect();
    nothing.write_all(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let asked = Instant::now();
    assert_eq!(read(&mut nothing).unwrap().code(), "not-found");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    drop(nothing);
    std::thread::sleep(Duration::from_millis(500));
    // Six silent connections, and no seventh of the address.
    let silent: Vec<_> = (0..6).map(|_| TcpStream::connect(client.address).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let mut seventh = TcpStream::connect(client.address).unwrap();
    seventh.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let ended = seventh.read(&mut [0; 1]);
    let is_closed = |ended: &std::io::Result<usize>| match ended {
        Ok(read) => *read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(is_closed(&ended), "{ended:?}");
    drop(silent);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(client.open_text(&alice, &body).status, 200);
    serving.stop();
}

#[test]
fn a_body_that_says_no_length_is_cut_off_at_the_limit() {
    let bench = Bench::new();
    let serving = bench.start("limits: { body: 64KiB }");
    let alice = bench.issuer.token("alice");
    let mut stream = serving.client.connect();
    let head = format!(
        "POST /v1/open HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: {alice}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    for _ in 0..20 {
        if stream
            .write_all(format!("1000\r\n{}\r\n", " ".repeat(0x1000)).as_bytes())
            .is_err()
        {
            break;
        }
    }
    assert_eq!(read(&mut stream).unwrap().code(), "too-large");
    serving.stop();
}

#[test]
fn a_stop_lets_a_request_under_way_end_and_takes_no_more() {
    let bench = Bench::new();
    let serving = bench.start("");
    let alice = bench.issuer.token("alice");
    assert!(serving.admin("/readyz").starts_with("ok"));
    let body = bench.records("");
    let mut stream = serving.client.connect();
    let head = format!(
        "POST /v1/open HTTP/1.1\r\nHost: a\r\nAuthorization: {alice}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let (first, rest) = body.split_at(10);
    stream.write_all(first.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    serving.instance.terminate();
    std::thread::sleep(Duration::from_millis(300));
    assert!(TcpStream::connect(serving.client.address).is_err(), "nobody new");
    assert!(serving.admin("/readyz").starts_with("draining"));
    stream.write_all(rest.as_bytes()).unwrap();
    assert_eq!(read(&mut stream).unwrap().status, 200);
    let (status, log) = serving.instance.wait(Duration::from_secs(30));
    assert!(status.success(), "{log}");
    assert_eq!(bench.audited(&[]).len(), 2);
}

#[test]
fn a_new_certificate_is_taken_in_and_a_broken_one_is_not() {
    let bench = Bench::new();
    let serving = bench.start("");
    let serial = || {
        let stream = serving.client.connect();
        let certificate = stream.ssl().peer_certificate().unwrap();
        certificate
            .serial_number()
            .to_bn()
            .unwrap()
            .to_dec_str()
            .unwrap()
            .to_string()
    };
    assert_eq!(serial(), "1000");
    std::fs::write(bench.site.path().join("cert.pem"), "broken").unwrap();
    std::thread::sleep(Duration::from_secs(11));
    assert_eq!(serial(), "1000");
    bench.certify(2_000);
    let until = Instant::now() + Duration::from_secs(30);
    while serial() != "2000" {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(200));
    }
    serving.stop();
}

#[test]
fn a_service_that_could_be_listened_to_or_that_nobody_writes_down_does_not_start() {
    let bench = Bench::new();
    let path = bench.configure(&bench.site.kms().endpoint(), "");
    let good = std::fs::read_to_string(&path).unwrap();
    let run = |yaml: &str, more: &[&str]| {
        std::fs::write(&path, yaml).unwrap();
        let output = bench.run("pipeline", &[&["serve", "service.yaml"], more].concat());
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout),
        )
    };
    let line = |start: &str| good.lines().find(|line| line.starts_with(start)).unwrap().to_owned() + "\n";
    let beyond = good
        .replace("listen: 127.0.0.1:0\n", "listen: 0.0.0.0:0\n")
        .replace(&line("tls:"), "");
    for (yaml, what) in [
        (beyond, "is missing, and `listen` is not on loopback"),
        (good.replace(&line("audit:"), ""), "missing key `audit`"),
        (good.replace(&line("trust:"), "trust: {}\n"), "no owner key is pinned"),
        (
            good.replace("jwks_uri: \"http://127", "jwks_uri: \"http://192"),
            "jwks_uri",
        ),
        (good.replace("cert.pem", "none.pem"), "none.pem"),
        (good.replace("name: read", "name: read\nsecret: 1"), "secret"),
    ] {
        let (code, said) = run(&yaml, &[]);
        assert!(code == Some(78) && said.contains(what), "{what}: {code:?} {said}");
        assert!(said.contains("help: "), "{said}");
    }
    let (code, said) = run(&good, &["--check"]);
    assert!(
        code == Some(0) && said.contains("ok keys of https://login.example.com"),
        "{said}"
    );
    assert!(
        !bench.site.path().join("log/audit.log").exists(),
        "a check writes nothing"
    );
}
