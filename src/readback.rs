//! Waiting for what comes back from a device.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::Result;
use crate::faults::failed;

/// A staging buffer that is being mapped. Somebody must poll the device.
#[derive(Debug)]
pub(crate) struct Mapping {
    device: wgpu::Device,
    staging: wgpu::Buffer,
    action: &'static str,
    answer: Arc<Mutex<Answer>>,
}

/// What the callback of `map_async` leaves.
#[derive(Debug, Default)]
struct Answer {
    result: Option<Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

impl Mapping {
    /// Maps all of a buffer that what has been submitted fills.
    pub(crate) fn start(
        device: &wgpu::Device,
        staging: wgpu::Buffer,
        action: &'static str,
    ) -> Self {
        let answer = Arc::new(Mutex::new(Answer::default()));
        let shared = Arc::clone(&answer);
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let mut answer = shared.lock().unwrap_or_else(PoisonError::into_inner);
            answer.result = Some(result);
            if let Some(waker) = answer.waker.take() {
                waker.wake();
            }
        });
        Mapping {
            device: device.clone(),
            staging,
            action,
            answer,
        }
    }

    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(result) = answer.result.clone() else {
            answer.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        drop(answer);
        Poll::Ready(result.map_err(|error| failed(&self.device, self.action, &error)))
    }

    /// Waits for the device, for good or for a time. Blocks.
    #[cfg(all(
        any(feature = "state", all(feature = "ndarray", feature = "device")),
        not(target_family = "wasm")
    ))]
    pub(crate) fn wait(&self, timeout: Option<std::time::Duration>) -> Result<()> {
        let (action, late) = (self.action, timeout.unwrap_or_default());
        let began = std::time::Instant::now();
        let mut context = Context::from_waker(Waker::noop());
        loop {
            // Another thread may have polled the device, and be about to call back.
            if let Poll::Ready(result) = self.poll(&mut context) {
                return result;
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
            let polled = self.device.poll(wgpu::PollType::Wait {
                submission_index: None,
                timeout: left,
            });
            match polled {
                Err(wgpu::PollError::Timeout) => {
                    return Err(crate::Error::Timeout { action, late });
                }
                Err(error) => return Err(failed(&self.device, action, &error)),
                Ok(_) if left.is_some_and(|left| left.is_zero()) => {
                    if let Poll::Ready(result) = self.poll(&mut context) {
                        return result;
                    }
                    return Err(crate::Error::Timeout { action, late });
                }
                Ok(_) => {}
            }
        }
    }

    /// What has been mapped.
    pub(crate) fn view(&self, range: impl std::ops::RangeBounds<u64>) -> Result<wgpu::BufferView> {
        let view = self.staging.get_mapped_range(range);
        view.map_err(|error| failed(&self.device, self.action, &error))
    }
}
