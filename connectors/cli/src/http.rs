//! What the command asks over HTTP itself: admin ports and OpenTelemetry collectors. Answers are capped, and awaited so long.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;

/// Why there is no answer, in words that fit after a colon.
pub(crate) type HttpError = Box<dyn std::error::Error + Send + Sync>;

/// A client for `http://`.
pub(crate) fn plain() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Sends a request; the whole answer must be there after `patience` and have at most `most` bytes.
pub(crate) async fn send<C>(
    client: &Client<C, Full<Bytes>>,
    request: Request<Bytes>,
    most: usize,
    patience: Duration,
) -> Result<Response<Bytes>, HttpError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let answer = async {
        let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
        let body = Limited::new(body, most).collect().await?.to_bytes();
        Ok::<_, HttpError>(Response::from_parts(head, body))
    };
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer,
        Err(_) => Err("no answer in time".into()),
    }
}
