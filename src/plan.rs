//! What runs where: a pure function from a problem and a device's capabilities to dispatches. No GPU handles.

use std::collections::BTreeSet;
use std::fmt;

use crate::kernels::{Elements, Kernel, PipelineKey};
use crate::problem::{MAX_ELEMENTS, Momentum};
use crate::{Activation, Dtype, Error, Problem, Result, RunningVariance};

/// What the planner knows of a device. [`Caps::of`] reads it; tests make their own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caps {
    /// The adapter's kind; software adapters (`Cpu`) want other sizes than GPUs.
    pub device_type: wgpu::DeviceType,
    /// `max_compute_invocations_per_workgroup`, and no more than one dimension allows.
    pub max_workgroup_size: u32,
    /// `max_compute_workgroups_per_dimension`.
    pub max_workgroups_per_dimension: u32,
    /// `max_storage_buffer_binding_size` in bytes, and no more than a buffer may have.
    pub max_binding_size: u64,
    /// `max_storage_buffers_per_shader_stage`.
    pub max_storage_buffers: u32,
    /// `max_compute_workgroup_storage_size` in bytes.
    pub max_workgroup_storage: u32,
    /// `min_storage_buffer_offset_alignment` in bytes.
    pub offset_alignment: u32,
}

impl Caps {
    /// What WebGPU guarantees on a GPU: the limits of `wgpu::Limits::default()`.
    pub fn webgpu_defaults() -> Self {
        Self::from_limits(&wgpu::Limits::default(), wgpu::DeviceType::DiscreteGpu)
    }

    /// Reads a device's.
    ///
    /// # Errors
    /// [`Error::Limit`] where the device is below what any kernel needs.
    pub fn of(device: &wgpu::Device) -> Result<Self> {
        let caps = Self::from_limits(&device.limits(), device.adapter_info().device_type);
        caps.require()?;
        Ok(caps)
    }

    /// Capabilities by limits and kind of adapter.
    pub fn from_limits(limits: &wgpu::Limits, device_type: wgpu::DeviceType) -> Self {
        Caps {
            device_type,
            max_workgroup_size: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_binding_size: limits
                .max_storage_buffer_binding_size
                .min(limits.max_buffer_size),
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_workgroup_storage: limits.max_compute_workgroup_storage_size,
            offset_alignment: limits.min_storage_buffer_offset_alignment,
        }
    }

    /// Whether a device with these capabilities runs the kernels at all.
    ///
    /// # Errors
    /// [`Error::Limit`] for the limit that is too low.
    pub fn require(&self) -> Result<()> {
        let at_least = |needed: u64, limit: u64, name: &'static str| {
            if limit >= needed {
                return Ok(());
            }
            let remedy = "request the device with this limit raised, or use another adapter".into();
            Err(Error::Limit {
                what: "batch norm".into(),
                needed,
                limit,
                name,
                remedy,
            })
        };
        at_least(
            4,
            self.max_storage_buffers.into(),
            "max_storage_buffers_per_shader_stage",
        )?;
        at_least(
            32,
            self.max_workgroup_size.into(),
            "max_compute_invocations_per_workgroup",
        )?;
        at_least(
            32 * SCRATCH_PER_LANE,
            self.max_workgroup_storage.into(),
            "max_compute_workgroup_storage_size",
        )?;
        at_least(
            256,
            self.max_workgroups_per_dimension.into(),
            "max_compute_workgroups_per_dimension",
        )
    }

    fn is_cpu(&self) -> bool {
        self.device_type == wgpu::DeviceType::Cpu
    }

    /// `wanted` lanes, or the largest power of two that the device and the scratch of a reduction allow.
    fn workgroup(&self, wanted: u32) -> u32 {
        let by_storage = self.max_workgroup_storage / SCRATCH_PER_LANE as u32;
        let most = self.max_workgroup_size.min(by_storage).max(1);
        wanted.min(1 << most.ilog2())
    }
}

/// Workgroup memory of a reduction: two vectors of four f32 per lane.
const SCRATCH_PER_LANE: u64 = 32;

/// How the work is cut over workgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// A channel, or a tile of channels, stays in one workgroup's registers: read once, write once.
    Resident,
    /// One workgroup per channel reads it twice, in one dispatch.
    Streaming,
    /// Channels are cut into pieces over many workgroups; partial results are merged in a fixed order.
    Split,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Strategy::Resident => "resident",
            Strategy::Streaming => "streaming",
            Strategy::Split => "split",
        })
    }
}

/// How reductions walk the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Walk {
    /// Row by row, a row being one channel of one outer index: long inner dimensions.
    Planar,
    /// Down the columns of the matrix `[outer, channels · inner]`: channels last, and short inner dimensions.
    Columns,
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Walk::Planar => "planar",
            Walk::Columns => "columns",
        })
    }
}

/// Choices of the planner that a caller (a test, a tuner) may force. `None` leaves one to the planner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choices {
    /// How the work is cut.
    pub strategy: Option<Strategy>,
    /// How reductions walk.
    pub walk: Option<Walk>,
    /// Pieces per channel (planar) or column, at most, up to 512; the planner's ceiling is 64 on software adapters.
    pub pieces: Option<u32>,
    /// Lanes of a reducing workgroup, a power of two from 1.
    pub reduce_workgroup: Option<u32>,
    /// Lanes of a flat workgroup, a power of two from 1.
    pub flat_workgroup: Option<u32>,
    /// Workgroups of a flat dispatch, at most.
    pub flat_workgroups: Option<u32>,
    /// Plan as for another kind of adapter: a software adapter can check a GPU's plans.
    pub device_type: Option<wgpu::DeviceType>,
}

impl Choices {
    /// Forces a strategy.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Forces a walk.
    pub fn walk(mut self, walk: Walk) -> Self {
        self.walk = Some(walk);
        self
    }

    /// Forces a ceiling on pieces.
    pub fn pieces(mut self, pieces: u32) -> Self {
        self.pieces = Some(pieces);
        self
    }

    /// Forces the lanes of flat workgroups.
    pub fn flat_workgroup(mut self, lanes: u32) -> Self {
        self.flat_workgroup = Some(lanes);
        self
    }

    /// Forces a ceiling on the workgroups of flat dispatches.
    pub fn flat_workgroups(mut self, workgroups: u32) -> Self {
        self.flat_workgroups = Some(workgroups);
        self
    }

    /// Plans as for another kind of adapter.
    pub fn device_type(mut self, device_type: wgpu::DeviceType) -> Self {
        self.device_type = Some(device_type);
        self
    }

    /// Forces the lanes of reducing workgroups.
    pub fn reduce_workgroup(mut self, lanes: u32) -> Self {
        self.reduce_workgroup = Some(lanes);
        self
    }
}

/// Parameters of one dispatch: the uniform of the same name in `shaders/prelude.wgsl`, where its fields are explained.
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
    /// The parts that a tensor is cut into which one binding cannot hold; empty otherwise.
    chunks: Vec<Chunk>,
    /// Whole passes in one dispatch, where the strategy is not split.
    fused: Option<Fused>,
}

/// A part of a tensor: some of its outer indices, or of the only channel's values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chunk {
    /// Its first element in the tensor.
    pub(crate) start: u64,
    pub(crate) plan: Plan,
}

/// Records that are merged: one for each statistic and set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sets {
    pub(crate) count: u32,
    /// Records from one set to the next.
    pub(crate) stride: u32,
    /// Of M2 in them.
    pub(crate) unit: f32,
}

/// How a pass in one dispatch is cut: a workgroup per channel, or per tile of columns.
#[derive(Debug, Clone, PartialEq)]
struct Fused {
    params: Params,
    workgroups: u64,
    lanes: u32,
    /// Vectors that a lane holds in registers: forward, and of either tensor backward; 0 where it reads twice.
    held: u32,
    lanes_backward: u32,
    held_backward: u32,
    params_backward: Params,
    workgroups_backward: u64,
}

/// How the second pass goes over the tensor.
#[derive(Debug, Clone, PartialEq)]
struct Apply {
    walk: Option<Walk>,
    params: Params,
    workgroups: u64,
}

/// Vectors that a lane holds in registers, at most: the constants of the same meaning in the fused kernels.
const MOST_HELD: u32 = 16;
const MOST_HELD_BACKWARD: u32 = 8;

/// What the cost model knows of a kind of adapter.
struct CostModel {
    /// Of a tensor copied, read and write together counted once.
    bytes_per_us: f64,
    /// Of one dispatch, its barrier included.
    dispatch_us: f64,
    /// Bytes that the last-level cache keeps between two dispatches, and what reading them again costs of a first read.
    cache: f64,
    cached_read: f64,
    /// The same for the cache next to a compute unit, within one dispatch.
    near_cache: f64,
    near_read: f64,
    /// Lanes that keep the memory busy.
    lanes: f64,
}

/// A GPU of today, whatever its maker.
const GPU: CostModel = CostModel {
    bytes_per_us: 500_000.0,
    dispatch_us: 4.0,
    cache: 24e6,
    cached_read: 0.4,
    near_cache: 128e3,
    near_read: 0.3,
    lanes: 65_536.0,
};

/// lavapipe and its like on a few cores: arithmetic and memory take about the same time, so that caches save little, and
/// a channel's rows, far apart, are read a little slower than a piece of them all.
const CPU: CostModel = CostModel {
    bytes_per_us: 4_000.0,
    dispatch_us: 30.0,
    cache: 0.0,
    cached_read: 1.0,
    near_cache: f64::INFINITY,
    near_read: 1.15,
    lanes: 64.0,
};

/// A channel's partial results, at most; so that merging them costs next to nothing. A GPU needs that many where a few
/// tiles of columns are all there is, and merges them by many lanes.
const MAX_PIECES: u64 = 512;
const MAX_PIECES_CPU: u64 = 64;

/// Of a core's cache, what a piece of all columns may take on a software adapter.
const CPU_PIECE_BYTES: u64 = 64 << 10;

/// The unit of squares in partial moments; the constant of the same name in the prelude.
pub(crate) const SQUARE_UNIT: f32 = 1.0 / 4_294_967_296.0;

/// llvmpipe ends the loops of an invocation, silently, after 65535 iterations in all. A merge goes over its records
/// three times.
const MERGE_RECORDS_PER_LANE: u64 = 16_384;
/// The same for the positions of a mask. A piece is counted in f32, exactly below 2²⁴.
const MASK_PER_LANE: u64 = 16_384;

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
        let elements = Elements::of(problem.dtype, problem.elements());
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
            chunks: Vec::new(),
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

    /// A tensor that one binding cannot hold, cut at places that a binding may start at. Each chunk is a problem of its
    /// own, whose moments are merged with the others'.
    fn chunked(problem: &Problem, caps: &Caps, choices: &Choices, needed: u64) -> Result<Self> {
        let refused = |what: &str| {
            Error::Limit {
            what: format!(
                "a tensor of {} {} elements{what}",
                problem.elements(),
                problem.dtype
            ),
            needed,
            limit: caps.max_binding_size,
            name: "max_storage_buffer_binding_size and max_buffer_size",
            remedy: "request a device with these limits raised, or split the tensor along its outer dimension".into(),
        }
        };
        if problem.mask || problem.groups > 1 {
            return Err(refused(", with a mask or in groups,"));
        }
        if !matches!(choices.strategy, None | Some(Strategy::Split)) {
            return Err(Error::Unsupported {
                what: "a strategy other than split for a tensor that one binding cannot hold"
                    .into(),
                remedy: "use split, or leave the choice to the planner".into(),
            });
        }
        // What may be cut off: an outer index, or, where there is one channel, any value.
        let (unit, units) = match problem.channels {
            1 => (1, problem.elements()),
            _ => (
                (problem.channels as u64).saturating_mul(problem.inner as u64),
                problem.outer as u64,
            ),
        };
        let unit_bytes = unit.saturating_mul(problem.dtype.bytes());
        let alignment = u64::from(caps.offset_alignment).max(16);
        // So many units together are a multiple of the alignment, a power of two.
        let aligned = (alignment >> unit_bytes.trailing_zeros().min(alignment.ilog2())).max(1);
        let most = caps
            .max_binding_size
            .min(MAX_ELEMENTS * problem.dtype.bytes())
            / unit_bytes;
        let most = most - most % aligned;
        if most == 0 {
            return Err(refused(&format!(
                ", of which {} must be bound together,",
                aligned.saturating_mul(unit)
            )));
        }
        // All alike but the last.
        let count = units.div_ceil(most);
        let length = units.div_ceil(count).next_multiple_of(aligned);
        let split = Choices {
            strategy: Some(Strategy::Split),
            ..choices.clone()
        };
        let mut chunks = Vec::new();
        for first in (0..units).step_by(length as usize) {
            let here = length.min(units - first) as usize;
            let part = match problem.channels {
                1 => Problem {
                    outer: 1,
                    inner: here,
                    ..problem.clone()
                },
                _ => Problem {
                    outer: here,
                    ..problem.clone()
                },
            };
            chunks.push(Chunk {
                start: first * unit,
                plan: Self::with(&part, caps, &split)?,
            });
        }
        let count = u32::try_from(problem.count()).map_err(|_| Error::TooManyElements {
            elements: problem.count().into(),
            limit: u32::MAX.into(),
        })?;
        let mut plan = chunks[0].plan.clone();
        plan.problem = problem.clone();
        plan.params.count = count;
        plan.why_strategy = format!("{} chunks, each of which a binding holds", chunks.len());
        plan.chunks = chunks;
        plan.can_merge(plan.chunks.len() as u64)?;
        Ok(plan)
    }

    /// The tensor's parts: itself, or chunks of it, with their first elements.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (u64, &Plan)> {
        let whole = self.chunks.is_empty().then_some((0, self));
        let chunks = self.chunks.iter().map(|c| (c.start, &c.plan));
        whole.into_iter().chain(chunks)
    }

    pub(crate) fn is_chunked(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// One record for each statistic of each chunk, each set at a place that a binding may start at.
    pub(crate) fn chunk_sets(&self) -> Sets {
        Sets {
            count: self.chunks.len() as u32,
            stride: self.params.statistics.next_multiple_of(16),
            unit: SQUARE_UNIT,
        }
    }

    /// Of the strategies that can run, the cheapest by [`cost`](Self::cost), or the one that is forced.
    fn choose_strategy(&mut self, choices: &Choices) -> Result<()> {
        let fusable = self.fusable();
        if let Some(strategy) = choices.strategy {
            self.why_strategy = "forced".into();
            self.strategy = strategy;
            if strategy == Strategy::Split {
                return Ok(());
            }
            self.fused = match fusable {
                Err(why) => Err(why),
                Ok(()) => self.fuse(strategy),
            }
            .map(Some)
            .map_err(|why| Error::Unsupported {
                what: format!("the {strategy} strategy for {why}"),
                remedy: "use split, or leave the choice to the planner".into(),
            })?;
            return Ok(());
        }
        // A caller who forces how the dispatches of split are cut means split.
        let forced = Choices {
            walk: None,
            device_type: None,
            ..choices.clone()
        } != Choices::default();
        if forced || fusable.is_err() {
            self.why_strategy = fusable.err().unwrap_or_else(|| "forced sizes".into());
            return Ok(());
        }
        let mut best = (self.cost(Strategy::Split, None), Strategy::Split, None);
        for strategy in [Strategy::Streaming, Strategy::Resident] {
            if let Ok(fused) = self.fuse(strategy) {
                let cost = self.cost(strategy, Some(&fused));
                if cost < best.0 {
                    best = (cost, strategy, Some(fused));
                }
            }
        }
        let split = self.cost(Strategy::Split, None);
        self.why_strategy = format!("{:.0} µs by the model, split {split:.0}", best.0);
        (self.strategy, self.fused) = (best.1, best.2);
        Ok(())
    }

    /// Whether a workgroup can go over whole channels by itself: their vectors must be theirs alone.
    fn fusable(&self) -> Result<(), String> {
        let p = &self.problem;
        match self.walk {
            Walk::Planar if !p.inner.is_multiple_of(4) => {
                Err("rows that are no whole number of vectors".into())
            }
            Walk::Columns if p.inner > 1 => Err("columns of several to a channel".into()),
            Walk::Columns if !p.channels.is_multiple_of(4) => {
                Err("rows that are no whole number of vectors".into())
            }
            _ => Ok(()),
        }
    }

    /// Cuts a pass in one dispatch.
    fn fuse(&self, strategy: Strategy) -> Result<Fused, String> {
        let resident = strategy == Strategy::Resident;
        if resident && self.problem.mask {
            return Err("masks".into());
        }
        let cut = |most_held: u32| -> Result<_, String> {
            let (lanes, held) = if resident {
                self.resident_lanes(most_held)?
            } else {
                (self.streaming_lanes(), 0)
            };
            let (mut params, _) = match self.walk {
                Walk::Planar => self.cut_planar(lanes, 1),
                Walk::Columns => self.cut_columns_by(lanes, 1, self.fused_tile(lanes)),
            };
            // One piece, whatever its length: these kernels start at 0 and end at the end.
            params.piece_length = match self.walk {
                Walk::Planar => params.rows * params.row_vectors,
                Walk::Columns => params.rows,
            };
            let workgroups = match self.walk {
                Walk::Planar => self.problem.statistics() as u64,
                Walk::Columns => {
                    u64::from(params.row_vectors.div_ceil(params.tile)) * self.problem.groups as u64
                }
            };
            Ok((params, workgroups, lanes, held))
        };
        let (params, workgroups, lanes, held) = cut(MOST_HELD)?;
        let (params_backward, workgroups_backward, lanes_backward, held_backward) =
            cut(MOST_HELD_BACKWARD)?;
        Ok(Fused {
            params,
            workgroups,
            lanes,
            held,
            lanes_backward,
            held_backward,
            params_backward,
            workgroups_backward,
        })
    }

    /// Vectors side by side in a workgroup that goes down whole columns.
    fn fused_tile(&self, lanes: u32) -> u32 {
        let row_vectors = (self.problem.channels as u32 / 4).next_power_of_two();
        row_vectors.min(8).min(lanes)
    }

    fn streaming_lanes(&self) -> u32 {
        self.caps
            .workgroup(if self.caps.is_cpu() { 8 } else { 512 })
    }

    /// As few lanes as hold a channel, or a tile of columns, in their registers, and how many vectors each has to.
    fn resident_lanes(&self, most_held: u32) -> Result<(u32, u32), String> {
        let p = &self.problem;
        let most = self.caps.workgroup(1024);
        let least = self.caps.workgroup(if self.caps.is_cpu() { 8 } else { 64 });
        let mut lanes = least;
        loop {
            let per_lane = match self.walk {
                Walk::Planar => (p.outer as u64 * (p.inner as u64 / 4)).div_ceil(lanes.into()),
                Walk::Columns => {
                    (p.outer as u64).div_ceil(u64::from(lanes / self.fused_tile(lanes)))
                }
            };
            // Few vectors a lane while there are lanes to be had: more of them are in flight.
            let wanted = if lanes < most {
                most_held / 2
            } else {
                most_held
            };
            if per_lane <= u64::from(wanted) {
                return Ok((lanes, (per_lane as u32).next_power_of_two()));
            }
            if lanes >= most {
                return Err(format!(
                    "{per_lane} vectors a lane, where registers hold {most_held}"
                ));
            }
            lanes *= 2;
        }
    }

    /// Microseconds of a training forward pass, by bytes moved and dispatches; ARCHITECTURE.md has the model.
    fn cost(&self, strategy: Strategy, fused: Option<&Fused>) -> f64 {
        let model = &if self.caps.is_cpu() { CPU } else { GPU };
        let bytes = self.problem.bytes() as f64;
        let tensor = bytes / model.bytes_per_us;
        // A workgroup's own part, which its second read finds in the cache next to it or not.
        let (workgroups, lanes) = fused.map_or((0, 0), |f| (f.workgroups, f.lanes));
        let again = |of_one: f64| {
            if of_one <= model.near_cache {
                model.near_read
            } else {
                1.0
            }
        };
        let in_flight = (workgroups as f64 * f64::from(lanes) / model.lanes).min(1.0);
        match strategy {
            Strategy::Split => {
                let second = if bytes <= model.cache {
                    model.cached_read
                } else {
                    1.0
                };
                tensor * (0.5 + 0.5 * second + 0.5) + 3.0 * model.dispatch_us
            }
            Strategy::Streaming => {
                let second = again(bytes / workgroups.max(1) as f64);
                tensor * (0.5 + 0.5 * second + 0.5) / in_flight + model.dispatch_us
            }
            // A software adapter's registers are memory, and the many lanes of a workgroup run one after the other.
            Strategy::Resident if self.caps.is_cpu() => f64::INFINITY,
            Strategy::Resident => tensor / in_flight + model.dispatch_us,
        }
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

    /// Bytes of device memory that a bound operation allocates for itself, besides its uniforms.
    pub fn workspace_bytes(&self) -> u64 {
        if self.is_chunked() {
            let sets = self.chunk_sets();
            let moments = u64::from(sets.count) * u64::from(sets.stride) * 16;
            let partials = self.chunks.iter().map(|c| c.plan.partials_bytes()).max();
            return moments + partials.unwrap_or(0) + 2 * self.coefficients_bytes();
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
        // `Problem::validate` bounds the elements, and with them every product of dimensions, by 2³¹.
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
            square_unit: SQUARE_UNIT,
            result_unit: 1.0,
            ..Params::default()
        }
    }

    /// Workgroups that keep a device busy: enough for every compute unit of a large GPU several times over, or for the
    /// cores that a software adapter has.
    fn enough_workgroups(&self) -> u64 {
        if self.caps.is_cpu() { 64 } else { 2048 }
    }

    /// Whether vectors of the reduction may reach past their row, or past the matrix.
    fn ragged(&self) -> bool {
        match self.walk {
            Walk::Planar => !self.problem.inner.is_multiple_of(4),
            Walk::Columns => self.params.repetitions > 1,
        }
    }

    /// Parameters and workgroups of a planar walk in at most `ceiling` pieces a channel.
    fn cut_planar(&self, lanes: u32, ceiling: u64) -> (Params, u64) {
        let mut params = self.params;
        let (outer, inner) = (self.problem.outer as u64, self.problem.inner as u64);
        let (channels, statistics) = (self.params.channels, self.problem.statistics() as u64);
        let lanes = u64::from(lanes);
        // A row of `inner` elements that starts at any alignment touches at most this many aligned vectors.
        let row_vectors = if inner.is_multiple_of(4) {
            inner / 4
        } else {
            (inner + 6) / 4
        };
        let total = outer * row_vectors;
        // Eight vectors a lane at least, so that what a piece costs besides its reads does not show.
        let wanted = self
            .enough_workgroups()
            .div_ceil(statistics)
            .min(total.div_ceil(8 * lanes))
            .clamp(1, ceiling);
        let piece_length = total.div_ceil(wanted).next_multiple_of(lanes);
        let pieces = total.div_ceil(piece_length);
        params.rows = outer as u32;
        params.row_vectors = row_vectors as u32;
        params.pieces = pieces as u32;
        params.piece_length = piece_length as u32;
        params.step_rows = (lanes / row_vectors) as u32;
        params.step_vectors = (lanes % row_vectors) as u32;
        params.slots = pieces as u32;
        params.slot_stride = params.statistics;
        params.width = channels;
        params.repetitions = 1;
        params.span = 1;
        (params, pieces * statistics)
    }

    /// The same down the columns.
    fn cut_columns(&self, lanes: u32, ceiling: u64) -> (Params, u64) {
        // Neighbouring lanes read neighbouring vectors, 256 bytes of a row.
        self.cut_columns_by(lanes, ceiling, 16)
    }

    fn cut_columns_by(&self, lanes: u32, ceiling: u64, most_tile: u32) -> (Params, u64) {
        let mut params = self.params;
        let columns = (self.problem.channels * self.problem.inner) as u64;
        let repetitions = repetitions(columns);
        let width = columns * repetitions;
        let row_vectors = width / 4;
        let rows = (self.problem.outer as u64).div_ceil(repetitions);
        let lanes = u64::from(lanes);
        let tile = row_vectors
            .next_power_of_two()
            .min(most_tile.into())
            .min(lanes);
        let groups = self.problem.groups as u64;
        let tiles = row_vectors.div_ceil(tile) * groups;
        let lane_rows = lanes / tile;
        // On a software adapter, so few rows that a piece of all columns stays in a core's cache: its lines, and those
        // that come along, serve the next tile.
        let in_cache = if self.caps.is_cpu() {
            (self.problem.bytes() / groups).div_ceil(CPU_PIECE_BYTES)
        } else {
            1
        };
        let wanted = self
            .enough_workgroups()
            .div_ceil(tiles)
            .max(in_cache)
            .min(rows.div_ceil(8 * lane_rows))
            .clamp(1, ceiling);
        let piece_length = rows.div_ceil(wanted).next_multiple_of(lane_rows);
        let pieces = rows.div_ceil(piece_length);
        params.rows = rows as u32;
        params.row_vectors = row_vectors as u32;
        params.pieces = pieces as u32;
        params.piece_length = piece_length as u32;
        params.tile = tile as u32;
        params.slots = pieces as u32;
        params.slot_stride = (groups * width) as u32;
        params.width = width as u32;
        params.repetitions = repetitions as u32;
        params.span = params.inner;
        (params, pieces * tiles)
    }

    fn cut_flat(&self, workgroups: Option<u32>) -> Apply {
        // A GPU gets many small chunks, so that neighbouring workgroups stream through neighbouring memory; a core of a
        // software adapter streams through a long one.
        let lanes = u64::from(self.flat_workgroup);
        let vectors = u64::from(self.params.vectors);
        let per_lane = if self.caps.is_cpu() {
            vectors.div_ceil(64 * lanes)
        } else {
            4
        };
        let per_lane = match workgroups {
            Some(workgroups) => vectors.div_ceil(u64::from(workgroups.max(1)) * lanes),
            None => per_lane,
        };
        let most = u64::from(self.caps.max_workgroups_per_dimension).pow(2);
        let per_lane = per_lane.max(vectors.div_ceil(most.saturating_mul(lanes)));
        let chunk = per_lane * lanes;
        let inner = self.problem.inner as u64;
        let channels = self.flat_channels();
        Apply {
            walk: None,
            params: Params {
                chunk: chunk as u32,
                channels: channels as u32,
                stride_channels: ((4 * lanes / inner) % channels) as u32,
                stride_inner: (4 * lanes % inner) as u32,
                ..self.params
            },
            workgroups: vectors.div_ceil(chunk),
        }
    }

    /// Channels that flat kernels count through: with one outer index in a group, groups are only more channels.
    fn flat_channels(&self) -> u64 {
        let p = &self.problem;
        (if p.outer == 1 {
            p.statistics()
        } else {
            p.channels
        }) as u64
    }

    pub(crate) fn max_binding_size(&self) -> u64 {
        self.caps.max_binding_size
    }

    /// Bytes of the partial results.
    pub(crate) fn partials_bytes(&self) -> u64 {
        u64::from(self.params.slots) * u64::from(self.params.slot_stride) * 16
    }

    /// Bytes of one set of coefficients, moments or gradient sums: four f32 per statistic.
    pub(crate) fn coefficients_bytes(&self) -> u64 {
        self.problem.statistics() as u64 * 16
    }

    fn step(&self, kernel: Kernel, workgroup: u32, workgroups: u64, params: Params) -> Step {
        let Problem {
            activation,
            residual,
            ..
        } = self.problem;
        // Only tensors come in elements; the kernels on per-channel data need no second version.
        let elements = if kernel.entry().has_tensors() {
            self.elements
        } else {
            Elements::F32x4
        };
        // A residual changes a gradient only through an activation.
        let forward = matches!(
            kernel,
            Kernel::Normalize
                | Kernel::NormalizePlanar
                | Kernel::NormalizeColumns
                | Kernel::ForwardPlanar
                | Kernel::ForwardColumns
        );
        let residual = residual && (forward || activation != Activation::None);
        Step {
            key: PipelineKey {
                activation: activation.code(),
                residual,
                lookup: self.lookup,
                ragged: self.ragged(),
                mask: self.problem.mask,
                ..PipelineKey::new(kernel, elements, workgroup)
            }
            .canonical(),
            grid: grid(workgroups, self.caps.max_workgroups_per_dimension),
            params: Params {
                workgroups: workgroups as u32,
                ..params
            },
        }
    }

    pub(crate) fn reduce(&self) -> Step {
        let kernel = match self.walk {
            Walk::Planar => Kernel::ReducePlanar,
            Walk::Columns => Kernel::ReduceColumns,
        };
        self.step(
            kernel,
            self.reduce_workgroup,
            self.reduce_workgroups,
            self.params,
        )
    }

    pub(crate) fn backward_reduce(&self) -> Step {
        let kernel = match self.walk {
            Walk::Planar => Kernel::BackwardReducePlanar,
            Walk::Columns => Kernel::BackwardReduceColumns,
        };
        self.step(
            kernel,
            self.reduce_workgroup,
            self.reduce_workgroups,
            self.params,
        )
    }

    /// One set of one record for each statistic, as the caller has them.
    pub(crate) fn given_sets(&self, count: u32) -> Sets {
        Sets {
            count,
            stride: self.params.statistics,
            unit: 1.0,
        }
    }

    /// A merge of this plan's partial results, or of sets of one record per statistic.
    pub(crate) fn merge(&self, kernel: Kernel, sets: Option<Sets>, flags: u32) -> Step {
        self.merge_of(self.records(sets), kernel, flags)
    }

    /// The same over all groups at once, one result per channel.
    pub(crate) fn merge_groups(&self, kernel: Kernel, sets: Option<Sets>, flags: u32) -> Step {
        let records = self.records(sets);
        let groups = self.problem.groups as u32;
        let joined = Params {
            statistics: records.channels,
            slots: records.slots * groups,
            slot_stride: if groups > 1 {
                records.width
            } else {
                records.slot_stride
            },
            ..records
        };
        self.merge_of(joined, kernel, flags)
    }

    fn records(&self, sets: Option<Sets>) -> Params {
        match sets {
            None => self.params,
            Some(sets) => Params {
                square_unit: sets.unit,
                slots: sets.count,
                slot_stride: sets.stride,
                width: self.params.channels,
                repetitions: 1,
                span: 1,
                ..self.params
            },
        }
    }

    fn merge_of(&self, mut params: Params, kernel: Kernel, flags: u32) -> Step {
        let records =
            u64::from(params.slots) * u64::from(params.repetitions) * u64::from(params.span);
        let (workgroup, lanes) = self.lanes_of_merge(records);
        params.tile = workgroup / lanes;
        params.flags |= flags;
        let workgroups = u64::from(params.statistics.div_ceil(params.tile));
        self.step(kernel, workgroup, workgroups, params)
    }

    /// A merge's workgroup, and how many of its lanes share the records of one statistic; the others take neighbouring
    /// ones. On a GPU as many as there are records; on a software adapter as few as do it.
    fn lanes_of_merge(&self, records: u64) -> (u32, u32) {
        let wanted = if self.caps.is_cpu() {
            records.div_ceil(MERGE_RECORDS_PER_LANE)
        } else {
            records
        };
        let lanes = wanted
            .next_power_of_two()
            .min(u64::from(self.caps.workgroup(1024))) as u32;
        // Wider than usual where that many are to be merged.
        let most = match self.caps.is_cpu() {
            true => lanes.max(self.merge_workgroup),
            false if records > 1024 => self.caps.workgroup(256),
            false => self.merge_workgroup,
        };
        (most, lanes.min(most))
    }

    /// Whether a merge of so many records for each statistic ends before a software adapter's loops do.
    ///
    /// # Errors
    /// [`Error::Limit`] where it does not.
    pub(crate) fn can_merge(&self, records: u64) -> Result<()> {
        let (_, lanes) = self.lanes_of_merge(records);
        let limit = u64::from(lanes) * MERGE_RECORDS_PER_LANE;
        if !self.caps.is_cpu() || records <= limit {
            return Ok(());
        }
        Err(Error::Limit {
            what: "merging the partial results of one channel".into(),
            needed: records,
            limit,
            name: "iterations of a loop on a software adapter",
            remedy: "use fewer groups or sets, or a device with more invocations in a workgroup"
                .into(),
        })
    }

    /// Parameter gradients of all groups, added up.
    pub(crate) fn sum_gradients(&self, flags: u32) -> Step {
        let (workgroup, lanes) = self.lanes_of_merge(self.problem.groups as u64);
        let params = Params {
            flags: self.params.flags | flags,
            tile: workgroup / lanes,
            ..self.params
        };
        let workgroups = u64::from(params.channels.div_ceil(params.tile));
        self.step(Kernel::SumGradients, workgroup, workgroups, params)
    }

    /// One lane per channel: gather and scatter.
    pub(crate) fn per_channel(&self, kernel: Kernel, flags: u32) -> Step {
        self.per(self.params.channels, kernel, flags)
    }

    /// Copies so many words of one buffer to a place in another: `scatter`, of one vector as long as that.
    pub(crate) fn copy(&self, words: u64, start: u64) -> Step {
        let params = Params {
            channels: words as u32,
            present: 1,
            start_0: start as u32,
            ..self.params
        };
        let workgroups = words.div_ceil(self.merge_workgroup.into());
        self.step(Kernel::Scatter, self.merge_workgroup, workgroups, params)
    }

    /// Bytes of a word of the element header.
    pub(crate) fn word_bytes(&self) -> u64 {
        self.elements.word_bytes()
    }

    /// One lane per statistic: coefficients.
    pub(crate) fn per_statistic(&self, kernel: Kernel, flags: u32) -> Step {
        self.per(self.params.statistics, kernel, flags)
    }

    fn per(&self, lanes: u32, kernel: Kernel, flags: u32) -> Step {
        let workgroups = u64::from(lanes.div_ceil(self.merge_workgroup));
        let params = Params {
            flags: self.params.flags | flags,
            ..self.params
        };
        self.step(kernel, self.merge_workgroup, workgroups, params)
    }

    /// Pieces that a group's mask is counted in: long enough to be worth a workgroup, and short enough for one.
    fn mask_pieces(&self) -> u64 {
        let (count, lanes) = (self.problem.count(), u64::from(self.reduce_workgroup));
        let few = count.div_ceil(64 * lanes).min(MAX_PIECES_CPU);
        few.max(count.div_ceil(MASK_PER_LANE * lanes))
    }

    /// One workgroup per piece of a group's mask.
    pub(crate) fn count_mask(&self) -> Step {
        let pieces = self.mask_pieces();
        let params = Params {
            piece_length: self.problem.count().div_ceil(pieces) as u32,
            ..self.params
        };
        let workgroups = self.problem.groups as u64 * pieces;
        self.step(Kernel::CountMask, self.reduce_workgroup, workgroups, params)
    }

    pub(crate) fn normalize(&self) -> Step {
        self.second_pass(match self.apply.walk {
            None => Kernel::Normalize,
            Some(Walk::Planar) => Kernel::NormalizePlanar,
            Some(Walk::Columns) => Kernel::NormalizeColumns,
        })
    }

    pub(crate) fn backward_apply(&self) -> Step {
        self.second_pass(match self.apply.walk {
            None => Kernel::BackwardApply,
            Some(Walk::Planar) => Kernel::BackwardApplyPlanar,
            Some(Walk::Columns) => Kernel::BackwardApplyColumns,
        })
    }

    /// A training forward pass in one dispatch, where the strategy has one.
    pub(crate) fn fused_forward(&self, flags: u32) -> Option<Step> {
        let fused = self.fused.as_ref()?;
        let kernel = match self.walk {
            Walk::Planar => Kernel::ForwardPlanar,
            Walk::Columns => Kernel::ForwardColumns,
        };
        let mut step = self.step(kernel, fused.lanes, fused.workgroups, fused.params);
        step.key.held = fused.held;
        step.params.flags |= flags;
        Some(step)
    }

    /// A backward pass through saved statistics in one dispatch, where the strategy has one.
    pub(crate) fn fused_backward(&self, flags: u32) -> Option<Step> {
        let fused = self.fused.as_ref().filter(|_| !self.problem.mask)?;
        let kernel = match self.walk {
            Walk::Planar => Kernel::BackwardPlanar,
            Walk::Columns => Kernel::BackwardColumns,
        };
        let (lanes, workgroups) = (fused.lanes_backward, fused.workgroups_backward);
        let mut step = self.step(kernel, lanes, workgroups, fused.params_backward);
        step.key.held = fused.held_backward;
        step.params.flags |= flags;
        Some(step)
    }

    fn second_pass(&self, kernel: Kernel) -> Step {
        let Apply {
            params, workgroups, ..
        } = self.apply;
        self.step(kernel, self.flat_workgroup, workgroups, params)
    }

    /// Every pipeline that an operation of this plan may use, but for what arguments decide.
    pub(crate) fn pipelines(&self) -> BTreeSet<PipelineKey> {
        self.steps().into_iter().map(|step| step.key).collect()
    }

    /// Every dispatch that an operation of this plan may make.
    fn steps(&self) -> Vec<Step> {
        if self.is_chunked() {
            return self.chunks.iter().flat_map(|c| c.plan.steps()).collect();
        }
        let mut steps = vec![
            self.reduce(),
            self.merge(Kernel::Finalize, None, 0),
            self.per_statistic(Kernel::Coefficients, 0),
            self.normalize(),
            self.backward_reduce(),
            self.merge(Kernel::BackwardFinalize, None, 0),
            self.backward_apply(),
            self.merge(Kernel::Combine, None, 0),
            self.merge(Kernel::BackwardCombine, None, 0),
            self.per_channel(Kernel::Gather, 0),
            self.per_channel(Kernel::Scatter, 0),
        ];
        steps.extend(self.fused_forward(0));
        steps.extend(self.fused_backward(0));
        if self.problem.mask {
            steps.push(self.count_mask());
        }
        if self.problem.groups > 1 {
            steps.push(self.merge_groups(Kernel::Finalize, None, 0));
            steps.push(self.sum_gradients(0));
        }
        steps
    }
}

/// So many rows of a matrix are taken as one that its columns are whole vectors, at any alignment.
fn repetitions(columns: u64) -> u64 {
    match columns % 4 {
        0 => 1,
        2 => 2,
        _ => 4,
    }
}

fn choose_walk(outer: u64, inner: u64) -> (Walk, String) {
    match inner {
        1 => (
            Walk::Columns,
            "inner = 1: neighbouring values belong to neighbouring channels".into(),
        ),
        2..8 if outer >= 64 => (
            Walk::Columns,
            format!("inner = {inner}: rows shorter than two vectors"),
        ),
        _ => (
            Walk::Planar,
            format!("inner = {inner}: rows are read as vectors"),
        ),
    }
}

/// A grid of at least `workgroups`, near-square where one dimension cannot hold them.
fn grid(workgroups: u64, per_dimension: u32) -> [u32; 2] {
    if workgroups <= u64::from(per_dimension) {
        return [workgroups as u32, 1];
    }
    let root = workgroups.isqrt();
    let x = if root * root < workgroups {
        root + 1
    } else {
        root
    };
    [x as u32, workgroups.div_ceil(x) as u32]
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem {
            groups,
            outer,
            channels,
            inner,
            dtype,
            ..
        } = self.problem;
        if groups > 1 {
            write!(f, "{groups} groups of ")?;
        }
        let storage = match dtype {
            Dtype::F32 => "f32".to_owned(),
            dtype => format!("{dtype} packed in words, converted in the shader"),
        };
        writeln!(
            f,
            "[{outer}, {channels}, {inner}] {storage}: {} ({}), {} ({})",
            self.strategy(),
            self.why_strategy,
            self.walk,
            self.why
        )?;
        if let Some(chunk) = self.chunks.first() {
            let shape = chunk.plan.problem.shape();
            writeln!(
                f,
                "  {} chunks of {shape:?} at most, each with",
                self.chunks.len()
            )?;
        }
        let part = |step: &Step| {
            let [x, y] = step.grid;
            format!(
                "{} [{x}, {y}] x {}",
                step.key.kernel.entry().entry_point,
                step.key.workgroup
            )
        };
        let line = |steps: &[Step]| steps.iter().map(part).collect::<Vec<_>>().join(" -> ");
        writeln!(
            f,
            "  pieces: {} of {} {}",
            self.params.pieces,
            self.params.piece_length,
            if self.walk == Walk::Planar {
                "vectors"
            } else {
                "rows"
            }
        )?;
        let normalize = self.normalize();
        let coefficients = self.per_statistic(Kernel::Coefficients, 0);
        let finalize = self.merge(Kernel::Finalize, None, 0);
        let mut training = vec![self.reduce(), finalize, normalize.clone()];
        let backward_finalize = self.merge(Kernel::BackwardFinalize, None, 0);
        let mut backward = vec![coefficients.clone(), self.backward_reduce()];
        if self.problem.mask {
            backward.push(self.count_mask());
        }
        backward.push(backward_finalize);
        if groups > 1 {
            training.insert(2, self.merge_groups(Kernel::Finalize, None, 0));
            backward.push(self.sum_gradients(0));
        }
        backward.push(self.backward_apply());
        // Where running statistics or parameter gradients merge several groups, those steps are taken nevertheless.
        if let Some(step) = self.fused_forward(0) {
            training = vec![step];
        }
        if let Some(step) = self.fused_backward(0) {
            backward = vec![step];
        }
        writeln!(f, "  forward training: {}", line(&training))?;
        writeln!(f, "  inference: {}", line(&[coefficients, normalize]))?;
        writeln!(f, "  backward: {}", line(&backward))?;
        write!(f, "  workspace: {} bytes", self.workspace_bytes())
    }
}

#[cfg(test)]
mod tests;
