//! What a record costs by the number of its sealed fields, by its size and by the size of a batch: the whole
//! transform with its keys in memory, without Kafka, so that small differences show.

use sealflow::pipeline::Record;
use sealflow_benchmarks::Error;
use sealflow_benchmarks::engine::{Engine, record, samples, to_records};
use sealflow_benchmarks::measure::{Contender, interleaved};
use sealflow_benchmarks::report::Comparison;
use sealflow_benchmarks::size::{pairs, scaled};

const PAIRS: usize = 11;
const FIELDS: [usize; 5] = [0, 1, 4, 8, 16];
const RECORD_BYTES: [usize; 4] = [256, 1_024, 4_096, 10_240];
const BATCHES: [usize; 5] = [1, 16, 128, 1_024, 8_192];
/// The standing values of what is not varied.
const FIELDS_EACH: usize = 4;
const BYTES_EACH: usize = 1_024;
const BATCH: usize = 1_024;

pub(crate) fn run() -> Result<(), Error> {
    let records = usize::try_from(scaled(8_192))?;
    let mut sides = Vec::new();
    for fields in FIELDS {
        sides.extend(both(
            &policy(fields),
            &synthetic(records, fields, BYTES_EACH),
            BATCH,
            "sealed fields",
            fields,
        )?);
    }
    compare("by sealed fields, records of 1 KB", records, sides)?;

    let mut sides = Vec::new();
    for bytes in RECORD_BYTES {
        let data = synthetic(records, FIELDS_EACH, bytes);
        sides.extend(both(&policy(FIELDS_EACH), &data, BATCH, "record bytes", bytes)?);
    }
    compare("by record size, 4 sealed fields", records, sides)?;

    let mut sides = Vec::new();
    for batch in BATCHES {
        let data = samples(records as u64);
        sides.extend(both(
            sealflow_samples::POLICY_YAML,
            &data,
            batch,
            "records per batch",
            batch,
        )?);
    }
    compare("by batch, sample records", records, sides)
}

fn compare(what: &str, records: usize, sides: Vec<Contender<'_>>) -> Result<(), Error> {
    let comparison = Comparison {
        section: "sweep",
        what,
        unit: "ns per record",
        factor: 1e9 / records as f64,
        baseline: "seal",
    };
    comparison.write(&interleaved(pairs(PAIRS), 1, sides)?)
}

/// Sealing and opening `records` in batches of `batch`.
fn both(
    policy: &str,
    records: &[Record],
    batch: usize,
    parameter: &'static str,
    value: usize,
) -> Result<Vec<Contender<'static>>, Error> {
    let (sealing, opening) = (Engine::new(policy)?, Engine::new(policy)?);
    let batches: Vec<Vec<Record>> = records.chunks(batch).map(<[Record]>::to_vec).collect();
    // Opened under the keys that sealed them: an engine's KMS is its own.
    let sealed: Result<Vec<_>, Error> = batches
        .iter()
        .map(|batch| opening.seal_all(batch).map(to_records))
        .collect();
    let sealed = sealed?;
    opening.open_all(sealed.first().map_or(&[][..], Vec::as_slice))?;
    let seal = Contender::here("seal", move || {
        for batch in &batches {
            std::hint::black_box(sealing.seal_all(batch).is_ok());
        }
    });
    let open = Contender::here("open", move || {
        for batch in &sealed {
            std::hint::black_box(opening.open_all(batch).is_ok());
        }
    });
    Ok([seal, open].map(|side| side.at(parameter, value as f64)).into())
}

/// A policy that seals `f0`, `f1`, …; the column of a policy without any is one that no record has.
fn policy(fields: usize) -> String {
    let columns: String = (0..fields)
        .map(|field| format!("  - {{ path: f{field}, key: default, acl: readers }}\n"))
        .collect();
    format!(
        r#"dataset: sweep
version: 1
keys:
  default: {{ arn: "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001" }}
acls:
  readers: {{ allow: ["arn:aws:iam::111122223333:role/readers"] }}
columns:
  - {{ path: nowhere, key: default, acl: readers }}
{columns}"#
    )
}

/// Records of about `bytes` bytes: `fields` of 20 letters to seal among members that nobody asked for.
fn synthetic(records: usize, fields: usize, bytes: usize) -> Vec<Record> {
    let value = |n: usize| {
        let mut json = format!(r#"{{"id":"r-{n:010}""#);
        for field in 0..fields {
            json += &format!(r#","f{field}":"value {n:010} of it""#);
        }
        let mut other = 0;
        while json.len() + 45 < bytes {
            json += &format!(r#","other_{other:03}":"nothing to seal {:08}""#, n + other);
            other += 1;
        }
        json + "}"
    };
    (0..records)
        .zip(0..)
        .map(|(n, offset)| record(offset, value(n)))
        .collect()
}
