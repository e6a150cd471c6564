//! What a device may do to its user: refuse, run out of memory, be lost, keep them waiting.

#[cfg(not(target_family = "wasm"))]
use std::task::{Context, Poll, Waker};

use crate::{Error, Result};

/// Catches what wgpu would otherwise report to the device's uncaptured-error handler.
pub(crate) struct ErrorScopes {
    device: wgpu::Device,
    validation: wgpu::ErrorScopeGuard,
    out_of_memory: wgpu::ErrorScopeGuard,
    internal: wgpu::ErrorScopeGuard,
}

impl ErrorScopes {
    pub(crate) fn push(device: &wgpu::Device) -> Self {
        ErrorScopes {
            device: device.clone(),
            validation: device.push_error_scope(wgpu::ErrorFilter::Validation),
            out_of_memory: device.push_error_scope(wgpu::ErrorFilter::OutOfMemory),
            internal: device.push_error_scope(wgpu::ErrorFilter::Internal),
        }
    }

    /// Whether anything went wrong since. A plain function that returns a future: the guards may not cross an await.
    pub(crate) fn pop(self, action: &'static str) -> impl Future<Output = Result<()>> {
        // Scopes nest: the last pushed is popped first.
        let internal = self.internal.pop();
        let out_of_memory = self.out_of_memory.pop();
        let validation = self.validation.pop();
        let device = self.device;
        async move {
            let (internal, out_of_memory, validation) =
                (internal.await, out_of_memory.await, validation.await);
            match (out_of_memory, validation.or(internal)) {
                (None, None) => Ok(()),
                (Some(error), _) => Err(Error::OutOfMemory {
                    action,
                    message: one_line(&error),
                }),
                (None, Some(error)) => Err(failed(&device, action, &error)),
            }
        }
    }
}

/// Takes what the scopes caught. In a browser that answer comes later than this call can wait; there the checks of the
/// arguments stand alone.
pub(crate) fn settle(scopes: ErrorScopes, action: &'static str) -> Result<()> {
    let caught = scopes.pop(action);
    #[cfg(not(target_family = "wasm"))]
    return ready(caught);
    #[cfg(target_family = "wasm")]
    {
        drop(caught);
        Ok(())
    }
}

/// Runs a future that never waits, as wgpu's error scopes off the web are.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::yield_now();
    }
}

/// The error for something that a device refused, which is another where the device is lost.
pub(crate) fn failed(
    device: &wgpu::Device,
    action: &'static str,
    message: &dyn std::fmt::Display,
) -> Error {
    if is_lost(device) {
        Error::DeviceLost { action }
    } else {
        Error::Device {
            action,
            message: one_line(message),
        }
    }
}

/// [`Error::DeviceLost`] where the device is, for what a lost device lets pass.
pub(crate) fn alive(device: &wgpu::Device, action: &'static str) -> Result<()> {
    if is_lost(device) {
        return Err(Error::DeviceLost { action });
    }
    Ok(())
}

/// Whether a device is lost. wgpu tells that to one callback, which is the user's; but nothing of a lost device can be
/// mapped, not even what was mapped when it was made.
fn is_lost(device: &wgpu::Device) -> bool {
    if cfg!(target_family = "wasm") {
        return false; // a browser's lost device answers as if it were well
    }
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let out_of_memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("batchnorm: is the device lost?"),
        size: 8,
        usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    let mapped = buffer.get_mapped_range(..).is_ok();
    // The answers do not matter: this only keeps them from the user's handler.
    drop(validation.pop());
    let short = out_of_memory.pop();
    drop(internal.pop());
    #[cfg(not(target_family = "wasm"))]
    let short = ready(short).is_some();
    #[cfg(target_family = "wasm")]
    let short = {
        drop(short);
        false
    };
    !mapped && !short
}

pub(crate) fn one_line(message: &dyn std::fmt::Display) -> String {
    let words = message.to_string();
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}
