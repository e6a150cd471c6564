// Moments: x -> one record (count, K, δ, M2) per piece and channel (planar) or per piece and column.
//
// Parallel: one workgroup per piece of a channel, or per piece of a tile of columns. Reads x once, and the first values
// of each piece twice; writes one record a piece. A piece takes as pivot K a mean of its first values that one outlier
// cannot move, sums x - K and (x - K)² in runs of at most 16 additions, and folds the runs into exact pairs, so that
// nothing cancels: mean = K + δ with δ = Σ(x-K)/n, and M2 = Σ(x-K)² - δ·Σ(x-K).
// With a mask only the values count that it lets count, and the pivot comes from those.
// Barriers: only those of the workgroup sums; every invocation reaches them, lanes without work add zeros.
//   count_mask: mask -> how many positions of each piece of a group's mask count; one workgroup per piece

@group(0) @binding(7) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> counts: array<u32>;

fn record(count: f32, pivot: f32, s1: f32, s1_low: f32, s2: f32, s2_low: f32) -> vec4<f32> {
    let delta = divide(Pair(vec4(s1), vec4(s1_low)), vec4(max(count, 1.0))).high.x;
    let m2 = max(0.0, (s2 - s1 * (delta * SQUARE_UNIT)) + s2_low); // in this unit
    return vec4(count, pivot, delta, select(infinity(), m2, is_finite(s2)));
}

// Σ(x-K), Σ(x-K)² and the number of values, for each of the 4 positions in a vector.
struct Sums {
    first: vec4<f32>,
    second: vec4<f32>,
    count: vec4<f32>,
}

fn deviations(first: u32, first_mask: u32, cell: Cell, pivot: f32) -> Sums {
    let vector = cell_vector(first, cell);
    let begin = row_begin(first, cell.row);
    if !MASK {
        let d = keep_row(read_input(vector) - pivot, vector, begin);
        return Sums(d, d * (d * SQUARE_UNIT), vec4(0.0)); // how many there are is known
    }
    let weights = row_weights(vector, begin, first_mask + cell.row * params.inner);
    let d = select(vec4(0.0), read_input(vector) - pivot, weights != vec4(0.0));
    return Sums(d, d * (d * SQUARE_UNIT), weights);
}

fn both(a: Sums, b: Sums) -> Sums {
    return Sums(a.first + b.first, a.second + b.second, a.count + b.count);
}

fn folded(s: Sums) -> vec4<f32> {
    return vec4(across(s.first), across(s.second), across(s.count), 0.0);
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
    let first = first_row(statistic);
    let first_mask = (statistic / params.channels) * params.count;
    let start = piece * params.piece_length;
    let end = min(start + params.piece_length, params.rows * params.row_vectors);

    // The pivot: each of the 4 positions in a vector has a mean of its own, and the two in the middle are averaged. A
    // mask may hide the first value; then sums start from 0, and each lane looks for its share of values that count.
    let row_start = row_begin(first, start / params.row_vectors);
    let first_element = clamp(4u * (row_start / 4u + start % params.row_vectors), row_start, row_start + params.inner - 1u);
    let origin = select(component(read_input(first_element / 4u), first_element % 4u), 0.0, MASK);
    var sums = vec4(0.0);
    var sampled = vec4(0.0);
    var found = 0u;
    let sample_end = select(min(end, start + PIVOT_VECTORS), end, MASK);
    for (var t = start + lane; t < sample_end && found < max(1u, PIVOT_VECTORS / WORKGROUP); t += WORKGROUP) {
        let row = t / params.row_vectors;
        let begin = row_begin(first, row);
        let vector = begin / 4u + t % params.row_vectors;
        let weights = row_weights(vector, begin, first_mask + row * params.inner);
        sums += select(vec4(0.0), read_input(vector) - origin, weights != vec4(0.0));
        sampled += weights;
        found += select(0u, 1u, any(weights != vec4(0.0)));
    }
    let sample = sum_both(lane, 1u, Pair(sums, sampled));
    let means = sample.high / max(sample.low, vec4(1.0));
    let one = max(min(means.x, means.y), min(means.z, means.w));
    let other = min(max(means.x, means.y), max(means.z, means.w)); // these two are in the middle
    let mean = across(sample.high) / max(across(sample.low), 1.0);
    let all_there = all(sample.low >= vec4(1.0));
    let center = origin + select(mean, 0.5 * (one + other), all_there);
    let pivot = coarse(vec4(center), vec4(select(0.0, abs(one - other), all_there))).x;

    // Four vectors at a time, so that their loads are in flight together; then the last ones.
    var t = start + lane;
    var cell = cell_of(t);
    var sum = Pair(vec4(0.0), vec4(0.0));
    for (; t + 3u * WORKGROUP < end; t += 4u * WORKGROUP) {
        let b = next_cell(cell);
        let c = next_cell(b);
        let d = next_cell(c);
        let ab = both(deviations(first, first_mask, cell, pivot), deviations(first, first_mask, b, pivot));
        let cd = both(deviations(first, first_mask, c, pivot), deviations(first, first_mask, d, pivot));
        sum = add(sum, folded(both(ab, cd)));
        cell = next_cell(d);
    }
    for (; t < end; t += WORKGROUP) {
        sum = add(sum, folded(deviations(first, first_mask, cell, pivot)));
        cell = next_cell(cell);
    }
    let total = sum_exactly(lane, 1u, sum);
    if lane == 0u && number < params.workgroups {
        var count = f32(elements_before(first, end) - elements_before(first, start));
        if MASK {
            count = total.high.z;
        }
        partials[piece * params.slot_stride + statistic] =
            record(count, pivot, total.high.x, total.low.x, total.high.y, total.low.y);
    }
}

// Where a lane is in its columns.
struct Column {
    local: u32,        // the vector, from the group's first
    first: u32,        // the group's first
    masks: vec4<u32>,  // the 4 columns in the mask
}

// Of the vector `rows` steps further on.
fn column_deviations(at: Column, rows: u32, pivot: vec4<f32>, step: u32, mask_step: u32) -> Sums {
    let local = at.local + rows * step;
    if !MASK {
        let d = keep_group(read_input(at.first + local) - pivot, local);
        return Sums(d, d * (d * SQUARE_UNIT), vec4(0.0)); // how many there are is known
    }
    let weights = group_weights(local, at.masks + vec4(rows * mask_step));
    let d = select(vec4(0.0), read_input(at.first + local) - pivot, weights != vec4(0.0));
    return Sums(d, d * (d * SQUARE_UNIT), weights);
}

@compute @workgroup_size(WORKGROUP)
fn reduce_columns(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let piece = work % params.pieces;
    let groups = params.statistics / params.channels;
    let group = (work / params.pieces) % groups;
    let column = (work / params.pieces / groups) * params.tile + lane % params.tile; // of vectors
    let readable = min(column, params.row_vectors - 1u);
    let first = group * (params.group_elements / 4u);
    let lane_row = lane / params.tile;
    let lane_rows = WORKGROUP / params.tile;
    let start = piece * params.piece_length;
    let end = min(start + params.piece_length, params.rows);

    // Where row 0 of each of the 4 columns lies in the mask, and how far apart rows are there.
    let columns = numbers(readable);
    let masks = vec4(group * params.count) + (columns / params.outer_elements) * params.inner + columns % params.inner;
    let mask_stride = params.repetitions * params.inner;

    // The pivot: the first rows go to three classes in turn, and the middle one of the three means is taken. A mask may
    // hide values; then sums start from 0, and each lane goes on until it has its share for each column.
    let origin = select(read_input(first + start * params.row_vectors + readable), vec4(0.0), vec4(MASK));
    let share = max(4u, PIVOT_ROWS / lane_rows);
    let sample_end = select(min(end, start + share * lane_rows), end, MASK);
    var a = Pair(vec4(0.0), vec4(0.0)); // sum and number
    var b = a;
    var c = a;
    var found = vec4(0.0);
    for (var r = start + lane_row; r < sample_end && any(found < vec4(f32(share))); r += lane_rows) {
        let local = r * params.row_vectors + readable;
        let weights = group_weights(local, masks + vec4(r * mask_stride));
        let d = select(vec4(0.0), read_input(first + local) - origin, weights != vec4(0.0));
        let turn = (r - start) % 3u;
        if turn == 0u {
            a = Pair(a.high + d, a.low + weights);
        } else if turn == 1u {
            b = Pair(b.high + d, b.low + weights);
        } else {
            c = Pair(c.high + d, c.low + weights);
        }
        found += weights;
    }
    a = sum_both(lane, params.tile, a);
    b = sum_both(lane, params.tile, b);
    c = sum_both(lane, params.tile, c);
    let mean_a = a.high / max(a.low, vec4(1.0));
    let mean_b = b.high / max(b.low, vec4(1.0));
    let mean_c = c.high / max(c.low, vec4(1.0));
    let least = min(min(mean_a, mean_b), mean_c);
    let most = max(max(mean_a, mean_b), mean_c);
    let middle = max(min(mean_a, mean_b), min(max(mean_a, mean_b), mean_c));
    let mean = (a.high + b.high + c.high) / max(a.low + b.low + c.low, vec4(1.0));
    let all_there = min(a.low, min(b.low, c.low)) >= vec4(1.0);
    let spread = select(vec4(0.0), min(middle - least, most - middle), all_there);
    let pivot = coarse(origin + select(mean, middle, all_there), spread);

    var sum = Pair(vec4(0.0), vec4(0.0));
    var squares = Pair(vec4(0.0), vec4(0.0));
    var count = vec4(0.0);
    var r = start + lane_row;
    var walk = Column(r * params.row_vectors + readable, first, masks + vec4(r * mask_stride));
    let step = lane_rows * params.row_vectors;
    let mask_step = lane_rows * mask_stride;
    for (; r + 3u * lane_rows < end; r += 4u * lane_rows) {
        let ab = both(column_deviations(walk, 0u, pivot, step, mask_step), column_deviations(walk, 1u, pivot, step, mask_step));
        let cd = both(column_deviations(walk, 2u, pivot, step, mask_step), column_deviations(walk, 3u, pivot, step, mask_step));
        let s = both(ab, cd);
        sum = add(sum, s.first);
        squares = add(squares, s.second);
        count += s.count;
        walk.local += 4u * step;
        walk.masks += vec4(4u * mask_step);
    }
    for (; r < end; r += lane_rows) {
        let s = column_deviations(walk, 0u, pivot, step, mask_step);
        sum = add(sum, s.first);
        squares = add(squares, s.second);
        count += s.count;
        walk.local += step;
        walk.masks += vec4(mask_step);
    }
    let s1 = sum_exactly(lane, params.tile, sum);
    let s2 = sum_exactly(lane, params.tile, squares);
    // Without a mask only the last row can be cut short.
    var n = vec4(f32(end - start - 1u)) + keep_group(vec4(1.0), (end - 1u) * params.row_vectors + readable);
    if MASK {
        n = sum_both(lane, params.tile, Pair(count, vec4(0.0))).high;
    }
    if lane < params.tile && column < params.row_vectors && number < params.workgroups {
        let place = piece * params.slot_stride + group * params.width + 4u * column;
        partials[place] = record(n.x, pivot.x, s1.high.x, s1.low.x, s2.high.x, s2.low.x);
        partials[place + 1u] = record(n.y, pivot.y, s1.high.y, s1.low.y, s2.high.y, s2.low.y);
        partials[place + 2u] = record(n.z, pivot.z, s1.high.z, s1.low.z, s2.high.z, s2.low.z);
        partials[place + 3u] = record(n.w, pivot.w, s1.high.w, s1.low.w, s2.high.w, s2.low.w);
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
