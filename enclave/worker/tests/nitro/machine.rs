//! The machine: QEMU, its vsock, and the images that it boots.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sealflow_enclave_host::build::{Boot, BuildRequest, BuildTier, Built, COMMAND_LINE, build};
use sealflow_enclave_host::channel::{Channel, ChannelError, Endpoint, Listener};
use sealflow_testbed::skip;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

/// A machine that is not up by then never will be: it takes seconds on an idle processor, and minutes on a busy one.
pub(crate) const BOOT: Duration = Duration::from_secs(900);
const HEARTBEAT: u8 = 0xb7;
/// Where hosts connect to the worker.
pub(crate) const PORT: u32 = 5_005;
/// The parent under vhost-device-vsock.
pub(crate) const PARENT_CID: u32 = 2;

/// What `make test-nitro` has prepared.
pub(crate) struct Prepared {
    /// QEMU, vhost-device-vsock, kernel, modules and firmware.
    nitro: PathBuf,
    /// The init, and what runs in its machine; static.
    programs: PathBuf,
    /// One machine at a time.
    _turn: MutexGuard<'static, ()>,
}

impl Prepared {
    /// It, or a line in the ledger of skipped tests.
    pub(crate) fn or_skip(test: &str) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let (Some(nitro), Some(programs)) = (env::var_os("SEALFLOW_NITRO"), env::var_os("SEALFLOW_NITRO_PROGRAMS"))
        else {
            skip(&format!(
                "{test}: builds a QEMU with the machine nitro-enclave, which takes minutes: run `make test-nitro`"
            ));
            return None;
        };
        Some(Self {
            nitro: nitro.into(),
            programs: programs.into(),
            _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }

    /// An image of one of the programs, with this configuration.
    pub(crate) fn image(&self, program: &str, configuration: &[u8], folder: &Path) -> Built {
        let boot_folder = self.nitro.join("boot");
        let modules = fs::read_to_string(boot_folder.join("modules")).unwrap();
        let boot = Boot {
            kernel: boot_folder.join("bzImage"),
            // A translated processor on a busy host counts its cycles against nothing, and the kernel then waits for ever for a clock.
            // Whatever it is told here is good enough, and the same everywhere.
            command_line: format!("{COMMAND_LINE} tsc_early_khz=2000000 quiet"),
            init: self.programs.join("sealflow-enclave-init"),
            nsm: Some(boot_folder.join("nsm.ko")),
            modules: modules.lines().map(|name| boot_folder.join(name)).collect(),
            parent_cid: Some(PARENT_CID),
        };
        let file = folder.join("configuration.yaml");
        fs::write(&file, configuration).unwrap();
        let request = BuildRequest {
            worker: self.programs.join(program),
            configuration: file,
            output: folder.join("image.eif"),
            tier: BuildTier::Nitro(boot),
        };
        build(&request).unwrap()
    }
}

/// QEMU and its vsock, both ended when this goes.
pub(crate) struct Machine {
    folder: PathBuf,
    processes: Vec<Child>,
    heartbeat: Listener,
    started: Instant,
}

impl Machine {
    /// Starts it with this image; its sockets and logs are in the folder.
    pub(crate) async fn start(prepared: &Prepared, folder: &Path, image: &Path) -> Self {
        let (device, vm) = (folder.join("device"), folder.join("vm"));
        let heartbeat = Listener::bind(&at(folder, 9_000)).await.unwrap();
        let vsock = Command::new(prepared.nitro.join("bin/vhost-device-vsock"))
            .arg("--vm")
            .arg(format!(
                "guest-cid=4,socket={},uds-path={}",
                device.display(),
                vm.display()
            ))
            .stdin(Stdio::null())
            .stderr(File::create(folder.join("vsock.log")).unwrap())
            .spawn()
            .unwrap();
        let mut machine = Self {
            folder: folder.to_owned(),
            processes: vec![vsock],
            heartbeat,
            started: Instant::now(),
        };
        while !device.exists() {
            assert!(machine.started.elapsed() < BOOT, "vhost-device-vsock does not start");
            sleep(Duration::from_millis(50)).await;
        }
        let qemu = Command::new(prepared.nitro.join("qemu-system-x86_64"))
            // Debian's kernel finds devices by ACPI alone.
            .args(["-M", "nitro-enclave,vsock=c,id=sealflow-test,acpi=on", "-accel", "tcg", "-m", "1G", "-no-reboot", "-nographic"])
            .arg("-L")
            .arg(prepared.nitro.join("boot/firmware"))
            .arg("-kernel")
            .arg(image)
            .arg("-chardev")
            .arg(format!("socket,id=c,path={}", device.display()))
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("console")).unwrap())
            .stderr(File::create(folder.join("qemu.log")).unwrap())
            .spawn()
            .unwrap();
        machine.processes.push(qemu);
        machine
    }

    /// Answers the init's sign of life, as `nitro-cli` does; how long that took since the start.
    pub(crate) async fn up(&mut self) -> Duration {
        let began = Instant::now();
        let mut init = loop {
            match timeout(Duration::from_secs(1), self.heartbeat.accept()).await {
                Ok(init) => break init.unwrap(),
                Err(_) => assert!(
                    self.runs() && began.elapsed() < BOOT,
                    "no sign of life\n{}",
                    self.console()
                ),
            }
        };
        assert_eq!(init.read_u8().await.unwrap(), HEARTBEAT);
        init.write_u8(HEARTBEAT).await.unwrap();
        self.started.elapsed()
    }

    /// A port of the machine.
    pub(crate) fn endpoint(&self, port: u32) -> Endpoint {
        at(&self.folder, port)
    }

    /// A connection to whoever listens there, a moment after the init's sign of life.
    pub(crate) async fn connect(&mut self, port: u32) -> Channel {
        let (began, endpoint) = (Instant::now(), self.endpoint(port));
        loop {
            assert!(self.runs(), "the machine ended\n{}", self.console());
            match Channel::connect(&endpoint).await {
                Ok(channel) => return channel,
                Err(ChannelError::Handshake { .. } | ChannelError::Connect { .. }) if began.elapsed() < BOOT => {
                    sleep(Duration::from_millis(200)).await;
                }
                Err(error) => panic!("{error}\n{}", self.console()),
            }
        }
    }

    /// Whether neither QEMU nor its vsock has ended.
    pub(crate) fn runs(&mut self) -> bool {
        self.processes
            .iter_mut()
            .all(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// What was said until now.
    pub(crate) fn console(&self) -> String {
        let said = |file: &str| {
            let bytes = fs::read(self.folder.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        format!("{}\n{}", said("qemu.log"), said("console"))
    }
}

/// A port of the machine in this folder; to listen, one of its parent's.
pub(crate) fn at(folder: &Path, port: u32) -> Endpoint {
    Endpoint::Hybrid {
        path: folder.join("vm"),
        port,
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
