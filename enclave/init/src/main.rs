//! The first program in a Nitro enclave: loads the kernel modules of its ramdisk, tells the parent that the enclave is up, starts
//! the worker in a folder of its own, and ends the enclave when the worker ends. Opens no other file and no other connection.
//!
//! It reads what the init of AWS's own build tool reads too, so that an image can have either:
//!
//! - `/modules/*.ko`, in the order of their names, then `/nsm.ko`: kernel modules, as far as they are there
//! - `/parent-cid`: the context id of the parent; 3, as on AWS, without the file
//! - `/cmd` and `/env`: the worker's command and environment, an item a line
//! - `/rootfs`: the folder that becomes the worker's root
//!
//! All of it is measured. Errors go to the console, which only an enclave in debug mode has, and end the enclave.

mod plan;

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use nix::unistd::{chdir, chroot};

use crate::plan::{Plan, PlanError};

/// Where the parent listens for the sign of life, and the byte that goes there and back: `nitro-cli` waits for it.
const HEARTBEAT_PORT: u32 = 9_000;
const HEARTBEAT: u8 = 0xb7;

/// Why the enclave does not come up.
#[derive(Debug)]
enum BootError {
    Plan(PlanError),
    Mount(&'static str, Errno),
    Module(String, io::Error),
    Parent(u32, io::Error),
    WrongHeartbeat,
    Root(Errno),
    Worker(io::Error),
}

fn main() {
    let console = Console::open();
    match boot(&console) {
        Ok(code) => console.say(&format!("the worker ended: {code}")),
        Err(error) => console.say(&error.to_string()),
    }
    let Err(errno) = end();
    console.say(&format!("the enclave cannot be ended: {errno}"));
}

/// Everything, up to the worker's end.
fn boot(console: &Console) -> Result<String, BootError> {
    let plan = Plan::read(Path::new("/")).map_err(BootError::Plan)?;
    for module in &plan.modules {
        load(module).map_err(|error| BootError::Module(module.display().to_string(), error))?;
    }
    greet(plan.parent_cid)?;
    console.say("up");
    mount_devices("/rootfs/dev")?;
    mount_processes("/rootfs/proc")?;
    chdir("/rootfs").and_then(|()| chroot(".")).map_err(BootError::Root)?;
    let mut worker = Command::new(&plan.command[0]);
    worker
        .args(&plan.command[1..])
        .env_clear()
        .envs(plan.environment)
        .stdin(Stdio::null());
    // The console, and nothing where there is none.
    worker.stdout(console.stdio()).stderr(console.stdio());
    let status = worker.status().map_err(BootError::Worker)?;
    Ok(status.to_string())
}

fn load(module: &Path) -> io::Result<()> {
    let file = File::open(module)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // Built into this kernel, or loaded as what another needs.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// One byte to the parent and back.
fn greet(parent_cid: u32) -> Result<(), BootError> {
    let error = |error: io::Error| BootError::Parent(parent_cid, error);
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| error(errno.into()))?;
    connect(socket.as_raw_fd(), &VsockAddr::new(parent_cid, HEARTBEAT_PORT)).map_err(|errno| error(errno.into()))?;
    let mut connection = File::from(socket);
    let mut answer = [0];
    connection
        .write_all(&[HEARTBEAT])
        .and_then(|()| connection.read_exact(&mut answer))
        .map_err(error)?;
    if answer == [HEARTBEAT] {
        Ok(())
    } else {
        Err(BootError::WrongHeartbeat)
    }
}

fn mount_devices(at: &'static str) -> Result<(), BootError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    match mount(Some("dev"), at, Some("devtmpfs"), flags, None::<&str>) {
        // The kernel has done it.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(BootError::Mount(at, errno)),
    }
}

/// The worker counts its own threads before it closes itself in, and can open nothing afterwards.
fn mount_processes(at: &'static str) -> Result<(), BootError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount(Some("proc"), at, Some("proc"), flags, None::<&str>).map_err(|errno| BootError::Mount(at, errno))
}

/// Ends the virtual machine, which is the whole enclave.
fn end() -> nix::Result<Infallible> {
    // What was said last is still on its way through the serial line.
    thread::sleep(Duration::from_millis(100));
    reboot(RebootMode::RB_AUTOBOOT)
}

/// Where errors go, if there is a console.
struct Console(Option<File>);

impl Console {
    fn open() -> Self {
        // Without devices there is nothing to say it to.
        let _ = mount_devices("/dev");
        Self(fs::OpenOptions::new().write(true).open("/dev/console").ok())
    }

    fn say(&self, line: &str) {
        if let Some(mut console) = self.0.as_ref() {
            // Nobody is there to be told that nobody can be told.
            let _ = console.write_all(format!("sealflow-enclave-init: {line}\n").as_bytes());
        }
    }

    fn stdio(&self) -> Stdio {
        match self.0.as_ref().map(File::try_clone) {
            Some(Ok(console)) => console.into(),
            _ => Stdio::null(),
        }
    }
}

impl std::fmt::Display for BootError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plan(error) => error.fmt(f),
            Self::Mount(at, errno) => write!(f, "nothing can be mounted at {at}: {errno}"),
            Self::Module(module, error) => write!(f, "the kernel does not take the module {module}: {error}"),
            Self::Parent(cid, error) => write!(f, "nobody answers at context id {cid}, port {HEARTBEAT_PORT}: {error}"),
            Self::WrongHeartbeat => write!(f, "the parent answered with another byte"),
            Self::Root(errno) => write!(f, "/rootfs cannot become the root: {errno}"),
            Self::Worker(error) => write!(f, "the worker does not start: {error}"),
        }
    }
}
