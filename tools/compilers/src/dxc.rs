//! Every variant through naga's HLSL and the real DXC.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use hassle_rs::{Dxc, DxcCompiler, DxcLibrary};
use naga::back::hlsl::ShaderModel;
use wgpu_batchnorm::Shader;

use crate::translate::Translator;

/// Lanes of the workgroups. Their number is a constant like any other.
const WORKGROUP: u32 = 256;
/// Other numbers of lanes, for a sample.
const OTHER_WORKGROUPS: [u32; 3] = [1024, 64, 8];
/// Every so many variants, one is compiled for other lanes and for the newer shader model too. A prime, so that the
/// sample has all kinds of variants.
const SAMPLE: usize = 37;
/// One instance of the compiler on each.
const THREADS: usize = 2;
/// Messages that a thread prints in full.
const SHOWN: usize = 5;
/// Variants that a thread takes at a time, so that they share their sources.
const CHUNK: usize = 64;
/// Variants between two signs of life.
const PROGRESS: usize = 32 * CHUNK;

struct Compiler {
    compiler: DxcCompiler,
    library: DxcLibrary,
    // Dropping it would unload the library under the other two.
    _dxc: Dxc,
}

impl Compiler {
    fn open(path: &Path) -> Result<Self> {
        let dxc = Dxc::new(Some(path.to_owned()))
            .with_context(|| format!("{}: `make dxc` downloads it", path.display()))?;
        Ok(Compiler {
            compiler: dxc.create_compiler()?,
            library: dxc.create_library()?,
            _dxc: dxc,
        })
    }

    /// Compiles with the arguments that wgpu gives. Bytes of DXIL.
    fn compile(&self, source: &str, entry_point: &str, model: ShaderModel) -> Result<usize> {
        let blob = self.library.create_blob_with_encoding_from_str(source)?;
        let profile = format!("cs_{}", model.to_str());
        let arguments = ["-HV", "2018", "-no-warnings", "-Ges"];
        match self.compiler.compile(
            &blob,
            "shader.hlsl",
            entry_point,
            &profile,
            &arguments,
            None,
            &[],
        ) {
            Ok(result) => Ok(result.get_result()?.to_vec::<u8>().len()),
            Err((result, code)) => {
                let message = self
                    .library
                    .get_blob_as_string(&result.get_error_buffer()?.into())?;
                bail!("{profile}: {code:?} {}", message.trim())
            }
        }
    }
}

/// What one thread has done.
#[derive(Default)]
struct Tally {
    compiled: usize,
    sampled: usize,
    bytes: usize,
    failures: usize,
}

/// Compiles all variants, or every so many of them.
///
/// # Errors
/// Where one does not compile, or where DXC accepts what is no HLSL.
pub(crate) fn run(library: &Path, every: usize) -> Result<()> {
    let started = Instant::now();
    let variants: Vec<Shader> = Shader::all(WORKGROUP).into_iter().step_by(every).collect();
    let mut work: Vec<(Shader, ShaderModel)> =
        variants.iter().map(|&v| (v, ShaderModel::V6_0)).collect();
    work.extend(
        variants
            .iter()
            .step_by(SAMPLE)
            .map(|&v| (v, ShaderModel::V6_6)),
    );
    for lanes in OTHER_WORKGROUPS {
        work.extend(
            Shader::all(lanes)
                .into_iter()
                .step_by(SAMPLE * every)
                .map(|v| (v, ShaderModel::V6_0)),
        );
    }
    self_test(
        &Compiler::open(library)?,
        variants.first().context("there are no variants")?,
    )?;

    let next = AtomicUsize::new(0);
    let chunks: Vec<_> = work.chunks(CHUNK).collect();
    let thread = || -> Result<Tally> {
        let compiler = Compiler::open(library)?;
        let mut translator = Translator::default();
        let mut tally = Tally::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = chunks.get(number) else {
                return Ok(tally);
            };
            if number > 0 && (number * CHUNK).is_multiple_of(PROGRESS) {
                eprintln!("{} of {}", number * CHUNK, work.len());
            }
            for (variant, model) in *chunk {
                let result = translator
                    .bake(variant)
                    .and_then(|baked| baked.hlsl(*model))
                    .and_then(|(source, entry_point)| {
                        compiler.compile(&source, &entry_point, *model)
                    });
                match result {
                    Ok(size) => {
                        tally.bytes += size;
                        tally.compiled += 1;
                        tally.sampled += usize::from(*model != ShaderModel::V6_0);
                    }
                    Err(error) => {
                        tally.failures += 1;
                        // At once: the run takes minutes.
                        if tally.failures <= SHOWN {
                            eprintln!("{variant}: {error:#}");
                        }
                    }
                }
            }
        }
    };
    let tallies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(thread)).collect();
        threads
            .into_iter()
            .map(|t| {
                t.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let sum = |of: fn(&Tally) -> usize| tallies.iter().map(of).sum::<usize>();
    println!(
        "DXC compiled {} of {} shaders, {} of them for cs_6_6 and the others for cs_6_0: {} KiB of DXIL in {:.0} s",
        sum(|t| t.compiled),
        work.len(),
        sum(|t| t.sampled),
        sum(|t| t.bytes) >> 10,
        started.elapsed().as_secs_f64()
    );
    let failures = sum(|t| t.failures);
    ensure!(
        failures == 0,
        "DXC refuses {failures}; the first of them are printed above"
    );
    Ok(())
}

/// DXC does refuse: a run in which everything passes means something.
fn self_test(compiler: &Compiler, variant: &Shader) -> Result<()> {
    let (source, entry_point) = Translator::default()
        .bake(variant)?
        .hlsl(ShaderModel::V6_0)?;
    compiler
        .compile(&source, &entry_point, ShaderModel::V6_0)
        .context("the self-test's unchanged shader")?;
    for (what, wrong) in [
        (
            "an undeclared name",
            source.replacen(
                "[numthreads(",
                "static const float broken = undeclared;\n[numthreads(",
                1,
            ),
        ),
        (
            "a missing brace",
            source.trim_end().trim_end_matches('}').to_owned(),
        ),
    ] {
        ensure!(
            wrong != source,
            "the self-test could not put {what} into the shader"
        );
        let accepted = compiler
            .compile(&wrong, &entry_point, ShaderModel::V6_0)
            .is_ok();
        ensure!(
            !accepted,
            "DXC accepts {what}: nothing that it accepts can be trusted"
        );
    }
    Ok(())
}
