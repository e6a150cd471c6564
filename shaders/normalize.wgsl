// Normalises: y = act((x - K)·scale + shift + residual).
//
// Parallel: flat. A workgroup owns a chunk; an invocation of it owns every WORKGROUP-th vector of 4 elements, and looks up
// the channel of each element; no two invocations write one word. Reads x (and the residual) once, writes y once. In place,
// x is what y is about to replace.

@group(0) @binding(7) var<storage, read> coefficients: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn normalize(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = workgroup_number(id, grid) * params.chunk;
    let end = min(start + params.chunk, params.vectors);
    for (var place = place_of(start + lane); place.vector < end; place = next_place(place)) {
        var c0 = coefficients[statistic_of(place, 0u)];
        var c1 = c0;
        var c2 = c0;
        var c3 = c0;
        if CHANNEL_LOOKUP != SAME_CHANNEL {
            c1 = coefficients[statistic_of(place, 1u)];
            c2 = coefficients[statistic_of(place, 2u)];
            c3 = coefficients[statistic_of(place, 3u)];
        }
        let pivot = vec4(c0.x, c1.x, c2.x, c3.x);
        let scale = vec4(c0.y, c1.y, c2.y, c3.y);
        let shift = vec4(c0.z, c1.z, c2.z, c3.z);
        var x = vec4(0.0);
        if IN_PLACE {
            x = read_output(place.vector);
        } else {
            x = read_input(place.vector);
        }
        var z = fma(x - pivot, scale, shift);
        if RESIDUAL {
            z += read_residual(place.vector);
        }
        write_output(place.vector, activate(z));
    }
}
