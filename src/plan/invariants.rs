//! What every plan promises, checked on any plan, and problems to make plans of: for the unit tests, and under
//! `--cfg fuzzing` for the crate in `fuzz/`, which goes through millions.

use super::cut::{Apply, repetitions};
use super::{Plan, Step, Strategy, Walk};
use crate::kernels::Kernel;
use crate::problem::MAX_ELEMENTS;
use crate::{Activation, Caps, Choices, Dtype, Momentum, Preset, Problem, Result, RunningVariance};

/// llvmpipe ends the loops of an invocation after so many iterations.
const LLVMPIPE_ITERATIONS: u64 = 65_535;

macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(format!("`{}` does not hold: {}", stringify!($holds), format!($($message)+)));
        }
    };
}

impl Plan {
    /// A problem, a device and choices, most of them sensible and some not. `pick(n)` gives a number below n.
    pub fn arbitrary(mut pick: impl FnMut(u64) -> u64) -> (Problem, Caps, Choices) {
        let mut problem = Problem::new(
            dimension(&mut pick),
            dimension(&mut pick),
            dimension(&mut pick),
        );
        if pick(4) == 0 {
            problem = problem.groups(dimension(&mut pick));
        }
        problem.dtype = Dtype::ALL[pick(3) as usize];
        problem.activation = Activation::ALL[pick(7) as usize];
        if problem.activation.slope() != 0.0 {
            problem.activation = Activation::LeakyRelu(number(&mut pick));
        }
        problem.residual = pick(2) == 0;
        problem.mask = pick(4) == 0;
        let presets = [
            Preset::Pytorch,
            Preset::Keras,
            Preset::Tensorflow,
            Preset::Onnx,
        ];
        problem = problem.preset(presets[pick(4) as usize]);
        match pick(32) {
            0 => problem.momentum = Momentum::Cumulative,
            1 => problem.momentum = Momentum::new_weight(number(&mut pick)),
            2 => problem.momentum = Momentum::decay(number(&mut pick)),
            3 => problem.eps = number(&mut pick),
            4 => problem.running_variance = RunningVariance::Biased,
            _ => {}
        }
        let caps = device(&mut pick);
        let mut choices = Choices::default();
        if pick(3) == 0 {
            let all = [Strategy::Split, Strategy::Streaming, Strategy::Resident];
            choices.strategy = Some(all[pick(3) as usize]);
        }
        if pick(3) == 0 {
            choices.walk = Some([Walk::Planar, Walk::Columns][pick(2) as usize]);
        }
        if pick(4) == 0 {
            let mut lanes = || match pick(16) {
                0 => pick(1 << 32) as u32,
                _ => 1 << pick(12),
            };
            choices.reduce_workgroup = Some(lanes());
            choices.flat_workgroup = (lanes() % 2 == 0).then(lanes);
        }
        if pick(4) == 0 {
            choices.pieces = Some(dimension(&mut pick) as u32);
        }
        if pick(4) == 0 {
            choices.flat_workgroups = Some(dimension(&mut pick) as u32);
        }
        if pick(4) == 0 {
            choices.device_type = Some(KINDS[pick(5) as usize]);
        }
        (problem, caps, choices)
    }

    /// Holds the plan to its promises: every dispatch is one that the device can make, pieces and chunks cover everything
    /// once, and no number is cut off at 32 bits.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self) -> Result<(), String> {
        let inner = || {
            self.check_parts()?;
            match &self.chunks {
                None => self.check_dispatches(),
                Some(chunks) => chunks
                    .kinds()
                    .into_iter()
                    .try_for_each(Plan::check_dispatches),
            }?;
            self.check_workspace()
        };
        inner().map_err(|what| {
            format!(
                "{what}\nin {self}\nfor {:?}\non {:?}",
                self.problem, self.caps
            )
        })
    }

    /// Chunks follow on each other without a gap, start where a binding may, and fit.
    fn check_parts(&self) -> Result<(), String> {
        /// Going through more takes long; the last is looked at in any case.
        const MOST: usize = 100;
        let parts = self.parts().count();
        let mut next = 0;
        for (i, (start, part)) in self.parts().enumerate() {
            if i < MOST {
                ensure!(start == next, "chunk {i}");
            }
            let bytes = start * self.problem.dtype.bytes();
            ensure!(
                i == 0 || bytes.is_multiple_of(u64::from(self.caps.offset_alignment).max(16)),
                "chunk {i} starts at byte {bytes}"
            );
            let problem = &part.problem;
            ensure!(problem.bytes() <= self.caps.max_binding_size, "chunk {i}");
            ensure!(problem.elements() <= MAX_ELEMENTS, "chunk {i}");
            ensure!(problem.channels == self.problem.channels, "chunk {i}");
            next = start + problem.elements();
            if parts > MOST && i == MOST {
                break;
            }
        }
        if let Some(chunks) = &self.chunks {
            let [each, last] = chunks.kinds().map(|plan| plan.problem.elements());
            next = u64::from(chunks.count - 1) * each + last;
            ensure!(last <= each, "{each} elements a chunk");
            ensure!(
                self.params.square_unit == chunks.each.params.square_unit,
                ""
            );
        }
        ensure!(next == self.problem.elements(), "the end is at {next}");
        ensure!(u64::from(self.params.count) == self.problem.count(), "");
        Ok(())
    }

    /// Of a plan that is not cut into chunks.
    fn check_dispatches(&self) -> Result<(), String> {
        let (p, params) = (&self.problem, &self.params);
        for (field, value) in [
            (params.elements, p.elements()),
            (params.channels, p.channels as u64),
            (params.inner, p.inner as u64),
            (params.statistics, p.statistics() as u64),
            (params.group_elements, p.elements() / p.groups as u64),
            (params.outer_elements, (p.channels * p.inner) as u64),
            (params.vectors, p.elements().div_ceil(4)),
        ] {
            ensure!(u64::from(field) == value, "{params:?}");
        }
        for step in self.steps() {
            self.check_step(&step)?;
        }
        self.check_walk(&self.reduce(), self.walk, self.reduce_workgroups)?;
        let (slots, stride) = (u64::from(params.slots), u64::from(params.slot_stride));
        let width = u64::from(params.width);
        let of_channels =
            u64::from(params.channels) * u64::from(params.span) * u64::from(params.repetitions);
        ensure!(params.slots == params.pieces, "");
        ensure!(
            width >= of_channels && stride >= width * p.groups as u64,
            ""
        );
        ensure!(slots * stride <= 1 << 32, "{slots} slots");
        let Apply {
            walk,
            params,
            workgroups,
        } = &self.apply;
        let (second, workgroups) = (self.normalize(), *workgroups);
        match walk {
            Some(walk) => self.check_walk(&second, *walk, workgroups)?,
            None => {
                let lanes = u64::from(second.key.workgroup);
                let (vectors, chunk) = (u64::from(params.vectors), u64::from(params.chunk));
                ensure!(chunk > 0 && chunk.is_multiple_of(lanes), "{chunk}");
                ensure!(workgroups == vectors.div_ceil(chunk), "{chunk}");
                self.check_loop(chunk / lanes, &second)?;
                let row = u64::from(params.channels) * u64::from(params.inner);
                let stride = u64::from(params.stride_channels) * u64::from(params.inner)
                    + u64::from(params.stride_inner);
                ensure!(stride % row == 4 * lanes % row, "{stride}");
            }
        }
        for step in self
            .fused_forward()
            .into_iter()
            .chain(self.fused_backward())
        {
            ensure!(!self.ragged(), "{:?}", step.key.kernel);
            ensure!(step.params.pieces == 1, "{:?}", step.key.kernel);
            self.check_walk(&step, self.walk, step.params.workgroups.into())?;
            let lanes = match self.walk {
                Walk::Planar => step.key.workgroup,
                Walk::Columns => step.key.workgroup / step.params.tile,
            };
            let held = u64::from(step.key.held) * u64::from(lanes);
            let there = match self.walk {
                Walk::Planar => step.params.rows * step.params.row_vectors,
                Walk::Columns => step.params.rows,
            };
            ensure!(held == 0 || held >= there.into(), "{:?}", step.key.kernel);
        }
        ensure!(
            self.fused.is_some() == (self.strategy != Strategy::Split),
            ""
        );
        Ok(())
    }

    /// Whether a device can make a dispatch, and the dispatch covers what it should.
    fn check_step(&self, step: &Step) -> Result<(), String> {
        let (kernel, caps, params) = (step.key.kernel, &self.caps, &step.params);
        let [x, y] = step.grid.map(u64::from);
        let most = u64::from(caps.max_workgroups_per_dimension);
        ensure!(x <= most && y <= most, "{kernel:?}: {:?}", step.grid);
        let workgroups = u64::from(params.workgroups);
        ensure!(
            workgroups > 0 && x * y >= workgroups && x * y < workgroups + x,
            "{kernel:?}: {:?} for {workgroups}",
            step.grid
        );
        let lanes = u64::from(step.key.workgroup);
        ensure!(lanes.is_power_of_two(), "{kernel:?}: {lanes}");
        ensure!(
            lanes <= caps.max_workgroup_size.into(),
            "{kernel:?}: {lanes}"
        );
        ensure!(
            32 * lanes <= caps.max_workgroup_storage.into(),
            "{kernel:?}"
        );
        let (records, results) = match kernel {
            Kernel::Finalize
            | Kernel::Combine
            | Kernel::BackwardFinalize
            | Kernel::BackwardCombine => {
                let of_one = u64::from(params.repetitions) * u64::from(params.span);
                (3 * u64::from(params.slots) * of_one, params.statistics)
            }
            Kernel::SumGradients => (self.problem.groups as u64, params.channels),
            Kernel::CountMask => {
                let positions = u64::from(params.piece_length).div_ceil(lanes);
                let covered = u64::from(params.piece_length) * u64::from(params.mask_pieces);
                ensure!(covered >= self.problem.count(), "{kernel:?}: {covered}");
                // A piece is counted in f32.
                ensure!(params.piece_length <= 1 << 24, "{kernel:?}");
                return self.check_loop(positions, step);
            }
            Kernel::Coefficients => {
                ensure!(workgroups * lanes >= params.statistics.into(), "{kernel:?}");
                return Ok(());
            }
            Kernel::Gather | Kernel::Scatter => {
                ensure!(workgroups * lanes >= params.channels.into(), "{kernel:?}");
                return Ok(());
            }
            _ => return Ok(()),
        };
        let tile = u64::from(params.tile);
        ensure!(tile > 0 && lanes.is_multiple_of(tile), "{kernel:?}: {tile}");
        ensure!(workgroups * tile >= results.into(), "{kernel:?}: {tile}");
        self.check_loop(records.div_ceil(lanes / tile), step)
    }

    /// Whether the pieces of a walk are all of the tensor, once.
    fn check_walk(&self, step: &Step, walk: Walk, workgroups: u64) -> Result<(), String> {
        let (p, kernel, params) = (&self.problem, step.key.kernel, &step.params);
        let (outer, inner) = (p.outer as u64, p.inner as u64);
        let lanes = u64::from(step.key.workgroup);
        let [rows, row_vectors, pieces, length] = [
            params.rows,
            params.row_vectors,
            params.pieces,
            params.piece_length,
        ]
        .map(u64::from);
        ensure!(u64::from(params.workgroups) == workgroups, "{kernel:?}");
        let (there, side_by_side, step_of_all) = match walk {
            Walk::Planar => {
                let touched = if inner.is_multiple_of(4) {
                    inner / 4
                } else {
                    (inner + 3).div_ceil(4)
                };
                ensure!(rows == outer && row_vectors == touched, "{kernel:?}");
                let steps = u64::from(params.step_rows) * row_vectors;
                ensure!(
                    steps + u64::from(params.step_vectors) == lanes,
                    "{kernel:?}"
                );
                (rows * row_vectors, p.statistics() as u64, lanes)
            }
            Walk::Columns => {
                let columns = (p.channels * p.inner) as u64;
                let (again, tile) = (repetitions(columns), u64::from(params.tile));
                ensure!(u64::from(params.repetitions) == again, "{kernel:?}");
                ensure!(u64::from(params.width) == columns * again, "{kernel:?}");
                ensure!(row_vectors * 4 == columns * again, "{kernel:?}");
                ensure!(rows == outer.div_ceil(again), "{kernel:?}");
                ensure!(rows * row_vectors <= 1 << 30, "{kernel:?}");
                let across = u64::from(step.key.across);
                ensure!(across == (tile / lanes).max(1), "{kernel:?}");
                if across > 1 {
                    // Whole tiles, of which nothing is masked.
                    ensure!(across == 2 && !p.mask, "{kernel:?}");
                    ensure!(tile == across * lanes, "{kernel:?}: {tile}");
                    ensure!(row_vectors.is_multiple_of(tile), "{kernel:?}: {tile}");
                    ensure!(again == 1, "{kernel:?}");
                    ensure!(!kernel.is_fused(), "{kernel:?}");
                } else {
                    ensure!(tile > 0 && lanes.is_multiple_of(tile), "{kernel:?}");
                }
                let tiles = row_vectors.div_ceil(tile) * p.groups as u64;
                (rows, tiles, (lanes / tile).max(1))
            }
        };
        ensure!(workgroups == pieces * side_by_side, "{kernel:?}");
        ensure!(pieces * length <= u32::MAX.into(), "{kernel:?}");
        ensure!(
            pieces * length >= there && (pieces - 1) * length < there,
            "{kernel:?}: {pieces} pieces of {length} for {there}"
        );
        if !kernel.is_fused() {
            ensure!(length.is_multiple_of(step_of_all), "{kernel:?}: {length}");
        }
        let each = length.div_ceil(step_of_all);
        // A pivot is looked for in a quarter of them; a whole pass goes over them again.
        self.check_loop(each + each / 4, step)
    }

    /// Whether a loop on a software adapter ends by itself.
    fn check_loop(&self, iterations: u64, step: &Step) -> Result<(), String> {
        ensure!(
            !self.caps.is_cpu() || iterations < LLVMPIPE_ITERATIONS,
            "{:?} loops {iterations} times",
            step.key.kernel
        );
        Ok(())
    }

    /// Partial results are small beside the tensor, or one for each channel or column; the rest is records for each
    /// statistic.
    fn check_workspace(&self) -> Result<(), String> {
        /// Bytes of a record, and records of a planar walk that fill the largest device.
        const RECORD: u64 = 16;
        const FEW: u64 = 2048;
        let kinds = self.chunks.as_ref().map(|chunks| chunks.kinds());
        for plan in kinds.unwrap_or([self, self]) {
            let once = RECORD * u64::from(plan.params.slot_stride);
            // A software adapter's loops are cut whatever the pieces.
            let cut = plan.problem.bytes() / 1000;
            let allowed = match plan.walk {
                Walk::Planar => once + RECORD * FEW + cut,
                Walk::Columns => plan.partials_allowed().max(once + cut),
            };
            let partials = plan.partials_bytes();
            ensure!(partials <= allowed, "{partials} of {allowed} bytes");
        }
        let least = self.partials_bytes() + 2 * self.coefficients_bytes();
        ensure!(self.workspace_bytes() >= least, "{least} bytes");
        Ok(())
    }
}

const KINDS: [wgpu::DeviceType; 5] = [
    wgpu::DeviceType::Cpu,
    wgpu::DeviceType::DiscreteGpu,
    wgpu::DeviceType::IntegratedGpu,
    wgpu::DeviceType::VirtualGpu,
    wgpu::DeviceType::Other,
];

/// Small mostly, near a power of two otherwise, and now and then anything.
fn dimension(pick: &mut impl FnMut(u64) -> u64) -> usize {
    let near = |power: u64, pick: &mut dyn FnMut(u64) -> u64| {
        (1u64 << power).wrapping_add(pick(7)).wrapping_sub(3)
    };
    let value = match pick(64) {
        0 => pick(3),
        1..25 => 1 + pick(16),
        25..40 => 1 + pick(300),
        40..48 => 1 + pick(10_000),
        48..58 => near(pick(20), pick),
        58..62 => near(pick(34), pick),
        62 => near(pick(64), pick),
        _ => pick(u64::MAX),
    };
    value as usize
}

/// Mostly from 0 to 1, and now and then no number at all.
fn number(pick: &mut impl FnMut(u64) -> u64) -> f64 {
    match pick(4) {
        0 => f64::from_bits(pick(u64::MAX)),
        1 => [
            0.0,
            -0.0,
            1.0,
            f64::NAN,
            f64::INFINITY,
            f64::MAX,
            1e-45,
            -1.0,
        ][pick(8) as usize],
        _ => pick(1 << 20) as f64 / f64::from(1 << 20),
    }
}

/// From the least that kernels need to more than any device has; below that now and then.
fn device(pick: &mut impl FnMut(u64) -> u64) -> Caps {
    let kind = KINDS[pick(5) as usize];
    if pick(3) == 0 {
        return Caps::from_limits(&wgpu::Limits::default(), kind);
    }
    let mut at_least = |least: u32| match pick(32) {
        0 => pick(1 << 32) as u32,
        1 => least,
        2 => u32::MAX,
        _ => least.saturating_mul(1 << pick(6)),
    };
    let mut caps = Caps::from_limits(&wgpu::Limits::default(), kind);
    caps.max_workgroup_size = at_least(32);
    caps.max_workgroup_storage = at_least(1024);
    caps.max_workgroups_per_dimension = at_least(256);
    caps.max_storage_buffers = [4, 5, 6, 8, 8, 8, 8, 3][pick(8) as usize];
    caps.offset_alignment = 1 << [8, 8, 8, 4, 5, 6, 7, 2][pick(8) as usize];
    caps.shader_int64 = pick(2) == 0;
    caps.max_binding_size = match pick(4) {
        0 => 1 << pick(50),
        1 => pick(1 << 40),
        _ => [128 << 20, 1 << 30, (1 << 31) - 4, 1 << 20][pick(4) as usize],
    };
    caps
}
