//! The text of `/metrics`, read into the numbers that `top` shows. Nothing here fails: what is not understood is left out.

use std::collections::BTreeMap;

use serde::Serialize;

/// What one admin port said at one moment. Counters count from the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Snapshot {
    pub(super) pipeline: String,
    pub(super) version: String,
    /// Shown as the pipeline's, which also knows `unreachable`.
    #[serde(skip)]
    pub(super) phase: String,
    pub(super) policy_version: Option<f64>,
    pub(super) records_read: f64,
    pub(super) records_committed: f64,
    pub(super) bytes_read: f64,
    pub(super) bytes_committed: f64,
    pub(super) dead_letters: f64,
    pub(super) errors: f64,
    pub(super) values: f64,
    pub(super) cache_hits: f64,
    pub(super) cache_misses: f64,
    pub(super) key_age_seconds: f64,
    pub(super) kms_requests: f64,
    pub(super) kms_failures: f64,
    pub(super) kms_seconds: f64,
    #[serde(skip)]
    pub(super) partitions: BTreeMap<(String, i32), Partition>,
}

/// One partition of the source.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Partition {
    pub(super) lag: f64,
    pub(super) position: Option<f64>,
}

/// Reads Prometheus' (or OpenMetrics') text.
pub(super) fn read(text: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, labels, value) in text.lines().filter_map(sample) {
        let label = |wanted: &str| {
            let found = labels.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let name = name.strip_prefix("sealflow_").unwrap_or_default();
        match name {
            "component_received_events_total" => {
                snapshot.pipeline = label("component_id");
                snapshot.records_read += value;
            }
            "component_received_bytes_total" => snapshot.bytes_read += value,
            "component_sent_events_total" => snapshot.records_committed += value,
            "component_sent_bytes_total" => snapshot.bytes_committed += value,
            "component_discarded_events_total" => snapshot.dead_letters += value,
            "component_errors_total" => snapshot.errors += value,
            "values_sealed_total" | "values_opened_total" => snapshot.values += value,
            "data_key_cache_hits_total" => snapshot.cache_hits += value,
            "data_key_cache_misses_total" => snapshot.cache_misses += value,
            "data_key_age_seconds" => snapshot.key_age_seconds = snapshot.key_age_seconds.max(value),
            "kms_requests_total" => {
                snapshot.kms_requests += value;
                snapshot.kms_failures += if label("outcome") == "ok" { 0.0 } else { value };
            }
            "kms_request_duration_seconds_sum" => snapshot.kms_seconds += value,
            "phase" if value > 0.0 => snapshot.phase = label("phase"),
            "build_info" => snapshot.version = label("version"),
            "policy_version" => snapshot.policy_version = Some(value),
            "source_lag_records" | "source_position" => {
                let Ok(number) = label("partition").parse() else {
                    continue;
                };
                let partition = snapshot.partitions.entry((label("topic"), number)).or_default();
                if name == "source_position" {
                    partition.position = Some(value);
                } else {
                    partition.lag = value;
                }
            }
            _ => (),
        }
    }
    snapshot
}

type Labels = Vec<(String, String)>;

/// `name{label="value",…} number`
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    // A time stamp may follow.
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((name, labels, value))
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        loop {
            match characters.next()? {
                (at, '"') => {
                    rest = &quoted[at + 1..];
                    break;
                }
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        }
        labels.push((name.to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_summed_over_labels_and_partitions_kept_apart() {
        let snapshot = read(concat!(
            "# HELP sealflow_component_received_events Records read.\n",
            "sealflow_component_received_events_total{component_id=\"p\",component_kind=\"source\"} 5\n",
            "sealflow_component_errors_total{component_id=\"p\",error_type=\"a\"} 1\n",
            "sealflow_component_errors_total{component_id=\"p\",error_type=\"b\"} 2\n",
            "sealflow_kms_requests_total{operation=\"Decrypt\",outcome=\"ok\"} 7\n",
            "sealflow_kms_requests_total{operation=\"Decrypt\",outcome=\"throttled\"} 1\n",
            "sealflow_phase{phase=\"ready\"} 0\nsealflow_phase{phase=\"waiting\"} 1\n",
            "sealflow_source_lag_records{topic=\"t\",partition=\"1\"} 9 1700000000\n",
            "sealflow_source_position{topic=\"t\",partition=\"1\"} 40\n",
            "sealflow_build_info{version=\"0.1.0\"} 1\n# EOF\n",
        ));
        assert_eq!((snapshot.pipeline.as_str(), snapshot.records_read), ("p", 5.0));
        assert_eq!(
            (snapshot.errors, snapshot.kms_requests, snapshot.kms_failures),
            (3.0, 8.0, 1.0)
        );
        assert_eq!(
            (snapshot.phase.as_str(), snapshot.version.as_str()),
            ("waiting", "0.1.0")
        );
        let partition = snapshot.partitions[&("t".to_owned(), 1)];
        assert_eq!((partition.lag, partition.position), (9.0, Some(40.0)));
    }

    #[test]
    fn label_values_may_hold_what_syntax_is_made_of() {
        let (_, labels, value) = sample(r#"x{a="},\"\\\n",b="é"} 2.5"#).unwrap();
        assert_eq!(
            labels,
            [
                ("a".to_owned(), "},\"\\\n".to_owned()),
                ("b".to_owned(), "é".to_owned())
            ]
        );
        assert!((value - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn what_is_no_metric_is_left_out() {
        for line in [
            "",
            "x",
            "x{",
            "x{a=\"",
            "x{a=\"b\"}",
            "x{a} 1",
            "x NaN",
            "<html>",
            "x{a=\"\\",
        ] {
            assert!(sample(line).is_none(), "{line}");
        }
        assert_eq!(read("<html>not found</html>"), Snapshot::default());
    }
}
