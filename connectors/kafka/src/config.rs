//! The `kafka` sections of a pipeline's file, and what can be checked of them without a broker.

use std::path::PathBuf;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::properties::Properties;

/// Where records are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSource {
    /// `host:port` of one or more brokers, separated by commas.
    pub brokers: String,
    /// Topics by name. Either this or `pattern`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// A regular expression that must match a topic's whole name. Topics that this pipeline writes and
    /// internal ones (`__…`) are left out; new topics are found within half a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Consumer group; by default the pipeline's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// librdkafka properties of the consumer.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
}

/// Where outcomes are written: at the partition number where they were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaTarget {
    /// Brokers of the target; by default the source's. Only one and the same cluster is exactly-once, so
    /// another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brokers: Option<String>,
    /// The target topic's name, `{topic}` standing for the source's.
    #[serde(default = "default_topic")]
    pub topic: String,
    /// Creates target topics (and the dead letters' topic) that do not exist, with the source's partition
    /// count and the broker's replication factor.
    #[serde(default)]
    pub create: bool,
    /// librdkafka properties of the producer. How to connect (`security.*`, `ssl.*`, `sasl.*`) is taken from
    /// the source where it is not given here.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
}

/// Where records go that cannot be transformed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadLetters {
    /// Topic, on the target's brokers.
    pub topic: String,
    /// Stops the pipeline when more than this share of the last 10,000 records (at least 1,000 of them seen)
    /// went to the dead letters.
    #[serde(default = "default_ratio")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_ratio: f64,
    /// Folder for dead letters that are larger than their topic takes, a file each
    /// (`TOPIC/PARTITION/OFFSET.MILLIS.json`). Without it, such a record stops the pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oversize: Option<PathBuf>,
}

/// All that a pipeline says about Kafka.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaConfig {
    /// `source.kafka`.
    pub source: KafkaSource,
    /// `target.kafka`.
    pub target: KafkaTarget,
    /// `dead_letters`.
    pub dead_letters: Option<DeadLetters>,
}

fn default_topic() -> String {
    "{topic}.sealed".to_owned()
}

fn default_ratio() -> f64 {
    0.01
}

/// Where a partition is read from when the group has no offset for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OffsetReset {
    Earliest,
    Latest,
}

impl OffsetReset {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "earliest" | "smallest" | "beginning" => Some(Self::Earliest),
            "latest" | "largest" | "end" => Some(Self::Latest),
            _ => None,
        }
    }
}

impl KafkaConfig {
    /// Checks what needs no broker: names, templates, patterns, properties.
    ///
    /// # Errors
    /// The first thing that cannot be run, with its key path.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.source.brokers.trim().is_empty() {
            return Err(ConfigError::new(
                "source.kafka.brokers",
                "is empty",
                "write host:port, several with commas",
            ));
        }
        self.check_selection()?;
        self.check_target()?;
        self.source.properties.check("source.kafka.properties")?;
        self.target.properties.check("target.kafka.properties")?;
        if self.target.properties.get("auto.offset.reset").is_some() {
            return Err(ConfigError::new(
                "target.kafka.properties.auto.offset.reset",
                "is a property of consumers",
                "write it under source.kafka.properties",
            ));
        }
        self.check_dead_letters()
    }

    fn check_selection(&self) -> Result<(), ConfigError> {
        match (&self.source.topics[..], &self.source.pattern) {
            ([], None) => Err(ConfigError::new(
                "source.kafka",
                "names no topic",
                "add `topics: [NAME]` or `pattern: \"REGEX\"`",
            )),
            ([_, ..], Some(_)) => Err(ConfigError::new(
                "source.kafka.pattern",
                "cannot stand beside `topics`",
                "keep one of the two",
            )),
            ([], Some(_)) => self.pattern().map(|_| ()),
            (topics, None) => {
                for (index, topic) in topics.iter().enumerate() {
                    check_topic_name(&format!("source.kafka.topics[{index}]"), topic)?;
                    if topics[..index].contains(topic) {
                        let path = format!("source.kafka.topics[{index}]");
                        return Err(ConfigError::new(path, "names a topic twice", "take one out"));
                    }
                }
                Ok(())
            }
        }
    }

    fn check_target(&self) -> Result<(), ConfigError> {
        let path = "target.kafka.topic";
        let template = &self.target.topic;
        let literals = template.replace("{topic}", "");
        if literals.contains(['{', '}']) {
            return Err(ConfigError::new(
                path,
                "only {topic} can stand in braces",
                "write for example \"{topic}.sealed\"",
            ));
        }
        check_topic_name(path, &template.replace("{topic}", "x"))?;
        if literals.is_empty() {
            return Err(ConfigError::new(
                path,
                "the target would be the source",
                "write for example \"{topic}.sealed\"",
            ));
        }
        for topic in &self.source.topics {
            let target = self.target_of(topic);
            check_topic_name(path, &target)?;
            if self.source.topics.contains(&target) {
                return Err(ConfigError::new(
                    path,
                    format!("{target} is a source of this pipeline too"),
                    "name the target so that it is none of the sources",
                ));
            }
        }
        let other_cluster = self
            .target
            .brokers
            .as_ref()
            .is_some_and(|brokers| *brokers != self.source.brokers);
        if other_cluster {
            return Err(ConfigError::new(
                "target.kafka.brokers",
                "must be the source's: a transaction cannot span two clusters",
                "leave it out, and mirror the sealed topic to the other cluster",
            ));
        }
        Ok(())
    }

    fn check_dead_letters(&self) -> Result<(), ConfigError> {
        let Some(dead_letters) = &self.dead_letters else {
            return Ok(());
        };
        check_topic_name("dead_letters.topic", &dead_letters.topic)?;
        if !(0.0..=1.0).contains(&dead_letters.max_ratio) {
            return Err(ConfigError::new(
                "dead_letters.max_ratio",
                "is not between 0 and 1",
                "0.01 is 1 %",
            ));
        }
        let topic = &dead_letters.topic;
        if self.source.topics.contains(topic) || self.source.topics.iter().any(|s| self.target_of(s) == *topic) {
            return Err(ConfigError::new(
                "dead_letters.topic",
                format!("{topic} is a source or a target of this pipeline too"),
                "give the dead letters a topic of their own",
            ));
        }
        Ok(())
    }

    /// The target topic of a source topic.
    #[must_use]
    pub fn target_of(&self, source: &str) -> String {
        self.target.topic.replace("{topic}", source)
    }

    /// Whether this pipeline writes a topic, for some source topic.
    pub(crate) fn writes(&self, topic: &str) -> bool {
        let dead = self.dead_letters.as_ref().is_some_and(|dead| dead.topic == topic);
        dead || match self.target.topic.split_once("{topic}") {
            None => self.target.topic == topic,
            Some((before, after)) if !after.contains("{topic}") => {
                topic.len() > before.len() + after.len() && topic.starts_with(before) && topic.ends_with(after)
            }
            Some(_) => false,
        }
    }

    /// The compiled pattern, anchored at both ends.
    pub(crate) fn pattern(&self) -> Result<Option<Regex>, ConfigError> {
        let Some(pattern) = &self.source.pattern else {
            return Ok(None);
        };
        Regex::new(&format!("^(?:{pattern})$")).map(Some).map_err(|error| {
            ConfigError::new(
                "source.kafka.pattern",
                format!("is not a regular expression: {}", last_line(&error.to_string())),
                "the syntax is that of https://docs.rs/regex; the whole name must match",
            )
        })
    }

    pub(crate) fn offset_reset(&self) -> OffsetReset {
        self.source
            .properties
            .get("auto.offset.reset")
            .and_then(OffsetReset::parse)
            .unwrap_or(OffsetReset::Earliest)
    }

    pub(crate) fn target_brokers(&self) -> &str {
        self.target.brokers.as_deref().unwrap_or(&self.source.brokers)
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ")
}

/// Kafka's rule: 1 to 249 of `[A-Za-z0-9._-]`, neither `.` nor `..`.
pub(crate) fn check_topic_name(path: &str, name: &str) -> Result<(), ConfigError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=249).contains(&name.len()) && name.chars().all(legal) && name != "." && name != ".." {
        return Ok(());
    }
    Err(ConfigError::new(
        path,
        format!("{name:?} is not a topic name"),
        "1 to 249 letters, digits, '.', '_' and '-'",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses the sections as the pipeline's file holds them.
    fn parse(source: &str, target: &str, dead_letters: &str) -> Result<KafkaConfig, serde_json::Error> {
        Ok(KafkaConfig {
            source: serde_json::from_str(source)?,
            target: serde_json::from_str(target)?,
            dead_letters: serde_json::from_str(dead_letters)?,
        })
    }

    fn check(source: &str, target: &str, dead_letters: &str) -> Result<(), (String, String)> {
        let config = parse(source, target, dead_letters).map_err(|error| ("parse".to_owned(), error.to_string()))?;
        config.check().map_err(|error| (error.path, error.message))
    }

    const SOURCE: &str = r#"{"brokers": "b:9092", "topics": ["t"]}"#;

    #[test]
    fn a_small_configuration_is_enough() {
        let config = parse(SOURCE, "{}", "null").ok().filter(|config| config.check().is_ok());
        assert_eq!(config.map(|config| config.target_of("t")), Some("t.sealed".to_owned()));
    }

    #[test]
    fn numbers_and_booleans_are_properties_too() {
        let source = r#"{"brokers": "b", "topics": ["t"], "properties": {"fetch.min.bytes": 10, "check.crcs": true}}"#;
        assert_eq!(check(source, r#"{"properties": {"linger.ms": 2.5}}"#, "null"), Ok(()));
    }

    #[test]
    fn what_cannot_run_is_refused_with_its_key_path() {
        let with = |property: &str| format!(r#"{{"brokers": "b", "topics": ["t"], "properties": {{{property}}}}}"#);
        let cases: &[(&str, &str, &str, &str, &str)] = &[
            (
                r#"{"brokers": " ", "topics": ["t"]}"#,
                "{}",
                "null",
                "source.kafka.brokers",
                "is empty",
            ),
            (r#"{"brokers": "b"}"#, "{}", "null", "source.kafka", "names no topic"),
            (
                r#"{"brokers": "b", "topics": ["t"], "pattern": "t.*"}"#,
                "{}",
                "null",
                "source.kafka.pattern",
                "beside",
            ),
            (
                r#"{"brokers": "b", "pattern": "t("}"#,
                "{}",
                "null",
                "source.kafka.pattern",
                "regular expression",
            ),
            (
                r#"{"brokers": "b", "topics": ["t", "t"]}"#,
                "{}",
                "null",
                "source.kafka.topics[1]",
                "twice",
            ),
            (
                r#"{"brokers": "b", "topics": ["a/b"]}"#,
                "{}",
                "null",
                "source.kafka.topics[0]",
                "not a topic name",
            ),
            (
                r#"{"brokers": "b", "topics": ["t"], "extra": 1}"#,
                "{}",
                "null",
                "parse",
                "unknown field `extra`",
            ),
            (
                SOURCE,
                r#"{"topic": "{topic}"}"#,
                "null",
                "target.kafka.topic",
                "would be the source",
            ),
            (
                SOURCE,
                r#"{"topic": "{table}.x"}"#,
                "null",
                "target.kafka.topic",
                "only {topic}",
            ),
            (
                SOURCE,
                r#"{"topic": "{topic} x"}"#,
                "null",
                "target.kafka.topic",
                "not a topic name",
            ),
            (
                r#"{"brokers": "b", "topics": ["t", "t.sealed"]}"#,
                "{}",
                "null",
                "target.kafka.topic",
                "is a source",
            ),
            (
                SOURCE,
                r#"{"brokers": "other"}"#,
                "null",
                "target.kafka.brokers",
                "cannot span two clusters",
            ),
            (
                SOURCE,
                "{}",
                r#"{"topic": "t"}"#,
                "dead_letters.topic",
                "source or a target",
            ),
            (
                SOURCE,
                "{}",
                r#"{"topic": "t.sealed"}"#,
                "dead_letters.topic",
                "source or a target",
            ),
            (
                SOURCE,
                "{}",
                r#"{"topic": "d", "max_ratio": 2}"#,
                "dead_letters.max_ratio",
                "between 0 and 1",
            ),
            (
                &with(r#""isolation.level": "read_uncommitted""#),
                "{}",
                "null",
                "source.kafka.properties.isolation.level",
                "cannot be set",
            ),
            (
                &with(r#""enable.auto.commit": true"#),
                "{}",
                "null",
                "source.kafka.properties.enable.auto.commit",
                "cannot be set",
            ),
            (
                &with(r#""group.instance.id": "x""#),
                "{}",
                "null",
                "source.kafka.properties.group.instance.id",
                "cannot be set",
            ),
            (
                &with(r#""fetch.min.byte": 1"#),
                "{}",
                "null",
                "source.kafka.properties.fetch.min.byte",
                "knows no property",
            ),
            (
                &with(r#""session.timeout.ms": "soon""#),
                "{}",
                "null",
                "source.kafka.properties.session.timeout.ms",
                "this value",
            ),
            (
                &with(r#""auto.offset.reset": "error""#),
                "{}",
                "null",
                "source.kafka.properties.auto.offset.reset",
                "earliest or latest",
            ),
            (
                SOURCE,
                r#"{"properties": {"transactional.id": "x"}}"#,
                "null",
                "target.kafka.properties.transactional.id",
                "cannot be set",
            ),
            (
                SOURCE,
                r#"{"properties": {"enable.idempotence": false}}"#,
                "null",
                "target.kafka.properties.enable.idempotence",
                "cannot be set",
            ),
            (
                SOURCE,
                r#"{"properties": {"acks": 1}}"#,
                "null",
                "target.kafka.properties.acks",
                "cannot be set",
            ),
        ];
        for (source, target, dead_letters, path, message) in cases {
            let refused = check(source, target, dead_letters);
            let fits = matches!(&refused, Err((at, text)) if at == path && text.contains(message));
            assert!(fits, "{source} {target} {dead_letters}: {refused:?}");
        }
    }

    #[test]
    fn a_pattern_leaves_out_what_the_pipeline_writes() {
        let config = parse(
            r#"{"brokers": "b", "pattern": "pay.*"}"#,
            "{}",
            r#"{"topic": "pay.dead"}"#,
        );
        let writes = |topic: &str| config.as_ref().is_ok_and(|config| config.writes(topic));
        assert!(writes("pay.sealed") && writes("pay.dead"));
        assert!(!writes("pay") && !writes(".sealed"));
    }

    #[test]
    fn secrets_show_neither_in_debug_nor_in_serialised_form_nor_in_errors() {
        let source = r#"{"brokers": "b", "topics": ["t"], "properties": {
            "sasl.password": "canary", "ssl.key.pem": "canary", "sasl.oauthbearer.client.secret": "canary",
            "ssl.keystore.password": "canary", "sasl.username": "canary", "client.id": "shown"}}"#;
        let config = parse(source, "{}", "null").ok();
        let debug = format!("{config:?}");
        let serialised = config
            .and_then(|config| serde_json::to_string(&config.source).ok())
            .unwrap_or_default();
        for text in [debug, serialised] {
            assert!(
                text.contains("shown") && text.contains("[redacted]") && !text.contains("canary"),
                "{text}"
            );
        }
        let refused = check(
            r#"{"brokers": "b", "topics": ["t"], "properties": {"sasl.mechanism.typo": "canary"}}"#,
            "{}",
            "null",
        );
        assert!(!format!("{refused:?}").contains("canary"));
    }
}
