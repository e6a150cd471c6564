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

use wgpu_batchnorm::Gpu;

/// What wgpu reported with nobody to catch it.
type Uncaught = Arc<Mutex<Vec<String>>>;

/// Every adapter of this machine, with a device that turns an uncaught wgpu error into a failure.
///
/// Tests on the GPU need one: without any they fail and say what to install.
static GPUS: LazyLock<Vec<(Gpu, Uncaught)>> = LazyLock::new(|| {
    let adapters = Gpu::adapters(wgpu::Backends::all());
    if adapters.is_empty() {
        panic!("{}", Gpu::new().expect_err("there is no adapter"));
    }
    adapters
        .into_iter()
        .map(|adapter| {
            let gpu = Gpu::on(adapter).expect("every adapter gives a device");
            let errors = Arc::new(Mutex::new(Vec::new()));
            let log = Arc::clone(&errors);
            gpu.device
                .on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
                    log.lock().unwrap().push(error.to_string());
                }));
            (gpu, errors)
        })
        .collect()
});

/// Runs a test on every adapter, and fails on any wgpu error that nobody caught.
fn on_every_adapter(test: impl Fn(&Gpu)) {
    for (gpu, errors) in GPUS.iter() {
        // wgpu gives up on a GL context that another thread keeps busy for seconds, as compiling may.
        static GL: Mutex<()> = Mutex::new(());
        let is_gl = gpu.adapter.get_info().backend == wgpu::Backend::Gl;
        let _alone = is_gl.then(|| GL.lock().unwrap_or_else(PoisonError::into_inner));
        test(gpu);
        let errors = errors.lock().unwrap();
        assert!(
            errors.is_empty(),
            "wgpu reported on {:?}: {errors:?}",
            gpu.adapter.get_info()
        );
    }
}

/// The same without GL, whose compiler takes most of a second for a kernel: for what changes plans and not the language.
/// `make matrix` goes through GL in full.
fn on_every_adapter_but_gl(test: impl Fn(&Gpu)) {
    let is_gl = |gpu: &Gpu| gpu.adapter.get_info().backend == wgpu::Backend::Gl;
    let only_gl = GPUS.iter().all(|(gpu, _)| is_gl(gpu));
    on_every_adapter(|gpu| {
        if only_gl || !is_gl(gpu) {
            test(gpu);
        }
    });
}

fn name(gpu: &Gpu) -> String {
    let info = gpu.adapter.get_info();
    format!("{} ({})", info.name, info.backend)
}
