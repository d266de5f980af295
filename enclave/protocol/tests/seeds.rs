//! Writes the seeds of the fuzz target `enclave_frame`. Run it when messages change:
//! `cargo test -p sealflow-enclave-protocol --all-features --test seeds -- --ignored`.

#![allow(clippy::unwrap_used)] // it fails loudly

use std::path::Path;

use sealflow_enclave_protocol::column::WireColumn;
use sealflow_enclave_protocol::frame::{Frame, Kind};
use sealflow_enclave_protocol::message::{
    CatalogueAnswer, CatalogueQuestion, Credentials, Hello, JobWriter, KEY_CLEAR, KEY_FIRST_SESSION, KEY_OWN, NONCE,
    Proof, ReadAnswer, ReadJob, SealedPart, What,
};
use sealflow_enclave_protocol::wire::Writer;
use zeroize::Zeroizing;

#[test]
#[ignore = "writes files"]
fn seeds_of_the_fuzz_target_are_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/enclave_frame");
    std::fs::create_dir_all(&folder).unwrap();
    let mut frames = vec![6];
    for (name, kind, body) in messages() {
        // The first byte says how frames are cut.
        std::fs::write(folder.join(name), [&[0][..], &body[..]].concat()).unwrap();
        let frame = Frame::new(kind, 1, body);
        frames.extend_from_slice(&frame.header().unwrap());
        frames.extend_from_slice(&frame.body);
    }
    std::fs::write(folder.join("frames"), frames).unwrap();
}

fn messages() -> Vec<(&'static str, Kind, Zeroizing<Vec<u8>>)> {
    let mut job = JobWriter::new("payments", &[7; 32], &["s1".to_owned(), "s2".to_owned()], 2, 64);
    WireColumn::write(None, &[0, 2, 3], b"abc", job.column("card", true));
    job.keys([KEY_OWN, KEY_FIRST_SESSION + 1].into_iter()).u8(0);
    WireColumn::write(Some(&[1]), &[0, 1], b"x", job.column("iban", false));
    let rows = job.keys([KEY_CLEAR].into_iter());
    rows.u8(1);
    WireColumn::write(None, &[0, 4], b"row1", rows);

    let mut resealed = Writer::default();
    resealed.count(1);
    let part = SealedPart {
        values: WireColumn {
            validity: Some(&[1]),
            offsets: vec![0, 3, 3],
            bytes: b"abc",
        },
        refused: vec![(1, 1)],
        key: [9; 16],
        envelope: b"envelope",
    };
    part.write(&mut resealed);

    let read = |what| ReadJob {
        dataset: "payments",
        purpose: Some("support"),
        proof: Proof::Oidc("a.b.c"),
        seal_to: b"{}",
        nonce: b"nonce",
        envelopes: vec![b"envelope"],
        what,
    };
    let answer = ReadAnswer {
        policy_version: 3,
        shown: vec![Some(b"{}"), None],
        decisions: Vec::new(),
        proof: "a.b.c",
    };
    let credentials = Credentials {
        access_key_id: "AKID".to_owned(),
        secret_access_key: "secret".to_owned().into(),
        session_token: Some("token".to_owned().into()),
        expires_ms: Some(1),
    };
    let put = CatalogueQuestion::PutIfAbsent("keys/a".to_owned(), vec![1, 2]);
    let failed = CatalogueAnswer::Failed {
        is_retryable: true,
        is_not_permitted: false,
        reason: "away".to_owned(),
    };
    vec![
        (
            "hello",
            Kind::Hello,
            Zeroizing::new(Hello { nonce: [5; NONCE] }.to_body()),
        ),
        ("reseal", Kind::Reseal, job.finish()),
        ("resealed", Kind::Answer, resealed.finish()),
        (
            "values",
            Kind::Read,
            read(What::Values(vec![(Some("card"), "sf1.x"), (None, "y")])).to_body(),
        ),
        (
            "records",
            Kind::Read,
            read(What::Records(vec![b"{\"card\":1}"])).to_body(),
        ),
        ("answer", Kind::Answer, answer.to_body()),
        ("credentials", Kind::Credentials, credentials.to_body()),
        ("put", Kind::Catalogue, put.to_body()),
        (
            "names",
            Kind::CatalogueAnswer,
            CatalogueAnswer::Names(vec!["keys/a".to_owned()]).to_body(),
        ),
        ("failed", Kind::CatalogueAnswer, failed.to_body()),
    ]
}
