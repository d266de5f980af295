//! Documents of enclave keys in the catalogue, put if absent: those that owners signed as `enclave-keys/<dataset>/<n>`, n from 0 and
//! growing; those that enclaves attest, which live for hours, as `enclave-keys-attested/<dataset>/<hour>-<n>`, so that none of the one
//! kind displaces one of the other, and so that nobody lists what has ended.
//!
//! Whoever may write to the catalogue can put anything there, so nothing is believed for where it lies: readers get the texts
//! of the last few, and verify them.

use super::{EnclaveKeysError, MAX_DOCUMENT_BYTES, VerifiedEnclaveKeys};
use crate::clock::UnixMillis;
use crate::keys::{Catalogue, Put};

/// How many documents of a dataset are looked at, the last first: what somebody else puts before them makes no reader work
/// without end.
pub const MAX_LOOKED_AT: usize = 8;
/// Numbers have ten digits, so that their order is that of their names.
const MAX_NUMBER: u64 = 9_999_999_999;
/// How often another publisher may be faster.
const MAX_TRIES: usize = 16;
/// How long an hour is, in milliseconds.
const HOUR: u64 = 3_600_000;
/// Attested documents of this hour, and of so many before it, are looked at. On Nitro one lives for three at most.
const MAX_HOURS: u64 = 3;
/// Attested documents of one hour: other keys, other labels, and what somebody else puts there.
const MAX_AN_HOUR: u64 = 8;

/// Puts a document that was verified into the catalogue; its number. The last one, put again, keeps its number.
///
/// # Errors
/// [`EnclaveKeysError::Full`], [`EnclaveKeysError::Catalogue`]
pub async fn publish(catalogue: &dyn Catalogue, document: &VerifiedEnclaveKeys) -> Result<u64, EnclaveKeysError> {
    let dataset = document.keys().dataset();
    for _ in 0..MAX_TRIES {
        let last = numbers(catalogue, dataset).await?.last().copied();
        if let Some(last) = last {
            let there = catalogue.get(&path(dataset, last)).await?;
            if there.as_deref() == Some(document.text().as_bytes()) {
                return Ok(last);
            }
        }
        let next = last.map_or(0, |last| last + 1);
        if next > MAX_NUMBER {
            break;
        }
        let path = path(dataset, next);
        if catalogue.put_if_absent(&path, document.text().as_bytes()).await? == Put::Created {
            return Ok(next);
        }
    }
    Err(EnclaveKeysError::Full {
        dataset: dataset.to_owned(),
    })
}

/// The last documents of a dataset, the newest first, as they lie there: nobody has verified them.
///
/// # Errors
/// [`EnclaveKeysError::Catalogue`]
pub async fn last(catalogue: &dyn Catalogue, dataset: &str) -> Result<Vec<String>, EnclaveKeysError> {
    let mut texts = Vec::new();
    for number in numbers(catalogue, dataset).await?.into_iter().rev().take(MAX_LOOKED_AT) {
        // What is no text, or too long, verifies nowhere.
        texts.extend(text(catalogue.get(&path(dataset, number)).await?));
    }
    Ok(texts)
}

/// Puts a document that an enclave attests into the catalogue, unless the hour in which it was made has one of the same keys and labels
/// already: several pipelines publish one. Whether it was put.
///
/// # Errors
/// [`EnclaveKeysError::Full`], [`EnclaveKeysError::Catalogue`]
pub async fn publish_attested(
    catalogue: &dyn Catalogue,
    document: &VerifiedEnclaveKeys,
    verify: impl Fn(&str) -> Option<VerifiedEnclaveKeys>,
) -> Result<bool, EnclaveKeysError> {
    let dataset = document.keys().dataset();
    let hour = document.issued().0 / HOUR;
    for number in 0..MAX_AN_HOUR {
        let path = attested_path(dataset, hour, number);
        if catalogue.put_if_absent(&path, document.text().as_bytes()).await? == Put::Created {
            return Ok(true);
        }
        // Only what clients believe as well stands for it.
        let there = text(catalogue.get(&path).await?);
        if there
            .as_deref()
            .and_then(&verify)
            .is_some_and(|there| there.keys() == document.keys())
        {
            return Ok(false);
        }
    }
    Err(EnclaveKeysError::Full {
        dataset: dataset.to_owned(),
    })
}

/// The attested documents of a dataset that may still count at `now`, the newest first, as they lie there: nobody has verified them.
///
/// # Errors
/// [`EnclaveKeysError::Catalogue`]
pub async fn last_attested(
    catalogue: &dyn Catalogue,
    dataset: &str,
    now: UnixMillis,
) -> Result<Vec<String>, EnclaveKeysError> {
    let (mut texts, this) = (Vec::new(), now.0 / HOUR);
    for hour in (this.saturating_sub(MAX_HOURS)..=this).rev() {
        let mut of_hour = Vec::new();
        for number in 0..MAX_AN_HOUR {
            let Some(bytes) = catalogue.get(&attested_path(dataset, hour, number)).await? else {
                break;
            };
            of_hour.extend(text(Some(bytes)));
        }
        texts.extend(of_hour.into_iter().rev());
    }
    Ok(texts)
}

/// What may be a document.
fn text(bytes: Option<Vec<u8>>) -> Option<String> {
    let text = String::from_utf8(bytes?).ok()?;
    (text.len() <= MAX_DOCUMENT_BYTES).then_some(text)
}

fn attested_path(dataset: &str, hour: u64, number: u64) -> String {
    format!("enclave-keys-attested/{dataset}/{hour:010}-{number}")
}

fn path(dataset: &str, number: u64) -> String {
    format!("enclave-keys/{dataset}/{number:010}")
}

/// The numbers that are taken, lowest first.
async fn numbers(catalogue: &dyn Catalogue, dataset: &str) -> Result<Vec<u64>, EnclaveKeysError> {
    let folder = format!("enclave-keys/{dataset}");
    let number = |found: &String| -> Option<u64> {
        let digits = found.strip_prefix(&folder)?.strip_prefix('/')?;
        let number = digits.parse().ok()?;
        (path(dataset, number) == *found).then_some(number)
    };
    let mut numbers: Vec<u64> = catalogue.list(&folder).await?.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DAY, NOW, keys};
    use super::super::{VerifiedEnclaveKeys, signed};
    use super::*;
    use crate::jose::PrivateJwk;
    use crate::keys::testing::MemoryCatalogue;
    use crate::policy::TrustedOwners;

    fn documents(count: u64) -> Vec<VerifiedEnclaveKeys> {
        let owner = PrivateJwk::generate().unwrap();
        let trusted = TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap();
        let one = |second| {
            let at = NOW.plus(std::time::Duration::from_secs(second));
            let jws = signed::sign(&keys("payments"), at, DAY, &owner).unwrap();
            signed::verify(&jws, &trusted, at).unwrap()
        };
        (0..count).map(one).collect()
    }

    #[tokio::test]
    async fn documents_get_numbers_that_grow_and_the_last_ones_come_first() {
        let catalogue = MemoryCatalogue::new();
        assert_eq!(last(&catalogue, "payments").await.unwrap(), Vec::<String>::new());
        let documents = documents(10);
        for (n, document) in documents.iter().enumerate() {
            assert_eq!(publish(&catalogue, document).await.unwrap(), n as u64);
            assert_eq!(publish(&catalogue, document).await.unwrap(), n as u64, "again");
        }
        let texts: Vec<&str> = documents
            .iter()
            .rev()
            .take(MAX_LOOKED_AT)
            .map(VerifiedEnclaveKeys::text)
            .collect();
        assert_eq!(last(&catalogue, "payments").await.unwrap(), texts);
        assert_eq!(last(&catalogue, "payment").await.unwrap(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_somebody_else_puts_there_is_passed_over_or_stops_without_end_nowhere() {
        let catalogue = MemoryCatalogue::new();
        let documents = documents(2);
        publish(&catalogue, &documents[0]).await.unwrap();
        for name in ["x", "1", "00000000001", "0000000001.jws", "0000000002/0000000003"] {
            let path = format!("enclave-keys/payments/{name}");
            catalogue.put_if_absent(&path, b"x").await.unwrap();
        }
        catalogue
            .put_if_absent("enclave-keys/payments/0000000004", &[0xff])
            .await
            .unwrap();
        catalogue
            .put_if_absent("enclave-keys/payments/0000000005", &vec![b'a'; MAX_DOCUMENT_BYTES + 1])
            .await
            .unwrap();
        assert_eq!(publish(&catalogue, &documents[1]).await.unwrap(), 6);
        assert_eq!(
            last(&catalogue, "payments").await.unwrap(),
            [documents[1].text(), documents[0].text()]
        );
        catalogue
            .put_if_absent("enclave-keys/payments/9999999999", b"x")
            .await
            .unwrap();
        assert!(matches!(
            publish(&catalogue, &documents[0]).await,
            Err(EnclaveKeysError::Full { .. })
        ));
    }
}
