//! Storage: what a kernel reads from and writes to its words, bit by bit; in place, pooled, accumulated, masked.

use ndarray::{Array1, Array2};
use wgpu_batchnorm::{
    Activation, Arrays, Backward, Batch, BatchNorm, BufferRange, Choices, Dtype, ForwardTraining,
    Gpu, Inference, Normalize, Plan, Prepared, Problem, RunningArrays, Strategy, Through, Walk,
};
use wgpu_batchnorm_cli::check::{Data, Random, input, stored};

use crate::api::{empty, floats, run, storage, words};
use crate::{name, on_every_adapter};

fn prepared(gpu: &Gpu, problem: &Problem, choices: &Choices) -> Prepared {
    let plan = Plan::with(problem, gpu.kernels.caps(), choices).unwrap();
    gpu.kernels.prepare(&plan).unwrap()
}

/// Two 16-bit codes to a word, as memory has them.
fn packed(codes: &[u16]) -> Vec<f32> {
    codes
        .chunks(2)
        .map(|c| f32::from_bits(u32::from(c[0]) | u32::from(c.get(1).copied().unwrap_or(0)) << 16))
        .collect()
}

fn codes(words: &[u32]) -> Vec<u16> {
    words
        .iter()
        .flat_map(|w| [*w as u16, (*w >> 16) as u16])
        .collect()
}

/// All 65536 codes through `y = x·w`, with weights that reach every rounding: to the bit what IEEE 754 says.
#[test]
fn conversions_round_as_ieee_says() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let weights = [
        1.0,
        1.0 + 2f32.powi(-11), // ties of f16
        1.0 + 2f32.powi(-8),  // ties of bf16
        2f32.powi(-10),       // into f16's denormals
        0.75 * 2f32.powi(-12),
        1.0 / 3.0,
        2.0, // into infinity
        -1.9999,
    ];
    on_every_adapter(|gpu| {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let decode = |code: u16| match dtype {
                Dtype::F16 => half::f16::from_bits(code).to_f32(),
                _ => half::bf16::from_bits(code).to_f32(),
            };
            let encode = |v: f32| match dtype {
                Dtype::F16 => half::f16::from_f32(v).to_bits(),
                _ => half::bf16::from_f32(v).to_bits(),
            };
            let problem = Problem::new(1, 1, 1 << 16).dtype(dtype);
            let step = prepared(gpu, &problem, &Choices::default());
            let x = storage(gpu, &packed(&all));
            let y = empty(gpu, 1 << 15);
            for w in weights {
                let coefficients = storage(gpu, &[0.0, w, 0.0, 0.0]);
                let args = Normalize::new(&x, &coefficients, &y);
                run(gpu, &[&step.bind_normalize(&args).unwrap()]);
                for (&code, got) in all.iter().zip(codes(&words(gpu, &y))) {
                    let (value, wanted) = (decode(code), encode(decode(code) * w));
                    if value.is_nan() {
                        assert!(decode(got).is_nan(), "{dtype}: {code:04x} gave {got:04x}");
                        continue;
                    }
                    // f32 denormals, a bf16's on either side, may be flushed.
                    let flushed =
                        value.abs() < f32::MIN_POSITIVE || (value * w).abs() < f32::MIN_POSITIVE;
                    let zero = got & 0x7fff == 0;
                    // The sign of a zero: (x - 0)·w + 0 turns -0 into 0.
                    let same = got == wanted || (zero && wanted & 0x7fff == 0);
                    assert!(
                        same || (flushed && zero),
                        "{dtype}: {value:e} · {w} gave {got:04x}, wanted {wanted:04x}, on {}",
                        name(gpu)
                    );
                }
            }
        }
    });
}

/// A tensor's last word, and what lies behind it, whatever the number of elements: every element is written, nothing else
/// is, and with any cut into workgroups the bits are the same. Two writers of one word would lose one's half.
#[test]
fn each_word_has_one_writer() {
    on_every_adapter(|gpu| {
        for dtype in Dtype::ALL {
            // 4-byte words, 16-byte vectors and tails of 1 to 3 elements; rows at every alignment.
            for shape in [
                [1, 1, 2],
                [3, 3, 7],
                [5, 1, 1],
                [7, 5, 3],
                [5, 7, 49],
                [33, 19, 1],
                [4, 8, 64],
                [3, 2, 1001],
            ] {
                let problem = Problem::new(shape[0], shape[1], shape[2])
                    .dtype(dtype)
                    .with_residual()
                    .activation(Activation::LeakyRelu(0.5));
                let n = problem.elements() as usize;
                let per_word = (4 / dtype.bytes()) as usize;
                let tensor = |seed| {
                    let values = input(Data::Normal(0.0, 1.0), &problem, &mut Random::new(seed));
                    let values: Vec<f32> = values.iter().map(|&v| stored(dtype, v)).collect();
                    match dtype {
                        Dtype::F32 => values,
                        Dtype::F16 => packed(
                            &values
                                .iter()
                                .map(|&v| half::f16::from_f32(v).to_bits())
                                .collect::<Vec<_>>(),
                        ),
                        Dtype::Bf16 => packed(
                            &values
                                .iter()
                                .map(|&v| half::bf16::from_f32(v).to_bits())
                                .collect::<Vec<_>>(),
                        ),
                    }
                };
                let (x, r, g) = (tensor(1), tensor(2), tensor(3));
                let (x, r, g) = (storage(gpu, &x), storage(gpu, &r), storage(gpu, &g));
                // Filled with a pattern, and longer than the tensor.
                let fill = f32::from_bits(0xabcd_ef01);
                let guarded = || storage(gpu, &vec![fill; n.div_ceil(per_word) + 5]);
                let saved = empty(gpu, 4 * shape[1]);
                // The flat second pass however it is cut; then that of each walk.
                let flat = [(64, 1000), (1, 1000), (2, 1000), (8, 3), (32, 1)];
                let split = Choices::default().strategy(Strategy::Split);
                let planar = split.clone().walk(Walk::Planar);
                let cuts = flat.map(|(lanes, workgroups)| {
                    let flat = planar.clone().flat_workgroup(lanes);
                    flat.flat_workgroups(workgroups)
                });
                let mut first: Option<Vec<Vec<u32>>> = None;
                let columns = split.walk(Walk::Columns);
                let mut all: Vec<Choices> = cuts.into();
                all.extend([planar.clone(), columns]);
                // And whole passes, where they can be.
                for strategy in [Strategy::Streaming, Strategy::Resident] {
                    for walk in [Walk::Planar, Walk::Columns] {
                        let fused = Choices::default().strategy(strategy).walk(walk);
                        if Plan::with(&problem, gpu.kernels.caps(), &fused).is_ok() {
                            all.push(fused);
                        }
                    }
                }
                for choices in all {
                    let step = prepared(gpu, &problem, &choices);
                    let (y, dx, dr) = (guarded(), guarded(), guarded());
                    let forward = ForwardTraining::new(&x, &y).residual(&r).saved(&saved);
                    let backward = Backward::new(&x, &saved, &g, &dx)
                        .residual(&r)
                        .grad_residual(&dr);
                    run(
                        gpu,
                        &[
                            &step.bind_forward_training(&forward).unwrap(),
                            &step.bind_backward(&backward).unwrap(),
                        ],
                    );
                    let got = vec![words(gpu, &y), words(gpu, &dx), words(gpu, &dr)];
                    for words in &got {
                        let (tensor, behind) = words.split_at(n.div_ceil(per_word));
                        assert!(
                            behind.iter().all(|w| *w == fill.to_bits()),
                            "{shape:?} {dtype}: wrote behind the tensor on {}",
                            name(gpu)
                        );
                        if per_word == 2 && n % 2 == 1 {
                            let last = tensor.last().unwrap();
                            assert_eq!(last >> 16, 0xabcd, "{shape:?} {dtype}: half a word");
                        }
                        // The pattern is no plausible result: it is gone everywhere else.
                        let left = tensor.iter().filter(|w| **w == fill.to_bits()).count();
                        assert_eq!(left, 0, "{shape:?} {dtype}: words were not written");
                    }
                    if choices.walk == Some(Walk::Columns)
                        || choices.strategy != Some(Strategy::Split)
                    {
                        continue; // sums in another order
                    }
                    let first = first.get_or_insert_with(|| got.clone());
                    assert_eq!(*first, got, "{shape:?} {dtype}, {choices:?}");
                }
            }
        }
    });
}

/// In place gives the bits that it gives apart.
#[test]
fn in_place_gives_the_same_bits() {
    on_every_adapter(|gpu| {
        for dtype in Dtype::ALL {
            for shape in [[6, 5, 49], [50, 13, 1], [4, 8, 64], [3, 3, 7]] {
                let problem = Problem::new(shape[0], shape[1], shape[2])
                    .dtype(dtype)
                    .activation(Activation::Gelu);
                // In place is split, whatever the strategy.
                let split = Choices::default().strategy(Strategy::Split);
                let plan = Plan::with(&problem, gpu.kernels.caps(), &split).unwrap();
                let x = input(Data::Normal(1.0, 2.0), &problem, &mut Random::new(5));
                let g = input(Data::Normal(0.0, 1.0), &problem, &mut Random::new(6));
                let running = RunningArrays {
                    mean: Array1::ones(shape[1]),
                    variance: Array1::from_elem(shape[1], 3.0),
                    batches: 1,
                };
                let apart = Arrays::new(x.view());
                let in_place = Arrays {
                    in_place: true,
                    ..apart
                };
                let forward = |a| gpu.forward_training(&plan, a, Some(&running)).unwrap();
                assert_eq!(forward(&apart), forward(&in_place));
                let inference = |a| gpu.inference(&plan, a, &running).unwrap();
                assert_eq!(inference(&apart), inference(&in_place));
                let saved = forward(&apart).saved;
                for through in [Through::Saved(&saved), Through::Running(&running)] {
                    let backward = |a| gpu.backward(&plan, a, g.view(), through).unwrap();
                    assert_eq!(backward(&apart), backward(&in_place));
                }
            }
        }
    });
}

/// All arguments in disjoint ranges of one buffer, as a pooled allocator has them, in place among them.
#[test]
fn one_pool_holds_everything() {
    on_every_adapter(|gpu| {
        for dtype in Dtype::ALL {
            for shape in [[6, 5, 49], [7, 3, 5], [24, 8, 1]] {
                let problem = Problem::new(shape[0], shape[1], shape[2])
                    .dtype(dtype)
                    .with_residual()
                    .with_mask()
                    .activation(Activation::Silu);
                let step = prepared(gpu, &problem, &Choices::default());
                let mut random = Random::new(7);
                let sizes = [
                    ("input", problem.bytes()),
                    ("residual", problem.bytes()),
                    ("output", problem.bytes()),
                    ("grad_output", problem.bytes()),
                    ("grad_input", problem.bytes()),
                    ("grad_residual", problem.bytes()),
                    ("mask", 4 * (shape[0] * shape[2]) as u64),
                    ("affine", 8 * shape[1] as u64),
                    ("running", 12 * shape[1] as u64),
                    ("saved", 16 * shape[1] as u64),
                    ("grad_affine", 8 * shape[1] as u64),
                ];
                // The ranges of the pool, and the same content in buffers of their own.
                let mut pool_words: Vec<f32> = Vec::new();
                let mut apart = Vec::new();
                let mut offsets = Vec::new();
                for (what, bytes) in sizes {
                    let n = (bytes / 4) as usize;
                    let mut value = || match (what, dtype) {
                        ("mask", _) => f32::from(u8::from(random.uniform() < 0.7)),
                        ("affine" | "running", _) | (_, Dtype::F32) => 0.5 + random.uniform(),
                        _ => {
                            let halves = [random.normal(), random.normal()].map(|v| match dtype {
                                Dtype::F16 => half::f16::from_f32(v).to_bits(),
                                _ => half::bf16::from_f32(v).to_bits(),
                            });
                            packed(&halves)[0]
                        }
                    };
                    let values: Vec<f32> = (0..n).map(|_| value()).collect();
                    pool_words.resize(pool_words.len().next_multiple_of(64), 0.0);
                    offsets.push((what, 4 * pool_words.len() as u64));
                    pool_words.extend(&values);
                    apart.push((what, storage(gpu, &values)));
                }
                let pool = storage(gpu, &pool_words);
                let in_pool = |what: &str| {
                    let (_, offset) = offsets.iter().find(|(w, _)| *w == what).unwrap();
                    BufferRange::new(&pool, *offset)
                };
                let alone = |what: &str| {
                    BufferRange::from(&apart.iter().find(|(w, _)| *w == what).unwrap().1)
                };
                fn operations<'a>(
                    step: &Prepared,
                    at: &dyn Fn(&str) -> BufferRange<'a>,
                ) -> [wgpu_batchnorm::Operation; 4] {
                    let running = wgpu_batchnorm::Running::packed(at("running"));
                    [
                        step.bind_forward_training(
                            &ForwardTraining::new(at("input"), at("output"))
                                .residual(at("residual"))
                                .mask(at("mask"))
                                .affine_packed(at("affine"))
                                .running(running)
                                .saved(at("saved")),
                        )
                        .unwrap(),
                        step.bind_backward(
                            &Backward::new(
                                at("input"),
                                at("saved"),
                                at("grad_output"),
                                at("grad_input"),
                            )
                            .residual(at("residual"))
                            .mask(at("mask"))
                            .affine_packed(at("affine"))
                            .grad_affine_packed(at("grad_affine"))
                            .grad_residual(at("grad_residual")),
                        )
                        .unwrap(),
                        // In place, in the pool.
                        step.bind_backward(
                            &Backward::frozen(
                                at("input"),
                                running,
                                at("grad_output"),
                                at("grad_output"),
                            )
                            .residual(at("residual"))
                            .affine_packed(at("affine"))
                            .grad_residual(at("grad_residual")),
                        )
                        .unwrap(),
                        step.bind_inference(
                            &Inference::new(at("input"), at("input"), running)
                                .residual(at("residual"))
                                .affine_packed(at("affine")),
                        )
                        .unwrap(),
                    ]
                }
                run(gpu, &operations(&step, &in_pool).each_ref());
                run(gpu, &operations(&step, &alone).each_ref());
                let pooled = words(gpu, &pool);
                for ((what, buffer), (_, offset)) in apart.iter().zip(&offsets) {
                    let want = words(gpu, buffer);
                    let start = (*offset / 4) as usize;
                    let got = &pooled[start..start + want.len()];
                    assert_eq!(got, want, "{what}, {shape:?} {dtype} on {}", name(gpu));
                }
            }
        }
    });
}

/// Parameter gradients are overwritten, or added to what is there: packed, apart, alone, in groups.
#[test]
fn parameter_gradients_overwrite_or_accumulate() {
    on_every_adapter(|gpu| {
        for groups in [1, 2] {
            let problem = Problem::new(4, 3, 16).groups(groups);
            let step = prepared(gpu, &problem, &Choices::default());
            let shaped = |seed| {
                let values = input(Data::Normal(1.0, 2.0), &problem, &mut Random::new(seed));
                storage(gpu, values.as_slice().unwrap())
            };
            let (x, g) = (shaped(8), shaped(9));
            let n = problem.elements() as usize;
            let (y, dx) = (empty(gpu, n), empty(gpu, n));
            let saved = empty(gpu, 4 * problem.statistics());
            let forward = ForwardTraining::new(&x, &y).saved(&saved);
            run(gpu, &[&step.bind_forward_training(&forward).unwrap()]);
            let backward = || Backward::new(&x, &saved, &g, &dx);
            let start = [1.0f32, 2.0, 3.0, -4.0, -5.0, -6.0];
            let after = |args: Backward<'_>, buffers: &[&wgpu::Buffer]| {
                run(gpu, &[&step.bind_backward(&args).unwrap()]);
                buffers
                    .iter()
                    .flat_map(|b| floats(gpu, b))
                    .collect::<Vec<_>>()
            };
            let both = storage(gpu, &start);
            let grads = after(backward().grad_affine_packed(&both), &[&both]);
            assert!(grads.iter().all(|v| v.is_finite() && *v != 0.0));
            let sums: Vec<f32> = start.iter().zip(&grads).map(|(a, b)| a + b).collect();

            let both = storage(gpu, &start);
            let args = backward().grad_affine_packed(&both).accumulate();
            assert_eq!(after(args, &[&both]), sums);
            let (w, b) = (storage(gpu, &start[..3]), storage(gpu, &start[3..]));
            assert_eq!(after(backward().grad_affine(&w, &b), &[&w, &b]), grads);
            let (w, b) = (storage(gpu, &start[..3]), storage(gpu, &start[3..]));
            let args = backward().grad_affine(&w, &b).accumulate();
            assert_eq!(after(args, &[&w, &b]), sums);
            let args = backward().grad_weight(&w);
            assert_eq!(after(args, &[&w]), grads[..3], "the weight's alone");
            let args = backward().grad_bias(&b).accumulate();
            let twice: Vec<f32> = sums.iter().zip(&grads).map(|(a, b)| a + b).collect();
            assert_eq!(after(args, &[&b]), twice[3..], "the bias' alone");
        }
    });
}

/// A mask of zeros: the output is exactly β, and the running statistics move towards 0 as Keras' do; the other group has
/// its own statistics. A mask of anything but 0 and 1 is an error on the host and NaN from the device.
#[test]
fn masks_hide_everything_or_are_refused() {
    on_every_adapter(|gpu| {
        for (walk, shape) in [
            (Walk::Planar, [3, 2, 24]),
            (Walk::Columns, [36, 2, 1]),
            (Walk::Columns, [12, 2, 3]),
        ] {
            let problem = Problem::new(shape[0], shape[1], shape[2])
                .groups(2)
                .with_mask()
                .momentum(wgpu_batchnorm::Momentum::decay(0.75));
            let choices = Choices::default().walk(walk);
            let plan = Plan::with(&problem, gpu.kernels.caps(), &choices).unwrap();
            let x = input(Data::Normal(3.0, 2.0), &problem, &mut Random::new(10));
            let bias = Array1::from(vec![0.25, -0.5]);
            let running = RunningArrays {
                mean: Array1::from(vec![1.0, 2.0]),
                variance: Array1::from(vec![4.0, 8.0]),
                batches: 0,
            };
            let with = |mask: &Array2<f32>| {
                let arrays = Arrays {
                    bias: Some(bias.view()),
                    mask: Some(mask.view()),
                    ..Arrays::new(x.view())
                };
                gpu.forward_training(&plan, &arrays, Some(&running))
            };
            let all = with(&Array2::ones(problem.mask_shape())).unwrap();
            let mut mask = Array2::ones(problem.mask_shape());
            mask.slice_mut(ndarray::s![..shape[0], ..]).fill(0.0);
            let one = with(&mask).unwrap();
            for ((o, c, _), v) in one.output.indexed_iter() {
                if o < shape[0] {
                    assert_eq!(*v, bias[c], "{walk} on {}", name(gpu));
                }
            }
            let second = ndarray::s![shape[0].., .., ..];
            assert_eq!(one.output.slice(second), all.output.slice(second));
            let none = with(&Array2::zeros(problem.mask_shape())).unwrap();
            let after = none.running.unwrap();
            assert_eq!(after.mean, Array1::from(vec![0.75, 1.5]));
            assert_eq!(after.variance, Array1::from(vec![3.0, 6.0]));
            mask[[0, 0]] = 0.5;
            let refused = with(&mask).unwrap_err().to_string();
            assert!(refused.contains("mask[0] is 0.5"), "{refused}");

            let step = gpu.kernels.prepare(&plan).unwrap();
            let x = storage(gpu, x.as_slice().unwrap());
            let y = empty(gpu, problem.elements() as usize);
            let mask = storage(gpu, mask.as_slice().unwrap());
            let args = ForwardTraining::new(&x, &y).mask(&mask);
            run(gpu, &[&step.bind_forward_training(&args).unwrap()]);
            let got = floats(gpu, &y);
            let (first, second) = got.split_at(got.len() / 2);
            assert!(first.iter().all(|v| v.is_nan()), "{walk} on {}", name(gpu));
            assert!(second.iter().all(|v| v.is_finite()));
        }
    });
}

/// The three choices are apart: which statistics normalise, whether running ones move, what gets gradients.
#[test]
fn choices_are_independent() {
    on_every_adapter(|gpu| {
        let problem = Problem::new(4, 3, 16);
        let step = prepared(gpu, &problem, &Choices::default());
        let host = input(Data::Normal(1.0, 2.0), &problem, &mut Random::new(11));
        let x = storage(gpu, host.as_slice().unwrap());
        let n = problem.elements() as usize;
        let (y, dx) = (empty(gpu, n), empty(gpu, n));
        let state = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 0.0];
        let running = storage(gpu, &state);
        let saved = empty(gpu, 12);
        // Batch statistics, running ones left alone.
        let args = ForwardTraining::new(&x, &y).saved(&saved);
        run(gpu, &[&step.bind_forward_training(&args).unwrap()]);
        let by_batch = floats(gpu, &y);
        assert_eq!(floats(gpu, &running), state);
        // The same, and running ones move.
        let args = ForwardTraining::new(&x, &y).running(&running);
        run(gpu, &[&step.bind_forward_training(&args).unwrap()]);
        assert_eq!(floats(gpu, &y), by_batch);
        let moved = floats(gpu, &running);
        assert!(moved[..6].iter().zip(&state).all(|(a, b)| a != b));
        // Running statistics normalise, and stay.
        let args = Inference::new(&x, &y, &running);
        run(gpu, &[&step.bind_inference(&args).unwrap()]);
        assert_ne!(floats(gpu, &y), by_batch);
        assert_eq!(floats(gpu, &running), moved);
        // Gradients through either, with and without those of weight and bias.
        for through in [
            Backward::new(&x, &saved, &x, &dx),
            Backward::frozen(&x, &running, &x, &dx),
        ] {
            run(gpu, &[&step.bind_backward(&through).unwrap()]);
            let alone = floats(gpu, &dx);
            let grads = empty(gpu, 6);
            let args = through.grad_affine_packed(&grads);
            run(gpu, &[&step.bind_backward(&args).unwrap()]);
            assert_eq!(floats(gpu, &dx), alone);
            assert!(floats(gpu, &grads).iter().all(|v| *v != 0.0));
        }
        assert_eq!(floats(gpu, &running), moved);
    });
}

/// The layer's switches: running statistics that stay, parameters without gradients, gradients that add up, a frozen
/// backward pass.
#[test]
fn a_layer_leaves_alone_what_it_is_told_to() {
    on_every_adapter(|gpu| {
        let problem = Problem::nchw([4, 3, 4, 4]);
        let host = input(Data::Normal(1.0, 2.0), &problem, &mut Random::new(12));
        let x = storage(gpu, host.as_slice().unwrap());
        let n = problem.elements() as usize;
        let (y, dx) = (empty(gpu, n), empty(gpu, n));
        let batch = Batch::new(4, 16, &x);
        let layer = || BatchNorm::new(&gpu.kernels, &problem).unwrap();
        let train = |layer: &BatchNorm| {
            run(
                gpu,
                &[
                    &layer.bind_training(&batch, &y).unwrap(),
                    &layer.bind_backward(&batch, &x, &dx, None).unwrap(),
                ],
            )
        };
        let plain = layer();
        let fresh = floats(gpu, plain.running());
        train(&plain);
        assert_ne!(floats(gpu, plain.running()), fresh);
        let once = floats(gpu, plain.grad_affine());
        assert!(once.iter().all(|v| *v != 0.0));
        train(&plain);
        assert_eq!(floats(gpu, plain.grad_affine()), once, "overwritten");

        let still = layer().update_running(false).train_affine(false);
        train(&still);
        assert_eq!(floats(gpu, still.running()), fresh);
        assert_eq!(floats(gpu, still.grad_affine()), [0.0; 6]);

        let adding = layer().accumulate(true);
        train(&adding);
        train(&adding);
        let twice: Vec<f32> = once.iter().map(|v| v + v).collect();
        assert_eq!(floats(gpu, adding.grad_affine()), twice);

        let frozen = layer().bind_frozen_backward(&batch, &x, &dx, None).unwrap();
        run(gpu, &[&frozen]);
        // Mean 0, variance 1, weight 1: dx = dy/√(1 + ε).
        for (dx, dy) in floats(gpu, &dx).iter().zip(&host) {
            assert!((dx - dy / 1.00001f32.sqrt()).abs() <= 1e-6 * dy.abs());
        }
    });
}

/// NCHW and NHWC give the same bits in inference, in every type, with every activation.
#[test]
fn layouts_agree_in_inference() {
    on_every_adapter(|gpu| {
        let (n, c, s) = (4, 6, 35);
        for dtype in Dtype::ALL {
            for activation in wgpu_batchnorm_cli::check::ACTIVATIONS {
                let planar = Problem::new(n, c, s).dtype(dtype).activation(activation);
                let last = Problem::new(n * s, c, 1)
                    .dtype(dtype)
                    .activation(activation);
                let x = input(Data::Normal(3.0, 2.0), &planar, &mut Random::new(5));
                let moved = x
                    .view()
                    .permuted_axes([0, 2, 1])
                    .as_standard_layout()
                    .into_owned();
                let moved = moved.into_shape_with_order((n * s, c, 1)).unwrap();
                let running = RunningArrays {
                    mean: Array1::linspace(1.0, 2.0, c),
                    variance: Array1::linspace(0.5, 3.0, c),
                    batches: 9,
                };
                let run = |problem: &Problem, x: &ndarray::Array3<f32>| {
                    let plan = Plan::new(problem, gpu.kernels.caps()).unwrap();
                    gpu.inference(&plan, &Arrays::new(x.view()), &running)
                        .unwrap()
                };
                let (a, b) = (run(&planar, &x), run(&last, &moved));
                let b = b.into_shape_with_order((n, s, c)).unwrap();
                let b = b.permuted_axes([0, 2, 1]).as_standard_layout().into_owned();
                assert_eq!(a, b, "{dtype} {activation} on {}", name(gpu));
            }
        }
    });
}
