//! Failpoints, for tests: where a process dies or a step fails, as `FAILPOINTS` or [`fail::cfg`] says.
//!
//! The steps, in order: `after-read`, `before-transform`, `after-transform`, `begin`, `send`, `flush`,
//! `send-offsets`, `before-commit`, `after-commit`, `abort`. Beside them, `revoked`: partitions are to be given up.

/// All steps.
pub const STEPS: [&str; 10] = [
    "after-read",
    "before-transform",
    "after-transform",
    "begin",
    "send",
    "flush",
    "send-offsets",
    "before-commit",
    "after-commit",
    "abort",
];

/// The steps of a landing, in order.
pub const LANDING_STEPS: [&str; 10] = [
    "land-before-close",
    "land-before-put",
    "land-after-put",
    "land-look",
    "land-probe",
    "land-rebuild",
    "land-before-finish",
    "land-after-finish",
    "land-before-commit",
    "land-after-commit",
];

/// Reads `FAILPOINTS` of the environment; to be kept for as long as they count.
#[must_use]
pub fn of_environment() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}

/// Makes the step `name` do what `actions` say from now on, for example `3*off->1*return->off`.
///
/// # Errors
/// If `actions` cannot be read.
pub fn set(name: &str, actions: &str) -> Result<(), String> {
    fail::cfg(name, actions)
}

/// Whether the step fails now. With `return(abort)` the process ends here, with nothing cleaned up.
pub(crate) fn fails(name: &str) -> bool {
    fn evaluate(name: &str) -> Option<Option<String>> {
        fail::eval(name, |argument| argument)
    }
    match evaluate(name) {
        None => false,
        Some(argument) if argument.as_deref() == Some("abort") => std::process::abort(),
        Some(_) => true,
    }
}
