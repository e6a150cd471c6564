//! What a caller gives: usage, size, alignment and overlap, each fault with an error of its own.

use super::{Access, Bound, Recorder, Vector};
use crate::arguments::BufferRange;
use crate::{Activation, Error, Result};

impl Recorder<'_> {
    pub(super) fn check(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        bytes: u64,
        alignment: u64,
        (access, in_place): (Access, Option<&'static str>),
        detail: String,
    ) -> Result<Bound> {
        if !range.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::BufferUsage {
                tensor: name,
                given: range.buffer.usage(),
                missing: "STORAGE",
            });
        }
        if range.available() < bytes {
            return Err(Error::BufferSize {
                tensor: name,
                given: range.available(),
                expected: bytes,
                detail,
            });
        }
        if !range.offset.is_multiple_of(alignment) {
            return Err(Error::BufferAlignment {
                tensor: name,
                offset: range.offset,
                alignment,
            });
        }
        let bound = Bound {
            name,
            buffer: range.buffer.clone(),
            offset: range.offset,
            size: bytes,
        };
        for (other, other_access) in &self.arguments {
            // In place: the very range, and the caller of this function knows what it means.
            if in_place == Some(other.name) && bound.is(other) {
                continue;
            }
            let written = access == Access::Write || *other_access == Access::Write;
            if written && bound.overlaps(other) {
                let remedy = "give each a buffer of its own";
                return Err(Error::Overlap {
                    first: other.name,
                    second: name,
                    how: "overlap in one buffer",
                    remedy,
                });
            }
        }
        self.arguments.push((bound.clone(), access));
        Ok(bound)
    }

    pub(super) fn offset_alignment(&self) -> u64 {
        u64::from(self.kernels.caps().offset_alignment)
    }

    pub(crate) fn tensor(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        access: Access,
    ) -> Result<Bound> {
        self.tensor_or_in_place(name, range, access, None)
    }

    /// A tensor that may replace another one, by being its very range.
    pub(crate) fn tensor_or_in_place(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        access: Access,
        in_place: Option<&'static str>,
    ) -> Result<Bound> {
        let problem = self.plan.problem();
        let outer = if problem.groups > 1 {
            "groups·outer"
        } else {
            "outer"
        };
        let detail = format!(
            " for shape [{outer}, channels, inner] = {:?} in {}",
            problem.shape(),
            problem.dtype
        );
        let (bytes, alignment) = (problem.bytes(), self.offset_alignment());
        self.check(name, range, bytes, alignment, (access, in_place), detail)
    }

    pub(crate) fn mask(&mut self, mask: Option<BufferRange<'_>>) -> Result<Option<Bound>> {
        let problem = self.plan.problem();
        let argument = |problem: &str, remedy: &str| Error::Argument {
            tensor: "mask",
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        };
        match (problem.mask, mask) {
            (false, None) => Ok(None),
            (true, None) => Err(argument(
                "the plan has one, but none was given",
                "give it with .mask(…)",
            )),
            (false, Some(_)) => Err(argument(
                "one was given, but the plan has none",
                "plan Problem::with_mask()",
            )),
            (true, Some(range)) => {
                let shape = problem.mask_shape();
                let detail = format!(" for shape [groups·outer, inner] = {shape:?} in f32");
                let bytes = (shape[0] * shape[1] * 4) as u64;
                let alignment = self.offset_alignment();
                let access = Access::Read;
                self.check("mask", range, bytes, alignment, (access, None), detail)
                    .map(Some)
            }
        }
    }

    /// Several f32 per channel in one buffer.
    pub(crate) fn packed(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        each: u64,
        access: Access,
    ) -> Result<Bound> {
        let channels = self.channels();
        let detail = format!(" for {each} f32 for each of {channels} channels");
        self.packed_of(name, range, channels * each * 4, access, detail)
    }

    /// Several f32 per channel of each group in one buffer.
    pub(crate) fn packed_statistics(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        each: u64,
        access: Access,
    ) -> Result<Bound> {
        let (groups, channels) = (self.plan.problem().groups, self.channels());
        let of_groups = match groups {
            1 => String::new(),
            groups => format!(" of {groups} groups"),
        };
        let detail = format!(" for {each} f32 for each of {channels} channels{of_groups}");
        let statistics = self.plan.problem().statistics() as u64;
        let bytes = statistics.saturating_mul(each).saturating_mul(4);
        self.packed_of(name, range, bytes, access, detail)
    }

    pub(super) fn packed_of(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        bytes: u64,
        access: Access,
        detail: String,
    ) -> Result<Bound> {
        let alignment = self.offset_alignment();
        self.check(name, range, bytes, alignment, (access, None), detail)
    }

    pub(super) fn vector(
        &mut self,
        name: &'static str,
        range: BufferRange<'_>,
        access: Access,
    ) -> Result<Vector> {
        let channels = self.channels();
        let detail = format!(" for one f32 for each of {channels} channels");
        let exact = self.check(name, range, channels * 4, 4, (access, None), detail)?;
        let before = exact.offset % self.offset_alignment();
        let range = Bound {
            offset: exact.offset - before,
            size: exact.size + before,
            ..exact
        };
        Ok(Vector {
            range,
            start: (before / 4) as u32,
        })
    }

    pub(crate) fn residual(&mut self, residual: Option<BufferRange<'_>>) -> Result<Option<Bound>> {
        let argument = |problem: &str, remedy| {
            Err(Error::Argument {
                tensor: "residual",
                problem: problem.to_owned(),
                remedy,
            })
        };
        match (self.plan.problem().residual, residual) {
            (true, Some(range)) => Ok(Some(self.tensor("residual", range, Access::Read)?)),
            (false, None) => Ok(None),
            (true, None) => argument(
                "the plan has one, but none was given",
                "give it with .residual(…)".to_owned(),
            ),
            (false, Some(_)) => argument(
                "one was given, but the plan has none",
                "plan Problem::with_residual()".to_owned(),
            ),
        }
    }

    /// A gradient needs the residual only to know what the activation let through.
    pub(crate) fn residual_of_gradient(
        &mut self,
        residual: Option<BufferRange<'_>>,
    ) -> Result<Option<Bound>> {
        if self.plan.problem().residual && self.plan.problem().activation == Activation::None {
            return Ok(None);
        }
        self.residual(residual)
    }
}
