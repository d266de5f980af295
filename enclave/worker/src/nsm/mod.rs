//! Where the worker gets evidence about itself, random numbers of the platform and the time: from the device of a Nitro enclave,
//! or from the software NSM. Which one is decided by what there is, and the worker's status says it.

#[cfg(feature = "nitro")]
mod device;
mod software;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use sealflow_enclave_protocol::joints::{AttestError, Attester, Claims};
use sealflow_enclave_protocol::nsm::MessageError;

#[cfg(feature = "nitro")]
pub use device::DeviceNsm;
pub use software::SoftwareNsm;

use crate::sandbox::Platform;

/// The device of a Nitro enclave.
const DEVICE: &str = "/dev/nsm";

/// What an NSM does.
#[derive(Debug)]
pub enum Nsm {
    /// Nitro's.
    #[cfg(feature = "nitro")]
    Device(DeviceNsm),
    /// The one of the development tier, which proves nothing against the host's root.
    Software(SoftwareNsm),
}

/// Why an NSM gives no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NsmError {
    /// There is none.
    #[error("there is no NSM: no {DEVICE}, and no launcher that passed a software NSM")]
    None,
    /// There is a device, and this worker was built without support for it.
    #[error(
        "this machine has {DEVICE}, and this worker was built without the feature `nitro`: it would not be attested by it"
    )]
    NotBuilt,
    /// It cannot be reached.
    #[error("the NSM cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    /// It talks in another way than it should.
    #[error("the NSM talks nonsense: {0}")]
    Nonsense(#[from] MessageError),
    /// It answered something else than was asked.
    #[error("the NSM answered something that was not asked")]
    Other,
    /// It refuses.
    #[error("the NSM refuses: {0}")]
    Refused(String),
}

impl Nsm {
    /// The NSM that there is: the device wherever it exists, the software one only where it does not.
    ///
    /// To be called before [`crate::sandbox::enter`].
    ///
    /// # Errors
    /// [`NsmError::None`] if there is neither, [`NsmError::NotBuilt`] for a device that this program cannot use.
    pub fn find(software: Option<UnixStream>) -> Result<Self, NsmError> {
        if Path::new(DEVICE).exists() {
            #[cfg(feature = "nitro")]
            return DeviceNsm::open().map(Self::Device);
            #[cfg(not(feature = "nitro"))]
            return Err(NsmError::NotBuilt);
        }
        let socket = software.ok_or(NsmError::None)?;
        Ok(Self::Software(SoftwareNsm::new(socket)?))
    }

    /// The NSM of an enclave: its device, or in a build for emulators the software NSM that the measured configuration names.
    ///
    /// To be called before [`crate::sandbox::enter`].
    ///
    /// # Errors
    /// [`NsmError::None`] if there is none, [`NsmError::Unreachable`] if nobody answers.
    #[cfg(feature = "nitro")]
    pub fn of_enclave(config: &crate::config::Config) -> Result<Self, NsmError> {
        #[cfg(feature = "dev-software-nsm")]
        if let Some(address) = config.dev_nsm {
            let socket = crate::hosts::connect(address)?;
            return Ok(Self::Software(SoftwareNsm::new(socket)?));
        }
        // Nothing in it has a say in which one it is.
        let _ = config;
        Self::find(None)
    }

    /// What evidence says about its kind: `nitro` or `dev-software-nsm`.
    #[must_use]
    pub fn tier(&self) -> &'static str {
        match self {
            #[cfg(feature = "nitro")]
            Self::Device(_) => "nitro",
            Self::Software(_) => "dev-software-nsm",
        }
    }

    /// What [`crate::sandbox::enter`] has to leave open for it.
    #[must_use]
    pub fn platform(&self) -> Platform {
        match self {
            #[cfg(feature = "nitro")]
            Self::Device(_) => Platform::Nitro,
            Self::Software(_) => Platform::Software,
        }
    }

    /// The attested time: milliseconds since 1970, UTC. The host has no say in it.
    ///
    /// # Errors
    /// [`NsmError`]
    pub fn time_ms(&self) -> Result<u64, NsmError> {
        match self {
            #[cfg(feature = "nitro")]
            Self::Device(device) => device.time_ms(),
            Self::Software(software) => software.time_ms(),
        }
    }

    /// Random bytes of the platform, at most [`sealflow_enclave_protocol::nsm::MAX_RANDOM`]. To be mixed with the kernel's, which
    /// a host that starts the kernel may know.
    ///
    /// # Errors
    /// [`NsmError`]
    pub fn random(&self, count: u16) -> Result<Vec<u8>, NsmError> {
        match self {
            #[cfg(feature = "nitro")]
            Self::Device(device) => device.random(count),
            Self::Software(software) => software.random(count),
        }
    }
}

impl Attester for Nsm {
    fn attest(&self, claims: &Claims<'_>) -> Result<Vec<u8>, AttestError> {
        let document = match self {
            #[cfg(feature = "nitro")]
            Self::Device(device) => device.document(claims),
            Self::Software(software) => software.document(claims),
        };
        document.map_err(|error| AttestError {
            reason: error.to_string(),
        })
    }
}
