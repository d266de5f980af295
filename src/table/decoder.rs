//! The pages of one file, decrypted and decoded by a thread of their own.
//!
//! A C library keeps a heap for each thread and hands little of it back. Decoded in turn by the threads of a pool, a file
//! leaves a row group's worth in the heap of each; one thread uses the same memory again and again.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use arrow::array::RecordBatch;
use bytes::Bytes;
use parquet::DecodeResult;
use parquet::arrow::push_decoder::ParquetPushDecoder;
use tokio::sync::oneshot;

use super::contained::contained;
use super::error::{SourceError, TableError};

/// Lends its thread until it is dropped.
pub(super) struct Decoder {
    steps: Sender<Step>,
}

/// Bytes that were asked for, and who waits for what comes of them.
struct Step {
    ranges: Vec<Range<u64>>,
    data: Vec<Bytes>,
    decoded: oneshot::Sender<Result<DecodeResult<RecordBatch>, TableError>>,
}

impl Decoder {
    /// # Errors
    /// [`TableError::Source`] if the system has no thread left.
    pub(super) fn start(decoder: ParquetPushDecoder) -> Result<Self, TableError> {
        let (steps, taken) = channel();
        thread::Builder::new()
            .name("sealflow-decode".to_owned())
            .spawn(move || work(decoder, &taken))
            .map_err(|error| SourceError::Unavailable {
                reason: format!("no thread to decode it: {}", error.kind()),
            })?;
        Ok(Self { steps })
    }

    /// The next rows, or which ranges of the file they need. `data` is of `ranges`: those that were needed, or none.
    ///
    /// # Errors
    /// [`TableError::Damaged`] for pages that were changed; the thread ends then.
    pub(super) async fn step(
        &self,
        ranges: Vec<Range<u64>>,
        data: Vec<Bytes>,
    ) -> Result<DecodeResult<RecordBatch>, TableError> {
        let (decoded, answer) = oneshot::channel();
        let step = Step { ranges, data, decoded };
        self.steps.send(step).map_err(|_| TableError::Damaged)?;
        answer.await.map_err(|_| TableError::Damaged)?
    }
}

fn work(mut decoder: ParquetPushDecoder, steps: &Receiver<Step>) {
    for step in steps {
        let decoded = contained(|| {
            decoder
                .push_ranges(step.ranges, step.data)
                .and_then(|()| decoder.try_decode())
        });
        let decoded = decoded.and_then(|decoded| decoded.map_err(|_| TableError::Damaged));
        let is_over = decoded.is_err();
        // Nobody waits any more: whoever asked went away, and drops the sender of steps too.
        drop(step.decoded.send(decoded));
        if is_over {
            return;
        }
    }
}
