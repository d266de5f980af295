//! A whole topic through the record-encryption filter of the Kroxylicious proxy, beside Sealflow on the same
//! broker and records.
//!
//! They do not do the same: the proxy encrypts whole record values and leaves clients as they are, Sealflow seals
//! fields and copies into another topic. What both have in common is a topic of clear records at the start and one
//! of encrypted records at the end; that is what is measured. The proxy needs a client to bring the records:
//! the plain copier, whose CPU time counts, as Sealflow's own Kafka client counts. As in `topic`, a round's cost is
//! what a long run costs more than a short one.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::{Contender, Cost, interleaved};
use sealflow_benchmarks::report::{Comparison, exactly, figure};
use sealflow_benchmarks::size::{pairs, scaled};
use sealflow_testbed::{Kafka, Moto, free_port, or_skip};

use crate::process::peak_memory;
use crate::tink::{class_path, compile, peers, root};
use crate::topic::{Bench, Source};

const SECTION: &str = "kroxylicious";
const PAIRS: usize = 7;
/// Records of the two runs of a round.
const SHORT: u64 = 20_000;
const LONG: u64 = 120_000;
/// Rounds until Java has compiled what it runs.
const WARM_UP: usize = 3;
/// The canary: a sealed value of the first sample record must not be in what the proxy wrote.
const CLEAR: &[u8] = b"client_ip";

pub(crate) fn run() -> Result<(), Error> {
    let libs = root().join(".deps/kroxylicious/libs");
    if !libs.is_dir() || Command::new("javac").arg("-version").output().is_err() {
        sealflow_testbed::skip("kroxylicious: not installed (scripts/deps.sh bench), or no Java compiler");
        return Ok(());
    }
    let Some(kafka) = or_skip("kroxylicious benchmark", Kafka::start()) else {
        return Ok(());
    };
    let Some(moto) = or_skip("kroxylicious benchmark", Moto::start()) else {
        return Ok(());
    };
    let bench = Bench::of_two_lengths(&kafka, scaled(SHORT), scaled(LONG))?;
    let proxy = Proxy::start(&libs, &kafka.brokers(), &moto.endpoint())?;
    check(&kafka, &bench, &proxy)?;

    let sides = vec![
        Contender::elsewhere("sealflow seal", || {
            bench.longer_run(|source| bench.sealflow("seal", source.topic, &bench.new_topic("ours"), 1, false))
        }),
        Contender::elsewhere("kroxylicious + copier", || {
            bench.longer_run(|source| {
                let before = proxy.cpu()?;
                let mut cost = copied(&bench, source, &proxy.address, "proxied")?;
                cost.cpu += proxy.cpu()? - before;
                Ok(cost)
            })
        }),
        Contender::elsewhere("rdkafka copier", || {
            bench.longer_run(|source| copied(&bench, source, &kafka.brokers(), "plain"))
        }),
    ];
    Comparison {
        section: SECTION,
        what: "CPU to encrypt a topic, records of about 1 KB",
        unit: "CPU s per million records",
        factor: 1e6 / bench.difference().records as f64,
        baseline: "sealflow seal",
    }
    .write(&interleaved(pairs(PAIRS), WARM_UP, sides)?)?;
    let peak = peak_memory(proxy.child.id()).ok_or("the proxy has ended")?;
    figure(
        SECTION,
        "peak resident memory",
        SECTION,
        "MiB",
        exactly(peak / f64::from(1 << 20)),
    )
}

fn copied(bench: &Bench<'_>, source: &Source, target: &str, what: &str) -> Result<Cost, Error> {
    let copier = bench.copier(target, source.topic, &bench.new_topic(what), source.records, 1)?;
    bench.end(copier, what, false)
}

/// What went through the proxy is encrypted at the broker: else a pass-through would be measured.
fn check(kafka: &Kafka, bench: &Bench<'_>, proxy: &Proxy) -> Result<(), Error> {
    let to = bench.new_topic("checked");
    let source = &bench.long;
    let copier = bench.copier(&proxy.address, source.topic, &to, source.records, 1)?;
    bench.end(copier, "checked", false)?;
    let written = kafka.topics().read_all(&to);
    let clear = |value: &Vec<u8>| value.windows(CLEAR.len()).any(|part| part == CLEAR);
    if written.len() as u64 != source.records {
        return Err(format!("{} of {} records came through the proxy", written.len(), source.records).into());
    }
    if written.iter().filter_map(|message| message.value.as_ref()).any(clear) {
        return Err("the proxy does not encrypt".into());
    }
    Ok(())
}

/// A running proxy, killed when dropped.
struct Proxy {
    child: Child,
    address: String,
    folder: PathBuf,
}

impl Proxy {
    fn start(libs: &Path, brokers: &str, kms: &str) -> Result<Self, Error> {
        let made = Command::new(root().join(".deps/venv/bin/python"))
            .arg(peers().join("kroxylicious/make_key.py"))
            .arg(kms)
            .output()?;
        if !made.status.success() {
            return Err(format!("no key: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let port = free_port();
        let configuration = std::fs::read_to_string(peers().join("kroxylicious/proxy.yaml"))?
            .replace("@BROKERS@", brokers)
            .replace("@PORT@", &port.to_string())
            .replace("@KMS@", kms);
        let folder = std::env::temp_dir().join(format!("sealflow-proxy-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("proxy.yaml"), configuration)?;
        compile(&peers().join("kroxylicious/ProxyPeer.java"), libs, &folder)?;
        let log = std::fs::File::create(folder.join("proxy.log"))?;
        let mut child = Command::new("java")
            .arg("-Xmx512m")
            .arg("-cp")
            .arg(class_path(libs, &folder))
            .arg("ProxyPeer")
            .arg(folder.join("proxy.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut ready = String::new();
        let output = child.stdout.take().ok_or("no pipe")?;
        let proxy = Self {
            child,
            address: format!("127.0.0.1:{port}"),
            folder,
        };
        BufReader::new(output).read_line(&mut ready)?;
        if ready.trim() != "ready" {
            let log = std::fs::read_to_string(proxy.folder.join("proxy.log"))?;
            return Err(format!("the proxy does not start: {log}").into());
        }
        Ok(proxy)
    }

    /// CPU seconds so far: user and system ticks of `/proc/PID/stat` (proc(5): fields 14 and 15), 100 a second on
    /// every Linux that Rust runs on.
    fn cpu(&self) -> Result<f64, Error> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = text.rsplit_once(')').ok_or("/proc/PID/stat has another shape")?;
        let ticks: Vec<f64> = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse().ok())
            .collect();
        let [user, system] = ticks[..] else {
            return Err("/proc/PID/stat has another shape".into());
        };
        Ok((user + system) / 100.0)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
