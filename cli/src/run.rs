//! `forward` and `backward`: from a tensor file to a tensor file, on the GPU or by the reference.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView3};
use serde_json::json;
use wgpu_batchnorm::reference::{self, Inputs, Statistics};
use wgpu_batchnorm::{
    Arrays, Dtype as Storage, Error, Gpu, Plan, Problem, RunningArrays, SavedArrays, Through,
};

use crate::args::{DeviceKind, FileArgs, Mode};
use crate::file::{self, Dtype, Tensor, Tensors};

/// The names that a file may hold for either operation; all others are ignored.
const NAMES: [&str; 7] = [
    "input",
    "residual",
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "num_batches_tracked",
];
/// Those that `backward` alone reads.
const BACKWARD_NAMES: [&str; 4] = [
    "grad_output",
    "save_mean",
    "save_invstd",
    "save_mean_remainder",
];

/// A file's tensors, checked and as f32.
struct Request {
    problem: Problem,
    shape: Vec<usize>,
    dtype: Dtype,
    input: Array3<f32>,
    residual: Option<Array3<f32>>,
    grad_output: Option<Array3<f32>>,
    mask: Option<Array2<f32>>,
    weight: Option<Array1<f32>>,
    bias: Option<Array1<f32>>,
    running: Option<RunningArrays>,
    /// As the file has it; the device counts in 32 bits.
    batches: i64,
    saved: Option<SavedArrays>,
}

impl Request {
    fn read(args: &FileArgs, backward: bool) -> Result<Self> {
        let names: Vec<_> = NAMES
            .into_iter()
            .chain(BACKWARD_NAMES.into_iter().filter(|_| backward))
            .chain(args.mask.then_some("mask"))
            .collect();
        let mut tensors = file::read(&args.input, &names, args.max_bytes)?;
        let input = tensors.remove("input").with_context(|| {
            format!(
                "{}: there is no tensor named input; give the tensor to normalise that name",
                args.input.display()
            )
        })?;
        let (shape, dtype) = (input.shape.clone(), input.dtype);
        ensure!(
            matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16),
            "input: the type is {dtype}, but F32, F16 or BF16 is needed; convert it"
        );
        let problem = args
            .problem(&shape, tensors.contains_key("residual"))?
            .dtype(match dtype {
                Dtype::F16 => Storage::F16,
                Dtype::BF16 => Storage::Bf16,
                _ => Storage::F32,
            });
        let mut big = |name: &str| match tensors.remove(name) {
            None => Ok(None),
            Some(tensor) => {
                ensure!(
                    tensor.dtype == dtype,
                    "{name}: the type is {}, but input's is {dtype}; give both the same type",
                    tensor.dtype
                );
                ensure!(
                    tensor.shape == shape,
                    "{name}: the shape is {:?}, but input's is {shape:?}; give both the same shape",
                    tensor.shape
                );
                array(name, &problem, &tensor).map(Some)
            }
        };
        let residual = big("residual")?;
        let grad_output = big("grad_output")?;
        ensure!(
            !backward || grad_output.is_some(),
            "{}: there is no tensor named grad_output; backward needs the gradient of the output",
            args.input.display()
        );
        let input = array("input", &problem, &input)?;
        let mask = match args.mask {
            true => Some(mask(&tensors, args, &problem, &shape)?),
            false => None,
        };

        let vector = |name: &str| vector(&tensors, name, &[problem.channels]);
        let (weight, bias) = (vector("weight")?, vector("bias")?);
        let batches = match tensors.get("num_batches_tracked") {
            None => 0,
            Some(tensor) => match tensor.to_i64_scalar() {
                Some(batches) if (0..i64::MAX).contains(&batches) => batches,
                Some(batches) => bail!(
                    "num_batches_tracked is {batches}; give a count from 0 to {}",
                    i64::MAX - 1
                ),
                None => bail!(
                    "num_batches_tracked: the type is {} and the shape {:?}, but an I64 scalar of shape [] is needed",
                    tensor.dtype,
                    tensor.shape
                ),
            },
        };
        let running = match (vector("running_mean")?, vector("running_var")?) {
            (Some(mean), Some(variance)) => {
                if let Some((c, v)) = variance.iter().enumerate().find(|(_, v)| **v < 0.0) {
                    bail!("running_var: channel {c} is {v}; a variance is 0 or more");
                }
                let batches = u32::try_from(batches)
                    .unwrap_or(u32::MAX - 1)
                    .min(u32::MAX - 1);
                Some(RunningArrays {
                    mean,
                    variance,
                    batches,
                })
            }
            (None, None) => None,
            (Some(_), None) => {
                bail!("running_var is missing, but running_mean is there; give both or neither")
            }
            (None, Some(_)) => {
                bail!("running_mean is missing, but running_var is there; give both or neither")
            }
        };
        let statistics = |name: &str| self::vector(&tensors, name, &statistics_shape(&problem));
        let saved = match (
            statistics("save_mean")?,
            statistics("save_invstd")?,
            statistics("save_mean_remainder")?,
        ) {
            (Some(mean), Some(invstd), remainder) => {
                if let Some((c, v)) = invstd.iter().enumerate().find(|(_, v)| **v < 0.0) {
                    bail!("save_invstd: channel {c} is {v}; it is 1/√(variance + eps), 0 or more");
                }
                Some(SavedArrays::new(
                    mean.view(),
                    remainder.as_ref().map(|a| a.view()),
                    invstd.view(),
                )?)
            }
            (None, None, None) => None,
            (None, _, _) => bail!(
                "save_mean is missing, but other saved statistics are there; give save_mean and save_invstd"
            ),
            (_, None, _) => {
                bail!("save_invstd is missing, but save_mean is there; give both or neither")
            }
        };
        let request = Request {
            problem,
            shape,
            dtype,
            input,
            residual,
            grad_output,
            mask,
            weight,
            bias,
            running,
            batches,
            saved,
        };
        request.check(args)?;
        Ok(request)
    }

    /// What no single tensor can tell.
    fn check(&self, args: &FileArgs) -> Result<()> {
        match args.mode {
            Mode::Training => ensure!(
                self.problem.count() > 1,
                "input: training needs at least two values per channel, but shape {:?} with {} channels{} has one; \
                 use a larger batch, or --mode inference",
                self.shape,
                self.problem.channels,
                match self.problem.groups {
                    1 => String::new(),
                    groups => format!(" in {groups} groups"),
                }
            ),
            Mode::Inference => ensure!(
                self.running.is_some(),
                "running_mean and running_var are missing; --mode inference normalises by them"
            ),
        }
        Ok(())
    }

    fn arrays(&self) -> Arrays<'_> {
        Arrays {
            input: self.input.view(),
            residual: self.residual.as_ref().map(|a| a.view()),
            weight: self.weight.as_ref().map(|a| a.view()),
            bias: self.bias.as_ref().map(|a| a.view()),
            mask: self.mask.as_ref().map(|a| a.view()),
            in_place: false,
        }
    }

    fn grad_output(&self) -> Result<ArrayView3<'_, f32>> {
        self.grad_output
            .as_ref()
            .map(|a| a.view())
            .context("grad_output is missing")
    }

    fn running(&self) -> Result<&RunningArrays> {
        self.running
            .as_ref()
            .context("running_mean and running_var are missing")
    }

    /// A tensor in the input's shape and type.
    fn tensor(&self, values: &Array3<f32>) -> Tensor {
        let values = values.as_standard_layout();
        let mut data = Vec::with_capacity(values.len() * self.dtype.size());
        for &value in &values {
            match self.dtype {
                Dtype::F16 => data.extend(half::f16::from_f32(value).to_le_bytes()),
                Dtype::BF16 => data.extend(half::bf16::from_f32(value).to_le_bytes()),
                _ => data.extend(value.to_le_bytes()),
            }
        }
        Tensor {
            dtype: self.dtype,
            shape: self.shape.clone(),
            data,
        }
    }
}

fn array(name: &str, problem: &Problem, tensor: &Tensor) -> Result<Array3<f32>> {
    let values = tensor
        .to_f32()
        .with_context(|| format!("{name}: the type {} is not a float", tensor.dtype))?;
    let given = tensor.shape.clone();
    Array3::from_shape_vec(problem.shape(), values)
        .with_context(|| format!("{name}: shape {given:?} does not fit its data"))
}

/// `[channels]`, or `[groups, channels]` where there are several.
fn statistics_shape(problem: &Problem) -> Vec<usize> {
    match problem.groups {
        1 => vec![problem.channels],
        groups => vec![groups, problem.channels],
    }
}

/// The mask, of the input's shape without the channel axis.
fn mask(
    tensors: &Tensors,
    args: &FileArgs,
    problem: &Problem,
    shape: &[usize],
) -> Result<Array2<f32>> {
    let tensor = tensors.get("mask").context(
        "--mask was given, but there is no tensor named mask; add it or leave --mask out",
    )?;
    let axis = args.channel_axis.rem_euclid(shape.len() as isize) as usize;
    let mut expected = shape.to_vec();
    expected.remove(axis);
    ensure!(
        tensor.shape == expected,
        "mask: the shape is {:?}, but {expected:?} is needed, input's without its channel axis",
        tensor.shape
    );
    let values = match tensor.dtype {
        Dtype::F32 => tensor.to_f32(),
        _ => None,
    };
    let values =
        values.with_context(|| format!("mask: the type is {}, but F32 is needed", tensor.dtype))?;
    if let Some((i, m)) = values
        .iter()
        .enumerate()
        .find(|(_, m)| **m != 0.0 && **m != 1.0)
    {
        bail!("mask: value {i} is {m}; give 1 where a position counts and 0 where not");
    }
    Array2::from_shape_vec(problem.mask_shape(), values)
        .with_context(|| format!("mask: shape {expected:?} does not fit its data"))
}

fn vector(tensors: &Tensors, name: &str, shape: &[usize]) -> Result<Option<Array1<f32>>> {
    let Some(tensor) = tensors.get(name) else {
        return Ok(None);
    };
    ensure!(
        tensor.shape == shape,
        "{name}: the shape is {:?}, but {shape:?} is needed, one value for each channel of input",
        tensor.shape
    );
    let values = tensor.to_f32().with_context(|| {
        format!(
            "{name}: the type is {}, but F32, F16, BF16 or F64 is needed; convert it",
            tensor.dtype
        )
    })?;
    Ok(Some(Array1::from(values)))
}

/// The results by either road, before they become tensors.
enum Results {
    Inference {
        output: Array3<f32>,
    },
    Forward {
        output: Array3<f32>,
        mean: Array1<f64>,
        invstd: Array1<f32>,
        running: Option<(Array1<f32>, Array1<f32>)>,
    },
    Backward {
        input: Array3<f32>,
        residual: Option<Array3<f32>>,
        weight: Array1<f32>,
        bias: Array1<f32>,
    },
}

impl Results {
    fn tensors(self, request: &Request) -> Tensors {
        let channels = request.problem.channels;
        let vector = |values: &Array1<f32>| Tensor::from_f32(vec![channels], &values.to_vec());
        let statistics = |values: &Array1<f32>| {
            Tensor::from_f32(statistics_shape(&request.problem), &values.to_vec())
        };
        let mut out = Tensors::new();
        let mut put = |name: &str, tensor| out.insert(name.to_owned(), tensor);
        match self {
            Results::Inference { output } => {
                put("output", request.tensor(&output));
            }
            Results::Forward {
                output,
                mean,
                invstd,
                running,
            } => {
                put("output", request.tensor(&output));
                let rounded = mean.mapv(|m| m as f32);
                let remainder = ndarray::Zip::from(&mean)
                    .and(&rounded)
                    .map_collect(|m, &r| {
                        // Where the mean is not finite there is nothing left over.
                        if r.is_finite() {
                            (m - f64::from(r)) as f32
                        } else {
                            0.0
                        }
                    });
                put("save_mean", statistics(&rounded));
                put("save_mean_remainder", statistics(&remainder));
                put("save_invstd", statistics(&invstd));
                if let Some((mean, variance)) = running {
                    put("running_mean", vector(&mean));
                    put("running_var", vector(&variance));
                    put(
                        "num_batches_tracked",
                        Tensor::from_i64_scalar(request.batches + 1),
                    );
                }
            }
            Results::Backward {
                input,
                residual,
                weight,
                bias,
            } => {
                put("grad_input", request.tensor(&input));
                if let Some(residual) = residual {
                    put("grad_residual", request.tensor(&residual));
                }
                if request.weight.is_some() {
                    put("grad_weight", vector(&weight));
                }
                if request.bias.is_some() {
                    put("grad_bias", vector(&bias));
                }
            }
        }
        out
    }
}

/// Runs `forward` or `backward`.
///
/// # Errors
/// One line that names the tensor or option at fault; an old OUT is untouched then.
pub fn run(args: &FileArgs, backward: bool) -> Result<()> {
    let start = Instant::now();
    file::check_target(&args.output)?;
    let request = Request::read(args, backward)?;
    let read_ms = milliseconds(start);
    let start = Instant::now();
    let gpu = choose_device(args)?;
    let device_ms = milliseconds(start);
    let start = Instant::now();
    let (results, plan) = match &gpu {
        Some(gpu) => {
            let plan = Plan::with(&request.problem, gpu.kernels.caps(), &args.device.choices())?;
            (
                on_gpu(gpu, &plan, &request, args.mode, backward)?,
                Some(plan),
            )
        }
        None => (by_reference(&request, args.mode, backward)?, None),
    };
    let compute_ms = milliseconds(start);
    let start = Instant::now();
    file::write(&args.output, &results.tensors(&request))?;
    let write_ms = milliseconds(start);
    if args.json {
        let report = json!({
            "operation": if backward { "backward" } else { "forward" },
            "mode": if args.mode == Mode::Training { "training" } else { "inference" },
            "device": if gpu.is_some() { "gpu" } else { "cpu" },
            "adapter": gpu.as_ref().map(|gpu| crate::info::adapter(&gpu.adapter)),
            "shape": request.shape,
            "dtype": request.dtype.to_string(),
            "plan": plan.as_ref().map(|plan| json!({
                "strategy": plan.strategy().to_string(),
                "walk": plan.walk().to_string(),
                "workspace_bytes": plan.workspace_bytes(),
                "text": plan.to_string(),
            })),
            "times_ms": { "read": read_ms, "device": device_ms, "compute": compute_ms, "write": write_ms },
        });
        crate::info::print(serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// The adapter to use, or none for the reference.
fn choose_device(args: &FileArgs) -> Result<Option<Gpu>> {
    if args.place == DeviceKind::Cpu {
        ensure!(
            !args.device.names_one(),
            "--device cpu uses no adapter, but --backend or --adapter names one; leave one of them out"
        );
        return Ok(None);
    }
    match Gpu::find(args.device.backends(), args.device.adapter.as_deref()) {
        Ok(gpu) => Ok(Some(gpu)),
        Err(error @ Error::NoAdapter { .. })
            if args.place == DeviceKind::Auto && !args.device.names_one() =>
        {
            // Unlike eprintln!, no panic where nobody listens.
            let _ = writeln!(
                std::io::stderr(),
                "warning: the f64 reference on the CPU is used instead of a GPU: {error}"
            );
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn on_gpu(
    gpu: &Gpu,
    plan: &Plan,
    request: &Request,
    mode: Mode,
    backward: bool,
) -> Result<Results> {
    let arrays = request.arrays();
    if backward {
        let grads = match (mode, &request.saved) {
            (Mode::Inference, _) => gpu.backward(
                plan,
                &arrays,
                request.grad_output()?,
                Through::Running(request.running()?),
            )?,
            (Mode::Training, Some(saved)) => {
                gpu.backward(plan, &arrays, request.grad_output()?, Through::Saved(saved))?
            }
            (Mode::Training, None) => {
                let saved = gpu.forward_training(plan, &arrays, None)?.saved;
                gpu.backward(
                    plan,
                    &arrays,
                    request.grad_output()?,
                    Through::Saved(&saved),
                )?
            }
        };
        return Ok(Results::Backward {
            input: grads.input,
            residual: grads.residual,
            weight: grads.weight,
            bias: grads.bias,
        });
    }
    if mode == Mode::Inference {
        return Ok(Results::Inference {
            output: gpu.inference(plan, &arrays, request.running()?)?,
        });
    }
    let forward = gpu.forward_training(plan, &arrays, request.running.as_ref())?;
    Ok(Results::Forward {
        mean: forward.saved.mean(),
        invstd: forward.saved.invstd().to_owned(),
        output: forward.output,
        running: forward
            .running
            .map(|running| (running.mean, running.variance)),
    })
}

fn by_reference(request: &Request, mode: Mode, backward: bool) -> Result<Results> {
    let problem = &request.problem;
    let wide = |a: &Array3<f32>| a.mapv(f64::from);
    // Rounded once, to the file's type.
    let narrow = |a: &Array3<f64>| a.mapv(|v| reference::round_to(problem.dtype, v) as f32);
    let wide_vector = |a: ArrayView1<'_, f32>| a.mapv(f64::from);
    let narrow_vector = |a: &Array1<f64>| a.mapv(|v| v as f32);
    let input = wide(&request.input);
    let residual = request.residual.as_ref().map(wide);
    let weight = request.weight.as_ref().map(|w| wide_vector(w.view()));
    let bias = request.bias.as_ref().map(|b| wide_vector(b.view()));
    let inputs = Inputs {
        input: input.view(),
        residual: residual.as_ref().map(|a| a.view()),
        weight: weight.as_ref().map(|a| a.view()),
        bias: bias.as_ref().map(|a| a.view()),
        mask: request.mask.as_ref().map(|a| a.view()),
    };
    let statistics = match (mode, &request.saved) {
        (Mode::Inference, _) => {
            let running = request.running()?;
            Statistics::given(
                problem,
                wide_vector(running.mean.view()),
                wide_vector(running.variance.view()),
            )?
        }
        (Mode::Training, Some(saved)) if backward => Statistics {
            mean: saved.mean(),
            variance: Array1::zeros(problem.statistics()), // the gradient needs only invstd
            invstd: wide_vector(saved.invstd()),
            count: Statistics::masked(problem, input.view(), inputs.mask)?.count,
        },
        (Mode::Training, _) => Statistics::masked(problem, input.view(), inputs.mask)?,
    };
    if backward {
        let grad_output = request.grad_output()?.mapv(f64::from);
        let frozen = mode == Mode::Inference;
        let grads = reference::backward(problem, &inputs, &statistics, grad_output.view(), frozen)?;
        return Ok(Results::Backward {
            input: narrow(&grads.input),
            residual: request.residual.is_some().then(|| narrow(&grads.residual)),
            weight: narrow_vector(&grads.weight),
            bias: narrow_vector(&grads.bias),
        });
    }
    let output = narrow(&reference::forward(problem, &inputs, &statistics)?);
    if mode == Mode::Inference {
        return Ok(Results::Inference { output });
    }
    let update = |running: &RunningArrays| -> Result<_> {
        let mut state = reference::Running {
            mean: wide_vector(running.mean.view()),
            variance: wide_vector(running.variance.view()),
            batches: request.batches as u64,
        };
        state.update(problem, &statistics)?;
        Ok((narrow_vector(&state.mean), narrow_vector(&state.variance)))
    };
    let running = request.running.as_ref().map(update).transpose()?;
    Ok(Results::Forward {
        output,
        mean: statistics.mean,
        invstd: narrow_vector(&statistics.invstd),
        running,
    })
}
