//! Writes sample records as one encrypted Parquet file, reads it again, and says how much memory each took at most:
//! `sealflow-bench-tables FILE BYTES`, BYTES of JSON. One line of JSON on standard output.

#![allow(clippy::print_stdout)] // its output is its product

use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use sealflow::pipeline::Record;
use sealflow::table::{FileSource, SourceError, WriteOptions};
use sealflow_benchmarks::Error;
use sealflow_benchmarks::engine::record;
use sealflow_benchmarks::table::{Protection, Table, origin};

/// Records that are in memory at a time.
const BATCH: u64 = 4_096;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, bytes] = args.as_slice() else {
        return Err("usage: sealflow-bench-tables FILE BYTES".into());
    };
    let (path, wanted) = (Path::new(path), bytes.parse()?);
    let table = Table::new(Protection::Column)?;
    let started = Instant::now();
    let (records, written) = write(&table, path, wanted)?;
    let (write_peak, write_seconds) = (peak_memory()?, started.elapsed().as_secs_f64());
    forget_peak()?;
    let started = Instant::now();
    let read = table.read(Arc::new(Local::open(path)?))?;
    if read != records {
        return Err(format!("{read} rows of {records} were read").into());
    }
    let numbers = serde_json::json!({
        "records": records, "json_bytes": written, "file_bytes": path.metadata()?.len(),
        "write_peak_bytes": write_peak, "write_seconds": write_seconds,
        "read_peak_bytes": peak_memory()?, "read_seconds": started.elapsed().as_secs_f64(),
    });
    println!("{numbers}");
    Ok(())
}

/// Writes at least `wanted` bytes of records; how many records, and of how many bytes, they were.
fn write(table: &Table, path: &Path, wanted: u64) -> Result<(u64, u64), Error> {
    let out = BufWriter::new(File::create(path)?);
    let mut writer = table.begin(WriteOptions::default(), out)?;
    let (mut records, mut bytes) = (0, 0);
    while bytes < wanted {
        let made: Vec<Record> = (records..records + BATCH)
            .map(|n| {
                record(
                    i64::try_from(n).unwrap_or(i64::MAX),
                    sealflow_samples::record(3, n).value,
                )
            })
            .collect();
        records += BATCH;
        bytes += made.iter().map(|record| record.payload_bytes() as u64).sum::<u64>();
        Table::add(&mut writer, &table.rows(&made)?)?;
    }
    writer.finish(&origin(usize::try_from(records)?))?;
    Ok((records, bytes))
}

/// A file on this machine.
struct Local {
    file: Mutex<File>,
    size: u64,
}

impl Local {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            file: Mutex::new(file),
            size,
        })
    }
}

#[async_trait]
impl FileSource for Local {
    fn size(&self) -> u64 {
        self.size
    }

    async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        let failed = |error: std::io::Error| SourceError::Unavailable {
            reason: error.kind().to_string(),
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
        let mut bytes = Vec::new();
        (&mut *file)
            .take(range.end - range.start)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Ok(bytes.into())
    }
}

/// The most memory that this process had resident since the last [`forget_peak`], in bytes (`VmHWM` in proc(5)).
fn peak_memory() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("no VmHWM")?;
    Ok(kibibytes.trim().parse::<u64>()? * 1024)
}

/// Lets the peak begin from what is resident now (proc(5), `clear_refs`).
fn forget_peak() -> Result<(), Error> {
    Ok(std::fs::write("/proc/self/clear_refs", "5")?)
}
