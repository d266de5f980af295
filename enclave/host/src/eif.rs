//! Enclave images (EIF) of AWS Nitro, and the measurements that the Nitro hypervisor will take of them. Writes only.
//!
//! An image is a header of 548 bytes and sections, each behind a header of 12; numbers are big-endian. The format is that of the
//! crate `aws-nitro-enclaves-image-format`, version 4 (without a signature section). The measurements are those of the Nitro
//! Enclaves user guide: `PCR = SHA-384(48 zeros ‖ SHA-384(what is measured))`.
//!
//! The same input is the same bytes: no clock, no path and no version of a tool goes in.

use std::fmt;
use std::io::{self, Write};

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha384};

const MAGIC: &[u8; 4] = b".eif";
const VERSION: u16 = 4;
const HEADER_SIZE: u64 = 548;
const SECTION_HEADER_SIZE: u64 = 12;
/// The header has this many places for sections.
const PLACES: usize = 32;
/// What loaders use if they are not told otherwise.
const DEFAULT_MEMORY: u64 = 1 << 30;
const DEFAULT_CPUS: u64 = 2;

/// What an image is made of. All of it but the name is measured.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// For whom it is.
    pub architecture: Architecture,
    /// The kernel: a bzImage on x86-64, an Image on aarch64.
    pub kernel: &'a [u8],
    /// What the kernel is told.
    pub command_line: &'a str,
    /// The ramdisk that boots: it is measured with the kernel.
    pub boot: &'a [u8],
    /// The ramdisk with the application.
    pub application: &'a [u8],
    /// Its name in the metadata, which tools show and nobody measures.
    pub name: &'a str,
}

/// The processor of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// x86-64
    X86_64,
    /// 64-bit Arm (Graviton)
    Aarch64,
}

/// The measurements of an image that was not signed. Text and JSON have 96 hexadecimal digits each, under the names that policies
/// use.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// PCR0: kernel, command line and both ramdisks.
    #[serde(serialize_with = "hexadecimal")]
    pub image: [u8; 48],
    /// PCR1: kernel, command line and the ramdisk that boots.
    /// Nothing in the software tier, which has one measurement.
    #[serde(serialize_with = "perhaps_hexadecimal", skip_serializing_if = "Option::is_none")]
    pub kernel: Option<[u8; 48]>,
    /// PCR2: the ramdisk with the application. Nothing in the software tier.
    #[serde(serialize_with = "perhaps_hexadecimal", skip_serializing_if = "Option::is_none")]
    pub application: Option<[u8; 48]>,
}

impl Image<'_> {
    /// What the hypervisor will measure.
    #[must_use]
    pub fn measure(&self) -> Measured {
        let command_line = self.command_line.as_bytes();
        Measured {
            image: pcr(&[self.kernel, command_line, self.boot, self.application]),
            kernel: Some(pcr(&[self.kernel, command_line, self.boot])),
            application: Some(pcr(&[self.application])),
        }
    }

    /// Writes the image.
    ///
    /// # Errors
    /// Those of `out`; `InvalidInput` for a command line with a zero byte.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        if self.command_line.contains('\0') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a command line has no zero bytes",
            ));
        }
        let metadata = self.metadata();
        let sections = [
            (SectionKind::Kernel, self.kernel),
            (SectionKind::CommandLine, self.command_line.as_bytes()),
            (SectionKind::Metadata, metadata.as_bytes()),
            (SectionKind::Ramdisk, self.boot),
            (SectionKind::Ramdisk, self.application),
        ];
        let mut checksum = Crc32::new();
        let header = self.header(&sections);
        checksum.update(&header);
        for (kind, content) in &sections {
            checksum.update(&section_header(*kind, content));
            checksum.update(content);
        }
        out.write_all(&header)?;
        out.write_all(&checksum.value().to_be_bytes())?;
        for (kind, content) in &sections {
            out.write_all(&section_header(*kind, content))?;
            out.write_all(content)?;
        }
        Ok(())
    }

    /// All of the header but the checksum, its last field.
    fn header(&self, sections: &[(SectionKind, &[u8])]) -> Vec<u8> {
        let flags: u16 = match self.architecture {
            Architecture::X86_64 => 0,
            Architecture::Aarch64 => 1,
        };
        let mut header = Vec::with_capacity(HEADER_SIZE as usize);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_be_bytes());
        header.extend_from_slice(&flags.to_be_bytes());
        header.extend_from_slice(&DEFAULT_MEMORY.to_be_bytes());
        header.extend_from_slice(&DEFAULT_CPUS.to_be_bytes());
        header.extend_from_slice(&[0; 2]);
        header.extend_from_slice(&(sections.len() as u16).to_be_bytes());
        let mut offset = HEADER_SIZE;
        let mut offsets = [0; PLACES];
        let mut sizes = [0; PLACES];
        for (place, (_, content)) in sections.iter().enumerate() {
            offsets[place] = offset;
            sizes[place] = content.len() as u64;
            offset += SECTION_HEADER_SIZE + content.len() as u64;
        }
        for number in offsets.iter().chain(&sizes) {
            header.extend_from_slice(&u64::to_be_bytes(*number));
        }
        header.extend_from_slice(&[0; 4]);
        header
    }

    /// What `nitro-cli describe-eif` wants to find. The times and versions that it would hold are constants.
    fn metadata(&self) -> String {
        serde_json::json!({
            "ImageName": self.name,
            "ImageVersion": "1",
            "BuildMetadata": {
                "BuildTime": "1970-01-01T00:00:00+00:00",
                "BuildTool": "sealflow",
                "BuildToolVersion": "1",
                "OperatingSystem": "Linux",
                "KernelVersion": "unknown",
            },
            "DockerInfo": {},
            "CustomMetadata": {},
        })
        .to_string()
    }
}

#[derive(Clone, Copy, Debug)]
enum SectionKind {
    Kernel = 1,
    CommandLine = 2,
    Ramdisk = 3,
    Metadata = 5,
}

fn section_header(kind: SectionKind, content: &[u8]) -> [u8; SECTION_HEADER_SIZE as usize] {
    let mut header = [0; SECTION_HEADER_SIZE as usize];
    header[..2].copy_from_slice(&(kind as u16).to_be_bytes());
    header[4..].copy_from_slice(&(content.len() as u64).to_be_bytes());
    header
}

/// A register of the NSM that was extended once from zero.
pub(crate) fn pcr(parts: &[&[u8]]) -> [u8; 48] {
    let mut inner = Sha384::new();
    for part in parts {
        inner.update(part);
    }
    let mut outer = Sha384::new();
    outer.update([0; 48]);
    outer.update(inner.finalize());
    outer.finalize().into()
}

/// CRC-32 of ISO HDLC (ITU-T V.42), as in zlib.
struct Crc32(u32);

impl Crc32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut entry = index as u32;
            let mut bit = 0;
            while bit < 8 {
                entry = if entry & 1 == 1 {
                    (entry >> 1) ^ 0xedb8_8320
                } else {
                    entry >> 1
                };
                bit += 1;
            }
            table[index] = entry;
            index += 1;
        }
        table
    };

    fn new() -> Self {
        Self(u32::MAX)
    }

    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 >> 8) ^ Self::TABLE[usize::from(self.0.to_le_bytes()[0] ^ byte)];
        }
    }

    fn value(&self) -> u32 {
        !self.0
    }
}

impl Measured {
    /// Register, name and value of those that are there.
    fn registers(&self) -> impl Iterator<Item = (u8, &'static str, &[u8; 48])> {
        let named = [
            (0, "image", Some(&self.image)),
            (1, "kernel", self.kernel.as_ref()),
            (2, "application", self.application.as_ref()),
        ];
        named
            .into_iter()
            .filter_map(|(register, name, value)| Some((register, name, value?)))
    }
}

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (_, name, value) in self.registers() {
            map.entry(&name, &Hexadecimal(value));
        }
        map.finish()
    }
}

impl fmt::Display for Measured {
    /// A line for each: `PCR0 image HEX`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (register, name, value) in self.registers() {
            writeln!(f, "PCR{register} {name} {}", Hexadecimal(value))?;
        }
        Ok(())
    }
}

struct Hexadecimal<'a>(&'a [u8]);

impl fmt::Display for Hexadecimal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Hexadecimal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn hexadecimal<S: Serializer>(bytes: &[u8; 48], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Hexadecimal(bytes))
}

fn perhaps_hexadecimal<S: Serializer>(bytes: &Option<[u8; 48]>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => hexadecimal(bytes, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image() -> Image<'static> {
        Image {
            architecture: Architecture::X86_64,
            kernel: b"kernel",
            command_line: "reboot=k panic=-1",
            boot: b"boot ramdisk",
            application: b"application ramdisk",
            name: "test",
        }
    }

    fn bytes(image: &Image<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_image_has_these_measurements() {
        // Computed in Python, as is the digest below: hashlib, zlib, struct.
        let measured = image().measure();
        assert_eq!(
            serde_json::to_value(&measured).unwrap(),
            serde_json::json!({
                "image": "e75adfe59ae622fd1384f16676cce122f33439d42da55dd8b9eb60e782f8380fd4ad23124ea670aad9afe3637a89a907",
                "kernel": "36c1fc5648c08cc7439fb31a8b8ccbb5f6c12240d5d8d785c0a6b86f775599f38fda2411afb994ecfcb2dd31bf8b90e1",
                "application": "15ceb42332f9052bf5f8501d40a138e9439a594abb5f342a74da495ce850c4bbfc3e97487c29122e4193cea8e6a2816c",
            })
        );
    }

    #[test]
    fn an_image_is_these_bytes() {
        let written = bytes(&image());
        assert_eq!(
            hex::encode(Sha384::digest(&written)),
            "5db48f6497782a048e47a96bcda3999c0ea91e77734ca17caab7c069f084cb473d5fcdd6be2390b6dd0cfdf17a0337f1"
        );
    }

    #[test]
    fn the_checksum_is_that_of_zlib() {
        let mut checksum = Crc32::new();
        checksum.update(b"123456789");
        assert_eq!(checksum.value(), 0xcbf4_3926);
    }

    /// A reader of images that shares no code with the writer: sections by kind, found by the header's offsets; panics if a size,
    /// offset or checksum is wrong.
    fn read(image: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let u16_at = |at: usize| u16::from_be_bytes(image[at..at + 2].try_into().unwrap());
        let u64_at = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(&image[..4], b".eif");
        assert_eq!((u16_at(4), u16_at(6)), (4, 0));
        let mut sections = Vec::new();
        let mut end = 548;
        for place in 0..usize::from(u16_at(26)) {
            let (offset, size) = (u64_at(28 + 8 * place), u64_at(28 + 256 + 8 * place));
            assert_eq!(offset, end, "sections follow each other");
            assert_eq!(u64_at(offset + 4), size, "both sizes agree");
            end = offset + 12 + size;
            sections.push((u16_at(offset), image[offset + 12..end].to_vec()));
        }
        assert_eq!(end, image.len());
        // Bit by bit, without a table.
        let mut checksum = u32::MAX;
        for byte in image[..544].iter().chain(&image[548..]) {
            checksum ^= u32::from(*byte);
            for _ in 0..8 {
                checksum = (checksum >> 1) ^ if checksum & 1 == 1 { 0xedb8_8320 } else { 0 };
            }
        }
        assert_eq!(image[544..548], (!checksum).to_be_bytes());
        sections
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_measured_again_from_the_file(
            kernel in proptest::collection::vec(any::<u8>(), 0..2_000),
            command_line in "[ -~]{0,99}",
            boot in proptest::collection::vec(any::<u8>(), 0..900),
            application in proptest::collection::vec(any::<u8>(), 0..900),
        ) {
            let image = Image { kernel: &kernel, command_line: &command_line, boot: &boot, application: &application, ..image() };
            let written = bytes(&image);
            prop_assert_eq!(&written, &bytes(&image), "reproducible");
            let sections = read(&written);
            prop_assert_eq!(sections.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [1, 2, 5, 3, 3]);
            prop_assert_eq!(&sections[0].1, &kernel);
            prop_assert_eq!(&sections[1].1, command_line.as_bytes());
            // As the hypervisor and QEMU do it: from the file, in the order of its sections.
            let again = |parts: &[usize]| {
                let joined: Vec<u8> = parts.iter().flat_map(|part| sections[*part].1.clone()).collect();
                let digest = Sha384::digest(&joined);
                <[u8; 48]>::from(Sha384::digest([&[0; 48], digest.as_slice()].concat()))
            };
            let expected = Measured { image: again(&[0, 1, 3, 4]), kernel: Some(again(&[0, 1, 3])), application: Some(again(&[4])) };
            prop_assert_eq!(image.measure(), expected);
        }
    }

    #[test]
    fn each_part_moves_its_measurements_and_the_name_moves_none() {
        let original = image().measure();
        let kernel = Image {
            kernel: b"Kernel",
            ..image()
        }
        .measure();
        assert!(
            kernel.image != original.image
                && kernel.kernel != original.kernel
                && kernel.application == original.application
        );
        let command_line = Image {
            command_line: "debug",
            ..image()
        }
        .measure();
        assert!(command_line.image != original.image && command_line.kernel != original.kernel);
        let boot = Image { boot: b"", ..image() }.measure();
        assert!(
            boot.image != original.image && boot.kernel != original.kernel && boot.application == original.application
        );
        let application = Image {
            application: b"",
            ..image()
        }
        .measure();
        assert!(
            application.image != original.image
                && application.kernel == original.kernel
                && application.application != original.application
        );
        assert_eq!(
            Image {
                name: "other",
                ..image()
            }
            .measure(),
            original
        );
    }

    #[test]
    fn the_architecture_is_a_flag() {
        assert_eq!(
            bytes(&Image {
                architecture: Architecture::Aarch64,
                ..image()
            })[6..8],
            [0, 1]
        );
    }

    #[test]
    fn a_command_line_with_a_zero_is_refused() {
        let error = Image {
            command_line: "a\0b",
            ..image()
        }
        .write(&mut Vec::new())
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
