//! What is fetched from issuers and STS: one GET, its answer capped and awaited for a time, redirects never followed.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long a whole answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status; 3xx is an answer like any other.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// There is no answer. Says why in fixed words: addresses may hold what proves somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(pub &'static str);

/// Fetches.
#[async_trait]
pub trait Web: Send + Sync {
    /// `GET url` with exactly these headers, besides `host`. The body has at most `most` bytes.
    ///
    /// # Errors
    /// [`NoAnswer`]
    async fn get(&self, url: &str, headers: &[(&'static str, &str)], most: usize) -> Result<Answer, NoAnswer>;
}

/// HTTPS by the system's roots; `http://` where configuration allows it, which is loopback.
pub struct Https {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl Https {
    /// A client on the current runtime.
    ///
    /// # Errors
    /// If the system's root certificates cannot be read.
    pub fn new() -> std::io::Result<Self> {
        let roots = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())?;
        let connector = roots.https_or_http().enable_http1().build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }
}

#[async_trait]
impl Web for Https {
    async fn get(&self, url: &str, headers: &[(&'static str, &str)], most: usize) -> Result<Answer, NoAnswer> {
        let mut request = Request::get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Empty::new())
            .map_err(|_| NoAnswer("the address is not one that can be asked"))?;
        let answer = async {
            let answer = self.client.request(request).await;
            let (head, body) = answer
                .map_err(|_| NoAnswer("there is no connection, or its certificate is not trusted"))?
                .into_parts();
            let body = Limited::new(body, most).collect().await;
            let body = body.map_err(|_| NoAnswer("the answer broke off, or is too long"))?;
            Ok(Answer {
                status: head.status.as_u16(),
                body: body.to_bytes(),
            })
        };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer("there is no answer in time")),
        }
    }
}
