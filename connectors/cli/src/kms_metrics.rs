//! What is counted of requests to the KMS, by pipelines and by the reading service.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds; KMS answers in 5 to 50 ms when it is well.
const KMS_BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// One request to the KMS.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KmsLabels {
    operation: KmsOperation,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OperationLabel {
    operation: KmsOperation,
}

/// The requests that a key service knows, by their names at AWS.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(crate) enum KmsOperation {
    GenerateDataKey,
    Decrypt,
    DescribeKey,
    GetPublicKey,
    GenerateDataKeyPair,
    GenerateMac,
    VerifyMac,
}

impl KmsOperation {
    const ALL: [Self; 7] = [
        Self::GenerateDataKey,
        Self::Decrypt,
        Self::DescribeKey,
        Self::GetPublicKey,
        Self::GenerateDataKeyPair,
        Self::GenerateMac,
        Self::VerifyMac,
    ];
}

/// How a request to the KMS can end.
pub(crate) const KMS_OUTCOMES: [&str; 7] = [
    "ok",
    "not_permitted",
    "refused",
    "key_unusable",
    "throttled",
    "unavailable",
    "other",
];

/// Counters of requests to the KMS.
pub(crate) struct KmsMetrics {
    requests: Family<KmsLabels, Counter>,
    duration: Family<OperationLabel, Histogram>,
}

impl KmsMetrics {
    /// All at zero: series that start with their first event show no increase at it.
    pub(crate) fn new() -> Self {
        let metrics = Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(KMS_BUCKETS)),
        };
        for operation in KmsOperation::ALL {
            for outcome in KMS_OUTCOMES {
                metrics
                    .requests
                    .get_or_create(&KmsLabels { operation, outcome })
                    .inc_by(0);
            }
        }
        metrics
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("kms_requests", "Requests to the KMS", self.requests.clone());
        registry.register(
            "kms_request_duration_seconds",
            "How long the KMS took to answer",
            self.duration.clone(),
        );
    }

    /// The KMS answered, or did not.
    pub(crate) fn request(&self, operation: KmsOperation, outcome: &'static str, took: Duration) {
        self.requests.get_or_create(&KmsLabels { operation, outcome }).inc();
        self.duration
            .get_or_create(&OperationLabel { operation })
            .observe(took.as_secs_f64());
    }
}
