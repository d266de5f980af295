//! The S3 requests that object_store 0.13 has not: `ListMultipartUploads`, to find what crashes left half uploaded; and
//! `DeleteObject`, whose refusals it tells in bulk and without a code.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{Method, StatusCode};
use object_store::aws::AwsAuthorizer;
use object_store::client::{CredentialProvider as _, HttpRequest, HttpRequestBody, HttpResponse, HttpService as _};
use object_store::path::Path;
use object_store::{Error, Result};

use crate::bucket::{FIRST_BACKOFF, LONGEST_BACKOFF, fresh};
use crate::credentials::ChainCredentials;
use crate::error::{NoAnswer, meaning};
use crate::transport::Transport;

/// The most of an answer that is read: a thousand uploads with long names.
const MAX_ANSWER: usize = 8 << 20;
/// The most uploads that one look finds; the next look finds the rest.
const MOST: usize = 10_000;

/// An upload that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unfinished {
    /// The whole key.
    pub(crate) key: String,
    pub(crate) id: String,
    /// RFC 3339, UTC, as S3 writes it.
    pub(crate) initiated: String,
}

/// Signs and sends them for one bucket.
pub(crate) struct Requests {
    url: String,
    region: String,
    transport: Transport,
    credentials: Arc<ChainCredentials>,
    attempts: u32,
}

struct Page {
    found: Vec<Unfinished>,
    next: Option<(String, String)>,
}

impl Requests {
    /// `url` is the bucket's own.
    pub(crate) fn new(
        url: String,
        region: String,
        transport: Transport,
        credentials: Arc<ChainCredentials>,
        attempts: u32,
    ) -> Self {
        Self {
            url,
            region,
            transport,
            credentials,
            attempts,
        }
    }

    /// All uploads of keys that begin with `prefix`, up to ten thousand.
    pub(crate) async fn uploads_below(&self, prefix: &str) -> Result<Vec<Unfinished>> {
        let mut found = Vec::new();
        let mut from: Option<(String, String)> = None;
        loop {
            let page = fresh(|| self.page(prefix, from.as_ref())).await?;
            found.extend(page.found);
            match page.next {
                Some(next) if found.len() < MOST && from.as_ref() != Some(&next) => from = Some(next),
                _ => return Ok(found),
            }
        }
    }

    /// Deletes an object; one that is not there is deleted already.
    pub(crate) async fn delete(&self, key: &Path) -> Result<()> {
        let mut url = self.url.clone();
        for segment in key.as_ref().split('/') {
            url = format!("{url}/{}", encoded(segment));
        }
        let answer = fresh(|| self.send(Method::DELETE, &url)).await?;
        if answer.status().is_success() || answer.status() == StatusCode::NOT_FOUND {
            Ok(())
        } else {
            Err(failed("it does not delete the object"))
        }
    }

    /// Sends a request without a body, again if that can help.
    async fn send(&self, method: Method, url: &str) -> Result<HttpResponse> {
        let mut wait = FIRST_BACKOFF;
        for _ in 1..self.attempts {
            match self.send_once(method.clone(), url).await {
                Err(error) if meaning(&error, "").is_retryable() => tokio::time::sleep(wait).await,
                answer => return answer,
            }
            wait = (wait * 2).min(LONGEST_BACKOFF);
        }
        self.send_once(method, url).await
    }

    async fn send_once(&self, method: Method, url: &str) -> Result<HttpResponse> {
        let request = hyper::Request::builder().method(method).uri(url);
        let mut request: HttpRequest = request
            .body(HttpRequestBody::empty())
            .map_err(|_| failed("the address of the bucket is not one that can be asked"))?;
        let credential = self.credentials.get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).authorize(&mut request, None);
        self.transport.call(request).await.map_err(|error| Error::Generic {
            store: "S3",
            source: Box::new(error),
        })
    }

    async fn page(&self, prefix: &str, from: Option<&(String, String)>) -> Result<Page> {
        let mut url = format!("{}?prefix={}&uploads=", self.url, encoded(prefix));
        if let Some((key, id)) = from {
            url = format!("{url}&key-marker={}&upload-id-marker={}", encoded(key), encoded(id));
        }
        let answer = self.send(Method::GET, &url).await?;
        if !answer.status().is_success() {
            return Err(failed("it does not list uploads"));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body
            .map_err(|_| failed("the list of uploads broke off, or is too long"))?
            .to_bytes();
        parse(&body).ok_or_else(|| failed("the list of uploads is none"))
    }
}

fn failed(why: &'static str) -> Error {
    Error::Generic {
        store: "S3",
        source: Box::new(NoAnswer(why)),
    }
}

/// Amazon S3 API Reference, `ListMultipartUploads`.
fn parse(body: &Bytes) -> Option<Page> {
    let document = roxmltree::Document::parse(std::str::from_utf8(body).ok()?).ok()?;
    let root = document.root_element();
    if root.tag_name().name() != "ListMultipartUploadsResult" {
        return None;
    }
    let text = |node: roxmltree::Node<'_, '_>, name: &str| {
        let child = node.children().find(|child| child.tag_name().name() == name)?;
        Some(child.text().unwrap_or_default().to_owned())
    };
    let mut found = Vec::new();
    for node in root.children().filter(|node| node.tag_name().name() == "Upload") {
        found.push(Unfinished {
            key: text(node, "Key")?,
            id: text(node, "UploadId")?,
            initiated: text(node, "Initiated")?,
        });
    }
    let is_truncated = text(root, "IsTruncated").is_some_and(|text| text == "true");
    let next = match (text(root, "NextKeyMarker"), text(root, "NextUploadIdMarker")) {
        (Some(key), Some(id)) if is_truncated => Some((key, id)),
        _ => None,
    };
    Some(Page { found, next })
}

/// As SigV4 wants it: everything but unreserved characters (RFC 3986, section 2.3) as `%XX`.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_uploads_is_read_and_followed() {
        let body = br#"<?xml version="1.0"?><ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Bucket>b</Bucket><NextKeyMarker>a/c</NextKeyMarker><NextUploadIdMarker>i2</NextUploadIdMarker><IsTruncated>true</IsTruncated>
            <Upload><Key>a/b&amp;</Key><UploadId>i1</UploadId><Initiated>2026-01-02T03:04:05.000Z</Initiated></Upload>
            </ListMultipartUploadsResult>"#;
        let page = parse(&Bytes::from_static(body)).unwrap();
        let expected = Unfinished {
            key: "a/b&".to_owned(),
            id: "i1".to_owned(),
            initiated: "2026-01-02T03:04:05.000Z".to_owned(),
        };
        assert_eq!(page.found, [expected]);
        assert_eq!(page.next, Some(("a/c".to_owned(), "i2".to_owned())));
        for bad in [
            &b""[..],
            b"<a/>",
            b"<ListMultipartUploadsResult><Upload/></ListMultipartUploadsResult>",
        ] {
            assert!(parse(&Bytes::from_static(bad)).is_none());
        }
    }

    #[test]
    fn prefixes_are_encoded_as_they_are_signed() {
        assert_eq!(encoded("a/dt=1 b"), "a%2Fdt%3D1%20b");
    }
}
