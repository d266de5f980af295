//! The filters, asked about every system call by an interpreter of their programs (cBPF, as `seccomp(2)` describes it).

use seccompiler::sock_filter;

use super::*;

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64`.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") {
    0xC000_003E
} else {
    0xC000_00B7
};
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const DENIED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const OWN_PROCESS: u32 = 4711;

/// What one program answers.
fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&number.to_ne_bytes());
    data[4..8].copy_from_slice(&architecture.to_ne_bytes());
    for (index, argument) in arguments.iter().enumerate() {
        data[16 + 8 * index..][..8].copy_from_slice(&argument.to_ne_bytes());
    }
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let step = &program[at];
        let k = step.k as usize;
        let jump = |taken: bool| 1 + usize::from(if taken { step.jt } else { step.jf });
        at += match step.code {
            0x20 => {
                accumulator = u32::from_ne_bytes(data[k..k + 4].try_into().unwrap());
                1
            }
            0x54 => {
                accumulator &= step.k;
                1
            }
            0x05 => 1 + k,
            0x15 => jump(accumulator == step.k),
            0x25 => jump(accumulator > step.k),
            0x35 => jump(accumulator >= step.k),
            0x06 => return step.k,
            code => panic!("no such instruction here: {code:#x}"),
        };
    }
}

/// What the kernel makes of all three: the strictest counts, and among equals the one that was installed last.
fn verdict_of(filters: &[BpfProgram], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut verdict = ALLOW;
    for filter in filters.iter().rev() {
        let answer = run(filter, architecture, number, arguments);
        // As signed numbers, stricter actions are smaller (SECCOMP_RET_KILL_PROCESS is negative).
        let strictness = |answer: u32| (answer & libc::SECCOMP_RET_ACTION_FULL).cast_signed();
        if strictness(answer) < strictness(verdict) {
            verdict = answer;
        }
    }
    verdict
}

fn verdict(platform: Platform, number: c_long, arguments: [u64; 6]) -> u32 {
    let filters = filters(platform, OWN_PROCESS).unwrap();
    verdict_of(&filters, ARCHITECTURE, number.try_into().unwrap(), arguments)
}

fn software(number: c_long, arguments: [u64; 6]) -> u32 {
    verdict(Platform::Software, number, arguments)
}

#[test]
fn what_leads_out_ends_the_worker() {
    for number in DEADLY {
        for platform in [Platform::Software, Platform::Nitro] {
            assert_eq!(verdict(platform, *number, [0; 6]), KILL, "{number}");
            assert_eq!(verdict(platform, *number, [u64::MAX; 6]), KILL, "{number}");
        }
    }
}

#[test]
fn of_all_system_calls_only_the_listed_ones_are_allowed() {
    let filters = filters(Platform::Software, OWN_PROCESS).unwrap();
    let mut conditional = vec![
        libc::SYS_clone,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_prctl,
    ];
    conditional.extend([libc::SYS_tgkill, libc::SYS_prlimit64, libc::SYS_fcntl, libc::SYS_ioctl]);
    for number in 0..2048u32 {
        let call = c_long::from(number);
        for arguments in [[0; 6], [1; 6], [u64::MAX; 6], [0x10000, 0, 0, 0, 0, 0]] {
            let verdict = verdict_of(&filters, ARCHITECTURE, number, arguments);
            let expected = if DEADLY.contains(&call) {
                KILL
            } else if call == libc::SYS_clone3 {
                UNKNOWN
            } else if FREE.contains(&call) {
                ALLOW
            } else if conditional.contains(&call) {
                assert!([ALLOW, DENIED].contains(&verdict), "{number}");
                continue;
            } else {
                DENIED
            };
            assert_eq!(verdict, expected, "{number}");
        }
    }
}

#[test]
fn files_sockets_and_processes_are_not_among_them() {
    let mut denied = vec![
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
    ];
    denied.extend([
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
    ]);
    denied.extend([
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_seccomp,
        libc::SYS_wait4,
        libc::SYS_statx,
        libc::SYS_unlinkat,
    ]);
    denied.extend([
        libc::SYS_dup3,
        libc::SYS_pipe2,
        libc::SYS_shmget,
        libc::SYS_mq_open,
        libc::SYS_inotify_init1,
    ]);
    denied.extend([
        libc::SYS_pkey_mprotect,
        libc::SYS_remap_file_pages,
        libc::SYS_munlockall,
        libc::SYS_rt_sigqueueinfo,
    ]);
    #[cfg(target_arch = "x86_64")]
    denied.extend([
        libc::SYS_open,
        libc::SYS_creat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_iopl,
        libc::SYS_modify_ldt,
    ]);
    for number in denied {
        assert_eq!(software(number, [0; 6]), DENIED, "{number}");
    }
}

#[test]
fn threads_can_be_made_and_processes_cannot() {
    // What the C library passes for a thread, for posix_spawn, for fork.
    let flags = |flags| [flags, 0, 0, 0, 0, 0];
    assert_eq!(software(libc::SYS_clone, flags(0x003d_0f00)), ALLOW);
    assert_eq!(software(libc::SYS_clone, flags(0x4100 | 17)), DENIED);
    assert_eq!(software(libc::SYS_clone, flags(0x0120_0000 | 17)), DENIED);
    assert_eq!(software(libc::SYS_clone, flags(0)), DENIED);
    // A thread in namespaces of its own is none of ours.
    for namespace in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
    ] {
        let namespace = u64::from(namespace.cast_unsigned());
        assert_eq!(software(libc::SYS_clone, flags(0x003d_0f00 | namespace)), DENIED);
    }
    assert_eq!(software(libc::SYS_clone3, [u64::MAX; 6]), UNKNOWN);
}

#[test]
fn memory_is_never_executable() {
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        assert_eq!(
            software(number, [0, 4096, 3, 0x22, u64::MAX, 0]),
            ALLOW,
            "read and write"
        );
        assert_eq!(
            software(number, [0, 4096, 5, 0x22, u64::MAX, 0]),
            DENIED,
            "read and execute"
        );
        assert_eq!(software(number, [0, 4096, 4, 0x22, u64::MAX, 0]), DENIED, "execute");
    }
}

#[test]
fn arguments_decide_where_they_matter() {
    // (call, arguments that pass, arguments that do not)
    let own = u64::from(OWN_PROCESS);
    let cases: &[(c_long, [u64; 6], [u64; 6])] = &[
        (
            libc::SYS_sendto,
            [3, 1, 1, 0x4000, 0, 0],
            [3, 1, 1, 0x4000, 0x7fff_0000_0000, 16],
        ),
        (libc::SYS_recvfrom, [3, 1, 1, 0, 0, 0], [3, 1, 1, 0, 0x1_0000_0000, 0]),
        (libc::SYS_prctl, [15, 1, 0, 0, 0, 0], [4, 1, 0, 0, 0, 0]),
        (libc::SYS_tgkill, [own, 1, 6, 0, 0, 0], [own + 1, 1, 6, 0, 0, 0]),
        (libc::SYS_prlimit64, [0, 3, 0, 1, 0, 0], [0, 3, 1, 0, 0, 0]),
        (libc::SYS_prlimit64, [0, 3, 0, 1, 0, 0], [1, 3, 0, 1, 0, 0]),
        (libc::SYS_fcntl, [3, 1030, 0, 0, 0, 0], [3, 1024, 0, 0, 0, 0]),
        (libc::SYS_ioctl, [3, FIONBIO, 1, 0, 0, 0], [3, 0x5412, 1, 0, 0, 0]),
    ];
    for (number, passes, fails) in cases {
        assert_eq!(software(*number, *passes), ALLOW, "{number}");
        assert_eq!(software(*number, *fails), DENIED, "{number}");
    }
}

#[test]
fn the_device_and_new_connections_are_for_nitro_alone() {
    let device = [5, NSM_REQUEST, 1, 0, 0, 0];
    assert_eq!(verdict(Platform::Nitro, libc::SYS_ioctl, device), ALLOW);
    assert_eq!(verdict(Platform::Nitro, libc::SYS_accept4, [0; 6]), ALLOW);
    assert_eq!(software(libc::SYS_ioctl, device), DENIED);
    assert_eq!(software(libc::SYS_accept4, [0; 6]), DENIED);
    assert_eq!(verdict(Platform::Nitro, libc::SYS_socket, [0; 6]), DENIED);
}

#[test]
fn calls_of_another_architecture_end_the_worker() {
    let filters = filters(Platform::Software, OWN_PROCESS).unwrap();
    // i386, whose number 11 is execve.
    assert_eq!(verdict_of(&filters, 0x4000_0003, 11, [0; 6]), KILL);
    // x32: the same architecture, with a bit in the number.
    assert_eq!(verdict_of(&filters, ARCHITECTURE, 0x4000_0000, [0; 6]), DENIED);
}
