//! What the command says about itself.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::Place;

const COMMANDS: &[&[&str]] = &[
    &[],
    &["demo"],
    &["init"],
    &["validate"],
    &["run"],
    &["seal"],
    &["open"],
    &["read"],
    &["inspect"],
    &["verify"],
    &["serve"],
    &["token"],
    &["client"],
    &["client", "keygen"],
    &["client", "seal"],
    &["client", "open"],
    &["policy"],
    &["policy", "keygen"],
    &["policy", "init"],
    &["policy", "check"],
    &["policy", "sign"],
    &["policy", "verify"],
    &["policy", "publish"],
    &["policy", "lease"],
    &["policy", "show"],
    &["policy", "diff"],
    &["policy", "render"],
    &["policy", "domain", "create"],
    &["acl"],
    &["acl", "who"],
    &["acl", "why"],
    &["audit"],
    &["audit", "verify"],
    &["audit", "query"],
    &["keys"],
    &["keys", "list"],
    &["keys", "usage"],
    &["keys", "rotate"],
    &["keys", "rewrap"],
    &["keys", "pair"],
    &["keys", "public"],
    &["keys", "client"],
    &["keys", "enclave"],
    &["dlq"],
    &["dlq", "list"],
    &["dlq", "show"],
    &["dlq", "replay"],
    &["enclave"],
    &["enclave", "build"],
    &["enclave", "run"],
    &["enclave", "attest"],
    &["enclave", "status"],
    &["enclave", "make-pair"],
    &["enclave", "dev-root"],
    &["kms"],
    &["kms", "serve"],
    &["kms", "create-key"],
    &["top"],
    &["schema"],
    &["completion"],
    &["version"],
];

#[test]
fn every_command_explains_itself() {
    let place = Place::new();
    for command in COMMANDS {
        let ran = place.run(&[command, &["--help"][..]].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{command:?}");
        insta::assert_snapshot!(format!("help_{}", command.join("_")), ran.out);
    }
}

#[test]
fn a_wrong_command_line_is_two_lines_and_exit_code_64() {
    let place = Place::new();
    let wrong: [&[&str]; 5] = [
        &["frobnicate"],
        &["run"],
        &["run", "--until-ned", "p.yaml"],
        &["schema", "parquet"],
        &["run", "p.yaml", "--output", "xml"],
    ];
    for args in wrong {
        let ran = place.run(args);
        assert_eq!(
            (ran.code, ran.out.as_str(), ran.err.lines().count()),
            (64, "", 2),
            "{args:?}: {}",
            ran.err
        );
        insta::assert_snapshot!(format!("usage_{}", args.join("_").replace(['-', '.'], "")), ran.err);
    }
    assert_eq!(place.run(&[]).code, 64);
}

#[test]
fn schemas_are_those_that_were_reviewed() {
    let place = Place::new();
    for document in ["pipeline", "service", "policy", "domain", "kms"] {
        let schema = place.ok(&["schema", document]);
        assert!(schema.contains("\"additionalProperties\": false"), "{document}");
        insta::assert_snapshot!(format!("schema_{document}"), schema);
    }
}

#[test]
fn completion_scripts_know_the_commands() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(place.ok(&["completion", shell]).contains("validate"), "{shell}");
    }
}

#[test]
fn version_is_there_for_people_and_programs() {
    let place = Place::new();
    assert!(
        place
            .ok(&["version"])
            .starts_with(concat!("sealflow ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    let json: serde_json::Value = serde_json::from_str(&place.ok(&["version", "--output", "json"])).unwrap();
    assert_eq!(json["sealflow"], env!("CARGO_PKG_VERSION"));
}
