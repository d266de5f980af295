//! Who reads: what STS says of the credentials, or for development somebody who is assumed.

use sealflow::acl::Identity;
use sealflow::audit::Proof;
use sealflow::keys::KeyService;

use crate::commands::access::Access;
use crate::commands::acl::identity;
use crate::failure::{Exit, Failure, Result};

/// Somebody else than the credentials say
#[derive(Debug, clap::Args)]
pub(in crate::commands) struct AssumedIdentity {
    /// See what this principal would see: an ARN, or oidc:ISSUER#sub=SUBJECT. Only with an unsigned policy (--dev)
    #[arg(long = "as", value_name = "PRINCIPAL")]
    assumed: Option<String>,
    /// A group of that OIDC subject; may be repeated
    #[arg(long = "group", value_name = "GROUP", requires = "assumed")]
    groups: Vec<String>,
}

/// Whoever asks, and how it was proved.
pub(in crate::commands) struct Asking {
    pub(in crate::commands) who: Identity,
    /// The ARN as STS told it.
    pub(in crate::commands) caller: Option<String>,
    pub(in crate::commands) proof: Proof,
}

impl AssumedIdentity {
    /// Whether somebody is assumed.
    pub(in crate::commands) fn is_some(&self) -> bool {
        self.assumed.is_some()
    }

    /// Refuses to stand for somebody where that could open anything real.
    pub(in crate::commands) fn check(&self, access: &Access) -> Result<()> {
        if self.assumed.is_none() || access.is_unsigned() {
            return Ok(());
        }
        Err(Failure::new(
            Exit::NotPermitted,
            "--as proves nothing, so it goes with an unsigned policy only",
            "give --dev POLICY, or read with the credentials of whom you mean; `sealflow acl why` says what somebody may open",
        ))
    }

    /// Asks STS who the credentials belong to, unless somebody is assumed.
    pub(in crate::commands) async fn asking(&self, kms: &dyn KeyService) -> Result<Asking> {
        if let Some(text) = &self.assumed {
            return Ok(Asking {
                who: identity(text, &self.groups)?,
                caller: None,
                proof: Proof::Assumed,
            });
        }
        let arn = kms.identity().await?;
        let who = Identity::from_arn(&arn).map_err(|error| {
            let refused = arn.starts_with("arn:");
            let help = if refused {
                error.help()
            } else {
                "AWS STS has to be reached: check network and region, or `sts_endpoint` of the `kms` section"
            };
            let said = if refused {
                &arn
            } else {
                "who the credentials belong to could not be asked"
            };
            Failure::new(Exit::NotPermitted, format_args!("{said}: {error}"), help)
        })?;
        // A role's session may say which person it is; a user's ARN says nothing more.
        let caller = (who.to_string() != arn).then_some(arn);
        Ok(Asking {
            who,
            caller,
            proof: Proof::StsCredentials,
        })
    }
}
