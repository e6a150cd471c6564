//! Times Burn's batch norm on the adapter that Burn chooses, and writes what `wgpu-batchnorm bench --compare` reads.
//!
//! Training forward is `nn::BatchNorm` on an autodiff device, its running statistics included; inference the same layer
//! without autodiff; backward the operation that Burn's autodiff calls for this layer, called by itself: no forward pass
//! and no graph is in its time. Each result is compared with plain loops in f64 before it is timed.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::backend::Dispatch;
use burn::backend::ops::ModuleOps;
use burn::module::{Param, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::module::batch_norm_train;
use burn::tensor::{Device, Tensor, TensorData};
use clap::Parser;
use serde_json::{Value, json};

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;
/// Against f64, of the largest value. Burn promises none; beyond this it computes something else.
const BOUND: f64 = 1e-4;
/// What `bench` takes: tensor sets rotate until they exceed four caches of a large GPU, or this much memory.
const CACHE_BYTES: usize = 64 << 20;
const MOST_BYTES: usize = 4 << 30;

/// The planar f32 shapes of `bench`'s headline set; the second part on a GPU only.
const HEADLINE: [&str; 4] = ["32x64x56x56", "32x256x28x28", "32x512x7x7", "256x1024"];
const BEYOND_CACHE: [&str; 2] = ["256x64x56x56", "256x256x56x56"];

/// Time Burn's batch norm, f32, channels on axis 1.
#[derive(Parser)]
struct Args {
    /// Shapes like 32x64x56x56 or 256x1024; without any, the headline set of `wgpu-batchnorm bench`
    #[arg(long, value_name = "SHAPE,...", value_delimiter = ',')]
    shapes: Vec<String>,
    /// Repetitions before one wait, instead of as many as take about 50 ms
    #[arg(long, value_name = "N")]
    repetitions: Option<usize>,
    /// Rounds, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Where to write the figures, instead of stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy)]
enum Op {
    ForwardTraining,
    Inference,
    Backward,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::ForwardTraining => "forward_training",
            Op::Inference => "inference",
            Op::Backward => "backward",
        }
    }

    /// How often an operation that keeps nothing on chip goes over a tensor: `bench` counts bytes so, too.
    fn passes(self) -> usize {
        match self {
            Op::ForwardTraining => 3,
            Op::Inference => 2,
            Op::Backward => 5,
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (device, setup) = Device::wgpu_options().init_with_setup()?;
    let info = setup.adapter.get_info();
    let kind = format!("{:?}", info.device_type);
    let software = kind == "Cpu";
    let shapes: Vec<String> = if args.shapes.is_empty() {
        let beyond = BEYOND_CACHE.iter().filter(|_| !software);
        HEADLINE
            .iter()
            .chain(beyond)
            .map(|s| s.to_string())
            .collect()
    } else {
        args.shapes.clone()
    };
    let mut results = Vec::new();
    let mut wrong = 0;
    for text in &shapes {
        let shape = text
            .split('x')
            .map(str::parse)
            .collect::<Result<Vec<usize>, _>>()
            .with_context(|| format!("--shapes {text}: give dimensions, like 32x64x56x56"))?;
        for op in [Op::ForwardTraining, Op::Inference, Op::Backward] {
            let measured = match *shape.as_slice() {
                [n, c] => measure(&args, &device, op, [n, c], software),
                [n, c, l] => measure(&args, &device, op, [n, c, l], software),
                [n, c, h, w] => measure(&args, &device, op, [n, c, h, w], software),
                _ => anyhow::bail!("--shapes {text}: give two to four dimensions"),
            };
            match measured {
                Ok(result) => results.push(result),
                // What goes wrong leaves the others.
                Err(error) => {
                    eprintln!("{} {shape:?}: {error}", op.name());
                    wrong += 1;
                }
            }
        }
    }
    let fused = if cfg!(feature = "fusion") {
        ""
    } else {
        " without fusion"
    };
    let report = json!({
        "adapter": {
            "name": format!("Burn 0.22.1{fused} on {}", info.name),
            "backend": info.backend.to_string(),
            "type": kind,
            "driver": info.driver,
            "driver_info": info.driver_info,
        },
        "timer": "wall clock",
        "results": results,
    });
    let text = serde_json::to_string_pretty(&report)? + "\n";
    match &args.json {
        Some(path) => fs::write(path, text).with_context(|| path.display().to_string())?,
        None => print!("{text}"),
    }
    ensure!(wrong == 0, "{wrong} results are missing");
    Ok(())
}

/// Checks and times an operation.
fn measure<const D: usize>(
    args: &Args,
    device: &Device,
    op: Op,
    shape: [usize; D],
    software: bool,
) -> Result<Value> {
    let elements: usize = shape.iter().product();
    let tensors = if matches!(op, Op::Backward) { 3 } else { 2 };
    let set = tensors * 4 * elements;
    let sets = if software {
        1
    } else {
        (4 * CACHE_BYTES)
            .div_ceil(set)
            .min(MOST_BYTES / set)
            .clamp(1, 64)
    };
    let subjects: Vec<_> = (0..sets)
        .map(|i| Subject::new(device, shape, op, i))
        .collect();
    let error = subjects[0].check()?;

    // Outputs of the last sets are kept, so that Burn's memory pool rotates as well.
    let mut kept = VecDeque::new();
    let mut once = |times: usize| -> Result<f64> {
        device.sync()?;
        let start = Instant::now();
        for i in 0..times {
            let outputs = subjects[i % sets].run();
            // Handed to the GPU while the outputs are alive: a fused kernel leaves out what nobody can read any
            // more, and operations of two repetitions are never fused with each other.
            device.flush()?;
            if kept.len() == sets {
                kept.pop_front();
            }
            kept.push_back(outputs);
        }
        device.sync()?;
        Ok(1e3 * start.elapsed().as_secs_f64())
    };
    // The slope leaves out what a submit and a wait cost. The first runs compile, and choose kernels.
    let mut slope = |times: usize| -> Result<f64> {
        let (one, all) = (once(1)?, once(times)?);
        Ok(((all - one) / (times - 1) as f64).max(0.0))
    };
    slope(2)?;
    let first = slope(2)?.max(1e-3);
    let times = args
        .repetitions
        .unwrap_or(((50.0 / first) as usize).clamp(4, 512))
        .max(2);
    let mut taken = (0..args.rounds.max(1))
        .map(|_| slope(times))
        .collect::<Result<Vec<_>>>()?;
    taken.sort_by(f64::total_cmp);
    let median = taken[taken.len() / 2];
    let bytes = 4 * elements * op.passes();
    eprintln!("{} {shape:?}: {median:.3} ms, error {error:.1e}", op.name());
    Ok(json!({
        "op": op.name(),
        "shape": shape.as_slice(),
        "channel_axis": 1,
        "dtype": "f32",
        "strategy": "",
        // On a software adapter both are the same.
        "cache": "cold",
        "median_ms": median,
        "copy_ratio": null,
        "gb_per_s": if median > 0.0 { bytes as f64 / median / 1e6 } else { 0.0 },
        "bytes": bytes,
        "repetitions": times,
        "spread": (taken[taken.len() - 1] - taken[0]) / median.max(1e-9),
    }))
}

/// An operation and its tensors.
struct Subject<const D: usize> {
    op: Op,
    shape: [usize; D],
    host: Vec<f32>,
    gradient: Vec<f32>,
    layer: BatchNorm,
    input: Tensor<D>,
    /// Of a backward pass: the output's gradient, and the batch's mean and variance.
    given: Option<(Tensor<D>, Tensor<1>, Tensor<1>)>,
}

/// What an operation gives: a tensor of the input's shape, and the gradients of weight and bias.
type Outputs<const D: usize> = (Tensor<D>, Option<(Tensor<1>, Tensor<1>)>);

impl<const D: usize> Subject<D> {
    fn new(device: &Device, shape: [usize; D], op: Op, set: usize) -> Self {
        let device = match op {
            Op::ForwardTraining => &device.clone().autodiff(),
            _ => device,
        };
        let (channels, elements) = (shape[1], shape.iter().product());
        let vector = |(low, high)| {
            Tensor::<1>::from_data(
                TensorData::from(ramp(channels, low, high).as_slice()),
                device,
            )
        };
        let tensor = |values: &[f32]| {
            Tensor::<D>::from_data(TensorData::new(values.to_vec(), shape), device)
        };

        let mut layer = BatchNormConfig::new(channels)
            .with_epsilon(EPS)
            .with_momentum(MOMENTUM)
            .init(device);
        layer.gamma = Param::from_tensor(vector(WEIGHT));
        layer.beta = Param::from_tensor(vector(BIAS));
        layer.running_mean = RunningState::new(vector(MEAN));
        layer.running_var = RunningState::new(vector(VARIANCE));
        let host = values(elements, 2 * set as u64 + 1, 0.5, 2.0);
        let input = tensor(&host);
        let mut gradient = Vec::new();
        let given = matches!(op, Op::Backward).then(|| {
            gradient = values(elements, 2 * set as u64 + 2, 0.1, 1.0);
            let batch = batch_norm_train(input.clone(), vector(WEIGHT), vector(BIAS), EPS);
            (tensor(&gradient), batch.mean, batch.variance)
        });
        Subject {
            op,
            shape,
            host,
            gradient,
            layer,
            input,
            given,
        }
    }

    fn run(&self) -> Outputs<D> {
        let Some((gradient, mean, variance)) = &self.given else {
            return (self.layer.forward(self.input.clone()), None);
        };
        let gradients = Dispatch::batch_norm_train_backward(
            self.input.clone().into_dispatch(),
            self.layer.gamma.val().into_dispatch(),
            mean.clone().into_dispatch(),
            variance.clone().into_dispatch(),
            EPS,
            gradient.clone().into_dispatch(),
        );
        let affine = (
            Tensor::from_dispatch(gradients.gamma_grad),
            Tensor::from_dispatch(gradients.beta_grad),
        );
        (Tensor::from_dispatch(gradients.x_grad), Some(affine))
    }

    /// Runs it once, and compares the first and the last channel with the definition in f64.
    fn check(&self) -> Result<f64> {
        let (output, affine) = self.run();
        let output = output.into_data().try_to_vec::<f32>()?;
        let affine = match affine {
            Some((weight, bias)) => Some((
                weight.into_data().try_to_vec::<f32>()?,
                bias.into_data().try_to_vec::<f32>()?,
            )),
            None => None,
        };
        let channels = self.shape[1];
        let mut worst: f64 = 0.0;
        for c in [0, channels - 1] {
            let x = self.channel(&self.host, c);
            let got = self.channel(&output, c);
            let at = |range: (f32, f32)| f64::from(ramp(channels, range.0, range.1)[c]);
            let count = x.len() as f64;
            let (mean, variance) = match self.op {
                Op::Inference => (at(MEAN), at(VARIANCE)),
                _ => {
                    let mean = x.iter().sum::<f64>() / count;
                    (
                        mean,
                        x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count,
                    )
                }
            };
            let invstd = 1.0 / (variance + EPS).sqrt();
            let normal = x.iter().map(|x| (x - mean) * invstd);
            let want: Vec<f64> = if let Some((weight, bias)) = &affine {
                let dy = self.channel(&self.gradient, c);
                let grad_bias: f64 = dy.iter().sum();
                let grad_weight: f64 = normal.clone().zip(&dy).map(|(n, dy)| n * dy).sum();
                for (got, want) in [(weight[c], grad_weight), (bias[c], grad_bias)] {
                    worst = worst.max((f64::from(got) - want).abs() / want.abs().max(1.0));
                }
                let dx = |(n, dy): (f64, &f64)| {
                    at(WEIGHT) * invstd * (dy - grad_bias / count - n * grad_weight / count)
                };
                normal.zip(&dy).map(dx).collect()
            } else {
                normal.map(|n| at(WEIGHT) * n + at(BIAS)).collect()
            };
            let scale = want.iter().fold(1.0, |most: f64, v| most.max(v.abs()));
            let off = got.iter().zip(&want).map(|(got, want)| (got - want).abs());
            worst = worst.max(off.fold(0.0, f64::max) / scale);
        }
        ensure!(worst <= BOUND, "off by {worst:.1e} of its scale: not timed");
        Ok(worst)
    }

    fn channel(&self, values: &[f32], c: usize) -> Vec<f64> {
        let inner: usize = self.shape[2..].iter().product();
        let rows = values.chunks_exact(inner).skip(c).step_by(self.shape[1]);
        rows.flatten().map(|&v| f64::from(v)).collect()
    }
}

/// Of the parameters, per channel, as `bench` has them.
const WEIGHT: (f32, f32) = (0.5, 1.5);
const BIAS: (f32, f32) = (-1.0, 1.0);
const MEAN: (f32, f32) = (0.0, 1.0);
const VARIANCE: (f32, f32) = (2.0, 6.0);

fn ramp(channels: usize, low: f32, high: f32) -> Vec<f32> {
    let step = (high - low) / channels as f32;
    (0..channels).map(|c| low + step * c as f32).collect()
}

/// Normal numbers: a million different ones, then the same again, shifted.
fn values(n: usize, seed: u64, mean: f32, std: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1 << 24) as f32
    };
    let some: Vec<f32> = (0..n.min(1 << 20))
        .map(|_| {
            let (radius, angle) = (
                (-2.0 * uniform().ln()).sqrt(),
                std::f32::consts::TAU * uniform(),
            );
            mean + std * radius * angle.cos()
        })
        .collect();
    (0..n)
        .map(|i| some[(i + 7 * (i / some.len())) % some.len()])
        .collect()
}
