//! Encoding a bound operation allocates nothing of ours: as much as wgpu's own calls for as many dispatches, and no more.
//! A binary of its own, because it replaces the allocator by one that counts.

#[path = "../benches/common/mod.rs"]
mod common;

use common::{Bare, operations, pass};
use wgpu_batchnorm::{Choices, Gpu, Plan, Problem, Strategy};

fn allocations(gpu: &Gpu, encode: impl Fn(&mut wgpu::ComputePass<'_>)) -> [u64; 2] {
    let mut pass = pass(gpu);
    let counted = allocation_counter::measure(|| encode(&mut pass));
    [counted.count_total, counted.bytes_total]
}

#[test]
fn encoding_allocates_no_more_than_wgpu_does() {
    let gpu = Gpu::new().unwrap();
    let mut most = 0;
    for strategy in [Strategy::Resident, Strategy::Streaming, Strategy::Split] {
        let problem = Problem::nchw([4, 8, 4, 4]);
        let choices = Choices::default().strategy(strategy);
        let plan = Plan::with(&problem, gpu.kernels.caps(), &choices).unwrap();
        for operation in operations(&gpu, &plan) {
            let bare = Bare::new(&gpu, operation.dispatches());
            let theirs = allocations(&gpu, |pass| bare.encode_in(pass));
            let ours = allocations(&gpu, |pass| operation.encode_in(pass));
            assert_eq!(
                ours,
                theirs,
                "[allocations, bytes] of {} dispatches, {strategy}",
                operation.dispatches()
            );
            most = most.max(operation.dispatches());
        }
    }
    assert!(most > 2, "no operation of several dispatches");
}

/// The counter counts: an allocation inside a measured closure shows.
#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| {
        std::hint::black_box(Vec::<u8>::with_capacity(std::hint::black_box(10)));
    });
    assert_eq!((counted.count_total, counted.bytes_total), (1, 10));
}
