//! The catalogue's contract on a bucket.

use std::collections::BTreeSet;
use std::sync::Arc;

use sealflow::keys::{Catalogue, CatalogueError, Put, conformance};
use sealflow_storage::{CatalogueConfig, ServerSideEncryption, StorageError};
use sealflow_testbed::{HttpFault, HttpRule, When};

use crate::bench::{Bench, bench};

async fn open(bench: &Bench, prefix: &str) -> Arc<dyn Catalogue> {
    let config = CatalogueConfig {
        location: bench.location(prefix),
        options: bench.config(),
    };
    config.open().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_the_contract_of_a_catalogue() {
    let Some(bench) = bench("catalogue-contract") else {
        return;
    };
    assert_eq!(
        conformance::catalogue(open(&bench, "team/catalogue").await.as_ref()).await,
        Ok(())
    );
    // In the bucket itself, beside the prefix.
    assert_eq!(conformance::catalogue(open(&bench, "").await.as_ref()).await, Ok(()));
}

#[tokio::test]
async fn a_catalogue_sees_nothing_beside_its_prefix() {
    let Some(bench) = bench("catalogue-prefix") else { return };
    let (one, other) = (open(&bench, "a").await, open(&bench, "ab").await);
    assert_eq!(one.put_if_absent("keys/0", b"one").await, Ok(Put::Created));
    assert_eq!(other.get("keys/0").await, Ok(None));
    assert_eq!(other.list("keys").await, Ok(vec![]));
    assert_eq!(other.put_if_absent("keys/0", b"other").await, Ok(Put::Created));
    assert_eq!(one.get("keys/0").await, Ok(Some(b"one".to_vec())));
    assert_eq!(one.list("keys").await, Ok(vec!["keys/0".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_concurrent_writers_one_creates_and_its_bytes_are_there() {
    let Some(bench) = bench("catalogue-race") else { return };
    let catalogue = open(&bench, "race").await;
    for round in 0..20 {
        let path = format!("keys/{round}");
        let mut writers = Vec::new();
        for writer in 0..8_u8 {
            let (catalogue, path) = (Arc::clone(&catalogue), path.clone());
            writers.push(tokio::spawn(async move {
                let put = catalogue.put_if_absent(&path, &[writer; 64]).await.unwrap();
                (put == Put::Created).then_some(writer)
            }));
        }
        let mut winners = BTreeSet::new();
        for writer in writers {
            winners.extend(writer.await.unwrap());
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        let winner = *winners.first().unwrap();
        assert_eq!(catalogue.get(&path).await, Ok(Some(vec![winner; 64])));
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_there_and_one_that_refuses_are_told_apart_from_an_outage() {
    let Some(bench) = bench("catalogue-errors") else { return };
    let missing = CatalogueConfig {
        location: format!("s3://{}-not/a", bench.bucket).parse().unwrap(),
        options: bench.config(),
    };
    let catalogue = missing.open().await.unwrap();
    for error in [
        catalogue.get("a").await.unwrap_err(),
        catalogue.put_if_absent("a", b"x").await.unwrap_err(),
        catalogue.list("a").await.unwrap_err(),
    ] {
        assert!(
            matches!(&error, CatalogueError::Invalid { reason, .. } if reason.contains("no such bucket")),
            "{error}"
        );
    }
    assert!(missing.probe().await.is_err());
    let catalogue = open(&bench, "a").await;
    let answer = |status, code| HttpRule {
        method: "",
        path: "",
        when: When::Always,
        fault: HttpFault::Answer { status, code },
    };
    bench.proxy.set(vec![answer(403, "AccessDenied")]);
    for error in [
        catalogue.get("a").await.unwrap_err(),
        catalogue.put_if_absent("a", b"x").await.unwrap_err(),
        catalogue.list("a").await.unwrap_err(),
    ] {
        assert_eq!(error, CatalogueError::NotPermitted { path: "a".to_owned() });
    }
    // A refusal is not repeated.
    assert_eq!(bench.proxy.felt(), 3);
    bench.proxy.set(vec![answer(503, "SlowDown")]);
    for error in [
        catalogue.get("a").await.unwrap_err(),
        catalogue.put_if_absent("a", b"x").await.unwrap_err(),
        catalogue.list("a").await.unwrap_err(),
    ] {
        assert!(
            error.is_retryable() && error.to_string().contains("SlowDown"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_probe_reads_and_leaves_nothing() {
    let Some(bench) = bench("catalogue-probe") else { return };
    let config = CatalogueConfig {
        location: bench.location("probe"),
        options: bench.config(),
    };
    assert_eq!(config.probe().await, Ok(()));
    assert_eq!(bench.proxy.count("GET"), bench.proxy.requests().len());
    bench.proxy.set(vec![HttpRule {
        method: "GET",
        path: "",
        when: When::Always,
        fault: HttpFault::Answer {
            status: 403,
            code: "AccessDenied",
        },
    }]);
    assert!(matches!(config.probe().await, Err(StorageError::NotPermitted { .. })));
}

#[tokio::test]
async fn objects_are_encrypted_by_the_server_as_configured() {
    let Some(bench) = bench("catalogue-sse") else { return };
    let key = "arn:aws:kms:us-east-1:111122223333:key/6a1f1a6e-0000-4000-8000-000000000001";
    let kms = ServerSideEncryption::Kms {
        key: key.to_owned(),
        bucket_key: Some(true),
    };
    for (name, encryption, expected) in [
        (
            "aes",
            ServerSideEncryption::Aes256 {},
            "x-amz-server-side-encryption: aes256",
        ),
        ("kms", kms, "x-amz-server-side-encryption: aws:kms"),
    ] {
        let mut options = bench.config();
        options.server_side_encryption = Some(encryption);
        let location = bench.location("sse");
        let catalogue = CatalogueConfig { location, options }.open().await.unwrap();
        assert_eq!(catalogue.put_if_absent(name, b"x").await, Ok(Put::Created));
        assert_eq!(catalogue.get(name).await, Ok(Some(b"x".to_vec())));
        let head = bench.ask("HEAD", &format!("/sse/{name}")).to_lowercase();
        assert!(head.contains(expected), "{head}");
        assert!(name != "kms" || head.contains(key), "{head}");
    }
}
