//! The binary in a folder of its own, and a local KMS for it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)] // each test binary uses a part

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A folder that commands run in, with nothing of the machine's AWS configuration.
pub struct Place {
    folder: tempfile::TempDir,
}

/// What a command printed, and its exit code.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Place {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealflow"));
        command.args(args).current_dir(self.folder.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("HOME", self.folder.path())
            .env("SEALFLOW_LOG", "warn")
            .env("COLUMNS", "100");
        command
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_SHARED_CREDENTIALS_FILE", self.path("local-kms/credentials"));
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        ran(
            self.command(args).stdin(Stdio::null()).output().unwrap(),
            self.folder.path(),
        )
    }

    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that refuses its arguments does not read.
        let _ = child.stdin.take().unwrap().write_all(input);
        ran(child.wait_with_output().unwrap(), self.folder.path())
    }

    /// Runs a command that must succeed, and gives what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// Names of the files in the folder, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn ran(output: Output, folder: &Path) -> Ran {
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .unwrap()
            .replace(&folder.display().to_string(), "DIR")
    };
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// `sealflow kms serve` on a free port, stopped when dropped.
pub struct LocalKms {
    child: Server,
    pub endpoint: String,
    /// ARN of a key.
    pub arn: String,
}

impl LocalKms {
    pub fn start(place: &Place) -> Self {
        let arn = place.ok(&["kms", "create-key"]).trim().to_owned();
        Self {
            arn,
            ..Self::serve(place)
        }
    }

    /// The server alone, on keys that are there.
    pub fn serve(place: &Place) -> Self {
        let mut command = place.command(&["kms", "serve", "--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let endpoint = line.trim().to_owned();
        assert!(endpoint.starts_with("http://127.0.0.1:"), "{endpoint}");
        Self {
            child: Server(child),
            endpoint,
            arn: String::new(),
        }
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The sample policy under that key.
pub fn policy(arn: &str) -> String {
    let text = sealflow_samples::POLICY_YAML;
    let start = text.find("arn:aws:kms:").unwrap();
    let end = start + text[start..].find('"').unwrap();
    text.replace(&text[start..end], arn)
}
