//! The software NSM as a thread of the test: what it vouches for is the test's to say.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sealflow::clock::{Clock, UnixMillis};
use sealflow_enclave_protocol::nsm::{Answer, Measurement, Message as _, PREFIX, Request, length};
use sealflow_testbed::Enclave;

#[derive(Debug)]
pub(crate) struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> UnixMillis {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        UnixMillis(u64::try_from(now.as_millis()).unwrap())
    }
}

/// Speaks for a worker of this image, under the root of `enclave`, until it hangs up.
pub(crate) fn vouch(mut socket: UnixStream, enclave: Arc<Enclave>, image: Measurement) {
    std::thread::spawn(move || {
        let mut prefix = [0; PREFIX];
        while socket.read_exact(&mut prefix).is_ok() {
            let mut request = vec![0; length(prefix).unwrap()];
            socket.read_exact(&mut request).unwrap();
            let answer = match Request::from_wire(&request).unwrap() {
                Request::GetTime => Answer::Time(MachineClock.now().0),
                Request::GetRandom(count) => Answer::Random(vec![7; count.into()]),
                Request::Attest {
                    public_key,
                    user_data,
                    nonce,
                } => Answer::Document(enclave.document_of(|document| {
                    document.pcrs.insert(0, image.to_vec());
                    (document.public_key, document.user_data, document.nonce) = (public_key, user_data, nonce);
                })),
            };
            if socket.write_all(&answer.to_wire().unwrap()).is_err() {
                return;
            }
        }
    });
}
