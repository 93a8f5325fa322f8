//! The `reuseport-lb` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    reuseport_lb::cli::main()
}
