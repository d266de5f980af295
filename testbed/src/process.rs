//! A child process that never outlives the test, however that ends.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Runs the command until its own standard input ends, which it does when the test's process is gone, even
/// by SIGKILL; then removes the folder, unless the word `keep` or `term` came first.
const WATCHER: &str = r#"
dir="$1"; shift
"$@" </dev/null &
child=$!
while read -r word; do
    case "$word" in
        freeze) kill -STOP $child ;;
        thaw) kill -CONT $child ;;
        term) kill -TERM $child; wait $child 2>/dev/null; exit 0 ;;
        *) break ;;
    esac
done
kill -9 $child 2>/dev/null
wait $child 2>/dev/null
[ "$word" = keep ] || rm -rf "$dir"
"#;

/// A guarded server process with a folder of its own.
pub(crate) struct Guarded {
    watcher: Child,
    log: PathBuf,
}

impl Guarded {
    /// Starts `command`; its output goes to `dir`/output.log, and `dir` is removed with it.
    pub(crate) fn start(dir: &Path, command: &Command) -> std::io::Result<Self> {
        let log = dir.join("output.log");
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut watcher = Command::new("sh");
        watcher
            .arg("-c")
            .arg(WATCHER)
            .arg("sh")
            .arg(dir)
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => watcher.env(name, value),
                None => watcher.env_remove(name),
            };
        }
        watcher.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        Ok(Self {
            watcher: watcher.spawn()?,
            log,
        })
    }

    /// Kills the server (SIGKILL) and keeps its folder.
    pub(crate) fn kill_and_keep(self) {
        self.end("keep\n");
    }

    /// Asks the server to end (SIGTERM), waits until it has, and keeps its folder.
    pub(crate) fn terminate_and_keep(self) {
        self.end("term\n");
    }

    /// Stops the server in its tracks (SIGSTOP): connections stay, nobody answers.
    pub(crate) fn freeze(&mut self) {
        self.say("freeze\n");
    }

    /// Lets a frozen server go on (SIGCONT).
    pub(crate) fn thaw(&mut self) {
        self.say("thaw\n");
    }

    fn say(&mut self, word: &str) {
        if let Some(stdin) = self.watcher.stdin.as_mut() {
            // A watcher that is gone has killed the server; whoever waits for it will say so.
            let _ = stdin.write_all(word.as_bytes());
        }
    }

    fn end(mut self, word: &str) {
        self.say(word);
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }

    /// The end of what it printed.
    pub(crate) fn last_output(&self) -> String {
        end_of(&self.log)
    }
}

/// The end of a file, or why there is none.
pub(crate) fn end_of(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2_000)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("{}: {error}", path.display()))
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}
