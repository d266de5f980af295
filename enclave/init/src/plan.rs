//! What the ramdisk says that there is to do.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The parent's context id on AWS.
const PARENT_CID: u32 = 3;

/// What there is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Kernel modules, in their order.
    pub(crate) modules: Vec<PathBuf>,
    /// The context id of the parent.
    pub(crate) parent_cid: u32,
    /// The worker and its arguments: at least one item.
    pub(crate) command: Vec<String>,
    /// Its environment.
    pub(crate) environment: Vec<(String, String)>,
}

/// What is wrong with the ramdisk.
#[derive(Debug)]
pub(crate) enum PlanError {
    Unreadable(PathBuf, io::Error),
    NoCommand,
    NoVariable(usize),
    NoContextId,
}

impl Plan {
    /// Reads it from the folder that is the root of the ramdisk.
    pub(crate) fn read(root: &Path) -> Result<Self, PlanError> {
        let mut modules = Vec::new();
        let folder = root.join("modules");
        match fs::read_dir(&folder) {
            Ok(entries) => {
                for entry in entries {
                    modules.push(
                        entry
                            .map_err(|error| PlanError::Unreadable(folder.clone(), error))?
                            .path(),
                    );
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(PlanError::Unreadable(folder, error)),
        }
        modules.sort();
        let nsm = root.join("nsm.ko");
        if nsm.exists() {
            modules.push(nsm);
        }
        let parent_cid = match text(root, "parent-cid")? {
            Some(text) => text.trim().parse().map_err(|_| PlanError::NoContextId)?,
            None => PARENT_CID,
        };
        let command = items(text(root, "cmd")?);
        if command.is_empty() {
            return Err(PlanError::NoCommand);
        }
        let mut environment = Vec::new();
        for (number, item) in (1..).zip(items(text(root, "env")?)) {
            let (name, value) = item.split_once('=').ok_or(PlanError::NoVariable(number))?;
            environment.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self {
            modules,
            parent_cid,
            command,
            environment,
        })
    }
}

/// A file, or that there is none.
fn text(root: &Path, name: &str) -> Result<Option<String>, PlanError> {
    let path = root.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PlanError::Unreadable(path, error)),
    }
}

fn items(text: Option<String>) -> Vec<String> {
    text.unwrap_or_default().lines().map(str::to_owned).collect()
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, error) => write!(f, "{} cannot be read: {error}", path.display()),
            Self::NoCommand => write!(f, "/cmd names no program"),
            Self::NoVariable(line) => write!(f, "line {line} of /env is not NAME=VALUE"),
            Self::NoContextId => write!(f, "/parent-cid is no context id"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramdisk(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn modules_come_by_name_and_the_nsm_last() {
        let root = ramdisk(&[
            ("modules/01-vsock.ko", ""),
            ("nsm.ko", ""),
            ("modules/00-virtio_mmio.ko", ""),
            ("parent-cid", "2\n"),
            ("cmd", "/worker\n--configuration\n/configuration.yaml\n"),
            ("env", "A=b=c\n"),
        ]);
        let expected = Plan {
            modules: ["modules/00-virtio_mmio.ko", "modules/01-vsock.ko", "nsm.ko"]
                .map(|name| root.path().join(name))
                .to_vec(),
            parent_cid: 2,
            command: ["/worker", "--configuration", "/configuration.yaml"]
                .map(str::to_owned)
                .to_vec(),
            environment: vec![("A".to_owned(), "b=c".to_owned())],
        };
        assert_eq!(Plan::read(root.path()).unwrap(), expected);
    }

    #[test]
    fn without_other_word_the_parent_is_where_aws_has_it() {
        let root = ramdisk(&[("cmd", "/worker\n")]);
        let plan = Plan::read(root.path()).unwrap();
        assert_eq!((plan.parent_cid, plan.modules.len(), plan.environment.len()), (3, 0, 0));
    }

    #[test]
    fn a_ramdisk_that_does_not_say_what_to_run_is_refused() {
        assert!(matches!(Plan::read(ramdisk(&[]).path()), Err(PlanError::NoCommand)));
        assert!(matches!(
            Plan::read(ramdisk(&[("cmd", "/w"), ("env", "A=b\nC")]).path()),
            Err(PlanError::NoVariable(2))
        ));
        assert!(matches!(
            Plan::read(ramdisk(&[("cmd", "/w"), ("parent-cid", "host")]).path()),
            Err(PlanError::NoContextId)
        ));
    }
}
