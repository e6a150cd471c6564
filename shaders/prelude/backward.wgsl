// The second pass of a backward kernel: dx = A·(dz - E) + B·(x - κ) + D with dz = dy·act'(z), over a span of a channel or a
// strip of columns; with a residual and an activation also the residual's gradient, dz itself. In place, dy is what dx is
// about to replace. Values that a mask left out of the statistics do not feel them: for those dx = A·dz, and so for all
// where the statistics are frozen; x is read then for an activation alone. For kernels that have `counting`, which elements
// of a vector count.

// What is read of a vector.
struct Loaded {
    x: vec4<f32>,
    grad: vec4<f32>,
    residual: vec4<f32>,
}

// Four of each coefficient: K, scale, shift, κ and A, B, D, E.
struct Both {
    forward: Coefficients,
    a: vec4<f32>,
    b: vec4<f32>,
    d: vec4<f32>,
    e: vec4<f32>,
}

fn load(vector: u32) -> Loaded {
    var r = Loaded(vec4(0.0), vec4(0.0), vec4(0.0));
    if !FROZEN || ACTIVATION != 0u {
        r.x = read_input(vector);
    }
    if IN_PLACE {
        r.grad = read_output(vector);
    } else {
        r.grad = read_grad_output(vector);
    }
    if RESIDUAL {
        r.residual = read_residual(vector);
    }
    return r;
}

fn dz_of(r: Loaded, c: Coefficients) -> vec4<f32> {
    if ACTIVATION == 0u {
        return r.grad;
    }
    var z = fma(r.x - c.pivot, c.scale, c.shift);
    if RESIDUAL {
        z += r.residual;
    }
    return activation_gradient(z, r.grad);
}

fn write_gradient(vector: u32, x: vec4<f32>, dz: vec4<f32>, c: Both) {
    if RESIDUAL && ACTIVATION != 0u {
        write_grad_residual(vector, dz);
    }
    if FROZEN {
        write_output(vector, c.a * dz);
        return;
    }
    var centred = dz - c.e;
    var through_statistics = fma(c.b, x - c.forward.kappa, c.d);
    if MASK {
        let counts = counting(vector);
        centred = select(dz, centred, counts);
        through_statistics = select(vec4(0.0), through_statistics, counts);
    }
    write_output(vector, fma(c.a, centred, through_statistics));
}

fn apply(vector: u32, r: Loaded, c: Both) {
    write_gradient(vector, r.x, dz_of(r, c.forward), c);
}

fn span_apply(lane: u32, first: u32, start: u32, end: u32, c: Both) {
    var t = start + lane;
    var cell = cell_of(t);
    for (; WORDS == 1u && t + 3u * WORKGROUP < end; t += 4u * WORKGROUP) {
        let second = next_cell(cell);
        let third = next_cell(second);
        let fourth = next_cell(third);
        let v0 = cell_vector(first, cell);
        let v1 = cell_vector(first, second);
        let v2 = cell_vector(first, third);
        let v3 = cell_vector(first, fourth);
        let r0 = load(v0);
        let r1 = load(v1);
        let r2 = load(v2);
        let r3 = load(v3);
        apply(v0, r0, c);
        apply(v1, r1, c);
        apply(v2, r2, c);
        apply(v3, r3, c);
        cell = next_cell(fourth);
    }
    for (; t < end; t += WORKGROUP) {
        let v = cell_vector(first, cell);
        apply(v, load(v), c);
        cell = next_cell(cell);
    }
}

// Down a column of vectors, every `lane_rows`-th row from `row` on. Several groups are whole vectors each; the last row may
// reach past its group, or past the tensor.
fn strip_apply(group: u32, column: u32, row: u32, lane_rows: u32, end: u32, c: Both) {
    let step = lane_rows * params.row_vectors;
    var r = row;
    var vector = group * (params.group_elements / 4u) + r * params.row_vectors + column;
    let limit = select(params.vectors, (group + 1u) * (params.group_elements / 4u), params.statistics > params.channels);
    for (; WORDS == 1u && r + 3u * lane_rows < end && vector + 3u * step < limit; r += 4u * lane_rows) {
        let r0 = load(vector);
        let r1 = load(vector + step);
        let r2 = load(vector + 2u * step);
        let r3 = load(vector + 3u * step);
        apply(vector, r0, c);
        apply(vector + step, r1, c);
        apply(vector + 2u * step, r2, c);
        apply(vector + 3u * step, r3, c);
        vector += 4u * step;
    }
    for (; r < end && vector < limit; r += lane_rows) {
        apply(vector, load(vector), c);
        vector += step;
    }
}
