//! One request after the other, from its head to its answer. Who asks is proved before a byte of the body is read, and
//! every decision is written down before anything is shown.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use sealflow::acl::Identity;
use sealflow::audit::{AuditError, AuditLog, Event, Verdict};
use sealflow::clock::{Clock, NeverBack, UnixMillis};
use sealflow::jose::rsa::RsaPublicJwk;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::answer::Whoami;
use crate::api::{self, Most, OpenRequest};
use crate::config::LimitsConfig;
use crate::enclave_keys::PublishedEnclaveKeys;
use crate::identity::{Presented, Proven, Prover, presented, whole_seconds};
use crate::limits::{Buckets, Place, Places};
use crate::metrics::Metrics;
use crate::open::{NotRead, Opening, Who, internal, unread};
use crate::openapi;
use crate::problem::{Code, Problem};
use crate::published::PublishedKeys;
use crate::refusals::Refusals;

/// How long the line of a request that took too long may take to be written.
pub(crate) const LAST_LINE: Duration = Duration::from_secs(5);

/// What a service is made of.
pub struct Parts {
    /// Proves who asks.
    pub prover: Prover,
    /// Opens.
    pub opening: Opening,
    /// Where every decision is written down.
    pub audit: Arc<dyn AuditLog>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What may be asked.
    pub limits: LimitsConfig,
    /// What is counted.
    pub metrics: Metrics,
    /// The public keys that clients seal to, if they are published here.
    pub published: Option<PublishedKeys>,
    /// The documents of enclave keys, if they are published here.
    pub enclave_keys: Option<PublishedEnclaveKeys>,
}

/// The reading service, without its connections.
pub struct Service {
    prover: Prover,
    opening: Opening,
    audit: Arc<dyn AuditLog>,
    clock: Arc<dyn Clock>,
    time: NeverBack,
    pub(crate) limits: LimitsConfig,
    pub(crate) metrics: Metrics,
    refusals: Refusals,
    /// Whether the last lines could be written down.
    writes: AtomicBool,
    in_flight: Semaphore,
    /// Callers who are being proved, apart from requests: waiting for STS holds nobody up who is proved already.
    proving: Semaphore,
    places: Arc<Places>,
    requests: Buckets,
    values: Buckets,
    openapi: Bytes,
    published: Option<PublishedKeys>,
    enclave_keys: Option<PublishedEnclaveKeys>,
}

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    Open,
    Whoami,
    OpenApi,
    ClientKeys,
    EnclaveKeys,
}

impl Route {
    fn of(method: &Method, path: &str) -> Result<Self, Problem> {
        let (route, allowed) = match path {
            "/v1/open" => (Self::Open, Method::POST),
            "/v1/whoami" => (Self::Whoami, Method::GET),
            "/v1/openapi.json" => (Self::OpenApi, Method::GET),
            "/.well-known/jwks.json" => (Self::ClientKeys, Method::GET),
            "/.well-known/enclave-keys" => (Self::EnclaveKeys, Method::GET),
            _ => {
                let help = "GET /v1/openapi.json says what there is";
                return Err(Problem::new(Code::NotFound, "there is nothing of that path", help));
            }
        };
        if *method == allowed {
            Ok(route)
        } else {
            let detail = "the path takes another method";
            Err(Problem::new(Code::OtherMethod, detail, format!("use {allowed}")))
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Whoami => "whoami",
            Self::OpenApi => "openapi",
            Self::ClientKeys => "client_keys",
            Self::EnclaveKeys => "enclave_keys",
        }
    }
}

impl Service {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            prover,
            opening,
            audit,
            clock,
            limits,
            metrics,
            published,
            enclave_keys,
        } = parts;
        let buckets = |rate, burst| Buckets::new(rate, burst, Arc::clone(&clock));
        Arc::new(Self {
            refusals: Refusals::new(Arc::clone(&audit), Arc::clone(&clock)),
            writes: AtomicBool::new(true),
            in_flight: Semaphore::new(count(limits.in_flight)),
            proving: Semaphore::new(count(limits.in_flight)),
            places: Places::new(limits.in_flight_per_principal),
            requests: buckets(limits.requests_per_second, limits.requests_burst),
            values: buckets(limits.values_per_second, limits.values_burst),
            openapi: Bytes::from(openapi::document().to_string()),
            time: NeverBack::default(),
            prover,
            opening,
            audit,
            clock,
            limits,
            metrics,
            published,
            enclave_keys,
        })
    }

    /// Proves who asks.
    #[must_use]
    pub fn prover(&self) -> &Prover {
        &self.prover
    }

    /// Opens.
    #[must_use]
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Whether the last lines of the audit log could be written: else nothing is shown to anybody.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.writes.load(Ordering::Relaxed)
    }

    /// The same, from what a write came to.
    fn written(&self, result: Result<(), AuditError>) -> Result<(), Problem> {
        self.writes.store(result.is_ok(), Ordering::Relaxed);
        result.map_err(|error| unwritten(&error))
    }

    /// Writes down what was counted meanwhile; lets old keys go. About once a second, and once at the end.
    ///
    /// # Errors
    /// [`AuditError`]
    pub async fn tick(&self) -> Result<(), AuditError> {
        self.opening.tick().await;
        if !self.is_writing() {
            // Nobody may be asking by now, so that readiness comes back by itself: a line that says so, once one can be written.
            let rule = "audit-unavailable: lines could not be written for a while";
            let event = Event::new(self.time.now(&*self.clock), Verdict::Failed, rule);
            let written = self.audit.record(vec![event]).await;
            self.writes.store(written.is_ok(), Ordering::Relaxed);
        }
        let flushed = self.refusals.flush().await;
        if let Err(error) = &flushed {
            self.writes.store(false, Ordering::Relaxed);
            return Err(error.clone());
        }
        Ok(())
    }

    /// Answers one request of that peer.
    pub async fn answer<B>(self: Arc<Self>, request: Request<B>, peer: IpAddr) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let route = Route::of(&head.method, head.uri.path());
        let name = route.as_ref().map_or("none", |route| route.name());
        let service = Arc::clone(&self);
        // In a task of its own: a caller who hangs up ends nothing halfway, neither a line of the log nor a fetch of keys
        // that others wait for.
        let working = tokio::spawn(async move {
            let _counted = service.metrics.in_flight();
            let patience = service.limits.request_timeout.0;
            let asked = OnceLock::new();
            let worked = tokio::time::timeout(patience, service.work(route, &head, body, peer, &asked)).await;
            match worked {
                Ok(answer) => answer,
                Err(_) => Err(service.too_late(asked.into_inner()).await),
            }
        });
        let answer = working.await.unwrap_or_else(|_| Err(internal()));
        let answer = answer.unwrap_or_else(|problem| self.respond_problem(&problem));
        self.metrics.answered(name, answer.status().as_u16(), started.elapsed());
        answer
    }

    /// `asked` is told who asks for what, before keys are used for it.
    async fn work<B>(
        &self,
        route: Result<Route, Problem>,
        head: &request::Parts,
        body: B,
        peer: IpAddr,
        asked: &OnceLock<Event>,
    ) -> Result<Response<Full<Bytes>>, Problem>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let route = route?;
        if route == Route::ClientKeys {
            let Some(published) = &self.published else {
                return Err(not_published("keys of clients", "client_keys"));
            };
            return Ok(public("application/jwk-set+json", published.document().await?));
        }
        if route == Route::EnclaveKeys {
            let Some(published) = &self.enclave_keys else {
                return Err(not_published("enclave keys", "enclave_keys"));
            };
            return Ok(public("application/json", published.document().await?));
        }
        if route == Route::OpenApi {
            return Ok(respond(StatusCode::OK, "application/json", self.openapi.clone()));
        }
        let now = self.time.now(&*self.clock);
        let (caller, _place) = self.caller(&head.headers, peer, now).await?;
        match route {
            Route::Open => {
                is_json(&head.headers)?;
                // A principal has its own places while its body arrives; those of all are for what is worked on.
                let body = self.body(body).await?;
                let _permit = permit(&self.in_flight)?;
                let json = self.open(&body, &caller, presented(&head.headers), asked).await?;
                Ok(respond(StatusCode::OK, "application/json", json))
            }
            _ => {
                caller.proven.check_seal_to(None)?;
                Ok(respond(StatusCode::OK, "application/json", whoami(&caller)))
            }
        }
    }

    /// Who asks, if they may now. Refused proofs are written down.
    async fn caller(&self, headers: &HeaderMap, peer: IpAddr, now: UnixMillis) -> Result<(Caller, Place), Problem> {
        let proving = permit(&self.proving)?;
        let proven = self.prover.prove(headers, peer, now).await;
        drop(proving);
        let proven = match proven {
            Ok(proven) => proven,
            Err(problem) => {
                if problem.is_unproven() || problem.code == Code::TooManyUnproven {
                    let recorded = self.refusals.record(&problem, peer, now).await;
                    self.written(recorded)?;
                }
                return Err(problem);
            }
        };
        self.metrics.proved(proven.proof);
        let caller = Caller {
            name: proven.identity.to_string(),
            proven,
        };
        let Some(place) = self.places.take(&caller.name) else {
            let detail = "this principal has too many requests under way";
            return Err(Problem::new(Code::TooManyAtOnce, detail, "wait for the answers to some").retry_after(1));
        };
        self.requests.take(&caller.name, 1).map_err(|wait| {
            let detail = "this principal asks too often";
            slower(
                Code::TooManyRequests,
                detail,
                "send fewer requests with more values each",
                wait,
            )
        })?;
        Ok((caller, place))
    }

    async fn body<B>(&self, body: B) -> Result<Bytes, Problem>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let most = self.limits.body.0;
        let too_large = || {
            let detail = format!("the body is longer than {most} bytes");
            Problem::new(Code::TooLarge, detail, "send fewer values or records at once")
        };
        if body.size_hint().lower() > most {
            return Err(too_large());
        }
        let body = Limited::new(body, usize::try_from(most).unwrap_or(usize::MAX)).collect();
        match tokio::time::timeout(self.limits.body_timeout.0, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(Problem::new(
                Code::MalformedHttp,
                "the body broke off, or its framing is malformed",
                "try again",
            )),
            Err(_) => Err(Problem::new(
                Code::TooSlow,
                "the body did not arrive in time",
                "send it faster, or less of it",
            )),
        }
    }

    /// `proof` is what proved the caller, for the enclave worker, which proves it by itself.
    async fn open(
        &self,
        body: &[u8],
        caller: &Caller,
        proof: Option<Presented<'_>>,
        asked: &OnceLock<Event>,
    ) -> Result<Bytes, Problem> {
        let most = Most {
            records: count(self.limits.records),
            values: count(self.limits.values),
        };
        let request = api::parse(body, most)?;
        let seal_to = request.seal_to.as_ref().map(RsaPublicJwk::thumbprint);
        if let Err(problem) = caller.proven.check_seal_to(seal_to) {
            let now = self.time.now(&*self.clock);
            return Err(self.refused(problem, caller.about(&request, now)).await);
        }
        let paid = request.least_values();
        self.values.take(&caller.name, paid).map_err(|wait| {
            let detail = "this principal asks for too many values";
            slower(Code::TooManyValues, detail, "ask for fewer values, or later", wait)
        })?;
        let now = self.time.now(&*self.clock);
        let about = asked.get_or_init(|| caller.about(&request, now)).clone();
        let who = Who {
            identity: &caller.proven.identity,
            proof,
        };
        let read = self.opening.read(&request, who, now, &about).await;
        let mut seen = match read {
            Ok(seen) => seen,
            Err(error) => return Err(self.unread(&error, about).await),
        };
        let counts = seen.counts();
        let all = usize::try_from(counts.opened + counts.refused + counts.failed).unwrap_or(usize::MAX);
        self.values.charge(&caller.name, all.saturating_sub(paid));
        let events = std::mem::take(&mut seen.events);
        self.written(self.audit.record(events).await)?;
        // Reading, and writing it down, may have taken until after the end of the policy's lease.
        if let Err(error) = self.opening.check_still(&seen).await {
            return Err(self.unread(&NotRead::Read(error), about).await);
        }
        if self.time.now(&*self.clock) >= caller.proven.expires {
            let problem = Problem::new(
                Code::ProofEnded,
                "the proof of who asks ended meanwhile",
                "send a fresh one",
            );
            return Err(problem);
        }
        self.metrics.read(&request.dataset, seen.version(), counts);
        seen.into_json()
    }

    /// A refusal, written down.
    async fn refused(&self, problem: Problem, about: Event) -> Problem {
        let event = Event {
            rule: format!("{}: {}", problem.code.as_str(), problem.detail),
            ..about
        };
        match self.written(self.audit.record(vec![event]).await) {
            Ok(()) => problem,
            Err(unwritten) => unwritten,
        }
    }

    /// Why nothing was read. What is no passing outage is written down as a refusal.
    async fn unread(&self, error: &NotRead, about: Event) -> Problem {
        let problem = unread(error);
        if error.is_retryable() {
            return problem;
        }
        self.refused(problem, about).await
    }

    /// The request took too long. Keys may have been used for it by then: who asked for what is written down.
    async fn too_late(&self, asked: Option<Event>) -> Problem {
        let problem = Problem::new(Code::TookTooLong, "the request took too long", "try again").retry_after(1);
        let Some(about) = asked else { return problem };
        let event = Event {
            rule: format!("{}: {}", problem.code.as_str(), problem.detail),
            ..about
        };
        // It may be the log that takes so long.
        let recorded = match tokio::time::timeout(LAST_LINE, self.audit.record(vec![event])).await {
            Ok(recorded) => recorded,
            Err(_) => Err(AuditError::Write {
                to: "the audit log".to_owned(),
                reason: format!("a line took more than {} s", LAST_LINE.as_secs()),
            }),
        };
        self.written(recorded).err().unwrap_or(problem)
    }

    fn respond_problem(&self, problem: &Problem) -> Response<Full<Bytes>> {
        self.metrics.problem_of(problem);
        let body = Bytes::from(problem.to_json());
        let mut response = respond(problem.code.status(), "application/problem+json", body);
        let headers = response.headers_mut();
        let mut put = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.append(name, value);
            }
        };
        if let Some(seconds) = problem.retry_after {
            put(RETRY_AFTER, &seconds.to_string());
        }
        if problem.is_unproven() {
            for challenge in self.prover.challenges(problem) {
                put(WWW_AUTHENTICATE, &challenge);
            }
        }
        // Whoever gets no further begins anew, and makes room for others.
        if problem.closes() {
            put(CONNECTION, "close");
        }
        if problem.code == Code::OtherMethod {
            put(ALLOW, problem.help.strip_prefix("use ").unwrap_or_default());
        }
        response
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("prover", &self.prover)
            .finish_non_exhaustive()
    }
}

/// Why a body broke off.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who asks, and as buckets and audit lines name them.
struct Caller {
    name: String,
    proven: Proven,
}

impl Caller {
    /// What every event of the request says.
    fn about(&self, request: &OpenRequest<'_>, now: UnixMillis) -> Event {
        Event {
            principal: Some(self.name.clone()),
            caller: self.proven.caller.clone(),
            proof: Some(self.proven.proof),
            purpose: request.purpose.clone(),
            dataset: Some(request.dataset.clone()),
            count: u64::try_from(request.least_values()).unwrap_or(u64::MAX),
            ..Event::new(now, Verdict::Refused, "")
        }
    }
}

fn whoami(caller: &Caller) -> Bytes {
    let groups = match &caller.proven.identity {
        Identity::Oidc { groups, .. } => groups.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    };
    let answer = Whoami {
        principal: &caller.name,
        groups,
        proof: caller.proven.proof.as_str(),
        expires: caller.proven.expires.to_string(),
    };
    // Texts: nothing that could fail.
    Bytes::from(serde_json::to_vec(&answer).unwrap_or_default())
}

fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = given.split(';').next().unwrap_or_default().trim();
    let is_encoded = headers.contains_key(hyper::header::CONTENT_ENCODING);
    if media_type.eq_ignore_ascii_case("application/json") && !is_encoded {
        return Ok(());
    }
    let detail = "the body is not said to be application/json without a content encoding";
    Err(Problem::new(
        Code::OtherMediaType,
        detail,
        "send `Content-Type: application/json`",
    ))
}

/// A place among all that is worked on.
fn permit(places: &Semaphore) -> Result<SemaphorePermit<'_>, Problem> {
    let busy = |_| Problem::new(Code::Busy, "too many requests are under way", "try again").retry_after(1);
    places.try_acquire().map_err(busy)
}

fn slower(code: Code, detail: &str, help: &str, wait: Duration) -> Problem {
    Problem::new(code, detail, help).retry_after(whole_seconds(wait))
}

/// What cannot be written down does not happen.
fn unwritten(error: &AuditError) -> Problem {
    tracing::error!(%error, help = error.help(), "nothing is shown: the audit log cannot be written");
    let detail = "decisions cannot be written down at the moment, so that nothing is shown";
    Problem::new(
        Code::AuditUnavailable,
        detail,
        "try again; the service's operator finds the reason in its log",
    )
    .retry_after(5)
}

/// What everybody may have, and keep for five minutes.
fn public(kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = respond(StatusCode::OK, kind, body);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    response
}

fn not_published(what: &str, option: &str) -> Problem {
    Problem::new(
        Code::NotFound,
        format!("no {what} are published here"),
        format!("the service's operator lists datasets under `{option}`"),
    )
}

fn respond(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn count(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
