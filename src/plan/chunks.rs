//! Tensors that one binding cannot hold.

use super::params::unit_of;
use super::{Choices, Plan, Strategy};
use crate::problem::MAX_ELEMENTS;
use crate::{Caps, Error, Problem, Result};

/// The parts of a tensor, all alike but the last: some of its outer indices, or of the only channel's values. A hostile
/// shape on a device that allows little has millions of them, so there are two plans however many they are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunks {
    pub(super) count: u32,
    /// From one to the next.
    elements: u64,
    pub(super) each: Plan,
    last: Plan,
}

impl Chunks {
    /// Those that differ.
    pub(super) fn kinds(&self) -> [&Plan; 2] {
        [&self.each, &self.last]
    }
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
        let count = units.div_ceil(length);
        let last = units - (count - 1) * length;
        let count = u32::try_from(count).map_err(|_| {
            let bound = u64::from(u32::MAX);
            refused(&format!(", in more than {bound} chunks,"))
        })?;
        let split = Choices {
            strategy: Some(Strategy::Split),
            ..choices.clone()
        };
        let square_unit = unit_of(problem.count());
        let part = |units: u64| {
            let units = units as usize;
            let part = match problem.channels {
                1 => Problem {
                    outer: 1,
                    inner: units,
                    ..problem.clone()
                },
                _ => Problem {
                    outer: units,
                    ..problem.clone()
                },
            };
            let mut plan = Self::with(&part, caps, &split)?;
            plan.params.square_unit = square_unit; // the same for all that is merged
            Ok(plan)
        };
        let each = part(length)?;
        let mut plan = each.clone();
        plan.problem = problem.clone();
        plan.params.count = values;
        plan.why_strategy = format!("{count} chunks, each of which a binding holds");
        plan.can_merge(count.into())?;
        plan.chunks = Some(Box::new(Chunks {
            count,
            elements: length * unit,
            each,
            last: part(last)?,
        }));
        Ok(plan)
    }

    /// The tensor's parts: itself, or chunks of it, with their first elements.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (u64, &Plan)> {
        let chunks = self.chunks.as_deref();
        let count = chunks.map_or(1, |c| c.count);
        (0..count).map(move |i| match chunks {
            None => (0, self),
            Some(c) if i + 1 < count => (u64::from(i) * c.elements, &c.each),
            Some(c) => (u64::from(i) * c.elements, &c.last),
        })
    }

    pub(crate) fn is_chunked(&self) -> bool {
        self.chunks.is_some()
    }

    pub(crate) fn square_unit(&self) -> f32 {
        self.params.square_unit
    }

    /// One record for each statistic of each chunk, each set at a place that a binding may start at.
    pub(crate) fn chunk_sets(&self) -> Sets {
        Sets {
            count: self.chunks.as_ref().map_or(0, |c| c.count),
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
