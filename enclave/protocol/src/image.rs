//! A worker's image in the software tier: the program, and behind it the configuration that is measured with it.
//!
//! `ELF ‖ configuration ‖ u32 little-endian length of the configuration ‖ "SFENCLV1"`. The loader of the operating system looks
//! at the beginning of a file, this at its end, so that one file is both: what is executed, and what is measured. On Nitro the
//! configuration is a file of the ramdisk instead, and the platform measures that.

/// The last eight bytes of an image that has a configuration.
pub const MAGIC: &[u8; 8] = b"SFENCLV1";

/// The longest configuration, in bytes.
pub const MAX_CONFIGURATION: usize = 256 * 1024;

/// Length of what stands behind the configuration: its length, and [`MAGIC`].
pub const TRAILER: usize = 12;

/// Every program starts like this (System V ABI, ELF identification).
const ELF: &[u8; 4] = b"\x7fELF";

/// Why a file is not a worker's image, or cannot become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It does not start as a program does.
    #[error("the worker is not an ELF program")]
    NotAProgram,
    /// There is a configuration behind the program already; the older one would be measured and never read.
    #[error("the worker has a configuration already: take the program as it was built")]
    Configured,
    /// Nothing stands behind the program.
    #[error("the worker's image has no configuration: make it by `sealflow enclave build`")]
    NoConfiguration,
    /// It is longer than it may be.
    #[error("the worker's configuration has {length} bytes, and {MAX_CONFIGURATION} are the most")]
    ConfigurationTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Its length leads out of the file.
    #[error("the worker's image is damaged: its configuration would be longer than the file")]
    Damaged,
}

/// The image of a program with this configuration.
///
/// # Errors
/// [`ImageError`] for what is not a program, has a configuration already, or a configuration that is too long.
pub fn append(program: &[u8], configuration: &[u8]) -> Result<Vec<u8>, ImageError> {
    if !program.starts_with(ELF) {
        return Err(ImageError::NotAProgram);
    }
    if program.ends_with(MAGIC) {
        return Err(ImageError::Configured);
    }
    let length = configuration.len();
    if length > MAX_CONFIGURATION {
        return Err(ImageError::ConfigurationTooLong { length });
    }
    let too_long = |_| ImageError::ConfigurationTooLong { length };
    let prefix = u32::try_from(length).map_err(too_long)?.to_le_bytes();
    let mut image = Vec::with_capacity(program.len() + length + TRAILER);
    image.extend_from_slice(program);
    image.extend_from_slice(configuration);
    image.extend_from_slice(&prefix);
    image.extend_from_slice(MAGIC);
    Ok(image)
}

/// The configuration of an image.
///
/// # Errors
/// [`ImageError`] for a file that [`append`] did not make.
pub fn config_of(image: &[u8]) -> Result<&[u8], ImageError> {
    if !image.starts_with(ELF) {
        return Err(ImageError::NotAProgram);
    }
    let (rest, trailer) = image.split_last_chunk::<TRAILER>().ok_or(ImageError::NoConfiguration)?;
    let length = configuration_length(trailer)?;
    let start = rest.len().checked_sub(length).ok_or(ImageError::Damaged)?;
    if start < ELF.len() {
        return Err(ImageError::Damaged);
    }
    Ok(&rest[start..])
}

/// How many bytes before these last ones of a file are its configuration: for who reads a file from its end.
///
/// # Errors
/// [`ImageError`] for a file without a configuration, and for a length that none can have.
pub fn configuration_length(trailer: &[u8; TRAILER]) -> Result<usize, ImageError> {
    let [a, b, c, d, magic @ ..] = trailer;
    if magic != MAGIC {
        return Err(ImageError::NoConfiguration);
    }
    let length = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).map_err(|_| ImageError::Damaged)?;
    if length > MAX_CONFIGURATION {
        return Err(ImageError::ConfigurationTooLong { length });
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_behind_a_program_is_found_again() {
        for configuration in [&b""[..], b"owner_keys: []\n", &[0xff; 4096]] {
            let image = append(b"\x7fELF program", configuration).unwrap();
            assert_eq!(config_of(&image).unwrap(), configuration);
            assert!(image.starts_with(b"\x7fELF program"));
            let trailer = image.last_chunk().unwrap();
            assert_eq!(configuration_length(trailer).unwrap(), configuration.len());
        }
    }

    #[test]
    fn the_layout_is_the_one_that_is_written_down() {
        let image = append(b"\x7fELF", b"a: 1").unwrap();
        assert_eq!(image, b"\x7fELFa: 1\x04\x00\x00\x00SFENCLV1");
    }

    #[test]
    fn what_append_did_not_make_has_no_configuration() {
        assert_eq!(config_of(b""), Err(ImageError::NotAProgram));
        assert_eq!(config_of(b"#!/bin/sh"), Err(ImageError::NotAProgram));
        assert_eq!(config_of(b"\x7fELF"), Err(ImageError::NoConfiguration));
        assert_eq!(config_of(b"\x7fELF and much more"), Err(ImageError::NoConfiguration));
        // Lengths that lead before the file, into the first bytes of the program, or beyond every configuration.
        assert_eq!(config_of(b"\x7fELF\x05\x00\x00\x00SFENCLV1"), Err(ImageError::Damaged));
        assert_eq!(
            config_of(b"\x7fELFab\x03\x00\x00\x00SFENCLV1"),
            Err(ImageError::Damaged)
        );
        let length = 0xffff_ffff;
        assert_eq!(
            config_of(b"\x7fELF\xff\xff\xff\xffSFENCLV1"),
            Err(ImageError::ConfigurationTooLong { length })
        );
    }

    #[test]
    fn what_cannot_be_an_image_is_not_made_into_one() {
        let image = append(b"\x7fELF", b"a: 1").unwrap();
        assert_eq!(append(&image, b"a: 2"), Err(ImageError::Configured));
        assert_eq!(append(b"#!/bin/sh", b"a: 1"), Err(ImageError::NotAProgram));
        let length = MAX_CONFIGURATION + 1;
        assert_eq!(
            append(b"\x7fELF", &vec![b' '; length]),
            Err(ImageError::ConfigurationTooLong { length })
        );
    }
}
