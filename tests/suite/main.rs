//! One suite: agreement with the reference on every adapter, plans, the API on a user's own device, bad input.

mod agreement;
mod api;
mod bad_input;
mod chunks;
mod conformance;
mod edges;
mod faults;
mod literature;
mod networks;
mod numerics;
mod plans;
mod properties;
mod state;
mod tune;
mod types;

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use wgpu_batchnorm::{Gpu, Kernels};

/// What wgpu reported with nobody to catch it.
type Uncaught = Arc<Mutex<Vec<String>>>;

/// A device, and what wgpu reported of it with nobody to catch it.
type Watched = (Gpu, Uncaught);

/// Every adapter of this machine, with a device that turns an uncaught wgpu error into a failure.
///
/// Tests on the GPU need one: without any they fail and say what to install.
static GPUS: LazyLock<Vec<Watched>> = LazyLock::new(|| {
    let adapters = Gpu::adapters(wgpu::Backends::all());
    if adapters.is_empty() {
        panic!("{}", Gpu::new().expect_err("there is no adapter"));
    }
    let device = |adapter| watched(Gpu::on(adapter).expect("every adapter gives a device"));
    adapters.into_iter().map(device).collect()
});

/// The same with devices that have no optional feature. A software adapter moves tensors there as a GPU does.
static PLAIN: LazyLock<Vec<Watched>> = LazyLock::new(|| {
    let device = |(gpu, _): &Watched| watched(plain(&gpu.adapter, gpu.adapter.limits()));
    GPUS.iter().map(device).collect()
});

fn watched(gpu: Gpu) -> Watched {
    let errors = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&errors);
    gpu.device
        .on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            log.lock().unwrap().push(error.to_string());
        }));
    (gpu, errors)
}

/// A device without optional features.
fn plain(adapter: &wgpu::Adapter, limits: wgpu::Limits) -> Gpu {
    let descriptor = wgpu::DeviceDescriptor {
        required_limits: limits,
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    let kernels = Kernels::new(&device).unwrap();
    assert!(!kernels.caps().shader_int64);
    Gpu {
        adapter: adapter.clone(),
        device,
        queue,
        kernels,
    }
}

/// Runs a test on every adapter, and fails on any wgpu error that nobody caught.
fn on_every_adapter(test: impl Fn(&Gpu)) {
    on_each(&GPUS, test);
}

/// The same on devices without optional features.
fn on_plain_devices(test: impl Fn(&Gpu)) {
    on_each(&PLAIN, test);
}

fn on_each(devices: &[Watched], test: impl Fn(&Gpu)) {
    for (gpu, errors) in devices {
        // wgpu gives up on a GL context that another thread keeps busy for seconds, as compiling may.
        static GL: Mutex<()> = Mutex::new(());
        let _alone = is_gl(gpu).then(|| GL.lock().unwrap_or_else(PoisonError::into_inner));
        test(gpu);
        let errors = errors.lock().unwrap();
        assert!(
            errors.is_empty(),
            "wgpu reported on {:?}: {errors:?}",
            gpu.adapter.get_info()
        );
    }
}

fn is_gl(gpu: &Gpu) -> bool {
    gpu.adapter.get_info().backend == wgpu::Backend::Gl
}

/// `test` where it is not GL, whose compiler takes most of a second for a kernel: for what changes plans and not the
/// language. `make matrix` goes through GL in full.
fn but_on_gl(test: impl Fn(&Gpu)) -> impl Fn(&Gpu) {
    let only_gl = GPUS.iter().all(|(gpu, _)| is_gl(gpu));
    move |gpu| {
        if only_gl || !is_gl(gpu) {
            test(gpu);
        }
    }
}

fn name(gpu: &Gpu) -> String {
    let info = gpu.adapter.get_info();
    format!("{} ({})", info.name, info.backend)
}
