//! What the service counts. Labels are words of the code, and names of datasets that have a policy; never anything that a
//! caller chose.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sealflow::audit::Proof;

use crate::open::Counts;
use crate::problem::{Code, Problem};

/// Seconds.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ProofLabel {
    proof: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FlowLabel {
    flow: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DatasetLabel {
    dataset: String,
}

/// The service's counters.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RouteLabels, Counter>,
    duration: Histogram,
    problems: Family<CodeLabel, Counter>,
    proofs: Family<ProofLabel, Counter>,
    opened: Family<FlowLabel, Counter>,
    refused: Counter,
    failed: Counter,
    in_flight: Gauge,
    connections: Gauge,
    policy_version: Family<DatasetLabel, Gauge<f64, AtomicU64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            requests: Family::default(),
            duration: Histogram::new(BUCKETS),
            problems: Family::default(),
            proofs: Family::default(),
            opened: Family::default(),
            refused: Counter::default(),
            failed: Counter::default(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            policy_version: Family::default(),
        };
        // Series that start with their first event show no increase at it.
        for code in Code::ALL {
            metrics.problem(*code, 0);
        }
        metrics
    }
}

impl Metrics {
    /// Puts them into a registry.
    pub fn register(&self, registry: &mut Registry) {
        // The encoder adds `_total` to counters.
        registry.register("serve_requests", "Requests answered", self.requests.clone());
        registry.register(
            "serve_request_duration_seconds",
            "How long requests took, from head to answer",
            self.duration.clone(),
        );
        registry.register(
            "serve_problems",
            "Requests not answered with what they ask for",
            self.problems.clone(),
        );
        registry.register("serve_proofs", "Identities proved", self.proofs.clone());
        registry.register("values_opened", "Values opened", self.opened.clone());
        registry.register(
            "serve_values_refused",
            "Values that an ACL refused",
            self.refused.clone(),
        );
        registry.register("serve_values_failed", "Values that do not open", self.failed.clone());
        registry.register("serve_requests_in_flight", "Requests under way", self.in_flight.clone());
        registry.register("serve_connections", "Connections", self.connections.clone());
        registry.register(
            "serve_policy_version",
            "Version of the policy by which was opened last",
            self.policy_version.clone(),
        );
    }

    pub(crate) fn answered(&self, route: &'static str, status: u16, took: Duration) {
        self.requests.get_or_create(&RouteLabels { route, status }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    pub(crate) fn problem(&self, code: Code, count: u64) {
        self.problems
            .get_or_create(&CodeLabel { code: code.as_str() })
            .inc_by(count);
    }

    pub(crate) fn problem_of(&self, problem: &Problem) {
        self.problem(problem.code, 1);
    }

    pub(crate) fn proved(&self, proof: Proof) {
        self.proofs.get_or_create(&ProofLabel { proof: proof.as_str() }).inc();
    }

    pub(crate) fn read(&self, dataset: &str, version: u64, counts: Counts) {
        self.opened
            .get_or_create(&FlowLabel { flow: "direct" })
            .inc_by(counts.opened);
        self.refused.inc_by(counts.refused);
        self.failed.inc_by(counts.failed);
        let dataset = DatasetLabel {
            dataset: dataset.to_owned(),
        };
        // Nobody signs 2^53 versions.
        #[allow(clippy::cast_precision_loss)]
        self.policy_version.get_or_create(&dataset).set(version as f64);
    }

    /// One more request under way, until it is dropped.
    pub(crate) fn in_flight(&self) -> Counted {
        Counted::new(&self.in_flight)
    }

    /// One more connection, until it is dropped.
    pub(crate) fn connection(&self) -> Counted {
        Counted::new(&self.connections)
    }
}

/// Something that is there until it is dropped.
pub(crate) struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
