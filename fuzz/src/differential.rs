//! The first adapter of this machine against the f64 reference: any small shape, type, fusion, strategy and data that the
//! documentation's bounds hold for.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use wgpu_batchnorm::{
    Choices, Dtype, Error, Gpu, Kernels, Momentum, Preset, Problem, Strategy, Walk,
};
use wgpu_batchnorm_cli::check::{
    ACTIVATIONS, Case, Comparison, Data, Gradient, Operation, compare,
};

use crate::{Outcome, Pick};

/// What changes kernels: cases that share it find most of them compiled.
pub struct Family {
    dtype: Dtype,
    activation: usize,
    lanes: Option<u32>,
    device_type: wgpu::DeviceType,
}

impl Family {
    /// Any.
    pub fn new(pick: &mut Pick<'_>) -> Self {
        let kinds = [wgpu::DeviceType::Cpu, wgpu::DeviceType::DiscreteGpu];
        Family {
            dtype: Dtype::ALL[pick(3) as usize],
            activation: pick(ACTIVATIONS.len() as u64) as usize,
            lanes: [None, None, None, Some(1), Some(8), Some(64), Some(256)][pick(7) as usize],
            device_type: kinds[pick(2) as usize],
        }
    }
}

/// One case.
pub fn run(pick: &mut Pick<'_>) -> Outcome {
    let family = Family::new(pick);
    run_in(&family, pick)
}

/// One case of a family.
pub fn run_in(family: &Family, pick: &mut Pick<'_>) -> Outcome {
    /// Kernels of all kinds take gigabytes on a software driver.
    const KEPT: u32 = 400;
    /// The adapter, and cases since the kernels were made. Never dropped: at the end of a process wgpu may be gone before.
    static GPU: LazyLock<Mutex<(Gpu, u32)>> = LazyLock::new(|| Mutex::new((gpu(), 0)));
    let case = case(family, pick);
    let seed = pick(1 << 32);
    let mut kept = GPU.lock().unwrap_or_else(PoisonError::into_inner);
    let (gpu, cases) = &mut *kept;
    *cases += 1;
    if cases.is_multiple_of(KEPT) {
        gpu.kernels = Kernels::new(&gpu.device).expect("as before");
    }
    let described = || format!("{case}\n{:?}\n{:?}", case.problem, case.choices);
    match compare(gpu, &case, seed) {
        Ok(all) => {
            if let Some(c) = all.iter().find(|c| is_beyond(c, case.problem.dtype)) {
                panic!("{}, values of seed {seed}\n{}", described(), c.report());
            }
            Outcome::Done
        }
        Err(error) => match error.downcast_ref::<Error>() {
            Some(
                Error::Unsupported { .. } | Error::Limit { .. } | Error::OneValuePerChannel { .. },
            ) => Outcome::Refused,
            _ => panic!("{}\n{error}", described()),
        },
    }
}

/// Whether a value is beyond its bound, or far more of them than the documentation says are not the correctly rounded
/// ones: of a few thousand that share strays.
fn is_beyond(c: &Comparison, dtype: Dtype) -> bool {
    let share = if dtype == Dtype::Bf16 { 1e-3 } else { 5e-3 };
    let strays = |(wrong, all): (usize, usize)| wrong as f64 > 8.0 + 4.0 * share * all as f64;
    c.of_bound.is_nan() || !c.places.is_empty() || c.misrounded.is_some_and(strays)
}

fn gpu() -> Gpu {
    let gpu = Gpu::new().unwrap_or_else(|error| panic!("{error}"));
    let report = |error: wgpu::Error| panic!("wgpu reported {error}");
    gpu.device.on_uncaptured_error(Arc::new(report));
    gpu
}

/// At most so many elements.
const MOST: usize = 4096;

fn case(family: &Family, pick: &mut Pick<'_>) -> Case {
    let mut left = MOST;
    let mut dimension = |pick: &mut Pick<'_>| {
        let most = match pick(4) {
            0 => 1,
            1 => 9,
            2 => 70,
            _ => MOST,
        };
        let value = 1 + pick(left.min(most) as u64) as usize;
        left /= value;
        value
    };
    // Each dimension has its turn at being the first, which may be long.
    let mut dimensions = [0; 3];
    let first = pick(3) as usize;
    for i in 0..3 {
        dimensions[(first + i) % 3] = dimension(pick);
    }
    let groups = if pick(4) == 0 {
        dimension(pick).min(9)
    } else {
        1
    };
    let [outer, channels, inner] = dimensions;
    let data = data(pick);
    let presets = [
        Preset::Pytorch,
        Preset::Keras,
        Preset::Tensorflow,
        Preset::Onnx,
    ];
    let mut problem = Problem::new(outer, channels, inner)
        .groups(groups)
        .preset(presets[pick(4) as usize])
        .activation(ACTIVATIONS[family.activation]);
    if pick(3) == 0 {
        problem = problem.with_residual();
    }
    // As few as one value that counts, and no variance: the bounds are for more.
    if pick(4) == 0 && problem.count() >= 16 {
        problem = problem.with_mask();
    }
    match pick(8) {
        0 => problem = problem.momentum(Momentum::Cumulative),
        1 => problem = problem.momentum(Momentum::new_weight(unit(pick))),
        2 => problem = problem.eps(10f64.powf(-6.0 * unit(pick))),
        _ => {}
    }
    problem.dtype = match family.dtype {
        Dtype::F16 if data.largest() > 6e4 => Dtype::Bf16,
        dtype => dtype,
    };
    let operation = Operation::ALL[pick(4) as usize];
    let gradients = [Gradient::Normal, Gradient::Ones, Gradient::Positive];
    // Without an activation grad_output is the residual's gradient too, and is not overwritten.
    let differentiates = matches!(operation, Operation::Backward | Operation::Frozen);
    let lost = differentiates && problem.residual && !problem.writes_grad_residual();
    let mut choices = Choices::default().device_type(family.device_type);
    choices.reduce_workgroup = family.lanes;
    if pick(4) == 0 {
        choices.flat_workgroup = family.lanes;
    }
    if pick(2) == 0 {
        let all = [Strategy::Split, Strategy::Streaming, Strategy::Resident];
        choices.strategy = Some(all[pick(3) as usize]);
    }
    if pick(3) == 0 {
        choices.walk = Some([Walk::Planar, Walk::Columns][pick(2) as usize]);
    }
    if pick(4) == 0 {
        choices.pieces = Some(pick(80) as u32);
    }
    if pick(8) == 0 {
        choices.flat_workgroups = Some(pick(80) as u32);
    }
    Case {
        operation,
        problem,
        data,
        gradient: gradients[pick(3) as usize],
        affine: pick(2) == 0,
        in_place: pick(4) == 0 && !lost,
        choices,
    }
}

fn unit(pick: &mut Pick<'_>) -> f64 {
    pick(1 << 24) as f64 / f64::from(1 << 24)
}

/// What the documentation's bounds are for.
fn data(pick: &mut Pick<'_>) -> Data {
    let sign = if pick(2) == 0 { 1.0 } else { -1.0 };
    let mut up_to = |from: f64, to: f64| 10f64.powf(from + (to - from) * unit(pick)) as f32;
    let scale = up_to(-6.0, 15.0);
    let (outlier, cluster, ramp, constant) = (
        up_to(0.0, 6.0),
        up_to(0.0, 3.7),
        up_to(-1.0, 4.0),
        up_to(-3.0, 4.0),
    );
    let far = up_to(0.0, 6.0);
    match pick(10) {
        0..3 => Data::Normal(0.5 * sign, 2.0),
        3 => Data::Normal(sign * far, 1.0),
        4 => Data::Normal(0.0, scale),
        5 => Data::Normal(sign * (far * scale).min(1e15), scale),
        6 => Data::Constant(sign * constant),
        7 => Data::Outlier(sign * outlier, pick(2) == 0),
        8 => Data::Bimodal(cluster),
        _ => Data::Ramp(ramp),
    }
}
