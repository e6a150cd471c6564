// A backward pass in one dispatch: x, dy -> dx, the residual's gradient, gradients of weight and bias.
//
// Parallel: as in fused_forward.wgsl. A workgroup sums dz and dz·(x-κ) of its channels, and goes over them again. Reads x
// and dy twice, the second time from cache (streaming, HELD = 0), or once: a lane keeps its HELD vectors of x and of dz in
// registers (resident). Writes dx once. Statistics are saved ones, and there is no mask.
// Barriers: only those of the workgroup sums; every invocation reaches them, lanes without work add zeros.

@group(0) @binding(6) var<storage, read> affine: array<f32>;
@group(0) @binding(7) var<storage, read> statistics: array<f32>; // K, δ, δ's remainder, invstd
@group(0) @binding(8) var<storage, read_write> grad_affine: array<f32>;

const MOST_HELD: u32 = 4u;

fn counting(vector: u32) -> vec4<bool> {
    return vec4(true);
}

// Both kinds of coefficients of one statistic, as finalize.wgsl lays them out.
struct Known {
    forward: vec4<f32>,    // K, scale, shift, κ
    statistics: vec4<f32>, // mean - κ, its remainder, invstd, weight
}

fn known(s: u32) -> Known {
    let pivot = statistics[s];
    let delta = statistics[params.statistics + s];
    let low = statistics[2u * params.statistics + s];
    let invstd = statistics[3u * params.statistics + s];
    let weight_bias = affine_of(s);
    let forward = coefficients_from(weight_bias, pivot, delta, low, invstd);
    return Known(forward, gradient_statistics(weight_bias.x, pivot, delta, low, invstd, forward.w));
}

fn finish(s: u32, sum_dz: Pair, sum_dz_x: Pair, at: Known, writes: bool) -> vec4<f32> {
    let g = gradient_of(sum_dz, sum_dz_x, at.statistics, f32(params.count));
    if writes && has(HAS_GRAD_AFFINE) {
        write_gradients(s, g.weight, g.bias);
    }
    return g.coefficients;
}

@compute @workgroup_size(WORKGROUP)
fn backward_planar(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let statistic = min(number, params.workgroups - 1u);
    let first = first_row(statistic);
    let all = params.rows * params.row_vectors;
    let walk = walk_of_rows();
    let at = known(statistic);
    let forward = Coefficients(at.forward.xxxx, at.forward.yyyy, at.forward.zzzz, at.forward.wwww);
    var held: array<vec4<f32>, MOST_HELD>;
    var held_dz: array<vec4<f32>, MOST_HELD>;
    var total = Pair(vec4(0.0), vec4(0.0));
    if HELD == 0u {
        total = gradient_span_sums(lane, first, 0u, all, forward);
    } else {
        var run = GradientSums(vec4(0.0), vec4(0.0));
        var sum = Pair(vec4(0.0), vec4(0.0));
        var cell = cell_of(walk, first, lane);
        for (var i = 0u; i < HELD; i++) {
            let loaded = load(cell_vector(cell));
            let inside = lane + i * WORKGROUP < all;
            held[i] = select(vec4(0.0), loaded.x, inside);
            held_dz[i] = select(vec4(0.0), dz_of(loaded, forward), inside);
            run = both_gradients(run, GradientSums(held_dz[i], product_of(held_dz[i], held[i], forward)));
            cell = next_cell(walk, cell);
            if i % 4u == 3u || i + 1u == HELD {
                sum = add(sum, folded_gradients(run));
                run = GradientSums(vec4(0.0), vec4(0.0));
            }
        }
        total = sum_exactly(lane, 1u, sum);
    }
    let here = number < params.workgroups;
    let g = finish(statistic, Pair(total.high.xxxx, total.low.xxxx), Pair(total.high.yyyy, total.low.yyyy), at,
        here && lane == 0u);
    let c = Both(forward, g.xxxx, g.yyyy, g.zzzz, g.wwww);
    let end = select(0u, all, here);
    if HELD == 0u {
        span_apply(lane, first, 0u, end, c);
        return;
    }
    var cell = cell_of(walk, first, lane);
    for (var i = 0u; i < HELD; i++) {
        if lane + i * WORKGROUP < end {
            write_gradient(cell_vector(cell), held[i], held_dz[i], c);
        }
        cell = next_cell(walk, cell);
    }
}

fn finish_column(i: u32, base: u32, s: StripGradients, at: Known, writes: bool) -> vec4<f32> {
    let sum_dz = Pair(vec4(component(s.gradient.high, i)), vec4(component(s.gradient.low, i)));
    let sum_dz_x = Pair(vec4(component(s.product.high, i)), vec4(component(s.product.low, i)));
    return finish(base + i, sum_dz, sum_dz_x, at, writes);
}

@compute @workgroup_size(WORKGROUP)
fn backward_columns(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let block = block_of(work, lane); // in one piece
    let group = block.group;
    let column = block.column;
    let readable = min(column, params.row_vectors - 1u);
    let lane_row = lane / params.tile;
    let lane_rows = WORKGROUP / params.tile;
    let begin = group * (params.group_elements / 4u) + lane_row * params.row_vectors + readable;
    let step = lane_rows * params.row_vectors;
    let base = group * params.channels + 4u * readable;
    let k0 = known(base);
    let k1 = known(base + 1u);
    let k2 = known(base + 2u);
    let k3 = known(base + 3u);
    let forward = Coefficients(
        vec4(k0.forward.x, k1.forward.x, k2.forward.x, k3.forward.x),
        vec4(k0.forward.y, k1.forward.y, k2.forward.y, k3.forward.y),
        vec4(k0.forward.z, k1.forward.z, k2.forward.z, k3.forward.z),
        vec4(k0.forward.w, k1.forward.w, k2.forward.w, k3.forward.w),
    );
    var held: array<vec4<f32>, MOST_HELD>;
    var held_dz: array<vec4<f32>, MOST_HELD>;
    var s = StripGradients(Pair(vec4(0.0), vec4(0.0)), Pair(vec4(0.0), vec4(0.0)));
    if HELD == 0u {
        s = gradient_strip_sums(lane, group, readable, lane_row, lane_rows, params.rows, forward);
    } else {
        var run = GradientSums(vec4(0.0), vec4(0.0));
        var sum = Pair(vec4(0.0), vec4(0.0));
        var weighted = Pair(vec4(0.0), vec4(0.0));
        for (var i = 0u; i < HELD; i++) {
            let loaded = load(begin + i * step);
            let inside = lane_row + i * lane_rows < params.rows;
            held[i] = select(vec4(0.0), loaded.x, inside);
            held_dz[i] = select(vec4(0.0), dz_of(loaded, forward), inside);
            run = both_gradients(run, GradientSums(held_dz[i], product_of(held_dz[i], held[i], forward)));
            if i % 4u == 3u || i + 1u == HELD {
                sum = add(sum, run.gradient);
                weighted = add(weighted, run.product);
                run = GradientSums(vec4(0.0), vec4(0.0));
            }
        }
        s = StripGradients(sum_exactly(lane, params.tile, sum), sum_exactly(lane, params.tile, weighted));
    }
    let here = column < params.row_vectors && number < params.workgroups;
    let writes = here && lane_row == 0u;
    let g0 = finish_column(0u, base, s, k0, writes);
    let g1 = finish_column(1u, base, s, k1, writes);
    let g2 = finish_column(2u, base, s, k2, writes);
    let g3 = finish_column(3u, base, s, k3, writes);
    let c = Both(
        forward,
        vec4(g0.x, g1.x, g2.x, g3.x),
        vec4(g0.y, g1.y, g2.y, g3.y),
        vec4(g0.z, g1.z, g2.z, g3.z),
        vec4(g0.w, g1.w, g2.w, g3.w),
    );
    let end = select(0u, params.rows, here);
    if HELD == 0u {
        strip_apply(group, readable, lane_row, lane_rows, end, c);
        return;
    }
    for (var i = 0u; i < HELD; i++) {
        if lane_row + i * lane_rows < end {
            write_gradient(begin + i * step, held[i], held_dz[i], c);
        }
    }
}
