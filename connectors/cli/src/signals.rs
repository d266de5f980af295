//! SIGTERM and SIGINT: the first drains, the second stops at once.

use sealflow_kafka::Shutdown;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::failure::{Exit, Failure, Result};
use crate::files;
use crate::term::note;

/// Listens for both signals from now on; the receiver's level goes up with each.
pub(crate) fn listen() -> Result<watch::Receiver<Shutdown>> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed(&error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| failed(&error))?;
    let (sender, receiver) = watch::channel(Shutdown::Run);
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        tracing::info!("draining; a second signal stops at once");
        let _ = sender.send(Shutdown::Drain);
        either(&mut terminate, &mut interrupt).await;
        tracing::warn!("stopping at once; what is not committed is read again by the next run");
        let _ = sender.send(Shutdown::Stop);
        // Keeps the channel, and with it the last level, until the process ends.
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

/// For commands that write files: a signal removes what is half written and ends the process, with the exit code
/// that shells give (128 and the signal's number).
pub(crate) fn remove_half_written_files() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed(&error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| failed(&error))?;
    tokio::spawn(async move {
        let code = tokio::select! {
            _ = terminate.recv() => 143,
            _ = interrupt.recv() => 130,
        };
        let _held = files::remove_unfinished();
        note("interrupted: nothing was written");
        std::process::exit(code);
    });
    Ok(())
}

fn failed(error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Internal,
        format_args!("cannot listen for signals: {error}"),
        "report this",
    )
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
