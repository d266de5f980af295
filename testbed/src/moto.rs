//! moto's server: an independent KMS for symmetric data keys.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

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

    /// Its endpoint, for `kms.endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
