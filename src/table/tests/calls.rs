//! What files cost at the key service.

use super::*;

/// Two pairs of key and ACL beside the footer's, and nothing that is sealed by value.
fn three_pairs() -> String {
    let three = POLICY
        .replace(
            "  ops: { arn: ",
            "  bank: { arn: \"arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-3333-3333-333333333333\" }\n  ops: { arn: ",
        )
        .replace(
            "{ path: email, key: pii, acl: pii }",
            "{ path: email, key: pii, acl: pii, at: column }",
        )
        .replace(
            "{ path: card, key: pii, acl: pii, at: column }",
            "{ path: card, key: bank, acl: pii, at: column }",
        );
    assert_ne!(three, POLICY);
    three
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_costs_a_call_for_each_pair_of_key_and_acl_and_later_ones_none() {
    let bench = Bench::new(&three_pairs());
    let calls = || (bench.kms.generate_calls(), bench.kms.unwrap_calls());
    let first = bench.file().await;
    assert_eq!(calls(), (3, 0), "the first file that is written");
    let mut files = vec![first];
    for _ in 0..9 {
        files.push(bench.file().await);
    }
    assert_eq!(calls(), (3, 0), "ten files");
    let reader = bench.reader();
    let read_one = async |file: &Bytes| {
        let (rows, _) = read(&reader, file, PATH, "analyst", &Query::default()).await.unwrap();
        assert_eq!(texts(&rows, "card")[7], Some(card(7)));
    };
    read_one(&files[0]).await;
    assert_eq!(calls(), (3, 3), "the first file that is read");
    for file in &files {
        read_one(file).await;
    }
    assert_eq!(calls(), (3, 3), "eleven readings");
    // Past the age of what was unwrapped the key service is asked again, so that a key that was disabled stops opening.
    bench.clock.advance(Duration::from_secs(61));
    read_one(&files[0]).await;
    assert_eq!(calls(), (3, 6));
    // Past the life of a key that wraps, the next file has new ones.
    bench.clock.advance(Duration::from_secs(3_600));
    let later = bench.file().await;
    assert_eq!(bench.kms.generate_calls(), 6);
    assert_eq!(bench.kms.unwrap_calls(), 6);
    read_one(&later).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_files_at_a_time_ask_the_key_service_once_for_each_key() {
    let bench = Arc::new(Bench::new(&three_pairs()));
    bench.kms.set_delay(Duration::from_millis(30));
    let writing: Vec<_> = (0..16)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.file().await })
        })
        .collect();
    let mut files = Vec::new();
    for file in writing {
        files.push(file.await.unwrap());
    }
    assert_eq!(bench.kms.generate_calls(), 3);
    let reader = Arc::new(bench.reader());
    let reading: Vec<_> = files
        .into_iter()
        .map(|file| {
            let reader = Arc::clone(&reader);
            tokio::spawn(async move {
                read(&reader, &file, PATH, "analyst", &Query::default())
                    .await
                    .unwrap()
                    .0
            })
        })
        .collect();
    for rows in reading {
        assert_eq!(texts(&rows.await.unwrap(), "card")[199], Some(card(199)));
    }
    assert_eq!((bench.kms.generate_calls(), bench.kms.unwrap_calls()), (3, 3));
}
