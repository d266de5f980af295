//! CPU time of a child process, as the kernel counted it when the child ended.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;

/// Clock ticks per second in `/proc/PID/stat`; 100 on every Linux that Rust runs on (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

/// The optimised `sealflow` beside this program.
pub(crate) fn sealflow() -> Result<PathBuf, Error> {
    let path = std::env::current_exe()?.with_file_name("sealflow");
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is not built: cargo build --release -p sealflow-cli", path.display()).into())
    }
}

/// Runs `command` to its end and returns its CPU seconds (user and system) and wall seconds.
pub(crate) fn cpu_seconds(mut command: Command, log: &Path) -> Result<(f64, f64), Error> {
    let out = std::fs::File::create(log)?;
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let ticks = loop {
        // A process that has ended keeps its times until it is waited for.
        let (state, ticks) = stat(&child)?;
        if state == 'Z' {
            break ticks;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("{status}: {}", std::fs::read_to_string(log)?).into());
    }
    Ok((ticks / TICKS, started.elapsed().as_secs_f64()))
}

/// State and user plus system ticks of `/proc/PID/stat` (proc(5): fields 3, 14 and 15).
fn stat(child: &Child) -> Result<(char, f64), Error> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let (_, fields) = text.rsplit_once(')').ok_or("/proc/PID/stat has another shape")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok());
    let state = fields.first().and_then(|field| field.chars().next());
    state
        .zip(number(11).zip(number(12)).map(|(user, system)| user + system))
        .ok_or_else(|| "/proc/PID/stat has another shape".into())
}
