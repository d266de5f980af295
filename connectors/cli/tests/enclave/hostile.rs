//! A host that is not honest, at the whole installation: each is refused.

use std::time::Duration;

use aws_sdk_kms::error::ProvideErrorMetadata as _;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeyPairSpec, DataKeySpec};
use sealflow::clock::UnixMillis;
use sealflow::flow::enclave::EnclaveError;
use sealflow::keys::envelope::EnvelopeParts;
use sealflow::keys::{EncryptionContext, Envelope, LabelEntry};
use sealflow::seal::{ColumnContext, PlainColumn, Plaintext, SealingKey, UsageLimits};
use sealflow::secret::SecretBytes;
use sealflow_enclave_protocol::message::Outcome;
use sealflow_testbed::KEY_ARN;

use crate::bench::{Bench, ENCLAVE_RSA, REGULATED, SERVER_ID, arn};
use crate::by_hand::{Host, copy, forget, header, kms, reader, text, verified};

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
    // Who vouches for readers is measured too.
    let other_server = bench.config().replace(SERVER_ID, "another.test");
    let issuer = format!(
        "{}issuers: [{{ issuer: \"https://id.test\", audiences: [a], jwks_uri: \"https://id.test/keys\" }}]\n",
        bench.config()
    );
    for (file, config) in [
        ("owner.img", other_owner),
        ("arns.img", other_arns),
        ("server.img", other_server),
        ("issuer.img", issuer),
    ] {
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
    let text = refused(&bench, &pipeline);
    assert!(
        text.contains("measure") || text.contains("does not run") || text.contains("gone"),
        "{text}"
    );
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
    let running = bench.start(&pipeline, &[]);
    let mut session = bench.session(ENCLAVE_RSA);
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
    let (status, log) = running.wait(Duration::from_secs(60));
    assert!(
        !status.success() && log.contains("the enclave worker refuses: KMS"),
        "{log}"
    );
    assert_eq!(bench.topics.read_all("images.sealed").len(), 0);
}

fn is_refused<T>(answer: Result<T, EnclaveError>) -> bool {
    match answer {
        Ok(_) => false,
        // The worker lives, and says so.
        Err(EnclaveError::Refused { reason } | EnclaveError::Unavailable { reason }) => {
            assert!(!reason.contains("enough to do") && !reason.contains("gone"), "{reason}");
            true
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_old_policy_one_that_is_gone_and_one_without_a_lease_seal_nothing() {
    let Some(bench) = Bench::new("policies") else { return };
    let host = Host::start(&bench, "worker.img").unwrap();
    let mut session = bench.session(ENCLAVE_RSA);
    let (first, second) = (bench.policy(1), bench.policy(2));
    assert!(host.reseal(&bench, &first, &mut session, &["4111"]).is_ok());
    bench.site.publish("payments", 2, &second);
    bench.site.lease(&second, Duration::from_secs(3_600));
    // Not yet in the catalogue that this worker is shown.
    assert!(is_refused(host.reseal(&bench, &second, &mut session, &["4111"])));
    copy(&bench, &host.catalogue);
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(host.reseal(&bench, &second, &mut session, &["4111"]).is_ok());
    // From now on the older one again, and nothing of the newer.
    assert!(is_refused(host.reseal(&bench, &first, &mut session, &["4111"])));
    host.catalogue.remove("policies/payments/0000000002.jws");
    forget(&bench, &host.catalogue, "leases/payments/0000000002");
    std::thread::sleep(Duration::from_millis(1_500));
    for policy in [&first, &second] {
        assert!(is_refused(host.reseal(&bench, policy, &mut session, &["4111"])));
    }
    copy(&bench, &host.catalogue);
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(host.reseal(&bench, &second, &mut session, &["4111"]).is_ok());

    // A worker that has seen nothing yet goes by what is leased, and by nothing else.
    let fresh = Host::start(&bench, "worker.img").unwrap();
    forget(&bench, &fresh.catalogue, "leases");
    assert!(is_refused(fresh.reseal(&bench, &second, &mut session, &["4111"])));
    // A policy of the host's own.
    let other = sealflow::jose::PrivateJwk::generate().unwrap();
    let forged = sealflow::policy::signed::sign(bench.policy(3).as_bytes(), &other).unwrap();
    fresh
        .catalogue
        .overwrite("policies/payments/0000000003.jws", forged.as_bytes());
    assert!(is_refused(fresh.reseal(
        &bench,
        &bench.policy(3),
        &mut session,
        &["4111"]
    )));
}

#[test]
fn what_a_host_makes_of_keys_and_envelopes_opens_nothing_and_is_taken_for_nothing() {
    let Some(bench) = Bench::new("envelopes") else { return };
    let host = Host::start(&bench, "worker.img").unwrap();
    let mut session = bench.session(ENCLAVE_RSA);
    let policy = bench.policy(1);
    let sealed = host.reseal(&bench, &policy, &mut session, &["4111"]).unwrap();
    let (value, envelope) = (text(&sealed.values), sealed.envelope.clone());
    let (private, public) = reader();
    let opened = host
        .read(&bench, "support", &public, (&header(&envelope), &value))
        .unwrap();
    let jwe: String = serde_json::from_str(&opened.text).unwrap();
    assert_eq!(private.open(&jwe).unwrap().expose(), b"\"4111\"");
    // From here on a worker that knows no keys yet, and a catalogue without any: what the host says of them is all there is.
    let host = Host::start(&bench, "worker.img").unwrap();
    let nothing = |role: &str, envelope: &[u8], value: &str| {
        forget(&bench, &host.catalogue, "keys");
        let shown = match host.read(&bench, role, &public, (&header(envelope), value)) {
            Ok(shown) => shown,
            Err(EnclaveError::Refused { .. } | EnclaveError::BadAnswer { .. }) => return true,
            Err(other) => panic!("{other}"),
        };
        let is_shown = shown.text.contains("eyJ") || shown.text.contains("4111");
        !is_shown && shown.outcomes.iter().all(|(_, outcome)| *outcome != Outcome::Opened)
    };
    let genuine = Envelope::from_bytes(&envelope).unwrap();
    let with = |change: fn(&mut Envelope)| {
        let mut envelope = genuine.clone();
        change(&mut envelope);
        envelope.to_bytes().unwrap()
    };
    // Whom its ACL does not name; another ACL, key or dataset in the envelope; another label; a flipped bit of the wrapped key.
    assert!(nothing("analyst", &envelope, &value));
    assert!(nothing(
        "analyst",
        &with(|envelope| envelope.acl = "ops".to_owned()),
        &value
    ));
    for (what, change) in [
        ("ACL", (|envelope| envelope.acl = "ops".to_owned()) as fn(&mut Envelope)),
        ("key", |envelope| envelope.key_name = "default".to_owned()),
        ("dataset", |envelope| envelope.dataset = "refunds".to_owned()),
        ("ARN", |envelope| envelope.arn = KEY_ARN.to_owned()),
        ("label", |envelope| envelope.labels[0].label = "amount".to_owned()),
        ("wrapped key", |envelope| envelope.wrapped[40] ^= 1),
    ] {
        assert!(nothing("support", &with(change), &value), "{what}");
    }

    // A data key of the host's own, for the same label by its envelope: what it seals is nothing that the enclave shows.
    let client = kms(&bench, "pipeline");
    let mut request = client.generate_data_key().key_id(KEY_ARN).key_spec(DataKeySpec::Aes256);
    let context = EncryptionContext::for_data_key("payments", "regulated", "pii");
    for (name, value) in context.iter() {
        request = request.encryption_context(name, value);
    }
    let made = bench.site.block_on(request.send()).unwrap();
    let secret = SecretBytes::new(made.plaintext.unwrap().into_inner());
    let key = SealingKey::from_generated(&secret, UsageLimits::STANDARD).unwrap();
    let verified = verified(&bench, &policy);
    for arn in [KEY_ARN.to_owned(), arn(REGULATED)] {
        let own = Envelope::new(EnvelopeParts {
            key_id: key.id(),
            arn,
            wrapped: made.ciphertext_blob.clone().unwrap().into_inner(),
            dataset: "payments".to_owned(),
            key_name: "regulated".to_owned(),
            acl: "pii".to_owned(),
            policy: (genuine.policy_id.clone(), 1, verified.policy().sha256),
            labels: vec![LabelEntry {
                label: "card".to_owned(),
                bind_row: None,
            }],
            created: genuine.created(),
            not_after: UnixMillis(genuine.not_after().0 + 1),
        });
        let mut plain = PlainColumn::with_capacity(1, 32);
        let mut encoded = Vec::new();
        Plaintext::Json("\"4111\"").encode(None, &mut encoded);
        plain.push(&encoded).unwrap();
        let column = ColumnContext {
            dataset: "payments",
            label: "card",
            column: 0,
            rows: None,
        };
        let forged = key.seal(&column, plain.view()).unwrap();
        let own = own.to_bytes().unwrap();
        assert!(nothing("support", &own, &text(&forged)));
        // Nor is it sealed under, wherever it lies.
        let again = host.reseal(&bench, &policy, &mut session, &["4111"]).unwrap();
        assert_ne!(again.key, key.id());
    }
    // What was refused is not kept: the genuine one opens now.
    assert!(!nothing("support", &envelope, &value));
}

#[test]
fn the_hosts_own_rights_at_the_key_service_give_no_key_of_the_enclave() {
    let Some(bench) = Bench::new("rights") else { return };
    let host = Host::start(&bench, "worker.img").unwrap();
    let mut session = bench.session(ENCLAVE_RSA);
    let sealed = host.reseal(&bench, &bench.policy(1), &mut session, &["4111"]).unwrap();
    let wrapped = Blob::new(Envelope::from_bytes(&sealed.envelope).unwrap().wrapped);
    let client = kms(&bench, "pipeline");
    let (regulated, rsa) = (arn(REGULATED), arn(ENCLAVE_RSA));
    let context: std::collections::HashMap<String, String> =
        EncryptionContext::for_data_key("payments", "regulated", "pii")
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
    // The same calls for a key that is the host's: they work.
    let own = bench.site.block_on(
        client
            .generate_data_key()
            .key_id(KEY_ARN)
            .key_spec(DataKeySpec::Aes256)
            .send(),
    );
    let own = own.unwrap().ciphertext_blob.unwrap();
    assert!(
        bench
            .site
            .block_on(client.decrypt().key_id(KEY_ARN).ciphertext_blob(own.clone()).send())
            .is_ok()
    );
    assert!(
        bench
            .site
            .block_on(
                client
                    .re_encrypt()
                    .ciphertext_blob(own)
                    .destination_key_id(KEY_ARN)
                    .send()
            )
            .is_ok()
    );
    macro_rules! denied {
        ($request:expr) => {
            let answer = bench.site.block_on($request.send());
            assert_eq!(
                answer.unwrap_err().code(),
                Some("AccessDeniedException"),
                stringify!($request)
            );
        };
    }
    denied!(
        client
            .decrypt()
            .key_id(&regulated)
            .ciphertext_blob(wrapped.clone())
            .set_encryption_context(Some(context.clone()))
    );
    // Moved under the host's key with everything as it was, it would open there.
    denied!(
        client
            .re_encrypt()
            .ciphertext_blob(wrapped.clone())
            .set_source_encryption_context(Some(context.clone()))
            .set_destination_encryption_context(Some(context.clone()))
            .destination_key_id(KEY_ARN)
    );
    denied!(
        client
            .encrypt()
            .key_id(&regulated)
            .plaintext(Blob::new([7; 32]))
            .set_encryption_context(Some(context.clone()))
    );
    denied!(
        client
            .generate_data_key()
            .key_id(&regulated)
            .key_spec(DataKeySpec::Aes256)
            .set_encryption_context(Some(context.clone()))
    );
    denied!(
        client
            .generate_data_key_without_plaintext()
            .key_id(&regulated)
            .key_spec(DataKeySpec::Aes256)
    );
    denied!(
        client
            .generate_data_key_pair()
            .key_id(&regulated)
            .key_pair_spec(DataKeyPairSpec::Rsa2048)
    );
    denied!(
        client
            .generate_data_key_pair_without_plaintext()
            .key_id(&regulated)
            .key_pair_spec(DataKeyPairSpec::Rsa2048)
    );
    denied!(
        client
            .decrypt()
            .key_id(&rsa)
            .ciphertext_blob(Blob::new(vec![1; 256]))
            .encryption_algorithm(aws_sdk_kms::types::EncryptionAlgorithmSpec::RsaesOaepSha256)
    );
}

#[test]
fn an_answer_goes_to_the_key_that_the_reader_proved_for_this_server_and_to_no_other() {
    let Some(bench) = Bench::new("readers") else { return };
    let host = Host::start(&bench, "worker.img").unwrap();
    let mut session = bench.session(ENCLAVE_RSA);
    let sealed = host.reseal(&bench, &bench.policy(1), &mut session, &["4111"]).unwrap();
    let (value, keys) = (text(&sealed.values), header(&sealed.envelope));
    let (_, public) = reader();
    let (_, of_the_host) = reader();
    let what = (&keys[..], value.as_str());
    assert!(host.read(&bench, "support", &public, what).is_ok());
    // The host's own key in the reader's request; and a request that the reader made for somebody else.
    let swapped = host.read_as(&bench, ("support", SERVER_ID), (&public, &of_the_host), what);
    assert!(matches!(swapped, Err(EnclaveError::Refused { .. })));
    let elsewhere = host.read_as(&bench, ("support", "another.test"), (&public, &public), what);
    assert!(matches!(elsewhere, Err(EnclaveError::Refused { .. })));
    // It lives on, and serves the next.
    assert!(host.read(&bench, "support", &public, what).is_ok());
}

#[test]
fn a_key_that_is_disabled_stops_its_columns_and_no_worker_and_goes_on_when_it_is_enabled() {
    let Some(bench) = Bench::new("disabled") else { return };
    let host = Host::start(&bench, "worker.img").unwrap();
    let policy = bench.policy(1);
    let (mut before, mut after) = (bench.session(ENCLAVE_RSA), bench.session(ENCLAVE_RSA));
    assert!(host.reseal(&bench, &policy, &mut before, &["4111"]).is_ok());
    bench.site.kms().set_enabled(&arn(ENCLAVE_RSA), false).unwrap();
    assert!(is_refused(host.reseal(&bench, &policy, &mut after, &["4111"])));
    // Sessions that were opened before go on until they are due to be asked for again.
    assert!(host.reseal(&bench, &policy, &mut before, &["4111"]).is_ok());
    bench.site.kms().set_enabled(&arn(ENCLAVE_RSA), true).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while host.reseal(&bench, &policy, &mut after, &["4111"]).is_err() {
        assert!(std::time::Instant::now() < until, "it does not go on");
        std::thread::sleep(Duration::from_millis(200));
    }
    // A worker that has no data key yet gets none.
    bench.site.kms().set_enabled(&arn(REGULATED), false).unwrap();
    let fresh = Host::start(&bench, "worker.img").unwrap();
    assert!(is_refused(fresh.reseal(&bench, &policy, &mut before, &["4111"])));
    bench.site.kms().set_enabled(&arn(REGULATED), true).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while fresh.reseal(&bench, &policy, &mut before, &["4111"]).is_err() {
        assert!(std::time::Instant::now() < until, "it does not go on");
        std::thread::sleep(Duration::from_millis(200));
    }
}
