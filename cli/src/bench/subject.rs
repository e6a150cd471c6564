//! What is measured: an operation on a shape of a type, with its buffers.

use std::fmt;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use ndarray::{Array1, Array3};
use wgpu_batchnorm::reference::{self, Inputs, Statistics};
use wgpu_batchnorm::{
    Backward, Dtype, Error, ForwardTraining, Gpu, Inference, Operation, Plan, Prepared, Problem,
};

use super::shapes;
#[cfg(not(target_family = "wasm"))]
use crate::args::{BenchArgs, OpName, SetName};
use crate::check::{Random, stored};

/// Tensors of the set of all shapes, at most.
#[cfg(not(target_family = "wasm"))]
const MOST_BYTES_OF_ALL: u64 = 256 << 20;

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Training forward: statistics, running update and output.
    ForwardTraining,
    /// By running statistics.
    Inference,
    /// Input, weight and bias gradients.
    Backward,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 3] = [Op::ForwardTraining, Op::Inference, Op::Backward];

    /// As the JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Op::ForwardTraining => "forward_training",
            Op::Inference => "inference",
            Op::Backward => "backward",
        }
    }

    /// Tensors in a set of buffers.
    pub(crate) fn tensors(self) -> u64 {
        match self {
            Op::Backward => 3,
            _ => 2,
        }
    }

    /// How often the split strategy goes over a tensor.
    pub(crate) fn passes(self) -> u64 {
        match self {
            Op::Inference => 2,
            Op::ForwardTraining => 3,
            Op::Backward => 5,
        }
    }
}

/// One row of the benchmark.
#[derive(Debug, Clone)]
pub struct Subject {
    /// What is measured.
    pub op: Op,
    /// In memory order.
    pub shape: Vec<usize>,
    /// From 0.
    pub channel_axis: usize,
    /// The same as the library sees it.
    pub problem: Problem,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (op, dtype) = (self.op.name(), self.problem.dtype);
        write!(
            f,
            "{op} {} {dtype}",
            shape_text(&self.shape, self.channel_axis)
        )
    }
}

/// `32x64x56x56`, with `:last` where the channels are.
pub(crate) fn shape_text(shape: &[usize], channel_axis: usize) -> String {
    let dims: Vec<_> = shape.iter().map(usize::to_string).collect();
    let last = shape.len() > 2 && channel_axis + 1 == shape.len();
    dims.join("x") + if last { ":last" } else { "" }
}

/// A shape, its channel axis, and its type where it names one.
fn parse(text: &str) -> Result<(Vec<usize>, usize, Option<Dtype>)> {
    let mut parts = text.split(':');
    let shape = parts
        .next()
        .unwrap_or_default()
        .split('x')
        .map(str::parse)
        .collect::<Result<Vec<usize>, _>>()
        .with_context(|| {
            format!("--shapes {text}: give dimensions in memory order, like 32x64x56x56")
        })?;
    ensure!(
        shape.len() >= 2,
        "--shapes {text}: give at least two dimensions, like 256x1024"
    );
    let (mut axis, mut dtype) = (1, None);
    for part in parts {
        match part {
            "last" => axis = shape.len() - 1,
            "f32" => dtype = Some(Dtype::F32),
            "f16" => dtype = Some(Dtype::F16),
            "bf16" => dtype = Some(Dtype::Bf16),
            _ => bail!("--shapes {text}: {part} is neither last nor f32, f16 or bf16"),
        }
    }
    Ok((shape, axis, dtype))
}

/// What the options choose.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn chosen(args: &BenchArgs, software: bool) -> Result<Vec<Subject>> {
    let of = |name: &OpName| match name {
        OpName::ForwardTraining => Op::ForwardTraining,
        OpName::Inference => Op::Inference,
        OpName::Backward => Op::Backward,
    };
    let ops: Vec<Op> = args.op.iter().map(of).collect();
    let shapes = match args.set {
        Some(SetName::Resnet50) => shapes::resnet50(32),
        Some(SetName::All) => shapes::all(),
        Some(SetName::Scaling) => shapes::scaling(software),
        Some(SetName::Headline) => shapes::headline(software),
        None => args.shapes.clone(),
    };
    let mut subjects = subjects(&shapes, &args.dtypes(), &ops, software)?;
    if args.set == Some(SetName::All) {
        subjects.retain(|subject| subject.problem.bytes() <= MOST_BYTES_OF_ALL);
    }
    Ok(subjects)
}

/// Operations on shapes, written as `--shapes` has them. Where there are no shapes, the headline set, of what a software
/// adapter can do in reasonable time; where there are no types, those that the shapes name; where no operations, all.
///
/// # Errors
/// One line that names the shape at fault.
pub fn subjects(
    shapes: &[String],
    dtypes: &[Dtype],
    ops: &[Op],
    software: bool,
) -> Result<Vec<Subject>> {
    let shapes = if shapes.is_empty() {
        shapes::headline(software)
    } else {
        shapes.into()
    };
    let ops = if ops.is_empty() { &Op::ALL[..] } else { ops };
    let mut subjects = Vec::new();
    for text in &shapes {
        let (shape, channel_axis, own) = parse(text)?;
        let own = [own.unwrap_or_default()];
        for &dtype in if dtypes.is_empty() { &own } else { dtypes } {
            let problem = Problem::with_axis(&shape, channel_axis as isize)
                .map(|problem| problem.dtype(dtype))
                .and_then(|problem| problem.validate().map(|()| problem))
                .with_context(|| format!("--shapes {text}"))?;
            for &op in ops {
                subjects.push(Subject {
                    op,
                    shape: shape.clone(),
                    channel_axis,
                    problem: problem.clone(),
                });
            }
        }
    }
    Ok(subjects)
}

/// The buffers of one set, and what is in them on the host.
pub(crate) struct Tensors {
    input: wgpu::Buffer,
    output: wgpu::Buffer,
    /// Of a backward pass.
    grad_output: Option<wgpu::Buffer>,
    affine: wgpu::Buffer,
    running: wgpu::Buffer,
    saved: wgpu::Buffer,
    grad_affine: wgpu::Buffer,
    host: Vec<f32>,
    gradient: Vec<f32>,
}

impl Tensors {
    pub(crate) async fn new(gpu: &Gpu, subject: &Subject, set: u64) -> Result<Self> {
        let problem = &subject.problem;
        let (bytes, limit) = (problem.bytes(), gpu.device.limits().max_buffer_size);
        if bytes > limit {
            return Err(Error::Limit {
                what: "a buffer of the tensor".into(),
                needed: bytes,
                limit,
                name: "max_buffer_size",
                remedy: "give a smaller shape".into(),
            }
            .into());
        }
        let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let tensors = Self::allocate(gpu, subject, set);
        if let Some(error) = scope.pop().await {
            return Err(Error::OutOfMemory {
                action: "allocating tensors",
                message: error.to_string(),
            }
            .into());
        }
        Ok(tensors)
    }

    fn allocate(gpu: &Gpu, subject: &Subject, set: u64) -> Self {
        let problem = &subject.problem;
        let channels = problem.channels;
        let buffer = |label, bytes: u64| {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let upload = |label, bytes: &[u8]| {
            let buffer = buffer(label, bytes.len() as u64);
            gpu.queue.write_buffer(&buffer, 0, bytes);
            buffer
        };
        let n = problem.elements() as usize;
        let host = values(n, 2 * set + 1, 0.5, 2.0, problem.dtype);
        let gradient = match subject.op {
            Op::Backward => values(n, 2 * set + 2, 0.1, 1.0, problem.dtype),
            _ => Vec::new(),
        };
        let vectors = |low: f32, high: f32| -> Vec<f32> {
            let step = (high - low) / channels as f32;
            (0..channels).map(|c| low + step * c as f32).collect()
        };
        let affine = [vectors(0.5, 1.5), vectors(-1.0, 1.0)].concat();
        let running = [vectors(0.0, 1.0), vectors(2.0, 6.0), vec![0.0; channels]].concat();
        Tensors {
            input: upload("input", &encoded(&host, problem.dtype)),
            output: buffer("output", problem.bytes()),
            grad_output: (!gradient.is_empty())
                .then(|| upload("grad_output", &encoded(&gradient, problem.dtype))),
            affine: upload("affine", bytemuck::cast_slice(&affine)),
            running: upload("running", bytemuck::cast_slice(&running)),
            saved: buffer("saved", 16 * channels as u64),
            grad_affine: buffer("grad_affine", 8 * channels as u64),
            host,
            gradient,
        }
    }
}

/// A bound operation and its tensors, which other plans may share.
pub(crate) struct Bound {
    pub(crate) operation: Operation,
    tensors: Rc<Tensors>,
}

impl Bound {
    pub(crate) async fn new(
        gpu: &Gpu,
        plan: &Plan,
        subject: &Subject,
        tensors: &Rc<Tensors>,
    ) -> Result<Self> {
        let step = gpu.kernels.prepare_async(plan).await?;
        let t = &**tensors;
        let forward = |step: &Prepared| {
            step.bind_forward_training(
                &ForwardTraining::new(&t.input, &t.output)
                    .affine_packed(&t.affine)
                    .running(&t.running)
                    .saved(&t.saved),
            )
        };
        let operation = match (subject.op, &t.grad_output) {
            (Op::Inference, _) => {
                let args = Inference::new(&t.input, &t.output, &t.running);
                step.bind_inference(&args.affine_packed(&t.affine))?
            }
            (Op::Backward, Some(grad_output)) => {
                // The saved statistics.
                let first = forward(&step)?;
                let mut encoder = gpu.device.create_command_encoder(&Default::default());
                first.encode(&mut encoder);
                gpu.queue.submit([encoder.finish()]);
                let args = Backward::new(&t.input, &t.saved, grad_output, &t.output)
                    .affine_packed(&t.affine)
                    .grad_affine_packed(&t.grad_affine);
                step.bind_backward(&args)?
            }
            _ => forward(&step)?,
        };
        Ok(Bound {
            operation,
            tensors: Rc::clone(tensors),
        })
    }

    /// What a copy goes from and to. Forward: the input; backward: the output's gradient, whose place the result takes in
    /// a copy.
    pub(crate) fn copied(&self) -> (&wgpu::Buffer, &wgpu::Buffer) {
        let t = &*self.tensors;
        (t.grad_output.as_ref().unwrap_or(&t.input), &t.output)
    }

    /// Runs it once, and compares the first and the last channel with the reference.
    pub(crate) async fn check(&self, gpu: &Gpu, subject: &Subject) -> Result<()> {
        let problem = &subject.problem;
        let words = gpu
            .submit_and_read(Some(&self.operation), &[&self.tensors.output])?
            .await?
            .remove(0);
        let got = decoded(&words, problem.dtype);
        let (channels, inner, outer) = (problem.channels, problem.inner, problem.outer);
        let ends = if channels > 1 {
            vec![0, channels - 1]
        } else {
            vec![0]
        };
        let part = |values: &[f32]| {
            Array3::from_shape_fn((outer, ends.len(), inner), |(o, c, i)| {
                f64::from(values[(o * channels + ends[c]) * inner + i])
            })
        };
        let small = Problem::new(outer, ends.len(), inner).eps(problem.eps);
        let x = part(&self.tensors.host);
        let vector = |low: f32, high: f32| -> Array1<f64> {
            let step = (high - low) / channels as f32;
            ends.iter()
                .map(|&c| f64::from(low + step * c as f32))
                .collect()
        };
        let (weight, bias) = (vector(0.5, 1.5), vector(-1.0, 1.0));
        let inputs = Inputs {
            weight: Some(weight.view()),
            bias: Some(bias.view()),
            ..Inputs::new(x.view())
        };
        let batch = || Statistics::of(&small, x.view());
        let want = match subject.op {
            Op::ForwardTraining => reference::forward(&small, &inputs, &batch()?)?,
            Op::Inference => {
                let given = Statistics::given(&small, vector(0.0, 1.0), vector(2.0, 6.0))?;
                reference::forward(&small, &inputs, &given)?
            }
            Op::Backward => {
                let dy = part(&self.tensors.gradient);
                reference::backward(&small, &inputs, &batch()?, dy.view(), false)?.input
            }
        };
        let bound = match problem.dtype {
            Dtype::F32 => 2e-6,
            Dtype::F16 => 1e-3,
            Dtype::Bf16 => 5e-3,
        };
        let scale = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        let worst = part(&got)
            .iter()
            .zip(&want)
            .fold(0.0, |m: f64, (g, w)| match (g - w).abs() {
                error if error.is_nan() => f64::INFINITY, // `max` would drop it
                error => m.max(error),
            });
        ensure!(
            worst <= bound * scale,
            "the result is off by {:.1e} of its scale, more than {bound:.0e}: nothing was timed",
            worst / scale
        );
        Ok(())
    }
}

fn values(n: usize, seed: u64, mean: f32, std: f32, dtype: Dtype) -> Vec<f32> {
    // Enough distinct ones; generating 10⁸ would take longer than measuring.
    let mut random = Random::new(seed);
    let some: Vec<f32> = (0..n.min(1 << 20))
        .map(|_| stored(dtype, mean + std * random.normal()))
        .collect();
    let times = |i: usize| 7 * (i / some.len()); // every repetition begins elsewhere
    (0..n).map(|i| some[(i + times(i)) % some.len()]).collect()
}

fn encoded(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let mut bytes: Vec<u8> = match dtype {
        Dtype::F32 => bytemuck::cast_slice(values).to_vec(),
        Dtype::F16 => values
            .iter()
            .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
            .collect(),
        Dtype::Bf16 => values
            .iter()
            .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
            .collect(),
    };
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn decoded(words: &[u32], dtype: Dtype) -> Vec<f32> {
    let halves = |decode: fn(u16) -> f32| {
        let pairs = words
            .iter()
            .flat_map(move |w| [decode(*w as u16), decode((*w >> 16) as u16)]);
        pairs.collect()
    };
    match dtype {
        Dtype::F32 => words.iter().map(|w| f32::from_bits(*w)).collect(),
        Dtype::F16 => halves(|bits| half::f16::from_bits(bits).to_f32()),
        Dtype::Bf16 => halves(|bits| half::bf16::from_bits(bits).to_f32()),
    }
}
