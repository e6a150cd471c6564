//! Every operation, walk, fusion and shape against the reference, on every adapter.

use wgpu_batchnorm::{Choices, Error, Gpu, Plan, Problem};
use wgpu_batchnorm_cli::check::{Filter, cases, run_cases};

use crate::{but_on_gl, name, on_every_adapter, on_plain_devices, plain};

fn agree(gpu: &Gpu, choices: &Choices) {
    let mut failures = Vec::new();
    let outcomes = run_cases(gpu, cases(false, choices, Filter::default()), |_| {});
    for outcome in outcomes.iter().filter(|o| o.failed()) {
        let report = match &outcome.result {
            Err(error) => error.clone(),
            Ok(all) => all
                .iter()
                .filter(|c| !c.places.is_empty())
                .map(|c| c.report())
                .collect::<Vec<_>>()
                .join("\n"),
        };
        failures.push(format!("{}\n{report}", outcome.case));
    }
    println!(
        "{}: {} cases, {} refused by the planner, {} failed",
        name(gpu),
        outcomes.len(),
        outcomes.iter().filter(|o| o.refused).count(),
        failures.len()
    );
    assert!(
        failures.is_empty(),
        "on {}:\n{}",
        name(gpu),
        failures.join("\n")
    );
}

#[test]
fn gpu_agrees_with_the_reference() {
    on_every_adapter(|gpu| agree(gpu, &Choices::default()));
}

/// A plan by 64-bit integers is refused by name where there are none, before wgpu sees a shader of it.
#[test]
fn a_plan_by_64_bit_integers_needs_them() {
    on_plain_devices(|gpu| {
        let mut caps = gpu.kernels.caps().clone();
        caps.device_type = wgpu::DeviceType::Cpu;
        caps.shader_int64 = true;
        let plan = Plan::new(&Problem::nc([4, 8]), &caps).unwrap();
        assert!(plan.to_string().contains("by 64-bit integers"), "{plan}");
        let error = gpu.kernels.prepare(&plan).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("SHADER_INT64"), "{error}");
    });
}

/// A GPU's plans (wide workgroups, several lanes to a merge), wherever they run.
#[test]
fn plans_for_a_gpu_agree_with_the_reference() {
    let choices = Choices::default().device_type(wgpu::DeviceType::DiscreteGpu);
    on_plain_devices(but_on_gl(|gpu| agree(gpu, &choices)));
}

/// A device with WebGPU's default limits: 8 storage buffers, 256 invocations, 16 KiB of workgroup memory.
#[test]
fn default_limits_are_enough() {
    let choices = Choices::default().device_type(wgpu::DeviceType::DiscreteGpu);
    on_plain_devices(but_on_gl(|gpu| {
        let small = plain(&gpu.adapter, wgpu::Limits::default());
        agree(&small, &choices);
    }));
}

/// A device with the limits that GL guarantees: 4 storage buffers. What needs more runs in more dispatches; a refusal
/// would be a failure. Without 64-bit integers, as here and on GL, a software adapter's plans move words of 32 bits.
#[test]
fn four_storage_buffers_are_enough() {
    on_plain_devices(|gpu| {
        let limits = wgpu::Limits::downlevel_defaults();
        assert_eq!(limits.max_storage_buffers_per_shader_stage, 4);
        let small = plain(&gpu.adapter, limits);
        agree(&small, &Choices::default());
    });
}

#[test]
fn exact_remainders_survive_every_compiler() {
    on_every_adapter(|gpu| assert!(gpu.keeps_remainders().unwrap(), "not on {}", name(gpu)));
}
