//! Puts the worker together: the key service behind an attested key, TLS that ends here over bytes that the host carries, the policies of
//! measured owners, attested time.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream as Channel;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Uri};
use sealflow::acl::oidc::TrustedIssuer;
use sealflow::clock::UnixMillis;
use sealflow::flow::direct::DirectSealer;
use sealflow::flow::enclave::Resealer;
use sealflow::flow::hybrid::ClientKeys;
use sealflow::jose::PrivateJwk;
use sealflow::keys::{ClientKeyService, DomainKeys, OpeningKeys, SealingKeys};
use sealflow::policy::catalogue_source::DEFAULT_MAX_STALE;
use sealflow::policy::{CataloguePolicies, PolicySource};
use sealflow::seal::UsageLimits;
use sealflow::secret::SecretString;
use sealflow_enclave_protocol::frame::{Frame, Kind};
use sealflow_enclave_protocol::joints::Attester;
use sealflow_enclave_protocol::link::{Asker, Outgoing, write_frames};
use sealflow_enclave_protocol::message::{Credentials, Failure};
use sealflow_enclave_protocol::recipient::Recipient;
use sealflow_enclave_protocol::wire::Malformed;
use sealflow_kms::https::{HttpsClient, HttpsConfig, amazon_roots, only_root, web_roots};
use sealflow_kms::{AttestedKms, Handed, HandedCredentials};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::catalogue::HostCatalogue;
use crate::clock::AttestedClock;
use crate::config::{Config, ConfigError, IssuerConfig, StsConfig, root};
use crate::counted::Counted;
use crate::dial::RelayDialer;
use crate::identity::{Fetch, Issuer, Prover, Sts};
use crate::nsm::{Nsm, NsmError};
use crate::read::{Audit, Reading};
use crate::serve::{Parts, Room, Side, Worker};
use crate::vouch::Vouching;

/// How often the attested source is asked for the time.
const TIME_EVERY: Duration = Duration::from_secs(30);
/// How often old keys are let go.
const TICK: Duration = Duration::from_secs(1);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a document may take to come.
const FETCH: Duration = Duration::from_secs(10);
/// Connections to one host at a time.
const CONNECTIONS: usize = 8;
/// Relayed messages that wait.
const RELAYED: usize = 16;
/// Unwrapped data keys that are kept.
const OPENED_KEYS: u64 = 10_000;

/// Why the worker does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The channel to the host broke.
    #[error("the channel to the host broke: {0}")]
    Channel(#[from] io::Error),
    /// There is no attested time, or no evidence.
    #[error(transparent)]
    Nsm(#[from] NsmError),
    /// What was measured makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something that must be made cannot be.
    #[error("{0}")]
    Make(String),
}

fn make(error: impl fmt::Display) -> RunError {
    RunError::Make(error.to_string())
}

/// Answers the host on this channel until it hangs up. Keys, sessions, policies and time are this connection's own, and end with it; it
/// shares with others of the process what says who the program is, and `room` for jobs.
///
/// # Errors
/// [`RunError`]
pub async fn run(channel: Channel, config: &Config, nsm: Arc<Nsm>, room: Room) -> Result<(), RunError> {
    channel.set_nonblocking(true)?;
    let (from, to) = UnixStream::from_std(channel)?.into_split();
    let clock = Arc::new(AttestedClock::at(nsm.time_ms()?));
    // End with this connection.
    let (mut tasks, mut writing) = (JoinSet::new(), JoinSet::new());
    tasks.spawn(keep_time(Arc::clone(&nsm), Arc::clone(&clock)));
    let (out, queue) = Outgoing::new();
    writing.spawn(write_frames(queue, to));
    let asker = Asker::new(out.clone());
    let (relayed, messages) = mpsc::channel(RELAYED);
    tasks.spawn(relay(messages, out.clone()));
    let dialer = Arc::new(RelayDialer::new(relayed));

    let credentials = HandedCredentials::new(clock.clone());
    let attester: Arc<dyn Attester> = nsm.clone();
    let of_key = Arc::clone(&attester);
    // A key takes long enough to make that others would wait.
    let made = tokio::task::spawn_blocking(move || Recipient::generate(of_key)).await;
    let recipient = made.map_err(make)?.map_err(make)?;
    let of_kms = match root(config.kms_root.as_deref(), "kms_root")? {
        Some(der) => only_root(&der).map_err(make)?,
        None => amazon_roots(),
    };
    let https = |hosts: BTreeSet<(String, u16)>, roots| {
        let config = HttpsConfig {
            hosts,
            connect_timeout: CONNECT,
            connections: CONNECTIONS,
        };
        HttpsClient::new(config, dialer.clone(), roots, clock.clone()).map_err(make)
    };
    let client = https(config.kms.hosts().map_err(ConfigError::from)?, of_kms)?;
    let kms = AttestedKms::new(
        &config.kms,
        &client,
        credentials.clone(),
        Arc::new(recipient),
        clock.clone(),
    );
    let kms = Arc::new(Counted::new(kms.map_err(ConfigError::from)?));

    let signer = Arc::new(PrivateJwk::generate().map_err(make)?);
    let catalogue = Arc::new(HostCatalogue::new(asker.clone()));
    let owners = config.owners().map_err(ConfigError::from)?;
    let policies = CataloguePolicies::new(catalogue.clone(), owners, clock.clone());
    let policies = Arc::new(policies.with_ages(config.policy_refresh.0, DEFAULT_MAX_STALE));
    let age = config.key_age.0;
    let service: Arc<dyn ClientKeyService> = kms.clone();
    let sealer = DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
    };
    let opening = OpeningKeys::new(
        kms.clone(),
        catalogue,
        policies.clone(),
        clock.clone(),
        age,
        OPENED_KEYS,
    );
    let vouching = Vouching::new(policies.clone(), service.clone(), Arc::clone(&attester));
    let clients = ClientKeys::new(service, clock.clone(), age, config.sessions);
    tasks.spawn(tick(sealer.keys.clone(), opening.clone(), clients.clone()));

    let prover = Prover {
        issuers: config
            .issuers
            .iter()
            .map(|issuer| of_issuer(issuer, &https))
            .collect::<Result<_, _>>()?,
        sts: config.sts.as_ref().map(|sts| of_sts(sts, &https)).transpose()?,
        clock: clock.clone(),
    };
    let (audit, lines) = Audit::start(&signer, &*clock).map_err(|failure: Failure| make(failure.reason))?;
    let services: (Arc<dyn PolicySource>, _, _) = (policies.clone(), opening, sealer.domains.clone());
    let parts = Parts {
        resealer: Resealer::new(policies, clients, sealer),
        reading: Reading::new(services, prover, Arc::clone(&signer), clock.clone()),
        vouching,
        audit,
        attester,
        signer,
        clock,
        side: Arc::new(Outside {
            credentials,
            dialer,
            kms,
        }),
        asker,
        out: out.clone(),
    };
    let worker = Worker::in_room(parts, room);
    for line in lines {
        out.send(Frame::new(Kind::Audit, 0, line.into_bytes()))
            .await
            .map_err(make)?;
    }
    drop(out);
    tokio::select! {
        served = worker.serve(from) => Ok(served?),
        // There is one.
        Some(written) = writing.join_next() => Ok(written.map_err(make)??),
    }
}

/// The time goes on by itself; the attested source sets it right.
async fn keep_time(nsm: Arc<Nsm>, clock: Arc<AttestedClock>) {
    loop {
        tokio::time::sleep(TIME_EVERY).await;
        let nsm = Arc::clone(&nsm);
        if let Ok(Ok(now_ms)) = tokio::task::spawn_blocking(move || nsm.time_ms()).await {
            clock.correct(now_ms);
        }
    }
}

async fn relay(mut messages: mpsc::Receiver<Vec<u8>>, out: Outgoing) {
    while let Some(message) = messages.recv().await {
        if out.send(Frame::new(Kind::Relay, 0, message)).await.is_err() {
            return;
        }
    }
}

async fn tick(sealing: SealingKeys, opening: OpeningKeys, clients: ClientKeys) {
    loop {
        tokio::time::sleep(TICK).await;
        sealing.tick().await;
        opening.tick().await;
        clients.tick().await;
    }
}

type MakeHttps<'a> = dyn Fn(BTreeSet<(String, u16)>, rustls::RootCertStore) -> Result<HttpsClient, RunError> + 'a;

fn of_issuer(issuer: &IssuerConfig, https: &MakeHttps<'_>) -> Result<Issuer, RunError> {
    let roots = match root(issuer.root.as_deref(), "issuers[].root")? {
        Some(der) => only_root(&der).map_err(make)?,
        None => web_roots(),
    };
    let client = https(hosts([issuer.jwks_uri.as_str()])?, roots)?;
    let trusted = TrustedIssuer::new(&issuer.issuer, issuer.audiences.clone());
    let trusted = match &issuer.groups_claim {
        Some(claim) => trusted.with_groups_claim(claim),
        None => trusted,
    };
    Ok(Issuer::new(trusted, issuer.jwks_uri.clone(), Arc::new(Web(client))))
}

fn of_sts(sts: &StsConfig, https: &MakeHttps<'_>) -> Result<Sts, RunError> {
    let roots = match root(sts.root.as_deref(), "sts.root")? {
        Some(der) => only_root(&der).map_err(make)?,
        None => amazon_roots(),
    };
    let origins = sts
        .regions
        .iter()
        .map(|region| format!("https://sts.{region}.amazonaws.com"));
    let origins: Vec<String> = origins.chain(sts.origins.iter().cloned()).collect();
    let client = https(hosts(origins.iter().map(String::as_str))?, roots)?;
    Ok(Sts::new(sts.trust()?, Arc::new(Web(client))))
}

/// The hosts and ports of `https://` addresses.
fn hosts<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<(String, u16)>, RunError> {
    let host = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https"))?;
        Some((host.to_owned(), uri.port_u16().unwrap_or(443)))
    };
    let named = |url: &str| host(url).ok_or_else(|| RunError::Make(format!("{url} is no https:// address")));
    urls.into_iter().map(named).collect()
}

/// What is fetched over TLS that ends here.
#[derive(Debug)]
struct Web(HttpsClient);

#[async_trait]
impl Fetch for Web {
    async fn get(&self, url: &str, headers: &[(&'static str, &str)], most: usize) -> Option<(u16, Vec<u8>)> {
        let mut request = Request::get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Bytes::new()).ok()?;
        let answer = tokio::time::timeout(FETCH, self.0.send(request, most))
            .await
            .ok()?
            .ok()?;
        Some((answer.status().as_u16(), answer.into_body().to_vec()))
    }
}

/// What the host hands in.
struct Outside {
    credentials: HandedCredentials,
    dialer: Arc<RelayDialer>,
    kms: Arc<Counted>,
}

impl Side for Outside {
    fn credentials(&self, credentials: Credentials) {
        let secret = |text: &str| SecretString::new(text.to_owned());
        self.credentials.set(Handed {
            access_key_id: credentials.access_key_id,
            secret_access_key: secret(&credentials.secret_access_key),
            session_token: credentials.session_token.as_deref().map(|token| secret(token)),
            expires: credentials.expires_ms.map(UnixMillis),
        });
    }

    fn relay(&self, body: &[u8]) -> Result<(), Malformed> {
        self.dialer.deliver(body).map_err(|_| Malformed)
    }

    fn kms_requests(&self) -> u64 {
        self.kms.requests()
    }
}
