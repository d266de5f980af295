//! One partition on its way into files: the protocol of intents, as a state machine that does nothing itself.
//!
//! A *stretch* is the records of `[start, end)`. First its files are written but for their names, then its intent is put,
//! unless there is one; then the files get their names; then `end` is committed. Whoever begins at an offset looks for an
//! intent there first, and follows it. So whoever has put an intent has decided, once, which records are in which files,
//! and everybody who comes later makes the same files true. A file's name is given once; who comes second takes what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bucket::{Bucket, PartitionBy};
use super::error::LandingError;
use super::intent::{Intent, MAX_FILES, MAX_SET_ASIDE, PlannedFile, Whose};
use crate::keys::Put;
use crate::table::{Claims, FileId};

/// When a stretch ends, whichever is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollLimits {
    /// Bytes of its files.
    pub bytes: u64,
    /// Records.
    pub rows: u64,
    /// Time since its first record.
    pub after: Duration,
}

/// What is to be done next. The answer is given to the method that each names; whatever fails may be tried again as it is,
/// and after [`lost`](Stretch::lost) the next step is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// List the intents below the folder: [`listed`](Stretch::listed).
    List {
        /// In the catalogue.
        folder: String,
    },
    /// Get the object, if there is one: [`looked`](Stretch::looked).
    Look {
        /// In the catalogue.
        path: String,
    },
    /// Read on from there, hand records in, and [`roll`](Stretch::roll) when it is due.
    Gather {
        /// First offset.
        from: i64,
    },
    /// Write what these files lack but their names, and make the dead letters durable: [`closed`](Stretch::closed). What was
    /// begun for other files is dropped, and of these one that was not begun has no rows.
    Close {
        /// The files.
        files: Vec<PlannedFile>,
    },
    /// Put the object unless there is one: [`put`](Stretch::put).
    Put {
        /// In the catalogue.
        path: String,
        /// The intent.
        bytes: Vec<u8>,
    },
    /// Look what each file claims, if it is there: [`probed`](Stretch::probed).
    Probe {
        /// The files.
        files: Vec<PlannedFile>,
    },
    /// Drop all files that were begun, read these offsets again, and hand records in: [`reached`](Stretch::reached).
    Rebuild {
        /// First offset.
        from: i64,
    },
    /// Give each file its name unless there is one of it: [`finished`](Stretch::finished).
    Finish {
        /// The files.
        files: Vec<PlannedFile>,
    },
    /// Commit the offset, which everything before is durable of: [`committed`](Stretch::committed).
    Commit {
        /// The next offset to read.
        offset: i64,
        /// Whether a start there need not be looked into (see [`Stretch::new`]): to be kept with the offset.
        is_trusted: bool,
    },
}

/// What a record is to a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// A row to be.
    Record,
    /// Nothing: its file is there, or it is among the dead letters.
    Nothing,
    /// The stretch ends before it. It is to be handed in again after the next commit.
    Later,
}

/// What listing the intents said.
pub type Listed = Vec<String>;

/// One partition on its way into files.
#[derive(Debug)]
pub struct Stretch {
    whose: Arc<Whose>,
    by: PartitionBy,
    start: i64,
    /// Where intents begin that are known to be ahead: no stretch may run into one.
    known: BTreeSet<i64>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Which intents there are.
    Listing,
    /// Whether the last intent before the start ends before it.
    Before(i64),
    /// Whether there is an intent at the start.
    Looking,
    Gathering(Gathered),
    Closing(Intent),
    Putting(Intent),
    /// Somebody has put an intent: is it another one?
    Comparing(Intent),
    Probing(Following),
    Rebuilding(Following),
    ClosingRebuilt(Following),
    Finishing(Following),
    Committing(i64),
}

/// What is gathered so far.
#[derive(Debug, Default)]
struct Gathered {
    files: BTreeMap<Bucket, PlannedFile>,
    set_aside: Vec<i64>,
    records: u64,
    /// One more than the last offset; 0 while there is none.
    next: i64,
    since: Option<Instant>,
}

/// An intent that is followed, and how far each of its files is.
#[derive(Debug)]
struct Following {
    intent: Intent,
    files: BTreeMap<FileId, State>,
    /// How many records of each file that is missing were handed in.
    found: BTreeMap<FileId, u64>,
    next: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be looked for.
    Unknown,
    There,
    Missing,
    /// Written but for its name.
    Written,
}

impl Following {
    fn new(intent: Intent, state: State) -> Self {
        Self {
            files: intent.files.iter().map(|file| (file.id, state)).collect(),
            found: BTreeMap::new(),
            next: intent.start,
            intent,
        }
    }

    fn of(&self, state: State) -> Vec<PlannedFile> {
        let files = self.intent.files.iter();
        files
            .filter(|file| self.files.get(&file.id) == Some(&state))
            .cloned()
            .collect()
    }

    /// The next phase, once nothing is left to be asked in this one.
    fn settled(mut self) -> Phase {
        let has = |state: State| self.files.values().any(|own| *own == state);
        if has(State::Unknown) {
            return Phase::Probing(self);
        }
        if has(State::Missing) {
            // What was written and has no name yet is made again too: its writer may be gone.
            for state in self.files.values_mut().filter(|state| **state == State::Written) {
                *state = State::Missing;
            }
            self.found.clear();
            self.next = self.bounds().0;
            return Phase::Rebuilding(self);
        }
        if has(State::Written) {
            return Phase::Finishing(self);
        }
        Phase::Committing(self.intent.end)
    }

    /// From the first record of a missing file to one behind the last.
    fn bounds(&self) -> (i64, i64) {
        let missing = self.of(State::Missing);
        let first = missing.iter().map(|file| file.first).min();
        let last = missing.iter().map(|file| file.last).max();
        (
            first.unwrap_or(self.intent.start),
            last.map_or(self.intent.start, |last| last.saturating_add(1)),
        )
    }
}

impl Stretch {
    /// The partition of `whose`, from `start` on. `is_trusted`: a pipeline like this one has committed `start`, and has said so
    /// with the offset. An offset that somebody else has set, or nobody, may lie before or within what is landed already, so
    /// all intents are looked through.
    ///
    /// # Errors
    /// [`LandingError::Topic`]
    pub fn new(whose: Arc<Whose>, by: PartitionBy, start: i64, is_trusted: bool) -> Result<Self, LandingError> {
        whose.check()?;
        Ok(Self {
            whose,
            by,
            start,
            known: BTreeSet::new(),
            phase: if is_trusted { Phase::Looking } else { Phase::Listing },
        })
    }

    /// Whose it is.
    #[must_use]
    pub fn whose(&self) -> &Arc<Whose> {
        &self.whose
    }

    /// First offset: what is committed.
    #[must_use]
    pub fn start(&self) -> i64 {
        self.start
    }

    /// How records are given their buckets now: as configured, or as the intent says that is followed.
    #[must_use]
    pub fn partition_by(&self) -> &PartitionBy {
        match &self.phase {
            Phase::Rebuilding(following) => &following.intent.partition_by,
            _ => &self.by,
        }
    }

    /// What is to be done next.
    #[must_use]
    pub fn step(&self) -> Step {
        let whose = &self.whose;
        match &self.phase {
            Phase::Listing => Step::List {
                folder: whose.intents(),
            },
            Phase::Before(start) => Step::Look {
                path: whose.intent(*start),
            },
            Phase::Looking | Phase::Comparing(_) => Step::Look {
                path: whose.intent(self.start),
            },
            Phase::Gathering(gathered) => Step::Gather {
                from: gathered.next.max(self.start),
            },
            Phase::Closing(intent) => Step::Close {
                files: intent.files.clone(),
            },
            Phase::Putting(intent) => Step::Put {
                path: whose.intent(self.start),
                bytes: intent.to_bytes(),
            },
            Phase::Probing(following) => Step::Probe {
                files: following.of(State::Unknown),
            },
            Phase::Rebuilding(following) => Step::Rebuild { from: following.next },
            Phase::ClosingRebuilt(following) => Step::Close {
                files: following.of(State::Missing),
            },
            Phase::Finishing(following) => Step::Finish {
                files: following.of(State::Written),
            },
            Phase::Committing(end) => Step::Commit {
                offset: *end,
                is_trusted: !self.known.iter().any(|known| known >= end),
            },
        }
    }

    /// Whether records are to be read.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Gathering(_) | Phase::Rebuilding(_))
    }

    /// Whether files are made again that an intent names.
    #[must_use]
    pub fn is_rebuilding(&self) -> bool {
        matches!(self.phase, Phase::Rebuilding(_))
    }

    /// Whether nothing is gathered and nothing is to be finished: it can be left as it is.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        match &self.phase {
            Phase::Gathering(gathered) => gathered.records == 0,
            Phase::Listing | Phase::Before(_) | Phase::Looking => true,
            _ => false,
        }
    }

    /// Whether files that were begun still count. Others are to be dropped.
    #[must_use]
    pub fn has_files(&self) -> bool {
        !matches!(
            self.phase,
            Phase::Listing | Phase::Before(_) | Phase::Looking | Phase::Probing(_) | Phase::Committing(_)
        )
    }

    /// What the record at `offset`, of that bucket, is to this stretch.
    ///
    /// # Errors
    /// [`LandingError::Order`]; [`LandingError::Unplanned`] if it is in no file of the intent that is followed.
    pub fn wants(&self, offset: i64, bucket: Bucket) -> Result<Wants, LandingError> {
        match &self.phase {
            _ if offset < self.start => Ok(Wants::Nothing),
            Phase::Gathering(gathered) => {
                if offset < gathered.next {
                    return Err(self.out_of_order(offset));
                }
                let limit = self.known.range(self.start..).next();
                let has_file = gathered.files.len() < MAX_FILES || gathered.files.contains_key(&bucket);
                let has_room = has_file && gathered.set_aside.len() < MAX_SET_ASIDE;
                if limit.is_some_and(|limit| offset >= *limit) || !has_room {
                    return Ok(Wants::Later);
                }
                Ok(Wants::Record)
            }
            Phase::Rebuilding(following) => {
                if offset >= following.bounds().1 {
                    return Ok(Wants::Later);
                }
                if offset < following.next || following.intent.is_set_aside(offset) {
                    return Ok(Wants::Nothing);
                }
                let file = self.planned(&following.intent, bucket);
                let file = file.ok_or_else(|| LandingError::Unplanned {
                    topic: self.whose.topic.clone(),
                    partition: self.whose.partition,
                    offset,
                    intent: self.whose.intent(self.start),
                })?;
                Ok(match following.files.get(&file.id) {
                    Some(State::Missing) => Wants::Record,
                    _ => Wants::Nothing,
                })
            }
            _ => Ok(Wants::Later),
        }
    }

    /// The file that rows of `bucket` go to.
    ///
    /// # Errors
    /// [`LandingError`]
    pub fn file(&mut self, bucket: Bucket) -> Result<PlannedFile, LandingError> {
        if let Phase::Rebuilding(following) = &self.phase {
            return self
                .planned(&following.intent, bucket)
                .cloned()
                .ok_or(LandingError::Step);
        }
        let (folder, name) = (bucket.folder(&self.whose.topic), name(&self.whose, self.start, bucket));
        let Phase::Gathering(gathered) = &mut self.phase else {
            return Err(LandingError::Step);
        };
        if let Some(file) = gathered.files.get(&bucket) {
            return Ok(file.clone());
        }
        let file = PlannedFile {
            folder,
            name,
            id: FileId::random().map_err(|_| LandingError::NoRandomness)?,
            rows: 0,
            first: 0,
            last: 0,
        };
        gathered.files.insert(bucket, file.clone());
        Ok(file)
    }

    /// The record at `offset` is a row of the [file](Self::file) of `bucket` now.
    ///
    /// # Errors
    /// [`LandingError::Order`]
    pub fn row(&mut self, offset: i64, bucket: Bucket, now: Instant) -> Result<(), LandingError> {
        self.take(offset, bucket, now)?;
        if let Phase::Gathering(gathered) = &mut self.phase {
            let file = gathered.files.get_mut(&bucket).ok_or(LandingError::Step)?;
            if file.rows == 0 {
                file.first = offset;
            }
            file.rows += 1;
            file.last = offset;
        }
        Ok(())
    }

    /// The record at `offset` is to be a dead letter, which is durable when the files are closed.
    ///
    /// # Errors
    /// [`LandingError::Order`]
    pub fn set_aside(&mut self, offset: i64, bucket: Bucket, now: Instant) -> Result<(), LandingError> {
        self.take(offset, bucket, now)?;
        if let Phase::Gathering(gathered) = &mut self.phase {
            gathered.set_aside.push(offset);
        }
        Ok(())
    }

    fn take(&mut self, offset: i64, bucket: Bucket, now: Instant) -> Result<(), LandingError> {
        let id = match &self.phase {
            Phase::Rebuilding(following) => self.planned(&following.intent, bucket).map(|file| file.id),
            _ => None,
        };
        let order = self.out_of_order(offset);
        match &mut self.phase {
            Phase::Gathering(gathered) if offset >= gathered.next => {
                gathered.since.get_or_insert(now);
                gathered.records += 1;
                gathered.next = offset + 1;
                Ok(())
            }
            Phase::Rebuilding(following) if offset >= following.next => {
                following.next = offset + 1;
                *id.map(|id| following.found.entry(id).or_insert(0))
                    .ok_or(LandingError::Step)? += 1;
                Ok(())
            }
            Phase::Gathering(_) | Phase::Rebuilding(_) => Err(order),
            _ => Err(LandingError::Step),
        }
    }

    /// All records before `next` were handed in. Ends a rebuilding that has seen all of its records.
    ///
    /// # Errors
    /// [`LandingError::SourceChanged`] if some of them are gone.
    pub fn reached(&mut self, next: i64) -> Result<(), LandingError> {
        let Phase::Rebuilding(following) = &mut self.phase else {
            return Ok(());
        };
        following.next = following.next.max(next);
        if next < following.bounds().1 {
            return Ok(());
        }
        for file in following.of(State::Missing) {
            let found = following.found.get(&file.id).copied().unwrap_or(0);
            if found != file.rows {
                return Err(self.source_changed(&file, found));
            }
        }
        self.replace(|phase| match phase {
            Phase::Rebuilding(following) => Phase::ClosingRebuilt(following),
            other => other,
        });
        Ok(())
    }

    /// Whether the stretch is to be rolled: `bytes` are in its files.
    #[must_use]
    pub fn is_due(&self, limits: &RollLimits, bytes: u64, now: Instant) -> bool {
        let Phase::Gathering(gathered) = &self.phase else {
            return false;
        };
        let is_old = gathered
            .since
            .is_some_and(|since| now.duration_since(since) >= limits.after);
        gathered.records > 0
            && (is_old
                || bytes >= limits.bytes
                || gathered.records >= limits.rows
                || gathered.set_aside.len() >= MAX_SET_ASIDE
                || gathered.files.len() >= MAX_FILES)
    }

    /// When it is due by time.
    #[must_use]
    pub fn due_at(&self, limits: &RollLimits) -> Option<Instant> {
        match &self.phase {
            Phase::Gathering(gathered) => gathered.since.and_then(|since| since.checked_add(limits.after)),
            _ => None,
        }
    }

    /// Ends the stretch behind the last record that was handed in. `policy` is the SHA-256, `schema` the version that its rows
    /// are of. Does nothing if there are none.
    pub fn roll(&mut self, policy: &[u8; 32], schema: u64) {
        let (whose, by, start) = (Arc::clone(&self.whose), self.by.clone(), self.start);
        self.replace(|phase| match phase {
            Phase::Gathering(gathered) if gathered.records > 0 => {
                let mut intent = Intent::new(&whose, (start, gathered.next), by);
                intent.policy = policy.iter().map(|byte| format!("{byte:02x}")).collect();
                intent.schema = schema;
                intent.set_aside = gathered.set_aside;
                intent.files = gathered.files.into_values().filter(|file| file.rows > 0).collect();
                Phase::Closing(intent)
            }
            other => other,
        });
    }

    /// An intent begins right where reading has come to, and nothing is gathered: it is followed.
    ///
    /// To be called for a record that is wanted [later](Wants::Later) while nothing is gathered.
    pub fn skip_to_known(&mut self, offset: i64) {
        if let Phase::Gathering(gathered) = &self.phase
            && gathered.records == 0
            && let Some(known) = self.known.range(self.start..=offset).next().copied()
        {
            self.start = known;
            self.known.remove(&known);
            self.phase = Phase::Looking;
        }
    }

    /// Answers [`Step::List`].
    pub fn listed(&mut self, paths: &Listed) {
        if !matches!(self.phase, Phase::Listing) {
            return;
        }
        let starts: BTreeSet<i64> = paths.iter().filter_map(|path| self.whose.start_of(path)).collect();
        self.known = starts.range(self.start.saturating_add(1)..).copied().collect();
        self.phase = match starts.range(..self.start).next_back() {
            Some(before) => Phase::Before(*before),
            None => Phase::Looking,
        };
    }

    /// Answers [`Step::Look`].
    ///
    /// # Errors
    /// [`LandingError::Intent`], [`LandingError::Inside`]
    pub fn looked(&mut self, found: Option<&[u8]>) -> Result<(), LandingError> {
        let at = match &self.phase {
            Phase::Before(before) => *before,
            Phase::Looking | Phase::Comparing(_) => self.start,
            _ => return Err(LandingError::Step),
        };
        let intent = found.map(|bytes| Intent::parse(bytes, &self.whose, at)).transpose()?;
        if let (Phase::Before(_), Some(intent)) = (&self.phase, &intent)
            && intent.end > self.start
        {
            return Err(LandingError::Inside {
                topic: self.whose.topic.clone(),
                partition: self.whose.partition,
                offset: self.start,
                start: intent.start,
                end: intent.end,
            });
        }
        self.replace(|phase| match (phase, intent) {
            (Phase::Before(_), _) => Phase::Looking,
            (Phase::Looking, None) => Phase::Gathering(Gathered::default()),
            // The answer to our put was lost, and it is ours; or somebody does exactly what we do.
            (Phase::Comparing(ours), Some(theirs)) if ours == theirs => Following::new(ours, State::Written).settled(),
            // It was there and is not: the store had not made up its mind.
            (Phase::Comparing(ours), None) => Phase::Putting(ours),
            (Phase::Looking | Phase::Comparing(_), Some(theirs)) => Following::new(theirs, State::Unknown).settled(),
            (other, _) => other,
        });
        Ok(())
    }

    /// Answers [`Step::Close`].
    pub fn closed(&mut self) {
        self.replace(|phase| match phase {
            Phase::Closing(intent) => Phase::Putting(intent),
            Phase::ClosingRebuilt(mut following) => {
                for state in following.files.values_mut().filter(|state| **state == State::Missing) {
                    *state = State::Written;
                }
                following.settled()
            }
            other => other,
        });
    }

    /// Answers [`Step::Put`].
    pub fn put(&mut self, put: Put) {
        self.replace(|phase| match (phase, put) {
            (Phase::Putting(intent), Put::Created) => Following::new(intent, State::Written).settled(),
            (Phase::Putting(intent), Put::Exists) => Phase::Comparing(intent),
            (other, _) => other,
        });
    }

    /// Answers [`Step::Probe`] for one file: what it claims, if it is there.
    ///
    /// # Errors
    /// [`LandingError::OtherFile`]
    pub fn probed(&mut self, id: FileId, claims: Option<&Claims>) -> Result<(), LandingError> {
        let whose = &self.whose;
        let Phase::Probing(following) = &mut self.phase else {
            return Err(LandingError::Step);
        };
        let file = following
            .intent
            .files
            .iter()
            .find(|file| file.id == id)
            .ok_or(LandingError::Step)?;
        let is_ours = |claims: &Claims| {
            claims.dataset == whose.dataset && claims.partition == file.folder && claims.file == id.to_string()
        };
        if claims.is_some_and(|claims| !is_ours(claims)) {
            return Err(LandingError::OtherFile {
                path: file.path(whose),
                intent: whose.intent(self.start),
            });
        }
        let state = if claims.is_some() { State::There } else { State::Missing };
        following.files.insert(id, state);
        self.settle();
        Ok(())
    }

    /// Answers [`Step::Finish`] for one file.
    pub fn finished(&mut self, id: FileId, put: Put) {
        let Phase::Finishing(following) = &mut self.phase else {
            return;
        };
        let state = match put {
            Put::Created => State::There,
            // Somebody was faster. Is it the same?
            Put::Exists => State::Unknown,
        };
        if let Some(own) = following.files.get_mut(&id) {
            *own = state;
        }
        if !following.files.values().any(|state| *state == State::Written) {
            self.settle();
        }
    }

    /// Answers [`Step::Commit`].
    pub fn committed(&mut self) {
        if let Phase::Committing(end) = self.phase {
            self.start = end;
            self.known = self.known.split_off(&end);
            self.known.remove(&end);
            self.phase = Phase::Looking;
        }
    }

    /// What was begun is gone, or it is not known what became of it: all files, an upload, an answer. Everything that is not
    /// durable is done again. Files that were begun are to be dropped.
    pub fn lost(&mut self) {
        self.replace(|phase| match phase {
            Phase::Gathering(_) | Phase::Closing(_) | Phase::Putting(_) | Phase::Comparing(_) => Phase::Looking,
            Phase::Probing(following)
            | Phase::Rebuilding(following)
            | Phase::ClosingRebuilt(following)
            | Phase::Finishing(following) => Following::new(following.intent, State::Unknown).settled(),
            other => other,
        });
    }

    fn settle(&mut self) {
        self.replace(|phase| match phase {
            Phase::Probing(following) | Phase::Finishing(following) => following.settled(),
            other => other,
        });
    }

    fn replace(&mut self, change: impl FnOnce(Phase) -> Phase) {
        let phase = std::mem::replace(&mut self.phase, Phase::Looking);
        self.phase = change(phase);
    }

    /// The file of the intent that records of `bucket` are in.
    fn planned<'i>(&self, intent: &'i Intent, bucket: Bucket) -> Option<&'i PlannedFile> {
        let (folder, name) = (
            bucket.folder(&self.whose.topic),
            name(&self.whose, intent.start, bucket),
        );
        let mut files = intent.files.iter();
        files.find(|file| file.folder == folder && file.name == name)
    }

    fn source_changed(&self, file: &PlannedFile, found: u64) -> LandingError {
        let end = match &self.phase {
            Phase::Rebuilding(following) => following.intent.end,
            _ => self.start,
        };
        LandingError::SourceChanged {
            topic: self.whose.topic.clone(),
            partition: self.whose.partition,
            path: file.path(&self.whose),
            start: self.start,
            end,
            rows: file.rows,
            found,
        }
    }

    fn out_of_order(&self, offset: i64) -> LandingError {
        LandingError::Order {
            topic: self.whose.topic.clone(),
            partition: self.whose.partition,
            offset,
        }
    }
}

/// The name of a file: `PARTITION-START-BUCKET.parquet`.
fn name(whose: &Whose, start: i64, bucket: Bucket) -> String {
    format!("{:05}-{start:020}-{bucket}.parquet", whose.partition)
}
