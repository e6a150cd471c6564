//! Conveniences on host arrays: upload, run, read back. For tests, examples and tools; a pipeline binds its own buffers.

use std::task::Poll;

use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3};

use crate::faults::{ErrorScopes, settle};
use crate::readback::Mapping;
use crate::{
    Backward, Dtype, Error, ForwardTraining, Gpu, Inference, Operation, Plan, Problem, Result,
};

/// Host tensors of one pass. Tensors have shape `[groups·outer, channels, inner]`, vectors `[channels]`.
///
/// They are f32 on the host whatever the problem's type: on the way to the device they are rounded to it, to the nearest,
/// and what comes back is exact.
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
    /// 1 where a value counts for the statistics, 0 where not, `[groups·outer, inner]`; where the problem has a mask.
    pub mask: Option<ArrayView2<'a, f32>>,
    /// Run in place: the output replaces the input in its buffer, or the input's gradient the output's.
    pub in_place: bool,
}

impl<'a> Arrays<'a> {
    /// An input alone.
    pub fn new(input: ArrayView3<'a, f32>) -> Self {
        Arrays {
            input,
            residual: None,
            weight: None,
            bias: None,
            mask: None,
            in_place: false,
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

/// Saved statistics on the host, `[4, groups·channels]`: K, δ, δ's remainder, invstd, with mean = K + δ.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedArrays(Array2<f32>);

impl SavedArrays {
    /// From a mean, what an f32 mean lacks, and invstd.
    ///
    /// # Errors
    /// [`Error::Shape`] where they have different lengths.
    pub fn new(
        mean: ArrayView1<'_, f32>,
        remainder: Option<ArrayView1<'_, f32>>,
        invstd: ArrayView1<'_, f32>,
    ) -> Result<Self> {
        check_shape("save_invstd", invstd.shape(), mean.shape())?;
        if let Some(remainder) = &remainder {
            check_shape("save_mean_remainder", remainder.shape(), mean.shape())?;
        }
        let mut rows = Array2::zeros((4, mean.len()));
        rows.row_mut(0).assign(&mean);
        if let Some(remainder) = remainder {
            rows.row_mut(1).assign(&remainder);
        }
        rows.row_mut(3).assign(&invstd);
        Ok(SavedArrays(rows))
    }

    /// As they lie on the device.
    ///
    /// # Errors
    /// [`Error::Shape`] where there are not four rows.
    pub fn from_rows(rows: Array2<f32>) -> Result<Self> {
        check_shape("saved", rows.shape(), &[4, rows.ncols()])?;
        Ok(SavedArrays(rows))
    }

    /// K, δ, δ's remainder, invstd.
    pub fn rows(&self) -> ArrayView2<'_, f32> {
        self.0.view()
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
    /// `[groups·outer, channels, inner]`.
    pub output: Array3<f32>,
    /// The statistics of the batch.
    pub saved: SavedArrays,
    /// The running statistics after it, where some were given.
    pub running: Option<RunningArrays>,
}

/// What a backward pass gives.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientArrays {
    /// `[groups·outer, channels, inner]`.
    pub input: Array3<f32>,
    /// The residual's, where the problem has one; `[groups·outer, channels, inner]`.
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

/// Results on their way back to the host: a future. Somebody must poll the device, as in any wgpu program,
/// and as a browser does by itself; [`Readback::wait`] does.
#[derive(Debug)]
pub struct Readback {
    mapping: Mapping,
    sizes: Vec<u64>,
}

impl Future for Readback {
    /// The words of each buffer, in the order asked for.
    type Output = Result<Vec<Vec<u32>>>;

    fn poll(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Self::Output> {
        self.mapping.poll(context).map(|mapped| {
            mapped?;
            self.words()
        })
    }
}

impl Readback {
    fn words(&self) -> Result<Vec<Vec<u32>>> {
        let mut offset = 0;
        let mut buffers = Vec::new();
        for &size in &self.sizes {
            let range = self.mapping.view(offset..offset + size)?;
            let words = range
                .chunks_exact(4)
                .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            buffers.push(words.collect());
            offset += size.next_multiple_of(8);
        }
        Ok(buffers)
    }

    /// Waits for the device and takes the results.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], and [`Error::Device`] where the memory cannot be mapped.
    #[cfg(all(feature = "device", not(target_family = "wasm")))]
    pub fn wait(self) -> Result<Vec<Vec<u32>>> {
        self.mapping.wait(None)?;
        self.words()
    }

    /// Waits for the device, but no longer than `timeout`, and takes the results.
    ///
    /// # Errors
    /// [`Error::Timeout`], after which this may be called again; those of [`wait`](Self::wait).
    #[cfg(all(feature = "device", not(target_family = "wasm")))]
    pub fn wait_timeout(&mut self, timeout: std::time::Duration) -> Result<Vec<Vec<u32>>> {
        self.mapping.wait(Some(timeout))?;
        self.words()
    }
}

/// The tensors that every pass needs, on the device.
struct Uploaded {
    input: wgpu::Buffer,
    residual: Option<wgpu::Buffer>,
    mask: Option<wgpu::Buffer>,
    affine: wgpu::Buffer,
}

impl Gpu {
    /// Submits an operation, if one is given, and copies buffers (which need `COPY_SRC`) to the host.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], and [`Error::Device`] where a buffer cannot be copied.
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
        let mut encoder = self.device.create_command_encoder(&Default::default());
        if let Some(operation) = operation {
            operation.encode(&mut encoder);
        }
        let mut offset = 0;
        for (buffer, size) in buffers.iter().zip(&sizes) {
            encoder.copy_buffer_to_buffer(buffer, 0, &staging, offset, *size);
            offset += size.next_multiple_of(8);
        }
        let submitted = self.queue.submit([encoder.finish()]);
        let mapping = Mapping::start(&self.device, staging, submitted, "reading results back");
        settle(scopes, "running an operation")?;
        Ok(Readback { mapping, sizes })
    }

    /// Uploads, runs and reads back a training forward pass. Submits.
    ///
    /// # Errors
    /// What is wrong with the problem, the plan or an array's shape; [`Error::OutOfMemory`], [`Error::DeviceLost`] and
    /// [`Error::Device`].
    pub async fn forward_training_async(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        running: Option<&RunningArrays>,
    ) -> Result<ForwardResult> {
        let readback = self.start_forward(plan, arrays, running)?;
        Ok(forward_result(plan.problem(), readback.await?))
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
        let readback = self.start_inference(plan, arrays, running)?;
        Ok(inference_result(plan.problem(), readback.await?))
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
        let readback = self.start_backward(plan, arrays, grad_output, through)?;
        Ok(gradients(plan.problem(), grad_output, readback.await?))
    }

    fn start_forward(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        running: Option<&RunningArrays>,
    ) -> Result<Readback> {
        let problem = plan.problem();
        let scopes = ErrorScopes::push(&self.device);
        let uploaded = self.upload(problem, arrays);
        let running = running
            .map(|running| self.upload_running(problem, running))
            .transpose();
        let output = self.empty_tensor("output", problem);
        let saved = self.empty("saved", 4 * problem.statistics());
        settle(scopes, "uploading tensors")?;
        let (uploaded, running) = (uploaded?, running?);
        let output = if arrays.in_place {
            uploaded.input.clone()
        } else {
            output
        };
        let mut args = ForwardTraining::new(&uploaded.input, &output)
            .affine_packed(&uploaded.affine)
            .saved(&saved);
        if let Some(residual) = &uploaded.residual {
            args = args.residual(residual);
        }
        if let Some(mask) = &uploaded.mask {
            args = args.mask(mask);
        }
        if let Some(running) = &running {
            args = args.running(running);
        }
        let operation = self
            .kernels
            .prepare_lazily(plan)
            .bind_forward_training(&args)?;
        let wanted: Vec<_> = [&output, &saved].into_iter().chain(&running).collect();
        self.submit_and_read(Some(&operation), &wanted)
    }

    fn start_inference(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        running: &RunningArrays,
    ) -> Result<Readback> {
        let scopes = ErrorScopes::push(&self.device);
        let uploaded = self.upload(plan.problem(), arrays);
        let running = self.upload_running(plan.problem(), running);
        let output = self.empty_tensor("output", plan.problem());
        settle(scopes, "uploading tensors")?;
        let (uploaded, running) = (uploaded?, running?);
        let output = if arrays.in_place {
            uploaded.input.clone()
        } else {
            output
        };
        let mut args =
            Inference::new(&uploaded.input, &output, &running).affine_packed(&uploaded.affine);
        if let Some(residual) = &uploaded.residual {
            args = args.residual(residual);
        }
        let operation = self.kernels.prepare_lazily(plan).bind_inference(&args)?;
        self.submit_and_read(Some(&operation), &[&output])
    }

    fn start_backward(
        &self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        grad_output: ArrayView3<'_, f32>,
        through: Through<'_>,
    ) -> Result<Readback> {
        let problem = plan.problem();
        let scopes = ErrorScopes::push(&self.device);
        let uploaded = self.upload(problem, arrays);
        let grad_output = self.upload_tensor("grad_output", problem, grad_output);
        let statistics = match through {
            Through::Running(running) => self.upload_running(problem, running),
            Through::Saved(saved) => self.upload_saved(problem, saved),
        };
        let grad_input = self.empty_tensor("grad_input", problem);
        let grad_affine = self.empty("grad_affine", 2 * problem.channels);
        let grad_residual = problem
            .writes_grad_residual()
            .then(|| self.empty_tensor("grad_residual", problem));
        settle(scopes, "uploading tensors")?;
        let (uploaded, grad_output, statistics) = (uploaded?, grad_output?, statistics?);
        let grad_input = if arrays.in_place {
            grad_output.clone()
        } else {
            grad_input
        };
        let input = &uploaded.input;
        let mut args = match through {
            Through::Saved(_) => Backward::new(input, &statistics, &grad_output, &grad_input),
            Through::Running(_) => Backward::frozen(input, &statistics, &grad_output, &grad_input),
        };
        args = args
            .affine_packed(&uploaded.affine)
            .grad_affine_packed(&grad_affine);
        if let Some(residual) = &uploaded.residual {
            args = args.residual(residual);
        }
        if let (Some(mask), Through::Saved(_)) = (&uploaded.mask, through) {
            args = args.mask(mask);
        }
        if let Some(grad_residual) = &grad_residual {
            args = args.grad_residual(grad_residual);
        }
        let operation = self.kernels.prepare_lazily(plan).bind_backward(&args)?;
        let wanted: Vec<_> = [&grad_input, &grad_affine]
            .into_iter()
            .chain(&grad_residual)
            .collect();
        self.submit_and_read(Some(&operation), &wanted)
    }

    fn empty(&self, label: &'static str, words: usize) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: words as u64 * 4,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    fn empty_tensor(&self, label: &'static str, problem: &Problem) -> wgpu::Buffer {
        self.empty(label, (problem.bytes() / 4) as usize)
    }

    fn upload_words(&self, label: &'static str, values: &[f32]) -> wgpu::Buffer {
        let buffer = self.empty(label, values.len());
        self.queue
            .write_buffer(&buffer, 0, bytemuck::cast_slice(values));
        buffer
    }

    fn upload_tensor(
        &self,
        name: &'static str,
        problem: &Problem,
        array: ArrayView3<'_, f32>,
    ) -> Result<wgpu::Buffer> {
        check_shape(name, array.shape(), &problem.shape())?;
        let array = array.as_standard_layout();
        let values = array.as_slice().unwrap_or_default();
        let halves: Vec<u16> = match problem.dtype {
            Dtype::F32 => return Ok(self.upload_words(name, values)),
            Dtype::F16 => values
                .iter()
                .map(|&v| half::f16::from_f32(v).to_bits())
                .collect(),
            Dtype::Bf16 => values
                .iter()
                .map(|&v| half::bf16::from_f32(v).to_bits())
                .collect(),
        };
        let words: Vec<f32> = halves
            .chunks(2)
            .map(|pair| {
                let upper = u32::from(pair.get(1).copied().unwrap_or(0));
                f32::from_bits(u32::from(pair[0]) | upper << 16)
            })
            .collect();
        Ok(self.upload_words(name, &words))
    }

    fn upload_mask(&self, problem: &Problem, mask: ArrayView2<'_, f32>) -> Result<wgpu::Buffer> {
        check_shape("mask", mask.shape(), &problem.mask_shape())?;
        let mask = mask.as_standard_layout();
        let values = mask.as_slice().unwrap_or_default();
        match values.iter().position(|m| *m != 0.0 && *m != 1.0) {
            None => Ok(self.upload_words("mask", values)),
            Some(index) => Err(Error::MaskValue {
                index,
                given: values[index],
            }),
        }
    }

    fn upload(&self, problem: &Problem, arrays: &Arrays<'_>) -> Result<Uploaded> {
        let channels = problem.channels;
        let input = self.upload_tensor("input", problem, arrays.input)?;
        let residual = arrays
            .residual
            .map(|r| self.upload_tensor("residual", problem, r));
        let mask = arrays.mask.map(|mask| self.upload_mask(problem, mask));
        let mut affine = vec![1.0; channels];
        affine.resize(2 * channels, 0.0);
        let (weight, bias) = affine.split_at_mut(channels);
        for (name, given, target) in [
            ("weight", arrays.weight, weight),
            ("bias", arrays.bias, bias),
        ] {
            if let Some(given) = given {
                check_shape(name, given.shape(), &[channels])?;
                given.iter().zip(target).for_each(|(from, to)| *to = *from);
            }
        }
        let affine = self.upload_words("affine", &affine);
        Ok(Uploaded {
            input,
            residual: residual.transpose()?,
            mask: mask.transpose()?,
            affine,
        })
    }

    fn upload_running(&self, problem: &Problem, running: &RunningArrays) -> Result<wgpu::Buffer> {
        let channels = problem.channels;
        check_shape("running_mean", running.mean.shape(), &[channels])?;
        check_shape("running_var", running.variance.shape(), &[channels])?;
        let batches = Array1::from_elem(channels, f32::from_bits(running.batches));
        let words: Vec<f32> = running
            .mean
            .iter()
            .chain(&running.variance)
            .chain(&batches)
            .copied()
            .collect();
        Ok(self.upload_words("running", &words))
    }

    fn upload_saved(&self, problem: &Problem, saved: &SavedArrays) -> Result<wgpu::Buffer> {
        check_shape("saved", saved.0.shape(), &[4, problem.statistics()])?;
        let rows = saved.0.as_standard_layout();
        Ok(self.upload_words("saved", rows.as_slice().unwrap_or_default()))
    }
}

/// Blocking twins.
#[cfg(all(feature = "device", not(target_family = "wasm")))]
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
        let readback = self.start_forward(plan, arrays, running)?;
        Ok(forward_result(plan.problem(), readback.wait()?))
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
        let readback = self.start_inference(plan, arrays, running)?;
        Ok(inference_result(plan.problem(), readback.wait()?))
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
        let readback = self.start_backward(plan, arrays, grad_output, through)?;
        Ok(gradients(plan.problem(), grad_output, readback.wait()?))
    }
}

fn forward_result(problem: &Problem, words: Vec<Vec<u32>>) -> ForwardResult {
    let mut words = words.into_iter();
    let output = tensor(problem, words.next());
    let saved = SavedArrays(rows(4, problem.statistics(), words.next()));
    let running = words.next().map(|running| {
        let batches = running[2 * problem.channels];
        let values = rows(3, problem.channels, Some(running));
        RunningArrays {
            mean: values.row(0).to_owned(),
            variance: values.row(1).to_owned(),
            batches,
        }
    });
    ForwardResult {
        output,
        saved,
        running,
    }
}

fn inference_result(problem: &Problem, words: Vec<Vec<u32>>) -> Array3<f32> {
    tensor(problem, words.into_iter().next())
}

fn gradients(
    problem: &Problem,
    grad_output: ArrayView3<'_, f32>,
    words: Vec<Vec<u32>>,
) -> GradientArrays {
    let mut words = words.into_iter();
    let input = tensor(problem, words.next());
    let affine = rows(2, problem.channels, words.next());
    let residual = problem.residual.then(|| {
        if problem.writes_grad_residual() {
            tensor(problem, words.next())
        } else {
            grad_output.to_owned()
        }
    });
    let (weight, bias) = (affine.row(0).to_owned(), affine.row(1).to_owned());
    GradientArrays {
        input,
        residual,
        weight,
        bias,
    }
}

fn check_shape(tensor: &'static str, given: &[usize], expected: &[usize]) -> Result<()> {
    if given == expected {
        return Ok(());
    }
    Err(Error::Shape {
        tensor,
        given: given.to_vec(),
        expected: expected.to_vec(),
    })
}

/// Words read back from a buffer that was made for this very shape.
fn tensor(problem: &Problem, words: Option<Vec<u32>>) -> Array3<f32> {
    let words = words.unwrap_or_default().into_iter();
    let halves = |decode: fn(u16) -> f32| {
        let pairs = words
            .clone()
            .flat_map(move |w| [decode(w as u16), decode((w >> 16) as u16)]);
        pairs.take(problem.elements() as usize).collect()
    };
    let values: Array1<f32> = match problem.dtype {
        Dtype::F32 => words.map(f32::from_bits).collect(),
        Dtype::F16 => halves(|bits| half::f16::from_bits(bits).to_f32()),
        Dtype::Bf16 => halves(|bits| half::bf16::from_bits(bits).to_f32()),
    };
    values
        .into_shape_with_order(problem.shape())
        .unwrap_or_default()
}

fn rows(n: usize, channels: usize, words: Option<Vec<u32>>) -> Array2<f32> {
    let values = words.unwrap_or_default().into_iter().map(f32::from_bits);
    Array1::from_iter(values)
        .into_shape_with_order((n, channels))
        .unwrap_or_default()
}
