//! An object of a bucket in parts: gathered, sent a few at a time, completed on the condition that nothing is there.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, MultipartUpload, ObjectStore as _, PutMode, PutOptions, PutPayloadMut, Result};
use sealflow::keys::Put;
use tokio::task::{JoinError, JoinSet};

use crate::bucket::{Bucket, Token};
use crate::error::NoAnswer;

/// Parts have at least 5 MiB; this is the first ones' size.
pub(crate) const FIRST_PART: usize = 8 << 20;
/// The most parts of an upload (Amazon S3 User Guide, "Amazon S3 multipart upload limits").
const MAX_PARTS: u32 = 10_000;
/// After so many, parts are twice as large: ten thousand hold 8 TiB, and what has less than 8 GiB has parts of one size.
const PARTS_OF_ONE_SIZE: u32 = 1_000;
/// Parts on their way at once. With the one that is being gathered, memory is bounded by this many and one.
pub(crate) const IN_FLIGHT: usize = 3;

/// Gathers parts and sends them.
pub(crate) struct PartsWriter {
    bucket: Arc<Bucket>,
    key: Path,
    gathered: PutPayloadMut,
    size_hint: u64,
    upload: Option<Upload>,
}

struct Upload {
    upload: Box<dyn MultipartUpload>,
    token: Token,
    parts: u32,
    in_flight: JoinSet<Result<()>>,
}

impl PartsWriter {
    pub(crate) fn new(bucket: Arc<Bucket>, key: Path, size_hint: Option<u64>) -> Self {
        Self {
            bucket,
            key,
            gathered: PutPayloadMut::new(),
            size_hint: size_hint.unwrap_or(0),
            upload: None,
        }
    }

    /// Bytes in memory: what is gathered, and parts on their way.
    pub(crate) fn buffered(&self) -> usize {
        let on_their_way = self.upload.as_ref().map_or(0, |upload| {
            upload.in_flight.len() * part_size(upload.parts.saturating_sub(1), self.size_hint)
        });
        self.gathered.content_length() + on_their_way
    }

    /// Appends.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        loop {
            let part = self.upload.as_ref().map_or(0, |upload| upload.parts);
            let room = part_size(part, self.size_hint) - self.gathered.content_length();
            if bytes.len() < room {
                self.gathered.push(bytes);
                return Ok(());
            }
            self.gathered.push(bytes.split_to(room));
            self.send().await?;
        }
    }

    /// Sends what is gathered as a part.
    async fn send(&mut self) -> Result<()> {
        let payload = std::mem::take(&mut self.gathered).freeze();
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => {
                let (upload, token) = self.bucket.begin(&self.key).await?;
                self.upload.insert(Upload {
                    upload,
                    token,
                    parts: 0,
                    in_flight: JoinSet::new(),
                })
            }
        };
        if upload.parts == MAX_PARTS {
            return Err(failed("an object of more than 8 TiB"));
        }
        while upload.in_flight.len() >= IN_FLIGHT {
            upload.join_one().await?;
        }
        upload.parts += 1;
        let sending = upload.upload.put_part(payload);
        upload.in_flight.spawn(sending);
        Ok(())
    }

    /// Completes the object unless there is one. Nothing of it is left otherwise.
    pub(crate) async fn finish(mut self) -> Result<Put> {
        if self.upload.is_none() {
            return self.put_whole().await;
        }
        let finished = self.complete().await;
        match finished {
            Ok(Put::Created) => self.upload = None,
            // Also after an answer that was lost: then the upload is there to be aborted, or it is not.
            _ => self.abort().await,
        }
        finished
    }

    /// What has less than a part is put at once.
    async fn put_whole(&mut self) -> Result<Put> {
        let payload = std::mem::take(&mut self.gathered).freeze();
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        match self.bucket.put_opts(&self.key, payload, options).await {
            Ok(_) => Ok(Put::Created),
            Err(Error::AlreadyExists { .. }) => Ok(Put::Exists),
            Err(error) => Err(error),
        }
    }

    async fn complete(&mut self) -> Result<Put> {
        if self.gathered.content_length() > 0 {
            self.send().await?;
        }
        let Some(upload) = &mut self.upload else {
            return Err(failed("an upload without parts"));
        };
        while !upload.in_flight.is_empty() {
            upload.join_one().await?;
        }
        self.bucket
            .complete(&self.key, upload.upload.as_mut(), &upload.token)
            .await
    }

    /// Gives up, and says so to the store.
    pub(crate) async fn abort(mut self) {
        if let Some(upload) = self.upload.take() {
            upload.abort().await;
        }
    }
}

impl Upload {
    async fn join_one(&mut self) -> Result<()> {
        match self.in_flight.join_next().await {
            None => Ok(()),
            Some(joined) => joined.unwrap_or_else(|error| Err(cancelled(&error))),
        }
    }

    async fn abort(mut self) {
        // A part that arrives after the abort would stay, and cost.
        self.in_flight.shutdown().await;
        if self.upload.abort().await.is_err() {
            tracing::warn!("an upload could not be aborted; its parts stay until they are cleaned");
        }
    }
}

impl Drop for PartsWriter {
    fn drop(&mut self) {
        let Some(upload) = self.upload.take() else {
            return;
        };
        // Without a runtime, nothing can be sent: the store's lifecycle rule, or the next clean, removes it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(upload.abort());
        }
    }
}

/// The size of part number `part`, counted from 0.
fn part_size(part: u32, size_hint: u64) -> usize {
    let doublings = (part / PARTS_OF_ONE_SIZE).min(MAX_PARTS / PARTS_OF_ONE_SIZE - 1);
    let grown = FIRST_PART << doublings;
    // A tenth of the parts is left for objects that are larger than was thought.
    let hinted = size_hint.div_ceil(u64::from(MAX_PARTS) * 9 / 10);
    grown.max(usize::try_from(hinted).unwrap_or(usize::MAX).min(MAX_HINTED))
}

/// A hint does not make parts larger than this.
const MAX_HINTED: usize = 512 << 20;

fn failed(why: &'static str) -> Error {
    Error::Generic {
        store: "S3",
        source: Box::new(NoAnswer(why)),
    }
}

fn cancelled(_: &JoinError) -> Error {
    failed("the process is ending")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_suffice_and_none_is_too_small_or_too_large() {
        let mut total: u64 = 0;
        for part in 0..MAX_PARTS {
            let size = part_size(part, 0) as u64;
            assert!(((5 << 20)..=(5 << 30)).contains(&size));
            total += size;
        }
        assert!(total >= 5 << 40, "{total}");
        assert_eq!(part_size(999, 0), FIRST_PART);
        assert_eq!(part_size(1_000, 0), 2 * FIRST_PART);
        // A hint keeps parts of one size, and memory bounded.
        let hint = 200 << 30;
        assert_eq!(part_size(0, hint), part_size(1_999, hint));
        assert_eq!(part_size(0, u64::MAX), MAX_HINTED);
        assert_eq!(part_size(0, 1), FIRST_PART);
    }
}
