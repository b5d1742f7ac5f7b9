//! The `keelway` binary: re-executions of itself first, then arguments, then one command.

mod args;
mod build_args;
mod cache_args;
mod commands;
mod container_args;
mod doctor;
mod files;
mod hidden;
mod limit_args;
mod machine;
mod oci;
mod outcome;
mod output_args;
mod render;
mod secret_args;
mod settings;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A sandbox's init and the processes of a host are this binary too. They come before argument parsing,
    // logging and the async runtime: init must be single-threaded.
    if let Some(code) = hidden::run_if_asked() {
        return code;
    }
    commands::main()
}
