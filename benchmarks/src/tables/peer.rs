//! PyArrow writing and reading the same rows with keys for the same columns, in a process of its own that measures itself.

use std::process::Command;

use bytes::Bytes;
use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::Cost;
use sealflow_benchmarks::table::PROTECTED;

use crate::process;
use crate::tink::{Peer, peers, root};

pub(crate) struct PyArrow {
    peer: Peer,
    folder: std::path::PathBuf,
}

impl PyArrow {
    /// With the rows of `plain`; `None` where there is no PyArrow.
    pub(crate) fn start(plain: &Bytes, codec: &str, group_rows: usize) -> Result<Option<Self>, Error> {
        let python = root().join(".deps/lake/bin/python");
        if !python.is_file() {
            sealflow_testbed::skip("PyArrow: not installed (scripts/deps.sh test)");
            return Ok(None);
        }
        let folder = process::temporary()?;
        let file = folder.join("plain.parquet");
        std::fs::write(&file, plain)?;
        let mut command = Command::new(python);
        command
            .arg(peers().join("pyarrow/pyarrow_peer.py"))
            .arg(file)
            .arg(codec)
            .arg(group_rows.to_string())
            .args(PROTECTED.map(|path| path.replace("[*]", ".list.element")));
        Ok(Some(Self {
            peer: Peer::start(command)?,
            folder,
        }))
    }

    pub(crate) fn ask(&mut self, request: &str) -> Result<Cost, Error> {
        self.peer.ask(request)
    }
}

impl Drop for PyArrow {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
