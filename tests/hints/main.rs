//! Hints: what is derived from a value when it is sealed, shown by ACLs of its own, and gone when it is opened.
#![cfg(all(feature = "pipeline", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod company;

use company::*;
use proptest::prelude::*;
use sealflow::columns::MAX_HITS;
use sealflow::pipeline::{ColumnOutcome, DeadLetter, Format, OutputLimits, Route, SealedText};
use sealflow::units::ByteSize;
use serde_json::{Map, Value, json};

#[tokio::test]
async fn hints_stand_right_behind_their_value_and_every_other_byte_stays() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    let clear = r#" { "id":7, "card" : { "number" : "4111111111111234" , "x":1.50 },"n\u006fte":"12345678" } "#;
    let (route, sealed) = apply(&process.seal, clear).await;
    assert_eq!(route, Route::Target);
    let hole = |text: &str| {
        let mut rest = text;
        let mut out = String::new();
        while let Some(start) = rest.find("sf1.") {
            let end = start + rest[start..].find('"').unwrap();
            out += &rest[..start];
            out += "*";
            rest = &rest[end..];
        }
        out + rest
    };
    assert_eq!(
        hole(&sealed),
        r#" { "id":7, "card" : { "number" : "*","number#last4":"*","number#hmac":"*" , "x":1.50 },"n\u006fte":"*","note#last4":"*" } "#
    );
    assert!(!sealed.contains("1234\""));
    assert_eq!(apply(&process.open, &sealed).await, (Route::Target, clear.to_owned()));
}

#[tokio::test]
async fn each_reader_sees_what_the_acl_of_the_hint_or_of_the_value_says_and_nothing_of_the_other() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    let sealed = process.sealed_record(r#"{"card":{"number":"4111111111111234"}}"#).await;
    let hash = company.hash("customers", b"\x064111111111111234").await;
    for (role, number, last4, hmac) in [
        ("pci", json!("4111111111111234"), Value::Null, Value::Null),
        ("support", Value::Null, json!("1234"), Value::Null),
        ("fraud", Value::Null, Value::Null, json!(hash)),
        ("nobody", Value::Null, Value::Null, Value::Null),
    ] {
        let reading = process.read(sealed.clone(), role).await;
        let shown: Value =
            serde_json::from_slice(reading.records[0].as_ref().unwrap().value.as_ref().unwrap()).unwrap();
        let expected = json!({"card": {"number": number, "number#last4": last4, "number#hmac": hmac}});
        assert_eq!(shown, expected, "{role}");
        let opened: Vec<&str> = reading
            .decisions
            .iter()
            .filter(|decision| decision.outcome == ColumnOutcome::Opened)
            .map(|decision| decision.label.as_str())
            .collect();
        let label = match role {
            "pci" => vec!["card.number"],
            "support" => vec!["card.number#last4"],
            "fraud" => vec!["card.number#hmac"],
            _ => vec![],
        };
        assert_eq!(opened, label, "{role}");
    }
}

#[tokio::test]
async fn a_hint_opens_alone_by_its_label_and_for_whom_its_acl_names() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    let (_, sealed) = apply(&process.seal, r#"{"card":{"number":"4111111111111234"}}"#).await;
    let texts = sealed_texts(&sealed);
    let value = |n: usize, label| SealedText { label, text: &texts[n] };
    let values = [
        value(1, Some("card.number#last4")),
        value(1, None),
        value(0, None),
        value(1, Some("card.number")),
        value(0, Some("card.number#last4")),
    ];
    let opened = process
        .reader
        .open_values(&values, &who("support"), None, NOW)
        .await
        .unwrap();
    assert_eq!(opened.values, [r#""1234""#, r#""1234""#, "null", "null", "null"]);
}

#[tokio::test]
async fn a_value_at_the_place_of_a_hint_is_not_shown_by_the_acl_of_the_hint() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    let mut record = process.sealed_record(r#"{"card":{"number":"4111111111111234"}}"#).await;
    let sealed = text(&record);
    let texts = sealed_texts(&sealed);
    let swapped = sealed
        .replace(&texts[0], "*")
        .replace(&texts[1], &texts[0])
        .replace('*', &texts[1]);
    record.value = Some(swapped.into());
    for role in ["support", "pci"] {
        let reading = process.read(record.clone(), role).await;
        let shown = reading.records[0].as_ref().unwrap();
        assert_eq!(
            text(shown),
            r#"{"card":{"number":null,"number#last4":null,"number#hmac":null}}"#
        );
        let failed =
            |decision: &&sealflow::pipeline::ColumnDecision| matches!(decision.outcome, ColumnOutcome::Failed(_));
        assert_eq!(reading.decisions.iter().filter(failed).count(), 1, "{role}");
    }
    // The hint is cut unopened, and the value at the column does not open as one of it.
    assert_eq!(process.open_record(record).await.0, Route::DeadLetter);
}

#[tokio::test]
async fn a_hint_is_bound_to_the_row_of_its_value() {
    let company = Company::new().await;
    let columns = r#"  - { path: "cards[*].number", key: pci, acl: pci, bind_row: id, hints: [{ derive: last4, acl: support }] }"#;
    let process = company.process("payments", columns, Format::Json).await;
    let mut record = process
        .sealed_record(r#"{"id":1,"cards":[{"number":"4111111111111234"},{"number":"4111111111115678"}]}"#)
        .await;
    let seen = async |record: &sealflow::pipeline::Record| {
        let reading = process.read(record.clone(), "support").await;
        let shown: Value = serde_json::from_str(&text(reading.records[0].as_ref().unwrap())).unwrap();
        [0, 1].map(|n: usize| shown["cards"][n]["number#last4"].clone())
    };
    assert_eq!(seen(&record).await, [json!("1234"), json!("5678")]);
    let sealed = text(&record);
    let texts = sealed_texts(&sealed);
    record.value = Some(
        sealed
            .replace(&texts[1], "*")
            .replace(&texts[3], &texts[1])
            .replace('*', &texts[3])
            .into(),
    );
    assert_eq!(seen(&record).await, [Value::Null, Value::Null], "another list index");
    record.value = Some(sealed.replace(r#""id":1"#, r#""id":2"#).into());
    assert_eq!(seen(&record).await, [Value::Null, Value::Null], "another row");
}

#[tokio::test]
async fn a_clear_record_that_has_a_hint_already_is_a_dead_letter_and_never_passes() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    for value in [
        r#"{"card":{"number":"4111111111111234","number#last4":"9999"}}"#,
        r#"{"card":{"number#last4":"9999"}}"#,
        r#"{"card":{"number#last4":null}}"#,
        r#"{"card":{"number#hmac":{"a":1},"number":"4111111111111234"}}"#,
        r#"{"card":{"n\u0075mber\u0023last4":"9999"}}"#,
        r#"{"card":{"number":"1"},"card":{"number#last4":"9999"}}"#,
    ] {
        let (route, letter) = apply(&process.seal, value).await;
        assert_eq!(route, Route::DeadLetter, "{value}");
        assert_eq!(DeadLetter::from_json(letter.as_bytes()).unwrap().code, "hint-taken");
        assert!(!letter.contains("9999") && !letter.contains("4111"));
    }
    let (route, letter) = apply(&process.seal, r#"{"card.number#last4":"9999"}"#).await;
    assert_eq!(route, Route::DeadLetter);
    assert_eq!(DeadLetter::from_json(letter.as_bytes()).unwrap().code, "flattened-name");
    // Sealed already: its hints would be those of sealed texts.
    let (_, sealed) = apply(&process.seal, r#"{"card":{"number":"4111111111111234"}}"#).await;
    assert_eq!(apply(&process.seal, &sealed).await.0, Route::DeadLetter);
}

#[tokio::test]
async fn of_short_values_other_types_and_nulls_there_is_no_hint() {
    let company = Company::new().await;
    let columns = "  - { path: n, key: pci, acl: pci, hints: [{ derive: last4, acl: support }] }";
    let process = company.process("payments", columns, Format::Json).await;
    for (value, hints) in [
        (r#"{"n":"12345678"}"#, 1),
        (r#"{"n":-12345678}"#, 1),
        (r#"{"n":"1234567"}"#, 0),
        (r#"{"n":1234567}"#, 0),
        (r#"{"n":12345678.5}"#, 0),
        (r#"{"n":null}"#, 0),
        (r#"{"n":{"n":"12345678"}}"#, 0),
        (r#"{"n":["12345678"]}"#, 0),
        (r#"{"n":"12345678","n":"87654321"}"#, 2),
        (r#"{}"#, 0),
    ] {
        let (route, sealed) = apply(&process.seal, value).await;
        assert_eq!(
            (route, sealed.matches("#last4").count()),
            (Route::Target, hints),
            "{value}"
        );
        assert_eq!(apply(&process.open, &sealed).await, (Route::Target, value.to_owned()));
    }
    let columns = "  - { path: n, key: pci, acl: pci, hints: [{ derive: hmac, domain: customers, acl: fraud }] }";
    let process = company.process("nulls", columns, Format::Json).await;
    let (route, sealed) = apply(&process.seal, r#"{"n":null}"#).await;
    assert_eq!((route, sealed.contains("#hmac")), (Route::Target, false));
}

#[tokio::test]
async fn the_length_of_a_hint_tells_nothing_of_the_value() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    let mut lengths = Vec::new();
    for number in [
        "411111111111",
        "😀😀😀😀😀😀😀😀",
        "éééééééé",
        "\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000",
    ] {
        let (_, sealed) = apply(&process.seal, &format!(r#"{{"card":{{"number":"{number}"}}}}"#)).await;
        let texts = sealed_texts(&sealed);
        lengths.push((texts[1].len(), texts[2].len()));
    }
    assert!(lengths.iter().all(|both| *both == lengths[0]), "{lengths:?}");
}

#[tokio::test]
async fn keyed_hashes_of_one_domain_are_equal_across_datasets_and_spellings_and_of_no_other_domain() {
    let company = Company::new().await;
    company.publish_domain("others", 1, "utf8").await;
    let hint = |path: &str, domain: &str| {
        format!("  - {{ path: {path}, key: pci, acl: pci, hints: [{{ derive: hmac, domain: {domain}, acl: fraud }}] }}")
    };
    let payments = company.process("payments", COLUMNS, Format::Json).await;
    let tickets = company
        .process("tickets", &hint("pan", "customers"), Format::Json)
        .await;
    let others = company.process("others", &hint("pan", "others"), Format::Json).await;
    let in_payments = payments
        .hash_seen(r#"{"card":{"number":"4111111111111234"}}"#, "/card/number#hmac")
        .await;
    let in_tickets = tickets
        .hash_seen(r#"{"pan":"\u00341111111111112\u00334"}"#, "/pan#hmac")
        .await;
    let in_others = others.hash_seen(r#"{"pan":"4111111111111234"}"#, "/pan#hmac").await;
    let another = tickets.hash_seen(r#"{"pan":"4111111111111235"}"#, "/pan#hmac").await;
    assert_eq!(in_payments, in_tickets);
    assert_eq!(in_payments, company.hash("customers", b"\x064111111111111234").await);
    assert!(in_payments.len() == 64 && in_payments.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    assert_ne!(in_payments, in_others);
    assert_ne!(in_payments, another);
    // Another secret: its hashes are others. The value itself is not of the domain, and opens as before.
    company.publish_domain("customers", 2, "utf8").await;
    let tickets = company.process_again("tickets", Format::Json).await;
    let rotated = tickets.hash_seen(r#"{"pan":"4111111111111234"}"#, "/pan#hmac").await;
    assert_ne!(in_payments, rotated);
}

#[tokio::test]
async fn a_value_that_is_not_exactly_of_the_type_of_the_hints_domain_is_a_dead_letter() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    for value in ["4111111111111234", "true", "[\"4111111111111234\"]", r#""\ud800""#] {
        let (route, letter) = apply(&process.seal, &format!(r#"{{"card":{{"number":{value}}}}}"#)).await;
        assert_eq!(route, Route::DeadLetter, "{value}");
        assert_eq!(DeadLetter::from_json(letter.as_bytes()).unwrap().code, "cannot-coerce");
    }
}

#[tokio::test]
async fn opening_needs_no_right_on_the_keys_of_hints_and_takes_the_keys_header_off() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    let clear = record(r#"{"card":{"number":"4111111111111234"}}"#);
    let sealed = process.sealed_record(&text(&clear)).await;
    assert_eq!(sealed.headers.len(), 1);
    company.kms.set_unusable(HINT_ARN, true);
    let unwrapped = company.kms.unwrap_calls();
    assert_eq!(process.open_record(sealed).await, (Route::Target, clear));
    assert_eq!(company.kms.unwrap_calls(), unwrapped + 1, "the key of the value alone");
}

#[tokio::test]
async fn when_opening_a_hint_that_is_no_sealed_value_is_a_dead_letter_and_a_null_goes() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    let (_, sealed) = apply(&process.seal, r#"{"card":{"number":"4111111111111234"}}"#).await;
    let texts = sealed_texts(&sealed);
    for forged in [r#""1234""#, "1234", "{}", r#""sf1.AAAA""#] {
        let edited = sealed.replace(&format!("\"{}\"", texts[1]), forged);
        let (route, letter) = apply(&process.open, &edited).await;
        assert_eq!(route, Route::DeadLetter, "{forged}");
        assert_eq!(DeadLetter::from_json(letter.as_bytes()).unwrap().code, "not-sealed");
    }
    let edited = sealed.replace(&format!("\"{}\"", texts[1]), "null");
    let original = r#"{"card":{"number":"4111111111111234"}}"#;
    assert_eq!(
        apply(&process.open, &edited).await,
        (Route::Target, original.to_owned())
    );
}

#[tokio::test]
async fn a_record_never_gets_more_hints_than_a_reader_can_find() {
    let company = Company::new().await;
    let columns = r#"  - { path: "a[*].n", key: pci, acl: pci, hints: [{ derive: last4, acl: support }] }"#;
    let process = company.process("payments", columns, Format::Json).await;
    let seal = process.seal.with_limits(OutputLimits::FILES);
    for (values, route) in [(MAX_HITS / 2, Route::Target), (MAX_HITS / 2 + 1, Route::DeadLetter)] {
        let list = vec![r#"{"n":12345678}"#; values].join(",");
        let (sealed_route, sealed) = apply(&seal, &format!(r#"{{"a":[{list}]}}"#)).await;
        assert_eq!(sealed_route, route);
        if route == Route::Target {
            assert_eq!(sealed.matches("#last4").count(), values);
        } else {
            let letter = DeadLetter::from_json(sealed.as_bytes()).unwrap();
            assert_eq!(letter.code, "too-many-values");
        }
    }
}

#[tokio::test]
async fn what_a_record_becomes_is_counted_with_its_hints() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    let clear = r#"{"card":{"number":"4111111111111234"}}"#;
    let (_, sealed) = apply(&process.seal, clear).await;
    let becomes = sealed.len() + r#""4111111111111234""#.len();
    for (limit, route) in [(becomes, Route::Target), (becomes - 1, Route::DeadLetter)] {
        let limits = OutputLimits {
            record: ByteSize(limit as u64),
            ..OutputLimits::default()
        };
        let process = company.process_again("payments", Format::Json).await;
        assert_eq!(apply(&process.seal.with_limits(limits), clear).await.0, route);
    }
}

#[tokio::test]
async fn padding_of_hints_counts_toward_the_bound_of_one_record() {
    let company = Company::new().await;
    let columns =
        r#"  - { path: "a[*].n", key: pci, acl: pci, pad_to: 480, hints: [{ derive: last4, acl: support }] }"#;
    let process = company.process("payments", columns, Format::Json).await;
    let seal = process.seal.with_limits(OutputLimits::FILES);
    // 480 + 32 bytes each, of 16 MiB.
    for (values, route) in [(32_768, Route::Target), (32_769, Route::DeadLetter)] {
        let list = vec![r#"{"n":""}"#; values].join(",");
        assert_eq!(apply(&seal, &format!(r#"{{"a":[{list}]}}"#)).await.0, route, "{values}");
    }
}

#[tokio::test]
async fn hints_of_lines_and_of_registry_records_are_cut_too() {
    let company = Company::new().await;
    let lines = company.process("payments", COLUMNS, Format::Ndjson).await;
    let clear = "{\"card\":{\"number\":\"4111111111111234\"}}\r\n\n {\"note\":\"12345678\",\"a\":1}\n{}";
    let (_, sealed) = apply(&lines.seal, clear).await;
    assert_eq!(sealed.matches("#last4").count(), 2);
    assert_eq!(apply(&lines.open, &sealed).await, (Route::Target, clear.to_owned()));
    let registry = company.process_again("payments", Format::JsonSr).await;
    let clear = "\0\0\0\0\x07{\"note\":\"12345678\"}";
    let (route, sealed) = apply(&registry.seal, clear).await;
    assert_eq!((route, sealed.contains("note#last4")), (Route::Target, true));
    assert_eq!(apply(&registry.open, &sealed).await, (Route::Target, clear.to_owned()));
}

#[tokio::test]
async fn hints_that_stand_before_their_value_by_then_are_cut_with_one_comma_each() {
    let company = Company::new().await;
    let process = company.process("payments", COLUMNS, Format::Json).await;
    let mut record = process
        .sealed_record(r#"{"card":{"number":"4111111111111234"},"note":"12345678"}"#)
        .await;
    let value: Value = serde_json::from_str(&text(&record)).unwrap();
    record.value = Some(reversed(value).to_string().into());
    let (route, opened) = process.open_record(record).await;
    let expected = r#"{"note":"12345678","card":{"number":"4111111111111234"}}"#;
    assert_eq!((route, text(&opened).as_str()), (Route::Target, expected));
}

#[tokio::test]
async fn names_that_need_escapes_come_back() {
    let company = Company::new().await;
    let columns = r#"  - { path: '"a\"\\b é".",\"x\":"', key: pci, acl: pci, hints: [{ derive: last4, acl: support }, { derive: hmac, domain: customers, acl: fraud }] }"#;
    let process = company.process("payments", columns, Format::Json).await;
    let clear = r#"{"a\"\\b é":{",\"x\":":"4111111111111234","y":2}}"#;
    let sealed = process.sealed_record(clear).await;
    assert!(
        text(&sealed).contains(r#"",",\"x\":#last4":"sf1."#),
        "{}",
        text(&sealed)
    );
    let reading = process.read(sealed.clone(), "support").await;
    let shown: Value = serde_json::from_str(&text(reading.records[0].as_ref().unwrap())).unwrap();
    assert_eq!(shown["a\"\\b é"][",\"x\":#last4"], "1234");
    let (route, opened) = process.open_record(sealed).await;
    assert_eq!((route, text(&opened)), (Route::Target, clear.to_owned()));
}

#[tokio::test]
async fn hostile_records_leak_nothing_through_hints() {
    let (mut sealed, mut letters) = (0, 0);
    for case in corpus() {
        let company = Company::new().await;
        let process = company.process("payments", &case.columns, Format::Json).await;
        let outcome = process.seal_bytes(&case.record).await;
        let bytes = outcome.record.value.clone().unwrap();
        assert_eq!(outcome.route, case.route, "{}", case.file);
        assert!(case.may_stay || !HostileRecord::leaks(&bytes), "{}", case.file);
        sealed += usize::from(bytes.windows(6).any(|window| window == b"#last4"));
        letters += usize::from(outcome.route == Route::DeadLetter);
        if outcome.route == Route::Target {
            let (route, opened) = process.open_record(outcome.record).await;
            assert_eq!(
                (route, opened.value.as_deref()),
                (Route::Target, Some(&case.record[..])),
                "{}",
                case.file
            );
        }
    }
    assert!(
        sealed >= 20 && letters >= 30,
        "{sealed} with hints, {letters} dead letters"
    );
}

/// An object with cards of all kinds in it, and other members.
fn any_object() -> impl Strategy<Value = Map<String, Value>> {
    let scalar = prop_oneof![
        "[0-9]{6,20}".prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    let card = proptest::collection::btree_map("number|holder|a,|\\\\\"", scalar.clone(), 0..4);
    let card = card.prop_map(|members| Value::Object(members.into_iter().collect()));
    let members = prop_oneof![
        ("note|n|id".prop_map(String::from), scalar),
        Just("cards".to_owned()).prop_flat_map(move |name| (
            Just(name),
            proptest::collection::vec(card.clone(), 0..4).prop_map(Value::Array)
        )),
    ];
    proptest::collection::vec(members, 0..5).prop_map(|members| members.into_iter().collect())
}

/// The members of every object in the opposite order.
fn reversed(value: Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(members.into_iter().rev().map(|(k, v)| (k, reversed(v))).collect()),
        Value::Array(elements) => Value::Array(elements.into_iter().map(reversed).collect()),
        scalar => scalar,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_sealed_with_hints_opens_to_the_same_bytes_and_to_the_same_json_however_it_was_spelled_between(object in any_object()) {
        const COLUMNS: &str = r#"
  - { path: note, key: pci, acl: pci, hints: [{ derive: last4, acl: support }] }
  - { path: "cards[*].number", key: pci, acl: pci, hints: [{ derive: last4, acl: support }] }
  - { path: "cards[*].holder", key: pci, acl: pci, hints: [{ derive: last4, acl: pci }] }"#;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let company = Company::new().await;
            let process = company.process("payments", COLUMNS, Format::Json).await;
            let clear = serde_json::to_string(&object).unwrap();
            let sealed = process.sealed_record(&clear).await;
            let (route, opened) = process.open_record(sealed.clone()).await;
            assert_eq!((route, text(&opened)), (Route::Target, clear));
            let value: Value = serde_json::from_str(&text(&sealed)).unwrap();
            let spelled = [
                serde_json::to_string_pretty(&value).unwrap(),
                serde_json::to_string(&reversed(value.clone())).unwrap(),
                serde_json::to_string_pretty(&reversed(value.clone())).unwrap(),
            ];
            for text_between in spelled {
                let mut record = sealed.clone();
                record.value = Some(text_between.into());
                let (route, opened) = process.open_record(record).await;
                assert_eq!(route, Route::Target);
                let opened: Value = serde_json::from_str(&text(&opened)).unwrap();
                assert_eq!(opened, Value::Object(object.clone()));
            }
        });
    }
}
