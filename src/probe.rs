//! Whether an adapter's compiler keeps the exact remainders that sums and merges rely on.

use crate::faults::{ErrorScopes, settle};
use crate::kernels::{Elements, Kernel, PipelineKey};
use crate::plan::Params;
use crate::{Gpu, Readback, Result};

const PAIRS: usize = 64;

/// Values whose sums and products need more than 24 bits: pairs of vectors.
fn operands() -> Vec<[f32; 4]> {
    let value = |i: usize, salt: f64| {
        (((i as f64 + 1.0) * salt).sin() * 2f64.powi((i % 17) as i32 - 8)) as f32
    };
    let vector = |i: usize, salt: f64| std::array::from_fn::<f32, 4, _>(|j| value(4 * i + j, salt));
    (0..PAIRS)
        .flat_map(|i| [vector(i, 12.9898), vector(i, 78.233)])
        .collect()
}

/// Whether the remainders of all sums and products are the exact ones.
fn are_exact(operands: &[[f32; 4]], words: Vec<Vec<u32>>) -> bool {
    let remainders: Vec<f32> = words.into_iter().flatten().map(f32::from_bits).collect();
    let near = |got: f32, exact: f64| {
        let rest = exact - f64::from(exact as f32);
        (f64::from(got) - rest).abs() <= 1e-9 * exact.abs()
    };
    remainders.len() == 8 * PAIRS
        && (0..PAIRS).all(|i| {
            (0..4).all(|j| {
                let (a, b) = (
                    f64::from(operands[2 * i][j]),
                    f64::from(operands[2 * i + 1][j]),
                );
                near(remainders[8 * i + j], a + b) && near(remainders[8 * i + 4 + j], a * b)
            })
        })
}

impl Gpu {
    /// Runs `two_sum` and `two_product` on this adapter and compares their remainders with exact ones. False means that
    /// the compiler simplified them away, and that sums of many values lose digits. Submits.
    ///
    /// # Errors
    /// As [`Gpu::submit_and_read`].
    pub async fn keeps_remainders_async(&self) -> Result<bool> {
        let operands = operands();
        let words = self.start_probe(&operands)?.await?;
        Ok(are_exact(&operands, words))
    }

    /// As [`Gpu::keeps_remainders_async`], and blocks.
    ///
    /// # Errors
    /// As there.
    #[cfg(all(feature = "device", not(target_family = "wasm")))]
    pub fn keeps_remainders(&self) -> Result<bool> {
        let operands = operands();
        let words = self.start_probe(&operands)?.wait()?;
        Ok(are_exact(&operands, words))
    }

    fn start_probe(&self, operands: &[[f32; 4]]) -> Result<Readback> {
        let key = PipelineKey::new(Kernel::Probe, Elements::F32x4, 32);
        let params = Params {
            vectors: PAIRS as u32,
            workgroups: 2,
            ..Params::default()
        };
        let bytes: &[u8] = bytemuck::cast_slice(operands);
        let scopes = ErrorScopes::push(&self.device);
        let pipeline = self.kernels.compile(key);
        let buffer = |label, size, usage| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let copied = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let uniforms = buffer(
            "probe parameters",
            size_of::<Params>() as u64,
            wgpu::BufferUsages::UNIFORM | copied,
        );
        let source = buffer(
            "probe operands",
            bytes.len() as u64,
            wgpu::BufferUsages::STORAGE | copied,
        );
        let target = buffer(
            "probe remainders",
            bytes.len() as u64,
            wgpu::BufferUsages::STORAGE | copied,
        );
        self.queue
            .write_buffer(&uniforms, 0, bytemuck::bytes_of(&params));
        self.queue.write_buffer(&source, 0, bytes);
        let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("probe"),
            layout: &pipeline.layout,
            entries: &[
                wgpu::BindGroupEntry {
                    binding: 0,
                    resource: uniforms.as_entire_binding(),
                },
                wgpu::BindGroupEntry {
                    binding: 1,
                    resource: source.as_entire_binding(),
                },
                wgpu::BindGroupEntry {
                    binding: 2,
                    resource: target.as_entire_binding(),
                },
            ],
        });
        let mut encoder = self
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, &bind_group, &[]);
            pass.dispatch_workgroups(2, 1, 1);
        }
        self.queue.submit([encoder.finish()]);
        settle(scopes, "probing the compiler")?;
        self.submit_and_read(None, &[&target])
    }
}
