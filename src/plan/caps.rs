//! What the planner knows of a device.

use crate::{Error, Result};

/// What the planner knows of a device. [`Caps::of`] reads it; tests make their own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caps {
    /// The adapter's kind; software adapters (`Cpu`) want other sizes than GPUs.
    pub device_type: wgpu::DeviceType,
    /// `max_compute_invocations_per_workgroup`, and no more than one dimension allows.
    pub max_workgroup_size: u32,
    /// `max_compute_workgroups_per_dimension`.
    pub max_workgroups_per_dimension: u32,
    /// `max_storage_buffer_binding_size` in bytes, and no more than a buffer may have.
    pub max_binding_size: u64,
    /// `max_storage_buffers_per_shader_stage`.
    pub max_storage_buffers: u32,
    /// `max_compute_workgroup_storage_size` in bytes.
    pub max_workgroup_storage: u32,
    /// `min_storage_buffer_offset_alignment` in bytes.
    pub offset_alignment: u32,
    /// Whether the device has 64-bit integers, [`wgpu::Features::SHADER_INT64`], and is Vulkan's, where they were seen to
    /// work and to pay: software adapters move tensors by them.
    pub shader_int64: bool,
}

impl Caps {
    /// What WebGPU guarantees on a GPU: the limits of `wgpu::Limits::default()`.
    pub fn webgpu_defaults() -> Self {
        Self::from_limits(&wgpu::Limits::default(), wgpu::DeviceType::DiscreteGpu)
    }

    /// Reads a device's.
    ///
    /// # Errors
    /// [`Error::Limit`] where the device is below what any kernel needs.
    pub fn of(device: &wgpu::Device) -> Result<Self> {
        let mut caps = Self::from_limits(&device.limits(), device.adapter_info().device_type);
        caps.shader_int64 = device.features().contains(wgpu::Features::SHADER_INT64)
            && device.adapter_info().backend == wgpu::Backend::Vulkan;
        caps.require()?;
        Ok(caps)
    }

    /// Capabilities by limits and kind of adapter, without optional features.
    pub fn from_limits(limits: &wgpu::Limits, device_type: wgpu::DeviceType) -> Self {
        Caps {
            device_type,
            max_workgroup_size: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_binding_size: limits
                .max_storage_buffer_binding_size
                .min(limits.max_buffer_size),
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_workgroup_storage: limits.max_compute_workgroup_storage_size,
            // wgpu binds whole words whatever a device says.
            offset_alignment: limits.min_storage_buffer_offset_alignment.max(4),
            shader_int64: false,
        }
    }

    /// Whether a device with these capabilities runs the kernels at all.
    ///
    /// # Errors
    /// [`Error::Limit`] for the limit that is too low.
    pub fn require(&self) -> Result<()> {
        let at_least = |needed: u64, limit: u64, name: &'static str| {
            if limit >= needed {
                return Ok(());
            }
            let remedy = "request the device with this limit raised, or use another adapter".into();
            Err(Error::Limit {
                what: "batch norm".into(),
                needed,
                limit,
                name,
                remedy,
            })
        };
        at_least(
            4,
            self.max_storage_buffers.into(),
            "max_storage_buffers_per_shader_stage",
        )?;
        at_least(
            32,
            self.max_workgroup_size.into(),
            "max_compute_invocations_per_workgroup",
        )?;
        at_least(
            32 * SCRATCH_PER_LANE,
            self.max_workgroup_storage.into(),
            "max_compute_workgroup_storage_size",
        )?;
        at_least(
            256,
            self.max_workgroups_per_dimension.into(),
            "max_compute_workgroups_per_dimension",
        )
    }

    pub(super) fn is_cpu(&self) -> bool {
        self.device_type == wgpu::DeviceType::Cpu
    }

    /// `wanted` lanes, or the largest power of two that the device and the scratch of a reduction allow.
    pub(super) fn workgroup(&self, wanted: u32) -> u32 {
        let by_storage = self.max_workgroup_storage / SCRATCH_PER_LANE as u32;
        let most = self.max_workgroup_size.min(by_storage).max(1);
        wanted.min(1 << most.ilog2())
    }
}

/// Workgroup memory of a reduction: two vectors of four f32 per lane.
const SCRATCH_PER_LANE: u64 = 32;
