//! The command line: see `wgpu-batchnorm --help`.

use std::process::ExitCode;

use clap::Parser;
use wgpu_batchnorm_cli::args::{Cli, Command};
use wgpu_batchnorm_cli::{check, info, run};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Info { json } => info::run(json),
        Command::Forward(args) => run::run(&args, false),
        Command::Backward(args) => run::run(&args, true),
        Command::Check(args) => check::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever a driver or a parser wrote.
            let line = format!("{error:#}")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            eprintln!("error: {line}");
            ExitCode::FAILURE
        }
    }
}
