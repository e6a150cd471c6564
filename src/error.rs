//! What can go wrong, each with what was given, what was expected and the remedy.

/// Every error of the library. The message names the tensor or option at fault, what was given, what was expected,
/// and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A dimension is zero.
    #[error(
        "the tensor is empty: shape [outer, channels, inner] = {shape:?} has a zero; give at least one value per channel"
    )]
    EmptyTensor {
        /// `[outer, channels, inner]`.
        shape: [usize; 3],
    },
    /// The tensor has more elements than the kernels can index.
    #[error(
        "the tensor has {elements} elements, over the {limit} that one operation can index; split it along its outer dimension"
    )]
    TooManyElements {
        /// Elements of the tensor.
        elements: u128,
        /// The largest number supported.
        limit: u64,
    },
    /// The channel axis is not an axis of the shape.
    #[error("channel axis {axis} is out of range for shape {shape:?}; give one from {} to {}", -(shape.len() as i64), shape.len() as i64 - 1)]
    ChannelAxis {
        /// The axis that was given.
        axis: isize,
        /// The shape that was given.
        shape: Vec<usize>,
    },
    /// A training operation was asked for on one value per channel, which has no variance.
    #[error(
        "training needs at least two values per channel, but shape [outer, channels, inner] = {shape:?} has one; use a larger batch, or inference"
    )]
    OneValuePerChannel {
        /// `[outer, channels, inner]`.
        shape: [usize; 3],
    },
    /// ε is negative, NaN or infinite.
    #[error("eps is {given}; give a finite number of 0 or more (1e-5 is usual)")]
    Eps {
        /// What was given.
        given: f64,
    },
    /// A momentum is outside `[0, 1]`.
    #[error("momentum: the weight of the new batch is {given}; give a number from 0 to 1")]
    Momentum {
        /// The weight of the new batch.
        given: f64,
    },
    /// An activation that there is not, or a slope that is no finite number.
    #[error(
        "activation {given:?}; give none, relu, leaky-relu:SLOPE (a finite number), silu, gelu, sigmoid or tanh"
    )]
    Activation {
        /// What was given.
        given: String,
    },
    /// A mask holds something else than 0 and 1.
    #[error("mask[{index}] is {given}; a mask holds 1 where a value counts and 0 where not")]
    MaskValue {
        /// The first such place, in memory order.
        index: usize,
        /// What is there.
        given: f32,
    },
    /// A combination that is refused by design.
    #[error("not supported: {what}; {remedy}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to use instead.
        remedy: String,
    },
    /// The problem does not fit what the device allows.
    #[error("{what} needs {needed}, but this device allows {limit} ({name}); {remedy}")]
    Limit {
        /// What exceeds the limit.
        what: String,
        /// What it needs.
        needed: u64,
        /// What the device allows.
        limit: u64,
        /// The limit's name in `wgpu::Limits`.
        name: &'static str,
        /// What to do.
        remedy: String,
    },
    /// A required argument is missing, or one was given that the plan has no place for.
    #[error("{tensor}: {problem}; {remedy}")]
    Argument {
        /// The argument's name.
        tensor: &'static str,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A buffer range has the wrong number of bytes.
    #[error("{tensor}: the buffer range has {given} bytes, but {expected} are needed{detail}")]
    BufferSize {
        /// The tensor's name.
        tensor: &'static str,
        /// Bytes from the offset given to the end of the range.
        given: u64,
        /// Bytes expected.
        expected: u64,
        /// Which shape the expectation comes from.
        detail: String,
    },
    /// A buffer lacks a usage flag.
    #[error("{tensor}: the buffer was created with usage {given:?}; add BufferUsages::{missing}")]
    BufferUsage {
        /// The tensor's name.
        tensor: &'static str,
        /// The buffer's usages.
        given: wgpu::BufferUsages,
        /// The usage that is missing.
        missing: &'static str,
    },
    /// An offset is not aligned as the device needs it.
    #[error(
        "{tensor}: offset {offset} is not a multiple of {alignment} (min_storage_buffer_offset_alignment); move the tensor to such an offset"
    )]
    BufferAlignment {
        /// The tensor's name.
        tensor: &'static str,
        /// The offset in bytes.
        offset: u64,
        /// The alignment in bytes.
        alignment: u64,
    },
    /// Two arguments share a buffer in a way that one dispatch cannot bind.
    #[error("{first} and {second} {how}; {remedy}")]
    Overlap {
        /// One argument.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// How they meet.
        how: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// An array given to the reference or to a convenience has the wrong shape.
    #[error("{tensor}: the array has shape {given:?}, but {expected:?} is needed; reshape it")]
    Shape {
        /// The tensor's name.
        tensor: &'static str,
        /// The shape that was given.
        given: Vec<usize>,
        /// The shape that is needed.
        expected: Vec<usize>,
    },
    /// A file with a layer's state, or with tuned plans, cannot be read, understood or written.
    #[error("{file}: {problem}; {remedy}")]
    File {
        /// Its path, or that it is bytes.
        file: String,
        /// What is wrong, with the tensor's name where one is at fault.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// No adapter matches.
    #[error("no GPU adapter{wanted}: {found}")]
    NoAdapter {
        /// What was asked for, with a leading blank, or nothing.
        wanted: String,
        /// What was found, and what to do.
        found: String,
    },
    /// The device has no memory left for what was to be done. What there was before is as it was.
    #[error(
        "{action}: the device is out of memory ({message}); use a smaller batch, or free what else is on the device"
    )]
    OutOfMemory {
        /// What was being done.
        action: &'static str,
        /// The driver's or wgpu's words, on one line.
        message: String,
    },
    /// The device is gone, with all that was on it: destroyed, unplugged, or reset by its driver.
    #[error(
        "{action}: the device is lost; make a new device, and everything that was on this one anew"
    )]
    DeviceLost {
        /// What was being done.
        action: &'static str,
    },
    /// The device took longer than it was given. It goes on; waiting again is allowed.
    #[error(
        "{action}: the device had not finished after {timeout:?}; wait again, or give it more time"
    )]
    Timeout {
        /// What was being done.
        action: &'static str,
        /// How long it was given.
        timeout: std::time::Duration,
    },
    /// The driver refused a device, a pipeline or a bind group.
    #[error("{action} failed on this device: {message}")]
    Device {
        /// What was being done.
        action: &'static str,
        /// The driver's or wgpu's words, on one line.
        message: String,
    },
}

/// What to install where there is no adapter.
#[cfg(any(feature = "device", feature = "web"))]
pub(crate) fn install_hint() -> &'static str {
    if cfg!(target_family = "wasm") {
        "use a browser with WebGPU switched on, and a page from https or localhost"
    } else if wgpu::Instance::enabled_backend_features().is_empty() {
        "build with the feature `device`, which brings wgpu's native backends"
    } else if cfg!(target_os = "linux") {
        "install a Vulkan driver: on Debian and Ubuntu `apt-get install libvulkan1 mesa-vulkan-drivers` \
         brings a software one, `libegl1 libgles2 libgl1-mesa-dri` the one for GL"
    } else {
        "install the graphics driver of your GPU"
    }
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
