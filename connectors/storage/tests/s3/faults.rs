//! Faults on the way: answers that are lost, connections that break, services in trouble. Nothing is torn, nothing is there twice,
//! and whoever is told "created" has created it.

use std::time::Duration;

use bytes::Bytes;
use sealflow::keys::Put;
use sealflow::units::Span;
use sealflow_storage::{BucketConfig, StorageError};
use sealflow_testbed::{HttpFault, HttpRule, When};

use crate::bench::{Bench, bench, pattern};

const MIB: usize = 1 << 20;
const SLOW_DOWN: HttpFault = HttpFault::Answer {
    status: 503,
    code: "SlowDown",
};

fn on(method: &'static str, path: &'static str, when: When, fault: HttpFault) -> HttpRule {
    HttpRule {
        method,
        path,
        when,
        fault,
    }
}

fn first(method: &'static str, path: &'static str, fault: HttpFault) -> Vec<HttpRule> {
    vec![on(method, path, When::First(1), fault)]
}

fn patient(config: &mut BucketConfig) {
    config.attempts = 12;
}

/// Everything that can happen, drawn by chance.
fn weather(seed: u64) -> Vec<HttpRule> {
    let internal = HttpFault::Answer {
        status: 500,
        code: "InternalError",
    };
    let lie = HttpFault::AnswerInstead {
        status: 500,
        code: "InternalError",
    };
    let faults = [
        SLOW_DOWN,
        internal,
        lie,
        HttpFault::LoseRequest,
        HttpFault::LoseAnswer,
        HttpFault::Delay(Duration::from_millis(20)),
    ];
    let rule = |(n, fault)| on("", "", When::OneIn(12, seed + n), fault);
    (0..).zip(faults).map(rule).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_survive_bad_weather_without_duplicates_or_torn_objects() {
    let Some(bench) = bench("faults-weather") else { return };
    let place = bench.place_with(patient).await;
    bench.proxy.set(weather(7));
    for n in 0..60_usize {
        let path = format!("objects/{n}");
        assert_eq!(
            place.put_if_absent(&path, pattern(1_000 + n, n as u64)).await,
            Ok(Put::Created),
            "{n}"
        );
        // Others come too late, with the same bytes or with other ones.
        for seed in [n as u64, 1_000] {
            assert_eq!(
                place.put_if_absent(&path, pattern(1_000 + n, seed)).await,
                Ok(Put::Exists),
                "{n}"
            );
        }
    }
    let felt = bench.proxy.felt();
    assert!(felt >= 60, "{felt} faults");
    bench.proxy.set(vec![]);
    for n in 0..60_usize {
        let found = place.read(&format!("objects/{n}"), MIB).await.unwrap();
        assert!(found == pattern(1_000 + n, n as u64), "{n}");
    }
    assert_eq!(place.list("", None, 1_000).await.unwrap().objects.len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_survive_bad_weather_whole() {
    let Some(bench) = bench("faults-large") else { return };
    let place = bench.place_with(patient).await;
    let whole = pattern(26 * MIB + 1, 5);
    for seed in [11, 12, 13] {
        bench.proxy.set(weather(seed));
        let path = format!("large/{seed}");
        let mut writer = place.writer(&path, None).await.unwrap();
        for piece in whole.chunks(3 * MIB) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        assert_eq!(writer.finish().await, Ok(Put::Created));
        assert!(bench.proxy.felt() > 0);
        assert!(place.read(&path, 64 * MIB).await.unwrap() == whole);
    }
    bench.proxy.set(vec![]);
    let objects = place.list("", None, 10).await.unwrap().objects;
    assert_eq!(objects.len(), 3);
}

/// Faults after which nobody knows whether the put was done; it was.
fn lost_answers() -> [HttpFault; 3] {
    let (status, code) = (500, "InternalError");
    [
        HttpFault::LoseAnswer,
        HttpFault::AnswerInstead { status, code },
        HttpFault::AnswerInstead {
            status: 409,
            code: "ConditionalRequestConflict",
        },
    ]
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_known_as_ours() {
    let Some(bench) = bench("faults-lost-put") else { return };
    let place = bench.place("data").await;
    for (n, fault) in lost_answers().into_iter().enumerate() {
        bench.proxy.set(first("PUT", "", fault.clone()));
        let path = format!("ours/{n}");
        assert_eq!(
            place.put_if_absent(&path, Bytes::from_static(b"same")).await,
            Ok(Put::Created),
            "{fault:?}"
        );
        // It was put twice, and the second time told that it is there.
        assert_eq!(
            (bench.proxy.count("PUT"), bench.proxy.count("HEAD")),
            (2, 1),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn anothers_object_is_not_ours_though_its_bytes_are_the_same() {
    let Some(bench) = bench("faults-others-put") else {
        return;
    };
    let place = bench.place("data").await;
    assert_eq!(
        place.put_if_absent("a", Bytes::from_static(b"same")).await,
        Ok(Put::Created)
    );
    for fault in lost_answers() {
        bench.proxy.set(first("PUT", "", fault.clone()));
        assert_eq!(
            place.put_if_absent("a", Bytes::from_static(b"same")).await,
            Ok(Put::Exists),
            "{fault:?}"
        );
        assert_eq!(
            place.put_if_absent("a", Bytes::from_static(b"other")).await,
            Ok(Put::Exists),
            "{fault:?}"
        );
    }
    assert_eq!(place.read("a", 10).await.unwrap(), Bytes::from_static(b"same"));
}

#[tokio::test]
async fn a_put_of_which_every_answer_was_lost_is_looked_up() {
    let Some(bench) = bench("faults-all-lost") else { return };
    let place = bench.place("data").await;
    bench
        .proxy
        .set(vec![on("PUT", "", When::Always, HttpFault::LoseAnswer)]);
    assert_eq!(
        place.put_if_absent("a", Bytes::from_static(b"x")).await,
        Ok(Put::Created)
    );
    bench
        .proxy
        .set(vec![on("PUT", "", When::Always, HttpFault::LoseRequest)]);
    let unknown = place.put_if_absent("b", Bytes::from_static(b"x")).await.unwrap_err();
    assert!(
        unknown.is_retryable() && unknown.to_string().contains("broke off"),
        "{unknown}"
    );
    assert_eq!(place.size("b").await, Ok(None));
}

async fn upload(bench: &Bench, path: &str, seed: u64) -> Result<Put, StorageError> {
    let place = bench.place("data").await;
    let mut writer = place.writer(path, None).await?;
    writer.write(pattern(9 * MIB, seed)).await?;
    writer.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_whose_answer_was_lost_is_known_as_ours() {
    let Some(bench) = bench("faults-lost-completion") else {
        return;
    };
    let place = bench.place("data").await;
    for (n, fault) in lost_answers().into_iter().enumerate() {
        for (m, when) in [When::First(1), When::Always].into_iter().enumerate() {
            bench.proxy.set(vec![on("POST", "uploadId=", when, fault.clone())]);
            let path = format!("ours/{n}/{m}");
            assert_eq!(upload(&bench, &path, 1).await, Ok(Put::Created), "{fault:?} {when:?}");
            assert!(place.read(&path, 16 * MIB).await.unwrap() == pattern(9 * MIB, 1));
        }
    }
    assert_eq!(bench.unfinished_at_last().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loser_of_a_race_is_told_so_though_both_were_uploading() {
    let Some(bench) = bench("faults-race") else { return };
    let place = bench.place("data").await;
    let mut writers = Vec::new();
    for seed in [1, 2] {
        let mut writer = place.writer("raced", None).await.unwrap();
        writer.write(pattern(9 * MIB, seed)).await.unwrap();
        writers.push(writer);
    }
    let (second, one) = (writers.pop().unwrap(), writers.pop().unwrap());
    assert_eq!(second.finish().await, Ok(Put::Created));
    bench.proxy.set(first("POST", "uploadId=", HttpFault::LoseAnswer));
    assert_eq!(one.finish().await, Ok(Put::Exists));
    assert!(place.read("raced", 16 * MIB).await.unwrap() == pattern(9 * MIB, 2));
    assert_eq!(bench.unfinished_at_last().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_fails_half_way_leaves_nothing() {
    let Some(bench) = bench("faults-half") else { return };
    let place = bench.place("data").await;
    let denied = HttpFault::Answer {
        status: 403,
        code: "AccessDenied",
    };
    for (method, path) in [("POST", "uploads"), ("PUT", "partNumber="), ("POST", "uploadId=")] {
        bench.proxy.set(vec![on(method, path, When::Always, denied.clone())]);
        let error = upload(&bench, "half", 1).await.unwrap_err();
        assert!(matches!(error, StorageError::NotPermitted { .. }), "{path}: {error}");
        assert_eq!(bench.unfinished_at_last().await, 0, "{path}");
        assert_eq!(place.size("half").await, Ok(None));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_read_to_its_end() {
    let Some(bench) = bench("faults-read") else { return };
    let place = bench.place("data").await;
    let whole = pattern(3 * MIB, 9);
    place.put_if_absent("a", whole.clone()).await.unwrap();
    bench.proxy.set(first("GET", "", HttpFault::CutAnswer));
    assert!(place.read("a", 4 * MIB).await.unwrap() == whole);
    bench.proxy.set(vec![on("GET", "", When::First(2), SLOW_DOWN)]);
    assert!(place.read_range("a", 100..200).await.unwrap() == whole.slice(100..200));
    assert_eq!(bench.proxy.felt(), 2);
}

#[tokio::test]
async fn credentials_that_are_no_longer_taken_are_fetched_again_and_the_request_repeated_once() {
    let Some(bench) = bench("faults-stale") else { return };
    let place = bench.place("data").await;
    let expired = HttpFault::Answer {
        status: 400,
        code: "ExpiredToken",
    };
    bench.proxy.set(first("", "", expired.clone()));
    assert_eq!(
        place.put_if_absent("a", Bytes::from_static(b"x")).await,
        Ok(Put::Created)
    );
    bench.proxy.set(first("", "", expired.clone()));
    assert_eq!(place.size("a").await, Ok(Some(1)));
    bench.proxy.set(vec![on("", "", When::Always, expired)]);
    let refused = place.put_if_absent("b", Bytes::from_static(b"x")).await.unwrap_err();
    assert!(
        matches!(&refused, StorageError::NotPermitted { code, .. } if code == "ExpiredToken"),
        "{refused}"
    );
    assert_eq!(bench.proxy.felt(), 2);
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_given_up_in_time_and_no_secret_is_shown() {
    let Some(bench) = bench("faults-silent") else { return };
    let place = bench
        .place_with(|config| {
            config.timeout = Span(Duration::from_millis(200));
            config.attempts = 2;
        })
        .await;
    bench.proxy.set(vec![on(
        "",
        "",
        When::Always,
        HttpFault::Delay(Duration::from_secs(3_600)),
    )]);
    let started = std::time::Instant::now();
    let error = place
        .put_if_absent("a", Bytes::from_static(b"hunter2"))
        .await
        .unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let shown = format!("{error} {error:?} {}", error.help());
    assert!(error.is_retryable() && shown.contains("in time"), "{shown}");
    assert!(!shown.contains("hunter2") && !shown.contains("AKIAMOTO"), "{shown}");
}
