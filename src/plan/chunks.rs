//! Tensors that one binding cannot hold.

use super::params::unit_of;
use super::{Choices, Plan, Strategy};
use crate::problem::MAX_ELEMENTS;
use crate::{Caps, Error, Problem, Result};

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

impl Plan {
    /// A tensor that one binding cannot hold, cut at places that a binding may start at. Each chunk is a problem of its
    /// own, whose moments are merged with the others'.
    pub(super) fn chunked(
        problem: &Problem,
        caps: &Caps,
        choices: &Choices,
        needed: u64,
    ) -> Result<Self> {
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
        let values = u32::try_from(problem.count()).map_err(|_| Error::TooManyElements {
            elements: problem.count().into(),
            limit: u32::MAX.into(),
        })?;
        // All alike but the last.
        let count = units.div_ceil(most);
        let length = units.div_ceil(count).next_multiple_of(aligned);
        let split = Choices {
            strategy: Some(Strategy::Split),
            ..choices.clone()
        };
        let square_unit = unit_of(problem.count());
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
            let mut plan = Self::with(&part, caps, &split)?;
            plan.params.square_unit = square_unit; // the same for all that is merged
            chunks.push(Chunk {
                start: first * unit,
                plan,
            });
        }
        let mut plan = chunks[0].plan.clone();
        plan.problem = problem.clone();
        plan.params.count = values;
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

    pub(crate) fn square_unit(&self) -> f32 {
        self.params.square_unit
    }

    /// One record for each statistic of each chunk, each set at a place that a binding may start at.
    pub(crate) fn chunk_sets(&self) -> Sets {
        Sets {
            count: self.chunks.len() as u32,
            stride: self.params.statistics.next_multiple_of(16),
            unit: self.square_unit(),
        }
    }

    /// One set of one record for each statistic, as the caller has them.
    pub(crate) fn given_sets(&self, count: u32) -> Sets {
        Sets {
            count,
            stride: self.params.statistics,
            unit: 1.0,
        }
    }
}
