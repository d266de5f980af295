//! The worker's program as images have it: what it does with what stands in its arguments and its configuration.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::Command;

use sealflow_testbed::{Scratch, worker_program};

/// How it ends, and what it says.
fn started(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(worker_program()).args(arguments).output().unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn the_program_of_images_takes_no_software_nsm_from_its_configuration() {
    let folder = Scratch::new();
    let file = folder.path().join("configuration.yaml");
    let start = |more: &str| {
        let yaml = format!(
            "owners: [\"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k\"]\nkms: {{ keys: [\"arn:aws:kms:eu-central-1:111122223333:key/*\"] }}\n{more}"
        );
        std::fs::write(&file, yaml).unwrap();
        started(&["--configuration", file.to_str().unwrap()])
    };
    let (code, said) = start("dev_nsm: \"vsock:2:9100\"\n");
    assert_eq!(code, Some(70), "{said}");
    assert!(said.contains("dev_nsm"), "{said}");
    // Without it, what is missing is the device of an enclave.
    let (code, said) = start("");
    assert_eq!(code, Some(70), "{said}");
    assert!(said.contains("there is no NSM"), "{said}");
}

#[test]
fn nobody_runs_it_by_hand() {
    let (code, said) = started(&["--help"]);
    assert!(code == Some(70) && said.contains("--configuration FILE"), "{said}");
    let (code, said) = started(&[]);
    assert!(
        code == Some(70) && said.contains("was not started by its launcher"),
        "{said}"
    );
}
