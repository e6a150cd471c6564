//! Every variant that plans choose, compiled by Mesa's RADV for AMD families without their hardware: a table, and
//! targets that it is held to.

mod device;
pub(crate) mod isa;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use wgpu_batchnorm::Shader;

use crate::shapes::{self, Chosen};
use crate::translate::{Checks, Translator, Zeros};
use device::NullDevice;
use isa::{Bindings, Report};

/// What RADV calls them, and what they are: RDNA2, RDNA3, GCN5.
pub(crate) const FAMILIES: [(&str, &str); 3] = [
    ("navi21", "RDNA2"),
    ("gfx1100", "RDNA3"),
    ("vega10", "Vega"),
];

/// Workgroup writes of one value in a row that are no fill: a merge resets a few of its own.
const FEW_WRITES: u32 = 4;

/// One variant on one family.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub variant: String,
    pub report: Report,
    /// Without the checks that naga adds.
    pub unchecked: Report,
}

/// All of a family.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Family {
    pub device: String,
    /// Waves of a kernel that needs next to nothing: as many as a SIMD can have.
    pub possible_waves: u64,
    pub rows: Vec<Row>,
}

/// What `radv` is asked to do with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Hold the targets and the committed table's rows.
    Check,
    /// Hold the targets and rewrite the table.
    Write,
}

/// Compiles everything and compares or writes the table.
///
/// # Errors
/// A broken target, a variant that the committed table lacks, a driver that is not there.
pub(crate) fn run(mode: Mode, path: &Path, icd: &Path) -> Result<()> {
    let started = Instant::now();
    ensure!(
        icd.exists(),
        "{} does not exist: apt-get install mesa-vulkan-drivers, or give --icd the file of RADV's driver",
        icd.display()
    );
    let chosen = shapes::chosen();
    let families = compile_families(icd)?;
    let table = table::render(&chosen, &families);
    println!(
        "{} variants of {} plans on {} families in {:.0} s",
        chosen.variants.len(),
        chosen.plans,
        families.len(),
        started.elapsed().as_secs_f64()
    );
    print!("{}", table::summary(&chosen, &families));
    let mut complaints = match mode {
        Mode::Write => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(path, &table).with_context(|| path.display().to_string())?;
            println!("wrote {}", path.display());
            table::broken(None, &chosen, &families)
        }
        Mode::Check => {
            let committed = std::fs::read_to_string(path).with_context(|| {
                format!("{}: `compilers radv --write` makes it", path.display())
            })?;
            let mut complaints = table::broken(Some(&committed), &chosen, &families);
            if let Err(error) = table::compare(&committed, &chosen, &families) {
                complaints.push(format!(
                    "{}: {error}\nWrite it anew with `compilers radv --write`, and review the difference.",
                    path.display()
                ));
            }
            complaints
        }
    };
    if !complaints.is_empty() {
        complaints.sort();
        for line in &complaints {
            eprintln!("{line}");
        }
        bail!("{} broken targets and missing rows", complaints.len());
    }
    Ok(())
}

/// One process for each family: RADV reads it when it is loaded, and its null device ends with the process.
fn compile_families(icd: &Path) -> Result<Vec<Family>> {
    let start = |family: &str| {
        again(icd, family, &["radv-family"])?
            .stdout(Stdio::piped())
            .spawn()
            .context("starting this program again")
    };
    let children = FAMILIES.map(|(family, _)| (family, start(family)));
    let mut families = Vec::new();
    for (family, child) in children {
        let output = child?.wait_with_output()?;
        ensure!(
            output.status.success(),
            "compiling for {family} failed: {}",
            output.status
        );
        families.push(
            serde_json::from_slice(&output.stdout)
                .with_context(|| format!("the result for {family}"))?,
        );
    }
    Ok(families)
}

/// This program in an environment in which the one Vulkan device is RADV's for a family.
fn again(icd: &Path, family: &str, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(arguments)
        .env("VK_DRIVER_FILES", icd)
        .env("VK_ICD_FILENAMES", icd)
        .env("RADV_FORCE_FAMILY", family)
        // The cache would answer without compiling, and on some versions without statistics.
        .env("MESA_SHADER_CACHE_DISABLE", "true");
    Ok(command)
}

/// Shows the assembly of variants on a family.
///
/// # Errors
/// What [`assembly`] says, in the other process.
pub(crate) fn show(icd: &Path, family: &str, part: &str) -> Result<()> {
    let status = again(icd, family, &["radv-assembly", part])?.status()?;
    ensure!(status.success(), "no assembly: {status}");
    Ok(())
}

/// The part of one family, in its own process: prints JSON.
///
/// # Errors
/// What naga or the driver refuses.
pub(crate) fn family() -> Result<()> {
    let device = NullDevice::open()?;
    let mut translator = Translator::default();
    let chosen = shapes::chosen();
    let possible_waves = possible_waves(&device, &mut translator)?;
    zeros_show(&device, &mut translator, &chosen)?;
    let rows = chosen
        .variants
        .keys()
        .map(|variant| {
            compile(&device, &mut translator, variant).with_context(|| variant.to_string())
        })
        .collect::<Result<_>>()?;
    let family = Family {
        device: device.name.clone(),
        possible_waves,
        rows,
    };
    serde_json::to_writer(std::io::stdout().lock(), &family)?;
    device.leave()
}

/// Prints the assembly of the chosen variants whose name contains a text. In the environment of one family.
///
/// # Errors
/// As [`family`], and where no variant has that name.
pub(crate) fn assembly(part: &str) -> Result<()> {
    let device = NullDevice::open()?;
    let mut translator = Translator::default();
    let chosen = shapes::chosen();
    let named: Vec<_> = chosen
        .variants
        .keys()
        .filter(|v| v.to_string().contains(part))
        .collect();
    ensure!(
        !named.is_empty(),
        "no variant that plans choose has {part:?} in its name; the table lists them"
    );
    for variant in named {
        let spirv = translator
            .bake(variant)?
            .spirv(Checks::Wgpu, Zeros::Library)?;
        let storage: Vec<u32> = variant
            .bindings()
            .iter()
            .map(|(number, _)| *number)
            .collect();
        let compiled = device.compile(&spirv, variant.entry_point(), &storage)?;
        println!("; {variant} on {}\n{}", device.name, compiled.assembly);
    }
    device.leave()
}

fn compile(device: &NullDevice, translator: &mut Translator, variant: &Shader) -> Result<Row> {
    let baked = translator.bake(variant)?;
    let storage: Vec<u32> = variant
        .bindings()
        .iter()
        .map(|(number, _)| *number)
        .collect();
    let bindings = bindings(variant, &baked.module)?;
    let report = |checks| {
        let compiled = device.compile(
            &baked.spirv(checks, Zeros::Library)?,
            variant.entry_point(),
            &storage,
        )?;
        isa::report(&compiled, &bindings)
    };
    Ok(Row {
        variant: variant.to_string(),
        report: report(Checks::Wgpu)?,
        unchecked: report(Checks::Off)?,
    })
}

/// The tensors among a variant's bindings.
const TENSORS: [&str; 5] = [
    "input",
    "residual",
    "grad_output",
    "output",
    "grad_residual",
];

fn bindings(variant: &Shader, module: &naga::Module) -> Result<Bindings> {
    let mut numbers: Vec<u32> = variant
        .bindings()
        .iter()
        .map(|(number, _)| *number)
        .collect();
    numbers.push(0);
    numbers.sort_unstable();
    let mut tensors = BTreeSet::new();
    for (_, variable) in module.global_variables.iter() {
        if let (Some(binding), Some(name)) = (&variable.binding, &variable.name)
            && TENSORS.contains(&name.as_str())
            && variant.is_pass()
        {
            tensors.insert(binding.binding);
        }
    }
    tensors.retain(|number| numbers.contains(number));
    let element_bytes = match elements(variant).as_deref() {
        None => 0,
        Some(header) if header.starts_with("f32") => 4,
        Some(header) if header.starts_with("f16") || header.starts_with("bf16") => 2,
        Some(other) => bail!("how many bytes has an element of {other:?}?"),
    };
    Ok(Bindings {
        numbers,
        tensors,
        element_bytes,
    })
}

/// How a variant's elements lie in words, as it prints them: between its entry point and its lanes.
pub(crate) fn elements(variant: &Shader) -> Option<String> {
    let text = variant.to_string();
    let lanes = format!(" x{}", variant.workgroup());
    let (before, _) = text.split_once(&lanes)?;
    before
        .split_once(' ')
        .map(|(_, elements)| elements.to_owned())
}

/// A kernel that does next to nothing.
fn possible_waves(device: &NullDevice, translator: &mut Translator) -> Result<u64> {
    let idle = "@group(0) @binding(1) var<storage, read_write> output: array<u32>;\n\
                @compute @workgroup_size(64) fn idle(@builtin(local_invocation_index) lane: u32) { output[lane] = lane; }";
    let spirv = translator
        .bake_source(idle, "idle")?
        .spirv(Checks::Off, Zeros::Library)?;
    let compiled = device.compile(&spirv, "idle", &[1])?;
    compiled
        .statistics
        .get("Subgroups per SIMD")
        .copied()
        .context("RADV gives no waves")
}

/// That the search for zeros written by one invocation finds them, where they are.
fn zeros_show(device: &NullDevice, translator: &mut Translator, chosen: &Chosen) -> Result<()> {
    for variant in chosen.variants.keys() {
        let baked = translator.bake(variant)?;
        let storage: Vec<u32> = variant
            .bindings()
            .iter()
            .map(|(number, _)| *number)
            .collect();
        let compiled = device.compile(
            &baked.spirv(Checks::Wgpu, Zeros::Polyfill)?,
            variant.entry_point(),
            &storage,
        )?;
        let report = isa::report(&compiled, &bindings(variant, &baked.module)?)?;
        if report.workgroup_bytes > 0 {
            ensure!(
                report.fills > FEW_WRITES,
                "{variant} with zeroed workgroup memory shows {} writes in a row: the search for them finds nothing",
                report.fills
            );
            return Ok(());
        }
    }
    bail!("no variant has workgroup memory to try the search for zeros on")
}

fn by_variant(family: &Family) -> BTreeMap<&str, &Row> {
    family
        .rows
        .iter()
        .map(|row| (row.variant.as_str(), row))
        .collect()
}
