//! What a dispatch is told: its uniform, and the constants of the shaders that Rust knows too.

/// Parameters of one dispatch: the uniform of the same name in `shaders/prelude/common.wgsl`, where its fields are explained.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs)]
pub(crate) struct Params {
    pub elements: u32,
    pub zero: u32,
    pub channels: u32,
    pub inner: u32,
    pub count: u32,
    pub statistics: u32,
    pub group_elements: u32,
    pub outer_elements: u32,
    pub workgroups: u32,
    pub rows: u32,
    pub row_vectors: u32,
    pub pieces: u32,
    pub piece_length: u32,
    pub step_rows: u32,
    pub step_vectors: u32,
    pub tile: u32,
    pub slots: u32,
    pub slot_stride: u32,
    pub width: u32,
    pub repetitions: u32,
    pub span: u32,
    pub vectors: u32,
    pub chunk: u32,
    pub stride_channels: u32,
    pub stride_inner: u32,
    pub slope: f32,
    pub flags: u32,
    pub eps: f32,
    pub weight_old: f32,
    pub weight_new: f32,
    pub present: u32,
    pub start_0: u32,
    pub start_1: u32,
    pub start_2: u32,
    pub absent_0: u32,
    pub absent_1: u32,
    pub absent_2: u32,
    pub mask_pieces: u32,
    pub square_unit: f32,
    pub residual_start: u32,
    pub grad_output_start: u32,
    pub mask_start: u32,
    pub result_unit: f32,
    pub pad_0: u32,
}

/// The bits of `Params::flags`; the constants of the same names in the prelude.
pub(crate) mod flags {
    pub(crate) const HAS_AFFINE: u32 = 1;
    pub(crate) const HAS_RUNNING: u32 = 2;
    pub(crate) const HAS_SAVED: u32 = 4;
    pub(crate) const CUMULATIVE: u32 = 8;
    pub(crate) const FROM_RUNNING: u32 = 16;
    pub(crate) const FOR_BACKWARD: u32 = 32;
    pub(crate) const HAS_GRAD_AFFINE: u32 = 64;
    pub(crate) const FROZEN_STATISTICS: u32 = 128;
    pub(crate) const UNBIASED: u32 = 256;
    pub(crate) const HAS_COEFFICIENTS: u32 = 512;
    pub(crate) const HAS_COUNTS: u32 = 1024;
    pub(crate) const GROUP_GRADIENTS: u32 = 2048;
    pub(crate) const ACCUMULATE: u32 = 4096;
}

/// Which of the coefficients' channels an element of a vector belongs to; the constants in the prelude.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ChannelLookup {
    /// `inner` is a multiple of 4.
    SameChannel = 0,
    /// `inner ≥ 4`.
    NextChannel = 1,
    /// `inner = 1` and at least 4 channels.
    ChannelsLast = 2,
    /// Anything else with one group.
    Any = 3,
    /// Several groups of several outer indices: two divisions per element.
    Grouped = 4,
}

/// The unit of squares in partial moments of so many values: a power of two, 1/values or less, so that their sum stays
/// within f32 wherever the variance does.
pub(super) fn unit_of(values: u64) -> f32 {
    let exponent = values.max(1).next_power_of_two().ilog2();
    (-f64::from(exponent)).exp2() as f32
}
