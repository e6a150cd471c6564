//! The binary when its machine fails it: no memory, a full disk, a kill in the middle. What was there stays whole.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use wgpu_batchnorm_cli::file::{self, Tensor, Tensors};

/// A folder with `in.safetensors`, of so many values, and an older `out.safetensors`.
fn folder(values: usize) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let input: Vec<f32> = (0..values).map(|i| (i % 97) as f32).collect();
    let input = Tensor::from_f32(vec![values / 64, 64], &input);
    let tensors = Tensors::from([("input".to_owned(), input)]);
    file::write(&folder.path().join("in.safetensors"), &tensors).unwrap();
    let old = folder.path().join("out.safetensors");
    let older = Tensors::from([("older".to_owned(), Tensor::from_i64_scalar(7))]);
    file::write(&old, &older).unwrap();
    let content = fs::read(&old).unwrap();
    (folder, old, content)
}

/// `forward in.safetensors -o out.safetensors`, after some of a shell's commands.
fn forward(folder: &Path, before: &str, options: &str) -> Command {
    let binary = env!("CARGO_BIN_EXE_wgpu-batchnorm");
    let script =
        format!("{before}; exec {binary} forward in.safetensors -o out.safetensors {options}");
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A software adapter's name, or the first one's: drivers of GPUs reserve more address space than they use.
fn adapter() -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgpu-batchnorm"));
    let info = command.args(["info", "--json"]).output().unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let adapters = info["adapters"].as_array().unwrap();
    let software = adapters.iter().find(|a| a["type"] == "Cpu");
    let adapter = software.unwrap_or(&adapters[0]);
    adapter["name"].as_str().unwrap().to_owned()
}

/// At every limit of address space that leaves room for a device, the binary does its work or says in one line that the
/// device is out of memory. Below that it is the driver that fails, each in its own way.
#[test]
fn short_of_memory() {
    let (folder, out, old) = folder(16 << 20); // 64 MiB
    let options = format!("--device gpu --adapter '{}'", adapter());
    let run = |megabytes: u32| {
        let limit = format!("ulimit -v {}", u64::from(megabytes) << 10);
        forward(folder.path(), &limit, &options).output().unwrap()
    };
    let enough = (1000..100_000).step_by(500);
    let enough = enough
        .into_iter()
        .find(|&megabytes| run(megabytes).status.success());
    let enough = enough.expect("100 GB were not enough for 64 MiB");
    let new = fs::read(&out).unwrap();
    assert_ne!(new, old);

    let mut short = 0;
    for megabytes in (0..enough).rev().step_by(50) {
        fs::write(&out, &old).unwrap();
        let command = run(megabytes);
        let stderr = String::from_utf8(command.stderr).unwrap();
        let errors: Vec<&str> = stderr.lines().filter(|l| !l.contains("XDG_")).collect();
        match command.status.code() {
            Some(0) => {
                assert_eq!(fs::read(&out).unwrap(), new, "{megabytes} MB");
                continue;
            }
            Some(1) if stderr.contains("the device is out of memory") => short += 1,
            Some(1) => assert!(stderr.contains("emory"), "{megabytes} MB: {stderr}"),
            None => break, // a signal: the driver's own
            Some(code) => panic!("{megabytes} MB: exit code {code}: {stderr}"),
        }
        let one_line = matches!(errors[..], [line] if line.starts_with("error: "));
        assert!(one_line, "{megabytes} MB: {stderr}");
        assert_eq!(fs::read(&out).unwrap(), old, "{megabytes} MB");
        assert_eq!(names(folder.path()), ["in.safetensors", "out.safetensors"]);
        if !stderr.contains("the device is out of memory") {
            break; // there was no device
        }
    }
    assert!(
        short > 0,
        "the device was never out of memory below {enough} MB"
    );
}

/// Files may not grow beyond a limit, as if the disk were full.
#[test]
fn a_full_disk() {
    let (folder, out, old) = folder(1 << 20);
    for blocks in [0, 1, 1000] {
        let limit = format!("trap '' XFSZ; ulimit -f {blocks}");
        let command = forward(folder.path(), &limit, "--device cpu")
            .output()
            .unwrap();
        let stderr = String::from_utf8(command.stderr).unwrap();
        assert_eq!(command.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("out.safetensors: cannot be written"),
            "{stderr}"
        );
        assert_eq!(fs::read(&out).unwrap(), old);
        assert_eq!(names(folder.path()), ["in.safetensors", "out.safetensors"]);
    }
}

/// Killed at whatever moment, the old file is there, or the new one, whole.
#[test]
fn killed() {
    let (folder, out, old) = folder(4 << 20);
    let run = || forward(folder.path(), "true", "--device cpu");
    assert!(run().status().unwrap().success());
    let new = fs::read(&out).unwrap();
    let mut killed = 0;
    for step in 0..40 {
        fs::write(&out, &old).unwrap();
        let mut child = run().spawn().unwrap();
        // In the middle of the writing, where a temporary file shows it; otherwise some time later.
        let before = names(folder.path()).len();
        for _ in 0..1000 {
            let writing = names(folder.path()).len() > before;
            if writing || child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        std::thread::sleep(Duration::from_micros(250 * step));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let found = fs::read(&out).unwrap();
        assert!(found == old || found == new, "{} bytes", found.len());
    }
    assert!(killed > 0, "it was done before every kill");
    assert!(run().status().unwrap().success());
    assert!(fs::read(&out).unwrap() == new);
}
