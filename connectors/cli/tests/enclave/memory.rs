//! G6: the whole memory of the host is searched while canaries run through.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::Duration;

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::EncryptionAlgorithmSpec;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealflow::jose::jwe::{ContentKey, Jwe};
use sealflow::keys::{EncryptionContext, Envelope};
use sealflow_testbed::KEY_ARN;

use crate::bench::{BACKEND_RSA, Bench, ENCLAVE_RSA, REGULATED, arn, message};
use crate::by_hand::kms;

const CANARY: &str = "canary-memory-91bd";
/// How often the memory is searched while records pass.
const SEARCHES: usize = 4;

/// Places in the process's memory that hold `needle`.
fn found(pid: u32, needle: &[u8]) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut count, mut bytes) = (0, Vec::new());
    for line in maps.lines() {
        let mut parts = line.split_whitespace();
        let (range, rights) = (parts.next().unwrap(), parts.next().unwrap());
        if !rights.starts_with('r') || line.contains("[vvar") || line.contains("[vsyscall") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let (start, end) = (
            u64::from_str_radix(start, 16).unwrap(),
            u64::from_str_radix(end, 16).unwrap(),
        );
        if memory.seek(SeekFrom::Start(start)).is_err() {
            continue;
        }
        bytes.resize(usize::try_from(end - start).unwrap(), 0);
        // Pages may go while they are read.
        let mut have = 0;
        while have < bytes.len() {
            match memory.read(&mut bytes[have..]) {
                Ok(0) | Err(_) => break,
                Ok(read) => have += read,
            }
        }
        count += memchr(&bytes[..have], needle);
    }
    count
}

/// A process that does not run, and runs again at the end.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Self {
        signal(pid, "-STOP");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, "-CONT");
    }
}

fn signal(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(status.unwrap().success(), "{signal}");
}

fn memchr(bytes: &[u8], needle: &[u8]) -> usize {
    let mut count = 0;
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
        if rest[at..].starts_with(needle) {
            count += 1;
        }
        rest = &rest[at + 1..];
    }
    count
}

const ALLOWED: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
    "Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}]}"#;

/// The key under which a client sealed the values of that session.
fn session_key(bench: &Bench, key: &str, token: &str) -> Vec<u8> {
    let jwe = Jwe::parse(token).unwrap();
    let request = kms(bench, "pipeline").decrypt().key_id(arn(key));
    let request = request
        .ciphertext_blob(Blob::new(jwe.encrypted_key().unwrap()))
        .encryption_algorithm(EncryptionAlgorithmSpec::RsaesOaepSha256);
    let answer = bench.site.block_on(request.send()).unwrap();
    let wrapping: [u8; 32] = answer.plaintext.unwrap().into_inner().try_into().unwrap();
    let mut jwk = Vec::new();
    ContentKey::new(&wrapping).open(&jwe, &mut jwk).unwrap();
    let jwk: serde_json::Value = serde_json::from_slice(&jwk).unwrap();
    let session = URL_SAFE_NO_PAD.decode(jwk["k"].as_str().unwrap()).unwrap();
    assert_eq!(session.len(), 32);
    session
}

/// What values are sealed under with that data key (docs/format.md, "Keys").
fn cipher_key(data_key: &[u8]) -> Vec<u8> {
    let key = Salt::new(HKDF_SHA256, &[]).extract(data_key);
    let info: [&[u8]; 1] = [b"sealflow 0x11 v1"];
    let expanded = key.expand(&info, HKDF_SHA256).unwrap();
    let mut derived = vec![0; 32];
    expanded.fill(&mut derived).unwrap();
    derived
}

/// The data key of that group: there is one.
fn data_key(bench: &Bench, arn: &str, name: &str, acl: &str) -> Vec<u8> {
    let mut envelopes = Vec::new();
    let mut folders = vec![bench.site.catalogue().join("keys")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => envelopes.extend(Envelope::from_bytes(&std::fs::read(path).unwrap())),
            }
        }
    }
    envelopes.retain(|envelope| envelope.arn == arn && envelope.acl == acl);
    assert_eq!(envelopes.len(), 1, "{arn}");
    let mut request = kms(bench, "pipeline").decrypt().key_id(arn);
    for (key, value) in EncryptionContext::for_data_key("payments", name, acl).iter() {
        request = request.encryption_context(key, value);
    }
    let request = request.ciphertext_blob(Blob::new(envelopes.remove(0).wrapped));
    let answer = bench.site.block_on(request.send()).unwrap();
    answer.plaintext.unwrap().into_inner()
}

#[test]
fn the_hosts_memory_never_holds_what_the_enclave_opens_and_holds_what_it_opens_itself() {
    let Some(bench) = Bench::new("searched") else { return };
    let (mut session, mut hybrid) = (bench.session(ENCLAVE_RSA), bench.backend_session());
    let records: u64 = 40_000;
    let padding = "x".repeat(40);
    let messages: Vec<_> = (0..records)
        .map(|n| {
            let card = format!("\"{CANARY}-card-{padding}-{n}\"");
            let sealed = session.seal("card", card.as_bytes()).unwrap();
            let amount = hybrid.seal("amount", b"1").unwrap();
            message(n, &sealed, &amount, &[session.token(), hybrid.token()])
        })
        .collect();
    bench
        .topics
        .produce_with("searched", messages.into_iter(), &[("compression.codec", "none")]);
    let mut running = bench.start(&bench.pipeline, &[]);
    let pid = running.id();
    let of_card = format!("{CANARY}-card");
    let mut controls = 0;
    for search in 0..SEARCHES {
        let goal = records * (search as u64 + 1) / (SEARCHES as u64 + 2);
        bench.wait_for("searched.sealed", goal, &mut running);
        // Twice, while it works on.
        for _ in 0..2 {
            let stopped = Stopped::new(pid);
            assert_eq!(found(pid, of_card.as_bytes()), 0, "search {search}");
            controls += found(pid, b"@example.com");
            drop(stopped);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    assert!(
        controls > 0,
        "the search finds what the host sees: addresses, which it seals itself"
    );
    bench.wait_for("searched.sealed", records, &mut running);
    let stopped = Stopped::new(pid);
    // Only now the test itself may have the keys.
    for key in [ENCLAVE_RSA, REGULATED] {
        bench.site.kms().set_key_policy(&arn(key), ALLOWED).unwrap();
    }
    let of_enclave = data_key(&bench, &arn(REGULATED), "regulated", "pii");
    for (what, key) in [
        ("session key", session_key(&bench, ENCLAVE_RSA, session.token())),
        ("cipher key", cipher_key(&of_enclave)),
        ("data key", of_enclave),
    ] {
        assert_eq!(found(pid, &key), 0, "a {what} of the enclave");
    }
    // The host's own: of its data keys it keeps what is derived from them.
    for (what, key) in [
        ("session key", session_key(&bench, BACKEND_RSA, hybrid.token())),
        ("cipher key", cipher_key(&data_key(&bench, KEY_ARN, "default", "ops"))),
    ] {
        assert!(found(pid, &key) > 0, "the search finds a {what} that the host has");
    }
    drop(stopped);
    running.terminate();
    let (status, log) = running.wait(Duration::from_secs(60));
    assert!(status.success(), "{log}");
    assert!(!log.contains(CANARY));
}
