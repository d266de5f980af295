//! Hints of policies: what they become, and each rule by a policy that breaks it.

#![allow(clippy::unwrap_used)] // tests

use super::*;
use crate::policy::{Policy, PolicyError};

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/ffffffff-12ab-34cd-56ef-1234567890ab";

/// A policy of these columns, and of what stands behind them.
fn parse(columns: &str) -> Result<Policy, PolicyError> {
    let yaml = format!(
        "dataset: d\nversion: 1\nkeys:\n  k: {{ arn: \"{ARN}\" }}\n  other: {{ arn: \"{OTHER_ARN}\" }}\n  \"t-{{tenant}}\": {{ arn: \"{ARN}\" }}\n  \"u-{{tenant}}\": {{ arn: \"{ARN}\" }}\nacls: {{ a: {{}}, s: {{}}, f: {{}} }}\ncolumns:\n{columns}\n"
    );
    Policy::parse(yaml.as_bytes())
}

fn refused(columns: &str) -> (String, Problem) {
    let error = parse(columns).unwrap_err();
    assert!(!error.help().is_empty() && error.line.is_some(), "{error}");
    (error.path, *error.problem)
}

const LAST4: &str = "hints: [{ derive: last4, acl: s }]";

#[test]
fn a_hint_is_a_column_of_its_own_behind_all_that_are_written() {
    let policy = parse(
        r#"
  - path: cards[*].number
    key: k
    acl: a
    label: pan
    pad_to: 8
    bind_row: id
    on_missing: reject
    hints:
      - { derive: last4, acl: s }
      - { derive: hmac, domain: customers, acl: f, key: other }
  - { path: '"odd name"', key: k, acl: s, hints: [{ derive: last4, acl: s }] }"#,
    )
    .unwrap();
    let labels: Vec<&str> = policy.columns.iter().map(|rule| rule.label.as_str()).collect();
    assert_eq!(
        labels,
        ["pan", "\"odd name\"", "pan#last4", "pan#hmac", "\"odd name\"#last4"]
    );
    let paths: Vec<String> = policy.columns.iter().map(|rule| rule.path.to_string()).collect();
    assert_eq!(
        paths[2..],
        [
            r#"cards[*]."number#last4""#,
            r#"cards[*]."number#hmac""#,
            r#""odd name#last4""#
        ]
    );
    let last4 = &policy.columns[2];
    assert_eq!((last4.key.as_str(), last4.acl.as_str()), ("k", "s"));
    assert_eq!(
        (last4.pad_to, last4.seal_nulls, last4.on_missing),
        (Some(32), false, OnMissing::Pass)
    );
    assert_eq!(last4.bind_row, policy.columns[0].bind_row);
    let column = 0;
    let derivation = Derivation::Last4;
    assert_eq!(last4.hint, Some(Hint { column, derivation }));
    let hmac = &policy.columns[3];
    assert_eq!(
        (hmac.key.as_str(), hmac.acl.as_str(), hmac.pad_to),
        ("other", "f", None)
    );
    assert_eq!((hmac.domain(), hmac.sealing_domain()), (None, Some("customers")));
    assert_eq!(policy.acl_for_label("pan#last4"), Some("s"));
    assert_eq!(policy.acl_for_label("pan"), Some("a"));
    // The group of (k, s) has the column and both hints.
    let groups = policy.groups();
    let labels = |n: usize| {
        groups[n]
            .labels
            .iter()
            .map(|label| label.label.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(groups.len(), 3);
    assert_eq!(labels(1), ["\"odd name\"", "pan#last4", "\"odd name\"#last4"]);
}

#[test]
fn columns_that_cannot_have_hints_are_refused() {
    let hints = |column: &str| refused(&format!("  - {{ {column}, {LAST4} }}"));
    let at = |problem| ("columns[0].hints".to_owned(), problem);
    let nowhere = |path: &str| at(Problem::HintsNowhere { path: path.to_owned() });
    assert_eq!(hints("path: $key, key: k, acl: a"), nowhere("$key"));
    assert_eq!(hints("path: $header.x, key: k, acl: a"), nowhere("$header.x"));
    assert_eq!(hints("path: 'cards[*]', key: k, acl: a"), nowhere("cards[*]"));
    assert_eq!(hints("path: x, domain: customers"), at(Problem::HintsInDomain));
    assert_eq!(
        hints("path: x, key: k, acl: a, flow: hybrid"),
        at(Problem::HintsInFlow { flow: "hybrid" })
    );
    assert_eq!(
        hints("path: x, key: k, acl: a, flow: enclave"),
        at(Problem::HintsInFlow { flow: "enclave" })
    );
    assert_eq!(hints("path: x, key: k, acl: a, at: column"), at(Problem::HintsOfColumn));
    assert_eq!(
        hints("path: x, key: k, acl: a, seal_nulls: true"),
        at(Problem::HintsOfNulls)
    );
}

#[test]
fn hints_that_say_too_much_too_little_or_the_same_twice_are_refused() {
    let hints = |hints: &str| {
        refused(&format!(
            "  - {{ path: x, key: \"t-{{tenant}}\", acl: a, hints: [{hints}] }}"
        ))
    };
    let at = |path: &str, problem| (path.to_owned(), problem);
    assert_eq!(
        hints("{ derive: last4, acl: s, domain: customers }"),
        at("columns[0].hints[0].domain", Problem::Last4WithDomain)
    );
    assert_eq!(
        hints("{ derive: hmac, acl: s }"),
        at("columns[0].hints[0]", Problem::HmacWithoutDomain)
    );
    assert!(matches!(
        hints("{ derive: hmac, acl: s, domain: 'a/b' }"),
        (path, Problem::BadName { what: "domain", .. }) if path == "columns[0].hints[0].domain"
    ));
    assert_eq!(
        hints("{ derive: last4, acl: s }, { derive: last4, acl: f }"),
        at(
            "columns[0].hints[1]",
            Problem::DuplicateHint {
                derive: "last4",
                first: 0
            }
        )
    );
    assert_eq!(
        hints("{ derive: hmac, acl: s, domain: a }, { derive: last4, acl: s }, { derive: hmac, acl: s, domain: b }"),
        at(
            "columns[0].hints[2]",
            Problem::DuplicateHint {
                derive: "hmac",
                first: 0
            }
        )
    );
    assert_eq!(
        hints("{ derive: last4, acl: s, key: \"u-{tenant}\" }"),
        at(
            "columns[0].hints[0].key",
            Problem::TemplateOfHint {
                name: "u-{tenant}".to_owned()
            }
        )
    );
    assert!(
        matches!(hints("{ derive: last4, acl: nobody }"), (path, Problem::Unknown { what: "acl", .. }) if path == "columns[0].hints[0].acl")
    );
    assert!(
        matches!(hints("{ derive: last4, acl: s, key: no }"), (path, Problem::Unknown { what: "key", .. }) if path == "columns[0].hints[0].key")
    );
    for yaml in [
        "{ derive: first6, acl: s }",
        "{ derive: last4 }",
        "{ derive: last4, acl: s, pad_to: 8 }",
    ] {
        assert!(matches!(hints(yaml), (_, Problem::Yaml { .. })), "{yaml}");
    }
    let own = "  - { path: x, key: \"t-{tenant}\", acl: a, hints: [{ derive: last4, acl: s, key: \"t-{tenant}\" }] }";
    assert!(parse(own).is_ok());
}

#[test]
fn a_hint_whose_path_or_place_another_column_has_is_refused() {
    let taken = |path: &str, other| {
        let path = path.to_owned();
        ("columns[0].hints[0]".to_owned(), Problem::HintPathTaken { path, other })
    };
    let first = format!("  - {{ path: card.number, key: k, acl: a, {LAST4} }}\n");
    let with = |column: &str| refused(&format!("{first}  - {{ path: '{column}', key: k, acl: a }}"));
    let own = r#"card."number#last4""#;
    assert_eq!(with(own), taken(own, 1));
    assert_eq!(with(r#"card."number#last4".x"#), taken(own, 1));
    assert!(
        parse(&format!(
            "{first}  - {{ path: 'card.\"number#hmac\"', key: k, acl: a }}"
        ))
        .is_ok()
    );
    // Nor is it a clear scalar.
    let bound = format!("{first}  - {{ path: x, key: k, acl: a, bind_row: 'card.\"number#last4\"' }}");
    assert!(matches!(refused(&bound), (path, Problem::NotClear { .. }) if path == "columns[1].bind_row"));
    let long = "n".repeat(MAX_PATH_BYTES - 7);
    let (path, problem) = refused(&format!("  - {{ path: {long}, key: k, acl: a, label: x, {LAST4} }}"));
    assert_eq!(
        (path.as_str(), problem),
        ("columns[0].hints[0]", Problem::BadPath(PathError::TooLong))
    );
}

#[test]
fn the_key_of_enclave_columns_serves_no_hint() {
    let (path, problem) = refused(
        "  - { path: x, key: k, acl: a, hints: [{ derive: last4, acl: s }, { derive: hmac, domain: d, acl: s, key: other }] }\n  - { path: y, key: other, acl: a, flow: enclave }",
    );
    assert_eq!(path, "columns[0].hints[1].key");
    assert_eq!(
        problem,
        Problem::SharedEnclaveKey {
            key: "other".to_owned()
        }
    );
}

#[test]
fn labels_that_hints_had_can_be_listed_as_previous() {
    let of = |previous: &str| {
        parse(&format!(
            "  - {{ path: pan, key: k, acl: a, {LAST4} }}\nprevious: {{ labels: {{ {previous} }} }}"
        ))
    };
    let policy = of(r#"card.number: pan, "card.number#last4": "pan#last4""#).unwrap();
    assert_eq!(policy.acl_for_label("card.number"), Some("a"));
    assert_eq!(policy.acl_for_label("card.number#last4"), Some("s"));
    assert!(of(r#""card.number#last4": "pan#hmac""#).is_err());
    assert!(of(r#""card.number#first4": "pan#last4""#).is_err());
    assert!(of(r#""pan#last4": pan"#).is_err());
    assert!(of(r#""domain:x#last4": pan"#).is_err());
}

#[test]
fn hints_count_as_columns() {
    let columns = |n: usize| {
        (0..n)
            .map(|n| format!("  - {{ path: c{n}, key: k, acl: a, label: l{n}, {LAST4} }}\n"))
            .collect::<String>()
    };
    let (path, problem) = refused(&columns(501));
    assert_eq!(problem, Problem::TooManyColumns { max: MAX_COLUMNS });
    assert_eq!(path, "columns[499].hints[0]");
    assert!(matches!(refused(&columns(300)), (_, Problem::LabelsTooLong { acl, .. }) if acl == "s"));
}
