//! A worker that somebody else has started, reached by its socket.

use serde_json::Value;

use crate::bench::{Bench, ENCLAVE_RSA, message};

#[test]
fn a_worker_that_runs_already_is_reached_by_its_socket_and_says_how_it_is() {
    let Some(bench) = Bench::new("reached") else { return };
    let (socket, program) = bench.run_worker();
    let section = bench.section("worker.img");
    let yaml = std::fs::read_to_string(&bench.pipeline).unwrap();
    assert!(yaml.contains(&section));
    let started: Vec<&str> = section
        .lines()
        .filter(|line| !line.contains("image:") && !line.contains("isolation:"))
        .collect();
    let reached = format!("{}\n  endpoint: \"unix:{}\"\n", started.join("\n"), socket.display());
    std::fs::write(&bench.pipeline, yaml.replace(&section, &reached)).unwrap();
    let file = bench.pipeline.to_str().unwrap();

    let proved: Value = serde_json::from_str(&bench.say(&["enclave", "attest", file, "--output", "json"])).unwrap();
    assert_eq!(
        (&proved["tier"], &proved["image"]),
        (&"dev-software-nsm".into(), &hex::encode(bench.image).into())
    );
    let how: Value = serde_json::from_str(&bench.say(&["enclave", "status", file, "--output", "json"])).unwrap();
    // Each connection has a worker of its own, which has done nothing yet but start.
    assert_eq!((how["values"].as_u64(), how["refused"].as_u64()), (Some(0), Some(0)));
    let memory = how["memory_bytes"].as_u64().unwrap();
    assert!((1 << 20..1 << 30).contains(&memory), "{how}");

    let (mut session, mut hybrid) = (bench.session(ENCLAVE_RSA), bench.backend_session());
    let amount = hybrid.seal("amount", b"1").unwrap();
    let card = session.seal("card", b"\"4111\"").unwrap();
    let sealed = message(0, &card, &amount, &[session.token(), hybrid.token()]);
    bench.topics.produce("reached", &[sealed]);
    bench.run_to_end();
    let sealed = bench.topics.read_all("reached.sealed").pop().unwrap().value.unwrap();
    let sealed: Value = serde_json::from_slice(&sealed).unwrap();
    assert!(sealed["card"].as_str().unwrap().starts_with("sf1."), "{sealed}");

    program.kill();
    let away = bench.run("pipeline", &["enclave", "status", file]);
    let said = String::from_utf8_lossy(&away.stderr);
    assert_eq!(away.status.code(), Some(69), "{said}");
    assert!(said.contains("worker.sock") && said.contains("help: "), "{said}");
}
