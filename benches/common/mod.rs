//! What the host benchmark and the test of allocations share: operations, and wgpu's own calls without anything of ours.

use wgpu_batchnorm::{Backward, ForwardTraining, Gpu, Operation, Plan, Problem};

/// A buffer of zeros.
pub(crate) fn buffer(gpu: &Gpu, size: u64) -> wgpu::Buffer {
    gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    })
}

/// The buffers of a problem's two passes.
pub(crate) struct Buffers {
    tensors: [wgpu::Buffer; 4],
    affine: wgpu::Buffer,
    running: wgpu::Buffer,
    saved: wgpu::Buffer,
    grad_affine: wgpu::Buffer,
}

impl Buffers {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem) -> Self {
        let channels = problem.channels as u64;
        Buffers {
            tensors: [(); 4].map(|()| buffer(gpu, problem.bytes())),
            affine: buffer(gpu, 8 * channels),
            running: buffer(gpu, 12 * channels),
            saved: buffer(gpu, 16 * channels),
            grad_affine: buffer(gpu, 8 * channels),
        }
    }

    pub(crate) fn forward(&self) -> ForwardTraining<'_> {
        let [input, output, ..] = &self.tensors;
        ForwardTraining::new(input, output)
            .affine_packed(&self.affine)
            .running(&self.running)
            .saved(&self.saved)
    }

    pub(crate) fn backward(&self) -> Backward<'_> {
        let [input, _, grad_output, grad_input] = &self.tensors;
        Backward::new(input, &self.saved, grad_output, grad_input)
            .affine_packed(&self.affine)
            .grad_affine_packed(&self.grad_affine)
    }
}

/// A plan's training forward and backward pass, bound.
pub(crate) fn operations(gpu: &Gpu, plan: &Plan) -> [Operation; 2] {
    let prepared = gpu.kernels.prepare(plan).unwrap();
    let buffers = Buffers::new(gpu, plan.problem());
    let forward = prepared.bind_forward_training(&buffers.forward()).unwrap();
    [
        forward,
        prepared.bind_backward(&buffers.backward()).unwrap(),
    ]
}

/// Dispatches as a program without this crate would encode them: as many bindings as our kernels have at most, and each
/// with a pipeline and a bind group of its own.
pub(crate) struct Bare(Vec<(wgpu::ComputePipeline, wgpu::BindGroup)>);

const BINDINGS: u32 = 8;

impl Bare {
    pub(crate) fn new(gpu: &Gpu, dispatches: usize) -> Self {
        let device = &gpu.device;
        let declared: String = (0..BINDINGS)
            .map(|i| {
                format!("@group(0) @binding({i}) var<storage, read_write> b{i}: array<u32>;\n")
            })
            .collect();
        let used: String = (0..BINDINGS).map(|i| format!("b{i}[0] = 0u;\n")).collect();
        let source = format!("{declared}@compute @workgroup_size(1) fn main() {{\n{used}}}\n");
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let dispatch = |_| {
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: None,
                compilation_options: Default::default(),
                cache: None,
            });
            let buffers = [(); BINDINGS as usize].map(|()| buffer(gpu, 256));
            let entries: Vec<_> = (0..)
                .zip(&buffers)
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.as_entire_binding(),
                })
                .collect();
            let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
            (pipeline, bind_group)
        };
        Bare((0..dispatches).map(dispatch).collect())
    }

    pub(crate) fn encode_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        for (pipeline, bind_group) in &self.0 {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
    }
}

/// A pass to encode in, with its encoder inside.
pub(crate) fn pass(gpu: &Gpu) -> wgpu::ComputePass<'static> {
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    encoder
        .begin_compute_pass(&Default::default())
        .forget_lifetime()
}
