// The floor: a copy of one buffer to another, 16 bytes at a time.
//
// Parallel: a fixed number of workgroups; an invocation copies every (WORKGROUP · workgroups)-th vector.

override WORKGROUP: u32 = 64u;

@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> target_: array<vec4<u32>>;

@compute @workgroup_size(WORKGROUP)
fn copy(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let step = WORKGROUP * grid.x;
    for (var i = id.x; i < arrayLength(&target_); i += step) {
        target_[i] = source[i];
    }
}

// The same without the writes.
@compute @workgroup_size(WORKGROUP)
fn read_all(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let step = WORKGROUP * grid.x;
    var all = vec4(0u);
    for (var i = id.x; i < arrayLength(&source); i += step) {
        all ^= source[i];
    }
    // Never so, which no compiler knows.
    if all.x == 0x9e3779b9u && all.y == 0x7f4a7c15u {
        target_[0] = all;
    }
}

// Nothing: what a dispatch costs by itself.
@compute @workgroup_size(WORKGROUP)
fn nothing(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x == 0xffffffffu {
        target_[0] = vec4(0u);
    }
}
