//! The dispatches of a backward pass, and of its parts.

use super::{Access, BackwardBound, Bound, Joined, Recorder, Vector, twofold};
use crate::arguments::{Affine, Backward, Statistics};
use crate::kernels::{Kernel, Slot};
use crate::plan::{Sets, flags};
use crate::{Error, Result};

impl Recorder<'_> {
    /// A backward pass in one dispatch, unless the strategy is split, or the arguments need more: frozen statistics,
    /// parameter gradients of several groups, a gradient that replaces another, too many bindings.
    pub(crate) fn fused_backward(&mut self, args: &Backward<'_>) -> Result<bool> {
        let grouped = self.plan.problem().groups > 1;
        let residual = args.residual.is_some() && self.plan.problem().writes_grad_residual();
        let bindings = 4
            + 2 * usize::from(residual)
            + usize::from(!args.affine.is_absent())
            + usize::from(!args.grad_affine.is_absent());
        let merges = grouped && !args.grad_affine.is_absent();
        let in_place = args.grad_input.is(&args.grad_output);
        let Statistics::Saved(saved) = args.statistics else {
            return Ok(false);
        };
        if merges || in_place || bindings as u32 > self.storage_buffers() {
            return Ok(false);
        }
        let Some(mut step) = self.plan.fused_backward() else {
            return Ok(false);
        };
        let input = self.tensor("input", args.input, Access::Read)?;
        let grad_output = self.tensor("grad_output", args.grad_output, Access::Read)?;
        let residual = self.residual_of_gradient(args.residual)?;
        self.mask(args.mask)?; // whose absence the plan says
        let saved = self.packed_statistics("saved", saved, 4, Access::Read)?;
        let mut bindings = vec![
            (Slot::Input, input),
            (Slot::GradOutput, grad_output),
            (Slot::Statistics, saved),
        ];
        bindings.extend(residual.map(|r| (Slot::Residual, r)));
        if let Some(affine) = self.affine(args.affine)? {
            step.params.flags |= flags::HAS_AFFINE;
            bindings.push((Slot::Affine, affine));
        }
        let grads = self.grad_affine(args)?;
        if let Some(grads) = &grads {
            step.params.flags |= flags::HAS_GRAD_AFFINE;
            if args.accumulate {
                step.params.flags |= flags::ACCUMULATE;
            }
            bindings.push((Slot::GradAffine, grads.clone()));
        }
        let grad_residual = self.grad_residual(args)?;
        bindings.extend(grad_residual.map(|r| (Slot::GradResidual, r)));
        let grad_input = self.tensor("grad_input", args.grad_input, Access::Write)?;
        bindings.push((Slot::GradInput, grad_input));
        self.push(step, bindings)?;
        self.scatter_gradients(args, grads)?;
        Ok(true)
    }

    /// Copies packed gradients of weight and bias to where the caller wants them apart.
    pub(super) fn scatter_gradients(
        &mut self,
        args: &Backward<'_>,
        grads: Option<Bound>,
    ) -> Result<()> {
        if let (Some(grads), None) = (grads, args.grad_affine.packed) {
            // Checked before; here they are only looked up.
            let arguments = std::mem::take(&mut self.arguments);
            let vectors = self.grad_vectors(args)?;
            self.arguments = arguments;
            self.scatter(&grads, vectors)?;
        }
        Ok(())
    }

    pub(crate) fn backward_arguments(&mut self, args: &Backward<'_>) -> Result<BackwardBound> {
        let input = self.tensor("input", args.input, Access::Read)?;
        let grad_output = self.tensor("grad_output", args.grad_output, Access::Read)?;
        let residual = self.residual_of_gradient(args.residual)?;
        // Frozen statistics do not depend on the input, whatever was masked when they were taken.
        let mask = match args.statistics {
            Statistics::Saved(_) => self.mask(args.mask)?,
            Statistics::Running(_) => None,
        };
        let tensors = [input, grad_output];
        self.backward_bound(tensors, residual, mask, args.statistics, args.affine)
    }

    /// Computes the coefficients, and joins tensors where the device has too few bindings.
    pub(crate) fn backward_bound(
        &mut self,
        [input, grad_output]: [Bound; 2],
        residual: Option<Bound>,
        mask: Option<Bound>,
        statistics: Statistics<'_>,
        affine: Affine<'_>,
    ) -> Result<BackwardBound> {
        // With everything on, the apply binds input, residual, grad_output, mask, coefficients and two gradients; without
        // the residual, two fewer.
        let needed = match (&residual, &mask) {
            (Some(_), _) => 7,
            (None, Some(_)) => 5,
            (None, None) => 4,
        };
        let join = self.storage_buffers() < needed;
        if join && self.plan.is_chunked() {
            return Err(Error::Limit {
                what: "a tensor that one binding cannot hold, with a residual or a mask,".into(),
                needed: needed.into(),
                limit: self.storage_buffers().into(),
                name: "max_storage_buffers_per_shader_stage",
                remedy: "request a device with this limit raised".into(),
            });
        }
        let mut bytes = 2 * self.plan.coefficients_bytes();
        if let (Some(mask), true) = (&mask, join) {
            bytes += mask.size;
        }
        let coefficients = self.workspace("coefficients", bytes.next_multiple_of(16))?;
        self.coefficients(statistics, affine, &coefficients, flags::FOR_BACKWARD)?;
        let joined = if join {
            let tensors = [Some(&input), residual.as_ref(), Some(&grad_output)];
            Some(self.join(tensors, mask.as_ref(), &coefficients)?)
        } else {
            None
        };
        Ok(BackwardBound {
            input,
            grad_output,
            residual,
            mask,
            coefficients,
            joined,
        })
    }

    /// Copies tensors into one workspace, and the mask behind the coefficients.
    pub(super) fn join(
        &mut self,
        tensors: [Option<&Bound>; 3],
        mask: Option<&Bound>,
        coefficients: &Bound,
    ) -> Result<Joined> {
        // Each starts at a whole vector, of 16 bytes at most.
        let stride = self.plan.problem().bytes().next_multiple_of(16);
        let together = self.workspace("joined tensors", 3 * stride)?;
        for (i, tensor) in tensors.into_iter().enumerate() {
            if let Some(tensor) = tensor {
                self.copy(tensor, &together, i as u64 * stride)?;
            }
        }
        let start = 2 * self.plan.coefficients_bytes();
        if let Some(mask) = mask {
            self.copy(mask, coefficients, start)?;
        }
        let words = |bytes: u64| (bytes / self.plan.word_bytes()) as u32;
        Ok(Joined {
            tensors: together,
            residual_start: words(stride),
            grad_output_start: words(2 * stride),
            mask_start: (start / 16) as u32,
        })
    }

    /// Copies a range into another, at an offset in bytes.
    pub(super) fn copy(&mut self, from: &Bound, to: &Bound, offset: u64) -> Result<()> {
        let step = self.plan.copy(from.size / 4, offset / 4);
        let bindings = vec![(Slot::Packed, from.clone()), (Slot::Target(0), to.clone())];
        self.push(step, bindings)
    }

    pub(super) fn storage_buffers(&self) -> u32 {
        self.kernels.caps().max_storage_buffers
    }

    pub(crate) fn backward_reduce(
        &mut self,
        args: &BackwardBound,
    ) -> Result<(Bound, Option<Sets>)> {
        self.of_chunks(
            Kernel::BackwardCombine,
            Slot::Sums,
            |r, start, plan, partials| {
                let mut bindings = vec![
                    (Slot::Coefficients, args.coefficients.clone()),
                    (Slot::Partials, partials),
                ];
                let mut step = plan.backward_reduce();
                if let Some(joined) = &args.joined {
                    joined.set(&mut step);
                    bindings.push((Slot::Input, joined.tensors.clone()));
                } else {
                    bindings.push((Slot::Input, args.input.part(start, plan)));
                    bindings.push((Slot::GradOutput, args.grad_output.part(start, plan)));
                    let residual = args.residual.iter();
                    bindings.extend(residual.map(|r| (Slot::Residual, r.part(start, plan))));
                }
                r.push(step, bindings)
            },
        )
    }

    pub(crate) fn backward_apply(
        &mut self,
        args: &Backward<'_>,
        bound: BackwardBound,
        partials: Option<Bound>,
        sets: Option<Sets>,
        count: Option<u32>,
    ) -> Result<()> {
        let grads = self.grad_affine(args)?;
        let grouped = self.plan.problem().groups > 1;
        let accumulate = if args.accumulate {
            flags::ACCUMULATE
        } else {
            0
        };
        let mut flags = match args.statistics {
            Statistics::Saved(_) => 0,
            Statistics::Running(_) => flags::FROZEN_STATISTICS,
        };
        let mut bindings = vec![(Slot::Coefficients, bound.coefficients.clone())];
        bindings.extend(partials.map(|p| (Slot::Partials, p)));
        let group_gradients = match &grads {
            Some(_) if grouped => {
                flags |= flags::GROUP_GRADIENTS;
                let bytes = self.plan.coefficients_bytes();
                Some(self.workspace("group gradients", bytes)?)
            }
            Some(grads) => {
                flags |= flags::HAS_GRAD_AFFINE | accumulate;
                bindings.push((Slot::GradAffine, grads.clone()));
                None
            }
            None => None,
        };
        bindings.extend(group_gradients.clone().map(|g| (Slot::GroupGradients, g)));
        if let (Some(mask), None) = (&bound.mask, count) {
            flags |= flags::HAS_COUNTS;
            bindings.push((Slot::Counts, self.counts(mask.clone())?));
        }
        let mut step = self.plan.merge(Kernel::BackwardFinalize, sets, flags);
        step.params.count = count.unwrap_or(step.params.count);
        self.push(step, bindings)?;
        if let (Some(parts), Some(grads)) = (group_gradients, &grads) {
            let step = self.plan.sum_gradients(accumulate);
            let bindings = vec![
                (Slot::GroupGradients, parts),
                (Slot::GradAffine, grads.clone()),
            ];
            self.push(step, bindings)?;
        }

        let grad_residual = self.grad_residual(args)?;
        let grad_input = self.tensor_or_in_place(
            "grad_input",
            args.grad_input,
            Access::Write,
            Some("grad_output"),
        )?;
        let in_place = grad_input.is(&bound.grad_output);
        if in_place && self.plan.problem().residual && !self.plan.problem().writes_grad_residual() {
            return Err(Error::Overlap {
                first: "grad_output",
                second: "grad_input",
                how: "are one range, but without an activation grad_output is the residual's gradient too",
                remedy: "give grad_input a range of its own, or plan the backward pass without the residual",
            });
        }
        for (start, plan) in self.plan.parts() {
            let mut step = plan.backward_apply();
            step.key.in_place = in_place;
            step.key.mask = bound.mask.is_some();
            step.key.frozen = matches!(args.statistics, Statistics::Running(_));
            let part = |whole: &Bound| whole.part(start, plan);
            let mut bindings = vec![(Slot::Coefficients, bound.coefficients.clone())];
            if let Some(joined) = &bound.joined {
                joined.set(&mut step);
                step.key.in_place = false; // grad_output is a copy
                bindings.push((Slot::Input, joined.tensors.clone()));
            } else {
                bindings.push((Slot::Input, part(&bound.input)));
                if !step.key.in_place {
                    bindings.push((Slot::GradOutput, part(&bound.grad_output)));
                }
                bindings.extend(bound.residual.iter().map(|r| (Slot::Residual, part(r))));
                bindings.extend(bound.mask.clone().map(|m| (Slot::Mask, m)));
            }
            bindings.push((Slot::GradInput, part(&grad_input)));
            bindings.extend(grad_residual.iter().map(|r| (Slot::GradResidual, part(r))));
            self.push(step, bindings)?;
        }

        self.scatter_gradients(args, grads)
    }

    /// Where the gradients of weight and bias are written, packed: the caller's buffer, or a workspace that a scatter
    /// copies from.
    pub(super) fn grad_affine(&mut self, args: &Backward<'_>) -> Result<Option<Bound>> {
        if args.grad_affine.is_twofold() {
            return Err(twofold("grad_affine"));
        }
        if let Some(packed) = args.grad_affine.packed {
            return self
                .packed("grad_affine", packed, 2, Access::Write)
                .map(Some);
        }
        if args.grad_affine.is_absent() {
            return Ok(None);
        }
        let vectors = self.grad_vectors(args)?;
        if args.accumulate {
            return self.gather("grad_affine", vectors, [0; 3]).map(Some);
        }
        // Three vectors wide, as the scatter reads it.
        self.workspace("grad_affine", self.channels() * 12)
            .map(Some)
    }

    pub(super) fn grad_vectors(&mut self, args: &Backward<'_>) -> Result<[Option<Vector>; 3]> {
        let weight = args
            .grad_affine
            .weight
            .map(|w| self.vector("grad_weight", w, Access::Write))
            .transpose()?;
        let bias = args
            .grad_affine
            .bias
            .map(|b| self.vector("grad_bias", b, Access::Write))
            .transpose()?;
        Ok([weight, bias, None])
    }

    pub(super) fn grad_residual(&mut self, args: &Backward<'_>) -> Result<Option<Bound>> {
        let (problem, remedy) = match (
            self.plan.problem().writes_grad_residual(),
            args.grad_residual,
        ) {
            (true, Some(range)) => {
                return self.tensor("grad_residual", range, Access::Write).map(Some);
            }
            (false, None) => return Ok(None),
            (true, None) => (
                "a residual with an activation has a gradient of its own",
                "give a buffer with .grad_residual(…)",
            ),
            (false, Some(_)) => (
                "without a residual and an activation nothing is written there",
                "use grad_output as it is",
            ),
        };
        Err(Error::Argument {
            tensor: "grad_residual",
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        })
    }
}
