//! What the planner promises of every dispatch, over shapes and limits that no device of ours has.

use super::*;

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
    let too_many = Plan::new(&Problem::new(2, 1, 2).groups(1 << 25), &caps);
    assert!(matches!(too_many, Err(Error::Limit { .. })), "{too_many:?}");
}
