//! GPU time of passes and of a copy of the same tensor, as `wgpu-batchnorm bench` takes it, under criterion's statistics.
//! The command is the one for reports; this one compares with the last run.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use wgpu_batchnorm::Gpu;
use wgpu_batchnorm_cli::bench::{Bench, Op, Options, subjects, wait};

const SHAPES: [&str; 4] = [
    "32x64x56x56",
    "32x56x56x64:last",
    "32x512x7x7",
    "32x256x28x28:bf16",
];

fn passes(c: &mut Criterion) {
    let gpu = Gpu::new().unwrap();
    let bench = wait(&gpu, Bench::new(&gpu, Options::default())).unwrap();
    let shapes = SHAPES.map(str::to_owned);
    for subject in subjects(&shapes, &[], &Op::ALL, true).unwrap() {
        let stopwatch = wait(&gpu, bench.stopwatch(&subject)).unwrap();
        let mut group = c.benchmark_group(subject.to_string());
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500));
        let all = |ms: f64, times: u64| Duration::from_secs_f64(ms * times as f64 / 1e3);
        group.bench_function("pass", |b| {
            b.iter_custom(|times| all(wait(&gpu, stopwatch.pass(times as usize)).unwrap(), times))
        });
        group.bench_function("copy", |b| {
            b.iter_custom(|times| all(wait(&gpu, stopwatch.copy(times as usize)).unwrap(), times))
        });
        group.finish();
    }
}

criterion_group!(benches, passes);
criterion_main!(benches);
