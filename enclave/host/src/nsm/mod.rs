//! The software NSM of the development tier: a process of its own that speaks for a worker under a development root.
//!
//! It stands in for Nitro's hypervisor, and proves nothing to anybody who does not trust this machine: whoever is root here can read
//! its key. Everything that it signs says `dev-software-nsm`. It is also the worker's clock, which the host process cannot set.

mod root;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use sealflow_enclave_protocol::attestation::{Document, Tier};
use sealflow_enclave_protocol::nsm::{
    Answer, MAX_PUBLIC_KEY, MAX_RANDOM, MAX_USER_DATA, Measurement, Registered, Registration, Request,
};

use crate::exchange::{self, ExchangeError};

pub use root::{CERTIFICATE, KEY, Root, RootError, certificate_of};

/// With what every module id of the software NSM begins.
pub const MODULE_PREFIX: &str = "dev-software-nsm-";

/// Why the software NSM does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NsmError {
    /// Its root is missing and cannot be made, or cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Nobody started it who has something for it to do.
    #[error("the software NSM was not started by a launcher ({0}): run `sealflow enclave run`")]
    NotLaunched(io::Error),
    /// It cannot keep its key to itself.
    #[error("the software NSM cannot protect its key: {0}")]
    Unprotected(io::Error),
}

/// `sealflow enclave nsm --root-dir DIR`, which only a launcher calls: speaks for one worker until the launcher ends.
///
/// # Errors
/// [`NsmError`]
pub fn main(root_dir: &Path) -> Result<(), NsmError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)
        .and_then(|()| rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .map_err(|error| NsmError::Unprotected(error.into()))?;
    let control = socket(io::stdin().as_fd()).map_err(NsmError::NotLaunched)?;
    let worker = socket(io::stdout().as_fd()).map_err(NsmError::NotLaunched)?;
    let root = Root::load_or_make(root_dir, now_ms())?;
    serve(&control, worker, root);
    Ok(())
}

/// Speaks for the worker at one socket what the launcher says at the other, until the launcher's ends.
fn serve(control: &UnixStream, worker: UnixStream, root: Root) {
    let registered = std::sync::Arc::new(OnceLock::new());
    let known = registered.clone();
    // It ends with the process: a worker that goes away does not end the NSM, a launcher does.
    std::thread::spawn(move || answer_worker(&worker, &known, root));
    while let Some(registration) = next::<Registration>(control) {
        let answer = match registration.map(|Registration::Image(image)| registered.set(image)) {
            Ok(Ok(())) => Registered::Done,
            Ok(Err(_)) => Registered::Refused("a worker is registered already, and a worker has one image".to_owned()),
            Err(malformed) => Registered::Refused(malformed.to_string()),
        };
        if exchange::write(control, &answer).is_err() {
            break;
        }
    }
}

fn answer_worker(socket: &UnixStream, registered: &OnceLock<Measurement>, mut root: Root) {
    let module = module_id();
    while let Some(request) = next::<Request>(socket) {
        let answer = match (request, registered.get()) {
            (Err(malformed), _) => Answer::Refused(malformed.to_string()),
            (Ok(_), None) => Answer::Refused("nothing is registered: the launcher comes first".to_owned()),
            (Ok(request), Some(image)) => answer(request, image, &module, &mut root).unwrap_or_else(Answer::Refused),
        };
        if exchange::write(socket, &answer).is_err() {
            break;
        }
    }
}

/// The next message, or what is wrong with it. `None` when nothing more can be read.
fn next<M: sealflow_enclave_protocol::nsm::Message>(
    socket: &UnixStream,
) -> Option<Result<M, sealflow_enclave_protocol::nsm::MessageError>> {
    use sealflow_enclave_protocol::nsm::MessageError;
    match exchange::read(socket) {
        Ok(message) => Some(Ok(message)),
        // Its end is not known.
        Err(ExchangeError::Socket(_) | ExchangeError::Message(MessageError::TooLong { .. })) => None,
        Err(ExchangeError::Message(malformed)) => Some(Err(malformed)),
    }
}

fn answer(request: Request, image: &Measurement, module: &str, root: &mut Root) -> Result<Answer, String> {
    match request {
        Request::GetTime => Ok(Answer::Time(now_ms())),
        Request::GetRandom(count) if count > MAX_RANDOM => Err(format!("at most {MAX_RANDOM} random bytes at once")),
        Request::GetRandom(count) => {
            let mut bytes = vec![0; usize::from(count)];
            getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
            Ok(Answer::Random(bytes))
        }
        Request::Attest {
            public_key,
            user_data,
            nonce,
        } => {
            bounded("a public key", public_key.as_deref(), MAX_PUBLIC_KEY)?;
            bounded("user data", user_data.as_deref(), MAX_USER_DATA)?;
            bounded("a nonce", nonce.as_deref(), MAX_USER_DATA)?;
            let document = Document {
                module_id: module.to_owned(),
                timestamp_ms: now_ms(),
                pcrs: BTreeMap::from([(0, image.to_vec())]),
                public_key,
                user_data,
                nonce,
                tier: Tier::DevSoftwareNsm,
            };
            root.sign(&document)
                .map(Answer::Document)
                .map_err(|error| error.to_string())
        }
    }
}

fn bounded(what: &str, claim: Option<&[u8]>, most: usize) -> Result<(), String> {
    match claim {
        Some(claim) if claim.len() > most => Err(format!("{what} has {} bytes, and {most} are the most", claim.len())),
        // Nitro refuses empty public keys too; what is empty can simply be left out.
        _ => Ok(()),
    }
}

/// Tells one run from the other.
fn module_id() -> String {
    let mut run = [0; 8];
    // A random part is for readers of logs: without it, the process id has to do.
    if getrandom::fill(&mut run).is_err() {
        run[..4].copy_from_slice(&std::process::id().to_be_bytes());
    }
    format!("{MODULE_PREFIX}{:016x}", u64::from_be_bytes(run))
}

/// A second descriptor for a standard stream that is a socket.
fn socket(stream: std::os::fd::BorrowedFd<'_>) -> Result<UnixStream, io::Error> {
    let socket = stream.try_clone_to_owned()?;
    rustix::net::sockopt::socket_type(&socket)?;
    Ok(UnixStream::from(socket))
}

/// Milliseconds since 1970. A machine whose clock is before that gets no documents that verify.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
