//! An HTTP proxy that makes faults by request: answers of its own, delays, requests and answers that get lost or break off. The
//! TCP [`Proxy`](crate::Proxy) breaks connections; this one knows which request it breaks, so that a test can say "the answer to the
//! first PUT".

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::draw::Draw;
use crate::proxy::runtime;

/// What happens to a request, or its answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HttpFault {
    /// It goes nowhere; the proxy answers with this status and S3's error document of this code.
    Answer {
        /// The status.
        status: u16,
        /// `<Code>`.
        code: &'static str,
    },
    /// It is carried out, and answered with this all the same.
    AnswerInstead {
        /// The status.
        status: u16,
        /// `<Code>`.
        code: &'static str,
    },
    /// It goes nowhere, and its connection ends when half of it is read.
    LoseRequest,
    /// It is carried out, and its connection ends without an answer.
    LoseAnswer,
    /// It is carried out, and its connection ends in the middle of the answer's body.
    CutAnswer,
    /// It is carried out after so long.
    Delay(Duration),
}

/// How long the first half of an answer has to be sent.
const BEFORE_CUT: Duration = Duration::from_millis(50);

/// Which of the requests that match a rule it applies to.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum When {
    /// All.
    Always,
    /// The first so many.
    First(usize),
    /// Every n-th: the n-th, the 2n-th.
    Every(usize),
    /// One in so many, drawn from the seed.
    OneIn(u64, u64),
}

/// A fault, and what it befalls.
#[derive(Clone, Debug)]
pub struct HttpRule {
    /// `PUT`; empty for any.
    pub method: &'static str,
    /// What path and query contain; empty for any.
    pub path: &'static str,
    /// Which of those.
    pub when: When,
    /// What happens.
    pub fault: HttpFault,
}

struct State {
    rule: HttpRule,
    matched: usize,
    draw: Draw,
}

struct Shared {
    target: String,
    client: Client<HttpConnector, Full<Bytes>>,
    rules: Mutex<Vec<State>>,
    log: Mutex<Vec<String>>,
    felt: AtomicUsize,
    running: AtomicUsize,
    peak: AtomicUsize,
    is_serial: AtomicBool,
    writing: tokio::sync::Mutex<()>,
}

/// A listening proxy, gone when it is dropped.
pub struct HttpProxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// A connection that ends here.
#[derive(Debug, thiserror::Error)]
#[error("cut on purpose")]
struct Cut;

type Answer = Response<BoxBody<Bytes, Cut>>;

impl HttpProxy {
    /// Listens on a free port of the loopback address and passes on to `target` (`http://host:port`).
    ///
    /// # Errors
    /// If no port can be had.
    pub fn start(target: &str) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let _inside = runtime().enter();
        let shared = Arc::new(Shared {
            target: target.trim_end_matches('/').to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            rules: Mutex::default(),
            log: Mutex::default(),
            felt: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            is_serial: AtomicBool::new(false),
            writing: tokio::sync::Mutex::default(),
        });
        let listener = TcpListener::from_std(listener)?;
        let accepting = runtime().spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            port,
            shared,
            accepting,
        })
    }

    /// Its address, for configurations.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Lets one `PUT` or `POST` through at a time from now on, for servers that check a condition and carry the request out in two
    /// steps, as moto does.
    pub fn one_write_at_a_time(&self) {
        self.shared.is_serial.store(true, Ordering::SeqCst);
    }

    /// The rules from now on, in place of those before; the first that applies counts. Counters begin anew.
    pub fn set(&self, rules: Vec<HttpRule>) {
        let states = rules.into_iter().map(|rule| {
            let seed = match rule.when {
                When::OneIn(_, seed) => seed,
                _ => 0,
            };
            State {
                rule,
                matched: 0,
                draw: Draw::new(seed),
            }
        });
        *lock(&self.shared.rules) = states.collect();
        self.shared.felt.store(0, Ordering::SeqCst);
        self.shared.peak.store(0, Ordering::SeqCst);
        lock(&self.shared.log).clear();
    }

    /// How many faults were made since [`Self::set`].
    #[must_use]
    pub fn felt(&self) -> usize {
        self.shared.felt.load(Ordering::SeqCst)
    }

    /// The most requests that were on their way at once since [`Self::set`].
    #[must_use]
    pub fn peak(&self) -> usize {
        self.shared.peak.load(Ordering::SeqCst)
    }

    /// All requests since [`Self::set`] as `METHOD path?query`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.log).clone()
    }

    /// How many of them began so.
    #[must_use]
    pub fn count(&self, start: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.starts_with(start))
            .count()
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(serve(stream, Arc::clone(&shared)));
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move {
            let running = shared.running.fetch_add(1, Ordering::SeqCst) + 1;
            shared.peak.fetch_max(running, Ordering::SeqCst);
            let answer = shared.answer(request).await;
            shared.running.fetch_sub(1, Ordering::SeqCst);
            answer
        }
    });
    // An error is how a connection is cut.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Cut> {
        let target = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        lock(&self.log).push(format!("{} {target}", request.method()));
        let Some(fault) = self.fault(request.method().as_str(), &target) else {
            return self.pass(request, &target).await;
        };
        self.felt.fetch_add(1, Ordering::SeqCst);
        match fault {
            HttpFault::Answer { status, code } => {
                // Read, as a server would: else the client may see its own write fail first.
                request.collect().await.map_err(|_| Cut)?;
                document(status, code)
            }
            HttpFault::AnswerInstead { status, code } => {
                self.pass(request, &target).await?;
                document(status, code)
            }
            HttpFault::LoseRequest => {
                let expected = hyper::body::Body::size_hint(request.body()).lower();
                let mut body = request.into_body();
                let mut read = 0;
                while read * 2 < expected {
                    let frame = body.frame().await.ok_or(Cut)?.map_err(|_| Cut)?;
                    read += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                Err(Cut)
            }
            HttpFault::LoseAnswer => {
                self.pass(request, &target).await?;
                Err(Cut)
            }
            HttpFault::CutAnswer => {
                let (head, body) = self.pass(request, &target).await?.into_parts();
                let body = body.collect().await?.to_bytes();
                // The head still says how long it was to be.
                let half = body.slice(..body.len() / 2);
                // In two steps, as what is not sent yet when a connection is cut is not sent at all.
                let sent = stream::once(async move { Ok(Frame::data(half)) });
                let cut = stream::once(async {
                    tokio::time::sleep(BEFORE_CUT).await;
                    Err(Cut)
                });
                Ok(Response::from_parts(
                    head,
                    http_body_util::BodyExt::boxed(StreamBody::new(sent.chain(cut))),
                ))
            }
            HttpFault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                self.pass(request, &target).await
            }
        }
    }

    fn fault(&self, method: &str, target: &str) -> Option<HttpFault> {
        let mut rules = lock(&self.rules);
        for state in rules.iter_mut() {
            let is_method = state.rule.method.is_empty() || state.rule.method == method;
            if !is_method || !target.contains(state.rule.path) {
                continue;
            }
            state.matched += 1;
            let applies = match state.rule.when {
                When::Always => true,
                When::First(n) => state.matched <= n,
                When::Every(n) => state.matched.is_multiple_of(n.max(1)),
                When::OneIn(n, _) => (state.draw.next() >> 32).is_multiple_of(n.max(1)),
            };
            if applies {
                return Some(state.rule.fault.clone());
            }
        }
        None
    }

    /// The whole request, then the whole answer: nothing is half done that no fault asked for.
    async fn pass(&self, request: Request<Incoming>, target: &str) -> Result<Answer, Cut> {
        let (mut head, body) = request.into_parts();
        head.uri = format!("{}{target}", self.target).parse::<Uri>().map_err(|_| Cut)?;
        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
        let is_write = matches!(head.method, Method::PUT | Method::POST) && self.is_serial.load(Ordering::SeqCst);
        let _alone = if is_write {
            Some(self.writing.lock().await)
        } else {
            None
        };
        let request = Request::from_parts(head, Full::new(body));
        let (mut head, body) = self.client.request(request).await.map_err(|_| Cut)?.into_parts();
        // Of this hop alone.
        head.headers.remove(hyper::header::TRANSFER_ENCODING);
        head.headers.remove(hyper::header::CONNECTION);
        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
        Ok(Response::from_parts(head, Full::new(body).map_err(never).boxed()))
    }
}

fn never(never: Infallible) -> Cut {
    match never {}
}

fn document(status: u16, code: &str) -> Result<Answer, Cut> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>");
    let answer = Response::builder()
        .status(status)
        .header("content-type", "application/xml");
    answer.body(Full::from(text).map_err(never).boxed()).map_err(|_| Cut)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    /// A server that answers every request with its path, for as long as the test runs.
    fn echo() -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if stream.read(&mut byte).unwrap_or(0) == 0 {
                            return;
                        }
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8(head).unwrap();
                    let path = head.split(' ').nth(1).unwrap();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{path}",
                        path.len()
                    );
                    stream.write_all(answer.as_bytes()).unwrap();
                });
            }
        });
        format!("http://{address}")
    }

    fn get(proxy: &HttpProxy, path: &str) -> String {
        let mut stream = TcpStream::connect(proxy.endpoint().trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn rule(path: &'static str, when: When, fault: HttpFault) -> HttpRule {
        HttpRule {
            method: "GET",
            path,
            when,
            fault,
        }
    }

    #[test]
    fn requests_pass_and_faults_befall_those_that_a_rule_names() {
        let proxy = HttpProxy::start(&echo()).unwrap();
        assert!(get(&proxy, "/a?b=c").ends_with("\r\n\r\n/a?b=c"));
        let slow_down = HttpFault::Answer {
            status: 503,
            code: "SlowDown",
        };
        proxy.set(vec![
            rule("/first", When::First(1), slow_down.clone()),
            rule("/second", When::Every(2), HttpFault::LoseAnswer),
            rule("/half", When::Always, HttpFault::CutAnswer),
        ]);
        let first = get(&proxy, "/first");
        assert!(
            first.starts_with("HTTP/1.1 503") && first.contains("<Code>SlowDown</Code>"),
            "{first}"
        );
        assert!(get(&proxy, "/first").ends_with("/first"));
        assert!(get(&proxy, "/second").ends_with("/second"));
        assert_eq!(get(&proxy, "/second"), "");
        let half = get(&proxy, "/half/of/it");
        assert!(
            half.ends_with("/half") && half.contains("content-length: 11") || half.contains("Content-Length: 11"),
            "{half}"
        );
        assert_eq!((proxy.felt(), proxy.count("GET /second")), (3, 2));
    }

    #[test]
    fn what_is_drawn_is_the_same_for_the_same_seed() {
        let proxy = HttpProxy::start(&echo()).unwrap();
        let mut runs = Vec::new();
        for seed in [1, 1, 2] {
            proxy.set(vec![rule("", When::OneIn(2, seed), HttpFault::LoseRequest)]);
            runs.push((0..32).map(|_| get(&proxy, "/").is_empty()).collect::<Vec<_>>());
        }
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
        assert!(runs[0].contains(&true) && runs[0].contains(&false));
    }
}
