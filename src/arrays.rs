//! Conveniences on host arrays: upload, run, read back. For tests, examples and tools; a pipeline binds its own buffers.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView3, Axis};

use crate::kernels::ErrorScopes;
use crate::{
    Activation, Backward, Error, ForwardTraining, Gpu, Inference, Operation, Plan, Problem, Result,
    Running,
};

/// Host tensors of one pass. Tensors have shape `[outer, channels, inner]`, vectors `[channels]`.
#[derive(Debug, Clone, Copy)]
pub struct Arrays<'a> {
    /// What is normalised.
    pub input: ArrayView3<'a, f32>,
    /// Added before the activation; where the problem has one.
    pub residual: Option<ArrayView3<'a, f32>>,
    /// γ; 1 where absent.
    pub weight: Option<ArrayView1<'a, f32>>,
    /// β; 0 where absent.
    pub bias: Option<ArrayView1<'a, f32>>,
}

impl<'a> Arrays<'a> {
    /// An input alone.
    pub fn new(input: ArrayView3<'a, f32>) -> Self {
        Arrays {
            input,
            residual: None,
            weight: None,
            bias: None,
        }
    }
}

/// Running statistics on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningArrays {
    /// `[channels]`.
    pub mean: Array1<f32>,
    /// `[channels]`.
    pub variance: Array1<f32>,
    /// Batches so far.
    pub batches: u32,
}

/// Saved statistics on the host, `[4, channels]`: K, δ, δ's remainder, invstd, with mean = K + δ.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedArrays(pub Array2<f32>);

impl SavedArrays {
    /// From a mean, what an f32 mean lacks, and invstd.
    pub fn new(
        mean: ArrayView1<'_, f32>,
        remainder: Option<ArrayView1<'_, f32>>,
        invstd: ArrayView1<'_, f32>,
    ) -> Self {
        let mut rows = Array2::zeros((4, mean.len()));
        rows.row_mut(0).assign(&mean);
        if let Some(remainder) = remainder {
            rows.row_mut(1).assign(&remainder);
        }
        rows.row_mut(3).assign(&invstd);
        SavedArrays(rows)
    }

    /// The mean to about 48 bits.
    pub fn mean(&self) -> Array1<f64> {
        self.0
            .rows()
            .into_iter()
            .take(3)
            .fold(Array1::zeros(self.0.ncols()), |sum, row| {
                sum + row.mapv(f64::from)
            })
    }

    /// `1/√(variance + ε)`.
    pub fn invstd(&self) -> ArrayView1<'_, f32> {
        self.0.row(3)
    }
}

/// What a training forward pass gives.
#[derive(Debug, Clone, PartialEq)]
pub struct ForwardResult {
    /// `[outer, channels, inner]`.
    pub output: Array3<f32>,
    /// The statistics of the batch.
    pub saved: SavedArrays,
    /// The running statistics after it, where some were given.
    pub running: Option<RunningArrays>,
}

/// What a backward pass gives.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientArrays {
    /// `[outer, channels, inner]`.
    pub input: Array3<f32>,
    /// The residual's, where the problem has one; `[outer, channels, inner]`.
    pub residual: Option<Array3<f32>>,
    /// `[channels]`.
    pub weight: Array1<f32>,
    /// `[channels]`.
    pub bias: Array1<f32>,
}

/// The statistics that a backward pass goes through.
#[derive(Debug, Clone, Copy)]
pub enum Through<'a> {
    /// Those of the batch.
    Saved(&'a SavedArrays),
    /// Running ones, which do not depend on the input.
    Running(&'a RunningArrays),
}

/// Results on their way back to the host: a future. Somebody must poll the device, as in any wgpu program;
/// [`Readback::wait`] does.
#[derive(Debug)]
pub struct Readback {
    device: wgpu::Device,
    staging: wgpu::Buffer,
    sizes: Vec<u64>,
    state: Arc<Mutex<(Option<Result<(), wgpu::BufferAsyncError>>, Option<Waker>)>>,
}

impl Future for Readback {
    /// The words of each buffer, in the order asked for.
    type Output = Result<Vec<Vec<u32>>>;

    fn poll(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Self::Output> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0.take() {
            None => {
                state.1 = Some(context.waker().clone());
                Poll::Pending
            }
            Some(mapped) => {
                drop(state);
                Poll::Ready(self.words(mapped))
            }
        }
    }
}

impl Readback {
    fn words(&self, mapped: Result<(), wgpu::BufferAsyncError>) -> Result<Vec<Vec<u32>>> {
        let failed = |message: String| Error::Device {
            action: "reading results back",
            message,
        };
        mapped.map_err(|error| failed(error.to_string()))?;
        let mut offset = 0;
        let mut buffers = Vec::new();
        for &size in &self.sizes {
            let range = self
                .staging
                .get_mapped_range(offset..offset + size)
                .map_err(|e| failed(e.to_string()))?;
            buffers.push(
                range
                    .chunks_exact(4)
                    .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect(),
            );
            offset += size.next_multiple_of(8);
        }
        Ok(buffers)
    }

    /// Waits for the device and takes the results.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or the memory cannot be mapped.
    #[cfg(not(target_family = "wasm"))]
    pub fn wait(self) -> Result<Vec<Vec<u32>>> {
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|error| Error::Device {
                action: "waiting for the device",
                message: error.to_string(),
            })?;
        pollster::block_on(self)
    }
}

/// A host tensor on its way: what is uploaded or left to be written, and read back afterwards.
struct Upload<'a> {
    gpu: &'a Gpu,
}

impl Upload<'_> {
    fn empty(&self, label: &'static str, words: usize) -> wgpu::Buffer {
        self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: words as u64 * 4,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    fn words<T: bytemuck::Pod>(&self, label: &'static str, values: &[T]) -> wgpu::Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.empty(label, bytes.len() / 4);
        self.gpu.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    fn tensor(
        &self,
        name: &'static str,
        problem: &Problem,
        array: ArrayView3<'_, f32>,
    ) -> Result<wgpu::Buffer> {
        if array.shape() != problem.shape() {
            let (given, expected) = (array.shape().to_vec(), problem.shape().to_vec());
            return Err(Error::Shape {
                tensor: name,
                given,
                expected,
            });
        }
        let array = array.as_standard_layout();
        Ok(self.words(name, array.as_slice().unwrap_or_default()))
    }

    fn vector(
        &self,
        name: &'static str,
        channels: usize,
        values: ArrayView1<'_, f32>,
    ) -> Result<Vec<f32>> {
        if values.len() != channels {
            return Err(Error::Shape {
                tensor: name,
                given: vec![values.len()],
                expected: vec![channels],
            });
        }
        let _ = self;
        Ok(values.to_vec())
    }

    fn affine(&self, problem: &Problem, arrays: &Arrays<'_>) -> Result<wgpu::Buffer> {
        let channels = problem.channels;
        let weight = arrays
            .weight
            .map(|w| self.vector("weight", channels, w))
            .transpose()?;
        let bias = arrays
            .bias
            .map(|b| self.vector("bias", channels, b))
            .transpose()?;
        let mut packed = weight.unwrap_or_else(|| vec![1.0; channels]);
        packed.extend(bias.unwrap_or_else(|| vec![0.0; channels]));
        Ok(self.words("affine", &packed))
    }

    fn running(&self, problem: &Problem, running: &RunningArrays) -> Result<wgpu::Buffer> {
        let mut packed = self.vector("running_mean", problem.channels, running.mean.view())?;
        packed.extend(self.vector("running_var", problem.channels, running.variance.view())?);
        packed.extend(vec![f32::from_bits(running.batches); problem.channels]);
        Ok(self.words("running", &packed))
    }
}

impl Gpu {
    /// Copies buffers (which need `COPY_SRC`) to the host. Submits.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no memory left or a buffer cannot be copied.
    pub fn submit_and_read(
        &self,
        operation: Option<&Operation>,
        buffers: &[&wgpu::Buffer],
    ) -> Result<Readback> {
        let scopes = ErrorScopes::push(&self.device);
        let sizes = buffers.iter().map(|b| b.size()).collect::<Vec<_>>();
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: sizes.iter().map(|size| size.next_multiple_of(8)).sum(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        if let Some(operation) = operation {
            operation.encode(&mut encoder);
        }
        let mut offset = 0;
        for (buffer, size) in buffers.iter().zip(&sizes) {
            encoder.copy_buffer_to_buffer(buffer, 0, &staging, offset, *size);
            offset += size.next_multiple_of(8);
        }
        self.queue.submit([encoder.finish()]);
        let state = Arc::new(Mutex::new((None, None::<Waker>)));
        let shared = Arc::clone(&state);
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = Some(result);
            if let Some(waker) = state.1.take() {
                waker.wake();
            }
        });
        crate::encode::settle(scopes, "running an operation")?;
        Ok(Readback {
            device: self.device.clone(),
            staging,
            sizes,
            state,
        })
    }

    /// Uploads, runs and reads back a training forward pass. Submits.
    ///
    /// # Errors
    /// What is wrong with the problem, the plan or an array's shape, and [`Error::Device`].
    pub async fn forward_training_async(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        running: Option<&RunningArrays>,
    ) -> Result<ForwardResult> {
        let (readback, rest) = self.start_forward(plan, arrays, running)?;
        Ok(rest(readback.await?))
    }

    /// Uploads, runs and reads back an inference forward pass. Submits.
    ///
    /// # Errors
    /// As [`Gpu::forward_training_async`].
    pub async fn inference_async(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        running: &RunningArrays,
    ) -> Result<Array3<f32>> {
        let (readback, rest) = self.start_inference(plan, arrays, running)?;
        Ok(rest(readback.await?))
    }

    /// Uploads, runs and reads back a backward pass. Submits.
    ///
    /// # Errors
    /// As [`Gpu::forward_training_async`].
    pub async fn backward_async(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        grad_output: ArrayView3<'_, f32>,
        through: Through<'_>,
    ) -> Result<GradientArrays> {
        let (readback, rest) = self.start_backward(plan, arrays, grad_output, through)?;
        Ok(rest(readback.await?))
    }

    fn start_forward(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        running: Option<&RunningArrays>,
    ) -> Result<(
        Readback,
        impl FnOnce(Vec<Vec<u32>>) -> ForwardResult + use<>,
    )> {
        let problem = plan.problem().clone();
        let scopes = ErrorScopes::push(&self.device);
        let upload = Upload { gpu: self };
        let built = (|| {
            let input = upload.tensor("input", &problem, arrays.input)?;
            let residual = arrays
                .residual
                .map(|r| upload.tensor("residual", &problem, r))
                .transpose()?;
            let affine = upload.affine(&problem, arrays)?;
            let running = running.map(|r| upload.running(&problem, r)).transpose()?;
            let output = upload.empty("output", arrays.input.len());
            let saved = upload.empty("saved", 4 * problem.channels);
            Ok((input, residual, affine, running, output, saved))
        })();
        crate::encode::settle(scopes, "uploading tensors")?;
        let (input, residual, affine, running, output, saved) = built?;
        let mut args = ForwardTraining::new(&input, &output)
            .affine_packed(&affine)
            .saved(&saved);
        if let Some(residual) = &residual {
            args = args.residual(residual);
        }
        if let Some(running) = &running {
            args = args.running(running);
        }
        let operation = self
            .kernels
            .prepare_now(plan)?
            .bind_forward_training(&args)?;
        let wanted: Vec<_> = [&output, &saved]
            .into_iter()
            .chain(running.as_ref())
            .collect();
        let readback = self.submit_and_read(Some(&operation), &wanted)?;
        Ok((readback, move |words: Vec<Vec<u32>>| {
            let mut words = words.into_iter();
            let mut next = || words.next().unwrap_or_default();
            let (output, saved) = (next(), next());
            let running = next();
            ForwardResult {
                output: tensor(&problem, &output),
                saved: SavedArrays(rows(4, problem.channels, &saved)),
                running: (!running.is_empty()).then(|| {
                    let values = rows(3, problem.channels, &running);
                    RunningArrays {
                        mean: values.row(0).to_owned(),
                        variance: values.row(1).to_owned(),
                        batches: running[2 * problem.channels],
                    }
                }),
            }
        }))
    }

    fn start_inference(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        running: &RunningArrays,
    ) -> Result<(Readback, impl FnOnce(Vec<Vec<u32>>) -> Array3<f32> + use<>)> {
        let problem = plan.problem().clone();
        let scopes = ErrorScopes::push(&self.device);
        let upload = Upload { gpu: self };
        let built = (|| {
            let input = upload.tensor("input", &problem, arrays.input)?;
            let residual = arrays
                .residual
                .map(|r| upload.tensor("residual", &problem, r))
                .transpose()?;
            let affine = upload.affine(&problem, arrays)?;
            let running = upload.running(&problem, running)?;
            let output = upload.empty("output", arrays.input.len());
            Ok((input, residual, affine, running, output))
        })();
        crate::encode::settle(scopes, "uploading tensors")?;
        let (input, residual, affine, running, output) = built?;
        let mut args =
            Inference::new(&input, Running::packed(&running), &output).affine_packed(&affine);
        if let Some(residual) = &residual {
            args = args.residual(residual);
        }
        let operation = self.kernels.prepare_now(plan)?.bind_inference(&args)?;
        let readback = self.submit_and_read(Some(&operation), &[&output])?;
        Ok((readback, move |words: Vec<Vec<u32>>| {
            tensor(&problem, words.first().map_or(&[], Vec::as_slice))
        }))
    }

    fn start_backward(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        grad_output: ArrayView3<'_, f32>,
        through: Through<'_>,
    ) -> Result<(
        Readback,
        impl FnOnce(Vec<Vec<u32>>) -> GradientArrays + use<>,
    )> {
        let problem = plan.problem().clone();
        let recomputes = problem.residual && problem.activation != Activation::None;
        let scopes = ErrorScopes::push(&self.device);
        let upload = Upload { gpu: self };
        let built = (|| {
            let input = upload.tensor("input", &problem, arrays.input)?;
            let grad = upload.tensor("grad_output", &problem, grad_output)?;
            let residual = arrays
                .residual
                .map(|r| upload.tensor("residual", &problem, r))
                .transpose()?;
            let affine = upload.affine(&problem, arrays)?;
            let statistics = match through {
                Through::Running(running) => upload.running(&problem, running)?,
                Through::Saved(SavedArrays(rows)) => {
                    if rows.dim() != (4, problem.channels) {
                        let (given, expected) = (rows.shape().to_vec(), vec![4, problem.channels]);
                        return Err(Error::Shape {
                            tensor: "saved",
                            given,
                            expected,
                        });
                    }
                    upload.words(
                        "saved",
                        rows.as_standard_layout().as_slice().unwrap_or_default(),
                    )
                }
            };
            let grad_input = upload.empty("grad_input", arrays.input.len());
            let grad_affine = upload.empty("grad_affine", 2 * problem.channels);
            let grad_residual =
                recomputes.then(|| upload.empty("grad_residual", arrays.input.len()));
            Ok((
                input,
                grad,
                residual,
                affine,
                statistics,
                grad_input,
                grad_affine,
                grad_residual,
            ))
        })();
        crate::encode::settle(scopes, "uploading tensors")?;
        let (input, grad, residual, affine, statistics, grad_input, grad_affine, grad_residual) =
            built?;
        let mut args = match through {
            Through::Saved(_) => Backward::new(&input, &statistics, &grad, &grad_input),
            Through::Running(_) => Backward::frozen(&input, &statistics, &grad, &grad_input),
        };
        args = args.affine_packed(&affine).grad_affine_packed(&grad_affine);
        if let Some(residual) = &residual {
            args = args.residual(residual);
        }
        if let Some(grad_residual) = &grad_residual {
            args = args.grad_residual(grad_residual);
        }
        let operation = self.kernels.prepare_now(plan)?.bind_backward(&args)?;
        let wanted: Vec<_> = [&grad_input, &grad_affine]
            .into_iter()
            .chain(grad_residual.as_ref())
            .collect();
        let readback = self.submit_and_read(Some(&operation), &wanted)?;
        // Without an activation the residual's gradient is grad_output itself.
        let passed_through = (problem.residual && !recomputes).then(|| grad_output.to_owned());
        Ok((readback, move |words: Vec<Vec<u32>>| {
            let mut words = words.into_iter();
            let mut next = || words.next().unwrap_or_default();
            let input = tensor(&problem, &next());
            let affine = rows(2, problem.channels, &next());
            let residual = if recomputes {
                Some(tensor(&problem, &next()))
            } else {
                passed_through
            };
            GradientArrays {
                input,
                residual,
                weight: affine.row(0).to_owned(),
                bias: affine.row(1).to_owned(),
            }
        }))
    }
}

/// Blocking twins.
#[cfg(not(target_family = "wasm"))]
impl Gpu {
    /// As [`Gpu::forward_training_async`].
    ///
    /// # Errors
    /// As there.
    pub fn forward_training(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        running: Option<&RunningArrays>,
    ) -> Result<ForwardResult> {
        let (readback, rest) = self.start_forward(plan, arrays, running)?;
        Ok(rest(readback.wait()?))
    }

    /// As [`Gpu::inference_async`].
    ///
    /// # Errors
    /// As there.
    pub fn inference(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        running: &RunningArrays,
    ) -> Result<Array3<f32>> {
        let (readback, rest) = self.start_inference(plan, arrays, running)?;
        Ok(rest(readback.wait()?))
    }

    /// As [`Gpu::backward_async`].
    ///
    /// # Errors
    /// As there.
    pub fn backward(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        grad_output: ArrayView3<'_, f32>,
        through: Through<'_>,
    ) -> Result<GradientArrays> {
        let (readback, rest) = self.start_backward(plan, arrays, grad_output, through)?;
        Ok(rest(readback.wait()?))
    }
}

fn tensor(problem: &Problem, words: &[u32]) -> Array3<f32> {
    let values = words.iter().map(|&w| f32::from_bits(w));
    let flat = Array1::from_iter(values);
    // The words came from a buffer made for this very shape.
    flat.into_shape_with_order(problem.shape())
        .unwrap_or_default()
}

fn rows(n: usize, channels: usize, words: &[u32]) -> Array2<f32> {
    let mut values = Array2::zeros((n, channels));
    for (mut row, words) in values.axis_iter_mut(Axis(0)).zip(words.chunks(channels)) {
        row.iter_mut()
            .zip(words)
            .for_each(|(value, &word)| *value = f32::from_bits(word));
    }
    values
}
