//! The arguments of operations: ranges of the caller's buffers, by name.

/// A range of a caller's buffer: a whole buffer, or from an offset on. The bytes needed are bound, and no more.
///
/// Tensors and packed per-channel arrays start at a multiple of `min_storage_buffer_offset_alignment` (256 by default);
/// per-channel vectors of their own start at any multiple of 4.
#[derive(Debug, Clone, Copy)]
pub struct BufferRange<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    pub(crate) size: Option<u64>,
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

    /// Whether both begin at the same place.
    pub(crate) fn is(&self, other: &BufferRange<'_>) -> bool {
        self.buffer == other.buffer && self.offset == other.offset
    }

    pub(crate) fn available(&self) -> u64 {
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
pub(crate) struct Affine<'a> {
    pub(crate) packed: Option<BufferRange<'a>>,
    pub(crate) weight: Option<BufferRange<'a>>,
    pub(crate) bias: Option<BufferRange<'a>>,
}

impl Affine<'_> {
    /// Both forms at once, where one would be ignored.
    pub(crate) fn is_twofold(&self) -> bool {
        self.packed.is_some() && (self.weight.is_some() || self.bias.is_some())
    }

    pub(crate) fn is_absent(&self) -> bool {
        self.packed.is_none() && self.weight.is_none() && self.bias.is_none()
    }
}

/// Running statistics on the device.
///
/// Packed they are one buffer of `[3, C]` words: mean (f32), variance (f32), batches tracked (u32, one per channel, so
/// that no two workgroups share one). Buffers of their own cost one or two small dispatches more.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    pub(crate) packed: Option<BufferRange<'a>>,
    pub(crate) mean: Option<BufferRange<'a>>,
    pub(crate) variance: Option<BufferRange<'a>>,
    pub(crate) batches: Option<BufferRange<'a>>,
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

    /// The number of batches so far, `[C]` u32, all equal. [`Momentum::Cumulative`](crate::Momentum::Cumulative) needs it.
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
pub(crate) enum Statistics<'a> {
    Saved(BufferRange<'a>),
    Running(Running<'a>),
}

macro_rules! mask_setter {
    () => {
        /// The mask, f32 `[groups·outer, inner]`, 0 or 1. A plan [`with_mask`](crate::Problem::with_mask) needs it.
        pub fn mask(mut self, mask: impl Into<BufferRange<'a>>) -> Self {
            self.mask = Some(mask.into());
            self
        }
    };
}

macro_rules! affine_setters {
    () => {
        /// Weight and bias, `[C]` f32 each. Absent, they are 1 and 0.
        pub fn affine(
            mut self,
            weight: impl Into<BufferRange<'a>>,
            bias: impl Into<BufferRange<'a>>,
        ) -> Self {
            self.affine.weight = Some(weight.into());
            self.affine.bias = Some(bias.into());
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
            self.affine.packed = Some(affine.into());
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
        /// Where the gradients of weight and bias go, `[C]` f32 each. They are overwritten, unless
        /// [`accumulate`](Self::accumulate) says otherwise. Without this nothing is computed for them alone.
        pub fn grad_affine(
            mut self,
            weight: impl Into<BufferRange<'a>>,
            bias: impl Into<BufferRange<'a>>,
        ) -> Self {
            self.grad_affine.weight = Some(weight.into());
            self.grad_affine.bias = Some(bias.into());
            self
        }

        /// The gradient of the weight alone, `[C]` f32.
        pub fn grad_weight(mut self, grad: impl Into<BufferRange<'a>>) -> Self {
            self.grad_affine.weight = Some(grad.into());
            self
        }

        /// The gradient of the bias alone, `[C]` f32.
        pub fn grad_bias(mut self, grad: impl Into<BufferRange<'a>>) -> Self {
            self.grad_affine.bias = Some(grad.into());
            self
        }

        /// Adds the gradients of weight and bias to what is there, instead of overwriting it.
        pub fn accumulate(mut self) -> Self {
            self.accumulate = true;
            self
        }

        /// Both gradients in one buffer, `[2, C]` f32: one dispatch less.
        pub fn grad_affine_packed(mut self, grads: impl Into<BufferRange<'a>>) -> Self {
            self.grad_affine.packed = Some(grads.into());
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
///
/// The output may be the input's very range: the pass then works in place. No backward pass can follow such a one, because
/// gradients are computed from the input, which is gone.
#[derive(Debug, Clone, Copy)]
pub struct ForwardTraining<'a> {
    pub(crate) input: BufferRange<'a>,
    pub(crate) output: BufferRange<'a>,
    pub(crate) residual: Option<BufferRange<'a>>,
    pub(crate) affine: Affine<'a>,
    pub(crate) mask: Option<BufferRange<'a>>,
    pub(crate) running: Option<Running<'a>>,
    pub(crate) saved: Option<BufferRange<'a>>,
}

impl<'a> ForwardTraining<'a> {
    /// Input and output, of the problem's shape.
    pub fn new(input: impl Into<BufferRange<'a>>, output: impl Into<BufferRange<'a>>) -> Self {
        ForwardTraining {
            input: input.into(),
            output: output.into(),
            residual: None,
            affine: Affine::default(),
            mask: None,
            running: None,
            saved: None,
        }
    }

    affine_setters!();
    residual_setter!();
    mask_setter!();

    /// Running statistics to update. Without them none are.
    pub fn running(mut self, running: impl Into<Running<'a>>) -> Self {
        self.running = Some(running.into());
        self
    }

    /// Where the statistics go that a backward pass needs: `[4, groups·C]` f32, K, δ, δ's remainder and invstd, with
    /// mean = K + δ.
    pub fn saved(mut self, saved: impl Into<BufferRange<'a>>) -> Self {
        self.saved = Some(saved.into());
        self
    }
}

/// Arguments of the inference forward pass: `y = act(γ·x̂ + β + residual)` by running statistics. The output may be the
/// input's very range: the pass then works in place.
#[derive(Debug, Clone, Copy)]
pub struct Inference<'a> {
    pub(crate) input: BufferRange<'a>,
    pub(crate) output: BufferRange<'a>,
    pub(crate) residual: Option<BufferRange<'a>>,
    pub(crate) affine: Affine<'a>,
    pub(crate) running: Running<'a>,
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
///
/// Nothing is kept from the forward pass but the input, the residual where there is an activation too, and the saved
/// statistics: z is computed again. `grad_input` may be `grad_output`'s very range: the pass then works in place.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    pub(crate) input: BufferRange<'a>,
    pub(crate) grad_output: BufferRange<'a>,
    pub(crate) grad_input: BufferRange<'a>,
    pub(crate) statistics: Statistics<'a>,
    pub(crate) residual: Option<BufferRange<'a>>,
    pub(crate) affine: Affine<'a>,
    pub(crate) mask: Option<BufferRange<'a>>,
    pub(crate) grad_affine: Affine<'a>,
    pub(crate) accumulate: bool,
    pub(crate) grad_residual: Option<BufferRange<'a>>,
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
            mask: None,
            grad_affine: Affine::default(),
            accumulate: false,
            grad_residual: None,
        }
    }

    affine_setters!();
    residual_setter!();
    mask_setter!();
    grad_setters!();
}

/// Arguments of `reduce`: the input to one record of moments per channel, `[C, 4]` f32: count, K, δ, M2, with
/// mean = K + δ and M2 the sum of squared deviations from the mean.
#[derive(Debug, Clone, Copy)]
pub struct Reduce<'a> {
    pub(crate) input: BufferRange<'a>,
    pub(crate) moments: BufferRange<'a>,
    pub(crate) mask: Option<BufferRange<'a>>,
}

impl<'a> Reduce<'a> {
    /// Input of the problem's shape, moments `[C, 4]`.
    pub fn new(input: impl Into<BufferRange<'a>>, moments: impl Into<BufferRange<'a>>) -> Self {
        Reduce {
            input: input.into(),
            moments: moments.into(),
            mask: None,
        }
    }

    mask_setter!();
}

/// Arguments of `combine`: several sets of moments, `[sets, C, 4]`, merged into one by Chan's formula. Sets may have
/// different counts, also zero.
#[derive(Debug, Clone, Copy)]
pub struct Combine<'a> {
    pub(crate) parts: BufferRange<'a>,
    pub(crate) sets: u32,
    pub(crate) moments: BufferRange<'a>,
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
    pub(crate) moments: BufferRange<'a>,
    pub(crate) coefficients: BufferRange<'a>,
    pub(crate) affine: Affine<'a>,
    pub(crate) running: Option<Running<'a>>,
    pub(crate) saved: Option<BufferRange<'a>>,
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
    pub(crate) input: BufferRange<'a>,
    pub(crate) coefficients: BufferRange<'a>,
    pub(crate) output: BufferRange<'a>,
    pub(crate) residual: Option<BufferRange<'a>>,
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
    pub(crate) input: BufferRange<'a>,
    pub(crate) saved: BufferRange<'a>,
    pub(crate) grad_output: BufferRange<'a>,
    pub(crate) sums: BufferRange<'a>,
    pub(crate) residual: Option<BufferRange<'a>>,
    pub(crate) affine: Affine<'a>,
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
    pub(crate) backward: Backward<'a>,
    pub(crate) sums: BufferRange<'a>,
    pub(crate) count: Option<u32>,
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
