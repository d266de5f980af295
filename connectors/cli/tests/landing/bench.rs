//! What every landing test stands on: topics, a site, a place for files, and counting what is in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{Int32Type, Int64Type};
use bytes::Bytes;
use sealflow::acl::Identity;
use sealflow::clock::{Clock, UnixMillis};
use sealflow::keys::{DomainKeys, OpeningKeys};
use sealflow::policy::{CataloguePolicies, PolicySource, TrustRule, TrustedOwners};
use sealflow::secret::SecretString;
use sealflow::table::{Asking, EmbeddedPolicies, Query, TableReader};
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};
use sealflow_storage::{BucketConfig, CatalogueConfig, Location, Place};
use sealflow_testbed::{
    Expected, Group, HttpProxy, Instance, Kafka, Message, Pipeline, Site, Topics, make_bucket, moto_endpoint, or_skip,
};

/// Partitions of the tests' topics.
pub(crate) const PARTITIONS: i32 = 6;
const TABLE: &str = "
table:
  key: default
  acl: support
  extra: { key: default, acl: operators }
";
/// The rest of a record is sealed into `_extra`.
pub(crate) const SCHEMA: &str = "
dataset: payments
version: 1
fields:
  - { name: id, type: string }
  - { name: time, type: timestamp }
  - { name: kind, type: string }
  - { name: client_ip, type: string }
";

/// The columns that stand in clear, but for their file's encryption; `kind` under the first policy only.
const CLEAR: [&str; 5] = ["_partition", "_offset", "id", "time", "kind"];

/// The binary that Cargo built for these tests.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sealflow"))
}

/// A number from the environment, or the default.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A bucket behind a proxy.
pub(crate) struct Bucket {
    endpoint: String,
    name: String,
    pub(crate) proxy: HttpProxy,
}

impl Bucket {
    /// `None` on a machine without moto, and the ledger says so.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let endpoint = or_skip(test, moto_endpoint())?;
        let proxy = HttpProxy::start(&endpoint).unwrap();
        // moto looks whether there is an object, and then puts one: two writers may both find none. S3 does it in one step.
        proxy.one_write_at_a_time();
        Some(Self {
            name: make_bucket(&endpoint, test),
            endpoint,
            proxy,
        })
    }

    /// Not through the proxy.
    fn config(&self) -> BucketConfig {
        BucketConfig {
            endpoint: Some(self.endpoint.clone()),
            credentials: Some(StaticCredentials {
                access_key_id: "AKIAMOTO".to_owned(),
                secret_access_key: SecretString::new("anything".to_owned()),
                session_token: None,
            }),
            ..BucketConfig::default()
        }
    }

    fn location(&self, prefix: &str) -> Location {
        format!("s3://{}/{prefix}", self.name).parse().unwrap()
    }

    fn place(&self, site: &Site, prefix: &str) -> Place {
        site.block_on(Place::open(&self.location(prefix), &self.config()))
            .unwrap()
    }

    /// As a pipeline file names it, through the proxy.
    fn options(&self) -> String {
        let endpoint = self.proxy.endpoint();
        format!(
            "endpoint: \"{endpoint}\", timeout: 10s, credentials: {{ access_key_id: AKIAMOTO, secret_access_key: anything }}"
        )
    }
}

/// One topic on its way into files.
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    pub(crate) topics: Topics,
    pub(crate) site: Site,
    bucket: Option<Bucket>,
}

impl Bench {
    /// Topics NAME and NAME.dead, and a policy of tables. `None` without a broker.
    pub(crate) fn new(name: &'static str, bucket: Option<Bucket>) -> Option<Self> {
        let kafka = Kafka::shared(name)?;
        let topics = kafka.topics();
        for topic in [name.to_owned(), format!("{name}.dead")] {
            topics.create(&topic, PARTITIONS, &[]);
        }
        let site = Site::new(&kafka.brokers());
        let bench = Self {
            name,
            topics,
            site,
            bucket,
        };
        bench.publish(1);
        Some(bench)
    }

    pub(crate) fn bucket(&self) -> &Bucket {
        self.bucket.as_ref().unwrap()
    }

    fn publish(&self, version: u64) {
        self.publish_with(version, "");
    }

    /// The same policy with this version, and these columns before the others.
    pub(crate) fn publish_with(&self, version: u64, columns: &str) {
        let yaml = sealflow_samples::POLICY_YAML
            .replace("version: 1\n", &format!("version: {version}\n"))
            .replace("columns:\n", &format!("columns:\n{columns}"));
        self.site.publish("payments", version, &format!("{yaml}{TABLE}"));
        // The pipeline's catalogue is in the bucket too.
        if let Some(bucket) = &self.bucket {
            let place = bucket.place(&self.site, "catalogue");
            let root = self.site.catalogue();
            for path in files_below(&root) {
                let below = path.strip_prefix(&root).unwrap().to_str().unwrap();
                let put = place.put_if_absent(below, std::fs::read(&path).unwrap().into());
                self.site.block_on(put).unwrap();
            }
        }
    }

    /// Where its files go.
    fn location(&self) -> String {
        match &self.bucket {
            Some(bucket) => bucket.location("lake").to_string(),
            None => self.site.path().join("lake").display().to_string(),
        }
    }

    /// A pipeline file of this instance. `table` are further keys of `target.table`, `more` further lines at the top level.
    pub(crate) fn pipeline(&self, instance: &str, table: &str, more: &str) -> PathBuf {
        let name = self.name;
        let (dead, more) = (format!("{name}.dead"), format!("instance: {instance}\n{more}"));
        let file = self.site.pipeline(&Pipeline {
            name,
            mode: "seal",
            dataset: "payments",
            from: name,
            to: "none",
            dead: &dead,
            keys: "header",
            codec: "none",
            more: &more,
        });
        std::fs::write(self.site.path().join("schema.yaml"), SCHEMA).unwrap();
        let yaml = std::fs::read_to_string(&file).unwrap();
        let (start, end) = (yaml.find("target:\n").unwrap(), yaml.find("catalogue:").unwrap());
        let bucket = match &self.bucket {
            Some(bucket) => format!("bucket: {{ {} }}, ", bucket.options()),
            None => String::new(),
        };
        let target = format!(
            "target:\n  table: {{ location: \"{}\", {bucket}schema: schema.yaml, {table} }}\n",
            self.location()
        );
        let mut yaml = format!("{}{target}{}", &yaml[..start], &yaml[end..]);
        if let Some(bucket) = &self.bucket {
            let (start, end) = (yaml.find("catalogue:").unwrap(), yaml.find("trust:").unwrap());
            let catalogue = format!(
                "catalogue: {{ bucket: \"{}\", {} }}\n",
                bucket.location("catalogue"),
                bucket.options()
            );
            yaml.replace_range(start..end, &catalogue);
        }
        let own = self.site.path().join(format!("{name}-{instance}.yaml"));
        std::fs::write(&own, yaml.replace("threads: 1", "threads: 2")).unwrap();
        own
    }

    fn command(&self, file: &Path, more: &[&str]) -> Command {
        let mut args = vec!["run", file.to_str().unwrap()];
        args.extend(more);
        let mut command = self.site.command(binary(), "pipeline", &args);
        let temporary = self.site.path().join("tmp");
        std::fs::create_dir_all(&temporary).unwrap();
        command.env("SEALFLOW_LOG", "debug").env("TMPDIR", temporary);
        command
    }

    /// Starts `sealflow run FILE`, with its log beside the file.
    pub(crate) fn start(&self, file: &Path, more: &[&str]) -> Instance {
        Instance::start(self.command(file, more), &file.with_extension("log"))
    }

    /// The same with `FAILPOINTS`.
    #[cfg(feature = "failpoints")]
    pub(crate) fn start_failing(&self, file: &Path, failpoints: &str) -> Instance {
        let mut command = self.command(file, &["--until-end"]);
        command.env("FAILPOINTS", failpoints);
        Instance::start(command, &file.with_extension("log"))
    }

    /// The same without an end.
    #[cfg(feature = "failpoints")]
    pub(crate) fn start_dying(&self, file: &Path, failpoints: &str) -> Instance {
        let mut command = self.command(file, &[]);
        command.env("FAILPOINTS", failpoints);
        Instance::start(command, &file.with_extension("log"))
    }

    /// Runs to the end of the topic, and expects success.
    pub(crate) fn run_to_end(&self, file: &Path, patience: Duration) -> String {
        let (status, log) = self.start(file, &["--until-end"]).wait(patience);
        assert!(status.success(), "{status}:\n{log}");
        log
    }

    /// `sealflow verify` of the folder, with what the pipeline file says.
    pub(crate) fn verify(&self, file: &Path) -> (ExitStatus, String) {
        let lake = self.site.path().join("lake");
        let args = ["verify", lake.to_str().unwrap(), "--pipeline", file.to_str().unwrap()];
        let output = self.site.command(binary(), "support", &args).output().unwrap();
        let texts = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8(texts).unwrap())
    }

    pub(crate) fn group(&self) -> Group {
        self.topics.group(self.name, self.name)
    }

    /// The first `count` sample records of a seed into the topic, so many seconds apart.
    pub(crate) fn produce(&self, seed: u64, count: u64, seconds: i64) {
        let expected = Expected::new(seed, count, PARTITIONS);
        let later = |(n, message): (i64, Message)| Message {
            timestamp: message.timestamp.map(|at| at + n * seconds * 1_000),
            ..message
        };
        let messages = (0i64..).zip(expected.messages()).map(later);
        self.topics
            .produce_with(self.name, messages, &[("compression.codec", "zstd")]);
    }

    /// All files that are there, by path.
    pub(crate) fn files(&self) -> BTreeMap<String, Bytes> {
        if self.bucket.is_some() {
            return self.objects("lake");
        }
        let read = |path: PathBuf| (path.display().to_string(), std::fs::read(&path).unwrap().into());
        // What a killed process has left has another ending.
        let paths = files_below(&self.site.path().join("lake")).into_iter();
        let files = paths.filter(|path| path.extension().is_some_and(|end| end == "parquet"));
        files.map(read).collect()
    }

    /// All objects below a prefix of the bucket.
    fn objects(&self, prefix: &str) -> BTreeMap<String, Bytes> {
        let place = self.bucket().place(&self.site, prefix);
        self.site.block_on(async {
            let (mut objects, mut after) = (BTreeMap::new(), None::<String>);
            loop {
                let page = place.list("", after.as_deref(), 1_000).await.unwrap();
                for found in &page.objects {
                    let bytes = place.read(&found.path, 1 << 30).await.unwrap();
                    objects.insert(found.path.clone(), bytes);
                }
                after = page.objects.last().map(|found| found.path.clone());
                if !page.has_more {
                    return objects;
                }
            }
        })
    }

    /// What `role/support` reads tables with.
    fn reader(&self) -> (TableReader, Arc<dyn Clock>) {
        let site = &self.site;
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
        let endpoint = site.kms().endpoint();
        let (id, secret) = ("TESTSUPPORT", "tests-only-support");
        let config: KmsConfig = serde_json::from_value(serde_json::json!({
            "region": "eu-central-1",
            "endpoint": endpoint,
            "sts_endpoint": endpoint,
            "credentials": { "access_key_id": id, "secret_access_key": secret },
        }))
        .unwrap();
        let (catalogue, kms) = site.block_on(async {
            let catalogue = match &self.bucket {
                Some(bucket) => CatalogueConfig {
                    location: bucket.location("catalogue"),
                    options: bucket.config(),
                },
                None => CatalogueConfig::from(Location::Folder(site.catalogue())),
            };
            let catalogue = catalogue.open().await.unwrap();
            (catalogue, Arc::new(AwsKms::new(&config).await.unwrap()))
        });
        let owners = || {
            let rule = TrustRule {
                dataset: "*".to_owned(),
                owners: vec![site.owner()],
            };
            TrustedOwners::new(vec![rule]).unwrap()
        };
        let policies: Arc<dyn PolicySource> =
            Arc::new(CataloguePolicies::new(catalogue.clone(), owners(), clock.clone()));
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

    /// What is in the files: every row's position, how often; every record's id, how often; the days; the policies.
    pub(crate) fn landed(&self) -> Landed {
        let (reader, clock) = self.reader();
        let who = Identity::from_arn("arn:aws:iam::111122223333:role/support").unwrap();
        let mut landed = Landed::default();
        for (path, bytes) in self.files() {
            let asking = Asking {
                who: &who,
                purpose: None,
                now: clock.now(),
            };
            let day = path.split('/').find(|part| part.starts_with("date=")).unwrap();
            landed.days.insert(day.to_owned());
            landed.bytes += bytes.len() as u64;
            landed.largest = landed.largest.max(bytes.len() as u64);
            landed.files += 1;
            self.site.block_on(async {
                // At its place: the folder is part of what the file proves.
                let table = reader.open(Arc::new(bytes), &path, asking).await;
                let table = table.unwrap_or_else(|error| panic!("{path}: {error}"));
                assert!(table.claims().unwrap().is_at(&path), "{path}");
                landed
                    .policies
                    .insert(table.embedded_policy().unwrap().policy().version);
                for leaf in table.leaves() {
                    let column = leaf.leaf.column.to_string();
                    let is_sealed = leaf.leaf.sealed.is_some();
                    assert!(
                        is_sealed || !["client_ip", "_extra"].contains(&column.as_str()),
                        "{path}"
                    );
                }
                let query = Query {
                    columns: Some(CLEAR.map(str::to_owned).to_vec()),
                    ..Query::default()
                };
                let mut rows = table.rows(&query, asking, "table").unwrap();
                while let Some(batch) = rows.next().await.unwrap() {
                    landed.take(&batch);
                }
            });
        }
        landed
    }

    /// Every offset of the topic is a row exactly once, and every sample record; `verify` finds nothing missing.
    pub(crate) fn expect_exact(&self, records: u64) -> Landed {
        let landed = self.landed();
        let marks = self.topics.high_watermarks(self.name);
        let mut wrong = String::new();
        for (partition, mark) in (0i32..).zip(&marks) {
            for offset in 0..*mark {
                let times = landed.positions.get(&(partition, offset)).copied().unwrap_or(0);
                if times != 1 && wrong.len() < 500 {
                    write!(wrong, "{partition}/{offset}: {times} times; ").unwrap();
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
        assert_eq!(landed.positions.len() as u64, records);
        assert_eq!(landed.ids.len() as u64, records, "ids that are rows");
        assert!(landed.ids.values().all(|times| *times == 1));
        landed
    }

    /// No secret of the first sample records is in a column that is not sealed, a file, the catalogue, a log, or what is left of temporary files.
    pub(crate) fn expect_no_plaintext(&self, seed: u64) {
        let canaries = Canaries::new(sealflow_samples::generate(seed, 300).flat_map(|sample| sample.secrets));
        // The search finds what is there.
        let mut source = Vec::new();
        self.topics
            .read_each(self.name, |message| source.extend(message.value.unwrap_or_default()));
        assert!(canaries.find(&source), "the canaries are in the source");
        drop(source);
        assert!(!canaries.find(self.landed().clear.as_bytes()), "in a column in clear");
        let mut stored = self.files();
        if self.bucket.is_some() {
            stored.extend(self.objects("catalogue"));
        }
        for (path, bytes) in stored {
            assert!(!canaries.find(&bytes), "a plaintext is in {path}");
        }
        let below = files_below(self.site.path());
        assert!(
            below
                .iter()
                .any(|path| path.extension().is_some_and(|end| end == "log"))
        );
        for path in below {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!canaries.find(&bytes), "a plaintext is in {}", path.display());
        }
    }

    /// Waits until `done`, while `instances` live.
    pub(crate) fn wait_until(
        &self,
        patience: Duration,
        instances: &mut [&mut Instance],
        mut done: impl FnMut() -> bool,
    ) {
        let until = Instant::now() + patience;
        while !done() {
            for running in instances.iter_mut() {
                let Some(status) = running.ended() else { continue };
                // What is away when a process starts ends it: whoever supervises it starts it again.
                let is_away = status.code() == Some(69) && self.bucket.is_some();
                assert!(is_away, "ended by itself, {status}:\n{}", running.last_lines());
                **running = self.start(&running.log().with_extension("yaml"), &[]);
            }
            let logs = || -> String { instances.iter().map(|running| running.last_lines()).collect() };
            assert!(Instant::now() < until, "no progress:\n{}", logs());
            std::thread::sleep(Duration::from_millis(37));
        }
    }
}

/// Texts that must not be found, by how they begin: one pass looks for all.
struct Canaries(HashMap<[u8; Self::START], Vec<Vec<u8>>>);

impl Canaries {
    const START: usize = 7;

    fn new(secrets: impl Iterator<Item = String>) -> Self {
        let mut by_start: HashMap<_, Vec<_>> = HashMap::new();
        for secret in secrets.map(String::into_bytes) {
            if let Some(start) = secret.first_chunk::<{ Self::START }>() {
                by_start.entry(*start).or_default().push(secret);
            }
        }
        assert!(by_start.len() > 200, "{} canaries", by_start.len());
        Self(by_start)
    }

    fn find(&self, bytes: &[u8]) -> bool {
        let starts = bytes.windows(Self::START).enumerate();
        starts
            .filter_map(|(at, window)| Some((at, self.0.get(window)?)))
            .any(|(at, secrets)| secrets.iter().any(|secret| bytes[at..].starts_with(secret)))
    }
}

/// What was found in files.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Landed {
    pub(crate) positions: BTreeMap<(i32, i64), u64>,
    pub(crate) ids: BTreeMap<String, u64>,
    pub(crate) days: BTreeSet<String>,
    pub(crate) policies: BTreeSet<u64>,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) largest: u64,
    /// Texts of the columns in clear.
    clear: String,
}

impl Landed {
    fn take(&mut self, batch: &arrow::record_batch::RecordBatch) {
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let partitions = column("_partition").as_primitive::<Int32Type>();
        let offsets = column("_offset").as_primitive::<Int64Type>();
        let texts = column("id").as_string::<i32>();
        let kinds = column("kind").as_string::<i32>();
        for n in 0..batch.num_rows() {
            *self
                .positions
                .entry((partitions.value(n), offsets.value(n)))
                .or_insert(0) += 1;
            *self.ids.entry(texts.value(n).to_owned()).or_insert(0) += 1;
            let kind = kinds.is_valid(n).then(|| kinds.value(n));
            assert!(
                matches!(kind, None | Some("web" | "payment")),
                "a row of another policy"
            );
            writeln!(self.clear, "{}\t{}", texts.value(n), kind.unwrap_or_default()).unwrap();
        }
    }
}

/// All files below a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return found;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    found
}
