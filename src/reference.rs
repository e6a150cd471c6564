//! Batch normalisation as the textbook has it, in f64 on the CPU: the definition that every GPU result is checked against.
//!
//! Sources: Ioffe and Szegedy, "Batch Normalization" (2015), for the forward pass and its gradient. Arrays have shape
//! `[groups·outer, channels, inner]`, per-channel vectors `[channels]`, statistics `[groups·channels]`, masks
//! `[groups·outer, inner]`. Three cases are defined rather than computed: where σ² + ε is 0 or beyond f32, and where a mask
//! lets nothing count, invstd is 0 and the output is the bias.

use ndarray::{Array1, Array3, ArrayBase, ArrayView1, ArrayView2, ArrayView3, Ix1, Zip};

use crate::problem::Momentum;
use crate::{Activation, Dtype, Error, Problem, Result, RunningVariance};

/// Mean, biased variance and `1/√(variance + ε)` of each channel of each group.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// `[groups·channels]`.
    pub mean: Array1<f64>,
    /// Biased: `Σ(x - mean)² / m`; `[groups·channels]`.
    pub variance: Array1<f64>,
    /// `[groups·channels]`.
    pub invstd: Array1<f64>,
    /// How many values count: m, or fewer under a mask; `[groups·channels]`.
    pub count: Array1<f64>,
}

impl Statistics {
    /// Statistics of the input itself, as training uses them.
    ///
    /// # Errors
    /// What is wrong with the problem or the array's shape.
    pub fn of(problem: &Problem, input: ArrayView3<'_, f64>) -> Result<Self> {
        Self::masked(problem, input, None)
    }

    /// The same over the positions where a mask is 1.
    ///
    /// # Errors
    /// As [`Statistics::of`], and [`Error::MaskValue`].
    pub fn masked(
        problem: &Problem,
        input: ArrayView3<'_, f64>,
        mask: Option<ArrayView2<'_, f32>>,
    ) -> Result<Self> {
        problem.validate()?;
        check_shape(problem, "input", input.shape())?;
        check_mask(problem, mask)?;
        let n = problem.statistics();
        let (mut mean, mut variance, mut count) =
            (Array1::zeros(n), Array1::zeros(n), Array1::zeros(n));
        for s in 0..n {
            let counts = |o: usize, i: usize| mask.is_none_or(|mask| mask[[o, i]] == 1.0);
            let values = || {
                positions(problem, s)
                    .filter(|&(o, i)| counts(o, i))
                    .map(|(o, i)| input[[o, s % problem.channels, i]])
            };
            let m = values().count() as f64;
            if m > 0.0 {
                mean[s] = values().sum::<f64>() / m;
                variance[s] = values().map(|x| (x - mean[s]).powi(2)).sum::<f64>() / m;
            }
            count[s] = m;
        }
        let invstd = Zip::from(&variance).and(&count).map_collect(|v, m| {
            if *m == 0.0 {
                0.0
            } else {
                inverse_std(problem, *v)
            }
        });
        Ok(Statistics {
            mean,
            variance,
            invstd,
            count,
        })
    }

    /// Given statistics, `[channels]` each, as inference uses them.
    ///
    /// # Errors
    /// What is wrong with the problem, and [`Error::Shape`].
    pub fn given(problem: &Problem, mean: Array1<f64>, variance: Array1<f64>) -> Result<Self> {
        problem.validate()?;
        check_length("mean", &mean, problem.channels)?;
        check_length("variance", &variance, problem.channels)?;
        let of_groups = |v: Array1<f64>| {
            (0..problem.statistics())
                .map(|s| v[s % problem.channels])
                .collect::<Array1<f64>>()
        };
        let (mean, variance) = (of_groups(mean), of_groups(variance));
        Ok(Statistics {
            invstd: variance.mapv(|v| inverse_std(problem, v)),
            count: Array1::from_elem(problem.statistics(), problem.count() as f64),
            mean,
            variance,
        })
    }

    /// Whether each field has a number for each statistic.
    fn check(&self, problem: &Problem) -> Result<()> {
        for (tensor, vector) in [
            ("mean", &self.mean),
            ("variance", &self.variance),
            ("invstd", &self.invstd),
            ("count", &self.count),
        ] {
            check_length(tensor, vector, problem.statistics())?;
        }
        Ok(())
    }
}

fn inverse_std(problem: &Problem, variance: f64) -> f64 {
    let v = variance + problem.eps;
    if v == 0.0 || v > f64::from(f32::MAX) {
        0.0
    } else {
        1.0 / v.sqrt()
    }
}

/// The outer and inner indices of the values of statistic `s`, channel `s % channels` of group `s / channels`.
fn positions(problem: &Problem, s: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = s / problem.channels * problem.outer;
    let inner = problem.inner;
    (first..first + problem.outer).flat_map(move |o| (0..inner).map(move |i| (o, i)))
}

/// Running statistics.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// `[channels]`.
    pub mean: Array1<f64>,
    /// `[channels]`.
    pub variance: Array1<f64>,
    /// Batches so far.
    pub batches: u64,
}

impl Running {
    /// Takes in a batch: `running = (1 - w)·running + w·batch`, by the statistics of all groups together.
    ///
    /// # Errors
    /// What is wrong with the problem, and [`Error::Shape`].
    pub fn update(&mut self, problem: &Problem, batch: &Statistics) -> Result<()> {
        problem.validate()?;
        check_length("running_mean", &self.mean, problem.channels)?;
        check_length("running_var", &self.variance, problem.channels)?;
        batch.check(problem)?;
        self.batches += 1;
        let w = match problem.momentum {
            Momentum::NewWeight(w) => w,
            Momentum::Cumulative => 1.0 / self.batches as f64,
        };
        for c in 0..problem.channels {
            let groups = || (c..problem.statistics()).step_by(problem.channels);
            let m: f64 = groups().map(|s| batch.count[s]).sum();
            let (mut mean, mut variance) = (0.0, 0.0);
            if m > 0.0 {
                mean = groups()
                    .map(|s| batch.count[s] * batch.mean[s])
                    .sum::<f64>()
                    / m;
                variance = groups()
                    .map(|s| batch.count[s] * (batch.variance[s] + (batch.mean[s] - mean).powi(2)))
                    .sum::<f64>()
                    / m;
            }
            let correction = match problem.running_variance {
                RunningVariance::Unbiased if m > 1.0 => m / (m - 1.0),
                _ => 1.0,
            };
            self.mean[c] = (1.0 - w) * self.mean[c] + w * mean;
            self.variance[c] = (1.0 - w) * self.variance[c] + w * correction * variance;
        }
        Ok(())
    }
}

/// The logistic function `1/(1 + e^-z)`.
fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// The standard normal distribution function, `(1 + erf(z/√2))/2`.
fn normal_distribution(z: f64) -> f64 {
    0.5 * libm::erfc(-z / std::f64::consts::SQRT_2)
}

/// `act(z)`.
pub fn activate(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::None => z,
        Activation::Relu if z < 0.0 => 0.0,
        Activation::LeakyRelu(slope) if z < 0.0 => slope * z,
        Activation::Relu | Activation::LeakyRelu(_) => z,
        Activation::Silu => z * logistic(z),
        Activation::Gelu => z * normal_distribution(z),
        Activation::Sigmoid => logistic(z),
        Activation::Tanh => z.tanh(),
    }
}

/// `act'(z)`; at 0 it is 0 for ReLU and the slope for leaky ReLU.
pub fn activation_derivative(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::None => 1.0,
        Activation::Relu if z <= 0.0 => 0.0,
        Activation::LeakyRelu(slope) if z <= 0.0 => slope,
        Activation::Relu | Activation::LeakyRelu(_) => 1.0,
        Activation::Silu => logistic(z) * (1.0 + z * logistic(-z)),
        Activation::Gelu => {
            let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
            normal_distribution(z) + z * density
        }
        Activation::Sigmoid => logistic(z) * logistic(-z),
        Activation::Tanh => 1.0 - z.tanh().powi(2),
    }
}

/// The distance between neighbouring values of a type around `v`, within its range.
pub fn unit(dtype: Dtype, v: f64) -> f64 {
    let (significand, least) = match dtype {
        Dtype::F32 => (23, -126),
        Dtype::F16 => (10, -14),
        Dtype::Bf16 => (7, -126),
    };
    let exponent = ((v.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    2f64.powi(exponent.max(least) - significand)
}

/// `v` as a type stores it: to the nearest, ties to even, once. Overflow gives infinity.
///
/// (Converting through f32 rounds twice; so does `half`'s conversion from f64, which drops the lower half first.)
pub fn round_to(dtype: Dtype, v: f64) -> f64 {
    if !v.is_finite() {
        return v;
    }
    let unit = unit(dtype, v);
    let rounded = (v / unit).round_ties_even() * unit;
    let largest = match dtype {
        Dtype::F32 => f64::from(f32::MAX),
        Dtype::F16 => 65504.0,
        Dtype::Bf16 => f64::from(f32::from_bits(0x7f7f_0000)),
    };
    if rounded.abs() > largest {
        f64::INFINITY.copysign(v)
    } else {
        rounded
    }
}

/// What is normalised, by what, and what is added.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[outer, channels, inner]`.
    pub input: ArrayView3<'a, f64>,
    /// `[outer, channels, inner]`.
    pub residual: Option<ArrayView3<'a, f64>>,
    /// γ, `[channels]`; 1 where absent.
    pub weight: Option<ArrayView1<'a, f64>>,
    /// β, `[channels]`; 0 where absent.
    pub bias: Option<ArrayView1<'a, f64>>,
    /// 1 where a value counts for the statistics, 0 where not, `[groups·outer, inner]`; all count where absent.
    pub mask: Option<ArrayView2<'a, f32>>,
}

impl<'a> Inputs<'a> {
    /// An input alone.
    pub fn new(input: ArrayView3<'a, f64>) -> Self {
        Inputs {
            input,
            residual: None,
            weight: None,
            bias: None,
            mask: None,
        }
    }
}

impl Inputs<'_> {
    fn check(&self, problem: &Problem) -> Result<()> {
        problem.validate()?;
        check_shape(problem, "input", self.input.shape())?;
        check_mask(problem, self.mask)?;
        if let Some(residual) = &self.residual {
            check_shape(problem, "residual", residual.shape())?;
        }
        for (tensor, vector) in [("weight", &self.weight), ("bias", &self.bias)] {
            if let Some(vector) = vector {
                check_length(tensor, vector, problem.channels)?;
            }
        }
        Ok(())
    }

    fn weight(&self, channel: usize) -> f64 {
        self.weight.map_or(1.0, |w| w[channel])
    }

    fn bias(&self, channel: usize) -> f64 {
        self.bias.map_or(0.0, |b| b[channel])
    }
}

/// The statistic of an outer index and a channel.
fn statistic(problem: &Problem, o: usize, c: usize) -> usize {
    o / problem.outer * problem.channels + c
}

/// `z = γ·x̂ + β + residual` with `x̂ = (x - mean)·invstd`, before the activation.
fn pre_activation(problem: &Problem, inputs: &Inputs<'_>, statistics: &Statistics) -> Array3<f64> {
    let mut z = inputs.input.to_owned();
    for ((o, c, _), z) in z.indexed_iter_mut() {
        let s = statistic(problem, o, c);
        let normalised = (*z - statistics.mean[s]) * statistics.invstd[s];
        *z = inputs.weight(c) * normalised + inputs.bias(c);
    }
    if let Some(residual) = inputs.residual {
        z += &residual;
    }
    z
}

/// The forward pass, `y = act(γ·x̂ + β + residual)`, by any statistics.
///
/// # Errors
/// What is wrong with the problem or an array's shape.
pub fn forward(
    problem: &Problem,
    inputs: &Inputs<'_>,
    statistics: &Statistics,
) -> Result<Array3<f64>> {
    inputs.check(problem)?;
    statistics.check(problem)?;
    Ok(pre_activation(problem, inputs, statistics).mapv(|z| activate(problem.activation, z)))
}

/// The gradients of a backward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// dx, `[outer, channels, inner]`.
    pub input: Array3<f64>,
    /// dz, the residual's gradient, `[outer, channels, inner]`.
    pub residual: Array3<f64>,
    /// dγ, `[channels]`.
    pub weight: Array1<f64>,
    /// dβ, `[channels]`.
    pub bias: Array1<f64>,
}

/// The backward pass. With `dz = dy·act'(z)`: `dβ = Σdz`, `dγ = Σdz·x̂`, and
/// `dx = γ·invstd·(dz - w·(dβ/m + x̂·dγ/m))`, or `dx = γ·invstd·dz` where the statistics are frozen. The sums go over all
/// values of a channel of a group; m is how many of them count, and w is the mask, 1 where there is none.
///
/// # Errors
/// What is wrong with the problem or an array's shape.
pub fn backward(
    problem: &Problem,
    inputs: &Inputs<'_>,
    statistics: &Statistics,
    grad_output: ArrayView3<'_, f64>,
    frozen: bool,
) -> Result<Gradients> {
    inputs.check(problem)?;
    statistics.check(problem)?;
    check_shape(problem, "grad_output", grad_output.shape())?;
    let mut dz = pre_activation(problem, inputs, statistics);
    Zip::from(&mut dz)
        .and(&grad_output)
        .for_each(|z, dy| *z = dy * activation_derivative(problem.activation, *z));
    let mut dx = dz.clone();
    let mut weight = Array1::zeros(problem.channels);
    let mut bias = Array1::zeros(problem.channels);
    for s in 0..problem.statistics() {
        let c = s % problem.channels;
        let (mean, invstd, m) = (
            statistics.mean[s],
            statistics.invstd[s],
            statistics.count[s],
        );
        let normalised = |o: usize, i: usize| (inputs.input[[o, c, i]] - mean) * invstd;
        let of_group = || positions(problem, s);
        let sum: f64 = of_group().map(|(o, i)| dz[[o, c, i]]).sum();
        let products: f64 = of_group()
            .map(|(o, i)| dz[[o, c, i]] * normalised(o, i))
            .sum();
        bias[c] += sum;
        weight[c] += products;
        for (o, i) in of_group() {
            let counts = inputs.mask.is_none_or(|mask| mask[[o, i]] == 1.0);
            let mut centred = dz[[o, c, i]];
            if !frozen && counts {
                centred -= sum / m + normalised(o, i) * products / m;
            }
            dx[[o, c, i]] = inputs.weight(c) * invstd * centred;
        }
    }
    Ok(Gradients {
        input: dx,
        residual: dz,
        weight,
        bias,
    })
}

fn check_shape(problem: &Problem, tensor: &'static str, given: &[usize]) -> Result<()> {
    if given == problem.shape() {
        return Ok(());
    }
    Err(Error::Shape {
        tensor,
        given: given.to_vec(),
        expected: problem.shape().to_vec(),
    })
}

fn check_length<S: ndarray::Data<Elem = f64>>(
    tensor: &'static str,
    vector: &ArrayBase<S, Ix1>,
    expected: usize,
) -> Result<()> {
    if vector.len() == expected {
        return Ok(());
    }
    Err(Error::Shape {
        tensor,
        given: vec![vector.len()],
        expected: vec![expected],
    })
}

fn check_mask(problem: &Problem, mask: Option<ArrayView2<'_, f32>>) -> Result<()> {
    let Some(mask) = mask else {
        return Ok(());
    };
    if mask.shape() != problem.mask_shape() {
        return Err(Error::Shape {
            tensor: "mask",
            given: mask.shape().to_vec(),
            expected: problem.mask_shape().to_vec(),
        });
    }
    match mask
        .iter()
        .enumerate()
        .find(|(_, m)| **m != 0.0 && **m != 1.0)
    {
        None => Ok(()),
        Some((index, &given)) => Err(Error::MaskValue { index, given }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, arr1, arr2, arr3};

    fn inputs<'a>(
        input: &'a Array3<f64>,
        weight: &'a Array1<f64>,
        bias: &'a Array1<f64>,
    ) -> Inputs<'a> {
        Inputs {
            weight: Some(weight.view()),
            bias: Some(bias.view()),
            ..Inputs::new(input.view())
        }
    }

    #[test]
    fn rounding_is_that_of_the_type() {
        for code in 0..=u16::MAX {
            for (dtype, v) in [
                (Dtype::F16, half::f16::from_bits(code).to_f64()),
                (Dtype::Bf16, half::bf16::from_bits(code).to_f64()),
            ] {
                let got = round_to(dtype, v);
                assert!(got == v || v.is_nan() && got.is_nan(), "{dtype} {v:e}");
                // The middle between neighbours goes to the even one, a little more or less to the nearer.
                let (half, odd) = (unit(dtype, v) / 2.0, code & 1 == 1);
                let largest = round_to(dtype, v + 2.0 * half).is_infinite();
                if v.is_finite() && v > 0.0 && !largest {
                    let up = v + 2.0 * half;
                    assert_eq!(round_to(dtype, v + half), if odd { up } else { v });
                    assert_eq!(round_to(dtype, (v + half) * (1.0 + 1e-15)), up);
                    assert_eq!(round_to(dtype, (v + half) * (1.0 - 1e-15)), v);
                }
            }
        }
        assert_eq!(round_to(Dtype::F16, 65519.9), 65504.0);
        assert_eq!(round_to(Dtype::F16, -65520.0), f64::NEG_INFINITY);
        for v in [1.0 + 1e-8, 1e-40, 3.4e38, 3.5e38, -0.1] {
            assert_eq!(round_to(Dtype::F32, v), f64::from(v as f32));
        }
    }

    /// Two channels by hand: (1, 3, 5, 7) has mean 4 and variance 5, (2, 2, 2, 2) has mean 2 and variance 0.
    #[test]
    fn forward_by_hand() {
        let problem = Problem::new(2, 2, 2).eps(4.0);
        let x = arr3(&[[[1.0, 3.0], [2.0, 2.0]], [[5.0, 7.0], [2.0, 2.0]]]);
        let (weight, bias) = (arr1(&[3.0, 2.0]), arr1(&[1.0, -1.0]));
        let statistics = Statistics::of(&problem, x.view()).unwrap();
        assert_eq!(statistics.mean, arr1(&[4.0, 2.0]));
        assert_eq!(statistics.variance, arr1(&[5.0, 0.0]));
        assert_eq!(statistics.invstd, arr1(&[1.0 / 3.0, 0.5])); // 1/√(5 + 4), 1/√(0 + 4)
        let y = forward(&problem, &inputs(&x, &weight, &bias), &statistics).unwrap();
        assert_eq!(
            y,
            arr3(&[[[-2.0, 0.0], [-1.0, -1.0]], [[2.0, 4.0], [-1.0, -1.0]]])
        );
        let relu = problem.activation(Activation::Relu);
        let y = forward(&relu, &inputs(&x, &weight, &bias), &statistics).unwrap();
        assert_eq!(
            y,
            arr3(&[[[0.0, 0.0], [0.0, 0.0]], [[2.0, 4.0], [0.0, 0.0]]])
        );
    }

    #[test]
    fn running_update_by_hand() {
        let batch = |problem: &Problem| {
            Statistics::of(problem, arr3(&[[[1.0, 3.0, 5.0, 7.0]]]).view()).unwrap()
        };
        let start = Running {
            mean: arr1(&[10.0]),
            variance: arr1(&[1.0]),
            batches: 3,
        };
        let after = |problem: Problem| {
            let mut running = start.clone();
            running.update(&problem, &batch(&problem)).unwrap();
            (running.mean[0], running.variance[0], running.batches)
        };
        let problem = Problem::new(1, 1, 4);
        let close = |(a, b, n): (f64, f64, u64), (c, d): (f64, f64)| {
            assert!(
                (a - c).abs() < 1e-12 && (b - d).abs() < 1e-12 && n == 4,
                "{a} {b} {n}, wanted {c} {d} 4"
            );
        };
        // Unbiased variance 20/3, biased 5.
        close(
            after(problem.clone().momentum(Momentum::new_weight(0.25))),
            (8.5, 0.75 + 0.25 * 20.0 / 3.0),
        );
        close(
            after(problem.clone().preset(crate::Preset::Keras)),
            (9.94, 0.99 + 0.05),
        );
        close(
            after(problem.momentum(Momentum::Cumulative)),
            (8.5, 0.75 + 0.25 * 20.0 / 3.0),
        );
    }

    /// Every gradient against central differences of L = Σ g·y: each activation, batch and frozen statistics, several
    /// groups, a mask.
    #[test]
    fn gradients_by_finite_differences() {
        let value = |i: usize, salt: f64| {
            ((i as f64 * 12.9898 + salt).sin() * 43758.5453).fract() * 2.0 - 1.0
        };
        let array = |salt: f64| {
            Array3::from_shape_fn((4, 2, 3), |(a, b, c)| value(a * 6 + b * 3 + c, salt))
        };
        let mask = Array2::from_shape_fn((4, 3), |(o, i)| f32::from(u8::from((o + i) % 3 != 0)));
        let hidden = Array2::from_shape_fn((4, 3), |(o, i)| {
            f32::from(u8::from(o >= 2 && (o + i) % 3 != 0))
        });
        let activations = [
            Activation::None,
            Activation::Relu,
            Activation::LeakyRelu(0.2),
            Activation::Silu,
            Activation::Gelu,
            Activation::Sigmoid,
            Activation::Tanh,
        ];
        let forms = [
            (1, None, false),
            (1, None, true),
            (2, None, false),
            (1, Some(&mask), false),
            (2, Some(&mask), false),
            (2, Some(&hidden), false), // nothing counts in the first group
        ];
        for (activation, (groups, mask, frozen)) in activations
            .into_iter()
            .flat_map(|a| forms.into_iter().map(move |f| (a, f)))
        {
            let problem = Problem::new(4 / groups, 2, 3)
                .groups(groups)
                .with_residual()
                .activation(activation);
            let (x, r, g) = (array(1.0), array(2.0), array(3.0));
            let (weight, bias) = (arr1(&[1.5, -0.7]), arr1(&[0.2, 0.1]));
            let fixed = Statistics::given(&problem, arr1(&[0.1, -0.2]), arr1(&[0.5, 0.9])).unwrap();
            let mask = mask.map(|m| m.view());
            let statistics = |x: &Array3<f64>| match frozen {
                true => fixed.clone(),
                false => Statistics::masked(&problem, x.view(), mask).unwrap(),
            };
            let loss = |x: &Array3<f64>, r: &Array3<f64>, w: &Array1<f64>, b: &Array1<f64>| {
                let inputs = Inputs {
                    residual: Some(r.view()),
                    ..inputs(x, w, b)
                };
                (forward(&problem, &inputs, &statistics(x)).unwrap() * &g).sum()
            };
            let all = Inputs {
                residual: Some(r.view()),
                mask: mask.filter(|_| !frozen),
                ..inputs(&x, &weight, &bias)
            };
            let grads = backward(&problem, &all, &statistics(&x), g.view(), frozen).unwrap();
            let h = 1e-5;
            let close = |numeric: f64, exact: f64, what: &str| {
                assert!(
                    (numeric - exact).abs() < 1e-7,
                    "{what}, {activation}, {groups} groups: {numeric} by differences, {exact} by formula"
                );
            };
            for (i, exact) in grads.input.indexed_iter() {
                let moved = |d: f64| {
                    let mut x = x.clone();
                    x[i] += d;
                    loss(&x, &r, &weight, &bias)
                };
                close((moved(h) - moved(-h)) / (2.0 * h), *exact, "dx");
                let moved = |d: f64| {
                    let mut r = r.clone();
                    r[i] += d;
                    loss(&x, &r, &weight, &bias)
                };
                let numeric = (moved(h) - moved(-h)) / (2.0 * h);
                close(numeric, grads.residual[i], "dresidual");
            }
            for c in 0..2 {
                let moved = |d: f64| {
                    let mut w = weight.clone();
                    w[c] += d;
                    loss(&x, &r, &w, &bias)
                };
                let numeric = (moved(h) - moved(-h)) / (2.0 * h);
                close(numeric, grads.weight[c], "dweight");
                let moved = |d: f64| {
                    let mut b = bias.clone();
                    b[c] += d;
                    loss(&x, &r, &weight, &b)
                };
                let numeric = (moved(h) - moved(-h)) / (2.0 * h);
                close(numeric, grads.bias[c], "dbias");
            }
        }
    }

    /// Statistics of sub-batches, merged, are those of the whole batch; a mask leaves values out.
    #[test]
    fn groups_merge_and_masks_leave_out() {
        let x = arr3(&[[[1.0, 3.0]], [[5.0, 7.0]]]);
        let whole = Problem::new(2, 1, 2);
        let mut by_groups = Running {
            mean: arr1(&[0.0]),
            variance: arr1(&[1.0]),
            batches: 0,
        };
        let mut by_whole = by_groups.clone();
        let groups = Problem::new(1, 1, 2).groups(2);
        let statistics = Statistics::of(&groups, x.view()).unwrap();
        assert_eq!(statistics.mean, arr1(&[2.0, 6.0]));
        assert_eq!(statistics.variance, arr1(&[1.0, 1.0]));
        by_groups.update(&groups, &statistics).unwrap();
        by_whole
            .update(&whole, &Statistics::of(&whole, x.view()).unwrap())
            .unwrap();
        assert_eq!(by_groups, by_whole);
        let mask = arr2(&[[1.0, 1.0], [1.0, 0.0]]);
        let masked = Statistics::masked(&whole, x.view(), Some(mask.view())).unwrap();
        assert_eq!((masked.mean[0], masked.count[0]), (3.0, 3.0)); // of 1, 3, 5
        assert_eq!(masked.variance[0], 8.0 / 3.0);
        let wrong = arr2(&[[1.0, 1.0], [0.5, 0.0]]);
        let refused = Statistics::masked(&whole, x.view(), Some(wrong.view()));
        let given = 0.5;
        assert_eq!(refused, Err(Error::MaskValue { index: 2, given }));
    }

    #[test]
    fn degenerate_variances_give_the_bias() {
        let problem = Problem::new(1, 1, 2).eps(0.0);
        for x in [arr3(&[[[7.0, 7.0]]]), arr3(&[[[1e30, -1e30]]])] {
            let statistics = Statistics::of(&problem, x.view()).unwrap();
            let bias = arr1(&[0.5]);
            let inputs = Inputs {
                bias: Some(bias.view()),
                ..Inputs::new(x.view())
            };
            assert_eq!(
                forward(&problem, &inputs, &statistics).unwrap(),
                arr3(&[[[0.5, 0.5]]])
            );
        }
    }
}
