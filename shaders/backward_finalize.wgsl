// Merges gradient sums, and turns them into parameter gradients and the coefficients of the input's gradient.
//
// Parallel: a workgroup takes `tile` neighbouring channels, and WORKGROUP/tile lanes share the partial sums of each.
//   backward_combine:  partials -> (Σdz, its remainder, Σdz·(x-κ), its remainder) per channel
//   backward_finalize: partials -> grad_bias = Σdz, grad_weight = invstd·(Σdz·(x-κ) - (mean-κ)·Σdz), and (A, B, D)
//                      with dx = A·dz + B·(x - κ) + D: A = γ·invstd, B = -A·invstd·dγ/m, D = -A·dβ/m - B·(mean-κ)
// Coefficients are laid out as in finalize.wgsl; [channels + c] is read and then replaced by (A, B, D, 0).
// Barriers: only those of the workgroup sums; every invocation reaches them.

@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> coefficients: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> grad_affine: array<f32>; // weight, bias
@group(0) @binding(4) var<storage, read_write> sums: array<vec4<f32>>;

// x: Σdz, y: Σdz·(x-κ)
fn merge(lane: u32, channel: u32) -> Pair {
    let per_slot = params.repetitions * params.span;
    var sum = Pair(vec4(0.0), vec4(0.0));
    for (var i = lane / params.tile; i < params.slots * per_slot; i += WORKGROUP / params.tile) {
        let part = partials[partial_index(i / per_slot, channel, i % per_slot)];
        sum = add_pairs(sum, Pair(vec4(part.x, part.z, 0.0, 0.0), vec4(part.y, part.w, 0.0, 0.0)));
    }
    return sum_exactly(lane, params.tile, sum);
}

@compute @workgroup_size(WORKGROUP)
fn backward_combine(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channel = workgroup_number(id, grid) * params.tile + lane % params.tile;
    let sum = merge(lane, min(channel, params.channels - 1u));
    if lane < params.tile && channel < params.channels {
        sums[channel] = vec4(sum.high.x, sum.low.x, sum.high.y, sum.low.y);
    }
}

@compute @workgroup_size(WORKGROUP)
fn backward_finalize(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channel = workgroup_number(id, grid) * params.tile + lane % params.tile;
    let sum = merge(lane, min(channel, params.channels - 1u));
    if lane >= params.tile || channel >= params.channels {
        return;
    }
    let statistics = coefficients[params.channels + channel]; // mean - κ, its remainder, invstd, γ
    let sum_dz = Pair(sum.high.xxxx, sum.low.xxxx);
    let sum_dz_x = Pair(sum.high.yyyy, sum.low.yyyy);
    let shifted = multiply(sum_dz, vec4(-statistics.x));
    let centred = add(add_pairs(sum_dz_x, shifted), vec4(-statistics.y * sum_dz.high.x));
    let invstd = statistics.z;
    // Where invstd is 0 by definition, x̂ is too, whatever the sums overflowed to.
    let grad_weight = select(invstd * (centred.high.x + centred.low.x), 0.0, invstd == 0.0);
    let grad_bias = sum_dz.high.x + sum_dz.low.x;
    if has(HAS_GRAD_AFFINE) {
        grad_affine[channel] = grad_weight;
        grad_affine[params.channels + channel] = grad_bias;
    }
    let a = statistics.w * invstd;
    if has(FROZEN) {
        coefficients[params.channels + channel] = vec4(a, 0.0, 0.0, 0.0);
        return;
    }
    let m = f32(params.count);
    let b = -a * invstd * (grad_weight / m);
    let d = -a * (grad_bias / m) - b * (statistics.x + statistics.y);
    coefficients[params.channels + channel] = vec4(a, b, d, 0.0);
}
