//! What is to be normalised, and by which convention: shapes, activations, running statistics.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The largest number of elements of one dispatch: shaders index with 32 bits, and a padded row of vectors must fit too.
/// What is larger goes in chunks.
pub(crate) const MAX_ELEMENTS: u64 = 1 << 31;
/// The largest number of elements of a tensor. More than memory has.
const MAX_TENSOR: u64 = 1 << 40;

/// How the elements of a tensor (input, output, residual and their gradients) are stored. Arithmetic is f32 whatever the
/// storage, and so are weight, bias, statistics and the gradients of weight and bias.
///
/// The 16-bit types are packed two to a 32-bit word, the first element in the lower half, as any program lays them out in
/// memory on a little-endian machine; kernels convert by integer arithmetic, so that every adapter runs them. Results are
/// rounded to the nearest, ties to even; overflow gives infinity; NaN stays NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Dtype {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16: 11 bits of significand, up to 65504.
    F16,
    /// bfloat16: 8 bits of significand, the range of f32.
    Bf16,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        })
    }
}

/// A function applied to the normalised value, after the residual was added.
///
/// It parses and prints as on the command line: `none`, `relu`, `leaky-relu:0.01`, `silu`, `gelu`, `sigmoid`, `tanh`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// `y = z`.
    #[default]
    None,
    /// `y = max(z, 0)`, with derivative 0 at 0.
    Relu,
    /// `y = z` above 0 and `slope·z` below, with derivative `slope` at 0. Any slope that is finite in f32.
    LeakyRelu(f64),
    /// `y = z·σ(z)`, also called swish (Ramachandran et al. 2017).
    Silu,
    /// `y = z·Φ(z)` with `Φ(z) = (1 + erf(z/√2))/2`, exact and not the tanh approximation (Hendrycks and Gimpel 2016).
    Gelu,
    /// `y = σ(z) = 1/(1 + e^-z)`.
    Sigmoid,
    /// `y = tanh z`.
    Tanh,
}

impl Activation {
    /// One of each, leaky ReLU with a slope of 0.01.
    pub const ALL: [Activation; 7] = [
        Activation::None,
        Activation::Relu,
        Activation::LeakyRelu(0.01),
        Activation::Silu,
        Activation::Gelu,
        Activation::Sigmoid,
        Activation::Tanh,
    ];

    /// The value of `ACTIVATION` in the shaders.
    pub(crate) fn code(self) -> u32 {
        match self {
            Activation::None => 0,
            Activation::Relu => 1,
            Activation::LeakyRelu(_) => 2,
            Activation::Silu => 3,
            Activation::Gelu => 4,
            Activation::Sigmoid => 5,
            Activation::Tanh => 6,
        }
    }

    /// Leaky ReLU's slope below 0.
    pub(crate) fn slope(self) -> f64 {
        match self {
            Activation::LeakyRelu(slope) => slope,
            _ => 0.0,
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Activation::None => f.write_str("none"),
            Activation::Relu => f.write_str("relu"),
            Activation::LeakyRelu(slope) => write!(f, "leaky-relu:{slope}"),
            Activation::Silu => f.write_str("silu"),
            Activation::Gelu => f.write_str("gelu"),
            Activation::Sigmoid => f.write_str("sigmoid"),
            Activation::Tanh => f.write_str("tanh"),
        }
    }
}

impl FromStr for Activation {
    type Err = Error;

    /// # Errors
    /// [`Error::Activation`], which lists the names.
    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::Activation { given: text.into() };
        if let Some(slope) = text.strip_prefix("leaky-relu:") {
            // Whether it is finite, `Problem::validate` says.
            let slope = slope.trim().parse().map_err(|_| unknown())?;
            return Ok(Activation::LeakyRelu(slope));
        }
        match text {
            "none" => Ok(Activation::None),
            "relu" => Ok(Activation::Relu),
            "silu" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "sigmoid" => Ok(Activation::Sigmoid),
            "tanh" => Ok(Activation::Tanh),
            _ => Err(unknown()),
        }
    }
}

/// How much a new batch counts in the running statistics. A type and not a bare number, because frameworks disagree on
/// whose weight the number is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Momentum {
    /// `running = (1 - w)·running + w·batch`.
    NewWeight(f64),
    /// The plain average over all batches: the new weight is `1 / num_batches_tracked`, counting this batch.
    Cumulative,
}

impl Momentum {
    /// The weight of the new batch, as in PyTorch (default 0.1).
    pub fn new_weight(weight: f64) -> Self {
        Momentum::NewWeight(weight)
    }

    /// The weight of the old value, as in Keras, TensorFlow (default 0.99) and ONNX (0.9).
    pub fn decay(decay: f64) -> Self {
        Momentum::NewWeight(1.0 - decay)
    }
}

/// Which estimate of the variance the running statistics store. Normalisation itself always uses the biased one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunningVariance {
    /// `M2 / (m - 1)`, as PyTorch and TensorFlow's fused kernel store.
    Unbiased,
    /// `M2 / m`, as Keras and ONNX store.
    Biased,
}

/// A framework's conventions: ε, momentum and the variance that is stored.
///
/// | preset | ε | new = | variance stored |
/// |---|---|---|---|
/// | `Pytorch` | 1e-5 | 0.9·old + 0.1·batch | unbiased |
/// | `Keras` | 1e-3 | 0.99·old + 0.01·batch | biased |
/// | `Tensorflow` (fused) | 1e-3 | 0.99·old + 0.01·batch | unbiased |
/// | `Onnx` | 1e-5 | 0.9·old + 0.1·batch | biased |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// `torch.nn.BatchNorm2d`.
    #[default]
    Pytorch,
    /// `keras.layers.BatchNormalization`.
    Keras,
    /// `tf.compat.v1.nn.fused_batch_norm`.
    Tensorflow,
    /// ONNX `BatchNormalization`, opset 15.
    Onnx,
}

impl Preset {
    /// The preset's ε.
    pub fn eps(self) -> f64 {
        match self {
            Preset::Pytorch | Preset::Onnx => 1e-5,
            Preset::Keras | Preset::Tensorflow => 1e-3,
        }
    }

    /// The preset's momentum.
    pub fn momentum(self) -> Momentum {
        match self {
            Preset::Pytorch => Momentum::new_weight(0.1),
            Preset::Keras | Preset::Tensorflow => Momentum::decay(0.99),
            Preset::Onnx => Momentum::decay(0.9),
        }
    }

    /// The variance that the preset stores.
    pub fn running_variance(self) -> RunningVariance {
        match self {
            Preset::Pytorch | Preset::Tensorflow => RunningVariance::Unbiased,
            Preset::Keras | Preset::Onnx => RunningVariance::Biased,
        }
    }
}

/// One batch norm problem: the tensor as `[groups, outer, channels, inner]`, and what is computed on it.
///
/// Every layout is that one shape, contiguous and row-major: NCHW is `outer = N, inner = H·W`; channels last is
/// `outer = N·H·W, inner = 1`; a feature-major matrix `[C, m]` is `outer = 1, inner = m`. Builders do not fail;
/// [`Plan::new`](crate::Plan::new) checks everything at once.
///
/// ```
/// use wgpu_batchnorm::{Activation, Preset, Problem};
/// let problem = Problem::nchw([32, 64, 56, 56]).activation(Activation::Relu).preset(Preset::Keras);
/// assert_eq!(problem.count(), 32 * 56 * 56);
/// assert_eq!(problem.eps, 1e-3);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Problem {
    /// Sub-batches with statistics of their own; 1 is ordinary batch norm. See [`Problem::groups`].
    pub groups: usize,
    /// Product of the dimensions before the channels, in each group.
    pub outer: usize,
    /// Number of channels.
    pub channels: usize,
    /// Product of the dimensions after the channels.
    pub inner: usize,
    /// How tensors are stored.
    pub dtype: Dtype,
    /// Whether a residual tensor of the same shape is added before the activation.
    pub residual: bool,
    /// Whether a mask says which positions the statistics are taken over.
    pub mask: bool,
    /// The activation after it.
    pub activation: Activation,
    /// Added to the variance: `invstd = 1/√(σ² + ε)`.
    pub eps: f64,
    /// How the running statistics move.
    pub momentum: Momentum,
    /// Which variance the running statistics store.
    pub running_variance: RunningVariance,
}

impl Problem {
    /// A tensor of shape `[outer, channels, inner]` with PyTorch's conventions.
    pub fn new(outer: usize, channels: usize, inner: usize) -> Self {
        let preset = Preset::default();
        Problem {
            groups: 1,
            outer,
            channels,
            inner,
            dtype: Dtype::F32,
            residual: false,
            mask: false,
            activation: Activation::None,
            eps: preset.eps(),
            momentum: preset.momentum(),
            running_variance: preset.running_variance(),
        }
    }

    /// A matrix `[N, C]`.
    pub fn nc([n, c]: [usize; 2]) -> Self {
        Self::new(n, c, 1)
    }

    /// Sequences `[N, C, L]`.
    pub fn ncl([n, c, l]: [usize; 3]) -> Self {
        Self::new(n, c, l)
    }

    /// Images `[N, C, H, W]`.
    pub fn nchw([n, c, h, w]: [usize; 4]) -> Self {
        Self::new(n, c, h.saturating_mul(w))
    }

    /// Volumes `[N, C, D, H, W]`.
    pub fn ncdhw([n, c, d, h, w]: [usize; 5]) -> Self {
        Self::new(n, c, d.saturating_mul(h).saturating_mul(w))
    }

    /// Images with channels last, `[N, H, W, C]`.
    pub fn nhwc([n, h, w, c]: [usize; 4]) -> Self {
        Self::new(n.saturating_mul(h).saturating_mul(w), c, 1)
    }

    /// Any shape with the channels on any axis; a negative axis counts from the end.
    ///
    /// # Errors
    /// [`Error::ChannelAxis`] where the shape has no such axis.
    pub fn with_axis(shape: &[usize], channel_axis: isize) -> Result<Self> {
        let rank = shape.len() as isize;
        let axis = if channel_axis < 0 {
            channel_axis + rank
        } else {
            channel_axis
        };
        if !(0..rank).contains(&axis) {
            return Err(Error::ChannelAxis {
                axis: channel_axis,
                shape: shape.to_vec(),
            });
        }
        let product = |dims: &[usize]| dims.iter().fold(1usize, |a, &b| a.saturating_mul(b));
        let (before, after) = shape.split_at(axis as usize);
        Ok(Self::new(product(before), after[0], product(&after[1..])))
    }

    /// Stores tensors as another type.
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Takes statistics over sub-batches: the tensor is `groups` times `[outer, channels, inner]`, one after the other,
    /// and each is normalised by statistics of its own. These are ghost batches (Hoffer et al. 2017); with
    /// `Problem::new(1, c, h·w).groups(n)` they are instance norm.
    ///
    /// Weight, bias and running statistics are shared. Running statistics take in the statistics of all groups together,
    /// merged, and not the average of the groups' variances. Saved statistics are `[4, groups·C]`.
    pub fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }

    /// Takes statistics only over positions where a mask is 1, as Keras does: f32, `[groups·outer, inner]`, 0 or 1.
    ///
    /// Positions left out are normalised all the same, by the statistics of the others, and have gradients. Where a
    /// group's mask is 0 throughout, mean and variance are 0, the output is β, and the running statistics move towards 0,
    /// as Keras' do. A mask holding anything else than 0 and 1 is an error on the host; on the device, which cannot report
    /// one, it makes the group's results NaN.
    pub fn with_mask(mut self) -> Self {
        self.mask = true;
        self
    }

    /// Adds a residual tensor before the activation: `y = act(γ·x̂ + β + residual)`.
    pub fn with_residual(mut self) -> Self {
        self.residual = true;
        self
    }

    /// Fuses an activation.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Sets ε, momentum and running variance to a framework's conventions.
    pub fn preset(mut self, preset: Preset) -> Self {
        self.eps = preset.eps();
        self.momentum = preset.momentum();
        self.running_variance = preset.running_variance();
        self
    }

    /// Sets ε.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// Sets the momentum of the running statistics.
    pub fn momentum(mut self, momentum: Momentum) -> Self {
        self.momentum = momentum;
        self
    }

    /// Sets which variance the running statistics store.
    pub fn running_variance(mut self, variance: RunningVariance) -> Self {
        self.running_variance = variance;
        self
    }

    /// Values per channel of a group, `outer · inner`.
    pub fn count(&self) -> u64 {
        (self.outer as u64).saturating_mul(self.inner as u64)
    }

    /// Elements of the tensor.
    pub fn elements(&self) -> u64 {
        self.count()
            .saturating_mul(self.channels as u64)
            .saturating_mul(self.groups as u64)
    }

    /// The tensor's shape, `[groups·outer, channels, inner]`.
    pub fn shape(&self) -> [usize; 3] {
        [
            self.groups.saturating_mul(self.outer),
            self.channels,
            self.inner,
        ]
    }

    /// The mask's shape, `[groups·outer, inner]`.
    pub fn mask_shape(&self) -> [usize; 2] {
        [self.groups.saturating_mul(self.outer), self.inner]
    }

    /// How many means and variances there are: `groups · channels`.
    pub fn statistics(&self) -> usize {
        self.groups.saturating_mul(self.channels)
    }

    /// Bytes of a tensor, up to a whole 32-bit word: what its buffer range must hold.
    pub fn bytes(&self) -> u64 {
        self.elements()
            .saturating_mul(self.dtype.bytes())
            .saturating_add(3)
            & !3
    }

    /// Whether a backward pass writes a gradient of the residual: without an activation it is `grad_output` itself.
    pub fn writes_grad_residual(&self) -> bool {
        self.residual && self.activation != Activation::None
    }

    /// Checks everything that does not depend on a device. [`Plan::new`](crate::Plan::new) does it too.
    ///
    /// # Errors
    /// [`Error::EmptyTensor`], [`Error::TooManyElements`], [`Error::Eps`], [`Error::Momentum`], [`Error::Activation`].
    pub fn validate(&self) -> Result<()> {
        let dimensions = [self.groups, self.outer, self.channels, self.inner];
        if dimensions.contains(&0) {
            return Err(Error::EmptyTensor {
                shape: self.shape(),
            });
        }
        let elements = dimensions
            .iter()
            .fold(1u128, |a, &b| a.saturating_mul(b as u128));
        if elements > MAX_TENSOR as u128 {
            return Err(Error::TooManyElements {
                elements,
                limit: MAX_TENSOR,
            });
        }
        if !(self.eps >= 0.0 && self.eps <= f64::from(f32::MAX)) {
            return Err(Error::Eps { given: self.eps });
        }
        if let Momentum::NewWeight(given) = self.momentum
            && !(0.0..=1.0).contains(&given)
        {
            return Err(Error::Momentum { given });
        }
        if !(self.activation.slope() as f32).is_finite() {
            return Err(Error::Activation {
                given: self.activation.to_string(),
            });
        }
        Ok(())
    }
}
