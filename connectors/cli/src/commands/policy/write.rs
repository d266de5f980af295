//! Keygen, init, check, sign, verify: what needs files only.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sealflow::jose::PrivateJwk;
use sealflow::policy::signed::{self, VerifiedPolicy};
use sealflow::policy::{Pin, Policy, PolicyError};

use crate::failure::{Failure, Result};
use crate::files::{self, Access};
use crate::term::{note, say};
use crate::trust::{make_owner_key, owners, read_owner_key};

/// Make an owner key; prints its thumbprint, which pipelines pin
#[derive(Debug, clap::Args)]
pub(crate) struct KeygenArgs {
    /// Where the private key goes, readable for you alone
    #[arg(short, long, value_name = "FILE", default_value = "owner.key")]
    output: PathBuf,
}

pub(super) fn keygen(args: &KeygenArgs) -> Result<ExitCode> {
    let key = make_owner_key(&args.output)?;
    note(format_args!(
        "wrote {}: keep it secret, and keep a copy; whoever has it decides what is sealed",
        args.output.display()
    ));
    note("pin this thumbprint under trust.owners:");
    say(key.thumbprint());
    Ok(ExitCode::SUCCESS)
}

/// Write a policy to start from
///
/// `sealflow init` proposes one from real records instead.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// Name of the dataset
    #[arg(long, value_name = "NAME", default_value = "payments")]
    dataset: String,
    /// ARN of the KMS key
    #[arg(
        long,
        value_name = "ARN",
        default_value = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001"
    )]
    key_arn: String,
    /// Where it goes
    #[arg(short, long, value_name = "FILE", default_value = "policy.yaml")]
    output: PathBuf,
}

pub(super) fn init(args: &InitArgs) -> Result<ExitCode> {
    let (dataset, arn) = (&args.dataset, serde_json::Value::from(args.key_arn.as_str()));
    let yaml = format!(
        "# Which fields of this dataset are sealed, under which key, for whom. `sealflow schema policy` knows every key.\n\
         dataset: {dataset}\n\
         version: 1\n\n\
         keys:\n  default: {{ arn: {arn}, max_age: 1h }}\n\n\
         acls:\n  personal: {{ allow: [\"arn:aws:iam::111122223333:role/support\"] }}\n\n\
         columns:\n\
         \x20 - {{ path: user.email, key: default, acl: personal }}\n\
         \x20 # A list; lengths hidden; tied to its record, so that it cannot be moved to another.\n\
         \x20 - {{ path: \"cards[*].number\", key: default, acl: personal, pad_to: 32, bind_row: id }}\n\n\
         # Records that cannot be sealed go to the dead letters, sealed whole.\n\
         dead_letters: {{ key: default, acl: personal }}\n"
    );
    parse(&args.output, yaml.as_bytes())?;
    files::write_new(&args.output, yaml.as_bytes(), Access::Shared, false)?;
    say(format_args!(
        "wrote {}; next: edit it, then `sealflow policy check {0}`",
        args.output.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Check a policy file
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The policy (YAML)
    #[arg(value_name = "FILE", default_value = "policy.yaml")]
    file: PathBuf,
}

pub(super) fn check(args: &CheckArgs) -> Result<ExitCode> {
    let yaml = files::read_small(&args.file)?;
    let policy = parse(&args.file, &yaml)?;
    if let Some(first) = policy.unsupported().first() {
        return Err(Failure::config(
            format_args!("{}: {first}", args.file.display()),
            &first.help,
        ));
    }
    say(format_args!(
        "{}: policy of {}, version {}, {} columns: ok",
        args.file.display(),
        policy.dataset,
        policy.version,
        policy.columns.len()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Sign a policy file with the owner key
#[derive(Debug, clap::Args)]
pub(crate) struct SignArgs {
    /// The policy (YAML)
    #[arg(value_name = "FILE", default_value = "policy.yaml")]
    file: PathBuf,
    /// The owner's private key
    #[arg(
        long,
        value_name = "FILE",
        default_value = "owner.key",
        env = "SEALFLOW_OWNER_KEY",
        hide_env_values = true
    )]
    key: PathBuf,
    /// Where the signed policy goes; default: the policy's name with `.jws`
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
}

pub(super) fn sign(args: &SignArgs) -> Result<ExitCode> {
    let key = read_owner_key(&args.key)?;
    let jws = sign_file(&args.file, &key)?;
    let output = args.output.clone().unwrap_or_else(|| args.file.with_extension("jws"));
    files::write_new(&output, jws.as_bytes(), Access::Shared, args.force)?;
    say(format_args!(
        "wrote {}, signed by {}",
        output.display(),
        key.thumbprint()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Verify a signed policy against pinned owners
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// The signed policy (JWS)
    #[arg(value_name = "FILE", default_value = "policy.jws")]
    file: PathBuf,
    /// Thumbprint of an owner key that is believed; may be repeated
    #[arg(
        long = "owner",
        value_name = "THUMBPRINT",
        allow_hyphen_values = true,
        env = "SEALFLOW_OWNERS",
        hide_env_values = true,
        required = true,
        value_delimiter = ','
    )]
    owners: Vec<Pin>,
}

pub(super) fn verify(args: &VerifyArgs) -> Result<ExitCode> {
    let policy = verify_file(&args.file, &args.owners)?;
    let signer = policy
        .owner()
        .map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
    let model = policy.policy();
    say(format_args!(
        "{}: policy of {}, version {}, signed by {signer}: ok",
        args.file.display(),
        model.dataset,
        model.version
    ));
    Ok(ExitCode::SUCCESS)
}

/// Reads a signed policy file and believes it if one of `pinned` signed it.
fn verify_file(path: &Path, pinned: &[Pin]) -> Result<VerifiedPolicy> {
    let jws = files::read_text(path)?;
    signed::verify(jws.trim(), &owners(pinned)?).map_err(|error| in_file(path, Failure::from(error)))
}

/// Checks and signs a policy file; the JWS.
pub(super) fn sign_file(path: &Path, key: &PrivateJwk) -> Result<String> {
    let yaml = files::read_small(path)?;
    parse(path, &yaml)?;
    signed::sign(&yaml, key).map_err(|error| in_file(path, Failure::from(error)))
}

fn parse(path: &Path, yaml: &[u8]) -> Result<Policy> {
    Policy::parse(yaml)
        .map_err(|error: PolicyError| Failure::config(format_args!("{}: {error}", path.display()), error.help()))
}

fn in_file(path: &Path, failure: Failure) -> Failure {
    Failure {
        message: format!("{}: {}", path.display(), failure.message),
        ..failure
    }
}
