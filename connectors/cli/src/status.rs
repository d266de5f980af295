//! What a running pipeline tells the admin port: its phase, and its counters as Prometheus metrics.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use sealflow::flow::enclave::EnclaveWorker;
use sealflow::keys::{CacheCounters, OpeningKeys, SealingKeys};
use sealflow::pipeline::{Clients, Counters, TransformCounters};
use sealflow_enclave_host::Supervisor;
use sealflow_kafka::LandingCounters;

use crate::admin::Watched;
use crate::metrics::Metrics;

/// What the pipeline is doing, as `/readyz` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not yet connected.
    Starting,
    /// At work.
    Ready,
    /// KMS, catalogue or target are away; intake has stopped.
    Waiting,
    /// Told to stop; finishes what it holds.
    Draining,
}

impl Phase {
    /// As metrics spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Draining => "draining",
        }
    }
}

/// Everything that counts in one pipeline.
pub(crate) struct Status {
    /// Records, bytes, lag: counted by the runner.
    pub(crate) counters: Arc<Counters>,
    /// Values: counted by the transform.
    pub(crate) transform: Arc<TransformCounters>,
    /// Whether those values are opened.
    pub(crate) opens: bool,
    /// Keys to seal with (data or dead letters).
    pub(crate) sealing: SealingKeys,
    /// Keys to open with.
    pub(crate) opening: Option<OpeningKeys>,
    pub(crate) clients: Option<Clients>,
    /// The worker without which columns of the enclave are not sealed.
    pub(crate) enclave: Option<Supervisor>,
    /// Files: counted by a landing.
    pub(crate) landed: Arc<LandingCounters>,
    /// What Prometheus reads.
    pub(crate) metrics: Arc<Metrics>,
    exported: Mutex<Exported>,
}

/// What was added to the metrics so far: they only take differences.
#[derive(Clone, Copy, Default)]
struct Exported {
    read: u64,
    received_bytes: u64,
    sent: u64,
    sent_bytes: u64,
    dead: u64,
    values: u64,
    client_values: u64,
    hits: u64,
    misses: u64,
    aborts: u64,
    retries: u64,
    files: u64,
}

impl Status {
    /// Nothing counted yet.
    pub(crate) fn new(
        counters: Arc<Counters>,
        transform: Arc<TransformCounters>,
        sealing: SealingKeys,
        opening: Option<OpeningKeys>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let opens = opening.is_some();
        Self {
            counters,
            transform,
            opens,
            sealing,
            opening,
            clients: None,
            enclave: None,
            landed: Arc::default(),
            metrics,
            exported: Mutex::default(),
        }
    }

    /// The same, with the keys of clients, which are forgotten when they are old.
    pub(crate) fn with_clients(mut self, clients: Clients) -> Self {
        self.clients = Some(clients);
        self
    }

    /// The same, not ready while this worker is not.
    pub(crate) fn with_enclave(mut self, enclave: Option<Supervisor>) -> Self {
        self.enclave = enclave;
        self
    }

    fn now(&self) -> Exported {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let cache = |counters: &CacheCounters| (load(&counters.hits), load(&counters.misses));
        let (sealing, opening) = (
            cache(self.sealing.counters()),
            self.opening
                .as_ref()
                .map(|keys| cache(keys.counters()))
                .unwrap_or_default(),
        );
        let counters = &self.counters;
        Exported {
            read: load(&counters.records_read),
            received_bytes: load(&counters.bytes_received),
            sent: load(&counters.records_committed),
            sent_bytes: load(&counters.bytes_sent),
            dead: load(&counters.dead_letters),
            values: load(&self.transform.values),
            client_values: load(&self.transform.client_values),
            hits: sealing.0 + opening.0,
            misses: sealing.1 + opening.1,
            aborts: load(&counters.aborts),
            retries: load(&counters.retries),
            files: load(&self.landed.files),
        }
    }

    fn export(&self) {
        let mut before = self.exported.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        let metrics = &self.metrics;
        metrics.received(now.read - before.read, now.received_bytes - before.received_bytes);
        let (sent, dead) = (now.sent - before.sent, now.dead - before.dead);
        metrics.sent(sent.saturating_sub(dead), now.sent_bytes - before.sent_bytes);
        metrics.discarded(dead);
        metrics.errors("transaction_aborted", "sending", now.aborts - before.aborts);
        metrics.errors("service_unavailable", "processing", now.retries - before.retries);
        metrics.cache(now.hits - before.hits, now.misses - before.misses);
        metrics.key_age(self.sealing.ages().0, self.sealing.age_ratio());
        let values = now.values - before.values;
        if self.opens {
            metrics.opened("direct", values);
        } else {
            let of_clients = now.client_values - before.client_values;
            metrics.sealed("hybrid", of_clients);
            metrics.sealed("direct", values.saturating_sub(of_clients));
        }
        metrics.files(now.files - before.files, self.landed.open.load(Ordering::Relaxed));
        metrics.lags(&self.counters.lag());
        metrics.positions(&self.counters.positions());
        metrics.phase(self.phase());
        *before = now;
    }
}

impl Watched for Status {
    fn phase(&self) -> Phase {
        let has_worker = self.enclave.as_ref().is_none_or(EnclaveWorker::is_ready);
        if self.counters.is_ready() && has_worker {
            Phase::Ready
        } else if self.counters.is_draining() {
            Phase::Draining
        } else if self.counters.is_started() {
            Phase::Waiting
        } else {
            Phase::Starting
        }
    }

    fn scrape(&self) -> String {
        self.export();
        self.metrics.encode()
    }
}
