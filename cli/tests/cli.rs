//! The binary on files: what it writes, how exact that is, and how it refuses bad input.
//!
//! Expected numbers are worked by hand, published, or come from the textbook's loops in f64 below, which share nothing
//! with the crate's own reference.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use half::{bf16, f16};
use wgpu_batchnorm_cli::file::{self, Dtype, Tensor, Tensors};

const FORWARD: f64 = 1e-6;
const BACKWARD: f64 = 2e-6;
const BOTH: [&str; 2] = ["forward", "backward"];

// ---- Running the binary ------------------------------------------------------------------------------------------

/// A temporary folder, which the binary runs in.
struct Folder(tempfile::TempDir);

/// What a run of the binary left.
struct Outcome {
    line: String,
    code: Option<i32>,
    stdout: String,
    /// By line, less what Mesa writes.
    stderr: Vec<String>,
}

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    /// A folder with one file.
    fn with(name: &str, tensors: &Tensors) -> Self {
        let folder = Folder::new();
        file::write(&folder.path(name), tensors).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Every file and its content; folders have none.
    fn content(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let entries = fs::read_dir(self.0.path()).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).ok())
        });
        entries.collect()
    }

    /// A command of the binary, from its line.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wgpu-batchnorm"));
        command
            .args(line.split_whitespace())
            .current_dir(self.0.path());
        command
    }

    fn run(&self, line: &str) -> Outcome {
        Outcome::of(line, &mut self.command(line))
    }

    /// Runs a line that has to be refused: one line on stderr that says `culprits`, exit code 1, nothing else.
    fn refuses(&self, line: &str, culprits: &[&str]) {
        let before = self.content();
        let outcome = self.run(line);
        outcome.refused(culprits);
        assert!(self.content() == before, "{line}: the folder changed");
    }

    /// Every tensor of a file that the binary wrote.
    fn read(&self, name: &str) -> Tensors {
        let bytes = self.bytes(name);
        let names: Vec<String> = if name.ends_with(".npz") {
            let archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
            let names = archive
                .file_names()
                .map(|n| n.strip_suffix(".npy").unwrap().to_owned());
            names.collect()
        } else {
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            tensors.names().into_iter().map(Into::into).collect()
        };
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        file::read(&self.path(name), &names, 1 << 30).unwrap()
    }
}

impl Outcome {
    fn of(line: &str, command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Outcome {
            line: line.to_owned(),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: stderr
                .lines()
                .filter(|l| !l.starts_with("error: XDG_RUNTIME_DIR"))
                .map(Into::into)
                .collect(),
        }
    }

    /// What it printed, where it succeeded and had nothing to complain of.
    fn succeeded(&self) -> &str {
        let Outcome { line, stderr, .. } = self;
        assert!(
            self.code == Some(0) && stderr.is_empty(),
            "{line}: {:?}, {stderr:#?}",
            self.code
        );
        &self.stdout
    }

    fn refused(&self, culprits: &[&str]) {
        let Outcome { line, stderr, .. } = self;
        assert!(
            self.code == Some(1) && stderr.len() == 1 && self.stdout.is_empty(),
            "{line}: {:?}, {stderr:#?}, {}",
            self.code,
            self.stdout
        );
        for culprit in culprits {
            assert!(
                stderr[0].starts_with("error: ") && stderr[0].contains(culprit),
                "{line}: {stderr:?} does not say {culprit:?}"
            );
        }
    }
}

/// The tensors that `forward` or `backward`, with options, makes of others.
fn results(tensors: &Tensors, command: &str) -> Tensors {
    // A machine without an adapter fails here: it must not pass by the reference.
    let device = if command.contains("--device") {
        ""
    } else {
        "--device gpu"
    };
    let folder = Folder::with("in.safetensors", tensors);
    let line = format!("{command} in.safetensors -o out.safetensors {device}");
    folder.run(&line).succeeded();
    folder.read("out.safetensors")
}

// ---- Tensors -----------------------------------------------------------------------------------------------------

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    assert_eq!(shape.iter().product::<usize>(), values.len());
    Tensor::from_f32(shape.to_vec(), values)
}

fn count(n: i64) -> Tensor {
    Tensor::from_i64_scalar(n)
}

/// A tensor of zeros.
fn zeros(dtype: Dtype, shape: &[usize]) -> Tensor {
    Tensor {
        dtype,
        shape: shape.to_vec(),
        data: vec![0; dtype.size() * shape.iter().product::<usize>()],
    }
}

fn file_of<const N: usize>(entries: [(&str, Tensor); N]) -> Tensors {
    entries
        .into_iter()
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect()
}

/// The same values in another type.
fn cast(tensor: &Tensor, dtype: Dtype) -> Tensor {
    let values = tensor.to_f32().unwrap();
    let data = values.into_iter().flat_map(|v| match dtype {
        Dtype::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
        Dtype::F64 => f64::from(v).to_le_bytes().to_vec(),
        Dtype::I64 => (v as i64).to_le_bytes().to_vec(),
        Dtype::F32 => v.to_le_bytes().to_vec(),
    });
    Tensor {
        dtype,
        shape: tensor.shape.clone(),
        data: data.collect(),
    }
}

/// Numbers in [0, 1), the same everywhere (splitmix64).
fn uniform(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 40
    };
    (0..n).map(|_| next() as f32 / (1 << 24) as f32).collect()
}

/// Numbers of a given mean and standard deviation, nearly normal: the sum of twelve uniform ones.
fn normal(n: usize, seed: u64, mean: f64, std: f64) -> Vec<f32> {
    let all = uniform(12 * n, seed);
    let sums = all
        .as_chunks::<12>()
        .0
        .iter()
        .map(|twelve| twelve.iter().map(|&v| f64::from(v)).sum::<f64>() - 6.0);
    sums.map(|v| (mean + std * v) as f32).collect()
}

/// Every tensor that a file may hold, but for the saved statistics.
fn everything(shape: &[usize], channels: usize) -> Tensors {
    let n = shape.iter().product();
    file_of([
        ("input", f32s(shape, &normal(n, 1, 0.5, 2.0))),
        ("residual", f32s(shape, &normal(n, 2, 0.0, 1.0))),
        ("grad_output", f32s(shape, &normal(n, 3, 0.1, 1.0))),
        ("weight", f32s(&[channels], &normal(channels, 4, 1.0, 0.5))),
        ("bias", f32s(&[channels], &normal(channels, 5, 0.0, 0.5))),
        (
            "running_mean",
            f32s(&[channels], &normal(channels, 6, 0.5, 1.0)),
        ),
        (
            "running_var",
            f32s(
                &[channels],
                &uniform(channels, 7)
                    .iter()
                    .map(|v| v + 0.1)
                    .collect::<Vec<_>>(),
            ),
        ),
        ("num_batches_tracked", count(7)),
    ])
}

fn without(tensors: &Tensors, names: &[&str]) -> Tensors {
    let mut rest = tensors.clone();
    rest.retain(|name, _| !names.contains(&name.as_str()));
    rest
}

/// Name, type and shape of every tensor.
fn forms(tensors: &Tensors) -> Vec<String> {
    let form = |(name, t): (&String, &Tensor)| format!("{name} {} {:?}", t.dtype, t.shape);
    tensors.iter().map(form).collect()
}

fn numbers(tensors: &Tensors, name: &str) -> Vec<f64> {
    let tensor = tensors
        .get(name)
        .unwrap_or_else(|| panic!("no tensor {name}"));
    tensor
        .to_f32()
        .unwrap()
        .into_iter()
        .map(f64::from)
        .collect()
}

/// `max|got - want| / max(1, max|want|)` within a bound, and `slack` on top of it.
fn close_with(tensors: &Tensors, name: &str, want: &[f64], bound: f64, slack: f64) {
    let got = numbers(tensors, name);
    assert_eq!(got.len(), want.len(), "{name}");
    let bound = slack.max(bound * want.iter().fold(1.0, |m: f64, v| m.max(v.abs())));
    let wrong: Vec<_> = (0..got.len())
        .filter(|&i| (got[i] - want[i]).abs() > bound || got[i].is_nan())
        .map(|i| format!("{name}[{i}]: got {:e}, wanted {:e}", got[i], want[i]))
        .take(10)
        .collect();
    assert!(wrong.is_empty(), "beyond {bound:e}: {wrong:#?}");
}

fn close(tensors: &Tensors, name: &str, want: &[f64], bound: f64) {
    close_with(tensors, name, want, bound, 0.0);
}

// ---- The textbook ------------------------------------------------------------------------------------------------

/// Batch norm of a file's tensors by the textbook, in f64.
#[derive(Clone)]
struct Textbook {
    channels: usize,
    /// Product of the dimensions after the channels.
    inner: usize,
    x: Vec<f64>,
    residual: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    activation: String,
    eps: f64,
    mean: Vec<f64>,
    variance: Vec<f64>,
    frozen: bool,
}

struct Gradients {
    input: Vec<f64>,
    residual: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    /// `Σ|dz·x̂|` of the channel where that is largest.
    weight_terms: f64,
}

impl Textbook {
    /// With the statistics of the input.
    fn new(tensors: &Tensors, axis: usize, eps: f64) -> Self {
        let shape = &tensors["input"].shape;
        let x = numbers(tensors, "input");
        let or = |name: &str, default: Vec<f64>| {
            if tensors.contains_key(name) {
                numbers(tensors, name)
            } else {
                default
            }
        };
        let mut book = Textbook {
            channels: shape[axis],
            inner: shape[axis + 1..].iter().product(),
            residual: or("residual", vec![0.0; x.len()]),
            weight: or("weight", vec![1.0; shape[axis]]),
            bias: or("bias", vec![0.0; shape[axis]]),
            x,
            activation: "none".into(),
            eps,
            mean: vec![0.0; shape[axis]],
            variance: vec![0.0; shape[axis]],
            frozen: false,
        };
        let m = book.count();
        for i in 0..book.x.len() {
            let c = book.channel(i);
            book.mean[c] += book.x[i] / m;
        }
        for i in 0..book.x.len() {
            let c = book.channel(i);
            book.variance[c] += (book.x[i] - book.mean[c]).powi(2) / m;
        }
        book
    }

    /// With the file's running statistics.
    fn frozen(tensors: &Tensors, axis: usize, eps: f64) -> Self {
        Textbook {
            mean: numbers(tensors, "running_mean"),
            variance: numbers(tensors, "running_var"),
            frozen: true,
            ..Self::new(tensors, axis, eps)
        }
    }

    fn activation(self, name: &str) -> Self {
        Textbook {
            activation: name.into(),
            ..self
        }
    }

    /// The activation's value and derivative at z.
    fn activate(&self, z: f64) -> (f64, f64) {
        let logistic = 1.0 / (1.0 + (-z).exp());
        match self.activation.as_str() {
            "none" => (z, 1.0),
            "relu" if z > 0.0 => (z, 1.0),
            "relu" => (0.0, 0.0),
            "leaky-relu:0.2" if z > 0.0 => (z, 1.0),
            "leaky-relu:0.2" => (0.2 * z, 0.2),
            "silu" => (z * logistic, logistic + z * logistic * (1.0 - logistic)),
            "sigmoid" => (logistic, logistic * (1.0 - logistic)),
            "tanh" => (z.tanh(), 1.0 / z.cosh().powi(2)),
            "gelu" => {
                let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
                // Φ(z), by Simpson's rule from 0.
                let (n, h) = (2000usize, z / 2000.0);
                let weight =
                    |k: usize| [2.0, 4.0][k % 2] / if k == 0 || k == n { 2.0 } else { 1.0 };
                let sum: f64 = (0..=n).map(|k| weight(k) * density(k as f64 * h)).sum();
                let below = 0.5 + sum * h / 3.0;
                (z * below, below + z * density(z))
            }
            other => panic!("{other}"),
        }
    }

    /// Values per channel.
    fn count(&self) -> f64 {
        (self.x.len() / self.channels) as f64
    }

    fn channel(&self, i: usize) -> usize {
        i / self.inner % self.channels
    }

    fn invstd(&self) -> Vec<f64> {
        let invstd = self.variance.iter().map(|v| 1.0 / (v + self.eps).sqrt());
        invstd.collect()
    }

    fn normalised(&self, i: usize) -> f64 {
        let c = self.channel(i);
        (self.x[i] - self.mean[c]) / (self.variance[c] + self.eps).sqrt()
    }

    fn z(&self, i: usize) -> f64 {
        let c = self.channel(i);
        self.weight[c] * self.normalised(i) + self.bias[c] + self.residual[i]
    }

    fn output(&self) -> Vec<f64> {
        (0..self.x.len())
            .map(|i| self.activate(self.z(i)).0)
            .collect()
    }

    fn gradients(&self, grad_output: &[f64]) -> Gradients {
        let m = self.count();
        let invstd = self.invstd();
        let mut dz = grad_output.to_vec();
        let mut weight = vec![0.0; self.channels];
        let mut bias = vec![0.0; self.channels];
        let mut terms = vec![0.0; self.channels];
        for (i, dz) in dz.iter_mut().enumerate() {
            let c = self.channel(i);
            *dz *= self.activate(self.z(i)).1;
            bias[c] += *dz;
            weight[c] += *dz * self.normalised(i);
            terms[c] += (*dz * self.normalised(i)).abs();
        }
        let input = (0..dz.len()).map(|i| {
            let c = self.channel(i);
            let common = if self.frozen {
                0.0
            } else {
                bias[c] / m + self.normalised(i) * weight[c] / m
            };
            self.weight[c] * invstd[c] * (dz[i] - common)
        });
        Gradients {
            input: input.collect(),
            residual: dz,
            weight,
            bias,
            weight_terms: terms.into_iter().fold(0.0, f64::max),
        }
    }
}

/// What a training forward pass wrote, but for the running statistics; `bound` is that of the output.
fn check_forward(got: &Tensors, book: &Textbook, bound: f64) {
    close(got, "output", &book.output(), bound);
    close(got, "save_mean", &book.mean, FORWARD);
    close(got, "save_invstd", &book.invstd(), FORWARD);
    // The two together are far better than an f32: to the accuracy of a deviation from the mean.
    let mean = numbers(got, "save_mean");
    let remainder = numbers(got, "save_mean_remainder");
    for c in 0..book.channels {
        let (got, want) = (mean[c] + remainder[c], book.mean[c]);
        let bound = FORWARD * book.variance[c].sqrt() + 1e-13 * want.abs() + 1e-30;
        assert!(
            (got - want).abs() <= bound,
            "mean[{c}]: got {got:e}, wanted {want:e}"
        );
    }
}

/// The gradients that are there; `bound` is that of the tensors.
fn check_backward(got: &Tensors, book: &Textbook, grad_output: &[f64], bound: f64) {
    let want = book.gradients(grad_output);
    close(got, "grad_input", &want.input, bound);
    let slack = 1e-7 * want.weight_terms;
    for (name, want, bound, slack) in [
        ("grad_residual", &want.residual, bound, 0.0),
        ("grad_weight", &want.weight, BACKWARD, slack),
        ("grad_bias", &want.bias, BACKWARD, 0.0),
    ] {
        if got.contains_key(name) {
            close_with(got, name, want, bound, slack);
        }
    }
}

/// `(1 - w)·old + w·factor·batch`.
fn running(old: &[f64], batch: &[f64], w: f64, factor: f64) -> Vec<f64> {
    let new = old.iter().zip(batch);
    new.map(|(old, batch)| (1.0 - w) * old + w * factor * batch)
        .collect()
}

// ---- What frameworks publish -------------------------------------------------------------------------------------

/// After the example of the ONNX operator, opsets 7 to 9; written from memory and not compared with the source, so the
/// wanted numbers stand on the formula alone: two channels, of which the second has weight, bias, mean and
/// variance other than 1 and 0.
#[test]
fn onnx_operator_by_hand() {
    let tensors = file_of([
        (
            "input",
            f32s(&[1, 2, 1, 3], &[-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]),
        ),
        ("weight", f32s(&[2], &[1.0, 1.5])),
        ("bias", f32s(&[2], &[0.0, 1.0])),
        ("running_mean", f32s(&[2], &[0.0, 3.0])),
        ("running_var", f32s(&[2], &[1.0, 1.5])),
    ]);
    let got = results(&tensors, "forward --mode inference --preset onnx");
    let want = [-0.999_995, 0.0, 0.999_995, -0.224_740_8, 1.0, 2.224_740_8];
    close(&got, "output", &want, FORWARD);
}

/// The four node tests of opset 15: `test_batchnorm_{example,epsilon}{,_training_mode}`, with random numbers of the
/// same shapes. In training, `running = 0.9·running + 0.1·batch` with the biased variance.
#[test]
fn onnx_node_tests() {
    let shape = [2, 3, 4, 5];
    let tensors = file_of([
        ("input", f32s(&shape, &normal(120, 1, 0.0, 1.0))),
        ("weight", f32s(&[3], &normal(3, 2, 0.0, 1.0))),
        ("bias", f32s(&[3], &normal(3, 3, 0.0, 1.0))),
        ("running_mean", f32s(&[3], &normal(3, 4, 0.0, 1.0))),
        ("running_var", f32s(&[3], &uniform(3, 5))),
    ]);
    for (option, eps) in [("", 1e-5), ("--eps 1e-2", 1e-2)] {
        let got = results(
            &tensors,
            &format!("forward --mode inference --preset onnx {option}"),
        );
        let book = Textbook::frozen(&tensors, 1, eps);
        close(&got, "output", &book.output(), FORWARD);
        assert_eq!(forms(&got), ["output F32 [2, 3, 4, 5]"]);

        let got = results(&tensors, &format!("forward --preset onnx {option}"));
        let book = Textbook::new(&tensors, 1, eps);
        check_forward(&got, &book, FORWARD);
        for (name, batch) in [
            ("running_mean", &book.mean),
            ("running_var", &book.variance),
        ] {
            let old = numbers(&tensors, name);
            let want: Vec<_> = (0..3).map(|c| 0.9 * old[c] + 0.1 * batch[c]).collect();
            close(&got, name, &want, FORWARD);
        }
    }
}

/// One channel by hand. (1, 3, 5, 7) has mean 4, variance 5, unbiased 20/3; with eps 4, x̂ is (-1, -1/3, 1/3, 1).
/// For dy = (1, 0, 0, 0): dβ = 1, dγ = -1, and dx = γ/3·(dy - 1/4 + x̂/4). A second channel is constant.
#[test]
fn by_hand() {
    let shape = [2, 2, 1, 2];
    let tensors = file_of([
        (
            "input",
            f32s(&shape, &[1.0, 3.0, 2.0, 2.0, 5.0, 7.0, 2.0, 2.0]),
        ),
        ("weight", f32s(&[2], &[3.0, 2.0])),
        ("bias", f32s(&[2], &[1.0, -1.0])),
        ("running_mean", f32s(&[2], &[10.0, 0.0])),
        ("running_var", f32s(&[2], &[1.0, 1.0])),
        ("num_batches_tracked", count(3)),
        (
            "grad_output",
            f32s(&shape, &[1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]),
        ),
    ]);
    for device in ["gpu", "cpu"] {
        let got = results(
            &tensors,
            &format!("forward --eps 4 --momentum 0.25 --device {device}"),
        );
        let output = [-2.0, 0.0, -1.0, -1.0, 2.0, 4.0, -1.0, -1.0];
        close(&got, "output", &output, FORWARD);
        close(&got, "save_mean", &[4.0, 2.0], FORWARD);
        close(&got, "save_invstd", &[1.0 / 3.0, 0.5], FORWARD);
        close(&got, "running_mean", &[8.5, 0.5], FORWARD);
        close(&got, "running_var", &[0.75 + 5.0 / 3.0, 0.75], FORWARD);
        assert_eq!(got["num_batches_tracked"], count(4));

        let got = results(&tensors, &format!("backward --eps 4 --device {device}"));
        let input = [0.5, -1.0 / 3.0, 0.0, 0.0, -1.0 / 6.0, 0.0, 0.0, 0.0];
        close(&got, "grad_input", &input, BACKWARD);
        close(&got, "grad_weight", &[-1.0, 0.0], BACKWARD);
        close(&got, "grad_bias", &[1.0, 4.0], BACKWARD);
    }
}

/// `torch.nn.BatchNorm2d`, and every way to say the weight of a batch. 7 batches came before this one.
#[test]
fn running_statistics_of_each_convention() {
    let tensors = everything(&[4, 3, 5, 2], 3);
    let (biased, unbiased) = (1.0, 40.0 / 39.0);
    for (options, eps, w, factor) in [
        ("", 1e-5, 0.1, unbiased),
        ("--preset pytorch", 1e-5, 0.1, unbiased),
        ("--preset keras", 1e-3, 0.01, biased),
        ("--preset tensorflow", 1e-3, 0.01, unbiased),
        ("--preset onnx", 1e-5, 0.1, biased),
        ("--momentum 0.3", 1e-5, 0.3, unbiased),
        ("--momentum 0", 1e-5, 0.0, unbiased),
        ("--momentum 1", 1e-5, 1.0, unbiased),
        ("--momentum cumulative", 1e-5, 0.125, unbiased),
        ("--decay 0.9 --preset keras --eps 0", 0.0, 0.1, biased),
        ("--momentum cumulative --device cpu", 1e-5, 0.125, unbiased),
    ] {
        let got = results(&tensors, &format!("forward {options}"));
        let book = Textbook::new(&tensors, 1, eps);
        check_forward(&got, &book, FORWARD);
        let old = |name| numbers(&tensors, name);
        let mean = running(&old("running_mean"), &book.mean, w, 1.0);
        close(&got, "running_mean", &mean, FORWARD);
        let variance = running(&old("running_var"), &book.variance, w, factor);
        close(&got, "running_var", &variance, FORWARD);
        assert_eq!(got["num_batches_tracked"], count(8), "{options}");
    }
    // The count begins at 0 where it is absent: a cumulative average of one batch is that batch.
    let tensors = without(&tensors, &["num_batches_tracked"]);
    let got = results(&tensors, "forward --momentum cumulative");
    assert_eq!(got["num_batches_tracked"], count(1));
    close(
        &got,
        "running_mean",
        &Textbook::new(&tensors, 1, 1e-5).mean,
        FORWARD,
    );
    // And it is 64 bits wide.
    let mut tensors = tensors;
    tensors.insert("num_batches_tracked".into(), count(1 << 40));
    let got = results(&tensors, "forward");
    assert_eq!(got["num_batches_tracked"], count((1 << 40) + 1));
}

/// `keras.layers.BatchNormalization(axis=-1)`: eps 1e-3, 0.99·old + 0.01·batch, biased.
#[test]
fn keras_channels_last() {
    let tensors = everything(&[2, 3, 5, 4], 4);
    let got = results(&tensors, "forward --channel-axis -1 --preset keras");
    let book = Textbook::new(&tensors, 3, 1e-3);
    check_forward(&got, &book, FORWARD);
    let old = numbers(&tensors, "running_var");
    let want: Vec<_> = (0..4)
        .map(|c| 0.99 * old[c] + 0.01 * book.variance[c])
        .collect();
    close(&got, "running_var", &want, FORWARD);
    let got = results(
        &tensors,
        "forward --channel-axis -1 --preset keras --mode inference",
    );
    close(
        &got,
        "output",
        &Textbook::frozen(&tensors, 3, 1e-3).output(),
        FORWARD,
    );
}

// ---- Shapes, types, what is written ------------------------------------------------------------------------------

/// Ranks 1 to 5, channels on any axis, few and many of them; with a residual and ReLU, all modes.
#[test]
fn every_rank_and_axis() {
    for (shape, option, axis) in [
        (&[6, 5][..], "", 1),
        (&[9, 1], "", 1),
        (&[3, 5000], "", 1),
        (&[6, 7], "--channel-axis 0", 0),
        (&[5000, 3], "--channel-axis=-2", 0),
        (&[4, 3, 7], "--channel-axis 1", 1),
        (&[1, 1, 10], "", 1),
        (&[2, 3, 4, 5], "--channel-axis -1", 3),
        (&[3, 2, 4, 5], "--channel-axis 0", 0),
        (&[2, 3, 2, 3, 2], "", 1),
        (&[2, 3, 2, 3, 2], "--channel-axis -2", 3),
    ] {
        let tensors = everything(shape, shape[axis]);
        let grad_output = numbers(&tensors, "grad_output");
        let training = Textbook::new(&tensors, axis, 1e-5).activation("relu");
        let frozen = Textbook::frozen(&tensors, axis, 1e-5).activation("relu");

        let options = format!("{option} --activation relu");
        let got = results(&tensors, &format!("forward {options}"));
        check_forward(&got, &training, FORWARD);
        let got = results(&tensors, &format!("backward {options}"));
        check_backward(&got, &training, &grad_output, BACKWARD);
        let got = results(&tensors, &format!("backward --mode inference {options}"));
        check_backward(&got, &frozen, &grad_output, BACKWARD);
        let got = results(&tensors, &format!("forward --mode inference {options}"));
        close(&got, "output", &frozen.output(), FORWARD);
    }
    // Inference and the frozen gradient need no variance: one value per channel, a vector even.
    for (shape, axis) in [(&[5][..], "0"), (&[1, 5], "1"), (&[5, 1], "0")] {
        let tensors = everything(shape, 5);
        let book = Textbook::frozen(&tensors, axis.parse().unwrap(), 1e-5);
        let options = format!("--mode inference --channel-axis {axis}");
        let got = results(&tensors, &format!("forward {options}"));
        close(&got, "output", &book.output(), FORWARD);
        let got = results(&tensors, &format!("backward {options}"));
        check_backward(&got, &book, &numbers(&tensors, "grad_output"), BACKWARD);
    }
}

/// Every activation in every type, on the GPU and by the reference, forward and backward.
#[test]
fn activations_and_types() {
    let activations = [
        "none",
        "relu",
        "leaky-relu:0.2",
        "silu",
        "gelu",
        "sigmoid",
        "tanh",
    ];
    for (turn, activation) in activations.into_iter().enumerate() {
        for (dtype, bound) in [
            (Dtype::F32, 3.0 * FORWARD),
            (Dtype::F16, 1e-3),
            (Dtype::BF16, 5e-3),
        ] {
            let (shape, axis) = [([3, 5, 7], 1), ([7, 3, 5], 2)][turn % 2];
            let mut tensors = everything(&shape, 5);
            for name in ["input", "residual", "grad_output"] {
                tensors.insert(name.into(), cast(&tensors[name], dtype));
            }
            if turn % 3 == 0 {
                tensors.remove("residual");
            }
            let grad_output = numbers(&tensors, "grad_output");
            let training = Textbook::new(&tensors, axis, 1e-5).activation(activation);
            for device in ["gpu", "cpu"] {
                let options =
                    format!("--activation {activation} --channel-axis {axis} --device {device}");
                let got = results(&tensors, &format!("forward {options}"));
                assert_eq!(got["output"].dtype, dtype);
                check_forward(&got, &training, bound);
                let got = results(&tensors, &format!("backward {options}"));
                assert_eq!(got["grad_input"].dtype, dtype);
                check_backward(&got, &training, &grad_output, 2.0 * bound);
            }
        }
    }
}

/// With `--mask`, what is masked has no say in the statistics; without it a tensor of that name is ignored.
#[test]
fn masks() {
    let shape = [4, 3, 6];
    let mut tensors = everything(&shape, 3);
    let kept = |o: usize, i: usize| !(o + i).is_multiple_of(3);
    let mask: Vec<f32> = (0..24)
        .map(|k| f32::from(u8::from(kept(k / 6, k % 6))))
        .collect();
    let unmasked = results(&tensors, "forward");
    tensors.insert("mask".into(), f32s(&[4, 6], &mask));
    assert!(results(&tensors, "forward") == unmasked);
    // The same statistics from a tensor of the kept values alone.
    let x = numbers(&tensors, "input");
    let place = |o: usize, c: usize, i: usize| (o * 3 + c) * 6 + i;
    let rows: Vec<f32> = (0..24)
        .filter(|k| kept(k / 6, k % 6))
        .flat_map(|k| (0..3).map(move |c| (k, c)))
        .map(|(k, c)| x[place(k / 6, c, k % 6)] as f32)
        .collect();
    let only = file_of([("input", f32s(&[rows.len() / 3, 3], &rows))]);
    let only = Textbook::new(&only, 1, 1e-5);
    let mut book = Textbook::new(&tensors, 1, 1e-5).activation("silu");
    (book.mean, book.variance) = (only.mean.clone(), only.variance.clone());
    let grad = numbers(&tensors, "grad_output");
    for device in ["gpu", "cpu"] {
        let options = format!("--mask --activation silu --device {device}");
        let got = results(&tensors, &format!("forward {options}"));
        check_forward(&got, &book, 3.0 * FORWARD);
        let old = numbers(&tensors, "running_mean");
        close(
            &got,
            "running_mean",
            &running(&old, &only.mean, 0.1, 1.0),
            FORWARD,
        );
        // The gradient's statistics part goes to kept positions alone, over their number.
        let frozen = Textbook {
            frozen: true,
            ..book.clone()
        };
        let want = frozen.gradients(&grad);
        let n = only.count();
        let input: Vec<f64> = (0..x.len())
            .map(|at| {
                let (o, c, i) = (at / 18, at / 6 % 3, at % 6);
                let through = want.bias[c] / n + book.normalised(at) * want.weight[c] / n;
                let through = if kept(o, i) { through } else { 0.0 };
                want.input[at] - book.weight[c] * book.invstd()[c] * through
            })
            .collect();
        let got = results(&tensors, &format!("backward {options}"));
        close(&got, "grad_input", &input, 3.0 * BACKWARD);
        close(&got, "grad_bias", &want.bias, 3.0 * BACKWARD);
    }
    for (mask, culprits) in [
        (
            f32s(&[4, 3, 6], &[1.0; 72]),
            &["mask", "[4, 3, 6]", "[4, 6]"][..],
        ),
        (
            cast(&f32s(&[4, 6], &[1.0; 24]), Dtype::F16),
            &["mask", "F16", "F32"],
        ),
        (f32s(&[4, 6], &[0.5; 24]), &["mask", "0.5"]),
        (f32s(&[4, 6], &[f32::NAN; 24]), &["mask", "NaN"]),
    ] {
        let folder = Folder::new();
        tensors.insert("mask".into(), mask);
        file::write(&folder.path("in.safetensors"), &tensors).unwrap();
        folder.refuses("forward in.safetensors -o out.npz --mask", culprits);
    }
}

/// `--groups 2` is two calls on the halves, but for the running statistics, which are those of the whole.
#[test]
fn ghost_batches() {
    let tensors = everything(&[6, 3, 5], 3);
    let half = |k: usize| {
        let mut half = tensors.clone();
        for name in ["input", "residual", "grad_output"] {
            let values = tensors[name].to_f32().unwrap();
            half.insert(name.into(), f32s(&[3, 3, 5], &values[k * 45..][..45]));
        }
        half
    };
    let halves = [0, 1].map(|k| Textbook::new(&half(k), 1, 1e-5));
    let both = |of: &dyn Fn(usize) -> Vec<f64>| [of(0), of(1)].concat();
    let whole = Textbook::new(&tensors, 1, 1e-5);
    let grad = numbers(&tensors, "grad_output");
    for device in ["gpu", "cpu"] {
        let got = results(&tensors, &format!("forward --groups 2 --device {device}"));
        close(&got, "output", &both(&|k| halves[k].output()), FORWARD);
        assert_eq!(got["save_mean"].shape, [2, 3]);
        close(
            &got,
            "save_mean",
            &both(&|k| halves[k].mean.clone()),
            FORWARD,
        );
        let old = numbers(&tensors, "running_var");
        let want = running(&old, &whole.variance, 0.1, 30.0 / 29.0);
        close(&got, "running_var", &want, FORWARD);
        // Saved statistics of groups are taken back.
        let mut again = tensors.clone();
        for name in ["save_mean", "save_mean_remainder", "save_invstd"] {
            again.insert(name.into(), got[name].clone());
        }
        for tensors in [&tensors, &again] {
            let got = results(tensors, &format!("backward --groups 2 --device {device}"));
            let grads = [0, 1].map(|k| halves[k].gradients(&grad[k * 45..][..45]));
            close(
                &got,
                "grad_input",
                &both(&|k| grads[k].input.clone()),
                BACKWARD,
            );
            let sum = |of: fn(&Gradients) -> &Vec<f64>| {
                let pairs = of(&grads[0]).iter().zip(of(&grads[1]));
                pairs.map(|(a, b)| a + b).collect::<Vec<_>>()
            };
            close(&got, "grad_weight", &sum(|g| &g.weight), BACKWARD);
            close(&got, "grad_bias", &sum(|g| &g.bias), BACKWARD);
        }
    }
}

/// Each of weight, bias and residual alone and none: the numbers, and which tensors come and which do not.
#[test]
fn optional_tensors() {
    let all = everything(&[3, 2, 4], 2);
    let grad_output = numbers(&all, "grad_output");
    for device in ["gpu", "cpu"] {
        for kept in [
            &[][..],
            &["weight"],
            &["bias"],
            &["residual"],
            &["weight", "bias", "residual"],
        ] {
            let dropped: Vec<_> = ["weight", "bias", "residual"]
                .into_iter()
                .filter(|name| !kept.contains(name))
                .collect();
            let tensors = without(&all, &dropped);
            let mut expected = vec!["grad_input F32 [3, 2, 4]"];
            for (name, form) in [
                ("weight", "grad_weight F32 [2]"),
                ("bias", "grad_bias F32 [2]"),
                ("residual", "grad_residual F32 [3, 2, 4]"),
            ] {
                if kept.contains(&name) {
                    expected.push(form);
                }
            }
            expected.sort();
            for activation in ["none", "relu"] {
                let options = format!("--activation {activation} --device {device}");
                let book = Textbook::new(&tensors, 1, 1e-5).activation(activation);
                let got = results(&tensors, &format!("forward {options}"));
                check_forward(&got, &book, FORWARD);
                let got = results(&tensors, &format!("backward {options}"));
                check_backward(&got, &book, &grad_output, BACKWARD);
                assert_eq!(forms(&got), expected, "{kept:?} {options}");
                let got = results(&tensors, &format!("backward --mode inference {options}"));
                let book = Textbook::frozen(&tensors, 1, 1e-5).activation(activation);
                check_backward(&got, &book, &grad_output, BACKWARD);
                assert_eq!(forms(&got), expected, "{kept:?} {options}, frozen");
            }
        }
    }
}

/// The tables of names, types and shapes, in both formats and all types; unknown tensors are ignored.
#[test]
fn types_and_shapes_of_every_output() {
    let shape = [2, 3, 4];
    let mut wide = everything(&shape, 3);
    wide.insert("something else".into(), zeros(Dtype::I64, &[5]));
    for (dtype, bound) in [
        (Dtype::F32, 0.0_f64),
        (Dtype::F16, 1e-3),
        (Dtype::BF16, 5e-3),
    ] {
        let mut tensors = wide.clone();
        for name in ["input", "residual", "grad_output"] {
            let tensor = cast(&wide[name], dtype);
            tensors.insert(name.into(), tensor);
        }
        // The vectors' types are their own business.
        for (name, dtype) in [
            ("weight", Dtype::F64),
            ("bias", Dtype::F16),
            ("running_mean", Dtype::F16),
            ("running_var", Dtype::F64),
        ] {
            tensors.insert(name.into(), cast(&wide[name], dtype));
        }
        let training = Textbook::new(&tensors, 1, 1e-5);
        let frozen = Textbook::frozen(&tensors, 1, 1e-5);
        let grad_output = numbers(&tensors, "grad_output");
        for format in ["safetensors", "npz"] {
            // An input of BF16 is always safetensors, which says nothing about the format of OUT.
            let input = match dtype {
                Dtype::BF16 => "in.safetensors",
                _ => &format!("in.{format}"),
            };
            let folder = Folder::with(input, &tensors);
            let out = format!("out.{format}");
            let run = |command: &str| {
                let line = format!("{command} {input} -o {out} --device gpu");
                folder.run(&line).succeeded();
                folder.read(&out)
            };
            if dtype == Dtype::BF16 && format == "npz" {
                for command in BOTH {
                    let line = format!("{command} {input} -o {out}");
                    folder.refuses(&line, &["out.npz", "BF16", "safetensors"]);
                }
                continue;
            }
            let whole = |name: &str| format!("{name} {dtype} [2, 3, 4]");
            let saved = [
                "save_invstd F32 [3]".to_owned(),
                "save_mean F32 [3]".into(),
                "save_mean_remainder F32 [3]".into(),
            ];

            let got = run("forward");
            check_forward(&got, &training, bound.max(FORWARD));
            let mut expected = vec!["num_batches_tracked I64 []".to_owned(), whole("output")];
            expected.extend([
                "running_mean F32 [3]".to_owned(),
                "running_var F32 [3]".into(),
            ]);
            expected.extend(saved.clone());
            assert_eq!(forms(&got), expected);

            let got = run("forward --mode inference");
            close(&got, "output", &frozen.output(), bound.max(FORWARD));
            assert_eq!(forms(&got), [whole("output")]);

            let expected = [
                "grad_bias F32 [3]".to_owned(),
                whole("grad_input"),
                whole("grad_residual"),
                "grad_weight F32 [3]".into(),
            ];
            for (mode, book) in [("training", &training), ("inference", &frozen)] {
                let got = run(&format!("backward --mode {mode}"));
                check_backward(&got, book, &grad_output, bound.max(BACKWARD));
                assert_eq!(forms(&got), expected, "{mode}");
            }

            // Without running statistics there are none after it either.
            let names = ["running_mean", "running_var"];
            file::write(&folder.path(input), &without(&tensors, &names)).unwrap();
            let mut expected = vec![whole("output")];
            expected.extend(saved);
            assert_eq!(forms(&run("forward")), expected);
        }
    }
}

/// Statistics that a forward pass saved serve the backward pass as well as recomputed ones; without the remainder the
/// mean is one f32.
#[test]
fn saved_statistics() {
    let shape = [8, 3, 25];
    let tensors = file_of([
        ("input", f32s(&shape, &normal(600, 1, 3e4 + 0.7, 1.0))),
        ("grad_output", f32s(&shape, &normal(600, 2, 0.5, 1.0))),
        ("weight", f32s(&[3], &[1.5, -0.5, 1.0])),
        ("bias", f32s(&[3], &[0.0, 0.1, 0.2])),
    ]);
    let grad_output = numbers(&tensors, "grad_output");
    let book = Textbook::new(&tensors, 1, 1e-5);
    for device in ["gpu", "cpu"] {
        let options = format!("--device {device}");
        let mut saved = tensors.clone();
        for (name, tensor) in results(&tensors, &format!("forward {options}")) {
            if name.starts_with("save_") {
                saved.insert(name, tensor);
            }
        }
        let backward = format!("backward {options}");
        for given in [&tensors, &saved] {
            check_backward(&results(given, &backward), &book, &grad_output, BACKWARD);
        }

        let rounded = without(&saved, &["save_mean_remainder"]);
        let mean = numbers(&saved, "save_mean");
        let off = (0..3).map(|c| (mean[c] - book.mean[c]).abs());
        assert!(off.fold(0.0, f64::max) > 1e-4, "the mean is an f32");
        let book = Textbook {
            mean,
            ..book.clone()
        };
        check_backward(&results(&rounded, &backward), &book, &grad_output, BACKWARD);

        // They are used, not recomputed: with others the gradients are others.
        let mut others = rounded;
        others.insert("save_mean".into(), f32s(&[3], &[3e4; 3]));
        others.insert("save_invstd".into(), f32s(&[3], &[0.5; 3]));
        let book = Textbook {
            mean: vec![3e4; 3],
            variance: vec![4.0; 3],
            eps: 0.0,
            ..book
        };
        check_backward(&results(&others, &backward), &book, &grad_output, BACKWARD);
        // The frozen form goes by the running statistics.
        others.insert("running_mean".into(), f32s(&[3], &[2.9e4; 3]));
        others.insert("running_var".into(), f32s(&[3], &[1e6; 3]));
        let got = results(&others, &format!("{backward} --mode inference"));
        let book = Textbook::frozen(&others, 1, 1e-5);
        check_backward(&got, &book, &grad_output, BACKWARD);
    }
}

// ---- Accuracy ----------------------------------------------------------------------------------------------------

/// Data that plain f32 arithmetic does badly on, in rows and in columns, with gradients that cancel and that do not.
#[test]
fn hard_data() {
    let outlier = |n: usize, at: usize| {
        let mut values = normal(n, 1, 0.5, 1.0);
        values[at] = 1e6;
        values
    };
    type Data<'a> = &'a dyn Fn(usize) -> Vec<f32>;
    let sets: [(&str, Data<'_>); 6] = [
        ("mean/std 1e4", &|n| normal(n, 1, 1e4, 1.0)),
        ("an outlier first", &|n| outlier(n, 0)),
        ("an outlier last", &|n| outlier(n, n - 1)),
        ("magnitude 1e15", &|n| normal(n, 1, 0.0, 1e15)),
        ("mean 1e15", &|n| normal(n, 1, 1e15, 1e12)),
        ("magnitude 1e-6", &|n| normal(n, 1, 1e-6, 1e-6)),
    ];
    for (name, data) in sets {
        for shape in [&[8, 3, 343][..], &[2500, 3]] {
            let n = shape.iter().product();
            let positive: Vec<f32> = uniform(n, 3);
            for grad_output in [normal(n, 2, 0.0, 1.0), positive] {
                println!("{name}, {shape:?}");
                let tensors = file_of([
                    ("input", f32s(shape, &data(n))),
                    ("grad_output", f32s(shape, &grad_output)),
                    ("weight", f32s(&[3], &[1.5, -0.5, 1.0])),
                    ("bias", f32s(&[3], &[0.0, 0.1, 0.2])),
                    ("running_mean", f32s(&[3], &[0.0; 3])),
                    ("running_var", f32s(&[3], &[1.0; 3])),
                ]);
                let book = Textbook::new(&tensors, 1, 1e-5);
                let got = results(&tensors, "forward");
                check_forward(&got, &book, FORWARD);
                let m = book.count();
                let variance = running(&[1.0; 3], &book.variance, 0.1, m / (m - 1.0));
                close(&got, "running_var", &variance, FORWARD);
                let got = results(&tensors, "backward");
                check_backward(&got, &book, &numbers(&tensors, "grad_output"), BACKWARD);
            }
        }
    }
}

/// A constant channel gives exactly the bias; NaN and infinity stay in their channel.
#[test]
fn constant_channels_and_ones_that_are_not_finite() {
    for shape in [&[5, 4, 3][..], &[15, 4]] {
        let mut tensors = everything(shape, 4);
        tensors.remove("residual");
        let book = Textbook::new(&tensors, 1, 1e-5);
        let mut input: Vec<f32> = tensors["input"].to_f32().unwrap();
        for (i, value) in input.iter_mut().enumerate() {
            if book.channel(i) == 0 {
                *value = 0.1;
            }
        }
        let at = |c| (0..book.x.len()).filter(|&i| book.channel(i) == c).nth(3);
        input[at(1).unwrap()] = f32::NAN;
        input[at(2).unwrap()] = f32::INFINITY;
        tensors.insert("input".into(), f32s(shape, &input));
        let bias = numbers(&tensors, "bias");
        let (y, dx) = (
            book.output(),
            book.gradients(&numbers(&tensors, "grad_output")),
        );
        for device in ["gpu", "cpu"] {
            let forward = results(&tensors, &format!("forward --device {device}"));
            let backward = results(&tensors, &format!("backward --device {device}"));
            let output = numbers(&forward, "output");
            let input = numbers(&backward, "grad_input");
            for i in 0..output.len() {
                let (y, dx) = (y[i], dx.input[i]);
                let right = match book.channel(i) {
                    0 => output[i] == bias[0] && input[i].is_finite(),
                    1 => output[i].is_nan() && input[i].is_nan(),
                    2 => !output[i].is_normal() || output[i] == bias[2],
                    _ => (output[i] - y).abs() < 1e-5 && (input[i] - dx).abs() < 1e-5,
                };
                assert!(
                    right,
                    "{device} {shape:?}[{i}]: {} and {}",
                    output[i], input[i]
                );
            }
        }
    }
}

// ---- Devices, reports, files -------------------------------------------------------------------------------------

/// The CPU gives what the GPU gives, and every strategy that there is.
#[test]
fn devices_and_strategies_agree() {
    let tensors = everything(&[4, 3, 52], 3);
    for command in [
        "forward",
        "forward --mode inference --activation relu",
        "backward --activation relu",
        "backward --mode inference",
    ] {
        let cpu = results(&tensors, &format!("{command} --device cpu"));
        for options in [
            "--device gpu",
            "--device auto",
            "--strategy split",
            "--strategy streaming",
            "--strategy resident",
        ] {
            let got = results(&tensors, &format!("{command} {options}"));
            assert_eq!(forms(&got), forms(&cpu));
            for name in got.keys().filter(|name| *name != "num_batches_tracked") {
                close(&got, name, &numbers(&cpu, name), FORWARD);
            }
        }
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    // Rows of 5: no whole vectors, as resident needs them.
    let folder = Folder::with("in.npz", &everything(&[2, 3, 5], 3));
    for command in BOTH {
        let line = format!("{command} in.npz -o out.npz");
        for device in ["", "--device auto", "--device gpu", "--device cpu"] {
            let line = format!("{line} --adapter no-such-adapter {device}");
            folder.refuses(&line, &["adapter"]);
        }
        folder.refuses(
            &format!("{line} --device cpu --backend vulkan"),
            &["--device cpu", "--backend"],
        );
        let foreign = if cfg!(target_os = "linux") {
            "metal"
        } else {
            "vulkan"
        };
        if cfg!(any(target_os = "linux", target_vendor = "apple")) {
            folder.refuses(&format!("{line} --backend {foreign}"), &[foreign]);
        }
        folder.refuses(
            &format!("{line} --strategy resident"),
            &["not supported", "resident"],
        );
    }
}

/// Where there is no adapter, `auto` says so in one line and takes the CPU; `gpu` refuses.
#[cfg(target_os = "linux")]
#[test]
fn without_an_adapter() {
    let folder = Folder::with("in.npz", &everything(&[2, 3, 4], 3));
    let run = |line: &str| {
        let mut command = folder.command(line);
        for name in [
            "VK_DRIVER_FILES",
            "VK_ICD_FILENAMES",
            "__EGL_VENDOR_LIBRARY_FILENAMES",
        ] {
            command.env(name, "/nonexistent");
        }
        Outcome::of(line, &mut command)
    };
    for command in BOTH {
        let outcome = run(&format!("{command} in.npz -o out.npz --json"));
        assert_eq!(outcome.code, Some(0), "{:?}", outcome.stderr);
        assert_eq!(outcome.stderr.len(), 1, "{:?}", outcome.stderr);
        for part in ["no GPU adapter", "install", "CPU"] {
            assert!(outcome.stderr[0].contains(part), "{:?}", outcome.stderr);
        }
        let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(report["device"], "cpu");
        for option in ["--device gpu", "--backend vulkan", "--adapter llvmpipe"] {
            let outcome = run(&format!("{command} in.npz -o out.npz {option}"));
            outcome.refused(&["no GPU adapter", "install"]);
        }
    }
}

#[test]
fn json_reports() {
    let folder = Folder::with("in.npz", &everything(&[2, 3, 4], 3));
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    for command in BOTH {
        let line = format!("{command} in.npz -o out.npz --json --device");
        let outcome = folder.run(&format!("{line} gpu"));
        let report = parse(outcome.succeeded());
        assert_eq!(report["device"], "gpu");
        assert!(report["adapter"]["name"].is_string(), "{report}");
        assert!(report["plan"]["strategy"].is_string(), "{report}");
        assert!(report["times_ms"]["compute"].as_f64().unwrap() > 0.0);
        let outcome = folder.run(&format!("{line} cpu"));
        let report = parse(outcome.succeeded());
        assert_eq!(report["device"], "cpu");
        assert!(report["adapter"].is_null() && report["plan"].is_null());
        assert!(report["times_ms"]["compute"].is_number());
        // Without the flag there is silence.
        let outcome = folder.run(&format!("{command} in.npz -o out.npz"));
        assert_eq!(outcome.succeeded(), "");
    }
    let outcome = folder.run("info --json");
    let report = parse(outcome.succeeded());
    let adapters = report["adapters"].as_array().unwrap();
    assert!(!adapters.is_empty(), "{report}");
    for adapter in adapters {
        for key in ["name", "backend", "type", "limits", "runs"] {
            assert!(!adapter[key].is_null(), "{key}: {adapter}");
        }
    }
    let outcome = folder.run("info");
    let text = outcome.succeeded();
    assert!(text.contains(adapters[0]["name"].as_str().unwrap()));
}

/// A report that nobody can take is an error, not a panic.
#[cfg(target_os = "linux")]
#[test]
fn full_stdout() {
    let folder = Folder::with("in.npz", &everything(&[2, 3, 4], 3));
    for line in [
        "forward in.npz -o out.npz --json --device cpu",
        "info",
        "info --json",
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = folder.command(line);
        command.stdout(full).stderr(Stdio::piped());
        let outcome = command.spawn().unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8(outcome.stderr).unwrap();
        assert_eq!(outcome.status.code(), Some(1), "{line}: {stderr}");
        assert!(stderr.contains("stdout"), "{line}: {stderr}");
    }
}

#[test]
fn out_is_the_same_from_run_to_run_and_may_be_in() {
    let tensors = everything(&[4, 3, 50], 3);
    for format in ["safetensors", "npz"] {
        let input = format!("in.{format}");
        let folder = Folder::with(&input, &tensors);
        for command in BOTH {
            for device in ["gpu", "cpu"] {
                for out in ["a", "b"] {
                    let line = format!("{command} {input} -o {out}.{format} --device {device}");
                    folder.run(&line).succeeded();
                }
                let (a, b) = (format!("a.{format}"), format!("b.{format}"));
                assert!(folder.bytes(&a) == folder.bytes(&b), "{command} {device}");
            }
        }
        assert_eq!(folder.content().len(), 3, "nothing else is left behind");
        let line = format!("backward {input} -o {input} --device cpu");
        folder.run(&line).succeeded();
        assert!(folder.bytes(&input) == folder.bytes(&format!("a.{format}")));
    }
}

// ---- Bad input ---------------------------------------------------------------------------------------------------

/// A good file of both operations, for tests that spoil it.
fn good() -> Tensors {
    let mut tensors = everything(&[2, 3, 4], 3);
    let saved = file_of([
        ("save_mean", f32s(&[3], &[0.0; 3])),
        ("save_invstd", f32s(&[3], &[1.0; 3])),
        ("save_mean_remainder", f32s(&[3], &[0.0; 3])),
    ]);
    tensors.extend(saved);
    tensors
}

/// Runs both operations, in both formats, on a good file that was spoilt: `culprits` are named, an old OUT stays.
fn refuses_tensors(
    commands: &[&str],
    spoil: impl Fn(&mut Tensors),
    options: &str,
    culprits: &[&str],
) {
    let mut tensors = good();
    spoil(&mut tensors);
    for format in ["safetensors", "npz"] {
        let input = format!("in.{format}");
        let folder = Folder::with(&input, &tensors);
        let out = format!("out.{format}");
        fs::write(folder.path(&out), "an old OUT").unwrap();
        for command in commands {
            let line = format!("{command} {input} -o {out} {options}");
            folder.refuses(&line, culprits);
        }
    }
}

#[test]
fn missing_tensors() {
    const BACKWARD: [&str; 1] = ["backward"];
    let inference = "--mode inference";
    for (commands, missing, options, culprits) in [
        (&BOTH[..], &["input"][..], "", &["in.", "input"][..]),
        (&BACKWARD, &["grad_output"], "", &["in.", "grad_output"]),
        (&BOTH, &["running_mean"], "", &["running_mean is missing"]),
        (&BOTH, &["running_var"], "", &["running_var is missing"]),
        (
            &BOTH,
            &["running_mean", "running_var"],
            inference,
            &["running_mean", "--mode inference"],
        ),
        (&BACKWARD, &["save_mean"], "", &["save_mean is missing"]),
        (&BACKWARD, &["save_invstd"], "", &["save_invstd is missing"]),
        (
            &BACKWARD,
            &["save_mean", "save_invstd"],
            "",
            &["save_mean is missing"],
        ),
    ] {
        let spoil = |t: &mut Tensors| *t = without(t, missing);
        refuses_tensors(commands, spoil, options, culprits);
    }
}

/// Tensors of a wrong type, shape or value. The message says what was found.
#[test]
fn bad_tensors() {
    let refuses = |commands: &[&str], name: &str, tensor: Tensor, culprits: &[&str]| {
        let spoil = |t: &mut Tensors| {
            t.insert(name.to_owned(), tensor.clone());
        };
        let culprits: Vec<_> = [name].iter().chain(culprits).copied().collect();
        refuses_tensors(commands, spoil, "", &culprits);
    };
    let (shape, zero) = ([2, 3, 4], |shape: &[usize]| zeros(Dtype::F32, shape));

    for (commands, names) in [
        (
            &BOTH[..],
            &["weight", "bias", "running_mean", "running_var"][..],
        ),
        (
            &["backward"],
            &["save_mean", "save_invstd", "save_mean_remainder"],
        ),
    ] {
        for name in names {
            refuses(commands, name, zero(&[4]), &["[4]", "[3]"]);
            refuses(commands, name, zero(&[3, 1]), &["[3, 1]", "[3]"]);
            refuses(commands, name, zero(&[]), &["[]", "[3]"]);
            refuses(commands, name, zeros(Dtype::I64, &[3]), &["I64", "F32"]);
        }
    }
    for (commands, name) in [(&BOTH[..], "residual"), (&["backward"], "grad_output")] {
        refuses(
            commands,
            name,
            zero(&[2, 4, 3]),
            &["[2, 4, 3]", "[2, 3, 4]"],
        );
        refuses(commands, name, zero(&[24]), &["[24]", "[2, 3, 4]"]);
        refuses(commands, name, zeros(Dtype::F16, &shape), &["F16", "F32"]);
        refuses(commands, name, zeros(Dtype::I64, &shape), &["I64", "F32"]);
    }
    let negative = f32s(&[3], &[1.0, -0.25, 1.0]);
    refuses(
        &BOTH,
        "running_var",
        negative.clone(),
        &["channel 1", "-0.25"],
    );
    refuses(
        &["backward"],
        "save_invstd",
        negative,
        &["channel 1", "-0.25"],
    );
    let batches = "num_batches_tracked";
    refuses(&BOTH, batches, count(-1), &["-1"]);
    refuses(&BOTH, batches, count(i64::MAX), &["9223372036854775807"]);
    refuses(&BOTH, batches, zeros(Dtype::I64, &[1]), &["[1]", "[]"]);
    refuses(&BOTH, batches, zero(&[]), &["F32", "I64"]);

    refuses(&BOTH, "input", zeros(Dtype::I64, &shape), &["I64"]);
    refuses(&BOTH, "input", zeros(Dtype::F64, &shape), &["F64"]);
    refuses(&BOTH, "input", zero(&[]), &["[]"]);
    refuses(&BOTH, "input", zero(&[5]), &["--channel-axis 1", "[5]"]);
    refuses(&BOTH, "input", zero(&[0, 3, 4]), &["empty", "[0, 3, 4]"]);
    refuses(&BOTH, "input", zero(&[2, 0, 4]), &["empty", "[2, 0, 4]"]);
    refuses(&BOTH, "input", zero(&[2, 3, 0]), &["empty", "[2, 3, 0]"]);
    let vast = [0, 1 << 40, 1 << 40];
    refuses(&BOTH, "input", zero(&vast[..1]), &["[0]"]);
    let mut vast_and_empty = zero(&[0]);
    vast_and_empty.shape = vast.to_vec();
    refuses_tensors_of_safetensors(&vast_and_empty, &["input", "empty"]);
}

/// As [`refuses_tensors`] for an input that other formats cannot hold.
fn refuses_tensors_of_safetensors(input: &Tensor, culprits: &[&str]) {
    let folder = Folder::with("in.safetensors", &file_of([("input", input.clone())]));
    folder.refuses("forward in.safetensors -o out.npz", culprits);
}

/// Training needs a variance.
#[test]
fn one_value_per_channel() {
    let one = |t: &mut Tensors| {
        for name in ["input", "grad_output", "residual"] {
            t.insert(name.into(), zeros(Dtype::F32, &[1, 3, 1]));
        }
    };
    let culprits = ["input", "at least two values per channel", "[1, 3, 1]"];
    refuses_tensors(&BOTH, one, "", &culprits);
}

#[test]
fn bad_options() {
    for (options, culprits) in [
        ("--eps -1", &["--eps", "-1"][..]),
        ("--eps=-1e-9", &["--eps", "-1e-9"]),
        ("--eps nan", &["--eps", "NaN"]),
        ("--eps inf", &["--eps", "inf"]),
        ("--eps 1e300", &["--eps", "1e300"]),
        ("--momentum -0.1", &["--momentum", "-0.1"]),
        ("--momentum 1.1", &["--momentum", "1.1"]),
        ("--momentum nan", &["--momentum", "NaN"]),
        ("--decay -0.1", &["--decay", "-0.1"]),
        ("--decay 1.1", &["--decay", "1.1"]),
        ("--decay nan", &["--decay", "NaN"]),
        ("--momentum 0.1 --decay 0.9", &["--momentum", "--decay"]),
        (
            "--momentum cumulative --decay 0.9",
            &["--momentum", "--decay"],
        ),
        ("--channel-axis 3", &["--channel-axis 3", "[2, 3, 4]"]),
        ("--channel-axis -4", &["--channel-axis -4", "-3 to 2"]),
        (
            "--channel-axis -9223372036854775808",
            &["--channel-axis -9223372036854775808"],
        ),
        (
            "--channel-axis 9223372036854775807",
            &["--channel-axis 9223372036854775807"],
        ),
        (
            "--activation leaky-relu:inf",
            &["--activation", "leaky-relu:inf"],
        ),
        ("--groups 0", &["--groups 0", "2"]),
        ("--groups 3", &["--groups 3", "2"]),
        ("--mask", &["--mask", "mask"]),
        ("--max-bytes 100", &["in.", "--max-bytes", "100"]),
    ] {
        refuses_tensors(&BOTH, |_| (), options, culprits);
        // Whatever the device and the mode.
        let elsewhere = format!("{options} --device cpu --mode inference");
        refuses_tensors(&BOTH, |_| (), &elsewhere, culprits);
    }
}

/// Usage errors are the parser's.
#[test]
fn usage_errors() {
    let folder = Folder::with("in.npz", &good());
    let before = folder.content();
    for command in BOTH {
        for rest in [
            "",
            "in.npz",
            "-o out.npz",
            "in.npz other.npz -o out.npz",
            "in.npz -o out.npz --nonsense",
            "in.npz -o out.npz --mode maybe",
            "in.npz -o out.npz --preset caffe",
            "in.npz -o out.npz --device tpu",
            "in.npz -o out.npz --backend cuda",
            "in.npz -o out.npz --strategy clever",
            "in.npz -o out.npz --activation softmax",
            "in.npz -o out.npz --activation leaky-relu:steep",
            "in.npz -o out.npz --groups -1",
            "in.npz -o out.npz --eps small",
            "in.npz -o out.npz --momentum some",
            "in.npz -o out.npz --decay some",
            "in.npz -o out.npz --channel-axis one",
            "in.npz -o out.npz --channel-axis 1.5",
            "in.npz -o out.npz --max-bytes -1",
        ] {
            let outcome = folder.run(&format!("{command} {rest}"));
            assert_eq!(outcome.code, Some(2), "{}", outcome.line);
            assert!(!outcome.stderr.is_empty() && outcome.stdout.is_empty());
        }
    }
    for line in ["", "sideways in.npz -o out.npz", "--nonsense"] {
        assert_eq!(folder.run(line).code, Some(2), "{line}");
    }
    assert!(folder.content() == before);
    for line in ["--help", "--version", "forward --help", "backward --help"] {
        assert!(!folder.run(line).succeeded().is_empty(), "{line}");
    }
}

/// IN that is not there, not a file, of another kind, cut short or garbled; an old OUT stays.
#[test]
fn bad_files() {
    for format in ["safetensors", "npz"] {
        let input = format!("in.{format}");
        let folder = Folder::with(&input, &good());
        fs::write(folder.path("out.npz"), "an old OUT").unwrap();
        fs::write(folder.path("in.txt"), "text").unwrap();
        fs::write(folder.path("in"), "nothing").unwrap();
        fs::create_dir(folder.path(&format!("folder.{format}"))).unwrap();
        let refuses = |input: &str| {
            for command in BOTH {
                folder.refuses(&format!("{command} {input} -o out.npz"), &[input]);
            }
        };
        refuses(&format!("missing.{format}"));
        refuses(&format!("nowhere/in.{format}"));
        refuses(&format!("folder.{format}"));
        refuses("in.txt");
        refuses("in");

        let whole = folder.bytes(&input);
        for length in [0, 1, 7, 8, 9, 60, whole.len() / 2, whole.len() - 1] {
            fs::write(folder.path(&input), &whole[..length]).unwrap();
            refuses(&input);
        }
        let mut garbled: Vec<Vec<u8>> = vec![
            b"this is not a tensor file, whatever its name".to_vec(),
            vec![0xff; 4096],
            vec![0; 4096],
        ];
        // One byte changed in the header of the one, in the data of the other, which has checksums.
        let mut flipped = whole.clone();
        let place = match format {
            // The entry's name, then a header of 128 bytes, then the data.
            "npz" => whole.windows(9).position(|w| w == b"input.npy").unwrap() + 150,
            _ => 8,
        };
        flipped[place] ^= 0x40;
        garbled.push(flipped);
        for bytes in garbled {
            fs::write(folder.path(&input), bytes).unwrap();
            refuses(&input);
        }
    }
}

#[test]
fn bad_outputs() {
    let folder = Folder::with("in.npz", &good());
    fs::create_dir(folder.path("folder.npz")).unwrap();
    fs::write(folder.path("file"), "").unwrap();
    for command in BOTH {
        for out in [
            "nowhere/out.npz",
            "file/out.npz",
            "folder.npz",
            "out.txt",
            "out",
            "out.npz.gz",
        ] {
            folder.refuses(&format!("{command} in.npz -o {out}"), &[out]);
        }
    }
}
