// A training forward pass in one dispatch: x -> y, saved and running statistics.
//
// Parallel: forward_planar takes a workgroup per statistic, whose rows are whole vectors; forward_columns one per tile of
// columns, each of them a channel. It takes the moments of its channels, and normalises them. Reads x twice, the second
// time from cache (streaming, HELD = 0), or once: a lane keeps its HELD vectors of x in registers (resident, no mask).
// Writes y once.
// Barriers: only those of the workgroup sums; every invocation reaches them, lanes without work add zeros.

@group(0) @binding(7) var<storage, read> affine: array<f32>;
@group(0) @binding(8) var<storage, read_write> running: array<u32>;
@group(0) @binding(9) var<storage, read_write> saved: array<f32>;

const MOST_HELD: u32 = 16u;

@compute @workgroup_size(WORKGROUP)
fn forward_planar(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let statistic = min(number, params.workgroups - 1u);
    let span = span_of(statistic, 0u);
    let walk = walk_of_rows();
    var held: array<vec4<f32>, MOST_HELD>;
    var pivot = 0.0;
    var total = Pair(vec4(0.0), vec4(0.0));
    if HELD == 0u {
        pivot = span_pivot(lane, span);
        total = span_sums(lane, span, pivot);
    } else {
        let origin = first_value(span);
        var sums = vec4(0.0);
        var number_held = 0.0;
        var cell = cell_of(walk, span.first, lane);
        for (var i = 0u; i < HELD; i++) {
            let inside = lane + i * WORKGROUP < span.end;
            held[i] = select(vec4(origin), read_input(cell_vector(cell)), inside);
            sums += held[i] - origin;
            number_held += select(0.0, 1.0, inside);
            cell = next_cell(walk, cell);
        }
        pivot = pivot_from(lane, origin, sums, vec4(number_held));
        var run = Sums(vec4(0.0), vec4(0.0), vec4(0.0));
        var sum = Pair(vec4(0.0), vec4(0.0));
        for (var i = 0u; i < HELD; i++) {
            let d = select(vec4(0.0), held[i] - pivot, lane + i * WORKGROUP < span.end);
            run = both(run, Sums(d, d * (d * params.square_unit), vec4(0.0)));
            if i % 4u == 3u || i + 1u == HELD {
                sum = add(sum, folded(run));
                run = Sums(vec4(0.0), vec4(0.0), vec4(0.0));
            }
        }
        total = sum_exactly(lane, 1u, sum);
    }
    let count = select(values_of(span), total.high.z, MASK);
    let m = moments_of(count, pivot, Pair(total.high.xxxx, total.low.xxxx), Pair(total.high.yyyy, total.low.yyyy));
    let invstd = invstd_of(m);
    if lane == 0u && number < params.workgroups {
        write_saved(statistic, m, invstd);
        update_running(statistic, m);
    }
    let own = coefficients_from(affine_of(statistic), m.pivot, m.delta, m.delta_low, invstd);
    let c = Coefficients(own.xxxx, own.yyyy, own.zzzz, own.wwww);
    let end = select(0u, span.end, number < params.workgroups);
    if HELD == 0u {
        span_apply(lane, span.first, 0u, end, c);
        return;
    }
    var cell = cell_of(walk, span.first, lane);
    for (var i = 0u; i < HELD; i++) {
        if lane + i * WORKGROUP < end {
            let vector = cell_vector(cell);
            apply(vector, Loaded(held[i], residual_of(vector)), c);
        }
        cell = next_cell(walk, cell);
    }
}

fn plus_where(condition: bool, sum: Pair, v: Pair) -> Pair {
    return Pair(sum.high + select(vec4(0.0), v.high, condition), sum.low + select(vec4(0.0), v.low, condition));
}

// One of a lane's four columns: writes its statistics, where the lane is the one to do it, and gives its coefficients.
fn finish_column(i: u32, base: u32, pivot: vec4<f32>, s: StripSums, writes: bool) -> vec4<f32> {
    let first = Pair(vec4(component(s.first.high, i)), vec4(component(s.first.low, i)));
    let second = Pair(vec4(component(s.second.high, i)), vec4(component(s.second.low, i)));
    let m = moments_of(component(s.count, i), component(pivot, i), first, second);
    let invstd = invstd_of(m);
    if writes {
        write_saved(base + i, m, invstd);
        update_running(base + i, m);
    }
    return coefficients_from(affine_of(base + i), m.pivot, m.delta, m.delta_low, invstd);
}

@compute @workgroup_size(WORKGROUP)
fn forward_columns(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let block = block_of(work, lane); // in one piece
    let group = block.group;
    let column = block.column;
    let at = strip_of(lane, group, column, 0u);
    let begin = at.first + at.lane_row * params.row_vectors + at.column;
    let step = at.lane_rows * params.row_vectors;
    var held: array<vec4<f32>, MOST_HELD>;
    var pivot = vec4(0.0);
    var s = StripSums(Pair(vec4(0.0), vec4(0.0)), Pair(vec4(0.0), vec4(0.0)), vec4(0.0));
    if HELD == 0u {
        pivot = strip_pivot(lane, at);
        s = strip_sums(lane, at, pivot);
    } else {
        let origin = read_input(at.first + at.column);
        // Three classes of rows, as lanes have them and as they come.
        var a = Pair(vec4(0.0), vec4(0.0));
        var b = a;
        var c_ = a;
        for (var i = 0u; i < HELD; i++) {
            let inside = at.lane_row + i * at.lane_rows < at.end;
            held[i] = select(origin, read_input(begin + i * step), inside);
            let d = Pair(held[i] - origin, vec4(select(0.0, 1.0, inside)));
            let turn = (at.lane_row + i * at.lane_rows) % 3u;
            a = plus_where(turn == 0u, a, d);
            b = plus_where(turn == 1u, b, d);
            c_ = plus_where(turn == 2u, c_, d);
        }
        pivot = strip_pivot_from(lane, origin, a, b, c_);
        var run = Sums(vec4(0.0), vec4(0.0), vec4(0.0));
        var first = Pair(vec4(0.0), vec4(0.0));
        var second = Pair(vec4(0.0), vec4(0.0));
        for (var i = 0u; i < HELD; i++) {
            let d = select(vec4(0.0), held[i] - pivot, at.lane_row + i * at.lane_rows < at.end);
            run = both(run, Sums(d, d * (d * params.square_unit), vec4(0.0)));
            if i % 4u == 3u || i + 1u == HELD {
                first = add(first, run.first);
                second = add(second, run.second);
                run = Sums(vec4(0.0), vec4(0.0), vec4(0.0));
            }
        }
        s = StripSums(
            sum_exactly(lane, params.tile, first),
            sum_exactly(lane, params.tile, second),
            vec4(f32(params.rows)),
        );
    }
    let here = column < params.row_vectors && number < params.workgroups;
    let base = group * params.channels + 4u * at.column;
    let writes = here && at.lane_row == 0u;
    let c0 = finish_column(0u, base, pivot, s, writes);
    let c1 = finish_column(1u, base, pivot, s, writes);
    let c2 = finish_column(2u, base, pivot, s, writes);
    let c3 = finish_column(3u, base, pivot, s, writes);
    let c = Coefficients(
        vec4(c0.x, c1.x, c2.x, c3.x),
        vec4(c0.y, c1.y, c2.y, c3.y),
        vec4(c0.z, c1.z, c2.z, c3.z),
        vec4(0.0),
    );
    let end = select(0u, at.end, here);
    if HELD == 0u {
        strip_apply(group, at.column, at.lane_row, at.lane_rows, end, c);
        return;
    }
    for (var i = 0u; i < HELD; i++) {
        if at.lane_row + i * at.lane_rows < end {
            let vector = begin + i * step;
            apply(vector, Loaded(held[i], residual_of(vector)), c);
        }
    }
}
