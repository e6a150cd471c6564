//! `bench` as a command: what its options write. No test asserts a time.

use std::fs;
use std::process::{Command, Output};

use wgpu_batchnorm::Gpu;
use wgpu_batchnorm_cli::bench::{Bench, Op, Options, subjects, wait};

const QUICK: [&str; 8] = [
    "bench",
    "--shapes",
    "2x8x4x4,2x3x7x7",
    "--op",
    "forward,backward",
    "--rounds",
    "1",
    "--repetitions=2",
];

fn run(options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgpu-batchnorm"));
    command.args(QUICK).args(options).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn strategies_are_a_table() {
    let text = stdout(&run(&["--dtype", "f32,bf16", "--strategies", "-"]));
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| 2x"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 2 * 2 * 2, "{text}");
    for row in rows {
        let times = &row[4..7];
        let chosen = times.iter().filter(|time| time.starts_with("**")).count();
        assert_eq!(chosen, 1, "{row:?}");
        // Rows of 49 leave split alone.
        let missing = times.iter().filter(|time| **time == "–").count();
        assert_eq!(missing, if row[1] == "2x3x7x7" { 2 } else { 0 }, "{row:?}");
    }
    assert!(text.contains("of the best:"), "{text}");
}

#[test]
fn plans_are_tuned_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuning.json");
    let file = path.to_str().unwrap();
    stdout(&run(&["--tune", file]));
    let first = fs::read(&path).unwrap();
    let again = run(&["--tune", file]);
    stdout(&again);
    assert_eq!(fs::read(&path).unwrap(), first);
    fs::write(&path, "{").unwrap();
    let refused = run(&["--tune", file]);
    let line = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(line.contains("tuning.json"), "{line}");
}

#[test]
fn options_that_say_two_things_are_refused() {
    for options in [
        ["--strategies=-", "--strategy=split"],
        ["--strategies=-", "--json=-"],
        ["--tune=x", "--strategy=split"],
        ["--set=all", "--html=-"], // shapes are given already
    ] {
        assert_eq!(run(&options).status.code(), Some(2), "{options:?}");
    }
}

/// A tensor that one binding cannot hold is copied in parts; the error handler of wgpu would end the process.
#[test]
fn beyond_one_binding() {
    let adapter = Gpu::new().unwrap().adapter;
    let limits = wgpu::Limits {
        max_storage_buffer_binding_size: 1 << 20,
        ..wgpu::Limits::default()
    };
    let gpu = Gpu::with_limits(adapter, limits).unwrap();
    let options = Options {
        rounds: 1,
        repetitions: Some(2),
        ..Options::default()
    };
    let bench = wait(&gpu, Bench::new(&gpu, options)).unwrap();
    let shapes = ["5x16x64x65".to_owned()]; // 1.3 MB
    for subject in subjects(&shapes, &[], &Op::ALL, true).unwrap() {
        for measured in wait(&gpu, bench.measure(&subject)).unwrap() {
            // Chunks are several dispatches; times are whatever they are.
            assert!(measured.dispatches > 1, "{subject}");
        }
    }
}
