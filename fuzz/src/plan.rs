//! Any problem on any device with any choices: a plan that keeps its promises, or a refusal in one line.

use wgpu_batchnorm::{Error, Plan};

use crate::{Outcome, Pick};

/// One case. The plan's own invariants are in the library, where its unit tests go through some cases too.
pub fn run(pick: &mut Pick<'_>) -> Outcome {
    let (problem, caps, choices) = Plan::arbitrary(&mut *pick);
    match Plan::with(&problem, &caps, &choices) {
        Ok(plan) => {
            if let Err(broken) = plan.check() {
                panic!("{broken}\nby {choices:?}");
            }
            assert!(!plan.to_string().is_empty());
            Outcome::Done
        }
        Err(error @ Error::Device { .. }) => panic!("the planner touched a device: {error}"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{text}");
            Outcome::Refused
        }
    }
}
