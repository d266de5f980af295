//! A bucket of one test, and a proxy before it.

use std::time::Duration;

use bytes::Bytes;
use sealflow::secret::SecretString;
use sealflow::units::Span;
use sealflow_kms::StaticCredentials;
use sealflow_storage::{BucketConfig, Location, Place};
use sealflow_testbed::{HttpProxy, ask_s3, make_bucket, moto_endpoint, or_skip};

/// A bucket.
pub(crate) struct Bench {
    endpoint: String,
    pub(crate) bucket: String,
    pub(crate) proxy: HttpProxy,
}

/// `None` on a machine without moto, and the ledger says so.
pub(crate) fn bench(test: &str) -> Option<Bench> {
    let endpoint = or_skip(test, moto_endpoint())?;
    let proxy = HttpProxy::start(&endpoint).unwrap();
    // moto looks whether there is an object, and then puts one: two writers may both find none. S3 does it in one step.
    proxy.one_write_at_a_time();
    Some(Bench {
        bucket: make_bucket(&endpoint, test),
        endpoint,
        proxy,
    })
}

pub(crate) fn config(endpoint: &str) -> BucketConfig {
    BucketConfig {
        endpoint: Some(endpoint.to_owned()),
        credentials: Some(StaticCredentials {
            access_key_id: "AKIAMOTO".to_owned(),
            secret_access_key: SecretString::new("anything".to_owned()),
            session_token: None,
        }),
        timeout: Span(Duration::from_secs(20)),
        attempts: 3,
        ..BucketConfig::default()
    }
}

impl Bench {
    pub(crate) fn location(&self, prefix: &str) -> Location {
        format!("s3://{}/{prefix}", self.bucket).parse().unwrap()
    }

    /// Behind the proxy.
    pub(crate) fn config(&self) -> BucketConfig {
        config(&self.proxy.endpoint())
    }

    pub(crate) async fn place(&self, prefix: &str) -> Place {
        Place::open(&self.location(prefix), &self.config()).await.unwrap()
    }

    pub(crate) async fn place_with(&self, change: impl FnOnce(&mut BucketConfig)) -> Place {
        let mut config = self.config();
        change(&mut config);
        Place::open(&self.location("data"), &config).await.unwrap()
    }

    /// Past client and proxy: what the server itself says. `path` is below the bucket.
    pub(crate) fn ask(&self, method: &str, path: &str) -> String {
        ask_s3(&self.endpoint, method, &format!("/{}{path}", self.bucket))
    }

    /// How many uploads the server holds that are neither completed nor aborted.
    pub(crate) fn unfinished(&self) -> usize {
        let listed = self.ask("GET", "?uploads");
        assert!(listed.contains("ListMultipartUploadsResult"), "{listed}");
        listed.matches("<UploadId>").count()
    }

    /// The same, when what is still under way has ended.
    pub(crate) async fn unfinished_at_last(&self) -> usize {
        for _ in 0..200 {
            if self.unfinished() == 0 {
                return 0;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.unfinished()
    }
}

/// Bytes that differ everywhere, so that parts in a wrong order, twice or torn are noticed.
pub(crate) fn pattern(len: usize, seed: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut draw = sealflow_testbed::Draw::new(seed);
    while bytes.len() < len {
        bytes.extend_from_slice(&draw.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}
