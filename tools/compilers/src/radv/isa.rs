//! What the driver says about a shader, read off its statistics and its assembly.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The driver's own words.
#[derive(Debug, Clone, Default)]
pub(crate) struct Compiled {
    pub statistics: BTreeMap<String, u64>,
    pub assembly: String,
}

/// The bindings of a kernel that matter here.
pub(crate) struct Bindings {
    /// All of group 0, sorted: descriptors lie in this order, 16 bytes each.
    pub numbers: Vec<u32>,
    /// Those of the tensors.
    pub tensors: BTreeSet<u32>,
    /// Bytes of a tensor's element; 0 for kernels without tensors.
    pub element_bytes: u32,
}

/// What is held to the targets, and printed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub vgprs: u64,
    /// Registers of either kind that went to memory.
    pub spills: u64,
    /// Bytes of memory of its own that a wave has: spilled registers, and arrays that registers do not hold.
    pub scratch: u64,
    pub workgroup_bytes: u64,
    pub waves: u64,
    pub instructions: u64,
    /// The most workgroup writes of one and the same value in a row: a loop of zeros that was unrolled.
    pub fills: u32,
    pub hot: Option<Hot>,
}

/// The loop that moves the most tensor bytes an iteration; where there is none, the whole kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hot {
    pub is_loop: bool,
    pub instructions: u32,
    /// Elements of each tensor that a lane takes an iteration.
    pub elements: u32,
    /// Of the tensors: bits of the narrowest and the widest load and store.
    pub load_bits: Option<(u32, u32)>,
    pub store_bits: Option<(u32, u32)>,
}

impl Hot {
    pub(crate) fn per_element(&self) -> f64 {
        f64::from(self.instructions) / f64::from(self.elements.max(1))
    }
}

struct Instruction<'a> {
    mnemonic: &'a str,
    operands: Vec<&'a str>,
    /// The tensor it touches.
    tensor: Option<u32>,
}

struct Access {
    store: bool,
    bits: u32,
    tensor: u32,
}

/// Reads what the driver wrote.
///
/// # Errors
/// Where a statistic is missing, or no instruction touches a tensor in a kernel that has some.
pub(crate) fn report(compiled: &Compiled, bindings: &Bindings) -> Result<Report> {
    let statistic = |name: &str| {
        let names = || {
            compiled
                .statistics
                .keys()
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        };
        compiled
            .statistics
            .get(name)
            .copied()
            .with_context(|| format!("RADV gives no {name:?}, but {}", names()))
    };
    let program = Program::read(&compiled.assembly, bindings);
    let hot = if bindings.tensors.is_empty() {
        None
    } else {
        Some(
            program
                .hot(bindings.element_bytes)
                .context("no instruction reads or writes a tensor")?,
        )
    };
    Ok(Report {
        vgprs: statistic("VGPRs")?,
        spills: statistic("Spilled SGPRs")? + statistic("Spilled VGPRs")?,
        scratch: statistic("Scratch size")?,
        workgroup_bytes: statistic("LDS size")?,
        waves: statistic("Subgroups per SIMD")?,
        instructions: statistic("Instructions")?,
        fills: program.fills(),
        hot,
    })
}

struct Program<'a> {
    instructions: Vec<Instruction<'a>>,
    /// Where each label points.
    labels: BTreeMap<&'a str, usize>,
}

impl<'a> Program<'a> {
    fn read(assembly: &'a str, bindings: &Bindings) -> Self {
        let mut program = Program {
            instructions: Vec::new(),
            labels: BTreeMap::new(),
        };
        // Which binding's descriptor the scalar registers hold, from the number of the first. In the order of the
        // text, which is that of execution but for the way back in a loop; descriptors are loaded before their use.
        let mut descriptors: BTreeMap<u32, u32> = BTreeMap::new();
        for line in assembly.lines() {
            let line = line.split(';').next().unwrap_or_default().trim();
            if let Some(label) = line.strip_suffix(':') {
                program.labels.insert(label, program.instructions.len());
                continue;
            }
            let Some((mnemonic, rest)) = line.split_once(char::is_whitespace).or(Some((line, "")))
            else {
                continue;
            };
            if mnemonic.is_empty() {
                continue;
            }
            let operands: Vec<&str> = rest.split([',', ' ']).filter(|o| !o.is_empty()).collect();
            if let Some(width) = mnemonic.strip_prefix("s_load_").and_then(bits) {
                load_descriptors(&mut descriptors, &operands, width / 128, bindings);
            }
            let tensor = mnemonic
                .starts_with("buffer_")
                .then(|| {
                    operands
                        .iter()
                        .filter_map(|o| scalars(o))
                        .find(|&(_, count)| count == 4)
                })
                .flatten()
                .and_then(|(first, _)| descriptors.get(&first).copied())
                .filter(|binding| bindings.tensors.contains(binding));
            program.instructions.push(Instruction {
                mnemonic,
                operands,
                tensor,
            });
        }
        program
    }

    fn accesses(&self, range: std::ops::Range<usize>) -> Vec<Access> {
        let access = |i: &Instruction<'_>| {
            let (store, width) = match i.mnemonic.strip_prefix("buffer_")? {
                rest if rest.starts_with("load_") => (false, &rest[5..]),
                rest if rest.starts_with("store_") => (true, &rest[6..]),
                _ => return None,
            };
            Some(Access {
                store,
                bits: bits(width)?,
                tensor: i.tensor?,
            })
        };
        self.instructions[range].iter().filter_map(access).collect()
    }

    /// Innermost loops: from a label to a branch back to it, with no other such pair inside.
    fn loops(&self) -> Vec<std::ops::Range<usize>> {
        let mut loops: Vec<std::ops::Range<usize>> = Vec::new();
        for (place, instruction) in self.instructions.iter().enumerate() {
            if !instruction.mnemonic.starts_with("s_branch")
                && !instruction.mnemonic.starts_with("s_cbranch")
            {
                continue;
            }
            let target = instruction
                .operands
                .first()
                .and_then(|label| self.labels.get(label));
            if let Some(&start) = target
                && start <= place
                && !loops
                    .iter()
                    .any(|inner| start <= inner.start && inner.end <= place + 1)
            {
                loops.push(start..place + 1);
            }
        }
        loops
    }

    fn hot(&self, element_bytes: u32) -> Option<Hot> {
        let moved = |range: &std::ops::Range<usize>| {
            self.accesses(range.clone())
                .iter()
                .map(|a| a.bits)
                .sum::<u32>()
        };
        // The first of equals, which `max_by_key` would not give.
        let hottest = self
            .loops()
            .into_iter()
            .rev()
            .max_by_key(moved)
            .filter(|range| moved(range) > 0);
        let is_loop = hottest.is_some();
        let range = hottest.unwrap_or(0..self.instructions.len());
        let accesses = self.accesses(range.clone());
        let span = |store: bool| {
            let widths = || accesses.iter().filter(|a| a.store == store).map(|a| a.bits);
            Some((widths().min()?, widths().max()?))
        };
        let mut read: BTreeMap<(bool, u32), u32> = BTreeMap::new();
        for access in &accesses {
            *read.entry((access.store, access.tensor)).or_default() += access.bits;
        }
        // Loads tell how many elements an iteration takes: words at a tensor's end are stored under a condition.
        let most = |store: bool| {
            read.iter()
                .filter(|((s, _), _)| *s == store)
                .map(|(_, &bits)| bits)
                .max()
        };
        let bits = most(false).or(most(true))?;
        Some(Hot {
            is_loop,
            instructions: range.len() as u32,
            elements: bits / (8 * element_bytes),
            load_bits: span(false),
            store_bits: span(true),
        })
    }

    /// Runs of writes to workgroup memory that write the same registers, within one block.
    fn fills(&self) -> u32 {
        let starts: BTreeSet<usize> = self.labels.values().copied().collect();
        let (mut most, mut run, mut last) = (0, 0, None);
        for (place, instruction) in self.instructions.iter().enumerate() {
            if starts.contains(&place) {
                (run, last) = (0, None);
            }
            let writes = ["ds_write", "ds_store"]
                .iter()
                .any(|w| instruction.mnemonic.starts_with(w));
            if !writes {
                continue;
            }
            let value = instruction.operands.get(1).copied();
            run = if value == last { run + 1 } else { 1 };
            last = value;
            most = most.max(run);
        }
        most
    }
}

/// `s_load` of `count` descriptors into registers that may have held others.
fn load_descriptors(
    descriptors: &mut BTreeMap<u32, u32>,
    operands: &[&str],
    count: u32,
    bindings: &Bindings,
) {
    let Some((first, registers)) = operands.first().and_then(|o| scalars(o)) else {
        return;
    };
    descriptors.retain(|&held, _| held + 4 <= first || first + registers <= held);
    let offset = match operands.get(2) {
        Some(&"null") | None => Some(0),
        Some(text) => text
            .strip_prefix("0x")
            .and_then(|hex| u32::from_str_radix(hex, 16).ok()),
    };
    let Some(offset) = offset else { return };
    for number in 0..count {
        let place = (offset / 16 + number) as usize;
        if let Some(&binding) = bindings.numbers.get(place) {
            descriptors.insert(first + 4 * number, binding);
        }
    }
}

/// `s[4:7]` as its first register and how many.
fn scalars(operand: &str) -> Option<(u32, u32)> {
    let (first, last) = operand
        .strip_prefix("s[")?
        .strip_suffix(']')?
        .split_once(':')?;
    let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
    Some((first, last + 1 - first))
}

/// The width of a load or store by the end of its name, in the words of either generation.
fn bits(width: &str) -> Option<u32> {
    let word = width.split('_').next()?;
    if let Some(words) = word.strip_prefix("dword") {
        return match words {
            "" => Some(32),
            _ => Some(32 * words.strip_prefix('x')?.parse::<u32>().ok()?),
        };
    }
    match word {
        "ubyte" | "sbyte" | "byte" | "u8" | "i8" => Some(8),
        "ushort" | "sshort" | "short" | "u16" | "i16" | "d16" => Some(16),
        _ => word.strip_prefix('b')?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP: &str = "\
BB0:
	s_load_dwordx4 s[8:11], s[2:3], null ; f4080201 fa000000
	s_load_dwordx8 s[12:19], s[2:3], 0x10 ; f4080301 f8000010
	buffer_load_dwordx4 v[0:3], v9, s[12:15], 0 offen ; e0
BB1:
	s_cbranch_scc1 BB3
	s_load_b128 s[12:15], s[2:3], 0x20
	buffer_load_dwordx4 v[0:3], v9, s[12:15], 0 offen
	buffer_load_b64 v[0:1], v9, s[16:19], 0 offen
	buffer_store_dword v0, v9, s[12:15], 0 offen
	s_branch BB1
BB3:
	s_endpgm
";

    fn bindings() -> Bindings {
        Bindings {
            numbers: vec![0, 1, 6],
            tensors: [1, 6].into(),
            element_bytes: 4,
        }
    }

    #[test]
    fn the_hot_loop_is_what_moves_tensors() {
        let bindings = bindings();
        let program = Program::read(LOOP, &bindings);
        let hot = program.hot(4).unwrap();
        // Both registers hold binding 6, so an iteration reads 128 + 64 bits of it.
        let expected = Hot {
            is_loop: true,
            instructions: 6,
            elements: 6,
            load_bits: Some((64, 128)),
            store_bits: Some((32, 32)),
        };
        assert_eq!(hot, expected);
    }

    #[test]
    fn without_a_loop_the_kernel_is_hot() {
        let straight = "BB0:\n\ts_load_dwordx4 s[12:15], s[2:3], 0x10\n\tbuffer_load_dwordx2 v[0:1], v9, s[12:15], 0 offen\n";
        let hot = Program::read(straight, &bindings()).hot(2).unwrap();
        assert_eq!((hot.is_loop, hot.instructions, hot.elements), (false, 2, 4));
    }

    #[test]
    fn a_register_that_is_overwritten_holds_no_descriptor() {
        let text = "\ts_load_dwordx4 s[12:15], s[2:3], 0x10\n\ts_load_dwordx4 s[14:17], s[2:3], 0x0\n\
                    \tbuffer_load_dword v0, v9, s[12:15], 0 offen\n";
        assert!(Program::read(text, &bindings()).hot(4).is_none());
    }

    #[test]
    fn zeros_by_one_invocation_show() {
        let zeros = "BB0:\n\tds_write_b128 v1, v[2:5]\n\tds_write_b128 v1, v[2:5] offset:16\n\
                     \tds_store_b128 v1, v[2:5] offset:32\nBB1:\n\tds_write_b32 v1, v2\n\tds_write_b32 v1, v3\n";
        assert_eq!(Program::read(zeros, &bindings()).fills(), 3);
    }

    #[test]
    fn widths_of_both_generations() {
        for (name, expected) in [
            ("dword", 32),
            ("dwordx3", 96),
            ("b128", 128),
            ("ushort", 16),
            ("u16", 16),
        ] {
            assert_eq!(bits(name), Some(expected), "{name}");
        }
        assert_eq!(bits("format_x"), None);
    }
}
