//! The API on a user's own buffers: packed or apart, at offsets, in pieces, again and again.

use ndarray::{Array1, Array3};
use wgpu_batchnorm::reference::{self, Inputs, Statistics};
use wgpu_batchnorm::{
    Activation, Arrays, Backward, BackwardApply, BackwardReduce, Batch, BatchNorm, BufferRange,
    Combine, Finalize, ForwardTraining, Gpu, Inference, Momentum, Normalize, Operation, Plan,
    Prepared, Problem, Reduce, Running, RunningArrays, Through,
};
use wgpu_batchnorm_cli::check::{Data, Random, input};

use crate::{name, on_every_adapter};

pub(crate) fn storage(gpu: &Gpu, values: &[f32]) -> wgpu::Buffer {
    let buffer = empty(gpu, values.len());
    gpu.queue
        .write_buffer(&buffer, 0, bytemuck::cast_slice(values));
    buffer
}

pub(crate) fn empty(gpu: &Gpu, words: usize) -> wgpu::Buffer {
    gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: words as u64 * 4,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

pub(crate) fn run(gpu: &Gpu, operations: &[&Operation]) {
    let mut encoder = gpu
        .device
        .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    operations
        .iter()
        .for_each(|operation| operation.encode(&mut encoder));
    gpu.queue.submit([encoder.finish()]);
}

pub(crate) fn floats(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<f32> {
    words(gpu, buffer).into_iter().map(f32::from_bits).collect()
}

pub(crate) fn words(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u32> {
    gpu.submit_and_read(None, &[buffer])
        .unwrap()
        .wait()
        .unwrap()
        .remove(0)
}

pub(crate) fn prepared(gpu: &Gpu, problem: &Problem) -> Prepared {
    gpu.kernels
        .prepare(&Plan::new(problem, gpu.kernels.caps()).unwrap())
        .unwrap()
}

fn close(what: &str, got: &[f32], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(*got) - want).abs() <= bound * scale,
            "{what}[{i}]: {got}, wanted {want}"
        );
    }
}

struct Fixture {
    problem: Problem,
    x: Array3<f32>,
    grad: Array3<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    mean: Vec<f32>,
    variance: Vec<f32>,
}

fn fixture(shape: [usize; 3]) -> Fixture {
    let problem = Problem::new(shape[0], shape[1], shape[2]);
    let mut random = Random::new(11);
    let mut vector = |low: f32| {
        (0..shape[1])
            .map(|_| low + random.uniform())
            .collect::<Vec<_>>()
    };
    Fixture {
        weight: vector(0.5),
        bias: vector(-0.5),
        mean: vector(-0.5),
        variance: vector(0.5),
        x: input(Data::Normal(2.0, 3.0), &problem, &mut Random::new(12)),
        grad: input(Data::Normal(0.1, 1.0), &problem, &mut Random::new(13)),
        problem,
    }
}

impl Fixture {
    fn arrays<'a>(&'a self, weight: &'a Array1<f32>, bias: &'a Array1<f32>) -> Arrays<'a> {
        Arrays {
            weight: Some(weight.view()),
            bias: Some(bias.view()),
            ..Arrays::new(self.x.view())
        }
    }

    fn statistics(&self) -> Statistics {
        Statistics::of(&self.problem, self.x.mapv(f64::from).view()).unwrap()
    }
}

/// Buffers of their own, vectors at any multiple of 4 in one shared buffer, and packed buffers give the same bits.
#[test]
fn packed_and_apart_give_the_same_bits() {
    on_every_adapter(|gpu| {
        for shape in [[6, 5, 49], [50, 13, 1]] {
            let f = fixture(shape);
            let channels = shape[1];
            let step = prepared(gpu, &f.problem);
            let x = storage(gpu, f.x.as_slice().unwrap());
            let grad = storage(gpu, f.grad.as_slice().unwrap());
            let (y, dx) = (empty(gpu, f.x.len()), empty(gpu, f.x.len()));
            let affine = storage(gpu, &[f.weight.clone(), f.bias.clone()].concat());
            let batches = f32::from_bits(7);
            let state = [f.mean.clone(), f.variance.clone(), vec![batches; channels]].concat();
            let running = storage(gpu, &state);
            let (saved, grads) = (empty(gpu, 4 * channels), empty(gpu, 2 * channels));
            run(
                gpu,
                &[
                    &step
                        .bind_forward_training(
                            &ForwardTraining::new(&x, &y)
                                .affine_packed(&affine)
                                .running(&running)
                                .saved(&saved),
                        )
                        .unwrap(),
                    &step
                        .bind_backward(
                            &Backward::new(&x, &saved, &grad, &dx)
                                .affine_packed(&affine)
                                .grad_affine_packed(&grads),
                        )
                        .unwrap(),
                ],
            );
            let packed = [
                floats(gpu, &y),
                floats(gpu, &running),
                floats(gpu, &saved),
                floats(gpu, &dx),
                floats(gpu, &grads),
            ];

            // One pool for all vectors, each at an odd word: (weight, bias, mean, variance, batches, dweight, dbias).
            let pool = empty(gpu, 7 * (channels + 3));
            let at = |i: usize| ((i * (channels + 3) + 1) * 4) as u64;
            let batches = vec![batches; channels];
            for (i, vector) in [&f.weight, &f.bias, &f.mean, &f.variance, &batches]
                .into_iter()
                .enumerate()
            {
                gpu.queue
                    .write_buffer(&pool, at(i), bytemuck::cast_slice(vector));
            }
            let vector = |i: usize| BufferRange::new(&pool, at(i));
            let (y, dx, saved) = (
                empty(gpu, f.x.len()),
                empty(gpu, f.x.len()),
                empty(gpu, 4 * channels),
            );
            let args = ForwardTraining::new(&x, &y)
                .affine(vector(0), vector(1))
                .running(Running::new(vector(2), vector(3)).batches(vector(4)))
                .saved(&saved);
            let forward = step.bind_forward_training(&args).unwrap();
            let args = Backward::new(&x, &saved, &grad, &dx)
                .affine(vector(0), vector(1))
                .grad_affine(vector(5), vector(6));
            run(gpu, &[&forward, &step.bind_backward(&args).unwrap()]);
            let pooled = floats(gpu, &pool);
            let part = |i: usize| pooled[i * (channels + 3) + 1..][..channels].to_vec();
            let apart = [
                floats(gpu, &y),
                [part(2), part(3), part(4)].concat(),
                floats(gpu, &saved),
                floats(gpu, &dx),
                [part(5), part(6)].concat(),
            ];
            let bits = |all: &[Vec<f32>; 5]| {
                all.clone()
                    .map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            assert_eq!(bits(&packed), bits(&apart), "{shape:?} on {}", name(gpu));
            assert_eq!(packed[1][2 * channels].to_bits(), 8, "num_batches_tracked");
            // What lies between the vectors is untouched.
            for i in 0..7 {
                assert_eq!(pooled[i * (channels + 3)], 0.0);
                assert_eq!(pooled[i * (channels + 3) + channels + 1..][..2], [0.0, 0.0]);
            }
        }
    });
}

/// Weight alone, bias alone, nothing: absent ones are 1 and 0. And tensors at offsets into a larger buffer.
#[test]
fn parts_of_the_affine_and_offsets() {
    on_every_adapter(|gpu| {
        let f = fixture([6, 5, 49]);
        let step = prepared(gpu, &f.problem);
        let (n, offset) = (f.x.len(), 512u64);
        let pool = empty(gpu, n + 128 + 64);
        gpu.queue
            .write_buffer(&pool, offset, bytemuck::cast_slice(f.x.as_slice().unwrap()));
        let out = empty(gpu, n + 128 + 64);
        let (x, y) = (
            BufferRange::new(&pool, offset),
            BufferRange::new(&out, offset),
        );
        let (weight, bias) = (storage(gpu, &f.weight), storage(gpu, &f.bias));
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Array1<f64>>();
        let (w64, b64, x64) = (wide(&f.weight), wide(&f.bias), f.x.mapv(f64::from));
        for (with_weight, with_bias) in [(true, true), (true, false), (false, true), (false, false)]
        {
            let mut args = ForwardTraining::new(x, y);
            if with_weight {
                args = args.weight(&weight);
            }
            if with_bias {
                args = args.bias(&bias);
            }
            run(gpu, &[&step.bind_forward_training(&args).unwrap()]);
            let inputs = Inputs {
                input: x64.view(),
                residual: None,
                weight: with_weight.then(|| w64.view()),
                bias: with_bias.then(|| b64.view()),
                mask: None,
            };
            let want = reference::forward(&f.problem, &inputs, &f.statistics()).unwrap();
            let got = floats(gpu, &out);
            close("output", &got[128..128 + n], want.as_slice().unwrap(), 1e-6);
            assert!(
                got[..128].iter().chain(&got[128 + n..]).all(|&v| v == 0.0),
                "wrote outside its range"
            );
        }
    });
}

/// reduce + combine over two halves of a batch, then finalize and normalize, is the training forward pass; the same
/// backwards. This is how devices synchronise.
#[test]
fn the_parts_make_the_whole() {
    on_every_adapter(|gpu| {
        for (shape, cut) in [([9, 6, 50], 3), ([100, 7, 1], 33)] {
            let f = fixture(shape);
            let channels = shape[1];
            let whole = prepared(gpu, &f.problem);
            let x = storage(gpu, f.x.as_slice().unwrap());
            let grad = storage(gpu, f.grad.as_slice().unwrap());
            let affine = storage(gpu, &[f.weight.clone(), f.bias.clone()].concat());
            let running = storage(
                gpu,
                &[f.mean.clone(), f.variance.clone(), vec![0.0; channels]].concat(),
            );
            let record = channels * 4;
            // Two ranks with unequal counts and a third with none.
            let moments: Vec<_> = (0..2).map(|_| empty(gpu, record)).collect();
            let sums: Vec<_> = (0..2).map(|_| empty(gpu, record)).collect();
            let gathered = empty(gpu, 3 * record);
            let ranks = [(0, cut), (cut, shape[0])].map(|(from, to)| {
                let part = |a: &Array3<f32>| {
                    storage(
                        gpu,
                        a.slice(ndarray::s![from..to, .., ..])
                            .as_standard_layout()
                            .as_slice()
                            .unwrap(),
                    )
                };
                (
                    prepared(gpu, &Problem::new(to - from, channels, shape[2])),
                    part(&f.x),
                    part(&f.grad),
                )
            });
            for ((step, x, _), moments) in ranks.iter().zip(&moments) {
                run(gpu, &[&step.bind_reduce(&Reduce::new(x, moments)).unwrap()]);
            }
            let copy = |from: &wgpu::Buffer, set: usize| {
                let mut encoder = gpu
                    .device
                    .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                encoder.copy_buffer_to_buffer(
                    from,
                    0,
                    &gathered,
                    (set * record * 4) as u64,
                    (record * 4) as u64,
                );
                gpu.queue.submit([encoder.finish()]);
            };
            copy(&moments[0], 1);
            copy(&moments[1], 2);
            let (merged, coefficients, saved) =
                (empty(gpu, record), empty(gpu, record), empty(gpu, record));
            let y = empty(gpu, f.x.len());
            run(
                gpu,
                &[
                    &whole
                        .bind_combine(&Combine::new(&gathered, 3, &merged))
                        .unwrap(),
                    &whole
                        .bind_finalize(
                            &Finalize::new(&merged, &coefficients)
                                .affine_packed(&affine)
                                .running(&running)
                                .saved(&saved),
                        )
                        .unwrap(),
                    &whole
                        .bind_normalize(&Normalize::new(&x, &coefficients, &y))
                        .unwrap(),
                ],
            );
            let statistics = f.statistics();
            let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Array1<f64>>();
            let (x64, w64, b64) = (f.x.mapv(f64::from), wide(&f.weight), wide(&f.bias));
            let inputs = Inputs {
                input: x64.view(),
                residual: None,
                weight: Some(w64.view()),
                bias: Some(b64.view()),
                mask: None,
            };
            let want = reference::forward(&f.problem, &inputs, &statistics).unwrap();
            close("output", &floats(gpu, &y), want.as_slice().unwrap(), 1e-6);
            let counts: Vec<f32> = floats(gpu, &merged).chunks(4).map(|r| r[0]).collect();
            assert_eq!(counts, vec![(shape[0] * shape[2]) as f32; channels]);
            let mut state = reference::Running {
                mean: wide(&f.mean),
                variance: wide(&f.variance),
                batches: 0,
            };
            state.update(&f.problem, &statistics).unwrap();
            close(
                "running_var",
                &floats(gpu, &running)[channels..2 * channels],
                state.variance.as_slice().unwrap(),
                1e-6,
            );

            // Backward: each rank reduces over the common statistics; the sums add up.
            for ((step, x, grad), sums) in ranks.iter().zip(&sums) {
                let args = BackwardReduce::new(x, &saved, grad, sums).affine_packed(&affine);
                run(gpu, &[&step.bind_backward_reduce(&args).unwrap()]);
            }
            let total: Vec<f32> = floats(gpu, &sums[0])
                .iter()
                .zip(floats(gpu, &sums[1]))
                .map(|(a, b)| a + b)
                .collect();
            let total = storage(gpu, &total);
            let (dx, grads) = (empty(gpu, f.x.len()), empty(gpu, 2 * channels));
            let args = Backward::new(&x, &saved, &grad, &dx)
                .affine_packed(&affine)
                .grad_affine_packed(&grads);
            let count = (shape[0] * shape[2]) as u32;
            run(
                gpu,
                &[&whole
                    .bind_backward_apply(&BackwardApply::new(args, &total).count(count))
                    .unwrap()],
            );
            let want = reference::backward(
                &f.problem,
                &inputs,
                &statistics,
                f.grad.mapv(f64::from).view(),
                false,
            )
            .unwrap();
            close(
                "grad_input",
                &floats(gpu, &dx),
                want.input.as_slice().unwrap(),
                2e-6,
            );
            let grads = floats(gpu, &grads);
            close(
                "grad_weight",
                &grads[..channels],
                want.weight.as_slice().unwrap(),
                2e-6,
            );
            close(
                "grad_bias",
                &grads[channels..],
                want.bias.as_slice().unwrap(),
                2e-6,
            );
        }
    });
}

/// A layer trains over batches of different sizes, and its running statistics are the reference's.
#[test]
fn a_layer_trains_and_infers() {
    on_every_adapter(|gpu| {
        for momentum in [
            Momentum::new_weight(0.1),
            Momentum::decay(0.99),
            Momentum::Cumulative,
        ] {
            let template = Problem::nchw([1, 6, 7, 7])
                .momentum(momentum)
                .activation(Activation::Relu);
            let layer = BatchNorm::new(&gpu.kernels, &template).unwrap();
            let mut want = reference::Running {
                mean: Array1::zeros(6),
                variance: Array1::ones(6),
                batches: 0,
            };
            for (seed, batch) in [4usize, 9, 2].into_iter().enumerate() {
                let problem = Problem::nchw([batch, 6, 7, 7]).momentum(momentum);
                let host = input(
                    Data::Normal(seed as f32, 2.0),
                    &problem,
                    &mut Random::new(seed as u64),
                );
                let x = storage(gpu, host.as_slice().unwrap());
                let y = empty(gpu, host.len());
                let mut encoder = gpu
                    .device
                    .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                layer
                    .forward(&mut encoder, &Batch::new(batch, 49, &x), &y)
                    .unwrap();
                gpu.queue.submit([encoder.finish()]);
                let batch = Statistics::of(&problem, host.mapv(f64::from).view()).unwrap();
                want.update(&problem, &batch).unwrap();
            }
            let state = words(gpu, layer.running());
            let values: Vec<f32> = state[..12].iter().map(|&w| f32::from_bits(w)).collect();
            close(
                "running_mean",
                &values[..6],
                want.mean.as_slice().unwrap(),
                1e-6,
            );
            close(
                "running_var",
                &values[6..],
                want.variance.as_slice().unwrap(),
                1e-6,
            );
            assert_eq!(state[12..], [3; 6], "{momentum:?}");

            layer.set_affine(&gpu.queue, &[2.0; 6], &[0.5; 6]).unwrap();
            let host = input(
                Data::Normal(0.0, 1.0),
                &Problem::new(3, 6, 49),
                &mut Random::new(9),
            );
            let x = storage(gpu, host.as_slice().unwrap());
            let y = empty(gpu, host.len());
            run(
                gpu,
                &[&layer.bind_inference(&Batch::new(3, 49, &x), &y).unwrap()],
            );
            let problem = Problem::new(3, 6, 49).activation(Activation::Relu);
            let (x64, weight, bias) = (
                host.mapv(f64::from),
                Array1::from_elem(6, 2.0),
                Array1::from_elem(6, 0.5),
            );
            let inputs = Inputs {
                input: x64.view(),
                residual: None,
                weight: Some(weight.view()),
                bias: Some(bias.view()),
                mask: None,
            };
            let given = Statistics::given(&problem, want.mean, want.variance).unwrap();
            let want = reference::forward(&problem, &inputs, &given).unwrap();
            close(
                "inference",
                &floats(gpu, &y),
                want.as_slice().unwrap(),
                1e-6,
            );
        }
    });
}

/// A bound operation encodes again and again, several times in one submit too.
#[test]
fn an_operation_encodes_again() {
    on_every_adapter(|gpu| {
        let f = fixture([8, 4, 36]);
        let step = prepared(gpu, &f.problem.clone().momentum(Momentum::Cumulative));
        let x = storage(gpu, f.x.as_slice().unwrap());
        let y = empty(gpu, f.x.len());
        let running = storage(gpu, &[vec![0.0; 4], vec![1.0; 4], vec![0.0; 4]].concat());
        let operation = step
            .bind_forward_training(&ForwardTraining::new(&x, &y).running(&running))
            .unwrap();
        let split = step.plan().strategy() == wgpu_batchnorm::Strategy::Split;
        assert_eq!(operation.dispatches(), if split { 3 } else { 1 });
        for _ in 0..3 {
            run(gpu, &[&operation, &operation]);
        }
        let state = words(gpu, &running);
        assert_eq!(state[8..], [6; 4]);
        // Six times the same batch: the plain average is that batch's mean.
        let mean: Vec<f32> = state[..4].iter().map(|&w| f32::from_bits(w)).collect();
        close(
            "running_mean",
            &mean,
            f.statistics().mean.as_slice().unwrap(),
            1e-6,
        );
    });
}

/// Two operations of one plan, on the same tensors, in one submit and in turn: each keeps its own parameters.
#[test]
fn encodes_in_one_submit_do_not_see_each_other() {
    on_every_adapter(|gpu| {
        let f = fixture([8, 4, 36]);
        let x = storage(gpu, f.x.as_slice().unwrap());
        let outcome = |momenta: &[f64], together: bool| {
            let made = momenta.iter().map(|&momentum| {
                let step = prepared(
                    gpu,
                    &f.problem.clone().momentum(Momentum::NewWeight(momentum)),
                );
                let y = empty(gpu, f.x.len());
                let running = storage(gpu, &[vec![0.0; 4], vec![1.0; 4], vec![0.0; 4]].concat());
                let args = ForwardTraining::new(&x, &y).running(&running);
                (step.bind_forward_training(&args).unwrap(), y, running)
            });
            let made = made.collect::<Vec<_>>();
            let operations = made.iter().map(|(operation, ..)| operation);
            let twice = operations.clone().chain(operations).collect::<Vec<_>>();
            if together {
                run(gpu, &twice);
            } else {
                twice.iter().for_each(|operation| run(gpu, &[operation]));
            }
            made.iter()
                .map(|(_, y, running)| (words(gpu, y), words(gpu, running)))
                .collect::<Vec<_>>()
        };
        let together = outcome(&[0.1, 0.5, 1.0], true);
        assert_eq!(together, outcome(&[0.1, 0.5, 1.0], false), "{}", name(gpu));
        assert_ne!(together[0].1, together[1].1);
        assert_eq!(together[1..2], outcome(&[0.5], true), "{}", name(gpu));
    });
}

/// The queue keeps what it works on, whatever the host drops.
#[test]
fn everything_may_be_dropped_while_work_is_in_flight() {
    on_every_adapter(|gpu| {
        let f = fixture([64, 16, 400]);
        let y = empty(gpu, f.x.len());
        let x = storage(gpu, f.x.as_slice().unwrap());
        let kernels = wgpu_batchnorm::Kernels::new(&gpu.device).unwrap();
        let plan = Plan::new(&f.problem, kernels.caps()).unwrap();
        let step = kernels.prepare(&plan).unwrap();
        let operation = step
            .bind_forward_training(&ForwardTraining::new(&x, &y))
            .unwrap();
        run(gpu, &[&operation; 10]);
        drop((operation, step, plan, kernels, x));
        let inputs = f.x.mapv(f64::from);
        let want = reference::forward(&f.problem, &Inputs::new(inputs.view()), &f.statistics());
        let want = want.unwrap();
        close("output", &floats(gpu, &y), want.as_slice().unwrap(), 1e-6);
    });
}

/// The frozen form skips the sums when nobody asks for them, and dx is the same.
#[test]
fn frozen_backward_needs_no_sums() {
    on_every_adapter(|gpu| {
        let f = fixture([6, 5, 49]);
        let step = prepared(gpu, &f.problem);
        let x = storage(gpu, f.x.as_slice().unwrap());
        let grad = storage(gpu, f.grad.as_slice().unwrap());
        let dx = empty(gpu, f.x.len());
        let affine = storage(gpu, &[f.weight.clone(), f.bias.clone()].concat());
        let running = storage(
            gpu,
            &[f.mean.clone(), f.variance.clone(), vec![0.0; 5]].concat(),
        );
        let args = Backward::frozen(&x, &running, &grad, &dx).affine_packed(&affine);
        let operation = step.bind_backward(&args).unwrap();
        assert_eq!(operation.dispatches(), 3);
        run(gpu, &[&operation]);
        let (weight, bias) = (Array1::from(f.weight.clone()), Array1::from(f.bias.clone()));
        let state = RunningArrays {
            mean: Array1::from(f.mean.clone()),
            variance: Array1::from(f.variance.clone()),
            batches: 0,
        };
        let arrays = f.arrays(&weight, &bias);
        let full = gpu
            .backward(
                step.plan(),
                &arrays,
                f.grad.view(),
                Through::Running(&state),
            )
            .unwrap();
        assert_eq!(
            floats(gpu, &dx),
            full.input.iter().copied().collect::<Vec<_>>()
        );
    });
}

/// Eight threads share the kernels.
#[test]
fn kernels_are_shared_between_threads() {
    fn shareable<T: Send + Sync + 'static>() {}
    shareable::<wgpu_batchnorm::Kernels>();
    shareable::<Operation>();
    shareable::<Prepared>();
    shareable::<BatchNorm>();
    on_every_adapter(|gpu| {
        // GL is driven from one thread at a time by design; wgpu locks it.
        std::thread::scope(|scope| {
            for seed in 0..8u64 {
                scope.spawn(move || {
                    let problem = Problem::new(5, 3 + seed as usize, 11);
                    let host = input(Data::Normal(1.0, 2.0), &problem, &mut Random::new(seed));
                    let plan = Plan::new(&problem, gpu.kernels.caps()).unwrap();
                    let got = gpu
                        .forward_training(&plan, &Arrays::new(host.view()), None)
                        .unwrap();
                    let x64 = host.mapv(f64::from);
                    let inputs = Inputs {
                        input: x64.view(),
                        residual: None,
                        weight: None,
                        bias: None,
                        mask: None,
                    };
                    let statistics = Statistics::of(&problem, x64.view()).unwrap();
                    let want = reference::forward(&problem, &inputs, &statistics).unwrap();
                    close(
                        "output",
                        got.output.as_slice().unwrap(),
                        want.as_slice().unwrap(),
                        1e-6,
                    );
                });
            }
        });
    });
}

/// Inference on one value per channel is fine; more workgroups than one dimension of a grid holds are too.
#[test]
fn extreme_shapes() {
    on_every_adapter(|gpu| {
        for shape in [[1, 5, 1], [1, 1, 1], [2, 70_000, 2], [1, 70_001, 5]] {
            let problem = Problem::new(shape[0], shape[1], shape[2]);
            let host = input(Data::Normal(1.0, 2.0), &problem, &mut Random::new(1));
            let plan = Plan::new(&problem, gpu.kernels.caps()).unwrap();
            let x64 = host.mapv(f64::from);
            let inputs = Inputs {
                input: x64.view(),
                residual: None,
                weight: None,
                bias: None,
                mask: None,
            };
            let state = RunningArrays {
                mean: Array1::ones(shape[1]),
                variance: Array1::ones(shape[1]),
                batches: 0,
            };
            let got = gpu
                .inference(&plan, &Arrays::new(host.view()), &state)
                .unwrap();
            let given = Statistics::given(&problem, Array1::ones(shape[1]), Array1::ones(shape[1]))
                .unwrap();
            let want = reference::forward(&problem, &inputs, &given).unwrap();
            close(
                "inference",
                got.as_slice().unwrap(),
                want.as_slice().unwrap(),
                1e-6,
            );
            if problem.count() > 1 {
                let got = gpu
                    .forward_training(&plan, &Arrays::new(host.view()), None)
                    .unwrap();
                let want = reference::forward(
                    &problem,
                    &inputs,
                    &Statistics::of(&problem, x64.view()).unwrap(),
                )
                .unwrap();
                close(
                    "training",
                    got.output.as_slice().unwrap(),
                    want.as_slice().unwrap(),
                    1e-6,
                );
            }
        }
    });
}

/// An inference plan with buffers of their own.
#[test]
fn inference_with_buffers_of_their_own() {
    on_every_adapter(|gpu| {
        let f = fixture([6, 5, 49]);
        let step = prepared(gpu, &f.problem);
        let x = storage(gpu, f.x.as_slice().unwrap());
        let y = empty(gpu, f.x.len());
        let [weight, bias, mean, variance] =
            [&f.weight, &f.bias, &f.mean, &f.variance].map(|v| storage(gpu, v));
        let args = Inference::new(&x, &y, Running::new(&mean, &variance)).affine(&weight, &bias);
        run(gpu, &[&step.bind_inference(&args).unwrap()]);
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Array1<f64>>();
        let (x64, w64, b64) = (f.x.mapv(f64::from), wide(&f.weight), wide(&f.bias));
        let inputs = Inputs {
            input: x64.view(),
            residual: None,
            weight: Some(w64.view()),
            bias: Some(b64.view()),
            mask: None,
        };
        let given = Statistics::given(&f.problem, wide(&f.mean), wide(&f.variance)).unwrap();
        let want = reference::forward(&f.problem, &inputs, &given).unwrap();
        close("output", &floats(gpu, &y), want.as_slice().unwrap(), 1e-6);
    });
}
