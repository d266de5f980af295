//! Landing on a real broker: every record in files once, under `SIGKILL` and a rebalance, and no plaintext in any byte.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray as _;
use arrow::datatypes::{Int32Type, Int64Type};
use bytes::Bytes;
use sealflow::acl::Identity;
use sealflow::clock::{Clock, UnixMillis};
use sealflow::keys::{DomainKeys, OpeningKeys};
use sealflow::policy::{CataloguePolicies, PolicySource, TrustRule, TrustedOwners};
use sealflow::table::{Asking, EmbeddedPolicies, Query, TableReader};
use sealflow_kms::{AwsKms, KmsConfig};
use sealflow_storage::{CatalogueConfig, Location};
use sealflow_testbed::{Expected, Kafka, Site, Topics};

use crate::support::{PARTITIONS, Running, pipeline, setting};

const TABLE: &str = "
table:
  key: default
  acl: support
  extra: { key: default, acl: operators }
";
const SCHEMA: &str = "
dataset: payments
version: 1
fields:
  - { name: id, type: string }
  - { name: ts, type: timestamp }
  - { name: client_ip, type: string }
";

/// A pipeline that lands topic NAME in the folder `table` of the site, rolling every `after`.
fn landing(site: &Site, name: &str, instance: &str, after: &str) -> PathBuf {
    let file = pipeline(site, name, "seal", &format!("instance: {instance}"));
    std::fs::write(site.path().join("schema.yaml"), SCHEMA).unwrap();
    let yaml = std::fs::read_to_string(&file).unwrap();
    let start = yaml.find("target:\n").unwrap();
    let end = yaml.find("catalogue:").unwrap();
    let table = site.path().join("table");
    let target = format!(
        "target: {{ table: {{ location: \"{}\", schema: schema.yaml, roll: {{ after: {after}, rows: 20000 }} }} }}\n",
        table.display()
    );
    let yaml = format!("{}{target}{}", &yaml[..start], &yaml[end..]);
    let own = site.path().join(format!("{name}-{instance}.yaml"));
    std::fs::write(&own, yaml.replace("threads: 1", "threads: 2")).unwrap();
    own
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return found;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What a pipeline is given to read with.
fn reader(site: &Site) -> (TableReader, Arc<dyn Clock>) {
    #[derive(Debug)]
    struct Now;
    impl Clock for Now {
        fn now(&self) -> UnixMillis {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap();
            UnixMillis(u64::try_from(now.as_millis()).unwrap())
        }
    }
    let clock: Arc<dyn Clock> = Arc::new(Now);
    let (catalogue, kms) = site.block_on(async {
        let catalogue = CatalogueConfig::from(Location::Folder(site.catalogue()))
            .open()
            .await
            .unwrap();
        let endpoint = site.kms().endpoint();
        // As the testbed's local KMS knows `role/support`.
        let (id, secret) = ("TESTSUPPORT", "tests-only-support");
        let config: KmsConfig = serde_json::from_value(serde_json::json!({
            "region": "eu-central-1",
            "endpoint": endpoint,
            "sts_endpoint": endpoint,
            "credentials": { "access_key_id": id, "secret_access_key": secret },
        }))
        .unwrap();
        (catalogue, Arc::new(AwsKms::new(&config).await.unwrap()))
    });
    let owners = || {
        TrustedOwners::new(vec![TrustRule {
            dataset: "*".to_owned(),
            owners: vec![site.owner()],
        }])
        .unwrap()
    };
    let policies: Arc<dyn PolicySource> = Arc::new(CataloguePolicies::new(catalogue.clone(), owners(), clock.clone()));
    let age = Duration::from_secs(300);
    let reader = TableReader::new(
        policies.clone(),
        EmbeddedPolicies::OwnedBy(owners()),
        OpeningKeys::of(
            kms.clone(),
            catalogue.clone(),
            policies.clone(),
            clock.clone(),
            age,
            10_000,
        ),
        OpeningKeys::new(
            kms.clone(),
            catalogue.clone(),
            policies.clone(),
            clock.clone(),
            age,
            10_000,
        ),
        DomainKeys::new(kms, catalogue, policies, clock.clone(), age),
    );
    (reader, clock)
}

/// How often each (partition, offset) is a row, and the record ids that are rows.
fn rows(site: &Site, folder: &Path) -> (BTreeMap<(i32, i64), u64>, BTreeMap<String, u64>) {
    let (reader, clock) = reader(site);
    let who = Identity::from_arn("arn:aws:iam::111122223333:role/support").unwrap();
    let (mut positions, mut ids) = (BTreeMap::new(), BTreeMap::new());
    for path in files(folder) {
        let bytes: Bytes = std::fs::read(&path).unwrap().into();
        let asking = Asking {
            who: &who,
            purpose: None,
            now: clock.now(),
        };
        site.block_on(async {
            // At its place: the folder is part of what the file proves.
            let table = reader.open(Arc::new(bytes), path.to_str().unwrap(), asking).await;
            let table = table.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let query = Query {
                columns: Some(vec!["_partition".into(), "_offset".into(), "id".into()]),
                ..Query::default()
            };
            let mut rows = table.rows(&query, asking, "table").unwrap();
            while let Some(batch) = rows.next().await.unwrap() {
                let column = |name: &str| batch.column_by_name(name).unwrap();
                let partitions = column("_partition").as_primitive::<Int32Type>();
                let offsets = column("_offset").as_primitive::<Int64Type>();
                let texts = column("id").as_string::<i32>();
                for n in 0..batch.num_rows() {
                    *positions.entry((partitions.value(n), offsets.value(n))).or_insert(0) += 1;
                    *ids.entry(texts.value(n).to_owned()).or_insert(0) += 1;
                }
            }
        });
    }
    (positions, ids)
}

/// Every offset of the topic is a row exactly once, and every sample record.
fn expect_exact(site: &Site, topics: &Topics, topic: &str, records: u64) {
    let (positions, ids) = rows(site, &site.path().join("table"));
    let marks = topics.high_watermarks(topic);
    let mut wrong = String::new();
    for (partition, mark) in (0i32..).zip(&marks) {
        for offset in 0..*mark {
            let times = positions.get(&(partition, offset)).copied().unwrap_or(0);
            if times != 1 && wrong.len() < 500 {
                write!(wrong, "{partition}/{offset}: {times} times; ").unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(positions.len() as u64, records);
    assert_eq!(ids.len() as u64, records, "ids that are rows");
    assert!(ids.values().all(|times| *times == 1));
}

fn expect_no_plaintext(site: &Site, expected: &Expected, seed: u64) {
    let secrets: Vec<String> = sealflow_samples::generate(seed, expected.count().min(200))
        .flat_map(|sample| sample.secrets)
        .filter(|secret| secret.len() > 6)
        .collect();
    assert!(secrets.len() > 200, "canaries");
    let mut all = files(&site.path().join("table"));
    all.extend(files(&site.catalogue()));
    for path in all {
        let bytes = std::fs::read(&path).unwrap();
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "a plaintext is in {}", path.display());
        }
    }
}

#[test]
fn every_record_lands_in_files_once_under_kills_and_a_rebalance() {
    let Some(kafka) = Kafka::shared("landing exactly once") else {
        return;
    };
    let name = "land";
    let records = setting("SEALFLOW_E2E_RECORDS", 100_000);
    let kills = setting("SEALFLOW_E2E_KILLS", 3);
    let seed = setting("SEALFLOW_E2E_SEED", 23);
    let topics = kafka.topics();
    for topic in [name.to_owned(), format!("{name}.dead")] {
        topics.create(&topic, PARTITIONS, &[]);
    }
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, &format!("{}{TABLE}", sealflow_samples::POLICY_YAML));
    let expected = Expected::new(seed, records, PARTITIONS);
    topics.produce_with(name, expected.messages(), &[("compression.codec", "zstd")]);
    let file = landing(&site, name, "a", "500ms");
    let mut group = topics.group(&format!("{name}-seal"), name);
    let patience = Duration::from_secs(180 + records / 500);
    let until = Instant::now() + patience;
    for kill in 1..=kills {
        let mut running = Running::start(&site, "pipeline", &file, &[]);
        let goal = records * kill / (kills + 2);
        while group.committed() < goal {
            assert!(running.ended().is_none(), "ended by itself:\n{}", running.read_log());
            assert!(Instant::now() < until, "no progress:\n{}", running.read_log());
            std::thread::sleep(Duration::from_millis(37));
        }
        running.kill();
    }
    // A second instance comes while the first one works, and the first one is told to go.
    let first = Running::start(&site, "pipeline", &file, &[]);
    let second = Running::start(&site, "pipeline", &landing(&site, name, "b", "700ms"), &[]);
    while group.committed() < records {
        assert!(
            Instant::now() < until,
            "no progress:\n{}\n{}",
            first.read_log(),
            second.read_log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    first.kill();
    second.kill();
    expect_exact(&site, &topics, name, records);
    expect_no_plaintext(&site, &expected, seed);
    assert_eq!(crate::support::progress(&topics, &format!("{name}.dead")), 0);
}

#[test]
fn what_cannot_be_a_row_is_a_dead_letter_and_a_run_to_the_end_ends() {
    let Some(kafka) = Kafka::shared("landing with dead letters") else {
        return;
    };
    let name = "land-dead";
    let topics = kafka.topics();
    for topic in [name.to_owned(), format!("{name}.dead")] {
        topics.create(&topic, PARTITIONS, &[]);
    }
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, &format!("{}{TABLE}", sealflow_samples::POLICY_YAML));
    let message = |n: i32| {
        let value = match n % 3 {
            0 => format!(r#"{{"id":"x-{n}","client_ip":"203.0.113.{n}"}}"#),
            1 => format!(r#"["x-{n}"]"#),
            _ => "no JSON".to_owned(),
        };
        sealflow_testbed::Message::new(n % PARTITIONS, value)
    };
    topics.produce(name, &(0..90).map(message).collect::<Vec<_>>());
    let file = landing(&site, name, "a", "1h");
    let (status, log) = Running::start(&site, "pipeline", &file, &["--until-end"]).wait(Duration::from_secs(90));
    assert!(status.success(), "{status}:\n{log}");
    let (positions, ids) = rows(&site, &site.path().join("table"));
    assert_eq!((positions.len(), ids.len()), (30, 30), "{log}");
    assert_eq!(topics.read_all(&format!("{name}.dead")).len(), 60);
    // Again: nothing is left to do, and nothing is done twice.
    let (status, log) = Running::start(&site, "pipeline", &file, &["--until-end"]).wait(Duration::from_secs(90));
    assert!(status.success(), "{status}:\n{log}");
    assert_eq!(rows(&site, &site.path().join("table")).0, positions);
}
