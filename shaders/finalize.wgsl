// Merges records of moments, and turns moments into what normalisation needs.
//
// Parallel: a workgroup takes `tile` neighbouring statistics, and WORKGROUP/tile lanes share the records of each.
//   combine:      partials -> one record (count, K, δ, M2) per statistic
//   finalize:     partials -> saved (K, δ, δ's remainder, invstd), running statistics, coefficients. With several groups it
//                 runs twice: once for each group's statistics, and once over all groups' records for the running ones.
//   coefficients: saved or running statistics -> coefficients; one lane per statistic, no merge
// A statistic is the channel of a group. Its coefficients: [s] = (K, scale, shift, κ), so that y = (x - K)·scale + shift;
// for the gradients also [statistics + s] = (mean - κ, its remainder, invstd, weight). κ is K on a coarse grid. Where x has the bits of K or
// fewer, x - K rounds the same way for every x of one magnitude, and Σdz·(x - K) gathers that; x - κ is exact.
// The merge is Chan's for many parts at once: with D = (K_b - K_0) + δ_b for each part b, δ = Σ n_b·D_b / Σ n_b and
// M2 = Σ M2_b + Σ n_b·(D_b - δ)². D and δ are exact pairs. At the end K + δ is split anew, K the mean rounded to f32 and
// δ what that lacks, so that x - K is small wherever x is near the mean: sums of it keep their digits.
// Barriers: only those of the workgroup sums; every invocation reaches them.

@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> affine: array<f32>;              // weight, bias
@group(0) @binding(3) var<storage, read_write> running: array<u32>;       // mean, variance, batches tracked
@group(0) @binding(4) var<storage, read_write> saved: array<f32>;         // K, δ, δ's remainder, invstd
@group(0) @binding(5) var<storage, read_write> coefficients: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> statistics: array<f32>;          // saved or running, to read only

struct Moments {
    count: f32,
    pivot: f32,
    delta: f32,
    delta_low: f32,
    m2: f32, // in params.square_unit, as in the records
}

// D of one record, 0 where it is empty.
fn deviation(record: vec4<f32>, pivot: f32) -> Pair {
    let difference = two_sum(vec4(record.y), vec4(-pivot));
    let d = add(difference, vec4(record.z));
    let empty = record.x <= 0.0;
    return Pair(select(d.high, vec4(0.0), empty), select(d.low, vec4(0.0), empty));
}

// The pivot of a record that is not empty serves for all: of the first that the first lane with any has found.
fn some_pivot(lane: u32, statistic: u32, records: u32, per_slot: u32) -> f32 {
    var found = vec4(0.0); // x: the pivot, y: whether there is one
    for (var i = lane / params.tile; i < records; i += WORKGROUP / params.tile) {
        let record = partials[partial_index(i / per_slot, statistic, i % per_slot)];
        if record.x > 0.0 {
            found = vec4(record.y, 1.0, 0.0, 0.0);
            break;
        }
    }
    scratch_high[lane] = found;
    workgroupBarrier(); // all lanes have written
    for (var s = WORKGROUP / 2u; s >= params.tile; s /= 2u) {
        if lane < s && scratch_high[lane].y == 0.0 {
            scratch_high[lane] = scratch_high[lane + s];
        }
        workgroupBarrier(); // this level is complete
    }
    let pivot = scratch_high[lane % params.tile].x;
    workgroupBarrier(); // read by all, before the scratch is written again
    return pivot;
}

fn merge(lane: u32, statistic: u32) -> Moments {
    let lane_row = lane / params.tile;
    let lane_rows = WORKGROUP / params.tile;
    let per_slot = params.repetitions * params.span;
    let records = params.slots * per_slot;

    let pivot = some_pivot(lane, statistic, records, per_slot);
    var sum = Pair(vec4(0.0), vec4(0.0));   // x: Σ n·D, y: Σ n
    for (var i = lane_row; i < records; i += lane_rows) {
        let record = partials[partial_index(i / per_slot, statistic, i % per_slot)];
        let weighted = multiply(deviation(record, pivot), vec4(record.x));
        sum = add_pairs(sum, Pair(vec4(weighted.high.x, record.x, 0.0, 0.0), vec4(weighted.low.x, 0.0, 0.0, 0.0)));
    }
    let total = sum_exactly(lane, params.tile, sum);
    let count = total.high.y + total.low.y;
    let delta = divide(Pair(total.high.xxxx, total.low.xxxx), vec4(max(count, 1.0))); // the same in all components

    var m2 = Pair(vec4(0.0), vec4(0.0));
    for (var i = lane_row; i < records; i += lane_rows) {
        let record = partials[partial_index(i / per_slot, statistic, i % per_slot)];
        let d = deviation(record, pivot);
        let apart = opaque(d.high - delta.high).x + (d.low.x - delta.low.x);
        m2 = add(m2, vec4(select(0.0, record.w + record.x * apart * (apart * params.square_unit), record.x > 0.0)));
    }
    let m2_total = sum_exactly(lane, params.tile, m2);
    let m2_sum = select(infinity(), m2_total.high.x + m2_total.low.x, is_finite(m2_total.high.x));
    let mean = two_sum(vec4(pivot), delta.high);
    let rest = two_sum(mean.low, delta.low);
    if is_nan(count) {
        return Moments(count, count, 0.0, 0.0, count); // the mask holds something else than 0 and 1
    }
    if !is_finite(mean.high.x) {
        return Moments(count, mean.high.x, 0.0, 0.0, m2_sum);
    }
    return Moments(count, mean.high.x, rest.high.x, rest.low.x, m2_sum);
}

fn affine_of(statistic: u32) -> vec2<f32> {
    if has(HAS_AFFINE) {
        let channel = statistic % params.channels;
        return vec2(affine[channel], affine[params.channels + channel]);
    }
    return vec2(1.0, 0.0);
}

fn write_coefficients(statistic: u32, pivot: f32, delta: f32, low: f32, invstd: f32) {
    let weight_bias = affine_of(statistic);
    let scale = weight_bias.x * invstd;
    let shift = (weight_bias.y - delta * scale) - low * scale;
    let kappa = coarse(vec4(pivot), vec4(0.015625 / invstd)).x; // in steps of some 2⁻⁸ standard deviations
    coefficients[statistic] = vec4(pivot, scale, shift, kappa);
    if has(FOR_BACKWARD) {
        let moved = two_sum(vec4(pivot), vec4(-kappa));
        let rest = add_pairs(moved, Pair(vec4(delta), vec4(low)));
        coefficients[params.statistics + statistic] = vec4(rest.high.x, rest.low.x, invstd, weight_bias.x);
    }
}

fn statistic_of_lane(number: u32, lane: u32) -> u32 {
    return number * params.tile + lane % params.tile;
}

@compute @workgroup_size(WORKGROUP)
fn combine(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let statistic = statistic_of_lane(workgroup_number(id, grid), lane);
    let m = merge(lane, min(statistic, params.statistics - 1u));
    if lane < params.tile && statistic < params.statistics {
        coefficients[statistic] = vec4(m.count, m.pivot, m.delta, m.m2 / params.square_unit);
    }
}

@compute @workgroup_size(WORKGROUP)
fn finalize(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let statistic = statistic_of_lane(workgroup_number(id, grid), lane);
    let m = merge(lane, min(statistic, params.statistics - 1u));
    if lane >= params.tile || statistic >= params.statistics {
        return;
    }
    var variance = m.m2 / max(m.count, 1.0) / params.square_unit;
    if !is_finite(m.pivot) {
        variance = not_a_number();
    }
    // Where a mask hides everything, mean and variance are 0, and the output is the bias.
    let invstd = select(inverse_std(variance), 0.0, m.count == 0.0);
    if has(HAS_SAVED) {
        saved[statistic] = m.pivot;
        saved[params.statistics + statistic] = m.delta;
        saved[2u * params.statistics + statistic] = m.delta_low;
        saved[3u * params.statistics + statistic] = invstd;
    }
    if has(HAS_RUNNING) {
        let batches = running[2u * params.channels + statistic] + 1u;
        var weight_new = params.weight_new;
        var weight_old = params.weight_old;
        if has(CUMULATIVE) {
            weight_new = 1.0 / f32(batches);
            weight_old = 1.0 - weight_new;
        }
        let old_mean = bitcast<f32>(running[statistic]);
        let old_variance = bitcast<f32>(running[params.channels + statistic]);
        let bessel = select(1.0, m.count / (m.count - 1.0), has(UNBIASED) && m.count > 1.0);
        let mean = weight_old * old_mean + weight_new * (m.pivot + m.delta);
        let stored = weight_old * old_variance + weight_new * (variance * bessel);
        running[statistic] = bitcast<u32>(mean);
        running[params.channels + statistic] = bitcast<u32>(stored);
        running[2u * params.channels + statistic] = batches;
    }
    if has(HAS_COEFFICIENTS) {
        write_coefficients(statistic, m.pivot, m.delta, m.delta_low, invstd);
    }
}

@compute @workgroup_size(WORKGROUP)
fn coefficients_only(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let statistic = workgroup_number(id, grid) * WORKGROUP + lane;
    if statistic >= params.statistics {
        return;
    }
    if has(FROM_RUNNING) {
        let channel = statistic % params.channels;
        let invstd = inverse_std(statistics[params.channels + channel]);
        write_coefficients(statistic, statistics[channel], 0.0, 0.0, invstd);
    } else {
        write_coefficients(statistic, statistics[statistic], statistics[params.statistics + statistic],
            statistics[2u * params.statistics + statistic], statistics[3u * params.statistics + statistic]);
    }
}
