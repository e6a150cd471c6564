//! The part that needs `unsafe`: a Vulkan device on RADV's null winsys, which compiles for any AMD family and runs
//! nothing.

use std::ffi::CStr;
use std::io::Write as _;

use anyhow::{Context as _, Result, anyhow, ensure};
use ash::{khr, vk};

use super::isa::Compiled;

/// A device that only makes pipelines.
pub(crate) struct NullDevice {
    device: ash::Device,
    executables: khr::pipeline_executable_properties::Device,
    /// What the driver calls itself, with its version.
    pub name: String,
    // Dropping the loader would unload the driver under the device.
    _instance: ash::Instance,
    _entry: ash::Entry,
}

impl NullDevice {
    /// Opens the one device that `VK_DRIVER_FILES` and `RADV_FORCE_FAMILY` leave, with the features that wgpu turns on
    /// where it finds them and that change code.
    ///
    /// # Errors
    /// Where there is no Vulkan loader, no RADV, or no statistics.
    pub(crate) fn open() -> Result<Self> {
        // SAFETY: the loader and the driver that it loads are the system's; they stay loaded for as long as this value.
        let entry = unsafe { ash::Entry::load() }
            .context("no Vulkan loader: apt-get install libvulkan1 mesa-vulkan-drivers")?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let create = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: the structures live until the call returns, here and below; handles come from their own parents.
        let instance = unsafe { entry.create_instance(&create, None) }
            .context("no Vulkan driver: apt-get install mesa-vulkan-drivers, and see that VK_DRIVER_FILES names its radeon_icd")?;
        // SAFETY: as above.
        let physical = unsafe { instance.enumerate_physical_devices() }?
            .into_iter()
            .next()
            .context("RADV offers no device: does its Mesa know RADV_FORCE_FAMILY's family?")?;
        let mut driver = vk::PhysicalDeviceDriverProperties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
        // SAFETY: as above.
        unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
        let device_name = properties
            .properties
            .device_name_as_c_str()?
            .to_string_lossy()
            .into_owned();
        ensure!(
            driver.driver_id == vk::DriverId::MESA_RADV,
            "the driver is {:?}, not RADV: set VK_DRIVER_FILES to Mesa's radeon_icd",
            driver.driver_name_as_c_str()
        );
        let name = format!(
            "{device_name}, {}",
            driver.driver_info_as_c_str()?.to_string_lossy()
        );

        let queues = [vk::DeviceQueueCreateInfo::default()
            .queue_family_index(0)
            .queue_priorities(&[1.0])];
        let extensions = [
            khr::pipeline_executable_properties::NAME.as_ptr(),
            ash::ext::robustness2::NAME.as_ptr(),
        ];
        let features = vk::PhysicalDeviceFeatures::default().robust_buffer_access(true);
        let mut statistics = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
            .pipeline_executable_info(true);
        let mut robust =
            vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(true);
        let mut zeros = vk::PhysicalDeviceZeroInitializeWorkgroupMemoryFeatures::default()
            .shader_zero_initialize_workgroup_memory(true);
        let create = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&extensions)
            .enabled_features(&features)
            .push_next(&mut statistics)
            .push_next(&mut robust)
            .push_next(&mut zeros);
        // SAFETY: as above.
        let device =
            unsafe { instance.create_device(physical, &create, None) }.context("RADV's device")?;
        let executables = khr::pipeline_executable_properties::Device::new(&instance, &device);
        Ok(NullDevice {
            device,
            executables,
            name,
            _instance: instance,
            _entry: entry,
        })
    }

    /// Compiles a compute shader whose bindings, all in group 0, are a uniform buffer at 0 and storage buffers.
    ///
    /// # Errors
    /// What the driver refuses.
    pub(crate) fn compile(
        &self,
        spirv: &[u32],
        entry_point: &str,
        storage: &[u32],
    ) -> Result<Compiled> {
        let entry_point = std::ffi::CString::new(entry_point)?;
        let binding = |number, kind| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(number)
                .descriptor_type(kind)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let bindings: Vec<_> = std::iter::once(binding(0, vk::DescriptorType::UNIFORM_BUFFER))
            .chain(
                storage
                    .iter()
                    .map(|&number| binding(number, vk::DescriptorType::STORAGE_BUFFER)),
            )
            .collect();
        // SAFETY: every structure and slice lives until its call returns, and every handle made here is destroyed here,
        // after its last use; the SPIR-V is naga's, of a module that naga has validated.
        unsafe {
            let layout = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let set = self.device.create_descriptor_set_layout(&layout, None)?;
            let sets = [set];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let layout = self.device.create_pipeline_layout(&layout, None)?;
            let module = self
                .device
                .create_shader_module(&vk::ShaderModuleCreateInfo::default().code(spirv), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry_point);
            let create = vk::ComputePipelineCreateInfo::default()
                .stage(stage)
                .layout(layout)
                .flags(
                    vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                        | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
                );
            let made =
                self.device
                    .create_compute_pipelines(vk::PipelineCache::null(), &[create], None);
            let result = match made {
                Ok(pipelines) => {
                    let compiled = self.read(pipelines[0]);
                    self.device.destroy_pipeline(pipelines[0], None);
                    compiled
                }
                Err((_, error)) => Err(anyhow!("the driver refuses the pipeline: {error}")),
            };
            self.device.destroy_shader_module(module, None);
            self.device.destroy_pipeline_layout(layout, None);
            self.device.destroy_descriptor_set_layout(set, None);
            result
        }
    }

    /// # Safety
    /// The pipeline is this device's and alive.
    unsafe fn read(&self, pipeline: vk::Pipeline) -> Result<Compiled> {
        let executable = vk::PipelineExecutableInfoKHR::default()
            .pipeline(pipeline)
            .executable_index(0);
        // SAFETY: the pipeline is alive and was made with both CAPTURE flags.
        let statistics = unsafe {
            self.executables
                .get_pipeline_executable_statistics(&executable)
        }?;
        let mut compiled = Compiled::default();
        for statistic in &statistics {
            let name = statistic.name_as_c_str()?.to_string_lossy().into_owned();
            // SAFETY: the union holds what `format` says; all of RADV's are unsigned.
            let value = unsafe { statistic.value.u64 };
            ensure!(
                statistic.format == vk::PipelineExecutableStatisticFormatKHR::UINT64,
                "the statistic {name} is no unsigned number"
            );
            compiled.statistics.insert(name, value);
        }
        // SAFETY: as above. The first call gives sizes, the second text, into buffers of those sizes.
        let mut parts = unsafe {
            self.executables
                .get_pipeline_executable_internal_representations(&executable)
        }?;
        let mut texts: Vec<Vec<u8>> = parts.iter().map(|part| vec![0; part.data_size]).collect();
        for (part, text) in parts.iter_mut().zip(&mut texts) {
            part.p_data = text.as_mut_ptr().cast();
        }
        let mut count = parts.len() as u32;
        // SAFETY: `parts` has `count` elements, and each points to `data_size` bytes that outlive the call.
        unsafe {
            (self
                .executables
                .fp()
                .get_pipeline_executable_internal_representations_khr)(
                self.executables.device(),
                &executable,
                &mut count,
                parts.as_mut_ptr(),
            )
        }
        .result()?;
        for (part, text) in parts.iter().zip(&texts) {
            let name = part.name_as_c_str()?.to_string_lossy();
            if name == "Assembly" {
                compiled.assembly = CStr::from_bytes_until_nul(text)?
                    .to_string_lossy()
                    .into_owned();
            }
        }
        ensure!(
            !compiled.assembly.is_empty(),
            "RADV gives no assembly: is its Mesa built without LLVM's disassembler?"
        );
        Ok(compiled)
    }

    /// Ends the process: the null device does not survive being taken down.
    pub(crate) fn leave(self) -> ! {
        std::mem::forget(self);
        let _ = std::io::stdout().flush();
        std::process::exit(0)
    }
}
