//! What a caller may force.

use std::fmt;

/// How the work is cut over workgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// A channel, or a tile of channels, stays in one workgroup's registers: read once, write once. Backward, which has two
    /// tensors to hold, reads twice where they are too long.
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
