//! A client of the service, on OpenSSL: another implementation of TLS than the service's.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use openssl::ssl::{SslConnector, SslMethod, SslStream};
use openssl::x509::X509;
use serde_json::Value;

#[derive(Clone)]
pub(crate) struct Client {
    connector: SslConnector,
    pub(crate) address: SocketAddr,
}

/// What the service answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn code(&self) -> String {
        let json = self.json();
        assert!(
            self.head.to_lowercase().contains("application/problem+json"),
            "{self:?}"
        );
        assert_eq!(json["status"].as_u64(), Some(u64::from(self.status)));
        json["code"].as_str().unwrap().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| line.split(':').next().unwrap().eq_ignore_ascii_case(name);
        self.head
            .lines()
            .find(named)
            .map(|line| line.split_once(':').unwrap().1.trim())
    }
}

impl Client {
    pub(crate) fn new(root: &X509, address: SocketAddr) -> Self {
        let mut builder = SslConnector::builder(SslMethod::tls()).unwrap();
        builder.cert_store_mut().add_cert(root.clone()).unwrap();
        Self {
            connector: builder.build(),
            address,
        }
    }

    pub(crate) fn connect(&self) -> SslStream<TcpStream> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        self.connector.connect("127.0.0.1", stream).unwrap()
    }

    /// One request on a connection of its own.
    pub(crate) fn ask(&self, line: &str, authorization: Option<&str>, headers: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let authorization = authorization.map_or(String::new(), |value| format!("Authorization: {value}\r\n"));
        let length = body.len();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: read\r\nConnection: close\r\n{authorization}{headers}Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // A service that refuses does not read.
        let _ = stream.write_all(body);
        read(&mut stream).unwrap()
    }

    pub(crate) fn open(&self, authorization: &str, request: &Value) -> Answer {
        self.open_text(authorization, &request.to_string())
    }

    pub(crate) fn open_text(&self, authorization: &str, body: &str) -> Answer {
        let headers = "Content-Type: application/json\r\n";
        self.ask("POST /v1/open", Some(authorization), headers, body.as_bytes())
    }

    pub(crate) fn whoami(&self, authorization: &str) -> Answer {
        self.ask("GET /v1/whoami", Some(authorization), "", b"")
    }
}

/// The answer, to the end of the connection.
pub(crate) fn read(stream: &mut impl Read) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        // Closed without a goodbye, after an answer.
        if bytes.is_empty() {
            return Err(error);
        }
    }
    let text = String::from_utf8(bytes).unwrap();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err(io::Error::other(format!("no answer: {text:?}")));
    };
    Ok(Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    })
}
