//! The live picture: a batch of activations, normalised again and again while the page changes it.

use wasm_bindgen::prelude::*;
use wgpu_batchnorm::{Activation, ForwardTraining, Gpu, Inference, Operation, Plan, Problem};

use crate::{Session, failed};

/// Activations `[samples, features]` on the device, with both operations bound to them.
#[wasm_bindgen]
pub struct Live {
    gpu: Gpu,
    input: wgpu::Buffer,
    output: wgpu::Buffer,
    affine: wgpu::Buffer,
    running: wgpu::Buffer,
    training: Operation,
    inference: Operation,
    features: usize,
}

#[wasm_bindgen]
impl Live {
    /// Buffers and operations for batches of one shape; the activation as the command line writes it.
    ///
    /// # Errors
    /// An activation that there is not, a shape that the device cannot take.
    pub async fn open(
        session: &Session,
        samples: usize,
        features: usize,
        activation: String,
    ) -> Result<Live, JsValue> {
        let gpu = session.gpu.clone();
        let activation: Activation = activation.parse().map_err(failed)?;
        let problem = Problem::nc([samples, features]).activation(activation);
        let plan = Plan::new(&problem, gpu.kernels.caps()).map_err(failed)?;
        let prepared = gpu.kernels.prepare_async(&plan).await.map_err(failed)?;
        let buffer = |label, floats: usize| {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: 4 * floats as u64,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let input = buffer("activations", samples * features);
        let output = buffer("normalised", samples * features);
        let affine = buffer("affine", 2 * features);
        let saved = buffer("saved", 4 * features);
        // As a layer begins: mean 0, variance 1, no batch seen.
        let running = buffer("running", 3 * features);
        let mut values = vec![0.0f32; 3 * features];
        values[features..2 * features].fill(1.0);
        gpu.queue.write_buffer(&running, 0, &bytes(&values));
        let training = prepared
            .bind_forward_training(
                &ForwardTraining::new(&input, &output)
                    .affine_packed(&affine)
                    .running(&running)
                    .saved(&saved),
            )
            .map_err(failed)?;
        let inference = prepared
            .bind_inference(&Inference::new(&input, &output, &running).affine_packed(&affine))
            .map_err(failed)?;
        Ok(Live {
            gpu,
            input,
            output,
            affine,
            running,
            training,
            inference,
            features,
        })
    }

    /// Normalises one batch, and gives the output and, behind it, the running mean and variance. These take the batch in;
    /// with `by_running` the output is by them, otherwise by the batch's own statistics.
    ///
    /// # Errors
    /// A device that is lost.
    pub async fn frame(
        &self,
        activations: Vec<f32>,
        weight: f32,
        bias: f32,
        by_running: bool,
    ) -> Result<Vec<f32>, JsValue> {
        let mut affine = vec![weight; self.features];
        affine.resize(2 * self.features, bias);
        self.gpu
            .queue
            .write_buffer(&self.affine, 0, &bytes(&affine));
        self.gpu
            .queue
            .write_buffer(&self.input, 0, &bytes(&activations));
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        self.training.encode(&mut encoder);
        if by_running {
            self.inference.encode(&mut encoder);
        }
        self.gpu.queue.submit([encoder.finish()]);
        let words = self
            .gpu
            .submit_and_read(None, &[&self.output, &self.running]);
        let mut words: Vec<u32> = words.map_err(failed)?.await.map_err(failed)?.concat();
        words.truncate(words.len() - self.features); // the number of batches is no float
        Ok(words.into_iter().map(f32::from_bits).collect())
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
