// Normalises: y = act((x - K)·scale + shift + residual).
//
// Parallel: flat. A workgroup owns a chunk; an invocation of it owns every WORKGROUP-th vector of 4 elements, and looks up
// the channel of each element; no two invocations write one word. Reads x (and the residual) once, writes y once.

@group(0) @binding(1) var<storage, read> input: array<Word>;
@group(0) @binding(2) var<storage, read> residual: array<Word>;
@group(0) @binding(3) var<storage, read> coefficients: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> output: array<Word>;

fn read_input(i: u32) -> vec4<f32> {
    if WHOLE_VECTORS {
        return vec4<f32>(input[i]);
    }
    let e = 4u * i;
    return vec4(first(input[e]), first(input[e + 1u]), first(input[e + 2u]), first(input[e + 3u]));
}

fn read_residual(i: u32) -> vec4<f32> {
    if WHOLE_VECTORS {
        return vec4<f32>(residual[i]);
    }
    let e = 4u * i;
    return vec4(first(residual[e]), first(residual[e + 1u]), first(residual[e + 2u]), first(residual[e + 3u]));
}

fn write_output(i: u32, v: vec4<f32>) {
    if WHOLE_VECTORS {
        output[i] = word(v);
        return;
    }
    let e = 4u * i;
    output[e] = word(v);
    if e + 1u < params.elements { output[e + 1u] = word(v.yyyy); }
    if e + 2u < params.elements { output[e + 2u] = word(v.zzzz); }
    if e + 3u < params.elements { output[e + 3u] = word(v.wwww); }
}

@compute @workgroup_size(WORKGROUP)
fn normalize(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = workgroup_number(id, grid) * params.chunk;
    let end = min(start + params.chunk, params.vectors);
    for (var place = place_of(start + lane); place.vector < end; place = next_place(place)) {
        var c0 = coefficients[place.channel];
        var c1 = c0;
        var c2 = c0;
        var c3 = c0;
        if CHANNEL_LOOKUP != SAME_CHANNEL {
            c1 = coefficients[channel_of(place, 1u)];
            c2 = coefficients[channel_of(place, 2u)];
            c3 = coefficients[channel_of(place, 3u)];
        }
        let pivot = vec4(c0.x, c1.x, c2.x, c3.x);
        let scale = vec4(c0.y, c1.y, c2.y, c3.y);
        let shift = vec4(c0.z, c1.z, c2.z, c3.z);
        var z = fma(read_input(place.vector) - pivot, scale, shift);
        if RESIDUAL {
            z += read_residual(place.vector);
        }
        write_output(place.vector, activate(z));
    }
}
