//! Properties that the literature states, in every storage type, on every adapter.
//!
//! Ioffe and Szegedy 2015, section 3.3: BN(a·x) = BN(x), and the gradient of a weight scaled by a is 1/a as large; section
//! 3.2: a bias before batch norm changes nothing; section 3: weight = σ and bias = μ recover the input.

use ndarray::{Array1, Array3};
use wgpu_batchnorm::{Activation, Arrays, Dtype, Gpu, Plan, Problem, RunningArrays, Through};
use wgpu_batchnorm_cli::check::{Data, Random, input, stored};

use crate::{name, on_every_adapter};

const SHAPES: [[usize; 3]; 3] = [[8, 6, 49], [300, 5, 1], [4, 8, 64]];

fn plan(gpu: &Gpu, problem: &Problem) -> Plan {
    Plan::new(problem, gpu.kernels.caps()).unwrap()
}

/// What a storage type loses, relative to the largest value.
fn unit(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => 1e-6,
        Dtype::F16 => 1e-3,
        Dtype::Bf16 => 5e-3,
    }
}

fn close(what: &str, a: &Array3<f32>, b: &Array3<f32>, bound: f32) {
    let scale = b.iter().fold(1.0, |m: f32, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= bound * scale, "{what}[{i}]: {a} and {b}");
    }
}

fn for_each_case(test: impl Fn(&Gpu, &Problem, &Array3<f32>, &Array3<f32>)) {
    on_every_adapter(|gpu| {
        for shape in SHAPES {
            for dtype in Dtype::ALL {
                let problem = Problem::new(shape[0], shape[1], shape[2])
                    .dtype(dtype)
                    .eps(0.0);
                let as_stored = |a: Array3<f32>| a.mapv(|v| stored(dtype, v));
                let x = as_stored(input(Data::Normal(0.5, 2.0), &problem, &mut Random::new(1)));
                let g = as_stored(input(Data::Normal(0.0, 1.0), &problem, &mut Random::new(2)));
                test(gpu, &problem, &x, &g);
            }
        }
    });
}

/// BN(a·x) = BN(x) with ε = 0: to the bit where a is a power of two.
#[test]
fn the_scale_of_the_input_does_not_matter() {
    for_each_case(|gpu, problem, x, _| {
        let plan = plan(gpu, problem);
        let run = |x: &Array3<f32>| {
            gpu.forward_training(&plan, &Arrays::new(x.view()), None)
                .unwrap()
                .output
        };
        let (one, four) = (run(x), run(&x.mapv(|v| 4.0 * v)));
        assert_eq!(one, four, "{plan} on {}", name(gpu));
        if problem.dtype == Dtype::F32 {
            close("BN(3x)", &run(&x.mapv(|v| 3.0 * v)), &one, 1e-6);
        }
    });
}

/// The gradient by x of BN(a·x) is that of BN(x) over a.
#[test]
fn gradients_shrink_with_the_scale() {
    for_each_case(|gpu, problem, x, g| {
        let plan = plan(gpu, problem);
        let run = |x: &Array3<f32>| {
            let arrays = Arrays::new(x.view());
            let saved = gpu.forward_training(&plan, &arrays, None).unwrap().saved;
            gpu.backward(&plan, &arrays, g.view(), Through::Saved(&saved))
                .unwrap()
        };
        let (one, four) = (run(x), run(&x.mapv(|v| 4.0 * v)));
        assert_eq!(one.weight, four.weight);
        assert_eq!(one.bias, four.bias);
        // f16 has fewer digits below 2⁻¹⁴.
        let bound = if problem.dtype == Dtype::F16 {
            1e-6
        } else {
            0.0
        };
        close("dx", &four.input.mapv(|v| 4.0 * v), &one.input, bound);
    });
}

/// Adding b to every input changes no output; the gradient that b gets, Σdx, is 0.
#[test]
fn a_bias_before_batch_norm_does_nothing() {
    for_each_case(|gpu, problem, x, g| {
        let plan = plan(gpu, problem);
        let run = |x: &Array3<f32>| {
            gpu.forward_training(&plan, &Arrays::new(x.view()), None)
                .unwrap()
        };
        // 16-bit sums with b would be rounded: multiples of 1/8 stay exact in f16 and bf16.
        let coarse = x.mapv(|v| (v.clamp(-4.0, 4.0) * 8.0).round() / 8.0);
        let moved = coarse.mapv(|v| v + 4.0);
        let bound = unit(problem.dtype);
        close(
            "BN(x + b)",
            &run(&moved).output,
            &run(&coarse).output,
            bound,
        );
        let arrays = Arrays::new(x.view());
        let saved = run(x).saved;
        let dx = gpu
            .backward(&plan, &arrays, g.view(), Through::Saved(&saved))
            .unwrap()
            .input;
        for (c, dx) in dx.axis_iter(ndarray::Axis(1)).enumerate() {
            let sum: f64 = dx.iter().map(|&v| f64::from(v)).sum();
            let size: f64 = dx.iter().map(|&v| f64::from(v.abs())).sum();
            assert!(
                sum.abs() <= f64::from(bound) * size,
                "channel {c}: Σdx = {sum:e}, Σ|dx| = {size:e}"
            );
        }
    });
}

/// γ = σ and β = μ undo the normalisation.
#[test]
fn the_identity_can_be_learnt() {
    for_each_case(|gpu, problem, x, _| {
        let plan = plan(gpu, problem);
        let first = gpu
            .forward_training(&plan, &Arrays::new(x.view()), None)
            .unwrap();
        let weight = first.saved.invstd().mapv(|v| 1.0 / v);
        let bias = first.saved.mean().mapv(|v| v as f32);
        let arrays = Arrays {
            weight: Some(weight.view()),
            bias: Some(bias.view()),
            ..Arrays::new(x.view())
        };
        let back = gpu.forward_training(&plan, &arrays, None).unwrap().output;
        close("x", &back, x, unit(problem.dtype));
    });
}

/// Instance norm is batch norm of one sample a group; layer by layer the same bits as N calls of one sample each.
#[test]
fn groups_are_calls_of_their_own() {
    on_every_adapter(|gpu| {
        for (shape, groups) in [
            ([6, 5, 49], 6),
            ([6, 4, 16], 3),
            ([12, 3, 7], 2),
            ([40, 5, 1], 4),
        ] {
            for activation in [Activation::None, Activation::Silu] {
                let outer = shape[0] / groups;
                let one = Problem::new(outer, shape[1], shape[2]).activation(activation);
                let all = one.clone().groups(groups);
                let x = input(Data::Normal(3.0, 2.0), &all, &mut Random::new(3));
                let g = input(Data::Normal(0.0, 1.0), &all, &mut Random::new(4));
                let running = RunningArrays {
                    mean: Array1::zeros(shape[1]),
                    variance: Array1::ones(shape[1]),
                    batches: 0,
                };
                let all_plan = plan(gpu, &all);
                let arrays = Arrays::new(x.view());
                let got = gpu
                    .forward_training(&all_plan, &arrays, Some(&running))
                    .unwrap();
                let through = Through::Saved(&got.saved);
                let grads = gpu.backward(&all_plan, &arrays, g.view(), through).unwrap();
                let (mut weight, mut bias) = (
                    Array1::<f64>::zeros(shape[1]),
                    Array1::<f64>::zeros(shape[1]),
                );
                for group in 0..groups {
                    let rows = ndarray::s![group * outer..(group + 1) * outer, .., ..];
                    let (x, g) = (x.slice(rows), g.slice(rows));
                    let one_plan = plan(gpu, &one);
                    let arrays = Arrays::new(x);
                    let alone = gpu.forward_training(&one_plan, &arrays, None).unwrap();
                    let part = got.output.slice(rows).to_owned();
                    close("output", &part, &alone.output, 1e-6);
                    let through = Through::Saved(&alone.saved);
                    let alone = gpu.backward(&one_plan, &arrays, g, through).unwrap();
                    let part = grads.input.slice(rows).to_owned();
                    close("grad_input", &part, &alone.input, 2e-6);
                    weight += &alone.weight.mapv(f64::from);
                    bias += &alone.bias.mapv(f64::from);
                }
                for c in 0..shape[1] {
                    let near = |a: f32, b: f64| (f64::from(a) - b).abs() <= 4e-6 * b.abs().max(1.0);
                    assert!(near(grads.weight[c], weight[c]) && near(grads.bias[c], bias[c]));
                }
                // The running statistics are those of the whole batch.
                let whole = Problem::new(shape[0], shape[1], shape[2]);
                let whole = gpu
                    .forward_training(&plan(gpu, &whole), &Arrays::new(x.view()), Some(&running))
                    .unwrap();
                let (got, want) = (got.running.unwrap(), whole.running.unwrap());
                for c in 0..shape[1] {
                    assert!((got.mean[c] - want.mean[c]).abs() <= 1e-6, "{shape:?}");
                    assert!(
                        (got.variance[c] - want.variance[c]).abs() <= 2e-6,
                        "{shape:?}"
                    );
                }
                assert_eq!(got.batches, 1);
            }
        }
    });
}
