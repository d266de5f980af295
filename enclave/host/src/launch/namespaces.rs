//! New user, network, mount, process, IPC and host-name namespaces for the starter and what it starts.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::CloneFlags;

/// Who the worker is inside: nobody in particular, so that a program that is executed there has no capabilities.
const INSIDE: u32 = 1000;

/// Enters new namespaces. Processes that are started afterwards are in the new process namespace, the first one as its init.
///
/// The caller must have one thread. On failure it is half in, and has to end.
pub(super) fn enter() -> Result<(), String> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let others = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    match nix::sched::unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => {
            map("setgroups", "deny".to_owned())?;
            map("gid_map", format!("{INSIDE} {} 1", group.as_raw()))?;
            map("uid_map", format!("{INSIDE} {} 1", user.as_raw()))?;
        }
        // Where user namespaces are switched off, root needs none to make the others.
        Err(_) if user.is_root() => {}
        Err(error) => return Err(user_namespaces(error)),
    }
    nix::sched::unshare(others).map_err(user_namespaces)
}

fn map(file: &str, line: String) -> Result<(), String> {
    fs::write(format!("/proc/self/{file}"), line).map_err(|error: io::Error| {
        format!("the new user namespace cannot be set up (/proc/self/{file}: {error}). {HOW}")
    })
}

fn user_namespaces(error: Errno) -> String {
    format!("new namespaces cannot be made ({error}). {HOW}")
}

/// What somebody can do about it.
const HOW: &str = "Allow unprivileged user namespaces: sysctl user.max_user_namespaces above 0, \
                   kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); in a \
                   container, `unshare` in its filter of system calls. Or let the worker run without them";
