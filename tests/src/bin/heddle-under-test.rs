//! The `heddle` binary, built with the tests, for those that need processes.

use std::process::ExitCode;

fn main() -> ExitCode {
    heddle::exit_code(heddle::main())
}
