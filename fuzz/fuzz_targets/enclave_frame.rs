//! What host and worker say to each other: frames, however their bytes are cut, and the bodies of all messages. No panic; nothing
//! is larger than what came; what is read is written again byte for byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow_enclave_protocol::column::WireColumn;
use sealflow_enclave_protocol::frame::{Frame, FrameReader, Kind, MAX_FRAME};
use sealflow_enclave_protocol::message::{
    CatalogueAnswer, CatalogueQuestion, ClientKeysAnswer, ClientKeysJob, Credentials, Failure, Hello, HelloAnswer,
    JobColumn, JobWriter, PairAnswer, PairJob, ReadAnswer, ReadJob, ResealAnswer, ResealJob, Status,
};
use sealflow_enclave_protocol::wire::{Malformed, Writer};
use zeroize::Zeroizing;

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, bytes)) = bytes.split_first() else {
        return;
    };
    frames(usize::from(*cut) + 1, bytes);
    // As a body of its own too: no header has to be guessed then.
    body(bytes);
});

fn frames(cut: usize, bytes: &[u8]) {
    let (mut reader, mut read) = (FrameReader::default(), 0);
    let mut written = Vec::new();
    for piece in bytes.chunks(cut) {
        let mut rest = piece;
        while !rest.is_empty() {
            match reader.push(&mut rest) {
                Ok(Some(frame)) => {
                    assert!(frame.body.len() <= bytes.len() && frame.body.len() < MAX_FRAME);
                    written.extend_from_slice(&frame.header().unwrap());
                    written.extend_from_slice(&frame.body);
                    read += 1;
                    of_kind(&frame);
                }
                Ok(None) => {}
                Err(Malformed) => {
                    assert!(bytes.starts_with(&written));
                    return;
                }
            }
        }
    }
    assert!(bytes.starts_with(&written) && (read > 0 || written.is_empty()));
}

fn of_kind(frame: &Frame) {
    let body = &frame.body[..];
    match frame.kind {
        Kind::Hello => drop(Hello::read(body)),
        Kind::Reseal => drop(ResealJob::read(body)),
        Kind::Read => drop(ReadJob::read(body)),
        Kind::Credentials => drop(Credentials::read(body)),
        Kind::Failure => drop(Failure::read(body)),
        Kind::Catalogue => drop(CatalogueQuestion::read(body)),
        Kind::CatalogueAnswer => drop(CatalogueAnswer::read(body)),
        _ => {}
    }
}

fn body(bytes: &[u8]) {
    if let Ok(job) = ResealJob::read(bytes) {
        assert_eq!(&resealed(&job)[..], bytes);
    }
    if let Ok(answer) = ResealAnswer::read(bytes) {
        let mut again = Writer::default();
        again.count(answer.columns.len());
        for part in &answer.columns {
            check(&part.values);
            part.write(&mut again);
        }
        assert_eq!(&again.finish()[..], bytes);
    }
    let read = [
        ReadJob::read(bytes).map(|job| job.to_body()),
        ReadAnswer::read(bytes).map(|answer| answer.to_body()),
        Hello::read(bytes).map(|hello| Zeroizing::new(hello.to_body())),
        HelloAnswer::read(bytes).map(|answer| answer.to_body()),
        Credentials::read(bytes).map(|credentials| credentials.to_body()),
        Status::read(bytes).map(|status| status.to_body()),
        Failure::read(bytes).map(|failure| failure.to_body()),
        CatalogueQuestion::read(bytes).map(|question| question.to_body()),
        CatalogueAnswer::read(bytes).map(|answer| answer.to_body()),
        ClientKeysJob::read(bytes).map(|job| job.to_body()),
        ClientKeysAnswer::read(bytes).map(|answer| answer.to_body()),
        PairJob::read(bytes).map(|job| job.to_body()),
        PairAnswer::read(bytes).map(|answer| answer.to_body()),
    ];
    for again in read.into_iter().flatten() {
        assert_eq!(&again[..], bytes);
    }
}

/// The job, written again.
fn resealed(job: &ResealJob<'_>) -> Zeroizing<Vec<u8>> {
    let sessions: Vec<String> = job.sessions.iter().map(|session| (*session).to_owned()).collect();
    let mut again = JobWriter::new(job.dataset, &job.policy, &sessions, job.columns.len(), 0);
    for JobColumn {
        label,
        is_json,
        values,
        keys,
        rows,
    } in &job.columns
    {
        check(values);
        assert_eq!(values.len(), keys.len());
        WireColumn::write(
            values.validity,
            &values.offsets,
            values.bytes,
            again.column(label, *is_json),
        );
        again.keys(keys.iter().copied()).option(rows.as_ref(), |to, rows| {
            check(rows);
            assert_eq!(rows.len(), values.len());
            WireColumn::write(rows.validity, &rows.offsets, rows.bytes, to);
        });
    }
    again.finish()
}

/// What those who read columns rely on.
fn check(column: &WireColumn<'_>) {
    let end = usize::try_from(*column.offsets.last().unwrap()).unwrap();
    assert!(column.offsets[0] == 0 && end == column.bytes.len());
    assert!(column.offsets.is_sorted());
    assert!(
        column
            .validity
            .is_none_or(|bits| bits.len() == column.len().div_ceil(8))
    );
}
