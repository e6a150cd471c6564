//! The one table of kernels: file, entry point, bindings and the constants that change code; and `Kernels`, what is fixed
//! per device: capabilities, layouts and pipelines compiled on demand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(doc)]
use crate::Error;
use crate::encode::Prepared;
use crate::faults::{self, ErrorScopes, settle};
use crate::plan::{Caps, ChannelLookup, Plan};
use crate::{Dtype, Result};

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
}

use Override::{
    Activation as ACTIVATION, ChannelLookup as LOOKUP, Frozen as FROZEN, Held as HELD,
    InPlace as IN_PLACE, Joined as JOINED, Mask as MASK, Ragged as RAGGED, Residual as RESIDUAL,
};

macro_rules! shader {
    ($name:literal) => {
        include_str!(concat!("../shaders/", $name, ".wgsl"))
    };
}

/// What is put before every file.
pub(crate) const COMMON: &str = shader!("prelude/common");
/// What is put before files that bind tensors.
const TENSORS: [&str; 2] = [shader!("prelude/tensors"), shader!("prelude/activation")];

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
        &[RAGGED, MASK]
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
        &[ACTIVATION, RESIDUAL, IN_PLACE, JOINED]
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
        &[ACTIVATION, RESIDUAL, RAGGED, JOINED]
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
        &[ACTIVATION, RESIDUAL, MASK, IN_PLACE, FROZEN, JOINED]
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

/// How the elements of a tensor lie in its buffer, and with it the header that a shader gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Elements {
    /// Whole 16-byte vectors of f32.
    F32x4,
    /// Single f32, where the count is not a multiple of 4.
    F32x1,
    /// Four f16 to an 8-byte word.
    F16x4,
    /// Two f16 to a 4-byte word, where the count is not a multiple of 4.
    F16x2,
    /// Four bf16 to an 8-byte word.
    Bf16x4,
    /// Two bf16 to a 4-byte word, where the count is not a multiple of 4.
    Bf16x2,
}

impl Elements {
    /// For a tensor of so many elements.
    pub(crate) fn of(dtype: Dtype, elements: u64) -> Self {
        match (dtype, elements.is_multiple_of(4)) {
            (Dtype::F32, true) => Elements::F32x4,
            (Dtype::F32, false) => Elements::F32x1,
            (Dtype::F16, true) => Elements::F16x4,
            (Dtype::F16, false) => Elements::F16x2,
            (Dtype::Bf16, true) => Elements::Bf16x4,
            (Dtype::Bf16, false) => Elements::Bf16x2,
        }
    }

    /// Bytes of one word.
    pub(crate) fn word_bytes(self) -> u64 {
        match self {
            Elements::F32x4 => 16,
            Elements::F16x4 | Elements::Bf16x4 => 8,
            Elements::F32x1 | Elements::F16x2 | Elements::Bf16x2 => 4,
        }
    }

    /// As the header's file, and the type that it holds.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Elements::F32x4 => "f32x4",
            Elements::F32x1 => "f32x1",
            Elements::F16x4 => "f16 half4",
            Elements::F16x2 => "f16 half2",
            Elements::Bf16x4 => "bf16 half4",
            Elements::Bf16x2 => "bf16 half2",
        }
    }

    /// The conversion, where there is one, and the words.
    pub(crate) fn header(self) -> [&'static str; 2] {
        match self {
            Elements::F32x4 => ["", shader!("elements/f32x4")],
            Elements::F32x1 => ["", shader!("elements/f32x1")],
            Elements::F16x4 => [shader!("elements/f16"), shader!("elements/half4")],
            Elements::F16x2 => [shader!("elements/f16"), shader!("elements/half2")],
            Elements::Bf16x4 => [shader!("elements/bf16"), shader!("elements/half4")],
            Elements::Bf16x2 => [shader!("elements/bf16"), shader!("elements/half2")],
        }
    }
}

/// Exactly what changes a kernel's code: the key of its pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PipelineKey {
    pub kernel: Kernel,
    pub elements: Elements,
    pub workgroup: u32,
    pub activation: u32,
    pub residual: bool,
    pub lookup: ChannelLookup,
    pub ragged: bool,
    pub mask: bool,
    /// The result replaces the input (or the output's gradient) in its buffer.
    pub in_place: bool,
    /// The gradient does not go through the statistics.
    pub frozen: bool,
    /// Residual and grad_output lie in the input's binding, and the mask in that of the coefficients.
    pub joined: bool,
    /// Vectors of a tensor that a lane holds in registers.
    pub held: u32,
    /// Arguments share buffers that the kernel writes: all are bound read_write.
    pub pooled: bool,
    /// Bindings, by the bits of their numbers, that are left out because the device has too few.
    pub absent: u16,
}

impl PipelineKey {
    /// With every constant at its default.
    pub(crate) fn new(kernel: Kernel, elements: Elements, workgroup: u32) -> Self {
        PipelineKey {
            kernel,
            elements,
            workgroup,
            activation: 0,
            residual: false,
            lookup: ChannelLookup::SameChannel,
            ragged: true,
            mask: false,
            in_place: false,
            frozen: false,
            joined: false,
            held: 0,
            pooled: false,
            absent: 0,
        }
    }

    /// Constants that the kernel does not use at their default, so that equal code has equal keys.
    pub(crate) fn canonical(self) -> Self {
        let default = Self::new(self.kernel, self.elements, self.workgroup);
        let uses = |o| self.kernel.entry().overrides.contains(&o);
        // They share what is put before them with kernels that do more.
        let fused = self.kernel.is_fused();
        let backward = matches!(
            self.kernel,
            Kernel::BackwardPlanar | Kernel::BackwardColumns
        );
        PipelineKey {
            activation: if uses(ACTIVATION) {
                self.activation
            } else {
                default.activation
            },
            residual: uses(RESIDUAL) && self.residual,
            lookup: if uses(LOOKUP) {
                self.lookup
            } else {
                default.lookup
            },
            ragged: self.ragged || !uses(RAGGED),
            // Frozen statistics do not depend on the input, whatever was masked when they were taken.
            mask: uses(MASK) && self.mask && !self.frozen && self.held == 0 && !backward,
            in_place: uses(IN_PLACE) && self.in_place && !fused,
            frozen: uses(FROZEN) && self.frozen && !fused,
            joined: uses(JOINED) && self.joined,
            held: if uses(HELD) { self.held } else { 0 },
            ..self
        }
    }

    pub(crate) fn constants(&self) -> [(&'static str, f64); 10] {
        let switch = |on: bool| f64::from(u8::from(on));
        [
            ("WORKGROUP", f64::from(self.workgroup)),
            ("ACTIVATION", f64::from(self.activation)),
            ("RESIDUAL", switch(self.residual)),
            ("CHANNEL_LOOKUP", f64::from(self.lookup as u32)),
            ("RAGGED", switch(self.ragged)),
            ("MASK", switch(self.mask)),
            ("IN_PLACE", switch(self.in_place)),
            ("FROZEN", switch(self.frozen)),
            ("JOINED", switch(self.joined)),
            ("HELD", f64::from(self.held)),
        ]
    }

    /// The whole WGSL of the kernel's module.
    pub(crate) fn source(&self) -> String {
        let source = compose(self.elements, self.kernel.entry());
        // What WGSL cannot leave open until the pipeline is made: how a buffer is bound, and whether.
        if self.pooled {
            return without(&source, self.absent)
                .replace("var<storage, read>", "var<storage, read_write>");
        }
        without(&source, self.absent)
    }

    /// The bindings that its module has, besides the parameters.
    pub(crate) fn bindings(&self) -> impl Iterator<Item = &'static Binding> {
        let absent = self.absent;
        let all = self.kernel.entry().bindings.iter();
        all.filter(move |b| absent >> b.number & 1 == 0)
    }
}

/// Every scratch element is written before it is read. On some drivers one invocation would write all the zeros.
pub(crate) const ZERO_INITIALIZE_WORKGROUP_MEMORY: bool = false;

impl PipelineKey {
    /// What a device with four storage buffers runs in place of a kernel that may need more.
    pub(crate) fn with_few_bindings(self) -> Vec<PipelineKey> {
        let all = self.kernel.entry().bindings;
        if all.len() <= 4 {
            return Vec::new();
        }
        let only = |slots: &[Slot], joined: bool| {
            let absent = all.iter().filter(|b| !slots.contains(&b.slot));
            let absent = absent.map(|b| 1 << b.number).sum();
            PipelineKey {
                joined,
                absent,
                ..self
            }
        };
        use Slot::*;
        let joined = self.residual || self.mask;
        let sets: &[&[Slot]] = match self.kernel {
            Kernel::Finalize => &[
                &[Partials, Affine, Saved, Coefficients],
                &[Partials, Running],
            ],
            fused if fused.is_fused() => &[],
            Kernel::BackwardFinalize => &[
                &[Partials, Coefficients, GradAffine, Counts],
                &[Partials, Coefficients, GroupGradients, Counts],
            ],
            Kernel::BackwardReducePlanar | Kernel::BackwardReduceColumns if self.residual => {
                &[&[Input, Coefficients, Partials]]
            }
            Kernel::BackwardReducePlanar | Kernel::BackwardReduceColumns => {
                &[&[Input, GradOutput, Coefficients, Partials]]
            }
            // Joined, grad_output is a copy, and nothing in place.
            _ if joined && self.in_place => &[],
            _ if self.residual => &[&[Input, Coefficients, GradInput, GradResidual]],
            _ if self.mask => &[&[Input, Coefficients, GradInput]],
            _ => &[&[Input, GradOutput, Coefficients, GradInput]],
        };
        sets.iter().map(|set| only(set, joined)).collect()
    }
}

/// The source with some bindings turned into private variables of one element, which nobody reads.
fn without(source: &str, absent: u16) -> String {
    if absent == 0 {
        return source.to_owned();
    }
    let line = |line: &str| {
        let declared = || {
            let rest = line.strip_prefix("@group(0) @binding(")?;
            let (number, rest) = rest.split_once(") var<storage, ")?;
            let (_, rest) = rest.split_once("> ")?;
            let (name, kind) = rest.split_once(": array<")?;
            let (kind, _) = kind.split_once(">;")?;
            (absent >> number.parse::<u16>().ok()? & 1 == 1)
                .then(|| format!("var<private> {name}: array<{kind}, 1>;"))
        };
        declared().unwrap_or_else(|| line.to_owned())
    };
    source.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// What is shared, the header and the file, in that order.
pub(crate) fn compose(elements: Elements, entry: &Entry) -> String {
    let mut parts = vec![COMMON];
    if entry.has_tensors() {
        parts.extend(elements.header());
        parts.extend(TENSORS);
    }
    parts.extend(entry.parts);
    parts.push(entry.source);
    parts.join("\n")
}

#[derive(Debug)]
pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// How a shader module is made.
type CreateModule =
    dyn Fn(&wgpu::Device, wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule + Send + Sync;

struct Shared {
    device: wgpu::Device,
    caps: Caps,
    cache: Option<wgpu::PipelineCache>,
    create_module: Arc<CreateModule>,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    /// Stand in for arguments that are absent, one to be read and one to be written; no kernel touches them.
    placeholders: [wgpu::Buffer; 2],
}

/// What is fixed per device: its capabilities, and the pipelines compiled so far. A clone is cheap and shares them;
/// threads may share one.
///
/// Creating it compiles nothing. It never submits, blocks or creates a device.
#[derive(Clone)]
pub struct Kernels {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels")
            .field("caps", &self.shared.caps)
            .finish_non_exhaustive()
    }
}

/// Disjoint ranges of a placeholder, one per binding number.
const PLACEHOLDER_RANGE: u64 = 256;
const PLACEHOLDER_SIZE: u64 = 16 * PLACEHOLDER_RANGE;

impl Kernels {
    /// Kernels for a device of the caller's.
    ///
    /// # Errors
    /// [`Error::Limit`] where the device cannot run any of them; [`Error::OutOfMemory`] and [`Error::DeviceLost`].
    pub fn new(device: &wgpu::Device) -> Result<Self> {
        Self::with_pipeline_cache(device, None)
    }

    /// The same, with the caller's pipeline cache (creating one is `unsafe`, and so the caller's business).
    ///
    /// # Errors
    /// As [`Kernels::new`].
    pub fn with_pipeline_cache(
        device: &wgpu::Device,
        cache: Option<wgpu::PipelineCache>,
    ) -> Result<Self> {
        Self::with_modules(device, cache, wgpu::Device::create_shader_module)
    }

    /// The same, and shader modules are made by the caller from what is given: a place for
    /// `Device::create_shader_module_trusted`, which is `unsafe`, and so the caller's business. All loops of the kernels
    /// end by themselves, so `ShaderRuntimeChecks::force_loop_bounding` may be false; ARCHITECTURE.md says what that
    /// saves. The other checks have to stay: lanes without work read at indices that checks keep within the buffers.
    ///
    /// # Errors
    /// As [`Kernels::new`].
    pub fn with_modules(
        device: &wgpu::Device,
        cache: Option<wgpu::PipelineCache>,
        create_module: impl Fn(&wgpu::Device, wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule
        + Send
        + Sync
        + 'static,
    ) -> Result<Self> {
        let caps = Caps::of(device)?;
        faults::alive(device, "making kernels")?;
        let scopes = ErrorScopes::push(device);
        let placeholder = || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("batchnorm placeholder"),
                size: PLACEHOLDER_SIZE,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        let placeholders = [placeholder(), placeholder()];
        settle(scopes, "making kernels")?;
        let pipelines = Mutex::new(HashMap::new());
        Ok(Kernels {
            shared: Arc::new(Shared {
                device: device.clone(),
                caps,
                cache,
                create_module: Arc::new(create_module),
                pipelines,
                placeholders,
            }),
        })
    }

    /// Kernels of the same device that have compiled nothing.
    #[cfg(feature = "tune")]
    pub(crate) fn fresh(&self) -> Self {
        let shared = &self.shared;
        Kernels {
            shared: Arc::new(Shared {
                device: shared.device.clone(),
                caps: shared.caps.clone(),
                cache: shared.cache.clone(),
                create_module: Arc::clone(&shared.create_module),
                pipelines: Mutex::default(),
                placeholders: shared.placeholders.clone(),
            }),
        }
    }

    /// What the planner knows of this device.
    pub fn caps(&self) -> &Caps {
        &self.shared.caps
    }

    /// Compiles what a plan needs, without blocking.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver refuses a pipeline; [`Error::OutOfMemory`] and [`Error::DeviceLost`].
    pub async fn prepare_async(&self, plan: &Plan) -> Result<Prepared> {
        // What has too many bindings for the device is bound in part; the arguments say in which.
        let fits = |key: &PipelineKey| {
            key.bindings().count() as u32 <= self.shared.caps.max_storage_buffers
        };
        let missing = plan
            .pipelines()
            .into_iter()
            .filter(|key| fits(key) && self.cached(*key).is_none());
        faults::alive(&self.shared.device, "preparing a plan")?;
        for key in missing {
            let scopes = ErrorScopes::push(&self.shared.device);
            let pipeline = self.compile(key);
            scopes.pop("compiling a kernel").await?;
            self.remember(key, pipeline);
        }
        Ok(Prepared::new(self.clone(), plan.clone()))
    }

    /// Compiles what a plan needs. Off the web, where compilation does not wait for the event loop.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver refuses a pipeline; [`Error::OutOfMemory`] and [`Error::DeviceLost`].
    #[cfg(not(target_family = "wasm"))]
    pub fn prepare(&self, plan: &Plan) -> Result<Prepared> {
        faults::ready(self.prepare_async(plan))
    }

    /// `prepare` without compiling: binding an operation compiles what that one needs.
    pub(crate) fn prepare_lazily(&self, plan: &Plan) -> Prepared {
        Prepared::new(self.clone(), plan.clone())
    }

    /// A pipeline, compiled if it was not yet.
    pub(crate) fn pipeline(&self, key: PipelineKey) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = self.cached(key) {
            return Ok(pipeline);
        }
        let scopes = ErrorScopes::push(&self.shared.device);
        let pipeline = self.compile(key);
        settle(scopes, "compiling a kernel")?;
        Ok(self.remember(key, pipeline))
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.shared.device
    }

    /// A range of a placeholder that no other binding of the kernel gets.
    pub(crate) fn placeholder(&self, binding: &Binding, writes: bool) -> wgpu::BufferBinding<'_> {
        wgpu::BufferBinding {
            buffer: &self.shared.placeholders[usize::from(writes)],
            offset: u64::from(binding.number) * PLACEHOLDER_RANGE,
            size: wgpu::BufferSize::new(PLACEHOLDER_RANGE),
        }
    }

    pub(crate) fn cached(&self, key: PipelineKey) -> Option<Arc<Pipeline>> {
        self.shared
            .pipelines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned()
    }

    fn remember(&self, key: PipelineKey, pipeline: Pipeline) -> Arc<Pipeline> {
        let mut pipelines = self
            .shared
            .pipelines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Two threads may have compiled the same; the first stays.
        let pipeline = pipelines.entry(key).or_insert_with(|| Arc::new(pipeline));
        Arc::clone(pipeline)
    }

    pub(crate) fn compile(&self, key: PipelineKey) -> Pipeline {
        let device = &self.shared.device;
        let entry = key.kernel.entry();
        let label = Some(entry.entry_point);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(entry.file),
            source: wgpu::ShaderSource::Wgsl(key.source().into()),
        };
        let module = (self.shared.create_module)(device, descriptor);
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label,
            entries: &layout_entries(key),
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(entry.entry_point),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &key.constants(),
                zero_initialize_workgroup_memory: ZERO_INITIALIZE_WORKGROUP_MEMORY,
            },
            cache: self.shared.cache.as_ref(),
        });
        Pipeline { pipeline, layout }
    }
}

fn layout_entries(key: PipelineKey) -> Vec<wgpu::BindGroupLayoutEntry> {
    let buffer = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let storage = |b: &Binding| {
        buffer(
            b.number,
            wgpu::BufferBindingType::Storage {
                read_only: !b.writes && !key.pooled,
            },
        )
    };
    std::iter::once(buffer(0, wgpu::BufferBindingType::Uniform))
        .chain(key.bindings().map(storage))
        .collect()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod translations;
