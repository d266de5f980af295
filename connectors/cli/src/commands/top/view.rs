//! From two snapshots of each admin port to what is shown: rates, lag, shares. Pure: time comes in as a number.

use std::time::Duration;

use serde::Serialize;

use super::scrape::Snapshot;

/// An answer, and when it came.
type Answer = (Duration, Snapshot);

/// What is known of one admin port.
#[derive(Clone, Debug)]
pub(super) struct Port {
    /// Its address, as given.
    pub(super) admin: String,
    /// The newest answer and the one before, each with its time since the start.
    newest: Option<Answer>,
    before: Option<Answer>,
    /// Why the newest question had no answer.
    failure: Option<String>,
}

impl Port {
    /// Nothing known yet.
    pub(super) fn new(admin: &str) -> Self {
        Self {
            admin: admin.to_owned(),
            newest: None,
            before: None,
            failure: None,
        }
    }

    /// Takes an answer in. One that does not answer keeps what was last known of it.
    pub(super) fn update(&mut self, at: Duration, answer: Result<Snapshot, String>) {
        match answer {
            Ok(snapshot) => {
                self.before = self.newest.replace((at, snapshot));
                self.failure = None;
            }
            Err(failure) => {
                self.failure = Some(failure);
                // A rate over a time without answers would be a guess.
                self.before = None;
            }
        }
    }

    /// Whether it answered when it was last asked.
    pub(super) fn is_there(&self) -> bool {
        self.failure.is_none() && self.newest.is_some()
    }
}

/// One pipeline process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Pipeline {
    pub(super) admin: String,
    /// `starting`, `ready`, `waiting`, `draining`, or `unreachable`.
    pub(super) phase: String,
    /// Why it is unreachable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<String>,
    pub(super) records_per_second: Option<f64>,
    pub(super) bytes_read_per_second: Option<f64>,
    pub(super) bytes_committed_per_second: Option<f64>,
    pub(super) values_per_second: Option<f64>,
    pub(super) lag: f64,
    pub(super) cache_hit_ratio: Option<f64>,
    pub(super) kms_mean_seconds: Option<f64>,
    #[serde(flatten)]
    pub(super) totals: Snapshot,
    pub(super) partitions: Vec<PartitionView>,
}

/// One partition of a pipeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PartitionView {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) lag: f64,
    pub(super) position: Option<f64>,
    pub(super) offsets_per_second: Option<f64>,
}

/// What is shown of these ports; partitions that are furthest behind come first.
pub(super) fn view(ports: &[Port]) -> Vec<Pipeline> {
    ports.iter().map(pipeline).collect()
}

fn pipeline(port: &Port) -> Pipeline {
    let empty = Snapshot::default();
    let (now, before) = (port.newest.as_ref(), port.before.as_ref());
    let snapshot = now.map_or(&empty, |(_, snapshot)| snapshot);
    let seconds = now
        .zip(before)
        .map(|((now, _), (before, _))| now.saturating_sub(*before).as_secs_f64());
    let rate = |of: &dyn Fn(&Snapshot) -> f64| {
        let (_, before) = before?;
        per_second(of(snapshot), of(before), seconds?)
    };
    let phase = match (port.is_there(), snapshot.phase.as_str()) {
        (false, _) => "unreachable",
        (true, "") => "unknown",
        (true, phase) => phase,
    };
    let lookups = snapshot.cache_hits + snapshot.cache_misses;
    let mut partitions: Vec<_> = snapshot
        .partitions
        .iter()
        .map(|((topic, number), partition)| PartitionView {
            topic: topic.clone(),
            partition: *number,
            lag: partition.lag,
            position: partition.position,
            offsets_per_second: before.and_then(|(_, before)| {
                let before = before.partitions.get(&(topic.clone(), *number))?;
                per_second(partition.position?, before.position?, seconds?)
            }),
        })
        .collect();
    partitions.sort_by(|a, b| b.lag.total_cmp(&a.lag));
    Pipeline {
        admin: port.admin.clone(),
        phase: phase.to_owned(),
        failure: port.failure.clone(),
        records_per_second: rate(&|s| s.records_committed + s.dead_letters),
        bytes_read_per_second: rate(&|s| s.bytes_read),
        bytes_committed_per_second: rate(&|s| s.bytes_committed),
        values_per_second: rate(&|s| s.values),
        lag: partitions.iter().map(|partition| partition.lag).sum(),
        cache_hit_ratio: (lookups > 0.0).then(|| snapshot.cache_hits / lookups),
        kms_mean_seconds: (snapshot.kms_requests > 0.0).then(|| snapshot.kms_seconds / snapshot.kms_requests),
        totals: snapshot.clone(),
        partitions,
    }
}

/// `None` after a restart, which begins at zero again.
fn per_second(now: f64, before: f64, seconds: f64) -> Option<f64> {
    (seconds > 0.0 && now >= before).then(|| (now - before) / seconds)
}

/// `12.3k`, for people.
pub(super) fn short(number: f64) -> String {
    for (limit, unit) in [(1e9, "G"), (1e6, "M"), (1e4, "k")] {
        if number >= limit {
            let scaled = number / if unit == "k" { 1e3 } else { limit };
            return format!("{scaled:.1}{unit}");
        }
    }
    format!("{number:.0}")
}

/// As [`short`], `-` for what is not known.
pub(super) fn maybe(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), short)
}

/// `4m 10s`, for people.
pub(super) fn span(seconds: f64) -> String {
    let whole = Duration::from_secs_f64(seconds.clamp(0.0, 1e9)).as_secs();
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s:02}s"),
        (h, m, _) => format!("{h}h {m:02}m"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::scrape::read;
    use super::*;

    /// A port seen twice, two seconds apart, in different states.
    pub(in super::super) fn seen() -> Vec<Port> {
        let text = |records: u32, phase: &str| {
            read(&format!(
                "sealflow_component_received_events_total{{component_id=\"payments-seal\"}} {records}\n\
                 sealflow_component_sent_events_total{{component_id=\"payments-seal\"}} {records}\n\
                 sealflow_component_received_bytes_total{{}} {}\nsealflow_component_sent_bytes_total{{}} {}\n\
                 sealflow_component_discarded_events_total{{}} 2\nsealflow_component_errors_total{{}} 1\n\
                 sealflow_values_sealed_total{{flow=\"direct\"}} {}\n\
                 sealflow_data_key_cache_hits_total 99\nsealflow_data_key_cache_misses_total 1\n\
                 sealflow_data_key_age_seconds 250.5\nsealflow_phase{{phase=\"{phase}\"}} 1\n\
                 sealflow_kms_requests_total{{outcome=\"ok\"}} 4\nsealflow_kms_request_duration_seconds_sum{{}} 0.1\n\
                 sealflow_build_info{{version=\"0.1.0\"}} 1\nsealflow_policy_version 3\n\
                 sealflow_source_lag_records{{topic=\"payments\",partition=\"0\"}} 12\n\
                 sealflow_source_position{{topic=\"payments\",partition=\"0\"}} {records}\n\
                 sealflow_source_lag_records{{topic=\"payments\",partition=\"1\"}} 34567\n",
                records * 400,
                records * 700,
                records * 3
            ))
        };
        let (start, later) = (Duration::from_secs(10), Duration::from_secs(12));
        let mut ready = Port::new("http://127.0.0.1:9464");
        ready.update(start, Ok(text(1_000, "ready")));
        ready.update(later, Ok(text(31_000, "ready")));
        let mut restarted = Port::new("http://10.0.0.2:9464");
        restarted.update(start, Ok(text(9_000, "ready")));
        restarted.update(later, Ok(text(50, "waiting")));
        let mut gone = Port::new("http://10.0.0.3:9464");
        gone.update(start, Ok(text(500, "ready")));
        gone.update(later, Err("connection refused".to_owned()));
        vec![ready, restarted, gone, Port::new("http://10.0.0.4:9464")]
    }

    #[test]
    fn rates_are_differences_over_time() {
        let ports = seen();
        let pipelines = view(&ports);
        assert_eq!(pipelines[0].records_per_second, Some(15_000.0));
        assert_eq!(pipelines[0].bytes_read_per_second, Some(6_000_000.0));
        assert_eq!(pipelines[0].cache_hit_ratio, Some(0.99));
        assert_eq!(
            pipelines[0].partitions[0].partition, 1,
            "the furthest behind comes first"
        );
        assert_eq!(pipelines[0].partitions[1].offsets_per_second, Some(15_000.0));
    }

    #[test]
    fn a_restart_has_no_rate_instead_of_a_wrong_one() {
        let pipelines = view(&seen());
        assert_eq!(
            (pipelines[1].records_per_second, pipelines[1].phase.as_str()),
            (None, "waiting")
        );
    }

    #[test]
    fn a_port_that_goes_away_is_named_and_keeps_what_was_last_known() {
        let mut ports = seen();
        let gone = view(&ports).remove(2);
        assert_eq!((gone.phase.as_str(), gone.totals.records_read), ("unreachable", 500.0));
        assert_eq!(gone.failure.as_deref(), Some("connection refused"));
        ports[2].update(Duration::from_secs(14), Ok(Snapshot::default()));
        assert!(ports[2].is_there(), "and it may come back");
    }

    #[test]
    fn numbers_are_short_for_people() {
        let shown = [0.4, 999.0, 9_999.0, 10_000.0, 12_345_678.0, 3e9].map(short);
        assert_eq!(shown, ["0", "999", "9999", "10.0k", "12.3M", "3.0G"]);
        assert_eq!([7.0, 250.5, 7_300.0].map(span), ["7s", "4m 10s", "2h 01m"]);
    }
}
