//! The command line as a user meets it: results against loops written here, the tensors of every output, and bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use wgpu_batchnorm_cli::file::{self, Dtype, Tensor, Tensors};

const OUTPUTS: [&str; 11] = [
    "output",
    "save_mean",
    "save_mean_remainder",
    "save_invstd",
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "grad_input",
    "grad_residual",
    "grad_weight",
    "grad_bias",
];

/// A folder with one input file.
struct Bench {
    folder: TempDir,
    input: PathBuf,
}

impl Bench {
    fn new(tensors: &[(&str, Tensor)]) -> Self {
        Self::with_suffix(tensors, "safetensors")
    }

    fn with_suffix(tensors: &[(&str, Tensor)], suffix: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join(format!("in.{suffix}"));
        let all: Tensors = tensors
            .iter()
            .map(|(n, t)| ((*n).to_owned(), t.clone()))
            .collect();
        file::write(&input, &all).unwrap();
        Bench { folder, input }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, command: &str, out: &Path, options: &[&str]) -> Output {
        let mut all = vec![
            command,
            self.input.to_str().unwrap(),
            "-o",
            out.to_str().unwrap(),
        ];
        all.extend(options);
        binary(&all)
    }

    /// Runs a command that must succeed, and reads all that it wrote.
    fn results(&self, command: &str, options: &[&str]) -> Tensors {
        let out = self.path("out.safetensors");
        let output = self.run(command, &out, options);
        assert!(
            output.status.success(),
            "{command} {options:?}: {}",
            stderr(&output)
        );
        file::read(&out, &OUTPUTS, 1 << 30).unwrap()
    }

    /// Runs a command that must fail with one line that names the culprit, and leave an old OUT and the folder alone.
    fn refuses(&self, command: &str, options: &[&str], culprits: &[&str]) {
        let out = self.path("out.safetensors");
        std::fs::write(&out, b"old").unwrap();
        let output = self.run(command, &out, options);
        let text = stderr(&output);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{command} {options:?}: {text}"
        );
        assert_eq!(
            text.trim_end().lines().count(),
            1,
            "{command} {options:?}: {text}"
        );
        for culprit in culprits {
            assert!(
                text.contains(culprit),
                "{command} {options:?}: {text:?} does not say {culprit:?}"
            );
        }
        assert_eq!(
            std::fs::read(&out).unwrap(),
            b"old",
            "{command} {options:?}"
        );
        std::fs::remove_file(&out).unwrap();
        let left: Vec<_> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|f| f.unwrap().path())
            .collect();
        assert_eq!(
            left,
            [self.input.clone()],
            "{command} {options:?} left files behind"
        );
    }
}

fn binary(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wgpu-batchnorm"))
        .args(args)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(shape.to_vec(), values)
}

/// Values that look random and are the same everywhere.
fn values(n: usize, salt: f64) -> Vec<f32> {
    (0..n)
        .map(|i| (((i as f64 + 1.0) * 12.9898 + salt).sin() * 43758.5453).fract() as f32 * 2.0)
        .collect()
}

fn close(tensors: &Tensors, name: &str, shape: &[usize], want: &[f64], bound: f64) {
    let tensor = tensors
        .get(name)
        .unwrap_or_else(|| panic!("there is no {name}"));
    assert_eq!(tensor.shape, shape, "{name}");
    let got = tensor.to_f32().unwrap();
    let scale = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs() / scale;
        assert!(error <= bound, "{name}[{i}]: {got}, wanted {want}");
    }
}

fn names(tensors: &Tensors) -> Vec<&str> {
    tensors.keys().map(String::as_str).collect()
}

/// The textbook, written once more: by loops over `[outer, channels, inner]`.
struct Textbook {
    shape: [usize; 3],
    x: Vec<f64>,
    eps: f64,
    weight: Vec<f64>,
    bias: Vec<f64>,
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Textbook {
    fn new(shape: [usize; 3], x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Self {
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let mut book = Textbook {
            shape,
            x: wide(x),
            eps,
            weight: wide(weight),
            bias: wide(bias),
            mean: vec![],
            variance: vec![],
        };
        let m = (shape[0] * shape[2]) as f64;
        for c in 0..shape[1] {
            let of_channel: Vec<f64> = (0..book.x.len())
                .filter(|&i| book.channel(i) == c)
                .map(|i| book.x[i])
                .collect();
            let mean = of_channel.iter().sum::<f64>() / m;
            book.mean.push(mean);
            book.variance
                .push(of_channel.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / m);
        }
        book
    }

    fn channel(&self, i: usize) -> usize {
        i / self.shape[2] % self.shape[1]
    }

    fn normalised(&self, i: usize) -> f64 {
        let c = self.channel(i);
        (self.x[i] - self.mean[c]) / (self.variance[c] + self.eps).sqrt()
    }

    fn z(&self, i: usize) -> f64 {
        self.weight[self.channel(i)] * self.normalised(i) + self.bias[self.channel(i)]
    }

    fn output(&self) -> Vec<f64> {
        (0..self.x.len()).map(|i| self.z(i)).collect()
    }

    fn invstd(&self) -> Vec<f64> {
        self.variance
            .iter()
            .map(|v| 1.0 / (v + self.eps).sqrt())
            .collect()
    }

    /// dx, dγ, dβ.
    fn gradients(&self, dz: &[f64], frozen: bool) -> [Vec<f64>; 3] {
        let m = (self.shape[0] * self.shape[2]) as f64;
        let (mut dw, mut db) = (vec![0.0; self.shape[1]], vec![0.0; self.shape[1]]);
        for (i, dz) in dz.iter().enumerate() {
            dw[self.channel(i)] += dz * self.normalised(i);
            db[self.channel(i)] += dz;
        }
        let dx = (0..self.x.len()).map(|i| {
            let c = self.channel(i);
            let through = if frozen {
                0.0
            } else {
                db[c] / m + self.normalised(i) * dw[c] / m
            };
            self.weight[c] * self.invstd()[c] * (dz[i] - through)
        });
        [dx.collect(), dw, db]
    }
}

/// The ONNX operator's training example, opset 15: `running = 0.9·old + 0.1·batch`, biased.
#[test]
fn onnx_training() {
    let (x, scale, bias) = (values(120, 0.0), values(3, 1.0), values(3, 2.0));
    let (mean, var) = (values(3, 3.0), vec![0.5, 1.0, 2.0]);
    let bench = Bench::new(&[
        ("input", f32s(&[2, 3, 4, 5], &x)),
        ("weight", f32s(&[3], &scale)),
        ("bias", f32s(&[3], &bias)),
        ("running_mean", f32s(&[3], &mean)),
        ("running_var", f32s(&[3], &var)),
    ]);
    let book = Textbook::new([2, 3, 20], &x, &scale, &bias, 1e-5);
    let out = bench.results("forward", &["--preset", "onnx"]);
    close(&out, "output", &[2, 3, 4, 5], &book.output(), 1e-6);
    let mix = |old: &[f32], new: &[f64]| -> Vec<f64> {
        old.iter()
            .zip(new)
            .map(|(o, n)| 0.9 * f64::from(*o) + 0.1 * n)
            .collect()
    };
    close(&out, "running_mean", &[3], &mix(&mean, &book.mean), 1e-6);
    close(&out, "running_var", &[3], &mix(&var, &book.variance), 1e-6);
    // And with another epsilon, in inference.
    let out = bench.results(
        "forward",
        &["--preset", "onnx", "--mode", "inference", "--eps", "0.01"],
    );
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect();
    let book = Textbook {
        mean: wide(&mean),
        variance: wide(&var),
        eps: 0.01,
        ..book
    };
    close(&out, "output", &[2, 3, 4, 5], &book.output(), 1e-6);
    assert_eq!(names(&out), ["output"]);
}

/// PyTorch: unbiased running variance, momentum, cumulative average, the count.
#[test]
fn pytorch_running_statistics() {
    let x = values(60, 4.0);
    let bench = Bench::new(&[
        ("input", f32s(&[4, 3, 5], &x)),
        ("running_mean", f32s(&[3], &[1.0, 2.0, 3.0])),
        ("running_var", f32s(&[3], &[1.0, 2.0, 3.0])),
        ("num_batches_tracked", Tensor::from_i64_scalar(3)),
    ]);
    let book = Textbook::new([4, 3, 5], &x, &[1.0; 3], &[0.0; 3], 1e-5);
    for (options, w) in [
        (&[][..], 0.1),
        (&["--momentum", "0.3"], 0.3),
        (&["--decay", "0.6"], 0.4),
        (&["--momentum", "cumulative"], 0.25),
        (&["--momentum", "0"], 0.0),
        (&["--momentum", "1"], 1.0),
    ] {
        let out = bench.results("forward", options);
        let mix = |new: &[f64], factor: f64| -> Vec<f64> {
            (0..3)
                .map(|c| (1.0 - w) * (c as f64 + 1.0) + w * factor * new[c])
                .collect()
        };
        close(&out, "running_mean", &[3], &mix(&book.mean, 1.0), 1e-6);
        close(
            &out,
            "running_var",
            &[3],
            &mix(&book.variance, 20.0 / 19.0),
            1e-6,
        );
        assert_eq!(
            out["num_batches_tracked"].to_i64_scalar(),
            Some(4),
            "{options:?}"
        );
        assert_eq!(out["num_batches_tracked"].shape, [0usize; 0]);
    }
}

/// Channel axes and ranks, with Keras' last axis.
#[test]
fn layouts() {
    for (shape, axis, of) in [
        (&[6, 5][..], "1", [6, 5, 1]),
        (&[6, 5], "0", [1, 6, 5]),
        (&[3, 4, 5], "1", [3, 4, 5]),
        (&[2, 3, 4, 5], "-1", [24, 5, 1]),
        (&[2, 3, 4, 5], "-3", [2, 3, 20]),
        (&[2, 3, 2, 3, 2], "1", [2, 3, 12]),
        (&[2, 1, 7], "1", [2, 1, 7]),
        (&[2, 5000], "1", [2, 5000, 1]),
    ] {
        let n = shape.iter().product();
        let (x, weight, bias) = (values(n, 5.0), values(of[1], 6.0), values(of[1], 7.0));
        let bench = Bench::new(&[
            ("input", f32s(shape, &x)),
            ("weight", f32s(&[of[1]], &weight)),
            ("bias", f32s(&[of[1]], &bias)),
        ]);
        let book = Textbook::new(of, &x, &weight, &bias, 1e-3);
        let out = bench.results("forward", &["--preset", "keras", "--channel-axis", axis]);
        close(&out, "output", shape, &book.output(), 1e-6);
        close(&out, "save_mean", &[of[1]], &book.mean, 1e-6);
        close(&out, "save_invstd", &[of[1]], &book.invstd(), 1e-6);
        assert_eq!(
            names(&out),
            ["output", "save_invstd", "save_mean", "save_mean_remainder"]
        );
    }
}

/// Gradients in all forms: saved statistics given or not, frozen, ReLU with a residual; and which tensors come.
#[test]
fn gradients() {
    let (x, dy, r) = (values(210, 8.0), values(210, 9.0), values(210, 10.0));
    let (weight, bias) = (values(3, 11.0), values(3, 12.0));
    let shape = [5, 3, 14];
    let tensors = vec![
        ("input", f32s(&shape, &x)),
        ("grad_output", f32s(&shape, &dy)),
        ("weight", f32s(&[3], &weight)),
        ("bias", f32s(&[3], &bias)),
        ("running_mean", f32s(&[3], &[0.1, 0.2, 0.3])),
        ("running_var", f32s(&[3], &[1.0, 0.5, 2.0])),
    ];
    let book = Textbook::new(shape, &x, &weight, &bias, 1e-5);
    let dz: Vec<f64> = dy.iter().map(|&v| f64::from(v)).collect();
    let bench = Bench::new(&tensors);
    let check = |out: &Tensors, [dx, dw, db]: [Vec<f64>; 3]| {
        close(out, "grad_input", &shape, &dx, 2e-6);
        close(out, "grad_weight", &[3], &dw, 2e-6);
        close(out, "grad_bias", &[3], &db, 2e-6);
    };
    let out = bench.results("backward", &[]);
    assert_eq!(names(&out), ["grad_bias", "grad_input", "grad_weight"]);
    check(&out, book.gradients(&dz, false));

    // With what the forward pass saved.
    let saved = bench.results("forward", &[]);
    let mut more = tensors.clone();
    for name in ["save_mean", "save_mean_remainder", "save_invstd"] {
        more.push((name, saved[name].clone()));
    }
    check(
        &Bench::new(&more).results("backward", &[]),
        book.gradients(&dz, false),
    );

    // Frozen.
    let frozen = Textbook {
        mean: [0.1f32, 0.2, 0.3].map(f64::from).to_vec(),
        variance: vec![1.0, 0.5, 2.0],
        ..Textbook::new(shape, &x, &weight, &bias, 1e-5)
    };
    check(
        &bench.results("backward", &["--mode", "inference"]),
        frozen.gradients(&dz, true),
    );

    // ReLU and a residual.
    let mut with = tensors.clone();
    with.push(("residual", f32s(&shape, &r)));
    let bench = Bench::new(&with);
    let gated: Vec<f64> = (0..210)
        .map(|i| {
            if book.z(i) + f64::from(r[i]) > 0.0 {
                dz[i]
            } else {
                0.0
            }
        })
        .collect();
    let out = bench.results("backward", &["--activation", "relu"]);
    check(&out, book.gradients(&gated, false));
    close(&out, "grad_residual", &shape, &gated, 0.0);
    let out = bench.results("backward", &[]);
    close(&out, "grad_residual", &shape, &dz, 0.0);
    let want: Vec<f64> = (0..210)
        .map(|i| (book.z(i) + f64::from(r[i])).max(0.0))
        .collect();
    close(
        &bench.results("forward", &["--activation", "relu"]),
        "output",
        &shape,
        &want,
        1e-6,
    );

    // Weight alone, bias alone, neither.
    for (keep, expected) in [
        (&["weight"][..], &["grad_input", "grad_weight"][..]),
        (&["bias"], &["grad_bias", "grad_input"]),
        (&[], &["grad_input"]),
    ] {
        let chosen: Vec<_> = tensors
            .iter()
            .filter(|(n, _)| !["weight", "bias"].contains(n) || keep.contains(n))
            .cloned()
            .collect();
        assert_eq!(
            names(&Bench::new(&chosen).results("backward", &[])),
            expected
        );
    }
}

/// Every type and both file formats; the reference on the CPU gives the same; bytes repeat.
#[test]
fn types_formats_and_devices() {
    let x = values(96, 13.0);
    let book = Textbook::new([4, 3, 8], &x, &[1.0; 3], &[0.0; 3], 1e-5);
    let half = |dtype: Dtype| {
        let data = x.iter().flat_map(|&v| match dtype {
            Dtype::F16 => half::f16::from_f32(v).to_le_bytes(),
            _ => half::bf16::from_f32(v).to_le_bytes(),
        });
        Tensor {
            dtype,
            shape: vec![4, 3, 8],
            data: data.collect(),
        }
    };
    for (input, bound) in [
        (f32s(&[4, 3, 8], &x), 1e-6),
        (half(Dtype::F16), 2e-3),
        (half(Dtype::BF16), 2e-2),
    ] {
        let dtype = input.dtype;
        let bench = Bench::new(&[("input", input)]);
        for device in ["auto", "gpu", "cpu"] {
            let out = bench.results("forward", &["--device", device]);
            assert_eq!(out["output"].dtype, dtype);
            assert_eq!(out["save_mean"].dtype, Dtype::F32);
            close(&out, "output", &[4, 3, 8], &book.output(), bound);
        }
        for suffix in ["safetensors", "npz"] {
            let (a, b) = (
                bench.path(&format!("a.{suffix}")),
                bench.path(&format!("b.{suffix}")),
            );
            let output = bench.run("forward", &a, &[]);
            if dtype == Dtype::BF16 && suffix == "npz" {
                assert_eq!(output.status.code(), Some(1));
                assert!(stderr(&output).contains("safetensors") && !a.exists());
                continue;
            }
            assert!(output.status.success() && bench.run("forward", &b, &[]).status.success());
            assert_eq!(
                std::fs::read(&a).unwrap(),
                std::fs::read(&b).unwrap(),
                "{dtype} {suffix}"
            );
        }
    }
    let npz = Bench::with_suffix(&[("input", f32s(&[4, 3, 8], &x))], "npz");
    close(
        &npz.results("forward", &[]),
        "output",
        &[4, 3, 8],
        &book.output(),
        1e-6,
    );
    // IN may be OUT.
    let input = npz.input.clone();
    assert!(npz.run("forward", &input, &[]).status.success());
    close(
        &file::read(&input, &OUTPUTS, 1 << 20).unwrap(),
        "output",
        &[4, 3, 8],
        &book.output(),
        1e-6,
    );
}

#[test]
fn json_reports() {
    let bench = Bench::new(&[("input", f32s(&[4, 3], &values(12, 14.0)))]);
    let output = bench.run("forward", &bench.path("out.npz"), &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["device", "adapter", "plan", "times_ms"] {
        assert!(!report[key].is_null(), "{key}: {report}");
    }
    let report: serde_json::Value =
        serde_json::from_slice(&binary(&["info", "--json"]).stdout).unwrap();
    assert!(
        report["adapters"].as_array().is_some_and(|a| !a.is_empty()),
        "{report}"
    );
}

/// Bad options and bad tensors, in both directions.
#[test]
fn bad_input_is_refused() {
    let x = values(24, 15.0);
    let shape = [2, 3, 4];
    let good = || {
        vec![
            ("input", f32s(&shape, &x)),
            ("grad_output", f32s(&shape, &x)),
            ("running_mean", f32s(&[3], &[0.0; 3])),
            ("running_var", f32s(&[3], &[1.0; 3])),
        ]
    };
    let i64s = |n: usize| Tensor {
        dtype: Dtype::I64,
        shape: vec![n],
        data: vec![0; 8 * n],
    };
    let wide = |shape: &[usize]| Tensor {
        dtype: Dtype::F64,
        shape: shape.to_vec(),
        data: vec![0; 8 * 24],
    };
    for command in ["forward", "backward"] {
        let bench = Bench::new(&good());
        for (options, culprits) in [
            (&["--eps", "-1"][..], &["eps", "-1"][..]),
            (&["--eps", "nan"], &["eps", "NaN"]),
            (&["--eps", "inf"], &["eps", "inf"]),
            (&["--momentum", "1.5"], &["momentum", "1.5"]),
            (&["--momentum", "nan"], &["momentum"]),
            (&["--decay", "-0.1"], &["decay", "-0.1"]),
            (
                &["--momentum", "0.1", "--decay", "0.9"],
                &["--momentum", "--decay"],
            ),
            (&["--channel-axis", "3"], &["axis 3", "[2, 3, 4]"]),
            (&["--channel-axis", "-4"], &["axis -4"]),
            (&["--activation", "step"], &["activation", "step"]),
            (&["--adapter", "no such"], &["no such"]),
            (
                &["--device", "cpu", "--backend", "vulkan"],
                &["--device cpu", "--backend"],
            ),
            (&["--strategy", "resident"], &["resident"]),
            (&["--max-bytes", "10"], &["10"]),
        ] {
            bench.refuses(command, options, culprits);
        }
        type Change = (&'static str, Option<Tensor>);
        let changes: Vec<(Change, &[&str], &[&str])> = vec![
            (("input", None), &[], &["input"]),
            (("input", Some(i64s(24))), &[], &["input", "I64"]),
            (("input", Some(wide(&shape))), &[], &["input", "F64"]),
            (("input", Some(f32s(&[], &[1.0]))), &[], &["axis", "[]"]),
            (
                ("weight", Some(f32s(&[4], &[0.0; 4]))),
                &[],
                &["weight", "[4]", "[3]"],
            ),
            (
                ("weight", Some(f32s(&[3, 1], &[0.0; 3]))),
                &[],
                &["weight", "[3, 1]"],
            ),
            (("weight", Some(i64s(3))), &[], &["weight", "I64"]),
            (("bias", Some(f32s(&[2], &[0.0; 2]))), &[], &["bias", "[2]"]),
            (
                ("running_mean", Some(f32s(&[1], &[0.0]))),
                &[],
                &["running_mean", "[1]"],
            ),
            (("running_mean", None), &[], &["running_mean"]),
            (("running_var", None), &[], &["running_var"]),
            (
                ("running_var", Some(f32s(&[3], &[1.0, -1.0, 1.0]))),
                &[],
                &["running_var", "-1"],
            ),
            (
                ("num_batches_tracked", Some(i64s(1))),
                &[],
                &["num_batches_tracked", "[1]"],
            ),
            (
                ("num_batches_tracked", Some(Tensor::from_i64_scalar(-1))),
                &[],
                &["num_batches_tracked", "-1"],
            ),
            (
                ("residual", Some(f32s(&[3, 2, 4], &x))),
                &[],
                &["residual", "[3, 2, 4]"],
            ),
            (("residual", Some(wide(&shape))), &[], &["residual", "F64"]),
        ];
        for ((name, tensor), options, culprits) in changes {
            let mut tensors: Vec<_> = good().into_iter().filter(|(n, _)| *n != name).collect();
            tensors.extend(tensor.map(|t| (name, t)));
            Bench::new(&tensors).refuses(command, options, culprits);
        }
        let one = [
            ("input", f32s(&[1, 3], &[0.0; 3])),
            ("grad_output", f32s(&[1, 3], &[0.0; 3])),
        ];
        Bench::new(&one).refuses(command, &[], &["two values"]);
        Bench::new(&one).refuses(command, &["--mode", "inference"], &["running_mean"]);
        let empty = [
            ("input", f32s(&[0, 3], &[])),
            ("grad_output", f32s(&[0, 3], &[])),
        ];
        Bench::new(&empty).refuses(command, &[], &["empty"]);
    }
    let without: Vec<_> = good()
        .into_iter()
        .filter(|(n, _)| *n != "grad_output")
        .collect();
    Bench::new(&without).refuses("backward", &[], &["grad_output"]);
    let mut saved = good();
    saved.push(("save_mean", f32s(&[3], &[0.0; 3])));
    Bench::new(&saved).refuses("backward", &[], &["save_invstd"]);
    saved.push(("save_invstd", f32s(&[2], &[0.0; 2])));
    Bench::new(&saved).refuses("backward", &[], &["save_invstd", "[2]"]);
}

/// Bad paths and files; usage errors are the parser's, with exit code 2.
#[test]
fn bad_files_are_refused() {
    for command in ["forward", "backward"] {
        let bench = Bench::new(&[
            ("input", f32s(&[2, 3], &values(6, 16.0))),
            ("grad_output", f32s(&[2, 3], &[1.0; 6])),
        ]);
        for (out, culprit) in [
            ("nowhere/out.npz", "nowhere"),
            ("out.txt", "out.txt"),
            ("out", "out"),
        ] {
            let output = bench.run(command, &bench.path(out), &[]);
            assert_eq!(output.status.code(), Some(1));
            assert!(stderr(&output).contains(culprit), "{}", stderr(&output));
        }
        std::fs::create_dir(bench.path("folder.npz")).unwrap();
        assert_eq!(
            bench
                .run(command, &bench.path("folder.npz"), &[])
                .status
                .code(),
            Some(1)
        );
        std::fs::remove_dir(bench.path("folder.npz")).unwrap();
        let whole = std::fs::read(&bench.input).unwrap();
        for (bytes, culprit) in [
            (&whole[..whole.len() - 1], "in.safetensors"),
            (&b""[..], "in.safetensors"),
            (b"PK\x03\x04", "in.safetensors"),
        ] {
            std::fs::write(&bench.input, bytes).unwrap();
            bench.refuses(command, &[], &[culprit]);
        }
        let missing = binary(&[
            command,
            "/no/such/file.npz",
            "-o",
            bench.path("out.npz").to_str().unwrap(),
        ]);
        assert_eq!(missing.status.code(), Some(1));
        assert!(stderr(&missing).contains("/no/such/file.npz"));
        for usage in [
            &[command][..],
            &[command, "a.npz"],
            &[command, "a.npz", "-o", "b.npz", "--mode", "maybe"],
            &[command, "a.npz", "-o", "b.npz", "--nonsense"],
        ] {
            assert_eq!(binary(usage).status.code(), Some(2), "{usage:?}");
        }
    }
}

/// Data on which f32 is usually poor, within 1e-6 and 2e-6.
#[test]
fn hard_data() {
    let normal = values(3000, 17.0);
    let mut sets = vec![
        normal.iter().map(|v| 1e4 + v).collect::<Vec<_>>(),
        normal.iter().map(|v| 1e15 * v).collect(),
    ];
    for (place, value) in [(0, 1e6), (2999, 1e6), (0, -1e4)] {
        let mut set = normal.clone();
        set[place] = value;
        sets.push(set);
    }
    sets.push(
        normal
            .iter()
            .map(|v| if *v > 0.0 { v + 5e3 } else { v - 5e3 })
            .collect(),
    );
    for x in sets {
        let dy: Vec<f32> = values(3000, 18.0).iter().map(|v| v.abs()).collect();
        let bench = Bench::new(&[
            ("input", f32s(&[10, 3, 100], &x)),
            ("grad_output", f32s(&[10, 3, 100], &dy)),
            ("weight", f32s(&[3], &[1.0; 3])),
        ]);
        let book = Textbook::new([10, 3, 100], &x, &[1.0; 3], &[0.0; 3], 1e-5);
        close(
            &bench.results("forward", &[]),
            "output",
            &[10, 3, 100],
            &book.output(),
            1e-6,
        );
        let dz: Vec<f64> = dy.iter().map(|&v| f64::from(v)).collect();
        let [dx, dw, _] = book.gradients(&dz, false);
        let out = bench.results("backward", &[]);
        close(&out, "grad_input", &[10, 3, 100], &dx, 2e-6);
        close(&out, "grad_weight", &[3], &dw, 2e-6);
    }
    let bench = Bench::new(&[
        ("input", f32s(&[5, 2, 3], &[0.1; 30])),
        ("bias", f32s(&[2], &[0.3, -0.7])),
    ]);
    let out = bench.results("forward", &[]);
    let want: Vec<f64> = (0..30)
        .map(|i| f64::from([0.3f32, -0.7][i / 3 % 2]))
        .collect();
    close(&out, "output", &[5, 2, 3], &want, 0.0);
}
