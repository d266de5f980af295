//! The parts of sealing, each alone: finding the columns, and what is done with what was found.

use std::ops::Range;

use sealflow::columns::{Found, json};
use sealflow::seal::value::write_text;
use sealflow::seal::{ColumnContext, PlainColumn, SealedColumn, SealingKey, UsageLimits};
use sealflow::secret::SecretBytes;
use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::Contender;

use super::check::locator;
use super::data::Data;
use super::peers::KEY;
use super::{Per, timed};

const NO_LIMIT: UsageLimits = UsageLimits {
    batches: u64::MAX,
    values: u64::MAX,
    bytes: u64::MAX,
};
/// More than a field of these records has.
const ROOM: usize = 256;

/// A record and its hits: column and place.
type Located<'a> = (&'a [u8], Vec<(usize, Range<usize>)>);

pub(super) fn locate(data: &Data) -> Result<Contender<'_>, Error> {
    let (locator, mut found) = (locator(data)?, Found::default());
    Ok(Contender::elsewhere("of it: locate", move || {
        timed(data, Per::Record, || {
            for record in data.values() {
                locator.locate(record, &mut found)?;
                std::hint::black_box(&found);
            }
            Ok(())
        })
    }))
}

/// Encodes, seals, and writes the records with text forms in place.
pub(super) fn all_but_locate(data: &Data, batch: usize) -> Result<Contender<'_>, Error> {
    let key = SealingKey::from_generated(&SecretBytes::new(KEY.to_vec()), NO_LIMIT)?;
    let (locator, mut found) = (locator(data)?, Found::default());
    let mut located: Vec<Located<'_>> = Vec::new();
    for record in data.values() {
        locator.locate(record, &mut found)?;
        let hits = found.hits.iter().map(|hit| (usize::from(hit.column), hit.range()));
        located.push((
            record,
            hits.filter(|(_, range)| &record[range.clone()] != b"null").collect(),
        ));
    }
    let mut out = Vec::new();
    Ok(Contender::elsewhere("of it: seal, base64, splice", move || {
        timed(data, Per::Record, || {
            for batch in located.chunks(batch) {
                out.clear();
                write(&seal(data, &key, batch)?, batch, &mut out);
                std::hint::black_box(&out);
            }
            Ok(())
        })
    }))
}

fn seal(data: &Data, key: &SealingKey, batch: &[Located<'_>]) -> Result<Vec<SealedColumn>, Error> {
    let empty = |_| PlainColumn::with_capacity(batch.len(), batch.len() * 32);
    let mut plain: Vec<PlainColumn> = (0..data.columns.len()).map(empty).collect();
    for (record, hits) in batch {
        for (column, range) in hits {
            plain[*column].push_with(ROOM, |out| json::encode_json(&record[range.clone()], None, out))?;
        }
    }
    let mut sealed = Vec::new();
    for (column, (plain, label)) in (0..).zip(plain.iter().zip(&data.columns)) {
        let context = ColumnContext {
            dataset: "payments",
            label,
            column,
            rows: None,
        };
        sealed.push(key.seal(&context, plain.view())?);
    }
    Ok(sealed)
}

fn write(sealed: &[SealedColumn], batch: &[Located<'_>], out: &mut Vec<u8>) {
    let mut next = vec![0; sealed.len()];
    for (record, hits) in batch {
        let mut at = 0;
        for (column, range) in hits {
            out.extend_from_slice(&record[at..range.start]);
            out.push(b'"');
            write_text(sealed[*column].view().get(next[*column]).unwrap_or_default(), out);
            out.push(b'"');
            next[*column] += 1;
            at = range.end;
        }
        out.extend_from_slice(&record[at..]);
    }
}
