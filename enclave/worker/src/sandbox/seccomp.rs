//! Which system calls the worker can make once it is closed in: what an asynchronous runtime on two open sockets needs.
//!
//! Three filters; the strictest answer of them counts. Of what leads out or into other processes, the worker never does anything,
//! so the first attempt ends it (`SECCOMP_RET_KILL_PROCESS`). Everything else that is not allowed fails with `EPERM`, which
//! libraries take well when they only ask (is there a second entropy source? how large may the heap be?). `clone3` fails with
//! `ENOSYS`: its flags cannot be looked at, and the C library falls back to `clone`, whose can.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::SandboxError;

/// Where the worker runs, which decides on what it keeps talking to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Behind a launcher: two sockets.
    Software,
    /// In a Nitro enclave: connections of a vsock listener, and requests to `/dev/nsm`.
    Nitro,
}

/// `ioctl` of `/dev/nsm`: read and write, type 0x0A, number 0, 32 bytes.
const NSM_REQUEST: u64 = 0xC020_0A00;

/// `ioctl` that makes a socket blocking or not.
const FIONBIO: u64 = 0x5421;

/// The whole value of an argument.
const WHOLE: SeccompCmpArgLen = SeccompCmpArgLen::Qword;
/// The low half of an argument, for parameters that are an `int`: the kernel looks at no more.
const INT: SeccompCmpArgLen = SeccompCmpArgLen::Dword;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Installs the filters, for all threads, for ever.
pub(super) fn install(platform: Platform) -> Result<(), SandboxError> {
    let failed = |error: seccompiler::Error| SandboxError::Seccomp {
        reason: error.to_string(),
    };
    for filter in filters(platform, std::process::id()).map_err(failed)? {
        seccompiler::apply_filter_all_threads(&filter).map_err(failed)?;
    }
    Ok(())
}

/// In the order in which they are installed: the last one forbids to install another.
fn filters(platform: Platform, process: u32) -> Result<[BpfProgram; 3], seccompiler::Error> {
    let unconditional = |numbers: &[c_long]| numbers.iter().map(|number| (*number, Vec::new())).collect::<Rules>();
    let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let unknown = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    Ok([
        program(unconditional(DEADLY), SeccompAction::Allow, SeccompAction::KillProcess)?,
        program(unconditional(&[libc::SYS_clone3]), SeccompAction::Allow, unknown)?,
        program(allowed(platform, process)?, denied, SeccompAction::Allow)?,
    ])
}

fn program(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, seccompiler::Error> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, architecture)?;
    Ok(BpfProgram::try_from(filter)?)
}

/// What no honest step of the worker calls: programs, other processes' memory, new namespaces and mounts, kernel interfaces with
/// a history of holes.
const DEADLY: &[c_long] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// What is allowed whatever its arguments are.
const FREE: &[c_long] = &[
    // The sockets that are open, and waiting for them. `recvmsg` and `sendmsg` are not here: they move descriptors.
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_getsockopt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mremap,
    libc::SYS_munlock,
    libc::SYS_munmap,
    // How much there was of it.
    libc::SYS_getrusage,
    // Threads.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    // Who one is: some libraries take it for granted that these cannot fail.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // `clone3` is here so that the filter which says that it does not exist is the one that counts.
    libc::SYS_clone3,
    // Time and chance.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
];

fn allowed(platform: Platform, process: u32) -> Result<Rules, seccompiler::Error> {
    let mut rules: Rules = FREE.iter().map(|number| (*number, Vec::new())).collect();

    // Threads, and neither processes nor namespaces with them.
    let thread = libc::CLONE_THREAD.cast_unsigned().into();
    let look_at = thread | NAMESPACES;
    rules.insert(
        libc::SYS_clone,
        vec![rule(&[(0, WHOLE, SeccompCmpOp::MaskedEq(look_at), thread)])?],
    );

    // Nothing that can be written becomes a program.
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC.cast_unsigned().into());
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(number, vec![rule(&[(2, WHOLE, executable.clone(), 0)])?]);
    }

    // Bytes on a connected socket, to and from nobody else: the address is null.
    for number in [libc::SYS_recvfrom, libc::SYS_sendto] {
        rules.insert(number, vec![rule(&[(4, WHOLE, SeccompCmpOp::Eq, 0)])?]);
    }

    // A name for a thread; `abort` of this process; reading one's own limits.
    let name = libc::PR_SET_NAME.cast_unsigned().into();
    rules.insert(libc::SYS_prctl, vec![rule(&[(0, INT, SeccompCmpOp::Eq, name)])?]);
    rules.insert(
        libc::SYS_tgkill,
        vec![rule(&[(0, INT, SeccompCmpOp::Eq, process.into())])?],
    );
    let own_limits = rule(&[(0, INT, SeccompCmpOp::Eq, 0), (2, WHOLE, SeccompCmpOp::Eq, 0)])?;
    rules.insert(libc::SYS_prlimit64, vec![own_limits]);

    // Flags of descriptors, and second ones for the same socket.
    let commands = [
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_DUPFD_CLOEXEC,
    ];
    let mut fcntl = Vec::with_capacity(commands.len());
    for command in commands {
        fcntl.push(rule(&[(1, INT, SeccompCmpOp::Eq, command.cast_unsigned().into())])?);
    }
    rules.insert(libc::SYS_fcntl, fcntl);

    let mut ioctl = vec![rule(&[(1, INT, SeccompCmpOp::Eq, FIONBIO)])?];
    if platform == Platform::Nitro {
        ioctl.push(rule(&[(1, INT, SeccompCmpOp::Eq, NSM_REQUEST)])?);
        rules.insert(libc::SYS_accept4, Vec::new());
    }
    rules.insert(libc::SYS_ioctl, ioctl);
    Ok(rules)
}

/// Flags of `clone` that make namespaces. The lowest byte is a signal, so `CLONE_NEWTIME` (0x80) cannot be one there.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

fn rule(conditions: &[(u8, SeccompCmpArgLen, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::Error> {
    let mut all = Vec::with_capacity(conditions.len());
    for (argument, length, operator, value) in conditions {
        all.push(SeccompCondition::new(
            *argument,
            length.clone(),
            operator.clone(),
            *value,
        )?);
    }
    Ok(SeccompRule::new(all)?)
}

#[cfg(test)]
mod tests;
