//! The `hilum` program: parses the command line, calls the library, maps the outcome to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let command_line = hilum::cli::parse();
    match hilum::cli::run(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => hilum::cli::report(&error),
    }
}
