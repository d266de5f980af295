//! Encrypted Parquet against plain Parquet by the same crate, and against PyArrow's: sample records in one file of two row
//! groups, one thread, in memory.

mod peer;

use std::sync::Arc;

use arrow::array::RecordBatch;
use bytes::Bytes;
use sealflow::table::{Compression, WriteOptions};
use sealflow_benchmarks::Error;
use sealflow_benchmarks::engine::samples;
use sealflow_benchmarks::measure::{Contender, interleaved};
use sealflow_benchmarks::report::{Comparison, exactly, figure};
use sealflow_benchmarks::size::{pairs, scaled};
use sealflow_benchmarks::table::{Batches, Protection, Table, read_plain, write_plain};

use crate::instructions::sibling;
use crate::process;
use peer::PyArrow;

const SECTION: &str = "tables";
/// Rows of the files that are compared: small ones as a landing makes them, where what a file costs is spread over its rows.
const ROWS: u64 = 131_072;
/// Rows of a file of which little but its footer is read.
const FEW: u64 = 2;
const PAIRS: usize = 31;
/// JSON bytes of the conversion whose memory is measured.
const CONVERTED: u64 = 2 << 30;

const PLAIN: &str = "plain Parquet";
const COLUMN: &str = "sealflow, at: column";
const VALUE: &str = "sealflow, sealed values";
const PYARROW: &str = "PyArrow, encrypted";

/// The same records under both policies.
struct Sides {
    rows: usize,
    column: (Table, Batches),
    value: (Table, Batches),
}

pub(crate) fn run() -> Result<(), Error> {
    let records = samples(scaled(ROWS));
    let rows = records.len();
    let (column, value) = (Table::new(Protection::Column)?, Table::new(Protection::Value)?);
    let of_column = column.rows(&records)?;
    let of_value = value.rows(&records)?;
    let sides = Sides {
        rows,
        column: (column, of_column),
        value: (value, of_value),
    };
    for (compression, name) in [(Compression::Zstd, "zstd"), (Compression::Snappy, "snappy")] {
        compare(&sides, compression, name)?;
    }
    sealing(&sides)?;
    opening()?;
    memory()
}

fn options(sides: &Sides, compression: Compression) -> WriteOptions {
    WriteOptions {
        compression,
        row_group_rows: sides.rows.div_ceil(2),
        row_group_bytes: usize::MAX,
        threads: 1,
    }
}

/// Writing, reading and size with one codec.
fn compare(sides: &Sides, compression: Compression, name: &str) -> Result<(), Error> {
    let options = options(sides, compression);
    let (column, of_column) = &sides.column;
    let (value, of_value) = &sides.value;
    let plain_rows: &[RecordBatch] = &of_column.rows;
    let plain = write_plain(plain_rows, compression, options.row_group_rows)?;
    let (encrypted, sealed) = (column.write(of_column, options)?, value.write(of_value, options)?);
    for (contender, file) in [(PLAIN, &plain), (COLUMN, &encrypted), (VALUE, &sealed)] {
        let bytes = file.len() as f64 / sides.rows as f64;
        figure(
            SECTION,
            &format!("size, {name}"),
            contender,
            "bytes per record",
            exactly(bytes),
        )?;
    }
    let mut python = PyArrow::start(&plain, name, options.row_group_rows)?;

    let mut writing = vec![
        Contender::here(PLAIN, || {
            let file = write_plain(plain_rows, compression, options.row_group_rows);
            assert!(file.is_ok_and(|file| file.len() == plain.len()));
        }),
        Contender::here(COLUMN, || {
            let file = column.write(of_column, options);
            assert!(file.is_ok_and(|file| file.len() > plain.len()));
        }),
        Contender::here(VALUE, || {
            let file = value.write(of_value, options);
            assert!(file.is_ok_and(|file| file.len() > plain.len()));
        }),
    ];
    if let Some(python) = &mut python {
        writing.push(Contender::elsewhere(PYARROW, || python.ask("write")));
    }
    let samples = interleaved(pairs(PAIRS), 1, writing)?;
    report(sides, &format!("write rows, {name}"), PLAIN, &samples)?;

    let count = sides.rows as u64;
    let read_all = |table: &Table, file: &Bytes| {
        let rows = table.read(Arc::new(file.clone()));
        assert!(rows.is_ok_and(|rows| rows == count));
    };
    let mut reading = vec![
        Contender::here(PLAIN, || {
            let rows = read_plain(&plain);
            assert!(rows.is_ok_and(|rows| rows == count));
        }),
        Contender::here(COLUMN, || read_all(column, &encrypted)),
        Contender::here(VALUE, || read_all(value, &sealed)),
    ];
    if let Some(python) = &mut python {
        reading.push(Contender::elsewhere(PYARROW, || python.ask("read")));
    }
    let samples = interleaved(pairs(PAIRS), 1, reading)?;
    report(sides, &format!("read rows, {name}"), PLAIN, &samples)
}

/// From records to a file: with the work of locating, sealing and making rows.
fn sealing(sides: &Sides) -> Result<(), Error> {
    let options = options(sides, Compression::Zstd);
    let records = samples(sides.rows as u64);
    let whole = |table: &Table| {
        let file = table.rows(&records).and_then(|rows| table.write(&rows, options));
        assert!(file.is_ok_and(|file| !file.is_empty()));
    };
    let contenders = vec![
        Contender::here(COLUMN, || whole(&sides.column.0)),
        Contender::here(VALUE, || whole(&sides.value.0)),
    ];
    let samples = interleaved(pairs(PAIRS), 1, contenders)?;
    report(sides, "records to a file, zstd", COLUMN, &samples)
}

/// What a file costs before its first row: footer, policy, keys of every column.
fn opening() -> Result<(), Error> {
    let table = Table::new(Protection::Column)?;
    let rows = table.rows(&samples(FEW))?;
    let options = WriteOptions {
        threads: 1,
        ..WriteOptions::default()
    };
    let plain = write_plain(&rows.rows, options.compression, options.row_group_rows)?;
    let encrypted = table.write(&rows, options)?;
    let contenders = vec![
        Contender::here(PLAIN, || {
            assert!(read_plain(&plain).is_ok_and(|rows| rows == FEW));
        }),
        Contender::here(COLUMN, || {
            assert!(table.read(Arc::new(encrypted.clone())).is_ok_and(|rows| rows == FEW));
        }),
    ];
    let samples = interleaved(pairs(PAIRS), 16, contenders)?;
    Comparison {
        section: SECTION,
        what: "open and read a file of two rows",
        unit: "µs per file",
        factor: 1e6,
        baseline: PLAIN,
    }
    .write(&samples)
}

fn report(
    sides: &Sides,
    what: &str,
    baseline: &str,
    samples: &[sealflow_benchmarks::measure::Samples],
) -> Result<(), Error> {
    Comparison {
        section: SECTION,
        what,
        unit: "ns per record",
        factor: 1e9 / sides.rows as f64,
        baseline,
    }
    .write(samples)
}

/// A file of 2 GiB of JSON, in a process of its own.
fn memory() -> Result<(), Error> {
    let folder = process::temporary()?;
    let file = folder.join("table.parquet");
    let output = std::process::Command::new(sibling("sealflow-bench-tables")?)
        .arg(&file)
        .arg(scaled(CONVERTED).to_string())
        .output();
    let removed = std::fs::remove_dir_all(&folder);
    let output = output?;
    removed?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let numbers: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| numbers[name].as_f64().ok_or("a number is missing");
    let mebibyte = f64::from(1 << 20);
    for (name, contender, unit, factor) in [
        ("json_bytes", "JSON that went in", "MiB", mebibyte),
        ("file_bytes", "the file", "MiB", mebibyte),
        ("write_peak_bytes", "peak resident memory, writing", "MiB", mebibyte),
        ("read_peak_bytes", "peak resident memory, reading", "MiB", mebibyte),
        ("write_seconds", "wall time, writing", "s", 1.0),
        ("read_seconds", "wall time, reading", "s", 1.0),
    ] {
        figure(
            SECTION,
            "one large file",
            contender,
            unit,
            exactly(number(name)? / factor),
        )?;
    }
    Ok(())
}
