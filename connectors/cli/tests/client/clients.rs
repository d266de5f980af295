//! The clients: `sealflow client`, and the samples for Python (joserfc), Node (jose) and browsers (WebCrypto in Chromium).

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sealflow_testbed::{deps, skip};
use serde_json::{Value, json};

use crate::common::Place;

/// What is sealed, and for which place.
#[derive(Clone, Copy)]
pub(crate) struct How<'a> {
    pub(crate) dataset: &'a str,
    /// A JWK or a JWK set.
    pub(crate) key: &'a str,
    pub(crate) fields: &'a [&'a str],
    /// The field that names the row.
    pub(crate) row: Option<&'a str>,
    /// Whether the values share a session, which goes into the member `session`.
    pub(crate) in_session: bool,
    /// The HMAC key of a client that proves who it is.
    pub(crate) mac: Option<&'a str>,
}

/// A client that seals, and that answers are sealed to.
pub(crate) trait Client {
    /// NDJSON with fields sealed.
    fn seal(&mut self, how: How<'_>, input: &str) -> String;

    /// Makes a key pair for answers; its public JWK.
    fn make_key(&mut self) -> String;

    /// The JSON text that was sealed to that key; `None` if it does not open.
    fn open(&mut self, answer: &str) -> Option<String>;

    /// A value with a key of its own, sealed to any key.
    fn seal_value(&mut self, key: &str, json: &str) -> String;
}

/// `sealflow client`, and the crate below it.
pub(crate) struct Ours(Place);

impl Ours {
    pub(crate) fn new(_test: &str) -> Option<Self> {
        Some(Self(Place::new()))
    }
}

impl Client for Ours {
    fn seal(&mut self, how: How<'_>, input: &str) -> String {
        self.0.write("backend.jwk", how.key);
        let mut args = vec!["client", "seal", "--key", "backend.jwk", "--dataset", how.dataset];
        args.extend(how.fields.iter().flat_map(|field| ["--column", field]));
        args.extend(how.row.iter().flat_map(|row| ["--bind-row", row]));
        if let Some(mac) = how.mac {
            self.0.write("mac.jwk", mac);
            args.extend(["--mac-key", "mac.jwk"]);
        }
        if !how.in_session {
            args.push("--per-value");
        }
        let ran = self.0.run_with_input(&args, input.as_bytes());
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.out
    }

    fn make_key(&mut self) -> String {
        self.0.ok(&["client", "keygen", "--bits", "2048"])
    }

    fn open(&mut self, answer: &str) -> Option<String> {
        let args = ["client", "open", "--dataset", "payments", "--label", "card"];
        let ran = self.0.run_with_input(&args, format!("\"{answer}\"\n").as_bytes());
        assert!(ran.code == 0 || ran.code == 65, "{}", ran.err);
        (ran.code == 0).then(|| ran.out.trim_end().to_owned())
    }

    fn seal_value(&mut self, key: &str, json: &str) -> String {
        crate::bench::answer(key, json)
    }
}

/// A sample that runs in a process of its own: it, and beside it the few lines by which the tests call its other functions.
pub(crate) struct Sample {
    place: Place,
    program: PathBuf,
    flags: Vec<&'static str>,
    seal: &'static str,
    calls: &'static str,
}

impl Sample {
    /// Python, with joserfc.
    pub(crate) fn python(test: &str) -> Option<Self> {
        let program = deps().join("client-python/bin/python");
        let has_it = Command::new(&program).args(["-c", "import joserfc"]).output();
        if !has_it.is_ok_and(|output| output.status.success()) {
            skip(&format!("{test}: joserfc is not there (.deps/client-python)"));
            return None;
        }
        let files = ["clients/python/sealed.py", "clients/python/seal_ndjson.py"];
        Some(Self {
            place: place_with(&files, "calls.py"),
            program,
            flags: Vec::new(),
            seal: "seal_ndjson.py",
            calls: "calls.py",
        })
    }

    /// Node, with jose.
    pub(crate) fn node(test: &str) -> Option<Self> {
        let libraries = deps().join("node-jose/node_modules");
        let version = Command::new("node").arg("--version").output();
        let version = version.ok().filter(|output| output.status.success());
        let Some(version) = version.filter(|_| libraries.join("jose/package.json").exists()) else {
            skip(&format!("{test}: node or jose is not there (.deps/node-jose)"));
            return None;
        };
        let version = String::from_utf8(version.stdout).unwrap();
        let major: u32 = version
            .trim_start_matches('v')
            .split('.')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let files = [
            "clients/node/sealed.js",
            "clients/node/seal-ndjson.js",
            "clients/node/package.json",
        ];
        let place = place_with(&files, "calls.js");
        std::os::unix::fs::symlink(libraries.canonicalize().unwrap(), place.path("node_modules")).unwrap();
        // Node 20 knows how numbers are spelled only if it is told to.
        let flags = if major < 22 {
            vec!["--harmony-json-parse-with-source"]
        } else {
            Vec::new()
        };
        Some(Self {
            place,
            program: "node".into(),
            flags,
            seal: "seal-ndjson.js",
            calls: "calls.js",
        })
    }

    fn run(&self, script: &str, args: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.flags)
            .arg(script)
            .args(args)
            .current_dir(self.place.path(""));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // One that refuses its arguments does not read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (out, said) = (text(output.stdout), text(output.stderr));
        if !output.status.success() {
            return Err(said);
        }
        assert_eq!(said, "", "a library warns");
        Ok(out)
    }

    /// The arguments that are refused, and what is said then.
    pub(crate) fn refusal(&self, args: &[&str], input: &str) -> String {
        self.run(self.seal, args, input).unwrap_err()
    }

    /// What the script comes to with these arguments.
    pub(crate) fn seal_with(&self, args: &[&str], input: &str) -> Result<String, String> {
        self.run(self.seal, args, input)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        self.place.write(name, text);
    }
}

impl Client for Sample {
    fn seal(&mut self, how: How<'_>, input: &str) -> String {
        self.place.write("backend.jwk", how.key);
        let mut args = vec!["--key", "backend.jwk", "--dataset", how.dataset];
        args.extend(how.fields.iter().flat_map(|field| ["--field", field]));
        args.extend(how.row.iter().flat_map(|row| ["--row", row]));
        if !how.in_session {
            args.push("--per-value");
        }
        if let Some(mac) = how.mac {
            self.place.write("mac.jwk", mac);
            args.extend(["--mac-key", "mac.jwk"]);
        }
        self.run(self.seal, &args, input).unwrap()
    }

    fn make_key(&mut self) -> String {
        self.run(self.calls, &["make-key", "mine.pem"], "").unwrap()
    }

    fn open(&mut self, answer: &str) -> Option<String> {
        self.run(self.calls, &["open", "mine.pem"], answer).ok()
    }

    fn seal_value(&mut self, key: &str, json: &str) -> String {
        self.place.write("theirs.jwk", key);
        self.run(self.calls, &["seal", "theirs.jwk"], json)
            .unwrap()
            .trim_end()
            .to_owned()
    }
}

/// One Chromium at a time is enough for a machine.
static ONE: Mutex<()> = Mutex::new(());

/// Chromium with a page that uses WebCrypto, driven by `testbed/browser/drive.py`.
pub(crate) struct Browser {
    driver: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    _alone: MutexGuard<'static, ()>,
}

impl Browser {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let folders = ["samples/secure-form", "connectors/cli/tests/client"].map(|folder| root.join(folder));
        Self::start(test, folders.map(PathBuf::into_os_string).as_slice())
    }

    /// One without a page, which does what a person would: the calls are the steps of `drive.py`. What it writes stays in
    /// the folder `profile`.
    pub(crate) fn of_steps(test: &str, profile: &Path) -> Option<Self> {
        Self::start(test, &["--steps".into(), profile.into()])
    }

    fn start(test: &str, args: &[OsString]) -> Option<Self> {
        for program in ["chromium", "chromedriver"] {
            let runs = Command::new(program).arg("--version").output();
            if !runs.is_ok_and(|output| output.status.success()) {
                skip(&format!("{test}: no {program} on this machine"));
                return None;
            }
        }
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut command = Command::new("python3");
        command.arg(root.join("testbed/browser/drive.py")).args(args);
        let mut driver = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Some(Self {
            input: driver.stdin.take(),
            output: BufReader::new(driver.stdout.take().unwrap()),
            driver,
            _alone: alone,
        })
    }

    /// What a function of the page comes to.
    pub(crate) fn call(&mut self, name: &str, argument: &Value) -> Result<Value, String> {
        writeln!(self.input.as_ref().unwrap(), "{}", json!([name, argument])).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{name}: the browser has gone"));
        match answer.get("error") {
            Some(error) => Err(error.to_string()),
            None => Ok(answer["value"].clone()),
        }
    }

    fn text(&mut self, name: &str, argument: &Value) -> String {
        self.call(name, argument).unwrap().as_str().unwrap().to_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.driver.wait();
    }
}

impl Client for Browser {
    fn seal(&mut self, how: How<'_>, input: &str) -> String {
        let session = how.in_session.then_some("session");
        let argument = json!({
            "key": how.key, "dataset": how.dataset, "fields": how.fields, "row": how.row, "session": session,
            "mac": how.mac, "input": input,
        });
        self.text("seal", &argument)
    }

    fn make_key(&mut self) -> String {
        self.text("makeKey", &Value::Null)
    }

    fn open(&mut self, answer: &str) -> Option<String> {
        Some(self.call("open", &answer.into()).ok()?.as_str().unwrap().to_owned())
    }

    fn seal_value(&mut self, key: &str, json: &str) -> String {
        let value: Value = serde_json::from_str(json).unwrap();
        self.text(
            "sealOne",
            &json!({ "key": key, "dataset": "payments", "label": "card", "value": value }),
        )
    }
}

/// A folder with copies of these samples, and of a script from beside this file.
fn place_with(samples: &[&str], calls: &str) -> Place {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = Place::new();
    let samples = samples.iter().map(|name| here.join("../../samples").join(name));
    for path in samples.chain([here.join("tests/client").join(calls)]) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        place.write(&name, std::fs::read(&path).unwrap());
    }
    place
}
