// Gradient sums of a span of one channel, or of a strip of columns: Σdz and Σdz·(x-κ) with dz = dy·act'(z).
//
// Four vectors are summed as a tree (of equal values exactly, so that a constant gradient has an exact mean) and folded
// into exact pairs, because dγ = invstd·(Σdz·(x-κ) - (mean-κ)·Σdz) cancels where Σdz is large. A mask changes nothing here:
// values that do not count for the statistics are normalised, and have a gradient, too.
// Barriers: those of the workgroup sums. Every invocation must call these; lanes without work add zeros.

// dz and dz·(x-κ), for each of the 4 positions in a vector.
struct GradientSums {
    gradient: vec4<f32>,
    product: vec4<f32>,
}

fn both_gradients(a: GradientSums, b: GradientSums) -> GradientSums {
    return GradientSums(a.gradient + b.gradient, a.product + b.product);
}

fn folded_gradients(s: GradientSums) -> vec4<f32> {
    return vec4(across(s.gradient), across(s.product), 0.0, 0.0);
}

fn product_of(dz: vec4<f32>, x: vec4<f32>, c: Coefficients) -> vec4<f32> {
    return dz * (x - c.kappa);
}

fn of_vector(vector: u32, c: Coefficients) -> GradientSums {
    let x = read_input(vector);
    var dz = read_grad_output(vector);
    if ACTIVATION != 0u {
        var z = fma(x - c.pivot, c.scale, c.shift);
        if RESIDUAL {
            z += read_residual(vector);
        }
        dz = activation_gradient(z, dz);
    }
    return GradientSums(dz, product_of(dz, x, c));
}

fn products(walk: RowWalk, cell: Cell, c: Coefficients) -> GradientSums {
    let vector = cell_vector(cell);
    let s = of_vector(vector, c);
    return GradientSums(
        keep_row(s.gradient, vector, cell.begin, walk.inner),
        keep_row(s.product, vector, cell.begin, walk.inner),
    );
}

fn column_products(vector: u32, end: u32, c: Coefficients) -> GradientSums {
    let s = of_vector(vector, c);
    return GradientSums(keep_before(s.gradient, vector, end), keep_before(s.product, vector, end));
}

// x: Σdz, y: Σdz·(x-κ), over a channel's vectors from `start` up to `end`.
fn gradient_span_sums(lane: u32, first: u32, start: u32, end: u32, forward: Coefficients) -> Pair {
    let walk = walk_of_rows();
    var t = start + lane;
    var cell = cell_of(walk, first, t);
    var sum = Pair(vec4(0.0), vec4(0.0));
    for (; t + 3u * WORKGROUP < end; t += 4u * WORKGROUP) {
        let b = next_cell(walk, cell);
        let c = next_cell(walk, b);
        let d = next_cell(walk, c);
        let ab = both_gradients(products(walk, cell, forward), products(walk, b, forward));
        let cd = both_gradients(products(walk, c, forward), products(walk, d, forward));
        sum = add(sum, folded_gradients(both_gradients(ab, cd)));
        cell = next_cell(walk, d);
    }
    for (; t < end; t += WORKGROUP) {
        sum = add(sum, folded_gradients(products(walk, cell, forward)));
        cell = next_cell(walk, cell);
    }
    return sum_exactly(lane, 1u, sum);
}

struct StripGradients {
    gradient: Pair, // Σdz of each column
    product: Pair,  // Σdz·(x-κ)
}

// Down a column of a group's vectors, every `lane_rows`-th row from `row` on.
fn gradient_strip_sums(lane: u32, group: u32, column: u32, row: u32, lane_rows: u32, end: u32, c: Coefficients) -> StripGradients {
    var sum = Pair(vec4(0.0), vec4(0.0));
    var weighted = Pair(vec4(0.0), vec4(0.0));
    let limit = group_end(group);
    let step = lane_rows * params.row_vectors;
    var r = row;
    var vector = group * (params.group_elements / 4u) + r * params.row_vectors + column;
    for (; r + 3u * lane_rows < end; r += 4u * lane_rows) {
        let ab = both_gradients(column_products(vector, limit, c), column_products(vector + step, limit, c));
        let cd = both_gradients(column_products(vector + 2u * step, limit, c), column_products(vector + 3u * step, limit, c));
        let s = both_gradients(ab, cd);
        sum = add(sum, s.gradient);
        weighted = add(weighted, s.product);
        vector += 4u * step;
    }
    for (; r < end; r += lane_rows) {
        let s = column_products(vector, limit, c);
        sum = add(sum, s.gradient);
        weighted = add(weighted, s.product);
        vector += step;
    }
    return StripGradients(sum_exactly(lane, params.tile, sum), sum_exactly(lane, params.tile, weighted));
}

// ---- Two strips side by side (ACROSS), two rows at a time.

fn two_gradient_rows(s: StripGradients, vector: u32, next: u32, c: Coefficients) -> StripGradients {
    let both = both_gradients(of_vector(vector, c), of_vector(next, c));
    return StripGradients(add(s.gradient, both.gradient), add(s.product, both.product));
}

fn one_gradient_row(s: StripGradients, vector: u32, c: Coefficients) -> StripGradients {
    let one = of_vector(vector, c);
    return StripGradients(add(s.gradient, one.gradient), add(s.product, one.product));
}

fn grown_gradients(s: StripGradients) -> StripGradients {
    return StripGradients(normalised(s.gradient), normalised(s.product));
}

// `column` is that of the first strip.
fn strips_gradients(group: u32, column: u32, row: u32, end: u32, k: array<Coefficients, 2>) -> array<StripGradients, 2> {
    let zero = StripGradients(Pair(vec4(0.0), vec4(0.0)), Pair(vec4(0.0), vec4(0.0)));
    var a = zero;
    var b = zero;
    let step = params.row_vectors;
    var vector = group * (params.group_elements / 4u) + row * step + column;
    var r = row;
    for (; r + 1u < end; r += 2u) {
        let next = vector + step;
        a = two_gradient_rows(a, vector, next, k[0]);
        b = two_gradient_rows(b, vector + WORKGROUP, next + WORKGROUP, k[1]);
        vector = next + step;
    }
    if r < end {
        a = one_gradient_row(a, vector, k[0]);
        b = one_gradient_row(b, vector + WORKGROUP, k[1]);
    }
    return array(grown_gradients(a), grown_gradients(b));
}
