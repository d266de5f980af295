//! `sealflow client`: what it refuses, and how it says so.

use crate::bench::{CANARY, another_key, answer, private_key, small_key};
use crate::common::Place;

/// Runs a command that must fail; nothing is written, and no value shown.
fn expect(place: &Place, args: &[&str], input: &str, code: i32, said: &str) {
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
fn records_without_a_value_to_seal_stay_byte_for_byte_and_so_does_all_around_one() {
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
    let clear = " { \"card\" : null, \"x\" : 1.50 }\n\n{\"other\":\"\\u0041\"}\r\n";
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
    let sealed = |json: &str| format!("\"{}\"", answer(&public, json));
    let (number, text) = (sealed("12345678901234567890123.10"), sealed("{\"n\":\"canary-4111\"}"));
    let input = format!("{{ \"a\" : {number},\"b\":[1.50, {text}],\"c\":\"\\u0041\" }}\n\n{text}\n");
    place.write("answers.ndjson", &input);
    place.ok(&["client", "open", "answers.ndjson", "-o", "opened.ndjson"]);
    let expected = "{ \"a\" : 12345678901234567890123.10,\"b\":[1.50, {\"n\":\"canary-4111\"}],\"c\":\"\\u0041\" }\n\n{\"n\":\"canary-4111\"}\n";
    assert_eq!(place.read("opened.ndjson"), expected);
    let metadata = std::fs::metadata(place.path("opened.ndjson")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
    assert_eq!(mode & 0o777, 0o600);

    let open = ["client", "open", "-o", "out.ndjson", "--key"];
    let with = |key| [&open[..], &[key]].concat();
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
