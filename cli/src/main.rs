//! `heddle`: the tool. All it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    heddle::exit_code(heddle::main())
}
