//! `sealflow enclave run`: workers of the software tier for other processes, one for each connection to a socket.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use sealflow_enclave_host::launch::Launcher;
use tokio::net::{UnixListener, UnixStream};

use crate::enclave::{EnclaveConfig, IsolationConfig, launcher};
use crate::failure::{Exit, Failure, Result};
use crate::signals;
use crate::term::say;

/// Start workers of the software tier for pipelines, one for each connection to a socket
///
/// A pipeline reaches it by `enclave: { endpoint: "unix:PATH" }`, attests each worker itself, and carries its bytes; this process only starts
/// them. On Nitro nothing of the kind is needed: `nitro-cli run-enclave` starts the image.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image that `sealflow enclave build` made
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Where to listen: a socket that this process makes, with mode 0600
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Folder of the development root; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    dev_root: PathBuf,
    /// Run workers where the machine gives them no namespaces too
    #[arg(long)]
    without_namespaces: bool,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let mut shutdown = signals::listen()?;
    let config = EnclaveConfig {
        image: Some(args.image.clone()),
        endpoint: None,
        relay: Vec::new(),
        dev_root: Some(args.dev_root.clone()),
        server_id: None,
        audit: None,
        publish_keys: false,
        depth: 1,
        isolation: match args.without_namespaces {
            true => IsolationConfig::IfAvailable,
            false => IsolationConfig::Required,
        },
    };
    let launcher = Arc::new(launcher(&config, &args.image)?);
    // What a process that was killed has left.
    let _ = std::fs::remove_file(&args.socket);
    let failed = |error: std::io::Error| {
        let message = format!("{}: {error}", args.socket.display());
        Failure::new(Exit::Io, message, "name a path in a folder that this process may write")
    };
    let listener = UnixListener::bind(&args.socket).map_err(failed)?;
    std::fs::set_permissions(&args.socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    say(format_args!(
        "image   {}\nsocket  {}",
        launcher.measurement(),
        args.socket.display()
    ));
    tracing::warn!("software tier (dev-software-nsm): it protects nothing from root on this machine");
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((host, _)) => {
                    let launcher = Arc::clone(&launcher);
                    tokio::spawn(async move {
                        if let Err(error) = serve(host, launcher).await {
                            tracing::error!(error, "a worker was not started");
                        }
                    });
                }
                Err(error) => tracing::warn!(%error, "a connection was not taken"),
            },
            _ = shutdown.changed() => break,
        }
    }
    let _ = std::fs::remove_file(&args.socket);
    Ok(ExitCode::SUCCESS)
}

/// A worker for this host, as long as both live.
async fn serve(mut host: UnixStream, launcher: Arc<Launcher>) -> std::result::Result<(), String> {
    let launched = tokio::task::spawn_blocking(move || launcher.launch()).await;
    let mut worker = launched
        .map_err(|_| "launching it panicked")?
        .map_err(|error| error.to_string())?;
    let channel = worker.take_channel().ok_or("it has no channel")?;
    channel.set_nonblocking(true).map_err(|error| error.to_string())?;
    let mut channel = UnixStream::from_std(channel).map_err(|error| error.to_string())?;
    tracing::info!(pid = worker.pid(), "started a worker");
    // However it ends, the worker ends with it.
    let _ = tokio::io::copy_bidirectional(&mut host, &mut channel).await;
    Ok(())
}
