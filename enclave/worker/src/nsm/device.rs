//! Nitro's own NSM: `/dev/nsm`, by the official crate.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use aws_nitro_enclaves_nsm_api::api::{Request, Response};
use aws_nitro_enclaves_nsm_api::driver::nsm_process_request;
use sealflow_enclave_protocol::joints::Claims;
use sealflow_enclave_protocol::nsm::MAX_RANDOM;
use serde_bytes::ByteBuf;

use super::{DEVICE, NsmError};

/// The device, opened before the worker closes itself in.
#[derive(Debug)]
pub struct DeviceNsm {
    device: File,
}

impl DeviceNsm {
    /// Opens the device.
    ///
    /// # Errors
    /// [`NsmError::Unreachable`]
    pub fn open() -> Result<Self, NsmError> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        Ok(Self { device })
    }

    /// An attestation document.
    pub(super) fn document(&self, claims: &Claims<'_>) -> Result<Vec<u8>, NsmError> {
        let request = Request::Attestation {
            public_key: claims.public_key.map(ByteBuf::from),
            user_data: claims.user_data.map(ByteBuf::from),
            nonce: claims.nonce.map(ByteBuf::from),
        };
        match self.ask(request) {
            Response::Attestation { document } => Ok(document),
            other => Err(refusal(&other)),
        }
    }

    /// Random bytes: the device answers up to 256, of which the first ones are taken.
    pub(super) fn random(&self, count: u16) -> Result<Vec<u8>, NsmError> {
        if count > MAX_RANDOM {
            return Err(NsmError::Refused(format!(
                "more than {MAX_RANDOM} random bytes at once"
            )));
        }
        match self.ask(Request::GetRandom) {
            Response::GetRandom { mut random } if random.len() >= usize::from(count) => {
                random.truncate(usize::from(count));
                Ok(random)
            }
            other => Err(refusal(&other)),
        }
    }

    /// The time of the hypervisor, which it writes into every document. The document comes from the device itself, so that its
    /// signature has nothing to prove here.
    pub(super) fn time_ms(&self) -> Result<u64, NsmError> {
        timestamp(&self.document(&Claims::default())?).ok_or(NsmError::Other)
    }

    fn ask(&self, request: Request) -> Response {
        nsm_process_request(self.device.as_raw_fd(), request)
    }
}

fn refusal(response: &Response) -> NsmError {
    match response {
        Response::Error(code) => NsmError::Refused(format!("{code:?}")),
        _ => NsmError::Other,
    }
}

/// `timestamp` of an attestation document: COSE_Sign1 (RFC 9052), whose third member holds a map.
fn timestamp(document: &[u8]) -> Option<u64> {
    let mut sign1 = minicbor::Decoder::new(document);
    if sign1.array().ok()? != Some(4) {
        return None;
    }
    sign1.skip().ok()?;
    sign1.skip().ok()?;
    let mut payload = minicbor::Decoder::new(sign1.bytes().ok()?);
    let members = payload.map().ok()?;
    let mut seen = 0;
    while members.is_none_or(|members| seen < members) {
        if payload.str().ok()? == "timestamp" {
            return payload.u64().ok();
        }
        payload.skip().ok()?;
        seen += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(payload: &[u8]) -> Vec<u8> {
        let mut document = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut document);
        encoder
            .array(4)
            .unwrap()
            .bytes(&[0xa0])
            .unwrap()
            .map(0)
            .unwrap()
            .bytes(payload)
            .unwrap()
            .bytes(&[0; 96])
            .unwrap();
        document
    }

    #[test]
    fn the_time_is_the_one_in_the_document() {
        let mut payload = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut payload);
        encoder
            .map(3)
            .unwrap()
            .str("module_id")
            .unwrap()
            .str("i-0-enc-1")
            .unwrap();
        encoder.str("timestamp").unwrap().u64(1_900_000_000_123).unwrap();
        encoder.str("pcrs").unwrap().map(0).unwrap();
        assert_eq!(timestamp(&document(&payload)), Some(1_900_000_000_123));
    }

    #[test]
    fn a_document_without_a_time_has_none() {
        assert_eq!(timestamp(b""), None);
        assert_eq!(timestamp(&document(&[0xa0])), None);
        assert_eq!(timestamp(&document(b"\xbf\x61a\x01")), None);
        assert_eq!(timestamp(&document(b"\xa1\x69timestamp\x61x")), None);
    }
}
