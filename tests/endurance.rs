//! A hundred thousand steps of a bound operation grow nothing, on the host or on the device. A process of its own, whose
//! memory nobody else changes.

use wgpu_batchnorm::{ForwardTraining, Gpu, Plan, Problem};

const STEPS: usize = 100_000;
const STEPS_PER_SUBMIT: usize = 100;

/// Bytes that this process has in memory, where the system tells.
fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// Bytes that the device has given out, where the backend counts them.
fn on_the_device(gpu: &Gpu) -> Option<u64> {
    let report = gpu.device.generate_allocator_report()?;
    Some(report.total_allocated_bytes)
}

#[test]
fn a_hundred_thousand_steps_grow_nothing() {
    let gpu = Gpu::new().expect("an adapter");
    let problem = Problem::new(4, 8, 16);
    let plan = Plan::new(&problem, gpu.kernels.caps()).unwrap();
    let buffer = |bytes| {
        gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        })
    };
    let (x, y) = (buffer(problem.bytes()), buffer(problem.bytes()));
    let running = buffer(3 * 8 * 4);
    let arguments = ForwardTraining::new(&x, &y).running(&running);
    let step = gpu.kernels.prepare(&plan).unwrap();
    let operation = step.bind_forward_training(&arguments).unwrap();

    let mut before = None;
    for submit in 0..STEPS / STEPS_PER_SUBMIT {
        // What drivers and allocators set up on first use is there after a tenth.
        if submit == STEPS / STEPS_PER_SUBMIT / 10 {
            before = Some((resident(), on_the_device(&gpu)));
        }
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        for _ in 0..STEPS_PER_SUBMIT {
            operation.encode(&mut encoder);
        }
        gpu.queue.submit([encoder.finish()]);
        gpu.device
            .poll(wgpu::PollType::wait_indefinitely())
            .unwrap();
    }
    let (host, device) = before.unwrap();
    assert_eq!(on_the_device(&gpu), device);
    if let (Some(before), Some(after)) = (host, resident()) {
        let grown = after.saturating_sub(before);
        assert!(grown < 2 << 20, "the process grew by {grown} bytes");
    }
    let words = gpu.submit_and_read(None, &[&running]).unwrap();
    assert_eq!(words.wait().unwrap()[0][16..], [STEPS as u32; 8]);
}
