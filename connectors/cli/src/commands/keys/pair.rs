//! `keys pair`: a key pair that clients seal to, made by KMS. Its private half comes wrapped, and is never seen here.

use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::{ClientKeyService as _, EncryptionContext, RsaBits};
use sealflow::policy::arn::check_key_arn;

use super::Kms;
use crate::failure::{Exit, Failure, Result};
use crate::term::{note, say};

/// Have KMS make a key pair that clients seal to; prints it as the policy takes it
///
/// KMS returns the private half wrapped under its key, and it is never seen here: pipelines have it unwrapped once and open
/// sessions by themselves, without a request each. The pair opens for this dataset alone. What is printed belongs under
/// `client: keys:` of its policy, and is no secret.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Full ARN of a symmetric KMS key that wraps no data keys
    #[arg(long = "key", value_name = "ARN")]
    arn: String,
    /// The dataset whose clients seal to it
    #[arg(long, value_name = "NAME", value_parser = dataset)]
    dataset: String,
    /// The name of the key in the policy
    #[arg(long, value_name = "NAME", default_value = "web")]
    name: String,
    /// Size of the key in bits; the larger, the more of a core each session costs the pipeline
    #[arg(long, value_enum, default_value_t, value_name = "BITS")]
    bits: Bits,
    #[command(flatten)]
    kms: Kms,
}

/// Size of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Bits {
    #[value(name = "2048")]
    Rsa2048,
    #[default]
    #[value(name = "3072")]
    Rsa3072,
    #[value(name = "4096")]
    Rsa4096,
}

impl Bits {
    /// Of the modulus.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Rsa2048 => 2_048,
            Self::Rsa3072 => 3_072,
            Self::Rsa4096 => 4_096,
        }
    }
}

/// As policies name datasets: the pair opens under this name and no other.
fn dataset(text: &str) -> std::result::Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=128).contains(&text.len()) && text.bytes().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err("a dataset has 1 to 128 characters of A-Z, a-z, 0-9, `.`, `_`, `-`".to_owned())
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    check_key_arn(&args.arn).map_err(|error| {
        Failure::usage(
            format_args!("--key: {error}"),
            "give the full ARN of a symmetric KMS key, as `keys:` of a policy has it",
        )
    })?;
    let bits = match args.bits {
        Bits::Rsa2048 => RsaBits::Rsa2048,
        Bits::Rsa3072 => RsaBits::Rsa3072,
        Bits::Rsa4096 => RsaBits::Rsa4096,
    };
    let kms = args.kms.open(sealflow_kms::KmsConfig::default()).await?;
    let context = EncryptionContext::for_client_pair(&args.dataset);
    let pair = kms.generate_pair(&args.arn, bits, &context).await?;
    let public = RsaPublicJwk::from_spki_der(&pair.public)
        .ok()
        .filter(|key| key.bits() == bits.bits());
    let public = public.ok_or_else(|| {
        Failure::new(
            Exit::Unavailable,
            format_args!("KMS gave no RSA key pair of {} bits", bits.bits()),
            "try again, or look at what answers as KMS",
        )
    })?;
    say(format_args!(
        "{}:\n  pair:\n    arn: \"{}\"\n    public: \"{}\"\n    wrapped: \"{}\"",
        serde_json::Value::from(args.name.as_str()),
        pair.arn,
        STANDARD.encode(&pair.public),
        STANDARD.encode(&pair.wrapped_private)
    ));
    note(format_args!(
        "put it under `client: keys:` of the policy of {}; clients know it as {}",
        args.dataset,
        public.thumbprint()
    ));
    Ok(ExitCode::SUCCESS)
}
