//! Tensors that one binding cannot hold, on devices that allow little, and one that no binding of a usual driver holds.

use wgpu_batchnorm::{Activation, Arrays, Choices, Dtype, Gpu, Plan, Problem, Strategy};
use wgpu_batchnorm_cli::check::{Case, Data, Gradient, Operation, Random, compare, input};

use crate::{name, on_every_adapter};

/// wgpu itself holds every binding of this device to a mebibyte.
fn small(gpu: &Gpu) -> Gpu {
    let limits = wgpu::Limits {
        max_storage_buffer_binding_size: 1 << 20,
        ..gpu.adapter.limits()
    };
    Gpu::with_limits(gpu.adapter.clone(), limits).unwrap()
}

/// Every operation agrees with the reference, whatever is fused and however the parts end.
#[test]
fn chunks_agree_with_the_reference() {
    on_every_adapter(|gpu| {
        let gpu = &small(gpu);
        for (i, shape) in [
            [64, 8, 784],
            [140_001, 6, 1], // 64 rows and more to a chunk, an odd end
            [900, 3, 601],   // rows of odd length
            [1, 1, 600_001],
            [999, 1, 601],
            [5000, 32, 2],
        ]
        .into_iter()
        .enumerate()
        {
            for (j, operation) in Operation::ALL.into_iter().enumerate() {
                let dtype = Dtype::ALL[(i + j) % 3];
                let mut problem = Problem::new(shape[0], shape[1], shape[2]).dtype(dtype);
                if (i + j) % 2 == 0 {
                    problem = problem.with_residual().activation(Activation::Silu);
                }
                let case = Case {
                    operation,
                    problem,
                    data: Data::Normal(0.5, 2.0),
                    gradient: Gradient::Normal,
                    affine: true,
                    in_place: (i + j) % 4 < 2,
                    choices: Choices::default(),
                };
                let plan = Plan::new(&case.problem, gpu.kernels.caps()).unwrap();
                let whole = case.problem.bytes() <= 1 << 20;
                let cut = plan.to_string().contains("chunks");
                assert_ne!(cut, whole, "{plan}");
                for c in compare(gpu, &case, (i + j) as u64).unwrap() {
                    assert!(c.of_bound <= 1.0, "{case} on {}: {}", name(gpu), c.report());
                }
            }
        }
    });
}

/// A mean far from 0 and an outlier in the last chunk: moments of chunks merge as well as those of pieces.
#[test]
fn moments_of_chunks_merge_without_loss() {
    on_every_adapter(|gpu| {
        let gpu = &small(gpu);
        for data in [
            Data::Normal(1e6, 1.0),
            Data::Outlier(1e6, false),
            Data::Bimodal(5e3),
            Data::Normal(0.0, 1e18),
        ] {
            for operation in [Operation::Forward, Operation::Backward] {
                let case = Case {
                    operation,
                    problem: Problem::new(80, 4, 1024),
                    data,
                    gradient: Gradient::Positive,
                    affine: true,
                    in_place: false,
                    choices: Choices::default(),
                };
                for c in compare(gpu, &case, 3).unwrap() {
                    assert!(c.of_bound <= 1.0, "{case} on {}: {}", name(gpu), c.report());
                }
            }
        }
    });
}

/// 168 MB, over the 128 MiB that lavapipe binds: the output's moments are those of a normalised tensor.
#[test]
fn more_than_128_mebibytes() {
    on_every_adapter(|gpu| {
        let problem = Problem::new(40, 16, 1 << 16);
        let x = input(Data::Normal(3.0, 2.0), &problem, &mut Random::new(8));
        let plan = Plan::new(&problem, gpu.kernels.caps()).unwrap();
        assert_eq!(plan.strategy(), Strategy::Split);
        let got = gpu
            .forward_training(&plan, &Arrays::new(x.view()), None)
            .unwrap();
        let invstd = got.saved.invstd().to_owned();
        for c in 0..16 {
            let channel = |a: &ndarray::Array3<f32>| {
                let values = a.index_axis(ndarray::Axis(1), c).mapv(f64::from);
                let mean = values.mean().unwrap();
                (mean, values.mapv(|v| (v - mean).powi(2)).mean().unwrap())
            };
            let (mean, variance) = channel(&x);
            assert!((got.saved.mean()[c] - mean).abs() < 1e-7);
            let want = 1.0 / (variance + 1e-5).sqrt();
            assert!((f64::from(invstd[c]) / want - 1.0).abs() < 2e-7);
            let (mean, variance) = channel(&got.output);
            assert!(
                mean.abs() < 1e-7 && (variance - 1.0).abs() < 1e-5,
                "{mean} {variance}"
            );
        }
    });
}
