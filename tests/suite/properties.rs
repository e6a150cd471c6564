//! Random shapes, data and choices against the reference.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use wgpu_batchnorm::{Choices, Dtype, Momentum, Preset, Problem, Walk};
use wgpu_batchnorm_cli::check::{ACTIVATIONS, Case, Data, Gradient, Operation, compare};

use crate::{name, on_every_adapter};

fn case() -> impl Strategy<Value = Case> {
    let shape = (1usize..40, 1usize..24, 1usize..70)
        .prop_filter("two values a channel", |(o, _, i)| o * i > 1);
    let data = prop_oneof![
        (-100f32..100.0, 0.01f32..50.0).prop_map(|(mean, std)| Data::Normal(mean, std)),
        (-1e4f32..1e4).prop_map(Data::Constant),
        (-1e5f32..1e5, any::<bool>()).prop_map(|(value, first)| Data::Outlier(value, first)),
        (1f32..1e3).prop_map(Data::Bimodal),
        (1f32..1e3).prop_map(Data::Ramp),
    ];
    let gradient = prop_oneof![
        Just(Gradient::Normal),
        Just(Gradient::Ones),
        Just(Gradient::Positive)
    ];
    let operation = prop::sample::select(Operation::ALL.to_vec());
    let preset = prop::sample::select(vec![
        Preset::Pytorch,
        Preset::Keras,
        Preset::Tensorflow,
        Preset::Onnx,
    ]);
    let fused = (
        prop::sample::select(ACTIVATIONS.to_vec()),
        any::<bool>(), // residual
        any::<bool>(), // affine
        any::<bool>(), // cumulative
        prop::sample::select(Dtype::ALL.to_vec()),
        prop::bool::weighted(0.3), // mask
        any::<bool>(),             // in place
        prop::sample::select(vec![1usize, 1, 1, 2, 3, 7]),
    );
    let choices = (
        prop::option::of(prop::sample::select(vec![Walk::Planar, Walk::Columns])),
        1u32..70,
        0u32..7,
        any::<u8>(),
    );
    (shape, data, gradient, operation, preset, fused, choices).prop_map(
        |(
            (outer, channels, inner),
            data,
            gradient,
            operation,
            preset,
            fused,
            (walk, pieces, lanes, kind),
        )| {
            let (activation, residual, affine, cumulative, dtype, mask, in_place, groups) = fused;
            let mut problem = Problem::new(outer, channels, inner)
                .groups(groups)
                .preset(preset)
                .activation(activation);
            if residual {
                problem = problem.with_residual();
            }
            if mask {
                problem = problem.with_mask();
            }
            if cumulative {
                problem = problem.momentum(Momentum::Cumulative);
            }
            if dtype != Dtype::F16 || data.largest() < 6e4 {
                problem = problem.dtype(dtype);
            }
            // Without an activation grad_output is the residual's gradient too, and is not overwritten.
            let gradients = matches!(operation, Operation::Backward | Operation::Frozen);
            let lost = gradients && residual && !problem.writes_grad_residual();
            let aligned = groups == 1 || (outer * channels * inner).is_multiple_of(4);
            let walk = walk.filter(|walk| aligned || *walk == Walk::Planar);
            let mut choices = Choices::default()
                .pieces(pieces)
                .reduce_workgroup(1 << lanes);
            if kind % 2 == 0 {
                choices = choices.device_type(wgpu::DeviceType::DiscreteGpu);
            }
            if let Some(walk) = walk {
                choices = choices.walk(walk);
            }
            Case {
                operation,
                problem,
                data,
                gradient,
                affine,
                in_place: in_place && !lost,
                choices,
            }
        },
    )
}

#[test]
fn random_cases_agree_with_the_reference() {
    on_every_adapter(|gpu| {
        let config = Config {
            cases: 150,
            failure_persistence: None,
            ..Config::default()
        };
        // The same cases in every run: what fails can be repeated.
        let mut runner = TestRunner::new_with_rng(
            config,
            proptest::test_runner::TestRng::deterministic_rng(
                proptest::test_runner::RngAlgorithm::ChaCha,
            ),
        );
        let result = runner.run(&(case(), any::<u64>()), |(case, seed)| {
            let comparisons =
                compare(gpu, &case, seed).map_err(|e| TestCaseError::fail(e.to_string()))?;
            for c in comparisons {
                prop_assert!(
                    c.of_bound <= 1.0,
                    "{case}\n{:?}\n{}",
                    case.choices,
                    c.report()
                );
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("on {}: {error}", name(gpu));
        }
    });
}
