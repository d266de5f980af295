//! The admin port: `/livez`, `/readyz`, `/metrics`. Loopback by default, no state changed over it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::failure::{Exit, Failure, Result};
use crate::metrics::Metrics;

/// What the pipeline is doing, as `/readyz` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Not yet joined, or without keys.
    Starting,
    /// At work.
    Ready,
    /// KMS or catalogue are away; intake has stopped.
    Waiting,
    /// Told to stop; finishes what it holds.
    Draining,
}

/// The current [`Phase`], shared with the admin port.
#[derive(Debug, Default)]
pub(crate) struct Health(AtomicU8);

impl Health {
    /// Moves to `phase`. Once draining there is no way back.
    pub(crate) fn set(&self, phase: Phase) {
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
            (now != Phase::Draining as u8).then_some(phase as u8)
        });
    }

    /// The phase now.
    pub(crate) fn phase(&self) -> Phase {
        match self.0.load(Ordering::SeqCst) {
            1 => Phase::Ready,
            2 => Phase::Waiting,
            3 => Phase::Draining,
            _ => Phase::Starting,
        }
    }
}

/// What the handlers share.
#[derive(Clone)]
struct Admin {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// The admin port, served until it is dropped.
pub(crate) struct AdminServer {
    /// Where it listens; another port than asked for if that was 0.
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl AdminServer {
    /// Listens on `address` and serves in the background.
    pub(crate) async fn start(address: SocketAddr, health: Arc<Health>, metrics: Arc<Metrics>) -> Result<Self> {
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
            if let Err(error) = axum::serve(listener, router(health, metrics)).await {
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

fn router(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Admin { health, metrics })
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    match admin.health.phase() {
        Phase::Ready => (StatusCode::OK, "ok\n"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Waiting => (StatusCode::SERVICE_UNAVAILABLE, "waiting for a service\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

async fn scrape(State(admin): State<Admin>) -> ([(header::HeaderName, &'static str); 1], String) {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.encode())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

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

    #[tokio::test]
    async fn readyz_is_503_unless_the_pipeline_is_at_work() {
        let health = Arc::new(Health::default());
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = AdminServer::start(loopback, health.clone(), Arc::new(Metrics::new("p")))
            .await
            .unwrap();
        assert!(get(server.address, "/livez").await.starts_with("HTTP/1.1 200"));
        for (phase, status) in [
            (Phase::Starting, 503),
            (Phase::Ready, 200),
            (Phase::Waiting, 503),
            (Phase::Ready, 200),
            (Phase::Draining, 503),
        ] {
            health.set(phase);
            let answer = get(server.address, "/readyz").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{phase:?}: {answer}");
        }
        health.set(Phase::Ready);
        assert!(
            get(server.address, "/readyz").await.starts_with("HTTP/1.1 503"),
            "draining is the end"
        );
        assert!(get(server.address, "/metrics").await.contains("sealflow_build_info"));
    }
}
