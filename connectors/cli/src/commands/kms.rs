//! `sealflow kms`: a KMS for development, on this machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use sealflow::policy::yaml::from_yaml;
use sealflow_local_kms::{KeySpec, RunningServer, Server, ServerConfig, StartError, TlsConfig};

use crate::config::yaml_failure;
use crate::failure::{Exit, Failure, Result};
use crate::files::{self, Access};
use crate::term::{Style, note, say};

/// A KMS for development
///
/// It speaks the protocol of AWS KMS on loopback, so that everything else works as with AWS. Its keys are on this
/// machine's disk, without audit log or hardware: never use it for real data.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run the KMS of a folder until it is stopped
    Serve(ServeArgs),
    /// Make a key in a folder, and the folder's configuration if it is new; prints the key's ARN
    CreateKey(CreateKeyArgs),
}

/// Run the KMS of a folder until it is stopped
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// The folder: `kms.yaml` and the keys
    #[arg(
        long,
        value_name = "DIR",
        default_value = "local-kms",
        env = "SEALFLOW_LOCAL_KMS",
        hide_env_values = true
    )]
    folder: PathBuf,
    /// Listen here instead of where `kms.yaml` says
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Speak TLS with this certificate (PEM, and those that lead from it to a root). Read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Believe attestation documents under this root too (PEM), beside AWS's: it is for development. Whoever has its key is
    /// taken for any enclave
    #[arg(long, value_name = "FILE")]
    attestation_root: Option<PathBuf>,
}

/// Make a key in a folder, and the folder's configuration if it is new; prints the key's ARN
#[derive(Debug, clap::Args)]
pub(crate) struct CreateKeyArgs {
    /// The folder: `kms.yaml` and the keys. No server may be running on it
    #[arg(
        long,
        value_name = "DIR",
        default_value = "local-kms",
        env = "SEALFLOW_LOCAL_KMS",
        hide_env_values = true
    )]
    folder: PathBuf,
    /// What it is: a symmetric key, an RSA key that clients seal to, or an HMAC key. AWS's names
    #[arg(long, value_name = "SPEC", default_value = KeySpec::Symmetric.as_str(), value_parser = key_spec())]
    key_spec: KeySpec,
    /// What the key is for
    #[arg(long, value_name = "TEXT", default_value = "made by sealflow kms create-key")]
    description: String,
    /// A key policy (JSON); without one everybody who may call this KMS may use the key
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

fn key_spec() -> impl TypedValueParser<Value = KeySpec> {
    PossibleValuesParser::new(KeySpec::ALL.map(KeySpec::as_str)).try_map(|name| name.parse::<KeySpec>())
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(args) => serve(args).await,
        Command::CreateKey(args) => create_key(args).await,
    }
}

async fn serve(args: ServeArgs) -> Result<ExitCode> {
    let folder = KmsFolder::open_or_create(&args.folder)?;
    let mut config = folder.config()?;
    config.listen = args.listen.unwrap_or(config.listen);
    if let (Some(certificate), Some(key)) = (args.tls_cert, args.tls_key) {
        config.tls = Some(TlsConfig { certificate, key });
    }
    config.attestation_root = args.attestation_root.or(config.attestation_root);
    let root = config.attestation_root.clone();
    let server = start(config, &args.folder).await?;
    banner(&server, &folder, root.as_deref());
    let stopped = tokio::signal::ctrl_c().await;
    server.shutdown().await;
    stopped.map_err(|error| {
        Failure::new(
            Exit::Internal,
            format_args!("cannot wait for a signal: {error}"),
            "report this",
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Loud on purpose: this must not be mistaken for a KMS.
fn banner(server: &RunningServer, folder: &KmsFolder, root: Option<&Path>) {
    let style = Style::of_stderr();
    let rule = "=".repeat(78);
    note(style.red(&rule));
    note(style.red("  LOCAL KMS - FOR DEVELOPMENT ONLY"));
    note("  Its keys lie on this machine's disk: no audit log, no hardware.");
    note("  Whoever can read the folder or this process has every key. Never for real data.");
    if let Some(root) = root {
        note(format_args!(
            "  It believes attestation documents under {}:",
            root.display()
        ));
        note("  dev-software-nsm, not hardware. Whoever has that root's key is taken for any enclave.");
    }
    note(style.red(&rule));
    note(format_args!(
        "listening on {}, keys in {}",
        server.endpoint(),
        folder.path.display()
    ));
    note(format_args!(
        "credentials: export AWS_SHARED_CREDENTIALS_FILE={}",
        folder.credentials().display()
    ));
    say(server.endpoint());
}

async fn create_key(args: CreateKeyArgs) -> Result<ExitCode> {
    let policy = args.policy.as_deref().map(files::read_text).transpose()?;
    let folder = KmsFolder::open_or_create(&args.folder)?;
    let made = folder.create_key(args.key_spec, &args.description, policy.as_deref());
    say(made.await?);
    note(format_args!(
        "credentials: export AWS_SHARED_CREDENTIALS_FILE={}",
        folder.credentials().display()
    ));
    Ok(ExitCode::SUCCESS)
}

async fn start(config: ServerConfig, folder: &Path) -> Result<RunningServer> {
    Server::start(config).await.map_err(|error| match &error {
        StartError::Config(_) => Failure::config(
            format_args!("{}: {error}", folder.join(CONFIG_FILE).display()),
            "correct it; `sealflow schema kms` prints what it may say",
        ),
        StartError::Tls(_) => Failure::config(
            &error,
            "give --tls-cert and --tls-key a certificate and its key, both as PEM",
        ),
        StartError::AttestationRoot { .. } => Failure::config(
            &error,
            "give --attestation-root one root certificate for development, as PEM",
        ),
        StartError::Listen { .. } => Failure::new(
            Exit::Unavailable,
            error,
            "choose another `listen`, or stop what listens there",
        ),
        _ => Failure::new(
            Exit::Io,
            error,
            "check the folder; only one local KMS may use it at a time",
        ),
    })
}

const CONFIG_FILE: &str = "kms.yaml";
const CREDENTIALS_FILE: &str = "credentials";

/// A folder that a local KMS lives in.
pub(crate) struct KmsFolder {
    path: PathBuf,
}

impl KmsFolder {
    /// The folder at `path`; a new one gets a configuration with one principal of random credentials, and those
    /// credentials as a file for AWS clients. Both are readable for their owner alone.
    pub(crate) fn open_or_create(path: &Path) -> Result<Self> {
        let folder = Self { path: path.to_owned() };
        let config = path.join(CONFIG_FILE);
        if !config.exists() {
            let credentials = Credentials::random()?;
            files::write_new(&config, credentials.config_yaml().as_bytes(), Access::Private, false)?;
            files::write_new(
                &folder.credentials(),
                credentials.ini().as_bytes(),
                Access::Private,
                true,
            )?;
        }
        Ok(folder)
    }

    /// Its configuration, with the folder filled in.
    pub(crate) fn config(&self) -> Result<ServerConfig> {
        let path = self.path.join(CONFIG_FILE);
        let text = files::read_text(&path)?;
        let mut config: ServerConfig = from_yaml(&text).map_err(|error| yaml_failure(&path, &error))?;
        config.folder = Some(
            config
                .folder
                .map_or_else(|| self.path.clone(), |folder| self.path.join(folder)),
        );
        config.tls = config.tls.map(|tls| TlsConfig {
            certificate: self.path.join(tls.certificate),
            key: self.path.join(tls.key),
        });
        config.attestation_root = config.attestation_root.map(|root| self.path.join(root));
        Ok(config)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The credentials file for AWS clients.
    pub(crate) fn credentials(&self) -> PathBuf {
        self.path.join(CREDENTIALS_FILE)
    }

    /// Where the server will listen.
    pub(crate) fn endpoint(&self) -> Result<String> {
        let config = self.config()?;
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}", config.listen))
    }

    /// ARNs of the symmetric keys in the folder, by what their files are called: a running server does not mind.
    pub(crate) fn keys(&self) -> Result<Vec<String>> {
        let config = self.config()?;
        let folder = config.folder.as_deref().unwrap_or(&self.path);
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Failure::io("read", folder, &error)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ids = names.filter_map(|name| Some(name.strip_suffix(".key").filter(|id| *id != "master")?.to_owned()));
        let arn = |id: String| format!("arn:aws:kms:{}:{}:key/{id}", config.region, config.account);
        Ok(ids.map(arn).collect())
    }

    /// Makes a key and returns its ARN. No server may be running on the folder.
    pub(crate) async fn create_key(&self, spec: KeySpec, description: &str, policy: Option<&str>) -> Result<String> {
        let mut config = self.config()?;
        // A server on no port that anybody knows, only to write the folder.
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.tls, config.attestation_root) = (None, None);
        let server = start(config, &self.path).await?;
        let made = server.create_key_of(spec, None, description, policy).await;
        server.shutdown().await;
        made.map_err(|error| {
            Failure::config(
                error,
                "correct the key policy: JSON with Version and Statement, as AWS takes it",
            )
        })
    }
}

/// Credentials of the one principal of a new folder.
struct Credentials {
    access_key_id: String,
    secret_access_key: zeroize::Zeroizing<String>,
}

impl Credentials {
    fn random() -> Result<Self> {
        let mut bytes = zeroize::Zeroizing::new([0_u8; 40]);
        getrandom::fill(bytes.as_mut_slice()).map_err(|error| {
            Failure::new(
                Exit::Internal,
                format_args!("no random numbers: {error}"),
                "check the operating system",
            )
        })?;
        let text = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|b| char::from(ALPHABET[usize::from(b % 32)]))
                .collect::<String>()
        };
        let access_key_id = format!("AKIALOCAL{}", text(&bytes[..8]));
        Ok(Self {
            access_key_id,
            secret_access_key: zeroize::Zeroizing::new(text(&bytes[8..])),
        })
    }

    fn config_yaml(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(format!(
            "# The local KMS of this folder: FOR DEVELOPMENT ONLY. `sealflow schema kms` knows every key.\n\
             listen: 127.0.0.1:4599\n\
             region: eu-central-1\n\
             account: \"111122223333\"\n\
             principals:\n\
             \x20 - access_key_id: {}\n\
             \x20   secret_access_key: {}\n\
             \x20   arn: arn:aws:iam::111122223333:user/developer\n",
            self.access_key_id, *self.secret_access_key
        ))
    }

    fn ini(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            self.access_key_id, *self.secret_access_key
        ))
    }
}

/// 32 characters, so that each takes five of a byte's bits and none is likelier.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
