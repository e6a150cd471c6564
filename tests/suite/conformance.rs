//! What PyTorch, Keras and ONNX computed (recorded in tests/conformance, with the scripts that did it), against the
//! reference and against every adapter.

use std::path::PathBuf;

use ndarray::{Array1, Array2, Array3};
use safetensors::{Dtype as StDtype, SafeTensors};
use serde::Deserialize;
use wgpu_batchnorm::reference::{self, Inputs, Statistics};
use wgpu_batchnorm::{
    Activation, Arrays, Choices, Dtype, Gpu, Momentum, Plan, Problem, RunningArrays,
    RunningVariance, Through, Walk,
};

use crate::{name, on_every_adapter};

#[derive(Deserialize)]
struct Recorded {
    framework: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    op: String,
    shape: Vec<usize>,
    channel_axis: isize,
    dtype: String,
    eps: f64,
    /// Of the new batch; none for the plain average.
    new_weight: Option<f64>,
    running_variance: String,
    activation: String,
    residual: bool,
    mask: bool,
}

pub(crate) fn path(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/conformance", file]
        .iter()
        .collect()
}

struct Tensors<'a> {
    file: &'a SafeTensors<'a>,
    case: &'a str,
}

impl Tensors<'_> {
    /// A tensor's values, in memory order; f64 holds every type exactly.
    fn get(&self, tensor: &str) -> Option<Vec<f64>> {
        let view = self.file.tensor(&format!("{}/{tensor}", self.case)).ok()?;
        let data = view.data();
        fn convert<const N: usize>(data: &[u8], decode: fn([u8; N]) -> f64) -> Vec<f64> {
            data.chunks_exact(N)
                .map(|b| decode(b.try_into().unwrap()))
                .collect()
        }
        Some(match view.dtype() {
            StDtype::F64 => convert(data, f64::from_le_bytes),
            StDtype::F32 => convert(data, |b| f32::from_le_bytes(b).into()),
            StDtype::F16 => convert(data, |b| half::f16::from_le_bytes(b).to_f64()),
            StDtype::BF16 => convert(data, |b| half::bf16::from_le_bytes(b).to_f64()),
            StDtype::I64 => convert(data, |b| i64::from_le_bytes(b) as f64),
            other => panic!("{}/{tensor} is {other:?}", self.case),
        })
    }

    fn vector(&self, tensor: &str) -> Option<Array1<f32>> {
        Some(self.get(tensor)?.into_iter().map(|v| v as f32).collect())
    }

    fn array(&self, tensor: &str, problem: &Problem) -> Option<Array3<f32>> {
        let values = self.vector(tensor)?;
        Some(values.into_shape_with_order(problem.shape()).unwrap())
    }
}

impl Case {
    fn problem(&self) -> Problem {
        let mut problem = Problem::with_axis(&self.shape, self.channel_axis)
            .unwrap()
            .eps(self.eps)
            .momentum(
                self.new_weight
                    .map_or(Momentum::Cumulative, Momentum::new_weight),
            )
            .running_variance(match self.running_variance.as_str() {
                "unbiased" => RunningVariance::Unbiased,
                "biased" => RunningVariance::Biased,
                other => panic!("{}: {other}", self.name),
            })
            .activation(self.activation.parse().unwrap())
            .dtype(match self.dtype.as_str() {
                "f32" => Dtype::F32,
                "f16" => Dtype::F16,
                "bf16" => Dtype::Bf16,
                other => panic!("{}: {other}", self.name),
            });
        if self.residual {
            problem = problem.with_residual();
        }
        if self.masked() {
            problem = problem.with_mask();
        }
        problem
    }

    /// Running statistics were taken before: no mask changes them.
    fn masked(&self) -> bool {
        self.mask && matches!(self.op.as_str(), "forward_training" | "backward")
    }
}

/// max|got - want| / max(1, max|want|).
fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs() / scale);
    // NaN is worse than anything.
    worst.fold(0.0, |m, e| if e <= m { m } else { e })
}

/// Tensor, what was computed.
type Results = Vec<(&'static str, Vec<f64>)>;

fn flat<'a, T: Copy + Into<f64> + 'a>(values: impl IntoIterator<Item = &'a T>) -> Vec<f64> {
    values.into_iter().map(|&v| v.into()).collect()
}

/// What every road gets.
struct Given {
    problem: Problem,
    x: Array3<f32>,
    residual: Option<Array3<f32>>,
    grad: Option<Array3<f32>>,
    mask: Option<Array2<f32>>,
    weight: Option<Array1<f32>>,
    bias: Option<Array1<f32>>,
    running: Option<RunningArrays>,
}

impl Given {
    fn of(case: &Case, tensors: &Tensors<'_>) -> Self {
        let problem = case.problem();
        let running = tensors.vector("running_mean").map(|mean| RunningArrays {
            mean,
            variance: tensors.vector("running_var").unwrap(),
            batches: tensors
                .get("num_batches_tracked")
                .map_or(0, |n| n[0] as u32),
        });
        let mask = case.masked().then(|| {
            let mask = tensors.vector("mask").unwrap();
            mask.into_shape_with_order(problem.mask_shape()).unwrap()
        });
        Given {
            x: tensors.array("input", &problem).unwrap(),
            residual: tensors.array("residual", &problem),
            grad: tensors.array("grad_output", &problem),
            mask,
            weight: tensors.vector("weight"),
            bias: tensors.vector("bias"),
            running,
            problem,
        }
    }

    fn by_reference(&self, op: &str) -> Results {
        let wide = |a: &Array3<f32>| a.mapv(f64::from);
        let wide_vector = |a: &Array1<f32>| a.mapv(f64::from);
        let (x, residual) = (wide(&self.x), self.residual.as_ref().map(wide));
        let weight = self.weight.as_ref().map(wide_vector);
        let bias = self.bias.as_ref().map(wide_vector);
        let inputs = Inputs {
            residual: residual.as_ref().map(|a| a.view()),
            weight: weight.as_ref().map(|a| a.view()),
            bias: bias.as_ref().map(|a| a.view()),
            mask: self.mask.as_ref().map(|a| a.view()),
            ..Inputs::new(x.view())
        };
        let frozen = matches!(op, "inference" | "backward_frozen");
        let statistics = if frozen {
            let running = self.running.as_ref().unwrap();
            let (mean, variance) = (&running.mean, &running.variance);
            Statistics::given(&self.problem, wide_vector(mean), wide_vector(variance)).unwrap()
        } else {
            Statistics::masked(&self.problem, x.view(), inputs.mask).unwrap()
        };
        if let Some(grad) = self.grad.as_ref().filter(|_| op.starts_with("backward")) {
            let grad = wide(grad);
            let problem = &self.problem;
            let g = reference::backward(problem, &inputs, &statistics, grad.view(), frozen);
            let g = g.unwrap();
            return vec![
                ("grad_input", flat(&g.input)),
                ("grad_residual", flat(&g.residual)),
                ("grad_weight", g.weight.to_vec()),
                ("grad_bias", g.bias.to_vec()),
            ];
        }
        let output = reference::forward(&self.problem, &inputs, &statistics).unwrap();
        let mut results = vec![
            ("output", flat(&output)),
            ("save_mean", statistics.mean.to_vec()),
            ("save_invstd", statistics.invstd.to_vec()),
        ];
        if let (Some(running), false) = (&self.running, frozen) {
            let mut state = reference::Running {
                mean: wide_vector(&running.mean),
                variance: wide_vector(&running.variance),
                batches: running.batches.into(),
            };
            state.update(&self.problem, &statistics).unwrap();
            results.extend([
                ("new_running_mean", state.mean.to_vec()),
                ("new_running_var", state.variance.to_vec()),
                ("new_num_batches_tracked", vec![state.batches as f64]),
            ]);
        }
        results
    }

    fn on(&self, gpu: &Gpu, op: &str, choices: &Choices) -> Results {
        let arrays = Arrays {
            residual: self.residual.as_ref().map(|a| a.view()),
            weight: self.weight.as_ref().map(|a| a.view()),
            bias: self.bias.as_ref().map(|a| a.view()),
            mask: self.mask.as_ref().map(|a| a.view()),
            ..Arrays::new(self.x.view())
        };
        let plan = Plan::with(&self.problem, gpu.kernels.caps(), choices).unwrap();
        let running = self.running.as_ref();
        if op == "inference" {
            let output = gpu.inference(&plan, &arrays, running.unwrap()).unwrap();
            return vec![("output", flat(&output))];
        }
        if op == "forward_training" {
            let got = gpu.forward_training(&plan, &arrays, running).unwrap();
            let mut results = vec![
                ("output", flat(&got.output)),
                ("save_mean", got.saved.mean().to_vec()),
                ("save_invstd", flat(got.saved.invstd())),
            ];
            if let Some(after) = got.running {
                results.extend([
                    ("new_running_mean", flat(&after.mean)),
                    ("new_running_var", flat(&after.variance)),
                    ("new_num_batches_tracked", vec![after.batches.into()]),
                ]);
            }
            return results;
        }
        let saved;
        let through = if op == "backward" {
            saved = gpu.forward_training(&plan, &arrays, None).unwrap().saved;
            Through::Saved(&saved)
        } else {
            Through::Running(running.unwrap())
        };
        let grad = self.grad.as_ref().unwrap();
        let got = gpu.backward(&plan, &arrays, grad.view(), through).unwrap();
        let mut results = vec![
            ("grad_input", flat(&got.input)),
            ("grad_weight", flat(&got.weight)),
            ("grad_bias", flat(&got.bias)),
        ];
        results.extend(got.residual.map(|r| ("grad_residual", flat(&r))));
        results
    }
}

/// The contract's bounds; parts that are f32 whatever the storage keep f32's.
fn bound(problem: &Problem, tensor: &str) -> f64 {
    let gradient = tensor.starts_with("grad");
    let is_tensor = matches!(tensor, "output" | "grad_input" | "grad_residual");
    let smooth = matches!(
        problem.activation,
        Activation::Silu | Activation::Gelu | Activation::Sigmoid | Activation::Tanh
    );
    match problem.dtype {
        Dtype::F16 if is_tensor => 1e-3,
        Dtype::Bf16 if is_tensor => 5e-3,
        _ => (if gradient { 2e-6 } else { 1e-6 }) * if smooth { 3.0 } else { 1.0 },
    }
}

/// Compares one road with what was recorded; returns how many tensors were compared.
fn compare(
    road: &str,
    framework: &str,
    case: &Case,
    given: &Given,
    tensors: &Tensors<'_>,
    results: &Results,
    bound: impl Fn(&str) -> f64,
) -> usize {
    let nothing_counts = given
        .mask
        .as_ref()
        .is_some_and(|m| m.iter().all(|m| *m == 0.0));
    let mut compared = 0;
    for (tensor, got) in results {
        let Some(want) = tensors.get(tensor) else {
            continue;
        };
        compared += 1;
        if nothing_counts && !tensor.starts_with("new_") {
            // Keras gives γ·x/√ε + β there, and gradients to match; here nothing is normalised, and only β comes out.
            // The running statistics move as Keras' do.
            let channels = given.problem.channels;
            let beta = |i: usize| match &given.bias {
                Some(bias) => f64::from(bias[i / given.problem.inner % channels]),
                None => 0.0,
            };
            match *tensor {
                "output" => assert!(got.iter().enumerate().all(|(i, v)| *v == beta(i))),
                "grad_input" | "grad_weight" => assert!(got.iter().all(|v| *v == 0.0)),
                _ => {}
            }
            continue;
        }
        let (error, bound) = (error(got, &want), bound(tensor));
        assert!(
            error <= bound,
            "{road}: {framework}, {}, {tensor}: off by {error:.2e}, bound {bound:.0e}",
            case.name
        );
    }
    compared
}

fn conform(file: &str) {
    let json = std::fs::read_to_string(path(&format!("{file}.json"))).unwrap();
    let recorded: Recorded = serde_json::from_str(&json).unwrap();
    let bytes = std::fs::read(path(&format!("{file}.safetensors"))).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap();
    let framework = &recorded.framework;
    let mut compared = 0;
    for case in &recorded.cases {
        let tensors = Tensors {
            file: &data,
            case: &case.name,
        };
        let given = Given::of(case, &tensors);
        let by_reference = given.by_reference(&case.op);
        // Both are f64. Keras adds 1e-7 to the number of values that a mask lets count.
        let exact = |_: &str| if given.mask.is_some() { 1e-6 } else { 1e-10 };
        let road = "the reference";
        compared += compare(
            road,
            framework,
            case,
            &given,
            &tensors,
            &by_reference,
            exact,
        );
    }
    on_every_adapter(|gpu| {
        for case in &recorded.cases {
            let tensors = Tensors {
                file: &data,
                case: &case.name,
            };
            let given = Given::of(case, &tensors);
            for walk in [Walk::Planar, Walk::Columns] {
                let results = given.on(gpu, &case.op, &Choices::default().walk(walk));
                let road = format!("{walk} on {}", name(gpu));
                let bound = |tensor: &str| bound(&given.problem, tensor);
                let n = compare(&road, framework, case, &given, &tensors, &results, bound);
                assert!(n > 0, "{}: nothing was compared", case.name);
            }
        }
    });
    println!(
        "{framework}: {} cases, {compared} tensors",
        recorded.cases.len()
    );
    assert!(compared > recorded.cases.len());
}

#[test]
fn pytorch() {
    conform("pytorch");
}

#[test]
fn keras() {
    conform("keras");
}

#[test]
fn onnx() {
    conform("onnx");
}

/// ONNX's published float32 expectations, as its own runner compares them.
#[test]
fn onnx_as_published() {
    let json = std::fs::read_to_string(path("onnx.json")).unwrap();
    let recorded: Recorded = serde_json::from_str(&json).unwrap();
    let bytes = std::fs::read(path("onnx.safetensors")).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap();
    on_every_adapter(|gpu| {
        let mut compared = 0;
        for case in &recorded.cases {
            let tensors = Tensors {
                file: &data,
                case: &case.name,
            };
            let given = Given::of(case, &tensors);
            let results = given.on(gpu, &case.op, &Choices::default());
            for (ours, theirs) in [
                ("output", "published_output"),
                ("new_running_mean", "published_running_mean"),
                ("new_running_var", "published_running_var"),
            ] {
                let (Some((_, got)), Some(want)) = (
                    results.iter().find(|(t, _)| *t == ours),
                    tensors.get(theirs),
                ) else {
                    continue;
                };
                compared += 1;
                for (got, want) in got.iter().zip(&want) {
                    let allowed = 1e-7 + 1e-3 * want.abs(); // its runner's tolerances
                    assert!((got - want).abs() <= allowed, "{} {theirs}", case.name);
                }
            }
        }
        assert!(compared >= recorded.cases.len(), "{compared}");
    });
}
