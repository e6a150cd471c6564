//! Tuning: what is the fastest of a few plans on this very adapter, and a file that remembers it.

mod cache;
mod timer;

use std::fmt;

pub use cache::TuningCache;
use timer::Timer;

use crate::faults::ErrorScopes;
use crate::{
    Backward, Choices, Error, ForwardTraining, Kernels, Operation, Plan, Problem, Result, Strategy,
};
use cache::AdapterKey;

/// Rounds in which the candidates take turns; the median counts.
const ROUNDS: usize = 5;

/// Milliseconds of one submit, about.
const SUBMIT_MS: f64 = 10.0;

const MOST_REPETITIONS: usize = 1024;

/// What another candidate must take at most of the time of the planner's own plan to replace it; in the median, and in
/// all rounds but one.
const WORTH_IT: f64 = 0.98;

/// What tuning found for one problem on one adapter.
#[derive(Debug, Clone)]
pub struct Tuned {
    problem: Problem,
    candidates: Vec<Candidate>,
    winner: usize,
    adapter: AdapterKey,
}

/// One plan that was measured.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Candidate {
    /// What is special about it.
    pub name: String,
    /// What makes it, with [`Plan::with`].
    pub choices: Choices,
    /// Its strategy.
    pub strategy: Strategy,
    /// Milliseconds of a training forward pass, the median.
    pub forward_ms: f64,
    /// Milliseconds of a backward pass, the median.
    pub backward_ms: f64,
}

impl Candidate {
    /// Milliseconds of both passes: what decides.
    pub fn total_ms(&self) -> f64 {
        self.forward_ms + self.backward_ms
    }
}

impl Tuned {
    /// The problem.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What to plan with.
    pub fn choices(&self) -> &Choices {
        &self.winner().choices
    }

    /// The fastest candidate, or the planner's own plan where nothing is at least 2 % faster.
    pub fn winner(&self) -> &Candidate {
        &self.candidates[self.winner]
    }

    /// All that were measured, the planner's own plan first.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }
}

/// A line for each candidate.
impl fmt::Display for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, c) in self.candidates.iter().enumerate() {
            let mark = if i == self.winner { '*' } else { ' ' };
            writeln!(
                f,
                "{mark} {:<26} {:<9} forward {:.4} ms, backward {:.4} ms",
                c.name,
                c.strategy.to_string(),
                c.forward_ms,
                c.backward_ms
            )?;
        }
        Ok(())
    }
}

impl Kernels {
    /// Measures a few plans for a problem on this device: each strategy that can run, other numbers of pieces and lanes,
    /// and the planner's own plan. What decides is the time of a training forward and a backward pass together.
    ///
    /// **It submits**, to the queue given, which must be this device's, and takes a second or so; the device should have
    /// nothing else to do meanwhile. Times are timestamps where the device has `TIMESTAMP_QUERY`, and the clock
    /// otherwise: the slope between one and several repetitions in a submit, the median over rounds in which the
    /// candidates take turns. Buffers are its own (the tensors once each, so that what fits a cache is found there), and
    /// so are the pipelines of the candidates; nothing of it stays.
    ///
    /// The plan that comes of it may order sums differently from the untuned one, and so give other bits, within the same
    /// bounds. A [`TuningCache`] keeps that choice from run to run.
    ///
    /// As with any wgpu future, somebody must poll the device while this waits, as a browser does by itself.
    ///
    /// # Errors
    /// As [`Plan::new`]; [`Error::OneValuePerChannel`]; [`Error::Limit`] and [`Error::OutOfMemory`] where the tensors do
    /// not fit the device: an input, an output and an output's gradient, besides a residual and its gradient;
    /// [`Error::DeviceLost`] and [`Error::Device`].
    pub async fn tune_async(&self, queue: &wgpu::Queue, problem: &Problem) -> Result<Tuned> {
        let planned = Plan::candidates(problem, self.caps())?;
        // Pipelines of the candidates that lose are not kept.
        let kernels = self.fresh();
        let buffers = Buffers::new(self.device(), queue, problem).await?;
        let mut candidates = Vec::new();
        let mut contestants = Vec::new();
        let timer = Timer::new(self.device(), queue);
        for (name, choices, plan) in planned {
            let prepared = kernels.prepare_async(&plan).await?;
            let operations = [
                prepared.bind_forward_training(&buffers.forward(problem))?,
                prepared.bind_backward(&buffers.backward(problem))?,
            ];
            contestants.push(Contestant::new(&timer, operations).await?);
            candidates.push(Candidate {
                name,
                choices,
                strategy: plan.strategy(),
                forward_ms: f64::NAN,
                backward_ms: f64::NAN,
            });
        }
        for _ in 0..ROUNDS {
            for contestant in &mut contestants {
                contestant.round(&timer).await?;
            }
        }
        let rounds: Vec<_> = contestants.iter().map(Contestant::totals).collect();
        for (candidate, contestant) in candidates.iter_mut().zip(contestants) {
            [candidate.forward_ms, candidate.backward_ms] = contestant.medians();
        }
        Ok(Tuned {
            problem: problem.clone(),
            winner: winner(&rounds),
            candidates,
            adapter: AdapterKey::of(self.device()),
        })
    }

    /// As [`Kernels::tune_async`], and blocks: it polls the device until the last measurement is done.
    ///
    /// # Errors
    /// As there.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use wgpu_batchnorm::{Gpu, Plan, Problem, TuningCache};
    ///
    /// let Gpu { kernels, queue, .. } = Gpu::new()?;
    /// let problem = Problem::nchw([32, 64, 56, 56]);
    /// let mut cache = TuningCache::load("batchnorm-tuning.json", &kernels)?;
    /// if cache.choices_for(&problem).is_none() {
    ///     let tuned = kernels.tune(&queue, &problem)?;
    ///     println!("{tuned}");
    ///     cache.insert(&tuned);
    ///     cache.save("batchnorm-tuning.json")?;
    /// }
    /// let choices = cache.choices_for(&problem).unwrap_or_default();
    /// let plan = Plan::with(&problem, kernels.caps(), &choices)?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(not(target_family = "wasm"))]
    pub fn tune(&self, queue: &wgpu::Queue, problem: &Problem) -> Result<Tuned> {
        use std::task::{Context, Poll, Waker};
        let mut future = std::pin::pin!(self.tune_async(queue, problem));
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                return result;
            }
            let polled = self.device().poll(wgpu::PollType::wait_indefinitely());
            polled.map_err(|error| crate::faults::failed(self.device(), "tuning", &error))?;
        }
    }
}

/// Of candidates' times, a list of rounds each: the fastest by its median, or the first, the planner's own, where no other
/// is faster by enough and in nearly every round. One lucky median is noise.
fn winner(rounds: &[Vec<f64>]) -> usize {
    let Some(own) = rounds.first() else { return 0 };
    let wins = |other: &[f64]| {
        let faster = other
            .iter()
            .zip(own)
            .filter(|(o, own)| **o <= WORTH_IT * **own);
        median(other) <= WORTH_IT * median(own) && faster.count() + 1 >= own.len()
    };
    let better = rounds.iter().enumerate().filter(|(_, other)| wins(other));
    let best = better.min_by(|a, b| median(a.1).total_cmp(&median(b.1)));
    best.map_or(0, |(i, _)| i)
}

/// The middle one, NaN of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A candidate's two passes, bound, and what they took.
struct Contestant {
    passes: [Pass; 2],
}

struct Pass {
    operation: Operation,
    repetitions: usize,
    ms: Vec<f64>,
}

impl Contestant {
    /// Runs each pass for the first time, and finds out how often it may be repeated.
    async fn new(timer: &Timer<'_>, [forward, backward]: [Operation; 2]) -> Result<Self> {
        let forward = Pass::new(timer, forward).await?;
        let backward = Pass::new(timer, backward).await?;
        Ok(Contestant {
            passes: [forward, backward],
        })
    }

    async fn round(&mut self, timer: &Timer<'_>) -> Result<()> {
        for pass in &mut self.passes {
            pass.ms
                .push(timer.slope(&pass.operation, pass.repetitions).await?);
        }
        Ok(())
    }

    /// Both passes, round by round.
    fn totals(&self) -> Vec<f64> {
        let [forward, backward] = &self.passes;
        forward
            .ms
            .iter()
            .zip(&backward.ms)
            .map(|(f, b)| f + b)
            .collect()
    }

    fn medians(self) -> [f64; 2] {
        self.passes.map(|pass| median(&pass.ms))
    }
}

impl Pass {
    async fn new(timer: &Timer<'_>, operation: Operation) -> Result<Self> {
        timer.at_most(&operation, 2).await?;
        let ms = timer.at_most(&operation, 2).await?;
        let repetitions = (SUBMIT_MS / ms.max(1e-3)) as usize;
        Ok(Pass {
            operation,
            repetitions: repetitions.clamp(2, MOST_REPETITIONS),
            ms: Vec::new(),
        })
    }
}

/// What the passes of a problem read and write.
struct Buffers {
    input: wgpu::Buffer,
    output: wgpu::Buffer,
    grad_output: wgpu::Buffer,
    residual: Option<wgpu::Buffer>,
    grad_residual: Option<wgpu::Buffer>,
    mask: Option<wgpu::Buffer>,
    affine: wgpu::Buffer,
    running: wgpu::Buffer,
    saved: wgpu::Buffer,
    grad_affine: wgpu::Buffer,
}

/// Of the values that tensors are filled with.
const PATTERN_BYTES: u64 = 1 << 20;

impl Buffers {
    /// Submits the copies that fill them.
    async fn new(device: &wgpu::Device, queue: &wgpu::Queue, problem: &Problem) -> Result<Self> {
        let bytes = problem.bytes();
        let limit = device.limits().max_buffer_size;
        if bytes > limit {
            return Err(Error::Limit {
                what: format!("tuning on a tensor of {} elements", problem.elements()),
                needed: bytes,
                limit,
                name: "max_buffer_size",
                remedy: "request a device with this limit raised, or tune on a smaller batch"
                    .into(),
            });
        }
        let channels = problem.channels as u64;
        let scopes = ErrorScopes::push(device);
        let buffer = |label, size: u64| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let tensor = |label| buffer(label, bytes);
        let buffers = Buffers {
            input: tensor("tuning input"),
            output: tensor("tuning output"),
            grad_output: tensor("tuning grad_output"),
            residual: problem.residual.then(|| tensor("tuning residual")),
            grad_residual: problem
                .writes_grad_residual()
                .then(|| tensor("tuning grad_residual")),
            mask: problem.mask.then(|| {
                let positions = problem.count() * problem.groups as u64;
                buffer("tuning mask", 4 * positions)
            }),
            affine: buffer("tuning affine", 8 * channels),
            running: buffer("tuning running", 12 * channels),
            saved: buffer("tuning saved", 16 * problem.statistics() as u64),
            grad_affine: buffer("tuning grad_affine", 8 * channels),
        };
        let mut encoder = device.create_command_encoder(&Default::default());
        let values = pattern(device, problem.dtype.bytes() == 4, true);
        for tensor in [&buffers.input, &buffers.grad_output]
            .into_iter()
            .chain(&buffers.residual)
        {
            fill(&mut encoder, &values, tensor);
        }
        let ones = pattern(device, true, false);
        for tensor in buffers.mask.iter().chain([&buffers.affine]) {
            fill(&mut encoder, &ones, tensor);
        }
        queue.submit([encoder.finish()]);
        scopes.pop("allocating tensors to tune with").await?;
        Ok(buffers)
    }

    fn forward(&self, problem: &Problem) -> ForwardTraining<'_> {
        let mut args = ForwardTraining::new(&self.input, &self.output)
            .affine_packed(&self.affine)
            .running(&self.running)
            .saved(&self.saved);
        if let (true, Some(residual)) = (problem.residual, &self.residual) {
            args = args.residual(residual);
        }
        if let Some(mask) = &self.mask {
            args = args.mask(mask);
        }
        args
    }

    fn backward(&self, problem: &Problem) -> Backward<'_> {
        let mut args = Backward::new(&self.input, &self.saved, &self.grad_output, &self.output)
            .affine_packed(&self.affine)
            .grad_affine_packed(&self.grad_affine);
        if let (true, Some(residual)) = (problem.residual, &self.residual) {
            args = args.residual(residual);
        }
        if let Some(mask) = &self.mask {
            args = args.mask(mask);
        }
        if let Some(grad) = &self.grad_residual {
            args = args.grad_residual(grad);
        }
        args
    }
}

/// A buffer of numbers between 1 and 2 of either sign, f32 or of 16 bits, or of ones. The exponent of 1 is the same bits
/// in bf16 as in f32, and as f16 they are nearer to 2: values do not matter here, as long as they are ordinary.
fn pattern(device: &wgpu::Device, wide: bool, random: bool) -> wgpu::Buffer {
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("tuning values"),
        size: PATTERN_BYTES,
        usage: wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    let mut state = 1u32;
    let mut next = || {
        // Numerical Recipes' generator; its upper bits are good enough.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    };
    let words = (0..PATTERN_BYTES / 4).flat_map(|_| {
        let bits = if random { next() } else { 0 };
        let word = if wide {
            1f32.to_bits() | bits & 0x8000_0000 | bits >> 9
        } else {
            0x3F80_3F80 | bits & 0x8000_8000 | bits >> 9 & 0x007F_007F
        };
        word.to_le_bytes()
    });
    let words: Vec<u8> = words.collect();
    if let Ok(mut range) = buffer.get_mapped_range_mut(..) {
        range.copy_from_slice(&words);
    }
    buffer.unmap();
    buffer
}

/// Copies a pattern over a whole buffer.
fn fill(encoder: &mut wgpu::CommandEncoder, pattern: &wgpu::Buffer, target: &wgpu::Buffer) {
    for offset in (0..target.size()).step_by(PATTERN_BYTES as usize) {
        let size = PATTERN_BYTES.min(target.size() - offset);
        encoder.copy_buffer_to_buffer(pattern, 0, target, offset, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two that are as good, the planner's own stays; and beside one that was lucky.
    #[test]
    fn a_small_advantage_changes_nothing() {
        let rounds = |time: f64| vec![time; ROUNDS];
        assert_eq!(winner(&[rounds(1.0), rounds(0.99), rounds(1.5)]), 0);
        assert_eq!(winner(&[rounds(1.0), rounds(0.99), rounds(0.9)]), 2);
        assert_eq!(winner(&[rounds(1.0), rounds(0.8), rounds(0.9)]), 1);
        assert_eq!(winner(&[rounds(1.0)]), 0);
        assert_eq!(winner(&[rounds(1.0), rounds(f64::NAN)]), 0);
        let lucky = vec![0.5, 0.5, 0.5, 1.5, 1.5];
        assert_eq!(winner(&[rounds(1.0), lucky]), 0);
        let once_disturbed = vec![0.5, 0.5, 3.0, 0.5, 0.5];
        assert_eq!(winner(&[rounds(1.0), once_disturbed]), 1);
        assert_eq!(winner(&[]), 0);
    }
}
