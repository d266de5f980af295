//! `sealflow enclave make-pair`: a pair that clients seal to, whose private half only enclaves get.

use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::policy::KeyPair;
use sealflow::policy::arn::check_key_arn;
use sealflow_enclave_host::AttestationVerifier;
use sealflow_enclave_protocol::joints::Verifier as _;
use sealflow_enclave_protocol::message::{PairAnswer, PairJob};

use super::attest::started;
use crate::by_worker;
use crate::commands::keys::Bits;
use crate::config::{self, Environment};
use crate::enclave::measurements;
use crate::failure::{Exit, Failure, Result};
use crate::term::{note, say};

/// Have the worker of a pipeline make a key pair that clients seal to; prints it as the policy takes it
///
/// The worker asks KMS for it (`GenerateDataKeyPair`), which releases the private half to attested workers alone, and wraps it for the
/// policy: sessions then cost no request each. The worker's evidence that it had the pair made is verified here, with a fresh nonce. The
/// pair opens for the pipeline's dataset alone. What is printed belongs under `enclave: keys:` of its policy, and is no secret.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline file
    #[arg(value_name = "PIPELINE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pipeline: PathBuf,
    /// Full ARN of a symmetric KMS key that wraps no data keys, with the key policy that `sealflow policy render` writes for it
    #[arg(long = "key", value_name = "ARN")]
    arn: String,
    /// The name of the key in the policy
    #[arg(long, value_name = "NAME", default_value = "web")]
    name: String,
    /// Size of the key in bits; the larger, the more of a core each session costs the worker
    #[arg(long, value_enum, default_value_t, value_name = "BITS")]
    bits: Bits,
}

pub(super) async fn run(args: Args) -> Result<ExitCode> {
    check_key_arn(&args.arn).map_err(|error| {
        Failure::usage(
            format_args!("--key: {error}"),
            "give the full ARN of a symmetric KMS key, as `keys:` of a policy has it",
        )
    })?;
    let config = config::load(&args.pipeline, &Environment::of_process())?;
    let (services, worker, proved) = started(&config).await?;
    let policy = services.policy.policy();
    let (Some(section), Some(rule)) = (&config.enclave, &policy.enclave) else {
        return Err(Failure::config(
            "enclave: there is none",
            "add the section to the pipeline file",
        ));
    };
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce)
        .map_err(|_| Failure::new(Exit::Internal, "there are no random numbers", "try again"))?;
    let job = PairJob {
        dataset: &policy.dataset,
        arn: &args.arn,
        bits: args.bits.bits(),
        nonce,
    };
    let refused = "its key policy lets measured workers alone call kms:GenerateDataKeyPair and kms:Decrypt; the worker's \
                   configuration names its keys";
    let answer = worker.make_pair(&job).await;
    let answer = answer.map_err(|error| by_worker::failure(&error, refused))?;
    let not_its = |reason: &dyn std::fmt::Display| {
        Failure::new(
            Exit::NotPermitted,
            format_args!("the pair is not believed to be the worker's: {reason}"),
            "put it into no policy; look at what runs as the worker",
        )
    };
    let answer = PairAnswer::read(&answer.body).map_err(|error| not_its(&error))?;
    let pair = KeyPair::made(
        &args.arn,
        &policy.dataset,
        answer.public.to_vec(),
        answer.wrapped.to_vec(),
    );
    let pair = pair.ok_or_else(|| not_its(&"no policy takes it"))?;
    let public = RsaPublicJwk::from_spki_der(&pair.public).map_err(|error| not_its(&error))?;
    if u32::try_from(public.bits()) != Ok(args.bits.bits()) {
        return Err(not_its(&"it has another size"));
    }
    let verifier = AttestationVerifier::new(section.trust()?, measurements(policy, rule)?, services.clock.clone());
    let believed = verifier.verify(answer.evidence, &nonce, &pair.user_data());
    let believed = believed.map_err(|error| not_its(&error.reason))?;
    say(format_args!(
        "{}:\n  pair:\n    arn: \"{}\"\n    public: \"{}\"\n    wrapped: \"{}\"",
        serde_json::Value::from(args.name.as_str()),
        pair.arn,
        STANDARD.encode(&pair.public),
        STANDARD.encode(&pair.wrapped)
    ));
    note(format_args!(
        "made by the worker of image {} ({}, {}); put it under `enclave: keys:` of the policy of {}; clients know it as {}",
        believed.image,
        believed.tier,
        proved.version,
        policy.dataset,
        public.thumbprint()
    ));
    Ok(ExitCode::SUCCESS)
}
