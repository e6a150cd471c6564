// Normalises: y = act((x - K)·scale + shift + residual).
//
// Parallel: three ways over the same vectors of 4 elements, each of which one invocation owns; no two write one word.
//   normalize_planar:  a workgroup per piece of a channel, whose rows are whole vectors
//   normalize_columns: a workgroup per piece of a tile of columns
//   normalize:         flat, for what is left; a workgroup owns a chunk, and the channel of each element is looked up
// The first two load a channel's coefficients once a piece, and four vectors at a time where these are whole words. Reads
// x (and the residual) once, writes y once. In place, x is what y is about to replace.

@group(0) @binding(7) var<storage, read> coefficients: array<vec4<f32>>;

// What is read of a vector.
struct Loaded {
    x: vec4<f32>,
    residual: vec4<f32>,
}

fn load(vector: u32) -> Loaded {
    var r = Loaded(vec4(0.0), vec4(0.0));
    if IN_PLACE {
        r.x = read_output(vector);
    } else {
        r.x = read_input(vector);
    }
    if RESIDUAL {
        r.residual = read_residual(vector);
    }
    return r;
}

fn apply(vector: u32, r: Loaded, c: Coefficients) {
    var z = fma(r.x - c.pivot, c.scale, c.shift);
    if RESIDUAL {
        z += r.residual;
    }
    write_output(vector, activate(z));
}

fn coefficients_of(a: u32, b: u32, c: u32, d: u32) -> Coefficients {
    let c0 = coefficients[a];
    let c1 = coefficients[b];
    let c2 = coefficients[c];
    let c3 = coefficients[d];
    return Coefficients(
        vec4(c0.x, c1.x, c2.x, c3.x),
        vec4(c0.y, c1.y, c2.y, c3.y),
        vec4(c0.z, c1.z, c2.z, c3.z),
        vec4(0.0),
    );
}

@compute @workgroup_size(WORKGROUP)
fn normalize_planar(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    if number >= params.workgroups {
        return;
    }
    let statistic = number % params.statistics;
    let start = (number / params.statistics) * params.piece_length;
    let end = min(start + params.piece_length, params.rows * params.row_vectors);
    let first = first_row(statistic);
    let own = coefficients[statistic];
    let c = Coefficients(own.xxxx, own.yyyy, own.zzzz, own.wwww);
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

@compute @workgroup_size(WORKGROUP)
fn normalize_columns(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let groups = params.statistics / params.channels;
    let group = (number / params.pieces) % groups;
    let column = (number / params.pieces / groups) * params.tile + lane % params.tile; // of vectors
    if number >= params.workgroups || column >= params.row_vectors {
        return;
    }
    let start = (number % params.pieces) * params.piece_length;
    let end = min(start + params.piece_length, params.rows);
    let lane_rows = WORKGROUP / params.tile;
    let base = group * params.channels;
    let c = coefficients_of(
        base + column_channel(4u * column),
        base + column_channel(4u * column + 1u),
        base + column_channel(4u * column + 2u),
        base + column_channel(4u * column + 3u),
    );
    let step = lane_rows * params.row_vectors;
    var r = start + lane / params.tile;
    var vector = group * (params.group_elements / 4u) + r * params.row_vectors + column;
    // Several groups are whole vectors each; the last row may reach past its group, or past the tensor.
    let limit = select(params.vectors, (group + 1u) * (params.group_elements / 4u), groups > 1u);
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

@compute @workgroup_size(WORKGROUP)
fn normalize(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = workgroup_number(id, grid) * params.chunk;
    let end = min(start + params.chunk, params.vectors);
    for (var place = place_of(start + lane); place.vector < end; place = next_place(place)) {
        let s = statistic_of(place, 0u);
        if CHANNEL_LOOKUP == SAME_CHANNEL {
            let own = coefficients[s];
            apply(place.vector, load(place.vector), Coefficients(own.xxxx, own.yyyy, own.zzzz, own.wwww));
        } else if CHANNEL_LOOKUP == NEXT_CHANNEL {
            let one = coefficients[s];
            let two = coefficients[statistic_of(place, 3u)];
            let over = beyond_boundary(place);
            apply(place.vector, load(place.vector), Coefficients(
                select(one.xxxx, two.xxxx, over),
                select(one.yyyy, two.yyyy, over),
                select(one.zzzz, two.zzzz, over),
                vec4(0.0),
            ));
        } else {
            let c = coefficients_of(s, statistic_of(place, 1u), statistic_of(place, 2u), statistic_of(place, 3u));
            apply(place.vector, load(place.vector), c);
        }
    }
}
