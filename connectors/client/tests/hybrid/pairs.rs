//! Pairs whose private half the host holds, and how much is asked for at a time: with a key service in memory.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::flow::hybrid::{ClientKeyError, ClientKeys};
use sealflow::jose::jwe::{ContentKey, JweHeader};
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{
    ClientKeyService as _, DomainKeys, EncryptionContext, GeneratedPair, KeyServiceError, SealingKeys,
};
use sealflow::pipeline::{
    Clients, Format, Header, KeysPlacement, Outcome, Position, Record, Route, SealTransform, Timestamp, Transform as _,
    TransformError, apply_all,
};
use sealflow::policy::{FixedPolicies, Policy, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use sealflow_client::{RsaBits, RsaPublicJwk, Session, seal_value};

const DATA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111";
const RSA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222";
const PAIRS_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-3333-3333-333333333333";
const OTHER_PAIRS_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/44444444-4444-4444-4444-444444444444";
const AGE: Duration = Duration::from_secs(300);

struct Bench {
    kms: Arc<MemoryKms>,
    clock: Arc<ManualClock>,
    keys: ClientKeys,
    seal: SealTransform,
}

async fn pair(kms: &MemoryKms, arn: &str, dataset: &str) -> GeneratedPair {
    let context = EncryptionContext::for_client_pair(dataset);
    kms.generate_pair(arn, RsaBits::Rsa2048, &context).await.unwrap()
}

fn spelled(pair: &GeneratedPair) -> String {
    format!(
        "{{ arn: \"{}\", public: \"{}\", wrapped: \"{}\" }}",
        pair.arn,
        STANDARD.encode(&pair.public),
        STANDARD.encode(&pair.wrapped_private)
    )
}

fn public(pair: &GeneratedPair) -> RsaPublicJwk {
    RsaPublicJwk::from_spki_der(&pair.public).unwrap()
}

fn policy(key: &str) -> String {
    format!(
        "dataset: payments\nversion: 1\nkeys: {{ pii: {{ arn: \"{DATA_ARN}\" }} }}\nclient: {{ keys: {{ web: {{ {key} }} }} }}\n\
         acls: {{ pii: {{}} }}\ncolumns: [{{ path: card, key: pii, acl: pii, flow: hybrid }}]\n\
         dead_letters: {{ key: pii, acl: pii }}\n"
    )
}

fn bench(kms: Arc<MemoryKms>, key: &str) -> Bench {
    let policy = Arc::new(VerifiedPolicy::unsigned_for_development(policy(key).as_bytes()).unwrap());
    let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
    let catalogue = Arc::new(MemoryCatalogue::new());
    let clock = Arc::new(ManualClock::at(UnixMillis(1_700_000_000_000)));
    let sealer = DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms.clone(), catalogue, policies, clock.clone(), AGE),
    };
    let clients = Clients::new(kms.clone(), clock.clone(), AGE, 10_000);
    let keys = clients.keys.clone();
    let seal = SealTransform::new(policy, Format::Json, KeysPlacement::Header, sealer).unwrap();
    Bench {
        seal: seal.with_clients(clients),
        kms,
        clock,
        keys,
    }
}

fn record(card: &str, session: Option<&str>) -> Record {
    let header = |session: &str| Header {
        name: "sealflow-session".into(),
        value: Some(Bytes::copy_from_slice(session.as_bytes())),
    };
    Record {
        position: Position {
            topic: "payments".into(),
            partition: 0,
            offset: 7,
        },
        timestamp: Timestamp::None,
        key: None,
        value: Some(Bytes::from(format!(r#"{{"card":"{card}"}}"#))),
        headers: session.map(header).into_iter().collect(),
    }
}

fn of_session(to: &RsaPublicJwk) -> Record {
    let mut session = Session::begin(to, "payments").unwrap();
    let card = session.seal("card", b"1").unwrap();
    record(&card, Some(session.token()))
}

/// A session that names the key, and was not sealed to it.
fn forged(to: &RsaPublicJwk, n: u32) -> String {
    let header = JweHeader::wrapped(&to.thumbprint());
    let token = ContentKey::new(&[1; 32]).seal(&header.to_part(), &[1; 256], &n.to_be_bytes());
    token.unwrap()
}

fn passed(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.route == Route::Target).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sessions_under_a_pair_cost_one_request() {
    let kms = Arc::new(MemoryKms::new());
    let made = pair(&kms, PAIRS_ARN, "payments").await;
    let bench = bench(kms, &format!("pair: {}", spelled(&made)));
    let records: Vec<Record> = (0..1_000).map(|_| of_session(&public(&made))).collect();
    bench.kms.set_delay(Duration::from_millis(5));
    for _ in 0..2 {
        let outcomes = apply_all(&bench.seal, &records).await.unwrap();
        assert_eq!(passed(&outcomes), 1_000);
    }
    let calls = (
        bench.kms.unwrap_calls(),
        bench.kms.decrypt_rsa_calls(),
        bench.kms.public_key_calls(),
    );
    assert_eq!(calls, (1, 0, 0));
    // Asked for again after its age, once; the sessions are opened anew with it.
    bench.clock.advance(AGE);
    bench.keys.tick().await;
    assert_eq!(passed(&apply_all(&bench.seal, &records).await.unwrap()), 1_000);
    assert_eq!(bench.kms.unwrap_calls(), 2);
    assert!(format!("{:?}", bench.keys).contains("ClientKeys"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_of_another_dataset_or_with_anothers_private_half_stops_and_opens_nothing() {
    let kms = Arc::new(MemoryKms::new());
    let (mine, other) = (
        pair(&kms, PAIRS_ARN, "payments").await,
        pair(&kms, PAIRS_ARN, "payments").await,
    );
    let elsewhere = pair(&kms, PAIRS_ARN, "refunds").await;
    let swapped = GeneratedPair {
        wrapped_private: other.wrapped_private.clone(),
        ..mine.clone()
    };
    let under_another_key = GeneratedPair {
        arn: OTHER_PAIRS_ARN.to_owned(),
        ..mine.clone()
    };
    let mut edited = mine.clone();
    edited.wrapped_private[40] ^= 1;
    for (wrong, said) in [
        (&elsewhere, "refused"),
        (&swapped, "is not that of the pair's public half"),
        (&under_another_key, "refused"),
        (&edited, "refused"),
    ] {
        let bench = bench(kms.clone(), &format!("pair: {}", spelled(wrong)));
        let asked = kms.unwrap_calls();
        for n in 0..3 {
            let stopped = bench.seal.apply(&[of_session(&public(wrong))]).await;
            let Err(TransformError::Stop { reason, .. }) = stopped else {
                panic!("{n}: {stopped:?}")
            };
            assert!(reason.contains(said) && reason.contains(&wrong.arn), "{reason}");
        }
        assert_eq!(
            kms.unwrap_calls() - asked,
            1,
            "what cannot be had is not asked for with every session"
        );
        // A previous one that cannot be had opens nothing and stops nothing.
        let bench = self::bench(
            kms.clone(),
            &format!("arn: \"{RSA_ARN}\", previous: [{}]", spelled(wrong)),
        );
        kms.create_rsa_key(RSA_ARN, RsaBits::Rsa2048).unwrap();
        let current = RsaPublicJwk::from_spki_der(&kms.public_key(RSA_ARN).await.unwrap()).unwrap();
        let records = vec![of_session(&public(wrong)), of_session(&current)];
        let outcomes = apply_all(&bench.seal, &records).await.unwrap();
        let routes: Vec<Route> = outcomes.iter().map(|outcome| outcome.route).collect();
        assert_eq!(routes, [Route::DeadLetter, Route::Target]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_follows_an_arn_and_an_arn_a_pair() {
    let kms = Arc::new(MemoryKms::new());
    kms.create_rsa_key(RSA_ARN, RsaBits::Rsa2048).unwrap();
    let in_kms = RsaPublicJwk::from_spki_der(&kms.public_key(RSA_ARN).await.unwrap()).unwrap();
    let (new, old) = (
        pair(&kms, PAIRS_ARN, "payments").await,
        pair(&kms, OTHER_PAIRS_ARN, "payments").await,
    );
    for key in [
        format!("pair: {}, previous: [\"{RSA_ARN}\", {}]", spelled(&new), spelled(&old)),
        format!("arn: \"{RSA_ARN}\", previous: [{}, {}]", spelled(&new), spelled(&old)),
    ] {
        let bench = bench(kms.clone(), &key);
        let records = [&in_kms, &public(&new), &public(&old)].map(of_session);
        let outcomes = apply_all(&bench.seal, &records).await.unwrap();
        assert_eq!(passed(&outcomes), 3);
    }
    // An outage stops nothing for good, and loses nothing.
    let bench = bench(kms.clone(), &format!("pair: {}", spelled(&new)));
    let away = KeyServiceError::Unavailable { reason: "away".into() };
    kms.fail_with(Some(away));
    let tried = bench.seal.apply(&[of_session(&public(&new))]).await;
    assert!(matches!(tried, Err(TransformError::Retry { .. })), "{tried:?}");
    kms.fail_with(None);
    let outcomes = apply_all(&bench.seal, &[of_session(&public(&new))]).await.unwrap();
    assert_eq!(passed(&outcomes), 1);
    // Disabled: known sessions too stop after the age.
    kms.set_unusable(PAIRS_ARN, true);
    let record = of_session(&public(&new));
    bench.clock.advance(AGE - Duration::from_secs(1));
    assert_eq!(
        passed(&apply_all(&bench.seal, slice::from_ref(&record)).await.unwrap()),
        1
    );
    bench.clock.advance(Duration::from_secs(1));
    let stopped = bench.seal.apply(&[record]).await;
    assert!(matches!(stopped, Err(TransformError::Stop { .. })), "{stopped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_sessions_under_a_pair_cost_a_bounded_number_of_operations_and_no_request() {
    let kms = Arc::new(MemoryKms::new());
    let made = pair(&kms, PAIRS_ARN, "payments").await;
    kms.create_rsa_key(RSA_ARN, RsaBits::Rsa2048).unwrap();
    let in_kms = RsaPublicJwk::from_spki_der(&kms.public_key(RSA_ARN).await.unwrap()).unwrap();
    let key = format!("arn: \"{RSA_ARN}\", previous: [{}]", spelled(&made));
    let bench = bench(kms, &key);
    let to = public(&made);
    let rule = Policy::parse(policy(&key).as_bytes()).unwrap().client.unwrap();
    for n in 0..2_100 {
        let refused = bench.keys.session(&rule, &forged(&to, n)).await.err();
        assert_eq!(refused, Some(ClientKeyError::Refused));
    }
    assert_eq!((bench.kms.unwrap_calls(), bench.kms.decrypt_rsa_calls()), (1, 0));
    // No more are tried, an honest one neither, until the bucket fills; keys in KMS have one of their own.
    let honest = Session::begin(&to, "payments").unwrap();
    let refused = bench.keys.session(&rule, honest.token()).await.err();
    assert_eq!(refused, Some(ClientKeyError::Refused));
    let other = Session::begin(&in_kms, "payments").unwrap();
    assert!(bench.keys.session(&rule, other.token()).await.is_ok());
    bench.clock.advance(Duration::from_secs(11));
    assert!(bench.keys.session(&rule, honest.token()).await.is_ok());
    // Values with a key of their own cost no request either.
    let values: Vec<Record> = (0..50)
        .map(|n| {
            record(
                &seal_value(&to, "payments", "card", n.to_string().as_bytes(), None, None).unwrap(),
                None,
            )
        })
        .collect();
    let calls = bench.kms.decrypt_rsa_calls();
    assert_eq!(passed(&apply_all(&bench.seal, &values).await.unwrap()), 50);
    assert_eq!((bench.kms.unwrap_calls(), bench.kms.decrypt_rsa_calls()), (1, calls));
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_sessions_wait_for_each_other_however_many_come_at_once() {
    let kms = Arc::new(MemoryKms::new());
    kms.create_rsa_key(RSA_ARN, RsaBits::Rsa2048).unwrap();
    let to = RsaPublicJwk::from_spki_der(&kms.public_key(RSA_ARN).await.unwrap()).unwrap();
    let key = format!("arn: \"{RSA_ARN}\"");
    let bench = bench(kms, &key);
    let rule = Policy::parse(policy(&key).as_bytes()).unwrap().client.unwrap();
    let ask = |tokens: Vec<String>| {
        let mut asked = tokio::task::JoinSet::new();
        for token in tokens {
            let (keys, rule) = (bench.keys.clone(), rule.clone());
            asked.spawn(async move { keys.session(&rule, &token).await.map(drop) });
        }
        asked.join_all()
    };
    let honest = |count: usize| -> Vec<String> {
        let sessions = (0..count).map(|_| Session::begin(&to, "payments").unwrap());
        sessions.map(|session| session.token().to_owned()).collect()
    };
    bench.kms.set_delay(Duration::from_millis(20));
    let answers = ask(honest(600)).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(bench.kms.peak_in_flight() <= 64, "{}", bench.kms.peak_in_flight());
    // One for the test, one for all of them.
    assert_eq!(bench.kms.public_key_calls(), 2);

    // Forgeries spend all chances but a few: honest ones take turns with those that are left.
    let forgeries: Vec<String> = (0..253).map(|n| forged(&to, n)).collect();
    let answers = ask(forgeries).await;
    assert!(answers.iter().all(|answer| *answer == Err(ClientKeyError::Refused)));
    let answers = ask(honest(100)).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");

    // A flood of forgeries is bounded as before, however many come at once.
    let calls = bench.kms.decrypt_rsa_calls();
    let answers = ask((1_000..2_000).map(|n| forged(&to, n)).collect()).await;
    assert!(answers.iter().all(|answer| *answer == Err(ClientKeyError::Refused)));
    assert_eq!(bench.kms.decrypt_rsa_calls() - calls, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_outage_those_who_wait_for_one_answer_do_not_ask_one_after_the_other() {
    let kms = Arc::new(MemoryKms::new());
    let made = pair(&kms, PAIRS_ARN, "payments").await;
    kms.create_rsa_key(RSA_ARN, RsaBits::Rsa2048).unwrap();
    let in_kms = RsaPublicJwk::from_spki_der(&kms.public_key(RSA_ARN).await.unwrap()).unwrap();
    let away = KeyServiceError::Unavailable { reason: "away".into() };
    for (key, to) in [
        (format!("pair: {}", spelled(&made)), public(&made)),
        (format!("arn: \"{RSA_ARN}\""), in_kms),
    ] {
        let bench = bench(kms.clone(), &key);
        let rule = Policy::parse(policy(&key).as_bytes()).unwrap().client.unwrap();
        let sessions: Vec<Session> = (0..50).map(|_| Session::begin(&to, "payments").unwrap()).collect();
        let calls = kms.unwrap_calls() + kms.public_key_calls();
        kms.set_delay(Duration::from_millis(300));
        kms.fail_with(Some(away.clone()));
        let mut asked = tokio::task::JoinSet::new();
        for session in &sessions {
            let (keys, rule, token) = (bench.keys.clone(), rule.clone(), session.token().to_owned());
            asked.spawn(async move { keys.session(&rule, &token).await.map(drop) });
        }
        let answers = asked.join_all().await;
        assert!(
            answers
                .iter()
                .all(|answer| *answer == Err(ClientKeyError::Service(away.clone())))
        );
        assert_eq!(kms.unwrap_calls() + kms.public_key_calls() - calls, 1);
        // Who comes later asks, and is answered.
        kms.set_delay(Duration::ZERO);
        kms.fail_with(None);
        assert!(bench.keys.session(&rule, sessions[0].token()).await.is_ok());
    }
}
