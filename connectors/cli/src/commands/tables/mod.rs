//! What the commands share that look at files of tables: which files, what opens them, what they print.

mod files;
pub(crate) mod inspect;
mod key_names;
mod opener;
pub(in crate::commands) mod read;
mod sealing;
pub(crate) mod verify;

use sealflow::table::TableError;

pub(in crate::commands) use self::files::{Files, TableFile};
pub(in crate::commands) use self::opener::{By, Opener, Unopened};
use crate::failure::Failure;

/// Files that are looked at at the same time.
const FILES: usize = 4;

/// A failure of a file, by what it means.
fn of_table(path: &str, error: &TableError) -> Failure {
    Failure::new(opener::exit_of(error), format_args!("{path}: {error}"), error.help())
}
