//! Writing, reading, listing and cleaning: the same in a folder and in a bucket, and what only a bucket has.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sealflow::clock::UnixMillis;
use sealflow::keys::Put;
use sealflow_storage::{BucketConfig, Location, Place, StorageError};
use sealflow_testbed::{HttpFault, HttpRule, When};

use crate::bench::{bench, pattern};

const MIB: usize = 1 << 20;

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixMillis(u64::try_from(since.as_millis()).unwrap())
}

/// What every place does.
async fn keeps_the_contract(place: &Place) {
    // Written in odd pieces, beyond one part of a bucket.
    let whole = pattern(20 * MIB + 13, 1);
    let path = "topic=a/partition=0/00000000000000000000-abc.parquet";
    let mut writer = place.writer(path, None).await.unwrap();
    for piece in whole.chunks(MIB + 7) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(writer.written(), whole.len() as u64);
    assert_eq!(
        place.size(path).await,
        Ok(None),
        "an object appears before it is finished"
    );
    assert_eq!(writer.finish().await, Ok(Put::Created));
    assert!(place.read(path, 32 * MIB).await.unwrap() == whole);
    assert_eq!(place.size(path).await, Ok(Some(whole.len() as u64)));

    // Nothing is replaced, be it small or large.
    for len in [3, 9 * MIB] {
        let mut writer = place.writer(path, Some(len as u64)).await.unwrap();
        writer.write(pattern(len, 2)).await.unwrap();
        assert_eq!(writer.finish().await, Ok(Put::Exists));
    }
    assert_eq!(
        place.put_if_absent(path, Bytes::from_static(b"x")).await,
        Ok(Put::Exists)
    );
    assert!(place.read(path, 32 * MIB).await.unwrap() == whole);

    // Ranges, cut at the end.
    let range = place.read_range(path, 9_000_000..9_000_100).await.unwrap();
    assert!(range == whole.slice(9_000_000..9_000_100));
    let end = whole.len() as u64;
    assert!(place.read_range(path, end - 8..end + 100).await.unwrap() == whole.slice(whole.len() - 8..));
    assert!(place.read_range(path, 5..5).await.is_err());
    assert!(matches!(place.read(path, 100).await, Err(StorageError::Invalid { .. })));
    assert!(matches!(
        place.read_range("none", 0..1).await,
        Err(StorageError::NotFound { .. })
    ));
    assert!(matches!(
        place.read("none", 1).await,
        Err(StorageError::NotFound { .. })
    ));

    // Empty ones are objects too.
    assert_eq!(
        place.writer("empty", None).await.unwrap().finish().await,
        Ok(Put::Created)
    );
    assert_eq!(place.size("empty").await, Ok(Some(0)));

    // Given up, or forgotten, an object never appears.
    for len in [3, 17 * MIB] {
        let mut writer = place.writer("never", None).await.unwrap();
        writer.write(pattern(len, 3)).await.unwrap();
        writer.abort().await;
        let mut writer = place.writer("never", None).await.unwrap();
        writer.write(pattern(len, 3)).await.unwrap();
        drop(writer);
    }
    assert_eq!(place.size("never").await, Ok(None));

    // Pages, in order.
    for name in ["c", "a", "b/2", "b/10", "d"] {
        let path = format!("list/{name}");
        assert_eq!(
            place.put_if_absent(&path, Bytes::from_static(b"xy")).await,
            Ok(Put::Created)
        );
    }
    place.put_if_absent("list-not/e", Bytes::new()).await.unwrap();
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = place.list("list", after.as_deref(), 2).await.unwrap();
        assert!(page.objects.len() <= 2 && page.objects.iter().all(|object| object.size == 2));
        found.extend(page.objects.iter().map(|object| object.path.clone()));
        if !page.has_more {
            break;
        }
        after = found.last().cloned();
    }
    assert_eq!(found, ["list/a", "list/b/10", "list/b/2", "list/c", "list/d"]);
    assert_eq!(place.list("nothing", None, 10).await.unwrap().objects, []);

    // Deleting is for ever, and twice is once.
    assert_eq!(place.delete("list/a").await, Ok(()));
    assert_eq!(place.delete("list/a").await, Ok(()));
    assert_eq!(place.size("list/a").await, Ok(None));
    assert_eq!(place.size("list/b/10").await, Ok(Some(2)));

    for bad in [
        "", "/a", "a//b", "../a", "a/./b", "a b", "a\\b", "ä", "a#1", "a/b#22", "a#1/b",
    ] {
        assert!(
            matches!(place.size(bad).await, Err(StorageError::Invalid { .. })),
            "{bad}"
        );
        assert!(place.writer(bad, None).await.is_err(), "{bad}");
        assert!(place.put_if_absent(bad, Bytes::new()).await.is_err(), "{bad}");
    }
}

fn files_below(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}

#[tokio::test]
async fn a_folder_keeps_the_contract_of_a_place() {
    let root = tempfile::tempdir().unwrap();
    let location = Location::Folder(root.path().join("new/place"));
    let place = Place::open(&location, &BucketConfig::default()).await.unwrap();
    keeps_the_contract(&place).await;
    let listed = place.list("", None, 100).await.unwrap().objects.len();
    assert_eq!(files_below(root.path()), listed, "a temporary file is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_the_contract_of_a_place() {
    let Some(bench) = bench("place-contract") else { return };
    keeps_the_contract(&bench.place("data/sets").await).await;
    assert_eq!(bench.unfinished_at_last().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_mebibytes_are_uploaded_in_parts_a_few_at_a_time() {
    let Some(bench) = bench("place-memory") else { return };
    let place = bench.place("data").await;
    let slow = HttpFault::Delay(Duration::from_millis(300));
    bench.proxy.set(vec![HttpRule {
        method: "PUT",
        path: "partNumber=",
        when: When::Always,
        fault: slow,
    }]);
    let whole = pattern(32 * MIB, 7);
    let mut writer = place.writer("large", None).await.unwrap();
    for piece in whole.chunks(64 << 10) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(writer.finish().await, Ok(Put::Created));
    let parts = bench
        .proxy
        .requests()
        .iter()
        .filter(|r| r.contains("partNumber="))
        .count();
    assert_eq!(parts, 4, "{:?}", bench.proxy.requests());
    assert!(bench.proxy.peak() <= 3, "{}", bench.proxy.peak());
    assert!(place.read("large", 64 * MIB).await.unwrap() == whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_waits_when_its_parts_do_not_get_away() {
    let Some(bench) = bench("place-stall") else { return };
    let place = bench.place("data").await;
    bench.proxy.set(vec![HttpRule {
        method: "PUT",
        path: "partNumber=",
        when: When::Always,
        fault: HttpFault::Delay(Duration::from_secs(3_600)),
    }]);
    let mut writer = place.writer("stalled", None).await.unwrap();
    let mut taken = 0;
    let piece = pattern(MIB, 1);
    while tokio::time::timeout(Duration::from_secs(2), writer.write(piece.clone()))
        .await
        .is_ok()
    {
        taken += MIB;
        assert!(taken <= 64 * MIB, "memory has no bound");
    }
    // Three parts on their way, one gathered.
    assert!((24 * MIB..=40 * MIB).contains(&taken), "{taken}");
    // A write that was given up half way has ended the object.
    assert!(writer.write(Bytes::from_static(b"x")).await.is_err());
    assert!(writer.finish().await.is_err());
    bench.proxy.set(vec![]);
    assert_eq!(bench.unfinished_at_last().await, 0);
    assert_eq!(place.size("stalled").await, Ok(None));
}

#[tokio::test]
async fn uploads_that_a_crash_left_are_found_and_aborted_if_they_are_old_and_ours() {
    let Some(bench) = bench("place-leftovers") else { return };
    for key in ["data/a/b", "data/a/c", "data/d", "data2/e"] {
        let begun = bench.ask("POST", &format!("/{key}?uploads="));
        assert!(begun.contains("<UploadId>"), "{begun}");
    }
    let place = bench.place("data").await;
    assert_eq!(place.clean_leftovers("", UnixMillis(0)).await, Ok(0));
    let later = UnixMillis(now().0 + 86_400_000);
    assert_eq!(place.clean_leftovers("a", later).await, Ok(2));
    assert_eq!(place.clean_leftovers("", later).await, Ok(1));
    assert_eq!(place.clean_leftovers("", later).await, Ok(0));
    assert_eq!(bench.unfinished(), 1, "what is beside the prefix was touched");
}

#[tokio::test]
async fn files_that_a_crash_left_are_found_and_removed_if_they_are_old() {
    let root = tempfile::tempdir().unwrap();
    let location = Location::Folder(root.path().to_owned());
    let place = Place::open(&location, &BucketConfig::default()).await.unwrap();
    let mut writer = place.writer("a/b", None).await.unwrap();
    writer.write(pattern(2 * MIB, 1)).await.unwrap();
    assert_eq!(files_below(root.path()), 1);
    // As a crash does.
    std::mem::forget(writer);
    assert_eq!(place.list("", None, 10).await.unwrap().objects, []);
    assert_eq!(place.clean_leftovers("", UnixMillis(now().0 - 3_600_000)).await, Ok(0));
    assert_eq!(place.clean_leftovers("", UnixMillis(now().0 + 3_600_000)).await, Ok(1));
    assert_eq!(files_below(root.path()), 0);
}
