//! `sealflow serve`: the reading service, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use sealflow::keys::{Catalogue, ClientKeyService, DomainKeys, OpeningKeys};
use sealflow::policy::catalogue_source::DEFAULT_MAX_STALE;
use sealflow::policy::enclave_keys::attested::Trust;
use sealflow::policy::{PolicySource, TrustedOwners};
use sealflow_kafka::Shutdown;
use sealflow_serve::identity::Prover;
use sealflow_serve::identity::web::Https;
use sealflow_serve::{
    AsksForCallers, Certificate, Metrics, Opening, Parts, PublishedEnclaveKeys, PublishedKeys, ServeError, Server,
    Service, TlsError,
};
use tokio::sync::watch;

use crate::admin::AdminServer;
use crate::audit;
use crate::by_worker::ForCallers;
use crate::config::{self, Environment, ServiceConfig};
use crate::enclave;
use crate::failure::{Exit, Failure, Result};
use crate::files;
use crate::kms_metrics::KmsMetrics;
use crate::metered::Metered;
use crate::remembered::VersionsFile;
use crate::service_status::ServiceStatus;
use crate::services::{OPENED_KEY_AGE, OPENED_KEYS, clock, open_catalogue, open_kms};
use crate::signals;
use crate::term::{Style, say};
use crate::trust;

/// Run the reading service: open for others, as far as the ACLs let them
///
/// Callers prove who they are by a token of an OIDC issuer or by a presigned request to AWS STS. Here the ACLs enforce:
/// whoever asks needs no rights at KMS, and what the newest policy does not let them see is not shown. Runs until SIGTERM or
/// Ctrl-C, which let requests under way end. A second signal stops at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service file
    #[arg(value_name = "SERVICE", env = "SEALFLOW_SERVICE", hide_env_values = true)]
    service: PathBuf,
    /// Check the file, certificate, catalogue and issuers, and end: listens nowhere and writes nothing
    #[arg(long)]
    check: bool,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let config = config::load_service(&args.service, &Environment::of_process())?;
    let assembled = Assembled::new(&config).await?;
    if args.check {
        return check(&config, &assembled).await;
    }
    serve(&config, assembled).await
}

/// Everything that needs no port and no log.
struct Assembled {
    certificate: Option<Arc<Certificate>>,
    catalogue: Arc<dyn Catalogue>,
    owners: TrustedOwners,
    policies: Arc<dyn PolicySource>,
    kms: Arc<dyn ClientKeyService>,
    kms_metrics: Arc<KmsMetrics>,
    prover: Prover,
    /// Under which roots enclaves vouch for keys that are handed out.
    trust: Trust,
}

impl Assembled {
    async fn new(config: &ServiceConfig) -> Result<Self> {
        let certificate = config.tls.as_ref().map(Certificate::open).transpose()?;
        let owners = trust::owners(&config.trust.owners)?;
        let catalogue = open_catalogue(&config.catalogue).await?;
        let policies =
            trust::policies(&catalogue, owners.clone()).with_ages(config.policy_refresh.0, DEFAULT_MAX_STALE);
        let policies = trust::remembering(
            policies,
            VersionsFile::of(&config.catalogue.location, &config.trust.owners),
        )?;
        let kms_metrics = Arc::new(KmsMetrics::new());
        let kms = Arc::new(Metered::new(open_kms(&config.kms).await?, Arc::clone(&kms_metrics)));
        let web = Https::new().map_err(|error| {
            let message = format!("no trusted certificates: {error}");
            Failure::config(message, "install the system's CA certificates")
        })?;
        let prover = Prover::new(&config.identity, &config.limits, Arc::new(web), clock())
            .map_err(|error| Failure::config(format_args!("identity.{error}"), &error.help))?;
        Ok(Self {
            certificate,
            catalogue,
            owners,
            policies,
            kms,
            kms_metrics,
            prover,
            trust: enclave_roots(config)?,
        })
    }
}

#[cfg(feature = "dev-software-nsm")]
fn enclave_roots(config: &ServiceConfig) -> Result<Trust> {
    let Some(path) = &config.enclave_dev_root else {
        return Ok(Trust::nitro());
    };
    let trust = Trust::with_dev_root(&files::read_small(path)?).map_err(|error| {
        let help = "give the certificate of the development root: dev-root.der of its folder";
        Failure::config(format_args!("enclave_dev_root: {}: {error}", path.display()), help)
    })?;
    tracing::warn!(root = %path.display(), "enclave keys under a DEVELOPMENT ROOT are handed out (dev-software-nsm)");
    Ok(trust)
}

#[cfg(not(feature = "dev-software-nsm"))]
fn enclave_roots(config: &ServiceConfig) -> Result<Trust> {
    match &config.enclave_dev_root {
        None => Ok(Trust::nitro()),
        Some(_) => Err(Failure::config(
            "enclave_dev_root: this build believes no development root",
            "remove it",
        )),
    }
}

async fn check(config: &ServiceConfig, assembled: &Assembled) -> Result<ExitCode> {
    let style = Style::of_stdout();
    say(format_args!("{} {}: configuration", style.tick(), config.name));
    if let Some(tls) = &config.tls {
        say(format_args!(
            "{} certificate {}",
            style.tick(),
            tls.certificate.display()
        ));
    }
    assembled.catalogue.list("policies").await?;
    say(format_args!("{} catalogue {}", style.tick(), config.catalogue));
    if let Err(issuers) = assembled.prover.warm_up().await {
        return Err(Failure::new(
            Exit::Unavailable,
            format_args!("the keys of {} cannot be fetched", issuers.join(", ")),
            "the log lines above say why; check `jwks_uri` and the way there",
        ));
    }
    if let Some(section) = &config.enclave {
        let images = enclave::measurements_of(&section.datasets, &*assembled.policies).await?;
        let (datasets, count) = (section.datasets.join(", "), images.len());
        say(format_args!(
            "{} {count} images of the enclave for {datasets}",
            style.tick()
        ));
    }
    for issuer in &config.identity.oidc {
        say(format_args!("{} keys of {}", style.tick(), issuer.issuer));
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: &ServiceConfig, assembled: Assembled) -> Result<ExitCode> {
    let mut shutdown = signals::listen()?;
    let metrics = Metrics::default();
    if assembled.prover.warm_up().await.is_err() {
        tracing::warn!("tokens of issuers whose keys are missing prove nobody until they can be fetched");
    }
    let (kms, catalogue, policies) = (assembled.kms, assembled.catalogue, assembled.policies);
    let datasets = config.client_keys.clone();
    let published =
        (!datasets.is_empty()).then(|| PublishedKeys::new(kms.clone(), Arc::clone(&policies), datasets, clock()));
    let datasets = config.enclave_keys.clone();
    let enclave_keys = (!datasets.is_empty()).then(|| {
        PublishedEnclaveKeys::new(
            Arc::clone(&catalogue),
            assembled.owners,
            Arc::clone(&policies),
            assembled.trust,
            datasets,
            clock(),
        )
    });
    let worker = match &config.enclave {
        Some(section) => {
            let which = (&section.worker, &section.datasets[..]);
            let shared = (&catalogue, &clock());
            let worker = enclave::start_for_service(which, &config.kms, &*policies, shared).await?;
            Some(Arc::new(ForCallers(worker)) as Arc<dyn AsksForCallers>)
        }
        None => None,
    };
    let keys = OpeningKeys::new(
        kms.clone(),
        Arc::clone(&catalogue),
        Arc::clone(&policies),
        clock(),
        OPENED_KEY_AGE,
        OPENED_KEYS,
    );
    let domains = DomainKeys::new(kms, catalogue, Arc::clone(&policies), clock(), OPENED_KEY_AGE);
    let audit = audit::open_configured(config.audit.clone()).await?;
    let service = Service::new(Parts {
        prover: assembled.prover,
        opening: Opening::new(policies, keys, domains).with_worker(worker),
        audit: Arc::clone(&audit),
        clock: clock(),
        limits: config.limits.clone(),
        metrics: metrics.clone(),
        published,
        enclave_keys,
    });
    let server = Server::bind(config.listen, assembled.certificate, Arc::clone(&service)).await?;
    let status = Arc::new(ServiceStatus::new(service, &metrics, &assembled.kms_metrics));
    let admin = match config.admin.listen {
        Some(address) => Some(AdminServer::start(address, status.clone()).await?),
        None => None,
    };
    say_start(config, &server, admin.as_ref());
    let (stop, stopped) = watch::channel(false);
    let mut serving = tokio::spawn(server.serve(stopped));
    tokio::select! {
        // The sender lives as long as the process.
        _ = shutdown.wait_for(|level| *level != Shutdown::Run) => {}
        // It ends only when it is told to, or by a panic of which the log has said where.
        _ = &mut serving => {
            return Err(Failure::new(Exit::Internal, "the service ended by itself", "please report this bug"));
        }
    }
    status.set_draining();
    let _ = stop.send(true);
    tokio::select! {
        _ = serving => {}
        _ = shutdown.wait_for(|level| *level == Shutdown::Stop) => {}
    }
    drop(admin);
    audit.close().await?;
    Ok(ExitCode::SUCCESS)
}

fn say_start(config: &ServiceConfig, server: &Server, admin: Option<&AdminServer>) {
    let admin = admin.map_or_else(|| "none".to_owned(), |admin| admin.address.to_string());
    let (service, listen) = (&config.name, server.address());
    let is_encrypted = config.tls.is_some();
    tracing::info!(%service, %listen, tls = is_encrypted, %admin, "serving");
    if !is_encrypted {
        tracing::warn!("no TLS: only for what ends it on this machine, or for trying out");
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::config(
            format_args!("tls: {error}"),
            "give the certificate chain and its unencrypted private key as PEM files that this user can read",
        )
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Listen { .. } => Self::new(
                Exit::Unavailable,
                &error,
                "choose another `listen`, or stop what listens there",
            ),
            ServeError::Tls(error) => error.into(),
            error => Self::config(&error, "add `tls: { certificate: …, key: … }`, or listen on 127.0.0.1"),
        }
    }
}
