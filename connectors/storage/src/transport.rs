//! The HTTP of buckets, in place of object_store's: the TLS that all of Sealflow uses, timeouts for every step, answers by
//! meaning. It follows no redirect. Whether a request is repeated is decided above it; every one that goes through here may be.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, HeaderValue, IF_NONE_MATCH};
use hyper::{Method, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use tokio::time::Sleep;

use crate::credentials::ChainCredentials;
use crate::error::{NO_CODE, NoAnswer, Refusal, is_stale};
use crate::options::BucketConfigError;

/// The most of an error's body that is looked at.
const MAX_ERROR: usize = 64 << 10;
/// Longer codes than S3 has are not passed on.
const MAX_CODE: usize = 64;
/// What is sent adds a second for each of these.
const SLOWEST_PER_SECOND: u64 = 1 << 20;
/// S3 closes idle connections after some 20 s (it says nowhere when): ours go first.
const IDLE: Duration = Duration::from_secs(15);

/// One pool of connections, for one bucket.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    client: Client<HttpsConnector<TcpConnector>, HttpRequestBody>,
    timeout: Duration,
    credentials: Arc<ChainCredentials>,
}

impl Transport {
    /// A client on the runtime that first uses it. `timeout` is for the beginning of an answer, and for each further piece.
    pub(crate) fn new(
        timeout: Duration,
        connect_timeout: Duration,
        credentials: Arc<ChainCredentials>,
    ) -> Result<Self, BucketConfigError> {
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_timeout.min(timeout)));
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|_| BucketConfigError::NoCertificates)?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Ok(Self {
            client,
            timeout,
            credentials,
        })
    }

    /// How long the answer to so many bytes may take to begin.
    fn patience(&self, sent: u64) -> Duration {
        self.timeout + Duration::from_secs(sent / SLOWEST_PER_SECOND)
    }

    /// What an answer other than yes comes to. Absent, unmodified and failed preconditions stay answers, which object_store
    /// understands; so does a success.
    async fn judge(&self, answer: HttpResponse, access_key_id: Option<String>) -> Result<HttpResponse, HttpError> {
        let status = answer.status();
        if status.is_success() || matches!(status, StatusCode::NOT_MODIFIED | StatusCode::PRECONDITION_FAILED) {
            return Ok(answer);
        }
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ERROR).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let refusal = Refusal {
            status: status.as_u16(),
            code: code(&body).unwrap_or_else(|| NO_CODE.to_owned()),
        };
        if status == StatusCode::NOT_FOUND && refusal.code != "NoSuchBucket" {
            return Ok(HttpResponse::from_parts(head, Bytes::new().into()));
        }
        if is_stale(&refusal)
            && let Some(key) = access_key_id
        {
            tracing::info!("the object store no longer takes the credentials; asking their provider for others");
            self.credentials.forget(&key).await;
        }
        let kind = if is_worth_repeating(&refusal) {
            HttpErrorKind::Request
        } else {
            HttpErrorKind::Unknown
        };
        Err(HttpError::new(kind, refusal))
    }
}

/// object_store repeats what fails as [`HttpErrorKind::Request`] whatever its method: all of ours may be repeated, as puts carry a
/// token by which they know their own object again ([`Bucket`](crate::bucket::Bucket)).
fn is_worth_repeating(refusal: &Refusal) -> bool {
    matches!(refusal.status, 408 | 409 | 429 | 500 | 502..)
        || matches!(refusal.code.as_str(), "RequestTimeout" | "SlowDown")
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if is_completion(&request) {
            request
                .headers_mut()
                .insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let access_key_id = signed_by(&request);
        let patience = self.patience(request.body().content_length() as u64);
        let answer = match tokio::time::timeout(patience, self.client.request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.is_connect() => {
                let why = NoAnswer("there is no connection, or its certificate is not trusted");
                return Err(HttpError::new(HttpErrorKind::Connect, why));
            }
            Ok(Err(_)) => {
                return Err(HttpError::new(
                    HttpErrorKind::Request,
                    NoAnswer("the connection broke off"),
                ));
            }
            Err(_) => return Err(HttpError::new(HttpErrorKind::Request, NoAnswer("no answer in time"))),
        };
        let timeout = self.timeout;
        let answer = answer.map(|body| HttpResponseBody::new(Patient::new(body, timeout)));
        self.judge(answer, access_key_id).await
    }
}

/// The same client for whoever asks: its options are ours, not object_store's.
impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// Whether this is `CompleteMultipartUpload`. object_store 0.13 completes unconditionally; no object of ours is ever replaced, so
/// the condition is put in here. Signature Version 4 leaves headers other than `host` and `x-amz-*` unsigned where they are not
/// named, and object_store itself adds this one, for its copies, after it has signed.
fn is_completion(request: &HttpRequest) -> bool {
    let mut parameters = request.uri().query().unwrap_or_default().split('&');
    *request.method() == Method::POST && parameters.any(|parameter| parameter.starts_with("uploadId="))
}

/// The access key id in `AWS4-HMAC-SHA256 Credential=ID/DATE/…`.
fn signed_by(request: &HttpRequest) -> Option<String> {
    let header = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (_, credential) = header.split_once("Credential=")?;
    credential.split('/').next().map(ToOwned::to_owned)
}

/// The `<Code>` of an error document. A code is a word; what a strange endpoint sends instead does not reach messages.
fn code(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_word =
        !code.is_empty() && code.len() <= MAX_CODE && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    is_word.then(|| code.to_owned())
}

/// A body whose every piece comes within the timeout, or that broke off. The time between two reads is the reader's own.
struct Patient {
    body: Incoming,
    timeout: Duration,
    is_waiting: bool,
    deadline: Pin<Box<Sleep>>,
}

impl Patient {
    fn new(body: Incoming, timeout: Duration) -> Self {
        Self {
            body,
            timeout,
            is_waiting: false,
            deadline: Box::pin(tokio::time::sleep(timeout)),
        }
    }
}

impl Body for Patient {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let broken = |why| HttpError::new(HttpErrorKind::Request, NoAnswer(why));
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.is_waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(|_| broken("the answer broke off"))));
        }
        if !self.is_waiting {
            let deadline = tokio::time::Instant::now() + self.timeout;
            self.deadline.as_mut().reset(deadline);
            self.is_waiting = true;
        }
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(broken("the answer stopped coming")))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_words_or_nothing() {
        assert_eq!(
            code(b"<Error><Code>SlowDown</Code></Error>").as_deref(),
            Some("SlowDown")
        );
        for bad in [
            &b""[..],
            b"<Code>",
            b"<Code></Code>",
            b"<Code>hunter2 is it</Code>",
            b"\xff<Code>A</Code>",
        ] {
            assert_eq!(code(bad), None);
        }
    }

    #[test]
    fn only_the_completion_of_an_upload_gets_the_condition() {
        let request = |method: Method, uri: &str| {
            let built = hyper::Request::builder().method(method).uri(uri);
            built.body(HttpRequestBody::empty()).unwrap()
        };
        assert!(is_completion(&request(Method::POST, "http://a/b/c?uploadId=x")));
        assert!(!is_completion(&request(Method::POST, "http://a/b/c?uploads")));
        assert!(!is_completion(&request(Method::POST, "http://a/b?delete")));
        assert!(!is_completion(&request(
            Method::PUT,
            "http://a/b/c?partNumber=1&uploadId=x"
        )));
        assert!(!is_completion(&request(Method::DELETE, "http://a/b/c?uploadId=x")));
    }

    #[test]
    fn the_signer_is_read_from_the_signature() {
        let mut request = hyper::Request::new(HttpRequestBody::empty());
        assert_eq!(signed_by(&request), None);
        let value =
            "AWS4-HMAC-SHA256 Credential=AKIA1/20260101/eu-central-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        request
            .headers_mut()
            .insert(AUTHORIZATION, HeaderValue::from_static(value));
        assert_eq!(signed_by(&request).as_deref(), Some("AKIA1"));
    }
}
