// The input's gradient: dx = A·dz + B·(x - κ) + D with dz = dy·act'(z); with a residual and an activation also the
// residual's, dz itself.
//
// Parallel: flat. A workgroup owns a chunk; an invocation of it owns every WORKGROUP-th vector of 4 elements, and looks up
// the channel of each element; no two invocations write one word. Reads x, dy (and the residual) once, writes dx (and
// dz) once.

@group(0) @binding(1) var<storage, read> input: array<Word>;
@group(0) @binding(2) var<storage, read> grad_output: array<Word>;
@group(0) @binding(3) var<storage, read> residual: array<Word>;
@group(0) @binding(4) var<storage, read> coefficients: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> grad_input: array<Word>;
@group(0) @binding(6) var<storage, read_write> grad_residual: array<Word>;

fn read_input(i: u32) -> vec4<f32> {
    if WHOLE_VECTORS {
        return vec4<f32>(input[i]);
    }
    let e = 4u * i;
    return vec4(first(input[e]), first(input[e + 1u]), first(input[e + 2u]), first(input[e + 3u]));
}

fn read_grad_output(i: u32) -> vec4<f32> {
    if WHOLE_VECTORS {
        return vec4<f32>(grad_output[i]);
    }
    let e = 4u * i;
    return vec4(first(grad_output[e]), first(grad_output[e + 1u]), first(grad_output[e + 2u]), first(grad_output[e + 3u]));
}

fn read_residual(i: u32) -> vec4<f32> {
    if WHOLE_VECTORS {
        return vec4<f32>(residual[i]);
    }
    let e = 4u * i;
    return vec4(first(residual[e]), first(residual[e + 1u]), first(residual[e + 2u]), first(residual[e + 3u]));
}

fn write_grad_input(i: u32, v: vec4<f32>) {
    if WHOLE_VECTORS {
        grad_input[i] = word(v);
        return;
    }
    let e = 4u * i;
    grad_input[e] = word(v);
    if e + 1u < params.elements { grad_input[e + 1u] = word(v.yyyy); }
    if e + 2u < params.elements { grad_input[e + 2u] = word(v.zzzz); }
    if e + 3u < params.elements { grad_input[e + 3u] = word(v.wwww); }
}

fn write_grad_residual(i: u32, v: vec4<f32>) {
    if WHOLE_VECTORS {
        grad_residual[i] = word(v);
        return;
    }
    let e = 4u * i;
    grad_residual[e] = word(v);
    if e + 1u < params.elements { grad_residual[e + 1u] = word(v.yyyy); }
    if e + 2u < params.elements { grad_residual[e + 2u] = word(v.zzzz); }
    if e + 3u < params.elements { grad_residual[e + 3u] = word(v.wwww); }
}

struct Coefficients {
    x: vec4<f32>,
    y: vec4<f32>,
    z: vec4<f32>,
    w: vec4<f32>,
}

// Those of a vector's 4 elements, from `base` on.
fn coefficients_of(place: Place, base: u32) -> Coefficients {
    let c0 = coefficients[base + place.channel];
    if CHANNEL_LOOKUP == SAME_CHANNEL {
        return Coefficients(c0.xxxx, c0.yyyy, c0.zzzz, c0.wwww);
    }
    let c1 = coefficients[base + channel_of(place, 1u)];
    let c2 = coefficients[base + channel_of(place, 2u)];
    let c3 = coefficients[base + channel_of(place, 3u)];
    return Coefficients(
        vec4(c0.x, c1.x, c2.x, c3.x),
        vec4(c0.y, c1.y, c2.y, c3.y),
        vec4(c0.z, c1.z, c2.z, c3.z),
        vec4(c0.w, c1.w, c2.w, c3.w),
    );
}

@compute @workgroup_size(WORKGROUP)
fn backward_apply(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = workgroup_number(id, grid) * params.chunk;
    let end = min(start + params.chunk, params.vectors);
    for (var place = place_of(start + lane); place.vector < end; place = next_place(place)) {
        let forward = coefficients_of(place, 0u);                // K, scale, shift, κ
        let backward = coefficients_of(place, params.channels);  // A, B, D
        let x = read_input(place.vector);
        var dz = read_grad_output(place.vector);
        if ACTIVATION != 0u {
            var z = fma(x - forward.x, forward.y, forward.z);
            if RESIDUAL {
                z += read_residual(place.vector);
            }
            dz = activation_gradient(z, dz);
            if RESIDUAL {
                write_grad_residual(place.vector, dz);
            }
        }
        write_grad_input(place.vector, fma(backward.x, dz, fma(backward.y, x - forward.w, backward.z)));
    }
}
