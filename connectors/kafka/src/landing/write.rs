//! A batch on its way into files: sorted out, sealed, made rows, accounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use sealflow::pipeline::{Counters, Outcome, Record, Route, StopKind, TransformError, check_prefix};
use sealflow::table::FileId;
use sealflow::table::landing::{Bucket, Edition, OpenFile, PlannedFile, Wants};

use super::context::stopped;
use super::group::{LandingGroup, given_up, roll};
use super::part::Version;
use super::runner::MAX_BATCH;
use super::steps::passing;
use crate::error::RunError;
use crate::flow::{Partition, Waiting, jitter};
use crate::group::DRAIN_PATIENCE;
use crate::reasons::Reasons;
use crate::runner::Shutdown;

/// First and longest pause between two attempts while a service is away.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
const PAUSE: Duration = Duration::from_millis(20);

/// A record that is to be a row.
struct Taken {
    partition: Partition,
    epoch: u64,
    bucket: Bucket,
    file: PlannedFile,
    path: String,
    record: Record,
    bytes: u64,
}

/// What became of a batch before it is accounted for.
#[derive(Default)]
struct Sorted {
    taken: Vec<Taken>,
    /// The assignments that the batch was read under.
    epochs: BTreeMap<Partition, u64>,
    /// One more than the last offset that was looked at, by partition.
    reached: BTreeMap<Partition, i64>,
    /// Offsets that are beyond the end of their stretch.
    later: BTreeMap<Partition, i64>,
}

/// Records by the file that they go to, and their indexes in the batch.
type ByFile = BTreeMap<(Partition, u64, FileId), (Vec<usize>, Vec<Record>)>;
/// Rows of one file.
type FileWork = (Partition, u64, FileId, Vec<usize>);

impl LandingGroup<'_> {
    /// Writes what was collected. What cannot be used now is read again.
    pub(super) fn write(&mut self) -> Result<(), RunError> {
        let records = self.collector.take();
        if records.is_empty() {
            return Ok(());
        }
        // While a service is waited for, a partition may go and come again, and begin elsewhere.
        let epochs: BTreeMap<Partition, u64> = {
            let held = self.consumer.context().held();
            held.parts
                .iter()
                .map(|(partition, part)| (partition.clone(), part.epoch))
                .collect()
        };
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let Some(edition) = self.newest()? else { return Ok(()) };
            let most = edition.most_records().clamp(1, MAX_BATCH as usize);
            let batch: Vec<Record> = records.by_ref().take(most).collect();
            let Some(edition) = self.settle(&batch, edition)? else {
                return Ok(());
            };
            let sorted = self.sort(batch, epochs.clone())?;
            if sorted.taken.is_empty() {
                let (aside, lost) = (BTreeSet::new(), BTreeSet::new());
                self.account(sorted, &aside, &lost, Vec::new(), edition.version())?;
            } else {
                self.write_rows(sorted, &edition)?;
            }
        }
        Ok(())
    }

    /// What counts now. `None` when told to stop.
    fn newest(&mut self) -> Result<Option<Arc<dyn Edition>>, RunError> {
        let landing = Arc::clone(&self.services.landing);
        self.answered(move || {
            let landing = Arc::clone(&landing);
            async move { landing.edition().await }
        })
    }

    /// Ends the stretches that are of another edition, and says which one counts then: while they are waited for there may be a
    /// newer one. `None` when told to stop.
    fn settle(
        &mut self,
        batch: &[Record],
        mut edition: Arc<dyn Edition>,
    ) -> Result<Option<Arc<dyn Edition>>, RunError> {
        loop {
            if !self.change_version(batch, edition.version())? {
                return Ok(None);
            }
            let Some(newest) = self.newest()? else { return Ok(None) };
            if newest.version() == edition.version() {
                return Ok(Some(newest));
            }
            edition = newest;
        }
    }

    /// Seals the records, adds them to their files, sets aside what is no row.
    fn write_rows(&mut self, sorted: Sorted, edition: &Arc<dyn Edition>) -> Result<(), RunError> {
        let records: Vec<Record> = sorted.taken.iter().map(|taken| taken.record.clone()).collect();
        let Some(outcomes) = self.transform(edition, records, None)? else {
            self.give_back(&sorted);
            return Ok(());
        };
        let mut letters = Vec::new();
        let mut aside = BTreeSet::new();
        let mut files = ByFile::new();
        for (n, (taken, outcome)) in sorted.taken.iter().zip(outcomes).enumerate() {
            if outcome.route == Route::Target {
                let key = (taken.partition.clone(), taken.epoch, taken.file.id);
                let (indexes, records) = files.entry(key).or_default();
                indexes.push(n);
                records.push(outcome.record);
            } else {
                aside.insert(n);
                letters.push((n, outcome));
            }
        }
        let Some((rejected, lost)) = self.add(&sorted, files, edition)? else {
            return Ok(());
        };
        for (code, indexes) in rejected {
            let records: Vec<Record> = indexes.iter().map(|n| sorted.taken[*n].record.clone()).collect();
            let Some(outcomes) = self.transform(edition, records, Some(code))? else {
                self.give_back(&sorted);
                return Ok(());
            };
            aside.extend(&indexes);
            letters.extend(indexes.into_iter().zip(outcomes));
        }
        // In the order of their records.
        letters.sort_by_key(|(n, _)| *n);
        if self.letters.is_none()
            && let Some((_, letter)) = letters.first()
        {
            // Says that there are none.
            self.plan.routes.dead_letter(&letter.record.position)?;
        }
        let letters = letters.into_iter().map(|(_, letter)| letter).collect();
        self.account(sorted, &aside, &lost, letters, edition.version())?;
        self.spill()
    }

    /// Gives a batch up whose edition counts no more. Some of its rows may be in files: those are given up, too.
    fn give_back(&mut self, sorted: &Sorted) {
        let mut held = self.consumer.context().held();
        for (partition, epoch) in &sorted.epochs {
            if sorted.reached.contains_key(partition)
                && let Some(part) = held.parts.get_mut(partition).filter(|part| part.epoch == *epoch)
            {
                part.lost();
            }
        }
    }

    /// Ends stretches that have files of another policy or schema: rows of two are never in one file. `false` when told to stop.
    fn change_version(&mut self, records: &[Record], version: Version) -> Result<bool, RunError> {
        let mut changed = BTreeSet::new();
        {
            let mut held = self.consumer.context().held();
            for record in records {
                let partition = (Arc::clone(&record.position.topic), record.position.partition);
                if let Some(part) = held.parts.get_mut(&partition)
                    && !part.files.is_empty()
                    && part.version != version
                    && changed.insert(partition)
                {
                    if part.stretch.is_rebuilding() {
                        part.lost();
                    } else {
                        roll(part);
                    }
                }
            }
        }
        if changed.is_empty() {
            return Ok(true);
        }
        // While they are waited for nothing more is read.
        self.pause_all()?;
        let mut draining_since = None;
        loop {
            self.advance()?;
            let settled = {
                let held = self.consumer.context().held();
                let is_reading =
                    |partition: &Partition| held.parts.get(partition).is_none_or(|part| part.stretch.is_reading());
                changed.iter().all(is_reading)
            };
            if settled {
                return Ok(true);
            }
            match self.plan.shutdown() {
                Shutdown::Stop => return Ok(false),
                // The batch must not be taken for written by what follows.
                Shutdown::Drain if draining_since.get_or_insert_with(Instant::now).elapsed() >= DRAIN_PATIENCE => {
                    return Err(given_up());
                }
                Shutdown::Drain | Shutdown::Run => {}
            }
            self.poll(PAUSE)?;
        }
    }

    /// What each record is to its stretch. Records of a partition that reads elsewhere are dropped: it goes there.
    fn sort(&mut self, records: Vec<Record>, epochs: BTreeMap<Partition, u64>) -> Result<Sorted, RunError> {
        let mut sorted = Sorted {
            epochs,
            ..Sorted::default()
        };
        let mut dropped: BTreeSet<Partition> = BTreeSet::new();
        let format = self.plan.options.format;
        let mut held = self.consumer.context().held();
        for record in records {
            let partition = (Arc::clone(&record.position.topic), record.position.partition);
            let offset = record.position.offset;
            let part = held.parts.get_mut(&partition);
            let part =
                part.filter(|part| sorted.epochs.get(&partition) == Some(&part.epoch) && !dropped.contains(&partition));
            let Some(part) = part else { continue };
            if part.position() != Some(part.at) {
                part.go_back();
                dropped.insert(partition);
                continue;
            }
            let next = sorted.reached.get(&partition).copied().unwrap_or(part.at);
            if offset < next {
                continue;
            }
            part.check_expected(offset)?;
            let epoch = part.epoch;
            let (stretch, rule) = part.with_rule(format)?;
            let bucket = rule.bucket(&record);
            match stretch.wants(offset, bucket).map_err(|error| stopped(&error))? {
                Wants::Nothing => {}
                Wants::Later => {
                    sorted.reached.insert(partition.clone(), offset);
                    sorted.later.insert(partition.clone(), offset);
                    dropped.insert(partition);
                    continue;
                }
                Wants::Record => {
                    let file = stretch.file(bucket).map_err(|error| stopped(&error))?;
                    sorted.taken.push(Taken {
                        partition: partition.clone(),
                        epoch,
                        bucket,
                        path: file.path(stretch.whose()),
                        file,
                        bytes: record.payload_bytes() as u64,
                        record,
                    });
                }
            }
            sorted.reached.insert(partition, offset + 1);
        }
        Ok(sorted)
    }

    /// The outcomes of records, or with `code` their dead letters. `None` when told to stop, or when `edition` counts no more.
    fn transform(
        &mut self,
        edition: &Arc<dyn Edition>,
        records: Vec<Record>,
        code: Option<&'static str>,
    ) -> Result<Option<Vec<Outcome>>, RunError> {
        let records = Arc::new(records);
        let mut all = Vec::with_capacity(records.len());
        while all.len() < records.len() {
            let from = all.len();
            let (edition, batch) = (Arc::clone(edition), Arc::clone(&records));
            let landing = Arc::clone(&self.services.landing);
            let work = move || {
                let (edition, landing, batch) = (Arc::clone(&edition), Arc::clone(&landing), Arc::clone(&batch));
                async move {
                    // However long a service was away: what is sealed is sealed under what counts now.
                    if landing.edition().await?.version() != edition.version() {
                        return Ok(None);
                    }
                    let outcomes = match code {
                        None => edition.transform().apply(&batch[from..]).await,
                        Some(code) => edition.transform().refuse(&batch[from..], code).await,
                    };
                    outcomes.map(Some)
                }
            };
            let Some(Some(outcomes)) = self.answered(work)? else {
                return Ok(None);
            };
            if let Err(TransformError::Stop { kind, reason, help }) = check_prefix(outcomes.len(), records.len() - from)
            {
                return Err(RunError::Stopped { kind, reason, help });
            }
            all.extend(outcomes);
        }
        Counters::add(&self.plan.counters.batches, 1);
        Ok(Some(all))
    }

    /// Adds rows to their files, which are begun where they are not there. Returns the records that cannot be rows, by code, and
    /// the partitions whose files were lost.
    #[allow(clippy::type_complexity)] // it is taken apart at once
    fn add(
        &mut self,
        sorted: &Sorted,
        files: ByFile,
        edition: &Arc<dyn Edition>,
    ) -> Result<Option<(BTreeMap<&'static str, Vec<usize>>, BTreeSet<Partition>)>, RunError> {
        let mut tasks = Vec::new();
        {
            let mut held = self.consumer.context().held();
            for ((partition, epoch, id), (indexes, records)) in files {
                let part = held.parts.get_mut(&partition).filter(|part| part.epoch == epoch);
                let open = part.and_then(|part| part.files.remove(&id));
                let first = &sorted.taken[indexes[0]];
                let (file, path) = (first.file.clone(), first.path.clone());
                let (edition, counters) = (Arc::clone(edition), Arc::clone(&self.plan.counters));
                let work: FileWork = (partition, epoch, id, indexes);
                tasks.push(async move {
                    let begin = move || {
                        let (edition, file, path) = (Arc::clone(&edition), file.clone(), path.clone());
                        async move { edition.begin(&file, &path).await }
                    };
                    let open = match open {
                        Some(open) => Ok(open),
                        None => until_answered(&counters, begin).await,
                    };
                    let added = match open {
                        Ok(open) => add_to(open, records).await,
                        Err(error) => Err(error),
                    };
                    (work, added)
                });
            }
        }
        let Some(added) = self.wait(tasks)? else {
            return Ok(None);
        };
        let (mut rejected, mut lost): (BTreeMap<&'static str, Vec<usize>>, _) = (BTreeMap::new(), BTreeSet::new());
        let mut outage = None;
        let mut held = self.consumer.context().held();
        for ((partition, epoch, id, indexes), added) in added {
            match passing(added)? {
                Ok((open, codes)) => {
                    if let Some(part) = held.parts.get_mut(&partition).filter(|part| part.epoch == epoch) {
                        part.files.insert(id, open);
                    }
                    for (n, code) in indexes.into_iter().zip(codes) {
                        if let Some(code) = code {
                            rejected.entry(code).or_default().push(n);
                        }
                    }
                }
                Err(reason) => {
                    outage = Some(reason);
                    lost.insert(partition);
                }
            }
        }
        drop(held);
        if outage.is_some() {
            self.note_outage(outage);
        }
        Ok(Some((rejected, lost)))
    }

    /// Tells the stretches what became of their records, in order.
    fn account(
        &mut self,
        sorted: Sorted,
        aside: &BTreeSet<usize>,
        lost: &BTreeSet<Partition>,
        letters: Vec<Outcome>,
        version: Version,
    ) -> Result<(), RunError> {
        let now = Instant::now();
        let reasons = Reasons::of(letters.iter());
        let mut letters = letters.into_iter();
        let mut of_rebuilt = Vec::new();
        let mut held = self.consumer.context().held();
        for (n, taken) in sorted.taken.iter().enumerate() {
            let letter = if aside.contains(&n) { letters.next() } else { None };
            let part = held
                .parts
                .get_mut(&taken.partition)
                .filter(|part| part.epoch == taken.epoch);
            let Some(part) = part.filter(|_| !lost.contains(&taken.partition)) else {
                continue;
            };
            let offset = taken.record.position.offset;
            let is_aside = letter.is_some();
            if let Some(letter) = letter {
                part.stretch
                    .set_aside(offset, taken.bucket, now)
                    .map_err(|error| stopped(&error))?;
                // A stretch that is made again ends where it ends: its letters do not wait for that.
                if part.stretch.is_rebuilding() {
                    of_rebuilt.push(letter);
                } else {
                    part.keep_letter(letter);
                }
            } else {
                part.stretch
                    .row(offset, taken.bucket, now)
                    .map_err(|error| stopped(&error))?;
            }
            (part.version, part.used) = (version, now);
            if part.stretch.is_rebuilding() {
                failpoint!("land-rebuild");
            }
            part.counted.records += 1;
            part.counted.dead += u64::from(is_aside);
            part.counted.received += taken.bytes;
        }
        for partition in lost {
            if let Some(part) = held.parts.get_mut(partition) {
                part.lost();
            }
        }
        for (partition, next) in sorted.reached {
            let part = held.parts.get_mut(&partition).filter(|_| !lost.contains(&partition));
            // Another assignment of the same partition begins where it is told.
            let part =
                part.filter(|part| sorted.epochs.get(&partition) == Some(&part.epoch) && part.stretch.is_reading());
            let Some(part) = part else { continue };
            part.at = next;
            part.stretch.reached(next).map_err(|error| stopped(&error))?;
            if let Some(offset) = sorted.later.get(&partition) {
                part.stretch.skip_to_known(*offset);
                roll(part);
                part.go_back();
            }
        }
        let counted = held
            .parts
            .values()
            .map(|part| (part.counted.records, part.counted.dead));
        let (records, dead) = counted.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        drop(held);
        self.check_ratio(records, dead, &reasons)?;
        self.send(&of_rebuilt)
    }

    fn check_ratio(&self, records: u64, dead: u64, reasons: &Reasons) -> Result<(), RunError> {
        let Some(ratio) = &self.plan.ratio else { return Ok(()) };
        let ratio = ratio.lock().unwrap_or_else(PoisonError::into_inner);
        if dead == 0 || !ratio.would_pass(records, dead) {
            return Ok(());
        }
        Err(RunError::stopped(
            StopKind::Data,
            format!(
                "more records would go to the dead letters than dead_letters.max_ratio allows; nothing of them was committed: {reasons}"
            ),
            "docs/format.md says what the codes mean: correct policy, schema or source, or raise max_ratio, and start again",
        ))
    }

    /// Has the largest files write their rows out, until what is in memory is within its bound. Where that is not enough, as what
    /// is on its way into a bucket is in memory too, the largest stretch ends.
    fn spill(&mut self) -> Result<(), RunError> {
        let mut spilt: BTreeSet<FileId> = BTreeSet::new();
        loop {
            let largest = {
                let mut held = self.consumer.context().held();
                let total: u64 = held.parts.values().map(|part| part.sizes().1).sum();
                if total <= self.plan.options.memory {
                    return Ok(());
                }
                let files = held.parts.iter().flat_map(|(partition, part)| {
                    part.files
                        .iter()
                        .map(move |(id, file)| (file.sizes().1, partition.clone(), part.epoch, *id))
                });
                let left = files.filter(|(bytes, .., id)| *bytes > 0 && !spilt.contains(id));
                let largest = left.max_by_key(|(bytes, ..)| *bytes);
                largest.and_then(|(_, partition, epoch, id)| {
                    let file = held.parts.get_mut(&partition)?.files.remove(&id)?;
                    Some((partition, epoch, id, file))
                })
            };
            let Some((partition, epoch, id, mut file)) = largest else {
                let mut held = self.consumer.context().held();
                let parts = held.parts.values_mut().filter(|part| !part.stretch.is_rebuilding());
                let largest = parts.max_by_key(|part| part.sizes().1);
                largest.into_iter().for_each(roll);
                return Ok(());
            };
            spilt.insert(id);
            let task = async move {
                let spilt = file.spill().await;
                (file, spilt)
            };
            let Some(mut done) = self.wait(vec![task])? else {
                return Ok(());
            };
            let Some((file, spilt)) = done.pop() else { return Ok(()) };
            let spilt = passing(spilt)?;
            let mut held = self.consumer.context().held();
            let Some(part) = held.parts.get_mut(&partition).filter(|part| part.epoch == epoch) else {
                continue;
            };
            match spilt {
                Ok(()) => drop(part.files.insert(id, file)),
                Err(reason) => {
                    part.lost();
                    drop(held);
                    self.note_outage(Some(reason));
                }
            }
        }
    }

    /// One answer of a service, however long it is away. `None` when told to stop.
    fn answered<T, W, F>(&mut self, work: W) -> Result<Option<T>, RunError>
    where
        T: Send + 'static,
        W: FnMut() -> F + Send + 'static,
        F: Future<Output = Result<T, TransformError>> + Send + 'static,
    {
        let counters = Arc::clone(&self.plan.counters);
        let task = async move { until_answered(&counters, work).await };
        let Some(mut answers) = self.wait(vec![task])? else {
            return Ok(None);
        };
        let Some(answer) = answers.pop() else { return Ok(None) };
        match passing(answer)? {
            Ok(answer) => Ok(Some(answer)),
            // Cannot be: it is asked until it is answered.
            Err(reason) => Err(RunError::Unavailable { reason }),
        }
    }
}

async fn add_to(
    mut open: Box<dyn OpenFile>,
    records: Vec<Record>,
) -> Result<(Box<dyn OpenFile>, Vec<Option<&'static str>>), TransformError> {
    let codes = open.add(records).await?;
    Ok((open, codes))
}

/// Asks again, later and later, for as long as a service is away.
async fn until_answered<T, F: Future<Output = Result<T, TransformError>>>(
    counters: &Arc<Counters>,
    mut work: impl FnMut() -> F,
) -> Result<T, TransformError> {
    let (mut waiting, mut pause) = (None, BACKOFF.0);
    loop {
        match work().await {
            Err(TransformError::Retry { reason }) => {
                if waiting.is_none() {
                    tracing::warn!(reason, "a batch waits for a service");
                }
                waiting.get_or_insert_with(|| Waiting::new(Arc::clone(counters)));
                Counters::add(&counters.retries, 1);
                tokio::time::sleep(jitter(pause)).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
            answer => return answer,
        }
    }
}
