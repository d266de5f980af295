//! Newest policies over a catalogue in memory: leases, outages, steps back, and how often it is asked.

use super::super::asked::HOLD_FAILED;
use super::super::publish::publish;
use super::super::signed::{OwnerKey, sign};
use super::*;
use crate::clock::{ManualClock, UnixMillis};
use crate::keys::CatalogueError;
use crate::keys::testing::MemoryCatalogue;

struct Bench {
    key: OwnerKey,
    trusted: TrustedOwners,
    catalogue: Arc<MemoryCatalogue>,
    clock: Arc<ManualClock>,
    source: CataloguePolicies,
}

impl Bench {
    fn new() -> Self {
        let key = OwnerKey::generate().unwrap();
        let trusted = TrustedOwners::everywhere(vec![key.thumbprint()]).unwrap();
        let catalogue = Arc::new(MemoryCatalogue::new());
        let clock = Arc::new(ManualClock::at(UnixMillis(0)));
        let source = CataloguePolicies::new(catalogue.clone(), trusted.clone(), clock.clone());
        Self {
            key,
            trusted,
            catalogue,
            clock,
            source,
        }
    }

    async fn publish(&self, version: u64) {
        let yaml = format!("dataset: d\nversion: {version}\ncolumns: [{{ path: a, domain: x }}]\n");
        let jws = sign(yaml.as_bytes(), &self.key).unwrap();
        publish(self.catalogue.as_ref(), &jws, &self.trusted).await.unwrap();
    }

    /// Until what failed is asked for again.
    fn forget_failures(&self) {
        self.clock.advance(HOLD_FAILED);
    }

    async fn version(&self) -> Result<u64, PolicySourceError> {
        self.source.policy("d").await.map(|policy| policy.policy().version)
    }
}

#[tokio::test]
async fn a_policy_that_needs_a_lease_counts_while_one_holds_and_then_stops_even_in_an_outage() {
    let bench = Bench::new();
    let yaml = b"dataset: d\nversion: 1\nlease: required\ncolumns: [{ path: a, domain: x }]\n";
    let jws = sign(yaml, &bench.key).unwrap();
    publish(bench.catalogue.as_ref(), &jws, &bench.trusted).await.unwrap();
    let refused = async |what: &str| match bench.version().await {
        Err(error @ PolicySourceError::Untrusted { .. }) => assert!(error.to_string().contains(what), "{error}"),
        other => panic!("{other:?}"),
    };
    refused("the catalogue has none of version 1").await;
    let looking = CataloguePolicies::new(bench.catalogue.clone(), bench.trusted.clone(), bench.clock.clone());
    assert!(
        looking.without_leases().policy("d").await.is_ok(),
        "to look at it, none is needed"
    );

    let policy = super::super::signed::verify(&jws, &bench.trusted).unwrap();
    let hour = Duration::from_secs(3_600);
    let lease = async || {
        let jws = lease::sign(&policy, bench.clock.now(), hour, &bench.key).unwrap();
        let catalogue = bench.catalogue.as_ref();
        lease::publish(catalogue, &jws, &policy, &bench.trusted, bench.clock.now())
            .await
            .unwrap();
    };
    lease().await;
    bench.forget_failures();
    assert_eq!(bench.version().await, Ok(1));
    // The next one is found before this one ends.
    bench.clock.advance(hour / 2);
    lease().await;
    assert_eq!(bench.version().await, Ok(1));
    bench.clock.advance(hour * 3 / 4);
    assert_eq!(bench.version().await, Ok(1));
    // An outage ends nothing before its time, and prolongs nothing.
    bench.catalogue.fail_with(Some(CatalogueError::Unavailable {
        reason: "away".to_owned(),
    }));
    assert_eq!(bench.version().await, Ok(1));
    bench.clock.advance(hour / 4);
    refused("its lease ended, and another cannot be looked for").await;
    bench.catalogue.fail_with(None);
    bench.forget_failures();
    refused("the lease ended at 1970-01-01T01:30:01Z").await;
    lease().await;
    bench.forget_failures();
    assert_eq!(bench.version().await, Ok(1));
}

#[tokio::test]
async fn a_newer_version_counts_after_the_refresh_and_not_before() {
    let bench = Bench::new();
    assert!(matches!(bench.version().await, Err(PolicySourceError::Missing { .. })));
    bench.publish(1).await;
    bench.forget_failures();
    assert_eq!(bench.version().await, Ok(1));
    bench.publish(2).await;
    assert_eq!(bench.version().await, Ok(1));
    bench.clock.advance(DEFAULT_REFRESH);
    assert_eq!(bench.version().await, Ok(2));
}

#[tokio::test]
async fn removing_the_newest_version_brings_no_older_one_back() {
    let bench = Bench::new();
    bench.publish(1).await;
    bench.publish(2).await;
    assert_eq!(bench.version().await, Ok(2));
    bench.catalogue.remove("policies/d/0000000002.jws");
    bench.clock.advance(DEFAULT_REFRESH);
    assert!(matches!(
        bench.version().await,
        Err(PolicySourceError::Untrusted { .. })
    ));
    bench.catalogue.remove("policies/d/0000000001.jws");
    bench.forget_failures();
    assert!(
        matches!(bench.version().await, Err(PolicySourceError::Untrusted { .. })),
        "nor none"
    );
}

#[tokio::test]
async fn an_outage_of_the_catalogue_is_bridged_for_a_while() {
    let bench = Bench::new();
    bench.publish(1).await;
    assert_eq!(bench.version().await, Ok(1));
    bench.catalogue.fail_with(Some(CatalogueError::Unavailable {
        reason: "test".to_owned(),
    }));
    bench.clock.advance(DEFAULT_MAX_STALE);
    assert_eq!(bench.version().await, Ok(1));
    bench.clock.advance(DEFAULT_REFRESH);
    assert!(matches!(
        bench.version().await,
        Err(PolicySourceError::Unavailable { .. })
    ));
    bench.catalogue.fail_with(None);
    bench.forget_failures();
    assert_eq!(bench.version().await, Ok(1));
}

#[tokio::test]
async fn a_newest_policy_that_this_process_may_not_read_is_no_forgery_and_the_one_in_use_stays_for_a_while() {
    let bench = Bench::new();
    bench.publish(1).await;
    let refused = || CatalogueError::NotPermitted {
        path: "policies/d/0000000002.jws".to_owned(),
    };
    let error = PolicySourceError::NotPermitted {
        what: "policy of dataset d".to_owned(),
        path: "policies/d/0000000002.jws".to_owned(),
    };
    bench.catalogue.fail_with(Some(refused()));
    assert_eq!(bench.version().await, Err(error.clone()), "nothing is in use yet");
    assert_eq!(bench.source.overdue("d"), None);
    bench.catalogue.fail_with(None);
    bench.forget_failures();
    assert_eq!(bench.version().await, Ok(1));
    bench.catalogue.fail_with(Some(refused()));
    bench.clock.advance(DEFAULT_MAX_STALE);
    assert_eq!(bench.version().await, Ok(1));
    assert_eq!(bench.source.overdue("d"), Some(error.clone()), "and why is known");
    bench.clock.advance(DEFAULT_REFRESH);
    assert_eq!(bench.version().await, Err(error));
    bench.catalogue.fail_with(None);
    bench.forget_failures();
    assert_eq!(bench.version().await, Ok(1));
    assert_eq!(bench.source.overdue("d"), None);
}

#[tokio::test]
async fn a_name_that_is_no_dataset_is_not_looked_for() {
    let bench = Bench::new();
    for name in ["../keys", "", "a/b", ".."] {
        assert!(
            matches!(bench.source.policy(name).await, Err(PolicySourceError::Missing { .. })),
            "{name}"
        );
    }
}

/// What all of them get, together.
async fn together(source: &CataloguePolicies, callers: usize) -> Vec<Result<u64, PolicySourceError>> {
    let asking = (0..callers).map(|_| async { source.policy("d").await.map(|policy| policy.policy().version) });
    let mut asking: Vec<_> = asking.map(Box::pin).collect();
    let mut answers: Vec<Option<_>> = asking.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (asking, answer) in asking
            .iter_mut()
            .zip(&mut answers)
            .filter(|(_, answer)| answer.is_none())
        {
            if let std::task::Poll::Ready(ready) = asking.as_mut().poll(context) {
                *answer = Some(ready);
            }
        }
        match answers.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    answers.into_iter().flatten().collect()
}

#[tokio::test(start_paused = true)]
async fn a_dataset_that_takes_for_ever_delays_no_other_and_asks_once() {
    let bench = Bench::new();
    bench.publish(1).await;
    bench.catalogue.hang_below("policies/slow");
    bench.catalogue.hang_below("domains/slow");
    let source = Arc::new(bench.source);
    let asking = |dataset: &'static str| {
        let source = Arc::clone(&source);
        tokio::spawn(async move { source.policy(dataset).await.map(|policy| policy.policy().version) })
    };
    let asked = bench.catalogue.list_calls();
    let slow: Vec<_> = (0..16).map(|_| asking("slow")).collect();
    let slow_domain = {
        let source = Arc::clone(&source);
        tokio::spawn(async move { source.domain("slow", None).await.map(drop) })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        bench.catalogue.list_calls() - asked,
        2,
        "one for the policy, one for the domain"
    );
    let other = tokio::time::timeout(Duration::from_secs(1), asking("d")).await;
    assert_eq!(other.expect("it does not wait for the slow one").unwrap(), Ok(1));
    let other = tokio::time::timeout(Duration::from_secs(1), source.domain("other", None)).await;
    assert!(matches!(other, Ok(Err(PolicySourceError::Missing { .. }))), "{other:?}");
    assert!(slow.iter().all(|slow| !slow.is_finished()) && !slow_domain.is_finished());
    // Whoever asks may give up: the next one asks in its place.
    let asked = bench.catalogue.list_calls();
    slow[0].abort();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.catalogue.list_calls() - asked, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stampede_on_a_catalogue_that_fails_makes_one_request_a_second() {
    let bench = Bench::new();
    let away = CatalogueError::Unavailable {
        reason: "away".to_owned(),
    };
    bench.catalogue.set_delay(Duration::from_millis(50));
    bench.catalogue.fail_with(Some(away));
    for second in 1..=3 {
        for _ in 0..4 {
            let answers = together(&bench.source, 64).await;
            let is_away = |answer: &Result<u64, _>| matches!(answer, Err(PolicySourceError::Unavailable { .. }));
            assert!(answers.len() == 64 && answers.iter().all(is_away), "{answers:?}");
            bench.clock.advance(HOLD_FAILED / 4);
        }
        assert_eq!(bench.catalogue.list_calls(), second);
    }
    // The same while the policy in use is done with, and in one second it is back.
    bench.catalogue.fail_with(None);
    bench.publish(1).await;
    assert_eq!(together(&bench.source, 64).await, vec![Ok(1); 64]);
    bench.catalogue.fail_with(Some(CatalogueError::Unavailable {
        reason: "away".to_owned(),
    }));
    bench.clock.advance(DEFAULT_REFRESH);
    let asked = bench.catalogue.list_calls();
    for _ in 0..4 {
        assert_eq!(
            together(&bench.source, 64).await,
            vec![Ok(1); 64],
            "it goes on to count"
        );
        bench.clock.advance(HOLD_FAILED / 4);
    }
    assert_eq!(bench.catalogue.list_calls() - asked, 1);
    bench.catalogue.fail_with(None);
    bench.publish(2).await;
    assert_eq!(together(&bench.source, 64).await, vec![Ok(2); 64]);
}

#[tokio::test(start_paused = true)]
async fn a_stampede_without_a_lease_looks_for_one_once_a_second() {
    let bench = Bench::new();
    let yaml = b"dataset: d\nversion: 1\nlease: required\ncolumns: [{ path: a, domain: x }]\n";
    let jws = sign(yaml, &bench.key).unwrap();
    publish(bench.catalogue.as_ref(), &jws, &bench.trusted).await.unwrap();
    assert!(bench.version().await.is_err());
    bench.forget_failures();
    let asked = bench.catalogue.list_calls();
    let answers = together(&bench.source, 64).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    let looked = bench.catalogue.list_calls() - asked;
    assert!((1..=2).contains(&looked), "{looked}");
    let answers = together(&bench.source, 64).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    assert_eq!(bench.catalogue.list_calls() - asked, looked);
}
