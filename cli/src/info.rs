//! `info`: the adapters of this machine, and what each can run.

use serde_json::{Value, json};
use wgpu_batchnorm::Caps;
#[cfg(not(target_family = "wasm"))]
use {
    anyhow::{Context, Result, bail},
    comfy_table::{ContentArrangement, Table, presets},
    std::fmt::Display,
    std::io::Write,
    wgpu_batchnorm::Gpu,
};

/// An adapter as JSON: who it is.
pub fn adapter(adapter: &wgpu::Adapter) -> Value {
    let info = adapter.get_info();
    json!({
        "name": info.name,
        "backend": info.backend.to_string(),
        "type": format!("{:?}", info.device_type),
        "driver": info.driver,
        "driver_info": info.driver_info,
    })
}

/// Writes to stdout and ends the line. Where `println!` would panic, as on a full disk or a closed pipe, an error.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn print(text: impl Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .context("stdout cannot be written")
}

/// Prints the adapters.
///
/// # Errors
/// One line that says what to install, where there is none.
#[cfg(not(target_family = "wasm"))]
pub fn run(as_json: bool) -> Result<()> {
    let adapters = Gpu::adapters(wgpu::Backends::all());
    if as_json {
        let list: Vec<Value> = adapters.iter().map(describe).collect();
        return print(serde_json::to_string_pretty(&json!({ "adapters": list }))?);
    }
    if adapters.is_empty() {
        let Err(error) = Gpu::new() else {
            bail!("an adapter appeared while they were listed; try again")
        };
        return Err(error.into());
    }
    for found in &adapters {
        let info = found.get_info();
        let caps = Caps::from_limits(&found.limits(), info.device_type);
        print(&info.name)?;
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        let mut row = |name: &str, value: String| {
            table.add_row(vec![format!("  {name}"), value]);
        };
        row("backend", info.backend.to_string());
        row("type", format!("{:?}", info.device_type));
        row(
            "driver",
            [info.driver.as_str(), info.driver_info.as_str()]
                .join(" ")
                .trim()
                .to_owned(),
        );
        row("storage binding", bytes(caps.max_binding_size));
        row(
            "storage buffers",
            format!("{} in a shader", caps.max_storage_buffers),
        );
        row(
            "workgroup",
            format!(
                "{} lanes, {}",
                caps.max_workgroup_size,
                bytes(caps.max_workgroup_storage.into())
            ),
        );
        row("offset alignment", bytes(caps.offset_alignment.into()));
        row("64-bit integers", yes_or_no(has_int64(found)).into());
        row("runs", runs(&caps));
        print(table.trim_fmt() + "\n")?;
    }
    Ok(())
}

/// An adapter as JSON: who it is, its limits, and what it can run.
pub fn describe(found: &wgpu::Adapter) -> Value {
    let limits = found.limits();
    let caps = Caps::from_limits(&limits, found.get_info().device_type);
    let mut value = adapter(found);
    value["limits"] = json!({
        "max_storage_buffer_binding_size": limits.max_storage_buffer_binding_size,
        "max_buffer_size": limits.max_buffer_size,
        "max_storage_buffers_per_shader_stage": limits.max_storage_buffers_per_shader_stage,
        "max_compute_invocations_per_workgroup": limits.max_compute_invocations_per_workgroup,
        "max_compute_workgroup_storage_size": limits.max_compute_workgroup_storage_size,
        "max_compute_workgroups_per_dimension": limits.max_compute_workgroups_per_dimension,
        "min_storage_buffer_offset_alignment": limits.min_storage_buffer_offset_alignment,
    });
    value["features"] = json!({ "SHADER_INT64": has_int64(found) });
    value["runs"] = json!(runs(&caps));
    value["max_elements_f32"] = json!(caps.max_binding_size / 4);
    value
}

/// What software adapters move tensors by.
fn has_int64(found: &wgpu::Adapter) -> bool {
    found.features().contains(wgpu::Features::SHADER_INT64)
}

fn runs(caps: &Caps) -> String {
    match caps.require() {
        Ok(()) => format!(
            "f32, f16 and bf16; in one piece up to {} million elements of f32, twice that of the others; larger ones in chunks",
            caps.max_binding_size / 4 / 1_000_000
        ),
        Err(error) => format!("nothing: {error}"),
    }
}

#[cfg(not(target_family = "wasm"))]
fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

#[cfg(not(target_family = "wasm"))]
fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{} KiB", n >> 10),
        _ => format!("{} MiB", n >> 20),
    }
}
