//! `sealflow enclave dev-root`: the certificate of a development root, for whoever is to believe it.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::failure::Result;

/// Print the certificate of a development root, as PEM
///
/// `sealflow kms --attestation-root` takes it, to release keys to workers of the software tier. The root is made if the folder has
/// none. Whoever has the folder's key is taken for any enclave: it is for development.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the development root, as `enclave.dev_root` of a pipeline names it
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs the subcommand.
#[cfg(feature = "dev-software-nsm")]
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    use sealflow::clock::Clock as _;
    use sealflow_enclave_host::nsm::{Root, certificate_of};

    use crate::clock::MachineClock;
    use crate::failure::{Exit, Failure};

    let made = Root::load_or_make(&args.folder, MachineClock.now().0);
    let certificate = made
        .and_then(|_| certificate_of(&args.folder))
        .map_err(|error| Failure::new(Exit::Io, error, "name a folder that this process may write"))?;
    crate::term::say(pem(&certificate).trim_end());
    crate::term::note("dev-software-nsm: believe it in development alone");
    Ok(ExitCode::SUCCESS)
}

/// Runs the subcommand.
#[cfg(not(feature = "dev-software-nsm"))]
pub(super) fn run(_: &Args) -> Result<ExitCode> {
    Err(super::no_software_nsm())
}

/// RFC 7468.
#[cfg(feature = "dev-software-nsm")]
fn pem(certificate: &[u8]) -> String {
    use base64::Engine as _;

    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: it can be cut anywhere.
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
