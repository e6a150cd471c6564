//! Checks arguments ([`arguments`]), collects the dispatches of an operation ([`forward`], [`backward`]), and makes their
//! bind groups.

mod arguments;
mod backward;
mod forward;

use crate::encode::{Dispatch, Operation, Prepared};
use crate::faults::{ErrorScopes, failed, settle};
use crate::kernels::{Kernel, Kernels, Slot};
use crate::plan::{Params, Plan, Sets, Step};
use crate::{Error, Result};

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
