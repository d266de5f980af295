//! What clients seal to: vouched for by the worker, published by its host, handed out by a service, and believed by nobody but for the
//! evidence. Pairs whose private half only workers get.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sealflow::jose::PrivateJwk;
use sealflow_client::attested::{self, Measurement, Measurements, Pinned, Trust};
use sealflow_client::{EnclaveKey, EnclaveKeysError, EnclavePins, PrivateKey, RsaBits, RsaPublicJwk, Session};
use sealflow_enclave_host::nsm::{CERTIFICATE, Root, certificate_of};
use sealflow_enclave_protocol::attestation::{Document, Tier};
use sealflow_local_kms::KeySpec;
use sealflow_testbed::{Instance, Scratch, measured_key_policy};
use serde_json::Value;

use crate::bench::{Bench, ENCLAVE_RSA, arn, binary, message};

const PAIRS: &str = "00000000-0000-4000-8000-0000000000e3";

fn pins(bench: &Bench, image: [u8; 48]) -> EnclavePins {
    EnclavePins::Measurements(Pinned {
        trust: Trust::with_dev_root(&certificate_of(bench.root.path()).unwrap()).unwrap(),
        measurements: vec![Measurements::of_image(Measurement::new(&image).unwrap())],
        nonce: None,
        max_age: attested::DEFAULT_MAX_AGE,
    })
}

/// A reading service that hands enclave keys out, and where it listens.
fn service(bench: &Bench) -> (Instance, SocketAddr) {
    let path = |name: &str| bench.site.path().join(name);
    let key = path("service-audit.key");
    std::fs::write(&key, PrivateJwk::generate().unwrap().to_private_json().expose()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (endpoint, root) = (bench.endpoint(), bench.root.path().join(CERTIFICATE));
    let yaml = format!(
        r#"name: read
listen: 127.0.0.1:0
admin: {{ listen: "127.0.0.1:0" }}
catalogue: {{ folder: "{}" }}
trust: {{ owners: ["{}"] }}
kms: {{ region: eu-central-1, endpoint: "{endpoint}", sts_endpoint: "{endpoint}" }}
identity: {{ server_id: read.test, sts: {{ endpoints: ["{}"] }} }}
enclave_keys: [payments]
enclave_dev_root: "{}"
audit: {{ to: file, path: service.log, key: service-audit.key, checkpoints: service.checkpoints }}
"#,
        bench.site.catalogue().display(),
        bench.site.owner(),
        endpoint.trim_end_matches('/'),
        root.display()
    );
    std::fs::write(path("service.yaml"), yaml).unwrap();
    let command = bench.site.command(binary(), "pipeline", &["serve", "service.yaml"]);
    // Of an instance before this one there may be a log.
    let log = path("service-output.log");
    let _ = std::fs::remove_file(&log);
    let mut instance = Instance::start(command, &log);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let log = instance.read_log();
        let listen = log
            .split(" listen=")
            .nth(1)
            // Whole: the line may be half written.
            .and_then(|rest| rest.split_once(char::is_whitespace)?.0.parse().ok());
        if let Some(listen) = listen {
            return (instance, listen);
        }
        assert!(instance.ended().is_none() && Instant::now() < until, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What everybody gets who asks the service.
fn handed_out((instance, service): (&Instance, SocketAddr)) -> String {
    let mut stream = TcpStream::connect(service).unwrap_or_else(|error| panic!("{error}: {}", instance.read_log()));
    write!(
        stream,
        "GET /.well-known/enclave-keys HTTP/1.1\r\nhost: read\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let at = answer.find("{\"documents\"").unwrap_or_else(|| panic!("{answer}"));
    // It may come in chunks, of which the last ends behind the document.
    let end = answer.rfind('}').unwrap();
    answer[at..=end].to_owned()
}

fn wait_for_log(running: &mut Instance, text: &str) {
    let until = Instant::now() + Duration::from_secs(120);
    while !running.read_log().contains(text) {
        assert!(
            running.ended().is_none() && Instant::now() < until,
            "{}",
            running.read_log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_the_worker_vouches_for_reaches_clients_through_a_service_and_is_what_they_seal_to() {
    let Some(bench) = Bench::new("vouched") else { return };
    let mut running = bench.start(&bench.pipeline, &[]);
    wait_for_log(&mut running, "published the keys that clients seal to");

    // Somebody who may write to the catalogue puts what other enclaves attest beside it: another image's under the same root, and
    // the same image's under another root.
    let own = PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap();
    let keys = sealflow::policy::EnclaveKeys::new("payments", vec!["card".to_owned()], vec![own]).unwrap();
    let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let strange = Scratch::new();
    let forged = |root: &Scratch, image: [u8; 48]| {
        let mut root = Root::load_or_make(root.path(), now_ms).unwrap();
        let document = Document {
            module_id: "dev-software-nsm-forged".to_owned(),
            timestamp_ms: now_ms,
            pcrs: BTreeMap::from([(0, image.to_vec())]),
            public_key: None,
            user_data: Some(attested::user_data(&keys).unwrap()),
            nonce: None,
            tier: Tier::DevSoftwareNsm,
        };
        attested::write(&keys, &root.sign(&document).unwrap()).unwrap()
    };
    let (of_image, of_root) = (forged(&bench.root, [0x77; 48]), forged(&strange, bench.image));
    let folder = bench.site.catalogue().join("enclave-keys-attested/payments");
    let published: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(published.len(), 1, "{published:?}");
    let (hour, _) = published[0].to_str().unwrap().split_once('-').unwrap();
    std::fs::write(folder.join(format!("{hour}-1")), &of_image).unwrap();
    std::fs::write(folder.join(format!("{hour}-2")), &of_root).unwrap();

    let (service, listen) = service(&bench);
    let text = handed_out((&service, listen));
    let documents: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(documents["documents"].as_array().unwrap().len(), 1, "{text}");
    // A client believes the image that it pins, and nothing else that somebody serves.
    let key = EnclaveKey::believe(&text, &pins(&bench, bench.image), "payments", None).unwrap();
    assert_eq!(
        (key.labels(), key.thumbprint()),
        (&["card".to_owned()][..], bench.public_key(ENCLAVE_RSA).thumbprint())
    );
    let refused = |text: &str, pins: &EnclavePins| EnclaveKey::believe(text, pins, "payments", None).unwrap_err();
    for (text, pins) in [
        (&text, pins(&bench, [0x77; 48])),
        (&of_image, pins(&bench, bench.image)),
        (&of_root, pins(&bench, bench.image)),
    ] {
        let error = refused(text, &pins);
        assert!(matches!(error, EnclaveKeysError::Attestation(_)), "{error}");
    }
    let owner = EnclavePins::owner(bench.site.owner());
    assert_eq!(refused(&text, &owner), EnclaveKeysError::OtherKind);

    // What is sealed to it the worker opens; what was sealed to the forger's key it does not.
    let (mut session, mut hybrid) = (Session::begin_for_enclave(&key).unwrap(), bench.backend_session());
    let messages: Vec<_> = (0..64)
        .map(|n| {
            let sealed = session.seal("card", format!("\"{n}\"").as_bytes()).unwrap();
            let amount = hybrid.seal("amount", b"1").unwrap();
            message(n, &sealed, &amount, &[session.token(), hybrid.token()])
        })
        .collect();
    bench.topics.produce("vouched", &messages);
    bench.wait_for("vouched.sealed", 64, &mut running);
    assert_eq!(bench.topics.read_all("vouched.dead").len(), 0);

    // The owner's document is handed out beside it, whatever the worker publishes.
    let (owner, sealed) = (bench.site.owner_key(), bench.site.path().join("owner.key"));
    std::fs::write(&sealed, owner.to_private_json().expose()).unwrap();
    std::fs::set_permissions(&sealed, std::fs::Permissions::from_mode(0o600)).unwrap();
    let pipeline = bench.pipeline.to_str().unwrap();
    bench.say(&[
        "keys",
        "enclave",
        "payments",
        "--key",
        "owner.key",
        "--publish",
        "--pipeline",
        pipeline,
    ]);
    service.terminate();
    let (status, log) = service.wait(Duration::from_secs(60));
    assert!(status.success() && log.contains("DEVELOPMENT ROOT"), "{log}");
    let (service, listen) = self::service(&bench);
    let text = handed_out((&service, listen));
    for pins in [EnclavePins::owner(bench.site.owner()), pins(&bench, bench.image)] {
        let key = EnclaveKey::believe(&text, &pins, "payments", None).unwrap();
        assert_eq!(key.thumbprint(), bench.public_key(ENCLAVE_RSA).thumbprint());
    }
    service.kill();
    running.terminate();
    let (status, log) = running.wait(Duration::from_secs(60));
    assert!(status.success(), "{log}");
}

/// What stands behind `name:` in what the command printed.
fn printed<'a>(yaml: &'a str, name: &str) -> &'a str {
    let line = yaml
        .lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("{name}: {yaml}")).trim_matches('"')
}

#[test]
fn a_pair_that_only_workers_can_have_made_opens_sessions_without_a_request_each() {
    let Some(bench) = Bench::new("paired") else { return };
    let policy = measured_key_policy(&bench.image);
    let made = bench
        .site
        .kms()
        .create_key_of(KeySpec::Symmetric, Some(PAIRS), "tests", Some(&policy));
    bench.site.block_on(made).unwrap();
    let pairs = arn(PAIRS);
    let endpoint = bench.endpoint();
    // The host has one made, with all its rights; with a key that the worker's image does not name.
    let by_host = [
        "keys",
        "pair",
        "--key",
        &pairs,
        "--dataset",
        "payments",
        "--kms-endpoint",
        &endpoint,
        "--kms-region",
        "eu-central-1",
    ];
    assert_eq!(bench.run("pipeline", &by_host).status.code(), Some(77));
    let pipeline = bench.pipeline.to_str().unwrap();
    let elsewhere = pairs.replace("111122223333", "999999999999");
    let refused = bench.run("pipeline", &["enclave", "make-pair", pipeline, "--key", &elsewhere]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(77), 0), "{told}");

    let yaml = bench.say(&["enclave", "make-pair", pipeline, "--key", &pairs, "--bits", "2048"]);
    assert!(yaml.starts_with("\"web\":\n  pair:\n"), "{yaml}");
    let (public, wrapped) = (printed(&yaml, "public"), printed(&yaml, "wrapped"));
    let in_kms = format!("{{ arn: \"{}\" }}", arn(ENCLAVE_RSA));
    let pair = format!("{{ pair: {{ arn: \"{pairs}\", public: \"{public}\", wrapped: \"{wrapped}\" }} }}");
    let newer = bench.policy(2).replace(&in_kms, &pair);
    assert!(newer.contains("pair:"));
    bench.site.publish("payments", 2, &newer);
    bench.site.lease(&newer, Duration::from_secs(3_600));

    use base64::Engine as _;
    let der = base64::engine::general_purpose::STANDARD.decode(public).unwrap();
    let key = RsaPublicJwk::from_spki_der(&der).unwrap();
    let mut hybrid = bench.backend_session();
    // Each in a session of its own.
    let messages: Vec<_> = (0..200)
        .map(|n| {
            let mut session = Session::begin(&key, "payments").unwrap();
            let sealed = session.seal("card", format!("\"{n}\"").as_bytes()).unwrap();
            let amount = hybrid.seal("amount", b"1").unwrap();
            message(n, &sealed, &amount, &[session.token(), hybrid.token()])
        })
        .collect();
    bench.topics.produce("paired", &messages);
    let before = bench.site.kms().requests("Decrypt");
    bench.run_to_end();
    assert_eq!(
        (
            bench.topics.read_all("paired.sealed").len(),
            bench.topics.read_all("paired.dead").len()
        ),
        (200, 0)
    );
    // The pair, which the worker opens for sessions and to vouch for it, and the backend's session.
    let requests = bench.site.kms().requests("Decrypt") - before;
    assert!((2..=6).contains(&requests), "{requests}");
}
