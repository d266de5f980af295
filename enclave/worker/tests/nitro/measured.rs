//! An enclave image in QEMU's machine `nitro-enclave`: what its NSM reports is what the build computed, and bytes cross its vsock.
//!
//! Needs what `make test-nitro` prepares, and is skipped by name without it. The worker's place is taken by the example `guest` of
//! `sealflow-enclave-init`. QEMU's documents are not signed, so nothing here may believe one.

#![allow(clippy::unwrap_used, clippy::panic)] // a test: it fails loudly

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sealflow_enclave_host::build::{Boot, BuildRequest, BuildTier, Built, COMMAND_LINE, build};
use sealflow_enclave_host::channel::{Channel, ChannelError, Endpoint, LARGEST_WRITE, Listener};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::{sleep, timeout};

/// A machine that is not up by then never will be: it takes seconds on an idle processor, and minutes on a busy one.
const BOOT: Duration = Duration::from_secs(900);
const HEARTBEAT: u8 = 0xb7;
const CONFIGURATION: &[u8] = b"owner_keys: [of-the-test]\n";
/// The parent under vhost-device-vsock.
const PARENT_CID: u32 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn an_enclave_in_qemu_measures_what_the_build_computed_and_bytes_cross_its_vsock() {
    let (Some(prepared), Some(guest)) = (env::var_os("SEALFLOW_NITRO"), env::var_os("SEALFLOW_NITRO_GUEST")) else {
        skip("nitro-enclave: a QEMU with the machine nitro-enclave is built by `make test-nitro` alone");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let built = image(Path::new(&prepared), Path::new(&guest), folder.path());
    let mut machine = Machine::start(Path::new(&prepared), folder.path(), &built.path);
    let endpoint = |port| Endpoint::Hybrid {
        path: folder.path().join("vm"),
        port,
    };

    // The init's sign of life, as `nitro-cli` answers it.
    let started = Instant::now();
    let parent = Listener::bind(&endpoint(9_000)).await.unwrap();
    let mut init = timeout(BOOT, parent.accept())
        .await
        .unwrap_or_else(|_| panic!("no sign of life\n{}", machine.console()))
        .unwrap();
    assert_eq!(init.read_u8().await.unwrap(), HEARTBEAT);
    init.write_u8(HEARTBEAT).await.unwrap();
    println!("up after {:.1} s", started.elapsed().as_secs_f32());

    let channel = connect(&endpoint(5_005), &mut machine).await;
    let mut channel = BufReader::new(channel);
    let mut report = Vec::new();
    loop {
        let mut line = String::new();
        channel.read_line(&mut line).await.unwrap();
        match line.trim_end().split_once(' ') {
            Some((name, value)) => report.push((name.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let said = |name: &str| {
        report
            .iter()
            .find(|(said, _)| said == name)
            .map(|(_, value)| value.as_str())
            .unwrap()
    };

    let computed = serde_json::to_value(&built.measurements).unwrap();
    assert_eq!(said("PCR0"), computed["image"]);
    assert_eq!(said("PCR1"), computed["kernel"]);
    assert_eq!(said("PCR2"), computed["application"]);
    // Neither zero, nor each other's.
    assert!(said("PCR0").trim_matches('0').len() > 90 && said("PCR0") != said("PCR1") && said("PCR1") != said("PCR2"));

    // The document has the same measurement, and the nonce that the guest asked for.
    let document = hex::decode(said("document")).unwrap();
    let contains = |part: &[u8]| document.windows(part.len()).any(|window| window == part);
    assert!(contains(&hex::decode(said("PCR0")).unwrap()) && contains(b"sealflow"));
    assert_eq!(said("configuration"), hex::encode(CONFIGURATION));
    // The init and what it read are out of reach.
    assert_eq!(said("root"), "configuration.yaml dev proc run sys tmp worker");

    // A column's worth of bytes there and back, written while it is read.
    let sent: Vec<u8> = (0..64 * LARGEST_WRITE as u32 + 1_234)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let started = Instant::now();
    let (mut reader, mut writer) = tokio::io::split(channel.into_inner());
    let expected = sent.clone();
    let writing = tokio::spawn(async move { writer.write_all(&sent).await.map(|()| writer) });
    let mut received = vec![0; expected.len()];
    timeout(BOOT, reader.read_exact(&mut received))
        .await
        .expect("the echo stalls")
        .unwrap();
    writing.await.unwrap().unwrap();
    assert!(received == expected, "other bytes came back");
    println!(
        "{} bytes there and back in {:.2} s",
        expected.len(),
        started.elapsed().as_secs_f32()
    );
}

/// An image with the guest as its worker.
fn image(prepared: &Path, guest: &Path, folder: &Path) -> Built {
    let boot_folder = prepared.join("boot");
    let modules = fs::read_to_string(boot_folder.join("modules")).unwrap();
    let boot = Boot {
        kernel: boot_folder.join("bzImage"),
        // A translated processor on a busy host counts its cycles against nothing, and the kernel then waits for ever for a clock.
        // Whatever it is told here is good enough, and the same everywhere.
        command_line: format!("{COMMAND_LINE} tsc_early_khz=2000000 quiet"),
        init: guest.join("sealflow-enclave-init"),
        nsm: Some(boot_folder.join("nsm.ko")),
        modules: modules.lines().map(|name| boot_folder.join(name)).collect(),
        parent_cid: Some(PARENT_CID),
    };
    let configuration = folder.join("configuration.yaml");
    fs::write(&configuration, CONFIGURATION).unwrap();
    let request = BuildRequest {
        worker: guest.join("examples/guest"),
        configuration,
        output: folder.join("image.eif"),
        tier: BuildTier::Nitro(boot),
    };
    build(&request).unwrap()
}

/// The guest listens a moment after the init's sign of life.
async fn connect(endpoint: &Endpoint, machine: &mut Machine) -> Channel {
    let started = Instant::now();
    loop {
        assert!(machine.runs(), "the machine ended\n{}", machine.console());
        match Channel::connect(endpoint).await {
            Ok(channel) => return channel,
            Err(ChannelError::Handshake { .. } | ChannelError::Connect { .. }) if started.elapsed() < BOOT => {
                sleep(Duration::from_millis(200)).await;
            }
            Err(error) => panic!("{error}\n{}", machine.console()),
        }
    }
}

/// QEMU and its vsock, both ended when this goes.
struct Machine {
    console: PathBuf,
    processes: Vec<Child>,
}

impl Machine {
    fn start(prepared: &Path, folder: &Path, image: &Path) -> Self {
        let console = folder.join("console");
        let (device, vm) = (folder.join("device"), folder.join("vm"));
        let vsock = Command::new(prepared.join("bin/vhost-device-vsock"))
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
            console: console.clone(),
            processes: vec![vsock],
        };
        let started = Instant::now();
        while !device.exists() {
            assert!(started.elapsed() < BOOT, "vhost-device-vsock does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let qemu = Command::new(prepared.join("qemu-system-x86_64"))
            // Debian's kernel finds devices by ACPI alone.
            .args(["-M", "nitro-enclave,vsock=c,id=sealflow-test,acpi=on", "-accel", "tcg", "-m", "1G", "-no-reboot", "-nographic"])
            .arg("-L")
            .arg(prepared.join("boot/firmware"))
            .arg("-kernel")
            .arg(image)
            .arg("-chardev")
            .arg(format!("socket,id=c,path={}", device.display()))
            .stdin(Stdio::null())
            .stdout(File::create(&console).unwrap())
            .stderr(File::create(folder.join("qemu.log")).unwrap())
            .spawn()
            .unwrap();
        machine.processes.push(qemu);
        machine
    }

    /// Whether neither QEMU nor its vsock has ended.
    fn runs(&mut self) -> bool {
        self.processes
            .iter_mut()
            .all(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// What was said until now.
    fn console(&self) -> String {
        let errors = fs::read(self.console.with_file_name("qemu.log")).unwrap_or_default();
        let said = fs::read(&self.console).unwrap_or_default();
        format!(
            "{}\n{}",
            String::from_utf8_lossy(&errors),
            String::from_utf8_lossy(&said)
        )
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

/// Into the ledger of skipped tests, as the testbed does it; that crate would bring Kafka's client along.
fn skip(reason: &str) {
    let _ = std::io::stderr().write_all(format!("skipped: {reason}\n").as_bytes());
    if let Some(ledger) = env::var_os("SEALFLOW_SKIPPED") {
        let mut file = OpenOptions::new().create(true).append(true).open(ledger).unwrap();
        file.write_all(format!("{reason}\n").as_bytes()).unwrap();
    }
}
