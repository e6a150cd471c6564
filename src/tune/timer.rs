//! Time of an operation: by timestamps where the device has them and they are good, by the clock otherwise.

use web_time::Instant;

use crate::readback::Mapping;
use crate::{Operation, Result};

/// Takes times on one device.
pub(super) struct Timer<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    /// None where the device has no timestamps.
    queries: Option<wgpu::QuerySet>,
    /// The begin and the end of a pass, in ticks; zeros where there are no timestamps.
    stamps: wgpu::Buffer,
    staging: wgpu::Buffer,
    /// Milliseconds of one tick.
    tick: f64,
}

/// Milliseconds of one submit.
struct Taken {
    clock: f64,
    gpu: Option<f64>,
}

const STAMPS_BYTES: u64 = 16;

impl<'a> Timer<'a> {
    pub(super) fn new(device: &'a wgpu::Device, queue: &'a wgpu::Queue) -> Self {
        let timed = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let buffer = |label, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: STAMPS_BYTES,
                usage,
                mapped_at_creation: false,
            })
        };
        let resolved = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let read = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        Timer {
            device,
            queue,
            queries: timed.then(|| {
                device.create_query_set(&wgpu::QuerySetDescriptor {
                    label: Some("tuning"),
                    ty: wgpu::QueryType::Timestamp,
                    count: 2,
                })
            }),
            stamps: buffer("tuning timestamps", resolved),
            staging: buffer("tuning timestamps, read", read),
            tick: f64::from(queue.get_timestamp_period()) / 1e6,
        }
    }

    /// Submits so many repetitions in one pass, and waits for them.
    async fn once(&self, operation: &Operation, times: usize) -> Result<Taken> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let writes = self
                .queries
                .as_ref()
                .map(|query_set| wgpu::ComputePassTimestampWrites {
                    query_set,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                });
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("tuning"),
                timestamp_writes: writes,
            });
            (0..times).for_each(|_| operation.encode_in(&mut pass));
        }
        if let Some(queries) = &self.queries {
            encoder.resolve_query_set(queries, 0..2, &self.stamps, 0);
        }
        // Without timestamps, too: what can be mapped is done.
        encoder.copy_buffer_to_buffer(&self.stamps, 0, &self.staging, 0, STAMPS_BYTES);
        let commands = encoder.finish();
        let start = Instant::now();
        let submitted = self.queue.submit([commands]);
        let mapping = Mapping::start(self.device, self.staging.clone(), submitted, "tuning");
        let mapped = std::future::poll_fn(|context| mapping.poll(context)).await;
        let clock = start.elapsed().as_secs_f64() * 1e3;
        mapped?;
        let [begin, end] = self.ticks(&mapping)?;
        // Some drivers write zeros, or the same value twice.
        let good = begin > 0 && end > begin;
        Ok(Taken {
            clock,
            gpu: good.then(|| (end - begin) as f64 * self.tick),
        })
    }

    fn ticks(&self, mapping: &Mapping) -> Result<[u64; 2]> {
        let range = mapping.view(..)?;
        let mut ticks = [0; 2];
        for (tick, bytes) in ticks.iter_mut().zip(range.chunks_exact(8)) {
            let high_first = bytes.iter().rev();
            *tick = high_first.fold(0, |value, &byte| value << 8 | u64::from(byte));
        }
        drop(range);
        self.staging.unmap();
        Ok(ticks)
    }

    /// Milliseconds of one repetition, by the slope between one and `times` of them, two at least.
    pub(super) async fn slope(&self, operation: &Operation, times: usize) -> Result<f64> {
        let one = self.once(operation, 1).await?;
        let all = self.once(operation, times).await?;
        // Two times of one kind: the clock has the submit and the wait in it.
        let more = match (one.gpu, all.gpu) {
            (Some(one), Some(all)) => all - one,
            _ => all.clock - one.clock,
        };
        Ok((more / (times - 1) as f64).max(0.0))
    }
    /// Milliseconds that a repetition takes at most: how many fit a submit must not depend on a difference of two times,
    /// which may come out as nothing.
    pub(super) async fn at_most(&self, operation: &Operation, times: usize) -> Result<f64> {
        let all = self.once(operation, times).await?;
        Ok(all.gpu.unwrap_or(all.clock) / times as f64)
    }
}
