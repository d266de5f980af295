//! Signed policies of a catalogue, believed if a pinned owner signed them.

use std::sync::Arc;

use sealflow::keys::Catalogue;
use sealflow::policy::PolicySource;

use crate::failure::{Failure, Result};

/// The newest signed policies in `catalogue`, for `dataset`, of `owners`.
pub(crate) fn policies(_: &Arc<dyn Catalogue>, _: &str, _: &[String]) -> Result<Arc<dyn PolicySource>> {
    Err(Failure::config("signed policies are not wired yet", "use --dev POLICY"))
}
