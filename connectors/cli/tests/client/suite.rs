//! What every client must be able to do, whatever language it is written in.

use serde_json::{Value, json};

use crate::bench::{
    BOUND, Bench, CANARY, CLEAR, COLUMNS, PROVED, ROW, ROWS, another_key, answer, answer_of, expect_same, private_key,
    small_key,
};
use crate::clients::{Browser, Client, How, Ours, Sample};

/// JSON texts as answers hold them.
const ANSWERS: [&str; 6] = [
    r#""canary-4111 \"\\ \u0000 💳""#,
    "12345678901234567890123.10",
    r#"{"b":[1.50,null],"a":{}}"#,
    "[]",
    "true",
    "null",
];

/// Its tests for one client, which is `None` where it cannot be had.
macro_rules! suite {
    ($name:ident, $client:expr, $($test:ident),*) => {
        mod $name {
            use super::*;

            $(
                #[test]
                fn $test() {
                    if let Some(mut client) = $client(concat!(stringify!($name), "::", stringify!($test))) {
                        super::$test(&mut client);
                    }
                }
            )*
        }
    };
}

suite!(
    ours,
    Ours::new,
    what_a_session_seals_comes_back_as_it_was,
    values_with_keys_of_their_own_come_back_as_they_were,
    rows_keep_their_values,
    what_is_sealed_for_another_place_does_not_open,
    a_value_says_who_sealed_it_and_is_taken_once,
    answers_open_there_and_here,
    an_answer_of_another_column_is_refused
);
suite!(
    python,
    Sample::python,
    what_a_session_seals_comes_back_as_it_was,
    values_with_keys_of_their_own_come_back_as_they_were,
    rows_keep_their_values,
    what_is_sealed_for_another_place_does_not_open,
    a_value_says_who_sealed_it_and_is_taken_once,
    answers_open_there_and_here,
    an_answer_of_another_column_is_refused,
    our_key_file_serves_a_sample,
    a_sample_seals_nothing_that_it_does_not_understand
);
suite!(
    node,
    Sample::node,
    what_a_session_seals_comes_back_as_it_was,
    values_with_keys_of_their_own_come_back_as_they_were,
    rows_keep_their_values,
    what_is_sealed_for_another_place_does_not_open,
    a_value_says_who_sealed_it_and_is_taken_once,
    answers_open_there_and_here,
    an_answer_of_another_column_is_refused,
    our_key_file_serves_a_sample,
    a_sample_seals_nothing_that_it_does_not_understand
);
suite!(
    browser,
    Browser::new,
    what_a_session_seals_comes_back_as_it_was,
    values_with_keys_of_their_own_come_back_as_they_were,
    rows_keep_their_values,
    what_is_sealed_for_another_place_does_not_open,
    a_value_says_who_sealed_it_and_is_taken_once,
    answers_open_there_and_here,
    an_answer_of_another_column_is_refused,
    a_page_neither_shows_a_private_key_nor_seals_to_one
);

impl Bench {
    /// For the current key, in a session.
    fn how(&self) -> How<'_> {
        How {
            dataset: "payments",
            key: &self.jwks,
            fields: &COLUMNS,
            row: None,
            in_session: true,
            mac: None,
        }
    }
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

/// Every value of these columns is a JWE, or null as it was.
fn expect_sealed(sealed: &str, clear: &str, alg: &str) {
    assert!(!sealed.contains(CANARY));
    assert_eq!(sealed.lines().count(), clear.lines().count());
    let mut seen = Vec::new();
    for (sealed, clear) in sealed.lines().map(parsed).zip(clear.lines().map(parsed)) {
        for column in COLUMNS {
            let Some(jwe) = sealed[column].as_str() else {
                assert!(sealed[column].is_null() && clear[column].is_null(), "{column}");
                continue;
            };
            let parts: Vec<&str> = jwe.split('.').collect();
            assert_eq!((parts.len(), parts[1].is_empty()), (5, alg == "dir"));
            assert!(!seen.contains(&parts[2].to_owned()), "a nonce came twice");
            seen.push(parts[2].to_owned());
        }
        assert_eq!(sealed.get("session").is_some(), alg == "dir");
        assert_eq!(sealed["order"], clear["order"]);
    }
    assert!(seen.len() > 5);
}

fn what_a_session_seals_comes_back_as_it_was(client: &mut dyn Client) {
    let bench = Bench::new();
    let sealed = client.seal(bench.how(), CLEAR);
    expect_sealed(&sealed, CLEAR, "dir");
    expect_same(&bench.through(&sealed), CLEAR);
    bench.expect_no_canary(&["opened.ndjson"]);
}

fn values_with_keys_of_their_own_come_back_as_they_were(client: &mut dyn Client) {
    let bench = Bench::new();
    let how = How {
        in_session: false,
        ..bench.how()
    };
    let sealed = client.seal(how, CLEAR);
    expect_sealed(&sealed, CLEAR, "RSA-OAEP-256");
    expect_same(&bench.through(&sealed), CLEAR);
    bench.expect_no_canary(&["opened.ndjson"]);
}

fn rows_keep_their_values(client: &mut dyn Client) {
    let bench = Bench::new();
    let bound = How {
        fields: &[BOUND],
        row: Some(ROW),
        ..bench.how()
    };
    let sealed = client.seal(bound, ROWS);
    assert!(!sealed.contains(CANARY));
    expect_same(&bench.through(&sealed), ROWS);
    // In another row of the same session, in another place of the list, and without a row at all.
    let mut lines: Vec<Value> = sealed.lines().map(parsed).collect();
    let mut swapped = lines[0].clone();
    let (first, third) = (swapped["items"][0].take(), swapped["items"][2].take());
    swapped["items"][0] = third;
    swapped["items"][2] = first;
    lines[1]["order"] = 8.into();
    lines[2]["order"] = "true".into();
    let unbound = client.seal(How { row: None, ..bound }, ROWS);
    let all = format!("{swapped}\n{}\n{}\n{unbound}", lines[1], lines[2]);
    assert_eq!(bench.refused(&all), (vec!["cannot-open".to_owned(); 6], 0));
    bench.expect_no_canary(&["opened.ndjson"]);
}

fn what_is_sealed_for_another_place_does_not_open(client: &mut dyn Client) {
    let bench = Bench::new();
    let card = "{\"card\":\"canary-4111\"}\n";
    let how = How {
        fields: &["card"],
        ..bench.how()
    };
    let set = parsed(&bench.jwks);
    let (current, previous) = (set["keys"][0].to_string(), set["keys"][1].to_string());
    let mut good = client.seal(how, card);
    for key in [&current, &previous] {
        good += &client.seal(How { key, ..how }, card);
    }
    assert_eq!(bench.refused(&good), (vec![], 3));

    let (_, stranger) = another_key();
    let elsewhere = How {
        dataset: "refunds",
        ..how
    };
    let mut bad = client.seal(elsewhere, card) + &client.seal(How { key: &stranger, ..how }, card);
    let other = How {
        fields: &["other"],
        ..how
    };
    bad += &client
        .seal(other, "{\"other\":\"canary-4111\"}\n")
        .replace("\"other\"", "\"card\"");
    // Values and sessions that were changed, of another session, or without one.
    let (one, another) = (
        parsed(good.lines().next().unwrap()),
        parsed(good.lines().nth(1).unwrap()),
    );
    for member in ["card", "session"] {
        for part in 0..5 {
            let mut parts: Vec<String> = one[member].as_str().unwrap().split('.').map(str::to_owned).collect();
            let is_a = parts[part].starts_with('A');
            match parts[part].is_empty() {
                true => parts[part].push_str("AAAA"),
                false => parts[part].replace_range(0..1, if is_a { "B" } else { "A" }),
            }
            let mut changed = one.clone();
            changed[member] = parts.join(".").into();
            bad += &format!("{changed}\n");
        }
    }
    for session in [another["session"].clone(), Value::Null] {
        let mut changed = one.clone();
        changed["session"] = session;
        bad += &format!("{changed}\n");
    }
    let (codes, passed) = bench.refused(&bad);
    assert_eq!((codes.len(), passed), (15, 0), "{codes:?}");
    for (n, code) in codes.iter().enumerate() {
        // What does not begin as a JWE is a value in clear: the first part of a value that was changed.
        let expected = if n == 3 { "not-client-sealed" } else { "cannot-open" };
        assert_eq!(code, expected, "{n}");
    }
    bench.expect_no_canary(&[]);
}

fn a_value_says_who_sealed_it_and_is_taken_once(client: &mut dyn Client) {
    let bench = Bench::new();
    let clear = "{\"vote\":\"canary-4111\"}\n{\"vote\":2.50}\n";
    let mac = bench.mac("web-7");
    let proved = How {
        fields: &[PROVED],
        mac: Some(&mac),
        ..bench.how()
    };
    let sealed = client.seal(proved, clear);
    assert!(!sealed.contains(CANARY));
    for line in sealed.lines().map(parsed) {
        assert_eq!(line[PROVED].as_str().unwrap().split('.').count(), 3, "a JWS");
    }
    expect_same(&bench.through(&sealed), clear);
    // Sent again within a file; by somebody else in its name; by nobody.
    let first = sealed.lines().next().unwrap();
    let other = bench.mac("web-8").replace("web-8", "web-7");
    let forged = client.seal(
        How {
            mac: Some(&other),
            ..proved
        },
        clear,
    );
    let unproved = client.seal(How { mac: None, ..proved }, clear);
    let (codes, passed) = bench.refused(&format!("{sealed}{first}\n{forged}{unproved}"));
    let expected = [&["replayed"][..], &["cannot-open"; 4]].concat();
    assert_eq!((codes, passed), (expected.into_iter().map(str::to_owned).collect(), 2));
    let revoked = bench.run(&["keys", "client", "gone", "--dataset", "payments", "--out", "gone.jwk"]);
    assert_eq!(revoked.code, 78, "{}", revoked.err);
    bench.expect_no_canary(&["opened.ndjson"]);
}

fn answers_open_there_and_here(client: &mut dyn Client) {
    let key = client.make_key();
    for json in ANSWERS {
        assert_eq!(client.open(&answer(&key, json)).as_deref(), Some(json));
    }
    let (mine, theirs) = (answer(&key, ANSWERS[0]), answer(&another_key().1, ANSWERS[0]));
    assert_eq!(client.open(&theirs), None);
    for part in 0..5 {
        let mut parts: Vec<&str> = mine.split('.').collect();
        let changed = parts[part].replacen(|first| first != 'A', "A", 1);
        parts[part] = &changed;
        assert_eq!(client.open(&parts.join(".")), None, "{part}");
    }

    let place = crate::common::Place::new();
    let ours = place.ok(&["client", "keygen"]);
    for json in ANSWERS.into_iter().filter(|json| !json.starts_with("123")) {
        let sealed = client.seal_value(&ours, json);
        let open = ["client", "open", "--dataset", "payments"];
        let ran = place.run_with_input(&open, format!("{{\"card\":\"{sealed}\"}}\n").as_bytes());
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert_eq!(parsed(&ran.out)["card"], parsed(json));
    }
}

fn an_answer_of_another_column_is_refused(client: &mut dyn Client) {
    let key = client.make_key();
    assert_eq!(client.open(&answer_of(&key, "card", "1")).as_deref(), Some("1"));
    assert_eq!(client.open(&answer_of(&key, "amount", "1")), None);
}

fn our_key_file_serves_a_sample(sample: &mut Sample) {
    let place = crate::common::Place::new();
    let public = place.ok(&["client", "keygen"]);
    sample.write("mine.pem", &place.read("client.key"));
    assert_eq!(sample.open(&answer(&public, ANSWERS[0])).as_deref(), Some(ANSWERS[0]));
}

fn a_sample_seals_nothing_that_it_does_not_understand(sample: &mut Sample) {
    let (_, public) = another_key();
    sample.write("private.jwk", &private_key());
    sample.write("small.jwk", &small_key());
    sample.write("public.jwk", &public);
    let args = |key| ["--dataset", "payments", "--key", key, "--field"];
    for (key, field, input) in [
        ("private.jwk", "card", r#"{"card":"canary-4111"}"#),
        ("small.jwk", "card", r#"{"card":"canary-4111"}"#),
        ("public.jwk", r#""odd name""#, r#"{"odd name":"canary-4111"}"#),
        ("public.jwk", "card.number", r#"{"card":"canary-4111"}"#),
        ("public.jwk", "card.number", r#"{"card":4111.10}"#),
        ("public.jwk", "card[*]", r#"{"card":{"a":"canary-4111"}}"#),
        ("public.jwk", "card", r#"{"card":"canary-4111","session":1}"#),
        ("public.jwk", "card", r#"{"card":"canary-4111""#),
        ("public.jwk", "card", r#"{"card":canary-4111}"#),
    ] {
        let said = sample.refusal(&[&args(key)[..], &[field]].concat(), input);
        assert!(!said.is_empty() && !said.contains(CANARY), "{field}: {said}");
    }
    let said = sample.refusal(&[&args("private.jwk")[..], &["card"]].concat(), "{\"card\":1}");
    assert!(said.contains("this is a private key"), "{said}");
    assert!(sample.refusal(&args("public.jwk")[..4], "").contains("field"));
}

fn a_page_neither_shows_a_private_key_nor_seals_to_one(browser: &mut Browser) {
    let key = browser.make_key();
    assert_eq!(parsed(&key)["kty"], "RSA");
    assert!(parsed(&key).get("d").is_none());
    assert_eq!(browser.call("stealKey", &Value::Null), Ok(Value::Array(Vec::new())));
    let to = |key: &str| json!({ "key": key, "dataset": "payments", "label": "card", "value": 1 });
    let refused = browser.call("sealOne", &to(&private_key())).unwrap_err();
    assert!(refused.contains("this is a private key"), "{refused}");
    let refused = browser.call("sealOne", &to(&small_key())).unwrap_err();
    assert!(refused.contains("less than 2048 bits"), "{refused}");
}
