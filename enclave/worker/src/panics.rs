//! What a panic of the worker's says: where it was, and nothing of what it was about.

use std::io::Write as _;

/// From now on a panic of any thread or task writes its place to standard error, and never its message: that can quote a value, and
/// standard error ends in the host's log.
pub fn say_place_only() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        let _ = writeln!(std::io::stderr(), "error: the worker panicked at {place}");
    }));
}
