//! One case: what is computed on what, and its comparison with the reference.

use anyhow::Result;
use ndarray::{Array1, Array2, Array3, ArrayView1, Axis};
use wgpu_batchnorm::reference::{self, Gradients, Inputs, Statistics};
use wgpu_batchnorm::{
    Activation, Arrays, Choices, Dtype, ForwardResult, Gpu, GradientArrays, Plan, Problem,
    RunningArrays, Through,
};

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

    /// As reports name it.
    pub fn name(self) -> &'static str {
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

impl Data {
    /// Whether simpler methods would do.
    pub fn is_ordinary(self) -> bool {
        matches!(self, Data::Normal(mean, std) if mean.abs() <= 10.0 * std && (1e-3..1e3).contains(&std))
    }

    /// About the largest absolute value.
    pub fn largest(self) -> f32 {
        match self {
            Data::Normal(mean, std) => mean.abs() + 6.0 * std,
            Data::Constant(v) | Data::Outlier(v, _) | Data::Bimodal(v) | Data::Ramp(v) => {
                v.abs() + 6.0
            }
        }
    }
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
    /// The result replaces the input, or the output's gradient.
    pub in_place: bool,
    /// What the planner is told.
    pub choices: Choices,
}

impl Case {
    /// Whether the input's gradient is 0 in exact arithmetic, because batch norm takes no notice of a constant that is
    /// added to its gradient: what there is is rounding, in the reference too.
    fn vanishes(&self) -> bool {
        self.operation == Operation::Backward
            && self.gradient == Gradient::Ones
            && self.problem.activation == Activation::None
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [outer, channels, inner] = self.problem.shape();
        write!(
            f,
            "{} [{outer}, {channels}, {inner}] {} {:?}",
            self.operation.name(),
            self.problem.dtype,
            self.data
        )?;
        if matches!(self.operation, Operation::Backward | Operation::Frozen) {
            write!(f, " gradient {:?}", self.gradient)?;
        }
        if self.problem.residual {
            write!(f, " + residual")?;
        }
        if self.problem.activation != Activation::None {
            write!(f, " + {}", self.problem.activation)?;
        }
        if self.problem.groups > 1 {
            write!(f, ", {} groups", self.problem.groups)?;
        }
        if self.problem.mask {
            write!(f, ", mask")?;
        }
        if self.in_place {
            write!(f, ", in place")?;
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
    /// Where more values than allowed are not the correctly rounded ones: how many, of how many.
    pub misrounded: Option<(usize, usize)>,
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

/// `v` as a type stores it.
pub fn stored(dtype: Dtype, v: f32) -> f32 {
    match dtype {
        Dtype::F32 => v,
        Dtype::F16 => half::f16::from_f32(v).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(v).to_f32(),
    }
}

/// The host arrays of a case.
struct Fixture {
    x: Array3<f32>,
    residual: Option<Array3<f32>>,
    grad: Array3<f32>,
    weight: Option<Array1<f32>>,
    bias: Option<Array1<f32>>,
    mask: Option<Array2<f32>>,
    running: RunningArrays,
}

impl Fixture {
    fn new(case: &Case, seed: u64) -> Self {
        let problem = &case.problem;
        let mut random = Random::new(seed);
        let mut x = input(case.data, problem, &mut random);
        // A scale per channel, so that a mix-up of channels shows.
        let scale = |c: usize| match case.data.is_ordinary() {
            true => [1.0, 0.25, 4.0, 0.5][c % 4],
            false => 1.0,
        };
        x.indexed_iter_mut()
            .for_each(|((_, c, _), v)| *v *= scale(c));
        let shape = x.raw_dim();
        let residual = problem
            .residual
            .then(|| Array3::from_shape_simple_fn(shape, || random.normal()));
        let grad = Array3::from_shape_simple_fn(shape, || match case.gradient {
            Gradient::Normal => random.normal(),
            Gradient::Positive => random.normal().abs(),
            Gradient::Ones => 1.0,
        });
        let channels = problem.channels;
        let weight = case.affine.then(|| {
            Array1::from_shape_fn(channels, |c| {
                let size = 0.5 + random.uniform();
                if c % 3 == 2 { -size } else { size }
            })
        });
        let bias = case
            .affine
            .then(|| Array1::from_shape_simple_fn(channels, || random.normal()));
        let running = RunningArrays {
            mean: Array1::from_shape_fn(channels, |c| scale(c) * random.normal()),
            variance: Array1::from_shape_fn(channels, |c| {
                scale(c).powi(2) * (0.5 + random.uniform())
            }),
            batches: 3,
        };
        // Some positions, and the first quarter as a whole, as padding goes.
        let [outer, inner] = problem.mask_shape();
        let mask = problem.mask.then(|| {
            Array2::from_shape_fn((outer, inner), |(o, i)| {
                let padding = (o * inner + i) * 4 < outer * inner;
                f32::from(u8::from(!padding && random.uniform() < 0.7))
            })
        });
        let as_stored = |a: Array3<f32>| a.mapv_into(|v| stored(problem.dtype, v));
        Fixture {
            x: as_stored(x),
            residual: residual.map(as_stored),
            grad: as_stored(grad),
            weight,
            bias,
            mask,
            running,
        }
    }

    fn arrays(&self, in_place: bool) -> Arrays<'_> {
        Arrays {
            residual: self.residual.as_ref().map(|a| a.view()),
            weight: self.weight.as_ref().map(|a| a.view()),
            bias: self.bias.as_ref().map(|a| a.view()),
            mask: self.mask.as_ref().map(|a| a.view()),
            in_place,
            ..Arrays::new(self.x.view())
        }
    }
}

/// The bounds of a case: see the head of this module.
struct Bounds {
    dtype: Dtype,
    forward: f64,
    backward: f64,
    /// Of Σ|dz·x̂|, for the weight's gradient.
    products: f64,
    /// Whether the activation is more than a comparison.
    smooth: bool,
    /// Whether the share of correctly rounded values is counted: on ordinary data, and not where a handful of values a
    /// channel cancel to almost nothing.
    rounding: bool,
}

impl Bounds {
    fn of(case: &Case) -> Self {
        let smooth = matches!(
            case.problem.activation,
            Activation::Silu | Activation::Gelu | Activation::Sigmoid | Activation::Tanh
        );
        let times = if smooth { 3.0 } else { 1.0 };
        Bounds {
            dtype: case.problem.dtype,
            forward: 1e-6 * times,
            backward: 2e-6 * times,
            products: 1e-7 * times,
            smooth,
            rounding: case.data.is_ordinary() && case.problem.count() >= 16 && !case.vanishes(),
        }
    }

    /// A tensor stored as the case's type.
    fn tensor(
        &self,
        name: &'static str,
        got: &Array3<f32>,
        want: &Array3<f64>,
        bound: f64,
    ) -> Comparison {
        match self.dtype {
            Dtype::F32 => against(name, flat(got), flat(want), bound),
            dtype => rounded(name, dtype, got, want, bound, self.rounding),
        }
    }
}

/// As [`compare_async`], and blocks.
///
/// # Errors
/// As there.
#[cfg(not(target_family = "wasm"))]
pub fn compare(gpu: &Gpu, case: &Case, seed: u64) -> Result<Vec<Comparison>> {
    crate::device::wait(gpu, compare_async(gpu, case, seed))
}

/// Runs a case and compares every tensor that it gives.
///
/// # Errors
/// Those of the library.
pub async fn compare_async(gpu: &Gpu, case: &Case, seed: u64) -> Result<Vec<Comparison>> {
    let Case {
        problem, operation, ..
    } = case;
    let mut fixture = Fixture::new(case, seed);
    let bounds = Bounds::of(case);
    let wide = |a: &Array3<f32>| a.mapv(f64::from);
    let wide_vector = |a: &Array1<f32>| a.mapv(f64::from);
    let (x64, r64) = (wide(&fixture.x), fixture.residual.as_ref().map(wide));
    let (w64, b64) = (
        fixture.weight.as_ref().map(wide_vector),
        fixture.bias.as_ref().map(wide_vector),
    );
    let mask = fixture.mask.clone();
    let inputs = Inputs {
        residual: r64.as_ref().map(|a| a.view()),
        weight: w64.as_ref().map(|a| a.view()),
        bias: b64.as_ref().map(|a| a.view()),
        mask: mask.as_ref().map(|a| a.view()),
        ..Inputs::new(x64.view())
    };
    let plan = Plan::with(problem, gpu.kernels.caps(), &case.choices)?;
    let given = Statistics::given(
        problem,
        wide_vector(&fixture.running.mean),
        wide_vector(&fixture.running.variance),
    )?;
    let batch = || Statistics::masked(problem, x64.view(), inputs.mask);
    Ok(match operation {
        Operation::Forward => {
            let batch = batch()?;
            let arrays = fixture.arrays(case.in_place);
            let got = gpu
                .forward_training_async(&plan, &arrays, Some(&fixture.running))
                .await?;
            let want = reference::forward(problem, &inputs, &batch)?;
            let mut out = vec![bounds.tensor("output", &got.output, &want, bounds.forward)];
            out.extend(statistics_of(problem, &got, &batch, &fixture.running)?);
            out
        }
        Operation::Inference => {
            let arrays = fixture.arrays(case.in_place);
            let got = gpu
                .inference_async(&plan, &arrays, &fixture.running)
                .await?;
            let want = reference::forward(problem, &inputs, &given)?;
            vec![bounds.tensor("output", &got, &want, bounds.forward)]
        }
        Operation::Backward | Operation::Frozen => {
            let frozen = *operation == Operation::Frozen;
            let statistics = if frozen { given } else { batch()? };
            silence_ties(problem, &inputs, &statistics, &mut fixture.grad)?;
            let arrays = fixture.arrays(case.in_place);
            let got = if frozen {
                let through = Through::Running(&fixture.running);
                gpu.backward_async(&plan, &arrays, fixture.grad.view(), through)
                    .await?
            } else {
                let apart = fixture.arrays(false);
                let forward = gpu.forward_training_async(&plan, &apart, None).await?;
                let through = Through::Saved(&forward.saved);
                gpu.backward_async(&plan, &arrays, fixture.grad.view(), through)
                    .await?
            };
            let grad = wide(&fixture.grad);
            let want = reference::backward(problem, &inputs, &statistics, grad.view(), frozen)?;
            gradients_of(problem, &bounds, &inputs, &statistics, &got, &want)?
        }
    })
}

/// Saved and running statistics, f32 whatever the tensors are.
fn statistics_of(
    problem: &Problem,
    got: &ForwardResult,
    batch: &Statistics,
    running: &RunningArrays,
) -> Result<Vec<Comparison>> {
    // A mean is as good as what is normalised by it: relative to the spread of the channel, however near 0 it is.
    let spread = batch.variance.mapv(|v| v.sqrt().max(1.0));
    let invstd = got.saved.invstd().mapv(f64::from);
    let mut out = vec![
        against(
            "save_mean",
            &got.saved.mean() / &spread,
            &batch.mean / &spread,
            1e-6,
        ),
        against(
            "save_invstd",
            relative(&invstd, &batch.invstd),
            relative(&batch.invstd, &batch.invstd),
            1e-6,
        ),
    ];
    let mut state = reference::Running {
        mean: running.mean.mapv(f64::from),
        variance: running.variance.mapv(f64::from),
        batches: running.batches.into(),
    };
    state.update(problem, batch)?;
    // Of the channel's largest among its groups, which are merged.
    let floors = Array1::from_shape_fn(problem.channels, |c| {
        let of_channel = spread.iter().skip(c).step_by(problem.channels);
        of_channel.fold(0.0, |most: f64, s| most.max(*s))
    });
    if let Some(got) = &got.running {
        let (count, wanted) = (f64::from(got.batches), state.batches as f64);
        out.extend([
            within(
                "running_mean",
                got.mean.mapv(f64::from),
                state.mean,
                1e-6,
                (floors * 1e-6).view(),
            ),
            against(
                "running_var",
                got.variance.mapv(f64::from),
                state.variance,
                1e-6,
            ),
            against(
                "num_batches_tracked",
                Array1::from_elem(1, count),
                Array1::from_elem(1, wanted),
                1e-9,
            ),
        ]);
    }
    Ok(out)
}

fn gradients_of(
    problem: &Problem,
    bounds: &Bounds,
    inputs: &Inputs<'_>,
    statistics: &Statistics,
    got: &GradientArrays,
    want: &Gradients,
) -> Result<Vec<Comparison>> {
    let mut plain = problem.clone().activation(Activation::None);
    plain.residual = false;
    let normalised = reference::forward(&plain, &Inputs::new(inputs.input), statistics)?;
    let sums_of = |terms: &Array3<f64>| -> Array1<f64> {
        let channels = terms.axis_iter(Axis(1));
        channels.map(|t| t.mapv(f64::abs).sum()).collect()
    };
    let products = sums_of(&(&want.residual * &normalised)) * bounds.products;
    // Without an activation and with ReLU the terms are exact in f32, and so is their sum.
    let exact = matches!(problem.activation, Activation::None | Activation::Relu);
    let of_terms = if exact { 0.0 } else { 0.2 * bounds.products };
    let terms = sums_of(&want.residual) * of_terms;
    // A smooth activation's dz is known to some units of f32, which γ·invstd multiplies: up to 1/√ε where a channel hardly
    // varies, and then dz - Σdz/m is far smaller than dz.
    const SMOOTH_GRADIENT: f64 = 5e-7;
    let largest = |a: &Array3<f64>| {
        let finite = a.iter().filter(|v| v.is_finite());
        finite.fold(0.0, |m: f64, v| m.max(v.abs()))
    };
    let mut input_bound = bounds.backward;
    if bounds.smooth {
        let mut scaled = want.residual.clone();
        scaled.indexed_iter_mut().for_each(|((o, c, _), dz)| {
            let s = o / problem.outer * problem.channels + c;
            *dz *= inputs.weight.map_or(1.0, |w| w[c]) * statistics.invstd[s];
        });
        input_bound =
            input_bound.max(SMOOTH_GRADIENT * largest(&scaled) / largest(&want.input).max(1.0));
    }
    let mut out = vec![
        bounds.tensor("grad_input", &got.input, &want.input, input_bound),
        within(
            "grad_weight",
            got.weight.mapv(f64::from),
            want.weight.clone(),
            bounds.backward,
            products.view(),
        ),
        within(
            "grad_bias",
            got.bias.mapv(f64::from),
            want.bias.clone(),
            bounds.backward,
            terms.view(),
        ),
    ];
    if let Some(got) = &got.residual {
        out.push(bounds.tensor("grad_residual", got, &want.residual, bounds.backward));
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
    if !matches!(
        problem.activation,
        Activation::Relu | Activation::LeakyRelu(_)
    ) {
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

/// Compares what is stored in 16 bits with the reference rounded to the same type. A value may be off by one unit of the
/// type, or by `bound` times max|ref| where that is more; with `count`, 99.5 % (f16) or 99.9 % (bf16) must be the
/// correctly rounded value.
fn rounded(
    tensor: &'static str,
    dtype: Dtype,
    got: &Array3<f32>,
    want: &Array3<f64>,
    bound: f64,
    count: bool,
) -> Comparison {
    let share = if dtype == Dtype::Bf16 { 1e-3 } else { 5e-3 };
    // On ordinary data relative to what is there, however small; elsewhere as in f32.
    let least_scale = if count { 1e-3 } else { 1.0 };
    let scale = want
        .iter()
        .filter(|v| v.is_finite())
        .fold(least_scale, |m: f64, v| m.max(v.abs()));
    let mut comparison = Comparison {
        tensor,
        of_bound: 0.0,
        error: 0.0,
        places: Vec::new(),
        misrounded: None,
    };
    let mut wrong = 0usize;
    for (i, (got, &want)) in got.iter().zip(want).enumerate() {
        let right = reference::round_to(dtype, want);
        let got = f64::from(*got);
        if got == right || (got.is_nan() && right.is_nan()) {
            continue;
        }
        // A device may flush what is below f32's normal numbers.
        wrong += usize::from(want.abs() >= f64::from(f32::MIN_POSITIVE));
        let unit = reference::unit(dtype, want);
        let allowed = (1.001 * unit).max(bound * scale);
        let error = (got - right).abs();
        let of_bound = if error.is_nan() {
            f64::INFINITY
        } else if error <= 1.001 * unit {
            0.0 // the other neighbour: counted below
        } else {
            error / allowed
        };
        comparison.of_bound = comparison.of_bound.max(of_bound);
        comparison.error = comparison.error.max(if error.is_nan() {
            f64::INFINITY
        } else {
            error / scale.max(1.0)
        });
        if of_bound > 1.0 && comparison.places.len() < 10 {
            comparison.places.push((i, got, want, allowed));
        }
    }
    if count {
        // Of a few values one is many percent.
        let allowed = (share * got.len() as f64).max(2.0);
        comparison.of_bound = comparison.of_bound.max(wrong as f64 / allowed);
        if wrong as f64 > allowed {
            comparison.misrounded = Some((wrong, got.len()));
        }
    }
    comparison
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
        misrounded: None,
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
        let misrounded = self.misrounded.map(|(wrong, all)| {
            let tensor = self.tensor;
            format!("    {tensor}: {wrong} of {all} values are not the correctly rounded ones")
        });
        let lines = self.places.iter().map(line).chain(misrounded);
        lines.collect::<Vec<_>>().join("\n")
    }
}
