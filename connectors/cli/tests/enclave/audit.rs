//! What the worker decides is written down before anything of it is shown; what cannot be written down is not shown.

use std::path::Path;
use std::time::Duration;

use sealflow_client::{PrivateKey, RsaBits};
use sealflow_testbed::{SmallDisk, or_skip};

use crate::bench::{Bench, ENCLAVE_RSA, message};

/// A reader's key in a file of the site.
fn reader(bench: &Bench) -> PrivateKey {
    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    std::fs::write(bench.site.path().join("reader.jwk"), reader.public().unwrap().to_json()).unwrap();
    reader
}

/// A pipeline file whose worker's lines go there.
fn logged_to(bench: &Bench, audit: &str) -> std::path::PathBuf {
    let pipeline = bench.pipeline_file("worker.img", "");
    let yaml = std::fs::read_to_string(&pipeline).unwrap();
    let other = yaml.replace("audit: enclave-audit.jsonl", &format!("audit: {audit}"));
    assert_ne!(other, yaml);
    std::fs::write(&pipeline, other).unwrap();
    pipeline
}

fn read<'a>(pipeline: &'a Path, source: &'a str) -> Vec<&'a str> {
    let pipeline = pipeline.to_str().unwrap();
    vec![
        "read",
        source,
        "--pipeline",
        pipeline,
        "--output",
        "json",
        "--last",
        "50",
        "--seal-to",
        "reader.jwk",
    ]
}

/// Exit code, standard output, standard error.
fn run(bench: &Bench, role: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let output = bench.run(role, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn produce(bench: &Bench, topic: &str, from: u64) {
    let (mut session, mut hybrid) = (bench.session(ENCLAVE_RSA), bench.backend_session());
    let messages = (from..from + 8).map(|n| {
        let sealed = session.seal("card", format!("\"{n}\"").as_bytes()).unwrap();
        let amount = hybrid.seal("amount", b"1").unwrap();
        message(n, &sealed, &amount, &[session.token(), hybrid.token()])
    });
    bench.topics.produce(topic, &messages.collect::<Vec<_>>());
}

#[test]
fn what_the_enclave_decides_and_cannot_be_written_down_is_not_shown() {
    let Some(bench) = Bench::new("unwritten") else { return };
    let reader = reader(&bench);
    let Some(disk) = or_skip(
        "the enclave's audit log on a full disk",
        SmallDisk::mount(&bench.site.path().join("disk"), 256),
    ) else {
        return;
    };
    let pipeline = logged_to(&bench, "disk/enclave.jsonl");
    produce(&bench, "unwritten", 0);
    bench.run_to_end();
    let source = "kafka:///unwritten.sealed";
    let (code, shown, told) = run(&bench, "support", &read(&pipeline, source));
    assert_eq!((code, shown.lines().count()), (Some(0), 8), "{told}");

    disk.fill();
    let (code, shown, told) = run(&bench, "support", &read(&pipeline, source));
    assert_eq!((code, shown.as_str()), (Some(74), ""), "{told}");
    assert!(
        told.contains("cannot be written") && told.contains("enclave.jsonl") && told.contains("help: "),
        "{told}"
    );
    // Pipelines too: the worker that begins a chain of lines is one whose lines must be kept.
    produce(&bench, "unwritten", 8);
    let (status, log) = bench.start(&pipeline, &["--until-end"]).wait(Duration::from_secs(120));
    assert_eq!(status.code(), Some(74), "{log}");
    assert!(log.contains("cannot be written"), "{log}");
    assert_eq!(bench.topics.read_all("unwritten.sealed").len(), 8);

    // Room again: nothing was lost, and the log is whole.
    disk.free();
    let (status, log) = bench.start(&pipeline, &["--until-end"]).wait(Duration::from_secs(120));
    assert!(status.success(), "{log}");
    let (code, shown, told) = run(&bench, "support", &read(&pipeline, source));
    assert_eq!((code, shown.lines().count()), (Some(0), 16), "{told}");
    let card =
        serde_json::from_str::<serde_json::Value>(shown.lines().next().unwrap()).unwrap()["value"]["card"].clone();
    assert!(reader.open(card.as_str().unwrap()).is_ok());
    bench.say(&["audit", "verify", "disk/enclave.jsonl"]);
}

#[test]
fn what_is_no_file_of_this_user_takes_no_lines_and_the_worker_is_not_started() {
    let Some(bench) = Bench::new("devices") else { return };
    reader(&bench);
    let pipeline = logged_to(&bench, "/dev/full");
    for args in [
        vec!["run", pipeline.to_str().unwrap(), "--until-end"],
        read(&pipeline, "kafka:///devices.sealed"),
    ] {
        let (code, shown, told) = run(&bench, "support", &args);
        assert_eq!((code, shown.as_str()), (Some(77), ""), "{told}");
        assert!(
            told.contains("enclave.audit: the audit log /dev/full is refused"),
            "{told}"
        );
        assert!(!told.contains("launched"), "{told}");
    }
}
