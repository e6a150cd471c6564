//! `Kernels`: what is fixed per device: capabilities, layouts and pipelines compiled on demand. The kernels themselves are
//! in [`table`], what makes variants of them in [`key`].

mod key;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod translations;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::encode::Prepared;
use crate::faults::{self, ErrorScopes, settle};
use crate::plan::{Caps, Plan};
use crate::{Error, Result};
pub(crate) use key::{Elements, PipelineKey, ZERO_INITIALIZE_WORKGROUP_MEMORY};
pub use table::Kernel;
pub(crate) use table::{Binding, Slot, TABLE};

#[derive(Debug)]
pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// How a shader module is made.
type CreateModule =
    dyn Fn(&wgpu::Device, wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule + Send + Sync;

struct Shared {
    device: wgpu::Device,
    caps: Caps,
    cache: Option<wgpu::PipelineCache>,
    create_module: Arc<CreateModule>,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    /// Stand in for arguments that are absent, one to be read and one to be written; no kernel touches them.
    placeholders: [wgpu::Buffer; 2],
}

/// What is fixed per device: its capabilities, and the pipelines compiled so far. A clone is cheap and shares them;
/// threads may share one.
///
/// Creating it compiles nothing. It never submits, blocks or creates a device.
#[derive(Clone)]
pub struct Kernels {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels")
            .field("caps", &self.shared.caps)
            .finish_non_exhaustive()
    }
}

/// Disjoint ranges of a placeholder, one per binding number.
const PLACEHOLDER_RANGE: u64 = 256;
const PLACEHOLDER_SIZE: u64 = 16 * PLACEHOLDER_RANGE;

impl Kernels {
    /// Kernels for a device of the caller's. They need no optional feature; on a software adapter they are faster where
    /// the device has [`wgpu::Features::SHADER_INT64`].
    ///
    /// # Errors
    /// [`Error::Limit`] where the device cannot run any of them; [`Error::OutOfMemory`] and [`Error::DeviceLost`].
    pub fn new(device: &wgpu::Device) -> Result<Self> {
        Self::with_pipeline_cache(device, None)
    }

    /// The same, with the caller's pipeline cache (creating one is `unsafe`, and so the caller's business).
    ///
    /// # Errors
    /// As [`Kernels::new`].
    pub fn with_pipeline_cache(
        device: &wgpu::Device,
        cache: Option<wgpu::PipelineCache>,
    ) -> Result<Self> {
        Self::with_modules(device, cache, wgpu::Device::create_shader_module)
    }

    /// The same, and shader modules are made by the caller from what is given: a place for
    /// `Device::create_shader_module_trusted`, which is `unsafe`, and so the caller's business. All loops of the kernels
    /// end by themselves, so `ShaderRuntimeChecks::force_loop_bounding` may be false; ARCHITECTURE.md says what that
    /// saves. The other checks have to stay: lanes without work read at indices that checks keep within the buffers.
    ///
    /// # Errors
    /// As [`Kernels::new`].
    pub fn with_modules(
        device: &wgpu::Device,
        cache: Option<wgpu::PipelineCache>,
        create_module: impl Fn(&wgpu::Device, wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule
        + Send
        + Sync
        + 'static,
    ) -> Result<Self> {
        let caps = Caps::of(device)?;
        faults::alive(device, "making kernels")?;
        let scopes = ErrorScopes::push(device);
        let placeholder = || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("batchnorm placeholder"),
                size: PLACEHOLDER_SIZE,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        let placeholders = [placeholder(), placeholder()];
        settle(scopes, "making kernels")?;
        let pipelines = Mutex::new(HashMap::new());
        Ok(Kernels {
            shared: Arc::new(Shared {
                device: device.clone(),
                caps,
                cache,
                create_module: Arc::new(create_module),
                pipelines,
                placeholders,
            }),
        })
    }

    /// Kernels of the same device that have compiled nothing.
    #[cfg(feature = "tune")]
    pub(crate) fn fresh(&self) -> Self {
        let shared = &self.shared;
        Kernels {
            shared: Arc::new(Shared {
                device: shared.device.clone(),
                caps: shared.caps.clone(),
                cache: shared.cache.clone(),
                create_module: Arc::clone(&shared.create_module),
                pipelines: Mutex::default(),
                placeholders: shared.placeholders.clone(),
            }),
        }
    }

    /// What the planner knows of this device.
    pub fn caps(&self) -> &Caps {
        &self.shared.caps
    }

    /// Compiles what a plan needs, without blocking.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver refuses a pipeline; [`Error::Unsupported`] for a plan by 64-bit integers that the
    /// device lacks; [`Error::OutOfMemory`] and [`Error::DeviceLost`].
    pub async fn prepare_async(&self, plan: &Plan) -> Result<Prepared> {
        // What has too many bindings for the device is bound in part; the arguments say in which.
        let fits = |key: &PipelineKey| {
            key.bindings().count() as u32 <= self.shared.caps.max_storage_buffers
        };
        let missing = plan
            .pipelines()
            .into_iter()
            .filter(|key| fits(key) && self.cached(*key).is_none());
        faults::alive(&self.shared.device, "preparing a plan")?;
        for key in missing {
            self.has_integers_for(key)?;
            let scopes = ErrorScopes::push(&self.shared.device);
            let pipeline = self.compile(key);
            scopes.pop("compiling a kernel").await?;
            self.remember(key, pipeline);
        }
        Ok(Prepared::new(self.clone(), plan.clone()))
    }

    /// Compiles what a plan needs. Off the web, where compilation does not wait for the event loop.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver refuses a pipeline; [`Error::Unsupported`] for a plan by 64-bit integers that the
    /// device lacks; [`Error::OutOfMemory`] and [`Error::DeviceLost`].
    #[cfg(not(target_family = "wasm"))]
    pub fn prepare(&self, plan: &Plan) -> Result<Prepared> {
        faults::ready(self.prepare_async(plan))
    }

    /// `prepare` without compiling: binding an operation compiles what that one needs.
    pub(crate) fn prepare_lazily(&self, plan: &Plan) -> Prepared {
        Prepared::new(self.clone(), plan.clone())
    }

    /// A pipeline, compiled if it was not yet.
    pub(crate) fn pipeline(&self, key: PipelineKey) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = self.cached(key) {
            return Ok(pipeline);
        }
        self.has_integers_for(key)?;
        let scopes = ErrorScopes::push(&self.shared.device);
        let pipeline = self.compile(key);
        settle(scopes, "compiling a kernel")?;
        Ok(self.remember(key, pipeline))
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.shared.device
    }

    /// A range of a placeholder that no other binding of the kernel gets.
    pub(crate) fn placeholder(&self, binding: &Binding, writes: bool) -> wgpu::BufferBinding<'_> {
        wgpu::BufferBinding {
            buffer: &self.shared.placeholders[usize::from(writes)],
            offset: u64::from(binding.number) * PLACEHOLDER_RANGE,
            size: wgpu::BufferSize::new(PLACEHOLDER_RANGE),
        }
    }

    pub(crate) fn cached(&self, key: PipelineKey) -> Option<Arc<Pipeline>> {
        self.shared
            .pipelines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned()
    }

    fn remember(&self, key: PipelineKey, pipeline: Pipeline) -> Arc<Pipeline> {
        let mut pipelines = self
            .shared
            .pipelines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Two threads may have compiled the same; the first stays.
        let pipeline = pipelines.entry(key).or_insert_with(|| Arc::new(pipeline));
        Arc::clone(pipeline)
    }

    /// Whether the device has the integers that words are made of: a plan may have been made for another device.
    fn has_integers_for(&self, key: PipelineKey) -> Result<()> {
        if !key.elements.is_by_64() || self.shared.caps.shader_int64 {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: "a plan by 64-bit integers on a device without them".into(),
            remedy: "plan with Kernels::caps(), or request the device with SHADER_INT64".into(),
        })
    }

    pub(crate) fn compile(&self, key: PipelineKey) -> Pipeline {
        let device = &self.shared.device;
        let entry = key.kernel.entry();
        let label = Some(entry.entry_point);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(entry.file),
            source: wgpu::ShaderSource::Wgsl(key.source().into()),
        };
        let module = (self.shared.create_module)(device, descriptor);
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label,
            entries: &layout_entries(key),
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(entry.entry_point),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &key.constants(),
                zero_initialize_workgroup_memory: ZERO_INITIALIZE_WORKGROUP_MEMORY,
            },
            cache: self.shared.cache.as_ref(),
        });
        Pipeline { pipeline, layout }
    }
}

fn layout_entries(key: PipelineKey) -> Vec<wgpu::BindGroupLayoutEntry> {
    let buffer = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let storage = |b: &Binding| {
        buffer(
            b.number,
            wgpu::BufferBindingType::Storage {
                read_only: !b.writes && !key.pooled,
            },
        )
    };
    std::iter::once(buffer(0, wgpu::BufferBindingType::Uniform))
        .chain(key.bindings().map(storage))
        .collect()
}
