//! From inside the sandbox nothing leads out: a probe tries, under the launcher that starts workers.

#![allow(clippy::unwrap_used, clippy::panic)] // a test: it fails loudly

mod bench;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bench::{Bench, PATIENCE, closed_in, open, skipped};
use sealflow_enclave_host::launch::{Exit, Isolation};

/// What the probe tries and the kernel refuses.
const REFUSED: &[&str] = &[
    "open-file",
    "open-own-memory",
    "write-file",
    "list-folder",
    "make-folder",
    "open-device",
    "look-at-file",
    "tcp-connect",
    "tcp-listen",
    "udp",
    "unix-connect",
    "unix-listen",
    "unix-datagram",
    "unix-pair",
    "pipe",
    "fork",
    "signal-parent",
    "be-dumpable",
    "raise-limits",
    "take-descriptor",
];

/// What the probe tries and dies of.
const DEADLY: &[&str] = &[
    "exec",
    "ptrace",
    "read-memory-of-parent",
    "unshare",
    "mount",
    "chroot",
    "memfd",
    "handle-of-process",
];

/// What only root can do outside the sandbox too.
const PRIVILEGED: &[&str] = &["unshare", "mount", "chroot"];

#[test]
fn from_inside_the_sandbox_nothing_leads_out() {
    let bench = Bench::new();
    let mut probe = bench.launch(&closed_in(REFUSED));
    let (first, attempts) = probe.reports();
    assert_eq!(first["tier"], "dev-software-nsm");
    if first["sandbox"]["landlock"].is_null() {
        skipped("enclave sandbox, landlock: this kernel does not have it, or it is not switched on");
    }
    if first["sandbox"]["memory_locked"] == false {
        skipped("enclave sandbox, locked memory: RLIMIT_MEMLOCK is too low");
    }
    if first["sandbox"]["namespaces"] == false {
        skipped("enclave sandbox, the worker's own namespaces: the system does not allow them");
    }
    if let Err(reason) = probe.worker.isolation() {
        skipped(&format!("enclave sandbox, the launcher's namespaces: {reason}"));
    }
    let tried: Vec<&str> = attempts
        .iter()
        .filter_map(|report| report["attempt"].as_str())
        .collect();
    assert_eq!(tried, REFUSED, "the probe tried everything");
    for report in &attempts {
        assert_eq!(report["succeeded"], false, "{report}");
        // The filter of system calls answers before anything else could, so each is EPERM and nothing accidental.
        let detail = report["detail"].as_str().unwrap();
        assert!(detail.contains("not permitted") || detail.contains("EPERM"), "{report}");
    }
    assert!(!bench.folder.path().join("written").exists());
}

#[test]
fn what_reaches_for_other_programs_and_processes_ends_the_worker() {
    let bench = Bench::new();
    for attempt in DEADLY {
        let mut probe = bench.launch(&closed_in(&[attempt]));
        let (_, attempts) = probe.reports();
        assert_eq!(attempts, Vec::<serde_json::Value>::new(), "{attempt} came back");
        assert_eq!(
            probe.worker.wait(PATIENCE),
            Some(Exit::Signal(31)),
            "{attempt} is SIGSYS"
        );
    }
}

#[test]
fn without_the_sandbox_every_attempt_works() {
    let bench = Bench::new();
    let everything = [REFUSED, DEADLY].concat();
    let root = rustix::process::geteuid().is_root();
    let traced = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let debuggers = root || traced.is_empty() || traced.starts_with('0');
    for attempt in &everything {
        // Each has a probe of its own, since `exec` ends one that can do it. Signals and debuggers need to see the parent, which a
        // process namespace hides.
        let image = bench.image(&open(&[attempt]));
        let mut probe = bench::Probe::new(
            bench
                .launcher(&image)
                .unwrap()
                .with_isolation(Isolation::Off)
                .launch()
                .unwrap(),
        );
        let (first, attempts) = probe.reports();
        assert!(first["sandbox"].is_null());
        if *attempt == "exec" {
            assert_eq!(
                probe.worker.wait(PATIENCE),
                Some(Exit::Code(0)),
                "/bin/true ran instead of the probe"
            );
            continue;
        }
        assert_eq!(attempts.len(), 1);
        let worked = attempts[0]["succeeded"] == true;
        let privileged = PRIVILEGED.contains(attempt) && !root;
        let debugging = ["ptrace", "read-memory-of-parent"].contains(attempt) && !debuggers;
        if worked || !(privileged || debugging) {
            assert!(worked, "{}", attempts[0]);
        } else {
            skipped(&format!(
                "enclave sandbox, control for {attempt}: this user may not do it outside either"
            ));
        }
        let written = ["written", "listener", "made"].map(|name| bench.folder.path().join(name));
        let _ = (
            std::fs::remove_file(&written[0]),
            std::fs::remove_file(&written[1]),
            std::fs::remove_dir(&written[2]),
        );
    }
}

#[test]
fn a_worker_works_in_its_sandbox() {
    let bench = Bench::new();
    let mut probe = bench.launch(&closed_in(&[]));
    let (first, _) = probe.reports();
    // Threads of a runtime, timers, blocking tasks, 32 MiB at once, RSA, the NSM: all made after it was closed in.
    for round in 0..20 {
        probe.write(&format!("line {round}"));
    }
    for round in 0..20 {
        let answer = probe.next().unwrap();
        assert_eq!(answer["echo"], format!("line {round}"));
        assert_eq!(answer["computed"], true, "{answer}");
        assert!(answer["document"].is_array(), "{answer}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let told = Duration::from_millis(answer["time"].as_u64().unwrap());
        assert!(
            now.abs_diff(told) < PATIENCE,
            "the NSM's clock is {told:?}, ours {now:?}"
        );
    }
    assert_eq!(probe.status("Seccomp"), "2", "filtered");
    assert_eq!(probe.status("Seccomp_filters"), "3");
    assert_eq!(probe.status("NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(probe.status(set), "0000000000000000", "{set}");
    }
    if first["sandbox"]["memory_locked"] == true {
        let locked: u64 = probe.status("VmLck").trim_end_matches(" kB").trim().parse().unwrap();
        assert!(locked > 1024, "{locked} kB are locked");
    }
    let limits = std::fs::read_to_string(probe.proc("limits"));
    match limits {
        Ok(limits) => {
            let core = limits
                .lines()
                .find(|line| line.starts_with("Max core file size"))
                .unwrap();
            assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
        }
        Err(error) => skipped(&format!("enclave sandbox, limits seen from outside: {error}")),
    }
    // It is not dumpable: whoever is not root does not get at its memory, though it has the same user.
    if !rustix::process::geteuid().is_root() {
        assert!(std::fs::File::open(probe.proc("mem")).is_err());
        assert!(
            std::fs::File::open(probe.proc("environ"))
                .and_then(|file| file.metadata())
                .is_err()
        );
    }
}

#[test]
fn what_the_measured_configuration_requires_is_there_or_the_worker_ends() {
    let bench = Bench::new();
    let mut required = closed_in(&[]);
    required["sandbox"] = serde_json::json!({});
    let mut probe = bench.launch(&required);
    let started = probe.next();
    let part = |name: &str| started.as_ref().map(|first| first["sandbox"][name].clone());
    match &started {
        Some(_) => {
            assert_eq!(part("memory_locked"), Some(true.into()));
            assert_eq!(part("namespaces"), Some(true.into()));
            assert!(part("landlock").unwrap().as_i64().unwrap() >= 1);
        }
        None => {
            assert_eq!(probe.worker.wait(PATIENCE), Some(Exit::Code(69)));
            bench::until("a reason", || {
                !bench.lines_of(sealflow_enclave_host::launch::Source::Worker).is_empty()
            });
            let reason = bench.lines_of(sealflow_enclave_host::launch::Source::Worker).concat();
            assert!(reason.contains("if-available"), "{reason}");
            skipped(&format!("enclave sandbox, all of it: {reason}"));
        }
    }
}
