// Merges records of moments, and turns moments into what normalisation needs.
//
// Parallel: a workgroup takes `tile` neighbouring statistics, and WORKGROUP/tile lanes share the records of each.
//   combine:      partials -> one record (count, K, δ, M2) per statistic
//   finalize:     partials -> saved (K, δ, δ's remainder, invstd), running statistics, coefficients. With several groups it
//                 runs twice: once for each group's statistics, and once over all groups' records for the running ones.
//   coefficients: saved or running statistics -> coefficients; one lane per statistic, no merge
// A statistic is the channel of a group; its coefficients are [s], and for the gradients also [statistics + s].
// The merge is Chan's for many parts at once: with D = (K_b - K_0) + δ_b for each part b, δ = Σ n_b·D_b / Σ n_b and
// M2 = Σ M2_b + Σ n_b·(D_b - δ)². D and δ are exact pairs.
// Barriers: only those of the workgroup sums; every invocation reaches them.

@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> affine: array<f32>;              // weight, bias
@group(0) @binding(3) var<storage, read_write> running: array<u32>;       // mean, variance, batches tracked
@group(0) @binding(4) var<storage, read_write> saved: array<f32>;         // K, δ, δ's remainder, invstd
@group(0) @binding(5) var<storage, read_write> coefficients: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> statistics: array<f32>;          // saved or running, to read only

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
    return split_anew(count, pivot, delta, m2_sum);
}

fn write_coefficients(statistic: u32, pivot: f32, delta: f32, low: f32, invstd: f32) {
    let weight_bias = affine_of(statistic);
    let c = coefficients_from(weight_bias, pivot, delta, low, invstd);
    coefficients[statistic] = c;
    if has(FOR_BACKWARD) {
        coefficients[params.statistics + statistic] =
            gradient_statistics(weight_bias.x, pivot, delta, low, invstd, c.w);
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
        coefficients[statistic] = vec4(m.count, m.pivot, m.delta, m.m2 * (params.result_unit / params.square_unit));
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
    let invstd = invstd_of(m);
    write_saved(statistic, m, invstd);
    update_running(statistic, m);
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
