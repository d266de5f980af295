//! An issuer of OIDC tokens whose key set is served over HTTP or HTTPS on loopback, and rotated.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::X509;
use serde_json::{Value, json};

use crate::certificate::Authority;

pub(crate) const ISSUER: &str = "https://login.example.com";
pub(crate) const SERVER: &str = "read.example.com";

pub(crate) struct Issuer {
    pub(crate) address: SocketAddr,
    keys: Mutex<(String, RsaKeyPair)>,
    served: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    pub(crate) fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), None)
    }

    /// The same over TLS, on every address of loopback, with a certificate for 127.0.0.1.
    pub(crate) fn start_tls(authority: &Authority) -> Self {
        let (certificate, key) = authority.issue(3_000);
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor
            .set_certificate(&X509::from_pem(&certificate).unwrap())
            .unwrap();
        acceptor
            .set_private_key(&PKey::private_key_from_pem(&key).unwrap())
            .unwrap();
        Self::start_on(TcpListener::bind("0.0.0.0:0").unwrap(), Some(acceptor.build()))
    }

    fn start_on(listener: TcpListener, tls: Option<SslAcceptor>) -> Self {
        let (served, asked) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicUsize::new(0)));
        let issuer = Self {
            address: listener.local_addr().unwrap(),
            keys: Mutex::new(("none".to_owned(), key())),
            served: Arc::clone(&served),
            asked: Arc::clone(&asked),
        };
        issuer.rotate("first");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let body = || {
                    asked.fetch_add(1, Ordering::SeqCst);
                    served.lock().unwrap().clone()
                };
                match &tls {
                    None => answer(stream, body),
                    // Whoever does not trust the certificate asks for nothing.
                    Some(tls) => tls.accept(stream).map_or((), |stream| answer(stream, body)),
                }
            }
        });
        issuer
    }

    /// A new key, the only one from now on.
    pub(crate) fn rotate(&self, kid: &str) {
        let key = key();
        let parts = PublicKeyComponents::<Vec<u8>>::from(key.public_key());
        let [n, e] = [&parts.n, &parts.e].map(|part| URL_SAFE_NO_PAD.encode(part));
        let jwk = json!({ "kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": n, "e": e });
        *self.served.lock().unwrap() = json!({ "keys": [jwk] }).to_string();
        *self.keys.lock().unwrap() = (kid.to_owned(), key);
    }

    /// How often the key set was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// `Bearer TOKEN` of that subject.
    pub(crate) fn token(&self, subject: &str) -> String {
        self.token_with(subject, &json!({}))
    }

    /// The same, with other claims.
    pub(crate) fn token_with(&self, subject: &str, more: &Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut claims = json!({ "iss": ISSUER, "sub": subject, "aud": SERVER, "iat": now, "exp": now + 3_600 });
        claims
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let (kid, key) = &*self.keys.lock().unwrap();
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({ "alg": "RS256", "kid": kid, "typ": "JWT" })),
            part(&claims)
        );
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            signed.as_bytes(),
            &mut signature,
        )
        .unwrap();
        format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn answer(mut stream: impl Read + Write, body: impl FnOnce() -> String) {
    let mut head = [0; 4_096];
    if stream.read(&mut head).unwrap_or_default() == 0 {
        return;
    }
    let body = body();
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
}

fn key() -> RsaKeyPair {
    RsaKeyPair::generate(KeySize::Rsa2048).unwrap()
}
