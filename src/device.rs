//! `Gpu`: an adapter and a device for programs that have none.

use crate::error::install_hint;
use crate::{Error, Kernels, Result};

/// An adapter, a device on it with all limits that it offers, and the kernels.
#[derive(Debug, Clone)]
pub struct Gpu {
    /// The adapter.
    pub adapter: wgpu::Adapter,
    /// The device.
    pub device: wgpu::Device,
    /// Its queue.
    pub queue: wgpu::Queue,
    /// The kernels of this device.
    pub kernels: Kernels,
}

impl Gpu {
    /// Adapters of the given backends, real GPUs before software.
    pub async fn adapters_async(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
        // Without one there is no instance, and no adapter: the feature `web` alone brings none off the web.
        if wgpu::Instance::enabled_backend_features().is_empty() {
            return Vec::new();
        }
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = backends;
        let instance = wgpu::Instance::new(descriptor);
        let mut adapters = instance.enumerate_adapters(backends).await;
        // The same driver may be found through several backends; the order of backends decides among equals.
        adapters.sort_by_key(|adapter| {
            let info = adapter.get_info();
            let kind = match info.device_type {
                wgpu::DeviceType::DiscreteGpu => 0,
                wgpu::DeviceType::IntegratedGpu => 1,
                wgpu::DeviceType::VirtualGpu => 2,
                wgpu::DeviceType::Other => 3,
                wgpu::DeviceType::Cpu => 4,
            };
            (kind, info.backend == wgpu::Backend::Gl)
        });
        adapters
    }

    /// The best adapter there is: a GPU before a software driver, and GL only where there is nothing else.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], which says what to install, and [`Error::Device`].
    pub async fn new_async() -> Result<Self> {
        Self::find_async(wgpu::Backends::all(), None).await
    }

    /// The best adapter of some backends whose name contains a text, whatever the case.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], which lists those found, and [`Error::Device`].
    pub async fn find_async(backends: wgpu::Backends, name: Option<&str>) -> Result<Self> {
        let matches = |adapter: &&wgpu::Adapter| {
            name.is_none_or(|name| {
                adapter
                    .get_info()
                    .name
                    .to_lowercase()
                    .contains(&name.to_lowercase())
            })
        };
        // GL only where nothing else will do: it has the tightest limits, and looking for it may write to stderr.
        let (others, gl) = (backends - wgpu::Backends::GL, backends & wgpu::Backends::GL);
        let mut adapters = Vec::new();
        for some in [others, gl] {
            let found = if some.is_empty() {
                Vec::new()
            } else {
                Self::adapters_async(some).await
            };
            if let Some(adapter) = found.iter().find(matches) {
                return Self::on_async(adapter.clone()).await;
            }
            adapters.extend(found);
        }
        let mut wanted = String::new();
        if let Some(name) = name {
            wanted += &format!(" named {name:?}");
        }
        if backends != wgpu::Backends::all() {
            let names: Vec<String> = backends
                .iter_names()
                .map(|(name, _)| name.to_lowercase())
                .collect();
            wanted += &format!(" on backend {}", names.join(", "));
        }
        let names = adapters
            .iter()
            .map(|a| format!("{:?}", a.get_info().name))
            .collect::<Vec<_>>();
        let found = if !names.is_empty() {
            format!(
                "found {}; give a part of one of these names",
                names.join(", ")
            )
        } else if others | gl == wgpu::Backends::all() {
            format!("none was found; {}", install_hint())
        } else {
            format!(
                "none was found there; use another backend, or {}",
                install_hint()
            )
        };
        Err(Error::NoAdapter { wanted, found })
    }

    /// A device on a given adapter, with all limits that it offers.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver refuses.
    pub async fn on_async(adapter: wgpu::Adapter) -> Result<Self> {
        let limits = adapter.limits();
        Self::with_limits_async(adapter, limits).await
    }

    /// A device on a given adapter with given limits.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver refuses.
    pub async fn with_limits_async(adapter: wgpu::Adapter, limits: wgpu::Limits) -> Result<Self> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("batchnorm"),
            // Both optional: to time what runs, and what software adapters move tensors by.
            required_features: adapter.features()
                & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SHADER_INT64),
            required_limits: limits,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) =
            adapter
                .request_device(&descriptor)
                .await
                .map_err(|error| Error::Device {
                    action: "requesting a device",
                    message: error
                        .to_string()
                        .split_whitespace()
                        .collect::<Vec<_>>()
                        .join(" "),
                })?;
        let kernels = Kernels::new(&device)?;
        Ok(Gpu {
            adapter,
            device,
            queue,
            kernels,
        })
    }
}

/// Blocking twins.
#[cfg(all(feature = "device", not(target_family = "wasm")))]
impl Gpu {
    /// As [`Gpu::adapters_async`].
    pub fn adapters(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
        pollster::block_on(Self::adapters_async(backends))
    }

    /// As [`Gpu::new_async`].
    ///
    /// # Errors
    /// As there.
    pub fn new() -> Result<Self> {
        pollster::block_on(Self::new_async())
    }

    /// As [`Gpu::find_async`].
    ///
    /// # Errors
    /// As there.
    pub fn find(backends: wgpu::Backends, name: Option<&str>) -> Result<Self> {
        pollster::block_on(Self::find_async(backends, name))
    }

    /// As [`Gpu::on_async`].
    ///
    /// # Errors
    /// As there.
    pub fn on(adapter: wgpu::Adapter) -> Result<Self> {
        pollster::block_on(Self::on_async(adapter))
    }

    /// As [`Gpu::with_limits_async`].
    ///
    /// # Errors
    /// As there.
    pub fn with_limits(adapter: wgpu::Adapter, limits: wgpu::Limits) -> Result<Self> {
        pollster::block_on(Self::with_limits_async(adapter, limits))
    }
}
