//! The leak corpus: records spelled so that a careless locator passes a value in clear.
//!
//! Each record hides a canary. It is sealed, or the record is a dead letter; what is written then holds the
//! canary in no spelling.

#![allow(clippy::unwrap_used)] // the lint's exception for tests does not reach their helpers

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use sealflow::columns::testing::{CORPUS_CANARY, CORPUS_CANARY_NUMBER, Case, Expect, contains_canary, parse_index};
use sealflow::columns::{Found, Locator, Unlocatable, splice};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/leak-corpus")
}

fn cases() -> Vec<Case> {
    let index = fs::read_to_string(folder().join("index.tsv")).unwrap();
    parse_index(&index).unwrap()
}

fn record(case: &Case) -> Vec<u8> {
    fs::read(folder().join(&case.file)).unwrap()
}

fn leaks(bytes: &[u8]) -> bool {
    contains_canary(bytes, CORPUS_CANARY) || contains_canary(bytes, CORPUS_CANARY_NUMBER)
}

/// What is written for the record, and how many values were sealed; a sealed value stands in for all.
fn sealed(case: &Case, record: &[u8]) -> Result<(Vec<u8>, usize), Unlocatable> {
    let columns: Vec<_> = case.columns.iter().map(|path| path.parse().unwrap()).collect();
    let locator = Locator::new(&columns, &[]).unwrap();
    let mut found = Found::default();
    locator.locate(record, &mut found)?;
    let mut out = Vec::new();
    splice(
        record,
        found.hits.iter().map(|hit| (hit.range(), &b"\"sf1.AAAA\""[..])),
        &mut out,
    );
    Ok((out, found.hits.len()))
}

#[test]
fn every_hostile_record_is_sealed_or_a_dead_letter() {
    let mut wrong = Vec::new();
    for case in cases() {
        let outcome = sealed(&case, &record(&case));
        let (actual, leaked) = match &outcome {
            Ok((out, hits)) if leaks(out) => (Expect::Clear(*hits), true),
            Ok((_, hits)) => (Expect::Sealed(*hits), false),
            Err(error) => {
                let message = format!("{error} {error:?}");
                (Expect::DeadLetter(error.code().to_owned()), leaks(message.as_bytes()))
            }
        };
        let may_stay = matches!(case.expect, Expect::Clear(_));
        if actual != case.expect || (leaked && !may_stay) {
            wrong.push(format!(
                "{} ({}): expected {:?}, got {actual:?}",
                case.file, case.why, case.expect
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_record_of_the_corpus_hides_a_canary_that_the_search_finds() {
    for case in cases()
        .iter()
        .filter(|case| case.expect != Expect::DeadLetter("empty-record".to_owned()))
    {
        assert!(leaks(&record(case)), "{}", case.file);
    }
}

#[test]
fn what_is_spliced_is_json_again() {
    for case in cases() {
        if let Ok((out, _)) = sealed(&case, &record(&case)) {
            assert!(
                serde_json::from_slice::<serde::de::IgnoredAny>(&out).is_ok(),
                "{}",
                case.file
            );
        }
    }
}

#[test]
fn index_and_folder_hold_the_same_records_and_every_code() {
    let cases = cases();
    let listed: BTreeSet<String> = cases.iter().map(|case| case.file.clone()).collect();
    assert_eq!(listed.len(), cases.len(), "a file is listed twice");
    assert!(cases.len() >= 60);
    let names = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let present: BTreeSet<String> = names.filter(|name| name != "index.tsv").collect();
    assert_eq!(present, listed);
    let codes: BTreeSet<&str> = cases
        .iter()
        .filter_map(|case| match &case.expect {
            Expect::DeadLetter(code) => Some(code.as_str()),
            _ => None,
        })
        .collect();
    // `record-too-large` needs 4 GiB.
    let all = [
        "ambiguous-name",
        "byte-order-mark",
        "control-character",
        "empty-record",
        "flattened-name",
        "invalid-escape",
        "invalid-json",
        "invalid-utf8",
        "too-deep",
        "too-many-values",
        "trailing-bytes",
        "truncated-json",
        "wrong-type",
    ];
    assert_eq!(codes, BTreeSet::from(all));
}
