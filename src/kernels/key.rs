//! What changes a kernel's code, and the code that comes of it.

use super::table::Override::{
    Across as ACROSS, Activation as ACTIVATION, ChannelLookup as LOOKUP, Frozen as FROZEN,
    Held as HELD, InPlace as IN_PLACE, Joined as JOINED, Mask as MASK, Ragged as RAGGED,
    Residual as RESIDUAL,
};
use super::table::{Binding, COMMON, Entry, Kernel, Slot, TENSORS, shader};
use crate::Dtype;
use crate::plan::ChannelLookup;

/// How the elements of a tensor lie in its buffer, and with it the header that a shader gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Elements {
    /// Whole 16-byte vectors of f32.
    F32x4,
    /// The same, moved as 64-bit integers.
    F32x4By64,
    /// Single f32, where the count is not a multiple of 4.
    F32x1,
    /// Four f16 to an 8-byte word.
    F16x4,
    /// The same as a 64-bit integer.
    F16x4By64,
    /// Two f16 to a 4-byte word, where the count is not a multiple of 4.
    F16x2,
    /// Four bf16 to an 8-byte word.
    Bf16x4,
    /// The same as a 64-bit integer.
    Bf16x4By64,
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

    /// The same in words that are made of 64-bit integers, where there are such words.
    pub(crate) fn by_64(self) -> Self {
        match self {
            Elements::F32x4 => Elements::F32x4By64,
            Elements::F16x4 => Elements::F16x4By64,
            Elements::Bf16x4 => Elements::Bf16x4By64,
            other => other,
        }
    }

    pub(crate) fn is_by_64(self) -> bool {
        matches!(
            self,
            Elements::F32x4By64 | Elements::F16x4By64 | Elements::Bf16x4By64
        )
    }

    /// Bytes of one word.
    pub(crate) fn word_bytes(self) -> u64 {
        match self {
            Elements::F32x4 | Elements::F32x4By64 => 16,
            Elements::F16x4 | Elements::F16x4By64 => 8,
            Elements::Bf16x4 | Elements::Bf16x4By64 => 8,
            Elements::F32x1 | Elements::F16x2 | Elements::Bf16x2 => 4,
        }
    }

    /// As the header's file, and the type that it holds.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Elements::F32x4 => "f32x4",
            Elements::F32x4By64 => "f32x4 by 64 bits",
            Elements::F32x1 => "f32x1",
            Elements::F16x4 => "f16 half4",
            Elements::F16x4By64 => "f16 half4 by 64 bits",
            Elements::F16x2 => "f16 half2",
            Elements::Bf16x4 => "bf16 half4",
            Elements::Bf16x4By64 => "bf16 half4 by 64 bits",
            Elements::Bf16x2 => "bf16 half2",
        }
    }

    /// The conversion, where there is one, and the words.
    pub(crate) fn header(self) -> [&'static str; 2] {
        match self {
            Elements::F32x4 => ["", shader!("elements/f32x4")],
            Elements::F32x4By64 => ["", shader!("elements/f32x4_by64")],
            Elements::F32x1 => ["", shader!("elements/f32x1")],
            Elements::F16x4 => [shader!("elements/f16"), shader!("elements/half4")],
            Elements::F16x4By64 => [shader!("elements/f16"), shader!("elements/half4_by64")],
            Elements::F16x2 => [shader!("elements/f16"), shader!("elements/half2")],
            Elements::Bf16x4 => [shader!("elements/bf16"), shader!("elements/half4")],
            Elements::Bf16x4By64 => [shader!("elements/bf16"), shader!("elements/half4_by64")],
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
    /// Vectors of a row that a lane takes at once: columns that it goes down.
    pub across: u32,
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
            across: 1,
            pooled: false,
            absent: 0,
        }
    }

    /// Constants that the kernel does not use at their default, so that equal code has equal keys.
    pub(crate) fn canonical(self) -> Self {
        let default = Self::new(self.kernel, self.elements, self.workgroup);
        let uses = |o| self.kernel.entry().overrides.contains(&o);
        let across = if uses(ACROSS) { self.across } else { 1 };
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
            ragged: (self.ragged && across == 1) || !uses(RAGGED),
            // Frozen statistics do not depend on the input, whatever was masked when they were taken.
            mask: uses(MASK) && self.mask && !self.frozen && self.held == 0 && !backward,
            in_place: uses(IN_PLACE) && self.in_place && !fused,
            frozen: uses(FROZEN) && self.frozen && !fused,
            joined: uses(JOINED) && self.joined,
            held: if uses(HELD) { self.held } else { 0 },
            across,
            ..self
        }
    }

    pub(crate) fn constants(&self) -> [(&'static str, f64); 11] {
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
            ("ACROSS", f64::from(self.across)),
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
