//! Batch normalisation for wgpu.
#![forbid(unsafe_code)]

#[cfg(all(feature = "ndarray", feature = "device"))]
mod arrays;
#[cfg(feature = "device")]
mod device;
mod encode;
mod error;
mod kernels;
mod layer;
mod plan;
#[cfg(all(feature = "ndarray", feature = "device"))]
mod probe;
mod problem;
#[cfg(feature = "ndarray")]
pub mod reference;

#[cfg(all(feature = "ndarray", feature = "device"))]
pub use arrays::{
    Arrays, ForwardResult, GradientArrays, Readback, RunningArrays, SavedArrays, Through,
};
#[cfg(feature = "device")]
pub use device::Gpu;
pub use encode::{
    Backward, BackwardApply, BackwardReduce, BufferRange, Combine, Finalize, ForwardTraining,
    Inference, Normalize, Operation, Prepared, Reduce, Running,
};
pub use error::{Error, Result};
pub use kernels::{Kernel, Kernels};
pub use layer::{Batch, BatchNorm};
pub use plan::{Caps, Choices, Plan, Strategy, Walk};
pub use problem::{Activation, Momentum, Preset, Problem, RunningVariance};
