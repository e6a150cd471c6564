//! Batch normalisation as the textbook has it, in f64 on the CPU: the definition that every GPU result is checked against.
//!
//! Sources: Ioffe and Szegedy, "Batch Normalization" (2015), for the forward pass and its gradient. Arrays have shape
//! `[outer, channels, inner]`, per-channel vectors `[channels]`. Two cases are defined rather than computed: where
//! σ² + ε is 0 or beyond f32, invstd is 0, and the output is the bias.

use ndarray::{Array1, Array3, ArrayView1, ArrayView3, Axis, Zip};

use crate::problem::Momentum;
use crate::{Activation, Error, Problem, Result, RunningVariance};

/// Mean, biased variance and `1/√(variance + ε)` of each channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// `[channels]`.
    pub mean: Array1<f64>,
    /// Biased: `Σ(x - mean)² / m`; `[channels]`.
    pub variance: Array1<f64>,
    /// `[channels]`.
    pub invstd: Array1<f64>,
}

impl Statistics {
    /// Statistics of the input itself, as training uses them.
    ///
    /// # Errors
    /// What is wrong with the problem or the array's shape.
    pub fn of(problem: &Problem, input: ArrayView3<'_, f64>) -> Result<Self> {
        problem.validate()?;
        check_shape(problem, "input", input.shape())?;
        let m = problem.count() as f64;
        let mean: Array1<f64> = input.axis_iter(Axis(1)).map(|x| x.sum() / m).collect();
        let variance = Zip::from(input.axis_iter(Axis(1)))
            .and(&mean)
            .map_collect(|x, mean| x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / m);
        Ok(Self::given(problem, mean, variance))
    }

    /// Given statistics, as inference uses them.
    pub fn given(problem: &Problem, mean: Array1<f64>, variance: Array1<f64>) -> Self {
        let invstd = variance.mapv(|variance| {
            let v = variance + problem.eps;
            if v == 0.0 || v > f64::from(f32::MAX) {
                0.0
            } else {
                1.0 / v.sqrt()
            }
        });
        Statistics {
            mean,
            variance,
            invstd,
        }
    }
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
    /// Takes in a batch: `running = (1 - w)·running + w·batch`.
    pub fn update(&mut self, problem: &Problem, batch: &Statistics) {
        self.batches += 1;
        let w = match problem.momentum {
            Momentum::NewWeight(w) => w,
            Momentum::Cumulative => 1.0 / self.batches as f64,
        };
        let m = problem.count() as f64;
        let correction = match problem.running_variance {
            RunningVariance::Unbiased if m > 1.0 => m / (m - 1.0),
            _ => 1.0,
        };
        self.mean = (1.0 - w) * &self.mean + w * &batch.mean;
        self.variance = (1.0 - w) * &self.variance + w * correction * &batch.variance;
    }
}

/// `act(z)`.
pub fn activate(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::None => z,
        Activation::Relu => {
            if z < 0.0 {
                0.0
            } else {
                z
            }
        }
    }
}

/// `act'(z)`.
pub fn activation_derivative(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::None => 1.0,
        Activation::Relu => {
            if z > 0.0 {
                1.0
            } else {
                0.0
            }
        }
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
}

impl Inputs<'_> {
    fn check(&self, problem: &Problem) -> Result<()> {
        problem.validate()?;
        check_shape(problem, "input", self.input.shape())?;
        if let Some(residual) = &self.residual {
            check_shape(problem, "residual", residual.shape())?;
        }
        for (tensor, vector) in [("weight", &self.weight), ("bias", &self.bias)] {
            if let Some(vector) = vector
                && vector.len() != problem.channels
            {
                return Err(Error::Shape {
                    tensor,
                    given: vec![vector.len()],
                    expected: vec![problem.channels],
                });
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

/// `z = γ·x̂ + β + residual` with `x̂ = (x - mean)·invstd`, before the activation.
fn pre_activation(inputs: &Inputs<'_>, statistics: &Statistics) -> Array3<f64> {
    let mut z = inputs.input.to_owned();
    for (c, mut z) in z.axis_iter_mut(Axis(1)).enumerate() {
        let (mean, invstd) = (statistics.mean[c], statistics.invstd[c]);
        z.mapv_inplace(|x| inputs.weight(c) * ((x - mean) * invstd) + inputs.bias(c));
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
    Ok(pre_activation(inputs, statistics).mapv(|z| activate(problem.activation, z)))
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
/// `dx = γ·invstd·(dz - dβ/m - x̂·dγ/m)`, or `dx = γ·invstd·dz` where the statistics are frozen.
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
    check_shape(problem, "grad_output", grad_output.shape())?;
    let m = problem.count() as f64;
    let mut dz = pre_activation(inputs, statistics);
    Zip::from(&mut dz)
        .and(&grad_output)
        .for_each(|z, dy| *z = dy * activation_derivative(problem.activation, *z));
    let mut dx = dz.clone();
    let mut weight = Array1::zeros(problem.channels);
    let mut bias = Array1::zeros(problem.channels);
    for c in 0..problem.channels {
        let (mean, invstd) = (statistics.mean[c], statistics.invstd[c]);
        let normalised = inputs
            .input
            .index_axis(Axis(1), c)
            .mapv(|x| (x - mean) * invstd);
        let dz = dz.index_axis(Axis(1), c);
        bias[c] = dz.sum();
        weight[c] = (&dz * &normalised).sum();
        Zip::from(dx.index_axis_mut(Axis(1), c))
            .and(&dz)
            .and(&normalised)
            .for_each(|dx, dz, normalised| {
                let centred = if frozen {
                    *dz
                } else {
                    dz - bias[c] / m - normalised * weight[c] / m
                };
                *dx = inputs.weight(c) * invstd * centred;
            });
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

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{arr1, arr3};

    fn inputs<'a>(
        input: &'a Array3<f64>,
        weight: &'a Array1<f64>,
        bias: &'a Array1<f64>,
    ) -> Inputs<'a> {
        Inputs {
            input: input.view(),
            residual: None,
            weight: Some(weight.view()),
            bias: Some(bias.view()),
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
            running.update(&problem, &batch(&problem));
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

    /// Every gradient against central differences of L = Σ g·y.
    #[test]
    fn gradients_by_finite_differences() {
        let value = |i: usize, salt: f64| {
            ((i as f64 * 12.9898 + salt).sin() * 43758.5453).fract() * 2.0 - 1.0
        };
        let array = |salt: f64| {
            Array3::from_shape_fn((3, 2, 3), |(a, b, c)| value(a * 6 + b * 3 + c, salt))
        };
        for (activation, frozen) in [
            (Activation::None, false),
            (Activation::Relu, false),
            (Activation::None, true),
            (Activation::Relu, true),
        ] {
            let problem = Problem::new(3, 2, 3).with_residual().activation(activation);
            let (x, r, g) = (array(1.0), array(2.0), array(3.0));
            let (weight, bias) = (arr1(&[1.5, -0.7]), arr1(&[0.2, 0.1]));
            let fixed = Statistics::given(&problem, arr1(&[0.1, -0.2]), arr1(&[0.5, 0.9]));
            let loss = |x: &Array3<f64>, r: &Array3<f64>, w: &Array1<f64>, b: &Array1<f64>| {
                let s = if frozen {
                    fixed.clone()
                } else {
                    Statistics::of(&problem, x.view()).unwrap()
                };
                let inputs = Inputs {
                    residual: Some(r.view()),
                    ..inputs(x, w, b)
                };
                (forward(&problem, &inputs, &s).unwrap() * &g).sum()
            };
            let s = if frozen {
                fixed.clone()
            } else {
                Statistics::of(&problem, x.view()).unwrap()
            };
            let all = Inputs {
                residual: Some(r.view()),
                ..inputs(&x, &weight, &bias)
            };
            let grads = backward(&problem, &all, &s, g.view(), frozen).unwrap();
            let h = 1e-5;
            let close = |numeric: f64, exact: f64, what: &str| {
                assert!(
                    (numeric - exact).abs() < 1e-7,
                    "{what}: {numeric} by differences, {exact} by formula"
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
                close(
                    (moved(h) - moved(-h)) / (2.0 * h),
                    grads.residual[i],
                    "dresidual",
                );
            }
            for c in 0..2 {
                let moved = |d: f64| {
                    let mut w = weight.clone();
                    w[c] += d;
                    loss(&x, &r, &w, &bias)
                };
                close(
                    (moved(h) - moved(-h)) / (2.0 * h),
                    grads.weight[c],
                    "dweight",
                );
                let moved = |d: f64| {
                    let mut b = bias.clone();
                    b[c] += d;
                    loss(&x, &r, &weight, &b)
                };
                close((moved(h) - moved(-h)) / (2.0 * h), grads.bias[c], "dbias");
            }
        }
    }

    #[test]
    fn degenerate_variances_give_the_bias() {
        let problem = Problem::new(1, 1, 2).eps(0.0);
        for x in [arr3(&[[[7.0, 7.0]]]), arr3(&[[[1e30, -1e30]]])] {
            let statistics = Statistics::of(&problem, x.view()).unwrap();
            let bias = arr1(&[0.5]);
            let inputs = Inputs {
                input: x.view(),
                residual: None,
                weight: None,
                bias: Some(bias.view()),
            };
            assert_eq!(
                forward(&problem, &inputs, &statistics).unwrap(),
                arr3(&[[[0.5, 0.5]]])
            );
        }
    }
}
