//! The format's library at work on bytes that anybody may have written: instead of refusing what makes no sense, it may panic.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::TableError;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` of the library's. What it was working on is in no state to be used again if it panics.
///
/// # Errors
/// [`TableError::Damaged`] if it panics.
pub(super) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, TableError> {
    let before = CONTAINED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    done.map_err(|_| TableError::Damaged)
}

/// Runs `work` of ours that the library calls: a panic there ends as one of its own does, and is a bug all the same.
pub(super) fn called_back<T>(work: impl FnOnce() -> T) -> T {
    let before = CONTAINED.replace(false);
    let done = work();
    CONTAINED.set(before);
    done
}

/// Whether a panic of this thread is one of the library's that becomes [`TableError::Damaged`]: for panic hooks, to which
/// every other is a bug.
#[must_use]
pub fn panic_is_contained() -> bool {
    CONTAINED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_others_of_the_same_thread_stay_panics() {
        assert!(!panic_is_contained());
        assert!(contained(panic_is_contained).unwrap());
        let error = contained(|| panic!("of the library's")).unwrap_err();
        assert!(matches!(error, TableError::Damaged), "{error}");
        assert!(!panic_is_contained());
        let inner = contained(|| (contained(|| panic!("of the library's")).is_err(), panic_is_contained()));
        assert_eq!(inner.unwrap(), (true, true));
        let ours = contained(|| (called_back(panic_is_contained), panic_is_contained()));
        assert_eq!(ours.unwrap(), (false, true));
        assert!(contained(|| called_back(|| panic!("of ours"))).is_err());
        assert!(!panic_is_contained());
    }
}
