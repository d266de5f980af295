//! Enters the worker's sandbox and tries to get out of it: for tests, which read on the channel what happened.
//!
//! Its measured configuration says what it tries. It reports one JSON object per line: first how it is closed in, then each attempt.
//! Then it answers every line of the host with what a worker does: work in threads, timers, blocking tasks and cryptography.

use std::convert::Infallible;
use std::error::Error;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::ptrace;
use nix::sys::resource::Resource;
use nix::sys::uio::RemoteIoVec;
use nix::unistd::Pid;
use sealflow_enclave_protocol::joints::{Attester, Claims};
use sealflow_enclave_worker::nsm::Nsm;
use sealflow_enclave_worker::sandbox::{Platform, Settings};
use sealflow_enclave_worker::{configuration, descriptors, panics, sandbox};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// What the probe is told by its image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    /// Whether it enters the sandbox: a control does not.
    enter: bool,
    /// How.
    #[serde(default)]
    sandbox: Settings,
    /// What it tries.
    #[serde(default)]
    attempts: Vec<String>,
    /// A file that anybody can read.
    #[serde(default)]
    readable: String,
    /// A folder that anybody can write to.
    #[serde(default)]
    writable: String,
    /// Port of a TCP listener on loopback.
    #[serde(default)]
    port: u16,
    /// Path of a Unix listener.
    #[serde(default)]
    socket: String,
    /// Lines that it writes to standard error before anything else, and how long each is.
    #[serde(default)]
    noise: (usize, usize),
    /// Whether it ends in a panic, once the host has said something.
    #[serde(default)]
    panics: bool,
}

type Outcome = Result<(), Box<dyn Error>>;

#[allow(clippy::print_stderr)] // a test program
fn main() -> ExitCode {
    // As the worker does.
    panics::say_place_only();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(69)
        }
    }
}

#[allow(clippy::print_stderr)] // what is written there is what a test counts
fn run() -> Outcome {
    let descriptors = descriptors::take()?;
    let configuration: Configuration = serde_json::from_slice(&configuration::own()?)?;
    for _ in 0..configuration.noise.0 {
        eprintln!("{}", "x".repeat(configuration.noise.1));
    }
    let nsm = Nsm::find(Some(descriptors.nsm))?;
    let mut channel = descriptors.channel;
    let closed_in = match configuration.enter {
        true => {
            let closed_in = sandbox::enter(&configuration.sandbox, Platform::Software)?;
            let (locked, landlock) = (closed_in.memory_locked, closed_in.landlock);
            json!({"memory_locked": locked, "landlock": landlock, "namespaces": closed_in.namespaces})
        }
        false => json!(null),
    };
    let line = json!({"sandbox": closed_in, "tier": nsm.tier(), "pid": std::process::id()});
    report(&mut channel, &line)?;
    for name in &configuration.attempts {
        let outcome = attempt(name, &configuration);
        let detail = outcome.as_ref().err().map(ToString::to_string);
        writeln!(
            channel,
            "{}",
            json!({"attempt": name, "succeeded": outcome.is_ok(), "detail": detail})
        )?;
    }
    report(&mut channel, &json!({"done": true}))?;
    channel.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(serve(channel, nsm, configuration.panics))
}

/// A line for the host, in one piece.
fn report(channel: &mut UnixStream, line: &Value) -> Result<(), io::Error> {
    channel.write_all(format!("{line}\n").as_bytes())
}

/// What a worker does: reads and writes in a runtime with several threads, waits, computes in other threads, asks the NSM.
async fn serve(channel: UnixStream, nsm: Nsm, panics: bool) -> Outcome {
    let (reading, mut writing) = tokio::net::UnixStream::from_std(channel)?.into_split();
    let mut lines = BufReader::new(reading).lines();
    let nsm = std::sync::Arc::new(nsm);
    while let Some(line) = lines.next_line().await? {
        if panics {
            // A bug in a task, as most of the worker is tasks, and one that ends it. Both quote what they were about.
            let quoted = line.clone();
            #[allow(clippy::panic)] // what a test is about
            let task = tokio::spawn(async move { panic!("in a task, about {quoted}") });
            let ended: Result<(), _> = task.await;
            #[allow(clippy::panic)] // what a test is about
            if ended.is_err() {
                panic!("about {line}");
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let asked = nsm.clone();
        let nonce = line.clone().into_bytes();
        let document = tokio::task::spawn_blocking(move || {
            asked
                .attest(&Claims {
                    nonce: Some(&nonce),
                    ..Claims::default()
                })
                .map_err(|error| error.to_string())
        });
        let computed = tokio::task::spawn_blocking(computation);
        let time = nsm.time_ms()?;
        let document = document.await?;
        let answer = json!({
            "echo": line,
            "document": document.as_ref().ok(),
            "refused": document.as_ref().err(),
            "time": time,
            "computed": computed.await?,
        });
        writing.write_all(answer.to_string().as_bytes()).await?;
        writing.write_all(b"\n").await?;
    }
    Ok(())
}

/// An ephemeral RSA key, something sealed under it and opened, random bytes, and threads and memory on the way.
fn computation() -> bool {
    use aws_lc_rs::rsa::{
        KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
    };
    let opened = || -> Option<bool> {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).ok()?;
        let public = OaepPublicEncryptingKey::new(private.public_key()).ok()?;
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).ok()?;
        let mut sealed = vec![0; public.ciphertext_size()];
        let sealed = public
            .encrypt(&OAEP_SHA256_MGF1SHA256, &secret, &mut sealed, None)
            .ok()?;
        let private = OaepPrivateDecryptingKey::new(private).ok()?;
        let mut opened = vec![0; private.min_output_size()];
        let opened = private
            .decrypt(&OAEP_SHA256_MGF1SHA256, sealed, &mut opened, None)
            .ok()?;
        Some(opened == secret)
    };
    let large = std::thread::spawn(|| vec![1u8; 32 << 20].iter().map(|byte| usize::from(*byte)).sum::<usize>());
    opened() == Some(true) && large.join().is_ok_and(|sum| sum == 32 << 20)
}

/// One way out. `Ok` if it worked.
fn attempt(name: &str, configuration: &Configuration) -> Outcome {
    let parent = Pid::parent();
    match name {
        "open-file" => drop(fs::read(&configuration.readable)?),
        "open-own-memory" => drop(File::open("/proc/self/mem")?),
        "write-file" => fs::write(format!("{}/written", configuration.writable), "escaped")?,
        "list-folder" => drop(fs::read_dir("/")?),
        "make-folder" => fs::create_dir(format!("{}/made", configuration.writable))?,
        "open-device" => drop(OpenOptions::new().write(true).open("/dev/null")?),
        "look-at-file" => _ = fs::metadata(&configuration.readable)?,
        "tcp-connect" => drop(TcpStream::connect(("127.0.0.1", configuration.port))?),
        "tcp-listen" => drop(TcpListener::bind(("127.0.0.1", 0))?),
        "udp" => drop(UdpSocket::bind(("127.0.0.1", 0))?.send_to(b"x", ("127.0.0.1", 9))?),
        "unix-connect" => drop(UnixStream::connect(&configuration.socket)?),
        "unix-listen" => drop(UnixListener::bind(format!("{}/listener", configuration.writable))?),
        "unix-datagram" => drop(UnixDatagram::unbound()?),
        "unix-pair" => drop(UnixStream::pair()?),
        "pipe" => drop(io::pipe()?),
        "fork" => drop(Command::new("/bin/true").status()?),
        "signal-parent" => nix::sys::signal::kill(parent, None)?,
        "be-dumpable" => {
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
        }
        "raise-limits" => nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, 256, 512)?,
        "exec" => drop(nix::unistd::execve::<CString, CString>(c"/bin/true", &[], &[]).map(infallible)?),
        "ptrace" => {
            ptrace::attach(parent)?;
            nix::sys::wait::waitpid(parent, None)?;
            ptrace::detach(parent, None)?;
        }
        "read-memory-of-parent" => {
            let mut byte = [0; 1];
            let remote = [RemoteIoVec {
                base: stack_of(parent)?,
                len: 1,
            }];
            nix::sys::uio::process_vm_readv(parent, &mut [IoSliceMut::new(&mut byte)], &remote)?;
        }
        "unshare" => nix::sched::unshare(CloneFlags::CLONE_NEWUTS)?,
        "mount" => {
            // A folder of the test's own, and only for a moment: a control may be root of this machine.
            let at = format!("{}/mounted", configuration.writable);
            nix::mount::mount(Some("none"), at.as_str(), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            nix::mount::umount2(at.as_str(), MntFlags::MNT_DETACH)?;
        }
        "chroot" => nix::unistd::chroot("/")?,
        "memfd" => drop(rustix::fs::memfd_create("probe", rustix::fs::MemfdFlags::CLOEXEC)?),
        "handle-of-process" => {
            let own = rustix::process::getpid();
            drop(rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty())?);
        }
        "take-descriptor" => take_descriptor()?,
        _ => return Err("the probe knows no such attempt".into()),
    }
    Ok(())
}

fn infallible(never: Infallible) {
    match never {}
}

/// An address in the stack of another process.
fn stack_of(process: Pid) -> Result<usize, Box<dyn Error>> {
    // Where /proc cannot be read, the call below is tried all the same: what counts is how it fails.
    let mut maps = String::new();
    if let Ok(mut file) = File::open(format!("/proc/{process}/maps")) {
        file.read_to_string(&mut maps)?;
    }
    let stack = maps
        .lines()
        .find(|line| line.ends_with("[stack]"))
        .and_then(|line| line.split('-').next());
    Ok(usize::from_str_radix(stack.unwrap_or("0"), 16)?)
}

/// Asks the kernel for a descriptor that somebody could have sent along.
fn take_descriptor() -> Outcome {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    let flags = rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recvmsg(
        io::stderr().as_fd(),
        &mut [IoSliceMut::new(&mut byte)],
        &mut rights,
        flags,
    ) {
        // Standard error is no socket: the call itself was let through.
        Ok(_) | Err(rustix::io::Errno::NOTSOCK) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
