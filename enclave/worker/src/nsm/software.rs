//! The software NSM, over the socket that the launcher passed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sealflow_enclave_protocol::joints::Claims;
use sealflow_enclave_protocol::nsm::{Answer, Message, PREFIX, Request, length};

use super::NsmError;

/// How long an answer may take. A document takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The software NSM. One question at a time: each is answered in well under a millisecond.
#[derive(Debug)]
pub struct SoftwareNsm {
    /// `None` after an exchange that broke off, since what is read next could be the answer to an older question.
    socket: Mutex<Option<UnixStream>>,
}

impl SoftwareNsm {
    /// The NSM at the other end of this socket.
    ///
    /// # Errors
    /// [`NsmError::Unreachable`] if it is no socket that can be waited for.
    pub fn new(socket: UnixStream) -> Result<Self, NsmError> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket: Mutex::new(Some(socket)),
        })
    }

    /// An attestation document.
    pub(super) fn document(&self, claims: &Claims<'_>) -> Result<Vec<u8>, NsmError> {
        match self.ask(&Request::attest(claims))? {
            Answer::Document(document) => Ok(document),
            other => Err(refusal(other)),
        }
    }

    /// Random bytes, as many as were asked for.
    pub(super) fn random(&self, count: u16) -> Result<Vec<u8>, NsmError> {
        match self.ask(&Request::GetRandom(count))? {
            Answer::Random(bytes) if bytes.len() == usize::from(count) => Ok(bytes),
            other => Err(refusal(other)),
        }
    }

    /// Milliseconds since 1970.
    pub(super) fn time_ms(&self) -> Result<u64, NsmError> {
        match self.ask(&Request::GetTime)? {
            Answer::Time(now) => Ok(now),
            other => Err(refusal(other)),
        }
    }

    fn ask(&self, request: &Request) -> Result<Answer, NsmError> {
        let wire = request.to_wire()?;
        let mut guard = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || NsmError::Unreachable(std::io::ErrorKind::NotConnected.into());
        // Taken out, and put back only after a whole answer.
        let mut socket = guard.take().ok_or_else(gone)?;
        socket.write_all(&wire)?;
        let mut prefix = [0; PREFIX];
        socket.read_exact(&mut prefix)?;
        let mut bytes = vec![0; length(prefix)?];
        socket.read_exact(&mut bytes)?;
        let answer = Answer::from_wire(&bytes)?;
        *guard = Some(socket);
        Ok(answer)
    }
}

fn refusal(answer: Answer) -> NsmError {
    match answer {
        Answer::Refused(reason) => NsmError::Refused(reason),
        _ => NsmError::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// An NSM that answers each request with these bytes.
    fn answering(answers: Vec<Vec<u8>>) -> SoftwareNsm {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            for answer in answers {
                let mut prefix = [0; PREFIX];
                theirs.read_exact(&mut prefix).unwrap();
                let mut request = vec![0; length(prefix).unwrap()];
                theirs.read_exact(&mut request).unwrap();
                Request::from_wire(&request).unwrap();
                theirs.write_all(&answer).unwrap();
            }
        });
        SoftwareNsm::new(ours).unwrap()
    }

    #[test]
    fn answers_arrive() {
        let nsm = answering(vec![
            Answer::Time(1_900_000_000_000).to_wire().unwrap(),
            Answer::Random(vec![7; 32]).to_wire().unwrap(),
            Answer::Document(vec![8; 4096]).to_wire().unwrap(),
        ]);
        assert_eq!(nsm.time_ms().unwrap(), 1_900_000_000_000);
        assert_eq!(nsm.random(32).unwrap(), vec![7; 32]);
        assert_eq!(nsm.document(&Claims::default()).unwrap(), vec![8; 4096]);
    }

    #[test]
    fn an_answer_to_something_else_is_none() {
        let nsm = answering(vec![
            Answer::Random(vec![7; 31]).to_wire().unwrap(),
            Answer::Time(1).to_wire().unwrap(),
            Answer::Refused("nothing is registered".to_owned()).to_wire().unwrap(),
        ]);
        assert!(matches!(nsm.random(32), Err(NsmError::Other)), "too few random bytes");
        assert!(
            matches!(nsm.document(&Claims::default()), Err(NsmError::Other)),
            "a time instead of a document"
        );
        assert!(matches!(nsm.time_ms(), Err(NsmError::Refused(reason)) if reason == "nothing is registered"));
    }

    #[test]
    fn after_nonsense_nothing_is_asked_any_more() {
        let nsm = answering(vec![vec![0xff; PREFIX], Answer::Time(1).to_wire().unwrap()]);
        assert!(matches!(nsm.time_ms(), Err(NsmError::Nonsense(_))));
        assert!(matches!(nsm.time_ms(), Err(NsmError::Unreachable(_))));
    }

    #[test]
    fn an_nsm_that_went_away_is_unreachable() {
        let nsm = answering(Vec::new());
        assert!(matches!(nsm.time_ms(), Err(NsmError::Unreachable(_))));
    }
}
