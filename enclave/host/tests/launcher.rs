//! The launcher measures and starts, the software NSM speaks for what was measured, and an end is noticed.

#![allow(clippy::unwrap_used, clippy::panic)] // a test: it fails loudly

mod bench;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use bench::{Bench, PATIENCE, Probe, closed_in, open, until};
use sealflow_enclave_host::launch::{
    Exit, Isolation, LaunchError, MOST_LINE, MOST_LINES, ProgramCommand, Source, measurement,
};
use sealflow_enclave_host::nsm::{CERTIFICATE, KEY, MODULE_PREFIX};
use sealflow_enclave_protocol::attestation::{self, Document, Tier, Trust};
use sealflow_enclave_protocol::image::append;
use sealflow_enclave_protocol::joints::Claims;
use sealflow_enclave_protocol::nsm::{Answer, Message, PREFIX, Registered, Registration, Request, length};
use serde_json::Value;

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis()
        .try_into()
        .unwrap()
}

/// The certificate that a verifier is given.
fn root_certificate(bench: &Bench) -> Vec<u8> {
    sealflow_enclave_host::nsm::certificate_of(&bench.root_dir()).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|byte| byte.as_u64().unwrap().try_into().unwrap())
        .collect()
}

fn verified(bench: &Bench, document: &[u8]) -> Document {
    let trust = Trust::with_dev_root(&root_certificate(bench)).unwrap();
    attestation::verify(document, &trust, now_ms()).unwrap()
}

#[test]
fn evidence_says_what_the_launcher_measured() {
    let bench = Bench::new();
    let image = bench.image(&closed_in(&[]));
    let launcher = bench.launcher(&image).unwrap();
    assert_eq!(
        launcher.measurement(),
        &measurement(&fs::read(&image).unwrap()).unwrap()
    );
    let mut probe = Probe::new(launcher.launch().unwrap());
    probe.reports();
    let document = bytes(&probe.ask("a nonce of the host")["document"]);
    let document = verified(&bench, &document);
    assert_eq!(document.tier, Tier::DevSoftwareNsm);
    assert!(document.module_id.starts_with(MODULE_PREFIX), "{}", document.module_id);
    assert_eq!(document.pcrs[&0], launcher.measurement().as_bytes());
    assert_eq!(document.pcrs.len(), 1, "it measures the image and nothing else");
    assert_eq!(document.nonce.as_deref(), Some(&b"a nonce of the host"[..]));
}

#[test]
fn software_evidence_is_none_of_nitro() {
    let bench = Bench::new();
    let mut probe = bench.launch(&closed_in(&[]));
    probe.reports();
    let document = bytes(&probe.ask("nonce")["document"]);
    verified(&bench, &document);
    assert!(attestation::verify(&document, &Trust::nitro(), now_ms()).is_err());
    // Nor of another development root.
    let other = Bench::new();
    other.launch(&closed_in(&[])).reports();
    let trust = Trust::with_dev_root(&root_certificate(&other)).unwrap();
    assert!(attestation::verify(&document, &trust, now_ms()).is_err());
}

#[test]
fn another_configuration_is_another_measurement_in_the_evidence() {
    let bench = Bench::new();
    let mut measured = Vec::new();
    for configuration in [closed_in(&[]), open(&[])] {
        let mut probe = bench.launch(&configuration);
        probe.reports();
        let document = verified(&bench, &bytes(&probe.ask("nonce")["document"]));
        assert_eq!(document.pcrs[&0], probe.worker.measurement().as_bytes());
        measured.push(document.pcrs[&0].clone());
    }
    assert_ne!(measured[0], measured[1]);
}

#[test]
fn what_runs_is_what_was_measured_though_the_file_changed() {
    let bench = Bench::new();
    let image = bench.image(&closed_in(&[]));
    let launcher = bench.launcher(&image).unwrap();
    fs::write(&image, append(b"\x7fELF something else", b"").unwrap()).unwrap();
    let mut probe = Probe::new(launcher.launch().unwrap());
    probe.reports();
    let document = verified(&bench, &bytes(&probe.ask("nonce")["document"]));
    assert_eq!(document.pcrs[&0], launcher.measurement().as_bytes());
    assert!(matches!(
        bench.launcher(&image).unwrap().launch(),
        Err(LaunchError::Execute { .. })
    ));
}

#[test]
fn a_worker_has_five_descriptors_no_environment_and_no_arguments() {
    use rustix::io::{FdFlags, fcntl_setfd};
    let bench = Bench::new();
    // What a library of the host's forgot to mark.
    let secret = File::open(bench.folder.path().join("readable")).unwrap();
    fcntl_setfd(&secret, FdFlags::empty()).unwrap();
    // Not closed in, so that whoever is not root can look.
    let mut probe = bench.launch(&open(&[]));
    probe.reports();
    let mut seen = Vec::new();
    for entry in fs::read_dir(probe.proc("fd")).unwrap() {
        let entry = entry.unwrap();
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let target = fs::read_link(entry.path())
            .map(|target| target.to_str().unwrap().to_owned())
            .unwrap_or_default();
        seen.push((number, target));
    }
    seen.sort();
    for (number, target) in &seen {
        let expected = match number {
            0 | 1 => target == "/dev/null",
            2 => target.starts_with("pipe:"),
            3 | 4 => target.starts_with("socket:"),
            // The runtime's own, which came later.
            _ => target.starts_with("anon_inode:[event"),
        };
        assert!(expected, "{number} is {target}; all: {seen:?}");
    }
    assert!(seen.len() >= 5, "{seen:?}");
    assert_eq!(fs::read(probe.proc("environ")).unwrap(), b"");
    assert_eq!(fs::read(probe.proc("cmdline")).unwrap(), b"sealflow-enclave-worker\0");
    drop(secret);
}

#[test]
fn the_launcher_puts_a_worker_into_namespaces_of_its_own() {
    let bench = Bench::new();
    let image = bench.image(&open(&["unix-pair"]));
    let required = bench
        .launcher(&image)
        .unwrap()
        .with_isolation(Isolation::Required)
        .launch();
    let worker = match required {
        Ok(worker) => worker,
        Err(LaunchError::Isolation { reason }) => {
            assert!(reason.contains("user.max_user_namespaces"), "{reason}");
            // Not silently: who allows it gets a worker that says what it lacks.
            let worker = bench.launcher(&image).unwrap().launch().unwrap();
            assert_eq!(worker.isolation(), Err(reason.as_str()));
            bench::skipped(&format!("enclave launcher, namespaces: {reason}"));
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let mut probe = Probe::new(worker);
    let (first, attempts) = probe.reports();
    assert_eq!(probe.worker.isolation(), Ok(()));
    assert_eq!(first["pid"], 1, "it is the first process of its namespace");
    assert_eq!(attempts[0]["succeeded"], true, "and not closed in otherwise");
    for namespace in ["ns/user", "ns/net", "ns/mnt", "ns/pid", "ns/ipc", "ns/uts"] {
        let ours = fs::read_link(format!("/proc/self/{namespace}")).unwrap();
        match fs::read_link(probe.proc(namespace)) {
            // Root without user namespaces makes the others alone.
            Ok(theirs) if namespace != "ns/user" => assert_ne!(theirs, ours, "{namespace}"),
            _ => {}
        }
    }
    assert_eq!(probe.status("CapEff"), "0000000000000000", "nobody in particular");
}

#[test]
fn standard_error_is_capped_and_the_worker_does_not_wait_for_it() {
    let bench = Bench::new();
    let mut noisy = closed_in(&[]);
    noisy["noise"] = serde_json::json!([3 * MOST_LINES, 3 * MOST_LINE]);
    let mut probe = bench.launch(&noisy);
    probe.reports();
    until("the last line", || bench.lines_of(Source::Worker).len() > MOST_LINES);
    assert_eq!(probe.ask("hello")["echo"], "hello");
    let lines = bench.lines_of(Source::Worker);
    assert_eq!(lines.len(), MOST_LINES + 1);
    assert!(lines.iter().all(|line| line.chars().count() <= MOST_LINE + 1));
}

#[test]
fn a_worker_that_dies_is_noticed() {
    let bench = Bench::new();
    let image = bench.image(&closed_in(&[]));
    let launcher = bench.launcher(&image).unwrap();
    let launch = || {
        let mut probe = Probe::new(launcher.launch().unwrap());
        probe.reports();
        probe
    };

    // Killed by somebody else.
    let mut probe = launch();
    assert_eq!(probe.worker.exit(), None);
    kill(probe.worker.pid());
    assert_eq!(probe.worker.wait(PATIENCE), Some(Exit::Signal(9)));
    assert!(probe.next().is_none(), "its channel ends too");

    // Killed by its host.
    let probe = launch();
    probe.worker.kill();
    assert_eq!(probe.worker.wait(PATIENCE), Some(Exit::Signal(9)));

    // Its host goes away.
    let probe = launch();
    let process = probe.proc("status");
    drop(probe);
    until("the end of the worker", || !process.exists());

    // Its starter dies.
    let probe = launch();
    let process = probe.proc("status");
    let starter: u32 = probe.status("PPid").parse().unwrap();
    kill(starter);
    assert_eq!(probe.worker.wait(PATIENCE), Some(Exit::Lost));
    until("the end of the worker", || !process.exists());

    // By a bug of its own; the host reads where, of the one in a task too, and nothing of what either was about.
    let mut buggy = closed_in(&[]);
    buggy["panics"] = true.into();
    let mut probe = bench.launch(&buggy);
    probe.reports();
    probe.write("canary-4111");
    assert_eq!(probe.worker.wait(PATIENCE), Some(Exit::Code(101)));
    until("both messages", || {
        let lines = bench.lines_of(Source::Worker);
        let places = lines.iter().filter(|line| line.contains("panicked at "));
        places.filter(|line| line.contains("probe.rs:")).count() == 2
    });
    let lines = bench.lines_of(Source::Worker);
    assert!(
        !lines
            .iter()
            .any(|line| line.contains("canary") || line.contains("about")),
        "{lines:#?}"
    );
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn programs_that_are_missing_or_wrong_are_named() {
    let bench = Bench::new();
    let image = bench.image(&closed_in(&[]));
    let command = |program: &str| ProgramCommand {
        program: program.into(),
        arguments: Vec::new(),
    };
    for starter in ["/nonexistent/starter", "/bin/true"] {
        let error = bench
            .launcher(&image)
            .unwrap()
            .with_starter(command(starter))
            .launch()
            .unwrap_err();
        assert!(matches!(&error, LaunchError::Program { .. }), "{error}");
        assert!(error.to_string().contains(starter), "{error}");
    }
    for nsm in ["/nonexistent/nsm", "/bin/true"] {
        let launcher = sealflow_enclave_host::launch::Launcher::new(&image, command(nsm)).unwrap();
        let error = launcher.launch().unwrap_err();
        assert!(error.to_string().contains(nsm), "{error}");
    }
}

/// The software NSM, talked to without a launcher.
struct Nsm {
    process: Child,
    control: UnixStream,
    worker: UnixStream,
}

impl Nsm {
    fn new(bench: &Bench) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        let (worker, workers) = UnixStream::pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_sealflow-dev-nsm"))
            .arg("--root-dir")
            .arg(bench.root_dir())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(workers)))
            .spawn()
            .unwrap();
        for socket in [&control, &worker] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self {
            process,
            control,
            worker,
        }
    }
}

impl Drop for Nsm {
    fn drop(&mut self) {
        // It ends with its launcher.
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

fn exchange<A: Message>(mut socket: &UnixStream, wire: &[u8]) -> A {
    socket.write_all(wire).unwrap();
    let mut prefix = [0; PREFIX];
    socket.read_exact(&mut prefix).unwrap();
    let mut bytes = vec![0; length(prefix).unwrap()];
    socket.read_exact(&mut bytes).unwrap();
    A::from_wire(&bytes).unwrap()
}

#[test]
fn the_nsm_is_told_once_what_it_speaks_for_and_says_nothing_before() {
    let bench = Bench::new();
    let nsm = Nsm::new(&bench);
    let attest = Request::attest(&Claims::default()).to_wire().unwrap();
    for request in [
        attest.clone(),
        Request::GetTime.to_wire().unwrap(),
        Request::GetRandom(8).to_wire().unwrap(),
    ] {
        assert!(matches!(exchange(&nsm.worker, &request), Answer::Refused(reason) if reason.contains("registered")));
    }
    let first = Registration::Image([7; 48]).to_wire().unwrap();
    assert_eq!(exchange::<Registered>(&nsm.control, &first), Registered::Done);
    for image in [[7; 48], [8; 48]] {
        let again = Registration::Image(image).to_wire().unwrap();
        assert!(
            matches!(exchange(&nsm.control, &again), Registered::Refused(_)),
            "a second registration"
        );
    }
    let Answer::Document(document) = exchange(&nsm.worker, &attest) else {
        panic!("no document")
    };
    assert_eq!(verified(&bench, &document).pcrs[&0], [7; 48]);
}

#[test]
fn a_worker_cannot_say_what_it_is() {
    let bench = Bench::new();
    let nsm = Nsm::new(&bench);
    let registration = Registration::Image([9; 48]).to_wire().unwrap();
    // Before the launcher and after it: the worker's socket takes no registration.
    assert!(matches!(exchange(&nsm.worker, &registration), Answer::Refused(_)));
    let launchers = Registration::Image([7; 48]).to_wire().unwrap();
    assert_eq!(exchange::<Registered>(&nsm.control, &launchers), Registered::Done);
    assert!(matches!(exchange(&nsm.worker, &registration), Answer::Refused(_)));
    let attest = Request::attest(&Claims::default()).to_wire().unwrap();
    let Answer::Document(document) = exchange(&nsm.worker, &attest) else {
        panic!("no document")
    };
    assert_eq!(verified(&bench, &document).pcrs[&0], [7; 48]);
}

#[test]
fn claims_beyond_nitros_bounds_are_refused_and_the_nsm_goes_on() {
    let bench = Bench::new();
    let nsm = Nsm::new(&bench);
    let registration = Registration::Image([7; 48]).to_wire().unwrap();
    assert_eq!(exchange::<Registered>(&nsm.control, &registration), Registered::Done);
    let large = vec![1; 1025];
    let claims = [
        Claims {
            public_key: Some(&large),
            ..Claims::default()
        },
        Claims {
            user_data: Some(&large[..513]),
            ..Claims::default()
        },
        Claims {
            nonce: Some(&large[..513]),
            ..Claims::default()
        },
    ];
    for claims in claims {
        let request = Request::attest(&claims).to_wire().unwrap();
        assert!(matches!(exchange(&nsm.worker, &request), Answer::Refused(_)));
    }
    assert!(matches!(
        exchange(&nsm.worker, &Request::GetRandom(257).to_wire().unwrap()),
        Answer::Refused(_)
    ));
    assert!(
        matches!(exchange(&nsm.worker, &[1, 0, 0, 0, 0xff]), Answer::Refused(_)),
        "no CBOR"
    );
    let fits = Claims {
        public_key: Some(&large[..1024]),
        user_data: Some(&large[..512]),
        nonce: Some(&large[..512]),
    };
    let request = Request::attest(&fits).to_wire().unwrap();
    let Answer::Document(document) = exchange(&nsm.worker, &request) else {
        panic!("no document")
    };
    assert_eq!(verified(&bench, &document).public_key.as_deref(), Some(&large[..1024]));
    let random = || match exchange(&nsm.worker, &Request::GetRandom(32).to_wire().unwrap()) {
        Answer::Random(bytes) => bytes,
        other => panic!("{other:?}"),
    };
    assert_ne!(random(), random());
}

#[test]
fn the_development_root_stays_the_same_and_its_key_is_its_owners_alone() {
    let bench = Bench::new();
    let documents: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            let nsm = Nsm::new(&bench);
            let registration = Registration::Image([7; 48]).to_wire().unwrap();
            assert_eq!(exchange::<Registered>(&nsm.control, &registration), Registered::Done);
            match exchange(&nsm.worker, &Request::attest(&Claims::default()).to_wire().unwrap()) {
                Answer::Document(document) => document,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    // Two runs, one root.
    let modules: Vec<String> = documents
        .iter()
        .map(|document| verified(&bench, document).module_id)
        .collect();
    assert_ne!(modules[0], modules[1]);
    let mode = |name| fs::metadata(bench.root_dir().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(KEY), 0o600);
    assert_eq!(mode(CERTIFICATE), 0o644, "for verifiers");
    // A key that others can read is not used.
    fs::set_permissions(bench.root_dir().join(KEY), fs::Permissions::from_mode(0o644)).unwrap();
    let image = bench.image(&closed_in(&[]));
    assert!(bench.launcher(&image).unwrap().launch().is_err());
    until("a reason", || {
        bench
            .lines_of(Source::Nsm)
            .iter()
            .any(|line| line.contains("chmod 600"))
    });
}
