//! Credentials that are handed in from outside, since the program that uses them cannot fetch any.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use sealflow::clock::{Clock, Steady, UnixMillis};
use sealflow::keys::KeyServiceError;
use sealflow::secret::SecretString;
use tokio::sync::Notify;

/// For so long after there were no credentials that can be used, others are on their way; then there are none.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Credentials with this much left are used, and others are asked for already.
const MARGIN: Duration = Duration::from_secs(60);

/// Credentials as they are handed in.
#[derive(Clone, Debug)]
pub struct Handed {
    /// The access key id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: SecretString,
    /// The session token of temporary credentials.
    pub session_token: Option<SecretString>,
    /// When they end; `None`: never by themselves.
    pub expires: Option<UnixMillis>,
}

/// The credentials to use now, which can be replaced at any time. Clones share them.
///
/// They prove to AWS which role asks. They open nothing by themselves: key policies want the attestation besides.
#[derive(Clone)]
pub struct HandedCredentials(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    wanted: Notify,
}

struct State {
    current: Option<Handed>,
    /// Since when there has been nothing to use.
    missing_since: Option<Steady>,
    /// Those that the service did not take: they count as missing when they are handed in again.
    refused: Option<Handed>,
}

impl fmt::Debug for HandedCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandedCredentials([redacted])")
    }
}

impl Handed {
    fn is_same(&self, other: &Self) -> bool {
        let token = |handed: &Self| handed.session_token.as_ref().map(|t| t.expose().to_owned());
        self.access_key_id == other.access_key_id
            && self.secret_access_key.expose() == other.secret_access_key.expose()
            && token(self) == token(other)
    }

    fn left(&self, now: UnixMillis) -> Option<Duration> {
        self.expires.map(|expires| expires.since(now))
    }
}

impl HandedCredentials {
    /// None yet. Their ends are looked at with `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State {
            current: None,
            missing_since: Some(clock.steady()),
            refused: None,
        };
        Self(Arc::new(Shared {
            clock,
            state: Mutex::new(state),
            wanted: Notify::new(),
        }))
    }

    /// Uses these from now on. Whether they are taken: not those that the service has just refused, nor those that have ended.
    pub fn set(&self, handed: Handed) -> bool {
        let now = self.0.clock.now();
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_refused = state.refused.as_ref().is_some_and(|refused| refused.is_same(&handed));
        if is_refused || handed.left(now).is_some_and(|left| left.is_zero()) {
            return false;
        }
        state.current = Some(handed);
        state.missing_since = None;
        true
    }

    /// Returns when others should be handed in: there are none, they end within a minute, or the service does not take them.
    /// Only requests notice that; who waits here is told by the next one.
    pub async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Those to use now.
    ///
    /// # Errors
    /// [`KeyServiceError::Unavailable`] while others may come, then [`KeyServiceError::NoCredentials`].
    pub(super) fn get(&self) -> Result<Handed, KeyServiceError> {
        let (now, steady) = (self.0.clock.now(), self.0.clock.steady());
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let left = state.current.as_ref().map(|handed| handed.left(now));
        if left.flatten().is_some_and(|left| left < MARGIN) || left.is_none() {
            self.0.wanted.notify_one();
        }
        match left {
            Some(left) if left.is_none_or(|left| !left.is_zero()) => {
                if let Some(handed) = &state.current {
                    return Ok(handed.clone());
                }
            }
            _ => state.current = None,
        }
        let since = *state.missing_since.get_or_insert(steady);
        if steady.since(since) < PATIENCE {
            return Err(KeyServiceError::Unavailable {
                reason: "no credentials that last have been handed in yet".to_owned(),
            });
        }
        Err(KeyServiceError::NoCredentials {
            reason: "none that last have been handed in for five minutes".to_owned(),
        })
    }

    /// The service no longer takes `used`: unless others are in use by now, there are none.
    pub(super) fn refuse(&self, used: &Handed) {
        let steady = self.0.clock.steady();
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.current.as_ref().is_some_and(|current| current.is_same(used)) {
            state.refused = state.current.take();
            state.missing_since = Some(steady);
            self.0.wanted.notify_one();
        }
    }
}

impl ProvideCredentials for HandedCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let handed = self.get().map(|handed| {
            let token = handed.session_token.as_ref().map(|t| t.expose().to_owned());
            let secret = handed.secret_access_key.expose();
            Credentials::new(handed.access_key_id, secret, token, None, "handed in")
        });
        future::ProvideCredentials::ready(handed.map_err(|_| CredentialsError::not_loaded("none handed in")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use std::task::{Context, Waker};

    use sealflow::clock::ManualClock;

    use super::*;

    const START: UnixMillis = UnixMillis(1_800_000_000_000);

    fn handed(id: &str, lasts: Option<Duration>) -> Handed {
        Handed {
            access_key_id: id.to_owned(),
            secret_access_key: SecretString::new("hunter2".to_owned()),
            session_token: Some(SecretString::new("hunter3".to_owned())),
            expires: lasts.map(|lasts| START.plus(lasts)),
        }
    }

    fn empty() -> (HandedCredentials, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::at(START));
        (HandedCredentials::new(clock.clone()), clock)
    }

    fn is_wanted(credentials: &HandedCredentials) -> bool {
        let wanted = std::pin::pin!(credentials.wanted());
        wanted.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn missing_credentials_are_waited_for_and_then_missing() {
        let (credentials, clock) = empty();
        assert!(!is_wanted(&credentials));
        assert!(credentials.get().unwrap_err().is_retryable());
        assert!(is_wanted(&credentials) && !is_wanted(&credentials));
        clock.advance(PATIENCE);
        let missing = credentials.get().unwrap_err();
        assert!(matches!(missing, KeyServiceError::NoCredentials { .. }) && !missing.is_retryable());
        assert!(credentials.set(handed("AKIA1", None)));
        assert_eq!(credentials.get().unwrap().access_key_id, "AKIA1");
    }

    #[test]
    fn credentials_are_used_to_their_end_by_the_given_clock_and_no_longer() {
        let (credentials, clock) = empty();
        assert!(!credentials.set(handed("AKIA0", Some(Duration::ZERO))));
        assert!(credentials.set(handed("AKIA1", Some(Duration::from_secs(600)))));
        assert!(credentials.get().is_ok() && !is_wanted(&credentials));
        clock.advance(Duration::from_secs(599));
        assert!(credentials.get().is_ok() && is_wanted(&credentials));
        clock.advance(Duration::from_secs(1));
        assert!(credentials.get().unwrap_err().is_retryable());
        clock.advance(PATIENCE);
        assert!(!credentials.get().unwrap_err().is_retryable());
        assert!(credentials.set(handed("AKIA2", None)) && credentials.get().is_ok());
    }

    #[test]
    fn refused_credentials_are_not_used_again_and_do_not_come_back() {
        let (credentials, clock) = empty();
        assert!(credentials.set(handed("AKIA1", None)));
        let used = credentials.get().unwrap();
        credentials.refuse(&used);
        assert!(is_wanted(&credentials) && credentials.get().unwrap_err().is_retryable());
        assert!(!credentials.set(handed("AKIA1", None)));
        clock.advance(PATIENCE);
        assert!(!credentials.get().unwrap_err().is_retryable());
        assert!(credentials.set(handed("AKIA2", None)));
        // Who was refused with the old ones does not throw away the new.
        credentials.refuse(&used);
        assert_eq!(credentials.get().unwrap().access_key_id, "AKIA2");
    }

    #[test]
    fn debug_shows_nothing_of_them() {
        let (credentials, _) = empty();
        credentials.set(handed("AKIA1", None));
        let shown = format!("{credentials:?} {:?}", credentials.get());
        assert!(!shown.contains("hunter"), "{shown}");
    }
}
