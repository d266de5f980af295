//! Publishing and finding, over a catalogue in memory that somebody tampers with.

use super::*;
use crate::keys::testing::MemoryCatalogue;
use crate::policy::signed::{OwnerKey, sign, sign_domain};

struct Bench {
    key: OwnerKey,
    trusted: TrustedOwners,
    catalogue: MemoryCatalogue,
}

impl Bench {
    fn new() -> Self {
        let key = OwnerKey::generate().unwrap();
        let trusted = TrustedOwners::everywhere(vec![key.thumbprint()]).unwrap();
        Self {
            key,
            trusted,
            catalogue: MemoryCatalogue::new(),
        }
    }

    fn policy(&self, version: u64, more: &str) -> String {
        let yaml = format!("dataset: d\nversion: {version}\ncolumns: [{{ path: a, domain: x }}]\n{more}");
        sign(yaml.as_bytes(), &self.key).unwrap()
    }

    fn domain(&self, version: u64, key_id: &str) -> String {
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/a";
        let yaml = format!(
            "domain: x\nversion: {version}\nkey: {{ arn: \"{arn}\" }}\nkey_id: {key_id}\ntype: utf8\nacl: {{}}\n"
        );
        sign_domain(yaml.as_bytes(), &self.key).unwrap()
    }

    async fn publish(&self, jws: &str) -> Result<Published, PublishError> {
        publish(&self.catalogue, jws, &self.trusted).await
    }

    async fn newest(&self) -> Result<Option<u64>, PublishError> {
        let found = newest(&self.catalogue, "d", &self.trusted).await?;
        Ok(found.map(|policy| policy.policy().version))
    }
}

#[tokio::test]
async fn the_highest_version_is_the_newest() {
    let bench = Bench::new();
    assert_eq!(bench.newest().await, Ok(None));
    for version in [1, 2, 10] {
        assert_eq!(bench.publish(&bench.policy(version, "")).await, Ok(Published::New));
    }
    assert_eq!(bench.newest().await, Ok(Some(10)));
    assert!(
        bench
            .catalogue
            .get("policies/d/0000000010.jws")
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn publishing_again_changes_nothing_and_other_bytes_are_refused() {
    let bench = Bench::new();
    bench.publish(&bench.policy(1, "")).await.unwrap();
    bench.publish(&bench.policy(2, "")).await.unwrap();
    assert_eq!(bench.publish(&bench.policy(2, "")).await, Ok(Published::Already));
    assert_eq!(bench.publish(&bench.policy(1, "")).await, Ok(Published::Already));
    let taken = PublishError::Taken {
        name: "d".to_owned(),
        version: 2,
    };
    assert_eq!(bench.publish(&bench.policy(2, "# edited")).await, Err(taken));
}

#[tokio::test]
async fn versions_do_not_go_backwards() {
    let bench = Bench::new();
    bench.publish(&bench.policy(5, "")).await.unwrap();
    let backwards = PublishError::Backwards {
        name: "d".to_owned(),
        version: 3,
        newest: 5,
    };
    assert_eq!(bench.publish(&bench.policy(3, "")).await, Err(backwards));
    assert_eq!(bench.newest().await, Ok(Some(5)));
}

#[tokio::test]
async fn what_is_not_believed_is_not_published() {
    let bench = Bench::new();
    let stranger = Bench::new();
    let error = bench.publish(&stranger.policy(1, "")).await.unwrap_err();
    assert!(
        matches!(error, PublishError::NotBelieved(TrustError::NotPinned { .. })),
        "{error}"
    );
    assert_eq!(bench.catalogue.put_calls(), 0);
}

#[tokio::test]
async fn a_newest_version_that_does_not_verify_is_an_error_and_no_older_one_is_taken() {
    let bench = Bench::new();
    let stranger = Bench::new();
    let good = bench.policy(1, "");
    bench.publish(&good).await.unwrap();
    let edited = bench.policy(2, "").replacen('A', "B", 1);
    for planted in [
        stranger.policy(2, ""),
        edited,
        String::new(),
        bench.domain(2, &"0".repeat(32)),
    ] {
        bench
            .catalogue
            .overwrite("policies/d/0000000002.jws", planted.as_bytes());
        assert!(
            matches!(bench.newest().await, Err(PublishError::Untrusted { .. })),
            "{planted}"
        );
    }
    bench.catalogue.overwrite("policies/d/0000000002.jws", b"\xff\xfe");
    assert!(matches!(bench.newest().await, Err(PublishError::Untrusted { .. })));
}

#[tokio::test]
async fn a_policy_at_the_place_of_another_is_refused() {
    let bench = Bench::new();
    // An old version replayed as a new one, and another dataset's policy.
    bench
        .catalogue
        .overwrite("policies/d/0000000007.jws", bench.policy(1, "").as_bytes());
    let misplaced = |name: &str, path: &str| PublishError::Misplaced {
        path: path.to_owned(),
        name: name.to_owned(),
        version: 1,
    };
    assert_eq!(bench.newest().await, Err(misplaced("d", "policies/d/0000000007.jws")));
    bench
        .catalogue
        .overwrite("policies/e/0000000001.jws", bench.policy(1, "").as_bytes());
    let found = newest(&bench.catalogue, "e", &bench.trusted).await.unwrap_err();
    assert_eq!(found, misplaced("d", "policies/e/0000000001.jws"));
}

#[tokio::test]
async fn what_is_no_version_in_the_folder_is_passed_over() {
    let bench = Bench::new();
    bench.publish(&bench.policy(1, "")).await.unwrap();
    for path in [
        "policies/d/9.jws",
        "policies/d/00000000099.jws",
        "policies/d/0000000009.jws.bak",
        "policies/d/x/0000000009.jws",
    ] {
        bench.catalogue.overwrite(path, b"x");
    }
    assert_eq!(bench.newest().await, Ok(Some(1)));
}

#[tokio::test]
async fn the_history_shows_every_version_believed_or_not() {
    let bench = Bench::new();
    bench.publish(&bench.policy(1, "")).await.unwrap();
    bench.catalogue.overwrite("policies/d/0000000002.jws", b"x");
    let history = history(&bench.catalogue, "d", &bench.trusted).await.unwrap();
    let shown: Vec<(u64, bool)> = history
        .iter()
        .map(|entry| (entry.version, entry.policy.is_ok()))
        .collect();
    assert_eq!(shown, [(1, true), (2, false)]);
}

#[tokio::test]
async fn an_outage_is_no_missing_policy() {
    let bench = Bench::new();
    bench.catalogue.fail_with(Some(CatalogueError::Unavailable {
        reason: "test".to_owned(),
    }));
    let error = bench.newest().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn domains_are_published_beside_their_secrets_and_found_by_key() {
    let bench = Bench::new();
    let (first, second) = ("00".repeat(16), "11".repeat(16));
    bench.catalogue.overwrite("domains/x/3/secret", b"wrapped");
    for (version, key) in [(1, &first), (2, &second)] {
        let jws = bench.domain(version, key);
        assert_eq!(
            publish_domain(&bench.catalogue, &jws, &bench.trusted).await,
            Ok(Published::New)
        );
    }
    let newest = newest_domain(&bench.catalogue, "x", &bench.trusted)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(newest.document().version, 2);
    let by_key = |key: &str| {
        let key = key.parse().unwrap();
        domain_with_key(&bench.catalogue, "x", key, &bench.trusted)
    };
    assert_eq!(by_key(&first).await.unwrap().unwrap().document().version, 1);
    assert!(by_key(&"22".repeat(16)).await.unwrap().is_none());
    assert!(bench.catalogue.get("domains/x/2/document.jws").await.unwrap().is_some());
    bench.catalogue.overwrite("domains/x/2/document.jws", b"x");
    assert!(newest_domain(&bench.catalogue, "x", &bench.trusted).await.is_err());
    assert!(by_key(&second).await.is_err());
    assert!(by_key(&first).await.unwrap().is_some());
}
