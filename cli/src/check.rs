//! `check`: the GPU against the f64 reference, over shapes, data, operations and walks.
//!
//! The bounds, as max|out - ref| / max(1, max|ref|): 1e-6 forward, 2e-6 backward; the weight's gradient may also be off
//! by 1e-7·Σ|dz·x̂|. They hold on adversarial data too.

use std::io::IsTerminal;

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ndarray::{Array1, Array3, ArrayView1, Axis};
use serde_json::{Value, json};
use wgpu_batchnorm::reference::{self, Inputs, Statistics};
use wgpu_batchnorm::{
    Activation, Arrays, Choices, Gpu, Momentum, Plan, Preset, Problem, RunningArrays, Through, Walk,
};

use crate::args::CheckArgs;

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Training forward, with saved and running statistics.
    Forward,
    /// By running statistics.
    Inference,
    /// Backward through the statistics of the batch.
    Backward,
    /// Backward through running statistics.
    Frozen,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 4] = [
        Operation::Forward,
        Operation::Inference,
        Operation::Backward,
        Operation::Frozen,
    ];

    fn name(self) -> &'static str {
        match self {
            Operation::Forward => "forward training",
            Operation::Inference => "inference",
            Operation::Backward => "backward",
            Operation::Frozen => "backward frozen",
        }
    }
}

/// What the input holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Data {
    /// Normal values of a mean and a standard deviation.
    Normal(f32, f32),
    /// Channel 0 constant, the others normal.
    Constant(f32),
    /// Normal, with one value of each channel replaced: the first (true) or the last.
    Outlier(f32, bool),
    /// Two far clusters.
    Bimodal(f32),
    /// Rising through the whole tensor.
    Ramp(f32),
}

/// What the gradient of the output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradient {
    /// Normal values: the sums cancel.
    Normal,
    /// All 1.
    Ones,
    /// Absolute values of normal ones: the sums do not cancel.
    Positive,
}

/// One comparison.
#[derive(Debug, Clone)]
pub struct Case {
    /// What is computed.
    pub operation: Operation,
    /// On what shape, by what convention, with what fused.
    pub problem: Problem,
    /// On what values.
    pub data: Data,
    /// With what gradient.
    pub gradient: Gradient,
    /// With weight and bias.
    pub affine: bool,
    /// What the planner is told.
    pub choices: Choices,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [outer, channels, inner] = self.problem.shape();
        write!(
            f,
            "{} [{outer}, {channels}, {inner}] {:?}",
            self.operation.name(),
            self.data
        )?;
        if matches!(self.operation, Operation::Backward | Operation::Frozen) {
            write!(f, " gradient {:?}", self.gradient)?;
        }
        if self.problem.residual {
            write!(f, " + residual")?;
        }
        if self.problem.activation != Activation::None {
            write!(f, " + {:?}", self.problem.activation)?;
        }
        if let Some(walk) = self.choices.walk {
            write!(f, " {walk}")?;
        }
        Ok(())
    }
}

/// One tensor of a comparison.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The tensor's name.
    pub tensor: &'static str,
    /// The largest error over its bound; NaN where only one of the two is NaN.
    pub of_bound: f64,
    /// max|out - ref| / max(1, max|ref|).
    pub error: f64,
    /// The first places over the bound: index, got, wanted, bound.
    pub places: Vec<(usize, f64, f64, f64)>,
}

/// A generator whose values do not change between versions (PCG, O'Neill 2014), so that failures can be repeated.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let word = (((self.0 >> 18) ^ self.0) >> 27) as u32;
        (word.rotate_right((self.0 >> 59) as u32) >> 8) as f32 / 16_777_216.0
    }

    /// Normal, mean 0, standard deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }
}

/// The input of a case.
pub fn input(data: Data, problem: &Problem, random: &mut Random) -> Array3<f32> {
    let [outer, channels, inner] = problem.shape();
    let mut x = Array3::from_shape_simple_fn((outer, channels, inner), || random.normal());
    let count = (outer * inner) as f32;
    match data {
        Data::Normal(mean, std) => x.mapv_inplace(|v| mean + std * v),
        Data::Constant(value) => x.index_axis_mut(Axis(1), 0).fill(value),
        Data::Outlier(value, first) => {
            let (o, i) = if first {
                (0, 0)
            } else {
                (outer - 1, inner - 1)
            };
            x.slice_mut(ndarray::s![o, .., i]).fill(value);
        }
        Data::Bimodal(distance) => {
            x.mapv_inplace(|v| v + if v > 0.0 { distance } else { -distance })
        }
        Data::Ramp(slope) => x.indexed_iter_mut().for_each(|((o, _, i), v)| {
            *v = slope * ((o * inner + i) as f32 / count) + 1e-3 * *v;
        }),
    }
    x
}

/// Runs a case and compares every tensor that it gives.
///
/// # Errors
/// Those of the library.
pub fn compare(gpu: &Gpu, case: &Case, seed: u64) -> Result<Vec<Comparison>> {
    let Case {
        problem, operation, ..
    } = case;
    let mut random = Random::new(seed);
    let x = input(case.data, problem, &mut random);
    let shape = x.raw_dim();
    let residual = problem
        .residual
        .then(|| Array3::from_shape_simple_fn(shape, || random.normal()));
    let mut grad = Array3::from_shape_simple_fn(shape, || match case.gradient {
        Gradient::Normal => random.normal(),
        Gradient::Positive => random.normal().abs(),
        Gradient::Ones => 1.0,
    });
    let channels = problem.channels;
    let weight = case
        .affine
        .then(|| Array1::from_shape_simple_fn(channels, || 0.5 + random.uniform()));
    let bias = case
        .affine
        .then(|| Array1::from_shape_simple_fn(channels, || random.normal()));
    let running = RunningArrays {
        mean: Array1::from_shape_simple_fn(channels, || random.normal()),
        variance: Array1::from_shape_simple_fn(channels, || 0.5 + random.uniform()),
        batches: 3,
    };
    let wide = |a: &Array3<f32>| a.mapv(f64::from);
    let (x64, r64) = (wide(&x), residual.as_ref().map(wide));
    let (w64, b64) = (
        weight.as_ref().map(|w| w.mapv(f64::from)),
        bias.as_ref().map(|b| b.mapv(f64::from)),
    );
    let inputs = Inputs {
        input: x64.view(),
        residual: r64.as_ref().map(|a| a.view()),
        weight: w64.as_ref().map(|a| a.view()),
        bias: b64.as_ref().map(|a| a.view()),
    };
    let arrays = Arrays {
        input: x.view(),
        residual: residual.as_ref().map(|a| a.view()),
        weight: weight.as_ref().map(|a| a.view()),
        bias: bias.as_ref().map(|a| a.view()),
    };
    let plan = Plan::with(problem, gpu.kernels.caps(), &case.choices)?;
    let given = Statistics::given(
        problem,
        running.mean.mapv(f64::from),
        running.variance.mapv(f64::from),
    );
    let mut out = Vec::new();
    match operation {
        Operation::Forward => {
            let batch = Statistics::of(problem, x64.view())?;
            let got = gpu.forward_training(&plan, &arrays, Some(&running))?;
            let want = reference::forward(problem, &inputs, &batch)?;
            out.push(against("output", flat(&got.output), flat(&want), 1e-6));
            // The mean is as good as what is normalised by it: relative to the spread of the channel.
            let spread = batch.variance.mapv(|v| v.sqrt().max(1.0));
            out.push(against(
                "save_mean",
                &got.saved.mean() / &spread,
                &batch.mean / &spread,
                1e-6,
            ));
            let invstd = got.saved.invstd().mapv(f64::from);
            out.push(against(
                "save_invstd",
                relative(&invstd, &batch.invstd),
                relative(&batch.invstd, &batch.invstd),
                1e-6,
            ));
            let mut state = reference::Running {
                mean: given.mean,
                variance: given.variance,
                batches: 3,
            };
            state.update(problem, &batch);
            if let Some(got) = got.running {
                out.push(against(
                    "running_mean",
                    got.mean.mapv(f64::from),
                    state.mean,
                    1e-6,
                ));
                out.push(against(
                    "running_var",
                    got.variance.mapv(f64::from),
                    state.variance,
                    1e-6,
                ));
                let (count, wanted) = (f64::from(got.batches), state.batches as f64);
                out.push(against(
                    "num_batches_tracked",
                    Array1::from_elem(1, count),
                    Array1::from_elem(1, wanted),
                    1e-9,
                ));
            }
        }
        Operation::Inference => {
            let got = gpu.inference(&plan, &arrays, &running)?;
            let want = reference::forward(problem, &inputs, &given)?;
            out.push(against("output", flat(&got), flat(&want), 1e-6));
        }
        Operation::Backward | Operation::Frozen => {
            let frozen = *operation == Operation::Frozen;
            let statistics = if frozen {
                given
            } else {
                Statistics::of(problem, x64.view())?
            };
            silence_ties(problem, &inputs, &statistics, &mut grad)?;
            let got = if frozen {
                gpu.backward(&plan, &arrays, grad.view(), Through::Running(&running))?
            } else {
                let saved = gpu.forward_training(&plan, &arrays, None)?.saved;
                gpu.backward(&plan, &arrays, grad.view(), Through::Saved(&saved))?
            };
            let want =
                reference::backward(problem, &inputs, &statistics, wide(&grad).view(), frozen)?;
            let normalised = reference::forward(
                &Problem::new(problem.outer, problem.channels, problem.inner).eps(problem.eps),
                &Inputs {
                    residual: None,
                    weight: None,
                    bias: None,
                    ..inputs
                },
                &statistics,
            )?;
            let sums: Array1<f64> = (&want.residual * &normalised)
                .axis_iter(Axis(1))
                .map(|t| t.mapv(f64::abs).sum())
                .collect();
            out.push(against(
                "grad_input",
                flat(&got.input),
                flat(&want.input),
                2e-6,
            ));
            out.push(within(
                "grad_weight",
                got.weight.mapv(f64::from),
                want.weight,
                2e-6,
                (sums * 1e-7).view(),
            ));
            out.push(against(
                "grad_bias",
                got.bias.mapv(f64::from),
                want.bias,
                2e-6,
            ));
            if let Some(got) = &got.residual {
                out.push(against(
                    "grad_residual",
                    flat(got),
                    flat(&want.residual),
                    2e-6,
                ));
            }
        }
    }
    Ok(out)
}

/// Where an activation's derivative jumps, f32 and f64 may fall on different sides; no gradient goes through there.
fn silence_ties(
    problem: &Problem,
    inputs: &Inputs<'_>,
    statistics: &Statistics,
    grad: &mut Array3<f32>,
) -> Result<()> {
    if problem.activation == Activation::None {
        return Ok(());
    }
    let z = reference::forward(
        &problem.clone().activation(Activation::None),
        inputs,
        statistics,
    )?;
    let close = 1e-5 * z.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    ndarray::Zip::from(grad).and(&z).for_each(|g, z| {
        if z.abs() < close {
            *g = 0.0
        }
    });
    Ok(())
}

fn flat<T: Copy + Into<f64>>(a: &Array3<T>) -> Array1<f64> {
    a.iter().map(|&v| v.into()).collect()
}

/// Each value over the size of the reference's.
fn relative(a: &Array1<f64>, reference: &Array1<f64>) -> Array1<f64> {
    ndarray::Zip::from(a)
        .and(reference)
        .map_collect(|a, r| if *r == 0.0 { *a } else { a / r.abs() })
}

fn against(tensor: &'static str, got: Array1<f64>, want: Array1<f64>, bound: f64) -> Comparison {
    within(tensor, got, want, bound, Array1::zeros(0).view())
}

/// Compares by `bound` times max(1, max|ref|), or by the place's own floor where that is larger.
fn within(
    tensor: &'static str,
    got: Array1<f64>,
    want: Array1<f64>,
    bound: f64,
    floors: ArrayView1<'_, f64>,
) -> Comparison {
    let scale = want
        .iter()
        .filter(|v| v.is_finite())
        .fold(1.0, |m: f64, v| m.max(v.abs()));
    let mut comparison = Comparison {
        tensor,
        of_bound: 0.0,
        error: 0.0,
        places: Vec::new(),
    };
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        // Beyond f32 infinity is the right answer.
        let want = if want.abs() > f64::from(f32::MAX) {
            &(want.signum() * f64::INFINITY)
        } else {
            want
        };
        let allowed = (bound * scale).max(floors.get(i).copied().unwrap_or(0.0));
        let same = got == want || (got.is_nan() && want.is_nan());
        let error = if same { 0.0 } else { (got - want).abs() };
        // NaN against a number is an error beyond any bound.
        let of_bound = if error.is_nan() {
            f64::INFINITY
        } else {
            error / allowed
        };
        comparison.of_bound = comparison.of_bound.max(of_bound);
        comparison.error = comparison.error.max(if error.is_nan() {
            f64::INFINITY
        } else {
            error / scale
        });
        if of_bound > 1.0 && comparison.places.len() < 10 {
            comparison.places.push((i, *got, *want, allowed));
        }
    }
    comparison
}

impl Comparison {
    /// The first places over the bound, one a line.
    pub fn report(&self) -> String {
        let line = |(i, got, want, bound): &(usize, f64, f64, f64)| {
            format!(
                "    {}[{i}]: got {got:e}, wanted {want:e}, off by {:.3e}, bound {bound:.3e}",
                self.tensor,
                (got - want).abs()
            )
        };
        self.places.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Shapes that each bring a memory pattern of their own.
const SHAPES: [([usize; 3], &str); 14] = [
    ([4, 8, 64], "rows of whole vectors"),
    ([32, 27, 7], "odd rows, odd total"),
    ([6, 5, 49], "7x7 planes: rows at every alignment"),
    ([9, 128, 1], "channels last"),
    ([33, 19, 1], "channels last, odd"),
    ([1001, 1, 1], "one channel, tall"),
    ([2, 5000, 1], "many channels, two values"),
    ([1, 5, 1000], "feature-major"),
    ([500, 6, 2], "rows shorter than a vector"),
    ([70, 16, 5], "rows of one vector and a bit"),
    ([2, 3, 1], "six elements"),
    ([2, 251, 784], "one row a piece"),
    ([1, 1, 2], "two values in all"),
    ([5000, 12, 4], "rows of one vector"),
];

/// Data that break simpler methods.
const ADVERSARIAL: [Data; 14] = [
    Data::Normal(1e4, 1.0),
    Data::Normal(1e6, 1.0),
    Data::Normal(0.0, 1e-6),
    Data::Normal(0.0, 1e15),
    Data::Normal(0.0, 1e30),
    Data::Constant(0.1),
    Data::Constant(1e4),
    Data::Outlier(1e4, true),
    Data::Outlier(1e4, false),
    Data::Outlier(1e6, true),
    Data::Outlier(1e6, false),
    Data::Bimodal(5e3),
    Data::Ramp(1.0),
    Data::Ramp(1e4),
];

/// The cases of `check`: every shape with every operation and walk, fusions and conventions in turn or all of them;
/// then the adversarial data.
pub fn cases(full: bool, base: &Choices) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut turn = 0usize;
    let mut add =
        |operation, [outer, channels, inner]: [usize; 3], data, gradient, walk: Walk, all: bool| {
            // Eight operations and walks take turns: the shift lets each meet every fusion.
            let fusions = if all {
                0..8
            } else {
                turn + turn / 8..turn + turn / 8 + 1
            };
            for fusion in fusions {
                let preset = [
                    Preset::Pytorch,
                    Preset::Keras,
                    Preset::Tensorflow,
                    Preset::Onnx,
                ][(turn / 3) % 4];
                let mut problem = Problem::new(outer, channels, inner).preset(preset);
                if fusion & 1 == 1 {
                    problem = problem.activation(Activation::Relu);
                }
                if fusion & 2 == 2 {
                    problem = problem.with_residual();
                }
                if turn % 5 == 4 {
                    problem = problem.momentum(Momentum::Cumulative);
                }
                turn += 1;
                let choices = base.clone().walk(walk);
                cases.push(Case {
                    operation,
                    problem,
                    data,
                    gradient,
                    affine: fusion & 4 == 0,
                    choices,
                });
            }
        };
    for (shape, _) in SHAPES {
        for operation in Operation::ALL {
            for walk in [Walk::Planar, Walk::Columns] {
                add(
                    operation,
                    shape,
                    Data::Normal(0.5, 2.0),
                    Gradient::Normal,
                    walk,
                    full,
                );
            }
        }
    }
    let shapes = [[32, 4, 1024], [8, 6, 343], [20000, 8, 1], [4099, 3, 1]];
    for (i, data) in ADVERSARIAL.into_iter().enumerate() {
        for (j, shape) in shapes.into_iter().enumerate() {
            if !full && (i + j) % 2 == 1 {
                continue;
            }
            let walk = if shape[2] == 1 {
                Walk::Columns
            } else {
                Walk::Planar
            };
            add(
                Operation::Forward,
                shape,
                data,
                Gradient::Normal,
                walk,
                false,
            );
            for gradient in [Gradient::Normal, Gradient::Ones, Gradient::Positive] {
                add(Operation::Backward, shape, data, gradient, walk, false);
            }
        }
    }
    cases
}

/// What came of one case.
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// Every tensor compared, or the error that came instead.
    pub result: Result<Vec<Comparison>, String>,
}

impl Outcome {
    /// Whether every tensor is within its bound.
    pub fn passed(&self) -> bool {
        self.result
            .as_ref()
            .is_ok_and(|all| all.iter().all(|c| c.of_bound <= 1.0))
    }

    fn worst(&self) -> Option<&Comparison> {
        self.result
            .as_ref()
            .ok()?
            .iter()
            .max_by(|a, b| a.of_bound.total_cmp(&b.of_bound))
    }
}

/// Runs cases, telling `progress` after each.
pub fn run_cases(gpu: &Gpu, cases: Vec<Case>, mut progress: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(cases.len());
    for (seed, case) in cases.into_iter().enumerate() {
        let result = compare(gpu, &case, seed as u64).map_err(|error| error.to_string());
        let outcome = Outcome { case, result };
        progress(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}

/// Runs `check`.
///
/// # Errors
/// One line where there is no adapter, or where a case is beyond its bound.
pub fn run(args: &CheckArgs) -> Result<()> {
    let gpu = Gpu::find(args.device.backends(), args.device.adapter.as_deref())?;
    let info = gpu.adapter.get_info();
    let exact = gpu.keeps_remainders()?;
    let choices = args.device.choices();
    let mut cases = cases(args.full, &choices);
    if args.full && info.device_type == wgpu::DeviceType::Cpu {
        // A GPU's plans run here too: what they compute does not depend on the adapter.
        cases.extend(self::cases(
            true,
            &choices.device_type(wgpu::DeviceType::DiscreteGpu),
        ));
    }
    let bar = ProgressBar::with_draw_target(
        Some(cases.len() as u64),
        if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        },
    );
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    let outcomes = run_cases(&gpu, cases, |outcome| {
        bar.set_message(outcome.case.operation.name());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let failed = outcomes.iter().filter(|o| !o.passed()).count();
    if args.json {
        let list: Vec<Value> = outcomes.iter().map(as_json).collect();
        let report = json!({
            "adapter": crate::info::adapter(&gpu.adapter),
            "exact_remainders": exact,
            "passed": outcomes.len() - failed,
            "failed": failed,
            "cases": list,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{} ({}, {:?})", info.name, info.backend, info.device_type);
        println!(
            "exact remainders survive the compiler: {}\n",
            if exact { "yes" } else { "NO" }
        );
        println!("{}", table(&outcomes));
        for outcome in outcomes.iter().filter(|o| !o.passed()) {
            println!("\nFAILED {}", outcome.case);
            match &outcome.result {
                Err(error) => println!("    {error}"),
                Ok(all) => all
                    .iter()
                    .filter(|c| c.of_bound > 1.0)
                    .for_each(|c| println!("{}", c.report())),
            }
        }
        println!("\n{} passed, {failed} failed", outcomes.len() - failed);
    }
    ensure!(
        failed == 0,
        "{failed} of {} cases are beyond their bounds on {}",
        outcomes.len(),
        info.name
    );
    ensure!(
        exact,
        "the compiler of {} does not keep exact remainders: sums may lose digits",
        info.name
    );
    Ok(())
}

fn as_json(outcome: &Outcome) -> Value {
    let Case {
        operation,
        problem,
        data,
        gradient,
        choices,
        ..
    } = &outcome.case;
    let comparisons = outcome.result.as_ref().map(|all| {
        all.iter()
            .map(|c| json!({ "tensor": c.tensor, "error": c.error, "of_bound": c.of_bound }))
            .collect::<Vec<_>>()
    });
    json!({
        "op": operation.name(),
        "shape": problem.shape(),
        "dtype": "f32",
        "data": format!("{data:?}"),
        "gradient": format!("{gradient:?}"),
        "residual": problem.residual,
        "activation": format!("{:?}", problem.activation).to_lowercase(),
        "walk": choices.walk.map(|w| w.to_string()),
        "passed": outcome.passed(),
        "tensors": comparisons.as_ref().ok(),
        "error": comparisons.as_ref().err(),
    })
}

/// One line per operation, walk and kind of data: how many cases, and the one nearest to its bound.
fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "operation",
        "walk",
        "data",
        "cases",
        "failed",
        "worst error",
        "of its bound",
        "in",
        "at shape",
    ]);
    let kind = |o: &Outcome| matches!(o.case.data, Data::Normal(0.5, _));
    for operation in Operation::ALL {
        for walk in [Walk::Planar, Walk::Columns] {
            for ordinary in [true, false] {
                let chosen: Vec<_> = outcomes
                    .iter()
                    .filter(|o| {
                        o.case.operation == operation
                            && o.case.choices.walk == Some(walk)
                            && kind(o) == ordinary
                    })
                    .collect();
                let of_bound = |o: &&&Outcome| o.worst().map_or(f64::INFINITY, |c| c.of_bound);
                let Some(worst) = chosen
                    .iter()
                    .max_by(|a, b| of_bound(a).total_cmp(&of_bound(b)))
                else {
                    continue;
                };
                let comparison = worst.worst();
                table.add_row(vec![
                    operation.name().to_owned(),
                    walk.to_string(),
                    if ordinary { "ordinary" } else { "adversarial" }.to_owned(),
                    chosen.len().to_string(),
                    chosen.iter().filter(|o| !o.passed()).count().to_string(),
                    comparison.map_or("-".into(), |c| format!("{:.1e}", c.error)),
                    comparison.map_or("-".into(), |c| format!("{:.0}%", 100.0 * c.of_bound)),
                    comparison.map_or("-", |c| c.tensor).to_owned(),
                    format!("{:?}", worst.case.problem.shape()),
                ]);
            }
        }
    }
    for column in [3, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
