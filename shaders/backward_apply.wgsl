// The input's gradient: dx = A·(dz - E) + B·(x - κ) + D with dz = dy·act'(z); with a residual and an activation also the
// residual's, dz itself.
//
// Parallel: flat. A workgroup owns a chunk; an invocation of it owns every WORKGROUP-th vector of 4 elements, and looks up
// the channel of each element; no two invocations write one word. Reads x, dy (and the residual) once, writes dx (and
// dz) once. In place, dy is what dx is about to replace. Values that a mask left out of the statistics do not feel them:
// for those dx = A·dz.

@group(0) @binding(7) var<storage, read> coefficients: array<vec4<f32>>;

struct Coefficients {
    x: vec4<f32>,
    y: vec4<f32>,
    z: vec4<f32>,
    w: vec4<f32>,
}

// Those of a vector's 4 elements, from `base` on.
fn coefficients_of(place: Place, base: u32) -> Coefficients {
    let c0 = coefficients[base + statistic_of(place, 0u)];
    if CHANNEL_LOOKUP == SAME_CHANNEL {
        return Coefficients(c0.xxxx, c0.yyyy, c0.zzzz, c0.wwww);
    }
    let c1 = coefficients[base + statistic_of(place, 1u)];
    let c2 = coefficients[base + statistic_of(place, 2u)];
    let c3 = coefficients[base + statistic_of(place, 3u)];
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
        let forward = coefficients_of(place, 0u);                 // K, scale, shift, κ
        let backward = coefficients_of(place, params.statistics); // A, B, D, E
        let x = read_input(place.vector);
        var dz = vec4(0.0);
        if IN_PLACE {
            dz = read_output(place.vector);
        } else {
            dz = read_grad_output(place.vector);
        }
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
        var centred = dz - backward.w;
        var through_statistics = fma(backward.y, x - forward.w, backward.z);
        if MASK {
            let counts = flat_weights(place.vector) != vec4(0.0);
            centred = select(dz, centred, counts);
            through_statistics = select(vec4(0.0), through_statistics, counts);
        }
        write_output(place.vector, fma(backward.x, centred, through_statistics));
    }
}
