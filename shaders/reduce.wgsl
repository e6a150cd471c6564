// Moments: x -> one record (count, K, δ, M2) per piece and channel (planar) or per piece and column.
//
// Parallel: one workgroup per piece of a channel, or per piece of a tile of columns. Reads x once, and the first values
// of each piece twice; writes one record a piece: δ = Σ(x-K)/n and M2 = Σ(x-K)² - δ·Σ(x-K).
// Barriers: only those of the workgroup sums; every invocation reaches them, lanes without work add zeros.
//   count_mask: mask -> how many positions of each piece of a group's mask count; one workgroup per piece

@group(0) @binding(7) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> counts: array<u32>;

fn record(count: f32, pivot: f32, s1: f32, s1_low: f32, s2: f32, s2_low: f32) -> vec4<f32> {
    let delta = divide(Pair(vec4(s1), vec4(s1_low)), vec4(max(count, 1.0))).high.x;
    let m2 = max(0.0, (s2 - s1 * (delta * params.square_unit)) + s2_low); // in this unit
    return vec4(count, pivot, delta, select(infinity(), m2, is_finite(s2)));
}

fn write_records(place: u32, pivot: vec4<f32>, s: StripSums) {
    partials[place] = record(s.count.x, pivot.x, s.first.high.x, s.first.low.x, s.second.high.x, s.second.low.x);
    partials[place + 1u] = record(s.count.y, pivot.y, s.first.high.y, s.first.low.y, s.second.high.y, s.second.low.y);
    partials[place + 2u] = record(s.count.z, pivot.z, s.first.high.z, s.first.low.z, s.second.high.z, s.second.low.z);
    partials[place + 3u] = record(s.count.w, pivot.w, s.first.high.w, s.first.low.w, s.second.high.w, s.second.low.w);
}

@compute @workgroup_size(WORKGROUP)
fn reduce_planar(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let statistic = work % params.statistics;
    let piece = work / params.statistics;
    let span = span_of(statistic, piece * params.piece_length);
    let pivot = span_pivot(lane, span);
    let total = span_sums(lane, span, pivot);
    if lane == 0u && number < params.workgroups {
        let count = select(values_of(span), total.high.z, MASK);
        partials[piece * params.slot_stride + statistic] =
            record(count, pivot, total.high.x, total.low.x, total.high.y, total.low.y);
    }
}

@compute @workgroup_size(WORKGROUP)
fn reduce_columns(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let block = block_of(work, lane);
    let at = strip_of(lane, block.group, block.column, block.piece);
    let pivot = strip_pivot(lane, at);
    let writes = lane < params.tile && block.column < params.row_vectors && number < params.workgroups;
    let place = block.piece * params.slot_stride + block.group * params.width + 4u * block.column;
    if ACROSS == 1u {
        let s = strip_sums(lane, at, pivot);
        if writes {
            write_records(place, pivot, s);
        }
        return;
    }
    let pivots = array(
        pivot,
        strip_pivot(lane, strip_of(lane, block.group, block.column + WORKGROUP, block.piece)),
    );
    let s = strips_sums(at, pivots);
    if writes {
        write_records(place, pivots[0], s[0]);
        write_records(place + 4u * WORKGROUP, pivots[1], s[1]);
    }
}

@compute @workgroup_size(WORKGROUP)
fn count_mask(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let first = (work / params.mask_pieces) * params.count;
    let start = (work % params.mask_pieces) * params.piece_length;
    let end = min(start + params.piece_length, params.count);
    var count = vec4(0.0); // x: 1, y: neither 0 nor 1
    for (var i = start + lane; i < end; i += WORKGROUP) {
        let weight = mask_weight(first + i);
        count += select(vec4(weight, 0.0, 0.0, 0.0), vec4(0.0, 1.0, 0.0, 0.0), is_nan(weight));
    }
    let total = sum_both(lane, 1u, Pair(count, vec4(0.0))).high; // exact: a piece is shorter than 2²⁴
    if lane == 0u && number < params.workgroups {
        counts[work] = select(u32(total.x), NOT_A_COUNT, total.y > 0.0);
    }
}
