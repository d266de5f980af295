//! Schemathesis, a client that nobody here wrote, over the OpenAPI document: no 5xx, no answer that the document does not
//! describe, and nothing of what its caller may not see.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow_testbed::{StartError, or_skip};

use crate::bench::{Bench, EMAIL, NOTE};

/// Its program: `SEALFLOW_SCHEMATHESIS`, by default that of `.deps`.
fn program() -> Result<PathBuf, StartError> {
    let deps = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.deps/schemathesis/bin/schemathesis");
    let program = std::env::var_os("SEALFLOW_SCHEMATHESIS").map_or(deps, PathBuf::from);
    let runs = Command::new(&program).arg("--version").output();
    if runs.is_ok_and(|output| output.status.success()) {
        return Ok(program);
    }
    Err(StartError::Missing(format!("{} does not run", program.display())))
}

#[test]
fn schemathesis_finds_no_5xx_no_undocumented_answer_and_no_leak() {
    let Some(program) = or_skip("schemathesis over the reading service", program()) else {
        return;
    };
    let bench = Bench::new();
    let limits = "limits: { requests_per_second: 100000, requests_burst: 100000, values_per_second: 1000000, \
        values_burst: 1000000, unproven_per_second: 10000, unproven_burst: 10000 }";
    let serving = bench.start(limits);
    // Who may see emails and no notes; the canary is in what is sent along, sealed.
    let bob = bench.issuer.token("bob");
    let seen = serving.client.open_text(&bob, &bench.records(""));
    assert!(seen.body.contains(EMAIL) && !seen.body.contains(NOTE), "{seen:?}");
    let root = bench.site.path().join("root.pem");
    std::fs::write(&root, bench.authority.root().to_pem().unwrap()).unwrap();
    // Examples of real sealed values, so that it gets further than names that do not exist.
    let document = serving.client.ask("GET /v1/openapi.json", None, "", b"");
    assert_eq!(document.status, 200);
    let mut document = document.json();
    let record: serde_json::Value = serde_json::from_str(&bench.sealed[0]).unwrap();
    document["paths"]["/v1/open"]["post"]["requestBody"]["content"]["application/json"]["examples"] = serde_json::json!({
        "records": { "value": { "dataset": "payments", "records": [record] } },
        "values": { "value": { "dataset": "payments", "values": [{ "value": bench.sealed_note() }] } },
    });
    let file = bench.site.path().join("openapi.json");
    std::fs::write(&file, document.to_string()).unwrap();
    let examples = std::env::var("SEALFLOW_SCHEMATHESIS_EXAMPLES").unwrap_or_else(|_| "150".to_owned());
    let run = Command::new(program)
        .current_dir(bench.site.path())
        .arg("run")
        .arg(&file)
        .args(["--url", &format!("https://{}", serving.client.address)])
        .args(["--header", &format!("Authorization: {bob}")])
        .args(["--checks", "all", "--exclude-checks", "ignored_auth"])
        .args([
            "--max-examples",
            &examples,
            "--seed",
            "1",
            "--no-color",
            "--continue-on-failure",
        ])
        .arg("--tls-verify")
        .arg(&root)
        .args([
            "--report",
            "ndjson",
            "--report-ndjson-path",
            "report.ndjson",
            "--output-sanitize",
            "false",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    let report = std::fs::read_to_string(bench.site.path().join("report.ndjson")).unwrap();
    assert!(report.matches("/v1/open").count() > 100, "{said}");
    // Bodies stand there in base64.
    let mut bodies = String::new();
    for part in report.split("\"$base64\":").skip(1) {
        let text = part.trim_start().trim_start_matches('"').split('"').next().unwrap();
        bodies.push_str(&String::from_utf8_lossy(&STANDARD.decode(text).unwrap()));
        bodies.push('\n');
    }
    assert!(
        bodies.contains(EMAIL),
        "nothing was opened, so nothing could have leaked"
    );
    assert!(
        !bodies.contains(NOTE) && !report.contains(NOTE) && !said.contains(NOTE),
        "a note that the caller may not see was shown"
    );
    serving.stop();
}
