//! The certificate of a development root, for a KMS that is to believe it.

use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow_enclave_host::nsm::certificate_of;
use sealflow_testbed::{Instance, Scratch};

use crate::bench::binary;

#[test]
fn the_certificate_of_a_development_root_is_what_the_local_kms_takes() {
    let place = Scratch::new();
    let folder = place.path().join("dev-root");
    let print = || {
        let output = Command::new(binary())
            .args(["enclave", "dev-root"])
            .arg(&folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("dev-software-nsm"));
        String::from_utf8(output.stdout).unwrap()
    };
    let pem = print();
    assert_eq!(print(), pem, "it is made once");
    assert!(
        pem.starts_with("-----BEGIN CERTIFICATE-----\n") && pem.ends_with("-----END CERTIFICATE-----\n"),
        "{pem}"
    );
    assert!(pem.lines().all(|line| line.len() <= 64), "{pem}");
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    assert_eq!(STANDARD.decode(body).unwrap(), certificate_of(&folder).unwrap());
    let root = place.path().join("root.pem");
    std::fs::write(&root, &pem).unwrap();

    let kms = place.path().join("kms");
    let made = Command::new(binary())
        .args(["kms", "create-key", "--folder"])
        .arg(&kms)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let serve = |root: &std::path::Path| {
        let mut command = Command::new(binary());
        command
            .args(["kms", "serve", "--listen", "127.0.0.1:0", "--folder"])
            .arg(&kms);
        command.arg("--attestation-root").arg(root);
        Instance::start(command, &place.path().join("kms.log"))
    };
    let mut running = serve(&root);
    let until = Instant::now() + Duration::from_secs(60);
    while !running.read_log().contains(root.to_str().unwrap()) {
        assert!(
            running.ended().is_none() && Instant::now() < until,
            "{}",
            running.read_log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    running.kill();
    // What is no certificate is none.
    std::fs::write(&root, pem.replace("MII", "AAA")).unwrap();
    let (status, log) = serve(&root).wait(Duration::from_secs(60));
    assert!(!status.success(), "{log}");
}

#[test]
fn a_folder_that_cannot_be_written_is_said() {
    let output = Command::new(binary())
        .args(["enclave", "dev-root", "/dev/null/root"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(74), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.stdout.is_empty() && said.contains("/dev/null/root") && said.contains("help: "),
        "{said}"
    );
}
