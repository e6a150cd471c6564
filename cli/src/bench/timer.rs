//! GPU time of what is encoded: by timestamps where they are good, by the clock otherwise.

use anyhow::Result;
use web_time::Instant;
use wgpu_batchnorm::Gpu;

use crate::device::idle;

/// Takes times on one device.
pub(crate) struct Timer<'a> {
    gpu: &'a Gpu,
    /// None where the device has no timestamps.
    stamps: Option<Stamps>,
}

struct Stamps {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    /// Milliseconds of one tick.
    tick: f64,
}

/// Milliseconds of one submit: on the clock, and by timestamps where they are good.
struct Taken {
    wall: f64,
    gpu: Option<f64>,
}

/// What is timed: encodes its repetition number `i` into a pass.
pub(crate) type Work<'a> = dyn Fn(&mut wgpu::ComputePass<'_>, usize) + 'a;

impl<'a> Timer<'a> {
    pub(crate) fn new(gpu: &'a Gpu) -> Self {
        let has = gpu
            .device
            .features()
            .contains(wgpu::Features::TIMESTAMP_QUERY);
        let stamps = has.then(|| Stamps {
            queries: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("bench"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolved: gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: 16,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            tick: f64::from(gpu.queue.get_timestamp_period()) / 1e6,
        });
        Timer { gpu, stamps }
    }

    /// How times are taken.
    pub(crate) fn kind(&self) -> &'static str {
        match self.stamps {
            Some(_) => "timestamps",
            None => "wall clock",
        }
    }

    /// Milliseconds of `times` repetitions in one pass of one submit.
    async fn once(&self, work: &Work<'_>, times: usize) -> Result<Taken> {
        let mut encoder = self
            .gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let writes = self
                .stamps
                .as_ref()
                .map(|stamps| wgpu::ComputePassTimestampWrites {
                    query_set: &stamps.queries,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                });
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("bench"),
                timestamp_writes: writes,
            });
            (0..times).for_each(|i| work(&mut pass, i));
        }
        if let Some(stamps) = &self.stamps {
            encoder.resolve_query_set(&stamps.queries, 0..2, &stamps.resolved, 0);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        self.gpu.queue.submit([commands]);
        idle(self.gpu).await?;
        let wall = start.elapsed().as_secs_f64() * 1e3;
        let Some(stamps) = &self.stamps else {
            return Ok(Taken { wall, gpu: None });
        };
        let words = self.gpu.submit_and_read(None, &[&stamps.resolved])?.await?;
        let stamp = |i: usize| u64::from(words[0][2 * i]) | u64::from(words[0][2 * i + 1]) << 32;
        let (begin, end) = (stamp(0), stamp(1));
        // Some drivers write zeros, or the same value twice; browsers round to 100 µs.
        let good = begin > 0 && end > begin;
        Ok(Taken {
            wall,
            gpu: good.then(|| (end - begin) as f64 * stamps.tick),
        })
    }

    /// Milliseconds of one repetition, by the slope between one and `times` of them.
    pub(crate) async fn slope(&self, work: &Work<'_>, times: usize) -> Result<f64> {
        let one = self.once(work, 1).await?;
        let all = self.once(work, times).await?;
        // Two times of one kind: the clock has the submit and the wait in it.
        let more = match (one.gpu, all.gpu) {
            (Some(one), Some(all)) => all - one,
            _ => all.wall - one.wall,
        };
        Ok((more / (times - 1) as f64).max(0.0))
    }

    /// Milliseconds that a repetition takes at most: how many fit a submit must not depend on a difference of two times,
    /// which may come out as nothing.
    pub(crate) async fn at_most(&self, work: &Work<'_>, times: usize) -> Result<f64> {
        let all = self.once(work, times).await?;
        Ok(all.gpu.unwrap_or(all.wall) / times as f64)
    }

    /// Milliseconds of `copy_buffer_to_buffer`, by the slope as well, on the clock: a copy is in no pass.
    pub(crate) async fn buffer_copy(
        &self,
        pairs: &[(&wgpu::Buffer, &wgpu::Buffer)],
        times: usize,
    ) -> Result<f64> {
        let once = async |times: usize| -> Result<f64> {
            let mut encoder = self
                .gpu
                .device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            for i in 0..times {
                let (from, to) = pairs[i % pairs.len()];
                encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size());
            }
            let start = Instant::now();
            self.gpu.queue.submit([encoder.finish()]);
            idle(self.gpu).await?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        let (one, all) = (once(1).await?, once(times).await?);
        Ok(((all - one) / (times - 1) as f64).max(0.0))
    }
}

/// The middle value.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
