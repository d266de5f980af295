//! The backends of `SECRET[backend.name]`: a folder of files, environment variables, commands.
//!
//! Messages name backend and secret, never what was read; what a command says on standard error is not passed on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use sealflow::units::{ByteSize, Span};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::interpolate::{Environment, Unknown, is_name};
use crate::redact;

/// The longest answer of a command.
const MAX_ANSWER: u64 = 64 << 10;
/// The longest time that a command may be given.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);
/// What stands for the secret's name in a command.
const NAME: &str = "{name}";

/// Backends of `SECRET[backend.name]`. Placeholders are not filled in this section.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SecretsConfig {
    /// The folder of `SECRET[file.NAME]`; relative to the pipeline file.
    pub(crate) folder: PathBuf,
    /// `${NAME}` and `SECRET[env.NAME]` take only variables that start with one of these. Without it: any.
    pub(crate) env_prefixes: Option<Vec<String>>,
    /// Commands by backend name: `SECRET[vault.NAME]` runs the one that is called `vault`.
    pub(crate) exec: BTreeMap<String, ExecBackend>,
}

impl Default for SecretsConfig {
    fn default() -> Self {
        Self {
            folder: PathBuf::from("/run/secrets"),
            env_prefixes: None,
            exec: BTreeMap::new(),
        }
    }
}

/// A command that knows secrets. It is run without a shell, once per secret.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecBackend {
    /// Program and arguments; `{name}` in an argument becomes the secret's name.
    pub(crate) command: Vec<String>,
    /// How the secret is asked for and answered.
    #[serde(default)]
    pub(crate) protocol: Protocol,
    /// How long it may take.
    #[serde(default = "ten_seconds")]
    pub(crate) timeout: Span,
}

/// How a command is asked, and how it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    /// Asked by `{name}` in its arguments; its standard output is the secret, without the line break at its end.
    #[default]
    Text,
    /// Vector's: `{"version":"1.0","secrets":["NAME"]}` on standard input, `{"NAME":{"value":…,"error":null}}` on output.
    Vector,
}

fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}

impl SecretsConfig {
    /// What cannot be meant: the key path below `secrets`, message, help.
    pub(crate) fn check(&self) -> Result<(), (String, String, String)> {
        for (backend, exec) in &self.exec {
            let at = format!("exec.{backend}");
            if !is_name(backend) || backend.contains('.') || ["env", "file"].contains(&backend.as_str()) {
                let help = "use letters, digits, dash and underscore; `env` and `file` are taken";
                return Err((at, "not the name of a backend".into(), help.into()));
            }
            let Some((program, arguments)) = exec.command.split_first() else {
                let help = "write program and arguments: `command: [/usr/local/bin/get-secret, \"{name}\"]`";
                return Err((format!("{at}.command"), "is empty".into(), help.into()));
            };
            let asked = arguments.iter().any(|argument| argument.contains(NAME));
            if program.is_empty() || (exec.protocol == Protocol::Text && !asked) {
                let help = "put `{name}` where the secret's name belongs, or set `protocol: vector`";
                return Err((format!("{at}.command"), "does not say which secret".into(), help.into()));
            }
            if exec.timeout.0.is_zero() || exec.timeout.0 > MAX_TIMEOUT {
                let help = "a command that takes longer would hold up every start";
                return Err((
                    format!("{at}.timeout"),
                    "must be more than 0ms and at most 5m".into(),
                    help.into(),
                ));
            }
        }
        Ok(())
    }
}

/// The backends, open: each secret is read once.
pub(crate) struct Secrets<'a> {
    environment: &'a Environment,
    config: SecretsConfig,
    /// What relative paths start from: the pipeline file's folder.
    base: PathBuf,
    read: RefCell<BTreeMap<String, Zeroizing<String>>>,
}

impl<'a> Secrets<'a> {
    /// Reads nothing yet.
    pub(crate) fn new(environment: &'a Environment, config: SecretsConfig, base: &Path) -> Self {
        Self {
            environment,
            config,
            base: base.to_owned(),
            read: RefCell::default(),
        }
    }

    /// The variable of that name, if it is there and may be read.
    pub(super) fn variable(&self, name: &str) -> Result<Option<&str>, Unknown> {
        let allowed = |prefixes: &Vec<String>| prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()));
        if self
            .config
            .env_prefixes
            .as_ref()
            .is_some_and(|prefixes| !allowed(prefixes))
        {
            return Err((
                format!("the environment variable {name} may not be read"),
                "`secrets.env_prefixes` lists how names of variables may start".to_owned(),
            ));
        }
        Ok(self.environment.get(name))
    }

    /// The secret of that name, hidden in all that is printed from now on.
    pub(super) fn secret(&self, backend: &str, name: &str) -> Result<Zeroizing<String>, Unknown> {
        let key = format!("{backend}.{name}");
        if let Some(value) = self.read.borrow().get(&key) {
            return Ok(value.clone());
        }
        let value = Zeroizing::new(match backend {
            "env" => self.variable(name)?.map(str::to_owned).ok_or_else(|| {
                (
                    format!("the secret env.{name} is not there"),
                    format!("set the environment variable {name}"),
                )
            })?,
            "file" => read_file(&self.base.join(&self.config.folder), name)?,
            _ => match self.config.exec.get(backend) {
                Some(exec) => ask(exec, name, &self.base)
                    .map_err(|(why, help)| (format!("the secret {backend}.{name} {why}"), help))?,
                None => return Err(self.unknown_backend()),
            },
        });
        redact::hide(&value);
        self.read.borrow_mut().insert(key, value.clone());
        Ok(value)
    }

    fn unknown_backend(&self) -> Unknown {
        let commands = self.config.exec.keys().map(|name| format!(", `{name}`"));
        (
            "unknown secret backend".to_owned(),
            format!(
                "the backends are `env`, `file`{}; commands are named under `secrets.exec`",
                commands.collect::<String>()
            ),
        )
    }
}

/// The content of a secret's file without the line break that editors add.
fn read_file(folder: &Path, name: &str) -> Result<String, Unknown> {
    let path = folder.join(name);
    let text = crate::files::read_text(&path).map_err(|_| {
        let help = format!("put it into {}, or set `secrets.folder`", path.display());
        (format!("the secret file.{name} cannot be read"), help)
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Runs a backend's command for one secret. The error goes on after "the secret NAME".
fn ask(exec: &ExecBackend, name: &str, base: &Path) -> Result<String, Unknown> {
    let bytes = run(exec, name, base)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| bad_answer("is no UTF-8 text"))?;
    let value = match exec.protocol {
        Protocol::Text => text.trim_end_matches(['\r', '\n']).to_owned(),
        Protocol::Vector => vector_answer(text, name)?,
    };
    if value.is_empty() {
        return Err(bad_answer("is empty"));
    }
    Ok(value)
}

fn bad_answer(what: &str) -> Unknown {
    (
        format!("was not answered: what its command printed {what}"),
        "run the command by hand and look at its output; it is not shown here".to_owned(),
    )
}

/// Vector's answer to a question for one secret.
fn vector_answer(text: &str, name: &str) -> Result<String, Unknown> {
    #[derive(Deserialize)]
    struct Answer {
        value: Option<String>,
        error: Option<serde::de::IgnoredAny>,
    }
    let mut answers: BTreeMap<String, Answer> =
        serde_json::from_str(text).map_err(|_| bad_answer("is not Vector's answer in JSON"))?;
    match answers.remove(name) {
        Some(Answer { error: Some(_), .. }) => Err(bad_answer("says that there was an error")),
        Some(Answer { value: Some(value), .. }) => Ok(value),
        _ => Err(bad_answer("holds no such secret")),
    }
}

/// What the command prints, if it ends well, in time and within bounds.
fn run(exec: &ExecBackend, name: &str, base: &Path) -> Result<Zeroizing<Vec<u8>>, Unknown> {
    let started = Instant::now();
    let mut child = Group(start(exec, name, base)?);
    if let Some(mut input) = child.0.stdin.take() {
        // A few bytes fit into the pipe; a command that does not read them ends by itself.
        let _ = writeln!(input, "{}", serde_json::json!({ "version": "1.0", "secrets": [name] }));
    }
    let output = child.0.stdout.take();
    let (sender, answer) = channel();
    // The reader ends with the pipe, at the latest when the group is killed.
    std::thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::new());
        let read = output.map_or(Ok(0), |output| output.take(MAX_ANSWER + 1).read_to_end(&mut bytes));
        // Nobody waits any more after the time-out.
        let _ = sender.send(read.map(|_| bytes));
    });
    let timeout = exec.timeout.0;
    let bytes = match answer.recv_timeout(timeout) {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return Err(bad_answer("could not be read")),
        Err(RecvTimeoutError::Timeout) => return Err(too_slow(timeout)),
    };
    if bytes.len() as u64 > MAX_ANSWER {
        return Err(bad_answer(&format!("is longer than {}", ByteSize(MAX_ANSWER))));
    }
    loop {
        match child.0.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(bytes),
            Ok(Some(status)) => {
                return Err((
                    format!("was not answered: its command ended with {status}"),
                    "run the command by hand to see what it says; its output is not shown here".to_owned(),
                ));
            }
            _ if started.elapsed() > timeout => return Err(too_slow(timeout)),
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn too_slow(timeout: Duration) -> Unknown {
    (
        format!("was not answered: its command did not end within {}", Span(timeout)),
        "see whether it waits for input or for a service, or raise its `timeout`".to_owned(),
    )
}

fn start(exec: &ExecBackend, name: &str, base: &Path) -> Result<Child, Unknown> {
    use std::os::unix::process::CommandExt as _;
    let cannot = |error: &dyn std::fmt::Display| {
        (
            format!("was not answered: its command cannot be started: {error}"),
            "check the path and permissions of the program in `secrets.exec`".to_owned(),
        )
    };
    let (program, arguments) = exec.command.split_first().ok_or_else(|| cannot(&"it is empty"))?;
    // With a slash it is a path, which is relative to the pipeline file like every other.
    let program = if program.contains('/') {
        base.join(program)
    } else {
        PathBuf::from(program)
    };
    Command::new(program)
        .args(arguments.iter().map(|argument| argument.replace(NAME, name)))
        .stdin(if exec.protocol == Protocol::Vector {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        // What it says may hold what it found.
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| cannot(&error))
}

/// A process group that ends with its guard, the command's own children included.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        // Until it has been waited for, its id belongs to nobody else.
        if matches!(self.0.try_wait(), Ok(None))
            && let Some(leader) = leader
        {
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout_ms: u64) -> ExecBackend {
        ExecBackend {
            command: ["sh", "-c", script, "sh", NAME].map(str::to_owned).to_vec(),
            protocol: Protocol::Text,
            timeout: Span(Duration::from_millis(timeout_ms)),
        }
    }

    fn answer(exec: &ExecBackend) -> Result<String, String> {
        ask(exec, "db-password", Path::new("/")).map_err(|(message, _)| message)
    }

    #[test]
    fn a_command_is_asked_by_its_arguments_and_answers_on_standard_output() {
        assert_eq!(
            answer(&shell("echo \"$1 is s3cret\"", 5000)).as_deref(),
            Ok("db-password is s3cret")
        );
    }

    #[test]
    fn a_name_is_an_argument_and_never_a_piece_of_a_script() {
        let exec = ExecBackend {
            command: ["echo", "secret/{name}"].map(str::to_owned).to_vec(),
            ..shell("", 5000)
        };
        let asked = ask(&exec, "$(id);x", Path::new("/")).map_err(|(message, _)| message);
        assert_eq!(asked.as_deref(), Ok("secret/$(id);x"));
    }

    #[test]
    fn vectors_protocol_is_spoken() {
        let answers = |text: &str| {
            let mut exec = shell(
                &format!("read -r question; case $question in *'\"db-password\"'*) echo '{text}';; esac"),
                5000,
            );
            exec.protocol = Protocol::Vector;
            answer(&exec)
        };
        assert_eq!(
            answers(r#"{"db-password":{"value":"s3cret","error":null}}"#).as_deref(),
            Ok("s3cret")
        );
        for wrong in [
            r#"{"db-password":{"value":null,"error":"canary-of-error"}}"#,
            r#"{"other":{"value":"canary","error":null}}"#,
            "canary",
        ] {
            let message = answers(wrong).unwrap_err();
            assert!(!message.contains("canary"), "{message}");
        }
    }

    #[test]
    fn what_a_failing_command_prints_is_not_passed_on() {
        for script in [
            "echo canary; echo canary >&2; exit 3",
            "printf '\\377canary'",
            "head -c 70000 /dev/zero | tr '\\0' c",
            "echo",
        ] {
            let (message, help) = ask(&shell(script, 5000), "x", Path::new("/")).unwrap_err();
            assert!(!message.contains("canary") && !message.contains("ccc"), "{message}");
            assert!(!help.is_empty());
        }
        assert!(answer(&shell("exit 3", 5000)).unwrap_err().contains("exit status: 3"));
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("late");
        let script = format!("(sleep 1; touch {}) & sleep 60", mark.display());
        let started = Instant::now();
        assert!(answer(&shell(&script, 200)).unwrap_err().contains("did not end within"));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        std::thread::sleep(Duration::from_millis(1300));
        assert!(!mark.exists(), "its child went on");
    }

    #[test]
    fn a_command_that_cannot_be_asked_is_refused_before_it_runs() {
        for (yaml, place) in [
            ("exec: { v: { command: [] } }", "exec.v.command"),
            ("exec: { v: { command: [pass, show] } }", "exec.v.command"),
            ("exec: { env: { command: [a, \"{name}\"] } }", "exec.env"),
            ("exec: { a.b: { command: [a, \"{name}\"] } }", "exec.a.b"),
            (
                "exec: { v: { command: [a, \"{name}\"], timeout: 1h } }",
                "exec.v.timeout",
            ),
        ] {
            let config: SecretsConfig = sealflow::policy::yaml::from_yaml(yaml).unwrap();
            assert_eq!(config.check().unwrap_err().0, place, "{yaml}");
        }
    }
}
