//! TLS of the local KMS: who has its root gets answers, and nobody else, and nothing is answered in clear.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Kms, Request, config, exchange, exchange_over};
use sealflow_local_kms::{Server, ServerConfig, StartError, TlsConfig};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// An authority of a test, and a server's certificate by it.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            root,
        }
    }

    /// Files of a certificate for localhost.
    fn issue(&self, folder: &Path) -> TlsConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = TlsConfig {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    }
}

fn with(tls: TlsConfig) -> ServerConfig {
    ServerConfig {
        tls: Some(tls),
        ..config()
    }
}

#[tokio::test]
async fn a_server_with_a_certificate_answers_over_tls_to_whom_trusts_it_and_never_in_clear() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let kms = Kms::start(with(authority.issue(folder.path()))).await;
    assert!(kms.server.endpoint().starts_with("https://127.0.0.1:"));
    let arn = kms.server.create_key(None, "", None).unwrap();
    let request = Request::kms("GenerateDataKey", &json!({ "KeyId": arn, "KeySpec": "AES_256" }));
    let bytes = request.sign(kms.addr()).bytes(kms.addr());
    let name = ServerName::try_from("localhost").unwrap();
    let connect = || TcpStream::connect(kms.addr());

    let stream = authority
        .connector()
        .connect(name.clone(), connect().await.unwrap())
        .await;
    let answer = exchange_over(stream.unwrap(), &bytes).await;
    assert_eq!(
        (answer.status, answer.json()["KeyId"].as_str()),
        (200, Some(arn.as_str()))
    );
    assert_eq!(kms.server.requests("GenerateDataKey"), 1);

    let stranger = Authority::new()
        .connector()
        .connect(name, connect().await.unwrap())
        .await;
    assert!(stranger.is_err());
    let other = ServerName::try_from("kms.eu-central-1.amazonaws.com").unwrap();
    assert!(
        authority
            .connector()
            .connect(other, connect().await.unwrap())
            .await
            .is_err()
    );
    // In clear there is no answer, and the request is not even read.
    let clear = exchange(kms.addr(), &bytes).await;
    assert_eq!(clear.status, 0, "{clear:?}");
    assert_eq!(kms.server.requests("GenerateDataKey"), 1);
    kms.server.shutdown().await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_stops_the_start_and_names_the_file() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let good = authority.issue(folder.path());
    let missing = TlsConfig {
        key: folder.path().join("none.pem"),
        ..good.clone()
    };
    let swapped = TlsConfig {
        certificate: good.key.clone(),
        key: good.certificate.clone(),
    };
    for (files, named) in [(missing, "none.pem"), (swapped, "key.pem")] {
        match Server::start(with(files)).await {
            Err(error @ StartError::Tls(_)) => assert!(error.to_string().contains(named), "{error}"),
            other => panic!("{named}: {other:?}"),
        }
    }
}
