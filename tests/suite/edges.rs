//! Edges that once gave wrong results: long loops, overflow on the way, values that are not finite, cancellation.

use ndarray::{Array1, Array2, Array3};
use wgpu_batchnorm::reference::{self, Inputs, Running, Statistics};
use wgpu_batchnorm::{
    Activation, Arrays, Backward, BackwardApply, Combine, Dtype, Finalize, Gpu, Plan, Problem,
    RunningArrays, SavedArrays, Through,
};
use wgpu_batchnorm_cli::check::{ACTIVATIONS, Data, Random, input};

use crate::api::{empty, floats, prepared, run, storage};
use crate::{name, on_every_adapter};

fn close<'a>(
    what: &str,
    got: impl IntoIterator<Item = &'a f32>,
    want: impl IntoIterator<Item = &'a f64>,
    bound: f64,
) {
    let (got, want): (Vec<f32>, Vec<f64>) = (
        got.into_iter().copied().collect(),
        want.into_iter().copied().collect(),
    );
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let off = (f64::from(*got) - want).abs();
        assert!(off <= bound * scale, "{what}[{i}]: {got}, wanted {want}");
    }
}

fn plan(gpu: &Gpu, problem: &Problem) -> Plan {
    Plan::new(problem, gpu.kernels.caps()).unwrap()
}

/// A loop of one invocation over a whole mask would end after 65535 steps on llvmpipe, without a word.
#[test]
fn masks_of_many_positions_are_counted() {
    on_every_adapter(|gpu| {
        for (groups, outer, inner) in [(1, 1, 600_000), (2, 300_000, 2)] {
            let problem = Problem::new(outer, 1, inner).groups(groups).with_mask();
            let x = input(Data::Normal(0.5, 2.0), &problem, &mut Random::new(1));
            let dy = x.mapv(|v| 1.0 + v.sin());
            let [rows, columns] = problem.mask_shape();
            let hidden = |o: usize, i: usize| (o * columns + i).is_multiple_of(3);
            let mask =
                Array2::from_shape_fn((rows, columns), |(o, i)| f32::from(u8::from(!hidden(o, i))));
            let arrays = Arrays {
                mask: Some(mask.view()),
                ..Arrays::new(x.view())
            };
            let plan = plan(gpu, &problem);
            let saved = gpu.forward_training(&plan, &arrays, None).unwrap().saved;
            let got = gpu
                .backward(&plan, &arrays, dy.view(), Through::Saved(&saved))
                .unwrap();
            let x64 = x.mapv(f64::from);
            let batch = Statistics::masked(&problem, x64.view(), Some(mask.view())).unwrap();
            let inputs = Inputs {
                mask: Some(mask.view()),
                ..Inputs::new(x64.view())
            };
            let dy = dy.mapv(f64::from);
            let want = reference::backward(&problem, &inputs, &batch, dy.view(), false).unwrap();
            close(&name(gpu), &got.input, &want.input, 2e-6);
        }
    });
}

/// Statistics of very many groups, merged for the running ones and summed for the gradients.
#[test]
fn many_groups_are_merged() {
    on_every_adapter(|gpu| {
        let problem = Problem::new(1, 2, 2).groups(70_000);
        let x = input(Data::Normal(3.0, 2.0), &problem, &mut Random::new(2));
        let dy = input(Data::Normal(0.1, 1.0), &problem, &mut Random::new(3));
        let running = RunningArrays {
            mean: Array1::zeros(2),
            variance: Array1::ones(2),
            batches: 0,
        };
        let (plan, arrays) = (plan(gpu, &problem), Arrays::new(x.view()));
        let got = gpu
            .forward_training(&plan, &arrays, Some(&running))
            .unwrap();
        let x64 = x.mapv(f64::from);
        let batch = Statistics::of(&problem, x64.view()).unwrap();
        let mut want = Running {
            mean: Array1::zeros(2),
            variance: Array1::ones(2),
            batches: 0,
        };
        want.update(&problem, &batch).unwrap();
        let new = got.running.unwrap();
        close("running_mean", &new.mean, &want.mean, 1e-6);
        close("running_var", &new.variance, &want.variance, 1e-6);
        let got = gpu
            .backward(&plan, &arrays, dy.view(), Through::Saved(&got.saved))
            .unwrap();
        let (inputs, dy) = (Inputs::new(x64.view()), dy.mapv(f64::from));
        let want = reference::backward(&problem, &inputs, &batch, dy.view(), false).unwrap();
        close("grad_bias", &got.bias, &want.bias, 2e-6);
        let products: f64 = dy.iter().map(|v| v.abs()).sum(); // |x̂| is about 1
        let bound = (1e-7 * products).max(2e-6 * want.weight[0].abs());
        close("grad_weight", &got.weight, &want.weight, bound);
    });
}

/// The sum of squares may leave f32 where the variance does not.
#[test]
fn the_variance_is_known_wherever_f32_holds_it() {
    on_every_adapter(|gpu| {
        for shape in [[64, 3, 100], [6, 5, 49], [4096, 4, 1]] {
            for (std, running) in [(1e18, 1e-36), (4e18, 0.0), (1e-13, 1.0), (1e-16, 1.0)] {
                let problem = Problem::new(shape[0], shape[1], shape[2]).eps(0.0);
                let x = input(Data::Normal(0.0, std), &problem, &mut Random::new(4));
                let plan = plan(gpu, &problem);
                let got = gpu
                    .forward_training(&plan, &Arrays::new(x.view()), None)
                    .unwrap();
                let x64 = x.mapv(f64::from);
                let batch = Statistics::of(&problem, x64.view()).unwrap();
                let inputs = Inputs::new(x64.view());
                let want = reference::forward(&problem, &inputs, &batch).unwrap();
                let what = format!("{shape:?}, std {std:e} (near {running:e}), {}", name(gpu));
                close(&what, &got.output, &want, 1e-6);
            }
        }
    });
}

/// On four storage buffers too, the half of an odd tensor's last word that is not the tensor's stays as it was.
#[test]
fn half_a_word_stays_on_four_buffers() {
    on_every_adapter(|gpu| {
        let limits = wgpu::Limits::downlevel_defaults();
        let small = Gpu::with_limits(gpu.adapter.clone(), limits).unwrap();
        let problem = Problem::new(5, 1, 1).dtype(Dtype::F16).with_mask();
        let step = prepared(&small, &problem);
        let words = [0x3c00_3800u32, 0x4000_4200, 0x0000_4400].map(f32::from_bits);
        let (x, dy) = (storage(&small, &words), storage(&small, &words));
        let mask = storage(&small, &[1.0, 1.0, 0.0, 1.0, 1.0]);
        let fill = f32::from_bits(0xabcd_ef01);
        let (y, dx) = (storage(&small, &[fill; 4]), storage(&small, &[fill; 4]));
        let saved = empty(&small, 4);
        let forward = wgpu_batchnorm::ForwardTraining::new(&x, &y)
            .mask(&mask)
            .saved(&saved);
        let backward = Backward::new(&x, &saved, &dy, &dx).mask(&mask);
        run(
            &small,
            &[
                &step.bind_forward_training(&forward).unwrap(),
                &step.bind_backward(&backward).unwrap(),
            ],
        );
        for buffer in [&y, &dx] {
            let got = crate::api::words(&small, buffer);
            assert_eq!((got[2] >> 16, got[3]), (0xabcd, 0xabcd_ef01));
            assert!(got[0] != 0xabcd_ef01 && got[2] & 0xffff != 0xef01);
        }
    });
}

/// A moment record of the parts has M2 itself, in no unit of the kernels'.
#[test]
fn moments_are_in_the_unit_that_they_are_documented_in() {
    on_every_adapter(|gpu| {
        let problem = Problem::new(2, 1, 2);
        let step = prepared(gpu, &problem);
        let (x, moments) = (storage(gpu, &[1.0, 3.0, 5.0, 7.0]), empty(gpu, 4));
        let reduce = wgpu_batchnorm::Reduce::new(&x, &moments);
        run(gpu, &[&step.bind_reduce(&reduce).unwrap()]);
        let got = floats(gpu, &moments);
        assert_eq!((got[0], got[1] + got[2], got[3]), (4.0, 4.0, 20.0));
    });
}

/// Where the statistics are frozen, the gradient of the input does not depend on the input's value.
#[test]
fn frozen_gradients_do_not_see_the_input() {
    on_every_adapter(|gpu| {
        for shape in [[2, 2, 64], [2, 3, 7], [40, 6, 1]] {
            let problem = Problem::new(shape[0], shape[1], shape[2]);
            let mut x = input(Data::Normal(0.0, 1.0), &problem, &mut Random::new(5));
            let dy = input(Data::Normal(0.0, 1.0), &problem, &mut Random::new(6));
            let running = RunningArrays {
                mean: Array1::zeros(shape[1]),
                variance: Array1::from_elem(shape[1], 3.0),
                batches: 1,
            };
            let plan = plan(gpu, &problem);
            let mut gradient = |poison: f32| {
                x[[1, 1, 0]] = poison;
                let through = Through::Running(&running);
                gpu.backward(&plan, &Arrays::new(x.view()), dy.view(), through)
                    .unwrap()
                    .input
            };
            let clean = gradient(0.0);
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(gradient(poison), clean, "{poison} on {}", name(gpu));
            }
        }
    });
}

/// Every activation, forward and backward, on values that are not finite or beyond what `exp` takes, as the formulas
/// have them: NaN where they give NaN.
#[test]
fn activations_at_the_ends_of_the_line() {
    let ends = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        87.0,
        89.0,
        200.0,
        1e30,
        -87.0,
        -89.0,
        -200.0,
        -1e30,
        1e-20,
        -1e-20,
        -f32::NAN,
    ];
    on_every_adapter(|gpu| {
        // Planar, columns and flat second passes.
        for shape in [[1, 1, 16], [16, 1, 1], [1, 3, 7]] {
            for activation in ACTIVATIONS {
                let problem = Problem::new(shape[0], shape[1], shape[2])
                    .activation(activation)
                    .eps(0.0);
                let x = Array3::from_shape_vec(
                    shape,
                    ends.iter()
                        .cycle()
                        .take(shape.iter().product())
                        .copied()
                        .collect(),
                )
                .unwrap();
                // Mean 0 and variance 1: z is x.
                let running = RunningArrays {
                    mean: Array1::zeros(shape[1]),
                    variance: Array1::ones(shape[1]),
                    batches: 1,
                };
                let (plan, arrays) = (plan(gpu, &problem), Arrays::new(x.view()));
                let y = gpu.inference(&plan, &arrays, &running).unwrap();
                let dy = Array3::from_elem(shape, 2.0);
                let through = Through::Running(&running);
                let dx = gpu.backward(&plan, &arrays, dy.view(), through).unwrap();
                for ((x, y), dx) in x.iter().zip(&y).zip(&dx.input) {
                    let z = f64::from(*x);
                    let both = [
                        ("y", *y, reference::activate(activation, z)),
                        (
                            "dx",
                            *dx,
                            2.0 * reference::activation_derivative(activation, z),
                        ),
                    ];
                    for (what, got, want) in both {
                        let got = f64::from(got);
                        let same = got == want
                            || got.is_nan() && want.is_nan()
                            || (got - want).abs() <= 3e-6 * want.abs().max(1.0);
                        assert!(
                            same,
                            "{activation} at {x}: {what} is {got}, wanted {want}, on {}",
                            name(gpu)
                        );
                    }
                }
            }
        }
    });
}

/// 10⁸ + 1 − 10⁸ is 1 in every merge.
#[test]
fn merges_keep_what_rounding_drops() {
    on_every_adapter(|gpu| {
        let step = prepared(gpu, &Problem::new(2, 1, 2));
        let moments = empty(gpu, 4);
        // Three sets of four equal values each, in an order in which a plain f32 sum loses the middle one.
        let sets: Vec<f32> = [1e8, 1.0, -1e8]
            .into_iter()
            .flat_map(|mean| [4.0, mean, 0.0, 0.0])
            .collect();
        let parts = storage(gpu, &sets);
        run(
            gpu,
            &[&step
                .bind_combine(&Combine::new(&parts, 3, &moments))
                .unwrap()],
        );
        let got = floats(gpu, &moments);
        assert_eq!(got[0], 12.0);
        let mean = f64::from(got[1]) + f64::from(got[2]);
        assert!(
            (mean - 1.0 / 3.0).abs() < 1e-7,
            "mean {mean} on {}",
            name(gpu)
        );

        // One set whose mean is a pair that cancels.
        let pair = storage(gpu, &[4.0, 1e8, -99_999_999.75, 0.0]);
        let (coefficients, saved) = (empty(gpu, 4), empty(gpu, 4));
        let finalize = Finalize::new(&pair, &coefficients).saved(&saved);
        run(gpu, &[&step.bind_finalize(&finalize).unwrap()]);
        let saved = floats(gpu, &saved);
        // The pair itself has -99999999.75 rounded to f32, -10⁸.
        let mean: f64 = saved[..3].iter().map(|v| f64::from(*v)).sum();
        assert_eq!(mean, 1e8 + f64::from(-99_999_999.75f32), "on {}", name(gpu));

        // Gradients of three groups.
        let problem = Problem::new(1, 1, 4).groups(3);
        let x = Array3::from_shape_fn((3, 1, 4), |(g, _, i)| (g + i) as f32);
        let dy = Array3::from_shape_fn((3, 1, 4), |(g, _, _)| [2.5e7, 0.25, -2.5e7][g]);
        let plan = plan(gpu, &problem);
        let arrays = Arrays::new(x.view());
        let saved = gpu.forward_training(&plan, &arrays, None).unwrap().saved;
        let got = gpu
            .backward(&plan, &arrays, dy.view(), Through::Saved(&saved))
            .unwrap();
        assert_eq!(got.bias[0], 1.0, "on {}", name(gpu));
    });
}

/// A negative running variance is nobody's variance: NaN, as the formula has it, and not the bias.
#[test]
fn a_negative_variance_is_not_hidden() {
    on_every_adapter(|gpu| {
        let problem = Problem::new(2, 1, 4).activation(Activation::None);
        let x = input(Data::Normal(0.0, 1.0), &problem, &mut Random::new(7));
        let running = RunningArrays {
            mean: Array1::zeros(1),
            variance: Array1::from_elem(1, -1.0),
            batches: 1,
        };
        let got = gpu
            .inference(&plan(gpu, &problem), &Arrays::new(x.view()), &running)
            .unwrap();
        assert!(got.iter().all(|y| y.is_nan()), "{got} on {}", name(gpu));
    });
}

/// Arrays of wrong lengths are errors on the host too.
#[test]
fn host_helpers_check_lengths() {
    let problem = Problem::new(2, 3, 4);
    let (three, two) = (Array1::<f64>::ones(3), Array1::<f64>::ones(2));
    assert!(Statistics::given(&problem, two.clone(), three.clone()).is_err());
    assert!(Statistics::given(&problem, three.clone(), two.clone()).is_err());
    let given = Statistics::given(&problem, three.clone(), three.clone()).unwrap();
    let mut short = Running {
        mean: two.clone(),
        variance: three.clone(),
        batches: 0,
    };
    assert!(short.update(&problem, &given).is_err());
    let x = Array3::zeros((2, 3, 4));
    let wrong = Statistics {
        invstd: two.clone(),
        ..given
    };
    assert!(reference::forward(&problem, &Inputs::new(x.view()), &wrong).is_err());
    assert!(
        reference::backward(&problem, &Inputs::new(x.view()), &wrong, x.view(), false).is_err()
    );
    let (three, two) = (Array1::<f32>::ones(3), Array1::<f32>::ones(2));
    assert!(SavedArrays::new(three.view(), None, two.view()).is_err());
    assert!(SavedArrays::new(three.view(), Some(two.view()), three.view()).is_err());
    assert!(SavedArrays::from_rows(Array2::zeros((3, 3))).is_err());
    assert!(SavedArrays::new(three.view(), None, three.view()).is_ok());
}

/// Sums of gradients given by the caller, of which most cancel.
#[test]
fn sums_given_apart_cancel_exactly() {
    on_every_adapter(|gpu| {
        let problem = Problem::new(2, 1, 4);
        let step = prepared(gpu, &problem);
        let host: Vec<f32> = (0..8).map(|i| 1000.0 + i as f32).collect();
        let (x, dy, dx) = (storage(gpu, &host), storage(gpu, &[1.0; 8]), empty(gpu, 8));
        let (y, saved, sums) = (empty(gpu, 8), empty(gpu, 4), empty(gpu, 4));
        let grads = empty(gpu, 2);
        let forward = wgpu_batchnorm::ForwardTraining::new(&x, &y).saved(&saved);
        let reduce = wgpu_batchnorm::BackwardReduce::new(&x, &saved, &dy, &sums);
        let backward = Backward::new(&x, &saved, &dy, &dx).grad_affine_packed(&grads);
        run(
            gpu,
            &[
                &step.bind_forward_training(&forward).unwrap(),
                &step.bind_backward_reduce(&reduce).unwrap(),
                &step
                    .bind_backward_apply(&BackwardApply::new(backward, &sums))
                    .unwrap(),
            ],
        );
        // Σx̂ is 0, and so is the gradient of a loss that all values share.
        let got = floats(gpu, &grads);
        assert!(got[0].abs() < 1e-6 && got[1] == 8.0, "{got:?}");
        assert!(floats(gpu, &dx).iter().all(|v| v.abs() < 1e-6));
    });
}
