//! `sealflow enclave build`: makes a worker's image of its program and its measured configuration, and says what will be measured of
//! it. Reads files and writes one; starts nothing.
//!
//! Two tiers. Software: the program with the configuration behind it, one file that the launcher measures. Nitro: an enclave image
//! ([`crate::eif`]) whose boot ramdisk has an init and kernel modules, and whose application ramdisk has, in the layout that the init
//! of AWS's own build tool reads:
//!
//! ```text
//! cmd                          /worker, --configuration, /configuration.yaml: an item a line
//! env                          empty
//! rootfs/worker                the program
//! rootfs/configuration.yaml    the configuration
//! rootfs/{dev,proc,run,sys,tmp}  empty folders for an init that mounts there
//! ```
//!
//! The same input is the same image, byte for byte.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sealflow_enclave_protocol::image::{self, ImageError};

use crate::cpio::{Ramdisk, RamdiskError};
use crate::eif::{Architecture, Image, Measured, pcr};

/// The longest configuration, in bytes: as in the software tier.
const LONGEST_CONFIGURATION: u64 = image::MAX_CONFIGURATION as u64;
/// Nothing that goes into an image is larger.
const LARGEST_FILE: u64 = 1 << 30;
/// What the kernel is told if nobody says otherwise: end the machine when it panics, start without waiting for entropy.
pub const COMMAND_LINE: &str = "reboot=k panic=-1 console=ttyS0 random.trust_cpu=on";

/// What to make of what.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// The worker: a static ELF program.
    pub worker: PathBuf,
    /// Its configuration: YAML, at most 256 KiB, measured with it. Its content is the worker's to understand.
    pub configuration: PathBuf,
    /// The image. Replaces what is there, when it is complete.
    pub output: PathBuf,
    /// For which tier.
    pub tier: BuildTier,
}

/// Where an image will run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BuildTier {
    /// As a process, under the launcher and the software NSM.
    Software,
    /// As a Nitro enclave.
    Nitro(Boot),
}

/// What boots an enclave, before the worker.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The kernel: a bzImage, or an Image for aarch64.
    pub kernel: PathBuf,
    /// What it is told.
    pub command_line: String,
    /// The first program: a static ELF program, this project's or AWS's.
    pub init: PathBuf,
    /// The driver of the NSM, if it is no part of the kernel.
    pub nsm: Option<PathBuf>,
    /// More modules, in the order in which the kernel shall take them. AWS's init loads none.
    pub modules: Vec<PathBuf>,
    /// The context id of the parent, if it is not AWS's. AWS's init does not look at it.
    pub parent_cid: Option<u32>,
}

impl Boot {
    /// What the package `aws-nitro-enclaves-cli-devel` installs (`/usr/share/nitro_enclaves/blobs`): `bzImage` or `Image`, `cmdline`,
    /// `init`, and `nsm.ko` if it is there.
    ///
    /// # Errors
    /// [`BuildError`]
    pub fn from_blobs(folder: &Path) -> Result<Self, BuildError> {
        let kernel = ["bzImage", "Image"]
            .map(|name| folder.join(name))
            .into_iter()
            .find(|path| path.exists());
        let kernel = kernel.ok_or_else(|| BuildError::NoKernel {
            folder: folder.to_owned(),
        })?;
        let cmdline = folder.join("cmdline");
        let text = String::from_utf8(read(&cmdline, LARGEST_FILE)?);
        let text = text.map_err(|_| BuildError::CommandLine { path: cmdline })?;
        let nsm = folder.join("nsm.ko");
        Ok(Self {
            kernel,
            command_line: text.trim().to_owned(),
            init: folder.join("init"),
            nsm: if nsm.exists() { Some(nsm) } else { None },
            modules: Vec::new(),
            parent_cid: None,
        })
    }
}

/// An image that was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Built {
    /// Where it is.
    pub path: PathBuf,
    /// What will be measured of it.
    pub measurements: Measured,
}

/// Makes an image.
///
/// # Errors
/// [`BuildError`]; then nothing was written.
pub fn build(request: &BuildRequest) -> Result<Built, BuildError> {
    let worker = read(&request.worker, LARGEST_FILE)?;
    let architecture = static_program(&request.worker, &worker)?;
    let configuration = read(&request.configuration, LONGEST_CONFIGURATION)?;
    let (bytes, measurements) = match &request.tier {
        BuildTier::Software => software(&request.worker, &worker, &configuration)?,
        BuildTier::Nitro(boot) => nitro(boot, architecture, worker, configuration)?,
    };
    write(&request.output, &bytes).map_err(|source| BuildError::Write {
        path: request.output.clone(),
        source,
    })?;
    Ok(Built {
        path: request.output.clone(),
        measurements,
    })
}

fn software(path: &Path, worker: &[u8], configuration: &[u8]) -> Result<(Vec<u8>, Measured), BuildError> {
    let bytes = image::append(worker, configuration).map_err(|source| BuildError::Image {
        path: path.to_owned(),
        source,
    })?;
    let measurements = Measured {
        image: pcr(&[&bytes]),
        kernel: None,
        application: None,
    };
    Ok((bytes, measurements))
}

fn nitro(
    boot: &Boot,
    architecture: Architecture,
    worker: Vec<u8>,
    configuration: Vec<u8>,
) -> Result<(Vec<u8>, Measured), BuildError> {
    if boot.command_line.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        return Err(BuildError::CommandLine {
            path: boot.kernel.clone(),
        });
    }
    let kernel = read(&boot.kernel, LARGEST_FILE)?;
    kernel_of(architecture, &boot.kernel, &kernel)?;
    let boot_ramdisk = boot_ramdisk(boot, architecture)?;
    let application = application_ramdisk(worker, configuration)?;
    let image = Image {
        architecture,
        kernel: &kernel,
        command_line: &boot.command_line,
        boot: &boot_ramdisk,
        application: &application,
        name: "sealflow-enclave-worker",
    };
    let mut bytes = Vec::with_capacity(kernel.len() + boot_ramdisk.len() + application.len() + 4_096);
    // A vector takes everything, and the command line has no zeros.
    image.write(&mut bytes).map_err(|source| BuildError::Write {
        path: boot.kernel.clone(),
        source,
    })?;
    Ok((bytes, image.measure()))
}

fn boot_ramdisk(boot: &Boot, architecture: Architecture) -> Result<Vec<u8>, BuildError> {
    let mut ramdisk = Ramdisk::new();
    // What the kernel and Rust's start want open before anybody mounts anything.
    ramdisk.character_device("dev/console", 5, 1)?;
    ramdisk.character_device("dev/null", 1, 3)?;
    let init = read(&boot.init, LARGEST_FILE)?;
    if static_program(&boot.init, &init)? != architecture {
        return Err(BuildError::OtherArchitecture {
            path: boot.init.clone(),
        });
    }
    ramdisk.file("init", init, true)?;
    if let Some(path) = &boot.nsm {
        ramdisk.file("nsm.ko", module(path)?, false)?;
    }
    for (number, path) in boot.modules.iter().enumerate() {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| BuildError::NoModule { path: path.clone() })?;
        ramdisk.file(&format!("modules/{number:03}-{name}"), module(path)?, false)?;
    }
    if let Some(cid) = boot.parent_cid {
        ramdisk.file("parent-cid", format!("{cid}\n").into_bytes(), false)?;
    }
    Ok(ramdisk.to_bytes())
}

fn application_ramdisk(worker: Vec<u8>, configuration: Vec<u8>) -> Result<Vec<u8>, BuildError> {
    let mut ramdisk = Ramdisk::new();
    ramdisk.file(
        "cmd",
        b"/worker\n--configuration\n/configuration.yaml\n".to_vec(),
        false,
    )?;
    ramdisk.file("env", Vec::new(), false)?;
    for folder in ["dev", "proc", "run", "sys", "tmp"] {
        ramdisk.folder(&format!("rootfs/{folder}"))?;
    }
    ramdisk.file("rootfs/worker", worker, true)?;
    ramdisk.file("rootfs/configuration.yaml", configuration, false)?;
    Ok(ramdisk.to_bytes())
}

/// A file, if it is no larger than that.
fn read(path: &Path, most: u64) -> Result<Vec<u8>, BuildError> {
    let failed = |source| BuildError::Read {
        path: path.to_owned(),
        source,
    };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > most {
        return Err(BuildError::TooLarge {
            path: path.to_owned(),
            most,
        });
    }
    fs::read(path).map_err(failed)
}

/// Writes beside the place, then moves there: a reader sees the old file or the new one.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// The processor of a 64-bit ELF program that needs no loader (System V ABI: the header, and no segment of type `PT_INTERP`).
fn static_program(path: &Path, program: &[u8]) -> Result<Architecture, BuildError> {
    let no_program = || BuildError::NoProgram { path: path.to_owned() };
    let (kind, architecture) = elf(program).ok_or_else(no_program)?;
    if kind != ELF_PROGRAM && kind != ELF_SHARED {
        return Err(no_program());
    }
    let segments = u64_at(program, 32)
        .and_then(|at| usize::try_from(at).ok())
        .ok_or_else(no_program)?;
    let size = usize::from(u16_at(program, 54).ok_or_else(no_program)?);
    let count = usize::from(u16_at(program, 56).ok_or_else(no_program)?);
    for index in 0..count {
        let at = index.checked_mul(size).and_then(|offset| offset.checked_add(segments));
        let segment = at.and_then(|at| u32_at(program, at)).ok_or_else(no_program)?;
        if segment == ELF_INTERPRETER {
            return Err(BuildError::NotStatic { path: path.to_owned() });
        }
    }
    Ok(architecture)
}

/// A kernel module that any kernel takes as it is: uncompressed.
fn module(path: &Path) -> Result<Vec<u8>, BuildError> {
    let module = read(path, LARGEST_FILE)?;
    match elf(&module) {
        Some((ELF_RELOCATABLE, _)) => Ok(module),
        _ => Err(BuildError::NoModule { path: path.to_owned() }),
    }
}

/// Linux's boot protocol of each processor has a magic number in the image's first page.
fn kernel_of(architecture: Architecture, path: &Path, kernel: &[u8]) -> Result<(), BuildError> {
    let (at, magic): (usize, &[u8]) = match architecture {
        Architecture::X86_64 => (0x202, b"HdrS"),
        Architecture::Aarch64 => (0x38, b"ARM\x64"),
    };
    match kernel.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
        true => Ok(()),
        false => Err(BuildError::NotAKernel { path: path.to_owned() }),
    }
}

const ELF_RELOCATABLE: u16 = 1;
const ELF_PROGRAM: u16 = 2;
const ELF_SHARED: u16 = 3;
const ELF_INTERPRETER: u32 = 3;

/// Type and processor of a 64-bit little-endian ELF file.
fn elf(file: &[u8]) -> Option<(u16, Architecture)> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let architecture = match u16_at(file, 18)? {
        62 => Architecture::X86_64,
        183 => Architecture::Aarch64,
        _ => return None,
    };
    Some((u16_at(file, 16)?, architecture))
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    file.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    file.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    file.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The image cannot be written.
    #[error("{path} cannot be written: {source}", path = path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A file is larger than it can sensibly be.
    #[error("{path} is larger than {most} bytes", path = path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The most.
        most: u64,
    },
    /// Worker or init are no programs of Linux on x86-64 or aarch64.
    #[error("{path} is no program for 64-bit Linux on x86-64 or aarch64", path = path.display())]
    NoProgram {
        /// Which.
        path: PathBuf,
    },
    /// Worker or init need a loader and libraries, which an enclave does not have.
    #[error("{path} is not linked statically", path = path.display())]
    NotStatic {
        /// Which.
        path: PathBuf,
    },
    /// The init is for another processor than the worker.
    #[error("{path} is for another processor than the worker", path = path.display())]
    OtherArchitecture {
        /// Which.
        path: PathBuf,
    },
    /// No kernel, or one for another processor.
    #[error("{path} is no Linux kernel for the worker's processor", path = path.display())]
    NotAKernel {
        /// Which.
        path: PathBuf,
    },
    /// A folder of blobs has no kernel.
    #[error("there is neither bzImage nor Image in {folder}", folder = folder.display())]
    NoKernel {
        /// Which.
        folder: PathBuf,
    },
    /// A module is none, or compressed.
    #[error("{path} is no kernel module, or a compressed one", path = path.display())]
    NoModule {
        /// Which.
        path: PathBuf,
    },
    /// The kernel's command line is not printable ASCII.
    #[error("the command line for the kernel is not printable ASCII on one line ({path})", path = path.display())]
    CommandLine {
        /// Where it comes from, or the kernel that it is for.
        path: PathBuf,
    },
    /// A ramdisk cannot hold this.
    #[error(transparent)]
    Ramdisk(#[from] RamdiskError),
    /// The program and its configuration do not make an image of the software tier.
    #[error("{path}: {source}", path = path.display())]
    Image {
        /// The program.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
}

impl BuildError {
    /// What to do, for a second line under the message.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NoProgram { .. } | Self::NotStatic { .. } => {
                Some("scripts/build_enclave_worker.sh builds static programs")
            }
            Self::NoKernel { .. } => Some(
                "the package aws-nitro-enclaves-cli-devel of Amazon Linux has them in /usr/share/nitro_enclaves/blobs",
            ),
            Self::NoModule { .. } => Some("unpack modules first: xz --decompress NAME.ko.xz"),
            Self::TooLarge { .. } => Some("was the right file named?"),
            _ => None,
        }
    }

    /// Whether a file that was named is missing, unreadable or cannot be written, rather than wrong.
    #[must_use]
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. })
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
