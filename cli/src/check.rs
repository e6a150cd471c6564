//! `check`: the GPU against the f64 reference, over shapes, data, operations, walks, types and everything that is fused.
//!
//! The bounds, as max|out - ref| / max(1, max|ref|): 1e-6 forward, 2e-6 backward; the weight's gradient may also be off
//! by 1e-7·Σ|dz·x̂|, and with leaky ReLU the bias' by 2e-8·Σ|dz|; three times all that with SiLU, GELU, sigmoid and tanh,
//! where the input's gradient may also be off by 5e-7·max|γ·invstd·dz|: eight units of dz in f32. They hold on
//! adversarial data too. What is stored in 16 bits is compared with the reference rounded to the same type: at most one
//! unit off, or the bound where that is more, and on ordinary data correctly rounded in 99.5 % (f16) or 99.9 % (bf16) of
//! places, unless the gradient is 0 in exact arithmetic.

mod cases;
mod compare;

use serde_json::{Value, json};
use wgpu_batchnorm::{Dtype, Gpu, Strategy};
#[cfg(not(target_family = "wasm"))]
use {
    crate::args::CheckArgs,
    crate::info::print,
    crate::table::with_header,
    anyhow::{Result, ensure},
    comfy_table::{CellAlignment, Table},
    indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle},
    std::io::IsTerminal,
    wgpu_batchnorm::Kernels,
};

pub use cases::{ACTIVATIONS, Filter, Layout, cases, family};
#[cfg(not(target_family = "wasm"))]
pub use compare::compare;
pub use compare::{
    Case, Comparison, Data, Gradient, Operation, Random, compare_async, input, stored,
};

/// What came of one case.
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// Every tensor compared, or the error that came instead.
    pub result: std::result::Result<Vec<Comparison>, String>,
    /// The planner refused the strategy that was forced: by design, and neither a pass nor a failure.
    pub refused: bool,
}

impl Outcome {
    fn new(case: Case, result: anyhow::Result<Vec<Comparison>>) -> Self {
        let forced = !matches!(case.choices.strategy, None | Some(Strategy::Split));
        let refused = result.as_ref().is_err_and(|error| {
            let unsupported = error.downcast_ref::<wgpu_batchnorm::Error>();
            matches!(unsupported, Some(wgpu_batchnorm::Error::Unsupported { .. }))
        });
        Outcome {
            refused: forced && refused,
            result: result.map_err(|error| error.to_string()),
            case,
        }
    }

    /// Whether it is beyond a bound, or came to an error.
    pub fn failed(&self) -> bool {
        !self.passed() && !self.refused
    }

    /// Whether every tensor is within its bound.
    pub fn passed(&self) -> bool {
        self.result
            .as_ref()
            .is_ok_and(|all| all.iter().all(|c| c.of_bound <= 1.0))
    }

    /// The case, and what of it is beyond its bound.
    #[cfg(not(target_family = "wasm"))]
    fn failure(&self) -> String {
        let mut lines = vec![format!("FAILED {}", self.case)];
        match &self.result {
            Err(error) => lines.push(format!("    {error}")),
            Ok(all) => lines.extend(all.iter().filter(|c| c.of_bound > 1.0).map(|c| c.report())),
        }
        lines.join("\n")
    }

    /// The tensor nearest to its bound, or beyond it.
    pub fn worst(&self) -> Option<&Comparison> {
        self.result
            .as_ref()
            .ok()?
            .iter()
            .max_by(|a, b| a.of_bound.total_cmp(&b.of_bound))
    }
}

/// Runs one case. The seed makes its values: that of `check` is the number of the case.
pub async fn run_case(gpu: &Gpu, case: Case, seed: u64) -> Outcome {
    let result = compare_async(gpu, &case, seed).await;
    Outcome::new(case, result)
}

/// Runs cases, telling `progress` after each. Blocks. Kernels are kept for a family of cases at a time: all of the full
/// matrix' are gigabytes on a software driver.
#[cfg(not(target_family = "wasm"))]
pub fn run_cases(gpu: &Gpu, cases: Vec<Case>, mut progress: impl FnMut(&Outcome)) -> Vec<Outcome> {
    /// Beyond this many cases kernels are let go of.
    const FEW: usize = 1000;
    let many = cases.len() > FEW;
    let mut gpu = gpu.clone();
    let mut kept = None;
    let mut outcomes = Vec::with_capacity(cases.len());
    for (seed, case) in cases.into_iter().enumerate() {
        let family = many.then(|| family(&case));
        if family != kept {
            if let Ok(fresh) = Kernels::new(&gpu.device) {
                gpu.kernels = fresh;
            }
            kept = family;
        }
        let result = compare(&gpu, &case, seed as u64);
        let outcome = Outcome::new(case, result);
        progress(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}

/// Runs `check`.
///
/// # Errors
/// One line where there is no adapter, or where a case is beyond its bound.
#[cfg(not(target_family = "wasm"))]
pub fn run(args: &CheckArgs) -> Result<()> {
    let gpu = Gpu::find(args.device.backends(), args.device.adapter.as_deref())?;
    let info = gpu.adapter.get_info();
    let exact = gpu.keeps_remainders()?;
    let choices = args.device.choices();
    let filter = args.filter();
    let mut cases = cases(args.full, &choices, filter);
    let is_gl = info.backend == wgpu::Backend::Gl;
    if args.full && info.device_type == wgpu::DeviceType::Cpu && !is_gl {
        // A GPU's plans run here too: what they compute does not depend on the adapter. Not on GL, whose compiler takes
        // most of a second for a kernel.
        cases.extend(self::cases(
            true,
            &choices.device_type(wgpu::DeviceType::DiscreteGpu),
            filter,
        ));
    }
    let bar = ProgressBar::with_draw_target(
        Some(cases.len() as u64),
        if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        },
    );
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    let total = cases.len();
    let (mut done, mut told) = (0, std::time::Instant::now());
    let outcomes = run_cases(&gpu, cases, |outcome| {
        done += 1;
        bar.set_message(outcome.case.operation.name());
        bar.inc(1);
        // Where nobody sees the bar, a log says every minute how far it has come, and beside a report as JSON, what failed.
        if bar.is_hidden() && told.elapsed().as_secs() >= 60 {
            eprintln!("{done} of {total} cases");
            told = std::time::Instant::now();
        }
        if bar.is_hidden() && args.json && outcome.failed() {
            eprintln!("{}", outcome.failure());
        }
    });
    bar.finish_and_clear();
    let failed = outcomes.iter().filter(|o| o.failed()).count();
    let refused = outcomes.iter().filter(|o| o.refused).count();
    if args.json {
        let report = report(crate::info::adapter(&gpu.adapter), exact, &outcomes);
        print(serde_json::to_string_pretty(&report)?)?;
    } else {
        print(format!(
            "{} ({}, {:?})\nexact remainders survive the compiler: {}\n\n{}",
            info.name,
            info.backend,
            info.device_type,
            if exact { "yes" } else { "NO" },
            table(&outcomes).trim_fmt()
        ))?;
        for outcome in outcomes.iter().filter(|o| o.failed()) {
            print(format!("\n{}", outcome.failure()))?;
        }
        if refused > 0 {
            print(format!(
                "\n{refused} refused by the planner, which is by design"
            ))?;
        }
        print(format!(
            "\n{} passed, {failed} failed",
            outcomes.len() - failed - refused
        ))?;
    }
    ensure!(
        failed == 0,
        "{failed} of {} cases are beyond their bounds on {}",
        outcomes.len(),
        info.name
    );
    ensure!(
        exact,
        "the compiler of {} does not keep exact remainders: sums may lose digits",
        info.name
    );
    Ok(())
}

/// What `check --json` prints.
pub fn report(adapter: Value, exact_remainders: bool, outcomes: &[Outcome]) -> Value {
    let count = |what: fn(&Outcome) -> bool| outcomes.iter().filter(|o| what(o)).count();
    json!({
        "adapter": adapter,
        "exact_remainders": exact_remainders,
        "passed": count(Outcome::passed),
        "failed": count(Outcome::failed),
        "refused": count(|o| o.refused),
        "cases": outcomes.iter().map(as_json).collect::<Vec<_>>(),
    })
}

fn as_json(outcome: &Outcome) -> Value {
    let Case {
        operation,
        problem,
        data,
        gradient,
        choices,
        in_place,
        ..
    } = &outcome.case;
    let comparisons = outcome.result.as_ref().map(|all| {
        all.iter()
            .map(|c| json!({ "tensor": c.tensor, "error": c.error, "of_bound": c.of_bound }))
            .collect::<Vec<_>>()
    });
    json!({
        "op": operation.name(),
        "shape": problem.shape(),
        "dtype": problem.dtype.to_string(),
        "data": format!("{data:?}"),
        "gradient": format!("{gradient:?}"),
        "residual": problem.residual,
        "activation": problem.activation.to_string(),
        "groups": problem.groups,
        "mask": problem.mask,
        "in_place": in_place,
        "walk": choices.walk.map(|w| w.to_string()),
        "strategy": strategy_name(choices.strategy),
        "passed": outcome.passed(),
        "refused": outcome.refused,
        "tensors": comparisons.as_ref().ok(),
        "error": comparisons.as_ref().err(),
    })
}

/// A strategy that is forced, or that the choice is the planner's.
fn strategy_name(strategy: Option<Strategy>) -> String {
    strategy.map_or_else(|| "auto".into(), |s| s.to_string())
}

/// The cases of one operation, type, strategy and kind of data: how many, and the one nearest to its bound.
pub struct Line<'a> {
    /// What was computed.
    pub operation: Operation,
    /// As what the tensors are stored.
    pub dtype: Dtype,
    /// How the work was cut: a strategy's name, or `auto`.
    pub strategy: String,
    /// Or adversarial.
    pub ordinary: bool,
    /// How many cases.
    pub cases: usize,
    /// How many of them are beyond a bound, or came to an error.
    pub failed: usize,
    /// How many the planner refused, by design.
    pub refused: usize,
    /// The case nearest to its bound, or beyond it.
    pub worst: &'a Outcome,
}

/// The lines of the table that `check` prints.
pub fn lines(outcomes: &[Outcome]) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    let strategies = [
        None,
        Some(Strategy::Split),
        Some(Strategy::Streaming),
        Some(Strategy::Resident),
    ];
    let kinds = Dtype::ALL.into_iter().flat_map(|dtype| {
        let strategies = strategies.into_iter();
        strategies.flat_map(move |s| [(dtype, s, true), (dtype, s, false)])
    });
    for (operation, (dtype, strategy, ordinary)) in Operation::ALL
        .into_iter()
        .flat_map(|o| kinds.clone().map(move |kind| (o, kind)))
    {
        let chosen: Vec<_> = outcomes
            .iter()
            .filter(|o| {
                let case = &o.case;
                (case.operation, case.problem.dtype) == (operation, dtype)
                    && case.choices.strategy == strategy
                    && case.data.is_ordinary() == ordinary
            })
            .collect();
        let of_bound = |o: &&&Outcome| match (o.refused, o.worst()) {
            (true, _) => f64::NEG_INFINITY,
            (false, worst) => worst.map_or(f64::INFINITY, |c| c.of_bound),
        };
        let Some(&worst) = chosen
            .iter()
            .max_by(|a, b| of_bound(a).total_cmp(&of_bound(b)))
        else {
            continue;
        };
        lines.push(Line {
            operation,
            dtype,
            strategy: strategy_name(strategy),
            ordinary,
            cases: chosen.len(),
            failed: chosen.iter().filter(|o| o.failed()).count(),
            refused: chosen.iter().filter(|o| o.refused).count(),
            worst,
        });
    }
    lines
}

#[cfg(not(target_family = "wasm"))]
fn percent(of_bound: f64) -> String {
    match of_bound {
        0.0..10.0 => format!("{:.0}%", 100.0 * of_bound),
        _ => format!("{of_bound:.0e} times"),
    }
}

#[cfg(not(target_family = "wasm"))]
fn table(outcomes: &[Outcome]) -> Table {
    let mut table = with_header([
        "operation",
        "type",
        "strategy",
        "data",
        "cases",
        "refused",
        "failed",
        "worst error",
        "of its bound",
        "in",
        "at shape",
    ]);
    for line in lines(outcomes) {
        let comparison = line.worst.worst();
        table.add_row(vec![
            line.operation.name().to_owned(),
            line.dtype.to_string(),
            line.strategy.clone(),
            if line.ordinary {
                "ordinary"
            } else {
                "adversarial"
            }
            .to_owned(),
            line.cases.to_string(),
            line.refused.to_string(),
            line.failed.to_string(),
            comparison.map_or("-".into(), |c| format!("{:.1e}", c.error)),
            comparison.map_or("-".into(), |c| percent(c.of_bound)),
            comparison.map_or("-", |c| c.tensor).to_owned(),
            format!("{:?}", line.worst.case.problem.shape()),
        ]);
    }
    for column in [4, 5, 6, 7, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
