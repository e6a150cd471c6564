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

fn products(first: u32, cell: Cell, c: Coefficients) -> GradientSums {
    let vector = cell_vector(first, cell);
    let s = of_vector(vector, c);
    let begin = row_begin(first, cell.row);
    return GradientSums(keep_row(s.gradient, vector, begin), keep_row(s.product, vector, begin));
}

fn column_products(first: u32, local: u32, c: Coefficients) -> GradientSums {
    let s = of_vector(first + local, c);
    return GradientSums(keep_group(s.gradient, local), keep_group(s.product, local));
}

// x: Σdz, y: Σdz·(x-κ), over a channel's vectors from `start` up to `end`.
fn gradient_span_sums(lane: u32, first: u32, start: u32, end: u32, forward: Coefficients) -> Pair {
    var t = start + lane;
    var cell = cell_of(t);
    var sum = Pair(vec4(0.0), vec4(0.0));
    for (; t + 3u * WORKGROUP < end; t += 4u * WORKGROUP) {
        let b = next_cell(cell);
        let c = next_cell(b);
        let d = next_cell(c);
        let ab = both_gradients(products(first, cell, forward), products(first, b, forward));
        let cd = both_gradients(products(first, c, forward), products(first, d, forward));
        sum = add(sum, folded_gradients(both_gradients(ab, cd)));
        cell = next_cell(d);
    }
    for (; t < end; t += WORKGROUP) {
        sum = add(sum, folded_gradients(products(first, cell, forward)));
        cell = next_cell(cell);
    }
    return sum_exactly(lane, 1u, sum);
}

struct StripGradients {
    gradient: Pair, // Σdz of each column
    product: Pair,  // Σdz·(x-κ)
}

// Down a column of vectors, every `lane_rows`-th row from `row` on; `first` is the group's first vector.
fn gradient_strip_sums(lane: u32, first: u32, column: u32, row: u32, lane_rows: u32, end: u32, c: Coefficients) -> StripGradients {
    var sum = Pair(vec4(0.0), vec4(0.0));
    var weighted = Pair(vec4(0.0), vec4(0.0));
    var r = row;
    var local = r * params.row_vectors + column;
    let step = lane_rows * params.row_vectors;
    for (; r + 3u * lane_rows < end; r += 4u * lane_rows) {
        let ab = both_gradients(column_products(first, local, c), column_products(first, local + step, c));
        let cd = both_gradients(column_products(first, local + 2u * step, c), column_products(first, local + 3u * step, c));
        let s = both_gradients(ab, cd);
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
    return StripGradients(sum_exactly(lane, params.tile, sum), sum_exactly(lane, params.tile, weighted));
}
