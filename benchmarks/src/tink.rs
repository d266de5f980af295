//! Time per value against Tink, as its users call it: `encrypt` and `decrypt` of an AEAD primitive of one keyset,
//! value by value, in Python and in Java. Each runs in a process of its own and measures itself; the rounds are
//! interleaved with ours.
//!
//! Keys from a KMS are left out on both sides: Tink's envelope AEAD asks the KMS once per value.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use sealflow::seal::{ColumnContext, OpeningKey, PlainColumn, SealedValue, SealingKey, UsageLimits};
use sealflow::secret::SecretBytes;
use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::{Contender, Cost, Samples, interleaved};
use sealflow_benchmarks::report::Comparison;
use sealflow_benchmarks::size::{pairs, scaled};

const PAIRS: usize = 11;
const SIZES: [usize; 3] = [16, 128, 1_024];
/// More than elsewhere, since Java's clock of CPU time ticks in hundredths of a second.
const VALUES: u64 = 100_000;
/// Rounds until Java has compiled what it runs.
const WARM_UP: usize = 3;

pub(crate) fn run() -> Result<(), Error> {
    let values = usize::try_from(scaled(VALUES))?;
    let mut peers = Vec::new();
    for (name, command) in [("Tink (Python)", python()), ("Tink (Java)", java())] {
        match command {
            Some(command) => peers.push((name, Peer::start(command)?)),
            None => sealflow_testbed::skip(&format!("{name}: not installed (scripts/deps.sh bench)")),
        }
    }
    if peers.is_empty() {
        return Ok(());
    }
    for what in ["seal", "open"] {
        let mut samples = Vec::new();
        for size in SIZES {
            samples.extend(compare(what, values, size, &mut peers)?);
        }
        Comparison {
            section: "tink",
            what: &format!("{what} a value"),
            unit: "ns per value",
            factor: 1e9 / values as f64,
            baseline: "sealflow",
        }
        .write(&samples)?;
    }
    Ok(())
}

fn compare(what: &str, values: usize, size: usize, peers: &mut [(&str, Peer)]) -> Result<Vec<Samples>, Error> {
    const NO_LIMIT: UsageLimits = UsageLimits {
        batches: u64::MAX,
        values: u64::MAX,
        bytes: u64::MAX,
    };
    let secret = SecretBytes::new(vec![1; 32]);
    let key = SealingKey::from_generated(&secret, NO_LIMIT)?;
    let opening = OpeningKey::from_unwrapped(&secret, key.id())?;
    let context = ColumnContext {
        dataset: "payments",
        label: "payment.cards[*].number",
        column: 3,
        rows: None,
    };
    let mut plain = PlainColumn::with_capacity(values, values * size);
    for _ in 0..values {
        plain.push(&vec![6; size])?;
    }
    let sealed = key.seal(&context, plain.view())?;
    let ours = if what == "seal" {
        Contender::here("sealflow", || {
            drop(std::hint::black_box(key.seal(&context, plain.view())));
        })
    } else {
        Contender::here("sealflow", || {
            let mut opener = opening.opener(context.dataset, context.label);
            let mut out = Vec::with_capacity(values * size);
            for value in sealed.view().iter().flatten() {
                if let Ok(SealedValue::Randomised {
                    nonce, ciphertext, tag, ..
                }) = SealedValue::parse(value)
                {
                    let _ = std::hint::black_box(opener.open(nonce, ciphertext, tag, None, &mut out));
                }
            }
            std::hint::black_box(out);
        })
    };
    let mut sides = vec![ours];
    for (name, peer) in peers {
        let request = format!("{what} {values} {size}");
        sides.push(Contender::elsewhere(name, move || peer.ask(&request)));
    }
    let sides = sides.into_iter().map(|side| side.at("plaintext bytes", size as f64));
    interleaved(pairs(PAIRS), WARM_UP, sides.collect())
}

/// A process that answers `seal VALUES SIZE` and `open VALUES SIZE` with CPU and wall nanoseconds.
pub(crate) struct Peer {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    pub(crate) fn start(mut command: Command) -> Result<Self, Error> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        Ok(Self { child, answers })
    }

    pub(crate) fn ask(&mut self, request: &str) -> Result<Cost, Error> {
        let stdin = self.child.stdin.as_mut().ok_or("no pipe")?;
        writeln!(stdin, "{request}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let seconds: Vec<f64> = answer
            .split_whitespace()
            .filter_map(|number| number.parse::<f64>().ok())
            .map(|nanoseconds| nanoseconds / 1e9)
            .collect();
        let [cpu, wall] = seconds[..] else {
            return Err(format!("it does not answer to {request:?}: {answer:?}").into());
        };
        Ok(Cost {
            cpu,
            wall,
            peak_memory: None,
        })
    }
}

impl Drop for Peer {
    /// It ends with its standard input.
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn python() -> Option<Command> {
    let python = root().join(".deps/tink-python/bin/python");
    python.is_file().then(|| {
        let mut command = Command::new(python);
        command.arg(peers().join("tink/tink_peer.py"));
        command
    })
}

fn java() -> Option<Command> {
    let libs = root().join(".deps/tink-java/libs");
    (libs.is_dir() && Command::new("javac").arg("-version").output().is_ok()).then(|| {
        let mut command = Command::new("java");
        command.arg("-cp").arg(libs.join("*"));
        command.arg(peers().join("tink/TinkPeer.java"));
        command
    })
}

/// Compiles a peer beforehand: a compiler that runs in the measured process would count as the peer's time and memory.
pub(crate) fn compile(source: &Path, libs: &Path, folder: &Path) -> Result<(), Error> {
    let made = Command::new("javac")
        .arg("-cp")
        .arg(libs.join("*"))
        .arg("-d")
        .arg(folder)
        .arg(source)
        .output()?;
    if made.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", source.display(), String::from_utf8_lossy(&made.stderr)).into())
}

/// The compiled peer and the jars that it needs.
pub(crate) fn class_path(libs: &Path, folder: &Path) -> String {
    format!("{}:{}", folder.display(), libs.join("*").display())
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where the parts of the peers are that are written here.
pub(crate) fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}
