//! From a plan to dispatches.

use std::collections::BTreeSet;

use super::cut::{Apply, MAX_PIECES_CPU};
use super::{Params, Plan, Sets, Step, Walk};
use crate::kernels::{Elements, Kernel, PipelineKey};
use crate::{Activation, Error, Problem, Result};

/// llvmpipe ends the loops of an invocation, silently, after 65535 iterations in all. A merge goes over its records
/// three times.
const MERGE_RECORDS_PER_LANE: u64 = 16_384;

/// The same for the positions of a mask. A piece is counted in f32, exactly below 2²⁴.
const MASK_PER_LANE: u64 = 16_384;

impl Plan {
    pub(super) fn step(
        &self,
        kernel: Kernel,
        workgroup: u32,
        workgroups: u64,
        params: Params,
    ) -> Step {
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
                across: (params.tile / workgroup).max(1),
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

    pub(super) fn records(&self, sets: Option<Sets>) -> Params {
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

    pub(super) fn merge_of(&self, mut params: Params, kernel: Kernel, flags: u32) -> Step {
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
    pub(super) fn lanes_of_merge(&self, records: u64) -> (u32, u32) {
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

    pub(super) fn per(&self, lanes: u32, kernel: Kernel, flags: u32) -> Step {
        let workgroups = u64::from(lanes.div_ceil(self.merge_workgroup));
        let params = Params {
            flags: self.params.flags | flags,
            ..self.params
        };
        self.step(kernel, self.merge_workgroup, workgroups, params)
    }

    /// Pieces that a group's mask is counted in: long enough to be worth a workgroup, and short enough for one.
    pub(super) fn mask_pieces(&self) -> u64 {
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

    pub(super) fn second_pass(&self, kernel: Kernel) -> Step {
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
    pub(super) fn steps(&self) -> Vec<Step> {
        if let Some(chunks) = &self.chunks {
            let kinds = chunks.kinds();
            return kinds.into_iter().flat_map(Plan::steps).collect();
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
        steps.extend(self.fused_forward());
        steps.extend(self.fused_backward());
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
