//! A worker's image in memory, sealed, and what it measures.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags};
use sealflow_enclave_protocol::image::config_of;
use sealflow_enclave_protocol::measurements::{Measurement, MeasurementError};
use sha2::{Digest, Sha384};

use super::{LaunchError, system};

/// Largest image, in bytes. A static worker has some ten MiB.
const MOST: u64 = 512 << 20;

/// An image that nobody can change any more, the launcher included.
pub(super) struct Image {
    pub(super) file: File,
    pub(super) measurement: Measurement,
}

impl Image {
    /// Copies an image into memory, seals it, and measures what is there. The file on the disk is read once.
    pub(super) fn read(path: &Path) -> Result<Self, LaunchError> {
        let unreadable = |source| LaunchError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let source = File::open(path).map_err(unreadable)?;
        let mut file = executable_memory().map_err(system("making a memory file"))?;
        let copied = io::copy(&mut source.take(MOST + 1), &mut file).map_err(unreadable)?;
        if copied > MOST {
            return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
        }
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(|error| system("sealing the image")(error.into()))?;

        // From here on it does not change; what is hashed is what is executed.
        let mut bytes = Vec::new();
        let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
        read.map_err(system("reading the sealed image"))?;
        config_of(&bytes).map_err(|source| LaunchError::Image {
            path: path.to_owned(),
            source,
        })?;
        let measured = measurement(&bytes).map_err(|error| system("measuring the image")(io::Error::other(error)))?;
        Ok(Self {
            file,
            measurement: measured,
        })
    }
}

/// PCR0 of a worker of the software tier: SHA-384 of 48 zero bytes and the SHA-384 of its image, as Nitro extends its registers.
///
/// # Errors
/// [`MeasurementError::Zero`], which no SHA-384 has ever been.
pub fn measurement(image: &[u8]) -> Result<Measurement, MeasurementError> {
    let mut register = Sha384::new();
    register.update([0; 48]);
    register.update(Sha384::digest(image));
    Measurement::new(&register.finalize())
}

fn executable_memory() -> Result<File, io::Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and let every memory file be executed.
    let memory = rustix::fs::memfd_create("sealflow-enclave-worker", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("sealflow-enclave-worker", flags))?;
    Ok(File::from(memory))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use sealflow_enclave_protocol::image::append;

    use super::*;

    fn image(bytes: &[u8]) -> Result<Image, LaunchError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        Image::read(&path)
    }

    #[test]
    fn a_sealed_image_cannot_be_changed_by_anybody() {
        let mut image = image(&append(b"\x7fELF program", b"a: 1").unwrap()).unwrap();
        assert!(image.file.seek(SeekFrom::Start(0)).is_ok());
        assert!(image.file.write(b"x").is_err(), "written to");
        assert!(image.file.seek(SeekFrom::End(0)).is_ok());
        assert!(image.file.write(b"x").is_err(), "appended to");
        assert!(image.file.set_len(3).is_err(), "shortened");
        // Whoever opens it anew through /proc finds the same seals.
        use std::os::fd::AsRawFd;
        let again = format!("/proc/self/fd/{}", image.file.as_raw_fd());
        let again = std::fs::OpenOptions::new().write(true).open(again);
        assert!(
            again.and_then(|mut file| file.write(b"x")).is_err(),
            "written to by another name"
        );
        let seals = rustix::fs::fcntl_get_seals(&image.file).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL));
    }

    #[test]
    fn every_byte_of_program_and_configuration_counts() {
        let bytes = append(b"\x7fELF program", b"a: 1").unwrap();
        let before = image(&bytes).unwrap().measurement;
        assert_eq!(before, measurement(&bytes).unwrap());
        // Behind the first four and before the trailer, whose change makes it no image.
        for at in 4..bytes.len() - 12 {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_ne!(image(&changed).unwrap().measurement, before, "byte {at}");
        }
    }

    #[test]
    fn a_measurement_is_what_other_tools_compute() {
        // printf '\x7fELF' > i; (head -c 48 /dev/zero; sha384sum i | xxd -r -p) | sha384sum
        let expected =
            "a7ec47ca33052e4dd7b14dfb60de2f8fda10b0c7c8dc7b9f8fb0a7a7a31992341dc08d8ee4c68377f885dcf06d10182e";
        assert_eq!(measurement(b"\x7fELF").unwrap().to_string(), expected);
    }

    #[test]
    fn what_is_no_image_is_not_launched() {
        assert!(matches!(image(b"\x7fELF without"), Err(LaunchError::Image { .. })));
        assert!(matches!(image(b"#!/bin/sh"), Err(LaunchError::Image { .. })));
        let missing = Image::read(Path::new("/nonexistent/image"));
        assert!(matches!(missing, Err(LaunchError::Unreadable { .. })));
    }
}
