//! Batch normalisation for [wgpu]: training, inference and gradients as compute kernels, encoded into the caller's own
//! command encoder.
//!
//! From a problem to dispatches in four steps, all of which check and may fail, so that encoding cannot:
//!
//! 1. [`Problem`]: the tensor as `[outer, channels, inner]`, the activation, ε and the running statistics' conventions
//!    ([`Preset`], [`Momentum`]).
//! 2. [`Plan`]: what is dispatched for a problem on a device's [`Caps`], and why. A pure function; it prints itself, and
//!    [`Choices`] force it.
//! 3. [`Kernels`]: what is fixed per device. [`Kernels::prepare`] compiles what a plan needs.
//! 4. [`Prepared`]: binds arguments ([`ForwardTraining`], [`Inference`], [`Backward`]) after checking each buffer's
//!    usage, size, alignment and overlap. The [`Operation`] that comes of it encodes the same dispatches again and
//!    again, without allocating: [`Operation::encode`], [`Operation::encode_in`].
//!
//! [`BatchNorm`] is the layer that owns its parameters and statistics. The parts of a pass are there on their own
//! ([`Reduce`], [`Combine`], [`Finalize`], [`Normalize`], [`BackwardReduce`], [`BackwardApply`]), for pipelines that
//! fuse them and for statistics over several devices.
//!
//! [`Fold`] takes the inference form into the layer before it, on the host.
//!
//! The library creates no device, submits nothing and does not block, except in [`Gpu`]'s conveniences and in tuning, whose
//! documentation says so. No input makes it panic: see [`Error`].
//!
//! # Formulas
//! With `x̂ = (x - μ)·invstd` and `invstd = 1/√(σ² + ε)`, where μ and σ² are the mean and biased variance of a channel,
//! of this batch in training or running ones in inference:
//!
//! - forward: `z = γ·x̂ + β + residual`, `y = act(z)`;
//! - backward: `dz = dy·act'(z)`, `dβ = Σdz`, `dγ = Σdz·x̂`, `dresidual = dz` and
//!   `dx = γ·invstd·(dz - dβ/m - x̂·dγ/m)`, or `dx = γ·invstd·dz` through frozen statistics.
//!
//! γ is `weight`, β is `bias`, and m is [`Problem::count`]. Tensors are stored as [`Problem::dtype`] says;
//! all other buffers are f32, but for the number of batches (u32).
//!
//! # Features
//! - `device`: [`Gpu`], an adapter and a device for programs that have none, and wgpu's native backends.
//! - `web`: [`Gpu`] on wasm32 in a browser, through WebGPU; only its async forms.
//! - `ndarray`: [`reference`](mod@reference), the definition in f64; with `device` or `web` also passes over host arrays.
//! - `state`: `State`, a layer's parameters and statistics in safetensors files, under PyTorch's or Keras' names.
//! - `tune`: `Kernels::tune` measures which plan is fastest on the user's adapter, `TuningCache` keeps it in a file.
//!
//! # Example
//! A plan needs no GPU:
//!
//! ```
//! use wgpu_batchnorm::{Activation, Caps, Plan, Problem};
//!
//! let problem = Problem::nhwc([32, 56, 56, 64]).activation(Activation::Relu);
//! let plan = Plan::new(&problem, &Caps::webgpu_defaults())?;
//! println!("{plan}");
//! assert!(plan.workspace_bytes() < problem.bytes() / 50);
//! # Ok::<(), wgpu_batchnorm::Error>(())
//! ```
#![forbid(unsafe_code)]

mod arguments;
#[cfg(all(feature = "ndarray", any(feature = "device", feature = "web")))]
mod arrays;
#[cfg(any(feature = "device", feature = "web"))]
mod device;
mod encode;
mod error;
mod faults;
#[cfg(all(any(feature = "state", feature = "tune"), not(target_family = "wasm")))]
mod files;
mod fold;
mod kernels;
mod layer;
mod plan;
#[cfg(all(feature = "ndarray", any(feature = "device", feature = "web")))]
mod probe;
mod problem;
#[cfg(any(
    feature = "state",
    feature = "tune",
    all(feature = "ndarray", any(feature = "device", feature = "web"))
))]
mod readback;
mod record;
#[cfg(feature = "ndarray")]
pub mod reference;
mod shaders;
#[cfg(feature = "state")]
mod state;
#[cfg(feature = "tune")]
mod tune;

pub use arguments::{
    Backward, BackwardApply, BackwardReduce, BufferRange, Combine, Finalize, ForwardTraining,
    Inference, Normalize, Reduce, Running,
};
#[cfg(all(feature = "ndarray", any(feature = "device", feature = "web")))]
pub use arrays::{
    Arrays, ForwardResult, GradientArrays, Readback, RunningArrays, SavedArrays, Through,
};
#[cfg(any(feature = "device", feature = "web"))]
pub use device::Gpu;
pub use encode::{Operation, Prepared};
pub use error::{Error, Result};
pub use fold::{Fold, Real, WeightLayout};
pub use kernels::{Kernel, Kernels};
pub use layer::{Batch, BatchNorm};
pub use plan::{Caps, Choices, Plan, Strategy, Walk};
pub use problem::{Activation, Dtype, Momentum, Preset, Problem, RunningVariance};
pub use shaders::Shader;
#[cfg(feature = "state")]
pub use state::{Naming, State, StateReadback};
#[cfg(feature = "tune")]
pub use tune::{Candidate, Tuned, TuningCache};

/// The code of the README, which runs as tests of the documentation.
#[cfg(all(
    doctest,
    feature = "ndarray",
    feature = "device",
    feature = "state",
    feature = "tune"
))]
#[doc = include_str!("../README.md")]
pub struct ReadmeDoctests;
