//! Promises beyond the bounds: exact constants, NaN and infinity in their channel, defined overflow, equal bits.

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array1, Array3, Axis};
use wgpu_batchnorm::{
    Activation, Arrays, Choices, Dtype, Gpu, Plan, Problem, RunningArrays, Strategy, Through, Walk,
};
use wgpu_batchnorm_cli::check::{Case, Data, Gradient, Operation, Random, compare, input};

use crate::{name, on_every_adapter};

const SHAPES: [[usize; 3]; 4] = [[8, 3, 100], [6, 5, 49], [301, 7, 1], [64, 3, 5]];

fn plans(gpu: &Gpu, problem: &Problem) -> Vec<Plan> {
    let plan =
        |walk| Plan::with(problem, gpu.kernels.caps(), &Choices::default().walk(walk)).unwrap();
    vec![plan(Walk::Planar), plan(Walk::Columns)]
}

#[test]
fn a_constant_channel_gives_exactly_the_bias() {
    on_every_adapter(|gpu| {
        for shape in SHAPES {
            for value in [0.0, 0.1, -3.7, 1e-30, 1e4 / 3.0, 1e30] {
                let problem = Problem::new(shape[0], shape[1], shape[2]);
                let x = input(Data::Constant(value), &problem, &mut Random::new(1));
                let (weight, bias) = (
                    Array1::from_elem(shape[1], 1.7),
                    Array1::from_elem(shape[1], 0.3),
                );
                let arrays = Arrays {
                    weight: Some(weight.view()),
                    bias: Some(bias.view()),
                    ..Arrays::new(x.view())
                };
                for plan in plans(gpu, &problem) {
                    let got = gpu.forward_training(&plan, &arrays, None).unwrap();
                    let channel = got.output.index_axis(Axis(1), 0).to_owned();
                    assert!(
                        channel.iter().all(|&y| y == 0.3),
                        "{value} {plan} on {}: {channel}",
                        name(gpu)
                    );
                    assert_eq!(
                        got.saved.mean()[0],
                        f64::from(value),
                        "{plan} on {}",
                        name(gpu)
                    );
                }
            }
        }
    });
}

#[test]
fn nan_and_infinity_stay_in_their_channel() {
    on_every_adapter(|gpu| {
        for shape in SHAPES {
            let problem = Problem::new(shape[0], shape[1], shape[2]);
            let clean = input(Data::Normal(1.0, 2.0), &problem, &mut Random::new(2));
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in [(0, 1, 0), (shape[0] - 1, 1, shape[2] - 1)] {
                    let mut x = clean.clone();
                    x[place] = poison;
                    for plan in plans(gpu, &problem) {
                        let forward = |x: &Array3<f32>| {
                            gpu.forward_training(&plan, &Arrays::new(x.view()), None)
                                .unwrap()
                        };
                        let (got, want) = (forward(&x), forward(&clean));
                        for c in 0..shape[1] {
                            let (got, want) = (
                                got.output.index_axis(Axis(1), c),
                                want.output.index_axis(Axis(1), c),
                            );
                            if c == 1 {
                                assert!(
                                    got.iter().all(|y| y.is_nan()),
                                    "{poison} {plan} on {}: {got}",
                                    name(gpu)
                                );
                            } else {
                                assert_eq!(
                                    got,
                                    want,
                                    "{poison}: channel {c} of {plan} on {}",
                                    name(gpu)
                                );
                            }
                        }
                        let backward = |x: &Array3<f32>| {
                            let saved = forward(x).saved;
                            gpu.backward(
                                &plan,
                                &Arrays::new(x.view()),
                                clean.view(),
                                Through::Saved(&saved),
                            )
                            .unwrap()
                        };
                        let (got, want) = (backward(&x), backward(&clean));
                        for c in [0, 2] {
                            let (got, want) = (
                                got.input.index_axis(Axis(1), c),
                                want.input.index_axis(Axis(1), c),
                            );
                            assert_eq!(
                                got,
                                want,
                                "{poison}: gradient of channel {c} of {plan} on {}",
                                name(gpu)
                            );
                        }
                        assert!(got.weight[1].is_nan(), "{poison} {plan} on {}", name(gpu));
                    }
                }
            }
        }
    });
}

/// σ² + ε of 0, and σ² beyond f32: invstd 0, output β, running variance +∞ in the second case, and never NaN.
#[test]
fn degenerate_variances_are_defined() {
    on_every_adapter(|gpu| {
        for shape in SHAPES {
            let channels = shape[1];
            let running = RunningArrays {
                mean: Array1::zeros(channels),
                variance: Array1::ones(channels),
                batches: 0,
            };
            let bias = Array1::from_elem(channels, 0.25);
            let flat = Problem::new(shape[0], channels, shape[2]).eps(0.0);
            let constant = Array3::from_elem((shape[0], channels, shape[2]), 0.7);
            let huge = Array3::from_shape_fn((shape[0], channels, shape[2]), |(o, _, i)| {
                if (o + i) % 2 == 0 { 1e30 } else { -1e30 }
            });
            for (x, variance) in [(&constant, 0.9), (&huge, f32::INFINITY)] {
                for plan in plans(gpu, &flat) {
                    let arrays = Arrays {
                        bias: Some(bias.view()),
                        ..Arrays::new(x.view())
                    };
                    let got = gpu
                        .forward_training(&plan, &arrays, Some(&running))
                        .unwrap();
                    assert!(
                        got.output.iter().all(|&y| y == 0.25),
                        "{plan} on {}: {}",
                        name(gpu),
                        got.output
                    );
                    assert!(
                        got.saved.invstd().iter().all(|&v| v == 0.0),
                        "{plan} on {}",
                        name(gpu)
                    );
                    let after = got.running.unwrap();
                    assert!(
                        after.variance.iter().all(|&v| v == variance),
                        "{plan} on {}: {after:?}",
                        name(gpu)
                    );
                    let grads = gpu
                        .backward(&plan, &arrays, x.view(), Through::Saved(&got.saved))
                        .unwrap();
                    assert!(
                        grads.input.iter().all(|&v| v == 0.0),
                        "{plan} on {}: {}",
                        name(gpu),
                        grads.input
                    );
                }
            }
        }
    });
}

/// Says that it is done when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A hundred times the same bits, and while another thread keeps the same queue busy with other tensors. That another
/// process has them too is the command line's test.
#[test]
fn bits_repeat_from_run_to_run() {
    on_every_adapter(|gpu| {
        let is_gl = gpu.adapter.get_info().backend == wgpu::Backend::Gl;
        for shape in [[32, 16, 196], [500, 12, 1], [9, 5, 5]] {
            let problem = Problem::new(shape[0], shape[1], shape[2]);
            let x = input(Data::Normal(3.0, 2.0), &problem, &mut Random::new(3));
            let grad = input(Data::Normal(0.0, 1.0), &problem, &mut Random::new(4));
            for plan in plans(gpu, &problem) {
                let run = || {
                    let arrays = Arrays::new(x.view());
                    let forward = gpu.forward_training(&plan, &arrays, None).unwrap();
                    let through = Through::Saved(&forward.saved);
                    let back = gpu.backward(&plan, &arrays, grad.view(), through);
                    (forward, back.unwrap())
                };
                let first = run();
                let repeats = |times: usize, when: &str| {
                    for _ in 0..times {
                        let where_ = name(gpu);
                        assert!(run() == first, "bits differ {when}: {plan} on {where_}");
                    }
                };
                repeats(if is_gl { 10 } else { 100 }, "between runs");
                if is_gl {
                    continue; // wgpu drives GL from one thread at a time
                }
                let done = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let other = Problem::new(64, 32, 100);
                        let x = input(Data::Normal(1.0, 1.0), &other, &mut Random::new(5));
                        let plan = Plan::new(&other, gpu.kernels.caps()).unwrap();
                        while !done.load(Ordering::Relaxed) {
                            gpu.forward_training(&plan, &Arrays::new(x.view()), None)
                                .unwrap();
                        }
                    });
                    // Also where a repetition fails: the scope waits for the other thread.
                    let _stop = Stop(&done);
                    repeats(10, "while others use the queue");
                });
            }
        }
    });
}

/// One lane adds thousands of values of one sign, many of them equal: what rounding loses adds up to many units, and the
/// variance and the weight's gradient still have to be right.
#[test]
fn long_sums_of_equal_values_lose_nothing() {
    on_every_adapter(|gpu| {
        for (dtype, strategy) in [
            (Dtype::F16, Strategy::Split),
            (Dtype::F16, Strategy::Streaming),
            (Dtype::Bf16, Strategy::Streaming),
        ] {
            let choices = Choices::default().strategy(strategy);
            let choices = match strategy {
                Strategy::Split => choices.pieces(1),
                _ => choices,
            };
            let problem = Problem::new(20_000, 8, 1)
                .dtype(dtype)
                .activation(Activation::Relu);
            if Plan::with(&problem, gpu.kernels.caps(), &choices).is_err() {
                continue; // a device with few bindings only splits
            }
            for operation in [Operation::Forward, Operation::Backward] {
                let case = Case {
                    operation,
                    problem: problem.clone(),
                    data: Data::Ramp(1e4),
                    gradient: Gradient::Ones,
                    affine: true,
                    in_place: false,
                    choices: choices.clone(),
                };
                for compared in compare(gpu, &case, 3).unwrap() {
                    assert!(compared.of_bound <= 1.0, "{case}: {}", compared.report());
                }
            }
        }
    });
}
