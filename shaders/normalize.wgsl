// Normalises: y = act((x - K)·scale + shift + residual).
//
// Parallel: three ways over the same vectors of 4 elements, each of which one invocation owns; no two write one word.
//   normalize_planar:  a workgroup per piece of a channel, whose rows are whole vectors
//   normalize_columns: a workgroup per piece of a tile of columns
//   normalize:         flat, for what is left; a workgroup owns a chunk, and the channel of each element is looked up
// The first two load a channel's coefficients once a piece, and four vectors at a time where these are whole words. Reads
// x (and the residual) once, writes y once.

@group(0) @binding(7) var<storage, read> coefficients: array<vec4<f32>>;

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

fn coefficients_of_column(group: u32, column: u32) -> Coefficients {
    let base = group * params.channels;
    return coefficients_of(
        base + column_channel(4u * column),
        base + column_channel(4u * column + 1u),
        base + column_channel(4u * column + 2u),
        base + column_channel(4u * column + 3u),
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
    span_apply(lane, first, start, end, c);
}

@compute @workgroup_size(WORKGROUP)
fn normalize_columns(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let block = block_of(number, lane);
    if number >= params.workgroups || block.column >= params.row_vectors {
        return;
    }
    let start = block.piece * params.piece_length;
    let end = min(start + params.piece_length, params.rows);
    let c = coefficients_of_column(block.group, block.column);
    if ACROSS == 1u {
        strip_apply(block.group, block.column, start + lane / params.tile, rows_at_once(), end, c);
        return;
    }
    strips_apply(block.group, block.column, start, end, array(
        c,
        coefficients_of_column(block.group, block.column + WORKGROUP),
    ));
}

@compute @workgroup_size(WORKGROUP)
fn normalize(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = workgroup_number(id, grid) * params.chunk;
    let end = min(start + params.chunk, params.vectors);
    let stride = stride_of_lanes();
    for (var place = place_of(start + lane); place.vector < end; place = next_place(stride, place)) {
        let s = statistic_of(stride, place, 0u);
        if CHANNEL_LOOKUP == SAME_CHANNEL {
            let own = coefficients[s];
            apply(place.vector, load(place.vector), Coefficients(own.xxxx, own.yyyy, own.zzzz, own.wwww));
        } else if CHANNEL_LOOKUP == NEXT_CHANNEL {
            let one = coefficients[s];
            var two = one;
            if has_boundary(stride, place) {
                two = coefficients[statistic_of(stride, place, 3u)];
            }
            let over = beyond_boundary(stride, place);
            apply(place.vector, load(place.vector), Coefficients(
                select(one.xxxx, two.xxxx, over),
                select(one.yyyy, two.yyyy, over),
                select(one.zzzz, two.zzzz, over),
                vec4(0.0),
            ));
        } else {
            let c = coefficients_of(
                s,
                statistic_of(stride, place, 1u),
                statistic_of(stride, place, 2u),
                statistic_of(stride, place, 3u),
            );
            apply(place.vector, load(place.vector), c);
        }
    }
}
