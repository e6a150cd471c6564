//! The dispatches of a forward pass, and of its parts.

use super::{Access, Bound, Recorder, Vector, twofold};
use crate::arguments::{Affine, BufferRange, ForwardTraining, Running, Statistics};
use crate::kernels::{Kernel, Slot};
use crate::plan::{Sets, flags};
use crate::problem::Momentum;
use crate::{Error, Result};

impl Recorder<'_> {
    pub(super) fn affine(&mut self, affine: Affine<'_>) -> Result<Option<Bound>> {
        if affine.is_twofold() {
            return Err(twofold("affine"));
        }
        if let Some(packed) = affine.packed {
            return self.packed("affine", packed, 2, Access::Read).map(Some);
        }
        if affine.is_absent() {
            return Ok(None);
        }
        let weight = affine
            .weight
            .map(|w| self.vector("weight", w, Access::Read))
            .transpose()?;
        let bias = affine
            .bias
            .map(|b| self.vector("bias", b, Access::Read))
            .transpose()?;
        let absent = [1.0f32.to_bits(), 0, 0];
        self.gather("affine", [weight, bias, None], absent)
            .map(Some)
    }

    pub(super) fn running(&mut self, running: Running<'_>, access: Access) -> Result<Bound> {
        if running.packed.is_some() && running.batches.is_some() {
            return Err(twofold("running"));
        }
        if let Some(packed) = running.packed {
            return self.packed("running", packed, 3, access);
        }
        let vectors = self.running_vectors(running, access)?;
        let gathered = self.gather("running", vectors, [0; 3])?;
        if access == Access::Write {
            self.gathered_running = Some(gathered.clone());
        }
        Ok(gathered)
    }

    pub(super) fn running_vectors(
        &mut self,
        running: Running<'_>,
        access: Access,
    ) -> Result<[Option<Vector>; 3]> {
        let mean = running
            .mean
            .map(|m| self.vector("running_mean", m, access))
            .transpose()?;
        let variance = running
            .variance
            .map(|v| self.vector("running_var", v, access))
            .transpose()?;
        let batches = running
            .batches
            .map(|b| self.vector("num_batches_tracked", b, access))
            .transpose()?;
        Ok([mean, variance, batches])
    }

    pub(crate) fn scatter_running(&mut self, running: Option<Running<'_>>) -> Result<()> {
        let (Some(running), Some(gathered)) = (running, self.gathered_running.take()) else {
            return Ok(());
        };
        // Checked when they were gathered; here they are only looked up.
        let arguments = std::mem::take(&mut self.arguments);
        let vectors = self.running_vectors(running, Access::Write)?;
        self.arguments = arguments;
        self.scatter(&gathered, vectors)
    }

    /// Moments of the input: partial ones, or, where the tensor is cut into chunks, one set of moments a chunk.
    pub(crate) fn reduce(
        &mut self,
        input: &Bound,
        mask: Option<Bound>,
    ) -> Result<(Bound, Option<Sets>)> {
        self.of_chunks(
            Kernel::Combine,
            Slot::Coefficients,
            |r, start, plan, partials| {
                let mut bindings = vec![
                    (Slot::Input, input.part(start, plan)),
                    (Slot::Partials, partials),
                ];
                bindings.extend(mask.clone().map(|m| (Slot::Mask, m)));
                r.push(plan.reduce(), bindings)
            },
        )
    }

    pub(crate) fn finalize(
        &mut self,
        sets: Option<Sets>,
        partials: Bound,
        coefficients: &Bound,
        affine: Affine<'_>,
        running: Option<Running<'_>>,
        saved: Option<BufferRange<'_>>,
    ) -> Result<()> {
        let mut flags = flags::HAS_COEFFICIENTS;
        let mut bindings = vec![
            (Slot::Partials, partials.clone()),
            (Slot::Coefficients, coefficients.clone()),
        ];
        if let Some(affine) = self.affine(affine)? {
            flags |= flags::HAS_AFFINE;
            bindings.push((Slot::Affine, affine));
        }
        let running = running
            .map(|running| self.running_to_update(running))
            .transpose()?;
        if let Some(saved) = saved {
            flags |= flags::HAS_SAVED;
            let saved = self.packed_statistics("saved", saved, 4, Access::Write)?;
            bindings.push((Slot::Saved, saved));
        }
        // Running statistics are those of all groups together; and a device may have no binding left for them.
        let apart =
            self.plan.problem().groups > 1 || bindings.len() as u32 >= self.storage_buffers();
        if let (Some(running), false) = (&running, apart) {
            flags |= flags::HAS_RUNNING;
            bindings.push((Slot::Running, running.clone()));
        }
        self.push(self.plan.merge(Kernel::Finalize, sets, flags), bindings)?;
        if let (Some(running), true) = (running, apart) {
            let merge = self
                .plan
                .merge_groups(Kernel::Finalize, sets, flags::HAS_RUNNING);
            self.push(
                merge,
                vec![(Slot::Partials, partials), (Slot::Running, running)],
            )?;
        }
        Ok(())
    }

    /// A training forward pass in one dispatch, unless the strategy is split, or the arguments need more: running
    /// statistics of several groups, an output that replaces the input, too many bindings.
    pub(crate) fn fused_forward(
        &mut self,
        [input, output]: [&Bound; 2],
        residual: Option<&Bound>,
        mask: Option<&Bound>,
        args: &ForwardTraining<'_>,
    ) -> Result<bool> {
        let grouped = self.plan.problem().groups > 1;
        let bindings = 2
            + [residual, mask].into_iter().flatten().count()
            + usize::from(!args.affine.is_absent())
            + usize::from(args.running.is_some())
            + usize::from(args.saved.is_some());
        let merges = grouped && args.running.is_some();
        if merges || output.is(input) || bindings as u32 > self.storage_buffers() {
            return Ok(false);
        }
        let Some(mut step) = self.plan.fused_forward() else {
            return Ok(false);
        };
        let mut bindings = vec![(Slot::Input, input.clone()), (Slot::Output, output.clone())];
        bindings.extend(residual.map(|r| (Slot::Residual, r.clone())));
        bindings.extend(mask.map(|m| (Slot::Mask, m.clone())));
        if let Some(affine) = self.affine(args.affine)? {
            step.params.flags |= flags::HAS_AFFINE;
            bindings.push((Slot::Affine, affine));
        }
        if let Some(running) = args.running {
            step.params.flags |= flags::HAS_RUNNING;
            bindings.push((Slot::Running, self.running_to_update(running)?));
        }
        if let Some(saved) = args.saved {
            step.params.flags |= flags::HAS_SAVED;
            let saved = self.packed_statistics("saved", saved, 4, Access::Write)?;
            bindings.push((Slot::Saved, saved));
        }
        self.push(step, bindings)?;
        Ok(true)
    }

    pub(super) fn running_to_update(&mut self, running: Running<'_>) -> Result<Bound> {
        let cumulative = self.plan.problem().momentum == Momentum::Cumulative;
        if cumulative && running.packed.is_none() && running.batches.is_none() {
            let problem =
                "cumulative momentum needs the number of batches, but none was given".to_owned();
            let remedy = "give it with Running::batches(…), or use Running::packed(…)".to_owned();
            return Err(Error::Argument {
                tensor: "num_batches_tracked",
                problem,
                remedy,
            });
        }
        self.running(running, Access::Write)
    }

    pub(crate) fn coefficients(
        &mut self,
        statistics: Statistics<'_>,
        affine: Affine<'_>,
        coefficients: &Bound,
        mut flags: u32,
    ) -> Result<()> {
        let mut bindings = vec![(Slot::Coefficients, coefficients.clone())];
        if let Some(affine) = self.affine(affine)? {
            flags |= flags::HAS_AFFINE;
            bindings.push((Slot::Affine, affine));
        }
        let statistics = match statistics {
            Statistics::Saved(saved) => self.packed_statistics("saved", saved, 4, Access::Read)?,
            Statistics::Running(running) => {
                flags |= flags::FROM_RUNNING;
                self.running(running, Access::Read)?
            }
        };
        bindings.push((Slot::Statistics, statistics));
        self.push(
            self.plan.per_statistic(Kernel::Coefficients, flags),
            bindings,
        )
    }

    pub(crate) fn normalize(
        &mut self,
        input: Bound,
        residual: Option<Bound>,
        coefficients: Bound,
        output: Bound,
    ) -> Result<()> {
        for (start, plan) in self.plan.parts() {
            let mut step = plan.normalize();
            step.key.in_place = output.is(&input);
            let mut bindings = vec![
                (Slot::Coefficients, coefficients.clone()),
                (Slot::Output, output.part(start, plan)),
            ];
            if !step.key.in_place {
                bindings.push((Slot::Input, input.part(start, plan)));
            }
            bindings.extend(
                residual
                    .iter()
                    .map(|r| (Slot::Residual, r.part(start, plan))),
            );
            self.push(step, bindings)?;
        }
        Ok(())
    }

    /// Values per channel that the mask lets count, one number for each piece of each group.
    pub(super) fn counts(&mut self, mask: Bound) -> Result<Bound> {
        let groups = self.plan.problem().groups as u64;
        let step = self.plan.count_mask();
        let counts = self.workspace("counts", groups * u64::from(step.params.mask_pieces) * 4)?;
        let bindings = vec![(Slot::Mask, mask), (Slot::Counts, counts.clone())];
        self.push(step, bindings)?;
        Ok(counts)
    }
}
