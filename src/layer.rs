//! `BatchNorm`: a layer that owns its parameters and statistics on the device.

use crate::{
    Backward, BufferRange, Error, ForwardTraining, Inference, Kernels, Operation, Plan, Prepared,
    Problem, Result,
};

/// A batch norm layer: weight, bias, their gradients, running and saved statistics live on the device, packed so that
/// every pass takes the fewest dispatches.
///
/// Buffers may be copied from and to: [`affine`](Self::affine) is `[2, C]` f32 (weight, bias), [`running`](Self::running)
/// `[3, C]` (mean, variance, batches as u32), [`saved`](Self::saved) `[4, C]` f32 and
/// [`grad_affine`](Self::grad_affine) `[2, C]` f32.
#[derive(Debug)]
pub struct BatchNorm {
    kernels: Kernels,
    problem: Problem,
    affine: wgpu::Buffer,
    running: wgpu::Buffer,
    saved: wgpu::Buffer,
    grad_affine: wgpu::Buffer,
    updates_running: bool,
    trains_affine: bool,
    accumulates: bool,
}

/// The tensors of one pass through a [`BatchNorm`], and its batch: how many outer and inner indices they have.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Product of the dimensions before the channels, in each group where the layer has several.
    pub outer: usize,
    /// Product of the dimensions after the channels.
    pub inner: usize,
    /// `[groups, outer, channels, inner]`.
    pub input: BufferRange<'a>,
    /// The residual, where the layer has one.
    pub residual: Option<BufferRange<'a>>,
    /// The mask, f32 `[groups·outer, inner]`, where the layer has one; inference needs none.
    pub mask: Option<BufferRange<'a>>,
}

impl<'a> Batch<'a> {
    /// A batch without a residual.
    pub fn new(outer: usize, inner: usize, input: impl Into<BufferRange<'a>>) -> Self {
        Batch {
            outer,
            inner,
            input: input.into(),
            residual: None,
            mask: None,
        }
    }

    /// Adds the mask.
    pub fn mask(mut self, mask: impl Into<BufferRange<'a>>) -> Self {
        self.mask = Some(mask.into());
        self
    }

    /// Adds the residual.
    pub fn residual(mut self, residual: impl Into<BufferRange<'a>>) -> Self {
        self.residual = Some(residual.into());
        self
    }
}

impl BatchNorm {
    /// A layer with the channels, conventions, activation and residual of a problem, whose batch is left open: weight
    /// 1, bias 0, running mean 0, running variance 1, no batches so far.
    ///
    /// # Errors
    /// What is wrong with the problem, [`Error::OutOfMemory`] and [`Error::DeviceLost`].
    pub fn new(kernels: &Kernels, problem: &Problem) -> Result<Self> {
        problem.validate()?;
        let channels = problem.channels;
        let (needed, limit) = (
            16 * problem.statistics() as u64,
            kernels.caps().max_binding_size,
        );
        if needed > limit {
            return Err(Error::Limit {
                what: "the saved statistics of a layer".into(),
                needed,
                limit,
                name: "max_storage_buffer_binding_size and max_buffer_size",
                remedy: "use fewer channels, or request a device with these limits raised".into(),
            });
        }
        let scopes = crate::faults::ErrorScopes::push(kernels.device());
        let buffer = |label, rows: u64, vectors: usize| {
            kernels.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: rows * vectors as u64 * 4,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: rows < 4,
            })
        };
        let affine = buffer("batchnorm weight and bias", 2, channels);
        let running = buffer("batchnorm running statistics", 3, channels);
        let grad_affine = buffer("batchnorm gradients", 2, channels);
        let saved = buffer("batchnorm saved statistics", 4, problem.statistics());
        let ones = vec![1.0f32; channels];
        let bytes = channels as u64 * 4;
        // New memory is zero; the weight and the running variance start at 1.
        let fill = |buffer, offset| fill(kernels.device(), buffer, offset, &ones);
        let filled = fill(&affine, 0).and(fill(&running, bytes));
        for buffer in [&affine, &running, &grad_affine] {
            buffer.unmap();
        }
        crate::faults::settle(scopes, "allocating a layer")?;
        filled?;
        Ok(BatchNorm {
            kernels: kernels.clone(),
            problem: problem.clone(),
            affine,
            running,
            saved,
            grad_affine,
            updates_running: true,
            trains_affine: true,
            accumulates: false,
        })
    }

    /// Whether training passes update the running statistics; they do unless this says otherwise. (PyTorch's
    /// `track_running_stats`, for the passes that are bound from now on.)
    pub fn update_running(mut self, update: bool) -> Self {
        self.updates_running = update;
        self
    }

    /// Whether backward passes compute the gradients of weight and bias; they do unless this says otherwise. (PyTorch's
    /// `requires_grad` of the two.)
    pub fn train_affine(mut self, train: bool) -> Self {
        self.trains_affine = train;
        self
    }

    /// Whether backward passes add the gradients of weight and bias to what is there, or overwrite it, which they do
    /// unless this says otherwise.
    pub fn accumulate(mut self, accumulate: bool) -> Self {
        self.accumulates = accumulate;
        self
    }

    /// Weight and bias, `[2, C]` f32.
    pub fn affine(&self) -> &wgpu::Buffer {
        &self.affine
    }

    /// Running mean and variance (f32) and the number of batches (u32, one per channel), `[3, C]`.
    pub fn running(&self) -> &wgpu::Buffer {
        &self.running
    }

    /// The statistics of the last training batch, `[4, C]` f32: K, δ, δ's remainder and invstd, with mean = K + δ.
    pub fn saved(&self) -> &wgpu::Buffer {
        &self.saved
    }

    /// The gradients of weight and bias, `[2, C]` f32; every backward pass overwrites them, or adds to them with
    /// [`accumulate`](Self::accumulate).
    pub fn grad_affine(&self) -> &wgpu::Buffer {
        &self.grad_affine
    }

    /// Writes weight and bias, `[C]` each, through the queue.
    ///
    /// # Errors
    /// [`Error::Shape`] where a vector has another length.
    pub fn set_affine(&self, queue: &wgpu::Queue, weight: &[f32], bias: &[f32]) -> Result<()> {
        self.set(queue, &self.affine, &[("weight", weight), ("bias", bias)])
    }

    /// Writes the running statistics, `[C]` each, and the number of batches so far, through the queue.
    ///
    /// # Errors
    /// [`Error::Shape`] where a vector has another length, [`Error::Argument`] for a negative variance.
    pub fn set_running(
        &self,
        queue: &wgpu::Queue,
        mean: &[f32],
        variance: &[f32],
        batches: u32,
    ) -> Result<()> {
        if let Some((c, v)) = variance.iter().enumerate().find(|(_, v)| **v < 0.0) {
            return Err(Error::Argument {
                tensor: "running_var",
                problem: format!("channel {c} is {v}"),
                remedy: "a variance is 0 or more".into(),
            });
        }
        let batches = vec![f32::from_bits(batches); self.problem.channels];
        let vectors = [
            ("running_mean", mean),
            ("running_var", variance),
            ("num_batches_tracked", &batches[..]),
        ];
        self.set(queue, &self.running, &vectors)
    }

    fn set(
        &self,
        queue: &wgpu::Queue,
        buffer: &wgpu::Buffer,
        vectors: &[(&'static str, &[f32])],
    ) -> Result<()> {
        let channels = self.problem.channels;
        for &(tensor, vector) in vectors {
            if vector.len() != channels {
                return Err(Error::Shape {
                    tensor,
                    given: vec![vector.len()],
                    expected: vec![channels],
                });
            }
        }
        for (i, (_, vector)) in vectors.iter().enumerate() {
            queue.write_buffer(
                buffer,
                (i * channels * 4) as u64,
                bytemuck::cast_slice(vector),
            );
        }
        Ok(())
    }

    fn prepare(&self, batch: &Batch<'_>) -> Result<Prepared> {
        let problem = Problem {
            outer: batch.outer,
            inner: batch.inner,
            ..self.problem.clone()
        };
        Ok(self
            .kernels
            .prepare_lazily(&Plan::new(&problem, self.kernels.caps())?))
    }

    /// Binds a training forward pass, to be encoded again and again.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Prepared::bind_forward_training`].
    pub fn bind_training<'a>(
        &self,
        batch: &Batch<'a>,
        output: impl Into<BufferRange<'a>>,
    ) -> Result<Operation> {
        let mut args = ForwardTraining::new(batch.input, output)
            .affine_packed(&self.affine)
            .saved(&self.saved);
        if self.updates_running {
            args = args.running(&self.running);
        }
        if let Some(residual) = batch.residual {
            args = args.residual(residual);
        }
        if let Some(mask) = batch.mask {
            args = args.mask(mask);
        }
        self.prepare(batch)?.bind_forward_training(&args)
    }

    /// Binds an inference forward pass.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Prepared::bind_inference`].
    pub fn bind_inference<'a>(
        &self,
        batch: &Batch<'a>,
        output: impl Into<BufferRange<'a>>,
    ) -> Result<Operation> {
        let (input, output): (BufferRange<'_>, BufferRange<'_>) = (batch.input, output.into());
        let mut args = Inference::new(input, output, &self.running).affine_packed(&self.affine);
        if let Some(residual) = batch.residual {
            args = args.residual(residual);
        }
        self.prepare(batch)?.bind_inference(&args)
    }

    /// Binds a backward pass through the last training batch. `grad_residual` is needed with a residual and an
    /// activation, and only there.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Prepared::bind_backward`].
    pub fn bind_backward<'a>(
        &self,
        batch: &Batch<'a>,
        grad_output: impl Into<BufferRange<'a>>,
        grad_input: impl Into<BufferRange<'a>>,
        grad_residual: Option<BufferRange<'a>>,
    ) -> Result<Operation> {
        let (grad_output, grad_input): (BufferRange<'_>, BufferRange<'_>) =
            (grad_output.into(), grad_input.into());
        let args = Backward::new(batch.input, &self.saved, grad_output, grad_input);
        self.bind_backward_by(args, batch, grad_residual)
    }

    /// Binds a backward pass through the running statistics, which do not depend on the input (a frozen layer). Its
    /// forward pass is the inference one.
    ///
    /// # Errors
    /// As [`BatchNorm::bind_backward`].
    pub fn bind_frozen_backward<'a>(
        &self,
        batch: &Batch<'a>,
        grad_output: impl Into<BufferRange<'a>>,
        grad_input: impl Into<BufferRange<'a>>,
        grad_residual: Option<BufferRange<'a>>,
    ) -> Result<Operation> {
        let (grad_output, grad_input): (BufferRange<'_>, BufferRange<'_>) =
            (grad_output.into(), grad_input.into());
        let args = Backward::frozen(batch.input, &self.running, grad_output, grad_input);
        self.bind_backward_by(args, batch, grad_residual)
    }

    fn bind_backward_by(
        &self,
        args: Backward<'_>,
        batch: &Batch<'_>,
        grad_residual: Option<BufferRange<'_>>,
    ) -> Result<Operation> {
        let mut args = Backward {
            residual: batch.residual,
            mask: batch.mask,
            grad_residual,
            accumulate: self.accumulates,
            ..args
        }
        .affine_packed(&self.affine);
        if self.trains_affine {
            args = args.grad_affine_packed(&self.grad_affine);
        }
        self.prepare(batch)?.bind_backward(&args)
    }

    /// Binds and encodes a training forward pass.
    ///
    /// # Errors
    /// As [`BatchNorm::bind_training`].
    pub fn forward<'a>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        batch: &Batch<'a>,
        output: impl Into<BufferRange<'a>>,
    ) -> Result<()> {
        self.bind_training(batch, output)?.encode(encoder);
        Ok(())
    }

    /// Binds and encodes an inference forward pass.
    ///
    /// # Errors
    /// As [`BatchNorm::bind_inference`].
    pub fn infer<'a>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        batch: &Batch<'a>,
        output: impl Into<BufferRange<'a>>,
    ) -> Result<()> {
        self.bind_inference(batch, output)?.encode(encoder);
        Ok(())
    }

    /// The layer's channels and conventions; outer and inner are those it was made with.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Binds and encodes a backward pass.
    ///
    /// # Errors
    /// As [`BatchNorm::bind_backward`].
    pub fn backward<'a>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        batch: &Batch<'a>,
        grad_output: impl Into<BufferRange<'a>>,
        grad_input: impl Into<BufferRange<'a>>,
        grad_residual: Option<BufferRange<'a>>,
    ) -> Result<()> {
        self.bind_backward(batch, grad_output, grad_input, grad_residual)?
            .encode(encoder);
        Ok(())
    }
}

/// The layer's parameters and statistics to and from the host.
#[cfg(feature = "state")]
impl BatchNorm {
    /// Writes a state through the queue. What it lacks stays as it is on the layer; on a new one that is weight 1, bias
    /// 0, running mean 0, running variance 1 and no batches. Gradients and saved statistics are left alone.
    ///
    /// Keras' files count no batches. With [`Momentum::Cumulative`](crate::Momentum::Cumulative) give a number too: a
    /// count of 0 makes the next training batch replace the running statistics.
    ///
    /// # Errors
    /// [`Error::Shape`] where a vector is not `[C]`; [`Error::Argument`] for a negative variance, a mean without variance
    /// or the other way round, or more batches than a u32 counts; [`Error::DeviceLost`]. Nothing is written then, but for
    /// the last.
    pub fn set_state(&self, queue: &wgpu::Queue, state: &crate::State) -> Result<()> {
        let channels = self.problem.channels;
        let vectors = state.checked(channels)?;
        let batches = state.num_batches_tracked.map(u32::try_from).transpose();
        let batches = batches.map_err(|_| Error::Argument {
            tensor: "num_batches_tracked",
            problem: "it is beyond the u32 that the device counts with".into(),
            remedy: format!("give at most {}", u32::MAX),
        })?;
        let batches = batches.map(|batches| vec![f32::from_bits(batches); channels]);
        let places = [
            (&self.affine, 0),
            (&self.affine, 1),
            (&self.running, 0),
            (&self.running, 1),
        ];
        let rows = places.into_iter().zip(vectors);
        let rows = rows.chain([((&self.running, 2), batches.as_deref())]);
        let scopes = crate::faults::ErrorScopes::push(self.kernels.device());
        for ((buffer, row), vector) in rows {
            if let Some(vector) = vector {
                let offset = row * channels as u64 * 4;
                queue.write_buffer(buffer, offset, bytemuck::cast_slice(vector));
            }
        }
        crate::faults::settle(scopes, "writing a layer's state")
    }

    /// Submits a copy of the layer's state, as it is after everything submitted before, and gives a future of it.
    /// Everything in the state is there, whether or not the layer has been trained.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::DeviceLost`].
    pub fn submit_and_read_state(&self, queue: &wgpu::Queue) -> Result<crate::StateReadback> {
        let device = self.kernels.device();
        let scopes = crate::faults::ErrorScopes::push(device);
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("batchnorm state"),
            size: self.affine.size() + self.running.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&Default::default());
        let (affine, running) = (&self.affine, &self.running);
        encoder.copy_buffer_to_buffer(affine, 0, &staging, 0, affine.size());
        encoder.copy_buffer_to_buffer(running, 0, &staging, affine.size(), running.size());
        let submitted = queue.submit([encoder.finish()]);
        let channels = self.problem.channels;
        let readback = crate::StateReadback::new(device, staging, submitted, channels);
        crate::faults::settle(scopes, "reading a layer's state")?;
        Ok(readback)
    }
}

fn fill(device: &wgpu::Device, buffer: &wgpu::Buffer, offset: u64, values: &[f32]) -> Result<()> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    // Mapped ranges start at multiples of 8.
    let start = offset & !7;
    let mut range = buffer
        .get_mapped_range_mut(start..offset + bytes.len() as u64)
        .map_err(|error| crate::faults::failed(device, "allocating a layer", &error))?;
    range
        .slice((offset - start) as usize..)
        .copy_from_slice(bytes);
    Ok(())
}
