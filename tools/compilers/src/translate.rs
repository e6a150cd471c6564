//! From a kernel variant to SPIR-V and HLSL, with the options that wgpu's backends give to naga's writers.

use std::collections::HashMap;

use anyhow::{Context as _, Result, anyhow};
use naga::back::{hlsl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use wgpu_batchnorm::Shader;

/// Modules by source: many variants differ in constants alone.
#[derive(Default)]
pub(crate) struct Translator {
    modules: HashMap<String, (naga::Module, ModuleInfo)>,
}

/// A variant with its constants baked in, as a backend of wgpu sees it when it makes the pipeline.
pub(crate) struct Baked {
    pub module: naga::Module,
    info: ModuleInfo,
    entry_point: String,
    zero_initialize: bool,
}

/// The checks that naga writes into a shader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checks {
    /// Those of `create_shader_module`.
    Wgpu,
    /// None, as `create_shader_module_trusted` with `ShaderRuntimeChecks::unchecked()`.
    Off,
}

/// Workgroup memory that nobody has written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zeros {
    /// As the library asks for.
    Library,
    /// Written by naga's own code: one invocation does it all. What a check has to catch.
    Polyfill,
}

impl Translator {
    /// Parses, validates and sets the constants.
    ///
    /// # Errors
    /// What naga says about the source, with the variant's name.
    pub(crate) fn bake(&mut self, shader: &Shader) -> Result<Baked> {
        let source = shader.source();
        if !self.modules.contains_key(&source) {
            let parsed = parse(&source).with_context(|| shader.to_string())?;
            self.modules.insert(source.clone(), parsed);
        }
        let (module, info) = &self.modules[&source];
        let constants = shader
            .constants()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let stage = (naga::ShaderStage::Compute, shader.entry_point());
        let (module, info) = naga::back::pipeline_constants::process_overrides(
            module,
            info,
            Some(stage),
            &constants,
        )
        .map_err(|e| anyhow!("{shader}: constants: {e}"))?;
        Ok(Baked {
            module: module.into_owned(),
            info: info.into_owned(),
            entry_point: shader.entry_point().to_owned(),
            zero_initialize: shader.zero_initializes_workgroup_memory(),
        })
    }

    /// A module without constants that is none of the library's.
    ///
    /// # Errors
    /// What naga says about the source.
    pub(crate) fn bake_source(&self, source: &str, entry_point: &str) -> Result<Baked> {
        let (module, info) = parse(source)?;
        Ok(Baked {
            module,
            info,
            entry_point: entry_point.to_owned(),
            zero_initialize: false,
        })
    }
}

fn parse(source: &str) -> Result<(naga::Module, ModuleInfo)> {
    let module =
        naga::front::wgsl::parse_str(source).map_err(|e| anyhow!(e.emit_to_string(source)))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .map_err(|e| anyhow!(e.emit_to_string(source)))?;
    Ok((module, info))
}

impl Baked {
    /// SPIR-V as wgpu's Vulkan backend makes it for a driver with robustBufferAccess2, which leaves the bounds of
    /// buffers to the hardware.
    ///
    /// # Errors
    /// What the writer refuses.
    pub(crate) fn spirv(&self, checks: Checks, zeros: Zeros) -> Result<Vec<u32>> {
        let on = checks == Checks::Wgpu;
        let options = spv::Options {
            lang_version: (1, 6),
            flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
            capabilities: Some(
                [spv::Capability::Shader, spv::Capability::Matrix]
                    .into_iter()
                    .collect(),
            ),
            bounds_check_policies: BoundsCheckPolicies {
                index: if on {
                    BoundsCheckPolicy::Restrict
                } else {
                    BoundsCheckPolicy::Unchecked
                },
                buffer: BoundsCheckPolicy::Unchecked,
                image_load: BoundsCheckPolicy::Unchecked,
                binding_array: BoundsCheckPolicy::Unchecked,
            },
            zero_initialize_workgroup_memory: match zeros {
                Zeros::Library if !self.zero_initialize => {
                    spv::ZeroInitializeWorkgroupMemoryMode::None
                }
                Zeros::Library => spv::ZeroInitializeWorkgroupMemoryMode::Native,
                Zeros::Polyfill => spv::ZeroInitializeWorkgroupMemoryMode::Polyfill,
            },
            force_loop_bounding: on,
            emit_int_div_checks: on,
            ..spv::Options::default()
        };
        let pipeline = spv::PipelineOptions {
            entry_point: self.entry_point.clone(),
            shader_stage: naga::ShaderStage::Compute,
        };
        Ok(spv::write_vec(
            &self.module,
            &self.info,
            &options,
            Some(&pipeline),
        )?)
    }

    /// HLSL as wgpu's DX12 backend makes it, and the name of the entry point in it.
    ///
    /// # Errors
    /// What the writer refuses.
    pub(crate) fn hlsl(&self, shader_model: hlsl::ShaderModel) -> Result<(String, String)> {
        let mut options = hlsl::Options {
            shader_model,
            fake_missing_bindings: false,
            // The number of workgroups, which DX12 does not tell a shader.
            special_constants_binding: Some(hlsl::BindTarget {
                space: 255,
                ..hlsl::BindTarget::default()
            }),
            zero_initialize_workgroup_memory: self.zero_initialize,
            restrict_indexing: true,
            force_loop_bounding: true,
            ..hlsl::Options::default()
        };
        // Constant, read-only and writable buffers each have registers of their own; one counter is enough here.
        let bindings = self
            .module
            .global_variables
            .iter()
            .filter_map(|(_, variable)| variable.binding);
        for (register, binding) in bindings.enumerate() {
            let target = hlsl::BindTarget {
                register: register as u32,
                ..hlsl::BindTarget::default()
            };
            options.binding_map.insert(binding, target);
        }
        let pipeline = hlsl::PipelineOptions {
            entry_point: Some((naga::ShaderStage::Compute, self.entry_point.clone())),
        };
        let mut source = String::new();
        let reflected = hlsl::Writer::new(&mut source, &options, &pipeline).write(
            &self.module,
            &self.info,
            None,
        )?;
        let name = reflected
            .entry_point_names
            .into_iter()
            .next()
            .context("naga wrote no entry point")?
            .map_err(|e| anyhow!("{e}"))?;
        Ok((source, name))
    }
}
