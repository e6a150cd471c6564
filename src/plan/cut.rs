//! How the dispatches of the split strategy are cut: pieces of a channel, of a tile of columns, or of the flat tensor.

use super::{Params, Plan, Walk};

/// How the second pass goes over the tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Apply {
    pub(super) walk: Option<Walk>,
    pub(super) params: Params,
    pub(super) workgroups: u64,
}

/// A channel's partial results, at most; so that merging them costs next to nothing. A GPU needs that many where a few
/// tiles of columns are all there is, and merges them by many lanes.
pub(super) const MAX_PIECES: u64 = 512;

pub(super) const MAX_PIECES_CPU: u64 = 64;

/// llvmpipe ends the loops of an invocation, silently, after 65535 iterations in all; looking for a pivot under a mask and
/// summing four vectors at a time take a quarter more than there are vectors, and a fused pass goes over them again.
pub(super) const VECTORS_PER_LANE_CPU: u64 = 40_000;

/// Of a core's cache, what a piece of all columns may take on a software adapter.
const CPU_PIECE_BYTES: u64 = 64 << 10;

impl Plan {
    /// Workgroups that keep a device busy: enough for every compute unit of a large GPU several times over, or for the
    /// cores that a software adapter has.
    pub(super) fn enough_workgroups(&self) -> u64 {
        if self.caps.is_cpu() { 64 } else { 2048 }
    }

    /// Pieces that leave a lane of a software adapter no more vectors than its loops can go through.
    fn fewest_pieces(&self, per_lane: u64) -> u64 {
        if self.caps.is_cpu() {
            per_lane.div_ceil(VECTORS_PER_LANE_CPU).max(1)
        } else {
            1
        }
    }

    /// Bytes of partial results that are small beside the tensor.
    pub(super) fn partials_allowed(&self) -> u64 {
        self.problem.bytes() / 200 + (1 << 19)
    }

    /// Whether vectors of the reduction may reach past their row, or past the matrix.
    pub(super) fn ragged(&self) -> bool {
        match self.walk {
            Walk::Planar => !self.problem.inner.is_multiple_of(4),
            Walk::Columns => self.params.repetitions > 1,
        }
    }

    /// Parameters and workgroups of a planar walk in at most `ceiling` pieces a channel.
    pub(super) fn cut_planar(&self, lanes: u32, ceiling: u64) -> (Params, u64) {
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
        let wanted = wanted.max(self.fewest_pieces(total.div_ceil(lanes)));
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
    pub(super) fn cut_columns(&self, lanes: u32, ceiling: u64) -> (Params, u64) {
        // Neighbouring lanes read neighbouring vectors, 256 bytes of a row.
        self.cut_columns_by(lanes, ceiling, 16)
    }

    pub(super) fn cut_columns_by(&self, lanes: u32, ceiling: u64, most_tile: u32) -> (Params, u64) {
        let mut params = self.params;
        let columns = (self.problem.channels * self.problem.inner) as u64;
        let repetitions = repetitions(columns);
        let width = columns * repetitions;
        let row_vectors = width / 4;
        let rows = (self.problem.outer as u64).div_ceil(repetitions);
        let lanes = u64::from(lanes);
        let tile = match self.columns_across(lanes, row_vectors) {
            across if across > 1 && ceiling > 1 && repetitions == 1 => across * lanes,
            _ => row_vectors
                .next_power_of_two()
                .min(most_tile.into())
                .min(lanes),
        };
        let groups = self.problem.groups as u64;
        let tiles = row_vectors.div_ceil(tile) * groups;
        let lane_rows = (lanes / tile).max(1);
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
        // Pieces that leave records, no more than fit half a percent of the tensor and half a megabyte.
        let records = if ceiling > MAX_PIECES {
            u64::MAX
        } else {
            (self.partials_allowed() / (16 * width * groups)).max(1)
        };
        let wanted = wanted.min(records);
        let wanted = wanted.max(self.fewest_pieces(rows.div_ceil(lane_rows)));
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

    /// How many columns a lane can go down at once: two on a software adapter, where rows are whole tiles that wide.
    fn columns_across(&self, lanes: u64, row_vectors: u64) -> u64 {
        let whole = row_vectors.is_multiple_of(2 * lanes);
        if self.caps.is_cpu() && !self.problem.mask && whole {
            2
        } else {
            1
        }
    }

    pub(super) fn cut_flat(&self, workgroups: Option<u32>) -> Apply {
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
        let per_lane = per_lane.div_ceil(self.fewest_pieces(per_lane));
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
    pub(super) fn flat_channels(&self) -> u64 {
        let p = &self.problem;
        (if p.outer == 1 {
            p.statistics()
        } else {
            p.channels
        }) as u64
    }
}

/// So many rows of a matrix are taken as one that its columns are whole vectors, at any alignment.
pub(super) fn repetitions(columns: u64) -> u64 {
    match columns % 4 {
        0 => 1,
        2 => 2,
        _ => 4,
    }
}

pub(super) fn choose_walk(outer: u64, inner: u64) -> (Walk, String) {
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
