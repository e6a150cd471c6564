//! The one table of kernels: file, entry point, bindings and the constants that change code.

/// What a binding of a kernel holds. One name for one role, whichever kernel it is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    Input,
    Residual,
    Output,
    GradOutput,
    GradInput,
    GradResidual,
    Partials,
    Coefficients,
    Affine,
    Running,
    Saved,
    Statistics,
    GradAffine,
    Sums,
    Mask,
    Counts,
    GroupGradients,
    Source(u8),
    Gathered,
    Packed,
    Target(u8),
    Operands,
    Remainders,
}

/// One storage binding: its number and name in the shader, its role, and whether the kernel writes it.
pub(crate) struct Binding {
    pub number: u32,
    pub name: &'static str,
    pub slot: Slot,
    pub writes: bool,
}

const fn reads(number: u32, name: &'static str, slot: Slot) -> Binding {
    Binding {
        number,
        name,
        slot,
        writes: false,
    }
}

const fn writes(number: u32, name: &'static str, slot: Slot) -> Binding {
    Binding {
        number,
        name,
        slot,
        writes: true,
    }
}

/// The kernels, by entry point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// `x -> partial moments`, one workgroup per piece of a channel.
    ReducePlanar,
    /// `x -> partial moments`, one workgroup per piece of a tile of columns.
    ReduceColumns,
    /// `partial moments -> moments`.
    Combine,
    /// `partial moments -> saved statistics, running statistics, coefficients`.
    Finalize,
    /// `statistics -> coefficients`.
    Coefficients,
    /// `x -> y`, flat.
    Normalize,
    /// `x -> y`, one workgroup per piece of a channel.
    NormalizePlanar,
    /// `x -> y`, one workgroup per piece of a tile of columns.
    NormalizeColumns,
    /// `x -> y, saved and running statistics`, one workgroup per channel.
    ForwardPlanar,
    /// `x -> y, saved and running statistics`, one workgroup per tile of columns.
    ForwardColumns,
    /// `x, dy -> partial gradient sums`, planar.
    BackwardReducePlanar,
    /// `x, dy -> partial gradient sums`, columns.
    BackwardReduceColumns,
    /// `partial gradient sums -> gradient sums`.
    BackwardCombine,
    /// `partial gradient sums -> parameter gradients, coefficients`.
    BackwardFinalize,
    /// `x, dy -> dx`, flat.
    BackwardApply,
    /// `x, dy -> dx`, planar.
    BackwardApplyPlanar,
    /// `x, dy -> dx`, columns.
    BackwardApplyColumns,
    /// `x, dy -> dx, parameter gradients`, one workgroup per channel.
    BackwardPlanar,
    /// `x, dy -> dx, parameter gradients`, one workgroup per tile of columns.
    BackwardColumns,
    /// `mask -> values per channel that count`, for each group.
    CountMask,
    /// `parameter gradients of each group -> parameter gradients`.
    SumGradients,
    /// Vectors of their own into a packed buffer.
    Gather,
    /// A packed buffer into vectors of their own.
    Scatter,
    /// Whether exact remainders survive this adapter's compiler.
    Probe,
}

/// A row of the table.
pub(crate) struct Entry {
    pub kernel: Kernel,
    /// The file in `shaders/`, without its suffix.
    pub file: &'static str,
    pub source: &'static str,
    /// What is put before it, besides what all kernels share and, for kernels on tensors, what these share.
    pub parts: &'static [&'static str],
    pub entry_point: &'static str,
    pub bindings: &'static [Binding],
    /// The overridable constants that this entry point uses, besides `WORKGROUP`.
    pub overrides: &'static [Override],
}

/// An overridable constant of the prelude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Override {
    Activation,
    Residual,
    ChannelLookup,
    Ragged,
    Mask,
    InPlace,
    Frozen,
    Joined,
    Held,
    Across,
}

use Override::{
    Across as ACROSS, Activation as ACTIVATION, ChannelLookup as LOOKUP, Frozen as FROZEN,
    Held as HELD, InPlace as IN_PLACE, Joined as JOINED, Mask as MASK, Ragged as RAGGED,
    Residual as RESIDUAL,
};

/// A file of `shaders/`.
macro_rules! shader {
    ($name:literal) => {
        include_str!(concat!("../../shaders/", $name, ".wgsl"))
    };
}
pub(super) use shader;

/// What is put before every file.
pub(crate) const COMMON: &str = shader!("prelude/common");
/// What is put before files that bind tensors.
pub(super) const TENSORS: [&str; 2] = [shader!("prelude/tensors"), shader!("prelude/activation")];

const MOMENTS: &str = shader!("prelude/moments");
const STATISTICS: &str = shader!("prelude/statistics");
const COEFFICIENTS_PART: &str = shader!("prelude/coefficients");
const FORWARD: &str = shader!("prelude/forward");
const SECOND_PASS: &str = shader!("prelude/second_pass");
const GRADIENT_SUMS: &str = shader!("prelude/gradient_sums");
const GRADIENTS: &str = shader!("prelude/gradients");
const BACKWARD: &str = shader!("prelude/backward");

const INPUT: Binding = reads(1, "input", Slot::Input);
const RESIDUAL_INPUT: Binding = reads(2, "residual", Slot::Residual);
const GRAD_OUTPUT: Binding = reads(3, "grad_output", Slot::GradOutput);
const MASK_INPUT: Binding = reads(6, "mask", Slot::Mask);

const REDUCE: &[Binding] = &[INPUT, MASK_INPUT, writes(7, "partials", Slot::Partials)];
const COUNT_MASK: &[Binding] = &[MASK_INPUT, writes(8, "counts", Slot::Counts)];
const FINALIZE: &[Binding] = &[
    reads(1, "partials", Slot::Partials),
    reads(2, "affine", Slot::Affine),
    writes(3, "running", Slot::Running),
    writes(4, "saved", Slot::Saved),
    writes(5, "coefficients", Slot::Coefficients),
];
const COMBINE: &[Binding] = &[
    reads(1, "partials", Slot::Partials),
    writes(5, "coefficients", Slot::Coefficients),
];
const COEFFICIENTS: &[Binding] = &[
    reads(2, "affine", Slot::Affine),
    writes(5, "coefficients", Slot::Coefficients),
    reads(6, "statistics", Slot::Statistics),
];
const NORMALIZE: &[Binding] = &[
    INPUT,
    RESIDUAL_INPUT,
    writes(4, "output", Slot::Output),
    reads(7, "coefficients", Slot::Coefficients),
];
const BACKWARD_REDUCE: &[Binding] = &[
    INPUT,
    RESIDUAL_INPUT,
    GRAD_OUTPUT,
    reads(7, "coefficients", Slot::Coefficients),
    writes(8, "partials", Slot::Partials),
];
const FUSED_FORWARD: &[Binding] = &[
    INPUT,
    RESIDUAL_INPUT,
    writes(4, "output", Slot::Output),
    MASK_INPUT,
    reads(7, "affine", Slot::Affine),
    writes(8, "running", Slot::Running),
    writes(9, "saved", Slot::Saved),
];
const FUSED_BACKWARD: &[Binding] = &[
    INPUT,
    RESIDUAL_INPUT,
    GRAD_OUTPUT,
    writes(4, "output", Slot::GradInput),
    writes(5, "grad_residual", Slot::GradResidual),
    reads(6, "affine", Slot::Affine),
    reads(7, "statistics", Slot::Statistics),
    writes(8, "grad_affine", Slot::GradAffine),
];
const BACKWARD_COMBINE: &[Binding] = &[
    reads(1, "partials", Slot::Partials),
    writes(4, "sums", Slot::Sums),
];
const BACKWARD_FINALIZE: &[Binding] = &[
    reads(1, "partials", Slot::Partials),
    writes(2, "coefficients", Slot::Coefficients),
    writes(3, "grad_affine", Slot::GradAffine),
    reads(5, "counts", Slot::Counts),
    writes(6, "gradients", Slot::GroupGradients),
];
const SUM_GRADIENTS: &[Binding] = &[
    writes(3, "grad_affine", Slot::GradAffine),
    reads(7, "group_gradients", Slot::GroupGradients),
];
const BACKWARD_APPLY: &[Binding] = &[
    INPUT,
    RESIDUAL_INPUT,
    GRAD_OUTPUT,
    writes(4, "output", Slot::GradInput),
    writes(5, "grad_residual", Slot::GradResidual),
    MASK_INPUT,
    reads(7, "coefficients", Slot::Coefficients),
];
const GATHER: &[Binding] = &[
    reads(1, "source_0", Slot::Source(0)),
    reads(2, "source_1", Slot::Source(1)),
    reads(3, "source_2", Slot::Source(2)),
    writes(4, "gathered", Slot::Gathered),
];
const SCATTER: &[Binding] = &[
    reads(5, "packed", Slot::Packed),
    writes(6, "target_0", Slot::Target(0)),
    writes(7, "target_1", Slot::Target(1)),
    writes(8, "target_2", Slot::Target(2)),
];
const PROBE: &[Binding] = &[
    reads(1, "operands", Slot::Operands),
    writes(2, "remainders", Slot::Remainders),
];

macro_rules! entry {
    ($kernel:ident, $file:literal, $parts:expr, $entry:literal, $bindings:expr, $overrides:expr) => {
        Entry {
            kernel: Kernel::$kernel,
            file: $file,
            source: shader!($file),
            parts: $parts,
            entry_point: $entry,
            bindings: $bindings,
            overrides: $overrides,
        }
    };
}

/// Every kernel there is. A test reflects the shaders and proves that they agree with it.
pub(crate) static TABLE: [Entry; 24] = [
    entry!(
        ReducePlanar,
        "reduce",
        &[MOMENTS],
        "reduce_planar",
        REDUCE,
        &[RAGGED, MASK]
    ),
    entry!(
        ReduceColumns,
        "reduce",
        &[MOMENTS],
        "reduce_columns",
        REDUCE,
        &[RAGGED, MASK, ACROSS]
    ),
    entry!(
        Combine,
        "finalize",
        &[STATISTICS, COEFFICIENTS_PART],
        "combine",
        COMBINE,
        &[]
    ),
    entry!(
        Finalize,
        "finalize",
        &[STATISTICS, COEFFICIENTS_PART],
        "finalize",
        FINALIZE,
        &[]
    ),
    entry!(
        Coefficients,
        "finalize",
        &[STATISTICS, COEFFICIENTS_PART],
        "coefficients_only",
        COEFFICIENTS,
        &[]
    ),
    entry!(
        Normalize,
        "normalize",
        &[FORWARD, SECOND_PASS],
        "normalize",
        NORMALIZE,
        &[ACTIVATION, RESIDUAL, LOOKUP, IN_PLACE, JOINED]
    ),
    entry!(
        NormalizePlanar,
        "normalize",
        &[FORWARD, SECOND_PASS],
        "normalize_planar",
        NORMALIZE,
        &[ACTIVATION, RESIDUAL, IN_PLACE, JOINED]
    ),
    entry!(
        NormalizeColumns,
        "normalize",
        &[FORWARD, SECOND_PASS],
        "normalize_columns",
        NORMALIZE,
        &[ACTIVATION, RESIDUAL, IN_PLACE, JOINED, ACROSS]
    ),
    entry!(
        ForwardPlanar,
        "fused_forward",
        &[MOMENTS, STATISTICS, COEFFICIENTS_PART, FORWARD, SECOND_PASS],
        "forward_planar",
        FUSED_FORWARD,
        &[ACTIVATION, RESIDUAL, RAGGED, MASK, IN_PLACE, JOINED, HELD]
    ),
    entry!(
        ForwardColumns,
        "fused_forward",
        &[MOMENTS, STATISTICS, COEFFICIENTS_PART, FORWARD, SECOND_PASS],
        "forward_columns",
        FUSED_FORWARD,
        &[ACTIVATION, RESIDUAL, RAGGED, MASK, IN_PLACE, JOINED, HELD]
    ),
    entry!(
        BackwardReducePlanar,
        "backward_reduce",
        &[GRADIENT_SUMS],
        "backward_reduce_planar",
        BACKWARD_REDUCE,
        &[ACTIVATION, RESIDUAL, RAGGED, JOINED]
    ),
    entry!(
        BackwardReduceColumns,
        "backward_reduce",
        &[GRADIENT_SUMS],
        "backward_reduce_columns",
        BACKWARD_REDUCE,
        &[ACTIVATION, RESIDUAL, RAGGED, JOINED, ACROSS]
    ),
    entry!(
        BackwardCombine,
        "backward_finalize",
        &[GRADIENTS],
        "backward_combine",
        BACKWARD_COMBINE,
        &[]
    ),
    entry!(
        BackwardFinalize,
        "backward_finalize",
        &[GRADIENTS],
        "backward_finalize",
        BACKWARD_FINALIZE,
        &[]
    ),
    entry!(
        BackwardApply,
        "backward_apply",
        &[BACKWARD, SECOND_PASS],
        "backward_apply",
        BACKWARD_APPLY,
        &[ACTIVATION, RESIDUAL, LOOKUP, MASK, IN_PLACE, FROZEN, JOINED]
    ),
    entry!(
        BackwardApplyPlanar,
        "backward_apply",
        &[BACKWARD, SECOND_PASS],
        "backward_apply_planar",
        BACKWARD_APPLY,
        &[ACTIVATION, RESIDUAL, MASK, IN_PLACE, FROZEN, JOINED]
    ),
    entry!(
        BackwardApplyColumns,
        "backward_apply",
        &[BACKWARD, SECOND_PASS],
        "backward_apply_columns",
        BACKWARD_APPLY,
        &[ACTIVATION, RESIDUAL, MASK, IN_PLACE, FROZEN, JOINED, ACROSS]
    ),
    entry!(
        BackwardPlanar,
        "fused_backward",
        &[
            COEFFICIENTS_PART,
            GRADIENT_SUMS,
            GRADIENTS,
            BACKWARD,
            SECOND_PASS
        ],
        "backward_planar",
        FUSED_BACKWARD,
        &[
            ACTIVATION, RESIDUAL, RAGGED, MASK, IN_PLACE, FROZEN, JOINED, HELD
        ]
    ),
    entry!(
        BackwardColumns,
        "fused_backward",
        &[
            COEFFICIENTS_PART,
            GRADIENT_SUMS,
            GRADIENTS,
            BACKWARD,
            SECOND_PASS
        ],
        "backward_columns",
        FUSED_BACKWARD,
        &[
            ACTIVATION, RESIDUAL, RAGGED, MASK, IN_PLACE, FROZEN, JOINED, HELD
        ]
    ),
    entry!(
        CountMask,
        "reduce",
        &[MOMENTS],
        "count_mask",
        COUNT_MASK,
        &[]
    ),
    entry!(
        SumGradients,
        "backward_finalize",
        &[GRADIENTS],
        "sum_gradients",
        SUM_GRADIENTS,
        &[]
    ),
    entry!(Gather, "pack", &[], "gather", GATHER, &[]),
    entry!(Scatter, "pack", &[], "scatter", SCATTER, &[]),
    entry!(Probe, "probe", &[], "probe", PROBE, &[]),
];

impl Kernel {
    pub(crate) fn entry(self) -> &'static Entry {
        // The table lists the kernels in the order of the enum; a test holds it to that.
        &TABLE[self as usize]
    }

    /// Whether it is a whole pass in one dispatch.
    pub(crate) fn is_fused(self) -> bool {
        matches!(
            self,
            Kernel::ForwardPlanar
                | Kernel::ForwardColumns
                | Kernel::BackwardPlanar
                | Kernel::BackwardColumns
        )
    }
}

impl Entry {
    /// Whether it binds tensors, which come in elements, and not per-channel arrays alone.
    pub(crate) fn has_tensors(&self) -> bool {
        self.bindings
            .iter()
            .any(|b| matches!(b.slot, Slot::Input | Slot::Mask))
    }
}
