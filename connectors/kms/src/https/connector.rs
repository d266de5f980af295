//! The same client, as the AWS SDK takes it.

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use hyper::body::Bytes;

use super::{HttpsClient, HttpsError};

/// Bytes of an answer of KMS: with Recipient at most some 20 KiB.
const MAX_ANSWER: usize = 64 * 1024;

impl HttpClient for HttpsClient {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for HttpsClient {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.clone();
        HttpConnectorFuture::new(async move {
            let request = request
                .try_into_http1x()
                .map_err(|error| ConnectorError::user(error.into()))?;
            let (parts, body) = request.into_parts();
            // Requests to KMS are in memory; one that streams is none.
            let body = body.bytes().ok_or_else(|| as_connector_error(HttpsError::Request))?;
            let body = Bytes::copy_from_slice(body);
            let sent = client.send(http::Request::from_parts(parts, body), MAX_ANSWER).await;
            let answer = sent.map_err(as_connector_error)?.map(SdkBody::from);
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

fn as_connector_error(error: HttpsError) -> ConnectorError {
    match error {
        HttpsError::Timeout { .. } => ConnectorError::timeout(error.into()),
        HttpsError::Dial { .. } | HttpsError::Tls { .. } | HttpsError::Connection { .. } => {
            ConnectorError::io(error.into())
        }
        HttpsError::NotAllowed { .. } | HttpsError::Request => ConnectorError::user(error.into()),
        HttpsError::TooLong { .. } | HttpsError::Status { .. } => ConnectorError::other(error.into(), None),
    }
}
