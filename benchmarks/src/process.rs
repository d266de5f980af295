//! What a child process cost, as the kernel counted it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::Cost;

use crate::instructions::sibling;

/// The optimised `sealflow` beside this program.
pub(crate) fn sealflow() -> Result<PathBuf, Error> {
    sibling("sealflow")
}

/// Runs `command` to its end.
pub(crate) fn run(mut command: Command, log: &Path) -> Result<Cost, Error> {
    let out = std::fs::File::create(log)?;
    let (before, started) = (children_cpu()?, Instant::now());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let mut peak = 0.0_f64;
    let status = loop {
        // The peak only grows, so the last look before the end misses at most these milliseconds.
        peak = peak.max(peak_memory(child.id()).unwrap_or_default());
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if !status.success() {
        return Err(format!("{status}: {}", std::fs::read_to_string(log)?).into());
    }
    Ok(Cost {
        cpu: children_cpu()? - before,
        wall: started.elapsed().as_secs_f64(),
        peak_memory: Some(peak),
    })
}

/// A folder of our own for the files of a comparison.
pub(crate) fn temporary() -> Result<PathBuf, Error> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("sealflow-bench-{}-{unique}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A process that is killed when it is dropped.
pub(crate) struct Running(std::process::Child);

impl Running {
    /// Starts `command`; its output goes to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self, Error> {
        let out = std::fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(Self(command.spawn()?))
    }

    /// Kills it and says what CPU time it took until then, in seconds.
    pub(crate) fn end(self) -> Result<f64, Error> {
        let before = children_cpu()?;
        drop(self);
        Ok(children_cpu()? - before)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU seconds, user and system, of all children that have ended and were waited for (getrusage(2)).
fn children_cpu() -> Result<f64, Error> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// The most memory that a process had resident so far, in bytes (`VmHWM` in proc(5)).
pub(crate) fn peak_memory(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

/// `program` on the first processor only, where the machine has `taskset`.
pub(crate) fn on_one_core(command: &Command) -> Command {
    let mut pinned = Command::new("taskset");
    pinned
        .args(["-c", "0"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => pinned.env(name, value),
            None => pinned.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        pinned.current_dir(folder);
    }
    pinned
}
