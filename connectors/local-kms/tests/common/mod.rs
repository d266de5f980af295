//! A signing client that is not the AWS SDK: it can sign one thing and send another.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::secret::SecretString;
use sealflow_local_kms::{Principal, RunningServer, Server, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) const ADMIN: &str = "arn:aws:iam::111122223333:user/admin";
pub(crate) const REGION: &str = "eu-central-1";
/// 2026-01-02T03:04:05Z.
pub(crate) const NOW: UnixMillis = UnixMillis(1_767_323_045_000);

pub(crate) fn principal(id: &str, arn: &str) -> Principal {
    let secret_access_key = SecretString::new(format!("secret-of-{id}"));
    Principal {
        access_key_id: id.to_owned(),
        secret_access_key,
        session_token: None,
        arn: arn.to_owned(),
    }
}

pub(crate) fn config() -> ServerConfig {
    ServerConfig::in_memory(vec![principal("AKIAADMIN", ADMIN)])
}

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// A server whose clock the test moves, called by a client that signs with the same clock.
pub(crate) struct Kms {
    pub(crate) server: RunningServer,
    pub(crate) clock: Arc<ManualClock>,
}

impl Kms {
    pub(crate) async fn start(config: ServerConfig) -> Self {
        Self::start_at(config, Arc::new(ManualClock::at(NOW))).await
    }

    pub(crate) async fn start_at(config: ServerConfig, clock: Arc<ManualClock>) -> Self {
        let shared = Arc::clone(&clock);
        Self {
            server: Server::start_with_clock(config, shared).await.unwrap(),
            clock,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    pub(crate) async fn call_as(&self, id: &str, operation: &str, body: &Value) -> Result<Value, String> {
        use sealflow::clock::Clock as _;
        let request = Request {
            credentials: (id.to_owned(), format!("secret-of-{id}"), None),
            time: self.clock.now(),
            ..Request::kms(operation, body)
        };
        let answer = request.call(self.addr()).await;
        match answer.code.clone() {
            Some(code) => Err(code),
            None => Ok(answer.json()),
        }
    }

    pub(crate) async fn call(&self, operation: &str, body: &Value) -> Result<Value, String> {
        self.call_as("AKIAADMIN", operation, body).await
    }

    pub(crate) async fn create_key(&self) -> String {
        let made = self.call("CreateKey", &json!({})).await.unwrap();
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn data_key(&self, arn: &str) -> Value {
        self.call("GenerateDataKey", &json!({ "KeyId": arn, "KeySpec": "AES_256" }))
            .await
            .unwrap()
    }

    pub(crate) async fn decrypt(&self, arn: &str, key: &Value) -> Result<Value, String> {
        self.call(
            "Decrypt",
            &json!({ "KeyId": arn, "CiphertextBlob": key["CiphertextBlob"] }),
        )
        .await
    }
}

pub(crate) fn error(code: &str) -> Result<Value, String> {
    Err(code.to_owned())
}

/// What is signed, and then sent. Change a field between [`Request::sign`] and [`Request::send`] to tamper.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) credentials: (String, String, Option<String>),
    pub(crate) region: String,
    pub(crate) service: String,
    pub(crate) time: UnixMillis,
}

/// Status, error code (if any) and body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) code: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Request {
    /// A KMS operation, not signed yet.
    pub(crate) fn kms(operation: &str, body: &Value) -> Self {
        let headers = [
            ("x-amz-target", format!("TrentService.{operation}").as_str()),
            ("content-type", "application/x-amz-json-1.1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            head: "POST / HTTP/1.1".to_owned(),
            headers: headers.to_vec(),
            body: body.to_string().into_bytes(),
            credentials: ("AKIAADMIN".to_owned(), "secret-of-AKIAADMIN".to_owned(), None),
            region: REGION.to_owned(),
            service: "kms".to_owned(),
            time: NOW,
        }
    }

    /// STS GetCallerIdentity, not signed yet.
    pub(crate) fn caller_identity() -> Self {
        Self {
            headers: vec![(
                "content-type".to_owned(),
                "application/x-www-form-urlencoded".to_owned(),
            )],
            body: b"Action=GetCallerIdentity&Version=2011-06-15".to_vec(),
            service: "sts".to_owned(),
            ..Self::kms("", &Value::Null)
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn sign(mut self, addr: SocketAddr) -> Self {
        let (id, secret, token) = self.credentials.clone();
        let identity = Credentials::new(id, secret, token, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(&self.service)
            .time(SystemTime::UNIX_EPOCH + Duration::from_millis(self.time.0))
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let url = format!("http://{addr}/");
        let headers = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let request = SignableRequest::new("POST", url, headers, SignableBody::Bytes(&self.body)).unwrap();
        let (instructions, _) = sign(request, &params).unwrap().into_parts();
        for (name, value) in instructions.headers() {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub(crate) async fn send(&self, addr: SocketAddr) -> Answer {
        exchange(addr, &self.bytes(addr)).await
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self, addr: SocketAddr) -> Vec<u8> {
        let mut text = format!(
            "{}\r\nhost: {addr}\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.head,
            self.body.len()
        );
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        [text.as_bytes(), &self.body].concat()
    }

    pub(crate) async fn call(self, addr: SocketAddr) -> Answer {
        self.sign(addr).send(addr).await
    }
}

/// Sends bytes and reads all that comes back.
pub(crate) async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Answer {
    exchange_over(TcpStream::connect(addr).await.unwrap(), bytes).await
}

/// The same over a connection that is there.
pub(crate) async fn exchange_over<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> Answer {
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map_or(answer.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer[end..].to_vec();
    let json: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let xml = || {
        let text = String::from_utf8_lossy(&body).into_owned();
        Some(text.split_once("<Code>")?.1.split_once("</Code>")?.0.to_owned())
    };
    let code = json["__type"].as_str().map(ToOwned::to_owned).or_else(xml);
    Answer { status, code, body }
}
