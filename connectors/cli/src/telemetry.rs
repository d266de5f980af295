//! OpenTelemetry traces of a pipeline: the spans of its batches, sent as OTLP over HTTP in the background.
//!
//! Off unless the pipeline file says so. Spans hold counts, positions and codes, never a value. A collector that is slow or
//! away costs spans, never records: the queue is bounded, and what does not fit is dropped.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use schemars::JsonSchema;
use sealflow::pipeline::SPANS;
use sealflow::secret::SecretString;
use sealflow::units::Span;
use serde::Deserialize;
use tokio::runtime::Handle;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::failure::{Failure, Result};
use crate::http;

/// The most that a collector may answer; nothing of it is used.
const MAX_ANSWER: usize = 64 << 10;
/// How long the last spans may take at the end of a run.
const FLUSH: Duration = Duration::from_secs(5);

/// The `telemetry` section of a pipeline.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TelemetryConfig {
    /// An OpenTelemetry collector. Without it no traces are made.
    pub(crate) otlp: Option<OtlpConfig>,
}

/// An OpenTelemetry collector that takes OTLP over HTTP (binary protobuf).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OtlpConfig {
    /// Its address, such as `http://localhost:4318`; spans go to `/v1/traces` below it.
    pub(crate) endpoint: String,
    /// Share of batches that are traced, 0 to 1.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) sample_ratio: f64,
    /// Further HTTP headers, such as an API key.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, SecretString>,
    /// How long one request may take.
    #[serde(default = "ten_seconds")]
    pub(crate) timeout: Span,
}

fn all() -> f64 {
    1.0
}

fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}

impl TelemetryConfig {
    /// What cannot be meant: key below `otlp`, message, help.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str, &'static str)> {
        let Some(otlp) = &self.otlp else { return Ok(()) };
        let uri: Option<hyper::Uri> = otlp.endpoint.parse().ok();
        let taken = uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() && uri.query().is_none()
        });
        if !taken {
            let help = "write http://HOST:4318; the collector's gRPC port (4317) is not spoken to";
            return Err(("endpoint", "is not http:// or https:// with a host", help));
        }
        if !(0.0..=1.0).contains(&otlp.sample_ratio) {
            return Err(("sample_ratio", "must be between 0 and 1", "1 traces every batch"));
        }
        if otlp.timeout.0.is_zero() || otlp.timeout.0 > Duration::from_secs(60) {
            return Err(("timeout", "must be more than 0ms and at most 1m", "10s is the default"));
        }
        Ok(())
    }
}

/// Where spans go while it lives.
pub(crate) struct Telemetry {
    provider: SdkTracerProvider,
}

impl Telemetry {
    /// Starts the exporter, if there is one.
    pub(crate) fn start(config: &TelemetryConfig, pipeline: &str, instance: &str) -> Result<Option<Self>> {
        let Some(otlp) = &config.otlp else { return Ok(None) };
        let exporter = exporter(otlp)?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(4096)
            .with_max_export_batch_size(512)
            .with_scheduled_delay(Duration::from_secs(2))
            .build();
        // The environment's OTEL_RESOURCE_ATTRIBUTES come in with the builder.
        let resource = Resource::builder()
            .with_service_name("sealflow")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", format!("{pipeline}-{instance}")),
                KeyValue::new("sealflow.pipeline", pipeline.to_owned()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                otlp.sample_ratio,
            ))))
            .with_resource(resource)
            .build();
        Ok(Some(Self { provider }))
    }

    /// Takes the pipeline's spans, and nothing else: log lines are not events of spans here.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + 'static,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("sealflow"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == SPANS))
    }

    /// Sends what is left, and ends.
    pub(crate) async fn flush(self) {
        // It waits for a thread of its own, which waits for this runtime.
        let flushed = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH));
        if !matches!(flushed.await, Ok(Ok(()))) {
            tracing::warn!("the last traces did not reach the collector");
        }
    }
}

fn exporter(otlp: &OtlpConfig) -> Result<SpanExporter> {
    let headers = otlp.headers.iter();
    let headers: HashMap<_, _> = headers
        .map(|(name, value)| (name.clone(), value.expose().to_owned()))
        .collect();
    let base = otlp.endpoint.trim_end_matches('/');
    let built = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{base}/v1/traces"))
        .with_timeout(otlp.timeout.0)
        .with_headers(headers)
        .with_http_client(Transport::new(otlp)?)
        .build();
    // Its message may repeat a header.
    built.map_err(|_| {
        Failure::config(
            "telemetry.otlp: the exporter cannot be made",
            "check endpoint and names of headers",
        )
    })
}

/// The exporter's HTTP: its thread has no runtime, so requests are made on ours.
struct Transport {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    timeout: Duration,
}

impl Transport {
    fn new(otlp: &OtlpConfig) -> Result<Self> {
        let roots = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| {
                Failure::config(
                    format_args!("telemetry.otlp: no trusted certificates: {error}"),
                    "install the system's CA certificates",
                )
            })?;
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(roots.https_or_http().enable_http1().build()),
            runtime: Handle::current(),
            timeout: otlp.timeout.0,
        })
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

#[async_trait]
impl HttpClient for Transport {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, timeout) = (self.client.clone(), self.timeout);
        let sending = async move { http::send(&client, request, MAX_ANSWER, timeout).await };
        self.runtime.spawn(sending).await?
    }
}
