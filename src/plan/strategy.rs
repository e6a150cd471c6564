//! Which strategy, by a model of bytes and dispatches; and how a pass in one dispatch is cut.

use super::cut::VECTORS_PER_LANE_CPU;
use super::{Choices, Params, Plan, Step, Strategy, Walk};
use crate::kernels::Kernel;
use crate::{Error, Result};

/// How a pass in one dispatch is cut: a workgroup per channel, or per tile of columns.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fused {
    forward: WholePass,
    backward: WholePass,
}

/// One direction of it.
#[derive(Debug, Clone, PartialEq)]
struct WholePass {
    params: Params,
    workgroups: u64,
    lanes: u32,
    /// Vectors that a lane holds in registers, of each tensor; 0 where it reads twice.
    held: u32,
}

/// Vectors that a lane holds in registers, at most: the constants of the same meaning in the fused kernels. Backward
/// holds two tensors, and coefficients besides.
const MOST_HELD: u32 = 16;

const MOST_HELD_BACKWARD: u32 = 4;

/// Lanes of a workgroup that holds vectors, at most: of 1024, each would have no more than 64 registers.
const MOST_LANES_HOLDING: u32 = 512;

/// What the cost model knows of a kind of adapter.
struct CostModel {
    /// Of a tensor copied, read and write together counted once.
    bytes_per_us: f64,
    /// Of one dispatch, its barrier included.
    dispatch_us: f64,
    /// Bytes that the last-level cache keeps between two dispatches, and what reading them again costs of a first read.
    cache: f64,
    cached_read: f64,
    /// The same for the cache next to a compute unit, within one dispatch, and what reading again costs beyond it.
    near_cache: f64,
    near_read: f64,
    far_read: f64,
    /// Whether that cache keeps a tile of columns, too: short pieces of rows, far apart.
    near_columns: bool,
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
    far_read: 1.0,
    near_columns: true,
    lanes: 65_536.0,
};

/// lavapipe and its like on a few cores: arithmetic and memory take about the same time, so that caches save little. What
/// a core's own cache does not keep, a channel's rows or a tile of columns, is read a little slower than a piece of all.
const CPU: CostModel = CostModel {
    bytes_per_us: 4_000.0,
    dispatch_us: 30.0,
    cache: 0.0,
    cached_read: 1.0,
    near_cache: 2e6,
    near_read: 0.85,
    far_read: 1.15,
    near_columns: false,
    lanes: 64.0,
};

impl Plan {
    /// Of the strategies that can run, the cheapest by [`cost`](Self::cost), or the one that is forced.
    pub(super) fn choose_strategy(&mut self, choices: &Choices) -> Result<()> {
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
    pub(super) fn fusable(&self) -> Result<(), String> {
        let p = &self.problem;
        if self.caps.max_storage_buffers < 8 {
            return Err("a device with fewer than 8 storage buffers".into());
        }
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
    pub(super) fn fuse(&self, strategy: Strategy) -> Result<Fused, String> {
        let resident = strategy == Strategy::Resident;
        if resident && self.problem.mask {
            return Err("masks".into());
        }
        let cut = |(lanes, held): (u32, u32)| -> Result<WholePass, String> {
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
            if workgroups > u64::from(self.caps.max_workgroups_per_dimension).pow(2) {
                return Err(format!("{workgroups} workgroups, which no grid holds"));
            }
            Ok(WholePass {
                params,
                workgroups,
                lanes,
                held,
            })
        };
        let streaming = || Ok::<_, String>((self.streaming_lanes()?, 0));
        if !resident {
            let pass = cut(streaming()?)?;
            return Ok(Fused {
                forward: pass.clone(),
                backward: pass,
            });
        }
        // What backward cannot hold of two tensors, it reads twice.
        let backward = self
            .resident_lanes(MOST_HELD_BACKWARD)
            .or_else(|_| streaming())?;
        Ok(Fused {
            forward: cut(self.resident_lanes(MOST_HELD)?)?,
            backward: cut(backward)?,
        })
    }

    /// Vectors side by side in a workgroup that goes down whole columns.
    pub(super) fn fused_tile(&self, lanes: u32) -> u32 {
        let row_vectors = (self.problem.channels as u32 / 4).next_power_of_two();
        row_vectors.min(8).min(lanes)
    }

    /// Lanes that read a channel, or a tile of columns, twice.
    fn streaming_lanes(&self) -> Result<u32, String> {
        if !self.caps.is_cpu() {
            return Ok(self.caps.workgroup(512));
        }
        // As few as do it: a core runs them one after the other.
        let most = self.caps.workgroup(1024);
        let mut lanes = self.caps.workgroup(8);
        while self.vectors_per_lane(lanes) > VECTORS_PER_LANE_CPU && lanes < most {
            lanes *= 2;
        }
        match self.vectors_per_lane(lanes) {
            n if n > VECTORS_PER_LANE_CPU => Err(format!(
                "{n} vectors a lane, where a software adapter's loops end after {VECTORS_PER_LANE_CPU}"
            )),
            _ => Ok(lanes),
        }
    }

    /// Vectors of a channel, or of a column, for each lane of a workgroup that takes it all.
    fn vectors_per_lane(&self, lanes: u32) -> u64 {
        let p = &self.problem;
        match self.walk {
            Walk::Planar => (p.outer as u64 * (p.inner as u64 / 4)).div_ceil(lanes.into()),
            Walk::Columns => (p.outer as u64).div_ceil(u64::from(lanes / self.fused_tile(lanes))),
        }
    }

    /// As few lanes as hold a channel, or a tile of columns, in their registers, and how many vectors each has to.
    pub(super) fn resident_lanes(&self, most_held: u32) -> Result<(u32, u32), String> {
        let most = self.caps.workgroup(MOST_LANES_HOLDING);
        let least = self.caps.workgroup(if self.caps.is_cpu() { 8 } else { 64 });
        let mut lanes = least;
        loop {
            let per_lane = self.vectors_per_lane(lanes);
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

    /// Whether each lane of a workgroup holds one vector of a channel, and that is all.
    fn one_each(&self, fused: &Fused) -> bool {
        self.walk == Walk::Planar && fused.forward.held == 1
    }

    /// Microseconds of a training forward pass, by bytes moved and dispatches; ARCHITECTURE.md has the model.
    pub(super) fn cost(&self, strategy: Strategy, fused: Option<&Fused>) -> f64 {
        let model = &if self.caps.is_cpu() { CPU } else { GPU };
        let bytes = self.problem.bytes() as f64;
        let tensor = bytes / model.bytes_per_us;
        // A workgroup's own part, which its second read finds in the cache next to it or not.
        let (workgroups, lanes) = fused.map_or((0, 0), |f| (f.forward.workgroups, f.forward.lanes));
        let again = |of_one: f64| {
            if of_one <= model.near_cache && (self.walk == Walk::Planar || model.near_columns) {
                model.near_read
            } else {
                model.far_read
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
            Strategy::Resident
                if self.caps.is_cpu() && !fused.is_some_and(|f| self.one_each(f)) =>
            {
                f64::INFINITY
            }
            Strategy::Resident => tensor / in_flight + model.dispatch_us,
        }
    }

    /// A training forward pass in one dispatch, where the strategy has one.
    pub(crate) fn fused_forward(&self) -> Option<Step> {
        let fused = self.fused.as_ref()?;
        let kernel = match self.walk {
            Walk::Planar => Kernel::ForwardPlanar,
            Walk::Columns => Kernel::ForwardColumns,
        };
        Some(self.whole_pass(kernel, &fused.forward))
    }

    /// A backward pass through saved statistics in one dispatch, where the strategy has one.
    pub(crate) fn fused_backward(&self) -> Option<Step> {
        let fused = self.fused.as_ref().filter(|_| !self.problem.mask)?;
        let kernel = match self.walk {
            Walk::Planar => Kernel::BackwardPlanar,
            Walk::Columns => Kernel::BackwardColumns,
        };
        Some(self.whole_pass(kernel, &fused.backward))
    }

    fn whole_pass(&self, kernel: Kernel, pass: &WholePass) -> Step {
        let mut step = self.step(kernel, pass.lanes, pass.workgroups, pass.params);
        step.key.held = pass.held;
        step
    }
}
