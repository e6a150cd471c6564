// Gradient sums: x, dy -> (Σdz, its remainder, Σdz·(x-κ), its remainder) per piece and channel (planar) or per piece and
// column, with dz = dy·act'(z).
//
// Parallel: as in reduce.wgsl, one workgroup per piece of a channel, or per piece of a tile of columns. Reads x and dy
// once, and the residual where an activation needs it. Four vectors are summed as a tree (of equal values exactly, so
// that a constant gradient has an exact mean) and folded into exact pairs, because dγ = invstd·(Σdz·(x-κ) -
// (mean-κ)·Σdz) cancels where Σdz is large.
// A mask changes nothing here: values that do not count for the statistics are normalised, and have a gradient, too.
// Barriers: only those of the workgroup sums; every invocation reaches them, lanes without work add zeros.

@group(0) @binding(7) var<storage, read> coefficients: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> partials: array<vec4<f32>>;

// dz and dz·(x-κ), for each of the 4 positions in a vector.
struct Sums {
    gradient: vec4<f32>,
    product: vec4<f32>,
}

fn both(a: Sums, b: Sums) -> Sums {
    return Sums(a.gradient + b.gradient, a.product + b.product);
}

fn folded(s: Sums) -> vec4<f32> {
    return vec4(across(s.gradient), across(s.product), 0.0, 0.0);
}

fn of_vector(vector: u32, c: Coefficients) -> Sums {
    let x = read_input(vector);
    var dz = read_grad_output(vector);
    if ACTIVATION != 0u {
        var z = fma(x - c.pivot, c.scale, c.shift);
        if RESIDUAL {
            z += read_residual(vector);
        }
        dz = activation_gradient(z, dz);
    }
    return Sums(dz, dz * (x - c.kappa));
}

fn products(first: u32, cell: Cell, c: Coefficients) -> Sums {
    let vector = cell_vector(first, cell);
    let s = of_vector(vector, c);
    let begin = row_begin(first, cell.row);
    return Sums(keep_row(s.gradient, vector, begin), keep_row(s.product, vector, begin));
}

fn column_products(first: u32, local: u32, c: Coefficients) -> Sums {
    let s = of_vector(first + local, c);
    return Sums(keep_group(s.gradient, local), keep_group(s.product, local));
}

@compute @workgroup_size(WORKGROUP)
fn backward_reduce_planar(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let statistic = work % params.statistics;
    let piece = work / params.statistics;
    let first = first_row(statistic);
    let end = min((piece + 1u) * params.piece_length, params.rows * params.row_vectors);
    let own = coefficients[statistic];
    let forward = Coefficients(own.xxxx, own.yyyy, own.zzzz, own.wwww);

    var t = piece * params.piece_length + lane;
    var cell = cell_of(t);
    var sum = Pair(vec4(0.0), vec4(0.0)); // x: Σdz, y: Σdz·(x-κ)
    for (; t + 3u * WORKGROUP < end; t += 4u * WORKGROUP) {
        let b = next_cell(cell);
        let c = next_cell(b);
        let d = next_cell(c);
        let ab = both(products(first, cell, forward), products(first, b, forward));
        let cd = both(products(first, c, forward), products(first, d, forward));
        sum = add(sum, folded(both(ab, cd)));
        cell = next_cell(d);
    }
    for (; t < end; t += WORKGROUP) {
        sum = add(sum, folded(products(first, cell, forward)));
        cell = next_cell(cell);
    }
    let total = sum_exactly(lane, 1u, sum);
    if lane == 0u && number < params.workgroups {
        partials[piece * params.slot_stride + statistic] = vec4(total.high.x, total.low.x, total.high.y, total.low.y);
    }
}

@compute @workgroup_size(WORKGROUP)
fn backward_reduce_columns(
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
    let lane_rows = WORKGROUP / params.tile;
    let end = min((piece + 1u) * params.piece_length, params.rows);
    let base = group * params.channels;
    let c0 = coefficients[base + column_channel(4u * readable)];
    let c1 = coefficients[base + column_channel(4u * readable + 1u)];
    let c2 = coefficients[base + column_channel(4u * readable + 2u)];
    let c3 = coefficients[base + column_channel(4u * readable + 3u)];
    let c = Coefficients(
        vec4(c0.x, c1.x, c2.x, c3.x),
        vec4(c0.y, c1.y, c2.y, c3.y),
        vec4(c0.z, c1.z, c2.z, c3.z),
        vec4(c0.w, c1.w, c2.w, c3.w),
    );

    var sum = Pair(vec4(0.0), vec4(0.0));
    var weighted = Pair(vec4(0.0), vec4(0.0));
    var r = piece * params.piece_length + lane / params.tile;
    var local = r * params.row_vectors + readable;
    let step = lane_rows * params.row_vectors;
    for (; r + 3u * lane_rows < end; r += 4u * lane_rows) {
        let ab = both(column_products(first, local, c), column_products(first, local + step, c));
        let cd = both(column_products(first, local + 2u * step, c), column_products(first, local + 3u * step, c));
        let s = both(ab, cd);
        sum = add(sum, s.gradient);
        weighted = add(weighted, s.product);
        local += 4u * step;
    }
    for (; r < end; r += lane_rows) {
        let s = column_products(first, local, c);
        sum = add(sum, s.gradient);
        weighted = add(weighted, s.product);
        local += step;
    }
    let s1 = sum_exactly(lane, params.tile, sum);
    let s2 = sum_exactly(lane, params.tile, weighted);
    if lane < params.tile && column < params.row_vectors && number < params.workgroups {
        let place = piece * params.slot_stride + group * params.width + 4u * column;
        partials[place] = vec4(s1.high.x, s1.low.x, s2.high.x, s2.low.x);
        partials[place + 1u] = vec4(s1.high.y, s1.low.y, s2.high.y, s2.low.y);
        partials[place + 2u] = vec4(s1.high.z, s1.low.z, s2.high.z, s2.low.z);
        partials[place + 3u] = vec4(s1.high.w, s1.low.w, s2.high.w, s2.low.w);
    }
}
