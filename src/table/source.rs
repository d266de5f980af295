//! Where the bytes of a file come from: a folder, a bucket, memory; and how many of its ranges are had with few requests.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::SourceError;

/// Ranges no further apart than this are read with what is between them: a request costs more than that.
const GAP: u64 = 64 << 10;
/// Ranges are put together up to this size.
const TOGETHER: u64 = 8 << 20;
/// Requests of one file at the same time.
const REQUESTS: usize = 4;

/// A file that can be read in pieces. It does not change while it is read.
#[async_trait]
pub trait FileSource: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// The bytes of `range`, which lies within its size.
    async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError>;
}

/// A file in memory.
#[async_trait]
impl FileSource for Bytes {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        let index = |at: u64| usize::try_from(at).ok().filter(|at| *at <= self.len());
        match (index(range.start), index(range.end)) {
            (Some(start), Some(end)) if start <= end => Ok(self.slice(start..end)),
            _ => Err(SourceError::Unavailable {
                reason: "it ends before".to_owned(),
            }),
        }
    }
}

/// Exactly the bytes of `range`.
pub(super) async fn exact(source: &dyn FileSource, range: Range<u64>) -> Result<Bytes, SourceError> {
    let wanted = range.end - range.start;
    let bytes = source.range(range).await?;
    if bytes.len() as u64 == wanted {
        Ok(bytes)
    } else {
        Err(SourceError::Unavailable {
            reason: "it is shorter than it was".to_owned(),
        })
    }
}

/// The bytes of each of `ranges`, whose ends are not before their starts: near ones in one request, some requests at the
/// same time.
pub(super) async fn pieces(source: &dyn FileSource, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, SourceError> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_unstable_by_key(|n| ranges[*n].start);
    let mut runs: Vec<(Range<u64>, Vec<usize>)> = Vec::new();
    for n in order {
        let range = ranges[n].clone();
        match runs.last_mut() {
            Some((run, members)) if is_near(run, &range) => {
                run.end = run.end.max(range.end);
                members.push(n);
            }
            _ => runs.push((range, vec![n])),
        }
    }
    let requests = runs.into_iter().map(|(run, members)| async move {
        exact(source, run.clone())
            .await
            .map(|bytes| (run.start, members, bytes))
    });
    let answers: Vec<(u64, Vec<usize>, Bytes)> = stream::iter(requests).buffered(REQUESTS).try_collect().await?;
    let mut found = vec![Bytes::new(); ranges.len()];
    for (start, members, bytes) in answers {
        for n in members {
            // Within the run, whose bytes are all there.
            let from = usize::try_from(ranges[n].start - start).unwrap_or(bytes.len());
            let length = usize::try_from(ranges[n].end - ranges[n].start).unwrap_or(0);
            found[n] = bytes.slice(from..from + length);
        }
    }
    Ok(found)
}

fn is_near(run: &Range<u64>, next: &Range<u64>) -> bool {
    next.start <= run.end.saturating_add(GAP) && next.end.max(run.end) - run.start <= TOGETHER
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// A file that remembers what was asked of it.
    struct Asked(Bytes, Mutex<Vec<Range<u64>>>);

    #[async_trait]
    impl FileSource for Asked {
        fn size(&self) -> u64 {
            self.0.size()
        }

        async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
            self.1.lock().unwrap().push(range.clone());
            self.0.range(range).await
        }
    }

    fn asked(len: usize) -> Asked {
        Asked((0..len).map(|n| n as u8).collect::<Vec<_>>().into(), Mutex::default())
    }

    #[tokio::test]
    async fn near_ranges_are_one_request_and_far_or_large_ones_are_not() {
        let file = asked(20 << 20);
        let (near, far, large) = (GAP, 3 * GAP, 9 << 20);
        let ranges = [0..10, near..near + 10, far..far + 10, 10..20, large..large + (9 << 20)];
        let found = pieces(&file, &ranges).await.unwrap();
        for (range, bytes) in ranges.iter().zip(&found) {
            assert_eq!(*bytes, file.0.slice(range.start as usize..range.end as usize));
        }
        let mut requests = file.1.lock().unwrap().clone();
        requests.sort_unstable_by_key(|range| range.start);
        assert_eq!(requests, [0..near + 10, far..far + 10, large..large + (9 << 20)]);
    }

    #[tokio::test]
    async fn a_source_that_gives_less_than_it_was_asked_for_is_an_error() {
        /// One byte less than there is.
        struct Short(Bytes);
        #[async_trait]
        impl FileSource for Short {
            fn size(&self) -> u64 {
                self.0.size()
            }

            async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
                self.0.range(range.start..range.end - 1).await
            }
        }
        let short = Short(vec![0; 100].into());
        assert!(pieces(&short, &[0..10, 20..30]).await.is_err());
    }

    proptest! {
        #[test]
        fn every_range_gets_its_own_bytes(ranges in prop::collection::vec((0_u64..400_000, 0_u64..60_000), 0..40)) {
            let file = asked(500_000);
            let ranges: Vec<Range<u64>> = ranges.into_iter().map(|(start, length)| start..start + length).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(pieces(&file, &ranges)).unwrap();
            for (range, bytes) in ranges.iter().zip(found) {
                prop_assert_eq!(bytes, file.0.slice(range.start as usize..range.end as usize));
            }
        }
    }
}
