//! moto's server: an independent KMS for symmetric data keys, STS, and S3.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sealflow::secret::SecretString;
use sealflow_local_kms::Principal;

use crate::process::Guarded;
use crate::{StartError, deps, free_port};

/// A moto server, killed when dropped. It ignores key states and policies.
pub struct Moto {
    port: u16,
    _process: Guarded,
}

impl Moto {
    /// Starts a server on a free port and waits until it accepts connections.
    ///
    /// # Errors
    /// [`StartError::Missing`] without moto (`SEALFLOW_PYTHON`, by default `.deps/venv/bin/python`).
    pub fn start() -> Result<Self, StartError> {
        let python = std::env::var_os("SEALFLOW_PYTHON").map_or_else(|| deps().join("venv/bin/python"), PathBuf::from);
        let has_moto = Command::new(&python).args(["-c", "import moto.server"]).output();
        if !has_moto.is_ok_and(|output| output.status.success()) {
            return Err(StartError::Missing(format!("{} has no moto", python.display())));
        }
        let broken = |error: std::io::Error| StartError::Broken(error.to_string());
        let dir = tempfile::Builder::new()
            .prefix("sealflow-moto-")
            .tempdir()
            .map_err(broken)?
            .keep();
        let port = free_port();
        let mut server = Command::new(python);
        server.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
        let process = Guarded::start(&dir, &server).map_err(broken)?;
        let until = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > until {
                return Err(StartError::Broken(process.last_output()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self {
            port,
            _process: process,
        })
    }

    /// Credentials of a new session of `role`, an IAM ARN, from its STS.
    ///
    /// # Panics
    /// If it does not give any.
    #[must_use]
    pub fn assume(&self, role: &str) -> Principal {
        let body = format!("Action=AssumeRole&Version=2011-06-15&RoleSessionName=tests&RoleArn={role}");
        let request = format!(
            "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=AKIATESTS/20260101/us-east-1/sts/aws4_request, SignedHeaders=host, Signature=0\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("moto listens");
        stream.write_all(request.as_bytes()).expect("moto takes requests");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("moto answers");
        let text = |name: &str| -> String {
            let (_, rest) = answer
                .split_once(&format!("<{name}>"))
                .unwrap_or_else(|| panic!("no {name} in {answer}"));
            rest.split('<').next().unwrap_or_default().to_owned()
        };
        Principal {
            access_key_id: text("AccessKeyId"),
            secret_access_key: SecretString::new(text("SecretAccessKey")),
            session_token: Some(SecretString::new(text("SessionToken"))),
            arn: text("Arn"),
        }
    }

    /// Its endpoint, for `kms.endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// The endpoint of the test runner's server (`SEALFLOW_MOTO_ENDPOINT`), or of one for this process.
///
/// # Errors
/// As [`Moto::start`].
///
/// # Panics
/// If it is installed and does not start.
pub fn moto_endpoint() -> Result<String, StartError> {
    static MOTO: OnceLock<Result<Moto, String>> = OnceLock::new();
    if let Ok(endpoint) = std::env::var("SEALFLOW_MOTO_ENDPOINT") {
        return Ok(endpoint);
    }
    let started = MOTO.get_or_init(|| match Moto::start() {
        Ok(moto) => Ok(moto),
        Err(StartError::Missing(reason)) => Err(reason),
        Err(error) => panic!("{error}"),
    });
    match started {
        Ok(moto) => Ok(moto.endpoint()),
        Err(reason) => Err(StartError::Missing(reason.clone())),
    }
}

/// What the S3 at `endpoint` answers, past every client of ours. `target` is `/BUCKET/KEY?QUERY`.
///
/// # Panics
/// If it does not answer.
#[must_use]
pub fn ask_s3(endpoint: &str, method: &str, target: &str) -> String {
    let address = endpoint.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).expect("moto listens");
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=AKIAMOTO/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("moto takes requests");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("moto answers");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A new bucket at `endpoint`, its name beginning with `start` (letters and hyphens).
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn make_bucket(endpoint: &str, start: &str) -> String {
    use std::hash::{BuildHasher as _, RandomState};
    let bucket = format!("{start}-{:08x}", RandomState::new().hash_one(0) >> 32);
    let made = ask_s3(endpoint, "PUT", &format!("/{bucket}"));
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    bucket
}
