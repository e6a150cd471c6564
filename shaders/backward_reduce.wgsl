// Gradient sums: x, dy -> (Σdz, its remainder, Σdz·(x-κ), its remainder) per piece and channel (planar) or per piece and
// column, with dz = dy·act'(z).
//
// Parallel: as in reduce.wgsl, one workgroup per piece of a channel, or per piece of a tile of columns. Reads x and dy
// once, and the residual where an activation needs it. Runs of at most 16 additions are folded into exact pairs,
// because dγ = invstd·(Σdz·(x-κ) - (mean-κ)·Σdz) cancels where Σdz is large.
// A mask changes nothing here: values that do not count for the statistics are normalised, and have a gradient, too.
// Barriers: only those of the workgroup sums; every invocation reaches them, lanes without work add zeros.

@group(0) @binding(7) var<storage, read> coefficients: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> partials: array<vec4<f32>>;

// Vectors; of so many equal values the plain sum is exact, and a constant gradient has an exact mean.
const GRADIENT_RUN: u32 = 4u;

// dz of one vector.
fn grad_z(vector: u32, x: vec4<f32>, pivot: vec4<f32>, scale: vec4<f32>, shift: vec4<f32>) -> vec4<f32> {
    let grad = read_grad_output(vector);
    if ACTIVATION == 0u {
        return grad;
    }
    var z = fma(x - pivot, scale, shift);
    if RESIDUAL {
        z += read_residual(vector);
    }
    return activation_gradient(z, grad);
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
    let forward = coefficients[statistic]; // K, scale, shift, κ

    var t = piece * params.piece_length + lane;
    var row = t / params.row_vectors;
    var column = t % params.row_vectors;
    var sum = Pair(vec4(0.0), vec4(0.0)); // x: Σdz, y: Σdz·(x-κ)
    while t < end {
        var s1 = vec4(0.0);
        var s2 = vec4(0.0);
        let run_end = min(end, t + GRADIENT_RUN * WORKGROUP);
        for (; t < run_end; t += WORKGROUP) {
            let begin = row_begin(first, row);
            let vector = begin / 4u + column;
            let x = read_input(vector);
            let dz = grad_z(vector, x, forward.xxxx, forward.yyyy, forward.zzzz);
            s1 += keep_row(dz, vector, begin);
            s2 += keep_row(dz * (x - forward.w), vector, begin);
            row += params.step_rows;
            column += params.step_vectors;
            if column >= params.row_vectors {
                column -= params.row_vectors;
                row += 1u;
            }
        }
        sum = add(sum, vec4(across(s1), across(s2), 0.0, 0.0));
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
    let c0 = coefficients[group * params.channels + column_channel(4u * readable)];
    let c1 = coefficients[group * params.channels + column_channel(4u * readable + 1u)];
    let c2 = coefficients[group * params.channels + column_channel(4u * readable + 2u)];
    let c3 = coefficients[group * params.channels + column_channel(4u * readable + 3u)];
    let pivot = vec4(c0.x, c1.x, c2.x, c3.x);
    let scale = vec4(c0.y, c1.y, c2.y, c3.y);
    let shift = vec4(c0.z, c1.z, c2.z, c3.z);
    let kappa = vec4(c0.w, c1.w, c2.w, c3.w);

    var sum = Pair(vec4(0.0), vec4(0.0));
    var products = Pair(vec4(0.0), vec4(0.0));
    var r = piece * params.piece_length + lane / params.tile;
    while r < end {
        var s1 = vec4(0.0);
        var s2 = vec4(0.0);
        let run_end = min(end, r + GRADIENT_RUN * lane_rows);
        for (; r < run_end; r += lane_rows) {
            let local = r * params.row_vectors + readable;
            let x = read_input(first + local);
            let dz = grad_z(first + local, x, pivot, scale, shift);
            s1 += keep_group(dz, local);
            s2 += keep_group(dz * (x - kappa), local);
        }
        sum = add(sum, s1);
        products = add(products, s2);
    }
    let s1 = sum_exactly(lane, params.tile, sum);
    let s2 = sum_exactly(lane, params.tile, products);
    if lane < params.tile && column < params.row_vectors && number < params.workgroups {
        let place = piece * params.slot_stride + group * params.width + 4u * column;
        partials[place] = vec4(s1.high.x, s1.low.x, s2.high.x, s2.low.x);
        partials[place + 1u] = vec4(s1.high.y, s1.low.y, s2.high.y, s2.low.y);
        partials[place + 2u] = vec4(s1.high.z, s1.low.z, s2.high.z, s2.low.z);
        partials[place + 3u] = vec4(s1.high.w, s1.low.w, s2.high.w, s2.low.w);
    }
}

// The channel of a column; columns past the first `channels · inner` repeat them.
fn column_channel(column: u32) -> u32 {
    return (column / params.inner) % params.channels;
}
