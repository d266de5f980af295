//! Audit logs in files: durable, chained over restarts, refused where they were tampered with.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sealflow::audit::testing::sample_event;
use sealflow::audit::{AuditError, AuditLog, Report, Verifier};
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::jose::{PrivateJwk, Thumbprint};
use sealflow::units::Span;
use sealflow_audit::{AuditConfig, LineSink, To};

struct Bench {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
    signer: Thumbprint,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = PrivateJwk::generate().unwrap();
        let path = folder.path().join("audit.key");
        fs::write(&path, key.to_private_json().expose()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Self {
            folder,
            clock: Arc::new(ManualClock::at(UnixMillis(1_767_225_600_000))),
            signer: key.thumbprint(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> Result<Arc<dyn AuditLog>, AuditError> {
        let config = AuditConfig {
            to: To::File,
            path: Some(self.path("audit.log")),
            topic: None,
            key: self.path("audit.key"),
            checkpoints: self.path("checkpoints"),
            every: 10,
            span: Span(Duration::from_secs(60)),
            name: Some("test".to_owned()),
        };
        let clock = Arc::clone(&self.clock);
        config.open(clock)
    }

    /// A log whose lines go to `lines`.
    fn open_topic(&self, lines: &Arc<Mutex<Vec<String>>>) -> Result<Arc<dyn AuditLog>, AuditError> {
        let config = AuditConfig {
            to: To::Topic,
            path: None,
            topic: None,
            key: self.path("audit.key"),
            checkpoints: self.path("checkpoints"),
            every: 10,
            span: Span(Duration::from_secs(60)),
            name: None,
        };
        config.open_with(self.clock.clone(), Some(Box::new(Kept(Arc::clone(lines)))))
    }

    fn verify(&self) -> Report {
        let mut verifier = Verifier::new([self.signer], false);
        let checkpoints = fs::read(self.path("checkpoints")).unwrap();
        let log = fs::read(self.path("audit.log")).unwrap();
        let lines = |bytes: &'static [u8]| bytes.strip_suffix(b"\n").unwrap().split(|byte| *byte == b'\n');
        lines(checkpoints.leak()).for_each(|line| verifier.checkpoint(line));
        lines(log.leak()).for_each(|line| verifier.line(line));
        verifier.finish()
    }
}

/// A topic in memory, which can lose what it takes.
struct Kept(Arc<Mutex<Vec<String>>>);

impl LineSink for Kept {
    fn name(&self) -> String {
        "kept".to_owned()
    }

    fn append(&mut self, lines: &[String]) -> Result<(), AuditError> {
        if lines.iter().any(|line| line.contains("rule of nobody")) {
            return Err(AuditError::Write {
                to: self.name(),
                reason: "no answer".to_owned(),
            });
        }
        self.0.lock().unwrap().extend_from_slice(lines);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_write_one_topic_and_one_file_of_checkpoints_and_a_line_in_doubt_ends_a_chain() {
    let bench = Bench::new();
    let lines = Arc::default();
    let (first, second) = (bench.open_topic(&lines).unwrap(), bench.open_topic(&lines).unwrap());
    for _ in 0..25 {
        first.record(vec![sample_event()]).await.unwrap();
        second.record(vec![sample_event()]).await.unwrap();
    }
    // What may or may not have arrived: nothing comes after it, and the other goes on.
    let mut lost = sample_event();
    lost.rule = "rule of nobody".to_owned();
    assert!(matches!(second.record(vec![lost]).await, Err(AuditError::Write { .. })));
    let after = second.record(vec![sample_event()]).await;
    assert!(matches!(after, Err(AuditError::Closed { .. })), "{after:?}");
    first.close().await.unwrap();
    let mut verifier = Verifier::new([bench.signer], false);
    let checkpoints = fs::read_to_string(bench.path("checkpoints")).unwrap();
    assert!(checkpoints.lines().count() >= 6);
    checkpoints
        .lines()
        .for_each(|line| verifier.checkpoint(line.as_bytes()));
    for line in lines.lock().unwrap().iter() {
        verifier.line(line.as_bytes());
    }
    let report = verifier.finish();
    assert!(report.is_whole(), "{:?}", report.breaks);
    assert_eq!((report.chains.len(), report.decisions), (2, 50));
}

#[test]
fn a_key_that_others_can_read_or_that_is_no_file_signs_nothing() {
    let bench = Bench::new();
    let key = bench.path("audit.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let refused = |what: &str| match bench.open() {
        Err(AuditError::Refused { reason, .. }) => assert!(reason.contains(what), "{reason}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{what}"),
    };
    refused("others may read it");
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    refused("no regular file");
    assert!(!bench.path("audit.log").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_callers_record_at_once_is_in_the_file_when_they_are_told_so() {
    let bench = Bench::new();
    let log = bench.open().unwrap();
    let mut calls = Vec::new();
    for n in 0..100_u64 {
        let (log, path) = (Arc::clone(&log), bench.path("audit.log"));
        calls.push(tokio::spawn(async move {
            let mut event = sample_event();
            event.rule = format!("rule {n}");
            log.record(vec![event; 2]).await.unwrap();
            let text = fs::read_to_string(path).unwrap();
            assert_eq!(text.matches(&format!("\"rule {n}\"")).count(), 2);
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
    let mode = fs::metadata(bench.path("audit.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    log.close().await.unwrap();
    assert!(matches!(
        log.record(vec![sample_event()]).await,
        Err(AuditError::Closed { .. })
    ));
    let report = bench.verify();
    assert!(report.is_whole(), "{:?}", report.breaks);
    assert_eq!((report.decisions, report.chains[0].unsealed()), (200, 0));
}

#[tokio::test]
async fn a_restart_goes_on_with_the_chain_and_takes_away_an_unfinished_line() {
    let bench = Bench::new();
    bench.open().unwrap().record(vec![sample_event()]).await.unwrap();
    let path = bench.path("audit.log");
    let whole = fs::read(&path).unwrap();
    let torn = [&whole[..], b"{\"v\":1,\"insta"].concat();
    fs::write(&path, torn).unwrap();
    let log = bench.open().unwrap();
    log.record(vec![sample_event()]).await.unwrap();
    drop(log);
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .contains("\"name\":\"test\",\"dropped\":13}")
    );
    let report = bench.verify();
    assert!(report.is_whole() && report.chains.len() == 1, "{report:?}");
    assert_eq!((report.decisions, report.chains[0].unsealed()), (2, 0));
}

#[tokio::test]
async fn a_checkpoint_comes_by_time_although_nobody_calls() {
    let bench = Bench::new();
    let log = bench.open().unwrap();
    log.record(vec![sample_event()]).await.unwrap();
    let count = || fs::read_to_string(bench.path("checkpoints")).unwrap().lines().count();
    assert_eq!(count(), 1);
    bench.clock.advance(Duration::from_secs(60));
    for _ in 0..100 {
        if count() == 2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no checkpoint within five seconds");
}

#[tokio::test]
async fn two_processes_never_write_one_log_and_a_log_that_was_cut_off_is_not_gone_on_with() {
    let bench = Bench::new();
    let log = bench.open().unwrap();
    assert!(matches!(bench.open(), Err(AuditError::Refused { .. })));
    for _ in 0..3 {
        log.record(vec![sample_event(); 10]).await.unwrap();
    }
    drop(log);
    let path = bench.path("audit.log");
    let text = fs::read_to_string(&path).unwrap();
    let cut: String = text.lines().take(5).flat_map(|line| [line, "\n"]).collect();
    for left in [cut.as_str(), ""] {
        fs::write(&path, left).unwrap();
        assert!(matches!(bench.open(), Err(AuditError::NotContinuable { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), left);
    }
    fs::write(&path, text).unwrap();
    assert!(bench.open().is_ok());
}

#[test]
fn files_that_are_something_else_are_refused_and_stay_as_they_are() {
    let bench = Bench::new();
    let (path, other) = (bench.path("audit.log"), bench.path("other"));
    fs::write(&other, "dear diary").unwrap();
    symlink(&other, &path).unwrap();
    assert!(matches!(bench.open(), Err(AuditError::Refused { .. })));
    fs::remove_file(&path).unwrap();
    fs::rename(&other, &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(bench.open(), Err(AuditError::NotContinuable { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "dear diary");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
    assert!(matches!(bench.open(), Err(AuditError::Refused { .. })));
}
