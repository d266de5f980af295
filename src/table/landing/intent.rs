//! The intent: what the rows of one stretch become, said before any of its files can be seen.

use serde::{Deserialize, Serialize};

use super::bucket::PartitionBy;
use super::error::LandingError;
use crate::keys::MAX_OBJECT;
use crate::table::FileId;

/// The version of what is written here.
const VERSION: u8 = 1;
/// The most files of one stretch: a bucket has one.
pub const MAX_FILES: usize = 256;
/// The most dead letters of one stretch: their offsets are in the intent.
pub const MAX_SET_ASIDE: usize = 10_000;
/// The longest name of a topic that can be landed: it is part of a folder's name.
const MAX_TOPIC: usize = 190;

/// Whose offsets they are: a partition of a topic, read by a pipeline into a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Dataset, which is the folder below the table's location.
    pub dataset: String,
    /// Topic.
    pub topic: String,
    /// Partition of the topic.
    pub partition: i32,
}

impl Whose {
    /// The folder of the partition's intents in the catalogue: `commits/PIPELINE/TOPIC/PARTITION`.
    #[must_use]
    pub fn intents(&self) -> String {
        format!("commits/{}/{}/{}", self.pipeline, self.topic, self.partition)
    }

    /// The path of the intent of the stretch that begins at `start`.
    #[must_use]
    pub fn intent(&self, start: i64) -> String {
        format!("{}/{start:020}", self.intents())
    }

    /// Where a stretch begins whose intent is at `path`; `None` for what is no intent of this partition.
    #[must_use]
    pub fn start_of(&self, path: &str) -> Option<i64> {
        let name = path.strip_prefix(&self.intents())?.strip_prefix('/')?;
        let is_ours = name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit());
        name.parse().ok().filter(|_| is_ours)
    }

    /// Refuses names that cannot be part of a path.
    ///
    /// # Errors
    /// [`LandingError::Topic`]
    pub fn check(&self) -> Result<(), LandingError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_good = |name: &str| !matches!(name, "" | "." | "..") && name.bytes().all(plain);
        if self.topic.len() <= MAX_TOPIC && is_good(&self.topic) && self.partition >= 0 {
            return Ok(());
        }
        Err(LandingError::Topic {
            topic: self.topic.escape_debug().take(MAX_TOPIC).collect(),
        })
    }
}

/// A file of a stretch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedFile {
    /// The folder below the dataset's, which the file proves: `topic=TOPIC/date=YYYY-MM-DD`.
    pub folder: String,
    /// Its name there, made of partition, start and bucket: a file that is made again has the same.
    pub name: String,
    /// The id that it claims.
    #[serde(with = "as_text")]
    pub id: FileId,
    /// How many records it is of.
    pub rows: u64,
    /// Offset of the first.
    pub first: i64,
    /// Offset of the last.
    pub last: i64,
}

impl PlannedFile {
    /// Its path below the table's location.
    #[must_use]
    pub fn path(&self, whose: &Whose) -> String {
        format!("{}/{}/{}", whose.dataset, self.folder, self.name)
    }
}

/// What becomes of the offsets `[start, end)` of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    version: u8,
    /// Dataset.
    pub dataset: String,
    /// First offset.
    pub start: i64,
    /// First offset that is not of this stretch.
    pub end: i64,
    /// SHA-256 of the policy that the files were first written under, in hexadecimal.
    pub policy: String,
    /// Version of the table's schema.
    pub schema: u64,
    /// How records were given their buckets: who makes a file again goes by it.
    pub partition_by: PartitionBy,
    /// Offsets that are in the dead letters and in no file, ascending.
    pub set_aside: Vec<i64>,
    /// The files, no two of one name or id.
    pub files: Vec<PlannedFile>,
}

impl Intent {
    /// An intent of this version.
    #[must_use]
    pub fn new(whose: &Whose, (start, end): (i64, i64), partition_by: PartitionBy) -> Self {
        Self {
            version: VERSION,
            dataset: whose.dataset.clone(),
            start,
            end,
            policy: String::new(),
            schema: 0,
            partition_by,
            set_aside: Vec::new(),
            files: Vec::new(),
        }
    }

    /// As the catalogue keeps it. The same intent always has the same bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers, texts and lists of them always have a JSON text.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the intent of `whose` at `start`, and checks that it can be followed.
    ///
    /// # Errors
    /// [`LandingError::Intent`]
    pub fn parse(bytes: &[u8], whose: &Whose, start: i64) -> Result<Self, LandingError> {
        let wrong = |what: &'static str| LandingError::Intent {
            path: whose.intent(start),
            what,
        };
        if bytes.len() > MAX_OBJECT {
            return Err(wrong("is larger than 1 MiB"));
        }
        let intent: Self = serde_json::from_slice(bytes).map_err(|_| wrong("cannot be read by this version"))?;
        if intent.version != VERSION {
            return Err(wrong("is of another version"));
        }
        if intent.dataset != whose.dataset {
            return Err(wrong("is of another dataset"));
        }
        if intent.start != start || intent.end <= start {
            return Err(wrong("is of other offsets"));
        }
        let inside = |offset: i64| (intent.start..intent.end).contains(&offset);
        let ascends = intent.set_aside.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascends || !intent.set_aside.iter().all(|offset| inside(*offset)) {
            return Err(wrong("names dead letters of other offsets"));
        }
        let mut paths: Vec<_> = intent.files.iter().map(|file| (&file.folder, &file.name)).collect();
        paths.sort_unstable();
        let is_file = |file: &PlannedFile| {
            inside(file.first)
                && inside(file.last)
                && file.first <= file.last
                && file.rows > 0
                && is_below(&file.folder, &file.name)
        };
        let mut ids: Vec<_> = intent.files.iter().map(|file| file.id).collect();
        ids.sort_unstable();
        let is_twice = paths.windows(2).any(|pair| pair[0] == pair[1]) || ids.windows(2).any(|pair| pair[0] == pair[1]);
        if is_twice || !intent.files.iter().all(is_file) {
            return Err(wrong("names files that no pipeline writes"));
        }
        Ok(intent)
    }

    /// Whether the record at `offset` is in the dead letters, and in no file.
    #[must_use]
    pub fn is_set_aside(&self, offset: i64) -> bool {
        self.set_aside.binary_search(&offset).is_ok()
    }
}

/// Whether a path stays below the dataset's folder.
fn is_below(folder: &str, name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'=');
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(plain);
    folder.split('/').all(is_segment) && is_segment(name)
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::table::FileId;

    pub(super) fn serialize<S: Serializer>(id: &FileId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FileId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| de::Error::custom("not the id of a file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose() -> Whose {
        Whose {
            pipeline: "land".into(),
            dataset: "payments".into(),
            topic: "orders.v1".into(),
            partition: 7,
        }
    }

    fn intent() -> Intent {
        let mut intent = Intent::new(&whose(), (10, 20), PartitionBy::default());
        intent.policy = "ab".repeat(32);
        intent.schema = 3;
        intent.set_aside = vec![11, 13];
        intent.files = vec![PlannedFile {
            folder: "topic=orders.v1/date=2026-11-28".into(),
            name: "00007-00000000000000000010-2026-11-28.parquet".into(),
            id: "000102030405060708090a0b0c0d0e0f".parse().unwrap(),
            rows: 8,
            first: 10,
            last: 19,
        }];
        intent
    }

    #[test]
    fn an_intent_is_found_by_its_start_and_comes_back_as_it_was() {
        let whose = whose();
        assert_eq!(whose.check(), Ok(()));
        assert_eq!(whose.intent(10), "commits/land/orders.v1/7/00000000000000000010");
        assert_eq!(whose.start_of(&whose.intent(i64::MAX)), Some(i64::MAX));
        for other in [
            "commits/land/orders.v1/77/00000000000000000010",
            "commits/land/orders.v1/7/10",
            "x",
        ] {
            assert_eq!(whose.start_of(other), None, "{other}");
        }
        let bytes = intent().to_bytes();
        assert_eq!(Intent::parse(&bytes, &whose, 10), Ok(intent()));
        // Frozen: a newer version must follow what an older one has begun.
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            r#"{"version":1,"dataset":"payments","start":10,"end":20,"policy":"abababababababababababababababababababababababababababababababab","schema":3,"partition_by":{"event_time":null,"unit":"ms","max_skew":"7d"},"set_aside":[11,13],"files":[{"folder":"topic=orders.v1/date=2026-11-28","name":"00007-00000000000000000010-2026-11-28.parquet","id":"000102030405060708090a0b0c0d0e0f","rows":8,"first":10,"last":19}]}"#
        );
    }

    #[test]
    fn an_intent_that_leads_elsewhere_is_refused() {
        let refused = |change: &dyn Fn(&mut Intent)| {
            let mut changed = intent();
            change(&mut changed);
            Intent::parse(&changed.to_bytes(), &whose(), 10).is_err()
        };
        assert!(!refused(&|_| ()));
        assert!(refused(&|intent| intent.version = 2));
        assert!(refused(&|intent| intent.dataset = "other".into()));
        assert!(refused(&|intent| intent.start = 9));
        assert!(refused(&|intent| intent.end = 10));
        assert!(refused(&|intent| intent.set_aside = vec![13, 11]));
        assert!(refused(&|intent| intent.set_aside = vec![20]));
        assert!(refused(&|intent| intent.files[0].folder = "../elsewhere".into()));
        assert!(refused(&|intent| intent.files[0].folder = "/etc".into()));
        assert!(refused(&|intent| intent.files[0].name = "a/b".into()));
        assert!(refused(&|intent| intent.files[0].last = 20));
        assert!(refused(&|intent| intent.files.push(intent.files[0].clone())));
        assert!(Intent::parse(b"{}", &whose(), 10).is_err());
    }

    #[test]
    fn the_largest_intent_is_an_object_that_a_catalogue_takes() {
        let mut whose = whose();
        whose.topic = "t".repeat(MAX_TOPIC);
        assert_eq!(whose.check(), Ok(()));
        let end = i64::MAX;
        let start = end - 1_000_000;
        let mut intent = Intent::new(&whose, (start, end), PartitionBy::default());
        intent.set_aside = (start..).take(MAX_SET_ASIDE).collect();
        intent.files = (0..MAX_FILES)
            .map(|n| PlannedFile {
                folder: format!("topic={}/date=2026-11-28", whose.topic),
                name: format!("00007-{start:020}-{n}.parquet"),
                id: FileId::random().unwrap(),
                rows: u64::MAX,
                first: start,
                last: end - 1,
            })
            .collect();
        let bytes = intent.to_bytes();
        assert!(bytes.len() < MAX_OBJECT / 2, "{}", bytes.len());
        assert_eq!(Intent::parse(&bytes, &whose, start), Ok(intent));
        whose.topic.push('t');
        assert!(whose.check().is_err());
    }
}
