//! G1 for credentials: whatever goes wrong, nothing that is printed holds a password, key or token.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use sealflow_testbed::{Pipeline, Site, free_port};

/// How long a command may talk before it is stopped: a broker that is not there is waited for, for 30 seconds.
const PATIENCE: Duration = Duration::from_secs(45);

/// Credentials, each with a beginning of its own that no output may hold.
const CANARIES: [&str; 8] = [
    "CanaryFile-\"7\\x",
    "CanaryExec-5f2a",
    "CanaryVariable-9c1d",
    "CanaryLiteral-77aa",
    "CanarySession-31e0",
    "CanaryAwsSecret-8b44",
    "CanaryAwsToken-e9f0",
    "CanaryOidc-22c6",
];

/// Ways to go wrong, by the properties of source and target.
const PROPERTIES: [(&str, &str); 3] = [
    (
        "sasl",
        r#"{ security.protocol: SASL_PLAINTEXT, sasl.mechanism: PLAIN, sasl.username: user, sasl.password: "SECRET[file.sasl]", debug: all }"#,
    ),
    (
        "oidc",
        r#"{ security.protocol: SASL_PLAINTEXT, sasl.mechanism: OAUTHBEARER, sasl.oauthbearer.method: oidc, sasl.oauthbearer.client.id: id,
            sasl.oauthbearer.client.secret: "CanaryOidc-22c6", sasl.oauthbearer.token.endpoint.url: "http://127.0.0.1:9/token", debug: all }"#,
    ),
    (
        "tls",
        r#"{ security.protocol: SASL_SSL, sasl.mechanism: SCRAM-SHA-256, sasl.username: user, sasl.password: CanaryLiteral-77aa,
            ssl.key.pem: "SECRET[file.sasl]", ssl.key.password: "SECRET[env.KEY_PASSWORD]", debug: all }"#,
    ),
];

/// A pipeline whose every credential is wrong.
fn pipeline(site: &Site, name: &str, properties: &str) -> PathBuf {
    let write = |name: &str, text: &str| std::fs::write(site.path().join(name), text).unwrap();
    write("sasl", &format!("{}\n", CANARIES[0]));
    write("kms-secret", CANARIES[1]);
    let path = site.pipeline(&Pipeline {
        name,
        mode: "seal",
        dataset: "payments",
        from: "source",
        to: "sealed",
        dead: "dead",
        keys: "header",
        codec: "none",
        more: "secrets: { folder: ., exec: { vault: { command: [cat, \"{name}\"] } } }",
    });
    let text = std::fs::read_to_string(&path).unwrap();
    let at = text.find("properties:").unwrap();
    let end = at + text[at..].find('\n').unwrap();
    let mut text = format!("{}properties: {properties}{}", &text[..at], &text[end..]);
    let credentials = format!(
        "kms: {{ credentials: {{ access_key_id: AKIDWRONG, secret_access_key: \"SECRET[vault.kms-secret]\", session_token: {} }}, ",
        CANARIES[4]
    );
    text = text.replacen("kms: {", &credentials, 1);
    std::fs::write(&path, text).unwrap();
    path
}

/// All that the command prints until it ends, or until it is stopped.
fn output(site: &Site, args: &[&str]) -> String {
    let log = site.path().join(format!("{}.out", args.join("-").replace('/', "_")));
    let file = std::fs::File::create(&log).unwrap();
    let mut command = site.command(Path::new(env!("CARGO_BIN_EXE_sealflow")), "pipeline", args);
    let mut child = command
        .env("SEALFLOW_LOG", "trace")
        .env("KEY_PASSWORD", CANARIES[2])
        .env("AWS_SECRET_ACCESS_KEY", CANARIES[5])
        .env("AWS_SESSION_TOKEN", CANARIES[6])
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let started = Instant::now();
    while started.elapsed() < PATIENCE && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    child.wait().unwrap();
    std::fs::read_to_string(log).unwrap()
}

#[test]
fn no_credential_is_printed_whatever_goes_wrong_with_it() {
    // librdkafka says most where nobody listens.
    let site = Site::new(&format!("127.0.0.1:{}", free_port()));
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let mut runs = Vec::new();
    for (name, properties) in PROPERTIES {
        let file = pipeline(&site, name, properties).display().to_string();
        for (format, command) in [
            ("text", "validate"),
            ("json", "validate"),
            ("text", "run"),
            ("json", "run"),
        ] {
            runs.push([format.to_owned(), command.to_owned(), file.clone()]);
        }
    }
    let outputs: Vec<String> = std::thread::scope(|scope| {
        let started = runs.iter().map(|[format, command, file]| {
            let site = &site;
            scope.spawn(move || output(site, &["--log", format, command, file]))
        });
        let started: Vec<_> = started.collect();
        started.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for (run, output) in runs.iter().zip(&outputs) {
        for canary in CANARIES {
            let start = &canary[..canary.find('-').unwrap()];
            assert!(
                !output.contains(start),
                "{run:?} printed {start}:\n{}",
                around(output, start)
            );
        }
    }
    // The search looked at something: librdkafka's own log, the KMS's refusal, and places where a secret stood.
    let all = outputs.concat();
    let ends: Vec<_> = outputs
        .iter()
        .map(|output| output.lines().last().unwrap_or_default())
        .collect();
    for said in ["librdkafka", "SASL", "AKIDWRONG", "[redacted]"] {
        assert!(
            all.contains(said),
            "{said} is nowhere in what was printed; the last lines: {ends:#?}"
        );
    }
}

/// The line of the first hit.
fn around<'a>(output: &'a str, hit: &str) -> &'a str {
    output.lines().find(|line| line.contains(hit)).unwrap_or_default()
}
