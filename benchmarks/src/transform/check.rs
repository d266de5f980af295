//! Whether a side did the work: what it wrote is read, opened, and is the records again.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use sealflow::columns::{Found, Hit, Locator, splice};
use sealflow::seal::SealedValue;
use sealflow::seal::value::read_text;
use sealflow_benchmarks::Error;
use sealflow_benchmarks::engine::{Engine, to_records};
use serde_json::Value;

use super::data::Data;
use super::peers::{KEY, Peer, aad};

/// Sealflow seals the records and opens them again, byte for byte.
pub(super) fn ours(data: &Data, engine: &Engine) -> Result<(), Error> {
    let sealed = to_records(engine.seal_all(&data.records)?);
    if sealed
        .iter()
        .zip(&data.records)
        .any(|(sealed, record)| sealed.value == record.value)
    {
        return Err("a record was not sealed".into());
    }
    let opened = to_records(engine.open_all(&sealed)?);
    if opened
        .iter()
        .zip(&data.records)
        .any(|(opened, record)| opened.value != record.value)
    {
        return Err("a record is another one after opening".into());
    }
    Ok(())
}

/// In every record the peer has sealed what Sealflow would, and nothing else is different.
pub(super) fn peer<P: Peer>(data: &Data) -> Result<(), Error> {
    let (mut peer, locator, paths) = (P::new(data.paths())?, locator(data)?, data.paths());
    let cipher = Aes256Gcm::new(&KEY.into());
    let (mut before, mut after) = (Found::default(), Found::default());
    let mut count = 0;
    for record in data.values() {
        let mut sealed = Vec::new();
        peer.seal(record, &mut sealed)?;
        locator.locate(record, &mut before)?;
        locator.locate(&sealed, &mut after)?;
        let mut opened = Vec::new();
        for (plain, hit) in before.hits.iter().zip(&after.hits) {
            let (plain, text) = (&record[plain.range()], &sealed[hit.range()]);
            if plain == b"null" && text == b"null" {
                opened.push(text.to_vec());
                continue;
            }
            let text = text
                .strip_prefix(b"\"")
                .and_then(|text| text.strip_suffix(b"\""))
                .ok_or("no text")?;
            let mut bytes = Vec::new();
            read_text(text, &mut bytes)?;
            let SealedValue::Randomised {
                column,
                nonce,
                ciphertext,
                tag,
                ..
            } = SealedValue::parse(&bytes)?
            else {
                return Err("another suite".into());
            };
            let payload = Payload {
                msg: &[ciphertext, tag].concat(),
                aad: &aad(hit.column.into(), &paths),
            };
            let value = cipher
                .decrypt(&(*nonce).into(), payload)
                .map_err(|_| "a value does not open")?;
            if value != plain || column != hit.column {
                return Err(format!("{} sealed something else", P::NAME).into());
            }
            opened.push(value);
            count += 1;
        }
        let ranges = after.hits.iter().map(Hit::range);
        let mut restored = Vec::new();
        splice(&sealed, ranges.zip(opened.iter().map(Vec::as_slice)), &mut restored);
        let read = |json: &[u8]| serde_json::from_slice::<Value>(json);
        if before.hits.len() != after.hits.len() || read(&restored)? != read(record)? {
            return Err(format!("{} changed something else", P::NAME).into());
        }
    }
    if count < data.records.len() {
        Err("there was nothing to seal".into())
    } else {
        Ok(())
    }
}

/// Finds the columns of the data.
pub(super) fn locator(data: &Data) -> Result<Locator, Error> {
    let columns: Result<Vec<_>, _> = data.columns.iter().map(|path| path.parse()).collect();
    Ok(Locator::new(&columns?, &[])?)
}
