//! What the host spends: planning, compiling, binding, and encoding against the same calls of wgpu's without this crate.

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::{Bare, Buffers, operations, pass};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use wgpu_batchnorm::{Caps, Choices, Gpu, Kernels, Operation, Plan, Problem, Strategy};
use wgpu_batchnorm_cli::bench::shapes::RESNET50;

fn plan(gpu: &Gpu) -> Plan {
    let split = Choices::default().strategy(Strategy::Split);
    Plan::with(&small(), gpu.kernels.caps(), &split).unwrap()
}

/// Small, because the host does not care.
fn small() -> Problem {
    Problem::nchw([2, 16, 8, 8])
}

fn planning(c: &mut Criterion) {
    let caps = Caps::webgpu_defaults();
    let problem = Problem::nchw([32, 64, 56, 56]);
    c.bench_function("plan", |b| {
        b.iter(|| Plan::new(black_box(&problem), black_box(&caps)).unwrap())
    });
}

fn binding(c: &mut Criterion) {
    let gpu = Gpu::new().unwrap();
    let plan = plan(&gpu);
    let prepared = gpu.kernels.prepare(&plan).unwrap();
    let buffers = Buffers::new(&gpu, plan.problem());
    c.bench_function("prepare again", |b| {
        b.iter(|| gpu.kernels.prepare(black_box(&plan)).unwrap())
    });
    c.bench_function("bind forward", |b| {
        b.iter(|| prepared.bind_forward_training(&buffers.forward()).unwrap())
    });
    c.bench_function("bind backward", |b| {
        b.iter(|| prepared.bind_backward(&buffers.backward()).unwrap())
    });
}

/// `ours` less `wgpu alone` is what this crate costs: both record as many dispatches into a pass.
fn encoding(c: &mut Criterion) {
    let gpu = Gpu::new().unwrap();
    let [forward, backward] = operations(&gpu, &plan(&gpu));
    for (name, operation) in [("forward", &forward), ("backward", &backward)] {
        let bare = Bare::new(&gpu, operation.dispatches());
        let mut group = c.benchmark_group(format!("encode {name}"));
        group.bench_function("ours", |b| {
            b.iter_batched_ref(
                || pass(&gpu),
                |pass| operation.encode_in(pass),
                BatchSize::SmallInput,
            )
        });
        group.bench_function("wgpu alone", |b| {
            b.iter_batched_ref(
                || pass(&gpu),
                |pass| bare.encode_in(pass),
                BatchSize::SmallInput,
            )
        });
        group.finish();
    }
    // With the encoder, the pass and what wgpu checks when they end.
    c.bench_function("encode forward and finish", |b| {
        b.iter(|| {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            forward.encode(&mut encoder);
            encoder.finish()
        })
    });
    let network: Vec<Operation> = RESNET50
        .iter()
        .flat_map(|&(channels, _, times)| std::iter::repeat_n(channels, times))
        .flat_map(|channels| {
            let problem = Problem::nchw([2, channels, 4, 4]);
            operations(&gpu, &Plan::new(&problem, gpu.kernels.caps()).unwrap())
        })
        .collect();
    c.bench_function("encode the 53 layers of ResNet-50, both ways", |b| {
        b.iter(|| {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            for operation in &network {
                operation.encode(&mut encoder);
            }
            encoder.finish()
        })
    });
}

/// The first use of a plan: every pipeline is compiled. A driver may have a cache of its own on disk, which
/// `MESA_SHADER_CACHE_DISABLE=true` or `__GL_SHADER_DISK_CACHE=0` turn off.
fn first_use(c: &mut Criterion) {
    let gpu = Gpu::new().unwrap();
    let plan = plan(&gpu);
    let mut group = c.benchmark_group("first prepare");
    group.sample_size(10);
    let fresh = |device: &wgpu::Device, cache: Option<&wgpu::PipelineCache>, times: u64| {
        (0..times)
            .map(|_| {
                let kernels = Kernels::with_pipeline_cache(device, cache.cloned()).unwrap();
                let start = Instant::now();
                black_box(kernels.prepare(&plan).unwrap());
                start.elapsed()
            })
            .sum::<Duration>()
    };
    group.bench_function("without a cache", |b| {
        b.iter_custom(|times| fresh(&gpu.device, None, times))
    });
    let descriptor = wgpu::DeviceDescriptor {
        required_features: wgpu::Features::PIPELINE_CACHE,
        required_limits: gpu.adapter.limits(),
        ..Default::default()
    };
    let requested = gpu.adapter.request_device(&descriptor);
    if let Ok((device, _queue)) = pollster::block_on(requested) {
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: None,
            data: None,
            fallback: true,
        };
        // SAFETY: it starts empty, from no data of anybody's.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        fresh(&device, Some(&cache), 1);
        group.bench_function("with a pipeline cache that knows them", |b| {
            b.iter_custom(|times| fresh(&device, Some(&cache), times))
        });
    }
    group.finish();
}

criterion_group!(benches, planning, binding, encoding, first_use);
criterion_main!(benches);
