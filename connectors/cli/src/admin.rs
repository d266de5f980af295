//! The admin port: `/livez`, `/readyz`, `/metrics`. Loopback by default, no state changed over it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::failure::{Exit, Failure, Result};
use crate::status::Phase;

/// Whose port it is.
pub(crate) trait Watched: Send + Sync + 'static {
    /// What it is doing.
    fn phase(&self) -> Phase;
    /// The text that Prometheus scrapes, as of now.
    fn scrape(&self) -> String;
}

/// The admin port, served until it is dropped.
pub(crate) struct AdminServer {
    /// Where it listens; another port than asked for if that was 0.
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl AdminServer {
    /// Listens on `address` and serves in the background.
    pub(crate) async fn start(address: SocketAddr, status: Arc<dyn Watched>) -> Result<Self> {
        let bound = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            std::io::Result::Ok((listener, address))
        };
        let (listener, address) = bound.await.map_err(|error| {
            let message = format!("cannot listen on {address} for the admin port: {error}");
            Failure::new(
                Exit::Unavailable,
                message,
                "choose another `admin.listen`, or stop what listens there",
            )
        })?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the admin port is not on loopback: everybody who reaches it reads the metrics");
        }
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router(status)).await {
                tracing::error!(%error, "the admin port stopped");
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(status: Arc<dyn Watched>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(status)
}

async fn readyz(State(status): State<Arc<dyn Watched>>) -> (StatusCode, &'static str) {
    match status.phase() {
        Phase::Ready => (StatusCode::OK, "ok\n"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Waiting => (StatusCode::SERVICE_UNAVAILABLE, "waiting for a service\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

async fn scrape(State(status): State<Arc<dyn Watched>>) -> ([(header::HeaderName, &'static str); 1], String) {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], status.scrape())
}

#[cfg(test)]
mod tests {
    use sealflow::clock::ManualClock;
    use sealflow::keys::SealingKeys;
    use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
    use sealflow::pipeline::Counters;
    use sealflow::seal::UsageLimits;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::metrics::Metrics;
    use crate::status::Status;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn status() -> Arc<Status> {
        let clock = Arc::new(ManualClock::default());
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        let sealing = SealingKeys::new(kms, catalogue, clock, UsageLimits::STANDARD);
        Arc::new(Status::new(
            Arc::default(),
            Arc::default(),
            sealing,
            None,
            Arc::new(Metrics::new("p")),
        ))
    }

    #[tokio::test]
    async fn readyz_is_503_unless_records_flow() {
        let status = status();
        let counters = Arc::clone(&status.counters);
        let server = AdminServer::start(SocketAddr::from(([127, 0, 0, 1], 0)), status)
            .await
            .unwrap();
        let ready = async |expected: &str| {
            let answer = get(server.address, "/readyz").await;
            assert!(
                answer.starts_with("HTTP/1.1") && answer.contains(expected),
                "{expected}: {answer}"
            );
        };
        assert!(get(server.address, "/livez").await.starts_with("HTTP/1.1 200"));
        ready("503 Service Unavailable").await;
        counters.set_started();
        ready("200 OK").await;
        Counters::add(&counters.waiting, 1);
        ready("waiting for a service").await;
        counters.waiting.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        ready("200 OK").await;
        counters.set_draining();
        ready("draining").await;
    }

    #[tokio::test]
    async fn metrics_are_those_of_the_moment() {
        let status = status();
        let counters = Arc::clone(&status.counters);
        let server = AdminServer::start(SocketAddr::from(([127, 0, 0, 1], 0)), status)
            .await
            .unwrap();
        for (read, expected) in [
            (
                5,
                "events_total{component_id=\"p\",component_kind=\"source\",component_type=\"kafka\"} 5",
            ),
            (2, "} 7"),
        ] {
            Counters::add(&counters.records_read, read);
            let answer = get(server.address, "/metrics").await;
            assert!(answer.contains(expected), "{answer}");
        }
    }
}
