//! The software NSM as a program of its own, for tests: the same as `sealflow enclave nsm`.

use std::path::PathBuf;
use std::process::ExitCode;

#[allow(clippy::print_stderr)] // a program
fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let root_dir = match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(option), Some(folder), None) if option == "--root-dir" => PathBuf::from(folder),
        _ => {
            eprintln!("usage: sealflow-dev-nsm --root-dir DIR");
            return ExitCode::from(64);
        }
    };
    match sealflow_enclave_host::nsm::main(&root_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(69)
        }
    }
}
