// Moments: x -> one record (count, K, δ, M2) per piece and channel (planar) or per piece and column.
//
// Parallel: one workgroup per piece of a channel, or per piece of a tile of columns. Reads x once, and the first values
// of each piece twice; writes one record a piece. A piece takes as pivot K a mean of its first values that one outlier
// cannot move, sums x - K and (x - K)² in runs of at most 32 additions, and folds the runs into exact pairs, so that
// nothing cancels: mean = K + δ with δ = Σ(x-K)/n, and M2 = Σ(x-K)² - δ·Σ(x-K).
// Barriers: only those of the workgroup sums; every invocation reaches them, lanes without work add zeros.

@group(0) @binding(1) var<storage, read> input: array<Word>;
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;

fn read_input(i: u32) -> vec4<f32> {
    if WHOLE_VECTORS {
        return vec4<f32>(input[i]);
    }
    let e = 4u * i;
    return vec4(first(input[e]), first(input[e + 1u]), first(input[e + 2u]), first(input[e + 3u]));
}

fn record(count: f32, pivot: f32, s1: f32, s1_low: f32, s2: f32, s2_low: f32) -> vec4<f32> {
    let delta = divide(Pair(vec4(s1), vec4(s1_low)), vec4(max(count, 1.0))).high.x;
    let m2 = max(0.0, (s2 - s1 * delta) + s2_low);
    return vec4(count, pivot, delta, select(infinity(), m2, is_finite(s2)));
}

@compute @workgroup_size(WORKGROUP)
fn reduce_planar(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let channel = work % params.channels;
    let piece = work / params.channels;
    let start = piece * params.piece_length;
    let end = min(start + params.piece_length, params.rows * params.row_vectors);

    // The pivot: each of the 4 positions in a vector has a mean of its own, and the two in the middle are averaged.
    let row_start = row_begin(start / params.row_vectors, channel);
    let first_element = clamp(4u * (row_start / 4u + start % params.row_vectors), row_start, row_start + params.inner - 1u);
    let origin = component(read_input(first_element / 4u), first_element % 4u);
    var sums = vec4(0.0);
    var counts = vec4(0.0);
    for (var t = start + lane; t < min(end, start + PIVOT_VECTORS); t += WORKGROUP) {
        let begin = row_begin(t / params.row_vectors, channel);
        let vector = begin / 4u + t % params.row_vectors;
        sums += keep_row(read_input(vector) - origin, vector, begin);
        counts += keep_row(vec4(1.0), vector, begin);
    }
    let sample = sum_both(lane, 1u, Pair(sums, counts));
    let means = sample.high / max(sample.low, vec4(1.0));
    let lowest = min(min(means.x, means.y), min(means.z, means.w));
    let highest = max(max(means.x, means.y), max(means.z, means.w));
    let middle = 0.5 * (across(means) - lowest - highest);
    let mean = across(sample.high) / max(across(sample.low), 1.0);
    let pivot = origin + select(mean, middle, all(sample.low >= vec4(1.0)));

    // The sums: x Σ(x-K), y Σ(x-K)², z the count. (row, column) is where the lane's next vector lies.
    var t = start + lane;
    var row = t / params.row_vectors;
    var column = t % params.row_vectors;
    var sum = Pair(vec4(0.0), vec4(0.0));
    while t < end {
        var s1 = vec4(0.0);
        var s2 = vec4(0.0);
        var n = vec4(0.0);
        let run_end = min(end, t + RUN * WORKGROUP);
        for (; t < run_end; t += WORKGROUP) {
            let begin = row_begin(row, channel);
            let vector = begin / 4u + column;
            let d = keep_row(read_input(vector) - pivot, vector, begin);
            s1 += d;
            s2 += d * d;
            n += keep_row(vec4(1.0), vector, begin);
            row += params.step_rows;
            column += params.step_vectors;
            if column >= params.row_vectors {
                column -= params.row_vectors;
                row += 1u;
            }
        }
        sum = add(sum, vec4(across(s1), across(s2), across(n), 0.0));
    }
    let total = sum_exactly(lane, 1u, sum);
    if lane == 0u && number < params.workgroups {
        partials[piece * params.width + channel] =
            record(total.high.z, pivot, total.high.x, total.low.x, total.high.y, total.low.y);
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
    let piece = work % params.pieces;
    let column = (work / params.pieces) * params.tile + lane % params.tile; // of vectors
    let readable = min(column, params.row_vectors - 1u);
    let lane_row = lane / params.tile;
    let lane_rows = WORKGROUP / params.tile;
    let start = piece * params.piece_length;
    let end = min(start + params.piece_length, params.rows);
    let whole_rows = params.elements / params.width; // only the matrix's last row can be cut short

    // The pivot: the first rows go to three classes in turn, and the middle one of the three means is taken.
    let origin = read_input(start * params.row_vectors + readable);
    var a = vec4(0.0);
    var b = vec4(0.0);
    var c = vec4(0.0);
    var counts = vec4(0.0);
    let sample_end = min(min(end, whole_rows), start + max(4u * lane_rows, PIVOT_ROWS));
    for (var r = start + lane_row; r < sample_end; r += lane_rows) {
        let d = read_input(r * params.row_vectors + readable) - origin;
        let turn = (r - start) % 3u;
        a += select(vec4(0.0), d, turn == 0u);
        b += select(vec4(0.0), d, turn == 1u);
        c += select(vec4(0.0), d, turn == 2u);
        counts += select(vec4(0.0), vec4(1.0), vec4(turn) == vec4(0u, 1u, 2u, 3u));
    }
    let ab = sum_both(lane, params.tile, Pair(a, b));
    let cn = sum_both(lane, params.tile, Pair(c, counts));
    let n = cn.low;
    let mean_a = ab.high / max(n.x, 1.0);
    let mean_b = ab.low / max(n.y, 1.0);
    let mean_c = cn.high / max(n.z, 1.0);
    let middle = max(min(mean_a, mean_b), min(max(mean_a, mean_b), mean_c));
    let mean = (ab.high + ab.low + cn.high) / max(across(n), 1.0);
    let pivot = origin + select(mean, middle, all(n.xyz >= vec3(1.0)));

    var sum = Pair(vec4(0.0), vec4(0.0));
    var squares = Pair(vec4(0.0), vec4(0.0));
    var r = start + lane_row;
    while r < end {
        var s1 = vec4(0.0);
        var s2 = vec4(0.0);
        let run_end = min(end, r + RUN * lane_rows);
        for (; r < run_end; r += lane_rows) {
            let vector = r * params.row_vectors + readable;
            let d = keep_tensor(read_input(vector) - pivot, vector);
            s1 += d;
            s2 += d * d;
        }
        sum = add(sum, s1);
        squares = add(squares, s2);
    }
    let s1 = sum_exactly(lane, params.tile, sum);
    let s2 = sum_exactly(lane, params.tile, squares);
    if lane < params.tile && column < params.row_vectors && number < params.workgroups {
        let count = vec4(f32(end - start - 1u)) + keep_tensor(vec4(1.0), (end - 1u) * params.row_vectors + column);
        let place = piece * params.width + 4u * column;
        partials[place] = record(count.x, pivot.x, s1.high.x, s1.low.x, s2.high.x, s2.low.x);
        partials[place + 1u] = record(count.y, pivot.y, s1.high.y, s1.low.y, s2.high.y, s2.low.y);
        partials[place + 2u] = record(count.z, pivot.z, s1.high.z, s1.low.z, s2.high.z, s2.low.z);
        partials[place + 3u] = record(count.w, pivot.w, s1.high.w, s1.low.w, s2.high.w, s2.low.w);
    }
}
