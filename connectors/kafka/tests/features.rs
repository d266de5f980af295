//! What librdkafka must have compiled in, whatever machine it was built on.

#![allow(clippy::expect_used)] // tests

use rdkafka::ClientConfig;

#[test]
fn tls_sasl_and_every_codec_are_compiled_in() {
    let config = ClientConfig::new()
        .create_native_config()
        .expect("an empty configuration is valid");
    let features = config.get("builtin.features").expect("librdkafka says what it has");
    let has: Vec<&str> = features.split(',').collect();
    for feature in [
        "ssl",
        "sasl_plain",
        "sasl_scram",
        "sasl_oauthbearer",
        "oidc",
        "gzip",
        "snappy",
        "lz4",
        "zstd",
    ] {
        assert!(has.contains(&feature), "{feature} is not among {features}");
    }
}
