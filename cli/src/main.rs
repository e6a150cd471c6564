//! The command line: see `wgpu-batchnorm --help`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use wgpu_batchnorm_cli::args::{Cli, Command};
use wgpu_batchnorm_cli::{bench, check, info, run};

fn main() -> ExitCode {
    quiet_wayland();
    let result = match Cli::parse().command {
        Command::Info { json } => info::run(json),
        Command::Forward(args) => run::run(&args, false),
        Command::Backward(args) => run::run(&args, true),
        Command::Check(args) => check::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever a driver or a parser wrote.
            let line = format!("{error:#}")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            // Where stderr is closed too, the exit code alone says it.
            let _ = writeln!(std::io::stderr(), "error: {line}");
            ExitCode::FAILURE
        }
    }
}

/// Vulkan's loader asks libwayland for a display, which complains on stderr where XDG_RUNTIME_DIR is not set, as in
/// most containers. With a folder it finds no display there and says nothing: our errors stay one line.
fn quiet_wayland() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the first thing that main does; no other thread reads or writes the environment yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
}
