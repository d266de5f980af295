//! What QEMU's NSM reports is what the build computed, and bytes cross its vsock both ways. The worker's place is taken by the example
//! `guest` of `sealflow-enclave-init`.

use std::time::Instant;

use sealflow_enclave_host::channel::LARGEST_WRITE;
use sealflow_testbed::report;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

use crate::machine::{BOOT, Machine, PORT, Prepared};

const CONFIGURATION: &[u8] = b"owner_keys: [of-the-test]\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_enclave_in_qemu_measures_what_the_build_computed_and_bytes_cross_its_vsock() {
    let test = "an_enclave_in_qemu_measures_what_the_build_computed_and_bytes_cross_its_vsock";
    let Some(prepared) = Prepared::or_skip(test) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let built = prepared.image("guest", CONFIGURATION, folder.path());
    let mut machine = Machine::start(&prepared, folder.path(), &built.path).await;
    let boot = machine.up().await;

    let channel = machine.connect(PORT).await;
    let mut channel = BufReader::new(channel);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        channel.read_line(&mut line).await.unwrap();
        match line.trim_end().split_once(' ') {
            Some((name, value)) => lines.push((name.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let said = |name: &str| {
        lines
            .iter()
            .find(|(said, _)| said == name)
            .map(|(_, value)| value.as_str())
            .unwrap()
    };

    let computed = serde_json::to_value(&built.measurements).unwrap();
    assert_eq!(said("PCR0"), computed["image"]);
    assert_eq!(said("PCR1"), computed["kernel"]);
    assert_eq!(said("PCR2"), computed["application"]);
    // Neither zero, nor each other's.
    assert!(said("PCR0").trim_matches('0').len() > 90 && said("PCR0") != said("PCR1") && said("PCR1") != said("PCR2"));

    // The document has the same measurement, and the nonce that the guest asked for.
    let document = hex::decode(said("document")).unwrap();
    let contains = |part: &[u8]| document.windows(part.len()).any(|window| window == part);
    assert!(contains(&hex::decode(said("PCR0")).unwrap()) && contains(b"sealflow"));
    assert_eq!(said("configuration"), hex::encode(CONFIGURATION));
    // The init and what it read are out of reach.
    assert_eq!(said("root"), "configuration.yaml dev proc run sys tmp worker");

    // A column's worth of bytes there and back, written while it is read.
    let sent: Vec<u8> = (0..64 * LARGEST_WRITE as u32 + 1_234)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let started = Instant::now();
    let (mut reader, mut writer) = tokio::io::split(channel.into_inner());
    let expected = sent.clone();
    let writing = tokio::spawn(async move { writer.write_all(&sent).await.map(|()| writer) });
    let mut received = vec![0; expected.len()];
    timeout(BOOT, reader.read_exact(&mut received))
        .await
        .expect("the echo stalls")
        .unwrap();
    writing.await.unwrap().unwrap();
    assert!(received == expected, "other bytes came back");
    report(&json!({
        "name": "measured",
        "pcrs": ["PCR0", "PCR1", "PCR2"],
        "are_as_computed": true,
        "boot_secs": boot.as_secs_f64(),
        "bytes_there_and_back": expected.len(),
        "secs": started.elapsed().as_secs_f64(),
    }));
}
