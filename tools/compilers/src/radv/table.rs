//! The table, the targets, and what is known to miss them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::isa::{Hot, Report};
use super::{FAMILIES, FEW_WRITES, Family, by_variant, elements};
use crate::shapes::{Chosen, wants_waves};

/// Element headers whose words are narrower than 128 bits: loads and stores are as wide as a word at least.
const NARROW_WORDS: [(&str, u32, &str); 3] = [
    ("half4", 64, "16-bit elements, four to a word of 8 bytes"),
    (
        "half2",
        32,
        "16-bit elements of odd tensors, which have no whole vectors",
    ),
    (
        "f32x1",
        32,
        "f32 of odd tensors, which have no whole vectors",
    ),
];

/// A kernel of which some variants miss a target. What the committed table has, where it is better, is the target then:
/// nothing may become worse.
struct Exception {
    entry_point: &'static str,
    /// Waves at least, in the order of `FAMILIES`; 0: half of what is possible, as for all.
    waves: [u64; 3],
    why: &'static str,
}

const EXCEPTIONS: [Exception; 13] = [
    Exception {
        entry_point: "reduce_planar",
        waves: [12, 0, 3],
        why: "four vectors in flight; f16's conversions and masks hold more",
    },
    Exception {
        entry_point: "reduce_columns",
        waves: [10, 0, 2],
        why: "pivots, sums and squares of four columns each, as exact pairs",
    },
    Exception {
        entry_point: "normalize_planar",
        waves: [0, 0, 4],
        why: "four vectors in flight, and f16's conversions of all of them",
    },
    Exception {
        entry_point: "normalize_columns",
        waves: [12, 0, 3],
        why: "coefficients of four channels besides four vectors in flight",
    },
    Exception {
        entry_point: "forward_planar",
        waves: [12, 0, 3],
        why: "as in reduce_planar",
    },
    Exception {
        entry_point: "forward_columns",
        waves: [8, 14, 2],
        why: "as in reduce_columns and normalize_columns together",
    },
    Exception {
        entry_point: "backward_reduce_planar",
        waves: [12, 0, 3],
        why: "four vectors of two or three tensors in flight",
    },
    Exception {
        entry_point: "backward_reduce_columns",
        waves: [8, 14, 2],
        why: "coefficients and exact pairs of four channels besides those vectors",
    },
    Exception {
        entry_point: "backward_apply",
        waves: [0, 0, 4],
        why: "eight coefficients of each of four channels",
    },
    Exception {
        entry_point: "backward_apply_planar",
        waves: [12, 0, 3],
        why: "four vectors of two or three tensors in flight",
    },
    Exception {
        entry_point: "backward_apply_columns",
        waves: [8, 12, 2],
        why: "eight coefficients of each of four channels besides those vectors",
    },
    Exception {
        entry_point: "backward_planar",
        waves: [12, 0, 2],
        why: "four vectors of two or three tensors in flight",
    },
    Exception {
        entry_point: "backward_columns",
        waves: [8, 12, 2],
        why: "eight coefficients of each of four channels besides vectors of two tensors",
    },
];

fn least_bits(header: &str) -> u32 {
    NARROW_WORDS
        .iter()
        .find(|(name, ..)| header.split(' ').any(|part| part == *name))
        .map_or(128, |(_, bits, _)| *bits)
}

/// Every miss of a target that no exception covers, one line each; with a committed page, also what has become worse
/// below a target.
pub(super) fn broken(committed: Option<&str>, chosen: &Chosen, families: &[Family]) -> Vec<String> {
    let mut broken = Vec::new();
    for (place, (family, (name, _))) in families.iter().zip(FAMILIES).enumerate() {
        let rows = by_variant(family);
        for (variant, strategies) in &chosen.variants {
            let text = variant.to_string();
            let Some(row) = rows.get(text.as_str()) else {
                broken.push(format!("{name}: {text} was not compiled"));
                continue;
            };
            let report = &row.report;
            let exception = EXCEPTIONS
                .iter()
                .find(|e| e.entry_point == variant.entry_point());
            let had = committed.and_then(|page| committed_cell(page, &text, place, family));
            if report.spills > 0 || report.scratch > 0 {
                broken.push(format!(
                    "{name}: {text} spills {} registers and has {} bytes of scratch memory",
                    report.spills, report.scratch
                ));
            }
            if report.fills > FEW_WRITES {
                broken.push(format!(
                    "{name}: {text} has one invocation write workgroup memory {} times over: \
                     zero_initialize_workgroup_memory must be false, and every element written before it is read",
                    report.fills
                ));
            }
            if let (Some(hot), Some(header)) = (&report.hot, elements(variant)) {
                let least = least_bits(&header);
                let narrowest = [hot.load_bits, hot.store_bits]
                    .into_iter()
                    .flatten()
                    .map(|(narrowest, _)| narrowest)
                    .min();
                if let Some(bits) = narrowest
                    && bits < least
                {
                    broken.push(format!(
                        "{name}: {text} loads or stores {bits} bits where words have {least}"
                    ));
                }
            }
            let half = family.possible_waves.div_ceil(2);
            let excepted = exception
                .map(|e| e.waves[place])
                .filter(|&waves| waves > 0)
                .unwrap_or(half);
            let least = excepted.max(had.and_then(waves_of).unwrap_or(0).min(half));
            if variant.is_pass() && wants_waves(strategies) && report.waves < least {
                broken.push(format!(
                    "{name}: {text} leaves room for {} waves, with {} registers and {} bytes of workgroup memory; {least} are wanted",
                    report.waves, report.vgprs, report.workgroup_bytes
                ));
            }
        }
    }
    broken
}

/// What the committed page has for a variant on a family, where it was made by the same compiler.
fn committed_cell<'a>(
    page: &'a str,
    variant: &str,
    place: usize,
    family: &Family,
) -> Option<&'a str> {
    if !page.contains(&family.device) {
        return None;
    }
    let row = page
        .lines()
        .find_map(|line| line.strip_prefix(&format!("| `{variant}` |")))?;
    row.split('|').nth(1 + place)
}

fn waves_of(cell: &str) -> Option<u64> {
    cell.split(',').nth(1)?.trim().parse().ok()
}

/// That the committed table has exactly the variants there are.
pub(super) fn compare(committed: &str, chosen: &Chosen, families: &[Family]) -> Result<()> {
    let rows = |text: &str| -> BTreeSet<String> {
        text.lines()
            .filter(|line| line.starts_with("| `"))
            .map(str::to_owned)
            .collect()
    };
    let names = |rows: &BTreeSet<String>| -> BTreeSet<String> {
        rows.iter()
            .filter_map(|row| row.split('`').nth(1))
            .map(str::to_owned)
            .collect()
    };
    let (old, new) = (rows(committed), rows(&render(chosen, families)));
    let (old_names, new_names) = (names(&old), names(&new));
    let list = |names: Vec<&String>| {
        names
            .into_iter()
            .map(|n| format!("\n  {n}"))
            .collect::<String>()
    };
    let missing: Vec<_> = new_names.difference(&old_names).collect();
    let gone: Vec<_> = old_names.difference(&new_names).collect();
    ensure!(
        missing.is_empty(),
        "{} variants have no row:{}",
        missing.len(),
        list(missing)
    );
    ensure!(
        gone.is_empty(),
        "{} rows are of no plan's variant:{}",
        gone.len(),
        list(gone)
    );
    let changed = new.difference(&old).count();
    if changed > 0 {
        println!(
            "{changed} rows have other numbers than the committed ones (another Mesa, or a changed kernel)"
        );
    }
    Ok(())
}

/// A few lines about all of it.
pub(super) fn summary(chosen: &Chosen, families: &[Family]) -> String {
    let mut text = String::new();
    for (family, (_, what)) in families.iter().zip(FAMILIES) {
        let passes: BTreeSet<String> = chosen
            .variants
            .keys()
            .filter(|v| v.is_pass())
            .map(ToString::to_string)
            .collect();
        let reports = || {
            family
                .rows
                .iter()
                .filter(|row| passes.contains(&row.variant))
        };
        let most = reports()
            .map(|row| row.report.vgprs)
            .max()
            .unwrap_or_default();
        let least = reports()
            .map(|row| row.report.waves)
            .min()
            .unwrap_or_default();
        let spilling = family
            .rows
            .iter()
            .filter(|row| row.report.spills + row.report.scratch > 0)
            .count();
        let total = |f: fn(&super::Row) -> u64| family.rows.iter().map(f).sum::<u64>();
        let (checked, unchecked) = (
            total(|r| r.report.instructions),
            total(|r| r.unchecked.instructions),
        );
        let hot = |f: fn(&super::Row) -> Option<&Hot>| {
            reports().filter_map(f).map(Hot::per_element).sum::<f64>()
        };
        let (hot_checked, hot_unchecked) = (
            hot(|r| r.report.hot.as_ref()),
            hot(|r| r.unchecked.hot.as_ref()),
        );
        let _ = writeln!(
            text,
            "{what}: {spilling} variants spill; passes over tensors need up to {most} registers and leave room for {least} \
             waves or more of {}; naga's checks are {:.1} % of all instructions, and {:.1} % in hot loops.",
            family.possible_waves,
            100.0 * (checked as f64 - unchecked as f64) / checked.max(1) as f64,
            100.0 * (hot_checked - hot_unchecked) / hot_checked.max(1.0),
        );
    }
    text
}

/// The whole page.
pub(super) fn render(chosen: &Chosen, families: &[Family]) -> String {
    let mut page = String::from(
        "# What an AMD compiler makes of the kernels\n\n\
         Mesa's RADV compiles every variant that the planner chooses, on a GPU, for the shapes of \
         `tools/compilers/src/shapes.rs`, without the hardware. `make radv` compiles them again and fails where a variant \
         has no row here or where a target is missed; `compilers radv --write` writes this page.\n\n",
    );
    for (family, (_, what)) in families.iter().zip(FAMILIES) {
        let _ = writeln!(
            page,
            "- {what}: {}; {} waves are possible.",
            family.device, family.possible_waves
        );
    }
    let refused: usize = chosen.refusals.values().sum();
    let kinds: Vec<String> = chosen
        .refusals
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let _ = writeln!(
        page,
        "\n{} variants of {} plans. {refused} more plans are refused for their limits ({}).\n",
        chosen.variants.len(),
        chosen.plans,
        kinds.join(", ")
    );
    page += &summary(chosen, families);
    page += "\nTargets: no variant spills; loads and stores of tensors are 128 bits wide; at least half the possible waves \
             for split and streaming; workgroup memory is not zeroed by one invocation. Exceptions:\n\n";
    for (header, bits, why) in NARROW_WORDS {
        let _ = writeln!(page, "- `{header}` {bits} bits: {why}.");
    }
    for exception in &EXCEPTIONS {
        let mut parts = Vec::new();
        for (place, (_, what)) in FAMILIES.iter().enumerate() {
            if exception.waves[place] > 0 {
                parts.push(format!("{} waves on {what}", exception.waves[place]));
            }
        }
        let _ = writeln!(
            page,
            "- `{}`, {}: {}.",
            exception.entry_point,
            parts.join(", "),
            exception.why
        );
    }
    page += "\nIn each cell: vector registers, waves, bits of the hot loop's loads / stores, and its instructions per element \
             (in brackets without naga's checks: `create_shader_module_trusted`). The hot loop is the one that moves the \
             most bytes an iteration. Kernels on per-channel data have no such loop: there it is all instructions. \
             Where vectors are \"held\" in registers, \"no loop\" says that all is unrolled; with a loop, its \
             accesses to them are chains of comparisons.\n\n";
    page += "| variant | workgroup bytes |";
    for (_, what) in FAMILIES {
        let _ = write!(page, " {what} |");
    }
    page += "\n|---|---|---|---|---|\n";
    let rows: Vec<_> = families.iter().map(by_variant).collect();
    for variant in chosen.variants.keys() {
        let text = variant.to_string();
        let cells: Vec<_> = rows
            .iter()
            .filter_map(|rows| rows.get(text.as_str()))
            .collect();
        let memory = cells
            .iter()
            .map(|row| row.report.workgroup_bytes)
            .max()
            .unwrap_or_default();
        let _ = write!(page, "| `{text}` | {memory} |");
        for row in cells {
            let _ = write!(page, " {} |", cell(&row.report, &row.unchecked));
        }
        page.push('\n');
    }
    page
}

fn cell(report: &Report, unchecked: &Report) -> String {
    let mut remarks = String::new();
    if report.spills > 0 || report.scratch > 0 {
        let _ = write!(
            remarks,
            " **{} spilled, {} bytes of scratch**",
            report.spills, report.scratch
        );
    }
    let bits = |span: Option<(u32, u32)>| match span {
        None => "-".to_owned(),
        Some((one, other)) if one == other => one.to_string(),
        Some((one, other)) => format!("{one}..{other}"),
    };
    match (&report.hot, &unchecked.hot) {
        (Some(hot), Some(without)) => format!(
            "{}, {}, {} / {}, {:.2} ({:.2}){remarks}{}",
            report.vgprs,
            report.waves,
            bits(hot.load_bits),
            bits(hot.store_bits),
            hot.per_element(),
            without.per_element(),
            if hot.is_loop { "" } else { " no loop" }
        ),
        _ => format!(
            "{}, {}, {} ({}){remarks}",
            report.vgprs, report.waves, report.instructions, unchecked.instructions
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_decide_what_is_wide_enough() {
        for (header, bits) in [
            ("f32x4", 128),
            ("f32x1", 32),
            ("bf16 half4", 64),
            ("f16 half2", 32),
            ("f16 half8", 128),
        ] {
            assert_eq!(least_bits(header), bits, "{header}");
        }
    }

    #[test]
    fn committed_cells_are_those_of_the_same_compiler() {
        let family = Family {
            device: "NAVI, Mesa 1".into(),
            possible_waves: 32,
            rows: Vec::new(),
        };
        let page = "- RDNA2: NAVI, Mesa 1; 32\n| `a x64 mask` | 0 | 1, 2, 3 (3) | 4, 5, 6 | 7, 8, 9 |\n\
                    | `a x64` | 0 | 40, 24, 128 / -, 9 (8) | 48, 32, 1 (1) **7 spilled, 1024 bytes of scratch** | 4, 6, 1 (1) |\n";
        let cells = [0, 1, 2].map(|place| committed_cell(page, "a x64", place, &family).unwrap());
        assert_eq!(cells.map(waves_of), [Some(24), Some(32), Some(6)]);
        assert_eq!(committed_cell(page, "a", 0, &family), None);
        let other = Family {
            device: "NAVI, Mesa 2".into(),
            ..family
        };
        assert_eq!(committed_cell(page, "a x64", 0, &other), None);
    }
}
