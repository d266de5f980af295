//! `audit verify` and `audit query`, on the golden log of `tests/golden`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::Place;

const LOG: &str = include_str!("../../../tests/golden/audit-log.jsonl");
const CHECKPOINTS: &str = include_str!("../../../tests/golden/audit-checkpoints.txt");
/// Of the key that signed them (RFC 8037, appendix A).
const KEY: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";
const VERIFY: [&str; 7] = [
    "audit",
    "verify",
    "audit.log",
    "--checkpoints",
    "checkpoints",
    "--key",
    KEY,
];

fn place(lines: &[&str]) -> Place {
    let place = Place::new();
    place.write(
        "audit.log",
        lines.iter().flat_map(|line| [line, "\n"]).collect::<String>(),
    );
    place.write("checkpoints", CHECKPOINTS);
    place
}

#[test]
fn a_log_as_it_was_written_verifies_and_says_how_far_checkpoints_reach() {
    let lines: Vec<&str> = LOG.lines().collect();
    let whole = place(&lines);
    insta::assert_snapshot!("verified", whole.ok(&VERIFY));
    // Without key and checkpoints it says what that leaves open.
    insta::assert_snapshot!("verified_alone", whole.ok(&["audit", "verify", "audit.log"]));
    let json: serde_json::Value =
        serde_json::from_str(&whole.ok(&[&VERIFY[..], &["--output", "json"]].concat())).unwrap();
    assert_eq!((&json["whole"], &json["lines"]), (&true.into(), &lines.len().into()));
}

#[test]
fn whatever_was_done_to_a_log_ends_with_65_and_the_line_where_it_shows() {
    let lines: Vec<&str> = LOG.lines().collect();
    let decision = lines
        .iter()
        .position(|line| line.contains("\"kind\":\"decision\""))
        .unwrap();
    let edited = lines[decision].replace("\"decision\":\"", "\"decision\": \"");
    assert_ne!(edited, lines[decision]);
    let mut removed = lines.clone();
    removed.remove(decision);
    let mut changed = lines.clone();
    changed[decision] = &edited;
    let mut reordered = lines.clone();
    reordered.swap(decision, decision + 1);
    let mut twice = lines.clone();
    twice.insert(decision, lines[decision]);
    // The very last line is a checkpoint of the one before: without it alone, nothing is lost.
    let cut = &lines[..lines.len() - 2];
    for (what, lines) in [
        ("removed", &removed[..]),
        ("edited", &changed),
        ("reordered", &reordered),
        ("twice", &twice),
        ("cut off", cut),
        ("all cut off", &[]),
    ] {
        let ran = place(lines).run(&VERIFY);
        assert_eq!(ran.code, 65, "{what}: {}{}", ran.out, ran.err);
        assert!(
            ran.err.starts_with("error: audit.log is not as it was written") && ran.err.contains("\nhelp: "),
            "{what}: {}",
            ran.err
        );
    }
    // A cut shows in the checkpoints of the second place only, and signatures of strangers prove nothing.
    let ran = place(cut).run(&["audit", "verify", "audit.log", "--key", KEY]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let mut strangers = VERIFY;
    strangers[6] = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";
    assert_eq!(place(&lines).run(&strangers).code, 65);
}

#[test]
fn a_log_says_who_read_what_and_whether_it_is_broken() {
    let lines: Vec<&str> = LOG.lines().collect();
    let place = place(&lines);
    let found = |more: &[&str]| -> Vec<serde_json::Value> {
        let ran = place.run(&[&["audit", "query", "audit.log", "--output", "json"], more].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        serde_json::from_str(&ran.out).unwrap()
    };
    let all = found(&[]);
    let decisions = lines
        .iter()
        .filter(|line| line.contains("\"kind\":\"decision\""))
        .count();
    assert_eq!(all.len(), decisions);
    let principal = all[0]["principal"].as_str().unwrap();
    assert!(!found(&["--principal", principal]).is_empty());
    assert!(!found(&["--principal", &format!("{}*", &principal[..12])]).is_empty());
    assert!(found(&["--principal", &principal[..12]]).is_empty());
    assert!(found(&["--until", "2000-01-01T00:00:00Z"]).is_empty());
    assert_eq!(found(&["--since", "2000-01-01T00:00:00Z"]).len(), decisions);
    assert_eq!(found(&["--last", "1"]).len(), 1);
    let by = |decision: &str| found(&["--decision", decision]).len();
    assert_eq!(by("allowed") + by("refused") + by("failed"), decisions);
    insta::assert_snapshot!("queried", place.ok(&["audit", "query", "audit.log"]));

    let mut removed = lines;
    removed.remove(2);
    place.write(
        "audit.log",
        removed.iter().flat_map(|line| [line, "\n"]).collect::<String>(),
    );
    let ran = place.run(&["audit", "query", "audit.log"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.err.contains("the log is broken, so this may not be all"),
        "{}",
        ran.err
    );
}
