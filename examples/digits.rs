//! Trains a small network on handwritten digits, with batch norm on the GPU in the middle of it.
//!
//! ```text
//! 8×8 pixels → dense 64 → 32 → batch norm → ReLU → dense 32 → 10 digits
//!              CPU             GPU          CPU
//! ```
//!
//! The dense layers stand for the rest of your pipeline. They start with weights and offsets that make some features
//! vary twelve times as much as others and lie far from 0, which batch norm then sets right. Everything that comes back
//! from the GPU is compared with the f64 reference: the program exits with 1 where the two differ by more than f32
//! explains. At the end it draws the features before and after batch norm, as `digits.png` and `digits.svg`.
//!
//! ```sh
//! make demo
//! cargo run --release --example digits --features ndarray,device -- --out DIR
//! ```

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, Axis, s};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use wgpu_batchnorm::reference::{self, Inputs, Statistics};
use wgpu_batchnorm::{Batch, BatchNorm, Gpu, Operation, Problem};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const USAGE: &str = "\
Train a small network on handwritten digits and draw what batch norm does.

usage: digits [--out DIR]

  --out DIR   where digits.png and digits.svg go (default: target/demo)
  --help      print this";

const PIXELS: usize = 64;
const FEATURES: usize = 32;
const CLASSES: usize = 10;

/// Digits to learn from; the other 297 are held out.
const TRAINING: usize = 1500;
const BATCH: usize = 100;
const EPOCHS: usize = 20;
const LEARNING_RATE: f32 = 0.3;

/// The largest error allowed, relative to the largest value (or to 1, if that is more).
const TOLERANCE: f64 = 1e-6;
const GRADIENT_TOLERANCE: f64 = 2e-6;

fn main() -> ExitCode {
    let out = match parse(std::env::args_os().skip(1)) {
        Ok(Some(out)) => out,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("digits: {message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match demo(&out) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("digits: the GPU's results differ from the reference");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("digits: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The folder for the pictures; `None` where help was asked for.
fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<PathBuf>, String> {
    let mut out = PathBuf::from("target/demo");
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--out") => out = args.next().ok_or("--out needs a folder")?.into(),
            Some("--help" | "-h") => return Ok(None),
            _ => return Err(format!("unexpected argument {}", arg.display())),
        }
    }
    Ok(Some(out))
}

/// Trains, recognises the digits held out, reports and draws. Whether every result agrees with the reference.
fn demo(out: &Path) -> Result<bool> {
    let digits = Digits::load()?;
    let mut network = Network::new();
    let gpu = Gpu::new()?;

    // The layer owns weight, bias, statistics and gradients; the pipeline owns the tensors.
    let layer = BatchNorm::new(&gpu.kernels, &Problem::nc([BATCH, FEATURES]))?;
    let input = tensor(&gpu, "input", BATCH);
    let output = tensor(&gpu, "output", BATCH);
    let grad_output = tensor(&gpu, "gradient of the output", BATCH);
    let grad_input = tensor(&gpu, "gradient of the input", BATCH);

    // Checked and bound once, encoded in every step.
    let batch = Batch::new(BATCH, 1, &input);
    let forward = layer.bind_training(&batch, &output)?;
    let backward = layer.bind_backward(&batch, &grad_output, &grad_input, None)?;

    let [mut affine] = read(&gpu, [layer.affine()])?;
    let mut checker = Checker::new(&forward, &backward);
    let mut losses = [0.0; EPOCHS];
    for loss in &mut losses {
        for start in (0..TRAINING).step_by(BATCH) {
            let (pixels, labels) = digits.range(start, start + BATCH);

            // Forward: the layer normalises by the batch's statistics and takes them into the running ones.
            let features = network.features(pixels);
            write(&gpu, &input, &features);
            submit(&gpu, &forward);
            let [normalised, running] = read(&gpu, [&output, layer.running()])?;
            let guess = network.guess(&normalised, labels);
            *loss += guess.loss / TRAINING as f32;

            // Backward: through the statistics that the layer saved in the forward pass.
            let grad_normalised = network.grad_normalised(&normalised, &guess);
            write(&gpu, &grad_output, &grad_normalised);
            submit(&gpu, &backward);
            let [grad_features, grad_affine] = read(&gpu, [&grad_input, layer.grad_affine()])?;

            checker.step(&Step {
                features: &features,
                affine: &affine,
                normalised: &normalised,
                running: &running,
                grad_normalised: &grad_normalised,
                grad_features: &grad_features,
                grad_affine: &grad_affine,
            })?;

            // One step downhill.
            let rate = LEARNING_RATE / BATCH as f32;
            affine.scaled_add(-rate, &grad_affine);
            let (weight, bias) = (affine.row(0).to_vec(), affine.row(1).to_vec());
            layer.set_affine(&gpu.queue, &weight, &bias)?;
            network.learn(rate, pixels, &grad_features, &normalised, &guess);
        }
    }

    // Inference on the digits held out, by the running statistics. The layer takes batches of any size.
    let (pixels, labels) = digits.range(TRAINING, digits.labels.len());
    let before = network.features(pixels);
    let input = tensor(&gpu, "input", labels.len());
    let output = tensor(&gpu, "output", labels.len());
    let inference = layer.bind_inference(&Batch::new(labels.len(), 1, &input), &output)?;
    write(&gpu, &input, &before);
    submit(&gpu, &inference);
    let [after, running] = read(&gpu, [&output, layer.running()])?;
    let inference_check = check_inference(&inference, &before, &affine, &running, &after)?;
    let guess = network.guess(&after, labels);

    let adapter = gpu.adapter.get_info();
    println!("adapter    {} on {}", adapter.name, adapter.backend);
    println!(
        "network    {PIXELS} pixels → {FEATURES} features → batch norm → ReLU → {CLASSES} digits"
    );
    println!(
        "training   {TRAINING} digits, {EPOCHS} times over in batches of {BATCH}: loss {:.2} → {:.2}",
        losses[0],
        losses[EPOCHS - 1]
    );
    println!(
        "inference  {} of {} other digits recognised ({:.1} %)\n",
        guess.correct,
        labels.len(),
        100.0 * guess.correct as f64 / labels.len() as f64
    );
    let checks = [
        checker.forward,
        checker.running,
        checker.backward,
        inference_check,
    ];
    println!("operation                     shape  dispatches  max error  allowed");
    checks.iter().for_each(Check::print);
    println!("\nthe other digits                        means          deviations");
    print_spread("before batch norm", &before);
    print_spread("after", &after);
    println!();

    draw(out, &before, &after)?;
    for name in [PNG, SVG] {
        println!("picture    {}", out.join(name).display());
    }
    Ok(checks.iter().all(Check::agrees))
}

/// A tensor `[rows, FEATURES]` on the device. A pipeline that stays there needs `STORAGE` alone.
fn tensor(gpu: &Gpu, label: &str, rows: usize) -> wgpu::Buffer {
    gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: (rows * FEATURES * size_of::<f32>()) as u64,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

fn write(gpu: &Gpu, buffer: &wgpu::Buffer, values: &Array2<f32>) {
    let values = values.as_standard_layout();
    let values = values.as_slice().expect("standard layout is contiguous");
    gpu.queue
        .write_buffer(buffer, 0, bytemuck::cast_slice(values));
}

/// Runs one operation. A pipeline encodes its own passes before and after it, and submits once.
fn submit(gpu: &Gpu, operation: &Operation) {
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    operation.encode(&mut encoder);
    gpu.queue.submit([encoder.finish()]);
}

/// Reads buffers of `FEATURES` columns back.
fn read<const N: usize>(gpu: &Gpu, buffers: [&wgpu::Buffer; N]) -> Result<[Array2<f32>; N]> {
    let mut words = gpu.submit_and_read(None, &buffers)?.wait()?.into_iter();
    Ok(buffers.map(|_| {
        let values: Vec<f32> = words
            .next()
            .into_iter()
            .flatten()
            .map(f32::from_bits)
            .collect();
        Array2::from_shape_vec((values.len() / FEATURES, FEATURES), values)
            .expect("the buffers are whole rows")
    }))
}

/// Handwritten digits: `[n, PIXELS]` from 0 to 1, and what they show.
struct Digits {
    pixels: Array2<f32>,
    labels: Vec<usize>,
}

impl Digits {
    fn load() -> Result<Self> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for line in include_str!("data/digits.csv").lines() {
            let numbers = line
                .split(',')
                .map(str::parse)
                .collect::<Result<Vec<u8>, _>>()?;
            let (label, ink) = numbers.split_last().ok_or("digits.csv has an empty line")?;
            pixels.extend(ink.iter().map(|&ink| f32::from(ink) / 16.0));
            labels.push(usize::from(*label));
        }
        let pixels = Array2::from_shape_vec((labels.len(), PIXELS), pixels)?;
        Ok(Digits { pixels, labels })
    }

    fn range(&self, start: usize, end: usize) -> (ArrayView2<'_, f32>, &[usize]) {
        (
            self.pixels.slice(s![start..end, ..]),
            &self.labels[start..end],
        )
    }
}

/// What lies before and after batch norm, on the CPU.
struct Network {
    /// `[PIXELS, FEATURES]`.
    dense: Array2<f32>,
    /// `[FEATURES]`. Batch norm takes any offset away again, so there is nothing in it to learn.
    offset: Array1<f32>,
    /// `[FEATURES, CLASSES]`.
    head: Array2<f32>,
}

/// What the network makes of a batch.
struct Guess {
    /// The cross entropy, summed over the batch.
    loss: f32,
    correct: usize,
    /// The loss's gradient by the scores, `[n, CLASSES]`.
    grad_scores: Array2<f32>,
}

impl Network {
    /// He's uniform weights, the same in every run, but each feature on a scale and around an offset of its own.
    fn new() -> Self {
        let mut state = 1u64;
        let mut he = |inputs: usize| {
            // Knuth's generator; its upper bits, from -1 to 1.
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let uniform = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            uniform * (6.0 / inputs as f32).sqrt()
        };
        let scale = |feature: usize| 0.4 * 1.25f32.powi((7 * feature % 12) as i32);
        let offset = |feature: usize| (5 * feature % 12) as f32 - 5.5;
        Network {
            dense: Array2::from_shape_fn((PIXELS, FEATURES), |(_, f)| scale(f) * he(PIXELS)),
            offset: Array1::from_shape_fn(FEATURES, offset),
            head: Array2::from_shape_fn((FEATURES, CLASSES), |_| he(FEATURES)),
        }
    }

    fn features(&self, pixels: ArrayView2<'_, f32>) -> Array2<f32> {
        pixels.dot(&self.dense) + &self.offset
    }

    /// ReLU, the head, softmax and cross entropy.
    fn guess(&self, normalised: &Array2<f32>, labels: &[usize]) -> Guess {
        let mut scores = relu(normalised).dot(&self.head);
        let (mut loss, mut correct) = (0.0, 0);
        for (mut scores, &label) in scores.rows_mut().into_iter().zip(labels) {
            let best = scores.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            correct += usize::from(scores[label] == best);
            scores.mapv_inplace(|score| (score - best).exp());
            scores /= scores.sum();
            loss -= scores[label].ln();
            scores[label] -= 1.0;
        }
        Guess {
            loss,
            correct,
            grad_scores: scores,
        }
    }

    /// The gradient back through the head and ReLU.
    fn grad_normalised(&self, normalised: &Array2<f32>, guess: &Guess) -> Array2<f32> {
        let slope = normalised.mapv(|y| f32::from(y > 0.0));
        guess.grad_scores.dot(&self.head.t()) * slope
    }

    fn learn(
        &mut self,
        rate: f32,
        pixels: ArrayView2<'_, f32>,
        grad_features: &Array2<f32>,
        normalised: &Array2<f32>,
        guess: &Guess,
    ) {
        let grad_head = relu(normalised).t().dot(&guess.grad_scores);
        self.head.scaled_add(-rate, &grad_head);
        self.dense.scaled_add(-rate, &pixels.t().dot(grad_features));
    }
}

fn relu(values: &Array2<f32>) -> Array2<f32> {
    values.mapv(|value| value.max(0.0))
}

/// What went into batch norm in one training step, and what came out. `[BATCH, FEATURES]`, except where noted.
struct Step<'a> {
    features: &'a Array2<f32>,
    /// Weight and bias, `[2, FEATURES]`.
    affine: &'a Array2<f32>,
    normalised: &'a Array2<f32>,
    /// Mean, variance and number of batches, `[3, FEATURES]`.
    running: &'a Array2<f32>,
    grad_normalised: &'a Array2<f32>,
    grad_features: &'a Array2<f32>,
    /// Of weight and bias, `[2, FEATURES]`.
    grad_affine: &'a Array2<f32>,
}

/// The largest error of one operation, over all the times that it ran.
struct Check {
    operation: &'static str,
    rows: usize,
    dispatches: usize,
    allowed: f64,
    worst: f64,
}

impl Check {
    fn new(name: &'static str, rows: usize, operation: &Operation, allowed: f64) -> Self {
        Check {
            operation: name,
            rows,
            dispatches: operation.dispatches(),
            allowed,
            worst: 0.0,
        }
    }

    /// Takes in a result: its largest error, relative to the largest exact value or to 1.
    fn compare<'a>(
        &mut self,
        gpu: impl IntoIterator<Item = &'a f32>,
        exact: impl IntoIterator<Item = &'a f64>,
    ) {
        let (mut error, mut largest) = (0.0f64, 1.0f64);
        for (&gpu, &exact) in gpu.into_iter().zip(exact) {
            let difference = (f64::from(gpu) - exact).abs();
            // `max` alone would pass over a NaN.
            error = error.max(if difference.is_nan() {
                f64::INFINITY
            } else {
                difference
            });
            largest = largest.max(exact.abs());
        }
        self.worst = self.worst.max(error / largest);
    }

    fn agrees(&self) -> bool {
        self.worst <= self.allowed
    }

    fn print(&self) {
        let shape = format!("{} × {FEATURES}", self.rows);
        println!(
            "{:<25}{shape:>10}{:>12}{:>11.1e}{:>9.0e}  {}",
            self.operation,
            self.dispatches,
            self.worst,
            self.allowed,
            if self.agrees() { "ok" } else { "TOO LARGE" },
        );
    }
}

/// Batch norm again, in f64 on the CPU, next to the one that is trained on the GPU.
struct Checker {
    exact: reference::Running,
    forward: Check,
    running: Check,
    backward: Check,
}

impl Checker {
    fn new(forward: &Operation, backward: &Operation) -> Self {
        Checker {
            exact: reference::Running {
                mean: Array1::zeros(FEATURES),
                variance: Array1::ones(FEATURES),
                batches: 0,
            },
            forward: Check::new("training forward", BATCH, forward, TOLERANCE),
            running: Check::new("  its running statistics", 3, forward, TOLERANCE),
            backward: Check::new("backward", BATCH, backward, GRADIENT_TOLERANCE),
        }
    }

    fn step(&mut self, step: &Step<'_>) -> Result<()> {
        let problem = Problem::nc([BATCH, FEATURES]);
        let (input, affine) = (exact(step.features), step.affine.mapv(f64::from));
        let inputs = inputs(&input, &affine);
        let statistics = Statistics::of(&problem, input.view())?;

        let output = reference::forward(&problem, &inputs, &statistics)?;
        self.forward.compare(step.normalised, &output);

        self.exact.update(&problem, &statistics)?;
        let batches = step.running.row(2).mapv(|count| count.to_bits() as f32);
        self.running.compare(step.running.row(0), &self.exact.mean);
        self.running
            .compare(step.running.row(1), &self.exact.variance);
        self.running.compare(
            &batches,
            &Array1::from_elem(FEATURES, self.exact.batches as f64),
        );

        let grad = exact(step.grad_normalised);
        let grads = reference::backward(&problem, &inputs, &statistics, grad.view(), false)?;
        self.backward.compare(step.grad_features, &grads.input);
        self.backward
            .compare(step.grad_affine.row(0), &grads.weight);
        self.backward.compare(step.grad_affine.row(1), &grads.bias);
        Ok(())
    }
}

fn check_inference(
    operation: &Operation,
    features: &Array2<f32>,
    affine: &Array2<f32>,
    running: &Array2<f32>,
    normalised: &Array2<f32>,
) -> Result<Check> {
    let rows = features.nrows();
    let problem = Problem::nc([rows, FEATURES]);
    let (input, affine) = (exact(features), affine.mapv(f64::from));
    let [mean, variance] = [0, 1].map(|row| running.row(row).mapv(f64::from));
    let statistics = Statistics::given(&problem, mean, variance)?;
    let output = reference::forward(&problem, &inputs(&input, &affine), &statistics)?;
    let mut check = Check::new("inference", rows, operation, TOLERANCE);
    check.compare(normalised, &output);
    Ok(check)
}

/// As the reference takes it: f64, `[outer, channels, inner]`.
fn exact(values: &Array2<f32>) -> Array3<f64> {
    values.mapv(f64::from).insert_axis(Axis(2))
}

fn inputs<'a>(input: &'a Array3<f64>, affine: &'a Array2<f64>) -> Inputs<'a> {
    Inputs {
        input: input.view(),
        residual: None,
        weight: Some(affine.row(0)),
        bias: Some(affine.row(1)),
        mask: None,
    }
}

/// Mean and standard deviation.
fn moments(values: ArrayView1<'_, f32>) -> (f64, f64) {
    let values = values.mapv(f64::from);
    (values.mean().unwrap_or(f64::NAN), values.std(0.0))
}

/// Between which values the features' means and deviations lie.
fn print_spread(name: &str, values: &Array2<f32>) {
    let moments: Vec<_> = values.columns().into_iter().map(moments).collect();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = moments
            .iter()
            .map(of)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        format!("{low:.2} … {high:.2}")
    };
    println!("{name:<25}{:>20}{:>20}", range(|m| m.0), range(|m| m.1));
}

/// The features that are drawn: the first ones, which have all the scales and offsets.
const DRAWN: usize = 12;
const PNG: &str = "digits.png";
const SVG: &str = "digits.svg";
const SIZE: (u32, u32) = (1400, 900);
/// Okabe and Ito's blue and vermilion, which everybody can tell apart.
const BLUE: RGBColor = RGBColor(0, 114, 178);
const VERMILION: RGBColor = RGBColor(213, 94, 0);

/// Draws the features before and after batch norm as a PNG and an SVG.
fn draw(out: &Path, before: &Array2<f32>, after: &Array2<f32>) -> Result<()> {
    let font = include_bytes!("data/DejaVuSans-subset.ttf");
    register_font("sans-serif", FontStyle::Normal, font).map_err(|_| "the font is unreadable")?;
    std::fs::create_dir_all(out).map_err(|error| format!("{}: {error}", out.display()))?;
    let (png, svg) = (out.join(PNG), out.join(SVG));
    picture(
        &BitMapBackend::new(&png, SIZE).into_drawing_area(),
        before,
        after,
    )?;
    picture(
        &SVGBackend::new(&svg, SIZE).into_drawing_area(),
        before,
        after,
    )?;
    Ok(())
}

fn picture<B: DrawingBackend<ErrorType: 'static>>(
    area: &DrawingArea<B, Shift>,
    before: &Array2<f32>,
    after: &Array2<f32>,
) -> Result<()> {
    area.fill(&WHITE)?;
    let title = format!(
        "{DRAWN} features of {} handwritten digits, before and after batch norm",
        before.nrows()
    );
    let area = area
        .margin(14, 0, 0, 0)
        .titled(&title, ("sans-serif", 30))?;
    let (width, height) = area.dim_in_pixel();
    let (panels, legend) = area.split_vertically(height - 40);
    let (left, right) = panels.split_horizontally(width / 2);
    // Both on one scale, which is what there is to see.
    let largest = before
        .iter()
        .chain(after)
        .fold(1.0f32, |a, b| a.max(b.abs()));
    let span = 1.1 * f64::from(largest);
    panel(
        &left,
        "before: each feature as it comes",
        before,
        span,
        &BLUE,
    )?;
    panel(&right, "after: all on one scale", after, span, &VERMILION)?;
    let text = "Area: distribution, scaled to one height.  Dot and bar: mean ± standard deviation.  \
                After: by running statistics, then the weight and bias learned.";
    let style = ("sans-serif", 18).into_font().color(&BLACK.mix(0.75));
    legend.draw_text(
        text,
        &style.pos(Pos::new(HPos::Center, VPos::Center)),
        (width as i32 / 2, 16),
    )?;
    area.present()?;
    Ok(())
}

/// One ridge per feature, the first on top.
fn panel<B: DrawingBackend<ErrorType: 'static>>(
    area: &DrawingArea<B, Shift>,
    caption: &str,
    values: &Array2<f32>,
    span: f64,
    color: &RGBColor,
) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 24))
        .margin(16)
        .x_label_area_size(56)
        .y_label_area_size(64)
        .build_cartesian_2d(-span..span, (DRAWN as f64 - 0.6)..-0.95)?;
    chart
        .configure_mesh()
        .x_desc("activation")
        .y_desc("feature")
        .x_labels(9)
        .x_label_formatter(&|x| format!("{x:.0}").replace('-', "−"))
        .y_labels(DRAWN + 2)
        .y_label_formatter(&|feature| format!("{feature:.0}"))
        .label_style(("sans-serif", 18))
        .axis_desc_style(("sans-serif", 20))
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (feature, values) in values.columns().into_iter().take(DRAWN).enumerate() {
        let base = feature as f64;
        let (mean, deviation) = moments(values);
        let ridge = density(values, deviation);
        let peak = ridge
            .iter()
            .fold(0.0f64, |peak, &(_, density)| peak.max(density));
        let ridge = ridge
            .into_iter()
            .map(|(x, density)| (x, base - 0.85 * density / peak));
        let bar = [(mean - deviation, base), (mean + deviation, base)];
        chart.draw_series(
            AreaSeries::new(ridge, base, color.mix(0.35)).border_style(color.stroke_width(2)),
        )?;
        chart.draw_series([PathElement::new(bar, BLACK.stroke_width(3))])?;
        chart.draw_series([Circle::new((mean, base), 5, BLACK.filled())])?;
    }
    Ok(())
}

/// A Gaussian kernel density estimate with Silverman's bandwidth, from end to end of the values.
fn density(values: ArrayView1<'_, f32>, deviation: f64) -> Vec<(f64, f64)> {
    let values = values.mapv(f64::from);
    let bandwidth = 1.06 * deviation * (values.len() as f64).powf(-0.2);
    let low = values.fold(f64::INFINITY, |a, &b| a.min(b)) - 3.0 * bandwidth;
    let high = values.fold(f64::NEG_INFINITY, |a, &b| a.max(b)) + 3.0 * bandwidth;
    let at = |x: f64| {
        let kernels = values.mapv(|value| (-0.5 * ((x - value) / bandwidth).powi(2)).exp());
        (x, kernels.sum())
    };
    (0..=160)
        .map(|i| at(low + (high - low) * f64::from(i) / 160.0))
        .collect()
}
