//! The hot paths whose instructions and allocations are counted, each as a closure that does the same work every
//! time: counts are compared between commits, so nothing here may depend on chance or on the machine's speed.

use sealflow::columns::{Found, Locator, json, splice};
use sealflow::pipeline::{Header, Record};
use sealflow::policy::ColumnPath;
use sealflow::seal::{
    ColumnContext, OpeningKey, PlainColumn, SealedColumn, SealedValue, SealingKey, UsageLimits, value,
};
use sealflow::secret::SecretBytes;

use crate::Error;
use crate::engine::{Engine, samples};

/// Values of a column, and records of a batch.
pub const ITEMS: usize = 256;
/// Bytes of a plaintext encoding in the column paths: a name, a mailbox, a card number.
const VALUE_BYTES: usize = 32;
const NO_LIMIT: UsageLimits = UsageLimits {
    batches: u64::MAX,
    values: u64::MAX,
    bytes: u64::MAX,
};

/// A hot path, ready to run.
pub type Path = Box<dyn FnMut()>;

/// Makes a path ready.
pub type Prepare = fn() -> Result<Path, Error>;

/// All of them: name and constructor. A new one is a function and a line here.
pub const PATHS: &[(&str, Prepare)] = &[
    ("locate the columns of a record", locate),
    ("encode the values of a record", encode),
    ("seal a column", seal_column),
    ("open a column", open_column),
    ("write text forms", write_text),
    ("read text forms", read_text),
    ("splice a record", splice_record),
    ("seal a batch", seal_batch),
    ("open a batch", open_batch),
    ("seal keys and headers", seal_outer),
    ("open keys and headers", open_outer),
];

/// The only function in which callgrind counts. Never inlined, and not left by a tail call, so that it has a
/// symbol, an entry and an exit.
#[inline(never)]
pub fn measured_region(path: &mut Path) {
    path();
    std::hint::black_box(path);
}

fn context() -> ColumnContext<'static> {
    ColumnContext {
        dataset: "payments",
        label: "payment.cards[*].number",
        column: 3,
        rows: None,
    }
}

fn secret() -> SecretBytes {
    SecretBytes::new(vec![1; 32])
}

fn plain_column() -> Result<PlainColumn, Error> {
    let mut plain = PlainColumn::with_capacity(ITEMS, ITEMS * VALUE_BYTES);
    for _ in 0..ITEMS {
        plain.push(&[6; VALUE_BYTES])?;
    }
    Ok(plain)
}

fn sealed_column() -> Result<(OpeningKey, SealedColumn), Error> {
    let sealing = SealingKey::from_generated(&secret(), NO_LIMIT)?;
    let sealed = sealing.seal(&context(), plain_column()?.view())?;
    Ok((OpeningKey::from_unwrapped(&secret(), sealing.id())?, sealed))
}

fn locator() -> Result<Locator, Error> {
    let columns: Result<Vec<ColumnPath>, _> = sealflow_samples::SEALED_PATHS.iter().map(|path| path.parse()).collect();
    let fields: Vec<ColumnPath> = vec!["id".parse()?];
    Ok(Locator::new(&columns?, &fields)?)
}

fn values() -> Vec<Vec<u8>> {
    sealflow_samples::generate(3, ITEMS as u64)
        .map(|sample| sample.value)
        .collect()
}

fn locate() -> Result<Path, Error> {
    let (locator, records, mut found) = (locator()?, values(), Found::default());
    Ok(Box::new(move || {
        for record in &records {
            let located = locator.locate(std::hint::black_box(record), &mut found);
            std::hint::black_box(located.is_ok());
        }
    }))
}

fn encode() -> Result<Path, Error> {
    let (locator, records) = (locator()?, values());
    let mut found = Found::default();
    let mut texts = Vec::new();
    for record in &records {
        locator.locate(record, &mut found)?;
        texts.extend(found.hits.iter().map(|hit| record[hit.range()].to_vec()));
    }
    let mut out = Vec::with_capacity(1 << 20);
    Ok(Box::new(move || {
        out.clear();
        for text in &texts {
            json::encode_json(std::hint::black_box(text), Some(32), &mut out);
        }
        std::hint::black_box(&out);
    }))
}

fn seal_column() -> Result<Path, Error> {
    let (key, plain) = (SealingKey::from_generated(&secret(), NO_LIMIT)?, plain_column()?);
    Ok(Box::new(move || {
        std::hint::black_box(key.seal(&context(), plain.view()).is_ok());
    }))
}

fn open_column() -> Result<Path, Error> {
    let (key, sealed) = sealed_column()?;
    let mut out = Vec::with_capacity(ITEMS * VALUE_BYTES);
    Ok(Box::new(move || {
        out.clear();
        let mut opener = key.opener(context().dataset, context().label);
        for value in sealed.view().iter().flatten() {
            if let Ok(SealedValue::Randomised {
                nonce, ciphertext, tag, ..
            }) = SealedValue::parse(value)
            {
                let opened = opener.open(nonce, ciphertext, tag, None, &mut out);
                std::hint::black_box(opened.is_ok());
            }
        }
        std::hint::black_box(&out);
    }))
}

fn write_text() -> Result<Path, Error> {
    let (_, sealed) = sealed_column()?;
    let mut out = Vec::with_capacity(ITEMS * value::text_len(VALUE_BYTES + 64));
    Ok(Box::new(move || {
        out.clear();
        for bytes in sealed.view().iter().flatten() {
            value::write_text(std::hint::black_box(bytes), &mut out);
        }
        std::hint::black_box(&out);
    }))
}

fn read_text() -> Result<Path, Error> {
    let (_, sealed) = sealed_column()?;
    let text = |bytes| {
        let mut text = Vec::new();
        value::write_text(bytes, &mut text);
        text
    };
    let texts: Vec<Vec<u8>> = sealed.view().iter().flatten().map(text).collect();
    let mut out = Vec::with_capacity(ITEMS * (VALUE_BYTES + 64));
    Ok(Box::new(move || {
        out.clear();
        for text in &texts {
            std::hint::black_box(value::read_text(text, &mut out).is_ok());
        }
    }))
}

fn splice_record() -> Result<Path, Error> {
    let (locator, records) = (locator()?, values());
    let mut found = Found::default();
    let mut work = Vec::new();
    for record in records {
        locator.locate(&record, &mut found)?;
        let ranges: Vec<_> = found.hits.iter().map(sealflow::columns::Hit::range).collect();
        work.push((record, ranges));
    }
    let mut out = Vec::with_capacity(1 << 20);
    let replacement = [b'x'; 110];
    Ok(Box::new(move || {
        out.clear();
        for (record, ranges) in &work {
            let replacements = ranges.iter().map(|range| (range.clone(), replacement.as_slice()));
            splice(std::hint::black_box(record), replacements, &mut out);
        }
        std::hint::black_box(&out);
    }))
}

fn seal_batch() -> Result<Path, Error> {
    let (engine, records) = (Engine::new(sealflow_samples::POLICY_YAML)?, samples(ITEMS as u64));
    engine.seal(&records)?;
    Ok(Box::new(move || {
        std::hint::black_box(engine.seal(&records).is_ok());
    }))
}

fn open_batch() -> Result<Path, Error> {
    let engine = Engine::new(sealflow_samples::POLICY_YAML)?;
    let sealed = engine.seal(&samples(ITEMS as u64))?;
    engine.open(&sealed)?;
    Ok(Box::new(move || {
        std::hint::black_box(engine.open(&sealed).is_ok());
    }))
}

/// A key and a header of each record.
const OUTER_POLICY: &str = r#"
dataset: payments
version: 1
keys:
  default: { arn: "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001" }
acls:
  readers: { allow: ["arn:aws:iam::111122223333:role/readers"] }
columns:
  - { path: $key, key: default, acl: readers }
  - { path: "$header.user", key: default, acl: readers }
"#;

fn outer_records() -> Vec<Record> {
    let mut records = samples(ITEMS as u64);
    for record in &mut records {
        let name = format!("user {} of the samples", record.position.offset);
        record.key = Some(name.clone().into());
        record.headers.push(Header {
            name: "user".into(),
            value: Some(name.into()),
        });
    }
    records
}

fn seal_outer() -> Result<Path, Error> {
    let (engine, records) = (Engine::new(OUTER_POLICY)?, outer_records());
    engine.seal(&records)?;
    Ok(Box::new(move || {
        std::hint::black_box(engine.seal(&records).is_ok());
    }))
}

fn open_outer() -> Result<Path, Error> {
    let engine = Engine::new(OUTER_POLICY)?;
    let sealed = engine.seal(&outer_records())?;
    engine.open(&sealed)?;
    Ok(Box::new(move || {
        std::hint::black_box(engine.open(&sealed).is_ok());
    }))
}
