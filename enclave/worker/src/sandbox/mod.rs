//! What the worker does to itself before it reads a byte of input: afterwards it has two sockets, memory, threads and the time.
//!
//! The order matters. What protects memory comes first, what needs rights comes before they are given up, and the filter of
//! system calls is last, since it forbids the rest of this list. The host's launcher puts the worker into namespaces of its own
//! too ([`crate`] does not rely on that: the launcher is not measured, this is).

mod landlock;
mod seccomp;

use std::fs;
use std::io;

use nix::sched::CloneFlags;
use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::Deserialize;

pub use seccomp::Platform;

/// Least memory that may be locked, in bytes, where the worker locks its own: below it, a later allocation would fail.
pub const LEAST_LOCKED: u64 = 512 << 20;

/// Most open descriptors: two sockets, the runtime's, and some.
const MOST_DESCRIPTORS: u64 = 64;

/// Which parts of the sandbox may be missing. It stands in the measured configuration, so that evidence tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// No page of the worker reaches a swap device.
    pub memory_lock: Need,
    /// No path can be opened, even if the filter of system calls had a hole.
    pub landlock: Need,
    /// User, network, mount and IPC namespaces of the worker's own.
    pub namespaces: Need,
}

/// Whether the worker runs without a part of its sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// It does not.
    #[default]
    Required,
    /// It does, and its status says so.
    IfAvailable,
}

/// What holds after [`enter`]. Core dumps, debuggers, new privileges, capabilities and system calls are always shut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Whether memory is locked.
    pub memory_locked: bool,
    /// The version of landlock's interface that holds, if any does.
    pub landlock: Option<i32>,
    /// Whether the worker made namespaces of its own.
    pub namespaces: bool,
}

/// Why the worker does not run: it cannot be closed in as it has to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// Threads exist already, and would stay outside.
    #[error("the worker has {count} threads before it is closed in, and must have one")]
    Threads {
        /// How many.
        count: usize,
    },
    /// A step failed that no kernel should refuse.
    #[error("the worker cannot be closed in: {step} failed: {source}")]
    Step {
        /// Which.
        step: &'static str,
        /// How.
        source: io::Error,
    },
    /// Memory cannot be locked.
    #[error(
        "the worker may lock {allowed} bytes of memory and needs {LEAST_LOCKED}: raise RLIMIT_MEMLOCK (systemd: \
         LimitMEMLOCK=infinity; containers: --ulimit memlock=-1), or say `memory_lock: if-available` in its configuration"
    )]
    MemoryLock {
        /// The limit, in bytes.
        allowed: u64,
    },
    /// There is no landlock.
    #[error(
        "the worker cannot be closed in by landlock: {reason}. Use a kernel that has it (5.13 or later, `lsm=landlock,…`), or \
         say `landlock: if-available` in its configuration"
    )]
    Landlock {
        /// What is missing.
        reason: String,
    },
    /// Namespaces cannot be made.
    #[error(
        "the worker cannot make namespaces of its own: {source}. Allow unprivileged user namespaces \
         (user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0, `unshare` in a container's filter), \
         or say `namespaces: if-available` in its configuration"
    )]
    Namespaces {
        /// How.
        source: io::Error,
    },
    /// The filter of system calls cannot be installed.
    #[error("the worker's system calls cannot be filtered: {reason}")]
    Seccomp {
        /// What happened.
        reason: String,
    },
}

/// Closes the calling process in, for ever. It must have one thread, and has read whatever it needs of files.
///
/// # Errors
/// [`SandboxError`]: the process is then half closed in, and has to end.
pub fn enter(settings: &Settings, platform: Platform) -> Result<Sandbox, SandboxError> {
    only_thread()?;
    // The starter is this process's parent in the software tier: without it, nobody would tell the host about an end.
    step(
        "dying with the launcher",
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)),
    )?;
    limit("no core dumps", Resource::Core, 0)?;
    // Also: no debugger, no /proc/PID/mem, and the owner of /proc/PID is root.
    step(
        "not being dumpable",
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable),
    )?;
    limit("no files", Resource::Fsize, 0)?;
    limit("few descriptors", Resource::Nofile, MOST_DESCRIPTORS)?;
    step("no new privileges", rustix::thread::set_no_new_privs(true))?;
    let memory_locked = lock_memory(settings.memory_lock)?;
    let namespaces = own_namespaces(settings.namespaces)?;
    let landlock = landlock::restrict(settings.landlock)?;
    step("giving up capabilities", rustix::thread::clear_ambient_capability_set())?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    step("giving up capabilities", rustix::thread::set_capabilities(None, none))?;
    seccomp::install(platform)?;
    Ok(Sandbox {
        memory_locked,
        landlock,
        namespaces,
    })
}

fn only_thread() -> Result<(), SandboxError> {
    let tasks = fs::read_dir("/proc/self/task").map_err(|source| SandboxError::Step {
        step: "counting threads",
        source,
    })?;
    match tasks.count() {
        1 => Ok(()),
        count => Err(SandboxError::Threads { count }),
    }
}

fn step<T>(step: &'static str, result: Result<T, rustix::io::Errno>) -> Result<T, SandboxError> {
    result.map_err(|error| SandboxError::Step {
        step,
        source: error.into(),
    })
}

fn limit(what: &'static str, resource: Resource, most: u64) -> Result<(), SandboxError> {
    step(
        what,
        rustix::process::setrlimit(
            resource,
            Rlimit {
                current: Some(most),
                maximum: Some(most),
            },
        ),
    )
}

/// Locks pages as they come into being: locking what is only reserved would cost memory that nobody uses.
fn lock_memory(need: Need) -> Result<bool, SandboxError> {
    // Root may raise its limit. Who may not has what the launcher could get, and is told below if that is too little.
    let everything = Rlimit {
        current: None,
        maximum: None,
    };
    let _ = rustix::process::setrlimit(Resource::Memlock, everything);
    let allowed = rustix::process::getrlimit(Resource::Memlock)
        .current
        .unwrap_or(u64::MAX);
    if allowed < LEAST_LOCKED {
        return match need {
            Need::Required => Err(SandboxError::MemoryLock { allowed }),
            Need::IfAvailable => Ok(false),
        };
    }
    let pages = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    step("locking memory", rustix::mm::mlockall(pages)).map(|()| true)
}

/// A network of its own has no interface that is up; so whatever the launcher did, there is nobody to talk to.
fn own_namespaces(need: Need) -> Result<bool, SandboxError> {
    let without_user = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    let made = nix::sched::unshare(CloneFlags::CLONE_NEWUSER | without_user)
        // Root where user namespaces are switched off needs none.
        .or_else(|_| nix::sched::unshare(without_user));
    match (made, need) {
        (Ok(()), _) => Ok(true),
        (Err(_), Need::IfAvailable) => Ok(false),
        (Err(error), Need::Required) => Err(SandboxError::Namespaces { source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_required() {
        let settings: Settings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.memory_lock, Need::Required);
        let settings: Settings = serde_json::from_str(r#"{"landlock": "if-available"}"#).unwrap();
        assert_eq!(
            (settings.landlock, settings.namespaces),
            (Need::IfAvailable, Need::Required)
        );
        assert!(serde_json::from_str::<Settings>(r#"{"seccomp": "if-available"}"#).is_err());
        assert!(serde_json::from_str::<Settings>(r#"{"landlock": "never"}"#).is_err());
    }

    #[test]
    fn a_process_with_several_threads_is_not_closed_in_by_halves() {
        // The test harness runs this in a thread of its own, so there are at least two.
        let error = enter(&Settings::default(), Platform::Software).unwrap_err();
        assert!(matches!(error, SandboxError::Threads { count: 2.. }), "{error}");
    }
}
