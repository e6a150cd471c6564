//! What runs where: a pure function from a problem and a device's capabilities to dispatches. No GPU handles.

#[cfg(feature = "tune")]
mod candidates;
mod caps;
mod choices;
mod chunks;
mod cut;
mod dispatches;
#[cfg(any(test, fuzzing))]
mod invariants;
mod params;
mod print;
mod strategy;

pub use caps::Caps;
pub use choices::{Choices, Strategy, Walk};
use chunks::Chunks;
pub(crate) use chunks::Sets;
use cut::{Apply, MAX_PIECES, MAX_PIECES_CPU, choose_walk, repetitions};
use params::unit_of;
pub(crate) use params::{ChannelLookup, Params, flags};
use strategy::Fused;

use crate::kernels::{Elements, PipelineKey};
use crate::problem::{MAX_ELEMENTS, Momentum};
use crate::{Error, Problem, Result, RunningVariance};

/// One dispatch: a pipeline, a grid and parameters, without buffers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub key: PipelineKey,
    pub grid: [u32; 2],
    pub params: Params,
}

/// The dispatches that a [`Problem`] becomes on a device, and why. Printable; made without touching the GPU.
///
/// ```
/// use wgpu_batchnorm::{Caps, Choices, Plan, Problem, Strategy, Walk};
/// let plan = Plan::new(&Problem::nchw([32, 64, 56, 56]), &Caps::webgpu_defaults())?;
/// assert_eq!((plan.strategy(), plan.walk()), (Strategy::Split, Walk::Planar));
/// println!("{plan}");
/// # Ok::<(), wgpu_batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    problem: Problem,
    caps: Caps,
    walk: Walk,
    why: String,
    elements: Elements,
    lookup: ChannelLookup,
    reduce_workgroup: u32,
    flat_workgroup: u32,
    merge_workgroup: u32,
    /// The fields that all dispatches share, the geometry of the reduction among them.
    params: Params,
    reduce_workgroups: u64,
    /// Of the second pass: by the reduction's walk where every vector lies in one row or column, flat otherwise.
    apply: Apply,
    strategy: Strategy,
    /// Why that one.
    why_strategy: String,
    /// The parts that a tensor is cut into which one binding cannot hold.
    chunks: Option<Box<Chunks>>,
    /// Whole passes in one dispatch, where the strategy is not split.
    fused: Option<Fused>,
}

impl Plan {
    /// Plans a problem for a device.
    ///
    /// # Errors
    /// What is wrong with the problem ([`Error::EmptyTensor`], [`Error::Eps`], [`Error::Momentum`],
    /// [`Error::TooManyElements`]), [`Error::Unsupported`], and [`Error::Limit`] where the tensor does not fit the
    /// device.
    pub fn new(problem: &Problem, caps: &Caps) -> Result<Self> {
        Self::with(problem, caps, &Choices::default())
    }

    /// Plans with some choices forced.
    ///
    /// # Errors
    /// As [`Plan::new`], and [`Error::Unsupported`] for a choice that is refused.
    pub fn with(problem: &Problem, caps: &Caps, choices: &Choices) -> Result<Self> {
        problem.validate()?;
        caps.require()?;
        let caps = &Caps {
            device_type: choices.device_type.unwrap_or(caps.device_type),
            ..caps.clone()
        };
        // A mask, f32, has fewer elements than a tensor has channels times.
        let mask = if problem.mask {
            4 * problem.count() * problem.groups as u64
        } else {
            0
        };
        let needed = problem.bytes().max(mask);
        if needed > caps.max_binding_size || problem.elements() > MAX_ELEMENTS {
            return Self::chunked(problem, caps, choices, needed);
        }
        for (name, lanes) in [
            ("reduce", choices.reduce_workgroup),
            ("flat", choices.flat_workgroup),
        ] {
            if let Some(lanes) = lanes
                && (!lanes.is_power_of_two() || caps.workgroup(lanes) != lanes)
            {
                let most = caps.workgroup(u32::MAX);
                let what = format!("{name} workgroups of {lanes} lanes");
                return Err(Error::Unsupported {
                    what,
                    remedy: format!("use a power of two from 1 to {most}"),
                });
            }
        }

        let Problem {
            groups,
            outer,
            channels,
            inner,
            ..
        } = *problem;
        // Down the columns, every group must begin at a whole vector.
        let unaligned = groups > 1 && !(outer * channels * inner).is_multiple_of(4);
        // Nor may a row, with its repetitions, have more columns than a tensor elements.
        let columns = (channels * inner) as u64;
        let too_wide = columns * repetitions(columns) > MAX_ELEMENTS;
        let (walk, why) = match choices.walk {
            Some(Walk::Columns) if too_wide => {
                return Err(Error::Unsupported {
                    what: format!("the columns walk over {columns} columns"),
                    remedy: "use planar".into(),
                });
            }
            Some(Walk::Columns) if unaligned => {
                let what = format!(
                    "the columns walk over groups of {} elements",
                    outer * channels * inner
                );
                return Err(Error::Unsupported {
                    what,
                    remedy: "use planar, or groups of a multiple of 4 elements".into(),
                });
            }
            Some(walk) => (walk, "forced".to_owned()),
            None if unaligned => (
                Walk::Planar,
                "groups that are no whole number of vectors".to_owned(),
            ),
            None if too_wide => (Walk::Planar, format!("{columns} columns")),
            None => choose_walk(outer as u64, inner as u64),
        };
        let mut elements = Elements::of(problem.dtype, problem.elements());
        // A GPU moves 16 bytes a lane in one instruction either way.
        if caps.is_cpu() && caps.shader_int64 {
            elements = elements.by_64();
        }
        let lookup = match inner {
            _ if groups > 1 && outer > 1 => ChannelLookup::Grouped,
            1 if problem.statistics() >= 4 => ChannelLookup::ChannelsLast,
            1..4 => ChannelLookup::Any,
            _ if inner.is_multiple_of(4) => ChannelLookup::SameChannel,
            _ => ChannelLookup::NextChannel,
        };
        // Software adapters run a workgroup on one core, 8 lanes at a time, and pay for barriers; a GPU hides latency
        // by lanes in flight.
        let cpu = caps.is_cpu();
        let reduce_workgroup =
            choices
                .reduce_workgroup
                .unwrap_or(caps.workgroup(if cpu { 8 } else { 256 }));
        let flat_workgroup =
            choices
                .flat_workgroup
                .unwrap_or(caps.workgroup(if cpu { 8 } else { 256 }));
        let merge_workgroup = caps.workgroup(if cpu { 8 } else { 64 });
        let mut plan = Plan {
            problem: problem.clone(),
            caps: caps.clone(),
            walk,
            why,
            elements,
            lookup,
            reduce_workgroup,
            flat_workgroup,
            merge_workgroup,
            params: Params::default(),
            reduce_workgroups: 0,
            apply: Apply {
                walk: None,
                params: Params::default(),
                workgroups: 0,
            },
            strategy: Strategy::Split,
            why_strategy: String::new(),
            chunks: None,
            fused: None,
        };
        plan.params = plan.common();
        let most = if cpu { MAX_PIECES_CPU } else { MAX_PIECES };
        let ceiling = choices.pieces.map_or(most, u64::from).clamp(1, MAX_PIECES);
        let cut = |plan: &Plan, lanes, ceiling| match walk {
            Walk::Planar => plan.cut_planar(lanes, ceiling),
            Walk::Columns => plan.cut_columns(lanes, ceiling),
        };
        (plan.params, plan.reduce_workgroups) = cut(&plan, reduce_workgroup, ceiling);
        let forced_flat = choices.flat_workgroup.is_some() || choices.flat_workgroups.is_some();
        plan.apply = if forced_flat || (walk == Walk::Planar && plan.ragged()) {
            plan.cut_flat(choices.flat_workgroups)
        } else {
            // Nothing is merged after it: as many pieces as keep a device busy.
            let (params, workgroups) = cut(&plan, flat_workgroup, u64::MAX);
            Apply {
                walk: Some(walk),
                params,
                workgroups,
            }
        };
        plan.choose_strategy(choices)?;
        plan.fits()?;
        Ok(plan)
    }

    /// Whether every dispatch can be made on the device.
    fn fits(&self) -> Result<()> {
        let per_dimension = u64::from(self.caps.max_workgroups_per_dimension);
        for step in self.steps() {
            let [x, y] = step.grid.map(u64::from);
            if x.max(y) > per_dimension {
                return Err(Error::Limit {
                    what: format!("{} in two dimensions", step.key.kernel.entry().entry_point),
                    needed: x.max(y),
                    limit: per_dimension,
                    name: "max_compute_workgroups_per_dimension",
                    remedy: "request a device with this limit raised, or split the tensor along its outer dimension".into(),
                });
            }
        }
        let of_one = u64::from(self.params.slots)
            * u64::from(self.params.repetitions)
            * u64::from(self.params.span);
        self.can_merge(of_one * self.problem.groups as u64)
    }

    /// The problem.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// How the work is cut.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// How reductions walk.
    pub fn walk(&self) -> Walk {
        self.walk
    }

    /// Bytes of device memory that a bound operation allocates for itself at most, besides its uniforms, on a device with
    /// the 8 storage buffers of WebGPU: two or three records of 16 bytes for each channel of each group, and partial results
    /// of half a percent of the tensor and half a megabyte at most, or one record for each channel or column.
    pub fn workspace_bytes(&self) -> u64 {
        if self.is_chunked() {
            let sets = self.chunk_sets();
            let moments = u64::from(sets.count) * u64::from(sets.stride) * 16;
            return moments + self.partials_bytes() + 2 * self.coefficients_bytes();
        }
        let gradients = if self.problem.groups > 1 { 1 } else { 0 };
        self.partials_bytes() + (2 + gradients) * self.coefficients_bytes()
    }

    fn common(&self) -> Params {
        let p = &self.problem;
        let (weight_old, weight_new, cumulative) = match p.momentum {
            Momentum::NewWeight(w) => ((1.0 - w) as f32, w as f32, 0),
            Momentum::Cumulative => (0.0, 0.0, flags::CUMULATIVE),
        };
        let unbiased = if p.running_variance == RunningVariance::Unbiased {
            flags::UNBIASED
        } else {
            0
        };
        // What is larger than 2³¹ elements is cut before; so every product of dimensions fits.
        Params {
            elements: p.elements() as u32,
            channels: p.channels as u32,
            inner: p.inner as u32,
            count: p.count() as u32,
            statistics: p.statistics() as u32,
            group_elements: (p.elements() / p.groups as u64) as u32,
            outer_elements: (p.channels * p.inner) as u32,
            slope: p.activation.slope() as f32,
            vectors: p.elements().div_ceil(4) as u32,
            flags: cumulative | unbiased,
            eps: p.eps as f32,
            weight_old,
            weight_new,
            mask_pieces: self.mask_pieces() as u32,
            square_unit: unit_of(p.count().saturating_mul(p.groups as u64)),
            result_unit: 1.0,
            ..Params::default()
        }
    }

    pub(crate) fn max_binding_size(&self) -> u64 {
        self.caps.max_binding_size
    }

    /// Bytes of the partial results.
    pub(crate) fn partials_bytes(&self) -> u64 {
        if let Some(chunks) = &self.chunks {
            let [each, last] = chunks.kinds().map(Plan::partials_bytes);
            return each.max(last);
        }
        u64::from(self.params.slots) * u64::from(self.params.slot_stride) * 16
    }

    /// Bytes of one set of coefficients, moments or gradient sums: four f32 per statistic.
    pub(crate) fn coefficients_bytes(&self) -> u64 {
        self.problem.statistics() as u64 * 16
    }
}

#[cfg(test)]
mod tests;
