// Merges gradient sums, and turns them into parameter gradients and the coefficients of the input's gradient.
//
// Parallel: a workgroup takes `tile` neighbouring channels, and WORKGROUP/tile lanes share the partial sums of each.
//   backward_combine:  partials -> (Σdz, its remainder, Σdz·(x-κ), its remainder) per channel
//   backward_finalize: partials -> grad_bias = Σdz, grad_weight = invstd·(Σdz·(x-κ) - (mean-κ)·Σdz), and (A, B, D,
//                      E) with dx = A·(dz - E) + B·(x - κ) + D: A = γ·invstd, B = -A·invstd·dγ/m, D = -B·(mean-κ) and
//                      E = dβ/m (what E lacks is in D), so that gradients that are all alike cancel to 0
//   sum_gradients:     parameter gradients of each group -> their sums; one lane per channel
// m is the number of values per channel, or what the mask lets count of them. Coefficients are laid out as in
// finalize.wgsl; [statistics + s] is read and then replaced by (A, B, D, E).
// Barriers: only those of the workgroup sums; every invocation reaches them.

@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> coefficients: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> grad_affine: array<f32>; // weight, bias
@group(0) @binding(4) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> counts: array<u32>;            // of each piece of each group's mask
@group(0) @binding(6) var<storage, read_write> gradients: array<vec4<f32>>; // dγ, its remainder, dβ, its remainder
@group(0) @binding(7) var<storage, read> group_gradients: array<vec4<f32>>;

// x: Σdz, y: Σdz·(x-κ)
fn merge(lane: u32, statistic: u32) -> Pair {
    let per_slot = params.repetitions * params.span;
    var sum = Pair(vec4(0.0), vec4(0.0));
    for (var i = lane / params.tile; i < params.slots * per_slot; i += WORKGROUP / params.tile) {
        let part = partials[partial_index(i / per_slot, statistic, i % per_slot)];
        sum = add_pairs(sum, Pair(vec4(part.x, part.z, 0.0, 0.0), vec4(part.y, part.w, 0.0, 0.0)));
    }
    return sum_exactly(lane, params.tile, sum);
}

// How many positions of a group its mask lets count.
fn mask_count(group: u32) -> f32 {
    var count = 0u;
    var valid = true;
    for (var piece = 0u; piece < params.mask_pieces; piece++) {
        let part = counts[group * params.mask_pieces + piece];
        valid = valid && part != NOT_A_COUNT;
        count += part;
    }
    return select(not_a_number(), f32(count), valid);
}

@compute @workgroup_size(WORKGROUP)
fn backward_combine(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let statistic = workgroup_number(id, grid) * params.tile + lane % params.tile;
    let sum = merge(lane, min(statistic, params.statistics - 1u));
    if lane < params.tile && statistic < params.statistics {
        sums[statistic] = vec4(sum.high.x, sum.low.x, sum.high.y, sum.low.y);
    }
}

@compute @workgroup_size(WORKGROUP)
fn backward_finalize(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let statistic = workgroup_number(id, grid) * params.tile + lane % params.tile;
    let sum = merge(lane, min(statistic, params.statistics - 1u));
    if lane >= params.tile || statistic >= params.statistics {
        return;
    }
    var m = f32(params.count);
    if has(HAS_COUNTS) {
        m = mask_count(statistic / params.channels);
    }
    let sum_dz = Pair(sum.high.xxxx, sum.low.xxxx);
    let statistics = coefficients[params.statistics + statistic]; // mean - κ, its remainder, invstd, γ
    let g = gradient_of(sum_dz, Pair(sum.high.yyyy, sum.low.yyyy), statistics, m);
    if has(GROUP_GRADIENTS) {
        gradients[statistic] = vec4(g.weight, 0.0, sum_dz.high.x, sum_dz.low.x);
    } else if has(HAS_GRAD_AFFINE) {
        write_gradients(statistic, g.weight, g.bias);
    }
    coefficients[params.statistics + statistic] = g.coefficients;
}

@compute @workgroup_size(WORKGROUP)
fn sum_gradients(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channel = workgroup_number(id, grid) * params.tile + lane % params.tile;
    var sum = Pair(vec4(0.0), vec4(0.0)); // x: weight, y: bias
    for (var s = min(channel, params.channels - 1u) + lane / params.tile * params.channels; s < params.statistics;
         s += WORKGROUP / params.tile * params.channels) {
        let part = group_gradients[s];
        sum = add_pairs(sum, Pair(vec4(part.xz, 0.0, 0.0), vec4(part.yw, 0.0, 0.0)));
    }
    sum = sum_exactly(lane, params.tile, sum);
    if lane < params.tile && channel < params.channels {
        write_gradients(channel, sum.high.x + sum.low.x, sum.high.y + sum.low.y);
    }
}
