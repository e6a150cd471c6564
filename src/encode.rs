//! Bound operations: arguments are checked and bound once, and encode again and again without allocating.

use std::sync::Arc;

use crate::kernels::{ErrorScopes, Kernel, Kernels, Pipeline, Slot};
use crate::plan::{Params, Plan, Step, flags};
use crate::problem::Momentum;
use crate::{Activation, Error, Result};

/// A range of a caller's buffer: a whole buffer, or from an offset on. The bytes needed are bound, and no more.
///
/// Tensors and packed per-channel arrays start at a multiple of `min_storage_buffer_offset_alignment` (256 by default);
/// per-channel vectors of their own start at any multiple of 4.
#[derive(Debug, Clone, Copy)]
pub struct BufferRange<'a> {
    buffer: &'a wgpu::Buffer,
    offset: u64,
    size: Option<u64>,
}

impl<'a> BufferRange<'a> {
    /// From byte `offset` to the buffer's end.
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64) -> Self {
        BufferRange {
            buffer,
            offset,
            size: None,
        }
    }

    fn available(&self) -> u64 {
        let rest = self.buffer.size().saturating_sub(self.offset);
        self.size.map_or(rest, |size| size.min(rest))
    }
}

impl<'a> From<&'a wgpu::Buffer> for BufferRange<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        BufferRange::new(buffer, 0)
    }
}

impl<'a> From<wgpu::BufferBinding<'a>> for BufferRange<'a> {
    fn from(b: wgpu::BufferBinding<'a>) -> Self {
        BufferRange {
            buffer: b.buffer,
            offset: b.offset,
            size: b.size.map(|s| s.get()),
        }
    }
}

impl<'a> From<wgpu::BufferSlice<'a>> for BufferRange<'a> {
    fn from(s: wgpu::BufferSlice<'a>) -> Self {
        BufferRange {
            buffer: s.buffer(),
            offset: s.offset(),
            size: Some(s.size()),
        }
    }
}

/// Weight and bias, or their gradients: one packed buffer, buffers of their own, or neither.
#[derive(Debug, Clone, Copy, Default)]
struct Affine<'a> {
    packed: Option<BufferRange<'a>>,
    weight: Option<BufferRange<'a>>,
    bias: Option<BufferRange<'a>>,
}

impl Affine<'_> {
    fn is_absent(&self) -> bool {
        self.packed.is_none() && self.weight.is_none() && self.bias.is_none()
    }
}

/// Running statistics on the device.
///
/// Packed they are one buffer of `[3, C]` words: mean (f32), variance (f32), batches tracked (u32, one per channel, so
/// that no two workgroups share one). Buffers of their own cost one or two small dispatches more.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    packed: Option<BufferRange<'a>>,
    mean: Option<BufferRange<'a>>,
    variance: Option<BufferRange<'a>>,
    batches: Option<BufferRange<'a>>,
}

impl<'a> Running<'a> {
    /// Buffers of their own: `[C]` f32 each.
    pub fn new(mean: impl Into<BufferRange<'a>>, variance: impl Into<BufferRange<'a>>) -> Self {
        Running {
            packed: None,
            mean: Some(mean.into()),
            variance: Some(variance.into()),
            batches: None,
        }
    }

    /// One buffer of `[3, C]` words.
    pub fn packed(buffer: impl Into<BufferRange<'a>>) -> Self {
        Running {
            packed: Some(buffer.into()),
            mean: None,
            variance: None,
            batches: None,
        }
    }

    /// The number of batches so far, `[C]` u32, all equal. [`Momentum::Cumulative`] needs it.
    pub fn batches(mut self, batches: impl Into<BufferRange<'a>>) -> Self {
        self.batches = Some(batches.into());
        self
    }
}

impl<'a> From<&'a wgpu::Buffer> for Running<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Running::packed(buffer)
    }
}

/// Which statistics a backward pass differentiates through.
#[derive(Debug, Clone, Copy)]
enum Statistics<'a> {
    Saved(BufferRange<'a>),
    Running(Running<'a>),
}

macro_rules! affine_setters {
    () => {
        /// Weight and bias, `[C]` f32 each. Absent, they are 1 and 0.
        pub fn affine(
            mut self,
            weight: impl Into<BufferRange<'a>>,
            bias: impl Into<BufferRange<'a>>,
        ) -> Self {
            self.affine = Affine {
                packed: None,
                weight: Some(weight.into()),
                bias: Some(bias.into()),
            };
            self
        }

        /// The weight alone, `[C]` f32.
        pub fn weight(mut self, weight: impl Into<BufferRange<'a>>) -> Self {
            self.affine.weight = Some(weight.into());
            self
        }

        /// The bias alone, `[C]` f32.
        pub fn bias(mut self, bias: impl Into<BufferRange<'a>>) -> Self {
            self.affine.bias = Some(bias.into());
            self
        }

        /// Weight and bias in one buffer, `[2, C]` f32: one dispatch less.
        pub fn affine_packed(mut self, affine: impl Into<BufferRange<'a>>) -> Self {
            self.affine = Affine {
                packed: Some(affine.into()),
                weight: None,
                bias: None,
            };
            self
        }
    };
}

macro_rules! residual_setter {
    () => {
        /// The residual, of the input's shape. A plan [`with_residual`](crate::Problem::with_residual) needs it.
        pub fn residual(mut self, residual: impl Into<BufferRange<'a>>) -> Self {
            self.residual = Some(residual.into());
            self
        }
    };
}

macro_rules! grad_setters {
    () => {
        /// Where the gradients of weight and bias go, `[C]` f32 each; they are overwritten.
        pub fn grad_affine(
            mut self,
            weight: impl Into<BufferRange<'a>>,
            bias: impl Into<BufferRange<'a>>,
        ) -> Self {
            self.grad_affine = Affine {
                packed: None,
                weight: Some(weight.into()),
                bias: Some(bias.into()),
            };
            self
        }

        /// Both gradients in one buffer, `[2, C]` f32: one dispatch less.
        pub fn grad_affine_packed(mut self, grads: impl Into<BufferRange<'a>>) -> Self {
            self.grad_affine = Affine {
                packed: Some(grads.into()),
                weight: None,
                bias: None,
            };
            self
        }

        /// Where the residual's gradient goes, of the input's shape; needed with a residual and an activation. Without
        /// an activation the residual's gradient is `grad_output` itself, and nothing is written.
        pub fn grad_residual(mut self, grad: impl Into<BufferRange<'a>>) -> Self {
            self.grad_residual = Some(grad.into());
            self
        }
    };
}

/// Arguments of the training forward pass: `y = act(γ·x̂ + β + residual)` by the statistics of this batch.
#[derive(Debug, Clone, Copy)]
pub struct ForwardTraining<'a> {
    input: BufferRange<'a>,
    output: BufferRange<'a>,
    residual: Option<BufferRange<'a>>,
    affine: Affine<'a>,
    running: Option<Running<'a>>,
    saved: Option<BufferRange<'a>>,
}

impl<'a> ForwardTraining<'a> {
    /// Input and output, of the problem's shape.
    pub fn new(input: impl Into<BufferRange<'a>>, output: impl Into<BufferRange<'a>>) -> Self {
        ForwardTraining {
            input: input.into(),
            output: output.into(),
            residual: None,
            affine: Affine::default(),
            running: None,
            saved: None,
        }
    }

    affine_setters!();
    residual_setter!();

    /// Running statistics to update.
    pub fn running(mut self, running: impl Into<Running<'a>>) -> Self {
        self.running = Some(running.into());
        self
    }

    /// Where the statistics go that a backward pass needs: `[4, C]` f32, K, δ, δ's remainder and invstd, with
    /// mean = K + δ.
    pub fn saved(mut self, saved: impl Into<BufferRange<'a>>) -> Self {
        self.saved = Some(saved.into());
        self
    }
}

/// Arguments of the inference forward pass: `y = act(γ·x̂ + β + residual)` by running statistics.
#[derive(Debug, Clone, Copy)]
pub struct Inference<'a> {
    input: BufferRange<'a>,
    output: BufferRange<'a>,
    residual: Option<BufferRange<'a>>,
    affine: Affine<'a>,
    running: Running<'a>,
}

impl<'a> Inference<'a> {
    /// Input and output, of the problem's shape, and the statistics to normalise by.
    pub fn new(
        input: impl Into<BufferRange<'a>>,
        output: impl Into<BufferRange<'a>>,
        running: impl Into<Running<'a>>,
    ) -> Self {
        Inference {
            input: input.into(),
            output: output.into(),
            residual: None,
            affine: Affine::default(),
            running: running.into(),
        }
    }

    affine_setters!();
    residual_setter!();
}

/// Arguments of the backward pass, with `dz = dy·act'(z)`: `dβ = Σdz`, `dγ = Σdz·x̂`, and
/// `dx = γ·invstd·(dz - dβ/m - x̂·dγ/m)` by batch statistics or `dx = γ·invstd·dz` by frozen ones.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    input: BufferRange<'a>,
    grad_output: BufferRange<'a>,
    grad_input: BufferRange<'a>,
    statistics: Statistics<'a>,
    residual: Option<BufferRange<'a>>,
    affine: Affine<'a>,
    grad_affine: Affine<'a>,
    grad_residual: Option<BufferRange<'a>>,
}

impl<'a> Backward<'a> {
    /// Through the statistics of the batch, as [`ForwardTraining::saved`] has kept them.
    pub fn new(
        input: impl Into<BufferRange<'a>>,
        saved: impl Into<BufferRange<'a>>,
        grad_output: impl Into<BufferRange<'a>>,
        grad_input: impl Into<BufferRange<'a>>,
    ) -> Self {
        Self::by(
            Statistics::Saved(saved.into()),
            input,
            grad_output,
            grad_input,
        )
    }

    /// Through running statistics, which do not depend on the input.
    pub fn frozen(
        input: impl Into<BufferRange<'a>>,
        running: impl Into<Running<'a>>,
        grad_output: impl Into<BufferRange<'a>>,
        grad_input: impl Into<BufferRange<'a>>,
    ) -> Self {
        Self::by(
            Statistics::Running(running.into()),
            input,
            grad_output,
            grad_input,
        )
    }

    fn by(
        statistics: Statistics<'a>,
        input: impl Into<BufferRange<'a>>,
        grad_output: impl Into<BufferRange<'a>>,
        grad_input: impl Into<BufferRange<'a>>,
    ) -> Self {
        Backward {
            input: input.into(),
            grad_output: grad_output.into(),
            grad_input: grad_input.into(),
            statistics,
            residual: None,
            affine: Affine::default(),
            grad_affine: Affine::default(),
            grad_residual: None,
        }
    }

    affine_setters!();
    residual_setter!();
    grad_setters!();
}

/// Arguments of `reduce`: the input to one record of moments per channel, `[C, 4]` f32: count, K, δ, M2, with
/// mean = K + δ and M2 the sum of squared deviations from the mean.
#[derive(Debug, Clone, Copy)]
pub struct Reduce<'a> {
    input: BufferRange<'a>,
    moments: BufferRange<'a>,
}

impl<'a> Reduce<'a> {
    /// Input of the problem's shape, moments `[C, 4]`.
    pub fn new(input: impl Into<BufferRange<'a>>, moments: impl Into<BufferRange<'a>>) -> Self {
        Reduce {
            input: input.into(),
            moments: moments.into(),
        }
    }
}

/// Arguments of `combine`: several sets of moments, `[sets, C, 4]`, merged into one by Chan's formula. Sets may have
/// different counts, also zero.
#[derive(Debug, Clone, Copy)]
pub struct Combine<'a> {
    parts: BufferRange<'a>,
    sets: u32,
    moments: BufferRange<'a>,
}

impl<'a> Combine<'a> {
    /// `sets` records per channel, `[sets, C, 4]`, and the merged moments, `[C, 4]`.
    pub fn new(
        parts: impl Into<BufferRange<'a>>,
        sets: u32,
        moments: impl Into<BufferRange<'a>>,
    ) -> Self {
        Combine {
            parts: parts.into(),
            sets,
            moments: moments.into(),
        }
    }
}

/// Arguments of `finalize`: moments to saved statistics, the running update, and the coefficients of `normalize`.
#[derive(Debug, Clone, Copy)]
pub struct Finalize<'a> {
    moments: BufferRange<'a>,
    coefficients: BufferRange<'a>,
    affine: Affine<'a>,
    running: Option<Running<'a>>,
    saved: Option<BufferRange<'a>>,
}

impl<'a> Finalize<'a> {
    /// Moments `[C, 4]`, and coefficients `[C, 4]` f32: K, scale, shift, κ, for `y = (x - K)·scale + shift`.
    pub fn new(
        moments: impl Into<BufferRange<'a>>,
        coefficients: impl Into<BufferRange<'a>>,
    ) -> Self {
        Finalize {
            moments: moments.into(),
            coefficients: coefficients.into(),
            affine: Affine::default(),
            running: None,
            saved: None,
        }
    }

    affine_setters!();

    /// Running statistics to update.
    pub fn running(mut self, running: impl Into<Running<'a>>) -> Self {
        self.running = Some(running.into());
        self
    }

    /// Where the statistics go that a backward pass needs, as in [`ForwardTraining::saved`].
    pub fn saved(mut self, saved: impl Into<BufferRange<'a>>) -> Self {
        self.saved = Some(saved.into());
        self
    }
}

/// Arguments of `normalize`: `y = act((x - K)·scale + shift + residual)`.
#[derive(Debug, Clone, Copy)]
pub struct Normalize<'a> {
    input: BufferRange<'a>,
    coefficients: BufferRange<'a>,
    output: BufferRange<'a>,
    residual: Option<BufferRange<'a>>,
}

impl<'a> Normalize<'a> {
    /// Input and output of the problem's shape, coefficients `[C, 4]` from [`Finalize`].
    pub fn new(
        input: impl Into<BufferRange<'a>>,
        coefficients: impl Into<BufferRange<'a>>,
        output: impl Into<BufferRange<'a>>,
    ) -> Self {
        Normalize {
            input: input.into(),
            coefficients: coefficients.into(),
            output: output.into(),
            residual: None,
        }
    }

    residual_setter!();
}

/// Arguments of `backward_reduce`: the gradient sums `[C, 4]` f32: Σdz, its remainder, Σdz·(x - κ), its remainder, where
/// κ depends on the saved statistics alone. Sums over the same statistics add up, which is how several devices join theirs.
#[derive(Debug, Clone, Copy)]
pub struct BackwardReduce<'a> {
    input: BufferRange<'a>,
    saved: BufferRange<'a>,
    grad_output: BufferRange<'a>,
    sums: BufferRange<'a>,
    residual: Option<BufferRange<'a>>,
    affine: Affine<'a>,
}

impl<'a> BackwardReduce<'a> {
    /// Input and gradient of the problem's shape, saved statistics `[4, C]`, sums `[C, 4]`.
    pub fn new(
        input: impl Into<BufferRange<'a>>,
        saved: impl Into<BufferRange<'a>>,
        grad_output: impl Into<BufferRange<'a>>,
        sums: impl Into<BufferRange<'a>>,
    ) -> Self {
        BackwardReduce {
            input: input.into(),
            saved: saved.into(),
            grad_output: grad_output.into(),
            sums: sums.into(),
            residual: None,
            affine: Affine::default(),
        }
    }

    affine_setters!();
    residual_setter!();
}

/// Arguments of `backward_apply`: gradient sums to parameter gradients and the input's gradient.
#[derive(Debug, Clone, Copy)]
pub struct BackwardApply<'a> {
    backward: Backward<'a>,
    sums: BufferRange<'a>,
    count: Option<u32>,
}

impl<'a> BackwardApply<'a> {
    /// The arguments of a backward pass by saved statistics, and sums `[C, 4]` from [`BackwardReduce`].
    pub fn new(backward: Backward<'a>, sums: impl Into<BufferRange<'a>>) -> Self {
        BackwardApply {
            backward,
            sums: sums.into(),
            count: None,
        }
    }

    /// Values per channel over all devices, where the sums are over all of them. The problem's count otherwise.
    pub fn count(mut self, count: u32) -> Self {
        self.count = Some(count);
        self
    }
}

/// A plan whose pipelines are compiled. Binding checks every argument and allocates the workspace; nothing is
/// submitted.
#[derive(Debug, Clone)]
pub struct Prepared {
    kernels: Kernels,
    plan: Plan,
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
        let output = r.tensor("output", args.output, Access::Write)?;
        let partials = r.workspace("partials", self.plan.partials_bytes())?;
        let coefficients = r.workspace("coefficients", self.plan.coefficients_bytes())?;
        r.push(
            self.plan.reduce(),
            vec![
                (Slot::Input, input.clone()),
                (Slot::Partials, partials.clone()),
            ],
        )?;
        r.finalize(
            None,
            partials,
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
        let output = r.tensor("output", args.output, Access::Write)?;
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
        let backward = r.backward_arguments(args)?;
        if frozen && args.grad_affine.is_absent() {
            // Nobody asks for the sums.
            r.backward_apply(args, backward, None, Some(0), None)?;
        } else {
            let partials = r.backward_reduce(&backward)?;
            r.backward_apply(args, backward, Some(partials), None, None)?;
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
        let moments = r.packed("moments", args.moments, 4, Access::Write)?;
        let partials = r.workspace("partials", self.plan.partials_bytes())?;
        r.push(
            self.plan.reduce(),
            vec![(Slot::Input, input), (Slot::Partials, partials.clone())],
        )?;
        let merge = self.plan.merge(Kernel::Combine, None, 0);
        r.push(
            merge,
            vec![(Slot::Partials, partials), (Slot::Coefficients, moments)],
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
        let parts = r.packed("parts", args.parts, 4 * u64::from(args.sets), Access::Read)?;
        let moments = r.packed("moments", args.moments, 4, Access::Write)?;
        let merge = self.plan.merge(Kernel::Combine, Some(args.sets), 0);
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
        let moments = r.packed("moments", args.moments, 4, Access::Read)?;
        let coefficients = r.packed("coefficients", args.coefficients, 4, Access::Write)?;
        r.finalize(
            Some(1),
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
        let output = r.tensor("output", args.output, Access::Write)?;
        let coefficients = r.packed("coefficients", args.coefficients, 4, Access::Read)?;
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
        let sums = r.packed("sums", args.sums, 4, Access::Write)?;
        let coefficients = r.workspace("coefficients", 2 * self.plan.coefficients_bytes())?;
        r.coefficients(
            Statistics::Saved(args.saved),
            args.affine,
            &coefficients,
            flags::FOR_BACKWARD,
        )?;
        let partials = r.backward_reduce(&BackwardBound {
            input,
            grad_output,
            residual,
            coefficients,
        })?;
        let merge = self.plan.merge(Kernel::BackwardCombine, None, 0);
        r.push(merge, vec![(Slot::Partials, partials), (Slot::Sums, sums)])?;
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
        let sums = r.packed("sums", args.sums, 4, Access::Read)?;
        let backward = r.backward_arguments(&args.backward)?;
        r.backward_apply(&args.backward, backward, Some(sums), Some(1), args.count)?;
        r.finish("backward apply")
    }
}

/// A bound operation: `'static`, owns its uniforms and workspace, and encodes the same work again and again with no
/// allocation and no write to the queue. Dispatches only.
///
/// Two encodings in flight at once share the workspace; the queue runs them one after the other.
#[derive(Debug)]
pub struct Operation {
    label: &'static str,
    dispatches: Vec<Dispatch>,
}

#[derive(Debug)]
struct Dispatch {
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    grid: [u32; 2],
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// A checked range, ready to bind.
#[derive(Debug, Clone)]
struct Bound {
    name: &'static str,
    buffer: wgpu::Buffer,
    offset: u64,
    size: u64,
}

impl Bound {
    fn overlaps(&self, other: &Bound) -> bool {
        self.buffer == other.buffer
            && self.offset < other.offset + other.size
            && other.offset < self.offset + self.size
    }
}

/// A per-channel vector of its own: a range that starts at an aligned offset, and the word at which the vector starts.
#[derive(Debug, Clone)]
struct Vector {
    range: Bound,
    start: u32,
}

#[derive(Debug)]
struct BackwardBound {
    input: Bound,
    grad_output: Bound,
    residual: Option<Bound>,
    coefficients: Bound,
}

/// Collects the dispatches of one operation, and makes bind groups once all arguments are known to be good.
struct Recorder<'a> {
    kernels: &'a Kernels,
    plan: &'a Plan,
    steps: Vec<(Step, Vec<(Slot, Bound)>)>,
    arguments: Vec<(Bound, Access)>,
    /// The packed running statistics that a scatter copies back to buffers of their own.
    gathered_running: Option<Bound>,
}

impl<'a> Recorder<'a> {
    fn new(prepared: &'a Prepared) -> Self {
        Recorder {
            kernels: &prepared.kernels,
            plan: &prepared.plan,
            steps: Vec::new(),
            arguments: Vec::new(),
            gathered_running: None,
        }
    }

    fn channels(&self) -> u64 {
        self.plan.problem().channels as u64
    }

    // ---- Checking arguments.

    fn check(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        bytes: u64,
        alignment: u64,
        access: Access,
        detail: String,
    ) -> Result<Bound> {
        if !range.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::BufferUsage {
                tensor: name,
                given: range.buffer.usage(),
                missing: "STORAGE",
            });
        }
        if range.available() < bytes {
            return Err(Error::BufferSize {
                tensor: name,
                given: range.available(),
                expected: bytes,
                detail,
            });
        }
        if !range.offset.is_multiple_of(alignment) {
            return Err(Error::BufferAlignment {
                tensor: name,
                offset: range.offset,
                alignment,
            });
        }
        let bound = Bound {
            name,
            buffer: range.buffer.clone(),
            offset: range.offset,
            size: bytes,
        };
        for (other, other_access) in &self.arguments {
            let written = access == Access::Write || *other_access == Access::Write;
            if written && bound.overlaps(other) {
                let remedy = "give each a buffer of its own";
                return Err(Error::Overlap {
                    first: other.name,
                    second: name,
                    how: "overlap in one buffer",
                    remedy,
                });
            }
        }
        self.arguments.push((bound.clone(), access));
        Ok(bound)
    }

    fn offset_alignment(&self) -> u64 {
        u64::from(self.kernels.caps().offset_alignment)
    }

    fn tensor(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        access: Access,
    ) -> Result<Bound> {
        let problem = self.plan.problem();
        let detail = format!(
            " for shape [outer, channels, inner] = {:?} in f32",
            problem.shape()
        );
        let bytes = problem.elements() * 4;
        self.check(name, range, bytes, self.offset_alignment(), access, detail)
    }

    /// Several f32 per channel in one buffer.
    fn packed(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        each: u64,
        access: Access,
    ) -> Result<Bound> {
        let channels = self.channels();
        let detail = format!(" for {each} f32 for each of {channels} channels");
        self.check(
            name,
            range,
            channels * each * 4,
            self.offset_alignment(),
            access,
            detail,
        )
    }

    fn vector(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        access: Access,
    ) -> Result<Vector> {
        let channels = self.channels();
        let detail = format!(" for one f32 for each of {channels} channels");
        let exact = self.check(name, range, channels * 4, 4, access, detail)?;
        let before = exact.offset % self.offset_alignment();
        let range = Bound {
            offset: exact.offset - before,
            size: exact.size + before,
            ..exact
        };
        Ok(Vector {
            range,
            start: (before / 4) as u32,
        })
    }

    fn residual(&mut self, residual: Option<BufferRange<'_>>) -> Result<Option<Bound>> {
        let argument = |problem: &str, remedy| {
            Err(Error::Argument {
                tensor: "residual",
                problem: problem.to_owned(),
                remedy,
            })
        };
        match (self.plan.problem().residual, residual) {
            (true, Some(range)) => Ok(Some(self.tensor("residual", range, Access::Read)?)),
            (false, None) => Ok(None),
            (true, None) => argument(
                "the plan has one, but none was given",
                "give it with .residual(…)".to_owned(),
            ),
            (false, Some(_)) => argument(
                "one was given, but the plan has none",
                "plan Problem::with_residual()".to_owned(),
            ),
        }
    }

    /// A gradient needs the residual only to know what the activation let through.
    fn residual_of_gradient(&mut self, residual: Option<BufferRange<'_>>) -> Result<Option<Bound>> {
        if self.plan.problem().residual && self.plan.problem().activation == Activation::None {
            return Ok(None);
        }
        self.residual(residual)
    }

    // ---- Recording dispatches.

    fn workspace(&self, name: &'static str, size: u64) -> Result<Bound> {
        let limit = self.plan.max_binding_size();
        if size > limit {
            let what = format!("the workspace ({name})");
            let remedy = "use fewer channels, or a device with this limit raised".to_owned();
            return Err(Error::Limit {
                what,
                needed: size,
                limit,
                name: "max_storage_buffer_binding_size",
                remedy,
            });
        }
        let scopes = ErrorScopes::push(self.kernels.device());
        let buffer = self
            .kernels
            .device()
            .create_buffer(&wgpu::BufferDescriptor {
                label: Some(name),
                size,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            });
        settle(scopes, "allocating the workspace")?;
        Ok(Bound {
            name,
            buffer,
            offset: 0,
            size,
        })
    }

    /// Adds a dispatch. Two bindings of one dispatch may share a buffer only if both read, or write disjoint ranges.
    fn push(&mut self, step: Step, bindings: Vec<(Slot, Bound)>) -> Result<()> {
        let entry = step.key.kernel.entry();
        let writes = |slot| entry.bindings.iter().any(|b| b.slot == slot && b.writes);
        for (i, (slot, bound)) in bindings.iter().enumerate() {
            for (other_slot, other) in &bindings[..i] {
                let same = bound.buffer == other.buffer;
                let mixed = writes(*slot) != writes(*other_slot);
                if same && (mixed || (writes(*slot) && bound.overlaps(other))) {
                    return Err(Error::Overlap {
                        first: other.name,
                        second: bound.name,
                        how: "share a buffer that one dispatch would both read and write",
                        remedy: "give them buffers of their own",
                    });
                }
            }
        }
        self.steps.push((step, bindings));
        Ok(())
    }

    /// Copies vectors of their own into a packed workspace; `absent` are the bits for those that are not there.
    fn gather(
        &mut self,
        name: &'static str,
        vectors: [Option<Vector>; 3],
        absent: [u32; 3],
    ) -> Result<Bound> {
        let gathered = self.workspace(name, self.channels() * 12)?;
        let mut step = self.plan.per_channel(Kernel::Gather, 0);
        set_vectors(&mut step.params, &vectors);
        [
            step.params.absent_0,
            step.params.absent_1,
            step.params.absent_2,
        ] = absent;
        let mut bindings = vec![(Slot::Gathered, gathered.clone())];
        for (i, vector) in (0u8..).zip(vectors) {
            bindings.extend(vector.map(|v| (Slot::Source(i), v.range)));
        }
        self.push(step, bindings)?;
        Ok(gathered)
    }

    /// Copies a packed workspace back: vectors that share a buffer in dispatches of their own, as one dispatch may not
    /// write overlapping ranges.
    fn scatter(&mut self, packed: &Bound, vectors: [Option<Vector>; 3]) -> Result<()> {
        let buffers = || vectors.iter().flatten().map(|v| &v.range.buffer);
        let shared = buffers()
            .enumerate()
            .any(|(i, a)| buffers().skip(i + 1).any(|b| a == b));
        let rounds = if shared {
            vec![
                [true, false, false],
                [false, true, false],
                [false, false, true],
            ]
        } else {
            vec![[true; 3]]
        };
        for round in rounds {
            let chosen: [Option<Vector>; 3] =
                std::array::from_fn(|i| vectors[i].clone().filter(|_| round[i]));
            if chosen.iter().all(Option::is_none) {
                continue;
            }
            let mut step = self.plan.per_channel(Kernel::Scatter, 0);
            set_vectors(&mut step.params, &chosen);
            let mut bindings = vec![(Slot::Packed, packed.clone())];
            for (i, vector) in (0u8..).zip(chosen) {
                bindings.extend(vector.map(|v| (Slot::Target(i), v.range)));
            }
            self.push(step, bindings)?;
        }
        Ok(())
    }

    fn affine(&mut self, affine: Affine<'_>) -> Result<Option<Bound>> {
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

    fn running(&mut self, running: Running<'_>, access: Access) -> Result<Bound> {
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

    fn running_vectors(
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

    fn scatter_running(&mut self, running: Option<Running<'_>>) -> Result<()> {
        let (Some(running), Some(gathered)) = (running, self.gathered_running.take()) else {
            return Ok(());
        };
        // Checked when they were gathered; here they are only looked up.
        let arguments = std::mem::take(&mut self.arguments);
        let vectors = self.running_vectors(running, Access::Write)?;
        self.arguments = arguments;
        self.scatter(&gathered, vectors)
    }

    fn finalize(
        &mut self,
        sets: Option<u32>,
        partials: Bound,
        coefficients: &Bound,
        affine: Affine<'_>,
        running: Option<Running<'_>>,
        saved: Option<BufferRange<'_>>,
    ) -> Result<()> {
        let mut flags = 0;
        let mut bindings = vec![
            (Slot::Partials, partials),
            (Slot::Coefficients, coefficients.clone()),
        ];
        if let Some(affine) = self.affine(affine)? {
            flags |= flags::HAS_AFFINE;
            bindings.push((Slot::Affine, affine));
        }
        if let Some(running) = running {
            let cumulative = self.plan.problem().momentum == Momentum::Cumulative;
            if cumulative && running.packed.is_none() && running.batches.is_none() {
                let problem = "cumulative momentum needs the number of batches, but none was given"
                    .to_owned();
                let remedy =
                    "give it with Running::batches(…), or use Running::packed(…)".to_owned();
                return Err(Error::Argument {
                    tensor: "num_batches_tracked",
                    problem,
                    remedy,
                });
            }
            flags |= flags::HAS_RUNNING;
            let running = self.running(running, Access::Write)?;
            bindings.push((Slot::Running, running));
        }
        if let Some(saved) = saved {
            flags |= flags::HAS_SAVED;
            bindings.push((Slot::Saved, self.packed("saved", saved, 4, Access::Write)?));
        }
        self.push(self.plan.merge(Kernel::Finalize, sets, flags), bindings)
    }

    fn coefficients(
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
            Statistics::Saved(saved) => self.packed("saved", saved, 4, Access::Read)?,
            Statistics::Running(running) => {
                flags |= flags::FROM_RUNNING;
                self.running(running, Access::Read)?
            }
        };
        bindings.push((Slot::Statistics, statistics));
        self.push(self.plan.per_channel(Kernel::Coefficients, flags), bindings)
    }

    fn normalize(
        &mut self,
        input: Bound,
        residual: Option<Bound>,
        coefficients: Bound,
        output: Bound,
    ) -> Result<()> {
        let mut bindings = vec![
            (Slot::Input, input),
            (Slot::Coefficients, coefficients),
            (Slot::Output, output),
        ];
        bindings.extend(residual.map(|r| (Slot::Residual, r)));
        self.push(self.plan.flat(Kernel::Normalize), bindings)
    }

    fn backward_arguments(&mut self, args: &Backward<'_>) -> Result<BackwardBound> {
        let input = self.tensor("input", args.input, Access::Read)?;
        let grad_output = self.tensor("grad_output", args.grad_output, Access::Read)?;
        let residual = self.residual_of_gradient(args.residual)?;
        let coefficients = self.workspace("coefficients", 2 * self.plan.coefficients_bytes())?;
        self.coefficients(
            args.statistics,
            args.affine,
            &coefficients,
            flags::FOR_BACKWARD,
        )?;
        Ok(BackwardBound {
            input,
            grad_output,
            residual,
            coefficients,
        })
    }

    fn backward_reduce(&mut self, args: &BackwardBound) -> Result<Bound> {
        let partials = self.workspace("partials", self.plan.partials_bytes())?;
        let mut bindings = vec![
            (Slot::Input, args.input.clone()),
            (Slot::GradOutput, args.grad_output.clone()),
            (Slot::Coefficients, args.coefficients.clone()),
            (Slot::Partials, partials.clone()),
        ];
        bindings.extend(args.residual.clone().map(|r| (Slot::Residual, r)));
        self.push(self.plan.backward_reduce(), bindings)?;
        Ok(partials)
    }

    fn backward_apply(
        &mut self,
        args: &Backward<'_>,
        bound: BackwardBound,
        partials: Option<Bound>,
        sets: Option<u32>,
        count: Option<u32>,
    ) -> Result<()> {
        let mut flags = match args.statistics {
            Statistics::Saved(_) => 0,
            Statistics::Running(_) => flags::FROZEN,
        };
        let mut bindings = vec![(Slot::Coefficients, bound.coefficients.clone())];
        bindings.extend(partials.map(|p| (Slot::Partials, p)));
        let grads = if let Some(packed) = args.grad_affine.packed {
            Some(self.packed("grad_affine", packed, 2, Access::Write)?)
        } else if args.grad_affine.is_absent() {
            None
        } else {
            // Three vectors wide, as the scatter reads it.
            Some(self.workspace("grad_affine", self.channels() * 12)?)
        };
        if let Some(grads) = &grads {
            flags |= flags::HAS_GRAD_AFFINE;
            bindings.push((Slot::GradAffine, grads.clone()));
        }
        let mut step = self.plan.merge(Kernel::BackwardFinalize, sets, flags);
        step.params.count = count.unwrap_or(step.params.count);
        self.push(step, bindings)?;

        let needs_grad_residual = self.plan.problem().writes_grad_residual();
        let grad_residual = match (needs_grad_residual, args.grad_residual) {
            (true, Some(range)) => Some(self.tensor("grad_residual", range, Access::Write)?),
            (false, None) => None,
            (needed, _) => {
                let (problem, remedy) = if needed {
                    (
                        "a residual with an activation has a gradient of its own",
                        "give a buffer with .grad_residual(…)",
                    )
                } else {
                    (
                        "without a residual and an activation nothing is written there",
                        "use grad_output as it is",
                    )
                };
                let (problem, remedy) = (problem.to_owned(), remedy.to_owned());
                return Err(Error::Argument {
                    tensor: "grad_residual",
                    problem,
                    remedy,
                });
            }
        };
        let grad_input = self.tensor("grad_input", args.grad_input, Access::Write)?;
        let mut bindings = vec![
            (Slot::Input, bound.input),
            (Slot::GradOutput, bound.grad_output),
            (Slot::Coefficients, bound.coefficients),
            (Slot::GradInput, grad_input),
        ];
        bindings.extend(bound.residual.map(|r| (Slot::Residual, r)));
        bindings.extend(grad_residual.map(|r| (Slot::GradResidual, r)));
        self.push(self.plan.flat(Kernel::BackwardApply), bindings)?;

        if let (Some(grads), None) = (grads, args.grad_affine.packed) {
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
            self.scatter(&grads, [weight, bias, None])?;
        }
        Ok(())
    }

    // ---- Binding.

    fn finish(self, label: &'static str) -> Result<Operation> {
        let device = self.kernels.device();
        let scopes = ErrorScopes::push(device);
        let stride = u64::from(device.limits().min_uniform_buffer_offset_alignment)
            .max(size_of::<Params>() as u64);
        let uniforms = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("batchnorm parameters"),
            size: stride * self.steps.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        let mut mapped = Ok(());
        for (i, (step, _)) in self.steps.iter().enumerate() {
            let start = i as u64 * stride;
            match uniforms.get_mapped_range_mut(start..start + size_of::<Params>() as u64) {
                Ok(mut range) => range.copy_from_slice(bytemuck::bytes_of(&step.params)),
                Err(error) => {
                    mapped = Err(Error::Device {
                        action: "writing parameters",
                        message: error.to_string(),
                    })
                }
            }
        }
        uniforms.unmap();
        let dispatches = self.steps.iter().enumerate().map(|(i, (step, bindings))| {
            let pipeline = self.kernels.cached(step.key).ok_or_else(|| Error::Device {
                action: "looking up a pipeline",
                message: format!("{:?} was not compiled", step.key),
            })?;
            let parameters = wgpu::BufferBinding {
                buffer: &uniforms,
                offset: i as u64 * stride,
                size: wgpu::BufferSize::new(size_of::<Params>() as u64),
            };
            let mut entries = vec![wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(parameters),
            }];
            for binding in step.key.kernel.entry().bindings {
                let bound = bindings.iter().find(|(slot, _)| *slot == binding.slot);
                let range = match bound {
                    Some((_, b)) => wgpu::BufferBinding {
                        buffer: &b.buffer,
                        offset: b.offset,
                        size: wgpu::BufferSize::new(b.size),
                    },
                    None => self.kernels.placeholder(binding),
                };
                entries.push(wgpu::BindGroupEntry {
                    binding: binding.number,
                    resource: wgpu::BindingResource::Buffer(range),
                });
            }
            let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(label),
                layout: &pipeline.layout,
                entries: &entries,
            });
            Ok(Dispatch {
                pipeline,
                bind_group,
                grid: step.grid,
            })
        });
        let dispatches = dispatches.collect::<Result<Vec<_>>>();
        settle(scopes, "binding an operation")?;
        mapped?;
        Ok(Operation {
            label,
            dispatches: dispatches?,
        })
    }
}

fn set_vectors(params: &mut Params, vectors: &[Option<Vector>; 3]) {
    let start = |i: usize| vectors[i].as_ref().map_or(0, |v: &Vector| v.start);
    params.present = (0..3)
        .filter(|&i| vectors[i].is_some())
        .map(|i| 1 << i)
        .sum();
    [params.start_0, params.start_1, params.start_2] = [start(0), start(1), start(2)];
}

/// Takes what the scopes caught. In a browser that answer comes later than this call can wait; there the checks of the
/// arguments stand alone.
pub(crate) fn settle(scopes: ErrorScopes, action: &'static str) -> Result<()> {
    let caught = scopes.pop(action);
    #[cfg(not(target_family = "wasm"))]
    return crate::kernels::ready(caught);
    #[cfg(target_family = "wasm")]
    {
        drop(caught);
        Ok(())
    }
}
