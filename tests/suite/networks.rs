//! Whole networks: many layers in one submit.

use ndarray::Array3;
use wgpu_batchnorm::reference::{self, Inputs, Statistics};
use wgpu_batchnorm::{Activation, Batch, BatchNorm, Gpu, Problem};
use wgpu_batchnorm_cli::bench::shapes::RESNET50;

use crate::{but_on_gl, name, on_every_adapter};

/// A layer with its tensors.
struct Layer {
    problem: Problem,
    norm: BatchNorm,
    input: wgpu::Buffer,
    output: wgpu::Buffer,
    grad_input: wgpu::Buffer,
    values: Array3<f32>,
}

impl Layer {
    fn new(gpu: &Gpu, number: usize, channels: usize, side: usize) -> Self {
        let problem = Problem::nchw([2, channels, side, side]).activation(Activation::Relu);
        let values = Array3::from_shape_fn(problem.shape(), |(o, c, i)| {
            ((o * 57 + c * 13 + i * 7 + number) as f32 * 0.37).sin() + (c % 5) as f32
        });
        let buffer = |label| {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: problem.bytes(),
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let input = buffer("input");
        let words: Vec<f32> = values.iter().copied().collect();
        gpu.queue
            .write_buffer(&input, 0, bytemuck::cast_slice(&words));
        Layer {
            norm: BatchNorm::new(&gpu.kernels, &problem).unwrap(),
            output: buffer("output"),
            grad_input: buffer("grad_input"),
            problem,
            input,
            values,
        }
    }
}

fn close(gpu: &Gpu, what: &str, layer: usize, got: &[u32], want: &Array3<f64>, bound: f64) {
    let scale = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    let adapter = name(gpu);
    assert_eq!(
        got.len(),
        want.len(),
        "{what} of layer {layer} on {adapter}"
    );
    for (got, want) in got.iter().zip(want) {
        let error = (f64::from(f32::from_bits(*got)) - want).abs();
        assert!(
            error <= bound * scale,
            "{what} of layer {layer} on {adapter}: off by {error:e}"
        );
    }
}

/// The batch norms of ResNet-50, forward and backward, in one encoder and one submit; a batch of 2 of small images (a
/// quarter of the height and width), so that it takes a moment.
#[test]
fn resnet50_goes_in_one_submit() {
    on_every_adapter(but_on_gl(|gpu| {
        let layers: Vec<Layer> = RESNET50
            .iter()
            .flat_map(|&(channels, side, times)| {
                std::iter::repeat_n((channels, side.div_ceil(4)), times)
            })
            .enumerate()
            .map(|(number, (channels, side))| Layer::new(gpu, number, channels, side))
            .collect();
        assert_eq!(layers.len(), 53);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        let sizes = |layer: &Layer| (layer.problem.outer, layer.problem.inner);
        for layer in &layers {
            let (outer, inner) = sizes(layer);
            let batch = Batch::new(outer, inner, &layer.input);
            let encoded = layer.norm.forward(&mut encoder, &batch, &layer.output);
            encoded.unwrap();
        }
        // The gradient of the loss is the output itself, as for the sum of its squares.
        for layer in layers.iter().rev() {
            let (outer, inner) = sizes(layer);
            let batch = Batch::new(outer, inner, &layer.input);
            let (dy, dx) = (&layer.output, &layer.grad_input);
            let encoded = layer.norm.backward(&mut encoder, &batch, dy, dx, None);
            encoded.unwrap();
        }
        gpu.queue.submit([encoder.finish()]);

        let outputs: Vec<_> = layers.iter().map(|l| &l.output).collect();
        let gradients: Vec<_> = layers.iter().map(|l| &l.grad_input).collect();
        let outputs = gpu.submit_and_read(None, &outputs).unwrap().wait().unwrap();
        let gradients = gpu
            .submit_and_read(None, &gradients)
            .unwrap()
            .wait()
            .unwrap();
        for (i, layer) in layers.iter().enumerate() {
            let x = layer.values.mapv(f64::from);
            let inputs = Inputs::new(x.view());
            let statistics = Statistics::of(&layer.problem, x.view()).unwrap();
            let want = reference::forward(&layer.problem, &inputs, &statistics).unwrap();
            close(gpu, "output", i, &outputs[i], &want, 1e-6);
            let dy = outputs[i].iter().map(|w| f64::from(f32::from_bits(*w)));
            let dy = Array3::from_shape_vec(want.raw_dim(), dy.collect()).unwrap();
            let gradients_of =
                reference::backward(&layer.problem, &inputs, &statistics, dy.view(), false);
            let want = gradients_of.unwrap().input;
            close(gpu, "grad_input", i, &gradients[i], &want, 2e-6);
        }
    }));
}
