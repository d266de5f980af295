//! A disk of its own that can be full: a small tmpfs over a folder, which tells of it as any disk does (`ENOSPC`).
//!
//! Chosen over a file-size limit of the process, because that kills (`SIGXFSZ`) or says `EFBIG`, which no full disk
//! does, and over permissions, which root passes. It needs the right to mount; where that is missing the test is
//! skipped by name.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::StartError;

/// Unmounts when its standard input ends, as it does with the test's process, even by SIGKILL.
const WATCHER: &str = r#"
mount -t tmpfs -o size="$2" sealflow-testbed "$1" || exit 1
echo mounted
read -r word
umount -l "$1"
"#;

/// A small disk mounted over a folder until it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    watcher: Child,
}

impl SmallDisk {
    /// Mounts a disk of `kib` KiB over the folder `at`, which should be empty.
    ///
    /// # Errors
    /// [`StartError::Missing`] without the right to mount.
    pub fn mount(at: &Path, kib: u32) -> Result<Self, StartError> {
        use std::io::Read as _;
        let broken = |error: io::Error| StartError::Broken(error.to_string());
        std::fs::create_dir_all(at).map_err(broken)?;
        let mut watcher = Command::new("sh")
            .args(["-c", WATCHER, "sh"])
            .arg(at)
            .arg(format!("{kib}k"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(broken)?;
        let mut said = [0; 8];
        let mounted = watcher.stdout.as_mut().map(|stdout| stdout.read_exact(&mut said));
        let disk = Self {
            at: at.to_owned(),
            watcher,
        };
        match mounted {
            Some(Ok(())) => Ok(disk),
            _ => Err(StartError::Missing("no right to mount a small disk".into())),
        }
    }

    /// Fills it to the last byte.
    ///
    /// # Panics
    /// If it cannot be filled.
    pub fn fill(&self) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.ballast())
            .expect("the disk takes a file");
        while file.write_all(&[0; 512]).is_ok() {}
    }

    /// Makes room again.
    pub fn free(&self) {
        // Gone already if it was never filled.
        let _ = std::fs::remove_file(self.ballast());
    }

    /// Whether another byte finds no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let probe = self.at.join("#probe");
        let full = File::create(&probe)
            .and_then(|mut file| file.write_all(&[0; 4096]))
            .is_err();
        let _ = std::fs::remove_file(probe);
        full
    }

    /// A name that catalogues do not list.
    fn ballast(&self) -> PathBuf {
        self.at.join("#ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scratch, or_skip};

    #[test]
    fn a_small_disk_fills_up_takes_again_and_is_gone() {
        let scratch = Scratch::new();
        let at = scratch.path().join("disk");
        let test = "a_small_disk_fills_up_takes_again_and_is_gone";
        let Some(disk) = or_skip(test, SmallDisk::mount(&at, 64)) else {
            return;
        };
        std::fs::write(at.join("before"), b"kept").unwrap();
        disk.fill();
        assert!(disk.is_full());
        disk.free();
        assert!(!disk.is_full());
        assert_eq!(std::fs::read(at.join("before")).unwrap(), b"kept");
        drop(disk);
        assert!(!at.join("before").exists());
    }
}
