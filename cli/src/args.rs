//! The command line's arguments, and the problem that they ask for.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use wgpu_batchnorm::{Activation, Choices, Dtype, Error, Momentum, Preset, Problem, Strategy};

use crate::check::{Filter, Layout};

/// Batch normalisation on the GPU: tensor files in, tensor files out.
#[derive(Debug, Parser)]
#[command(name = "wgpu-batchnorm", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the adapters, their limits and what each can run
    Info {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Normalise a tensor file
    Forward(FileArgs),
    /// Compute the gradients of a tensor file
    Backward(FileArgs),
    /// Check the GPU against the f64 reference over a matrix of shapes and data
    Check(CheckArgs),
    /// Time operations against a copy of the same tensor on the same adapter
    Bench(BenchArgs),
}

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Which device and kernels
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Shapes in memory order, with `:last` where the channels are last and a type if not f32: 32x64x56x56,
    /// 32x28x28x256:last:bf16. Without any, the headline set
    #[arg(long, value_name = "SHAPE,...", value_delimiter = ',')]
    pub shapes: Vec<String>,
    /// A set of shapes: the headline, the layers of ResNet-50 at a batch of 32, all that count up to 256 MB, or one shape at
    /// growing batches. What does not fit the device is left out
    #[arg(long, value_enum, conflicts_with = "shapes")]
    pub set: Option<SetName>,
    /// Types, instead of what the shapes name
    #[arg(long, value_enum, value_delimiter = ',')]
    pub dtype: Vec<DtypeName>,
    /// Operations; all three without any
    #[arg(long, value_enum, value_delimiter = ',')]
    pub op: Vec<OpName>,
    /// Repetitions in one submit, instead of as many as take about 50 ms
    #[arg(long, value_name = "N")]
    pub repetitions: Option<usize>,
    /// Rounds in which the operation and the copies take turns; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub rounds: usize,
    /// Without the bounds that naga puts on loops, which end by themselves: what a caller's
    /// `create_shader_module_trusted` can save
    #[arg(long)]
    pub trusted: bool,
    /// Write the figures as JSON; `-` is stdout
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write one page with plots; `-` is stdout
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Time every strategy that can run instead, and write as Markdown how near the planner's choice is to the best; `-`
    /// is stdout
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "html", "compare", "tune", "strategy"])]
    pub strategies: Option<PathBuf>,
    /// Take plans from this file of tuned ones; what it lacks is tuned first, and kept there
    #[arg(long, value_name = "FILE", conflicts_with_all = ["compare", "strategy", "trusted"])]
    pub tune: Option<PathBuf>,
    /// Measure nothing: put reports of other runs, machines or peers side by side
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all =
        ["shapes", "set", "dtype", "op", "repetitions", "rounds", "trusted", "strategy", "backend", "adapter"])]
    pub compare: Vec<PathBuf>,
    /// Measure no operation but what the planner's cost model is made of: what a dispatch costs, and how fast tensors of
    /// growing size are copied and read
    #[arg(long, conflicts_with_all = ["compare", "html", "shapes", "set", "dtype", "op", "tune", "strategies", "trusted", "strategy"])]
    pub constants: bool,
}

impl BenchArgs {
    /// The types that were named.
    pub fn dtypes(&self) -> Vec<Dtype> {
        self.dtype.iter().map(|dtype| dtype.dtype()).collect()
    }
}

/// `--op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum OpName {
    #[value(
        name = "forward_training",
        alias = "forward",
        alias = "forward-training"
    )]
    ForwardTraining,
    Inference,
    Backward,
}

/// `--set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum SetName {
    Headline,
    Resnet50,
    All,
    Scaling,
}

/// Options of `forward` and `backward`.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The file with `input` and, as needed, `residual`, `grad_output`, `weight`, `bias`, `running_mean`,
    /// `running_var`, `num_batches_tracked`, `save_mean`, `save_mean_remainder`, `save_invstd` (.safetensors or .npz)
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The file to write (.safetensors or .npz)
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Statistics of the batch, or running ones; backward through running ones is the frozen form
    #[arg(long, value_enum, default_value_t = Mode::Training)]
    pub mode: Mode,
    /// The axis of the channels; negative counts from the end
    #[arg(
        long,
        value_name = "K",
        default_value_t = 1,
        allow_negative_numbers = true
    )]
    pub channel_axis: isize,
    /// A framework's eps, momentum and running variance
    #[arg(long, value_enum, default_value_t = PresetName::Pytorch)]
    pub preset: PresetName,
    /// Added to the variance, instead of the preset's
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    pub eps: Option<f64>,
    /// Weight of the new batch in the running statistics, or `cumulative` for the plain average
    #[arg(long, value_name = "M|cumulative", value_parser = parse_momentum, allow_negative_numbers = true)]
    pub momentum: Option<Momentum>,
    /// Weight of the old value in the running statistics
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    pub decay: Option<f64>,
    /// none, relu, leaky-relu:SLOPE, silu, gelu (exact), sigmoid or tanh
    #[arg(long, value_name = "A", default_value = "none")]
    pub activation: Activation,
    /// Take statistics only where the file's tensor `mask` is 1: F32, 0 or 1, the input's shape without its channel axis
    #[arg(long)]
    pub mask: bool,
    /// Take statistics of each of G sub-batches (ghost batches): what comes before the channel axis is cut into G parts
    #[arg(long, value_name = "G", default_value_t = 1)]
    pub groups: usize,
    /// Which device and kernels
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Where to compute: a GPU adapter of any kind, or the f64 reference on the CPU; auto takes the CPU where there is
    /// no adapter
    #[arg(long = "device", value_name = "DEVICE", value_enum, default_value_t = DeviceKind::Auto)]
    pub place: DeviceKind,
    /// Print the device, the adapter, the plan and the times as JSON
    #[arg(long)]
    pub json: bool,
    /// Refuse larger files before they are read
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 30)]
    pub max_bytes: u64,
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Which device and kernels
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Every combination, not a pairwise selection
    #[arg(long)]
    pub full: bool,
    /// Only tensors of this type
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeName>,
    /// Only this activation: none, relu, leaky-relu:SLOPE, silu, gelu, sigmoid or tanh
    #[arg(long, value_name = "A")]
    pub activation: Option<Activation>,
    /// Only this layout
    #[arg(long, value_enum)]
    pub layout: Option<LayoutName>,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
}

impl CheckArgs {
    /// Which part of the matrix is wanted.
    pub fn filter(&self) -> Filter {
        Filter {
            dtype: self.dtype.map(DtypeName::dtype),
            activation: self.activation,
            layout: self.layout.map(|layout| match layout {
                LayoutName::Planar => Layout::Planar,
                LayoutName::ChannelsLast => Layout::ChannelsLast,
            }),
        }
    }
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum DtypeName {
    F32,
    F16,
    Bf16,
}

impl DtypeName {
    fn dtype(self) -> Dtype {
        match self {
            DtypeName::F32 => Dtype::F32,
            DtypeName::F16 => Dtype::F16,
            DtypeName::Bf16 => Dtype::Bf16,
        }
    }
}

/// `--layout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayoutName {
    /// Values of a channel side by side, as in NCHW
    #[value(alias = "nchw")]
    Planar,
    /// Channels side by side, as in NHWC and [N, C]
    #[value(alias = "nhwc", alias = "last")]
    ChannelsLast,
}

/// Which adapter, and which kernels on it.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// The graphics API
    #[arg(long, value_enum)]
    pub backend: Option<Backend>,
    /// A part of the adapter's name
    #[arg(long, value_name = "TEXT")]
    pub adapter: Option<String>,
    /// How the work is cut over workgroups
    #[arg(long, value_enum, default_value_t = StrategyName::Auto)]
    pub strategy: StrategyName,
}

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Mode {
    Training,
    Inference,
}

/// `--preset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum PresetName {
    Pytorch,
    Keras,
    Tensorflow,
    Onnx,
}

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum DeviceKind {
    Auto,
    Gpu,
    Cpu,
}

/// `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Backend {
    Vulkan,
    Metal,
    Dx12,
    Gl,
}

/// `--strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum StrategyName {
    Auto,
    Resident,
    Streaming,
    Split,
}

impl DeviceArgs {
    /// The backends to look through.
    pub fn backends(&self) -> wgpu::Backends {
        match self.backend {
            None => wgpu::Backends::all(),
            Some(Backend::Vulkan) => wgpu::Backends::VULKAN,
            Some(Backend::Metal) => wgpu::Backends::METAL,
            Some(Backend::Dx12) => wgpu::Backends::DX12,
            Some(Backend::Gl) => wgpu::Backends::GL,
        }
    }

    /// Whether a certain adapter was asked for.
    pub fn names_one(&self) -> bool {
        self.backend.is_some() || self.adapter.is_some()
    }

    /// What the planner is told.
    pub fn choices(&self) -> Choices {
        match self.strategy {
            StrategyName::Auto => Choices::default(),
            StrategyName::Resident => Choices::default().strategy(Strategy::Resident),
            StrategyName::Streaming => Choices::default().strategy(Strategy::Streaming),
            StrategyName::Split => Choices::default().strategy(Strategy::Split),
        }
    }
}

impl FileArgs {
    /// The problem on an input of a given shape, checked.
    ///
    /// # Errors
    /// One line that names the option at fault, or the input.
    pub fn problem(&self, shape: &[usize], residual: bool) -> anyhow::Result<Problem> {
        let preset = match self.preset {
            PresetName::Pytorch => Preset::Pytorch,
            PresetName::Keras => Preset::Keras,
            PresetName::Tensorflow => Preset::Tensorflow,
            PresetName::Onnx => Preset::Onnx,
        };
        anyhow::ensure!(
            !shape.is_empty(),
            "input is a scalar, of shape [], with no axis of channels; give a tensor of one axis or more"
        );
        let mut problem = Problem::with_axis(shape, self.channel_axis)
            .map_err(|error| match error {
                Error::ChannelAxis { axis, shape } => anyhow::anyhow!(
                    "--channel-axis {axis} is out of range for input's shape {shape:?}; give one from -{} to {}",
                    shape.len(),
                    shape.len() - 1
                ),
                other => other.into(),
            })?
            .preset(preset)
            .activation(self.activation);
        if residual {
            problem = problem.with_residual();
        }
        if self.mask {
            problem = problem.with_mask();
        }
        anyhow::ensure!(
            self.groups > 0 && problem.outer.is_multiple_of(self.groups),
            "--groups {} does not divide the {} that come before the channel axis of input's shape {shape:?}; give a \
             divisor",
            self.groups,
            problem.outer
        );
        problem.outer /= self.groups;
        problem = problem.groups(self.groups);
        if let Some(eps) = self.eps {
            problem = problem.eps(eps);
        }
        if self.momentum.is_some() && self.decay.is_some() {
            anyhow::bail!(
                "--momentum and --decay were both given; give one: --momentum is the weight of the new batch, \
                 --decay that of the old value"
            );
        }
        if let Some(momentum) = self.momentum {
            if let Momentum::NewWeight(w) = momentum {
                check_weight("--momentum", w)?;
            }
            problem = problem.momentum(momentum);
        }
        if let Some(decay) = self.decay {
            check_weight("--decay", decay)?;
            problem = problem.momentum(Momentum::decay(decay));
        }
        problem.validate().map_err(|error| match error {
            Error::EmptyTensor { .. } => {
                anyhow::anyhow!(
                    "input is empty: shape {shape:?}; give at least one value per channel"
                )
            }
            Error::Eps { given } => {
                anyhow::anyhow!("--eps is {given:?}; give a number from 0 to {:e}", f32::MAX)
            }
            Error::Activation { given } => {
                anyhow::anyhow!("--activation {given}: the slope is no finite number; give one")
            }
            other => anyhow::Error::new(other).context("input"),
        })?;
        Ok(problem)
    }
}

fn check_weight(option: &str, weight: f64) -> anyhow::Result<()> {
    anyhow::ensure!(
        (0.0..=1.0).contains(&weight),
        "{option} is {weight}; give a number from 0 to 1"
    );
    Ok(())
}

fn parse_momentum(text: &str) -> Result<Momentum, String> {
    if text == "cumulative" {
        return Ok(Momentum::Cumulative);
    }
    text.parse()
        .map(Momentum::NewWeight)
        .map_err(|_| "give a number from 0 to 1, or cumulative".to_owned())
}
