//! Decisions by principal, action and condition.

use proptest::prelude::*;

use super::*;

/// 2026-01-02T03:04:05Z.
const NOW: UnixMillis = UnixMillis(1_767_323_045_000);
const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/a";
const ANALYST: &str = "arn:aws:iam::111122223333:role/analyst";
const SESSION: &str = "arn:aws:sts::111122223333:assumed-role/analyst/monday";
const OTHER: &str = "arn:aws:iam::111122223333:user/other";
const STRANGER: &str = "arn:aws:iam::999999999999:role/analyst";

fn allows(statements: &str, principal: &str, action: &str, context: &[(&str, &str)]) -> bool {
    let policy = KeyPolicy::parse(&format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#)).unwrap();
    let context: Context = context
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    policy.allows(&Call {
        principal,
        action,
        key_arn: KEY,
        context: &context,
        algorithm: None,
        evidence: None,
        now: NOW,
    })
}

fn statement(effect: &str, principal: &str, action: &str, condition: &str) -> String {
    format!(
        r#"{{"Effect":"{effect}","Principal":{principal},"Action":{action},"Resource":"*","Condition":{condition}}}"#
    )
}

#[test]
fn principals_match_as_in_aws() {
    let table = [
        (r#""*""#, STRANGER, true),
        (r#"{"AWS":"*"}"#, STRANGER, true),
        (r#"{"AWS":"arn:aws:iam::111122223333:root"}"#, ANALYST, true),
        (r#"{"AWS":"arn:aws:iam::111122223333:root"}"#, SESSION, true),
        (r#"{"AWS":"arn:aws:iam::111122223333:root"}"#, STRANGER, false),
        (r#"{"AWS":"111122223333"}"#, OTHER, true),
        (r#"{"AWS":"111122223333"}"#, STRANGER, false),
        (r#"{"AWS":["arn:aws:iam::111122223333:role/analyst"]}"#, ANALYST, true),
        (r#"{"AWS":["arn:aws:iam::111122223333:role/analyst"]}"#, SESSION, true),
        (
            r#"{"AWS":["arn:aws:iam::111122223333:role/path/analyst"]}"#,
            SESSION,
            true,
        ),
        (r#"{"AWS":"arn:aws:iam::111122223333:role/analyst"}"#, OTHER, false),
        (r#"{"AWS":"arn:aws:iam::111122223333:role/analyst"}"#, STRANGER, false),
        (r#"{"AWS":"arn:aws:iam::111122223333:role/analys"}"#, SESSION, false),
        (r#"{"AWS":"arn:aws:iam::111122223333:user/analyst"}"#, SESSION, false),
        (r#"{"Service":"s3.amazonaws.com"}"#, ANALYST, false),
    ];
    for (principal, caller, expected) in table {
        let policy = statement("Allow", principal, r#""kms:*""#, "{}");
        assert_eq!(
            allows(&policy, caller, "kms:Decrypt", &[]),
            expected,
            "{principal} {caller}"
        );
    }
}

#[test]
fn actions_match_with_wildcards_and_without_case() {
    let table = [
        (r#""kms:*""#, "kms:Decrypt", true),
        (r#""*""#, "kms:Decrypt", true),
        (r#""kms:decrypt""#, "kms:Decrypt", true),
        (
            r#"["kms:Encrypt","kms:GenerateDataKey*"]"#,
            "kms:GenerateDataKeyWithoutPlaintext",
            true,
        ),
        (r#"["kms:Encrypt","kms:GenerateDataKey*"]"#, "kms:Decrypt", false),
        (r#""kms:De?rypt""#, "kms:Decrypt", true),
        (r#""kms:Decryp""#, "kms:Decrypt", false),
    ];
    for (action, called, expected) in table {
        let policy = statement("Allow", r#""*""#, action, "{}");
        assert_eq!(allows(&policy, ANALYST, called, &[]), expected, "{action} {called}");
    }
}

#[test]
fn a_deny_outweighs_every_allow_and_nothing_is_allowed_by_default() {
    let allow = statement("Allow", r#""*""#, r#""kms:*""#, "{}");
    let deny = statement(
        "Deny",
        r#"{"AWS":"arn:aws:iam::111122223333:role/analyst"}"#,
        r#""kms:Decrypt""#,
        "{}",
    );
    for both in [format!("{allow},{deny}"), format!("{deny},{allow}")] {
        assert!(!allows(&both, ANALYST, "kms:Decrypt", &[]));
        assert!(!allows(&both, SESSION, "kms:Decrypt", &[]));
        assert!(allows(&both, ANALYST, "kms:Encrypt", &[]));
        assert!(allows(&both, OTHER, "kms:Decrypt", &[]));
    }
    assert!(!allows(&deny, OTHER, "kms:Encrypt", &[]));
}

#[test]
fn conditions_on_the_encryption_context_hold_as_in_aws() {
    let pii = [("sealflow:acl", "pii"), ("sealflow:dataset", "payments")];
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);
    let table: [Case<'_>; 20] = [
        (
            r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
            &pii,
            true,
        ),
        (
            r#"{"StringEquals":{"KMS:encryptioncontext:sealflow:acl":"pii"}}"#,
            &pii,
            true,
        ),
        (
            r#"{"StringEquals":{"kms:EncryptionContext:sealflow:ACL":"pii"}}"#,
            &pii,
            true,
        ),
        (
            r#"{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["sealflow:ACL","sealflow:dataset"]}}"#,
            &pii,
            false,
        ),
        (
            r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":["ops","pii"]}}"#,
            &pii,
            true,
        ),
        (
            r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":"PII"}}"#,
            &pii,
            false,
        ),
        (
            r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
            &[],
            false,
        ),
        (
            r#"{"StringEqualsIfExists":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
            &[],
            true,
        ),
        (
            r#"{"StringNotEquals":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
            &pii,
            false,
        ),
        (
            r#"{"StringNotEquals":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
            &[],
            true,
        ),
        (
            r#"{"StringLike":{"kms:EncryptionContext:sealflow:dataset":"pay*"}}"#,
            &pii,
            true,
        ),
        (
            r#"{"StringLike":{"kms:EncryptionContext:sealflow:dataset":"pay"}}"#,
            &pii,
            false,
        ),
        (
            r#"{"StringEquals":{"kms:EncryptionContext:sealflow:dataset":"pay*"}}"#,
            &pii,
            false,
        ),
        (r#"{"Null":{"kms:EncryptionContext:sealflow:acl":"false"}}"#, &pii, true),
        (r#"{"Null":{"kms:EncryptionContext:sealflow:acl":"false"}}"#, &[], false),
        (
            r#"{"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":"sealflow:acl"}}"#,
            &pii,
            true,
        ),
        (
            r#"{"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":"sealflow:key"}}"#,
            &pii,
            false,
        ),
        (
            r#"{"ForAllValues:StringLike":{"kms:EncryptionContextKeys":"sealflow:*"}}"#,
            &pii,
            true,
        ),
        (
            r#"{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":"sealflow:acl"}}"#,
            &pii,
            false,
        ),
        (
            r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":"pii","kms:EncryptionContext:sealflow:dataset":"x"}}"#,
            &pii,
            false,
        ),
    ];
    for (condition, context, expected) in table {
        let policy = statement("Allow", r#""*""#, r#""kms:*""#, condition);
        assert_eq!(
            allows(&policy, ANALYST, "kms:Decrypt", context),
            expected,
            "{condition} {context:?}"
        );
    }
}

#[test]
fn two_names_in_a_context_that_differ_by_case_only_help_nobody() {
    let both = [("sealflow:acl", "pii"), ("sealflow:ACL", "ops")];
    for wanted in ["pii", "ops"] {
        let condition = format!(r#"{{"StringEquals":{{"kms:EncryptionContext:sealflow:acl":"{wanted}"}}}}"#);
        let allow = statement("Allow", r#""*""#, r#""kms:*""#, &condition);
        assert!(!allows(&allow, ANALYST, "kms:Decrypt", &both), "{wanted}");
    }
}

#[test]
fn dates_hold_up_to_the_second_and_what_is_no_date_never_helps_the_caller() {
    let cases = [
        ("DateLessThan", "2026-01-02T03:04:06Z", true),
        ("DateLessThan", "2026-01-02T03:04:05Z", false),
        ("DateLessThanEquals", "2026-01-02T03:04:05Z", true),
        ("DateGreaterThan", "2026-01-02T03:04:05Z", false),
        ("DateGreaterThan", "2026-01-02T03:04:04Z", true),
        ("DateGreaterThanEquals", "2026-01-02T04:04:05+01:00", true),
        ("DateEquals", "2026-01-02T03:04:05Z", true),
        ("DateNotEquals", "2026-01-02T03:04:05Z", false),
    ];
    for (operator, date, expected) in cases {
        let condition = format!(r#"{{"{operator}":{{"aws:CurrentTime":"{date}"}}}}"#);
        let allow = statement("Allow", r#""*""#, r#""kms:*""#, &condition);
        assert_eq!(
            allows(&allow, ANALYST, "kms:Decrypt", &[]),
            expected,
            "{operator} {date}"
        );
    }
    let allow = statement("Allow", r#""*""#, r#""kms:*""#, "{}");
    let soon = r#"{"DateLessThan":{"aws:CurrentTime":"soon"}}"#;
    assert!(!allows(
        &statement("Allow", r#""*""#, r#""kms:*""#, soon),
        ANALYST,
        "kms:Decrypt",
        &[]
    ));
    let deny = statement("Deny", r#""*""#, r#""kms:*""#, soon);
    assert!(!allows(&format!("{allow},{deny}"), ANALYST, "kms:Decrypt", &[]));
}

#[test]
fn the_principals_arn_of_a_session_is_its_roles_and_no_wildcard_crosses_a_colon() {
    let table = [
        ("ArnLike", "arn:aws:iam::111122223333:role/ana*", SESSION, true),
        ("ArnEquals", "arn:aws:iam::111122223333:role/ana*", SESSION, true),
        ("ArnLike", "arn:aws:sts::111122223333:assumed-role/*", SESSION, false),
        ("ArnNotLike", "arn:aws:iam::111122223333:role/*/*", SESSION, true),
        ("ArnLike", "arn:aws:iam::111122223333:role/ana*", STRANGER, false),
        ("ArnLike", "arn:aws:iam::*:role/analyst", STRANGER, true),
        ("ArnLike", "arn:aws:*:role/analyst", ANALYST, false),
        ("ArnLike", "arn:aws:iam::111122223333:user/*", OTHER, true),
        // It does cross a slash, which `ArnNotLike` can take back.
        (
            "ArnLike",
            "arn:aws:iam::111122223333:user/a*",
            "arn:aws:iam::111122223333:user/a/b",
            true,
        ),
        (
            "ArnNotLike",
            "arn:aws:iam::111122223333:user/*/*",
            "arn:aws:iam::111122223333:user/a/b",
            false,
        ),
    ];
    for (operator, pattern, caller, expected) in table {
        let condition = format!(r#"{{"{operator}":{{"aws:PrincipalArn":"{pattern}"}}}}"#);
        let allow = statement("Allow", r#""*""#, r#""kms:*""#, &condition);
        assert_eq!(
            allows(&allow, caller, "kms:Decrypt", &[]),
            expected,
            "{operator} {pattern} {caller}"
        );
    }
}

#[test]
fn what_the_evaluator_does_not_know_never_helps_the_caller() {
    let allow = statement("Allow", r#""*""#, r#""kms:*""#, "{}");
    for unknown in [
        r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#,
        r#"{"StringEquals":{"aws:SourceVpce":"vpce-1"}}"#,
        r#"{"Sometimes:StringEquals":{"kms:EncryptionContextKeys":"a"}}"#,
    ] {
        let conditioned_allow = statement("Allow", r#""*""#, r#""kms:*""#, unknown);
        assert!(!allows(&conditioned_allow, ANALYST, "kms:Decrypt", &[]), "{unknown}");
        let conditioned_deny = statement("Deny", r#""*""#, r#""kms:*""#, unknown);
        assert!(
            !allows(&format!("{allow},{conditioned_deny}"), ANALYST, "kms:Decrypt", &[]),
            "{unknown}"
        );
    }
}

#[test]
fn documents_with_unknown_elements_are_refused() {
    for bad in [
        "",
        "[]",
        r#"{"Statement":[]}"#,
        r#"{"Version":"2025-01-01","Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Maybe","Principal":"*","Action":"kms:*","Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","NotPrincipal":"*","Action":"kms:*","Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":"*","NotAction":"kms:*","Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":[],"Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":"me","Action":"kms:*","Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":{"Me":"*"},"Action":"kms:*","Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/*"},"Action":"kms:*","Resource":"*"}]}"#,
    ] {
        assert!(KeyPolicy::parse(bad).is_err(), "{bad} was taken");
    }
}

#[test]
fn the_default_policy_is_the_document_that_it_shows() {
    let default = KeyPolicy::default_for("111122223333");
    let parsed = KeyPolicy::parse(default.text()).unwrap();
    for (caller, expected) in [(ANALYST, true), (SESSION, true), (STRANGER, false)] {
        let context = Context::new();
        let call = Call {
            principal: caller,
            action: "kms:Decrypt",
            key_arn: KEY,
            context: &context,
            algorithm: None,
            evidence: None,
            now: NOW,
        };
        assert_eq!((default.allows(&call), parsed.allows(&call)), (expected, expected));
    }
}

#[test]
fn an_algorithm_is_that_of_the_request_and_none_where_there_is_none() {
    let document = |effect: &str, operator: &str| {
        let condition = format!(r#"{{"{operator}":{{"kms:EncryptionAlgorithm":"RSAES_OAEP_SHA_256"}}}}"#);
        let everything = statement("Allow", "\"*\"", "\"kms:*\"", "{}");
        let this = statement(effect, "\"*\"", "\"kms:Decrypt\"", &condition);
        let statements = if effect == "Deny" {
            format!("{everything},{this}")
        } else {
            this
        };
        KeyPolicy::parse(&format!(r#"{{"Statement":[{statements}]}}"#)).unwrap()
    };
    let (allow, deny) = (document("Allow", "StringEquals"), document("Deny", "StringNotEquals"));
    for (algorithm, expected) in [
        (Some("RSAES_OAEP_SHA_256"), true),
        (Some("RSAES_OAEP_SHA_1"), false),
        (Some("SYMMETRIC_DEFAULT"), false),
        (None, false),
    ] {
        let context = Context::new();
        let call = Call {
            principal: ANALYST,
            action: "kms:Decrypt",
            key_arn: KEY,
            context: &context,
            algorithm,
            evidence: None,
            now: NOW,
        };
        assert_eq!(
            (allow.allows(&call), deny.allows(&call)),
            (expected, expected),
            "{algorithm:?}"
        );
    }
}

proptest! {
    #[test]
    fn parsing_any_text_never_panics(text in ".{0,200}") {
        let _ = KeyPolicy::parse(&text);
    }
}

const IMAGE: &str = "aabbccddeeff00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff00112233445566778899";
const OTHER_IMAGE: &str =
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn evidence(registers: &[(u8, &str)]) -> Evidence {
    let registers: Vec<(u8, Vec<u8>)> = registers
        .iter()
        .map(|(number, hex)| (*number, hex::decode(hex).unwrap()))
        .collect();
    Evidence::of_registers(registers.iter().map(|(number, bytes)| (*number, bytes.as_slice())))
}

fn allows_attested(statements: &str, action: &str, evidence: Option<&Evidence>) -> bool {
    let policy = KeyPolicy::parse(&format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#)).unwrap();
    policy.allows(&Call {
        principal: ANALYST,
        action,
        key_arn: KEY,
        context: &Context::new(),
        algorithm: None,
        evidence,
        now: NOW,
    })
}

#[test]
fn an_allow_with_a_measurement_holds_for_that_measurement_alone() {
    let (zeros, upper) = ("00".repeat(48), IMAGE.to_ascii_uppercase());
    let fits = evidence(&[(0, IMAGE), (3, OTHER_IMAGE)]);
    let others = [
        evidence(&[(0, OTHER_IMAGE), (3, IMAGE)]),
        evidence(&[(1, IMAGE)]),
        evidence(&[(0, &zeros)]),
        evidence(&[]),
    ];
    for (operator, key, value, expected) in [
        (
            "StringEqualsIgnoreCase",
            "kms:RecipientAttestation:ImageSha384",
            IMAGE,
            true,
        ),
        (
            "StringEqualsIgnoreCase",
            "kms:RecipientAttestation:ImageSha384",
            &upper,
            true,
        ),
        ("StringEquals", "kms:RecipientAttestation:ImageSha384", IMAGE, true),
        // As in AWS, values are lower-case digits, so this never holds.
        ("StringEquals", "kms:RecipientAttestation:ImageSha384", &upper, false),
        ("StringEqualsIgnoreCase", "kms:RecipientAttestation:PCR0", IMAGE, true),
        ("StringEqualsIgnoreCase", "KMS:recipientattestation:pcr0", IMAGE, true),
        (
            "StringEqualsIgnoreCase",
            "kms:RecipientAttestation:PCR3",
            OTHER_IMAGE,
            true,
        ),
        ("StringEqualsIgnoreCase", "kms:RecipientAttestation:PCR3", IMAGE, false),
        ("StringEqualsIgnoreCase", "kms:RecipientAttestation:PCR31", IMAGE, false),
        // None of these is a condition key of AWS, or known here.
        ("StringEqualsIgnoreCase", "kms:RecipientAttestation:PCR00", IMAGE, false),
        ("StringEqualsIgnoreCase", "kms:RecipientAttestation:PCR+0", IMAGE, false),
        ("StringEqualsIgnoreCase", "kms:RecipientAttestation:PCR32", IMAGE, false),
        ("StringEqualsIgnoreCase", "kms:RecipientAttestation", IMAGE, false),
        (
            "StringEqualsIgnoreCase",
            "kms:RecipientAttestation:NitroTPMPCR0",
            IMAGE,
            false,
        ),
    ] {
        let allow = statement(
            "Allow",
            r#""*""#,
            r#""kms:*""#,
            &format!(r#"{{"{operator}":{{"{key}":"{value}"}}}}"#),
        );
        assert_eq!(
            allows_attested(&allow, "kms:Decrypt", Some(&fits)),
            expected,
            "{operator} {key}"
        );
        assert!(!allows_attested(&allow, "kms:Decrypt", None), "{operator} {key}");
    }
    let allow =
        format!(r#"{{"StringEqualsIgnoreCase":{{"kms:RecipientAttestation:ImageSha384":["{IMAGE}","{zeros}"]}}}}"#);
    let allow = statement("Allow", r#""*""#, r#""kms:*""#, &allow);
    for (n, other) in others.iter().enumerate() {
        assert!(!allows_attested(&allow, "kms:Decrypt", Some(other)), "{n}");
    }
}

/// A negated operator holds where the key is absent: without `Recipient`, such a Deny denies.
#[test]
fn a_deny_without_the_measurement_denies_whoever_has_none_though_all_is_allowed() {
    let everything = statement("Allow", r#""*""#, r#""kms:*""#, "{}");
    let key = "kms:RecipientAttestation:ImageSha384";
    let fits = evidence(&[(0, IMAGE)]);
    let (other, zeros) = (evidence(&[(0, OTHER_IMAGE)]), evidence(&[(0, &"00".repeat(48))]));
    for (condition, by_other) in [
        (
            format!(r#"{{"StringNotEqualsIgnoreCase":{{"{key}":"{IMAGE}"}}}}"#),
            false,
        ),
        (
            format!(r#"{{"StringNotEqualsIgnoreCase":{{"{key}":["{IMAGE}","ff"]}}}}"#),
            false,
        ),
        (
            format!(r#"{{"StringNotEqualsIgnoreCaseIfExists":{{"{key}":"{IMAGE}"}}}}"#),
            false,
        ),
        (format!(r#"{{"Null":{{"{key}":"true"}}}}"#), true),
        // What is not known denies, too.
        (
            r#"{"StringNotEquals":{"kms:RecipientAttestation:NitroTPMPCR4":"ff"}}"#.to_owned(),
            false,
        ),
    ] {
        let deny = statement("Deny", r#""*""#, r#""kms:Decrypt""#, &condition);
        let both = format!("{everything},{deny}");
        let is_known = !condition.contains("NitroTPM");
        assert_eq!(
            allows_attested(&both, "kms:Decrypt", Some(&fits)),
            is_known,
            "{condition}"
        );
        assert_eq!(
            allows_attested(&both, "kms:Decrypt", Some(&other)),
            by_other,
            "{condition}"
        );
        for nothing in [Some(&zeros), None] {
            assert!(!allows_attested(&both, "kms:Decrypt", nothing), "{condition}");
        }
        assert!(allows_attested(&both, "kms:DescribeKey", None), "{condition}");
    }
}
