//! A plan as text.

use std::fmt;

use super::{Plan, Step, Walk};
use crate::kernels::Kernel;
use crate::{Dtype, Problem};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem {
            groups,
            outer,
            channels,
            inner,
            dtype,
            ..
        } = self.problem;
        if groups > 1 {
            write!(f, "{groups} groups of ")?;
        }
        let storage = match dtype {
            Dtype::F32 => "f32".to_owned(),
            dtype => format!("{dtype} packed in words, converted in the shader"),
        };
        let by_64 = if self.elements.is_by_64() {
            " by 64-bit integers"
        } else {
            ""
        };
        writeln!(
            f,
            "[{outer}, {channels}, {inner}] {storage}{by_64}: {} ({}), {} ({})",
            self.strategy(),
            self.why_strategy,
            self.walk,
            self.why
        )?;
        if let Some(chunks) = &self.chunks {
            let shape = chunks.each.problem.shape();
            writeln!(
                f,
                "  {} chunks of {shape:?} at most, each with",
                chunks.count
            )?;
        }
        let part = |step: &Step| {
            let [x, y] = step.grid;
            format!(
                "{} [{x}, {y}] x {}",
                step.key.kernel.entry().entry_point,
                step.key.workgroup
            )
        };
        let line = |steps: &[Step]| steps.iter().map(part).collect::<Vec<_>>().join(" -> ");
        writeln!(
            f,
            "  pieces: {} of {} {}",
            self.params.pieces,
            self.params.piece_length,
            if self.walk == Walk::Planar {
                "vectors"
            } else {
                "rows"
            }
        )?;
        let normalize = self.normalize();
        let coefficients = self.per_statistic(Kernel::Coefficients, 0);
        let finalize = self.merge(Kernel::Finalize, None, 0);
        let mut training = vec![self.reduce(), finalize, normalize.clone()];
        let backward_finalize = self.merge(Kernel::BackwardFinalize, None, 0);
        let mut backward = vec![coefficients.clone(), self.backward_reduce()];
        if self.problem.mask {
            backward.push(self.count_mask());
        }
        backward.push(backward_finalize);
        if groups > 1 {
            training.insert(2, self.merge_groups(Kernel::Finalize, None, 0));
            backward.push(self.sum_gradients(0));
        }
        backward.push(self.backward_apply());
        // Where running statistics or parameter gradients merge several groups, those steps are taken nevertheless.
        if let Some(step) = self.fused_forward() {
            training = vec![step];
        }
        if let Some(step) = self.fused_backward() {
            backward = vec![step];
        }
        writeln!(f, "  forward training: {}", line(&training))?;
        writeln!(f, "  inference: {}", line(&[coefficients, normalize]))?;
        writeln!(f, "  backward: {}", line(&backward))?;
        write!(f, "  workspace: {} bytes", self.workspace_bytes())
    }
}
