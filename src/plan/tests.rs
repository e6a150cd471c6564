//! What the planner promises of every dispatch, over shapes and limits that no device of ours has.

use super::*;
use crate::Dtype;
use crate::kernels::Kernel;

fn caps(per_dimension: u32, device_type: wgpu::DeviceType) -> Caps {
    let limits = wgpu::Limits {
        max_compute_workgroups_per_dimension: per_dimension,
        max_storage_buffer_binding_size: 1 << 40,
        max_buffer_size: 1 << 40,
        ..wgpu::Limits::default()
    };
    Caps::from_limits(&limits, device_type)
}

/// Every dispatch fits the device's grid and covers its workgroups, or the plan is refused by name.
#[test]
fn grids_keep_to_the_limit() {
    let shapes = [
        [1, 1, 1 << 31],
        [1 << 31, 1, 1],
        [2, 1 << 28, 4],
        [1 << 20, 2, 3],
        [7, 1 << 24, 9],
        [65_535, 256, 5],
        [1, 3, 5],
    ];
    let mut refused = 0;
    for device_type in [wgpu::DeviceType::Cpu, wgpu::DeviceType::DiscreteGpu] {
        for per_dimension in [256, 1000, 65_535] {
            for [outer, channels, inner] in shapes {
                let problem = Problem::new(outer, channels, inner).with_mask();
                let plan = match Plan::new(&problem, &caps(per_dimension, device_type)) {
                    Ok(plan) => plan,
                    Err(Error::Limit { name, .. }) => {
                        assert_eq!(name, "max_compute_workgroups_per_dimension");
                        refused += 1;
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                };
                for step in plan.steps() {
                    let [x, y] = step.grid.map(u64::from);
                    let most = u64::from(per_dimension);
                    assert!(x <= most && y <= most, "{:?} in {plan}", step.key.kernel);
                    let [covered, workgroups] = [x * y, step.params.workgroups.into()];
                    assert!(covered >= workgroups && covered < 2 * workgroups.max(1) + y);
                }
            }
        }
    }
    assert!(refused > 0, "no shape was too much for the smallest grid");
}

/// A row with its repetitions may have more columns than 32 bits count.
#[test]
fn columns_stay_within_32_bits() {
    let wide = Problem::new(2, (1 << 30) - 1, 1);
    let caps = caps(65_535, wgpu::DeviceType::DiscreteGpu);
    let plan = Plan::new(&wide, &caps).unwrap();
    assert_eq!(plan.walk(), Walk::Planar);
    let forced = Plan::with(&wide, &caps, &Choices::default().walk(Walk::Columns));
    assert!(
        matches!(forced, Err(Error::Unsupported { .. })),
        "{forced:?}"
    );
    assert!(Plan::new(&Problem::new(2, 1 << 29, 1), &caps).is_ok());
}

/// No invocation of a software adapter loops longer than its compiler lets it, whatever is merged.
#[test]
fn merges_end_before_the_loop_does() {
    let caps = caps(65_535, wgpu::DeviceType::Cpu);
    for groups in [1, 1000, 65_536, 1 << 20] {
        let plan = Plan::new(&Problem::new(2, 1, 2).groups(groups), &caps).unwrap();
        let step = plan.merge_groups(Kernel::Finalize, None, 0);
        let lanes = step.key.workgroup / step.params.tile;
        assert!(3 * u64::from(step.params.slots) / u64::from(lanes) < 65_535);
    }
    // A channel, or a column, as a whole: more lanes, or a refusal.
    let streaming = Choices::default().strategy(Strategy::Streaming);
    let single = Choices::default().pieces(1).flat_workgroups(1);
    for problem in [
        Problem::new(1, 1, 1 << 24),
        Problem::new(1 << 18, 32, 1),
        Problem::new(1 << 21, 8, 1),
        Problem::new(1, 1, 1 << 30),
    ] {
        for choices in [&streaming, &single] {
            let Ok(plan) = Plan::with(&problem, &caps, choices) else {
                continue;
            };
            for step in plan.steps() {
                let p = &step.params;
                let lanes = match step.key.kernel {
                    Kernel::ReducePlanar | Kernel::ForwardPlanar | Kernel::BackwardPlanar => {
                        step.key.workgroup
                    }
                    Kernel::ReduceColumns | Kernel::ForwardColumns | Kernel::BackwardColumns => {
                        step.key.workgroup / p.tile
                    }
                    _ => continue,
                };
                let vectors = u64::from(p.piece_length / lanes);
                assert!(
                    vectors + vectors / 4 < 65_535,
                    "{:?} of {plan}",
                    step.key.kernel
                );
            }
        }
    }
    let too_many = Plan::new(&Problem::new(2, 1, 2).groups(1 << 25), &caps);
    assert!(matches!(too_many, Err(Error::Limit { .. })), "{too_many:?}");
}

/// Chunks follow on each other without a gap, start where a binding may, and fit; also past 2³² elements.
#[test]
fn chunks_cover_the_tensor() {
    let limit = |bytes: u64| {
        let mut caps = caps(65_535, wgpu::DeviceType::DiscreteGpu);
        caps.max_binding_size = bytes;
        caps
    };
    let shapes = [
        ([3072, 64, 112 * 112], 128 << 20),
        ([1 << 17, 64, 112 * 112], 2 << 30), // 10¹¹ elements
        ([1 << 20, 256, 49], 1 << 20),
        ([140_001, 6, 1], 1 << 20),
        ([1, 1, 600_001], 1 << 20),
        ([999, 1, 1001], 1 << 20),
        ([900, 3, 601], 1 << 20),
        ([1 << 31, 1, 1], 128 << 20),
        ([1 << 20, 2048, 1], 128 << 20),
        ([1 << 31, 512, 1], 1 << 20), // millions of chunks
    ];
    for (shape, bytes) in shapes {
        for dtype in Dtype::ALL {
            let problem = Problem::new(shape[0], shape[1], shape[2]).dtype(dtype);
            let plan = Plan::new(&problem, &limit(bytes)).unwrap();
            assert!(plan.is_chunked(), "{plan}");
            let mut next = 0;
            for (start, part) in plan.parts() {
                assert_eq!(start, next, "{plan}");
                assert!((start * dtype.bytes()).is_multiple_of(256), "{plan}");
                assert!(part.problem.bytes() <= bytes && part.problem.elements() <= MAX_ELEMENTS);
                assert_eq!(part.problem.channels, shape[1]);
                next += part.problem.elements();
            }
            assert_eq!(next, problem.elements());
            let values: u64 = plan.parts().map(|(_, part)| part.problem.count()).sum();
            assert_eq!(values, problem.count());
            assert!(
                plan.workspace_bytes() < problem.bytes() / 100 + (1 << 20),
                "{plan}"
            );
        }
    }
    // What cannot be cut is refused by name: a channel's row that no binding holds, masks, groups.
    for problem in [
        Problem::new(1, 3, 1 << 20),
        Problem::new(131, 3, 2501), // 64 rows make a place that a binding may start at
        Problem::new(1 << 20, 1, 2).with_mask(),
        Problem::new(1 << 18, 4, 1).groups(2),
    ] {
        let refused = Plan::new(&problem, &limit(1 << 20));
        assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
    }
    let resident = Choices::default().strategy(Strategy::Resident);
    let refused = Plan::with(&Problem::new(1 << 20, 4, 4), &limit(1 << 20), &resident);
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
    // More values in a channel than the merge counts.
    let refused = Plan::new(&Problem::new(1 << 33, 1, 1), &limit(1 << 30));
    assert!(
        matches!(refused, Err(Error::TooManyElements { .. })),
        "{refused:?}"
    );
}

/// Whatever is asked for, a plan keeps its promises or is refused in one line. `make fuzz` goes through many more.
#[test]
fn arbitrary_plans_keep_their_promises() {
    let mut state = 2015u64;
    // SplitMix64 (Steele et al. 2014).
    let mut pick = |below: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    };
    let (mut planned, mut chunked, mut fused) = (0, 0, 0);
    for _ in 0..20_000 {
        let (problem, caps, choices) = Plan::arbitrary(&mut pick);
        match Plan::with(&problem, &caps, &choices) {
            Ok(plan) => {
                plan.check()
                    .unwrap_or_else(|broken| panic!("{broken}\nby {choices:?}"));
                planned += 1;
                chunked += u32::from(plan.is_chunked());
                fused += u32::from(plan.strategy() != Strategy::Split);
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    }
    assert!(
        planned > 5000 && chunked > 100 && fused > 200,
        "{planned} {chunked} {fused}"
    );
}
