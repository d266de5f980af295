//! What a running reading service tells the admin port.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sealflow_serve::Service;

use crate::admin::Watched;
use crate::kms_metrics::KmsMetrics;
use crate::status::Phase;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

/// Everything that counts in one service.
pub(crate) struct ServiceStatus {
    registry: Registry,
    service: Arc<Service>,
    cache_hits: Counter,
    cache_misses: Counter,
    /// Hits and misses that were added so far: counters only take differences.
    exported: Mutex<(u64, u64)>,
    draining: AtomicBool,
}

impl ServiceStatus {
    /// Of a service that listens.
    pub(crate) fn new(service: Arc<Service>, metrics: &sealflow_serve::Metrics, kms: &KmsMetrics) -> Self {
        let mut registry = Registry::with_prefix("sealflow");
        metrics.register(&mut registry);
        kms.register(&mut registry);
        let (cache_hits, cache_misses) = (Counter::default(), Counter::default());
        registry.register(
            "data_key_cache_hits",
            "Data keys found in the cache",
            cache_hits.clone(),
        );
        registry.register(
            "data_key_cache_misses",
            "Data keys that the KMS was asked for",
            cache_misses.clone(),
        );
        let build: Family<VersionLabel, Gauge> = Family::default();
        let version = env!("CARGO_PKG_VERSION");
        build.get_or_create(&VersionLabel { version }).set(1);
        registry.register("build_info", "The version that runs", build);
        Self {
            registry,
            service,
            cache_hits,
            cache_misses,
            exported: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// No new connections are taken from now on.
    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

impl Watched for ServiceStatus {
    fn phase(&self) -> Phase {
        if self.draining.load(Ordering::Relaxed) {
            Phase::Draining
        } else if !self.service.is_writing() || !self.service.opening().has_worker() {
            Phase::Waiting
        } else {
            Phase::Ready
        }
    }

    fn scrape(&self) -> String {
        let counters = self.service.opening().keys().counters();
        let now = (
            counters.hits.load(Ordering::Relaxed),
            counters.misses.load(Ordering::Relaxed),
        );
        let mut exported = self.exported.lock().unwrap_or_else(PoisonError::into_inner);
        self.cache_hits.inc_by(now.0.saturating_sub(exported.0));
        self.cache_misses.inc_by(now.1.saturating_sub(exported.1));
        *exported = now;
        let mut text = String::new();
        // Writing into a `String` cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
