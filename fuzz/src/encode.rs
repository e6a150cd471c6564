//! Small plans on wgpu's no-op device, which checks all that wgpu checks: any arguments, right ones mostly, lead to an
//! operation that encodes and submits without a word of wgpu's, or to an error that is not wgpu's.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use wgpu_batchnorm::{
    Backward, BackwardApply, BackwardReduce, Batch, BatchNorm, BufferRange, Combine, Error,
    Finalize, ForwardTraining, Inference, Kernels, Normalize, Operation, Plan, Prepared, Problem,
    Reduce, Result, Running,
};

use crate::{Outcome, Pick};

struct Device {
    device: wgpu::Device,
    queue: wgpu::Queue,
    kernels: Kernels,
    /// Cases since the kernels were made.
    cases: u32,
}

/// Never dropped: at the end of a process wgpu may be gone before them.
static DEVICES: LazyLock<Mutex<Vec<Device>>> = LazyLock::new(|| Mutex::new(devices()));

/// A usual device, those with the fewest bindings and the least memory that kernels run with, and one that allows all.
fn devices() -> Vec<Device> {
    let usual = wgpu::Limits::default();
    let limits = [
        usual.clone(),
        wgpu::Limits {
            max_storage_buffers_per_shader_stage: 4,
            ..usual.clone()
        },
        wgpu::Limits {
            max_storage_buffers_per_shader_stage: 5,
            max_storage_buffer_binding_size: 8192,
            max_compute_invocations_per_workgroup: 32,
            max_compute_workgroup_size_x: 32,
            max_compute_workgroup_storage_size: 1024,
            max_compute_workgroups_per_dimension: 256,
            ..usual.clone()
        },
        wgpu::Limits {
            max_storage_buffer_binding_size: 1 << 14,
            min_storage_buffer_offset_alignment: 32,
            min_uniform_buffer_offset_alignment: 32,
            max_compute_workgroup_size_x: 64,
            ..usual.clone()
        },
        wgpu::Limits::unlimited(),
    ];
    limits.into_iter().map(device).collect()
}

fn device(limits: wgpu::Limits) -> Device {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    descriptor.backend_options.noop = wgpu::NoopBackendOptions {
        enable: true,
        limits: Some(limits.clone()),
        ..Default::default()
    };
    let instance = wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::NOOP))
        .pop()
        .expect("the no-op adapter");
    let descriptor = wgpu::DeviceDescriptor {
        required_limits: limits,
        ..Default::default()
    };
    let (device, queue) =
        pollster::block_on(adapter.request_device(&descriptor)).expect("the no-op device");
    let report = |error: wgpu::Error| panic!("wgpu reported {error}");
    device.on_uncaptured_error(Arc::new(report));
    let kernels = Kernels::new(&device).expect("a device that kernels run on");
    Device {
        device,
        queue,
        kernels,
        cases: 0,
    }
}

/// One case.
pub fn run(pick: &mut Pick<'_>) -> Outcome {
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    let i = pick(devices.len() as u64) as usize;
    let device = &mut devices[i];
    device.cases += 1;
    if device.cases.is_multiple_of(500) {
        // Modules of all kinds are hundreds of megabytes.
        device.kernels = Kernels::new(&device.device).expect("as before");
    }
    run_on(device, pick)
}

fn run_on(device: &Device, pick: &mut Pick<'_>) -> Outcome {
    let (mut problem, _, choices) = Plan::arbitrary(&mut *pick);
    // At most 2¹⁷ elements: memory is real.
    let small = |n: usize, most: usize| n.min(1 << 40) % most;
    problem.outer = small(problem.outer, 200);
    problem.channels = small(problem.channels, 40);
    problem.inner = small(problem.inner, 70);
    problem.groups = small(problem.groups, 8);
    while problem.elements() > 1 << 17 {
        problem.outer = (problem.outer / 2).max(1);
        problem.groups = (problem.groups / 2).max(1);
    }
    if pick(16) == 0 {
        return layer(device, &problem, pick);
    }
    let Ok(plan) = Plan::with(&problem, device.kernels.caps(), &choices) else {
        return Outcome::Refused;
    };
    let described = format!("{:?} by {choices:?}\n{plan}", plan.problem());
    let prepared = match device.kernels.prepare(&plan) {
        Ok(prepared) => prepared,
        Err(error) => panic!("{error}\n{described}"),
    };
    let mut arguments = Arguments::new(device, &plan);
    let mut outcome = Outcome::Refused;
    for _ in 0..1 + pick(3) {
        match bind(&prepared, &mut arguments, pick) {
            Ok(operation) => {
                encode(device, &operation);
                outcome = Outcome::Done;
            }
            Err(error) if is_devices(&error) => panic!("{error}\n{described}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.is_empty() && !text.contains('\n'), "{text}");
            }
        }
    }
    outcome
}

/// Whether an error is wgpu's own: what it says should have been said before it was asked.
fn is_devices(error: &Error) -> bool {
    matches!(
        error,
        Error::Device { .. } | Error::DeviceLost { .. } | Error::OutOfMemory { .. }
    )
}

fn encode(device: &Device, operation: &Operation) {
    assert!(operation.dispatches() > 0);
    let mut encoder = device.device.create_command_encoder(&Default::default());
    operation.encode(&mut encoder);
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        operation.encode_in(&mut pass);
        operation.encode_in(&mut pass);
    }
    device.queue.submit([encoder.finish()]);
    let _ = device.device.poll(wgpu::PollType::Poll);
}

/// Makes arguments: mostly as they should be.
struct Arguments<'a> {
    device: &'a Device,
    problem: &'a Problem,
    alignment: u64,
    /// Shared by what is pooled, and where the next of it goes.
    pool: wgpu::Buffer,
    next: u64,
    /// The last argument, which another may be given again.
    last: Option<(wgpu::Buffer, u64)>,
    /// Whether this operation's arguments are all pooled, or some of them wrong.
    mood: u64,
}

/// A range that owns its buffer.
struct Given(wgpu::Buffer, u64);

impl Given {
    fn range(&self) -> BufferRange<'_> {
        BufferRange::new(&self.0, self.1)
    }
}

impl<'a> Arguments<'a> {
    fn new(device: &'a Device, plan: &'a Plan) -> Self {
        let problem = plan.problem();
        let pool = 8 * (problem.bytes() + 1024) + 64 * 16 * problem.statistics() as u64;
        let caps = device.kernels.caps();
        Arguments {
            device,
            problem,
            alignment: caps.offset_alignment.into(),
            pool: buffer(
                device,
                pool.next_multiple_of(4),
                wgpu::BufferUsages::STORAGE,
            ),
            next: 0,
            last: None,
            mood: 0,
        }
    }

    /// Of so many bytes.
    fn of(&mut self, bytes: u64, pick: &mut Pick<'_>) -> Given {
        let storage = wgpu::BufferUsages::STORAGE;
        let fresh = |bytes: u64, usage| buffer(self.device, bytes.max(4), usage);
        let given = match (self.mood, pick(16)) {
            // Ranges of one buffer, none over another.
            (1, _) | (0, 0) => {
                let start = self.next;
                self.next = (start + bytes).next_multiple_of(self.alignment);
                if self.next > self.pool.size() {
                    Given(fresh(bytes, storage), 0)
                } else {
                    Given(self.pool.clone(), start)
                }
            }
            // Wrong, or right by luck.
            (2, 0) => Given(fresh(bytes, wgpu::BufferUsages::COPY_DST), 0),
            (2, 1) => Given(fresh(bytes.saturating_sub(4), storage), 0),
            (2, 2) => Given(fresh(bytes, storage), 4 * pick(64)),
            (2, 3) => Given(fresh(bytes + 1024, storage), pick(1024)),
            (2, 4) => Given(self.pool.clone(), pick(1 + self.pool.size())),
            (2, 5) => Given(self.pool.clone(), self.alignment * pick(64)),
            (2, 6) => Given(fresh(bytes, storage), pick(u64::MAX)),
            (2, 7..10) => match &self.last {
                Some((buffer, offset)) => Given(buffer.clone(), *offset),
                None => Given(fresh(bytes, storage), 0),
            },
            (_, 1) => Given(fresh(bytes + 4096, storage), self.alignment * pick(4)),
            _ => Given(fresh(bytes, storage), 0),
        };
        self.last = Some((given.0.clone(), given.1));
        given
    }

    fn tensor(&mut self, pick: &mut Pick<'_>) -> Given {
        self.of(self.problem.bytes(), pick)
    }

    /// Where another may be replaced.
    fn tensor_or(&mut self, other: &Given, pick: &mut Pick<'_>) -> Given {
        if pick(6) == 0 {
            return Given(other.0.clone(), other.1);
        }
        self.tensor(pick)
    }

    fn vector(&mut self, pick: &mut Pick<'_>) -> Given {
        let bytes = 4 * self.problem.channels as u64;
        let mut given = self.of(bytes + 64, pick);
        if pick(4) == 0 {
            given.1 = given.1.saturating_add(4 * pick(16));
        }
        given
    }

    fn packed(&mut self, rows: u64, pick: &mut Pick<'_>) -> Given {
        self.of(4 * rows * self.problem.channels as u64, pick)
    }

    fn statistics(&mut self, rows: u64, pick: &mut Pick<'_>) -> Given {
        self.of(4 * rows * self.problem.statistics() as u64, pick)
    }

    /// What a plan wants or not; now and then the other.
    fn optional(&mut self, wanted: bool, bytes: u64, pick: &mut Pick<'_>) -> Option<Given> {
        (wanted != (self.mood == 2 && pick(16) == 0)).then(|| self.of(bytes, pick))
    }

    fn residual(&mut self, pick: &mut Pick<'_>) -> Option<Given> {
        self.optional(self.problem.residual, self.problem.bytes(), pick)
    }

    fn mask(&mut self, pick: &mut Pick<'_>) -> Option<Given> {
        let [rows, inner] = self.problem.mask_shape();
        self.optional(self.problem.mask, 4 * (rows * inner) as u64, pick)
    }
}

fn buffer(device: &Device, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    device.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        // 16-bit tensors may end in the middle of a word, buffers not.
        size: size.next_multiple_of(4),
        usage,
        mapped_at_creation: false,
    })
}

/// Running statistics, packed or apart.
fn running<'b>(given: &'b [Given]) -> Running<'b> {
    match given {
        [packed] => Running::packed(packed.range()),
        [mean, variance] => Running::new(mean.range(), variance.range()),
        [mean, variance, batches, ..] => {
            Running::new(mean.range(), variance.range()).batches(batches.range())
        }
        [] => unreachable!("one at least"),
    }
}

fn running_given(arguments: &mut Arguments<'_>, pick: &mut Pick<'_>) -> Vec<Given> {
    match pick(3) {
        0 => vec![arguments.packed(3, pick)],
        n => (0..1 + n).map(|_| arguments.vector(pick)).collect(),
    }
}

/// Weight and bias, or their gradients: which way they are given, and what.
fn affine_given(arguments: &mut Arguments<'_>, pick: &mut Pick<'_>) -> (u64, Vec<Given>) {
    let way = pick(5);
    let given = match way {
        0 => vec![],
        1 => vec![arguments.packed(2, pick)],
        2 | 3 => vec![arguments.vector(pick)],
        _ => vec![arguments.vector(pick), arguments.vector(pick)],
    };
    (way, given)
}

macro_rules! give {
    ($args:expr, affine $given:expr) => {
        match &$given {
            (1, g) => $args.affine_packed(g[0].range()),
            (2, g) => $args.weight(g[0].range()),
            (3, g) => $args.bias(g[0].range()),
            (4, g) => $args.affine(g[0].range(), g[1].range()),
            _ => $args,
        }
    };
    ($args:expr, $setter:ident $given:expr) => {
        match &$given {
            Some(g) => $args.$setter(g.range()),
            None => $args,
        }
    };
}

fn bind(prepared: &Prepared, a: &mut Arguments<'_>, pick: &mut Pick<'_>) -> Result<Operation> {
    a.mood = [0, 0, 0, 1, 2][pick(5) as usize];
    a.next = 0;
    a.last = None;
    match pick(9) {
        0 => {
            let (input, residual, mask) = (a.tensor(pick), a.residual(pick), a.mask(pick));
            let (output, affine) = (a.tensor_or(&input, pick), affine_given(a, pick));
            let statistics = (pick(2) == 0).then(|| running_given(a, pick));
            let saved = (pick(2) == 0).then(|| a.statistics(4, pick));
            let mut args = ForwardTraining::new(input.range(), output.range());
            args = give!(args, residual residual);
            args = give!(args, mask mask);
            args = give!(args, affine affine);
            args = give!(args, saved saved);
            if let Some(given) = &statistics {
                args = args.running(running(given));
            }
            prepared.bind_forward_training(&args)
        }
        1 => {
            let (input, residual) = (a.tensor(pick), a.residual(pick));
            let (output, affine) = (a.tensor_or(&input, pick), affine_given(a, pick));
            let statistics = running_given(a, pick);
            let mut args = Inference::new(input.range(), output.range(), running(&statistics));
            args = give!(args, residual residual);
            args = give!(args, affine affine);
            prepared.bind_inference(&args)
        }
        way @ 2..5 => {
            let apart = way == 4;
            let (input, grad_output) = (a.tensor(pick), a.tensor(pick));
            let grad_input = a.tensor_or(&grad_output, pick);
            let frozen = !apart && pick(3) == 0;
            let (saved, statistics) = (a.statistics(4, pick), running_given(a, pick));
            let (residual, mask) = (a.residual(pick), a.mask(pick));
            let (affine, grads) = (affine_given(a, pick), affine_given(a, pick));
            let writes = a.problem.writes_grad_residual();
            let grad_residual = a.optional(writes, a.problem.bytes(), pick);
            let mut args = match frozen {
                true => Backward::frozen(
                    input.range(),
                    running(&statistics),
                    grad_output.range(),
                    grad_input.range(),
                ),
                false => Backward::new(
                    input.range(),
                    saved.range(),
                    grad_output.range(),
                    grad_input.range(),
                ),
            };
            args = give!(args, residual residual);
            args = give!(args, mask mask);
            args = give!(args, affine affine);
            args = give!(args, grad_residual grad_residual);
            args = match &grads {
                (1, g) => args.grad_affine_packed(g[0].range()),
                (2, g) => args.grad_weight(g[0].range()),
                (3, g) => args.grad_bias(g[0].range()),
                (4, g) => args.grad_affine(g[0].range(), g[1].range()),
                _ => args,
            };
            if pick(3) == 0 {
                args = args.accumulate();
            }
            if !apart {
                return prepared.bind_backward(&args);
            }
            let sums = a.statistics(4, pick);
            let mut args = BackwardApply::new(args, sums.range());
            if pick(2) == 0 {
                args = args.count(pick(1 << 32) as u32);
            }
            prepared.bind_backward_apply(&args)
        }
        5 => {
            let (input, mask, moments) = (a.tensor(pick), a.mask(pick), a.statistics(4, pick));
            let args = Reduce::new(input.range(), moments.range());
            prepared.bind_reduce(&give!(args, mask mask))
        }
        6 => {
            let sets = if pick(8) == 0 { pick(1 << 32) } else { pick(9) };
            let (parts, moments) = (a.statistics(4 * sets.min(9), pick), a.statistics(4, pick));
            prepared.bind_combine(&Combine::new(parts.range(), sets as u32, moments.range()))
        }
        7 => {
            let (moments, coefficients) = (a.statistics(4, pick), a.statistics(4, pick));
            let (affine, statistics) = (affine_given(a, pick), running_given(a, pick));
            let saved = (pick(2) == 0).then(|| a.statistics(4, pick));
            let mut args = Finalize::new(moments.range(), coefficients.range());
            args = give!(args, affine affine);
            args = give!(args, saved saved);
            if pick(2) == 0 {
                args = args.running(running(&statistics));
            }
            prepared.bind_finalize(&args)
        }
        _ => {
            let (input, residual) = (a.tensor(pick), a.residual(pick));
            if pick(2) == 0 {
                let coefficients = a.statistics(4, pick);
                let output = a.tensor_or(&input, pick);
                let args = Normalize::new(input.range(), coefficients.range(), output.range());
                return prepared.bind_normalize(&give!(args, residual residual));
            }
            let (saved, grad_output) = (a.statistics(4, pick), a.tensor(pick));
            let (sums, affine) = (a.statistics(4, pick), affine_given(a, pick));
            let mut args = BackwardReduce::new(
                input.range(),
                saved.range(),
                grad_output.range(),
                sums.range(),
            );
            args = give!(args, residual residual);
            args = give!(args, affine affine);
            prepared.bind_backward_reduce(&args)
        }
    }
}

/// A layer and its passes, over batches of other lengths too.
fn layer(device: &Device, problem: &Problem, pick: &mut Pick<'_>) -> Outcome {
    let layer = match BatchNorm::new(&device.kernels, problem) {
        Ok(layer) => layer
            .update_running(pick(4) > 0)
            .train_affine(pick(4) > 0)
            .accumulate(pick(4) == 0),
        Err(error) if is_devices(&error) => panic!("{error}\n{problem:?}"),
        Err(_) => return Outcome::Refused,
    };
    for _ in 0..1 + pick(2) {
        let mut batch = problem.clone();
        (batch.outer, batch.inner) = match pick(4) {
            0 => (pick(3) as usize, pick(9) as usize),
            1 => (1 + pick(60) as usize, 1 + pick(20) as usize),
            _ => (problem.outer, problem.inner),
        };
        let tensor = || buffer(device, batch.bytes().max(4), wgpu::BufferUsages::STORAGE);
        let [rows, inner] = batch.mask_shape();
        let mask = buffer(
            device,
            4 * (rows * inner).max(1) as u64,
            wgpu::BufferUsages::STORAGE,
        );
        let [
            input,
            output,
            residual,
            grad_output,
            grad_input,
            grad_residual,
        ] = [(); 6].map(|()| tensor());
        let mut given = Batch::new(batch.outer, batch.inner, &input);
        if batch.residual {
            given = given.residual(&residual);
        }
        if batch.mask {
            given = given.mask(&mask);
        }
        let grad_residual = batch
            .writes_grad_residual()
            .then(|| BufferRange::new(&grad_residual, 0));
        let operations = [
            layer.bind_training(&given, &output),
            layer.bind_inference(&given, &output),
            layer.bind_backward(&given, &grad_output, &grad_input, grad_residual),
            layer.bind_frozen_backward(&given, &grad_output, &grad_input, grad_residual),
        ];
        for operation in operations {
            match operation {
                Ok(operation) => encode(device, &operation),
                Err(error) if is_devices(&error) => panic!("{error}\n{batch:?}"),
                Err(_) => {}
            }
        }
    }
    Outcome::Done
}
