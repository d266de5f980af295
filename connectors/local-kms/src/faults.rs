//! What tests do to a local KMS: count its requests, slow it down, make it fail. Not reachable by configuration.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::ApiError;

/// What happens to matching requests, before anything else looks at them.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// Only this operation (`Decrypt`, `GetCallerIdentity`, …); `None` is every one.
    pub operation: Option<String>,
    /// Waits this long first.
    pub delay: Duration,
    /// Then answers with this instead of doing the work.
    pub failure: Option<Failure>,
    /// Ends after this many requests; `None` never.
    pub times: Option<u64>,
}

/// How an injected failure looks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// An error answer, for example 400 and `ThrottlingException`.
    Error {
        /// The HTTP status.
        status: u16,
        /// AWS's error code.
        code: &'static str,
    },
    /// The connection is closed without an answer.
    Disconnect,
    /// The work is done, then the connection is closed without an answer.
    DisconnectAfter,
}

/// Counters and the fault that is set.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    requests: Mutex<BTreeMap<String, u64>>,
    fault: Mutex<Option<Fault>>,
}

/// What to do with one request.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) delay: Duration,
    pub(crate) instead: Option<ApiError>,
    pub(crate) disconnect: bool,
    pub(crate) disconnect_after: bool,
}

impl Hooks {
    pub(crate) fn requests(&self, operation: &str) -> u64 {
        lock(&self.requests).get(operation).copied().unwrap_or(0)
    }

    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        *lock(&self.fault) = fault;
    }

    /// Counts one request for a known `operation` and decides what happens to it.
    pub(crate) fn plan(&self, operation: &str) -> Plan {
        // Operations are made of letters and short: the map cannot grow without bound by hostile names.
        let mut requests = lock(&self.requests);
        if requests.len() < 64 || requests.contains_key(operation) {
            *requests.entry(operation.to_owned()).or_default() += 1;
        }
        drop(requests);
        let mut slot = lock(&self.fault);
        let Some(fault) = slot
            .as_mut()
            .filter(|f| f.operation.as_deref().is_none_or(|o| o == operation))
        else {
            return Plan::default();
        };
        match &mut fault.times {
            Some(0) => return Plan::default(),
            Some(times) => *times -= 1,
            None => {}
        }
        let mut plan = Plan {
            delay: fault.delay,
            ..Plan::default()
        };
        match &fault.failure {
            Some(Failure::Error { status, code }) => {
                plan.instead = Some(ApiError {
                    status: *status,
                    code,
                    message: "injected".to_owned(),
                });
            }
            Some(Failure::Disconnect) => plan.disconnect = true,
            Some(Failure::DisconnectAfter) => plan.disconnect_after = true,
            None => {}
        }
        plan
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
