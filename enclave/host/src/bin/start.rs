//! The starter as a program of its own, for tests: the same as `sealflow enclave start`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sealflow_enclave_host::launch::starter_main()
}
