//! Clients seal; the host carries; the worker opens and seals again; a reader's own key opens the answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sealflow_client::{PrivateKey, RsaBits};
use serde_json::Value;

use crate::bench::{Bench, ENCLAVE_RSA, message};
use crate::clean::assert_clean;

const CANARY: &str = "canary-enclave-5f0e";

fn card(n: u64) -> String {
    format!("{CANARY}-{n}")
}

#[test]
fn what_clients_seal_for_the_enclave_is_sealed_by_it_alone_and_in_clear_nowhere_on_the_way() {
    let Some(bench) = Bench::new("regulated") else { return };
    let records = 5_000;
    let (mut session, mut hybrid) = (bench.session(ENCLAVE_RSA), bench.backend_session());
    let mut messages = Vec::new();
    for n in 0..records {
        let sealed = session.seal("card", format!("\"{}\"", card(n)).as_bytes()).unwrap();
        let amount = hybrid.seal("amount", format!("{n}.25").as_bytes()).unwrap();
        messages.push(message(n, &sealed, &amount, &[session.token(), hybrid.token()]));
    }
    // In clear; of another column; sealed to the backend's key, which the worker does not have.
    let amount = hybrid.seal("amount", b"1").unwrap();
    let others = hybrid.seal("card", format!("\"{}\"", card(0)).as_bytes()).unwrap();
    messages.push(message(
        records,
        "4111111111111111",
        &amount,
        &[session.token(), hybrid.token()],
    ));
    messages.push(message(
        records + 1,
        &session.seal("amount", b"1").unwrap(),
        &amount,
        &[session.token(), hybrid.token()],
    ));
    messages.push(message(
        records + 2,
        &others,
        &amount,
        &[session.token(), hybrid.token()],
    ));
    bench.topics.produce("regulated", &messages);
    let log = bench.run_to_end();
    assert!(log.contains("dev-software-nsm"), "{log}");

    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for sealed in bench.topics.read_all("regulated.sealed") {
        let text = String::from_utf8(sealed.value.unwrap()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        *seen.entry(value["id"].as_u64().unwrap()).or_default() += 1;
        for column in ["card", "amount", "email"] {
            assert!(value[column].as_str().unwrap().starts_with("sf1."), "{text}");
        }
        assert!(
            sealed.headers.iter().all(|(name, _)| name == "sealflow-keys"),
            "{:?}",
            sealed.headers
        );
    }
    assert_eq!(seen.len() as u64, records);
    assert!(seen.values().all(|times| *times == 1));
    let mut codes: Vec<String> = bench
        .topics
        .read_all("regulated.dead")
        .into_iter()
        .map(|letter| {
            let letter: Value = serde_json::from_slice(&letter.value.unwrap()).unwrap();
            letter["code"].as_str().unwrap().to_owned()
        })
        .collect();
    codes.sort();
    assert_eq!(codes, ["cannot-open", "cannot-open", "not-client-sealed"]);
    // The worker was released one data key and one session; everything else it asked for would have been refused to the host.
    assert_eq!(
        bench.site.kms().requests("GenerateDataKey"),
        2,
        "one for the backend, one for the worker"
    );

    let status: Value = serde_json::from_str(&bench.say(&[
        "enclave",
        "status",
        bench.pipeline.to_str().unwrap(),
        "--output",
        "json",
    ]))
    .unwrap();
    assert_eq!(
        (&status["tier"], &status["image"]),
        (&"dev-software-nsm".into(), &hex::encode(bench.image).into())
    );

    // The host, with all its rights, opens nothing of it; and nothing of it is in clear anywhere.
    let source = "kafka:///regulated.sealed";
    let by_host = bench.run(
        "support",
        &[
            "read",
            source,
            "--pipeline",
            bench.pipeline.to_str().unwrap(),
            "--output",
            "json",
            "--last",
            "100",
        ],
    );
    let text = String::from_utf8(by_host.stdout).unwrap();
    assert!(!text.contains(CANARY));
    assert!(
        by_host.status.success(),
        "{:?} {}",
        by_host.status,
        String::from_utf8_lossy(&by_host.stderr)
    );
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert!(
        first["value"]["card"].is_null() && first["value"]["email"].as_str().unwrap().contains('@'),
        "{first}"
    );

    // A reader's answer goes through the worker, sealed to the reader's own key, which alone opens it.
    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    std::fs::write(bench.site.path().join("reader.jwk"), reader.public().unwrap().to_json()).unwrap();
    let read = [
        "read",
        source,
        "--pipeline",
        bench.pipeline.to_str().unwrap(),
        "--output",
        "json",
        "--last",
        "50",
        "--seal-to",
        "reader.jwk",
    ];
    let answered = bench.run("support", &read);
    let text = String::from_utf8(answered.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&answered.stderr).into_owned();
    assert!(
        answered.status.success() && !text.contains(CANARY) && !stderr.contains(CANARY),
        "{stderr}"
    );
    let mut opened = 0;
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let n = record["value"]["id"].as_u64().unwrap();
        let open = |column: &str| reader.open(record["value"][column].as_str().unwrap()).unwrap();
        assert_eq!(open("card").expose(), format!("\"{}\"", card(n)).as_bytes());
        assert_eq!(open("amount").expose(), format!("{n}.25").as_bytes());
        opened += 1;
    }
    assert!(opened >= 150, "{opened}");
    // Whom its ACL does not name sees nothing of it, and the worker's own log tells of both.
    let refused = bench.run("analyst", &read);
    let first: Value = serde_json::from_slice(refused.stdout.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert!(
        first["value"]["card"].is_null() && first["value"]["amount"].as_str().unwrap().starts_with("eyJ"),
        "{first}"
    );
    let lines = std::fs::read_to_string(bench.site.path().join("enclave-audit.jsonl")).unwrap();
    for (role, decision) in [("support", "allowed"), ("analyst", "refused")] {
        let is_it = |line: &&str| line.contains(role) && line.contains(&format!("\"decision\":\"{decision}\""));
        assert!(lines.lines().any(|line| is_it(&line)), "{role}: {lines}");
    }

    let holds = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
    assert_clean(bench.site.path(), &holds);
    assert_clean(&bench.kafka.data_dir(), &holds);
}

#[test]
fn a_worker_that_is_killed_again_and_again_loses_nothing_and_repeats_nothing() {
    let Some(bench) = Bench::new("killed") else { return };
    let (records, kills) = (
        setting("SEALFLOW_ENCLAVE_RECORDS", 20_000),
        setting("SEALFLOW_ENCLAVE_KILLS", 3),
    );
    let (mut session, mut hybrid) = (bench.session(ENCLAVE_RSA), bench.backend_session());
    let messages = (0..records).map(|n| {
        let sealed = session.seal("card", format!("\"{}\"", card(n)).as_bytes()).unwrap();
        let amount = hybrid.seal("amount", b"1").unwrap();
        message(n, &sealed, &amount, &[session.token(), hybrid.token()])
    });
    bench
        .topics
        .produce_with("killed", messages, &[("compression.codec", "none")]);
    let started = Instant::now();
    let mut running = bench.start(&bench.pipeline, &[]);
    let mut killed = 0;
    for kill in 1..=kills {
        bench.wait_for("killed.sealed", records * kill / (kills + 1), &mut running);
        // The one that runs: it may be on its way back from the last time.
        let until = Instant::now() + Duration::from_secs(60);
        while killed < kill {
            assert!(Instant::now() < until, "{}", running.read_log());
            // Those that were killed before are gone.
            killed += workers(&running.read_log())
                .iter()
                .map(|pid| u64::from(kill_now(pid)))
                .sum::<u64>();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(killed >= kills, "{killed}");
    bench.wait_for("killed.sealed", records, &mut running);
    let seconds = started.elapsed().as_secs_f64();
    running.terminate();
    let (status, log) = running.wait(Duration::from_secs(60));
    assert!(status.success(), "{log}");
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    bench.topics.read_each("killed.sealed", |message| {
        let value: Value = serde_json::from_slice(&message.value.unwrap()).unwrap();
        *seen.entry(value["id"].as_u64().unwrap()).or_default() += 1;
        assert!(value["card"].as_str().unwrap().starts_with("sf1."));
    });
    assert_eq!(seen.len() as u64, records);
    assert!(seen.values().all(|times| *times == 1));
    assert_eq!(bench.topics.read_all("killed.dead").len(), 0);
    sealflow_testbed::report(&serde_json::json!({
        "name": "exactly once, by an enclave worker that is killed",
        "records": records,
        "kills": killed,
        "lost": records - seen.len() as u64,
        "repeated": seen.values().filter(|times| **times > 1).count(),
        "seconds": seconds,
    }));
    let holds = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
    assert_clean(bench.site.path(), &holds);
}

/// Whether there was such a process to kill.
fn kill_now(pid: &str) -> bool {
    let kill = std::process::Command::new("kill").args(["-9", pid]).output();
    kill.unwrap().status.success()
}

/// Processes of workers, as the log names them.
pub(crate) fn workers(log: &str) -> Vec<String> {
    let lines = log.lines().filter(|line| line.contains("launched the enclave worker"));
    let pid = |line: &str| {
        let at = line.find("pid=")? + 4;
        Some(line[at..].chars().take_while(char::is_ascii_digit).collect())
    };
    lines.filter_map(pid).collect()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
