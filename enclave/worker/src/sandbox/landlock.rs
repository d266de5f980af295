//! Landlock without a single rule: no path, no port, no abstract socket, no signal to the outside, as far as the kernel knows.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};

use super::{Need, SandboxError};

/// The newest interface that is known here. What a kernel does not know is left out.
const NEWEST: ABI = ABI::V10;

/// Restricts the calling thread, and threads that it makes. Answers which version of the interface holds.
pub(super) fn restrict(need: Need) -> Result<Option<i32>, SandboxError> {
    let status = everything().map_err(|error| SandboxError::Landlock {
        reason: error.to_string(),
    })?;
    match (status, need) {
        (Ok(version), _) => Ok(Some(version)),
        (Err(_), Need::IfAvailable) => Ok(None),
        (Err(reason), Need::Required) => Err(SandboxError::Landlock {
            reason: reason.to_owned(),
        }),
    }
}

fn everything() -> Result<Result<i32, &'static str>, RulesetError> {
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok(match (restricted.landlock, restricted.ruleset) {
        (LandlockStatus::NotEnabled, _) => Err("this kernel has it, but it is not switched on"),
        (LandlockStatus::NotImplemented, _) => Err("this kernel does not have it"),
        (_, RulesetStatus::NotEnforced) => Err("this kernel does not enforce it"),
        (LandlockStatus::Available { effective_abi, .. }, _) => Ok(effective_abi as i32),
    })
}
