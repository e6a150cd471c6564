//! What a device can do to its user: be lost, keep them waiting. Want of memory is the command line's test.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ndarray::Array3;
use wgpu_batchnorm::{
    Arrays, BatchNorm, Error, ForwardTraining, Gpu, Kernels, Operation, Plan, Problem,
};

use crate::{name, on_every_adapter};

const SHAPE: [usize; 3] = [8, 4, 16];

fn input() -> Array3<f32> {
    Array3::from_shape_fn(SHAPE, |(o, c, i)| (o * 3 + c * 5 + i * 7) as f32)
}

/// A device of its own, and what wgpu reports with nobody to catch it.
fn own_device(gpu: &Gpu) -> (Gpu, Arc<Mutex<Vec<String>>>) {
    let gpu = Gpu::on(gpu.adapter.clone()).unwrap();
    let errors = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&errors);
    gpu.device
        .on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            log.lock().unwrap().push(error.to_string());
        }));
    (gpu, errors)
}

fn buffer(gpu: &Gpu, bytes: u64) -> wgpu::Buffer {
    gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

fn bound(gpu: &Gpu, plan: &Plan, [input, output]: [&wgpu::Buffer; 2]) -> Result<Operation, Error> {
    let arguments = ForwardTraining::new(input, output);
    gpu.kernels.prepare(plan)?.bind_forward_training(&arguments)
}

/// Nothing panics and nothing goes to wgpu's handler: what needs the device says that it is lost, what only records is let
/// pass, and a fresh device works.
#[test]
fn a_lost_device_says_so() {
    on_every_adapter(|shared| {
        let (gpu, errors) = own_device(shared);
        let [outer, channels, inner] = SHAPE;
        let problem = Problem::new(outer, channels, inner);
        let plan = Plan::new(&problem, gpu.kernels.caps()).unwrap();
        let x = input();
        let arrays = Arrays::new(x.view());
        let layer = BatchNorm::new(&gpu.kernels, &problem).unwrap();
        let (from, to) = (buffer(&gpu, problem.bytes()), buffer(&gpu, problem.bytes()));
        let operation = bound(&gpu, &plan, [&from, &to]).unwrap();
        let before = gpu.submit_and_read(Some(&operation), &[&to]).unwrap();
        let mut begun = gpu.device.create_command_encoder(&Default::default());
        operation.encode(&mut begun);

        gpu.device.destroy();

        operation.encode(&mut begun);
        gpu.queue.submit([begun.finish()]);
        let mut fresh = gpu.device.create_command_encoder(&Default::default());
        operation.encode(&mut fresh);
        gpu.queue.submit([fresh.finish()]);

        let read = |readback: wgpu_batchnorm::Readback| readback.wait().map(drop);
        let state = layer.submit_and_read_state(&gpu.queue);
        let kernels = Kernels::new(&gpu.device);
        let results = [
            ("a readback begun before", read(before)),
            ("prepare", gpu.kernels.prepare(&plan).map(drop)),
            (
                "prepare on kernels made after",
                kernels.and_then(|k| k.prepare(&plan)).map(drop),
            ),
            ("binding", bound(&gpu, &plan, [&from, &to]).map(drop)),
            (
                "a readback",
                gpu.submit_and_read(Some(&operation), &[&to]).and_then(read),
            ),
            (
                "arrays",
                gpu.forward_training(&plan, &arrays, None).map(drop),
            ),
            ("a layer", BatchNorm::new(&gpu.kernels, &problem).map(drop)),
            ("a state", state.and_then(|s| s.wait()).map(drop)),
            ("the probe", gpu.keeps_remainders().map(drop)),
        ];
        for (what, result) in results {
            assert!(
                matches!(result, Err(Error::DeviceLost { .. })),
                "{what} on {}: {result:?}",
                name(&gpu)
            );
        }
        assert_eq!(*errors.lock().unwrap(), [""; 0], "on {}", name(&gpu));

        let (again, _) = own_device(shared);
        let got = again.forward_training(&plan, &arrays, None).unwrap();
        let want = shared.forward_training(&plan, &arrays, None).unwrap();
        assert_eq!(got, want, "on {}", name(&gpu));
    });
}

/// A wait that is too short says so and may be repeated, and the results are there in the end.
#[test]
fn a_wait_that_is_too_short_may_be_repeated() {
    on_every_adapter(|shared| {
        let (gpu, errors) = own_device(shared);
        let problem = Problem::new(16, 32, 4096);
        let plan = Plan::new(&problem, gpu.kernels.caps()).unwrap();
        let (from, to) = (buffer(&gpu, problem.bytes()), buffer(&gpu, problem.bytes()));
        let operation = bound(&gpu, &plan, [&from, &to]).unwrap();
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        (0..20).for_each(|_| operation.encode(&mut encoder));
        gpu.queue.submit([encoder.finish()]);
        let mut readback = gpu.submit_and_read(Some(&operation), &[&to]).unwrap();
        let mut waits = 0;
        let words = loop {
            match readback.wait_timeout(Duration::from_micros(1 << waits)) {
                Ok(words) => break words,
                Err(Error::Timeout { timeout, .. }) => {
                    assert_eq!(timeout, Duration::from_micros(1 << waits));
                    waits += 1;
                }
                Err(error) => panic!("{error} on {}", name(&gpu)),
            }
        };
        assert_eq!(words[0].len() as u64 * 4, problem.bytes());
        assert_eq!(*errors.lock().unwrap(), [""; 0], "on {}", name(&gpu));
    });
}
