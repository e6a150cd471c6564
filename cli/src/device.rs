//! Waiting for a device: as a future everywhere, and blocking off the web.

#[cfg(not(target_family = "wasm"))]
use anyhow::Context;
use anyhow::Result;
use wgpu_batchnorm::Gpu;

/// Until everything submitted so far is done. Somebody must poll the device, as a browser does by itself.
pub(crate) async fn idle(gpu: &Gpu) -> Result<()> {
    let (sender, receiver) = futures_channel::oneshot::channel();
    gpu.queue.on_submitted_work_done(move || {
        // Nobody waits any more: then nobody needs to know.
        let _ = sender.send(());
    });
    receiver
        .await
        .map_err(|_| anyhow::anyhow!("waiting for the device: it was lost"))
}

/// Runs a future that waits for nothing but this device, polling the device.
///
/// # Errors
/// Those of the future, and a device that is lost.
#[cfg(not(target_family = "wasm"))]
pub fn wait<T>(gpu: &Gpu, future: impl Future<Output = Result<T>>) -> Result<T> {
    use std::task::{Context as TaskContext, Poll, Waker};
    let mut future = std::pin::pin!(future);
    let mut context = TaskContext::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        gpu.device
            .poll(wgpu::PollType::wait_indefinitely())
            .context("waiting for the device")?;
    }
}
