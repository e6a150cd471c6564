// Copies per-channel vectors between buffers of their own and one packed buffer, [3, channels] words.
//
// Parallel: one invocation per channel. gather: sources -> packed, a constant for a vector that is absent; scatter:
// packed -> the targets that are present. Words are copied as bits.

@group(0) @binding(1) var<storage, read> source_0: array<u32>;
@group(0) @binding(2) var<storage, read> source_1: array<u32>;
@group(0) @binding(3) var<storage, read> source_2: array<u32>;
@group(0) @binding(4) var<storage, read_write> gathered: array<u32>;
@group(0) @binding(5) var<storage, read> packed: array<u32>;
@group(0) @binding(6) var<storage, read_write> target_0: array<u32>;
@group(0) @binding(7) var<storage, read_write> target_1: array<u32>;
@group(0) @binding(8) var<storage, read_write> target_2: array<u32>;

fn present(vector: u32) -> bool {
    return (params.present & (1u << vector)) != 0u;
}

@compute @workgroup_size(WORKGROUP)
fn gather(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channel = workgroup_number(id, grid) * WORKGROUP + lane;
    if channel < params.channels {
        gathered[channel] = select(params.absent_0, source_0[params.start_0 + channel], present(0u));
        gathered[params.channels + channel] = select(params.absent_1, source_1[params.start_1 + channel], present(1u));
        gathered[2u * params.channels + channel] = select(params.absent_2, source_2[params.start_2 + channel], present(2u));
    }
}

@compute @workgroup_size(WORKGROUP)
fn scatter(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channel = workgroup_number(id, grid) * WORKGROUP + lane;
    if channel < params.channels {
        if present(0u) { target_0[params.start_0 + channel] = packed[channel]; }
        if present(1u) { target_1[params.start_1 + channel] = packed[params.channels + channel]; }
        if present(2u) { target_2[params.start_2 + channel] = packed[2u * params.channels + channel]; }
    }
}
