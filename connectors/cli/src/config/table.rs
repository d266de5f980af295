//! The `target.table` section of a pipeline file: where files go, and when they are finished.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use sealflow::table::Compression;
use sealflow::table::landing::{BucketRule, PartitionBy, RollLimits};
use sealflow::units::{ByteSize, Span};
use sealflow_storage::{BucketConfig, Location};
use serde::Deserialize;

use super::check::{Wrong, wrong};
use super::pipeline::{Format, Mode, PipelineConfig};

/// Files of encrypted Parquet, in `LOCATION/DATASET/topic=TOPIC/date=YYYY-MM-DD/`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableTarget {
    /// A folder, or `s3://BUCKET/PREFIX`.
    pub(crate) location: Location,
    /// How the bucket is reached, if it is one.
    #[serde(default)]
    pub(crate) bucket: BucketConfig,
    /// The file of the table's schema.
    pub(crate) schema: PathBuf,
    /// How records are given their days.
    #[serde(default)]
    pub(crate) partition_by: PartitionBy,
    /// When files are finished and offsets committed, whichever is reached first.
    #[serde(default)]
    pub(crate) roll: Roll,
    /// How pages are compressed before they are encrypted.
    #[serde(default)]
    pub(crate) compression: Compression,
    /// Open files of a thread. Beyond, the partition that was written to longest ago is finished early.
    #[serde(default = "open_files")]
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) open_files: u32,
    /// Rows that a thread holds in memory, before the largest files write theirs out early.
    #[serde(default = "memory")]
    pub(crate) memory: ByteSize,
}

/// When files are finished. Everything of a partition since the last time is finished together.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Roll {
    /// Bytes written.
    pub(crate) bytes: ByteSize,
    /// Rows.
    #[schemars(range(min = 1))]
    pub(crate) rows: u64,
    /// Time since the first row: how old the newest rows of a table can be.
    pub(crate) after: Span,
}

impl Default for Roll {
    fn default() -> Self {
        Self {
            bytes: ByteSize(256 << 20),
            rows: 5_000_000,
            after: Span(Duration::from_secs(300)),
        }
    }
}

impl Roll {
    pub(crate) fn limits(self) -> RollLimits {
        RollLimits {
            bytes: self.bytes.0,
            rows: self.rows,
            after: self.after.0,
        }
    }
}

fn open_files() -> u32 {
    64
}

fn memory() -> ByteSize {
    ByteSize(256 << 20)
}

/// Checks which target there is, and what a table can be the target of.
pub(super) fn check(config: &PipelineConfig) -> Result<(), Wrong> {
    let root = sealflow::policy::KeyPath::root();
    let target = root.key("target");
    let table = match (&config.target.kafka, &config.target.table) {
        (Some(_), None) => return Ok(()),
        (None, Some(table)) => table,
        (Some(_), Some(_)) => {
            return wrong(
                &target,
                "has both `kafka` and `table`",
                "a pipeline writes to one of them: make two of it",
            );
        }
        (None, None) => {
            return wrong(
                &target,
                "has neither `kafka` nor `table`",
                "write `kafka: {}`, or `table: { location: …, schema: … }`",
            );
        }
    };
    let at = target.key("table");
    if config.mode == Mode::Open {
        return wrong(
            &root.key("mode"),
            "a table takes sealed records only",
            "use mode: seal, or `sealflow read` to open a table",
        );
    }
    if config.format == Format::Ndjson {
        return wrong(&root.key("format"), "a row is one document", "use json or json-sr");
    }
    if config.dead_letters.as_ref().is_some_and(|dead| dead.oversize.is_some()) {
        return wrong(
            &root.key("dead_letters").key("oversize"),
            "is for pipelines from topic to topic",
            "take it out, and have the dead letters' topic take records as large as the source's",
        );
    }
    if let Err(error) = table.bucket.check() {
        return wrong(
            &at.key("bucket"),
            error.to_string(),
            "`sealflow schema pipeline` says what these keys take",
        );
    }
    let format = config.format.core().unwrap_or(sealflow::pipeline::Format::Json);
    if let Err(error) = BucketRule::new(&table.partition_by, format) {
        return wrong(
            &at.key("partition_by"),
            error.to_string(),
            "name a field of the record's value, as in event.time",
        );
    }
    let roll = at.key("roll");
    if table.roll.rows == 0 {
        return wrong(&roll.key("rows"), "must not be 0", "5000000 is usual");
    }
    if table.roll.after.0 < Duration::from_millis(100) {
        return wrong(
            &roll.key("after"),
            "less than 100ms",
            "5m is usual: every file costs its reader",
        );
    }
    if !(1..=10_000).contains(&table.open_files) {
        return wrong(&at.key("open_files"), "must be between 1 and 10000", "64 is usual");
    }
    Ok(())
}
