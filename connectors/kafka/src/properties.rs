//! librdkafka properties: which ones a user may set, and the full sets that clients are made with.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use schemars::JsonSchema;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::config::{KafkaConfig, OffsetReset};
use crate::error::ConfigError;

/// librdkafka properties as written: any name, text, number or boolean. `Debug` and `Serialize` hide secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

/// Properties that the guarantees rest on: exact name, and why it cannot be set.
const OWNED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set `brokers` instead"),
    ("metadata.broker.list", "set `brokers` instead"),
    ("group.id", "set `source.kafka.group` instead"),
    (
        "group.instance.id",
        "it is made of the pipeline's name and `instance`, so that fencing works",
    ),
    (
        "group.protocol",
        "exactly-once is proved with the classic protocol only",
    ),
    (
        "group.remote.assignor",
        "exactly-once is proved with the classic protocol only",
    ),
    ("partition.assignment.strategy", "it is always cooperative-sticky"),
    (
        "enable.auto.commit",
        "offsets are committed in the transaction that writes the records",
    ),
    (
        "auto.commit.enable",
        "offsets are committed in the transaction that writes the records",
    ),
    (
        "auto.commit.interval.ms",
        "offsets are committed in the transaction that writes the records",
    ),
    (
        "enable.auto.offset.store",
        "offsets are committed in the transaction that writes the records",
    ),
    (
        "offset.store.method",
        "offsets are committed in the transaction that writes the records",
    ),
    (
        "isolation.level",
        "it is always read_committed: aborted records must not be sealed",
    ),
    (
        "enable.partition.eof",
        "the end of a partition is followed by other means",
    ),
    (
        "allow.auto.create.topics",
        "use `target.kafka.create: true`, which keeps the partition count",
    ),
    ("statistics.interval.ms", "lag and progress are measured with it"),
    (
        "transactional.id",
        "it is made of the pipeline's name and `instance`, so that fencing works",
    ),
    ("enable.idempotence", "a transactional producer is always idempotent"),
    (
        "enable.gapless.guarantee",
        "a transactional producer must be able to abort",
    ),
    ("acks", "a transactional producer waits for all in-sync replicas"),
    (
        "request.required.acks",
        "a transactional producer waits for all in-sync replicas",
    ),
    ("delivery.report.only.error", "failed deliveries abort the transaction"),
    ("partitioner", "records keep their partition number"),
    ("log.queue", "log lines go through the pipeline's own log"),
];

/// Parts of names whose values are secrets, or may hold one.
const SECRET: &[&str] = &[
    "password",
    "secret",
    "username",
    ".pem",
    "oauthbearer",
    "jaas",
    "token",
    "assertion",
    "keytab",
    "plugin",
];

const HIDDEN: &str = "[redacted]";

impl Properties {
    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One property's value, as written.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets one, or another value of it. What may be set is checked with the rest of the configuration.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// Whether a property of that name is a secret.
    #[must_use]
    pub fn is_secret(name: &str) -> bool {
        SECRET.iter().any(|part| name.contains(part))
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    fn shown(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| {
            (
                name.as_str(),
                if Self::is_secret(name) { HIDDEN } else { value.as_str() },
            )
        })
    }

    /// Refuses what the guarantees own and what librdkafka does not know. `path` is the section's key path.
    pub(crate) fn check(&self, path: &str) -> Result<(), ConfigError> {
        for (name, value) in &self.0 {
            let at = format!("{path}.{name}");
            if let Some((_, why)) = OWNED.iter().find(|(owned, _)| owned == name) {
                return Err(ConfigError::new(
                    at,
                    format!("{name} cannot be set: {why}"),
                    "take the property out",
                ));
            }
            if name == "auto.offset.reset" {
                OffsetReset::parse(value).ok_or_else(|| {
                    ConfigError::new(
                        &at,
                        "expected earliest or latest",
                        "earliest (the default) reads a topic from its start when the group has no offsets yet",
                    )
                })?;
                continue;
            }
            // Its error text is not passed on, as it repeats the value.
            let mut probe = ClientConfig::new();
            probe.set(name, value);
            if let Err(KafkaError::ClientConfig(result, ..)) = probe.create_native_config() {
                return Err(not_taken(&at, name, &format!("{result:?}")));
            }
        }
        Ok(())
    }

    fn apply(&self, config: &mut ClientConfig) {
        for (name, value) in &self.0 {
            if name != "auto.offset.reset" {
                config.set(name, value);
            }
        }
    }
}

fn not_taken(at: &str, name: &str, result: &str) -> ConfigError {
    if result.contains("UNKNOWN") {
        ConfigError::new(
            at,
            format!("librdkafka knows no property {name}"),
            "names are those of librdkafka's CONFIGURATION.md, which differ from the Java client's",
        )
    } else {
        ConfigError::new(
            at,
            format!("librdkafka does not take this value for {name}"),
            "its CONFIGURATION.md lists the range of every property",
        )
    }
}

/// Who a thread group is, for the brokers.
pub(crate) struct Identity<'a> {
    /// `group.id`.
    pub group: &'a str,
    /// `transactional.id` and `group.instance.id`.
    pub member: String,
}

/// The consumer of a thread group.
pub(crate) fn consumer(config: &KafkaConfig, identity: &Identity<'_>, statistics_ms: u32) -> ClientConfig {
    let mut client = base();
    // Bounds of what librdkafka fetches ahead; part of the memory bound, so a user may change them.
    client
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.max.bytes", "16777216")
        // Brokers take requests of 100 MiB by default: a single message that large must be read, to be set aside.
        .set("receive.message.max.bytes", "134217728");
    config.source.properties.apply(&mut client);
    client
        .set("bootstrap.servers", &config.source.brokers)
        .set("group.id", identity.group)
        .set("group.instance.id", &identity.member)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        // Start offsets are resolved when a partition is assigned; what remains is a loss of records at the
        // source, which must be an error and never a silent jump.
        .set("auto.offset.reset", "error")
        .set("statistics.interval.ms", statistics_ms.to_string());
    client
}

/// The transactional producer of a thread group.
pub(crate) fn producer(config: &KafkaConfig, identity: &Identity<'_>) -> ClientConfig {
    let mut client = base();
    client
        .set("compression.codec", "zstd")
        .set("queue.buffering.max.kbytes", "65536")
        // Larger than any broker's default, so that the broker decides on the compressed batch.
        .set("message.max.bytes", "16777216")
        .set("transaction.timeout.ms", "60000");
    if config.target.properties.get("compression.type").is_some() {
        // An alias: with both spellings set, chance would decide.
        client.remove("compression.codec");
    }
    target_properties(config).apply(&mut client);
    client
        .set("bootstrap.servers", config.target_brokers())
        .set("transactional.id", &identity.member)
        .set("delivery.report.only.error", "true");
    client
}

/// A producer whose lines arrive in order and without gaps, or not at all any more.
pub(crate) fn line_producer(brokers: &str, properties: &Properties, patience_ms: &str) -> ClientConfig {
    let mut client = base();
    client.set("message.timeout.ms", patience_ms).set("linger.ms", "1");
    properties.apply(&mut client);
    client
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("acks", "all")
        .set("allow.auto.create.topics", "false")
        .set("delivery.report.only.error", "true");
    client
}

/// The producer of a landing's dead letters: in order and without gaps within a run, or the run ends.
pub(crate) fn letter_producer(config: &KafkaConfig) -> ClientConfig {
    let mut client = base();
    client
        .set("compression.codec", "zstd")
        .set("message.max.bytes", "16777216");
    target_properties(config).apply(&mut client);
    client
        .set("bootstrap.servers", config.target_brokers())
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("allow.auto.create.topics", "false")
        .set("delivery.report.only.error", "true");
    client
}

/// A client that only asks: metadata, watermarks.
pub(crate) fn source_observer(config: &KafkaConfig) -> ClientConfig {
    let mut client = base();
    config.source.properties.apply(&mut client);
    client
        .set("bootstrap.servers", &config.source.brokers)
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false");
    client
}

/// As [`source_observer`], for the target's brokers.
pub(crate) fn target_observer(config: &KafkaConfig) -> ClientConfig {
    let mut client = base();
    target_properties(config).apply(&mut client);
    client
        .set("bootstrap.servers", config.target_brokers())
        .set("allow.auto.create.topics", "false");
    client
}

/// The target's own properties, and below them those of the source that say how to connect, if it is the
/// same cluster: nobody should have to write credentials twice.
fn target_properties(config: &KafkaConfig) -> Properties {
    let mut properties = Properties::default();
    if config.target.brokers.is_none() {
        let connection = config
            .source
            .properties
            .0
            .iter()
            .filter(|(name, _)| is_connection(name));
        properties
            .0
            .extend(connection.map(|(name, value)| (name.clone(), value.clone())));
    }
    properties.0.extend(
        config
            .target
            .properties
            .0
            .iter()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    properties
}

fn is_connection(name: &str) -> bool {
    const PREFIXES: &[&str] = &[
        "security.",
        "ssl.",
        "sasl.",
        "socket.",
        "reconnect.",
        "broker.address",
        "client.",
        "enable.ssl",
        "enable.sasl",
        "https.",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn base() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "sealflow").set_log_level(RDKafkaLogLevel::Info);
    config
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shown()).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.shown())
    }
}

impl FromIterator<(String, String)> for Properties {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(properties: I) -> Self {
        Self(properties.into_iter().collect())
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Properties;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of librdkafka properties")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
                let mut properties = BTreeMap::new();
                while let Some((name, Text(value))) = map.next_entry::<String, Text>()? {
                    if properties.insert(name.clone(), value).is_some() {
                        return Err(de::Error::custom(format_args!("property {name} is given twice")));
                    }
                }
                Ok(Properties(properties))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

impl JsonSchema for Properties {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "KafkaProperties".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "object",
            "description": "librdkafka properties, passed through",
            "additionalProperties": { "type": ["string", "integer", "number", "boolean"] },
        })
    }
}

/// A scalar as librdkafka wants it: text.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number or a boolean")
            }

            fn visit_str<E>(self, value: &str) -> Result<Text, E> {
                Ok(Text(value.to_owned()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}
