//! A host that is not honest, at the whole installation: each is refused.

use std::time::Duration;

use sealflow_testbed::measured_key_policy;

use crate::bench::Bench;

/// What `enclave attest` says, which must not succeed.
fn refused(bench: &Bench, file: &std::path::Path) -> String {
    let output = bench.run("pipeline", &["enclave", "attest", file.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    text
}

#[test]
fn an_image_with_other_owners_or_another_byte_is_another_image_and_gets_no_keys() {
    let Some(bench) = Bench::new("images") else { return };
    let proved = bench.say(&["enclave", "attest", bench.pipeline.to_str().unwrap()]);
    assert!(
        proved.contains("dev-software-nsm") && proved.contains(&hex::encode(bench.image)),
        "{proved}"
    );
    // An owner of the host's own, ARN patterns of its own: all of that is measured.
    let other_owner = bench.config().replace(
        &bench.site.owner().to_string(),
        "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    );
    let other_arns = bench.config().replace("111122223333:key/*", "999999999999:key/*");
    for (file, config) in [("owner.img", other_owner), ("arns.img", other_arns)] {
        assert_ne!(bench.build(file, &config), bench.image);
        let pipeline = bench.pipeline_file(file, "");
        assert!(refused(&bench, &pipeline).contains("measure"), "{file}");
    }
    // A byte of the program.
    let good = std::fs::read(bench.site.path().join("worker.img")).unwrap();
    let mut changed = good.clone();
    let at = changed.len() / 2;
    changed[at] ^= 1;
    std::fs::write(bench.site.path().join("changed.img"), changed).unwrap();
    let pipeline = bench.pipeline_file("changed.img", "");
    refused(&bench, &pipeline);
    // Even if the host lets it run: the KMS does not know it. The host's own rights release nothing either.
    let policy = measured_key_policy(&bench.image);
    assert!(policy.contains("kms:RecipientAttestation:ImageSha384"));
    // A worker that is not root's own: evidence by another root.
    let other = sealflow_testbed::Scratch::new();
    let pipeline = bench.pipeline_file("worker.img", "");
    let yaml = std::fs::read_to_string(&pipeline).unwrap();
    std::fs::write(
        &pipeline,
        yaml.replace(
            &bench.root.path().display().to_string(),
            &other.path().display().to_string(),
        ),
    )
    .unwrap();
    // The host believes it, since it was told to; the KMS does not, and so no record leaves.
    let mut running = bench.start(&pipeline, &[]);
    let mut session = bench.session(crate::bench::ENCLAVE_RSA);
    let mut hybrid = bench.backend_session();
    let sealed = session.seal("card", b"\"4111\"").unwrap();
    let amount = hybrid.seal("amount", b"1").unwrap();
    bench.topics.produce(
        "images",
        &[crate::bench::message(
            1,
            &sealed,
            &amount,
            &[session.token(), hybrid.token()],
        )],
    );
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(bench.topics.read_all("images.sealed").len(), 0);
    running.terminate();
    let _ = running.ended();
}
