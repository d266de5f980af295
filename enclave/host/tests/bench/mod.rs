//! A probe under a real launcher, starter and software NSM.

#![allow(dead_code)] // each test program uses a part of it
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)] // tests: they fail loudly, and name what they skip

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use sealflow_enclave_host::launch::{Isolation, LaunchError, Launcher, Lines, ProgramCommand, Source, Worker};
use sealflow_enclave_protocol::image::append;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything here may take: machines are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The starter and the NSM, as this build made them.
const STARTER: &str = env!("CARGO_BIN_EXE_sealflow-enclave-start");
const NSM: &str = env!("CARGO_BIN_EXE_sealflow-dev-nsm");

/// A folder with the development root, images, and what probes reach for.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    pub(crate) lines: Arc<Mutex<Vec<(Source, String)>>>,
    listener: std::net::TcpListener,
    _unix: UnixListener,
}

impl Bench {
    pub(crate) fn new() -> Self {
        // Below /tmp, whose path is short enough for sockets; open to everybody, since a worker is nobody in particular.
        let folder = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), open).unwrap();
        std::fs::write(folder.path().join("readable"), "anybody").unwrap();
        std::fs::create_dir(folder.path().join("mounted")).unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let unix = UnixListener::bind(folder.path().join("socket")).unwrap();
        Self {
            folder,
            lines: Arc::default(),
            listener,
            _unix: unix,
        }
    }

    pub(crate) fn root_dir(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// An image of the probe with this configuration.
    pub(crate) fn image(&self, configuration: &Value) -> PathBuf {
        let mut configuration = configuration.clone();
        let at = |name| self.folder.path().join(name).to_str().unwrap().to_owned();
        configuration["readable"] = json!(at("readable"));
        configuration["writable"] = json!(self.folder.path());
        configuration["socket"] = json!(at("socket"));
        configuration["port"] = json!(self.listener.local_addr().unwrap().port());
        let program = std::fs::read(probe()).unwrap();
        let image = append(&program, configuration.to_string().as_bytes()).unwrap();
        let path = self
            .folder
            .path()
            .join(format!("image-{:x}", configuration.to_string().len()));
        std::fs::write(&path, image).unwrap();
        path
    }

    pub(crate) fn launcher(&self, image: &Path) -> Result<Launcher, LaunchError> {
        let arguments = vec!["--root-dir".into(), self.root_dir().into()];
        let nsm = ProgramCommand {
            program: NSM.into(),
            arguments,
        };
        let starter = ProgramCommand {
            program: STARTER.into(),
            arguments: Vec::new(),
        };
        let seen = self.lines.clone();
        let lines: Lines = Arc::new(move |source, line| seen.lock().unwrap().push((source, line.to_owned())));
        Ok(Launcher::new(image, nsm)?
            .with_starter(starter)
            .with_lines(lines)
            .with_isolation(Isolation::IfAvailable))
    }

    pub(crate) fn launch(&self, configuration: &Value) -> Probe {
        Probe::new(self.launcher(&self.image(configuration)).unwrap().launch().unwrap())
    }

    pub(crate) fn lines_of(&self, wanted: Source) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        lines
            .iter()
            .filter(|(source, _)| *source == wanted)
            .map(|(_, line)| line.clone())
            .collect()
    }
}

/// A probe that runs.
pub(crate) struct Probe {
    pub(crate) worker: Worker,
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Probe {
    pub(crate) fn new(mut worker: Worker) -> Self {
        let writer = worker.take_channel().unwrap();
        assert!(worker.take_channel().is_none(), "there is one channel");
        writer.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            worker,
            reader: BufReader::new(writer.try_clone().unwrap()),
            writer,
        }
    }

    /// The next report; `None` when there are no more.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).unwrap_or(0);
        (read > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    /// How it is closed in, and what came of its attempts.
    pub(crate) fn reports(&mut self) -> (Value, Vec<Value>) {
        let first = self.next().expect("the probe starts; its standard error says why not");
        let mut attempts = Vec::new();
        while let Some(report) = self.next() {
            if report.get("done").is_some() {
                break;
            }
            attempts.push(report);
        }
        (first, attempts)
    }

    pub(crate) fn write(&mut self, line: &str) {
        self.writer.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn ask(&mut self, line: &str) -> Value {
        self.write(line);
        self.next().expect("an answer of the probe")
    }

    /// A file below /proc about the worker.
    pub(crate) fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.worker.pid()))
    }

    /// A line of its status.
    pub(crate) fn status(&self, name: &str) -> String {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_default().trim().to_owned()
    }
}

/// A configuration that closes the probe in as far as this machine can.
pub(crate) fn closed_in(attempts: &[&str]) -> Value {
    let sandbox = json!({"memory_lock": "if-available", "landlock": "if-available", "namespaces": "if-available"});
    json!({"enter": true, "sandbox": sandbox, "attempts": attempts})
}

/// A configuration of a control, which is not closed in.
pub(crate) fn open(attempts: &[&str]) -> Value {
    json!({"enter": false, "attempts": attempts})
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Names what this machine cannot show.
pub(crate) fn skipped(what: &str) {
    eprintln!("skipped: {what}");
    if let Ok(path) = std::env::var("SEALFLOW_SKIPPED") {
        let mut ledger = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(ledger, "{what}").unwrap();
    }
}

/// The probe, built alone and in a folder of its own, as workers are: nobody else's features change its bytes.
fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let target = workspace.join("target/enclave");
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .current_dir(&workspace)
            .args([
                "build",
                "--locked",
                "--quiet",
                "-p",
                "sealflow-enclave-worker",
                "--features",
                "probe",
            ])
            .args(["--bin", "sealflow-enclave-probe", "--target", &triple, "--target-dir"])
            .arg(&target)
            // As the worker of other tests is built, which shares what both need.
            .env("RUSTFLAGS", "-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\"")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .status()
            .unwrap();
        assert!(built.success(), "the probe does not build");
        target.join(triple).join("debug/sealflow-enclave-probe")
    })
}
