//! A running `sealflow`, its log in a file: killed, frozen, measured.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A process of the program under test; killed when dropped.
#[derive(Debug)]
pub struct Instance {
    child: Child,
    log: PathBuf,
}

impl Instance {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log);
        let out = out.expect("the log is writable");
        let err = out.try_clone().expect("a file can be had twice");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        Self {
            child: command.spawn().expect("the program starts"),
            log: log.to_owned(),
        }
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn kill(mut self) {
        // It may have ended by itself just now.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    /// SIGTERM: it drains and ends.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// SIGSTOP: it stays and does nothing.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Whether it has ended, and how.
    ///
    /// # Panics
    /// If it cannot be asked.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// Waits for the end; the status and everything that was logged.
    ///
    /// # Panics
    /// If it goes on for longer than `patience`.
    #[must_use]
    pub fn wait(mut self, patience: Duration) -> (ExitStatus, String) {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return (status, self.read_log());
            }
            assert!(
                Instant::now() < until,
                "still running after {patience:?}:\n{}",
                self.read_log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Everything that it (and what shared its log before) has written so far.
    #[must_use]
    pub fn read_log(&self) -> String {
        std::fs::read(&self.log).map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Where its log is.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log, for messages.
    #[must_use]
    pub fn last_lines(&self) -> String {
        let log = self.read_log();
        let lines: Vec<&str> = log.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// The most memory it has had resident, in KiB (`VmHWM`). `None` once it has ended.
    #[must_use]
    pub fn peak_memory_kib(&self) -> Option<u64> {
        peak_memory_kib(self.child.id()).ok().flatten()
    }

    fn signal(&self, name: &str) {
        // The shell's own: there need not be a program of this name.
        let script = format!("kill -{name} {}", self.child.id());
        let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Already gone if it ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The most memory that a process has had resident, in KiB; `None` if it has ended and was not waited for yet.
///
/// # Errors
/// If there is no such process.
pub fn peak_memory_kib(process: u32) -> io::Result<Option<u64>> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_stays_when_the_memory_is_given_back() {
        let before = peak_memory_kib(std::process::id()).unwrap().unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        drop(block);
        let after = peak_memory_kib(std::process::id()).unwrap().unwrap();
        assert!(after >= before + 50 * 1024, "{before} KiB, then {after} KiB");
    }
}
