//! The shapes whose plans are compiled, and with them every variant that the planner chooses for them.

use std::collections::{BTreeMap, BTreeSet};

use wgpu_batchnorm::{Activation, Caps, Choices, Dtype, Plan, Problem, Shader, Strategy};

/// Shapes `[outer, channels, inner]`; channels last is inner = 1.
fn shapes() -> Vec<[usize; 3]> {
    let mut shapes = Vec::new();
    let mut planar = |n: usize, c: usize, inner: usize| shapes.push([n, c, inner]);
    let square = |side: usize| side * side;

    // The bench's headline set, and what exceeds a GPU's cache.
    for (n, c, side) in [
        (32, 64, 56),
        (32, 256, 28),
        (32, 512, 7),
        (32, 2048, 7),
        (256, 64, 56),
        (256, 256, 56),
    ] {
        planar(n, c, square(side));
    }
    for (n, c, side) in [(256, 512, 28), (256, 2048, 7), (256, 64, 112)] {
        planar(n, c, square(side));
    }
    planar(256, 1024, 1);
    for (n, c, side) in [(32, 64, 56), (32, 256, 28), (8, 320, 40), (256, 64, 56)] {
        planar(n * square(side), c, 1);
    }

    // ResNet-50, from one image to a large batch.
    for n in [1, 32, 50, 96, 128, 256] {
        for (c, side) in [
            (64, 112),
            (64, 56),
            (256, 56),
            (128, 28),
            (512, 28),
            (256, 14),
            (1024, 14),
            (512, 7),
            (2048, 7),
        ] {
            planar(n, c, square(side));
        }
    }
    // Inception v3.
    for (c, side) in [
        (32, 149),
        (32, 147),
        (64, 147),
        (80, 73),
        (192, 71),
        (96, 35),
        (64, 35),
        (48, 35),
        (160, 17),
        (192, 17),
        (384, 17),
        (128, 17),
        (320, 8),
        (384, 8),
        (448, 8),
    ] {
        planar(96, c, square(side));
    }
    // CosmicTagger, PointNet, cuDNN's comparison and sample.
    for (c, inner) in [
        (8, 640 * 1024),
        (16, 320 * 512),
        (24, 160 * 256),
        (32, 80 * 128),
        (40, 40 * 64),
        (48, 20 * 32),
        (56, 160),
        (168, 160),
        (256, 160),
    ] {
        planar(4, c, inner);
    }
    for (n, c, inner) in [
        (16, 512, 1),
        (16, 256, 1),
        (32, 256, square(14)),
        (4, 32, square(16)),
    ] {
        planar(n, c, inner);
    }

    // The odd ones: few values, odd rows, volumes, long and tall tensors.
    for (n, c, inner) in [
        (1, 32, 30),
        (32, 128, 10),
        (32, 27, 7),
        (9, 128, 1),
        (1, 1, 1),
        (1, 257, square(28)),
        (1, 1024, 28 * 17),
        (5, 33, square(27)),
        (4, 200, 17 * 16),
        (1, 19, 4 * 6 * 6),
        (2, 251, square(28)),
        (8, 322, square(16)),
        (88, 600, square(16)),
        (88, 800, square(16)),
        (88, 900, square(16)),
        (88, 980, square(16)),
        (2, 128, 4),
        (2, 1024, 4),
        (64, 256, square(28)),
        (16, 8, 128 * 256),
        (16, 16, 8 * 88),
        (20, 6, 65536),
        (128, 2048, 16),
        (3072, 64, square(112)),
        (6, 7, 16),
        (3, 5, 13),
        (6, 16, 1),
        (7, 15, 1),
        (2, 64, square(50)),
        (131_072, 1, 1),
        (160_000, 256, 1),
        (880_801, 256, 5),
        (65_535, 256, 5),
        (131_070, 2048, 1),
        (880_801, 64, 16),
    ] {
        planar(n, c, inner);
    }
    shapes
}

/// What a network asks of one shape: activations that cost nothing, little and most, alone and after a residual; a mask;
/// statistics of their own for halves of the batch and for every image.
fn problems([outer, channels, inner]: [usize; 3]) -> Vec<Problem> {
    let plain = Problem::new(outer, channels, inner);
    let mut problems = vec![plain.clone().with_mask()];
    for activation in [Activation::None, Activation::Relu, Activation::Gelu] {
        problems.push(plain.clone().activation(activation));
        problems.push(plain.clone().with_residual().activation(activation));
    }
    if outer > 1 {
        problems.push(Problem::new(1, channels, inner).groups(outer));
    }
    if outer.is_multiple_of(2) {
        problems.push(Problem::new(outer / 2, channels, inner).groups(2));
    }
    problems
}

/// The variants that plans choose on a GPU.
pub(crate) struct Chosen {
    /// Each with the strategies whose plans use it.
    pub variants: BTreeMap<Shader, BTreeSet<String>>,
    pub plans: usize,
    /// What the planner refuses (a tensor over a limit), with its reason.
    pub refusals: BTreeMap<String, usize>,
}

/// Plans every shape in every type, on a GPU with WebGPU's limits and on one with a large GPU's.
pub(crate) fn chosen() -> Chosen {
    let large = wgpu::Limits {
        max_compute_invocations_per_workgroup: 1024,
        max_compute_workgroup_size_x: 1024,
        max_compute_workgroup_storage_size: 64 << 10,
        max_storage_buffer_binding_size: (4 << 30) - 4,
        max_buffer_size: 1 << 40,
        ..wgpu::Limits::default()
    };
    let gpus = [
        Caps::webgpu_defaults(),
        Caps::from_limits(&large, wgpu::DeviceType::DiscreteGpu),
    ];
    let choices = Choices::default().device_type(wgpu::DeviceType::DiscreteGpu);
    let mut chosen = Chosen {
        variants: BTreeMap::new(),
        plans: 0,
        refusals: BTreeMap::new(),
    };
    for problem in shapes().into_iter().flat_map(problems) {
        for dtype in Dtype::ALL {
            for caps in &gpus {
                match Plan::with(&problem.clone().dtype(dtype), caps, &choices) {
                    Ok(plan) => chosen.take(&plan),
                    Err(refusal) => {
                        // Without what differs from tensor to tensor.
                        let kind = format!("{refusal:?}");
                        let kind = kind.split([' ', '{']).next().unwrap_or_default();
                        *chosen.refusals.entry(kind.to_owned()).or_default() += 1;
                    }
                }
            }
        }
    }
    chosen
}

impl Chosen {
    fn take(&mut self, plan: &Plan) {
        self.plans += 1;
        for shader in plan.shaders() {
            self.variants
                .entry(shader)
                .or_default()
                .insert(plan.strategy().to_string());
        }
    }
}

/// Whether a variant belongs to a strategy that hides latency by many workgroups in flight.
pub(crate) fn wants_waves(strategies: &BTreeSet<String>) -> bool {
    [Strategy::Split, Strategy::Streaming]
        .iter()
        .any(|s| strategies.contains(&s.to_string()))
}
