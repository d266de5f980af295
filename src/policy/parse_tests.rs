//! Each rule of a policy, by a policy that breaks it.

#![allow(clippy::unwrap_used)] // tests

use proptest::prelude::*;

use super::*;
use crate::policy::arn::ArnError;
use crate::policy::path::PathError;

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/ffffffff-12ab-34cd-56ef-1234567890ab";

/// The policy of the documentation, whole.
fn full() -> String {
    format!(
        r#"
dataset: payments
version: 3
keys:
  default: {{ arn: "{ARN}", max_age: 30m }}
  "tenant-{{tenant_id}}": {{ arn: "{ARN}", max_live: 50 }}
acls:
  pii: {{ allow: ["arn:aws:iam::111122223333:role/analyst"], deny: ["oidc:https://login.example.com#group=interns"] }}
  ops: {{}}
columns:
  - {{ path: user.email, key: default, acl: pii }}
  - {{ path: "cards[*].number", key: default, acl: pii, pad_to: 32, bind_row: order_id, seal_nulls: true, on_missing: reject, label: card }}
  - {{ path: customer_id, domain: customers }}
  - {{ path: shipping, key: "tenant-{{tenant_id}}", acl: pii }}
  - {{ path: "$key", key: default, acl: ops }}
  - {{ path: partner_id, domain: customers }}
dead_letters: {{ key: default, acl: ops }}
previous:
  keys: [{{ name: default, arn: "{OTHER_ARN}" }}]
  acls: {{ old: pii }}
  labels: {{ old.path: user.email }}
lease: none
"#
    )
}

/// A policy of these columns, over one key and one ACL.
fn of_columns(columns: &str) -> String {
    format!(
        "dataset: d\nversion: 1\nkeys:\n  k: {{ arn: \"{ARN}\" }}\n  \"t-{{tenant}}\": {{ arn: \"{ARN}\" }}\nacls:\n  a: {{}}\ncolumns:\n{columns}\n"
    )
}

fn parse(yaml: &str) -> Result<Policy, PolicyError> {
    Policy::parse(yaml.as_bytes())
}

fn refused(yaml: &str) -> (String, Problem) {
    let error = parse(yaml).unwrap_err();
    assert!(!error.help().is_empty(), "{error} without help");
    (error.path, *error.problem)
}

fn refused_columns(columns: &str) -> (String, Problem) {
    refused(&of_columns(columns))
}

fn found(path: &str, problem: Problem) -> (String, Problem) {
    (path.to_owned(), problem)
}

#[test]
fn a_whole_policy_parses_as_written() {
    let policy = parse(&full()).unwrap();
    assert_eq!((policy.dataset.as_str(), policy.version), ("payments", 3));
    assert_eq!(policy.sha256, <[u8; 32]>::from(Sha256::digest(full().as_bytes())));
    assert_eq!(policy.keys["default"].max_age, Duration::from_secs(1_800));
    assert_eq!(policy.keys["default"].max_live, 1);
    assert_eq!(policy.keys["tenant-{tenant_id}"].max_age, DEFAULT_MAX_AGE);
    assert_eq!(policy.keys["tenant-{tenant_id}"].max_live, 50);
    let card = &policy.columns[1];
    assert_eq!(
        (card.label.as_str(), card.pad_to, card.seal_nulls),
        ("card", Some(32), true)
    );
    assert_eq!(card.on_missing, OnMissing::Reject);
    assert_eq!(
        card.bind_row.as_ref().map(ToString::to_string).as_deref(),
        Some("order_id")
    );
    assert_eq!(policy.columns[2].domain(), Some("customers"));
    assert_eq!(policy.columns[2].label, "domain:customers");
    assert_eq!(policy.columns[4].label, "$key");
    assert_eq!(policy.unsupported(), []);
}

#[test]
fn groups_are_one_per_key_and_acl_in_the_order_of_the_columns() {
    let policy = parse(&full()).unwrap();
    let labels: Vec<(String, String, Vec<String>)> = policy
        .groups()
        .into_iter()
        .map(|group| {
            (
                group.key,
                group.acl,
                group.labels.into_iter().map(|label| label.label).collect(),
            )
        })
        .collect();
    let group = |key: &str, acl: &str, labels: &[&str]| {
        (
            key.to_owned(),
            acl.to_owned(),
            labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        labels,
        [
            group("default", "pii", &["user.email", "card"]),
            group("tenant-{tenant_id}", "pii", &["shipping"]),
            group("default", "ops", &["$key"]),
        ]
    );
    assert_eq!(policy.groups()[0].labels[1].column, Some(1));
    let dead = policy.dead_letter_group().unwrap();
    assert_eq!(
        (dead.dataset.as_str(), dead.labels[0].label.as_str()),
        ("payments#dead-letters", "$record")
    );
}

#[test]
fn what_an_envelope_names_opens_only_if_the_policy_lists_it() {
    let policy = parse(&full()).unwrap();
    assert!(policy.opens("default", ARN, "pii"));
    assert!(policy.opens("tenant-t1", ARN, "pii"));
    assert!(policy.opens("default", OTHER_ARN, "old"));
    assert!(
        !policy.opens("tenant-t1", OTHER_ARN, "pii"),
        "another key's previous ARN"
    );
    assert!(!policy.opens("default", ARN, "admin"), "an ACL that is not there");
    assert!(
        !policy.opens("tenant-", ARN, "pii"),
        "a name that the template does not give"
    );
    assert!(!policy.opens("tenant-{tenant_id}", ARN, "pii"), "the template itself");
    assert!(!policy.opens("default", "arn:aws:kms:eu-central-1:111122223333:key/evil", "pii"));
    assert_eq!(
        policy
            .key_by_name("tenant-t1")
            .map(|key| key.name.to_string())
            .as_deref(),
        Some("tenant-{tenant_id}")
    );
}

#[test]
fn the_acl_of_a_former_label_is_that_of_the_current_one() {
    let policy = parse(&full()).unwrap();
    assert_eq!(policy.acl_for_label("user.email"), Some("pii"));
    assert_eq!(policy.acl_for_label("old.path"), Some("pii"));
    assert_eq!(policy.acl_for_label("$key"), Some("ops"));
    assert_eq!(
        policy.acl_for_label("cards[*].number"),
        None,
        "the column has a label of its own"
    );
    assert_eq!(
        policy.acl_for_label("domain:customers"),
        None,
        "the domain's document says"
    );
    assert_eq!(policy.current_acl("old"), Some("pii"));
}

#[test]
fn lease_keys_are_thumbprints() {
    let columns = "  - { path: a, key: k, acl: a }\nlease: required\nlease_keys: ";
    let key = "A".repeat(43);
    let policy = parse(&of_columns(&format!("{columns}[\"{key}\"]"))).unwrap();
    assert_eq!((policy.lease, policy.lease_keys.len()), (Lease::Required, 1));
    let (path, problem) = refused(&of_columns(&format!("{columns}[\"{key}\", short]")));
    assert!(
        path == "lease_keys[1]" && matches!(problem, Problem::BadLeaseKey),
        "{path}"
    );
    let many = vec![format!("\"{key}\""); 17].join(", ");
    assert_eq!(refused(&of_columns(&format!("{columns}[{many}]"))).0, "lease_keys");
}

#[test]
fn clients_seal_to_keys_that_serve_nothing_else() {
    const THIRD_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/eeeeeeee-12ab-34cd-56ef-1234567890ab";
    let with =
        |column: &str, client: &str| of_columns(&format!("  - {{ path: a, key: k, acl: a, {column} }}\n{client}"));
    let client = |rest: &str| format!("client: {{ keys: {{ web: {{ arn: \"{OTHER_ARN}\" }} }}{rest} }}");
    let policy = parse(&with("flow: hybrid", &client(""))).unwrap();
    assert_eq!(policy.unsupported(), []);
    let rule = policy.client.unwrap();
    assert_eq!(
        (rule.arns().collect::<Vec<_>>(), &rule.session, rule.keep_session),
        (vec![OTHER_ARN], &None, false)
    );
    assert_eq!(policy.columns[0].client_sealed, ClientSealed::Required);
    let rest = ", session: meta.session, keep_session: true";
    let policy = parse(&with("flow: hybrid, client_sealed: optional", &client(rest))).unwrap();
    let rule = policy.client.unwrap();
    assert_eq!(
        rule.session.map(|path| path.to_string()).as_deref(),
        Some("meta.session")
    );
    assert!(rule.keep_session && policy.columns[0].client_sealed == ClientSealed::Optional);
    let rotated = format!("client: {{ keys: {{ web: {{ arn: \"{OTHER_ARN}\", previous: [\"{THIRD_ARN}\"] }} }} }}");
    let policy = parse(&with("flow: hybrid", &rotated)).unwrap();
    assert_eq!(
        policy.client.unwrap().arns().collect::<Vec<_>>(),
        [OTHER_ARN, THIRD_ARN]
    );

    let (none, shared) = (Problem::NoClientKeys, Problem::SharedClientKey);
    for (column, client, path, problem) in [
        ("flow: hybrid", String::new(), "columns[0].flow", none.clone()),
        ("flow: hybrid", "client: { keys: {} }".into(), "client.keys", none),
        (
            "flow: direct",
            client("").replace(OTHER_ARN, ARN),
            "client.keys.web.arn",
            shared.clone(),
        ),
        (
            "flow: hybrid",
            rotated.replace(THIRD_ARN, OTHER_ARN),
            "client.keys.web.previous[0]",
            shared,
        ),
        (
            "client_sealed: optional",
            client(""),
            "columns[0].client_sealed",
            Problem::ClientSealedInFlow,
        ),
        (
            "flow: hybrid",
            client(", session: \"b[*].c\""),
            "client.session",
            Problem::BadSession,
        ),
        (
            "flow: hybrid, bind_row: meta.id",
            client(", session: meta.id"),
            "client.session",
            Problem::SessionIsRow { column: 0 },
        ),
        (
            "flow: hybrid, bind_row: meta",
            client(", session: meta.id, keep_session: true"),
            "client.session",
            Problem::SessionIsRow { column: 0 },
        ),
        (
            "flow: hybrid",
            client(", session: \"$key\""),
            "client.session",
            Problem::BadSession,
        ),
    ] {
        assert_eq!(
            refused(&with(column, &client)),
            (path.to_owned(), problem),
            "{column} {client}"
        );
    }
    assert_eq!(
        refused(&with("flow: hybrid", &client(", session: a"))).0,
        "client.session"
    );
    assert_eq!(
        refused_columns("  - { path: \"$header.sealflow-session\", key: k, acl: a }").0,
        "columns[0].path"
    );
}

#[test]
fn errors_name_place_line_and_what_to_do() {
    let error = parse(&of_columns(
        "  - { path: a, key: k, acl: a }\n  - path: b\n    key: kk\n    acl: a",
    ))
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "columns[1].key (line 11, column 10): no key named kk; did you mean k?"
    );
    assert_eq!(error.help(), "add it under `keys`, or correct the name");
}

#[test]
fn unknown_keys_are_refused_with_the_one_that_was_meant() {
    let error = parse(&full().replace("dead_letters", "dead_leters")).unwrap_err();
    let Problem::Yaml { message, help } = *error.problem else {
        panic!("{error}")
    };
    assert_eq!(message, "unknown key `dead_leters`; did you mean `dead_letters`?");
    assert!(help.starts_with("expected one of: dataset, version, keys"), "{help}");
    assert_eq!(error.line, Some(17));
}

#[test]
fn dataset_names_are_catalogue_segments() {
    let bad = || Problem::BadName {
        what: "dataset",
        max: 128,
    };
    let long = "d".repeat(129);
    for name in ["''", "a/b", "..", ".", "a#b", "é", long.as_str()] {
        let yaml = full().replace("dataset: payments", &format!("dataset: {name}"));
        assert_eq!(refused(&yaml), found("dataset", bad()), "{name}");
    }
}

#[test]
fn versions_start_at_one_and_fit_a_catalogue_path() {
    for version in ["0", "10000000000"] {
        let yaml = full().replace("version: 3", &format!("version: {version}"));
        assert_eq!(
            refused(&yaml),
            found("version", Problem::BadVersion { max: MAX_VERSION })
        );
    }
}

#[test]
fn a_policy_without_columns_is_refused() {
    assert_eq!(refused(&of_columns("  []")), found("columns", Problem::NoColumns));
    let many = "  - { path: a, key: k, acl: a }\n".repeat(MAX_COLUMNS + 1);
    assert_eq!(
        refused_columns(&many),
        found("columns", Problem::TooManyColumns { max: MAX_COLUMNS })
    );
}

#[test]
fn paths_that_do_not_parse_are_refused() {
    let bad = Problem::BadPath(PathError::Unexpected { at: 1 });
    assert_eq!(
        refused_columns("  - { path: a-b, key: k, acl: a }"),
        found("columns[0].path", bad)
    );
}

#[test]
fn the_header_that_carries_envelopes_is_no_column() {
    for path in ["$header.sealflow-keys", r#"'$header."sealflow-keys"'"#] {
        assert_eq!(
            refused_columns(&format!("  - {{ path: {path}, key: k, acl: a }}")),
            found("columns[0].path", Problem::ReservedHeader { name: "sealflow-keys" })
        );
    }
}

#[test]
fn one_path_in_two_spellings_is_refused() {
    let columns = "  - { path: a.b, key: k, acl: a }\n  - { path: '\"a\".b', key: k, acl: a }";
    let problem = Problem::DuplicatePath {
        path: "a.b".to_owned(),
        first: 0,
    };
    assert_eq!(refused_columns(columns), found("columns[1].path", problem));
}

#[test]
fn a_path_inside_a_sealed_one_is_refused() {
    let problem = || Problem::CoveringPaths {
        outer: "user".to_owned(),
        inner: "user.email".to_owned(),
    };
    let inner_last = "  - { path: user, key: k, acl: a }\n  - { path: user.email, key: k, acl: a }";
    assert_eq!(refused_columns(inner_last), found("columns[1].path", problem()));
    let outer_last = "  - { path: user.email, key: k, acl: a }\n  - { path: user, domain: x }";
    assert_eq!(refused_columns(outer_last), found("columns[1].path", problem()));
}

#[test]
fn labels_are_unique_plain_and_not_reserved() {
    let two = "  - { path: a, key: k, acl: a }\n  - { path: b, key: k, acl: a, label: a }";
    let problem = Problem::DuplicateLabel {
        label: "a".to_owned(),
        first: 0,
    };
    assert_eq!(refused_columns(two), found("columns[1].label", problem));
    for label in ["$record", "$footer", "$key", "domain:customers"] {
        let problem = Problem::ReservedLabel {
            label: label.to_owned(),
        };
        let columns = format!("  - {{ path: a, key: k, acl: a, label: \"{label}\" }}");
        assert_eq!(refused_columns(&columns), found("columns[0].label", problem));
    }
    for label in ["", "a b", "card#last4", "a..[b"] {
        let columns = format!("  - {{ path: a, key: k, acl: a, label: \"{label}\" }}");
        let problem = Problem::BadLabel { max: MAX_LABEL_BYTES };
        assert_eq!(refused_columns(&columns), found("columns[0].label", problem), "{label}");
    }
    let former = "  - { path: a, key: k, acl: a, label: 'old[*].\"odd name\"' }\n  - { path: \"$key\", key: k, acl: a, label: \"$key\" }";
    assert!(parse(&of_columns(former)).is_ok());
}

#[test]
fn labels_that_would_not_fit_an_envelope_are_refused() {
    let columns: String = (0..40)
        .map(|n| format!("  - {{ path: {}{n:02}, key: k, acl: a }}\n", "p".repeat(80)))
        .collect();
    let (path, problem) = refused_columns(&columns);
    assert_eq!(path, "columns");
    assert!(
        matches!(problem, Problem::LabelsTooLong { bytes: 3_400, .. }),
        "{problem}"
    );
}

#[test]
fn keys_and_acls_must_exist() {
    let unknown = |what, name: &str, meant: Option<&str>| Problem::Unknown {
        what,
        name: name.to_owned(),
        meant: meant.map(str::to_owned),
    };
    let column = |text: &str| refused_columns(&format!("  - {{ {text} }}"));
    assert_eq!(
        column("path: a, key: zzzz, acl: a"),
        found("columns[0].key", unknown("key", "zzzz", None))
    );
    assert_eq!(
        column("path: a, key: k, acl: aa"),
        found("columns[0].acl", unknown("acl", "aa", Some("a")))
    );
    assert_eq!(
        column("path: a, acl: a"),
        found("columns[0]", Problem::Missing { what: "key" })
    );
    assert_eq!(
        column("path: a, key: k"),
        found("columns[0]", Problem::Missing { what: "acl" })
    );
    let dead = refused(&full().replace("dead_letters: { key: default", "dead_letters: { key: defalt"));
    assert_eq!(
        dead,
        found("dead_letters.key", unknown("key", "defalt", Some("default")))
    );
    let dead = refused(&full().replace("acl: ops }\nprevious", "acl: opps }\nprevious"));
    assert_eq!(dead, found("dead_letters.acl", unknown("acl", "opps", Some("ops"))));
}

#[test]
fn aliases_and_broken_arns_are_refused() {
    let alias = full().replacen(ARN, "arn:aws:kms:eu-central-1:111122223333:alias/payments", 1);
    assert_eq!(
        refused(&alias),
        found("keys.default.arn", Problem::BadArn(ArnError::Alias))
    );
    let previous = full().replace(OTHER_ARN, "1234abcd");
    assert_eq!(
        refused(&previous),
        found("previous.keys[0].arn", Problem::BadArn(ArnError::NotFull))
    );
}

#[test]
fn key_names_are_plain_or_templates() {
    let (path, problem) = refused(&full().replace("  default: {", "  \"def ault\": {"));
    assert_eq!(path, r#"keys["def ault"]"#);
    assert!(matches!(problem, Problem::BadKeyName(_)), "{problem}");
}

#[test]
fn two_keys_that_one_name_could_mean_are_refused() {
    let yaml = full().replace("  default: {", "  tenant-x: {");
    let problem = Problem::OverlappingKeys {
        first: "tenant-x".to_owned(),
        second: "tenant-{tenant_id}".to_owned(),
    };
    assert_eq!(refused(&yaml), found(r#"keys["tenant-{tenant_id}"]"#, problem));
}

#[test]
fn ages_and_live_keys_have_bounds() {
    for age in ["999ms", "25h"] {
        let yaml = full().replace("max_age: 30m", &format!("max_age: {age}"));
        assert_eq!(
            refused(&yaml),
            found("keys.default.max_age", Problem::BadMaxAge),
            "{age}"
        );
    }
    let at = r#"keys["tenant-{tenant_id}"].max_live"#;
    for live in [0, 10_001] {
        let yaml = full().replace("max_live: 50", &format!("max_live: {live}"));
        assert_eq!(refused(&yaml), found(at, Problem::BadMaxLive { max: 10_000 }));
    }
    let yaml = full().replace("max_age: 30m", "max_live: 2");
    let problem = Problem::MaxLiveWithoutTemplate {
        name: "default".to_owned(),
    };
    assert_eq!(refused(&yaml), found("keys.default.max_live", problem));
}

#[test]
fn template_fields_are_clear() {
    let problem = || Problem::NotClear {
        path: "tenant".to_owned(),
        column: "tenant".to_owned(),
    };
    let at = r#"keys["t-{tenant}"]"#;
    assert_eq!(
        refused_columns("  - { path: tenant, key: k, acl: a }"),
        found(at, problem())
    );
    assert_eq!(
        refused_columns("  - { path: tenant, domain: tenants }"),
        found(at, problem())
    );
    let inside = Problem::NotScalar {
        path: "tenant".to_owned(),
        column: "tenant.name".to_owned(),
    };
    assert_eq!(
        refused_columns("  - { path: tenant.name, key: k, acl: a }"),
        found(at, inside)
    );
}

#[test]
fn rows_are_clear_scalars_one_per_record() {
    let bound = |row: &str, more: &str| {
        refused_columns(&format!("  - {{ path: a.b, key: k, acl: a, bind_row: '{row}' }}{more}"))
    };
    let at = "columns[0].bind_row";
    for row in ["ids[*]", "$key", "$header.id"] {
        assert_eq!(bound(row, ""), found(at, Problem::BadRow), "{row}");
    }
    let not_clear = |path: &str, column: &str| Problem::NotClear {
        path: path.to_owned(),
        column: column.to_owned(),
    };
    assert_eq!(bound("a.b", ""), found(at, not_clear("a.b", "a.b")));
    assert_eq!(
        bound("id.x", "\n  - { path: id, key: k, acl: a }"),
        found(at, not_clear("id.x", "id"))
    );
    assert_eq!(
        bound("id", "\n  - { path: id, domain: ids }"),
        found(at, not_clear("id", "id"))
    );
    let not_scalar = Problem::NotScalar {
        path: "a".to_owned(),
        column: "a.b".to_owned(),
    };
    assert_eq!(bound("a", ""), found(at, not_scalar));
    assert_eq!(
        bound("a-b", ""),
        found(at, Problem::BadPath(PathError::Unexpected { at: 1 }))
    );
    // The record's key and headers can be bound to a row, too.
    assert!(parse(&of_columns("  - { path: $key, key: k, acl: a, bind_row: id }")).is_ok());
}

#[test]
fn domain_columns_take_everything_from_the_domain() {
    let domain = |more: &str| refused_columns(&format!("  - {{ path: a, domain: customers, {more} }}"));
    for (what, more) in [
        ("key", "key: k"),
        ("acl", "acl: a"),
        ("pad_to", "pad_to: 32"),
        ("label", "label: x"),
        ("seal_nulls", "seal_nulls: true"),
    ] {
        assert_eq!(
            domain(more),
            found(&format!("columns[0].{what}"), Problem::FromDomain { what })
        );
    }
    assert_eq!(
        domain("bind_row: id"),
        found("columns[0].bind_row", Problem::RowInDomain)
    );
    let bad = Problem::BadName {
        what: "domain",
        max: 128,
    };
    assert_eq!(
        refused_columns("  - { path: a, domain: a/b }"),
        found("columns[0].domain", bad)
    );
}

#[test]
fn values_that_say_who_sealed_them_need_the_hmac_key_of_clients() {
    const MAC_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/eeeeeeee-12ab-34cd-56ef-1234567890ab";
    let with = |sealed: &str, mac: &str| {
        of_columns(&format!(
            "  - {{ path: a, key: k, acl: a, flow: hybrid, client_sealed: {sealed} }}\nclient: {{ keys: {{ web: {{ arn: \"{OTHER_ARN}\" }} }}{mac} }}"
        ))
    };
    let mac = |rest: &str| format!(", mac: {{ arn: \"{MAC_ARN}\"{rest} }}");
    for (text, sealed) in [
        ("authenticated", ClientSealed::Authenticated),
        ("once", ClientSealed::Once),
    ] {
        let policy = parse(&with(text, &mac(", revoked: [web-3]"))).unwrap();
        assert!(policy.unsupported().is_empty() && policy.columns[0].client_sealed == sealed);
        let rule = policy.client.unwrap().mac.unwrap();
        assert_eq!(
            (rule.arns().collect::<Vec<_>>(), rule.revoked.len()),
            (vec![MAC_ARN], 1)
        );
        assert_eq!((rule.max_age.as_secs(), rule.remember.as_secs()), (600, 86_400));
        assert_eq!(
            refused(&with(text, "")),
            ("columns[0].client_sealed".to_owned(), Problem::NoClientMac)
        );
    }
    for (rest, path, problem) in [
        (", previous: [x]", "previous[0]", None),
        (
            &format!(", previous: [\"{MAC_ARN}\"]"),
            "previous[0]",
            Some(Problem::SharedClientKey),
        ),
        (
            &format!(", previous: [\"{OTHER_ARN}\"]"),
            "previous[0]",
            Some(Problem::SharedClientKey),
        ),
        (
            &format!(", previous: [\"{ARN}\"]"),
            "previous[0]",
            Some(Problem::SharedClientKey),
        ),
        (", revoked: [\"a b\"]", "revoked[0]", Some(Problem::BadClientName)),
        (", max_age: 0s", "max_age", Some(Problem::BadValueAge)),
        (", max_age: 8d", "max_age", Some(Problem::BadValueAge)),
        (", max_age: 2h, remember: 1h", "remember", Some(Problem::BadRemember)),
        (", remember: 31d", "remember", Some(Problem::BadRemember)),
    ] {
        let (at, found) = refused(&with("once", &mac(rest)));
        assert_eq!(at, format!("client.mac.{path}"));
        assert!(problem.is_none_or(|problem| problem == found), "{rest}");
    }
    // Whose values say who sealed them can be deterministic, and have hints.
    let rest = format!("\nclient: {{ keys: {{ web: {{ arn: \"{OTHER_ARN}\" }} }}{} }}", mac(""));
    let domain = "  - { path: a, domain: customers, flow: hybrid, client_sealed: authenticated }";
    assert_eq!(
        parse(&of_columns(&format!("{domain}{rest}"))).unwrap().columns[0].domain(),
        Some("customers")
    );
    let hints =
        "  - { path: a, key: k, acl: a, flow: hybrid, client_sealed: once, hints: [{ derive: last4, acl: a }] }";
    assert_eq!(parse(&of_columns(&format!("{hints}{rest}"))).unwrap().columns.len(), 2);
}

#[test]
fn deterministic_columns_of_clients_and_enclaves_are_refused() {
    for flow in ["hybrid", "enclave"] {
        let columns = format!("  - {{ path: a, domain: customers, flow: {flow} }}");
        assert_eq!(
            refused_columns(&columns),
            found("columns[0].flow", Problem::DeterministicFlow { flow })
        );
    }
}

/// RFC 7638, section 3.1.
const MODULUS: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
const THUMBPRINT: &str = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";

/// Columns, and dead letters to the recipient with these members.
fn to_recipient(flow: &str, members: &str) -> String {
    with_enclave(&of_columns(&format!(
        "  - {{ path: a, key: k, acl: a, flow: {flow} }}\ndead_letters: {{ recipient: {{ {members} }} }}"
    )))
}

/// The policy with what enclave columns need.
fn with_enclave(yaml: &str) -> String {
    const WEB: &str = "arn:aws:kms:eu-central-1:111122223333:key/dddddddd-12ab-34cd-56ef-1234567890ab";
    format!(
        "{yaml}\nlease: required\nenclave: {{ keys: {{ web: {{ arn: \"{WEB}\" }} }}, measurements: {{ v1: {{ image: \"{}\" }} }} }}\n",
        "a1".repeat(48)
    )
}

#[test]
fn dead_letters_of_any_dataset_may_go_to_a_recipient_and_then_have_neither_key_nor_acl() {
    let jwk = format!("kty: RSA, n: {MODULUS}, e: AQAB");
    let printed = format!("alg: RSA-OAEP-256, e: AQAB, kid: {THUMBPRINT}, kty: RSA, n: {MODULUS}, use: enc");
    for (flow, members) in [("direct", &jwk), ("enclave", &jwk), ("enclave", &printed)] {
        let policy = parse(&to_recipient(flow, members)).unwrap();
        assert!(policy.dead_letter_group().is_none());
        let rule = policy.dead_letters.as_ref().unwrap();
        let recipient = rule.recipient().unwrap();
        assert_eq!(
            (
                recipient.thumbprint().to_string().as_str(),
                recipient.bits(),
                rule.key_and_acl()
            ),
            (THUMBPRINT, 2_048, None)
        );
    }
}

#[test]
fn dead_letters_of_enclave_datasets_go_to_a_recipient() {
    for key in ["k", "other"] {
        let columns =
            format!("  - {{ path: a, key: k, acl: a, flow: enclave }}\ndead_letters: {{ key: {key}, acl: a }}");
        let yaml = of_columns(&columns).replace("acls:", &format!("  other: {{ arn: \"{OTHER_ARN}\" }}\nacls:"));
        assert_eq!(
            refused(&with_enclave(&yaml)),
            found("dead_letters.key", Problem::DeadLettersInEnclave)
        );
    }
}

#[test]
fn dead_letters_have_either_key_and_acl_or_a_recipient() {
    let jwk = format!("recipient: {{ kty: RSA, n: {MODULUS}, e: AQAB }}");
    for members in [
        "",
        "key: k",
        "acl: a",
        &format!("key: k, {jwk}"),
        &format!("key: k, acl: a, {jwk}"),
    ] {
        let columns = format!("  - {{ path: a, key: k, acl: a }}\ndead_letters: {{ {members} }}");
        assert_eq!(
            refused_columns(&columns),
            found("dead_letters", Problem::DeadLettersForm),
            "{members}"
        );
    }
}

#[test]
fn a_recipient_is_the_public_half_of_an_rsa_key_and_says_nothing_else() {
    let good = format!("kty: RSA, n: {MODULUS}, e: AQAB");
    let at = |members: &str| refused(&to_recipient("direct", members));
    for (from, to) in [
        ("RSA", "EC"),
        ("AQAB", "Aw"),
        ("AQAB", "AAEAAQ"),
        ("0vx7", "AAAA"),
        ("qDKgw", "qDKgg"),
        ("qDKgw", "qDKgw=="),
        (MODULUS, "qDKgw"),
        (MODULUS, &"_".repeat(4_000)),
        ("AQAB", "AQAB, alg: RSA-OAEP"),
        ("AQAB", "AQAB, use: sig"),
    ] {
        let refused = at(&good.replace(from, to));
        assert_eq!(refused, found("dead_letters.recipient", Problem::BadRecipient), "{to}");
    }
    for member in ["d", "p", "q", "dp", "dq", "qi", "oth"] {
        let refused = at(&format!("{good}, {member}: AQAB"));
        assert_eq!(
            refused,
            found("dead_letters.recipient", Problem::PrivateRecipient),
            "{member}"
        );
    }
    assert_eq!(
        at(&format!("{good}, kid: web")),
        found("dead_letters.recipient.kid", Problem::WrongRecipientKid)
    );
    let error = parse(&to_recipient("direct", &format!("{good}, x5c: x"))).unwrap_err();
    assert!(matches!(*error.problem, Problem::Yaml { .. }), "{error}");
}

#[test]
fn padding_has_bounds() {
    for pad in [0, 1, 65_537] {
        let columns = format!("  - {{ path: a, key: k, acl: a, pad_to: {pad} }}");
        assert_eq!(
            refused_columns(&columns),
            found("columns[0].pad_to", Problem::BadPadding)
        );
    }
    for pad in [2, 65_536] {
        assert!(
            parse(&of_columns(&format!(
                "  - {{ path: a, key: k, acl: a, pad_to: {pad} }}"
            )))
            .is_ok()
        );
    }
}

#[test]
fn tables_have_plain_keys_known_acls_and_columns_of_the_value() {
    let with = |columns: &str, table: &str| {
        format!(
            "dataset: payments\nversion: 1\nkeys: {{ k: {{ arn: \"{ARN}\" }}, other: {{ arn: \"{ARN}\" }}, \"t-{{tenant}}\": {{ arn: \"{ARN}\" }} }}\n\
             acls: {{ a: {{}}, b: {{}} }}\ncolumns:\n  - {{ path: x, key: k, acl: a, {columns} }}\ntable: {{ {table} }}\n"
        )
    };
    let policy = parse(&with("at: column", "key: k, acl: b, extra: { key: other, acl: a }")).unwrap();
    let groups = policy.table_groups();
    let labels = |n: usize| {
        groups[n]
            .labels
            .iter()
            .map(|label| label.label.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!((groups.len(), labels(0), labels(1)), (2, vec!["$footer"], vec!["x"]));
    assert_eq!(policy.acl_for_label("$footer"), Some("b"));
    assert_eq!(policy.acl_for_label("$extra"), Some("a"));
    assert_eq!(policy.table_labels(), [("$footer", "b"), ("$extra", "a")]);
    let template = || Problem::TemplateInTable {
        name: "t-{tenant}".to_owned(),
    };
    let unknown = |what: &'static str, name: &str, meant: Option<&str>| Problem::Unknown {
        what,
        name: name.to_owned(),
        meant: meant.map(str::to_owned),
    };
    let cases = [
        ("", "key: kk, acl: a", "table.key", unknown("key", "kk", Some("k"))),
        ("", "key: k, acl: c", "table.acl", unknown("acl", "c", None)),
        ("", "key: \"t-{tenant}\", acl: a", "table.key", template()),
        (
            "",
            "key: k, acl: a, extra: { key: \"t-{tenant}\", acl: a }",
            "table.extra.key",
            template(),
        ),
        (
            "",
            "key: k, acl: a, profile: duckdb, footer: signed-plaintext",
            "table.footer",
            Problem::DuckDbFooter,
        ),
        (
            "at: column",
            "key: k, acl: b, profile: duckdb",
            "table.profile",
            Problem::DuckDbKeys { column: "x".to_owned() },
        ),
    ];
    for (columns, table, at, problem) in cases {
        assert_eq!(refused(&with(columns, table)), found(at, problem), "{table}");
    }
    for (column, problem) in [
        ("  - { path: a, domain: d, at: column }", Problem::ColumnInDomain),
        (
            "  - { path: $header.x, key: k, acl: a, at: column }",
            Problem::ColumnOutsideValue,
        ),
    ] {
        assert_eq!(refused_columns(column), found("columns[0].at", problem));
    }
}

#[test]
fn dead_letters_take_no_template() {
    let yaml = full().replace(
        "dead_letters: { key: default",
        "dead_letters: { key: \"tenant-{tenant_id}\"",
    );
    let problem = Problem::TemplateForDeadLetters {
        name: "tenant-{tenant_id}".to_owned(),
    };
    assert_eq!(refused(&yaml), found("dead_letters.key", problem));
}

#[test]
fn principals_are_checked_for_form() {
    let yaml = full().replace("arn:aws:iam::111122223333:role/analyst", "arn:aws:iam::*:role/analyst");
    let problem = Problem::BadPrincipal(crate::acl::PrincipalError::Wildcard { part: "account" });
    assert_eq!(refused(&yaml), found("acls.pii.allow[0]", problem));
    let (path, _) = refused(&full().replace("oidc:https://login.example.com#group=interns", "interns"));
    assert_eq!(path, "acls.pii.deny[0]");
    let bad = Problem::BadName { what: "ACL", max: 64 };
    assert_eq!(
        refused(&full().replace("  ops: {}", "  \"o ps\": {}")),
        found(r#"acls["o ps"]"#, bad)
    );
}

#[test]
fn what_is_previous_is_not_current_and_points_to_what_is() {
    let current = |what, name: &str| Problem::PreviousIsCurrent {
        what,
        name: name.to_owned(),
    };
    let unknown = |what, name: &str| Problem::Unknown {
        what,
        name: name.to_owned(),
        meant: None,
    };
    assert_eq!(
        refused(&full().replace(OTHER_ARN, ARN)),
        found("previous.keys[0]", current("key", "default"))
    );
    let twice = full().replace(
        "  keys: [",
        &format!("  keys: [{{ name: default, arn: \"{OTHER_ARN}\" }}, "),
    );
    assert_eq!(refused(&twice), found("previous.keys[1]", Problem::DuplicatePrevious));
    assert_eq!(
        refused(&full().replace("{ old: pii }", "{ ops: pii }")),
        found("previous.acls.ops", current("acl", "ops"))
    );
    assert_eq!(
        refused(&full().replace("{ old: pii }", "{ old: nobody }")),
        found("previous.acls.old", unknown("acl", "nobody"))
    );
    let label = |to: &str| refused(&full().replace("{ old.path: user.email }", to));
    assert_eq!(
        label("{ card: user.email }"),
        found("previous.labels.card", current("label", "card"))
    );
    assert_eq!(
        label("{ x: customer_id }"),
        found("previous.labels.x", unknown("label", "customer_id"))
    );
    assert_eq!(label("{ domain:x: card }").0, r#"previous.labels["domain:x"]"#);
}

#[test]
fn the_schema_describes_every_key() {
    let schema = serde_json::to_value(schema()).unwrap();
    for (name, property) in schema["properties"].as_object().unwrap() {
        assert!(property.get("description").is_some(), "{name} has no description");
    }
    assert_eq!(schema["additionalProperties"], serde_json::json!(false));
}

proptest! {
    #[test]
    fn no_input_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Policy::parse(&bytes);
    }

    #[test]
    fn no_damage_to_a_policy_makes_the_parser_panic(at in 0usize..1_500, with in "[ -~\n]{0,6}", cut in 0usize..8) {
        let mut yaml = full();
        let at = at.min(yaml.len());
        let end = (at + cut).min(yaml.len());
        yaml.replace_range(at..end, &with);
        if let Err(error) = Policy::parse(yaml.as_bytes()) {
            prop_assert!(!error.help().is_empty());
        }
    }
}

#[test]
fn a_key_of_clients_is_an_arn_or_a_pair_and_pairs_rotate_like_arns() {
    const WRAPS: &str = "arn:aws:kms:eu-central-1:111122223333:key/dddddddd-12ab-34cd-56ef-1234567890ab";
    let public = |last: u8| {
        let mut der = vec![
            0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d,
        ];
        der.extend([
            0x01, 0x01, 0x01, 0x05, 0x00, 0x03, 0x82, 0x01, 0x0f, 0x00, 0x30, 0x82, 0x01, 0x0a,
        ]);
        der.extend([0x02, 0x82, 0x01, 0x01, 0x00]);
        der.extend([0xab; 255]);
        der.extend([last, 0x02, 0x03, 0x01, 0x00, 0x01]);
        base64::engine::Engine::encode(&base64::engine::general_purpose::STANDARD, der)
    };
    let pair = |arn: &str, last| format!("{{ arn: \"{arn}\", public: \"{}\", wrapped: \"AAEC\" }}", public(last));
    let with = |key: &str| {
        let columns = of_columns("  - { path: a, key: k, acl: a, flow: hybrid }");
        format!("{columns}\nclient: {{ keys: {{ web: {{ {key} }} }} }}")
    };
    let rotated = format!(
        "pair: {}, previous: [\"{OTHER_ARN}\", {}]",
        pair(WRAPS, 1),
        pair(WRAPS, 3)
    );
    let rule = parse(&with(&rotated)).unwrap().client.unwrap();
    assert_eq!(rule.arns().collect::<Vec<_>>(), [WRAPS, OTHER_ARN, WRAPS]);
    let keys: Vec<_> = rule.rsa_keys().collect();
    let [
        crate::policy::RsaKey::Pair(new),
        crate::policy::RsaKey::InKms { .. },
        crate::policy::RsaKey::Pair(old),
    ] = keys[..]
    else {
        panic!("{keys:?}")
    };
    assert_eq!((new.dataset.as_str(), &*new.wrapped), ("d", &[0, 1, 2][..]));
    assert_ne!(new.digest(), old.digest());
    assert!(!format!("{new:?}").contains("wrapped"), "{new:?}");

    let shared = Problem::SharedClientKey;
    let good = pair(WRAPS, 1);
    for (key, path, problem) in [
        (String::new(), "client.keys.web", Problem::ArnOrPair),
        (
            format!("arn: \"{OTHER_ARN}\", pair: {good}"),
            "client.keys.web",
            Problem::ArnOrPair,
        ),
        (
            format!("pair: {}", pair(ARN, 1)),
            "client.keys.web.pair",
            shared.clone(),
        ),
        (
            format!("pair: {good}, previous: [{good}]"),
            "client.keys.web.previous[0]",
            shared.clone(),
        ),
        (
            format!("pair: {good}, previous: [\"{WRAPS}\"]"),
            "client.keys.web.previous[0]",
            shared,
        ),
        (
            format!("pair: {}", good.replace("MII", "MIJ")),
            "client.keys.web.pair.public",
            Problem::BadPairPublic,
        ),
        (
            format!("pair: {}", good.replace("AAEC", "A")),
            "client.keys.web.pair.wrapped",
            Problem::BadPairWrapped,
        ),
        (
            format!("arn: \"{OTHER_ARN}\", previous: [{}]", good.replace("AAEC", "")),
            "client.keys.web.previous[0].wrapped",
            Problem::BadPairWrapped,
        ),
    ] {
        assert_eq!(refused(&with(&key)), (path.to_owned(), problem), "{key}");
    }
    let misspelled = parse(&with(&format!(
        "arn: \"{OTHER_ARN}\", previous: [{}]",
        good.replace("wrapped", "wraped")
    )));
    assert!(misspelled.unwrap_err().to_string().contains("wraped"));
    // One that data keys were under before may still be open to readers.
    let before = format!(
        "{}\nprevious: {{ keys: [{{ name: k, arn: \"{WRAPS}\" }}] }}",
        with(&format!("pair: {good}"))
    );
    assert_eq!(
        refused(&before),
        ("client.keys.web.pair".to_owned(), Problem::SharedClientKey)
    );
}
