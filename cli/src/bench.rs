//! `bench`: how long operations take, against a copy of the same tensor on the same adapter in the same run.
//!
//! GPU time by timestamps, as the slope between one and several repetitions in one submit; the median over rounds in which
//! the operation and the copies take turns. Results are checked before anything is timed.

#[cfg(not(target_family = "wasm"))]
mod constants;
mod report;
pub mod shapes;
#[cfg(not(target_family = "wasm"))]
mod strategies;
mod subject;
mod timer;

use std::fmt;
use std::rc::Rc;

use anyhow::{Context, Result};
use serde_json::Value;
use wgpu_batchnorm::{Choices, Gpu, Plan, Problem};
#[cfg(not(target_family = "wasm"))]
use {
    crate::args::BenchArgs,
    crate::info::print,
    anyhow::ensure,
    indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle},
    std::io::IsTerminal,
    std::path::Path,
    wgpu_batchnorm::{Error, Kernels, TuningCache},
};

#[cfg(not(target_family = "wasm"))]
pub use crate::device::wait;
pub use report::{Machine, Measurement, Report};
use subject::{Bound, Tensors};
pub use subject::{Op, Subject, subjects};
use timer::{Timer, median};

/// Copy kernels to choose the floor from: lanes, workgroups.
const COPIES: [(u32, u32); 6] = [
    (64, 128),
    (64, 512),
    (64, 2048),
    (256, 128),
    (256, 512),
    (256, 2048),
];
/// Memory that buffer sets may take together: a browser's tab has less to give.
const MOST_BYTES: u64 = if cfg!(target_family = "wasm") {
    1 << 30
} else {
    4 << 30
};
/// A last-level cache larger than those of most GPUs; on a software adapter cold and hot are the same.
const CACHE_BYTES: u64 = 64 << 20;

/// Runs `bench`.
///
/// # Errors
/// One line: no adapter, a shape that cannot be, a result that is wrong, a file that cannot be written.
#[cfg(not(target_family = "wasm"))]
pub fn run(args: &BenchArgs) -> Result<()> {
    // Before minutes of measuring.
    let files = [&args.json, &args.html, &args.strategies];
    for path in files.into_iter().flatten() {
        report::check_target(path)?;
    }
    if args.constants {
        return constants(args);
    }
    if let Some(path) = &args.strategies {
        return report::write(path, &strategies(args)?);
    }
    let report = if args.compare.is_empty() {
        measure(args)?
    } else {
        Report::merged(&args.compare)?
    };
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    if let Some(path) = &args.html {
        report.write_html(path)?;
    }
    // Where a file goes to stdout, nothing else does.
    let to_stdout = [&args.json, &args.html]
        .into_iter()
        .flatten()
        .any(|path| path.as_os_str() == "-");
    if !to_stdout {
        print(report.text())?;
    }
    Ok(())
}

#[cfg(not(target_family = "wasm"))]
fn constants(args: &BenchArgs) -> Result<()> {
    let gpu = Gpu::find(args.device.backends(), args.device.adapter.as_deref())?;
    let options = Options::of(args);
    let measured = crate::device::wait(&gpu, constants::Constants::measure(&gpu, &options))?;
    if let Some(path) = &args.json {
        report::write(path, &(measured.json()? + "\n"))?;
    }
    if args
        .json
        .as_ref()
        .is_none_or(|path| path.as_os_str() != "-")
    {
        print(measured.text())?;
    }
    Ok(())
}

#[cfg(not(target_family = "wasm"))]
fn measure(args: &BenchArgs) -> Result<Report> {
    let (gpu, subjects, mut options) = asked_for(args)?;
    if let Some(path) = &args.tune {
        options.tuned = tuned(&gpu, &subjects, path)?;
    }
    crate::device::wait(&gpu, async {
        let bench = Bench::new(&gpu, options).await?;
        let measured = each(args, &subjects, async |s| bench.measure(s).await).await?;
        let results = measured.into_iter().flatten().collect();
        let mut report = bench.report(crate::info::adapter(&gpu.adapter), results);
        report.asked(&asked(args));
        Ok(report)
    })
}

/// What makes the figures other than those of the planner's choice.
#[cfg(not(target_family = "wasm"))]
fn asked(args: &BenchArgs) -> String {
    let strategy = args.device.choices().strategy.map(|s| s.to_string());
    let tuned = args.tune.is_some().then(|| "tuned".to_owned());
    let trusted = args.trusted.then(|| "trusted modules".to_owned());
    let asked = [strategy, tuned, trusted];
    asked.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The table of `--strategies`.
#[cfg(not(target_family = "wasm"))]
fn strategies(args: &BenchArgs) -> Result<String> {
    let (gpu, mut subjects, options) = asked_for(args)?;
    // Which has one form, whatever the strategy.
    subjects.retain(|subject| subject.op != Op::Inference);
    ensure!(
        !subjects.is_empty(),
        "--strategies: inference has one form, whatever the strategy; name another operation"
    );
    crate::device::wait(&gpu, async {
        let bench = Bench::new(&gpu, options).await?;
        let rows = each(args, &subjects, async |s| bench.strategies(s).await).await?;
        Ok(strategies::markdown(&bench, &rows))
    })
}

/// The device, the subjects and the options that the arguments ask for.
#[cfg(not(target_family = "wasm"))]
fn asked_for(args: &BenchArgs) -> Result<(Gpu, Vec<Subject>, Options)> {
    let mut gpu = Gpu::find(args.device.backends(), args.device.adapter.as_deref())?;
    if args.trusted {
        gpu.kernels = Kernels::with_modules(&gpu.device, None, without_loop_bounds)?;
    }
    let software = gpu.adapter.get_info().device_type == wgpu::DeviceType::Cpu;
    let subjects = subject::chosen(args, software)?;
    let options = Options::of(args);
    Ok((gpu, subjects, options))
}

/// Measures subject after subject. Of a set, what does not fit the device is left out, with a line on stderr.
#[cfg(not(target_family = "wasm"))]
async fn each<T>(
    args: &BenchArgs,
    subjects: &[Subject],
    measure: impl AsyncFn(&Subject) -> Result<T>,
) -> Result<Vec<T>> {
    let bar = progress(subjects.len())?;
    let mut results = Vec::new();
    for subject in subjects {
        bar.set_message(subject.to_string());
        match measure(subject).await {
            Ok(result) => results.push(result),
            Err(error) if args.set.is_some() && does_not_fit(&error) => {
                bar.suspend(|| eprintln!("left out: {subject}: {error}"));
            }
            Err(error) => return Err(error.context(subject.to_string())),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(results)
}

#[cfg(not(target_family = "wasm"))]
fn does_not_fit(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<Error>();
    matches!(
        error,
        Some(Error::Limit { .. } | Error::OutOfMemory { .. } | Error::Unsupported { .. })
    )
}

#[cfg(not(target_family = "wasm"))]
fn progress(length: usize) -> Result<ProgressBar> {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(length as u64), target);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    Ok(bar)
}

/// What a file of tuned plans says of each problem. What it lacks is tuned, and the file written.
#[cfg(not(target_family = "wasm"))]
fn tuned(gpu: &Gpu, subjects: &[Subject], path: &Path) -> Result<Vec<(Problem, Choices)>> {
    let mut cache = TuningCache::load(path, &gpu.kernels)?;
    let mut tuned: Vec<(Problem, Choices)> = Vec::new();
    for Subject { problem, .. } in subjects {
        if tuned.iter().any(|(known, _)| known == problem) {
            continue;
        }
        // One value a channel is for inference alone, of which there is one form.
        if problem.count() < 2 {
            continue;
        }
        if cache.choices_for(problem).is_none() {
            let found = match gpu.kernels.tune(&gpu.queue, problem) {
                Ok(found) => found,
                // Measuring it will say so, or leave it out.
                Err(error) if does_not_fit(&error.clone().into()) => continue,
                Err(error) => return Err(error.into()),
            };
            eprintln!("{:?} {}\n{found}", problem.shape(), problem.dtype);
            cache.insert(&found);
            cache.save(path)?;
        }
        let choices = cache.choices_for(problem).unwrap_or_default();
        tuned.push((problem.clone(), choices));
    }
    Ok(tuned)
}

/// A shader module whose loops have no bounds but their own.
#[cfg(not(target_family = "wasm"))]
fn without_loop_bounds(
    device: &wgpu::Device,
    descriptor: wgpu::ShaderModuleDescriptor<'_>,
) -> wgpu::ShaderModule {
    let checks = wgpu::ShaderRuntimeChecks {
        force_loop_bounding: false,
        ..wgpu::ShaderRuntimeChecks::checked()
    };
    // SAFETY: every loop of the kernels counts up to a bound that does not change on the way.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the planner is told.
    pub choices: Choices,
    /// Repetitions in one submit, instead of as many as take about 50 ms.
    pub repetitions: Option<usize>,
    /// Rounds in which the operation and the copies take turns; the median counts.
    pub rounds: usize,
    /// What the planner is told of some problems instead.
    pub tuned: Vec<(Problem, Choices)>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            choices: Choices::default(),
            repetitions: None,
            rounds: 5,
            tuned: Vec::new(),
        }
    }
}

#[cfg(not(target_family = "wasm"))]
impl Options {
    fn of(args: &BenchArgs) -> Self {
        Options {
            choices: args.device.choices(),
            repetitions: args.repetitions,
            rounds: args.rounds,
            tuned: Vec::new(),
        }
    }
}

/// A device that is measured.
pub struct Bench<'a> {
    gpu: &'a Gpu,
    options: Options,
    timer: Timer<'a>,
    copies: CopyKernels<'a>,
    empty_ms: f64,
}

impl<'a> Bench<'a> {
    /// Compiles the copies, and times a dispatch that does nothing.
    ///
    /// # Errors
    /// A device that is lost.
    pub async fn new(gpu: &'a Gpu, options: Options) -> Result<Self> {
        let timer = Timer::new(gpu);
        let copies = CopyKernels::new(gpu);
        let empty_ms = copies.empty_dispatch(&timer).await?;
        Ok(Bench {
            gpu,
            options,
            timer,
            copies,
            empty_ms,
        })
    }

    /// Checks and measures one operation on one shape, cold and hot; on a software adapter these are the same.
    ///
    /// # Errors
    /// A shape that does not fit the device, a result that is wrong.
    pub async fn measure(&self, subject: &Subject) -> Result<Vec<Measurement>> {
        let software = self.gpu.kernels.caps().device_type == wgpu::DeviceType::Cpu;
        let caches: &[bool] = if software { &[true] } else { &[true, false] };
        let mut measured = Vec::new();
        for &cold in caches {
            measured.push(self.one(subject, cold).await?);
        }
        Ok(measured)
    }

    /// The report of what was measured, on an adapter as [`info::adapter`](crate::info::adapter) describes it.
    pub fn report(&self, adapter: Value, results: Vec<Measurement>) -> Report {
        Report::new(adapter, self.timer.kind(), self.empty_ms, results)
    }

    /// Sets of buffers: as many as exceed the cache several times, or one.
    async fn tensors(&self, subject: &Subject, cold: bool) -> Result<Vec<Rc<Tensors>>> {
        let software = self.gpu.kernels.caps().device_type == wgpu::DeviceType::Cpu;
        let set = subject.problem.bytes() * subject.op.tensors();
        let sets = if cold && !software {
            (4 * CACHE_BYTES)
                .div_ceil(set)
                .min(MOST_BYTES / set)
                .clamp(1, 64)
        } else {
            1
        };
        let mut tensors = Vec::new();
        for i in 0..sets {
            tensors.push(Rc::new(Tensors::new(self.gpu, subject, i).await?));
        }
        Ok(tensors)
    }

    /// Binds an operation and checks its result: what [`measure`](Self::measure) times, cold.
    ///
    /// # Errors
    /// As there.
    pub async fn stopwatch(&self, subject: &Subject) -> Result<Stopwatch<'_>> {
        self.set_up(subject, true).await
    }

    async fn set_up(&self, subject: &Subject, cold: bool) -> Result<Stopwatch<'_>> {
        let Bench {
            gpu,
            timer,
            copies,
            options,
            ..
        } = self;
        let of_problem = options.tuned.iter().find(|(p, _)| p == &subject.problem);
        let choices = of_problem.map_or(&options.choices, |(_, choices)| choices);
        let plan = Plan::with(&subject.problem, gpu.kernels.caps(), choices)?;
        let mut bound = Vec::new();
        for tensors in &self.tensors(subject, cold).await? {
            bound.push(Bound::new(gpu, &plan, subject, tensors).await?);
        }
        bound[0].check(gpu, subject).await?;
        let pairs: Vec<_> = bound.iter().map(Bound::copied).collect();
        let copy = copies.bind(&pairs);
        // As many repetitions as make a submit of about 50 ms, 16 at least.
        let first = timer.at_most(&repeated(&bound), 2).await?.max(1e-3);
        let times = options
            .repetitions
            .unwrap_or(((50.0 / first) as usize).clamp(16, 512))
            .max(2);
        let best = copy.fastest(timer, &copies.copies, times).await?;
        Ok(Stopwatch {
            timer,
            plan,
            bound,
            copy,
            best,
            times,
        })
    }

    async fn one(&self, subject: &Subject, cold: bool) -> Result<Measurement> {
        let watch = self.set_up(subject, cold).await?;
        let (times, empty_ms) = (watch.times, self.empty_ms);
        let (mut op_ms, mut copy_ms, mut buffer_ms) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.options.rounds.max(1) {
            op_ms.push(watch.pass(times).await?);
            copy_ms.push(watch.copy(times).await?);
            buffer_ms.push(watch.buffer_copy(times).await?);
        }
        let (median_ms, copy_ms) = (median(&mut op_ms), median(&mut copy_ms));
        let moved = subject.problem.bytes() * subject.op.passes();
        Ok(Measurement {
            op: subject.op.name().into(),
            shape: subject.shape.clone(),
            channel_axis: subject.channel_axis,
            dtype: subject.problem.dtype.to_string(),
            strategy: watch.plan.strategy().to_string(),
            cache: if cold { "cold" } else { "hot" }.into(),
            median_ms,
            copy_ms,
            copy_kernel: watch.best.to_string(),
            buffer_copy_ms: median(&mut buffer_ms),
            // Where dispatches by themselves are most of it, a ratio says nothing.
            copy_ratio: (copy_ms > 10.0 * empty_ms).then(|| median_ms / copy_ms),
            gb_per_s: moved as f64 / median_ms / 1e6,
            bytes: moved,
            dispatches: watch.bound[0].operation.dispatches(),
            repetitions: times,
            spread: spread(&op_ms),
        })
    }
}

/// An operation whose result was checked, and the copy of its tensor.
pub struct Stopwatch<'a> {
    timer: &'a Timer<'a>,
    plan: Plan,
    bound: Vec<Bound>,
    copy: BoundCopies,
    /// The fastest copy kernel.
    best: &'a Kernel,
    /// Repetitions in one submit.
    times: usize,
}

impl Stopwatch<'_> {
    /// Milliseconds of one repetition of the operation, by the slope between one and several, at least two, in a submit.
    ///
    /// # Errors
    /// A device that is lost.
    pub async fn pass(&self, times: usize) -> Result<f64> {
        self.timer.slope(&repeated(&self.bound), times.max(2)).await
    }

    /// The same of the copy.
    ///
    /// # Errors
    /// A device that is lost.
    pub async fn copy(&self, times: usize) -> Result<f64> {
        let work = self.copy.work(self.best);
        self.timer.slope(&work, times.max(2)).await
    }

    async fn buffer_copy(&self, times: usize) -> Result<f64> {
        let pairs: Vec<_> = self.bound.iter().map(Bound::copied).collect();
        self.timer.buffer_copy(&pairs, times).await
    }
}

/// Repetitions of an operation, from set to set of its buffers.
fn repeated(bound: &[Bound]) -> impl Fn(&mut wgpu::ComputePass<'_>, usize) {
    |pass, i| bound[i % bound.len()].operation.encode_in(pass)
}

/// (largest - smallest) / median over the rounds.
fn spread(sorted: &[f64]) -> f64 {
    match (sorted.first(), sorted.last()) {
        (Some(low), Some(high)) => (high - low) / sorted[sorted.len() / 2],
        _ => f64::NAN,
    }
}

struct CopyKernels<'a> {
    gpu: &'a Gpu,
    module: wgpu::ShaderModule,
    layout: wgpu::BindGroupLayout,
    copies: Vec<Kernel>,
}

/// One of the kernels in copy.wgsl, and how it is dispatched.
struct Kernel {
    pipeline: wgpu::ComputePipeline,
    lanes: u32,
    groups: u32,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kernel { lanes, groups, .. } = self;
        write!(f, "vec4, {lanes} lanes, {groups} workgroups")
    }
}

/// Pairs of buffers, for these kernels. What one binding cannot hold is bound in parts.
struct BoundCopies {
    groups: Vec<Vec<wgpu::BindGroup>>,
}

impl<'a> CopyKernels<'a> {
    fn new(gpu: &'a Gpu) -> Self {
        let device = &gpu.device;
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("copy"),
            source: wgpu::ShaderSource::Wgsl(include_str!("bench/copy.wgsl").into()),
        });
        let entry = |binding, read_only| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("copy"),
            entries: &[entry(0, true), entry(1, false)],
        });
        let mut kernels = CopyKernels {
            gpu,
            module,
            layout,
            copies: Vec::new(),
        };
        kernels.copies = kernels.variants("copy");
        kernels
    }

    /// A kernel in every size that there is to choose from.
    fn variants(&self, entry_point: &str) -> Vec<Kernel> {
        COPIES
            .iter()
            .map(|&(lanes, groups)| self.kernel(entry_point, lanes, groups))
            .collect()
    }

    fn kernel(&self, entry_point: &str, lanes: u32, groups: u32) -> Kernel {
        let device = &self.gpu.device;
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("copy"),
            bind_group_layouts: &[Some(&self.layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry_point),
            layout: Some(&layout),
            module: &self.module,
            entry_point: Some(entry_point),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[("WORKGROUP", f64::from(lanes))],
                ..Default::default()
            },
            cache: None,
        });
        Kernel {
            pipeline,
            lanes,
            groups,
        }
    }

    fn bind(&self, pairs: &[(&wgpu::Buffer, &wgpu::Buffer)]) -> BoundCopies {
        let device = &self.gpu.device;
        // Whole vectors at offsets that every device takes.
        let most = device.limits().max_storage_buffer_binding_size / 256 * 256;
        fn part(buffer: &wgpu::Buffer, offset: u64, size: u64) -> wgpu::BindingResource<'_> {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(size),
            })
        }
        let parts = |&(from, to): &(&wgpu::Buffer, &wgpu::Buffer)| {
            let bytes = from.size().min(to.size());
            (0..bytes.div_ceil(most))
                .map(|i| {
                    let offset = i * most;
                    let size = most.min(bytes - offset);
                    device.create_bind_group(&wgpu::BindGroupDescriptor {
                        label: Some("copy"),
                        layout: &self.layout,
                        entries: &[
                            wgpu::BindGroupEntry {
                                binding: 0,
                                resource: part(from, offset, size),
                            },
                            wgpu::BindGroupEntry {
                                binding: 1,
                                resource: part(to, offset, size),
                            },
                        ],
                    })
                })
                .collect()
        };
        BoundCopies {
            groups: pairs.iter().map(parts).collect(),
        }
    }

    /// Milliseconds of a dispatch that does nothing, one after the other.
    async fn empty_dispatch(&self, timer: &Timer<'_>) -> Result<f64> {
        let buffer = |label| {
            self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: 256,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        let (a, b) = (buffer("a"), buffer("b"));
        let (bound, nothing) = (self.bind(&[(&a, &b)]), self.kernel("nothing", 64, 1));
        let mut times = Vec::new();
        for _ in 0..5 {
            times.push(timer.slope(&bound.work(&nothing), 64).await?);
        }
        Ok(median(&mut times))
    }
}

impl BoundCopies {
    fn work(&self, kernel: &Kernel) -> impl Fn(&mut wgpu::ComputePass<'_>, usize) {
        move |pass, i| {
            pass.set_pipeline(&kernel.pipeline);
            for part in &self.groups[i % self.groups.len()] {
                pass.set_bind_group(0, part, &[]);
                pass.dispatch_workgroups(kernel.groups, 1, 1);
            }
        }
    }

    /// Of these kernels, the one that goes over these buffers fastest.
    async fn fastest<'k>(
        &self,
        timer: &Timer<'_>,
        kernels: &'k [Kernel],
        times: usize,
    ) -> Result<&'k Kernel> {
        let mut best = None;
        for kernel in kernels {
            let mut taken = Vec::new();
            for _ in 0..3 {
                taken.push(timer.slope(&self.work(kernel), times.min(32)).await?);
            }
            let taken = median(&mut taken);
            if best.is_none_or(|(least, _)| taken < least) {
                best = Some((taken, kernel));
            }
        }
        best.map(|(_, kernel)| kernel)
            .context("no copy kernel could be timed")
    }
}
