//! Checks arguments, collects the dispatches of an operation, and makes their bind groups.

use crate::arguments::{Affine, Backward, BufferRange, ForwardTraining, Running, Statistics};
use crate::encode::{Dispatch, Operation, Prepared};
use crate::faults::{ErrorScopes, failed, settle};
use crate::kernels::{Kernel, Kernels, Slot};
use crate::plan::{Params, Plan, Sets, Step, flags};
use crate::problem::Momentum;
use crate::{Activation, Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A checked range, ready to bind.
#[derive(Debug, Clone)]
pub(crate) struct Bound {
    name: &'static str,
    buffer: wgpu::Buffer,
    offset: u64,
    size: u64,
}

impl Bound {
    /// Whether both are the same range of one buffer.
    pub(crate) fn is(&self, other: &Bound) -> bool {
        self.buffer == other.buffer && self.offset == other.offset && self.size == other.size
    }

    /// The part of a tensor that a chunk's plan is about, from an element on.
    fn part(&self, start: u64, plan: &Plan) -> Bound {
        Bound {
            offset: self.offset + start * plan.problem().dtype.bytes(),
            size: plan.problem().bytes(),
            ..self.clone()
        }
    }

    fn overlaps(&self, other: &Bound) -> bool {
        self.buffer == other.buffer
            && self.offset < other.offset + other.size
            && other.offset < self.offset + self.size
    }
}

/// A per-channel vector of its own: a range that starts at an aligned offset, and the word at which the vector starts.
#[derive(Debug, Clone)]
pub(crate) struct Vector {
    range: Bound,
    start: u32,
}

#[derive(Debug)]
pub(crate) struct BackwardBound {
    pub(crate) input: Bound,
    pub(crate) grad_output: Bound,
    pub(crate) residual: Option<Bound>,
    pub(crate) mask: Option<Bound>,
    pub(crate) coefficients: Bound,
    pub(crate) joined: Option<Joined>,
}

/// Copies of several tensors in one workspace, for a device with too few bindings.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    /// Input, residual and grad_output, in this order.
    tensors: Bound,
    /// Where they start, in words of the element header.
    residual_start: u32,
    grad_output_start: u32,
    /// Where the mask starts behind the coefficients, in vectors.
    mask_start: u32,
}

impl Joined {
    fn set(&self, step: &mut Step) {
        step.key.joined = true;
        step.params.residual_start = self.residual_start;
        step.params.grad_output_start = self.grad_output_start;
        step.params.mask_start = self.mask_start;
    }
}

/// Collects the dispatches of one operation, and makes bind groups once all arguments are known to be good.
pub(crate) struct Recorder<'a> {
    pub(crate) kernels: &'a Kernels,
    pub(crate) plan: &'a Plan,
    pub(crate) steps: Vec<(Step, Vec<(Slot, Bound)>)>,
    pub(crate) arguments: Vec<(Bound, Access)>,
    /// The packed running statistics that a scatter copies back to buffers of their own.
    pub(crate) gathered_running: Option<Bound>,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(prepared: &'a Prepared) -> Self {
        Recorder {
            kernels: &prepared.kernels,
            plan: &prepared.plan,
            steps: Vec::new(),
            arguments: Vec::new(),
            gathered_running: None,
        }
    }

    fn channels(&self) -> u64 {
        self.plan.problem().channels as u64
    }

    // ---- Checking arguments.

    fn check(
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

    fn offset_alignment(&self) -> u64 {
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

    fn packed_of(
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

    fn vector(
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

    // ---- Recording dispatches.

    pub(crate) fn workspace(&self, name: &'static str, size: u64) -> Result<Bound> {
        let limit = self.plan.max_binding_size();
        if size > limit {
            let what = format!("the workspace ({name})");
            let remedy =
                "use a smaller tensor or fewer channels, or a device with this limit raised"
                    .to_owned();
            return Err(Error::Limit {
                what,
                needed: size,
                limit,
                name: "max_storage_buffer_binding_size",
                remedy,
            });
        }
        let scopes = ErrorScopes::push(self.kernels.device());
        let buffer = self
            .kernels
            .device()
            .create_buffer(&wgpu::BufferDescriptor {
                label: Some(name),
                size,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            });
        settle(scopes, "allocating the workspace")?;
        Ok(Bound {
            name,
            buffer,
            offset: 0,
            size,
        })
    }

    /// Adds a dispatch. Bindings that share a buffer do so in disjoint ranges, unless all read; where some read and some
    /// write, all are bound read_write, because a buffer has one usage in a dispatch.
    pub(crate) fn push(&mut self, mut step: Step, bindings: Vec<(Slot, Bound)>) -> Result<()> {
        // A plan may have been made for another device.
        let caps = self.kernels.caps();
        for (needed, limit, name) in [
            (
                step.grid[0].max(step.grid[1]),
                caps.max_workgroups_per_dimension,
                "max_compute_workgroups_per_dimension",
            ),
            (
                step.key.workgroup,
                caps.max_workgroup_size,
                "max_compute_invocations_per_workgroup",
            ),
        ] {
            if needed > limit {
                return Err(Error::Limit {
                    what: "the plan, which was made for another device,".into(),
                    needed: needed.into(),
                    limit: limit.into(),
                    name,
                    remedy: "plan with Kernels::caps()".into(),
                });
            }
        }
        for (_, bound) in &bindings {
            if bound.size > caps.max_binding_size {
                return Err(Error::Limit {
                    what: format!("binding {}", bound.name),
                    needed: bound.size,
                    limit: caps.max_binding_size,
                    name: "max_storage_buffer_binding_size and max_buffer_size",
                    remedy:
                        "request a device with these limits raised, and plan with Kernels::caps()"
                            .into(),
                });
            }
            let alignment = u64::from(caps.offset_alignment);
            if !bound.offset.is_multiple_of(alignment) {
                // Of a chunk; arguments were checked.
                return Err(Error::BufferAlignment {
                    tensor: bound.name,
                    offset: bound.offset,
                    alignment,
                });
            }
        }
        let entry = step.key.kernel.entry();
        let writes = |slot| entry.bindings.iter().any(|b| b.slot == slot && b.writes);
        let pairs = || {
            bindings.iter().enumerate().flat_map(|(i, a)| {
                let others = bindings[..i].iter();
                others
                    .map(move |b| (b, a))
                    .filter(|(b, a)| a.1.buffer == b.1.buffer)
            })
        };
        if entry.bindings.len() as u32 > caps.max_storage_buffers {
            let given = |slot| bindings.iter().any(|(given, _)| *given == slot);
            let absent = entry.bindings.iter().filter(|b| !given(b.slot));
            step.key.absent = absent.map(|b| 1 << b.number).sum();
        }
        let needed = step.key.bindings().count() as u32;
        if needed > caps.max_storage_buffers {
            return Err(Error::Limit {
                what: format!("{} with these arguments", entry.entry_point),
                needed: needed.into(),
                limit: caps.max_storage_buffers.into(),
                name: "max_storage_buffers_per_shader_stage",
                remedy: "request a device with this limit raised".into(),
            });
        }
        step.key.pooled = pairs().any(|(a, b)| writes(a.0) != writes(b.0));
        for ((slot, bound), (other_slot, other)) in pairs() {
            // What is only read may be one range twice, unless all must be bound read_write.
            let written = writes(*slot) || writes(*other_slot) || step.key.pooled;
            if written && bound.overlaps(other) {
                return Err(Error::Overlap {
                    first: bound.name,
                    second: other.name,
                    how: "overlap in one buffer, which also holds what is written",
                    remedy: "give each a range of its own",
                });
            }
        }
        self.steps.push((step, bindings));
        Ok(())
    }

    /// Copies vectors of their own into a packed workspace; `absent` are the bits for those that are not there.
    fn gather(
        &mut self,
        name: &'static str,
        vectors: [Option<Vector>; 3],
        absent: [u32; 3],
    ) -> Result<Bound> {
        let gathered = self.workspace(name, self.channels() * 12)?;
        let mut step = self.plan.per_channel(Kernel::Gather, 0);
        set_vectors(&mut step.params, &vectors);
        [
            step.params.absent_0,
            step.params.absent_1,
            step.params.absent_2,
        ] = absent;
        let mut bindings = vec![(Slot::Gathered, gathered.clone())];
        for (i, vector) in (0u8..).zip(vectors) {
            bindings.extend(vector.map(|v| (Slot::Source(i), v.range)));
        }
        self.push(step, bindings)?;
        Ok(gathered)
    }

    /// Copies a packed workspace back: vectors that share a buffer in dispatches of their own, as one dispatch may not
    /// write overlapping ranges.
    fn scatter(&mut self, packed: &Bound, vectors: [Option<Vector>; 3]) -> Result<()> {
        let buffers = || vectors.iter().flatten().map(|v| &v.range.buffer);
        let shared = buffers()
            .enumerate()
            .any(|(i, a)| buffers().skip(i + 1).any(|b| a == b));
        let rounds = if shared {
            vec![
                [true, false, false],
                [false, true, false],
                [false, false, true],
            ]
        } else {
            vec![[true; 3]]
        };
        for round in rounds {
            let chosen: [Option<Vector>; 3] =
                std::array::from_fn(|i| vectors[i].clone().filter(|_| round[i]));
            if chosen.iter().all(Option::is_none) {
                continue;
            }
            let mut step = self.plan.per_channel(Kernel::Scatter, 0);
            set_vectors(&mut step.params, &chosen);
            let mut bindings = vec![(Slot::Packed, packed.clone())];
            for (i, vector) in (0u8..).zip(chosen) {
                bindings.extend(vector.map(|v| (Slot::Target(i), v.range)));
            }
            self.push(step, bindings)?;
        }
        Ok(())
    }

    fn affine(&mut self, affine: Affine<'_>) -> Result<Option<Bound>> {
        if affine.is_twofold() {
            return Err(twofold("affine"));
        }
        if let Some(packed) = affine.packed {
            return self.packed("affine", packed, 2, Access::Read).map(Some);
        }
        if affine.is_absent() {
            return Ok(None);
        }
        let weight = affine
            .weight
            .map(|w| self.vector("weight", w, Access::Read))
            .transpose()?;
        let bias = affine
            .bias
            .map(|b| self.vector("bias", b, Access::Read))
            .transpose()?;
        let absent = [1.0f32.to_bits(), 0, 0];
        self.gather("affine", [weight, bias, None], absent)
            .map(Some)
    }

    fn running(&mut self, running: Running<'_>, access: Access) -> Result<Bound> {
        if running.packed.is_some() && running.batches.is_some() {
            return Err(twofold("running"));
        }
        if let Some(packed) = running.packed {
            return self.packed("running", packed, 3, access);
        }
        let vectors = self.running_vectors(running, access)?;
        let gathered = self.gather("running", vectors, [0; 3])?;
        if access == Access::Write {
            self.gathered_running = Some(gathered.clone());
        }
        Ok(gathered)
    }

    fn running_vectors(
        &mut self,
        running: Running<'_>,
        access: Access,
    ) -> Result<[Option<Vector>; 3]> {
        let mean = running
            .mean
            .map(|m| self.vector("running_mean", m, access))
            .transpose()?;
        let variance = running
            .variance
            .map(|v| self.vector("running_var", v, access))
            .transpose()?;
        let batches = running
            .batches
            .map(|b| self.vector("num_batches_tracked", b, access))
            .transpose()?;
        Ok([mean, variance, batches])
    }

    pub(crate) fn scatter_running(&mut self, running: Option<Running<'_>>) -> Result<()> {
        let (Some(running), Some(gathered)) = (running, self.gathered_running.take()) else {
            return Ok(());
        };
        // Checked when they were gathered; here they are only looked up.
        let arguments = std::mem::take(&mut self.arguments);
        let vectors = self.running_vectors(running, Access::Write)?;
        self.arguments = arguments;
        self.scatter(&gathered, vectors)
    }

    /// Moments of the input: partial ones, or, where the tensor is cut into chunks, one set of moments a chunk.
    pub(crate) fn reduce(
        &mut self,
        input: &Bound,
        mask: Option<Bound>,
    ) -> Result<(Bound, Option<Sets>)> {
        self.of_chunks(
            Kernel::Combine,
            Slot::Coefficients,
            |r, start, plan, partials| {
                let mut bindings = vec![
                    (Slot::Input, input.part(start, plan)),
                    (Slot::Partials, partials),
                ];
                bindings.extend(mask.clone().map(|m| (Slot::Mask, m)));
                r.push(plan.reduce(), bindings)
            },
        )
    }

    /// Records partial results of each chunk, and merges each chunk's into a set of one record per statistic; where the
    /// tensor is not cut, the partial results are all.
    fn of_chunks(
        &mut self,
        merge: Kernel,
        merged: Slot,
        mut reduce: impl FnMut(&mut Self, u64, &'a Plan, Bound) -> Result<()>,
    ) -> Result<(Bound, Option<Sets>)> {
        let plan = self.plan;
        // One workspace for all chunks, which come one after the other.
        let partials = self.workspace("partials", plan.partials_bytes())?;
        if !plan.is_chunked() {
            reduce(self, 0, plan, partials.clone())?;
            return Ok((partials, None));
        }
        let sets = plan.chunk_sets();
        let size = plan.coefficients_bytes();
        let stride = u64::from(sets.stride) * 16;
        let together = self.workspace("moments of chunks", u64::from(sets.count) * stride)?;
        for (i, (start, part)) in (0u64..).zip(plan.parts()) {
            let partials = Bound {
                size: part.partials_bytes(),
                ..partials.clone()
            };
            reduce(self, start, part, partials.clone())?;
            let set = Bound {
                offset: i * stride,
                size,
                ..together.clone()
            };
            // M2 stays in the unit of partial results.
            let mut step = part.merge(merge, None, 0);
            step.params.result_unit = plan.square_unit();
            self.push(step, vec![(Slot::Partials, partials), (merged, set)])?;
        }
        Ok((together, Some(sets)))
    }

    pub(crate) fn finalize(
        &mut self,
        sets: Option<Sets>,
        partials: Bound,
        coefficients: &Bound,
        affine: Affine<'_>,
        running: Option<Running<'_>>,
        saved: Option<BufferRange<'_>>,
    ) -> Result<()> {
        let mut flags = flags::HAS_COEFFICIENTS;
        let mut bindings = vec![
            (Slot::Partials, partials.clone()),
            (Slot::Coefficients, coefficients.clone()),
        ];
        if let Some(affine) = self.affine(affine)? {
            flags |= flags::HAS_AFFINE;
            bindings.push((Slot::Affine, affine));
        }
        let running = running
            .map(|running| self.running_to_update(running))
            .transpose()?;
        if let Some(saved) = saved {
            flags |= flags::HAS_SAVED;
            let saved = self.packed_statistics("saved", saved, 4, Access::Write)?;
            bindings.push((Slot::Saved, saved));
        }
        // Running statistics are those of all groups together; and a device may have no binding left for them.
        let apart =
            self.plan.problem().groups > 1 || bindings.len() as u32 >= self.storage_buffers();
        if let (Some(running), false) = (&running, apart) {
            flags |= flags::HAS_RUNNING;
            bindings.push((Slot::Running, running.clone()));
        }
        self.push(self.plan.merge(Kernel::Finalize, sets, flags), bindings)?;
        if let (Some(running), true) = (running, apart) {
            let merge = self
                .plan
                .merge_groups(Kernel::Finalize, sets, flags::HAS_RUNNING);
            self.push(
                merge,
                vec![(Slot::Partials, partials), (Slot::Running, running)],
            )?;
        }
        Ok(())
    }

    /// A training forward pass in one dispatch, unless the strategy is split, or the arguments need more: running
    /// statistics of several groups, an output that replaces the input, too many bindings.
    pub(crate) fn fused_forward(
        &mut self,
        [input, output]: [&Bound; 2],
        residual: Option<&Bound>,
        mask: Option<&Bound>,
        args: &ForwardTraining<'_>,
    ) -> Result<bool> {
        let grouped = self.plan.problem().groups > 1;
        let bindings = 2
            + [residual, mask].into_iter().flatten().count()
            + usize::from(!args.affine.is_absent())
            + usize::from(args.running.is_some())
            + usize::from(args.saved.is_some());
        let merges = grouped && args.running.is_some();
        if merges || output.is(input) || bindings as u32 > self.storage_buffers() {
            return Ok(false);
        }
        let Some(mut step) = self.plan.fused_forward() else {
            return Ok(false);
        };
        let mut bindings = vec![(Slot::Input, input.clone()), (Slot::Output, output.clone())];
        bindings.extend(residual.map(|r| (Slot::Residual, r.clone())));
        bindings.extend(mask.map(|m| (Slot::Mask, m.clone())));
        if let Some(affine) = self.affine(args.affine)? {
            step.params.flags |= flags::HAS_AFFINE;
            bindings.push((Slot::Affine, affine));
        }
        if let Some(running) = args.running {
            step.params.flags |= flags::HAS_RUNNING;
            bindings.push((Slot::Running, self.running_to_update(running)?));
        }
        if let Some(saved) = args.saved {
            step.params.flags |= flags::HAS_SAVED;
            let saved = self.packed_statistics("saved", saved, 4, Access::Write)?;
            bindings.push((Slot::Saved, saved));
        }
        self.push(step, bindings)?;
        Ok(true)
    }

    /// A backward pass in one dispatch, unless the strategy is split, or the arguments need more: frozen statistics,
    /// parameter gradients of several groups, a gradient that replaces another, too many bindings.
    pub(crate) fn fused_backward(&mut self, args: &Backward<'_>) -> Result<bool> {
        let grouped = self.plan.problem().groups > 1;
        let residual = args.residual.is_some() && self.plan.problem().writes_grad_residual();
        let bindings = 4
            + 2 * usize::from(residual)
            + usize::from(!args.affine.is_absent())
            + usize::from(!args.grad_affine.is_absent());
        let merges = grouped && !args.grad_affine.is_absent();
        let in_place = args.grad_input.is(&args.grad_output);
        let Statistics::Saved(saved) = args.statistics else {
            return Ok(false);
        };
        if merges || in_place || bindings as u32 > self.storage_buffers() {
            return Ok(false);
        }
        let Some(mut step) = self.plan.fused_backward() else {
            return Ok(false);
        };
        let input = self.tensor("input", args.input, Access::Read)?;
        let grad_output = self.tensor("grad_output", args.grad_output, Access::Read)?;
        let residual = self.residual_of_gradient(args.residual)?;
        self.mask(args.mask)?; // whose absence the plan says
        let saved = self.packed_statistics("saved", saved, 4, Access::Read)?;
        let mut bindings = vec![
            (Slot::Input, input),
            (Slot::GradOutput, grad_output),
            (Slot::Statistics, saved),
        ];
        bindings.extend(residual.map(|r| (Slot::Residual, r)));
        if let Some(affine) = self.affine(args.affine)? {
            step.params.flags |= flags::HAS_AFFINE;
            bindings.push((Slot::Affine, affine));
        }
        let grads = self.grad_affine(args)?;
        if let Some(grads) = &grads {
            step.params.flags |= flags::HAS_GRAD_AFFINE;
            if args.accumulate {
                step.params.flags |= flags::ACCUMULATE;
            }
            bindings.push((Slot::GradAffine, grads.clone()));
        }
        let grad_residual = self.grad_residual(args)?;
        bindings.extend(grad_residual.map(|r| (Slot::GradResidual, r)));
        let grad_input = self.tensor("grad_input", args.grad_input, Access::Write)?;
        bindings.push((Slot::GradInput, grad_input));
        self.push(step, bindings)?;
        self.scatter_gradients(args, grads)?;
        Ok(true)
    }

    /// Copies packed gradients of weight and bias to where the caller wants them apart.
    fn scatter_gradients(&mut self, args: &Backward<'_>, grads: Option<Bound>) -> Result<()> {
        if let (Some(grads), None) = (grads, args.grad_affine.packed) {
            // Checked before; here they are only looked up.
            let arguments = std::mem::take(&mut self.arguments);
            let vectors = self.grad_vectors(args)?;
            self.arguments = arguments;
            self.scatter(&grads, vectors)?;
        }
        Ok(())
    }

    fn running_to_update(&mut self, running: Running<'_>) -> Result<Bound> {
        let cumulative = self.plan.problem().momentum == Momentum::Cumulative;
        if cumulative && running.packed.is_none() && running.batches.is_none() {
            let problem =
                "cumulative momentum needs the number of batches, but none was given".to_owned();
            let remedy = "give it with Running::batches(…), or use Running::packed(…)".to_owned();
            return Err(Error::Argument {
                tensor: "num_batches_tracked",
                problem,
                remedy,
            });
        }
        self.running(running, Access::Write)
    }

    pub(crate) fn coefficients(
        &mut self,
        statistics: Statistics<'_>,
        affine: Affine<'_>,
        coefficients: &Bound,
        mut flags: u32,
    ) -> Result<()> {
        let mut bindings = vec![(Slot::Coefficients, coefficients.clone())];
        if let Some(affine) = self.affine(affine)? {
            flags |= flags::HAS_AFFINE;
            bindings.push((Slot::Affine, affine));
        }
        let statistics = match statistics {
            Statistics::Saved(saved) => self.packed_statistics("saved", saved, 4, Access::Read)?,
            Statistics::Running(running) => {
                flags |= flags::FROM_RUNNING;
                self.running(running, Access::Read)?
            }
        };
        bindings.push((Slot::Statistics, statistics));
        self.push(
            self.plan.per_statistic(Kernel::Coefficients, flags),
            bindings,
        )
    }

    pub(crate) fn normalize(
        &mut self,
        input: Bound,
        residual: Option<Bound>,
        coefficients: Bound,
        output: Bound,
    ) -> Result<()> {
        for (start, plan) in self.plan.parts() {
            let mut step = plan.normalize();
            step.key.in_place = output.is(&input);
            let mut bindings = vec![
                (Slot::Coefficients, coefficients.clone()),
                (Slot::Output, output.part(start, plan)),
            ];
            if !step.key.in_place {
                bindings.push((Slot::Input, input.part(start, plan)));
            }
            bindings.extend(
                residual
                    .iter()
                    .map(|r| (Slot::Residual, r.part(start, plan))),
            );
            self.push(step, bindings)?;
        }
        Ok(())
    }

    /// Values per channel that the mask lets count, one number for each piece of each group.
    fn counts(&mut self, mask: Bound) -> Result<Bound> {
        let groups = self.plan.problem().groups as u64;
        let step = self.plan.count_mask();
        let counts = self.workspace("counts", groups * u64::from(step.params.mask_pieces) * 4)?;
        let bindings = vec![(Slot::Mask, mask), (Slot::Counts, counts.clone())];
        self.push(step, bindings)?;
        Ok(counts)
    }

    pub(crate) fn backward_arguments(&mut self, args: &Backward<'_>) -> Result<BackwardBound> {
        let input = self.tensor("input", args.input, Access::Read)?;
        let grad_output = self.tensor("grad_output", args.grad_output, Access::Read)?;
        let residual = self.residual_of_gradient(args.residual)?;
        // Frozen statistics do not depend on the input, whatever was masked when they were taken.
        let mask = match args.statistics {
            Statistics::Saved(_) => self.mask(args.mask)?,
            Statistics::Running(_) => None,
        };
        let tensors = [input, grad_output];
        self.backward_bound(tensors, residual, mask, args.statistics, args.affine)
    }

    /// Computes the coefficients, and joins tensors where the device has too few bindings.
    pub(crate) fn backward_bound(
        &mut self,
        [input, grad_output]: [Bound; 2],
        residual: Option<Bound>,
        mask: Option<Bound>,
        statistics: Statistics<'_>,
        affine: Affine<'_>,
    ) -> Result<BackwardBound> {
        // With everything on, the apply binds input, residual, grad_output, mask, coefficients and two gradients; without
        // the residual, two fewer.
        let needed = match (&residual, &mask) {
            (Some(_), _) => 7,
            (None, Some(_)) => 5,
            (None, None) => 4,
        };
        let join = self.storage_buffers() < needed;
        if join && self.plan.is_chunked() {
            return Err(Error::Limit {
                what: "a tensor that one binding cannot hold, with a residual or a mask,".into(),
                needed: needed.into(),
                limit: self.storage_buffers().into(),
                name: "max_storage_buffers_per_shader_stage",
                remedy: "request a device with this limit raised".into(),
            });
        }
        let mut bytes = 2 * self.plan.coefficients_bytes();
        if let (Some(mask), true) = (&mask, join) {
            bytes += mask.size;
        }
        let coefficients = self.workspace("coefficients", bytes.next_multiple_of(16))?;
        self.coefficients(statistics, affine, &coefficients, flags::FOR_BACKWARD)?;
        let joined = if join {
            let tensors = [Some(&input), residual.as_ref(), Some(&grad_output)];
            Some(self.join(tensors, mask.as_ref(), &coefficients)?)
        } else {
            None
        };
        Ok(BackwardBound {
            input,
            grad_output,
            residual,
            mask,
            coefficients,
            joined,
        })
    }

    /// Copies tensors into one workspace, and the mask behind the coefficients.
    fn join(
        &mut self,
        tensors: [Option<&Bound>; 3],
        mask: Option<&Bound>,
        coefficients: &Bound,
    ) -> Result<Joined> {
        // Each starts at a whole vector, of 16 bytes at most.
        let stride = self.plan.problem().bytes().next_multiple_of(16);
        let together = self.workspace("joined tensors", 3 * stride)?;
        for (i, tensor) in tensors.into_iter().enumerate() {
            if let Some(tensor) = tensor {
                self.copy(tensor, &together, i as u64 * stride)?;
            }
        }
        let start = 2 * self.plan.coefficients_bytes();
        if let Some(mask) = mask {
            self.copy(mask, coefficients, start)?;
        }
        let words = |bytes: u64| (bytes / self.plan.word_bytes()) as u32;
        Ok(Joined {
            tensors: together,
            residual_start: words(stride),
            grad_output_start: words(2 * stride),
            mask_start: (start / 16) as u32,
        })
    }

    /// Copies a range into another, at an offset in bytes.
    fn copy(&mut self, from: &Bound, to: &Bound, offset: u64) -> Result<()> {
        let step = self.plan.copy(from.size / 4, offset / 4);
        let bindings = vec![(Slot::Packed, from.clone()), (Slot::Target(0), to.clone())];
        self.push(step, bindings)
    }

    fn storage_buffers(&self) -> u32 {
        self.kernels.caps().max_storage_buffers
    }

    pub(crate) fn backward_reduce(
        &mut self,
        args: &BackwardBound,
    ) -> Result<(Bound, Option<Sets>)> {
        self.of_chunks(
            Kernel::BackwardCombine,
            Slot::Sums,
            |r, start, plan, partials| {
                let mut bindings = vec![
                    (Slot::Coefficients, args.coefficients.clone()),
                    (Slot::Partials, partials),
                ];
                let mut step = plan.backward_reduce();
                if let Some(joined) = &args.joined {
                    joined.set(&mut step);
                    bindings.push((Slot::Input, joined.tensors.clone()));
                } else {
                    bindings.push((Slot::Input, args.input.part(start, plan)));
                    bindings.push((Slot::GradOutput, args.grad_output.part(start, plan)));
                    let residual = args.residual.iter();
                    bindings.extend(residual.map(|r| (Slot::Residual, r.part(start, plan))));
                }
                r.push(step, bindings)
            },
        )
    }

    pub(crate) fn backward_apply(
        &mut self,
        args: &Backward<'_>,
        bound: BackwardBound,
        partials: Option<Bound>,
        sets: Option<Sets>,
        count: Option<u32>,
    ) -> Result<()> {
        let grads = self.grad_affine(args)?;
        let grouped = self.plan.problem().groups > 1;
        let accumulate = if args.accumulate {
            flags::ACCUMULATE
        } else {
            0
        };
        let mut flags = match args.statistics {
            Statistics::Saved(_) => 0,
            Statistics::Running(_) => flags::FROZEN_STATISTICS,
        };
        let mut bindings = vec![(Slot::Coefficients, bound.coefficients.clone())];
        bindings.extend(partials.map(|p| (Slot::Partials, p)));
        let group_gradients = match &grads {
            Some(_) if grouped => {
                flags |= flags::GROUP_GRADIENTS;
                let bytes = self.plan.coefficients_bytes();
                Some(self.workspace("group gradients", bytes)?)
            }
            Some(grads) => {
                flags |= flags::HAS_GRAD_AFFINE | accumulate;
                bindings.push((Slot::GradAffine, grads.clone()));
                None
            }
            None => None,
        };
        bindings.extend(group_gradients.clone().map(|g| (Slot::GroupGradients, g)));
        if let (Some(mask), None) = (&bound.mask, count) {
            flags |= flags::HAS_COUNTS;
            bindings.push((Slot::Counts, self.counts(mask.clone())?));
        }
        let mut step = self.plan.merge(Kernel::BackwardFinalize, sets, flags);
        step.params.count = count.unwrap_or(step.params.count);
        self.push(step, bindings)?;
        if let (Some(parts), Some(grads)) = (group_gradients, &grads) {
            let step = self.plan.sum_gradients(accumulate);
            let bindings = vec![
                (Slot::GroupGradients, parts),
                (Slot::GradAffine, grads.clone()),
            ];
            self.push(step, bindings)?;
        }

        let grad_residual = self.grad_residual(args)?;
        let grad_input = self.tensor_or_in_place(
            "grad_input",
            args.grad_input,
            Access::Write,
            Some("grad_output"),
        )?;
        let in_place = grad_input.is(&bound.grad_output);
        if in_place && self.plan.problem().residual && !self.plan.problem().writes_grad_residual() {
            return Err(Error::Overlap {
                first: "grad_output",
                second: "grad_input",
                how: "are one range, but without an activation grad_output is the residual's gradient too",
                remedy: "give grad_input a range of its own, or plan the backward pass without the residual",
            });
        }
        for (start, plan) in self.plan.parts() {
            let mut step = plan.backward_apply();
            step.key.in_place = in_place;
            step.key.mask = bound.mask.is_some();
            step.key.frozen = matches!(args.statistics, Statistics::Running(_));
            let part = |whole: &Bound| whole.part(start, plan);
            let mut bindings = vec![(Slot::Coefficients, bound.coefficients.clone())];
            if let Some(joined) = &bound.joined {
                joined.set(&mut step);
                step.key.in_place = false; // grad_output is a copy
                bindings.push((Slot::Input, joined.tensors.clone()));
            } else {
                bindings.push((Slot::Input, part(&bound.input)));
                if !step.key.in_place {
                    bindings.push((Slot::GradOutput, part(&bound.grad_output)));
                }
                bindings.extend(bound.residual.iter().map(|r| (Slot::Residual, part(r))));
                bindings.extend(bound.mask.clone().map(|m| (Slot::Mask, m)));
            }
            bindings.push((Slot::GradInput, part(&grad_input)));
            bindings.extend(grad_residual.iter().map(|r| (Slot::GradResidual, part(r))));
            self.push(step, bindings)?;
        }

        self.scatter_gradients(args, grads)
    }

    /// Where the gradients of weight and bias are written, packed: the caller's buffer, or a workspace that a scatter
    /// copies from.
    fn grad_affine(&mut self, args: &Backward<'_>) -> Result<Option<Bound>> {
        if args.grad_affine.is_twofold() {
            return Err(twofold("grad_affine"));
        }
        if let Some(packed) = args.grad_affine.packed {
            return self
                .packed("grad_affine", packed, 2, Access::Write)
                .map(Some);
        }
        if args.grad_affine.is_absent() {
            return Ok(None);
        }
        let vectors = self.grad_vectors(args)?;
        if args.accumulate {
            return self.gather("grad_affine", vectors, [0; 3]).map(Some);
        }
        // Three vectors wide, as the scatter reads it.
        self.workspace("grad_affine", self.channels() * 12)
            .map(Some)
    }

    fn grad_vectors(&mut self, args: &Backward<'_>) -> Result<[Option<Vector>; 3]> {
        let weight = args
            .grad_affine
            .weight
            .map(|w| self.vector("grad_weight", w, Access::Write))
            .transpose()?;
        let bias = args
            .grad_affine
            .bias
            .map(|b| self.vector("grad_bias", b, Access::Write))
            .transpose()?;
        Ok([weight, bias, None])
    }

    fn grad_residual(&mut self, args: &Backward<'_>) -> Result<Option<Bound>> {
        let (problem, remedy) = match (
            self.plan.problem().writes_grad_residual(),
            args.grad_residual,
        ) {
            (true, Some(range)) => {
                return self.tensor("grad_residual", range, Access::Write).map(Some);
            }
            (false, None) => return Ok(None),
            (true, None) => (
                "a residual with an activation has a gradient of its own",
                "give a buffer with .grad_residual(…)",
            ),
            (false, Some(_)) => (
                "without a residual and an activation nothing is written there",
                "use grad_output as it is",
            ),
        };
        Err(Error::Argument {
            tensor: "grad_residual",
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        })
    }

    // ---- Binding.

    pub(crate) fn finish(self, label: &'static str) -> Result<Operation> {
        let device = self.kernels.device();
        // What the arguments alone decide (in place, pooled) is compiled now, the first time.
        let pipelines = self
            .steps
            .iter()
            .map(|(step, _)| self.kernels.pipeline(step.key))
            .collect::<Result<Vec<_>>>()?;
        let scopes = ErrorScopes::push(device);
        let alignment = u64::from(device.limits().min_uniform_buffer_offset_alignment);
        let stride = (size_of::<Params>() as u64).next_multiple_of(alignment);
        let uniforms = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("batchnorm parameters"),
            size: stride * self.steps.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        let mut mapped = Ok(());
        for (i, (step, _)) in self.steps.iter().enumerate() {
            let start = i as u64 * stride;
            match uniforms.get_mapped_range_mut(start..start + size_of::<Params>() as u64) {
                Ok(mut range) => range.copy_from_slice(bytemuck::bytes_of(&step.params)),
                Err(error) => {
                    mapped = Err(failed(device, "binding an operation", &error));
                }
            }
        }
        uniforms.unmap();
        let dispatches = self.steps.iter().zip(pipelines).enumerate();
        let dispatches = dispatches.map(|(i, ((step, bindings), pipeline))| {
            let parameters = wgpu::BufferBinding {
                buffer: &uniforms,
                offset: i as u64 * stride,
                size: wgpu::BufferSize::new(size_of::<Params>() as u64),
            };
            let mut entries = vec![wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(parameters),
            }];
            for binding in step.key.bindings() {
                let bound = bindings.iter().find(|(slot, _)| *slot == binding.slot);
                let range = match bound {
                    Some((_, b)) => wgpu::BufferBinding {
                        buffer: &b.buffer,
                        offset: b.offset,
                        size: wgpu::BufferSize::new(b.size),
                    },
                    None => self
                        .kernels
                        .placeholder(binding, binding.writes || step.key.pooled),
                };
                entries.push(wgpu::BindGroupEntry {
                    binding: binding.number,
                    resource: wgpu::BindingResource::Buffer(range),
                });
            }
            let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(label),
                layout: &pipeline.layout,
                entries: &entries,
            });
            Dispatch {
                pipeline,
                bind_group,
                grid: step.grid,
            }
        });
        let dispatches = dispatches.collect();
        settle(scopes, "binding an operation")?;
        mapped?;
        Ok(Operation { label, dispatches })
    }
}

/// An argument that was given packed and apart.
fn twofold(tensor: &'static str) -> Error {
    Error::Argument {
        tensor,
        problem: "it was given both packed and as vectors of their own".into(),
        remedy: "give one of the two".into(),
    }
}

fn set_vectors(params: &mut Params, vectors: &[Option<Vector>; 3]) {
    let start = |i: usize| vectors[i].as_ref().map_or(0, |v: &Vector| v.start);
    params.present = (0..3)
        .filter(|&i| vectors[i].is_some())
        .map(|i| 1 << i)
        .sum();
    [params.start_0, params.start_1, params.start_2] = [start(0), start(1), start(2)];
}
