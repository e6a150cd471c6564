//! The planner against every strategy that can run: `--strategies`.

use std::fmt::Write as _;

use anyhow::Result;
use wgpu_batchnorm::{Choices, Error, Plan, Strategy};

use super::subject::{Bound, Subject, shape_text};
use super::timer::median;
use super::{Bench, repeated, spread};

const STRATEGIES: [Strategy; 3] = [Strategy::Resident, Strategy::Streaming, Strategy::Split];

/// Milliseconds of one submit, about: with three strategies and two directions of many shapes it adds up.
const SUBMIT_MS: f64 = 20.0;

/// What the planner may be off the best, in the summary.
const NEAR: f64 = 0.10;

/// One operation on one shape by every strategy.
pub(crate) struct Row {
    subject: Subject,
    /// Milliseconds, where that strategy can run.
    ms: [Option<f64>; 3],
    /// (largest - smallest) / median over the rounds, of the noisiest.
    spread: f64,
    /// What the planner chooses. With that strategy forced the dispatches are the same, so its time is the planner's.
    chosen: Strategy,
}

impl Row {
    fn best(&self) -> f64 {
        self.ms
            .iter()
            .flatten()
            .copied()
            .fold(f64::INFINITY, f64::min)
    }

    fn planned(&self) -> f64 {
        let times = STRATEGIES.iter().zip(self.ms);
        let own = times.filter(|(strategy, _)| **strategy == self.chosen);
        own.filter_map(|(_, ms)| ms).fold(f64::NAN, f64::min)
    }

    /// The same shape and type, whatever the operation.
    fn is_like(&self, other: &Row) -> bool {
        self.subject.shape == other.subject.shape && self.subject.problem == other.subject.problem
    }
}

impl Bench<'_> {
    /// Checks and times an operation by every strategy that can run, in turns, cold.
    pub(crate) async fn strategies(&self, subject: &Subject) -> Result<Row> {
        let (gpu, timer) = (self.gpu, &self.timer);
        let caps = gpu.kernels.caps();
        let chosen = Plan::new(&subject.problem, caps)?.strategy();
        let sets = self.tensors(subject, true).await?;
        let mut contestants = Vec::new();
        for strategy in STRATEGIES {
            let choices = Choices::default().strategy(strategy);
            let plan = match Plan::with(&subject.problem, caps, &choices) {
                Ok(plan) => plan,
                Err(Error::Unsupported { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut bound = Vec::new();
            for tensors in &sets {
                bound.push(Bound::new(gpu, &plan, subject, tensors).await?);
            }
            bound[0].check(gpu, subject).await?;
            contestants.push((strategy, bound, Vec::new()));
        }
        for round in 0..=self.options.rounds.max(1) {
            for (_, bound, times) in &mut contestants {
                // The first round tells how often each may be repeated.
                let repetitions = match (round, times.first(), self.options.repetitions) {
                    (0, ..) => 4,
                    (_, _, Some(repetitions)) => repetitions.max(2),
                    (_, first, None) => {
                        let ms: f64 = first.copied().unwrap_or(SUBMIT_MS);
                        ((SUBMIT_MS / ms.max(1e-3)) as usize).clamp(4, 512)
                    }
                };
                times.push(timer.slope(&repeated(bound), repetitions).await?);
            }
        }
        let mut row = Row {
            subject: subject.clone(),
            ms: [None; 3],
            spread: 0.0,
            chosen,
        };
        for (strategy, _, times) in &mut contestants {
            let times = &mut times[1..];
            let ms = median(times);
            row.spread = row.spread.max(spread(times));
            for (known, place) in STRATEGIES.iter().zip(&mut row.ms) {
                if known == strategy {
                    *place = Some(ms);
                }
            }
        }
        Ok(row)
    }
}

/// How many of some distances are near, as text.
fn share(distances: &[f64]) -> String {
    let near = distances.iter().filter(|d| **d <= NEAR).count();
    let percent = 100.0 * near as f64 / distances.len().max(1) as f64;
    format!("{near} of {} ({percent:.0} %)", distances.len())
}

/// The table, under what it is of and what it comes to.
pub(crate) fn markdown(bench: &Bench<'_>, rows: &[Row]) -> String {
    let info = bench.gpu.adapter.get_info();
    let mut text = format!(
        "# The planner against the best strategy: {} ({})\n\n",
        info.name, info.backend
    );
    let driver = format!("{} {}", info.driver, info.driver_info);
    let _ = writeln!(
        text,
        "{}. Times in µs by {}, medians of {} rounds in which the strategies take turns, after the results were checked; \
         cold, but on software adapters. In bold what the planner chooses; a strategy that cannot run has no time. \
         Spread: (largest − smallest) / median over the rounds, of the noisiest strategy.\n",
        driver.trim(),
        bench.timer.kind(),
        bench.options.rounds.max(1),
    );
    // One plan serves both directions, so what counts is their sum.
    let (mut of_choice, mut single, mut of_rows) = (Vec::new(), 0, Vec::new());
    for (i, row) in rows.iter().enumerate() {
        if row.ms.iter().flatten().count() > 1 {
            of_rows.push(row.planned() / row.best() - 1.0);
        }
        if rows[..i].iter().any(|earlier| earlier.is_like(row)) {
            continue;
        }
        let alike: Vec<_> = rows.iter().filter(|r| r.is_like(row)).collect();
        let sum = |i: usize| alike.iter().map(|r| r.ms[i]).sum::<Option<f64>>();
        let sums: Vec<f64> = (0..STRATEGIES.len()).filter_map(sum).collect();
        if sums.len() < 2 {
            single += 1;
            continue;
        }
        let planned: f64 = alike.iter().map(|r| r.planned()).sum();
        let best = sums.into_iter().fold(f64::INFINITY, f64::min);
        of_choice.push(planned / best - 1.0);
    }
    let worst = of_choice.iter().copied().fold(0.0, f64::max);
    let _ = writeln!(
        text,
        "**Within {:.0} % of the best: {} of the (shape, type) that more than one strategy can run**, by the sum of the \
         operations; the worst is {:.0} % off. Of single operations: {}. On {single} more only one strategy can run.\n",
        100.0 * NEAR,
        share(&of_choice),
        100.0 * worst,
        share(&of_rows),
    );
    text += "| shape | type | operation | resident | streaming | split | from the best | spread |\n\
             |---|---|---|--:|--:|--:|--:|--:|\n";
    for row in rows {
        let cells = STRATEGIES
            .iter()
            .zip(row.ms)
            .map(|(strategy, ms)| match ms {
                None => "–".to_owned(),
                Some(ms) if *strategy == row.chosen => format!("**{:.1}**", 1e3 * ms),
                Some(ms) => format!("{:.1}", 1e3 * ms),
            });
        let subject = &row.subject;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.0} % | {:.0} % |",
            shape_text(&subject.shape, subject.channel_axis),
            subject.problem.dtype,
            subject.op.name().replace('_', " "),
            cells.collect::<Vec<_>>().join(" | "),
            100.0 * (row.planned() / row.best() - 1.0),
            100.0 * row.spread,
        );
    }
    text
}
