//! Bound operations: arguments are checked and bound once, and encode again and again without allocating.

use std::sync::Arc;

use crate::arguments::{
    Backward, BackwardApply, BackwardReduce, Combine, Finalize, ForwardTraining, Inference,
    Normalize, Reduce, Statistics,
};
use crate::kernels::{Kernel, Kernels, Pipeline, Slot};
use crate::plan::Plan;
use crate::record::{Access, Recorder};
use crate::{Error, Result};

/// A plan whose pipelines are compiled. Binding checks every argument and allocates the workspace; nothing is
/// submitted.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub(crate) kernels: Kernels,
    pub(crate) plan: Plan,
}

impl Prepared {
    pub(crate) fn new(kernels: Kernels, plan: Plan) -> Self {
        Prepared { kernels, plan }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn training(&self) -> Result<()> {
        if self.plan.problem().count() < 2 {
            return Err(Error::OneValuePerChannel {
                shape: self.plan.problem().shape(),
            });
        }
        Ok(())
    }

    /// Binds a training forward pass.
    ///
    /// # Errors
    /// [`Error::OneValuePerChannel`]; [`Error::Argument`], [`Error::BufferSize`], [`Error::BufferUsage`],
    /// [`Error::BufferAlignment`] and [`Error::Overlap`], which name the argument; [`Error::Device`] where there is no
    /// memory left.
    pub fn bind_forward_training(&self, args: &ForwardTraining<'_>) -> Result<Operation> {
        self.training()?;
        let mut r = Recorder::new(self);
        let input = r.tensor("input", args.input, Access::Read)?;
        let residual = r.residual(args.residual)?;
        let mask = r.mask(args.mask)?;
        let output = r.tensor_or_in_place("output", args.output, Access::Write, Some("input"))?;
        if r.fused_forward([&input, &output], residual.as_ref(), mask.as_ref(), args)? {
            r.scatter_running(args.running)?;
            return r.finish("forward training");
        }
        let coefficients = r.workspace("coefficients", self.plan.coefficients_bytes())?;
        let (records, sets) = r.reduce(&input, mask)?;
        r.finalize(
            sets,
            records,
            &coefficients,
            args.affine,
            args.running,
            args.saved,
        )?;
        r.normalize(input, residual, coefficients, output)?;
        r.scatter_running(args.running)?;
        r.finish("forward training")
    }

    /// Binds an inference forward pass.
    ///
    /// # Errors
    /// As [`Prepared::bind_forward_training`], but one value per channel is enough.
    pub fn bind_inference(&self, args: &Inference<'_>) -> Result<Operation> {
        let mut r = Recorder::new(self);
        let input = r.tensor("input", args.input, Access::Read)?;
        let residual = r.residual(args.residual)?;
        let output = r.tensor_or_in_place("output", args.output, Access::Write, Some("input"))?;
        let coefficients = r.workspace("coefficients", self.plan.coefficients_bytes())?;
        r.coefficients(
            Statistics::Running(args.running),
            args.affine,
            &coefficients,
            0,
        )?;
        r.normalize(input, residual, coefficients, output)?;
        r.finish("inference")
    }

    /// Binds a backward pass.
    ///
    /// # Errors
    /// As [`Prepared::bind_forward_training`].
    pub fn bind_backward(&self, args: &Backward<'_>) -> Result<Operation> {
        let mut r = Recorder::new(self);
        let frozen = matches!(args.statistics, Statistics::Running(_));
        if !frozen {
            self.training()?;
        }
        if r.fused_backward(args)? {
            return r.finish("backward");
        }
        let backward = r.backward_arguments(args)?;
        if frozen && args.grad_affine.is_absent() {
            // Nobody asks for the sums.
            r.backward_apply(args, backward, None, Some(self.plan.given_sets(0)), None)?;
        } else {
            let (records, sets) = r.backward_reduce(&backward)?;
            r.backward_apply(args, backward, Some(records), sets, None)?;
        }
        r.finish("backward")
    }

    /// Binds `reduce` alone.
    ///
    /// # Errors
    /// As [`Prepared::bind_forward_training`], but one value per channel is enough.
    pub fn bind_reduce(&self, args: &Reduce<'_>) -> Result<Operation> {
        let mut r = Recorder::new(self);
        let input = r.tensor("input", args.input, Access::Read)?;
        let mask = r.mask(args.mask)?;
        let moments = r.packed_statistics("moments", args.moments, 4, Access::Write)?;
        let (records, sets) = r.reduce(&input, mask)?;
        let merge = self.plan.merge(Kernel::Combine, sets, 0);
        r.push(
            merge,
            vec![(Slot::Partials, records), (Slot::Coefficients, moments)],
        )?;
        r.finish("reduce")
    }

    /// Binds `combine` alone.
    ///
    /// # Errors
    /// As [`Prepared::bind_reduce`].
    pub fn bind_combine(&self, args: &Combine<'_>) -> Result<Operation> {
        let mut r = Recorder::new(self);
        if args.sets == 0 {
            let problem = "0 sets of moments were given".to_owned();
            return Err(Error::Argument {
                tensor: "parts",
                problem,
                remedy: "give at least one".into(),
            });
        }
        let parts =
            r.packed_statistics("parts", args.parts, 4 * u64::from(args.sets), Access::Read)?;
        let moments = r.packed_statistics("moments", args.moments, 4, Access::Write)?;
        self.plan.can_merge(args.sets.into())?;
        let merge = self
            .plan
            .merge(Kernel::Combine, Some(self.plan.given_sets(args.sets)), 0);
        r.push(
            merge,
            vec![(Slot::Partials, parts), (Slot::Coefficients, moments)],
        )?;
        r.finish("combine")
    }

    /// Binds `finalize` alone.
    ///
    /// # Errors
    /// As [`Prepared::bind_reduce`].
    pub fn bind_finalize(&self, args: &Finalize<'_>) -> Result<Operation> {
        let mut r = Recorder::new(self);
        let moments = r.packed_statistics("moments", args.moments, 4, Access::Read)?;
        let coefficients =
            r.packed_statistics("coefficients", args.coefficients, 4, Access::Write)?;
        r.finalize(
            Some(self.plan.given_sets(1)),
            moments,
            &coefficients,
            args.affine,
            args.running,
            args.saved,
        )?;
        r.scatter_running(args.running)?;
        r.finish("finalize")
    }

    /// Binds `normalize` alone.
    ///
    /// # Errors
    /// As [`Prepared::bind_reduce`].
    pub fn bind_normalize(&self, args: &Normalize<'_>) -> Result<Operation> {
        let mut r = Recorder::new(self);
        let input = r.tensor("input", args.input, Access::Read)?;
        let residual = r.residual(args.residual)?;
        let output = r.tensor_or_in_place("output", args.output, Access::Write, Some("input"))?;
        let coefficients =
            r.packed_statistics("coefficients", args.coefficients, 4, Access::Read)?;
        r.normalize(input, residual, coefficients, output)?;
        r.finish("normalize")
    }

    /// Binds `backward_reduce` alone.
    ///
    /// # Errors
    /// As [`Prepared::bind_reduce`].
    pub fn bind_backward_reduce(&self, args: &BackwardReduce<'_>) -> Result<Operation> {
        let mut r = Recorder::new(self);
        let input = r.tensor("input", args.input, Access::Read)?;
        let grad_output = r.tensor("grad_output", args.grad_output, Access::Read)?;
        let residual = r.residual_of_gradient(args.residual)?;
        let sums = r.packed_statistics("sums", args.sums, 4, Access::Write)?;
        let saved = Statistics::Saved(args.saved);
        let bound = r.backward_bound([input, grad_output], residual, None, saved, args.affine)?;
        let (records, sets) = r.backward_reduce(&bound)?;
        let merge = self.plan.merge(Kernel::BackwardCombine, sets, 0);
        r.push(merge, vec![(Slot::Partials, records), (Slot::Sums, sums)])?;
        r.finish("backward reduce")
    }

    /// Binds `backward_apply` alone.
    ///
    /// # Errors
    /// As [`Prepared::bind_reduce`].
    pub fn bind_backward_apply(&self, args: &BackwardApply<'_>) -> Result<Operation> {
        let mut r = Recorder::new(self);
        if args.count == Some(0) {
            let problem = "a count of 0 was given".to_owned();
            return Err(Error::Argument {
                tensor: "count",
                problem,
                remedy: "give the values per channel".into(),
            });
        }
        let sums = r.packed_statistics("sums", args.sums, 4, Access::Read)?;
        let backward = r.backward_arguments(&args.backward)?;
        let sets = Some(self.plan.given_sets(1));
        r.backward_apply(&args.backward, backward, Some(sums), sets, args.count)?;
        r.finish("backward apply")
    }
}

/// A bound operation: `'static`, owns its uniforms and workspace, and encodes the same work again and again with no
/// allocation and no write to the queue. Dispatches only.
///
/// Two encodings in flight at once share the workspace; the queue runs them one after the other.
#[derive(Debug)]
pub struct Operation {
    pub(crate) label: &'static str,
    pub(crate) dispatches: Vec<Dispatch>,
}

#[derive(Debug)]
pub(crate) struct Dispatch {
    pub pipeline: Arc<Pipeline>,
    pub bind_group: wgpu::BindGroup,
    pub grid: [u32; 2],
}

impl Operation {
    /// Encodes the operation as a compute pass of its own.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let descriptor = wgpu::ComputePassDescriptor {
            label: Some(self.label),
            timestamp_writes: None,
        };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor));
    }

    /// Encodes the operation into a compute pass of the caller's; it sets pipeline and bind group 0.
    pub fn encode_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        for dispatch in &self.dispatches {
            let [x, y] = dispatch.grid;
            pass.set_pipeline(&dispatch.pipeline.pipeline);
            pass.set_bind_group(0, &dispatch.bind_group, &[]);
            pass.dispatch_workgroups(x, y, 1);
        }
    }

    /// How many dispatches it encodes.
    pub fn dispatches(&self) -> usize {
        self.dispatches.len()
    }
}
