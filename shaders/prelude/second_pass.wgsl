// How a second pass goes over a span of a channel, or down a strip of columns. For parts that have `Loaded`, what is read of
// a vector, `Applied`, the coefficients, and `load` and `apply` for a vector.

// Four vectors at a time, all loads before the first store, where these are whole words: they are in flight together.
fn span_apply(lane: u32, first: u32, start: u32, end: u32, c: Applied) {
    let walk = walk_of_rows();
    var t = start + lane;
    var cell = cell_of(walk, first, t);
    for (; WORDS == 1u && t + 3u * WORKGROUP < end; t += 4u * WORKGROUP) {
        let second = next_cell(walk, cell);
        let third = next_cell(walk, second);
        let fourth = next_cell(walk, third);
        let v0 = cell_vector(cell);
        let v1 = cell_vector(second);
        let v2 = cell_vector(third);
        let v3 = cell_vector(fourth);
        let r0 = load(v0);
        let r1 = load(v1);
        let r2 = load(v2);
        let r3 = load(v3);
        apply(v0, r0, c);
        apply(v1, r1, c);
        apply(v2, r2, c);
        apply(v3, r3, c);
        cell = next_cell(walk, fourth);
    }
    for (; t < end; t += WORKGROUP) {
        let v = cell_vector(cell);
        apply(v, load(v), c);
        cell = next_cell(walk, cell);
    }
}

// Down two columns of vectors at once (ACROSS), of which `column` is the first.
fn strips_apply(group: u32, column: u32, row: u32, end: u32, c: array<Applied, 2>) {
    let step = params.row_vectors;
    var v0 = group * (params.group_elements / 4u) + row * step + column;
    for (var r = row; r < end; r++) {
        let v1 = v0 + WORKGROUP;
        let r0 = load(v0);
        let r1 = load(v1);
        apply(v0, r0, c[0]);
        apply(v1, r1, c[1]);
        v0 += step;
    }
}

// Down a column of vectors, every `lane_rows`-th row from `row` on. Several groups are whole vectors each; the last row may
// reach past its group, or past the tensor.
fn strip_apply(group: u32, column: u32, row: u32, lane_rows: u32, end: u32, c: Applied) {
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
