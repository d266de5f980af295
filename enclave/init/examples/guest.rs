//! What runs in place of the worker in `make test-nitro`: says by vsock what the NSM of its machine reports, then echoes. Talks to
//! whoever connects, and holds no secrets.
//!
//! Port 5005 answers each connection with lines `PCR0 hex` to `PCR2 hex`, `document hex` (an attestation document with the nonce
//! `sealflow`), `configuration hex` (the file that its second argument names, after `--configuration`), `root NAME…` (what is in
//! its root folder), and an empty line. Then every byte comes back, in writes of at most 32 KiB.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // a test's program: it ends loudly

use std::fs;
use std::io::{Read, Write};
use std::thread;

use aws_nitro_enclaves_nsm_api::api::{Request, Response};
use aws_nitro_enclaves_nsm_api::driver::{nsm_init, nsm_process_request};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

const PORT: u32 = 5_005;
/// More at once stalls for ever under vhost-device-vsock.
const LARGEST_WRITE: usize = 32 * 1024;

fn main() {
    let report = report();
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT).expect("a port of vsock");
    eprintln!("guest: listening");
    loop {
        let (stream, _) = listener.accept().expect("a connection");
        let report = report.clone();
        thread::spawn(move || serve(stream, &report));
    }
}

fn report() -> String {
    let mut report = measured();
    let configuration = fs::read(std::env::args().nth(2).expect("two arguments")).expect("the configuration");
    report += &format!("configuration {}\n", hexadecimal(&configuration));
    let mut root: Vec<_> = fs::read_dir("/")
        .expect("a root")
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    root.sort();
    report + &format!("root {}\n\n", root.join(" "))
}

/// Nothing on a machine without an NSM: then the test has nothing to compare, and fails.
fn measured() -> String {
    let nsm = nsm_init();
    if nsm < 0 {
        eprintln!("guest: there is no /dev/nsm");
        return String::new();
    }
    let mut report = String::new();
    for index in 0..3 {
        let Response::DescribePCR { data, .. } = nsm_process_request(nsm, Request::DescribePCR { index }) else {
            panic!("the NSM does not describe PCR{index}");
        };
        report += &format!("PCR{index} {}\n", hexadecimal(&data));
    }
    let nonce = Some(b"sealflow".to_vec().into());
    match nsm_process_request(
        nsm,
        Request::Attestation {
            user_data: None,
            nonce,
            public_key: None,
        },
    ) {
        Response::Attestation { document } => report + &format!("document {}\n", hexadecimal(&document)),
        _ => panic!("the NSM does not attest"),
    }
}

fn serve(mut stream: VsockStream, report: &str) {
    // Whoever hangs up ends this connection, and nothing else.
    if stream.write_all(report.as_bytes()).is_err() {
        return;
    }
    let mut buffer = vec![0; LARGEST_WRITE];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
