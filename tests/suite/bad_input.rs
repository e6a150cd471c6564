//! Bad arguments: each a typed error that names the culprit, and no wgpu validation error.

use wgpu_batchnorm::{
    Activation, Backward, BufferRange, Caps, Choices, Combine, Error, ForwardTraining, Gpu,
    Inference, Momentum, Plan, Problem, Reduce, Running, Walk,
};

use crate::api::{empty, prepared};
use crate::on_every_adapter;

#[test]
fn problems_are_checked() {
    let plan = |problem: Problem| Plan::new(&problem, &Caps::webgpu_defaults());
    for shape in [[0, 3, 4], [2, 0, 4], [2, 3, 0]] {
        let got = plan(Problem::new(shape[0], shape[1], shape[2]));
        assert!(
            matches!(got, Err(Error::EmptyTensor { shape: s }) if s == shape),
            "{got:?}"
        );
    }
    for eps in [-1e-5, f64::NAN, f64::INFINITY, 1e39] {
        let got = plan(Problem::new(2, 2, 2).eps(eps));
        assert!(matches!(got, Err(Error::Eps { .. })), "{eps}: {got:?}");
    }
    for w in [-0.1, 1.1, f64::NAN] {
        let got = plan(Problem::new(2, 2, 2).momentum(Momentum::new_weight(w)));
        assert!(matches!(got, Err(Error::Momentum { .. })), "{w}: {got:?}");
    }
    for huge in [usize::MAX, 1 << 31] {
        let got = plan(Problem::nchw([2, huge, huge, huge]));
        assert!(matches!(got, Err(Error::TooManyElements { .. })), "{got:?}");
    }
    let groups = plan(Problem::new(2, 2, 2).groups(0));
    assert!(matches!(groups, Err(Error::EmptyTensor { .. })));
    for slope in [f64::NAN, f64::INFINITY, 1e39] {
        let got = plan(Problem::new(2, 2, 2).activation(Activation::LeakyRelu(slope)));
        assert!(matches!(got, Err(Error::Activation { .. })), "{got:?}");
    }
    for name in [
        "",
        "swish",
        "leaky-relu",
        "leaky-relu:",
        "leaky-relu:x",
        "ReLU",
    ] {
        let got = name.parse::<Activation>();
        assert!(matches!(got, Err(Error::Activation { .. })), "{got:?}");
    }
    // Groups of 6 elements begin in the middle of a vector, where columns cannot.
    let columns = Choices::default().walk(Walk::Columns);
    let odd = Problem::new(2, 3, 1).groups(2);
    let got = Plan::with(&odd, &Caps::webgpu_defaults(), &columns);
    assert!(matches!(got, Err(Error::Unsupported { .. })), "{got:?}");
    for (shape, axis) in [(&[2, 3][..], 2), (&[2, 3], -3), (&[], 0), (&[4], 1)] {
        let got = Problem::with_axis(shape, axis);
        assert!(
            matches!(got, Err(Error::ChannelAxis { .. })),
            "{shape:?} {axis}: {got:?}"
        );
    }
    assert_eq!(
        Problem::with_axis(&[2, 3, 4, 5], -1),
        Ok(Problem::new(24, 5, 1))
    );
    assert_eq!(
        Problem::with_axis(&[2, 3, 4, 5], 1),
        Ok(Problem::nchw([2, 3, 4, 5]))
    );
    assert_eq!(Problem::with_axis(&[3, 7], 0), Ok(Problem::new(1, 3, 7)));
}

fn named(error: Error, tensor: &str, what: &str) {
    let text = error.to_string();
    assert!(
        text.contains(tensor) && text.contains(what),
        "{text:?} does not name {tensor:?} and {what:?}"
    );
    assert!(!text.contains('\n'), "{text:?}");
}

#[test]
fn arguments_are_checked() {
    on_every_adapter(|gpu: &Gpu| {
        let problem = Problem::new(4, 3, 16);
        let step = prepared(gpu, &problem);
        let tensor = || empty(gpu, 192);
        let (x, y, dy, saved) = (tensor(), tensor(), tensor(), empty(gpu, 12));
        let forward = |args: ForwardTraining<'_>| step.bind_forward_training(&args).unwrap_err();

        named(
            forward(ForwardTraining::new(&empty(gpu, 191), &y)),
            "input",
            "764 bytes",
        );
        named(
            forward(ForwardTraining::new(&x, &empty(gpu, 1))),
            "output",
            "768",
        );
        named(
            forward(ForwardTraining::new(&x, &y).affine(&empty(gpu, 2), &empty(gpu, 3))),
            "weight",
            "12",
        );
        named(
            forward(ForwardTraining::new(&x, &y).affine(&empty(gpu, 3), &empty(gpu, 2))),
            "bias",
            "12",
        );
        named(
            forward(ForwardTraining::new(&x, &y).affine_packed(&empty(gpu, 5))),
            "affine",
            "24",
        );
        named(
            forward(ForwardTraining::new(&x, &y).saved(&empty(gpu, 11))),
            "saved",
            "48",
        );
        named(
            forward(ForwardTraining::new(&x, &y).running(&empty(gpu, 8))),
            "running",
            "36",
        );
        let short = Running::new(&saved, &y).batches(BufferRange::new(&dy, 760));
        named(
            forward(ForwardTraining::new(&x, &y).running(short)),
            "running_var",
            "overlap",
        );
        let apart = empty(gpu, 3);
        let short = Running::new(&saved, &apart).batches(BufferRange::new(&dy, 760));
        named(
            forward(ForwardTraining::new(&x, &y).running(short)),
            "num_batches_tracked",
            "8 bytes",
        );

        let alignment = u64::from(gpu.kernels.caps().offset_alignment);
        let larger = empty(gpu, 192 + 64);
        let odd = BufferRange::new(&larger, 4);
        named(
            forward(ForwardTraining::new(odd, &y)),
            "input",
            &alignment.to_string(),
        );
        named(
            forward(ForwardTraining::new(BufferRange::new(&larger, 1 << 40), &y)),
            "input",
            "0 bytes",
        );
        let odd = BufferRange::new(&larger, 2);
        named(
            forward(ForwardTraining::new(&x, &y).weight(odd)),
            "weight",
            "multiple of 4",
        );

        // In place is the very range; anything between that and none of it is a mistake.
        let pool = empty(gpu, 2 * 256);
        let (low, high) = (
            BufferRange::new(&pool, 0),
            BufferRange::new(&pool, alignment),
        );
        named(
            forward(ForwardTraining::new(low, high)),
            "output",
            "overlap",
        );
        named(
            step.bind_backward(&Backward::new(&x, &saved, low, high))
                .unwrap_err(),
            "grad_input",
            "overlap",
        );
        // Only output for input, and grad_input for grad_output.
        named(
            step.bind_backward(&Backward::new(&x, &saved, &dy, &x))
                .unwrap_err(),
            "grad_input",
            "overlap",
        );
        let mask = empty(gpu, 64);
        named(
            forward(ForwardTraining::new(&x, &y).mask(&mask)),
            "mask",
            "with_mask",
        );
        let masked = prepared(gpu, &problem.clone().with_mask());
        let without = masked.bind_forward_training(&ForwardTraining::new(&x, &y));
        named(without.unwrap_err(), "mask", "none was given");
        let short = empty(gpu, 63);
        let args = ForwardTraining::new(&x, &y).mask(&short);
        named(
            masked.bind_forward_training(&args).unwrap_err(),
            "mask",
            "256",
        );
        named(
            masked.bind_reduce(&Reduce::new(&x, &y)).unwrap_err(),
            "mask",
            "none was given",
        );
        named(
            forward(ForwardTraining::new(&x, &y).saved(&y)),
            "saved",
            "overlap",
        );

        let no_storage = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 768,
            usage: wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        named(
            forward(ForwardTraining::new(&no_storage, &y)),
            "input",
            "STORAGE",
        );

        named(
            forward(ForwardTraining::new(&x, &y).residual(&dy)),
            "residual",
            "with_residual",
        );
        let with = prepared(
            gpu,
            &problem.clone().with_residual().activation(Activation::Relu),
        );
        named(
            with.bind_forward_training(&ForwardTraining::new(&x, &y))
                .unwrap_err(),
            "residual",
            "none was given",
        );
        let back = Backward::new(&x, &saved, &dy, &y).residual(&larger);
        named(
            with.bind_backward(&back).unwrap_err(),
            "grad_residual",
            "grad_residual",
        );
        named(
            step.bind_backward(&Backward::new(&x, &saved, &dy, &y).grad_residual(&larger))
                .unwrap_err(),
            "grad_residual",
            "nothing",
        );
        // Without an activation grad_output is the residual's gradient, which in place would be lost.
        let plain = prepared(gpu, &problem.clone().with_residual());
        named(
            plain
                .bind_backward(&Backward::new(&x, &saved, &dy, &dy))
                .unwrap_err(),
            "grad_input",
            "residual",
        );

        let one = prepared(gpu, &Problem::new(1, 3, 1));
        let refused = one.bind_forward_training(&ForwardTraining::new(&x, &y));
        assert!(
            matches!(refused, Err(Error::OneValuePerChannel { shape: [1, 3, 1] })),
            "{refused:?}"
        );
        let refused = one.bind_backward(&Backward::new(&x, &saved, &dy, &y));
        assert!(
            matches!(refused, Err(Error::OneValuePerChannel { .. })),
            "{refused:?}"
        );

        let cumulative = prepared(gpu, &problem.clone().momentum(Momentum::Cumulative));
        let running = Running::new(&saved, &apart);
        let refused =
            cumulative.bind_forward_training(&ForwardTraining::new(&x, &y).running(running));
        named(refused.unwrap_err(), "num_batches_tracked", "cumulative");
        named(
            step.bind_combine(&Combine::new(&x, 0, &y)).unwrap_err(),
            "parts",
            "at least one",
        );
        named(
            step.bind_combine(&Combine::new(&x, u32::MAX, &y))
                .unwrap_err(),
            "parts",
            "768 bytes",
        );
        // Packed and apart at once: one of them would be ignored.
        let pair = empty(gpu, 6);
        let both = ForwardTraining::new(&x, &y)
            .affine_packed(&pair)
            .weight(&apart);
        named(forward(both), "affine", "both packed");
        let both = Backward::new(&x, &saved, &dy, &y)
            .grad_bias(&apart)
            .grad_affine_packed(&pair);
        named(
            step.bind_backward(&both).unwrap_err(),
            "grad_affine",
            "both",
        );
        // A plan for another device.
        let small = wgpu::Limits {
            max_compute_workgroups_per_dimension: 256,
            ..gpu.adapter.limits()
        };
        let weak = Gpu::with_limits(gpu.adapter.clone(), small).unwrap();
        let many = Problem::new(5, 3000, 16);
        let plan = Plan::new(&many, &Caps::webgpu_defaults()).unwrap();
        let n = many.elements() as usize;
        let (a, b) = (empty(&weak, n), empty(&weak, n));
        let refused = weak
            .kernels
            .prepare(&plan)
            .unwrap()
            .bind_forward_training(&ForwardTraining::new(&a, &b));
        named(refused.unwrap_err(), "workgroups_per_dimension", "caps()");
        let two = empty(gpu, 2);
        let statistics = Inference::new(&x, &y, Running::new(&saved, &two));
        named(
            step.bind_inference(&statistics).unwrap_err(),
            "running_var",
            "12",
        );

        // What was refused left everything as it was: the same objects still work.
        step.bind_forward_training(&ForwardTraining::new(&x, &y))
            .unwrap();
    });
}

#[test]
fn an_adapter_that_is_not_there_is_named() {
    let error = Gpu::find(wgpu::Backends::all(), Some("no such adapter")).unwrap_err();
    named(error, "no such adapter", "found");
}

/// A number of sets whose bytes no u64 counts is a size error like any other.
#[test]
fn sets_beyond_counting_are_refused() {
    on_every_adapter(|gpu| {
        let step = prepared(gpu, &Problem::new(2, 64, 2).groups(1 << 14));
        let (parts, moments) = (empty(gpu, 64), empty(gpu, 64));
        let got = step.bind_combine(&Combine::new(&parts, u32::MAX, &moments));
        assert!(matches!(got, Err(Error::BufferSize { .. })), "{got:?}");
    });
}

/// More than a device binds is refused before wgpu refuses it; and so is a chunk where the device may not bind one,
/// because the plan was made for another.
#[test]
fn bindings_keep_to_the_devices_limits() {
    on_every_adapter(|gpu| {
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: 1 << 20,
            ..gpu.adapter.limits()
        };
        let gpu = &Gpu::with_limits(gpu.adapter.clone(), limits).unwrap();
        let sets = (1 << 16) + 1;
        let (parts, moments) = (empty(gpu, 4 * sets), empty(gpu, 4));
        let got = prepared(gpu, &Problem::new(2, 1, 2)).bind_combine(&Combine::new(
            &parts,
            sets as u32,
            &moments,
        ));
        assert!(
            matches!(
                got,
                Err(Error::Limit {
                    needed: 1_048_592,
                    ..
                })
            ),
            "{got:?}"
        );

        let alignment = gpu.kernels.caps().offset_alignment;
        if alignment == 16 {
            return;
        }
        let mut elsewhere = gpu.kernels.caps().clone();
        elsewhere.offset_alignment = 16;
        // Chunks of an odd number of 16 bytes.
        elsewhere.max_binding_size = u64::from(alignment) * 16 + 16;
        let plan = Plan::new(&Problem::new(8192, 4, 1), &elsewhere).unwrap();
        let (x, y, moments) = (empty(gpu, 32_768), empty(gpu, 32_768), empty(gpu, 1024));
        let running = Running::packed(&moments);
        let got = gpu
            .kernels
            .prepare(&plan)
            .unwrap()
            .bind_inference(&Inference::new(&x, &y, running));
        assert!(matches!(got, Err(Error::BufferAlignment { .. })), "{got:?}");
    });
}

/// What is only read may be one range twice. Beside something written in the same buffer all is bound for writing, and
/// then it may not: browsers refuse that, and so do we.
#[test]
fn one_range_twice_in_a_pool_is_refused() {
    on_every_adapter(|gpu| {
        let problem = Problem::new(2, 2, 64).with_residual();
        let step = prepared(gpu, &problem);
        let (pool, apart) = (empty(gpu, 1024), empty(gpu, 256));
        let inference = |output| {
            let running = Running::packed(&apart);
            step.bind_inference(&Inference::new(&pool, output, running).residual(&pool))
        };
        assert!(
            inference(BufferRange::from(&apart)).is_err(),
            "running is there"
        );
        let output = empty(gpu, 256);
        assert!(inference(BufferRange::from(&output)).is_ok());
        let got = inference(BufferRange::new(&pool, 2048));
        assert!(matches!(got, Err(Error::Overlap { .. })), "{got:?}");
    });
}
