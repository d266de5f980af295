//! G6: the whole memory of the host is searched while canaries run through.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::Duration;

use crate::bench::{Bench, ENCLAVE_RSA, message};

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
    running.terminate();
    let (status, log) = running.wait(Duration::from_secs(60));
    assert!(status.success(), "{log}");
    assert!(!log.contains(CANARY));
}
