//! What the admin port counts: Vector's component vocabulary and our own names, under `sealflow_`.
//!
//! Labels are names from configuration and code, never anything out of a record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::kms_metrics::KmsMetrics;
use crate::status::Phase;

/// One part of the pipeline, in Vector's words.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Component {
    component_id: String,
    component_kind: &'static str,
    component_type: &'static str,
}

/// Why an event ended in the dead letters, or an error was met.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    component_id: String,
    error_type: &'static str,
    stage: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FlowLabel {
    flow: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PartitionLabel {
    topic: String,
    partition: i32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

/// All counters of one process.
pub(crate) struct Metrics {
    registry: Registry,
    pipeline: String,
    received_events: Family<Component, Counter>,
    received_bytes: Family<Component, Counter>,
    sent_events: Family<Component, Counter>,
    sent_bytes: Family<Component, Counter>,
    discarded_events: Family<ErrorLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    /// Requests to the KMS.
    pub(crate) kms: Arc<KmsMetrics>,
    cache_hits: Counter,
    cache_misses: Counter,
    key_age: Gauge<f64, AtomicU64>,
    key_age_ratio: Gauge<f64, AtomicU64>,
    values_sealed: Family<FlowLabel, Counter>,
    values_opened: Family<FlowLabel, Counter>,
    source_lag: Family<PartitionLabel, Gauge<i64, AtomicI64>>,
    policy_version: Gauge<f64, AtomicU64>,
    source_position: Family<PartitionLabel, Gauge<i64, AtomicI64>>,
    phase: Family<PhaseLabel, Gauge>,
    table_files: Counter,
    table_open_files: Gauge,
}

impl Metrics {
    /// The counters of the pipeline of that name, all at zero.
    pub(crate) fn new(pipeline: &str) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("sealflow"),
            pipeline: pipeline.to_owned(),
            received_events: Family::default(),
            received_bytes: Family::default(),
            sent_events: Family::default(),
            sent_bytes: Family::default(),
            discarded_events: Family::default(),
            errors: Family::default(),
            kms: Arc::new(KmsMetrics::new()),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            key_age: Gauge::default(),
            key_age_ratio: Gauge::default(),
            values_sealed: Family::default(),
            values_opened: Family::default(),
            source_lag: Family::default(),
            policy_version: Gauge::default(),
            source_position: Family::default(),
            phase: Family::default(),
            table_files: Counter::default(),
            table_open_files: Gauge::default(),
        };
        metrics.register();
        metrics.zero();
        metrics
    }

    /// Series that start with their first event show no increase at it: what is rare is there from the beginning.
    fn zero(&self) {
        self.discarded(0);
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        // The encoder adds `_total` to counters.
        registry.register(
            "component_received_events",
            "Records read",
            self.received_events.clone(),
        );
        registry.register(
            "component_received_bytes",
            "Bytes of keys, values and headers read",
            self.received_bytes.clone(),
        );
        registry.register(
            "component_sent_events",
            "Records written and committed",
            self.sent_events.clone(),
        );
        registry.register(
            "component_sent_bytes",
            "Bytes of keys, values and headers written",
            self.sent_bytes.clone(),
        );
        registry.register(
            "component_discarded_events",
            "Records that became dead letters",
            self.discarded_events.clone(),
        );
        registry.register("component_errors", "Errors met", self.errors.clone());
        self.kms.register(registry);
        registry.register(
            "data_key_cache_hits",
            "Data keys found in the cache",
            self.cache_hits.clone(),
        );
        registry.register(
            "data_key_cache_misses",
            "Data keys that the KMS was asked for",
            self.cache_misses.clone(),
        );
        registry.register(
            "data_key_age_seconds",
            "Age of the oldest data key that seals",
            self.key_age.clone(),
        );
        registry.register(
            "data_key_age_ratio",
            "Largest share of its max_age that a data key in use has passed; beyond 0.8 its successor is late",
            self.key_age_ratio.clone(),
        );
        registry.register("values_sealed", "Values sealed", self.values_sealed.clone());
        registry.register("values_opened", "Values opened", self.values_opened.clone());
        registry.register(
            "source_lag_records",
            "Records at the source that are not yet read",
            self.source_lag.clone(),
        );
        registry.register(
            "policy_version",
            "Version of the policy in use",
            self.policy_version.clone(),
        );
        registry.register(
            "source_position",
            "Offset that is committed next at the source",
            self.source_position.clone(),
        );
        registry.register(
            "table_files",
            "Files of a table that are finished and committed",
            self.table_files.clone(),
        );
        registry.register(
            "table_open_files",
            "Files of a table that are being written",
            self.table_open_files.clone(),
        );
        registry.register("phase", "1 for the phase that the pipeline is in", self.phase.clone());
        let build: Family<VersionLabel, Gauge> = Family::default();
        build
            .get_or_create(&VersionLabel {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        registry.register("build_info", "The version that runs", build);
    }

    /// The text that Prometheus scrapes.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a `String` cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn component(&self, kind: &'static str) -> Component {
        Component {
            component_id: self.pipeline.clone(),
            component_kind: kind,
            component_type: "kafka",
        }
    }

    /// This version of the policy is in use.
    pub(crate) fn policy_version(&self, version: u64) {
        // Nobody signs 2^53 versions.
        #[allow(clippy::cast_precision_loss)]
        self.policy_version.set(version as f64);
    }

    /// Records were read.
    pub(crate) fn received(&self, events: u64, bytes: u64) {
        let source = self.component("source");
        self.received_events.get_or_create(&source).inc_by(events);
        self.received_bytes.get_or_create(&source).inc_by(bytes);
    }

    /// Records were written and committed.
    pub(crate) fn sent(&self, events: u64, bytes: u64) {
        let sink = self.component("sink");
        self.sent_events.get_or_create(&sink).inc_by(events);
        self.sent_bytes.get_or_create(&sink).inc_by(bytes);
    }

    /// Records became dead letters.
    pub(crate) fn discarded(&self, events: u64) {
        let labels = ErrorLabels {
            component_id: self.pipeline.clone(),
            error_type: "dead_letter",
            stage: "processing",
        };
        self.discarded_events.get_or_create(&labels).inc_by(events);
    }

    /// Errors of that type were met at that stage (`receiving`, `processing`, `sending`).
    pub(crate) fn errors(&self, error_type: &'static str, stage: &'static str, count: u64) {
        let labels = ErrorLabels {
            component_id: self.pipeline.clone(),
            error_type,
            stage,
        };
        self.errors.get_or_create(&labels).inc_by(count);
    }

    /// Data keys were looked for in the cache.
    pub(crate) fn cache(&self, hits: u64, misses: u64) {
        self.cache_hits.inc_by(hits);
        self.cache_misses.inc_by(misses);
    }

    /// How old the oldest key is that seals, and which share of its `max_age` the one closest to its end has passed.
    pub(crate) fn key_age(&self, age: Duration, ratio: f64) {
        self.key_age.set(age.as_secs_f64());
        self.key_age_ratio.set(ratio);
    }

    /// Values were sealed by that flow.
    pub(crate) fn sealed(&self, flow: &'static str, values: u64) {
        self.values_sealed.get_or_create(&FlowLabel { flow }).inc_by(values);
    }

    /// Values of that flow were opened.
    pub(crate) fn opened(&self, flow: &'static str, values: u64) {
        self.values_opened.get_or_create(&FlowLabel { flow }).inc_by(values);
    }

    /// Files of a table were finished, and so many are open.
    pub(crate) fn files(&self, finished: u64, open: u64) {
        self.table_files.inc_by(finished);
        self.table_open_files.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// What the pipeline is doing.
    pub(crate) fn phase(&self, now: Phase) {
        for phase in [Phase::Starting, Phase::Ready, Phase::Waiting, Phase::Draining] {
            let labels = PhaseLabel { phase: phase.name() };
            self.phase.get_or_create(&labels).set(i64::from(phase == now));
        }
    }

    /// How far each partition is; as for [`Self::lags`].
    pub(crate) fn positions(&self, positions: &BTreeMap<(Arc<str>, i32), i64>) {
        set_partitions(&self.source_position, positions);
    }

    /// How far behind each partition is; those that are not in `lags` are another process's now.
    pub(crate) fn lags(&self, lags: &BTreeMap<(Arc<str>, i32), i64>) {
        set_partitions(&self.source_lag, lags);
    }
}

/// Exactly these partitions, with these numbers.
fn set_partitions(family: &Family<PartitionLabel, Gauge<i64, AtomicI64>>, numbers: &BTreeMap<(Arc<str>, i32), i64>) {
    family.clear();
    for ((topic, partition), number) in numbers {
        let labels = PartitionLabel {
            topic: topic.to_string(),
            partition: *partition,
        };
        family.get_or_create(&labels).set(*number);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::kms_metrics::{KMS_OUTCOMES, KmsOperation};

    /// Metrics of which each was seen once.
    fn all() -> Metrics {
        let metrics = Metrics::new("p");
        metrics.received(1, 2);
        metrics.sent(1, 2);
        metrics.discarded(1);
        metrics.errors("x", "sending", 1);
        metrics
            .kms
            .request(KmsOperation::GenerateDataKey, "ok", Duration::from_millis(3));
        metrics.cache(3, 1);
        metrics.key_age(Duration::from_secs(2), 0.5);
        metrics.sealed("direct", 9);
        metrics.opened("direct", 9);
        metrics.policy_version(7);
        metrics.lags(&BTreeMap::from([(("t".into(), 0), 5)]));
        metrics.positions(&BTreeMap::from([(("t".into(), 0), 7)]));
        metrics.files(3, 2);
        metrics.phase(Phase::Ready);
        metrics
    }

    #[test]
    fn every_name_of_the_design_is_scraped() {
        let text = all().encode();
        for line in [
            r#"sealflow_component_received_events_total{component_id="p",component_kind="source",component_type="kafka"} 1"#,
            r#"sealflow_component_sent_events_total{component_id="p",component_kind="sink",component_type="kafka"} 1"#,
            "sealflow_component_discarded_events_total{",
            "sealflow_component_errors_total{",
            r#"sealflow_kms_requests_total{operation="GenerateDataKey",outcome="ok"} 1"#,
            r#"sealflow_kms_request_duration_seconds_count{operation="GenerateDataKey"} 1"#,
            "sealflow_data_key_cache_hits_total 3",
            "sealflow_data_key_cache_misses_total 1",
            "sealflow_data_key_age_seconds 2.0",
            "sealflow_data_key_age_ratio 0.5",
            r#"sealflow_values_sealed_total{flow="direct"} 9"#,
            r#"sealflow_source_lag_records{topic="t",partition="0"} 5"#,
            "sealflow_policy_version 7.0",
            r#"sealflow_source_position{topic="t",partition="0"} 7"#,
            "sealflow_table_files_total 3",
            "sealflow_table_open_files 2",
            r#"sealflow_phase{phase="ready"} 1"#,
            r#"sealflow_phase{phase="waiting"} 0"#,
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn what_alerts_count_the_first_of_is_zero_at_the_first_scrape() {
        let text = Metrics::new("p").encode();
        for operation in ["GenerateDataKey", "Decrypt", "DescribeKey"] {
            for outcome in KMS_OUTCOMES {
                let line =
                    format!("sealflow_kms_requests_total{{operation=\"{operation}\",outcome=\"{outcome}\"}} 0\n");
                assert!(text.contains(&line), "{line} is missing in:\n{text}");
            }
        }
        let dead = r#"sealflow_component_discarded_events_total{component_id="p",error_type="dead_letter",stage="processing"} 0"#;
        assert!(text.contains(dead), "{text}");
    }

    /// Names that look like ours in a file of `docker/`.
    fn names_in(path: &str) -> BTreeSet<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docker").join(path);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("sealflow_"))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn dashboard_and_alerts_name_only_metrics_that_exist() {
        let text = all().encode();
        let scraped: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        for file in [
            "grafana/sealflow.json",
            "prometheus/alerts.yaml",
            "prometheus/alerts_test.yaml",
        ] {
            let names = names_in(file);
            assert!(names.len() >= 7, "{file} names {names:?}");
            for name in names {
                assert!(
                    scraped.contains(name.as_str()),
                    "{file} names {name}, which is not scraped"
                );
            }
        }
    }

    #[test]
    fn the_manual_names_every_metric() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
        let manual = std::fs::read_to_string(path).unwrap();
        for line in all().encode().lines() {
            let Some(name) = line.strip_prefix("# HELP ").and_then(|rest| rest.split(' ').next()) else {
                continue;
            };
            assert!(manual.contains(name), "docs/operations.md does not name {name}");
        }
    }
}
