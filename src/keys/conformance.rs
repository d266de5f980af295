//! What every key service and every catalogue must do: suites that each implementation runs in its tests.
//!
//! A suite ends with `Err` and a sentence that says which part of the contract was broken.

mod attested;
mod client_keys;

pub use attested::{Answer, Ask, Attested, AttestedKeyService, AttestedKeys, attested_key_service};
pub use client_keys::client_key_service;

use super::catalogue::{Catalogue, CatalogueError, MAX_OBJECT, Put};
use super::service::{EncryptionContext, KeyService, KeyServiceError};
use crate::secret::SecretBytes;

/// Runs the contract of [`KeyService`] with two enabled symmetric keys that this identity may use.
pub async fn key_service(service: &dyn KeyService, arn: &str, other_arn: &str) -> Result<(), String> {
    ensure(arn != other_arn, "the suite needs two different keys")?;
    generated_keys_unwrap_to_themselves(service, arn).await?;
    wrapped_keys_open_only_under_their_key_and_context(service, arn, other_arn).await?;
    edited_wrapped_keys_are_refused(service, arn).await?;
    missing_keys_are_unusable(service, arn).await?;
    descriptions_and_identity_are_stable(service, arn).await
}

async fn generated_keys_unwrap_to_themselves(service: &dyn KeyService, arn: &str) -> Result<(), String> {
    let context = EncryptionContext::for_data_key("payments", "default", "pii");
    let mut seen: Vec<SecretBytes> = Vec::new();
    for len in [32, 64, 32, 64] {
        let key = service
            .generate(arn, len, &context)
            .await
            .map_err(|e| format!("generate({len}) failed: {e}"))?;
        ensure(
            key.plaintext.len() == len,
            "a generated key has not the length that was asked for",
        )?;
        ensure(key.arn == arn, "generate names another key than the one asked for")?;
        ensure(
            !contains(&key.wrapped, key.plaintext.expose()),
            "wrapped bytes hold the key in clear",
        )?;
        ensure(!seen.contains(&key.plaintext), "two generated keys are equal")?;
        ensure(
            key.plaintext.expose().iter().any(|b| *b != 0),
            "a generated key is all zeros",
        )?;
        for _ in 0..2 {
            let opened = service
                .unwrap(arn, &key.wrapped, &context)
                .await
                .map_err(|e| format!("unwrap failed: {e}"))?;
            ensure(opened == key.plaintext, "unwrap gives other bytes than generate did")?;
        }
        seen.push(key.plaintext);
    }
    let domain = EncryptionContext::for_domain("customers");
    let key = service
        .generate(arn, 64, &domain)
        .await
        .map_err(|e| format!("generate for a domain failed: {e}"))?;
    let opened = service
        .unwrap(arn, &key.wrapped, &domain)
        .await
        .map_err(|e| format!("unwrap failed: {e}"))?;
    ensure(opened == key.plaintext, "a domain secret does not come back as it was")
}

async fn wrapped_keys_open_only_under_their_key_and_context(
    service: &dyn KeyService,
    arn: &str,
    other_arn: &str,
) -> Result<(), String> {
    let context = EncryptionContext::for_data_key("payments", "default", "pii");
    let key = service
        .generate(arn, 32, &context)
        .await
        .map_err(|e| format!("generate failed: {e}"))?;
    let others = [
        (
            "another dataset",
            EncryptionContext::for_data_key("refunds", "default", "pii"),
        ),
        (
            "another policy key",
            EncryptionContext::for_data_key("payments", "tenant-7", "pii"),
        ),
        (
            "another ACL",
            EncryptionContext::for_data_key("payments", "default", "ops"),
        ),
        (
            "swapped values",
            EncryptionContext::for_data_key("payments", "pii", "default"),
        ),
        (
            "other letter case",
            EncryptionContext::for_data_key("Payments", "default", "pii"),
        ),
        ("a domain's context", EncryptionContext::for_domain("payments")),
        ("no context", EncryptionContext::default()),
    ];
    for (what, other) in &others {
        let answer = service.unwrap(arn, &key.wrapped, other).await;
        ensure_refused(answer, &format!("a wrapped key under {what}"))?;
    }
    ensure_not_opened(
        service.unwrap(other_arn, &key.wrapped, &context).await,
        "a wrapped key under another KMS key",
    )
}

async fn edited_wrapped_keys_are_refused(service: &dyn KeyService, arn: &str) -> Result<(), String> {
    let context = EncryptionContext::for_data_key("payments", "default", "pii");
    let key = service
        .generate(arn, 32, &context)
        .await
        .map_err(|e| format!("generate failed: {e}"))?;
    let last = key.wrapped.len().saturating_sub(1);
    for at in [0, last / 2, last] {
        let mut edited = key.wrapped.clone();
        if let Some(byte) = edited.get_mut(at) {
            *byte ^= 1;
        }
        ensure_not_opened(
            service.unwrap(arn, &edited, &context).await,
            &format!("wrapped bytes with byte {at} changed"),
        )?;
    }
    let cut = key.wrapped.get(..last).unwrap_or_default();
    ensure_not_opened(
        service.unwrap(arn, cut, &context).await,
        "wrapped bytes without their last byte",
    )?;
    let grown = [key.wrapped.as_slice(), &[0]].concat();
    ensure_not_opened(
        service.unwrap(arn, &grown, &context).await,
        "wrapped bytes with one more byte",
    )?;
    ensure_not_opened(service.unwrap(arn, b"x", &context).await, "one byte as a wrapped key")
}

/// A service that makes keys on demand (as `MemoryKms` does) may know this one; then it must still not open
/// what another key wrapped.
async fn missing_keys_are_unusable(service: &dyn KeyService, arn: &str) -> Result<(), String> {
    let missing = match arn.rsplit_once('/') {
        Some((start, _)) => format!("{start}/00000000-0000-4000-8000-000000000000"),
        None => format!("{arn}-missing"),
    };
    let context = EncryptionContext::for_data_key("payments", "default", "pii");
    match service.generate(&missing, 32, &context).await {
        Ok(key) => ensure_not_opened(
            service.unwrap(arn, &key.wrapped, &context).await,
            "another key's wrapped bytes",
        ),
        Err(KeyServiceError::KeyUnusable { .. } | KeyServiceError::NotPermitted { .. }) => Ok(()),
        Err(other) => Err(format!("a key that does not exist ends with: {other}")),
    }
}

async fn descriptions_and_identity_are_stable(service: &dyn KeyService, arn: &str) -> Result<(), String> {
    let key = service
        .describe(arn)
        .await
        .map_err(|e| format!("describe failed: {e}"))?;
    ensure(key.arn == arn, "describe names another key than the one asked for")?;
    ensure(key.enabled, "describe says that an enabled key is not enabled")?;
    let first = service.identity().await.map_err(|e| format!("identity failed: {e}"))?;
    let second = service.identity().await.map_err(|e| format!("identity failed: {e}"))?;
    ensure(!first.is_empty(), "the identity is empty")?;
    ensure(first == second, "the identity changes while the credentials stay")
}

/// Runs the contract of [`Catalogue`] on an empty one.
pub async fn catalogue(catalogue: &dyn Catalogue) -> Result<(), String> {
    objects_are_created_once(catalogue).await?;
    listings_show_what_is_below_a_folder(catalogue).await?;
    bad_paths_are_refused(catalogue).await?;
    large_objects_are_refused(catalogue).await?;
    one_of_many_writers_wins(catalogue).await
}

async fn objects_are_created_once(catalogue: &dyn Catalogue) -> Result<(), String> {
    let path = "conformance/once/0";
    ensure(
        get(catalogue, path).await?.is_none(),
        "an object is there before it was put",
    )?;
    ensure(
        put(catalogue, path, b"first").await? == Put::Created,
        "the first put did not create",
    )?;
    ensure(
        put(catalogue, path, b"second").await? == Put::Exists,
        "the second put did not find the object",
    )?;
    ensure(
        get(catalogue, path).await?.as_deref() == Some(b"first"),
        "the object is not what was put first",
    )?;
    let empty = "conformance/once/empty";
    ensure(
        put(catalogue, empty, b"").await? == Put::Created,
        "an empty object cannot be put",
    )?;
    ensure(
        get(catalogue, empty).await?.as_deref() == Some(b""),
        "an empty object does not come back",
    )?;
    let all_bytes: Vec<u8> = (0..=255).collect();
    let binary = "conformance/once/binary#x.y_z-0";
    ensure(
        put(catalogue, binary, &all_bytes).await? == Put::Created,
        "a binary object cannot be put",
    )?;
    ensure(
        get(catalogue, binary).await? == Some(all_bytes),
        "a binary object does not come back as it was",
    )
}

async fn listings_show_what_is_below_a_folder(catalogue: &dyn Catalogue) -> Result<(), String> {
    let paths = ["conformance/list/0", "conformance/list/1", "conformance/list/deep/er/2"];
    for path in paths {
        put(catalogue, path, b"x").await?;
    }
    put(catalogue, "conformance/list-not/3", b"x").await?;
    let mut listed = catalogue
        .list("conformance/list")
        .await
        .map_err(|e| format!("list failed: {e}"))?;
    listed.sort();
    ensure(
        listed == paths,
        "list does not show exactly the objects below its folder",
    )?;
    let none = catalogue
        .list("conformance/none")
        .await
        .map_err(|e| format!("list of nothing failed: {e}"))?;
    ensure(none.is_empty(), "list of a folder that does not exist shows objects")
}

async fn bad_paths_are_refused(catalogue: &dyn Catalogue) -> Result<(), String> {
    for path in [
        "",
        "/abs",
        "a//b",
        "a/",
        "../up",
        "a/../../up",
        "./a",
        "a b",
        "a\\b",
        "a\0b",
        "a%2e",
        "ä",
    ] {
        let invalid = |e: &CatalogueError| matches!(e, CatalogueError::Invalid { .. });
        let got = catalogue.get(path).await;
        ensure(got.as_ref().is_err_and(invalid), &format!("get took the path {path:?}"))?;
        let put = catalogue.put_if_absent(path, b"x").await;
        ensure(put.as_ref().is_err_and(invalid), &format!("put took the path {path:?}"))?;
        let listed = catalogue.list(path).await;
        ensure(
            listed.as_ref().is_err_and(invalid),
            &format!("list took the path {path:?}"),
        )?;
    }
    Ok(())
}

async fn large_objects_are_refused(catalogue: &dyn Catalogue) -> Result<(), String> {
    let most = vec![7_u8; MAX_OBJECT];
    ensure(
        put(catalogue, "conformance/large/most", &most).await? == Put::Created,
        "the largest object is refused",
    )?;
    ensure(
        get(catalogue, "conformance/large/most").await? == Some(most),
        "the largest object does not come back",
    )?;
    let over = vec![7_u8; MAX_OBJECT + 1];
    let refused = catalogue.put_if_absent("conformance/large/over", &over).await;
    ensure(
        matches!(refused, Err(CatalogueError::Invalid { .. })),
        "an object over the cap was taken",
    )?;
    ensure(
        get(catalogue, "conformance/large/over").await?.is_none(),
        "a refused object is there",
    )
}

async fn one_of_many_writers_wins(catalogue: &dyn Catalogue) -> Result<(), String> {
    let path = "conformance/race/0";
    let bodies: Vec<Vec<u8>> = (0..16_u8).map(|i| vec![i; 1000]).collect();
    let outcomes = join_all(bodies.iter().map(|body| catalogue.put_if_absent(path, body))).await;
    let mut winners = Vec::new();
    for (outcome, body) in outcomes.into_iter().zip(&bodies) {
        match outcome {
            Ok(Put::Created) => winners.push(body),
            Ok(Put::Exists) => {}
            Err(e) => return Err(format!("a put among many failed: {e}")),
        }
    }
    ensure(
        winners.len() == 1,
        "of many puts for one path not exactly one created the object",
    )?;
    ensure(
        get(catalogue, path).await?.as_ref() == winners.pop(),
        "the object is not the winner's",
    )
}

/// Polls all futures together, so that their calls overlap, and returns their outputs in order.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, output) in &mut waiting {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}

async fn get(catalogue: &dyn Catalogue, path: &str) -> Result<Option<Vec<u8>>, String> {
    catalogue.get(path).await.map_err(|e| format!("get {path} failed: {e}"))
}

async fn put(catalogue: &dyn Catalogue, path: &str, bytes: &[u8]) -> Result<Put, String> {
    catalogue
        .put_if_absent(path, bytes)
        .await
        .map_err(|e| format!("put {path} failed: {e}"))
}

fn ensure(holds: bool, broken: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken.to_owned()) }
}

fn ensure_refused(answer: Result<SecretBytes, KeyServiceError>, what: &str) -> Result<(), String> {
    match answer {
        Err(KeyServiceError::Refused { .. }) => Ok(()),
        Ok(_) => Err(format!("{what} was opened")),
        Err(other) => Err(format!("{what} ended with another error than Refused: {other}")),
    }
}

/// Bytes that are not those of this key may also count as somebody else's: some services (moto) read the key's name
/// from them and find no permission.
fn ensure_not_opened(answer: Result<SecretBytes, KeyServiceError>, what: &str) -> Result<(), String> {
    match answer {
        Err(KeyServiceError::NotPermitted { .. }) => Ok(()),
        answer => ensure_refused(answer, what),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MemoryCatalogue, MemoryKms};
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/6a1f1a6e-0000-4000-8000-000000000001";
    const OTHER: &str = "arn:aws:kms:eu-central-1:111122223333:key/6a1f1a6e-0000-4000-8000-000000000002";

    #[tokio::test]
    async fn the_memory_kms_keeps_the_contract() {
        assert_eq!(key_service(&MemoryKms::new(), ARN, OTHER).await, Ok(()));
    }

    #[tokio::test]
    async fn the_memory_catalogue_keeps_the_contract() {
        assert_eq!(catalogue(&MemoryCatalogue::new()).await, Ok(()));
    }

    #[tokio::test]
    async fn the_memory_kms_fails_and_counts_as_it_is_told() {
        let kms = MemoryKms::new();
        let context = EncryptionContext::for_domain("d");
        let failure = KeyServiceError::Throttled { retry_after: None };
        kms.fail_with(Some(failure.clone()));
        assert_eq!(kms.generate(ARN, 32, &context).await.err(), Some(failure));
        kms.fail_with(None);
        assert!(kms.generate(ARN, 32, &context).await.is_ok());
        kms.set_unusable(ARN, true);
        assert!(matches!(
            kms.generate(ARN, 32, &context).await,
            Err(KeyServiceError::KeyUnusable { .. })
        ));
        assert_eq!((kms.generate_calls(), kms.unwrap_calls()), (3, 0));
    }
}
