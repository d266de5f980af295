//! `sealflow verify`: whether the files of a table are what they say, where they should be, each row once.

use std::collections::BTreeMap;
use std::process::ExitCode;

use arrow::array::AsArray as _;
use arrow::datatypes::Int64Type;
use futures::{TryStreamExt as _, stream};
use sealflow::table::{Asking, OpenTable, Query, TableError};
use sealflow_storage::Location;
use serde::Serialize;

use super::{By, FILES, Files, Opener, TableFile, Unopened, of_table};
use crate::commands::access::Access;
use crate::commands::read::AssumedIdentity;
use crate::failure::{Exit, Failure, Result};
use crate::place_arg::PlaceParser;
use crate::services::clock;
use crate::term::{OutputFormat, harmless, say, say_json};

/// Name of the column of offsets.
const OFFSETS: &str = "_offset";

/// Verify the files of a table: place, policy and owner of each, and that each offset is there once
///
/// Of every file the footer is opened and its offsets are read; with --pages all pages of the columns that you may see,
/// so that a changed byte in them is found. Offsets that are there twice are an error; those that are not there are
/// listed, as a topic has gaps of its own (compaction, transactions).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file, or the folder of a table; either may be in a bucket: s3://BUCKET/PATH
    #[arg(value_name = "PATH", value_parser = PlaceParser)]
    path: Location,
    /// Read all pages of the columns that you may see
    #[arg(long)]
    pages: bool,
    /// Offsets that are not there are an error
    #[arg(long)]
    no_gaps: bool,
    /// By the policy that each file carries, without the catalogue's newest
    #[arg(long)]
    offline: bool,
    /// `text` or `json`
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    assumed: AssumedIdentity,
    #[command(flatten)]
    access: Access,
}

/// What was found.
#[derive(Default, Serialize)]
struct Report {
    files: usize,
    rows: u64,
    faults: Vec<Fault>,
    partitions: Vec<Partition>,
}

#[derive(Serialize)]
struct Fault {
    file: String,
    what: String,
}

#[derive(Serialize)]
struct Partition {
    dataset: String,
    topic: String,
    partition: i32,
    rows: u64,
    first: i64,
    last: i64,
    /// Offsets that are there more than once, as ranges.
    twice: Vec<(i64, i64)>,
    /// Offsets between the first and the last that are not there, as ranges.
    missing: Vec<(i64, i64)>,
}

/// (dataset, topic, partition).
type Source = (String, String, i32);

/// What a file turned out to be.
struct Looked {
    file: TableFile,
    found: std::result::Result<Found, TableError>,
}

/// Of a file that is what it says.
struct Found {
    dataset: String,
    rows: u64,
    /// Topic and partition, if it has offsets.
    source: Option<(String, i32)>,
    /// As ranges.
    offsets: Vec<(i64, i64)>,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let loaded = args.access.loaded()?;
    let by = By {
        offline: args.offline,
        ..By::default()
    };
    let files = Files::at(&args.path, loaded.as_ref()).await?;
    let opener = Opener::new(&args.access, &args.assumed, loaded.as_ref(), by).await?;
    let mut report = Report::default();
    let mut offsets: BTreeMap<Source, Vec<(i64, i64)>> = BTreeMap::new();
    let files = stream::try_unfold(files, async |mut files: Files| -> Result<Option<(TableFile, Files)>> {
        Ok(files.next().await?.map(|file| (file, files)))
    });
    let looked = files.map_ok(|file| look(&args, &opener, file)).try_buffered(FILES);
    let mut looked = std::pin::pin!(looked);
    while let Some(Looked { file, found }) = looked.try_next().await? {
        report.files += 1;
        match found {
            Ok(found) => {
                report.rows += found.rows;
                if let Some((topic, partition)) = found.source {
                    let id = (found.dataset, topic, partition);
                    offsets.entry(id).or_default().extend(found.offsets);
                }
            }
            Err(error) => report.fault(&file, &error)?,
        }
    }
    for ((dataset, topic, partition), ranges) in offsets {
        report.partitions.push(Partition::of(dataset, topic, partition, ranges));
    }
    match args.output {
        OutputFormat::Json => say_json(&report),
        OutputFormat::Text => report.print(),
    }
    report.verdict(args.no_gaps)
}

async fn look(args: &Args, opener: &Opener, file: TableFile) -> Result<Looked> {
    let asking = Asking {
        who: &opener.who.who,
        purpose: None,
        now: clock().now(),
    };
    let found = match opener.open(&file, asking).await {
        Ok(table) => verify(args, &table, &file, asking).await,
        Err(Unopened::File(error)) => Err(error),
        Err(Unopened::Services(failure)) => return Err(failure),
    };
    Ok(Looked { file, found })
}

async fn verify(
    args: &Args,
    table: &OpenTable,
    file: &TableFile,
    asking: Asking<'_>,
) -> std::result::Result<Found, TableError> {
    let has_offsets = table.schema().field_with_name(OFFSETS).is_ok();
    let columns = (!args.pages && has_offsets).then(|| vec![OFFSETS.to_owned()]);
    let query = Query {
        columns,
        ..Query::default()
    };
    let mut rows = table.rows(&query, asking, &file.path)?;
    let mut count = 0;
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    while let Some(batch) = rows.next().await? {
        count += batch.num_rows() as u64;
        let offsets = batch
            .column_by_name(OFFSETS)
            .and_then(|column| column.as_primitive_opt::<Int64Type>());
        for offset in offsets.into_iter().flatten().flatten() {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(offset) => *last = offset,
                _ => ranges.push((offset, offset)),
            }
        }
    }
    let origin = table.origin();
    if origin.is_some_and(|origin| origin.rows != count) {
        return Err(TableError::Damaged);
    }
    let source = origin.filter(|_| has_offsets);
    Ok(Found {
        dataset: table.claims().map(|claims| claims.dataset.clone()).unwrap_or_default(),
        rows: count,
        source: source.map(|origin| (origin.topic.clone(), origin.partition)),
        offsets: ranges,
    })
}

impl Partition {
    fn of(dataset: String, topic: String, partition: i32, mut ranges: Vec<(i64, i64)>) -> Self {
        ranges.sort_unstable();
        let rows = ranges.iter().map(|(first, last)| (last - first) as u64 + 1).sum();
        let first = ranges.first().map_or(0, |(first, _)| *first);
        let (mut twice, mut missing) = (Vec::new(), Vec::new());
        let mut end: Option<i64> = None;
        for (from, to) in ranges {
            if let Some(last) = end {
                if from <= last {
                    twice.push((from, to.min(last)));
                } else if from > last + 1 {
                    missing.push((last + 1, from - 1));
                }
            }
            end = Some(end.map_or(to, |last| last.max(to)));
        }
        Self {
            dataset,
            topic,
            partition,
            rows,
            first,
            last: end.unwrap_or(0),
            twice,
            missing,
        }
    }
}

impl Report {
    /// A service that is away, or an identity that may not, ends the command; what is wrong with a file is told.
    fn fault(&mut self, file: &TableFile, error: &TableError) -> Result<()> {
        if error.is_retryable() {
            return Err(of_table(&file.path, error));
        }
        self.faults.push(Fault {
            file: file.path.clone(),
            what: error.to_string(),
        });
        Ok(())
    }

    fn print(&self) {
        for fault in &self.faults {
            say(format_args!("{}: {}", harmless(&fault.file), harmless(&fault.what)));
        }
        let ranges = |ranges: &[(i64, i64)]| {
            let shown: Vec<String> = ranges
                .iter()
                .take(5)
                .map(|(first, last)| format!("{first}–{last}"))
                .collect();
            format!("{}{}", shown.join(", "), if ranges.len() > 5 { ", …" } else { "" })
        };
        for own in &self.partitions {
            let mut line = format!(
                "{}: topic {}, partition {}: {} rows, offsets {}–{}",
                harmless(&own.dataset),
                harmless(&own.topic),
                own.partition,
                own.rows,
                own.first,
                own.last
            );
            if !own.twice.is_empty() {
                line.push_str(&format!("; there twice: {}", ranges(&own.twice)));
            }
            if !own.missing.is_empty() {
                line.push_str(&format!("; not there: {}", ranges(&own.missing)));
            }
            say(line);
        }
        say(format_args!(
            "{} files, {} rows, {} faults",
            self.files,
            self.rows,
            self.faults.len()
        ));
    }

    fn verdict(&self, no_gaps: bool) -> Result<ExitCode> {
        let twice = self.partitions.iter().any(|own| !own.twice.is_empty());
        let missing = no_gaps && self.partitions.iter().any(|own| !own.missing.is_empty());
        let what = match (self.faults.is_empty(), twice, missing) {
            (true, false, false) => return Ok(ExitCode::SUCCESS),
            (false, ..) => format!(
                "{} of {} files are not what they should be",
                self.faults.len(),
                self.files
            ),
            (true, true, _) => "offsets are there more than once".to_owned(),
            (true, false, true) => "offsets are not there".to_owned(),
        };
        Err(Failure::new(
            Exit::Data,
            what,
            "the lines above say which; find out who wrote to the folder besides the pipeline",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_that_are_there_twice_or_not_are_found_whatever_the_order_of_the_files() {
        let of = |ranges: &[(i64, i64)]| {
            let own = Partition::of("d".into(), "t".into(), 0, ranges.to_vec());
            (own.rows, own.first, own.last, own.twice, own.missing)
        };
        assert_eq!(of(&[(5, 9), (0, 4)]), (10, 0, 9, vec![], vec![]));
        assert_eq!(of(&[(0, 4), (6, 9)]), (9, 0, 9, vec![], vec![(5, 5)]));
        assert_eq!(
            of(&[(0, 9), (3, 4), (9, 12)]),
            (16, 0, 12, vec![(3, 4), (9, 9)], vec![])
        );
    }
}
