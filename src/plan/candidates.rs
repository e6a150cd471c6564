//! Plans worth measuring against the planner's own.

use super::{Choices, Plan, Strategy, Walk};
use crate::{Caps, Problem, Result};

/// Rows that are short enough for the other walk to have a chance.
const SHORT_ROWS: std::ops::Range<usize> = 2..64;

impl Plan {
    /// The planner's own plan, then every strategy and what may be worth changing of split: those that can run, each set
    /// of dispatches once, by names for people.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub(crate) fn candidates(
        problem: &Problem,
        caps: &Caps,
    ) -> Result<Vec<(String, Choices, Plan)>> {
        let own = Self::new(problem, caps)?;
        let of = |strategy| Choices::default().strategy(strategy);
        let split = || of(Strategy::Split);
        let mut named = vec![
            ("resident".to_owned(), of(Strategy::Resident)),
            ("streaming".to_owned(), of(Strategy::Streaming)),
            ("split".to_owned(), split()),
        ];
        if SHORT_ROWS.contains(&problem.inner) {
            let other = match own.walk {
                Walk::Planar => Walk::Columns,
                Walk::Columns => Walk::Planar,
            };
            named.push((format!("split, {other}"), split().walk(other)));
        }
        for part in [2, 4] {
            let pieces = own.params.pieces / part;
            if pieces > 0 {
                named.push((format!("split, {pieces} pieces"), split().pieces(pieces)));
            }
        }
        for lanes in if caps.is_cpu() { [16, 64] } else { [128, 512] } {
            let choices = split().reduce_workgroup(lanes);
            named.push((format!("split, {lanes} lanes reduce"), choices));
        }
        // One lane, one vector after the other, looking up its channel: what the walk's own second pass replaces.
        let flat = split().flat_workgroup(own.flat_workgroup);
        named.push(("split, flat second pass".to_owned(), flat));

        let mut candidates = vec![("the planner's".to_owned(), Choices::default(), own)];
        for (name, choices) in named {
            // Refused: a strategy that cannot run, lanes that the device has not.
            if let Ok(plan) = Self::with(problem, caps, &choices)
                && candidates.iter().all(|c| c.2.steps() != plan.steps())
            {
                candidates.push((name, choices, plan));
            }
        }
        Ok(candidates)
    }
}
