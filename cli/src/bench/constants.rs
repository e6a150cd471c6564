//! `bench --constants`: what the planner's cost model wants to know of an adapter.
//!
//! What a dispatch costs by itself, and how fast tensors of growing size are copied and read again and again: while they
//! fit the last-level cache, and beyond it.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use comfy_table::CellAlignment;
use serde::Serialize;
use serde_json::Value;
use wgpu_batchnorm::Gpu;

use super::timer::{Timer, median};
use super::{BoundCopies, CopyKernels, Kernel, Options};
use crate::table::with_header;

/// The smallest tensor, and the largest on a GPU and on a software adapter; each is twice the one before.
const SMALLEST: u64 = 256 << 10;
const LARGEST: u64 = 1 << 30;
const LARGEST_OF_SOFTWARE: u64 = 64 << 20;

/// What was measured, as the JSON has it.
#[derive(Debug, Serialize)]
pub(super) struct Constants {
    adapter: Value,
    timer: &'static str,
    /// Of a dispatch that does nothing, one after the other.
    dispatch_us: f64,
    /// Bytes of a tensor copied, read and write together counted once, in a microsecond: of the largest.
    bytes_per_us: f64,
    /// The largest tensor that is read at a rate nearer to the fastest than to the largest tensor's.
    cache_bytes: u64,
    /// What a byte costs to read from the cache, of what it costs in the largest tensor.
    cached_read: f64,
    sizes: Vec<Size>,
}

/// A tensor used again and again.
#[derive(Debug, Serialize)]
struct Size {
    bytes: u64,
    copy_us: f64,
    /// Bytes read and bytes written.
    copy_gb_per_s: f64,
    copy_kernel: String,
    read_us: f64,
    read_gb_per_s: f64,
}

impl Constants {
    pub(super) async fn measure(gpu: &Gpu, options: &Options) -> Result<Self> {
        let timer = Timer::new(gpu);
        let kernels = CopyKernels::new(gpu);
        let reads = kernels.variants("read_all");
        let dispatch_us = 1e3 * kernels.empty_dispatch(&timer).await?;
        let limits = gpu.device.limits();
        let software = gpu.kernels.caps().device_type == wgpu::DeviceType::Cpu;
        let largest = if software {
            LARGEST_OF_SOFTWARE
        } else {
            LARGEST
        };
        let largest = largest
            .min(limits.max_storage_buffer_binding_size)
            .min(limits.max_buffer_size);
        let mut sizes = Vec::new();
        let mut bytes = SMALLEST;
        while bytes <= largest {
            let Some([from, to]) = buffers(gpu, bytes).await else {
                break;
            };
            let bound = kernels.bind(&[(&from, &to)]);
            let (copy_us, kernel) = fastest(&timer, &bound, &kernels.copies, options).await?;
            let (read_us, _) = fastest(&timer, &bound, &reads, options).await?;
            let rate = |bytes: u64, us: f64| {
                if us > 0.0 {
                    bytes as f64 / us / 1e3
                } else {
                    0.0
                }
            };
            sizes.push(Size {
                bytes,
                copy_us,
                copy_gb_per_s: rate(2 * bytes, copy_us),
                copy_kernel: kernel.to_string(),
                read_us,
                read_gb_per_s: rate(bytes, read_us),
            });
            from.destroy();
            to.destroy();
            bytes *= 2;
        }
        let last = sizes
            .last()
            .context("the device has no memory for 256 KiB")?;
        let fastest = sizes.iter().map(|s| s.read_gb_per_s).fold(0.0, f64::max);
        let between = (fastest * last.read_gb_per_s).sqrt();
        let cached = sizes.iter().rev().find(|s| s.read_gb_per_s >= between);
        Ok(Constants {
            adapter: crate::info::adapter(&gpu.adapter),
            timer: timer.kind(),
            dispatch_us,
            bytes_per_us: 500.0 * last.copy_gb_per_s,
            cache_bytes: cached.map_or(0, |s| s.bytes),
            cached_read: last.read_gb_per_s / fastest,
            sizes,
        })
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    pub(super) fn text(&self) -> String {
        let mut table = with_header(["tensor", "copy µs", "copy GB/s", "read µs", "read GB/s"]);
        for size in &self.sizes {
            table.add_row([
                shown(size.bytes),
                format!("{:.1}", size.copy_us),
                format!("{:.1}", size.copy_gb_per_s),
                format!("{:.1}", size.read_us),
                format!("{:.1}", size.read_gb_per_s),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let name = self.adapter["name"].as_str().unwrap_or_default();
        let mut text = format!("{name}, by {}\n{}\n", self.timer, table.trim_fmt());
        let _ = write!(
            text,
            "a dispatch takes {:.2} µs; of the largest tensor {:.0} bytes are copied in a microsecond\n\
             up to {} a tensor is read at nearer to the cache's rate, where a byte takes {:.2} of its time beyond",
            self.dispatch_us,
            self.bytes_per_us,
            shown(self.cache_bytes),
            self.cached_read
        );
        text
    }
}

/// Microseconds of the kernel that goes over the buffers fastest, and which that is.
async fn fastest<'k>(
    timer: &Timer<'_>,
    bound: &BoundCopies,
    kernels: &'k [Kernel],
    options: &Options,
) -> Result<(f64, &'k Kernel)> {
    // As many repetitions as make a submit of about 20 ms: there are many sizes.
    let first = timer.at_most(&bound.work(&kernels[0]), 2).await?.max(1e-3);
    let times = options
        .repetitions
        .unwrap_or(((20.0 / first) as usize).clamp(4, 512))
        .max(2);
    let kernel = bound.fastest(timer, kernels, times).await?;
    let mut taken = Vec::new();
    for _ in 0..options.rounds.max(1) {
        taken.push(timer.slope(&bound.work(kernel), times).await?);
    }
    Ok((1e3 * median(&mut taken), kernel))
}

/// Two buffers, where the device has memory for them.
async fn buffers(gpu: &Gpu, bytes: u64) -> Option<[wgpu::Buffer; 2]> {
    let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let made = ["from", "to"].map(|label| {
        gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    });
    scope.pop().await.is_none().then_some(made)
}

fn shown(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
