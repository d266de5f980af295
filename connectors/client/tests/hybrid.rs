//! The hybrid flow between a client and a transform, with a key service in memory: what clients seal is sealed again and opens for
//! readers; whatever is wrong with it becomes a dead letter.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::jose::jwe::{ContentKey, JweHeader, KeyManagement};
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{ClientKeyService as _, DomainKeys, KeyServiceError, OpeningKeys, SealingKeys};
use sealflow::pipeline::{
    Clients, Format, Header, KeysPlacement, OpenTransform, Outcome, Position, Record, Route, SealTransform, Timestamp,
    Transform as _, TransformError, apply_all,
};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use sealflow_client::{RowId, RsaBits, RsaPublicJwk, Session};

#[path = "hybrid/macs.rs"]
mod macs;
#[path = "hybrid/pairs.rs"]
mod pairs;

const DATA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111";
const RSA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222";
const OLD_RSA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-3333-3333-333333333333";

struct Bench {
    kms: Arc<MemoryKms>,
    clock: Arc<ManualClock>,
    clients: Clients,
    seal: SealTransform,
    open: OpenTransform,
}

fn policy(columns: &str, client: &str) -> String {
    format!(
        "dataset: payments\nversion: 1\nkeys:\n  pii: {{ arn: \"{DATA_ARN}\" }}\nclient:\n  keys: {{ web: {{ arn: \"{RSA_ARN}\", previous: [\"{OLD_RSA_ARN}\"] }} }}\n{client}acls:\n  pii: {{}}\ncolumns:\n{columns}dead_letters: {{ key: pii, acl: pii }}\ntable: {{ key: pii, acl: pii }}\n"
    )
}

const CARD: &str = "  - { path: card, key: pii, acl: pii, flow: hybrid }\n";

fn bench(columns: &str, client: &str, format: Format) -> Bench {
    let kms = Arc::new(MemoryKms::new());
    for arn in [RSA_ARN, OLD_RSA_ARN] {
        kms.create_rsa_key(arn, RsaBits::Rsa2048).unwrap();
    }
    let policy = VerifiedPolicy::unsigned_for_development(policy(columns, client).as_bytes()).unwrap();
    let policy = Arc::new(policy);
    let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
    let catalogue = Arc::new(MemoryCatalogue::new());
    let clock = Arc::new(ManualClock::at(UnixMillis(1_700_000_000_000)));
    let age = Duration::from_secs(300);
    let sealer = DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
    };
    let opening = OpeningKeys::new(kms.clone(), catalogue, policies, clock.clone(), age, 1_000);
    let clients = clients(&kms, &clock);
    let seal = SealTransform::new(policy.clone(), format, KeysPlacement::Header, sealer.clone()).unwrap();
    Bench {
        open: OpenTransform::new(policy, format, KeysPlacement::Header, opening, sealer).unwrap(),
        seal: seal.with_clients(clients.clone()),
        kms,
        clock,
        clients,
    }
}

/// What opens and judges values, remembering nothing yet.
fn clients(kms: &Arc<MemoryKms>, clock: &Arc<ManualClock>) -> Clients {
    Clients::new(kms.clone(), clock.clone(), Duration::from_secs(300), 1_000)
}

impl Bench {
    async fn public_key(&self, arn: &str) -> RsaPublicJwk {
        RsaPublicJwk::from_spki_der(&self.kms.public_key(arn).await.unwrap()).unwrap()
    }

    async fn session(&self) -> Session {
        Session::begin(&self.public_key(RSA_ARN).await, "payments").unwrap()
    }

    async fn sealed(&self, records: Vec<Record>) -> Vec<Outcome> {
        apply_all(&self.seal, &records).await.unwrap()
    }

    /// The code of the one dead letter that becomes of `record`.
    async fn refusal(&self, record: Record) -> String {
        let outcomes = self.sealed(vec![record]).await;
        let [outcome] = outcomes.as_slice() else {
            panic!("one outcome")
        };
        assert_eq!(outcome.route, Route::DeadLetter);
        assert!(
            outcome
                .record
                .headers
                .iter()
                .all(|header| header.name == "sealflow-keys")
        );
        let letter: serde_json::Value = serde_json::from_slice(outcome.record.value.as_ref().unwrap()).unwrap();
        letter["code"].as_str().unwrap().to_owned()
    }

    /// The values of records, sealed and opened again.
    async fn round_trip(&self, records: Vec<Record>) -> Vec<String> {
        let outcomes = self.sealed(records).await;
        assert!(
            outcomes.iter().all(|outcome| outcome.route == Route::Target),
            "{outcomes:?}"
        );
        let records: Vec<Record> = outcomes.into_iter().map(|outcome| outcome.record).collect();
        let opened = apply_all(&self.open, &records).await.unwrap();
        opened.into_iter().map(|outcome| text(&outcome.record)).collect()
    }
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap()
}

fn record(value: &str, session: Option<&str>) -> Record {
    let header = |name: &str, value: &str| Header {
        name: name.to_owned().into(),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    };
    let mut headers = vec![header("trace", "t-1")];
    headers.extend(session.map(|session| header("sealflow-session", session)));
    Record {
        position: Position {
            topic: "payments".into(),
            partition: 0,
            offset: 7,
        },
        timestamp: Timestamp::Created(1_700_000_000_000),
        key: Some(Bytes::from_static(b"customer-9")),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: headers.into(),
    }
}

fn with_card(card: &str, session: &Session) -> Record {
    record(&format!(r#"{{"card":"{card}"}}"#), Some(session.token()))
}

#[tokio::test]
async fn what_clients_seal_is_sealed_again_and_every_other_byte_stays() {
    let columns = "  - { path: \"cards[*].number\", key: pii, acl: pii, flow: hybrid }\n  - { path: amount, key: pii, acl: pii, flow: hybrid }\n  - { path: user.email, key: pii, acl: pii, hints: [] }\n";
    let bench = bench(columns, "", Format::Json);
    let mut session = bench.session().await;
    let number = session.seal("cards[*].number", br#""4111111111111111""#).unwrap();
    let other = session.seal("cards[*].number", br#"{"pan":[5500,null]}"#).unwrap();
    let amount = session.seal("amount", b"12345678901234567890123.10").unwrap();
    let value = format!(
        r#" {{"user": {{"email":"ann@example.com"}}, "cards":[{{"number":"{number}", "x":1.50}},{{"number":null}},{{"number": "{other}"}}], "amount":"{amount}" }} "#
    );
    let outcomes = bench.sealed(vec![record(&value, Some(session.token()))]).await;
    let out = &outcomes[0].record;
    let sealed = text(out);
    assert_eq!(sealed.matches("sf1.").count(), 4);
    assert!(!sealed.contains("\"eyJ") && !sealed.contains("ann@"));
    let names: Vec<&str> = out.headers.iter().map(|header| &*header.name).collect();
    assert_eq!(names, ["trace", "sealflow-keys"]);
    assert_eq!(
        bench.round_trip(vec![record(&value, Some(session.token()))]).await,
        [
            r#" {"user": {"email":"ann@example.com"}, "cards":[{"number":"4111111111111111", "x":1.50},{"number":null},{"number": {"pan":[5500,null]}}], "amount":12345678901234567890123.10 } "#
        ]
    );
    assert_eq!(bench.kms.decrypt_rsa_calls(), 1);
}

#[tokio::test]
async fn a_session_costs_one_call_whatever_it_seals_and_each_session_its_own() {
    let bench = bench(CARD, "", Format::Json);
    let mut session = bench.session().await;
    let records: Vec<Record> = (0..10_000)
        .map(|n| with_card(&session.seal("card", n.to_string().as_bytes()).unwrap(), &session))
        .collect();
    for chunk in records.chunks(4_096) {
        assert!(
            bench
                .sealed(chunk.to_vec())
                .await
                .iter()
                .all(|outcome| outcome.route == Route::Target)
        );
    }
    assert_eq!(bench.kms.decrypt_rsa_calls(), 1);
    let key = bench.public_key(RSA_ARN).await;
    let mut records = Vec::new();
    for _ in 0..1_000 {
        let mut session = Session::begin(&key, "payments").unwrap();
        let card = session.seal("card", b"1").unwrap();
        records.extend([with_card(&card, &session), with_card(&card, &session)]);
    }
    bench.kms.set_delay(Duration::from_millis(1));
    for _ in 0..2 {
        assert!(
            bench
                .sealed(records.clone())
                .await
                .iter()
                .all(|outcome| outcome.route == Route::Target)
        );
        assert_eq!(bench.kms.decrypt_rsa_calls(), 1_001);
    }
    assert!(bench.kms.peak_in_flight() > 1, "sessions are unwrapped side by side");
    // A key that is destroyed stops opening after a while.
    bench.clock.advance(Duration::from_secs(301));
    bench.clients.tick().await;
    bench.sealed(records[..2].to_vec()).await;
    assert_eq!(bench.kms.decrypt_rsa_calls(), 1_002);
}

#[tokio::test]
async fn whatever_is_wrong_with_what_a_client_sealed_says_the_same() {
    let columns = format!("{CARD}  - {{ path: other, key: pii, acl: pii, flow: hybrid, label: second }}\n");
    let bench = bench(&columns, "", Format::Json);
    let mut session = bench.session().await;
    let mut stranger = Session::begin(&bench.public_key(RSA_ARN).await, "payments").unwrap();
    let mut elsewhere = Session::begin(&bench.public_key(RSA_ARN).await, "refunds").unwrap();
    let no_key = sealflow_client::PrivateKey::generate(RsaBits::Rsa2048)
        .unwrap()
        .public()
        .unwrap();
    let mut unknown = Session::begin(&no_key, "payments").unwrap();
    let card = session.seal("card", b"1").unwrap();
    assert_eq!(
        bench.sealed(vec![with_card(&card, &session)]).await[0].route,
        Route::Target
    );

    let token = session.token().to_owned();
    let flip = |text: &str, part: usize| {
        let mut parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        let first = if parts[part].starts_with('A') { "B" } else { "A" };
        parts[part].replace_range(0..1, first);
        parts.join(".")
    };
    let header = |json: &str| {
        let rest = card.split_once('.').unwrap().1;
        format!("{}.{rest}", sealflow::jose::base64url(json.as_bytes()))
    };
    let kid = sealflow::jose::jwe::session_id(&token);
    let good = format!(r#"{{"alg":"dir","enc":"A256GCM","kid":"{kid}","sf_dataset":"payments","sf_label":"card"}}"#);
    let mut values = vec![
        (
            "of another session",
            stranger.seal("card", b"1").unwrap(),
            token.clone(),
        ),
        (
            "of another column",
            session.seal("second", b"1").unwrap(),
            token.clone(),
        ),
        (
            "of another dataset",
            elsewhere.seal("card", b"1").unwrap(),
            elsewhere.token().to_owned(),
        ),
        (
            "to another key",
            unknown.seal("card", b"1").unwrap(),
            unknown.token().to_owned(),
        ),
        ("truncated", card[..card.len() - 4].to_owned(), token.clone()),
        ("four parts", card.rsplit_once('.').unwrap().0.to_owned(), token.clone()),
        ("six parts", format!("{card}.A"), token.clone()),
        ("no session", card.clone(), String::new()),
        ("truncated session", card.clone(), token[..token.len() - 4].to_owned()),
        ("not even text", card.clone(), "\u{fffd}".to_owned()),
    ];
    for part in [2, 3, 4] {
        values.push(("changed", flip(&card, part), token.clone()));
        values.push(("changed session", card.clone(), flip(&token, part)));
    }
    for (from, to) in [
        ("dir", "none"),
        ("dir", "RSA1_5"),
        ("dir", "RSA-OAEP"),
        ("dir", "RSA-OAEP-256"),
        ("A256GCM", "A128GCM"),
        ("}", r#","zip":"DEF"}"#),
        ("}", r#","crit":["x"],"x":1}"#),
        ("}", r#","kid":"x"}"#),
        ("}", &format!(r#","cty":"{}"}}"#, "x".repeat(3_000))),
        (r#","sf_dataset":"payments""#, ""),
        (r#","sf_label":"card""#, ""),
    ] {
        values.push(("another header", header(&good.replacen(from, to, 1)), token.clone()));
    }
    for (what, card, session) in values {
        let value = format!(r#"{{"card":"{card}"}}"#);
        let found = bench
            .refusal(record(&value, (!session.is_empty()).then_some(&session)))
            .await;
        assert_eq!(found, "cannot-open", "{what}: {value}");
    }
    // Beside each other in one batch, the good ones pass.
    let bad = with_card(&flip(&card, 3), &session);
    let outcomes = bench.sealed(vec![bad.clone(), with_card(&card, &session), bad]).await;
    let routes: Vec<Route> = outcomes.iter().map(|outcome| outcome.route).collect();
    assert_eq!(routes, [Route::DeadLetter, Route::Target, Route::DeadLetter]);
}

#[tokio::test]
async fn a_value_of_a_bound_column_opens_in_its_row_only() {
    let columns = "  - { path: \"cards[*]\", key: pii, acl: pii, flow: hybrid, bind_row: order }\n";
    let bench = bench(columns, "", Format::Json);
    let mut session = bench.session().await;
    let mut card = |row: &str, index| {
        let row = RowId::new(row, &[index]).unwrap();
        session.seal_in_row("cards[*]", b"1", &row).unwrap()
    };
    let (first, second) = (card("\"o-7\"", 0), card("\"o-7\"", 1));
    let token = session.token().to_owned();
    let with = |order: &str, first: &str, second: &str| {
        record(
            &format!(r#"{{"order":{order},"cards":["{first}","{second}"]}}"#),
            Some(&token),
        )
    };
    assert_eq!(
        bench.round_trip(vec![with("\"o-\\u0037\"", &first, &second)]).await,
        [r#"{"order":"o-\u0037","cards":[1,1]}"#]
    );
    let unbound = session.seal("cards[*]", b"1").unwrap();
    for wrong in [
        with("\"o-7\"", &second, &first),
        with("\"o-8\"", &first, &second),
        with("7", &first, &second),
        with("\"o-7\"", &first, &unbound),
    ] {
        assert_eq!(bench.refusal(wrong).await, "cannot-open");
    }
}

#[tokio::test]
async fn values_in_clear_are_refused_unless_the_policy_takes_them() {
    let columns = format!("{CARD}  - {{ path: amount, key: pii, acl: pii, flow: hybrid, client_sealed: optional }}\n");
    let bench = bench(&columns, "", Format::Json);
    let mut session = bench.session().await;
    for clear in [r#""4111111111111111""#, "4111", r#"{"a":1}"#, "\"\"", "true"] {
        let record = record(&format!(r#"{{"card":{clear}}}"#), Some(session.token()));
        assert_eq!(bench.refusal(record).await, "not-client-sealed", "{clear}");
    }
    let sealed = session.seal("amount", b"5").unwrap();
    assert_eq!(
        bench
            .round_trip(vec![
                record(r#"{"card":null,"amount":12.50}"#, None),
                record(&format!(r#"{{"amount":"{sealed}"}}"#), Some(session.token())),
            ])
            .await,
        [r#"{"card":null,"amount":12.50}"#, r#"{"amount":5}"#]
    );
    // What looks sealed must be.
    assert_eq!(
        bench.refusal(record(r#"{"amount":"eyJhbGciOiJub25lIn0"}"#, None)).await,
        "cannot-open"
    );
    let mut not_json = bench.session().await;
    let raw = {
        // As a library seals a text that nobody made JSON of.
        let header = JweHeader::direct("x", "payments", "card", None);
        let key = ContentKey::new(&[7; 32]);
        key.seal(&header.to_part(), &[], b"4111-1111").unwrap()
    };
    assert_eq!(bench.refusal(with_card(&raw, &not_json)).await, "cannot-open");
    assert!(not_json.seal("card", b"4111-1111").is_err());
}

#[tokio::test]
async fn values_with_a_key_of_their_own_open_too_and_no_more_than_a_rate() {
    let bench = bench(CARD, "", Format::Json);
    let key = bench.public_key(RSA_ARN).await;
    let wrapped = |plain: &str| {
        let mut header = JweHeader::wrapped(&key.thumbprint());
        (header.dataset, header.label) = (Some("payments".into()), Some("card".into()));
        assert_eq!(header.key_management, KeyManagement::RsaOaep256);
        let content = [9; 32];
        let encrypted = key.wrap(&content).unwrap();
        let jwe = ContentKey::new(&content).seal(&header.to_part(), &encrypted, plain.as_bytes());
        record(&format!(r#"{{"card":"{}"}}"#, jwe.unwrap()), None)
    };
    assert_eq!(
        bench.round_trip(vec![wrapped("1"), wrapped("2")]).await,
        [r#"{"card":1}"#, r#"{"card":2}"#]
    );
    assert_eq!(bench.kms.decrypt_rsa_calls(), 2);
    assert_eq!(bench.refusal(wrapped("4111-1111")).await, "not-json");
    // A batch closes behind a thousand of them, and waits when there are too many in a second.
    let many: Vec<Record> = (0..2_500).map(|n| wrapped(&n.to_string())).collect();
    let first = bench.seal.apply(&many).await.unwrap();
    assert_eq!(first.len(), 1_024);
    let second = bench.seal.apply(&many[1_024..]).await;
    let Err(TransformError::Retry { reason }) = second else {
        panic!("{second:?}")
    };
    assert!(reason.contains("RSA key itself"), "{reason}");
    bench.clock.advance(Duration::from_secs(60));
    let calls = bench.kms.decrypt_rsa_calls();
    assert_eq!(bench.seal.apply(&many[1_024..]).await.unwrap().len(), 1_024);
    assert!(
        bench.kms.decrypt_rsa_calls() - calls < 1_024,
        "what was unwrapped before is not asked for again"
    );
}

#[tokio::test]
async fn a_session_rides_in_a_field_that_goes_unless_it_is_to_stay() {
    for (keep, format) in [(false, Format::Json), (true, Format::Json), (false, Format::Ndjson)] {
        let client = format!("  session: meta.session\n  keep_session: {keep}\n");
        let bench = bench(CARD, &client, format);
        let (mut one, mut two) = (bench.session().await, bench.session().await);
        let line = |session: &mut Session, amount: u32| {
            let card = session.seal("card", b"1").unwrap();
            let token = session.token().to_owned();
            (
                format!(r#"{{"meta":{{"session":"{token}","a":{amount}}},"card":"{card}"}}"#),
                if keep {
                    format!(r#"{{"meta":{{"session":"{token}","a":{amount}}},"card":1}}"#)
                } else {
                    format!(r#"{{"meta":{{"a":{amount}}},"card":1}}"#)
                },
            )
        };
        let ((first, first_opened), (second, second_opened)) = (line(&mut one, 1), line(&mut two, 2));
        if format == Format::Ndjson {
            let value = format!("{first}\n{second}\n");
            let opened = bench.round_trip(vec![record(&value, None)]).await;
            assert_eq!(opened, [format!("{first_opened}\n{second_opened}\n")]);
        } else {
            let opened = bench
                .round_trip(vec![record(&first, None), record(&second, None)])
                .await;
            assert_eq!(opened, [first_opened, second_opened]);
        }
        assert_eq!(bench.kms.decrypt_rsa_calls(), 2);
        // The header is no place for it then.
        let card = one.seal("card", b"1").unwrap();
        assert_eq!(bench.refusal(with_card(&card, &one)).await, "cannot-open");
    }
}

#[tokio::test]
async fn keys_and_headers_are_columns_too() {
    let columns = "  - { path: $key, key: pii, acl: pii, flow: hybrid }\n  - { path: $header.secret, key: pii, acl: pii, flow: hybrid }\n  - { path: card, key: pii, acl: pii }\n";
    let bench = bench(columns, "", Format::Json);
    let mut session = bench.session().await;
    let mut sealed = record(r#"{"card":1}"#, Some(session.token()));
    sealed.key = Some(session.seal("$key", b"\"customer-9\"").unwrap().into());
    sealed.headers.push(Header {
        name: "secret".into(),
        value: Some(session.seal("$header.secret", b"77").unwrap().into()),
    });
    let outcomes = bench.sealed(vec![sealed]).await;
    assert_eq!(outcomes[0].route, Route::Target);
    let opened = bench.open.apply(&[outcomes[0].record.clone()]).await.unwrap();
    assert_eq!(opened[0].record.key.as_deref(), Some(&b"\"customer-9\""[..]));
    let secret = opened[0]
        .record
        .headers
        .iter()
        .find(|header| header.name == "secret")
        .unwrap();
    assert_eq!(secret.value.as_deref(), Some(&b"77"[..]));
    assert_eq!(bench.refusal(record(r#"{"card":1}"#, None)).await, "not-client-sealed");
}

#[tokio::test]
async fn columns_that_a_table_encrypts_are_opened_in_place() {
    let columns = "  - { path: card, key: pii, acl: pii, flow: hybrid, at: column }\n  - { path: amount, key: pii, acl: pii, flow: hybrid }\n";
    let Bench {
        kms,
        clients,
        seal,
        clock,
        open,
    } = bench(columns, "", Format::Json);
    let seal = seal.for_table();
    let bench = Bench {
        kms,
        clients,
        seal,
        clock,
        open,
    };
    let mut session = bench.session().await;
    let card = session.seal("card", br#"{"n":"4111"}"#).unwrap();
    let amount = session.seal("amount", b"5").unwrap();
    let value = format!(r#"{{"amount":"{amount}","card":"{card}","x":1}}"#);
    let outcomes = bench.sealed(vec![record(&value, Some(session.token()))]).await;
    let out = text(&outcomes[0].record);
    assert!(
        out.contains(r#""card":{"n":"4111"},"x":1"#) && out.contains("sf1."),
        "{out}"
    );
    assert_eq!(
        bench.refusal(record(r#"{"card":1}"#, Some(session.token()))).await,
        "not-client-sealed"
    );
}

#[tokio::test]
async fn an_outage_loses_nothing_a_destroyed_key_stops_and_a_previous_one_does_not() {
    let bench = bench(CARD, "", Format::Json);
    let mut session = bench.session().await;
    let mut old = Session::begin(&bench.public_key(OLD_RSA_ARN).await, "payments").unwrap();
    let (record, from_old) = {
        let (card, of_old) = (session.seal("card", b"1").unwrap(), old.seal("card", b"2").unwrap());
        (with_card(&card, &session), with_card(&of_old, &old))
    };
    let away = KeyServiceError::Unavailable { reason: "away".into() };
    bench.kms.fail_with(Some(away));
    let tried = bench.seal.apply(slice::from_ref(&record)).await;
    assert!(matches!(tried, Err(TransformError::Retry { .. })), "{tried:?}");
    bench.kms.fail_with(None);
    assert_eq!(
        bench.round_trip(vec![record.clone(), from_old.clone()]).await,
        [r#"{"card":1}"#, r#"{"card":2}"#]
    );
    // What was sealed to the previous key is refused once that key is gone; nothing else stops.
    bench.kms.set_unusable(OLD_RSA_ARN, true);
    bench.clock.advance(Duration::from_secs(301));
    assert_eq!(bench.refusal(from_old.clone()).await, "cannot-open");
    let fresh = clients(&bench.kms, &bench.clock);
    let Bench {
        kms,
        clients: _,
        seal,
        clock,
        open,
    } = bench;
    let bench = Bench {
        kms,
        seal: seal.with_clients(fresh.clone()),
        clients: fresh,
        clock,
        open,
    };
    assert_eq!(bench.refusal(from_old).await, "cannot-open");
    assert_eq!(bench.sealed(vec![record.clone()]).await[0].route, Route::Target);
    bench.kms.set_unusable(RSA_ARN, true);
    bench.clock.advance(Duration::from_secs(301));
    let stopped = bench.seal.apply(&[record]).await;
    assert!(matches!(stopped, Err(TransformError::Stop { .. })), "{stopped:?}");
}

#[tokio::test]
async fn forged_sessions_cost_no_more_than_a_few_calls() {
    let bench = bench(CARD, "", Format::Json);
    let mut session = bench.session().await;
    let good = with_card(&session.seal("card", b"1").unwrap(), &session);
    let key = bench.public_key(RSA_ARN).await;
    let forged = |n: u32| {
        let header = JweHeader::wrapped(&key.thumbprint());
        let wrapped = vec![1; 256];
        let token = ContentKey::new(&[1; 32])
            .seal(&header.to_part(), &wrapped, &n.to_be_bytes())
            .unwrap();
        let of = JweHeader::direct(&sealflow::jose::jwe::session_id(&token), "payments", "card", None);
        let card = ContentKey::new(&[1; 32]).seal(&of.to_part(), &[], b"1").unwrap();
        record(&format!(r#"{{"card":"{card}"}}"#), Some(&token))
    };
    let records: Vec<Record> = (0..1_000).map(forged).collect();
    let outcomes = bench.sealed(records.clone()).await;
    assert!(outcomes.iter().all(|outcome| outcome.route == Route::DeadLetter));
    assert!(
        bench.kms.decrypt_rsa_calls() <= 256,
        "{}",
        bench.kms.decrypt_rsa_calls()
    );
    bench.clock.advance(Duration::from_secs(20));
    assert_eq!(bench.sealed(vec![good]).await[0].route, Route::Target);
}

#[tokio::test]
async fn values_with_a_key_of_their_own_are_counted_whatever_they_hold_and_lines_stay_lines() {
    let columns = "  - { path: \"cards[*]\", key: pii, acl: pii, flow: hybrid }\n";
    let bench = bench(columns, "", Format::Ndjson);
    let key = bench.public_key(RSA_ARN).await;
    let mut header = JweHeader::wrapped(&key.thumbprint());
    (header.dataset, header.label) = (Some("payments".into()), Some("cards[*]".into()));
    let encrypted = key.wrap(&[9; 32]).unwrap();
    // `HEADER.KEY.NONCE..TAG`
    let empty = ContentKey::new(&[9; 32])
        .seal(&header.to_part(), &encrypted, b"")
        .unwrap();
    let many = vec![format!("\"{empty}\""); 1_025].join(",");
    let refused = bench.refusal(record(&format!("{{\"cards\":[{many}]}}\n"), None)).await;
    assert_eq!(refused, "too-many-values");
    assert_eq!(bench.kms.decrypt_rsa_calls(), 0);

    let mut session = bench.session().await;
    let card = session.seal("cards[*]", b"{\"a\":\r\n[1]}").unwrap();
    let line = format!("{{\"cards\":[\"{card}\"]}}\n");
    let opened = bench.round_trip(vec![record(&line, Some(session.token()))]).await;
    assert_eq!(opened, ["{\"cards\":[{\"a\":  [1]}]}\n"]);
}

#[tokio::test]
async fn nothing_of_a_session_is_shown() {
    let bench = bench(CARD, "", Format::Json);
    let session = bench.session().await;
    let shown = format!("{session:?} {:?}", bench.clients.keys);
    assert!(
        !shown.contains(session.token()) && shown.contains("payments"),
        "{shown}"
    );
}
