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
    /// What fills the buffer.
    #[cfg_attr(target_family = "wasm", allow(dead_code))]
    submitted: wgpu::SubmissionIndex,
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
    /// Maps all of a buffer that a submission fills.
    pub(crate) fn start(
        device: &wgpu::Device,
        staging: wgpu::Buffer,
        submitted: wgpu::SubmissionIndex,
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
            submitted,
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
        let began = std::time::Instant::now();
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
            let polled = self.device.poll(wgpu::PollType::Wait {
                submission_index: Some(self.submitted.clone()),
                timeout: left,
            });
            // Even where the wait was too short: what is done has been called back. Or another thread polled, and is
            // about to call back.
            if let Poll::Ready(result) = self.poll(&mut context) {
                return result;
            }
            match polled {
                Err(wgpu::PollError::Timeout) => {}
                Err(error) => return Err(failed(&self.device, self.action, &error)),
                Ok(_) => std::thread::yield_now(),
            }
            if let Some(timeout) = timeout
                && began.elapsed() >= timeout
            {
                return Err(crate::Error::Timeout {
                    action: self.action,
                    timeout,
                });
            }
        }
    }

    /// What has been mapped.
    pub(crate) fn view(&self, range: impl std::ops::RangeBounds<u64>) -> Result<wgpu::BufferView> {
        let view = self.staging.get_mapped_range(range);
        view.map_err(|error| failed(&self.device, self.action, &error))
    }
}
