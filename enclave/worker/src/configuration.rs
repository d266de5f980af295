//! Where a worker finds its own measured configuration: behind its program, or in an enclave beside it. What stands in it is for others
//! to say.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sealflow_enclave_protocol::image::{ImageError, TRAILER, configuration_length};

/// The program that runs, however it was started.
const OWN_IMAGE: &str = "/proc/self/exe";

/// Why a worker has no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// Its own image cannot be read.
    #[error("the worker cannot read its own image ({OWN_IMAGE}): {0}")]
    Unreadable(#[from] io::Error),
    /// The file beside it cannot be read.
    #[error("the worker cannot read its configuration ({path}): {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// There is none in it.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// The configuration in a file beside this program. It counts only where the file system was measured with the program, as that of a
/// Nitro image is. Only before [`crate::sandbox::enter`].
///
/// # Errors
/// [`ConfigurationError::File`]
pub fn beside(path: &Path) -> Result<Vec<u8>, ConfigurationError> {
    std::fs::read(path).map_err(|source| ConfigurationError::File {
        path: path.to_owned(),
        source,
    })
}

/// The configuration that was measured together with this program. Only before [`crate::sandbox::enter`].
///
/// # Errors
/// [`ConfigurationError`]
pub fn own() -> Result<Vec<u8>, ConfigurationError> {
    let mut image = File::open(OWN_IMAGE)?;
    let size = image.seek(SeekFrom::End(0))?;
    let behind = u64::try_from(TRAILER).unwrap_or(u64::MAX);
    let end = size.checked_sub(behind).ok_or(ImageError::NoConfiguration)?;
    image.seek(SeekFrom::Start(end))?;
    let mut trailer = [0; TRAILER];
    image.read_exact(&mut trailer)?;
    let length = configuration_length(&trailer)?;
    let start = end
        .checked_sub(u64::try_from(length).unwrap_or(u64::MAX))
        .ok_or(ImageError::Damaged)?;
    image.seek(SeekFrom::Start(start))?;
    let mut configuration = vec![0; length];
    image.read_exact(&mut configuration)?;
    Ok(configuration)
}
