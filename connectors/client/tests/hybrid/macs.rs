//! Which client sealed a value, and values that count once.

use sealflow::audit::testing::MemoryAudit;
use sealflow::audit::{Proof, Verdict};
use sealflow::flow::hybrid::taken::TakenHere;
use sealflow::flow::hybrid::{client_secret, key_message};
use sealflow::jose::base64url;
use sealflow::jose::mac::{MacHeader, MacKey};
use sealflow::policy::ClientSealed;
use sealflow_client::ClientMac;

use super::*;

const MAC_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/44444444-4444-4444-4444-444444444444";
const OLD_MAC_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/55555555-5555-5555-5555-555555555555";
/// What the clock of a bench shows, in seconds.
const NOW: u64 = 1_700_000_000;

/// A bench whose clients have HMAC keys; `rest` is more of `client.mac`.
fn bench_with_macs(column: &str, rest: &str) -> (Bench, Arc<MemoryAudit>) {
    let columns = format!("  - {{ path: card, key: pii, acl: pii, flow: hybrid, {column} }}\n");
    bench_of(&columns, rest)
}

fn bench_of(columns: &str, rest: &str) -> (Bench, Arc<MemoryAudit>) {
    let client = format!("  mac: {{ arn: \"{MAC_ARN}\", previous: [\"{OLD_MAC_ARN}\"]{rest} }}\n");
    let Bench {
        kms,
        clients,
        seal,
        clock,
        open,
    } = bench(columns, &client, Format::Json);
    kms.create_hmac_key(MAC_ARN).unwrap();
    kms.create_hmac_key(OLD_MAC_ARN).unwrap();
    let audit = Arc::new(MemoryAudit::default());
    let clients = clients
        .with_taken(Arc::new(TakenHere::default()))
        .with_audit(audit.clone());
    let seal = seal.with_clients(clients.clone());
    let bench = Bench {
        kms,
        clients,
        seal,
        clock,
        open,
    };
    (bench, audit)
}

/// A session whose key the test has: to seal what no client of ours would.
struct OpenSession {
    token: String,
    key: ContentKey,
}

impl OpenSession {
    /// A value as that client seals it, without the proof; of nobody for the empty name.
    fn seal(&self, client: &str, label: &str, json: &[u8]) -> String {
        let id = sealflow::jose::jwe::session_id(&self.token);
        let mut header = JweHeader::direct(&id, "payments", label, None);
        header.client = Some(client.to_owned()).filter(|client| !client.is_empty());
        self.key.seal(&header.to_part(), &[], json).unwrap()
    }

    fn with_card(&self, card: &str) -> Record {
        record(&format!(r#"{{"card":"{card}"}}"#), Some(&self.token))
    }
}

impl Bench {
    /// A session whose key the test has, too.
    async fn open_session(&self) -> OpenSession {
        let secret = [9; 32];
        let to = self.public_key(RSA_ARN).await;
        let header = JweHeader::wrapped(&to.thumbprint());
        let wrapping = [8; 32];
        let jwk = format!(r#"{{"kty":"oct","k":"{}"}}"#, base64url(&secret));
        let wrapped = to.wrap(&wrapping).unwrap();
        let token = ContentKey::new(&wrapping)
            .seal(&header.to_part(), &wrapped, jwk.as_bytes())
            .unwrap();
        OpenSession {
            token,
            key: ContentKey::new(&secret),
        }
    }

    /// The HMAC key of a client, of the current KMS key or of the one before.
    async fn secret(&self, arn: &str, client: &str) -> [u8; 32] {
        self.kms.mac(arn, &key_message("payments", client)).await.unwrap()
    }

    async fn mac(&self, client: &str) -> Arc<ClientMac> {
        let k = base64url(&self.secret(MAC_ARN, client).await);
        let jwk = format!(r#"{{"kty":"oct","alg":"HS256","kid":"{client}","k":"{k}"}}"#);
        Arc::new(ClientMac::from_jwk(jwk.as_bytes()).unwrap())
    }
}

/// The same record, read elsewhere.
fn at(mut record: Record, partition: i32, offset: i64) -> Record {
    (record.position.partition, record.position.offset) = (partition, offset);
    record
}

#[tokio::test]
async fn a_value_opens_only_with_a_mac_of_the_client_that_it_names() {
    let (bench, audit) = bench_with_macs("client_sealed: authenticated", ", revoked: [gone]");
    let session = bench.open_session().await;
    let jwe = session.seal("web-7", "card", br#""4111""#);
    let of_web_8 = session.seal("web-8", "card", br#""4111""#);
    let other_place = session.seal("web-7", "iban", br#""4111""#);
    let signed = |text: &str| session.with_card(text);
    let header = |client: &str| MacHeader::new(client);
    let web = MacKey::new(&bench.secret(MAC_ARN, "web-7").await);
    let old = MacKey::new(&bench.secret(OLD_MAC_ARN, "web-8").await);
    for good in [web.sign(&header("web-7"), &jwe), old.sign(&header("web-8"), &of_web_8)] {
        assert_eq!(bench.round_trip(vec![signed(&good)]).await, [r#"{"card":"4111"}"#]);
        // Without a name of its own it may come again.
        assert_eq!(
            bench.round_trip(vec![at(signed(&good), 1, 1)]).await,
            [r#"{"card":"4111"}"#]
        );
    }
    let gone = MacKey::new(&bench.secret(MAC_ARN, "gone").await);
    let elsewhere = bench.kms.mac(MAC_ARN, &key_message("orders", "web-7")).await.unwrap();
    let good = web.sign(&header("web-7"), &jwe);
    let (unsigned, mac) = good.rsplit_once('.').unwrap();
    let none = base64url(br#"{"alg":"none","cty":"JWE","kid":"web-7"}"#);
    let payload = good.split('.').nth(1).unwrap();
    let bad = [
        ("no MAC", jwe.clone()),
        ("the key of another client", web.sign(&header("web-8"), &jwe)),
        ("a client that is revoked", gone.sign(&header("gone"), &jwe)),
        (
            "a key of another dataset",
            MacKey::new(&elsewhere).sign(&header("web-7"), &jwe),
        ),
        // What another client sealed, with a proof of one's own around it.
        ("sealed by another client", web.sign(&header("web-7"), &of_web_8)),
        (
            "sealed by nobody",
            web.sign(&header("web-7"), &session.seal("", "card", b"1")),
        ),
        ("another label", web.sign(&header("web-7"), &other_place)),
        ("no JWE", web.sign(&header("web-7"), "4111")),
        ("a JWS in a JWS", web.sign(&header("web-7"), &good)),
        ("another MAC", format!("{unsigned}.{}", base64url(&[0; 32]))),
        ("no signature", format!("{unsigned}.")),
        ("alg none", format!("{none}.{payload}.{mac}")),
        ("alg none, no signature", format!("{none}.{payload}.")),
        ("truncated", good[..good.len() - 1].to_owned()),
    ];
    for (what, text) in &bad {
        assert_eq!(bench.refusal(signed(text)).await, "cannot-open", "{what}");
    }
    assert_eq!(
        bench.refusal(record(r#"{"card":"4111"}"#, None)).await,
        "not-client-sealed"
    );
    let events = audit.events();
    assert_eq!(events.len(), bad.len() + 1);
    let in_clear = events.last().unwrap();
    assert_eq!(
        (in_clear.rule.as_str(), in_clear.label.as_deref()),
        ("client.not-client-sealed", Some("?"))
    );
    for (event, (what, _)) in events.iter().zip(&bad) {
        // Whoever was not proved is not named.
        let proved = [
            "sealed by another client",
            "sealed by nobody",
            "another label",
            "no JWE",
            "a JWS in a JWS",
        ]
        .contains(what);
        assert_eq!(event.principal.as_deref(), proved.then_some("client:web-7"), "{what}");
        assert_eq!(event.proof, proved.then_some(Proof::ClientMac), "{what}");
        assert_eq!(
            (event.decision, event.rule.as_str(), event.count),
            (Verdict::Refused, "client.cannot-open", 1)
        );
        assert_eq!(
            (event.dataset.as_deref(), event.label.as_deref()),
            (Some("payments"), Some("card"))
        );
        let place = event.place.as_ref().unwrap();
        assert_eq!(
            (place.source.as_str(), place.first, place.last),
            ("payments", Some(7), Some(7))
        );
    }
}

#[tokio::test]
async fn a_clients_key_is_asked_for_once_and_invented_names_cost_no_more_than_their_share() {
    let (bench, _) = bench_with_macs("client_sealed: authenticated", "");
    let web = bench.mac("web-7").await;
    let mut session = bench.session().await.with_mac(web);
    let card = session.seal("card", b"1").unwrap();
    let before = bench.kms.mac_calls();
    let sealed = |count: usize| vec![with_card(&card, &session); count];
    for records in [sealed(500), sealed(500)] {
        assert!(
            bench
                .sealed(records)
                .await
                .iter()
                .all(|outcome| outcome.route == Route::Target)
        );
    }
    // Of the current KMS key: the one before it is asked only where that one does not verify.
    assert_eq!(bench.kms.mac_calls() - before, 1);
    // A thousand invented clients: some are asked for, none opens, and the one that is known still does.
    let forged: Vec<Record> = sealed(1_000)
        .into_iter()
        .enumerate()
        .map(|(n, mut record)| {
            let text = MacKey::new(&[1; 32]).sign(&MacHeader::new(&format!("bot-{n}")), "a.b.c.d.e");
            record.value = Some(format!(r#"{{"card":"{text}"}}"#).into());
            record
        })
        .collect();
    let outcomes = bench.sealed(forged).await;
    assert!(outcomes.iter().all(|outcome| outcome.route == Route::DeadLetter));
    let asked = bench.kms.mac_calls() - before - 1;
    assert!((1..=300).contains(&asked), "{asked}");

    assert!(
        bench
            .sealed(sealed(3))
            .await
            .iter()
            .all(|outcome| outcome.route == Route::Target)
    );
    // Values that somebody else forged in the name of a client harm nobody, and cost next to nothing.
    let before = bench.kms.mac_calls();
    let forged = MacKey::new(&[1; 32]).sign(&MacHeader::new("web-7"), "a.b.c.d.e");
    for _ in 0..600 {
        assert_eq!(bench.refusal(with_card(&forged, &session)).await, "cannot-open");
    }
    assert!(
        bench
            .sealed(sealed(3))
            .await
            .iter()
            .all(|outcome| outcome.route == Route::Target)
    );
    assert!(
        bench.kms.mac_calls() - before <= 2,
        "{}",
        bench.kms.mac_calls() - before
    );
    // A previous HMAC key that is gone stops nothing; the current one does, once the keys are past their age.
    bench.kms.set_unusable(OLD_MAC_ARN, true);
    bench.clock.advance(Duration::from_secs(301));
    bench.clients.tick().await;
    let record = sealed(1);
    assert_eq!(bench.sealed(record.clone()).await[0].route, Route::Target);
    bench.kms.set_unusable(MAC_ARN, true);
    bench.clock.advance(Duration::from_secs(301));
    let stopped = bench.seal.apply(&record).await;
    assert!(matches!(stopped, Err(TransformError::Stop { .. })), "{stopped:?}");
}

#[tokio::test]
async fn any_number_of_new_clients_is_believed_at_once_also_after_a_rotation() {
    for arn in [MAC_ARN, OLD_MAC_ARN] {
        let (bench, _) = bench_with_macs("client_sealed: authenticated", "");
        let session = bench.open_session().await;
        let mut records = Vec::new();
        for n in 0..1_500 {
            let client = format!("web-{n}");
            let key = MacKey::new(&bench.secret(arn, &client).await);
            let jwe = session.seal(&client, "card", b"1");
            records.push(session.with_card(&key.sign(&MacHeader::new(&client), &jwe)));
        }
        for _ in 0..2 {
            let outcomes = bench.sealed(records.clone()).await;
            assert!(outcomes.iter().all(|outcome| outcome.route == Route::Target), "{arn}");
            // All of their keys are past their age at once.
            bench.clock.advance(Duration::from_secs(301));
            bench.clients.tick().await;
        }
    }
}

#[tokio::test]
async fn clients_that_have_proved_themselves_do_not_wait_for_invented_names() {
    let (bench, _) = bench_with_macs("client_sealed: authenticated", "");
    let session = bench.open_session().await;
    let key = MacKey::new(&bench.secret(MAC_ARN, "web-7").await);
    let good = session.with_card(&key.sign(&MacHeader::new("web-7"), &session.seal("web-7", "card", b"1")));
    assert_eq!(bench.sealed(vec![good.clone()]).await[0].route, Route::Target);
    bench.clock.advance(Duration::from_secs(301));
    bench.clients.tick().await;
    let forger = MacKey::new(&[1; 32]);
    let flood = |n: usize| session.with_card(&forger.sign(&MacHeader::new(&format!("bot-{n}")), "a.b.c.d.e"));
    let mut batch: Vec<Record> = (0..2_000).map(flood).collect();
    batch.push(good);
    let outcomes = bench.sealed(batch).await;
    assert_eq!(outcomes.last().unwrap().route, Route::Target);
    assert!(
        outcomes[..2_000]
            .iter()
            .all(|outcome| outcome.route == Route::DeadLetter)
    );
}

#[tokio::test]
async fn a_record_that_is_set_aside_takes_no_value() {
    let column =
        |path: &str| format!("  - {{ path: {path}, key: pii, acl: pii, flow: hybrid, client_sealed: once }}\n");
    let (bench, _) = bench_of(&[column("card"), column("other")].concat(), "");
    let session = bench.open_session().await;
    let key = MacKey::new(&bench.secret(MAC_ARN, "web-7").await);
    let once = |label: &str, name: &str| {
        let jwe = session.seal("web-7", label, b"1");
        key.sign(&MacHeader::once("web-7", NOW, name), &jwe)
    };
    let both = |card: &str, other: &str, offset: i64| {
        let value = format!(r#"{{"card":"{card}","other":"{other}"}}"#);
        at(record(&value, Some(&session.token)), 0, offset)
    };
    let taken = once("other", "o-1");
    assert_eq!(
        bench.sealed(vec![both(&once("card", "c-1"), &taken, 1)]).await[0].route,
        Route::Target
    );
    // A copy of a value that nobody has yet, beside one that is taken, that is no proof, or that does not open.
    let card = once("card", "c-2");
    let mut torn = session.seal("web-7", "other", b"1");
    torn.truncate(torn.len() - 22);
    let torn = key.sign(
        &MacHeader::once("web-7", NOW, "o-2"),
        &format!("{torn}{}", "A".repeat(22)),
    );
    for (offset, (other, code)) in [
        (taken.as_str(), "replayed"),
        ("eyJub3RoaW5n", "cannot-open"),
        (&torn, "cannot-open"),
    ]
    .into_iter()
    .enumerate()
    {
        let offset = i64::try_from(offset).unwrap() + 10;
        assert_eq!(bench.refusal(both(&card, other, offset)).await, code);
    }
    assert_eq!(
        bench.sealed(vec![both(&card, &once("other", "o-3"), 20)]).await[0].route,
        Route::Target
    );
}

#[tokio::test]
async fn a_value_that_counts_once_is_taken_where_it_was_read_first() {
    let (bench, audit) = bench_with_macs("client_sealed: once", "");
    let session = bench.open_session().await;
    let key = MacKey::new(&bench.secret(MAC_ARN, "web-7").await);
    let jwe = session.seal("web-7", "card", b"1");
    let once = |client: &str, at: u64, name: &str| MacHeader::once(client, at, name);
    let value = session.with_card(&key.sign(&once("web-7", NOW, "v-1"), &jwe));
    // The same place read again, as after an abort: no replay.
    for _ in 0..3 {
        assert_eq!(bench.round_trip(vec![value.clone()]).await, [r#"{"card":1}"#]);
    }
    for (partition, offset) in [(0, 8), (1, 7), (1, 8)] {
        assert_eq!(bench.refusal(at(value.clone(), partition, offset)).await, "replayed");
    }
    let events = audit.events();
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|event| event.rule == "client.replayed"
        && event.principal.as_deref() == Some("client:web-7")
        && event.proof == Some(Proof::ClientMac)));
    // Within one batch, too, and the value under another session and nonce.
    let again = session.seal("web-7", "card", b"1");
    let second = session.with_card(&key.sign(&once("web-7", NOW, "v-2"), &again));
    let batch = vec![at(second.clone(), 0, 20), at(second, 0, 21)];
    let outcomes = bench.sealed(batch).await;
    assert_eq!(
        [outcomes[0].route, outcomes[1].route],
        [Route::Target, Route::DeadLetter]
    );
    // Names are a client's own.
    let other = MacKey::new(&bench.secret(MAC_ARN, "web-8").await);
    let of_other = session.seal("web-8", "card", b"1");
    let other = session.with_card(&other.sign(&once("web-8", NOW, "v-1"), &of_other));
    assert_eq!(bench.round_trip(vec![at(other, 2, 2)]).await, [r#"{"card":1}"#]);
    // Without a name or a time it cannot count once.
    for header in [MacHeader::new("web-7"), {
        let mut header = once("web-7", NOW, "v-3");
        header.issued_at = None;
        header
    }] {
        let value = session.with_card(&key.sign(&header, &jwe));
        assert_eq!(bench.refusal(at(value, 3, 3)).await, "cannot-open");
    }
    assert!(!format!("{:?}", audit.events()).contains(&jwe));
}

#[tokio::test]
async fn a_value_must_arrive_soon_after_it_was_sealed_and_is_not_late_when_it_is_read_again() {
    let (bench, _) = bench_with_macs("client_sealed: once", ", max_age: 10m, remember: 1h");
    let session = bench.open_session().await;
    let key = MacKey::new(&bench.secret(MAC_ARN, "web-7").await);
    let jwe = session.seal("web-7", "card", b"1");
    let value = |issued: u64, offset: i64| {
        let header = MacHeader::once("web-7", issued, &format!("v-{offset}"));
        at(session.with_card(&key.sign(&header, &jwe)), 0, offset)
    };
    let routed = async |record: Record| bench.sealed(vec![record]).await[0].route;
    assert_eq!(routed(value(NOW - 600, 1)).await, Route::Target);
    assert_eq!(bench.refusal(value(NOW - 601, 2)).await, "late");
    // A client's clock may be a minute ahead.
    assert_eq!(routed(value(NOW + 60, 3)).await, Route::Target);
    assert_eq!(bench.refusal(value(NOW + 61, 4)).await, "late");
    for far in [0, u64::MAX / 1_000, u64::MAX] {
        assert_eq!(bench.refusal(value(far, 5)).await, "late");
    }
    // The broker's time of append counts where there is one, a producer's never does.
    let appended = |mut record: Record, at: u64| {
        record.timestamp = Timestamp::Appended(i64::try_from(at * 1_000).unwrap());
        record
    };
    let created = |mut record: Record, at: u64| {
        record.timestamp = Timestamp::Created(i64::try_from(at * 1_000).unwrap());
        record
    };
    assert_eq!(
        routed(appended(value(NOW - 3_000, 6), NOW - 2_500)).await,
        Route::Target
    );
    assert_eq!(
        bench.refusal(appended(value(NOW - 3_000, 7), NOW - 2_000)).await,
        "late"
    );
    assert_eq!(bench.refusal(created(value(NOW - 3_000, 8), NOW - 2_500)).await, "late");
    // What nobody could remember any more is late, whenever it was appended.
    assert_eq!(
        bench.refusal(appended(value(NOW - 3_600, 9), NOW - 3_500)).await,
        "late"
    );
    // Taken in time, it may be read again later.
    let taken = value(NOW, 10);
    assert_eq!(routed(taken.clone()).await, Route::Target);
    bench.clock.advance(Duration::from_secs(1_800));
    assert_eq!(routed(taken.clone()).await, Route::Target);
    assert_eq!(bench.refusal(at(taken.clone(), 0, 11)).await, "replayed");
    // Also when it would be too late for others: for once more as long.
    bench.clock.advance(Duration::from_secs(3_600));
    assert_eq!(routed(taken.clone()).await, Route::Target);
    assert_eq!(bench.refusal(at(taken, 0, 11)).await, "replayed");
}

#[tokio::test]
async fn of_known_clients_hints_say_of_values_what_they_say_of_others() {
    let hints = "client_sealed: once, hints: [{ derive: last4, acl: pii }]";
    let (bench, _) = bench_with_macs(hints, "");
    let web = bench.mac("web-7").await;
    let mut session = bench.session().await.with_mac(web);
    // The clock of a bench stands still, and the client's does not.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    bench.clock.set(UnixMillis(u64::try_from(now.as_millis()).unwrap()));
    let card = session.seal("card", br#""4111111111111111""#).unwrap();
    let outcomes = bench.sealed(vec![with_card(&card, &session)]).await;
    assert_eq!(outcomes[0].route, Route::Target);
    let sealed: serde_json::Value = serde_json::from_slice(outcomes[0].record.value.as_ref().unwrap()).unwrap();
    assert!(sealed["card"].as_str().unwrap().starts_with("sf1."));
    assert!(sealed["card#last4"].as_str().unwrap().starts_with("sf1."));
    let opened = apply_all(&bench.open, &[outcomes[0].record.clone()]).await.unwrap();
    assert_eq!(text(&opened[0].record), r#"{"card":"4111111111111111"}"#);
}

#[tokio::test]
async fn a_policy_whose_values_count_once_stops_where_nothing_remembers_them() {
    let (bench, _) = bench_with_macs("client_sealed: once", "");
    let session = bench.open_session().await;
    let key = MacKey::new(&bench.secret(MAC_ARN, "web-7").await);
    let jwe = session.seal("web-7", "card", b"1");
    let value = session.with_card(&key.sign(&MacHeader::once("web-7", NOW, "v"), &jwe));
    let forgetful = bench.seal.with_clients(clients(&bench.kms, &bench.clock));
    let stopped = forgetful.apply(&[value]).await;
    assert!(
        matches!(&stopped, Err(TransformError::Stop { reason, .. }) if reason.contains("once")),
        "{stopped:?}"
    );
}

#[tokio::test]
async fn the_key_that_an_operator_hands_out_is_the_one_that_verifies() {
    let (bench, _) = bench_with_macs("client_sealed: authenticated", "");
    let policy = VerifiedPolicy::unsigned_for_development(
        policy(
            "  - { path: card, key: pii, acl: pii, flow: hybrid, client_sealed: authenticated }\n",
            &format!("  mac: {{ arn: \"{MAC_ARN}\" }}\n"),
        )
        .as_bytes(),
    )
    .unwrap();
    let model = policy.policy();
    assert_eq!(model.columns[0].client_sealed, ClientSealed::Authenticated);
    let rule = model.client.as_ref().unwrap().mac.as_ref().unwrap();
    let secret = client_secret(&*bench.kms, rule, "payments", "web-7").await.unwrap();
    assert_eq!(*secret, bench.secret(MAC_ARN, "web-7").await);
}
