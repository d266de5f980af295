//! `sealflow client`: what it refuses, and how it says so.

use crate::bench::{CANARY, another_key, answer_of, private_key, small_key};
use crate::common::Place;

/// Runs a command that must fail; nothing is written, and no value shown.
pub(crate) fn expect(place: &Place, args: &[&str], input: &str, code: i32, said: &str) {
    let before = place.files();
    let ran = place.run_with_input(args, input.as_bytes());
    assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {}", ran.err);
    assert!(ran.err.contains(said), "{args:?}: {}", ran.err);
    assert!(ran.err.lines().last().unwrap().starts_with("help: "), "{}", ran.err);
    assert!(!ran.err.contains(CANARY), "{}", ran.err);
    assert_eq!(place.files(), before);
}

#[test]
fn a_key_pair_is_made_once_and_its_file_is_for_its_owner_alone() {
    let place = Place::new();
    let public = place.ok(&["client", "keygen", "--bits", "2048"]);
    assert!(
        public.contains(r#""alg":"RSA-OAEP-256""#) && !public.contains(r#""d":"#),
        "{public}"
    );
    let metadata = std::fs::metadata(place.path("client.key")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
    assert_eq!(mode & 0o777, 0o600);
    let pem = place.read("client.key");
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    expect(&place, &["client", "keygen"], "", 74, "client.key");
    assert_eq!(place.read("client.key"), pem);
    expect(&place, &["client", "keygen", "--bits", "1024"], "", 64, "1024");
    let other = place.ok(&["client", "keygen", "-o", "other.key"]);
    assert_ne!(other, public);
}

#[test]
fn only_a_public_key_that_protects_is_sealed_to() {
    let place = Place::new();
    let (private, public) = another_key();
    place.write("public.jwk", &public);
    place.write("private.pem", private.to_pem().unwrap().expose());
    place.write("private.jwk", private_key());
    let small = small_key();
    place.write("small.jwk", &small);
    place.write("set.jwk", format!(r#"{{"keys":[{small},{public}]}}"#));
    place.write("empty.jwk", r#"{"keys":[]}"#);
    place.write("signing.jwk", public.replace(r#""use":"enc""#, r#""use":"sig""#));
    place.write("ec.jwk", r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#);
    let record = "{\"card\":\"canary-4111\"}\n";
    let seal = |key| {
        [
            "client",
            "seal",
            "--dataset",
            "payments",
            "--column",
            "card",
            "--key",
            key,
        ]
    };
    for (key, said) in [
        ("private.jwk", "this is a private key"),
        ("private.pem", "not a JWK"),
        ("small.jwk", "not an RSA key of 2048 to 4096 bits"),
        ("set.jwk", "not an RSA key of 2048 to 4096 bits"),
        ("empty.jwk", "not a JWK"),
        ("signing.jwk", "not for RSA-OAEP-256"),
        ("ec.jwk", "not an RSA key"),
    ] {
        expect(&place, &seal(key), record, 78, said);
    }
    expect(&place, &seal("missing.jwk"), record, 74, "missing.jwk");
    place.write("good-set.jwk", format!(r#"{{"keys":[{public},{small}]}}"#));
    for key in ["public.jwk", "good-set.jwk"] {
        let ran = place.run_with_input(&seal(key), record.as_bytes());
        assert!(
            ran.code == 0 && ran.out.contains("eyJ") && !ran.out.contains(CANARY),
            "{}",
            ran.err
        );
    }
}

#[test]
fn what_cannot_be_sealed_is_refused_whole_and_nothing_is_written() {
    let place = Place::new();
    place.write("public.jwk", another_key().1);
    let base = ["client", "seal", "--key", "public.jwk", "--dataset", "payments"];
    let seal = |input: &str, more: &[&str], code: i32, said: &str| {
        expect(
            &place,
            &[&base[..], &["-o", "out.ndjson"], more].concat(),
            input,
            code,
            said,
        );
    };
    let good = "{\"card\":\"canary-4111\"}\n";
    let card = ["--column", "card"];
    for (record, said) in [
        ("canary-4111\n", "record 2"),
        ("{\"card\":\"canary-4111\"\n", "record 2"),
        (
            "{\"card\":\"canary-4111\",\"session\":1}\n",
            "has a member for the session already",
        ),
        (
            "{\"card\":1,\"s\\u0065ssion\":null}\n",
            "has a member for the session already",
        ),
    ] {
        seal(&format!("{good}{record}"), &card, 65, said);
    }
    seal(
        "{\"card\":\"canary-4111\",\"s\":1}\n",
        &["--column", "card", "--session", "s"],
        65,
        "already",
    );
    for record in [good, "{\"card\":1,\"id\":1,\"id\":2}\n"] {
        seal(record, &["--column", "card", "--bind-row", "id"], 65, "--bind-row");
    }
    seal(
        "{\"card\":1,\"id\":1.5}\n",
        &["--column", "card", "--bind-row", "id"],
        65,
        "row id",
    );
    seal(good, &["--column", "card", "--column", "card.number"], 64, "--column");
    seal(good, &[], 64, "--column");
    let refused = place.run_with_input(&["client", "seal", "--key", "public.jwk"], good.as_bytes());
    assert_eq!(refused.code, 64);
    place.write("there.ndjson", "mine");
    expect(
        &place,
        &[&base[..], &card, &["-o", "there.ndjson"]].concat(),
        good,
        74,
        "is there already",
    );
    assert_eq!(place.read("there.ndjson"), "mine");
}

#[test]
fn a_record_without_a_column_that_it_must_have_stops_and_nothing_of_it_is_written() {
    let place = Place::new();
    place.write("public.jwk", another_key().1);
    let base = [
        "client",
        "seal",
        "--key",
        "public.jwk",
        "--dataset",
        "payments",
        "--column",
        "card",
        "--column",
        "cards[*].number",
    ];
    let good = "{\"card\":\"canary-4111\",\"cards\":[{\"number\":1},{}]}\n";
    for (record, missing) in [
        (r#"{"crad":"canary-4111","cards":[{"number":1}]}"#, "card"),
        (r#"{"Card":"canary-4111","cards":[{"number":1}]}"#, "card"),
        (r#"{"x":{"card":"canary-4111"},"cards":[{"number":1}]}"#, "card"),
        (r#"{"card":"canary-4111"}"#, "cards[*].number"),
        (r#"{"card":"canary-4111","cards":[]}"#, "cards[*].number"),
        (r#"{"card":"canary-4111","cards":null}"#, "cards[*].number"),
        (
            r#"{"card":"canary-4111","cards":[{"nummer":"canary-4111"}]}"#,
            "cards[*].number",
        ),
        ("{}", "card"),
    ] {
        let input = format!("{good}{record}\n");
        let said = format!("record 2 cannot be sealed: there is no {missing} in it");
        expect(&place, &base, &input, 65, &said);
        expect(&place, &[&base[..], &["-o", "out.ndjson"]].concat(), &input, 65, &said);
        expect(&place, &[&base[..], &["--per-value"]].concat(), &input, 65, &said);
    }
    // What may be absent passes as it is, unless nothing at all is found.
    let optional = |column| {
        let mut args = base[..6].to_vec();
        args.extend(["--optional-column", column]);
        args
    };
    let clear = "{\"other\":1}\n";
    let ran = place.run_with_input(
        &optional("card"),
        format!("{clear}{{\"card\":\"canary-4111\"}}\n").as_bytes(),
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.starts_with(clear) && !ran.out.contains(CANARY), "{}", ran.out);
    let file = [&optional("crad")[..], &["-o", "out.ndjson"]].concat();
    expect(&place, &file, good, 65, "none of 1 records has any of the columns");
    let ran = place.run_with_input(&optional("card"), b"");
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{}", ran.err);
}

#[test]
fn a_session_goes_where_the_policy_looks_for_it_or_nowhere() {
    let place = Place::new();
    place.write("public.jwk", another_key().1);
    let seal = |column, more: &[&'static str]| {
        let base = [
            "client",
            "seal",
            "--key",
            "public.jwk",
            "--dataset",
            "payments",
            "--column",
        ];
        [&base[..], &[column], more].concat()
    };
    let nested = ["--session", "meta.\"the session\""];
    for (input, before, after) in [
        (
            "{\"meta\":{\"a\":1},\"card\":1}\n",
            "{\"meta\":{\"the session\":\"eyJ",
            "\",\"a\":1},\"card\":\"eyJ",
        ),
        (
            "{\"card\":1,\"meta\" : { } }\n",
            "{\"card\":\"eyJ",
            "\",\"meta\" : {\"the session\":\"eyJ",
        ),
    ] {
        let ran = place.run_with_input(&seal("card", &nested), input.as_bytes());
        assert!(
            ran.code == 0 && ran.out.starts_with(before) && ran.out.contains(after),
            "{}{}",
            ran.out,
            ran.err
        );
        assert!(
            serde_json::from_str::<serde_json::Value>(&ran.out).is_ok(),
            "{}",
            ran.out
        );
    }
    let record = "{\"meta\":{\"card\":\"canary-4111\"}}\n";
    let ran = place.run_with_input(&seal("meta.card", &nested), record.as_bytes());
    assert!(
        ran.code == 0 && ran.out.starts_with("{\"meta\":{\"the session\":"),
        "{}{}",
        ran.out,
        ran.err
    );

    let list = "[{\"card\":\"canary-4111\"},{\"card\":1}]\n";
    expect(&place, &seal("[*].card", &[]), list, 65, "the record is not an object");
    let per_value = place.run_with_input(&seal("[*].card", &["--per-value"]), list.as_bytes());
    assert!(
        per_value.code == 0 && !per_value.out.contains(CANARY),
        "{}",
        per_value.err
    );
    assert_eq!(per_value.out.matches("\"card\":\"eyJ").count(), 2);
    for (input, said) in [
        ("{\"card\":\"canary-4111\"}\n", "there is not one meta in it"),
        ("{\"card\":\"canary-4111\",\"meta\":null}\n", "meta is not an object"),
        ("{\"card\":1,\"meta\":{},\"meta\":{}}\n", "there is not one meta in it"),
        (
            "{\"card\":1,\"meta\":{\"the session\":1}}\n",
            "has a member for the session already",
        ),
    ] {
        expect(&place, &seal("card", &nested), input, 65, said);
    }
    for session in ["[*].session", "$key", "a[*]"] {
        expect(
            &place,
            &seal("card", &["--session", session]),
            "{\"card\":1}\n",
            64,
            "--session",
        );
    }
    expect(
        &place,
        &seal("card", &["--session", "s", "--per-value"]),
        "",
        64,
        "--per-value",
    );
    let many = format!("{{\"cards\":[{}]}}\n", vec!["1"; 1_025].join(","));
    expect(
        &place,
        &seal("cards[*]", &["--per-value"]),
        &many,
        65,
        "more than 1024 values",
    );
}

#[test]
fn records_whose_columns_are_null_stay_byte_for_byte_and_so_does_all_around_a_value() {
    let place = Place::new();
    place.write("public.jwk", another_key().1);
    let args = [
        "client",
        "seal",
        "--key",
        "public.jwk",
        "--dataset",
        "payments",
        "--column",
        "card",
    ];
    let clear = " { \"card\" : null, \"x\" : 1.50 }\n\n{\"other\":\"\\u0041\",\"card\":null}\r\n";
    let ran = place.run_with_input(&args, clear.as_bytes());
    assert_eq!((ran.code, ran.out.as_str()), (0, clear), "{}", ran.err);
    let ran = place.run_with_input(&args, b"{ \"x\":1.50,\"card\" : \"canary-4111\" , \"y\": [ ] }\n");
    let (before, rest) = ran.out.split_once("\",").unwrap();
    assert!(before.starts_with("{\"session\":\"eyJ"), "{}", ran.out);
    let (around, after) = rest.split_once("\"eyJ").unwrap();
    assert_eq!(around, " \"x\":1.50,\"card\" : ");
    assert!(after.ends_with("\" , \"y\": [ ] }\n"), "{after}");
}

#[test]
fn answers_open_with_their_key_alone_and_every_other_byte_stays() {
    let place = Place::new();
    let public = place.ok(&["client", "keygen", "--bits", "2048"]);
    place.ok(&["client", "keygen", "--bits", "2048", "-o", "other.key"]);
    let sealed = |label: &str, json: &str| format!("\"{}\"", answer_of(&public, label, json));
    let number = sealed("a", "12345678901234567890123.10");
    let text = sealed("b[*]", "{\"n\":\"canary-4111\"}");
    let input = format!("{{ \"a\" : {number},\"b\":[1.50, {text}],\"c\":\"\\u0041\" }}\n\n{text}\n");
    place.write("answers.ndjson", &input);
    let dataset = ["--dataset", "payments"];
    let labelled = ["--dataset", "payments", "--label", "b[*]"];
    place.ok(&[
        &["client", "open", "answers.ndjson", "-o", "opened.ndjson"],
        &labelled[..],
    ]
    .concat());
    let expected = "{ \"a\" : 12345678901234567890123.10,\"b\":[1.50, {\"n\":\"canary-4111\"}],\"c\":\"\\u0041\" }\n\n{\"n\":\"canary-4111\"}\n";
    assert_eq!(place.read("opened.ndjson"), expected);
    let metadata = std::fs::metadata(place.path("opened.ndjson")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
    assert_eq!(mode & 0o777, 0o600);

    let open = ["client", "open", "-o", "out.ndjson", "--key"];
    let with = |key| [&open[..], &[key], &labelled[..]].concat();
    // Answers that somebody exchanged, or that are of another dataset.
    let mine = [&open[..], &["client.key"]].concat();
    let said = "record 3: the answer at the top of the document belongs to another dataset or label";
    expect(
        &place,
        &[&mine[..], &dataset[..]].concat(),
        &input.replace("\n\n", "\n1\n"),
        65,
        said,
    );
    let exchanged = format!("{{\"a\":{text},\"b\":[{number}]}}\n");
    let said = "record 1: the answer at a belongs to another dataset or label";
    expect(&place, &[&mine[..], &dataset[..]].concat(), &exchanged, 65, said);
    let elsewhere = [
        &mine[..],
        &["--dataset", "refunds"],
        &["--label", "a", "--label", "b[*]"],
    ]
    .concat();
    expect(&place, &elsewhere, &exchanged, 65, said);
    expect(&place, &mine, &input, 64, "--dataset");
    expect(&place, &with("other.key"), &input, 65, "opens with this key");
    expect(
        &place,
        &with("client.key"),
        &input.replace("\"eyJ", "\"eyK"),
        65,
        "opens with this key",
    );
    expect(
        &place,
        &with("client.key"),
        &format!("{text}\ncanary-4111\n"),
        65,
        "record 2 is not JSON",
    );
    expect(&place, &with("missing.key"), &input, 74, "missing.key");
    place.write("public.jwk", &public);
    place.write(
        "traditional.pem",
        place.read("client.key").replace("PRIVATE", "RSA PRIVATE"),
    );
    for key in ["public.jwk", "traditional.pem"] {
        expect(&place, &with(key), &input, 78, "not the PEM of a PKCS #8 private key");
    }
}
