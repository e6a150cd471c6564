//! The kernels' WGSL, for tools that translate or compile it without a device.

use std::collections::BTreeSet;
use std::fmt;

use crate::kernels::{Elements, PipelineKey, TABLE, ZERO_INITIALIZE_WORKGROUP_MEMORY};
use crate::plan::{ChannelLookup, Plan};
use crate::{Activation, Dtype};

/// What one pipeline is made of: a whole WGSL module, its entry point, and the values of its overridable constants.
///
/// It prints as its entry point, how elements lie in words, the lanes of a workgroup, and what is switched on.
///
/// ```
/// use wgpu_batchnorm::{Caps, Plan, Problem, Shader};
/// let plan = Plan::new(&Problem::nchw([32, 64, 56, 56]), &Caps::webgpu_defaults())?;
/// for shader in plan.shaders() {
///     println!("{shader}: {} bytes of WGSL", shader.source().len());
/// }
/// assert!(Shader::all(64).len() > plan.shaders().len());
/// # Ok::<(), wgpu_batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shader(PipelineKey);

impl Shader {
    /// Every variant that some problem with some arguments can lead to on a device with WebGPU's 8 storage buffers, and those
    /// of a device with 4, with so many lanes to a workgroup (a power of two).
    pub fn all(workgroup: u32) -> Vec<Shader> {
        const SWITCHES: [bool; 2] = [false, true];
        const LOOKUPS: [ChannelLookup; 5] = [
            ChannelLookup::SameChannel,
            ChannelLookup::NextChannel,
            ChannelLookup::ChannelsLast,
            ChannelLookup::Any,
            ChannelLookup::Grouped,
        ];
        let all_elements: BTreeSet<Elements> = Dtype::ALL
            .into_iter()
            .flat_map(|dtype| [4, 1].map(|count| Elements::of(dtype, count)))
            .collect();
        let mut keys = BTreeSet::new();
        for entry in &TABLE {
            for &elements in &all_elements {
                if !entry.has_tensors() && elements != Elements::F32x4 {
                    continue;
                }
                for activation in Activation::ALL.map(Activation::code) {
                    for lookup in LOOKUPS {
                        for switches in 0..2 * 128usize {
                            let [residual, ragged, mask, in_place, frozen, holds, pooled] =
                                [0, 1, 2, 3, 4, 5, 6].map(|bit| SWITCHES[switches >> bit & 1]);
                            let across = [1, 2][switches >> 7];
                            let key = PipelineKey {
                                activation,
                                residual,
                                lookup,
                                ragged,
                                mask,
                                in_place,
                                frozen,
                                held: if holds { 4 } else { 0 },
                                pooled,
                                across: if mask { 1 } else { across },
                                ..PipelineKey::new(entry.kernel, elements, workgroup)
                            }
                            .canonical();
                            keys.insert(key);
                            keys.extend(key.with_few_bindings());
                        }
                    }
                }
            }
        }
        keys.into_iter().map(Shader).collect()
    }

    /// The whole module.
    pub fn source(&self) -> String {
        self.0.source()
    }

    /// The compute entry point in it.
    pub fn entry_point(&self) -> &'static str {
        self.0.kernel.entry().entry_point
    }

    /// Names and values of the overridable constants, as `PipelineCompilationOptions` takes them.
    pub fn constants(&self) -> Vec<(&'static str, f64)> {
        self.0.constants().to_vec()
    }

    /// Lanes of a workgroup.
    pub fn workgroup(&self) -> u32 {
        self.0.workgroup
    }

    /// The storage bindings besides the uniform at 0: the number of each, and whether it is bound read_write.
    pub fn bindings(&self) -> Vec<(u32, bool)> {
        let bindings = self.0.bindings();
        bindings
            .map(|b| (b.number, b.writes || self.0.pooled))
            .collect()
    }

    /// Whether workgroup memory is to be zero before the shader runs, as `PipelineCompilationOptions` takes it.
    pub fn zero_initializes_workgroup_memory(&self) -> bool {
        ZERO_INITIALIZE_WORKGROUP_MEMORY
    }

    /// Whether it passes over whole tensors, and not over per-channel arrays alone.
    pub fn is_pass(&self) -> bool {
        self.0.kernel.entry().has_tensors()
    }
}

impl fmt::Display for Shader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.0;
        write!(f, "{}", self.entry_point())?;
        if self.is_pass() {
            write!(f, " {}", key.elements.name())?;
        }
        write!(f, " x{}", key.workgroup)?;
        let default = PipelineKey::new(key.kernel, key.elements, key.workgroup);
        if let Some(activation) = Activation::ALL.get(key.activation as usize)
            && key.activation != 0
        {
            let name = activation.to_string();
            write!(f, " {}", name.split(':').next().unwrap_or(&name))?;
        }
        if key.lookup != default.lookup {
            write!(f, " {:?}", key.lookup)?;
        }
        for (on, name) in [
            (key.residual, "residual"),
            (!key.ragged, "whole"),
            (key.mask, "mask"),
            (key.in_place, "in-place"),
            (key.frozen, "frozen"),
            (key.joined, "joined"),
            (key.pooled, "pooled"),
        ] {
            if on {
                write!(f, " {name}")?;
            }
        }
        if key.held != 0 {
            write!(f, " held {}", key.held)?;
        }
        if key.across != 1 {
            write!(f, " across {}", key.across)?;
        }
        if key.absent != 0 {
            write!(f, " without")?;
            for binding in self.0.kernel.entry().bindings {
                if key.absent >> binding.number & 1 == 1 {
                    write!(f, " {}", binding.name)?;
                }
            }
        }
        Ok(())
    }
}

impl Plan {
    /// The shaders of every pipeline that an operation of this plan may use, but for those that arguments decide
    /// (in place, pooled).
    pub fn shaders(&self) -> Vec<Shader> {
        self.pipelines().into_iter().map(Shader).collect()
    }
}
