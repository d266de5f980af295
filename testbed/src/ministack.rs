//! MiniStack's server: an independent KMS whose RSA and HMAC keys are real.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::Guarded;
use crate::{StartError, deps, free_port};

/// A MiniStack server with its KMS alone, killed when dropped. It checks no signatures, and what it calls symmetric
/// encryption is a pad without authentication.
pub struct Ministack {
    port: u16,
    _process: Guarded,
}

impl Ministack {
    /// Starts a server on a free port and waits until it accepts connections.
    ///
    /// # Errors
    /// [`StartError::Missing`] without MiniStack (`SEALFLOW_MINISTACK_PYTHON`, by default `.deps/ministack/bin/python`).
    pub fn start() -> Result<Self, StartError> {
        let python = std::env::var_os("SEALFLOW_MINISTACK_PYTHON")
            .map_or_else(|| deps().join("ministack/bin/python"), PathBuf::from);
        let has_it = Command::new(&python)
            .args(["-c", "import ministack, cryptography"])
            .output();
        if !has_it.is_ok_and(|output| output.status.success()) {
            return Err(StartError::Missing(format!("{} has no MiniStack", python.display())));
        }
        let broken = |error: std::io::Error| StartError::Broken(error.to_string());
        let dir = tempfile::Builder::new()
            .prefix("sealflow-ministack-")
            .tempdir()
            .map_err(broken)?
            .keep();
        let port = free_port();
        let mut server = Command::new(python);
        server.args(["-m", "ministack"]);
        // By default it listens on every interface, with an MQTT broker beside it.
        server
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .env("SERVICES", "kms")
            .env("IOT_MTLS_ENABLED", "0")
            .env("TMPDIR", &dir);
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

    /// Its endpoint, for `kms.endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
