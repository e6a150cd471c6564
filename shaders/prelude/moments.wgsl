// Sums of a span of one channel, or of a tile of columns, about a pivot that they choose themselves. For kernels that
// take moments of x.
//
// A span takes as pivot K a mean of its first values that one outlier cannot move, and sums x - K and (x - K)² in runs of
// 16 additions at most, which it folds into exact pairs, so that nothing cancels: mean = K + δ with δ = Σ(x-K)/n. With a
// mask only the values count that it lets count, and the pivot comes from those.
// Barriers: those of the workgroup sums. Every invocation must call these; lanes without work add zeros.

// Σ(x-K), Σ(x-K)² and the number of values, for each of the 4 positions in a vector.
struct Sums {
    first: vec4<f32>,
    second: vec4<f32>,
    count: vec4<f32>,
}

// Squares are summed in a unit of params.square_unit.
fn deviations(walk: RowWalk, cell: Cell, first_mask: u32, pivot: f32, unit: f32) -> Sums {
    let vector = cell_vector(cell);
    if !MASK {
        let d = keep_row(read_input(vector) - pivot, vector, cell.begin, walk.inner);
        return Sums(d, d * (d * unit), vec4(0.0)); // how many there are is known
    }
    let weights = row_weights(vector, cell.begin, walk.inner, first_mask + cell.row * walk.inner);
    let d = select(vec4(0.0), read_input(vector) - pivot, weights != vec4(0.0));
    return Sums(d, d * (d * unit), weights);
}

fn both(a: Sums, b: Sums) -> Sums {
    return Sums(a.first + b.first, a.second + b.second, a.count + b.count);
}

fn folded(s: Sums) -> vec4<f32> {
    return vec4(across(s.first), across(s.second), across(s.count), 0.0);
}

// A span of a channel's vectors, from `start` up to `end`.
struct Span {
    first: u32,       // the channel's first element
    first_mask: u32,  // and its place in the mask
    start: u32,
    end: u32,
}

fn span_of(statistic: u32, start: u32) -> Span {
    let end = min(start + params.piece_length, params.rows * params.row_vectors);
    return Span(first_row(statistic), (statistic / params.channels) * params.count, start, end);
}

// How many values a span holds.
fn values_of(span: Span) -> f32 {
    let walk = walk_of_rows();
    return f32(elements_before(walk, span.first, span.end) - elements_before(walk, span.first, span.start));
}

fn first_value(span: Span) -> f32 {
    let walk = walk_of_rows();
    let cell = cell_of(walk, span.first, span.start);
    let first = clamp(4u * cell_vector(cell), cell.begin, cell.begin + walk.inner - 1u);
    return component(read_input(first / 4u), first % 4u);
}

// By the first values. A mask may hide the very first; then sums start from 0, and each lane looks for its share of values
// that count.
fn span_pivot(lane: u32, span: Span) -> f32 {
    let origin = select(first_value(span), 0.0, MASK);
    var sums = vec4(0.0);
    var sampled = vec4(0.0);
    var found = 0u;
    let sample_end = select(min(span.end, span.start + PIVOT_VECTORS), span.end, MASK);
    let walk = walk_of_rows();
    var cell = cell_of(walk, span.first, span.start + lane);
    for (var t = span.start + lane; t < sample_end && found < max(1u, PIVOT_VECTORS / WORKGROUP); t += WORKGROUP) {
        let vector = cell_vector(cell);
        let weights = row_weights(vector, cell.begin, walk.inner, span.first_mask + cell.row * walk.inner);
        sums += select(vec4(0.0), read_input(vector) - origin, weights != vec4(0.0));
        sampled += weights;
        found += select(0u, 1u, any(weights != vec4(0.0)));
        cell = next_cell(walk, cell);
    }
    return pivot_from(lane, origin, sums, sampled);
}

// Each of the 4 positions in a vector has a mean of its own, and the two in the middle are averaged.
fn pivot_from(lane: u32, origin: f32, sums: vec4<f32>, sampled: vec4<f32>) -> f32 {
    let sample = sum_both(lane, 1u, Pair(sums, sampled));
    let means = sample.high / max(sample.low, vec4(1.0));
    let one = max(min(means.x, means.y), min(means.z, means.w));
    let other = min(max(means.x, means.y), max(means.z, means.w)); // these two are in the middle
    let mean = across(sample.high) / max(across(sample.low), 1.0);
    let all_there = all(sample.low >= vec4(1.0));
    let center = origin + select(mean, 0.5 * (one + other), all_there);
    return coarse(vec4(center), vec4(select(0.0, abs(one - other), all_there))).x;
}

// x: Σ(x-K), y: Σ(x-K)² in params.square_unit, z: how many values the mask lets count.
fn span_sums(lane: u32, span: Span, pivot: f32) -> Pair {
    // Four vectors at a time, so that their loads are in flight together; then the last ones.
    let walk = walk_of_rows();
    let unit = params.square_unit;
    let first_mask = span.first_mask;
    var t = span.start + lane;
    var cell = cell_of(walk, span.first, t);
    var sum = Pair(vec4(0.0), vec4(0.0));
    for (; t + 3u * WORKGROUP < span.end; t += 4u * WORKGROUP) {
        let b = next_cell(walk, cell);
        let c = next_cell(walk, b);
        let d = next_cell(walk, c);
        let ab = both(deviations(walk, cell, first_mask, pivot, unit), deviations(walk, b, first_mask, pivot, unit));
        let cd = both(deviations(walk, c, first_mask, pivot, unit), deviations(walk, d, first_mask, pivot, unit));
        sum = add(sum, folded(both(ab, cd)));
        cell = next_cell(walk, d);
    }
    for (; t < span.end; t += WORKGROUP) {
        sum = add(sum, folded(deviations(walk, cell, first_mask, pivot, unit)));
        cell = next_cell(walk, cell);
    }
    return sum_exactly(lane, 1u, sum);
}

// Of a vector of a group that ends before element number `end`; `masks` are the 4 columns' places in the mask.
fn column_deviations(vector: u32, end: u32, masks: vec4<u32>, pivot: vec4<f32>, unit: f32) -> Sums {
    if !MASK {
        let d = keep_before(read_input(vector) - pivot, vector, end);
        return Sums(d, d * (d * unit), vec4(0.0)); // how many there are is known
    }
    let weights = group_weights(vector, end, masks);
    let d = select(vec4(0.0), read_input(vector) - pivot, weights != vec4(0.0));
    return Sums(d, d * (d * unit), weights);
}

// What a lane goes down: 4 neighbouring columns, every `lane_rows`-th row from `lane_row` on.
struct Strip {
    group: u32,
    first: u32,       // the group's first vector
    group_end: u32,   // the element (not the vector) after its last
    column: u32,      // of vectors; where a tile is wider than the matrix, the last one again
    lane_row: u32,
    lane_rows: u32,
    start: u32,       // rows
    end: u32,
}

fn strip_of(lane: u32, group: u32, column: u32, piece: u32) -> Strip {
    let start = piece * params.piece_length;
    return Strip(
        group,
        group * (params.group_elements / 4u),
        group_end(group),
        min(column, params.row_vectors - 1u),
        lane / params.tile,
        rows_at_once(),
        start,
        min(start + params.piece_length, params.rows),
    );
}

// Where row 0 of each of the 4 columns lies in the mask. Rows are `repetitions · inner` apart there.
fn strip_masks(at: Strip) -> vec4<u32> {
    let columns = numbers(at.column);
    return vec4(at.group * params.count) + (columns / params.outer_elements) * params.inner + columns % params.inner;
}

// The first rows go to three classes in turn, and the middle one of the three means is taken. A mask may hide values;
// then sums start from 0, and each lane goes on until it has its share for each column.
fn strip_pivot(lane: u32, at: Strip) -> vec4<f32> {
    let origin = select(read_input(at.first + at.start * params.row_vectors + at.column), vec4(0.0), vec4(MASK));
    let share = max(4u, PIVOT_ROWS / at.lane_rows);
    let sample_end = select(min(at.end, at.start + share * at.lane_rows), at.end, MASK);
    var a = Pair(vec4(0.0), vec4(0.0)); // sum and number
    var b = a;
    var c = a;
    var found = vec4(0.0);
    for (var r = at.start + at.lane_row; r < sample_end && any(found < vec4(f32(share))); r += at.lane_rows) {
        let vector = at.first + r * params.row_vectors + at.column;
        let masks = strip_masks(at) + vec4(r * params.repetitions * params.inner);
        let weights = group_weights(vector, at.group_end, masks);
        let d = select(vec4(0.0), read_input(vector) - origin, weights != vec4(0.0));
        let turn = (r - at.start) % 3u;
        if turn == 0u {
            a = Pair(a.high + d, a.low + weights);
        } else if turn == 1u {
            b = Pair(b.high + d, b.low + weights);
        } else {
            c = Pair(c.high + d, c.low + weights);
        }
        found += weights;
    }
    return strip_pivot_from(lane, origin, a, b, c);
}

// The middle one of three means; each pair is a sum and a number.
fn strip_pivot_from(lane: u32, origin: vec4<f32>, own_a: Pair, own_b: Pair, own_c: Pair) -> vec4<f32> {
    let a = sum_both(lane, params.tile, own_a);
    let b = sum_both(lane, params.tile, own_b);
    let c = sum_both(lane, params.tile, own_c);
    let mean_a = a.high / max(a.low, vec4(1.0));
    let mean_b = b.high / max(b.low, vec4(1.0));
    let mean_c = c.high / max(c.low, vec4(1.0));
    let least = min(min(mean_a, mean_b), mean_c);
    let most = max(max(mean_a, mean_b), mean_c);
    let middle = max(min(mean_a, mean_b), min(max(mean_a, mean_b), mean_c));
    let mean = (a.high + b.high + c.high) / max(a.low + b.low + c.low, vec4(1.0));
    let all_there = min(a.low, min(b.low, c.low)) >= vec4(1.0);
    let spread = select(vec4(0.0), min(middle - least, most - middle), all_there);
    return coarse(origin + select(mean, middle, all_there), spread);
}

struct StripSums {
    first: Pair,       // Σ(x-K) of each column
    second: Pair,      // Σ(x-K)² in params.square_unit
    count: vec4<f32>,
}

fn strip_sums(lane: u32, at: Strip, pivot: vec4<f32>) -> StripSums {
    var sum = Pair(vec4(0.0), vec4(0.0));
    var squares = Pair(vec4(0.0), vec4(0.0));
    var count = vec4(0.0);
    let unit = params.square_unit;
    let limit = at.group_end;
    let step = at.lane_rows * params.row_vectors;
    let mask_step = vec4(at.lane_rows * params.repetitions * params.inner);
    var r = at.start + at.lane_row;
    var vector = at.first + r * params.row_vectors + at.column;
    var masks = strip_masks(at) + vec4(r * params.repetitions * params.inner);
    for (; r + 3u * at.lane_rows < at.end; r += 4u * at.lane_rows) {
        let a = column_deviations(vector, limit, masks, pivot, unit);
        let b = column_deviations(vector + step, limit, masks + mask_step, pivot, unit);
        let c = column_deviations(vector + 2u * step, limit, masks + 2u * mask_step, pivot, unit);
        let d = column_deviations(vector + 3u * step, limit, masks + 3u * mask_step, pivot, unit);
        let s = both(both(a, b), both(c, d));
        sum = add(sum, s.first);
        squares = add(squares, s.second);
        count += s.count;
        vector += 4u * step;
        masks += 4u * mask_step;
    }
    for (; r < at.end; r += at.lane_rows) {
        let s = column_deviations(vector, limit, masks, pivot, unit);
        sum = add(sum, s.first);
        squares = add(squares, s.second);
        count += s.count;
        vector += step;
        masks += mask_step;
    }
    let s1 = sum_exactly(lane, params.tile, sum);
    let s2 = sum_exactly(lane, params.tile, squares);
    // Without a mask only the last row can be cut short.
    let last = at.first + (at.end - 1u) * params.row_vectors + at.column;
    var n = vec4(f32(at.end - at.start - 1u)) + keep_before(vec4(1.0), last, limit);
    if MASK {
        n = sum_both(lane, params.tile, Pair(count, vec4(0.0))).high;
    }
    return StripSums(s1, s2, n);
}

// ---- Two strips side by side (ACROSS), two rows at a time.

// Sums of the four columns of a vector, as they grow.
struct Growing {
    first: Pair,
    second: Pair,
}

fn two_rows(s: Growing, vector: u32, next: u32, pivot: vec4<f32>, unit: f32) -> Growing {
    let end = params.elements;
    let a = column_deviations(vector, end, vec4(0u), pivot, unit);
    let b = column_deviations(next, end, vec4(0u), pivot, unit);
    return Growing(add(s.first, a.first + b.first), add(s.second, a.second + b.second));
}

fn one_row(s: Growing, vector: u32, pivot: vec4<f32>, unit: f32) -> Growing {
    let a = column_deviations(vector, params.elements, vec4(0u), pivot, unit);
    return Growing(add(s.first, a.first), add(s.second, a.second));
}

fn grown(s: Growing, count: f32) -> StripSums {
    return StripSums(normalised(s.first), normalised(s.second), vec4(count));
}

// `at` is the first strip.
fn strips_sums(at: Strip, pivot: array<vec4<f32>, 2>) -> array<StripSums, 2> {
    let zero = Growing(Pair(vec4(0.0), vec4(0.0)), Pair(vec4(0.0), vec4(0.0)));
    var a = zero;
    var b = zero;
    let unit = params.square_unit;
    let step = params.row_vectors;
    var vector = at.first + at.start * step + at.column;
    var r = at.start;
    for (; r + 1u < at.end; r += 2u) {
        let next = vector + step;
        a = two_rows(a, vector, next, pivot[0], unit);
        b = two_rows(b, vector + WORKGROUP, next + WORKGROUP, pivot[1], unit);
        vector = next + step;
    }
    if r < at.end {
        a = one_row(a, vector, pivot[0], unit);
        b = one_row(b, vector + WORKGROUP, pivot[1], unit);
    }
    let count = f32(at.end - at.start);
    return array(grown(a, count), grown(b, count));
}
