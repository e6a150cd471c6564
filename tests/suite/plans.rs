//! The planner: a golden table of its choices, and what it refuses. No adapter needed.

use wgpu_batchnorm::{Caps, Choices, Dtype, Error, Plan, Problem, Strategy, Walk};
use wgpu_batchnorm_cli::bench::{Op, shapes, subjects};

fn cpu() -> Caps {
    Caps::from_limits(&wgpu::Limits::default(), wgpu::DeviceType::Cpu)
}

/// The plans of shapes that count, on a GPU and on a software adapter. After a change that is meant:
/// `UPDATE_PLANS=1 cargo test plans`, and the difference is part of the review.
#[test]
fn plans_are_as_recorded() {
    let shapes = [
        [32, 64, 56 * 56],
        [32, 256, 28 * 28],
        [32, 512, 49],
        [256, 1024, 1],
        [32 * 56 * 56, 64, 1],
        [32 * 28 * 28, 256, 1],
        [32, 27, 7],
        [8 * 40 * 40, 320, 1],
        [131_072, 1, 1],
        [65_535, 40, 5],
        [128, 2048, 16],
        [1, 5000, 4000],
        [2, 100_000, 4],
        [1, 1, 2],
    ];
    let mut text = String::new();
    for (device, caps) in [("gpu", Caps::webgpu_defaults()), ("cpu", cpu())] {
        for [outer, channels, inner] in shapes {
            let plan = Plan::new(&Problem::new(outer, channels, inner), &caps).unwrap();
            text += &format!("{device} {plan}\n\n");
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/plans.txt");
    if std::env::var_os("UPDATE_PLANS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let recorded = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, recorded, "plans changed; see the test's comment");
}

#[test]
fn choices_are_forced() {
    let problem = Problem::nchw([8, 16, 4, 4]);
    for walk in [Walk::Planar, Walk::Columns] {
        let plan = Plan::with(
            &problem,
            &cpu(),
            &Choices::default().walk(walk).strategy(Strategy::Split),
        )
        .unwrap();
        assert_eq!((plan.walk(), plan.strategy()), (walk, Strategy::Split));
    }
    // Rows of whole vectors, and channels last, a multiple of 4 of them; what is not is refused.
    let odd = Problem::nchw([8, 16, 7, 7]);
    let last = Problem::nhwc([8, 4, 4, 18]);
    for strategy in [Strategy::Resident, Strategy::Streaming] {
        let choices = Choices::default().strategy(strategy);
        let plan = Plan::with(&problem, &cpu(), &choices).unwrap();
        assert_eq!(plan.strategy(), strategy);
        for refused in [&odd, &last] {
            let refused = Plan::with(refused, &cpu(), &choices);
            assert!(
                matches!(refused, Err(Error::Unsupported { .. })),
                "{refused:?}"
            );
        }
    }
    // More than registers hold.
    let resident = Choices::default().strategy(Strategy::Resident);
    let refused = Plan::with(&Problem::nchw([64, 8, 256, 256]), &cpu(), &resident);
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
    for lanes in [0, 3, 1 << 20] {
        let refused = Plan::with(
            &problem,
            &cpu(),
            &Choices::default().reduce_workgroup(lanes),
        );
        assert!(
            matches!(refused, Err(Error::Unsupported { .. })),
            "{lanes}: {refused:?}"
        );
    }
}

/// The planner's choice of a strategy is all that it chooses: forced, the same strategy is the same dispatches.
#[test]
fn a_strategy_is_the_same_chosen_or_forced() {
    for caps in [Caps::webgpu_defaults(), cpu()] {
        for problem in shapes_that_count() {
            let Ok(chosen) = Plan::new(&problem, &caps) else {
                continue; // more than a binding holds, and nothing to cut
            };
            let choices = Choices::default().strategy(chosen.strategy());
            let forced = Plan::with(&problem, &caps, &choices).unwrap();
            let dispatches = |plan: &Plan| {
                let text = plan.to_string();
                text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(dispatches(&chosen), dispatches(&forced), "{chosen}");
        }
    }
}

fn shapes_that_count() -> Vec<Problem> {
    let dtypes = [Dtype::F32, Dtype::Bf16];
    let subjects = subjects(&shapes::all(), &dtypes, &[Op::ForwardTraining], false).unwrap();
    assert!(subjects.len() > 200);
    subjects
        .into_iter()
        .map(|subject| subject.problem)
        .collect()
}

/// 1 % of the tensor and a megabyte, whatever binding the device has room for.
#[test]
fn the_workspace_is_small() {
    let large = wgpu::Limits {
        max_storage_buffer_binding_size: 1 << 40,
        max_buffer_size: 1 << 40,
        max_compute_invocations_per_workgroup: 1024,
        max_compute_workgroup_size_x: 1024,
        ..wgpu::Limits::default()
    };
    let others = [
        [32, 64, 3136],
        [100_352, 64, 1],
        [65_535, 40, 5],
        [33_000_000, 1, 1],
        [2, 5000, 1000],
        // Columns of which 64 records each, a device's fill, are more than that.
        [8192, 2048, 1],
        [2048, 16_384, 1],
    ];
    let others = others.map(|[outer, channels, inner]| Problem::new(outer, channels, inner));
    let mut problems = shapes_that_count();
    problems.extend(others);
    for limits in [wgpu::Limits::default(), large] {
        for kind in [wgpu::DeviceType::DiscreteGpu, wgpu::DeviceType::Cpu] {
            let caps = Caps::from_limits(&limits, kind);
            for problem in &problems {
                let plan = match Plan::new(problem, &caps) {
                    Ok(plan) => plan,
                    Err(Error::Limit { .. }) if limits == wgpu::Limits::default() => continue,
                    Err(error) => panic!("{error}"),
                };
                let allowed = problem.bytes() / 100 + (1 << 20);
                assert!(
                    plan.workspace_bytes() <= allowed,
                    "{} > {allowed}: {plan}",
                    plan.workspace_bytes()
                );
            }
        }
    }
}

#[test]
fn limits_are_respected_or_named() {
    // 256 MiB, where a binding holds 128: chunks, but for what cannot be cut.
    let big = Problem::new(1 << 20, 64, 1);
    let plan = Plan::new(&big, &Caps::webgpu_defaults()).unwrap();
    assert!(plan.to_string().contains("2 chunks"), "{plan}");
    let refused = Plan::new(&big.with_mask(), &Caps::webgpu_defaults());
    assert!(
        matches!(
            refused,
            Err(Error::Limit {
                needed: 268_435_456,
                limit: 134_217_728,
                ..
            })
        ),
        "{refused:?}"
    );
    // wgpu binds whole words, and stops the program where that is not heeded, whatever the device says.
    let none = wgpu::Limits {
        min_storage_buffer_offset_alignment: 1,
        ..wgpu::Limits::default()
    };
    let caps = Caps::from_limits(&none, wgpu::DeviceType::Other);
    assert_eq!(caps.offset_alignment, 4);
    let weak = wgpu::Limits {
        max_storage_buffers_per_shader_stage: 3,
        ..wgpu::Limits::default()
    };
    let caps = Caps::from_limits(&weak, wgpu::DeviceType::IntegratedGpu);
    let refused = Plan::new(&Problem::new(2, 2, 2), &caps);
    assert!(
        matches!(
            refused,
            Err(Error::Limit {
                name: "max_storage_buffers_per_shader_stage",
                ..
            })
        ),
        "{refused:?}"
    );
}
