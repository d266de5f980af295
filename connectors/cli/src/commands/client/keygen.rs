//! `client keygen`: an RSA key pair of a client.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow_client::{PrivateKey, RsaBits};

use crate::failure::{Exit, Failure, Result};
use crate::files::{self, Access};
use crate::term::{note, say};

/// Make a key pair that answers are sealed to; prints its public half, a JWK
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the private key goes (PKCS #8, PEM), readable for you alone
    #[arg(short, long, value_name = "FILE", default_value = "client.key")]
    output: PathBuf,
    /// Size of the key in bits
    #[arg(long, value_enum, default_value_t, value_name = "BITS")]
    bits: Bits,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Bits {
    #[value(name = "2048")]
    Rsa2048,
    #[default]
    #[value(name = "3072")]
    Rsa3072,
    #[value(name = "4096")]
    Rsa4096,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let bits = match args.bits {
        Bits::Rsa2048 => RsaBits::Rsa2048,
        Bits::Rsa3072 => RsaBits::Rsa3072,
        Bits::Rsa4096 => RsaBits::Rsa4096,
    };
    let cannot = |error: sealflow_client::KeyError| {
        Failure::new(Exit::Internal, format_args!("cannot make a key: {error}"), "try again")
    };
    let key = PrivateKey::generate(bits).map_err(cannot)?;
    let (pem, public) = (key.to_pem().map_err(cannot)?, key.public().map_err(cannot)?);
    files::write_new(&args.output, pem.expose(), Access::Private, false)?;
    note(format_args!(
        "wrote {}: keep it secret; answers sealed to its public half open with nothing else",
        args.output.display()
    ));
    say(public.to_published_json());
    Ok(ExitCode::SUCCESS)
}
